//! Packets that no well-behaved client sends, as the records of `rules.jsonl` describe them.

use crate::ledger::Row;
use crate::packet::{ACK, FIN, ICMP, ICMPV6, Packet, RST, SYN};
use crate::probe::{client, opening};
use crate::topology::ip;

/// Ports of the Service in these rows: defined for TCP, for UDP, and not at all.
const TCP_PORT: u16 = 80;
const UDP_PORT: u16 = 5353;
const UNDEFINED: u16 = 81;

/// The packet of a row, if it is one of these; its length is the recorded one where an ICMP error tells it.
pub(crate) fn packet(row: &Row, sport: u16) -> Option<Packet> {
    let (src, dst) = (client(row), ip(row.text("dst")));
    let (test, proto) = (row.text("test"), row.text("proto"));
    let port = match test {
        _ if test.contains("destination port 0") => 0,
        _ if test.contains("undefined port") || test.starts_with("REJECT quoted") => UNDEFINED,
        _ if test.starts_with("REJECT of TCP SYN carrying") => UNDEFINED,
        _ if proto.starts_with("UDP") => UDP_PORT,
        _ => TCP_PORT,
    };
    let (from, to) = ((src, sport), (dst, port));
    let flags = |flags| Some(tcp(from, to, flags, &[]));
    match test {
        "other IP protocol to clusterIP" => Some(other(row, proto)),
        "SCTP INIT to clusterIP that defines the port only for TCP" => Some(opening("SCTP", from, to)),
        "REJECT quoted length by datagram size" => {
            let size = row
                .text("setup")
                .split(' ')
                .rev()
                .find_map(|word| word.parse::<usize>().ok());
            Some(Packet::udp(from, to, &vec![b'x'; size?]))
        }
        "REJECT of TCP SYN carrying 600 bytes" => Some(tcp(from, to, SYN, &[b'x'; 600])),
        "REJECT of TCP ACK without connection (undefined port)" => flags(ACK),
        "REJECT of TCP RST without connection (undefined port)" => flags(RST),
        "TCP ACK without connection to a live port" => flags(ACK),
        "TCP FIN+ACK without connection to a live port" => flags(FIN | ACK),
        "TCP RST without connection to a live port" => flags(RST),
        "TCP flags=0 to a live port" => flags(0),
        "TCP SYN+FIN to a live port" => flags(SYN | FIN),
        "ICMP error matching no flow, sent to clusterIP" | "ICMP error matching no flow, sent to LB IP" => {
            Some(stray_error(src, dst))
        }
        "UDP port 0 source to a live port" => Some(udp(row, (src, 0), to)),
        _ if test.contains("wrong checksum") => {
            let sound = if proto.starts_with("UDP") {
                udp(row, from, to)
            } else {
                tcp(from, to, SYN, &[])
            };
            Some(spoilt(sound))
        }
        _ if test.starts_with("UDP checksum 0") => {
            let mut packet = udp(row, from, to);
            packet.transport[6..8].fill(0);
            Some(packet)
        }
        _ if test.starts_with("UDP TTL 1") => Some(Packet {
            hops: 1,
            ..udp(row, from, to)
        }),
        _ if test.starts_with("UDP TTL 64") || test.starts_with("UDP destination port 0") => {
            Some(udp(row, from, to))
        }
        _ => None,
    }
}

/// A segment without options.
fn tcp(from: (std::net::IpAddr, u16), to: (std::net::IpAddr, u16), flags: u8, payload: &[u8]) -> Packet {
    let mut transport = Packet::tcp(from, to, flags, payload).transport;
    transport.drain(20..40);
    transport[12] = 5 << 4;
    Packet::new(from.0, to.0, crate::packet::TCP, transport)
}

/// A datagram as long as the one that the recorded error quotes whole.
fn udp(row: &Row, from: (std::net::IpAddr, u16), to: (std::net::IpAddr, u16)) -> Packet {
    let quoted = row.value["returned"][0]["quoted_len"].as_u64();
    let headers = if from.0.is_ipv4() { 28 } else { 48 };
    let quoted = quoted.map_or(headers + 3, |quoted| quoted as usize);
    Packet::udp(from, to, &vec![b'x'; quoted - headers])
}

fn other(row: &Row, proto: &str) -> Packet {
    let (src, dst) = (client(row), ip(row.text("dst")));
    let number = match proto {
        "GRE" => 47,
        "ESP" => 50,
        "UDP-Lite" => 136,
        "experimental 253" => 253,
        other => panic!("no protocol: {other}"),
    };
    Packet::new(src, dst, number, [7; 32].to_vec())
}

fn spoilt(mut packet: Packet) -> Packet {
    let at = packet.checksum_at().unwrap();
    packet.transport[at] ^= 0x55;
    packet
}

/// "Packet too big" about a packet that nobody sent.
fn stray_error(src: std::net::IpAddr, dst: std::net::IpAddr) -> Packet {
    let quote = opening("UDP", (dst, 80), (src, 4)).bytes();
    let (protocol, header) = if src.is_ipv4() {
        (ICMP, [3, 4, 0, 0, 0, 0, 5, 120])
    } else {
        (ICMPV6, [2, 0, 0, 0, 0, 0, 5, 120])
    };
    Packet::new(src, dst, protocol, [&header[..], &quote].concat())
}
