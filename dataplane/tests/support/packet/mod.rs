//! Lines of the packet language to frames and back, by etherparse: an implementation that shares nothing with the one
//! under test. A packet's checksums are right unless its line says `badsum`; a frame comes from and goes to the stations
//! its addresses imply unless its line says `from` or `to`; time to live is 64 where a packet starts and 63 after us.

use std::net::Ipv4Addr;

use etherparse::ArpOperation;

use super::station::{BROADCAST, Mac, Port, station};

mod build;
mod dissect;

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

const fn usual_ttl(side: Side) -> u8 {
    match side {
        Side::In => 64,
        Side::Out => 63,
    }
}

/// Source and destination station of an IP packet's frame, usually.
fn ip_stations(source: Ipv4Addr, destination: Ipv4Addr, port: Port, side: Side) -> (Mac, Mac) {
    match side {
        Side::In => (port.next_station(source), port.mac()),
        Side::Out => (port.mac(), port.next_station(destination)),
    }
}

/// Source and destination station of an ARP packet's frame, usually: questions are broadcast.
fn arp_stations(
    operation: ArpOperation,
    sender: Ipv4Addr,
    target: Ipv4Addr,
    port: Port,
    side: Side,
) -> (Mac, Mac) {
    let to_all = operation == ArpOperation::REQUEST;
    match side {
        Side::In => (station(sender), if to_all { BROADCAST } else { port.mac() }),
        Side::Out => (port.mac(), if to_all { BROADCAST } else { station(target) }),
    }
}

fn counting(count: usize) -> Vec<u8> {
    (0..count).map(|i| i as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::super::line::Line;
    use super::*;

    #[test]
    fn a_packet_dissects_to_the_line_it_was_built_of() {
        for text in [
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 S",
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 PA df tos 16 id 7 ttl 3 options 4 seq 9 ack 8 window 7 tcpopts 01010101 \"x\"",
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 -",
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 A badsum l3+l4 bytes 1400",
            "udp 10.244.0.11:53 > 10.96.0.10:53 sum 0 hex ff00",
            "udp 10.244.0.11:53 > 10.96.0.10:53 badsum l4 frame 60",
            "udp 10.244.0.11:53 > 10.96.0.10:53 id 9 fragment 0+ bytes 16",
            "udp 10.244.0.11 > 10.96.0.10 id 9 fragment 24 bytes 16",
            "icmp echo-request 10.244.0.11 > 10.96.0.10 echo 3/4 \"ping\"",
            "icmp fragmentation-needed 10.244.0.1 > 10.244.0.11 quoting [udp 1.2.3.4:5 > 6.7.8.9:10 ttl 1 \"q\"] mtu 1400",
            "icmp type-15-0 10.244.0.1 > 10.244.0.11",
            "ip 47 10.244.0.11 > 10.96.0.10 hex 00ff",
            "udp 10.244.0.11:53 > 10.96.0.10:53 from @10.244.0.12 to broadcast",
            "arp who-has 10.244.0.1 tell 10.244.0.11",
            "arp 10.244.0.11 is-at @10.244.0.11 tell 10.244.0.1 frame 60",
            "ether 0x86dd hex 6000",
        ] {
            let line = Line::parse(text).unwrap();
            for side in [Side::In, Side::Out] {
                let frame = build(&line, Port::Pods, side).unwrap();
                let again = dissect(&frame, Port::Pods, side);
                // A question of a pod's does not come from us.
                let ours = side == Side::Out && line.head[0] == "arp";
                assert!(ours || again.to_string() == text, "{side:?}: {text}: {again}");
            }
        }
    }

    #[test]
    fn every_single_bit_error_in_a_packet_shows_in_its_line() {
        for text in [
            "tcp 198.51.100.10:40000 > 10.96.0.10:80 SA options 4 \"text\"",
            "udp 198.51.100.10:40000 > 10.96.0.10:53 \"text\"",
            "icmp echo-request 198.51.100.10 > 10.96.0.10 \"text\"",
        ] {
            let frame = build(&Line::parse(text).unwrap(), Port::Client, Side::In).unwrap();
            for bit in 0..frame.len() * 8 {
                let mut broken = frame.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(
                    dissect(&broken, Port::Client, Side::In).to_string(),
                    text,
                    "bit {bit} of {text}"
                );
            }
        }
    }
}
