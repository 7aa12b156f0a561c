//! Frames to lines. Every bit of a frame shows: in the line, or as a `badsum`.

use std::net::Ipv4Addr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    ArpOperation, ArpPacketSlice, EtherType, Ethernet2Slice, Icmpv4Slice, IpNumber, Ipv4Header,
    Ipv4HeaderSlice, TcpSlice, UdpSlice,
};

use super::{ECHO, ICMP, SEQ, Side, WINDOW, arp_stations, counting, ip_stations, usual_ttl};
use crate::support::line::Line;
use crate::support::station::{BROADCAST, Mac, Port, mac_name};

/// What `frame` is, seen on this side of this port. What cannot be dissected is `raw`.
pub fn dissect(frame: &[u8], port: Port, side: Side) -> Line {
    let Ok(ethernet) = Ethernet2Slice::from_slice_without_fcs(frame) else {
        return raw("raw", frame);
    };
    let packet = ethernet.payload_slice();
    let (mut line, usual) = match ethernet.ether_type() {
        EtherType::IPV4 => match Ipv4HeaderSlice::from_slice(packet) {
            Ok(header) => {
                let mut line = ip_line(packet, usual_ttl(side));
                let length = usize::from(header.total_len());
                if packet.len() > length {
                    line.set("frame", frame.len());
                }
                let usual = ip_stations(header.source_addr(), header.destination_addr(), port, side);
                (line, usual)
            }
            Err(_) => (raw("ether 0x0800", packet), (port.mac(), BROADCAST)),
        },
        EtherType::ARP => arp_line(&ethernet, port, side),
        EtherType(other) => (
            raw(&format!("ether {other:#06x}"), packet),
            (port.mac(), BROADCAST),
        ),
    };
    let unusual = |mac: Mac, usual: Mac| (mac != usual).then(|| mac_name(mac));
    if let Some(from) = unusual(ethernet.source(), usual.0) {
        line.set("from", from);
    }
    if let Some(to) = unusual(ethernet.destination(), usual.1) {
        line.set("to", to);
    }
    line
}

fn raw(head: &str, bytes: &[u8]) -> Line {
    let mut line = Line {
        head: head.split(' ').map(str::to_owned).collect(),
        ..Line::default()
    };
    line.set("hex", digits(bytes));
    line
}

fn arp_line(ethernet: &Ethernet2Slice<'_>, port: Port, side: Side) -> (Line, (Mac, Mac)) {
    let packet = ethernet.payload_slice();
    let Some(arp) = ArpPacketSlice::from_slice(packet)
        .ok()
        .and_then(|a| a.to_packet().try_eth_ipv4().ok())
    else {
        return (raw("ether 0x0806", packet), (port.mac(), BROADCAST));
    };
    let (sender, target) = (Ipv4Addr::from(arp.sender_ipv4), Ipv4Addr::from(arp.target_ipv4));
    let request = arp.operation == ArpOperation::REQUEST;
    let head = if request {
        format!("arp who-has {target} tell {sender}")
    } else {
        format!("arp {sender} is-at {} tell {target}", mac_name(arp.sender_mac))
    };
    let mut line = Line {
        head: head.split(' ').map(str::to_owned).collect(),
        ..Line::default()
    };
    // A question is from its frame's sender; an answer says so in its head, and is to its frame's addressee.
    if request && arp.sender_mac != ethernet.source() {
        line.set("sha", mac_name(arp.sender_mac));
    }
    if arp.target_mac != if request { [0; 6] } else { ethernet.destination() } {
        line.set("tha", mac_name(arp.target_mac));
    }
    if packet.len() > ARP_LEN {
        line.set("frame", ethernet.slice().len());
    }
    (line, arp_stations(arp.operation, sender, target, port, side))
}

/// An ARP packet about IPv4 on Ethernet (RFC 826).
const ARP_LEN: usize = 28;

/// An IP packet, perhaps cut short as in an ICMP error's quotation.
fn ip_line(packet: &[u8], usual_ttl: u8) -> Line {
    let Ok(slice) = Ipv4HeaderSlice::from_slice(packet) else {
        return raw("raw", packet);
    };
    let header = slice.to_header();
    let (start, end) = (slice.slice().len(), usize::from(header.total_len));
    if end < start {
        return raw("raw", packet);
    }
    let whole = packet.len() >= end;
    let body = &packet[start..end.min(packet.len())];
    let mut line = Line::default();
    let mut bad = Vec::new();
    if !sums_up(Sum16BitWords::new().add_slice(slice.slice())) {
        bad.push("l3");
    }
    let fragment = header.is_fragmenting_payload();
    let later = header.fragment_offset.value() > 0;
    let verifiable = whole && !fragment;
    let right = if later {
        None
    } else {
        transport(&mut line, &header, body, verifiable)
    };
    match right {
        None => {
            line = Line::default();
            let kind = match header.protocol {
                IpNumber::TCP => "tcp".to_owned(),
                IpNumber::UDP => "udp".to_owned(),
                IpNumber(number) => format!("ip {number}"),
            };
            let [from, to] = [header.source, header.destination].map(Ipv4Addr::from);
            line.head = format!("{kind} {from} > {to}")
                .split(' ')
                .map(str::to_owned)
                .collect();
            print_payload(&mut line, body);
        }
        Some(false) if verifiable => bad.push("l4"),
        Some(_) => {}
    }
    if !bad.is_empty() {
        line.set("badsum", bad.join("+"));
    }
    if !whole {
        line.set("length", end);
    }
    if header.time_to_live != usual_ttl {
        line.set("ttl", header.time_to_live);
    }
    if !header.options.is_empty() {
        line.set("options", header.options.len());
    }
    if fragment {
        let more = if header.more_fragments { "+" } else { "" };
        line.set(
            "fragment",
            format!("{}{more}", header.fragment_offset.value() * 8),
        );
    }
    // What an ICMP error's own header carries here is its sender's free choice (RFC 1812 §4.3.2).
    if line.quoted.is_none() {
        let fields = [("id", header.identification), ("tos", packet[1].into())];
        fields
            .iter()
            .filter(|(_, value)| *value != 0)
            .for_each(|(name, value)| line.set(name, value));
        if header.dont_fragment {
            line.set("df", "");
        }
    }
    line
}

