//! Lines of the packet language to frames and back, by etherparse: an implementation that shares nothing with the one
//! under test. A packet's checksums are right unless its line says `badsum`; a frame comes from and goes to the stations
//! its addresses imply unless its line says `from` or `to`; time to live is 64 where a packet starts and 63 after us.
//!
//! ```text
//! tcp 198.51.100.10:40000 > 10.96.0.10:80 S        udp [fd00::1]:1 > [fd00::2]:53 "payload"
//! sctp A:P > B:Q INIT       (chunks: NAME[:FLAGS][=HEX BODY], several with +; vtag 0 for INIT, else 1)
//! icmp echo-request A > B   (of A's family; errors go on: quoting [PACKET])          ip 47 A > B hex 00ff
//! arp who-has T tell S      arp S is-at MAC tell T         nd who-has T tell S       nd S is-at MAC tell T flags SO
//! ```
//!
//! IPv6 extension headers: `ext hop,routing,dest` in this order, each with `=HEX` where it is not the usual eight
//! bytes of padding. Fragments: `fragment BYTE[+]` with the payload as it is; or `piece FROM-TO` of the packet that the
//! rest of the line is, whole. A quoted packet with `cut N` is its first N bytes. What a line with `piece` or `cut` must
//! match is compared byte for byte.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::IpNumber;
use etherparse::checksum::Sum16BitWords;

use super::line::{Line, Variables};
use super::station::{BROADCAST, Mac, Port, station};

mod build;
mod dissect;
mod nd;
mod sctp;

pub use build::build;
pub use dissect::dissect;

/// Which side of the gateway's NIC port a frame is seen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Arriving at the gateway.
    In,
    /// Leaving it.
    Out,
}

/// What is usual where it is not written: TCP's sequence number and window, an echo's identifier and sequence number.
const SEQ: u32 = 1000;
const WINDOW: u16 = 8192;
const ECHO: &str = "1/1";

/// ICMP messages with names (RFC 792). Others are `type-T-CODE`.
const ICMP: &[(&str, u8, u8)] = &[
    ("echo-reply", 0, 0),
    ("net-unreachable", 3, 0),
    ("host-unreachable", 3, 1),
    ("port-unreachable", 3, 3),
    ("fragmentation-needed", 3, 4),
    ("echo-request", 8, 0),
    ("time-exceeded", 11, 0),
    ("parameter-problem", 12, 0),
];

/// ICMPv6 messages with names (RFC 4443).
const ICMPV6: &[(&str, u8, u8)] = &[
    ("no-route", 1, 0),
    ("prohibited", 1, 1),
    ("host-unreachable", 1, 3),
    ("port-unreachable", 1, 4),
    ("packet-too-big", 2, 0),
    ("time-exceeded", 3, 0),
    ("parameter-problem", 4, 0),
    ("echo-request", 128, 0),
    ("echo-reply", 129, 0),
];

/// Where a message of this family and type keeps what in its bytes 5 to 8.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Icmp {
    /// Identifier and sequence number; then a payload.
    Echo,
    /// An error: nothing, a path MTU or a pointer; then the packet it is about.
    Error,
    /// Something else.
    Other,
}

impl Icmp {
    const fn of(v6: bool, kind: u8) -> Self {
        match (v6, kind) {
            (false, 0 | 8) | (true, 128 | 129) => Self::Echo,
            (false, 3 | 5 | 11 | 12) | (true, 1..=4) => Self::Error,
            _ => Self::Other,
        }
    }
}

/// Bytes 5 to 8 of an ICMP error that says `mtu` or `pointer`.
const fn icmp_field(v6: bool, pointer: bool, value: u32) -> [u8; 4] {
    match (v6, pointer) {
        (false, true) => [value as u8, 0, 0, 0],
        (false, false) => [0, 0, (value >> 8) as u8, value as u8],
        (true, _) => value.to_be_bytes(),
    }
}

