//! Takes  a packet and its rewrite.         Gives  the same packet: addresses, ports, checksums, TTL and MACs changed.
//! Drops  nothing: whatever could fail was proven by `parse`.
//! Never  reads a clock, a table or a counter; never recomputes a checksum (a wrong one stays wrong).
//! Next   `tx`.

use crate::addr::{Address, FlowKey, Mac, Port, Protocol, V4};
use crate::parse::{Fragment, Packet};
use crate::wire::{Ethernet, checksum, ipv4, tcp, udp};

/// What a flow does to a packet in one direction: the key the packet leaves with, and the checksum deltas from the key
/// it came with (RFC 1624, ones-complement sums to add).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite<A: Address = V4> {
    /// Addresses and ports of the packet that leaves.
    pub to: FlowKey<A>,
    /// Delta of the addresses: for the IPv4 header checksum, and for ICMPv6, which has no ports (RFC 4443 §2.3).
    pub l3_delta: u16,
    /// Delta of addresses and ports: for the TCP or UDP checksum.
    pub l4_delta: u16,
}

/// The delta that undoes `delta`: for the flow's other direction.
pub use crate::wire::checksum::negate;

/// `l3_delta` and `l4_delta` of a rewrite from one key to another.
pub fn deltas<A: Address>(from: &FlowKey<A>, to: &FlowKey<A>) -> (u16, u16) {
    let (from, to): (&[u8], &[u8]) = (bytemuck::bytes_of(from), bytemuck::bytes_of(to));
    // A key starts with what both headers carry: two addresses, then two ports, in the order of the packet.
    let l3 = 2 * size_of::<A>();
    let l4 = l3 + 2 * size_of::<Port>();
    (
        checksum::delta(&from[..l3], &to[..l3]),
        checksum::delta(&from[..l4], &to[..l4]),
    )
}

/// Writes addresses and ports into the frame that `parse` proved `packet` of, and updates its checksums. Later fragments
/// and a first fragment without its whole transport header carry no ports: only their addresses change. ICMP and other
/// protocols likewise: their checksums do not cover addresses.
#[inline]
pub fn rewrite(bytes: &mut [u8], packet: &Packet, rewrite: &Rewrite) {
    let Some(header) = fixed_header::<{ ipv4::HEADER_LEN }>(bytes, packet.l3, packet.end) else {
        return;
    };
    header[ipv4::SRC..ipv4::SRC + 4].copy_from_slice(&rewrite.to.src);
    header[ipv4::DST..ipv4::DST + 4].copy_from_slice(&rewrite.to.dst);
    update(header, ipv4::CHECKSUM, |checksum| {
        checksum::apply(checksum, rewrite.l3_delta)
    });

    if packet.fragment == Fragment::Later {
        return;
    }
    match packet.key.protocol {
        Protocol::TCP => {
            let Some(header) = fixed_header::<{ tcp::HEADER_LEN }>(bytes, packet.l4, packet.end) else {
                return;
            };
            put_ports(header, &rewrite.to);
            update(header, tcp::CHECKSUM, |checksum| {
                checksum::apply(checksum, rewrite.l4_delta)
            });
        }
        Protocol::UDP => {
            let Some(header) = fixed_header::<{ udp::HEADER_LEN }>(bytes, packet.l4, packet.end) else {
                return;
            };
            put_ports(header, &rewrite.to);
            update(header, udp::CHECKSUM, |checksum| {
                checksum::apply_udp(checksum, rewrite.l4_delta)
            });
        }
        _ => {}
    }
}

/// Takes one from the time to live (TTL-1). One that is 0 stays 0: `lookup` answers or drops those that may not go on.
#[inline]
pub fn decrement_ttl(bytes: &mut [u8], packet: &Packet) {
    let Some(header) = fixed_header::<{ ipv4::HEADER_LEN }>(bytes, packet.l3, packet.end) else {
        return;
    };
    if header[ipv4::TTL] == 0 {
        return;
    }
    header[ipv4::TTL] -= 1;
    // The time to live is the high byte of its word, so the header's sum shrinks by 0x0100.
    update(header, ipv4::CHECKSUM, |checksum| {
        checksum::apply(checksum, negate(0x0100))
    });
}

/// Writes the Ethernet addresses for the next hop; the EtherType stays.
#[inline]
pub fn set_macs(bytes: &mut [u8], dst: Mac, src: Mac) {
    if let Ok(mut ethernet) = Ethernet::new(bytes) {
        ethernet.set_dst(dst);
        ethernet.set_src(src);
    }
}