/// Head and modifiers of the transport; whether its checksum verifies. `None` if it cannot be read.
fn transport(line: &mut Line, ip: &Ipv4Header, body: &[u8], verifiable: bool) -> Option<bool> {
    let [from, to] = [ip.source, ip.destination].map(Ipv4Addr::from);
    let mut say = |head: String| line.head = head.split(' ').map(str::to_owned).collect();
    match ip.protocol {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(body).ok()?;
            say(format!(
                "tcp {from}:{} > {to}:{} {}",
                tcp.source_port(),
                tcp.destination_port(),
                flags(&tcp)
            ));
            let fields = [
                ("seq", tcp.sequence_number(), SEQ),
                ("ack", tcp.acknowledgment_number(), 0),
                ("window", tcp.window_size().into(), WINDOW.into()),
            ];
            fields
                .iter()
                .filter(|(_, value, usual)| value != usual)
                .for_each(|(name, value, _)| line.set(name, value));
            if !tcp.options().is_empty() {
                line.set("tcpopts", digits(tcp.options()));
            }
            print_payload(line, tcp.payload());
            let pseudo = Sum16BitWords::new()
                .add_4bytes(ip.source)
                .add_4bytes(ip.destination);
            let pseudo = pseudo
                .add_2bytes([0, 6])
                .add_2bytes((body.len() as u16).to_be_bytes());
            Some(sums_up(pseudo.add_slice(body)))
        }
        IpNumber::UDP => {
            let udp = if verifiable {
                UdpSlice::from_slice(body)
            } else {
                UdpSlice::from_slice_lax(body)
            }
            .ok()?;
            say(format!(
                "udp {from}:{} > {to}:{}",
                udp.source_port(),
                udp.destination_port()
            ));
            print_payload(line, udp.payload());
            if udp.checksum() == 0 {
                line.set("sum", 0);
                return Some(true);
            }
            // Never 0 (RFC 768): no second way to write it.
            Some(udp.checksum() == udp.to_header().calc_checksum_ipv4(ip, udp.payload()).ok()?)
        }
        IpNumber::ICMP => {
            let icmp = Icmpv4Slice::from_slice(body).ok()?;
            let (type_u8, code_u8, bytes5to8) = (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8());
            let name = ICMP
                .iter()
                .find(|(_, kind, code)| (*kind, *code) == (type_u8, code_u8));
            let name = name.map_or_else(
                || format!("type-{type_u8}-{code_u8}"),
                |(name, ..)| (*name).to_owned(),
            );
            say(format!("icmp {name} {from} > {to}"));
            let [a, b, c, d] = bytes5to8;
            match type_u8 {
                0 | 8 => {
                    let echo = format!("{}/{}", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    if echo != ECHO {
                        line.set("echo", echo);
                    }
                    print_payload(line, icmp.payload());
                }
                3 | 5 | 11 | 12 => {
                    let mtu = u16::from_be_bytes([c, d]);
                    if mtu != 0 {
                        line.set("mtu", mtu);
                    }
                    line.quoted = Some(Box::new(ip_line(icmp.payload(), usual_ttl(Side::In))));
                }
                _ => print_payload(line, icmp.payload()),
            }
            Some(sums_up(Sum16BitWords::new().add_slice(body)))
        }
        _ => None,
    }
}

/// What includes its own checksum sums up to 0 (RFC 1071). Over the bytes as they are: etherparse's headers forget
/// reserved bits.
fn sums_up(sum: Sum16BitWords) -> bool {
    sum.ones_complement() == 0
}

fn print_payload(line: &mut Line, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if bytes.iter().all(|b| (b' '..=b'~').contains(b) && *b != b'"') {
        line.text = Some(String::from_utf8_lossy(bytes).into_owned());
    } else if *bytes == counting(bytes.len())[..] {
        line.set("bytes", bytes.len());
    } else {
        line.set("hex", digits(bytes));
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn flags(tcp: &TcpSlice<'_>) -> String {
    let set = [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.ack(), 'A'),
        (tcp.urg(), 'U'),
        (tcp.ece(), 'E'),
        (tcp.cwr(), 'W'),
    ];
    let letters: String = set
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, letter)| letter)
        .collect();
    if letters.is_empty() {
        "-".to_owned()
    } else {
        letters
    }
}

#[test]
fn a_quotation_that_was_cut_short_says_how_long_the_packet_was() {
    let line = Line::parse("udp 1.2.3.4:5 > 6.7.8.9:10 bytes 100").unwrap();
    let frame = super::build(&line, Port::Client, Side::In).unwrap();
    let line = ip_line(&frame[14..74], 64);
    assert_eq!(line.to_string(), "udp 1.2.3.4:5 > 6.7.8.9:10 length 128 bytes 32");
}