/// IPv6 extension headers by name, and their usual bodies: padding (RFC 8200 §4.2), or an experimental routing type with
/// no segment left (RFC 4727).
const EXTENSIONS: &[(&str, IpNumber, [u8; 6])] = &[
    ("hop", IpNumber::IPV6_HEADER_HOP_BY_HOP, [1, 4, 0, 0, 0, 0]),
    ("routing", IpNumber::IPV6_ROUTE_HEADER, [253, 0, 0, 0, 0, 0]),
    ("dest", IpNumber::IPV6_DESTINATION_OPTIONS, [1, 4, 0, 0, 0, 0]),
];

const fn usual_ttl(side: Side) -> u8 {
    match side {
        Side::In => 64,
        Side::Out => 63,
    }
}

/// Source and destination station of an IP packet's frame, usually.
fn ip_stations(source: IpAddr, destination: IpAddr, port: Port, side: Side) -> (Mac, Mac) {
    match side {
        Side::In => (
            port.next_station(source),
            multicast(destination).unwrap_or_else(|| port.mac()),
        ),
        Side::Out => (
            port.mac(),
            multicast(destination).unwrap_or_else(|| port.next_station(destination)),
        ),
    }
}

/// The stations that an IPv6 multicast address is (RFC 2464 §7).
fn multicast(address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V6(address) if address.is_multicast() => {
            let [.., a, b, c, d] = address.octets();
            Some([0x33, 0x33, a, b, c, d])
        }
        _ => None,
    }
}

/// Source and destination station of an ARP packet's frame, usually: questions are broadcast.
fn arp_stations(request: bool, sender: IpAddr, target: IpAddr, port: Port, side: Side) -> (Mac, Mac) {
    match side {
        Side::In => (station(sender), if request { BROADCAST } else { port.mac() }),
        Side::Out => (port.mac(), if request { BROADCAST } else { station(target) }),
    }
}

/// The sum that a transport checksum begins with (RFC 768, RFC 8200 §8.1).
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: IpNumber, length: usize) -> Sum16BitWords {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    Sum16BitWords::new()
        .add_slice(&octets(from))
        .add_slice(&octets(to))
        .add_4bytes((length as u32).to_be_bytes())
        .add_2bytes([0, protocol.0])
}

/// The solicited-node multicast address (RFC 4291 §2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

fn counting(count: usize) -> Vec<u8> {
    (0..count).map(|i| i as u8).collect()
}

/// Address and port, or just the address of a packet without ports.
fn end_text(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(
        || address.to_string(),
        |port| SocketAddr::new(address, port).to_string(),
    )
}