/// The `N` bytes at `start`, if they end by `end`. They do for every header that `parse` proved.
#[inline]
fn fixed_header<const N: usize>(bytes: &mut [u8], start: u16, end: u16) -> Option<&mut [u8; N]> {
    bytes
        .get_mut(usize::from(start)..usize::from(end))?
        .first_chunk_mut()
}

#[inline]
fn put_ports<const N: usize>(header: &mut [u8; N], to: &FlowKey) {
    header[..2].copy_from_slice(&to.src_port.0);
    header[2..4].copy_from_slice(&to.dst_port.0);
}

#[inline]
fn update<const N: usize>(header: &mut [u8; N], at: usize, change: impl FnOnce(u16) -> u16) {
    let checksum = change(u16::from_be_bytes([header[at], header[at + 1]]));
    header[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use proptest::prelude::*;

    use super::*;
    use crate::parse::{Parsed, parse};
    use crate::wire::samples::{
        PEER, STATION, Sample, any_host, any_mutated_frame, any_sample, assert_checksums_right,
        fix_ip_checksum,
    };
    use crate::wire::{Ipv4, Tcp, Udp};

    fn packet(frame: &[u8]) -> Packet {
        match parse(frame, STATION) {
            Parsed::Ipv4(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    /// The rewrite of `from` to `to`, and the one back.
    fn there_and_back(from: FlowKey, to: FlowKey) -> (Rewrite, Rewrite) {
        let (l3_delta, l4_delta) = deltas(&from, &to);
        let there = Rewrite {
            to,
            l3_delta,
            l4_delta,
        };
        (
            there,
            Rewrite {
                to: from,
                l3_delta: negate(l3_delta),
                l4_delta: negate(l4_delta),
            },
        )
    }

    prop_compose! {
        /// A packet, and ends for it to be rewritten to: ports too, unless it is ICMP.
        fn any_case()(
            sample in any_sample(), src in any_host(), dst in any_host(), ports in any::<(u16, u16)>(),
        ) -> (Vec<u8>, FlowKey) {
            let ports = if sample.protocol == Protocol::ICMP { (0, 0) } else { ports };
            let (src, dst) = (SocketAddrV4::new(src, ports.0), SocketAddrV4::new(dst, ports.1));
            (sample.frame(), FlowKey::new(sample.protocol, src, dst))
        }
    }

    proptest! {
        #[test]
        fn a_rewritten_packet_has_the_new_key_and_right_checksums((mut frame, to) in any_case()) {
            let before = packet(&frame);
            let (there, _) = there_and_back(before.key, to);
            rewrite(&mut frame, &before, &there);
            prop_assert_eq!(packet(&frame), Packet { key: to, ..before });
            assert_checksums_right(&frame);
        }

        #[test]
        fn rewriting_there_and_back_changes_no_byte(
            (mut frame, to) in any_case(), transport_checksum in 0u16..0xffff, set in any::<bool>(),
        ) {
            let packet = packet(&frame);
            // Any checksum, right or wrong, but TCP's other zero, which no sender can compute.
            let at = usize::from(packet.l4) + if packet.key.protocol == Protocol::UDP { 6 } else { 16 };
            if set && packet.key.protocol != Protocol::ICMP {
                frame[at..at + 2].copy_from_slice(&transport_checksum.to_be_bytes());
            }
            let original = frame.clone();
            let (there, back) = there_and_back(packet.key, to);
            rewrite(&mut frame, &packet, &there);
            rewrite(&mut frame, &packet, &back);
            prop_assert_eq!(frame, original);
        }

        #[test]
        fn a_wrong_checksum_stays_wrong_by_the_same_amount(
            (mut frame, to) in any_case().prop_filter("ICMP checksums stay as they are", |(frame, _)| frame[23] != 1),
            error in 1u16..0xffff,
        ) {
            // CSM-1: never laundered, never made worse. A right twin shows what the difference must be.
            let packet = packet(&frame);
            let at = usize::from(packet.l4) + if packet.key.protocol == Protocol::UDP { 6 } else { 16 };
            let mut right = frame.clone();
            let wrong = checksum::add(u16::from_be_bytes([frame[at], frame[at + 1]]), error);
            frame[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
            prop_assume!(wrong != 0);
            let (there, _) = there_and_back(packet.key, to);
            rewrite(&mut right, &packet, &there);
            rewrite(&mut frame, &packet, &there);
            let difference = checksum::delta(&right[at..at + 2], &frame[at..at + 2]);
            prop_assert_eq!(difference, error);
            frame[at..at + 2].copy_from_slice(&right[at..at + 2]);
            prop_assert_eq!(frame, right, "nothing but the checksum differs");
        }

        #[test]
        fn taking_one_from_the_time_to_live_keeps_the_header_checksum_right((mut frame, _) in any_case()) {
            let before = packet(&frame);
            decrement_ttl(&mut frame, &before);
            prop_assert_eq!(packet(&frame), Packet { ttl: before.ttl.saturating_sub(1), ..before });
            assert_checksums_right(&frame);
        }
    }

    proptest! {
        #[test]
        fn no_packet_that_parse_accepts_panics_or_changes_outside_its_headers(
            frame in any_mutated_frame(), to in any_case(),
        ) {
            if let Parsed::Ipv4(packet) = parse(&frame, STATION) {
                let mut changed = frame.clone();
                rewrite(&mut changed, &packet, &there_and_back(packet.key, to.1).0);
                decrement_ttl(&mut changed, &packet);
                let header = match packet.key.protocol {
                    Protocol::TCP if packet.fragment != Fragment::Later => 20,
                    Protocol::UDP if packet.fragment != Fragment::Later => 8,
                    _ => 0,
                };
                let (l3, after) = (usize::from(packet.l3), usize::from(packet.l4) + header);
                prop_assert_eq!(&changed[..l3], &frame[..l3]);
                prop_assert_eq!(changed.get(after..), frame.get(after..));
            }
        }
    }

    #[test]
    fn a_time_to_live_of_zero_stays_zero() {
        let mut frame = Sample {
            ttl: 0,
            ..Sample::of(Protocol::UDP)
        }
        .frame();
        let original = frame.clone();
        let packet = packet(&frame);
        decrement_ttl(&mut frame, &packet);
        assert_eq!(frame, original);
    }

    #[test]
    fn a_rewrite_to_the_same_key_changes_no_byte() {
        let from = to_backend(Protocol::TCP);
        assert_eq!(deltas(&from, &from), (0, 0));
        assert_eq!(negate(0), 0);
    }

    fn to_backend(protocol: Protocol) -> FlowKey {
        FlowKey::new(
            protocol,
            "10.0.0.1:1024".parse().unwrap(),
            "10.2.0.5:8080".parse().unwrap(),
        )
    }

    #[test]
    fn udp_without_a_checksum_still_has_none_after_a_rewrite() {
        // CSM-1.
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[40..42].fill(0);
        let packet = packet(&frame);
        rewrite(
            &mut frame,
            &packet,
            &there_and_back(packet.key, to_backend(Protocol::UDP)).0,
        );
        assert_eq!(frame[40..42], [0, 0]);
        assert_eq!(Udp::new(&frame[34..]).unwrap().dst_port().number(), 8080);
    }

    #[test]
    fn a_later_fragment_changes_its_addresses_only() {
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[21] = 1;
        fix_ip_checksum(&mut frame);
        let original = frame.clone();
        let packet = packet(&frame);
        rewrite(
            &mut frame,
            &packet,
            &there_and_back(packet.key, to_backend(Protocol::UDP)).0,
        );
        assert_eq!(frame[34..], original[34..]);
        assert!(Ipv4::new(&frame[14..]).unwrap().checksum_ok());
        assert_eq!(frame[30..34], [10, 2, 0, 5]);
    }

    #[test]
    fn what_a_first_fragment_lacks_is_not_touched_in_the_padding_behind_it() {
        let mut frame = Sample::of(Protocol::TCP).frame();
        frame[20] = 0x20;
        frame[17] = 28;
        fix_ip_checksum(&mut frame);
        let original = frame.clone();
        let packet = packet(&frame);
        rewrite(
            &mut frame,
            &packet,
            &there_and_back(packet.key, to_backend(Protocol::TCP)).0,
        );
        assert_eq!(frame[34..], original[34..]);
        assert!(Ipv4::new(&frame[14..]).unwrap().checksum_ok());
    }

    #[test]
    fn a_first_fragment_with_its_header_changes_as_the_whole_packet_would() {
        let mut whole = Sample::of(Protocol::TCP).frame();
        let mut first = whole.clone();
        first[20] = 0x20;
        fix_ip_checksum(&mut first);
        for frame in [&mut whole, &mut first] {
            let packet = packet(frame);
            rewrite(
                frame,
                &packet,
                &there_and_back(packet.key, to_backend(Protocol::TCP)).0,
            );
        }
        assert_eq!(first[34..], whole[34..]);
        assert_eq!(Tcp::new(&first[34..]).unwrap().dst_port().number(), 8080);
    }

    #[test]
    fn ethernet_addresses_change_and_nothing_else_of_the_frame() {
        let mut frame = Sample::of(Protocol::UDP).frame();
        let original = frame.clone();
        set_macs(&mut frame, PEER, STATION);
        assert_eq!((&frame[..6], &frame[6..12]), (&PEER.0[..], &STATION.0[..]));
        assert_eq!(frame[12..], original[12..]);
    }
}