/// Whether a frame that left on `port` is what `line` says; if so, its variables are bound.
pub fn matches(line: &Line, port: Port, frame: &[u8], variables: &mut Variables) -> bool {
    let got = dissect(frame, port, Side::Out);
    let cut = line
        .quoted
        .as_ref()
        .is_some_and(|quoted| quoted.get("cut").is_some());
    if line.get("piece").is_none() && !cut {
        return line.matches(&got, variables);
    }
    let mut bound = variables.clone();
    // The first piece has the ports and may bind them; others, and what is quoted, are of packets seen before.
    let _ = line.head_matches(&got, &mut bound);
    let same = line
        .filled(&bound)
        .and_then(|line| build(&line, port, Side::Out))
        .is_ok_and(|wanted| wanted == frame);
    if same {
        *variables = bound;
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_dissects_to_the_line_it_was_built_of() {
        for text in [
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 S",
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 PA df tos 16 id 7 ttl 3 options 4 seq 9 ack 8 window 7 tcpopts 01010101 \"x\"",
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 -",
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 A badsum l3+l4 bytes 1400",
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 S vlan 5",
            "tcp [2001:db8::10]:40000 > [fd00:96::10]:80 SA tos 16 label 74565 ttl 3 tcpopts 01010101 \"x\"",
            "tcp [2001:db8::10]:40000 > [fd00:96::10]:80 - ext hop,routing,dest badsum l4",
            "udp 10.244.0.11:53 > 10.96.0.10:53 sum 0 hex ff00",
            "udp 10.244.0.11:53 > 10.96.0.10:53 badsum l4 frame 60",
            "udp 10.244.0.11:53 > 10.96.0.10:53 id 9 fragment 0+ bytes 16",
            "udp 10.244.0.11 > 10.96.0.10 id 9 fragment 24 bytes 16",
            "udp [fd00:244::11]:53 > [fd00:96::53]:53 \"odd\"",
            "udp [fd00:244::11]:53 > [fd00:96::53]:53 ext dest=0104ffffffff0106000000000000 id 7 fragment 0 frame 90 \"x\"",
            "udp [fd00:244::11]:53 > [fd00:96::53]:53 ext routing=04000000000000000000000000000000000000000000 id 70000 fragment 0+ bytes 16",
            "udp fd00:244::11 > fd00:96::53 id 70000 fragment 24+ bytes 16",
            "sctp 198.51.100.10:40000 > 10.96.0.10:80 INIT",
            "sctp 10.244.0.11:8080 > 198.51.100.10:40000 INIT-ACK ttl 3",
            "sctp [2001:db8::10]:40000 > [fd00:96::10]:80 COOKIE-ECHO+DATA \"odd\"",
            "sctp 198.51.100.10:40000 > 10.96.0.10:80 ABORT:1 vtag 7 badsum l4",
            "sctp 198.51.100.10:40000 > 10.96.0.10:80 SACK+type-192=0001",
            "icmp echo-request 10.244.0.11 > 10.96.0.10 echo 3/4 \"ping\"",
            "icmp fragmentation-needed 10.244.0.1 > 10.244.0.11 quoting [udp 1.2.3.4:5 > 6.7.8.9:10 ttl 1 \"q\"] mtu 1400",
            "icmp parameter-problem 10.244.0.1 > 10.244.0.11 quoting [udp 1.2.3.4:5 > 6.7.8.9:10] pointer 20",
            "icmp type-15-0 10.244.0.1 > 10.244.0.11 rest 00010002",
            "icmp echo-reply fd00:244::11 > 2001:db8::10 echo 3/4 \"ping\"",
            "icmp packet-too-big fd00:244::1 > fd00:244::11 quoting [udp [2001:db8::10]:5 > [fd00::9]:10 ttl 1 \"q\"] mtu 1400",
            "icmp parameter-problem fd00::1 > fd00::2 quoting [ip 99 fd00::2 > fd00::9 hex ff] pointer 70000",
            "icmp port-unreachable fd00::1 > fd00::2 quoting [sctp [fd00::2]:5 > [fd00::9]:10 DATA \"q\"] badsum l4",
            "icmp type-133-0 fe80::1 > ff02::2 ttl 255 hex 0101060000000001",
            "ip 47 10.244.0.11 > 10.96.0.10 hex 00ff",
            "ip 59 fd00::1 > fd00::2",
            "udp 10.244.0.11:53 > 10.96.0.10:53 from @10.244.0.12 to broadcast",
            "udp [fd00:244::11]:53 > [fd00:96::53]:53 from @fd00:244::12 to 33:33:00:00:00:01 vlan 40965",
            "arp who-has 10.244.0.1 tell 10.244.0.11",
            "arp 10.244.0.11 is-at @10.244.0.11 tell 10.244.0.1 frame 60",
            "nd who-has fd00:244::1 tell fd00:244::11",
            "nd who-has fd00:244::1 tell fd00:244::11 dst fd00:244::1 sha @fd00:244::12 ttl 254",
            "nd who-has fd00:244::1 tell :: from @fd00:244::11",
            "nd who-has fd00:244::1 tell fd00:244::11 sha none badsum l4",
            "nd fd00:244::11 is-at @fd00:244::11 tell fd00:244::1",
            "nd fd00:244::11 is-at 0a:00:00:00:00:99 tell ff02::1 src fe80::11 flags RO frame 90",
            "ether 0x88cc hex 6000",
        ] {
            let line = Line::parse(text).unwrap();
            for side in [Side::In, Side::Out] {
                let frame = build(&line, Port::Pods, side).unwrap_or_else(|e| panic!("{text}: {e}"));
                let again = dissect(&frame, Port::Pods, side);
                // A question of a pod's does not come from us.
                let ours = side == Side::Out && ["arp", "nd"].contains(&&*line.head[0]);
                assert!(ours || again == line, "{side:?}: {text}: {again}");
            }
        }
    }

    #[test]
    fn every_single_bit_error_in_a_packet_shows_in_its_line() {
        for text in [
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 SA options 4 \"text\"",
            "udp 198.51.100.10:40000 > 10.96.0.10:53 \"text\"",
            "sctp 198.51.100.10:40000 > 10.96.0.10:53 COOKIE-ACK+DATA \"text\"",
            "icmp echo-request 198.51.100.10 > 10.96.0.10 \"text\"",
            "icmp parameter-problem 198.51.100.10 > 10.96.0.10 quoting [tcp 1.2.3.4:5 > 6.7.8.9:10 S] pointer 1 vlan 5",
            "tcp [2001:db8::10]:40000 > [fd00:96::10]:80 SA vlan 5 \"text\"",
            "udp [2001:db8::10]:40000 > [fd00:96::10]:53 ext hop,routing,dest \"text\"",
            "udp [2001:db8::10]:40000 > [fd00:96::10]:53 id 7 fragment 0 \"text\"",
            "udp 2001:db8::10 > fd00:96::10 id 7 fragment 8+ bytes 8",
            "sctp [2001:db8::10]:40000 > [fd00:96::10]:53 INIT",
            "icmp echo-request 2001:db8::10 > fd00:96::10 \"text\"",
            "icmp packet-too-big 2001:db8::10 > fd00:96::10 quoting [udp [fd00::1]:5 > [fd00::2]:10 \"x\"] mtu 1400",
            "nd who-has fd00:18::2 tell fd00:18::1",
            "nd fd00:18::1 is-at @fd00:18::1 tell fd00:18::2",
        ] {
            let line = Line::parse(text).unwrap();
            let frame = build(&line, Port::Client, Side::In).unwrap();
            assert_eq!(dissect(&frame, Port::Client, Side::In), line);
            // An error's sender may choose its traffic class and flow label.
            let free = text.contains("too-big").then_some(frame[14..18].to_vec());
            for bit in 0..frame.len() * 8 {
                let mut broken = frame.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                if free.as_ref().is_some_and(|free| broken[14..18] != free[..]) {
                    continue;
                }
                assert_ne!(
                    dissect(&broken, Port::Client, Side::In),
                    line,
                    "bit {bit} of {text}"
                );
            }
        }
    }

    #[test]
    fn pieces_of_a_packet_are_its_bytes_in_order_and_match_to_the_byte() {
        for whole in [
            "udp 10.244.0.11:$P > 10.96.0.10:53 id 9 bytes 100",
            "udp [fd00::1]:$P > [fd00::2]:53 id 9 bytes 100",
        ] {
            let piece = |piece: &str| Line::parse(&format!("{whole} piece {piece}")).unwrap();
            let given = Variables::from([("P".to_owned(), "7".to_owned())]);
            let frame = |line: &Line| build(&line.filled(&given).unwrap(), Port::Pods, Side::Out).unwrap();
            let (first, last) = (frame(&piece("0-64")), frame(&piece("64-108")));
            let whole = frame(&Line::parse(whole).unwrap());
            assert_eq!(
                whole[whole.len() - 108..],
                [&first[first.len() - 64..], &last[last.len() - 44..]].concat()
            );

            let mut variables = Variables::new();
            assert!(!matches(&piece("64-108"), Port::Pods, &last, &mut variables));
            assert!(matches(&piece("0-64"), Port::Pods, &first, &mut variables));
            assert_eq!(variables, given);
            assert!(matches(&piece("64-108"), Port::Pods, &last, &mut variables));
            for (line, frame) in [(piece("0-64"), first), (piece("64-108"), last)] {
                for bit in 0..frame.len() * 8 {
                    let mut broken = frame.clone();
                    broken[bit / 8] ^= 1 << (bit % 8);
                    assert!(!matches(&line, Port::Pods, &broken, &mut variables), "bit {bit}");
                }
            }
        }
    }
}
