use std::net::{IpAddr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::addr::Port;
use crate::wire::samples::{STATION, Sample, Sampled, any_mutated_frame, any_sample, fix_ip_checksum};
use crate::wire::sctp::chunks;

/// A UDP frame with one byte of its IP header changed and the header's checksum made right again.
fn udp_with(at: usize, value: u8) -> Vec<u8> {
    let mut frame = Sample::of(Protocol::UDP).frame();
    frame[at] = value;
    fix_ip_checksum(&mut frame);
    frame
}

fn packet(frame: &[u8]) -> Packet {
    V4::packet(frame)
}

/// Every field that both find must be equal; etherparse looks into no MAC address, checksum or address kind, so it
/// accepts more, and it stops at lengths where `parse` must have stopped, too.
fn assert_agrees_with_etherparse(frame: &[u8]) {
    match parse(frame, STATION) {
        Parsed::Ipv4(packet) => assert_agrees(frame, packet),
        Parsed::Ipv6(packet) => assert_agrees(frame, packet),
        _ => {}
    }
}

fn assert_agrees<A: Ip>(frame: &[u8], packet: Packet<A>) {
    let offset = |part: &[u8]| (part.as_ptr().addr() - frame.as_ptr().addr()) as u16;
    let Ok(theirs) = SlicedPacket::from_ethernet(frame) else {
        // It looks into what `parse` leaves closed: AH, IGMP, the length of ICMP timestamps (types 13 and 14), and
        // extension headers past those walked through.
        let looked_into = match packet.key.protocol {
            Protocol::TCP | Protocol::UDP => true,
            Protocol::ICMP => !matches!(packet.icmp_type, 13 | 14),
            _ => false,
        };
        assert!(!looked_into, "only we accept {packet:?}");
        return;
    };
    let (src, dst, ttl, len, fragmented) = match &theirs.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            assert_eq!(packet.l4, packet.l3 + header.slice().len() as u16);
            let len = header.total_len();
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            (src, dst, header.ttl(), len, header.is_fragmenting_payload())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let len = header.payload_length() + 40;
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            (src, dst, header.hop_limit(), len, ip.is_payload_fragmented())
        }
        _ => panic!("not IP: {packet:?}"),
    };
    let ours: (IpAddr, IpAddr) = (packet.key.src.into(), packet.key.dst.into());
    assert_eq!((ours, packet.ttl), ((src, dst), ttl));
    assert_eq!(packet.end, packet.l3 + len);
    assert_eq!(packet.fragment != Fragment::Whole, fragmented);
    let ports = (packet.key.src_port.number(), packet.key.dst_port.number());
    match theirs.transport {
        // Behind a routing header that is not at its end it looks on, and `parse` does not.
        Some(TransportSlice::Tcp(tcp)) if packet.key.protocol == Protocol::TCP => {
            assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
            assert_eq!(packet.signals, tcp.slice()[13]);
            assert_eq!(packet.l4, offset(tcp.slice()));
        }
        Some(TransportSlice::Udp(udp)) if packet.key.protocol == Protocol::UDP => {
            assert_eq!(ports, (udp.source_port(), udp.destination_port()));
            assert_eq!(packet.l4, offset(udp.slice()));
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert_eq!((ports, packet.icmp_type), ((0, 0), icmp.type_u8()));
            assert_eq!(packet.l4, offset(icmp.slice()));
        }
        Some(TransportSlice::Icmpv6(icmp)) if packet.key.protocol == Protocol::ICMPV6 => {
            assert_eq!((ports, packet.icmp_type), ((0, 0), icmp.type_u8()));
            assert_eq!(packet.l4, offset(icmp.slice()));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn every_valid_packet_is_accepted_and_read_as_etherparse_reads_it(
        sample in any_sample(), padding in vec(any::<u8>(), 0..20),
    ) {
        let mut frame = sample.frame();
        let end = frame.len();
        frame.extend(padding);
        let found = match parse(&frame, STATION) {
            Parsed::Ipv4(packet) => (packet.end, packet.key.protocol, packet.vlan),
            Parsed::Ipv6(packet) => (packet.end, packet.key.protocol, packet.vlan),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(found, (end as u16, sample.protocol, 0));
        assert_agrees_with_etherparse(&frame);
    }

    #[test]
    fn no_mutation_of_a_packet_panics_or_reads_otherwise_than_by_etherparse(frame in any_mutated_frame()) {
        assert_agrees_with_etherparse(&frame);
    }

    #[test]
    fn no_bytes_at_all_panic(bytes in vec(any::<u8>(), 0..100), kind in 0..3) {
        let mut frame = bytes;
        if kind > 0 && frame.len() > 20 {
            frame[..6].copy_from_slice(&STATION.0);
            if kind == 1 {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            } else {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                frame[18] = 0;
                frame[20] = [0, 6, 17, 43, 44, 58, 60, 132][usize::from(frame[20] % 8)];
            }
        }
        assert_agrees_with_etherparse(&frame);
    }
}

#[test]
fn frames_for_other_stations_are_dropped_and_what_is_not_ipv4_is_the_hosts() {
    let frame = Sample::of(Protocol::UDP).frame();
    assert_eq!(
        parse(&frame, Mac([2, 0, 0, 0, 0, 9])),
        Parsed::Drop(DropReason::NotForUs)
    );
    assert_eq!(parse(&frame[..13], STATION), Parsed::Drop(DropReason::Truncated));
    let with_type = |ether_type: [u8; 2]| {
        let mut frame = frame.clone();
        frame[12..14].copy_from_slice(&ether_type);
        parse(&frame, STATION)
    };
    assert_eq!(with_type([8, 6]), Parsed::Neighbour);
    assert_eq!(
        with_type([0x86, 0xdd]),
        Parsed::Drop(DropReason::Truncated),
        "shorter than an IPv6 header"
    );
    assert_eq!(
        with_type([0x88, 0xcc]),
        Parsed::Other(DropReason::UnknownEtherType)
    );
}

#[test]
fn a_broken_ip_header_is_dropped_by_its_own_name() {
    let mut frame = Sample::of(Protocol::UDP).frame();
    frame[24] ^= 1;
    assert_eq!(parse(&frame, STATION), Parsed::Drop(DropReason::BadIpChecksum));
    for (at, value) in [(14, 0x55), (14, 0x44), (14, 0x4f), (17, 19), (17, 200)] {
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[at] = value;
        assert_eq!(
            parse(&frame, STATION),
            Parsed::Drop(DropReason::BadIpHeader),
            "byte {at} is {value}"
        );
    }
    assert_eq!(parse(&frame[..33], STATION), Parsed::Drop(DropReason::Truncated));
}

#[test]
fn addresses_that_cannot_send_or_name_many_receivers_are_told_apart() {
    let between = |src: [u8; 4], dst: [u8; 4]| {
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[26..30].copy_from_slice(&src);
        frame[30..34].copy_from_slice(&dst);
        fix_ip_checksum(&mut frame);
        parse(&frame, STATION)
    };
    for src in [
        [224, 0, 0, 1],
        [239, 1, 1, 1],
        [255, 255, 255, 255],
        [127, 0, 0, 1],
        [0, 0, 0, 0],
    ] {
        assert_eq!(
            between(src, [10, 0, 0, 1]),
            Parsed::Drop(DropReason::BadSource),
            "{src:?}"
        );
    }
    for dst in [[127, 0, 0, 1], [0, 0, 0, 0]] {
        assert_eq!(
            between([10, 0, 0, 1], dst),
            Parsed::Drop(DropReason::BadDestination),
            "{dst:?}"
        );
    }
    for dst in [[224, 0, 0, 1], [239, 1, 1, 1], [255, 255, 255, 255]] {
        assert_eq!(
            between([10, 0, 0, 1], dst),
            Parsed::Other(DropReason::Multicast),
            "{dst:?}"
        );
    }
    // DHCP's first message is the host's.
    assert_eq!(between([0; 4], [255; 4]), Parsed::Other(DropReason::Multicast));
}

#[test]
fn a_unicast_packet_in_a_broadcast_frame_is_not_forwarded() {
    let mut frame = Sample::of(Protocol::UDP).frame();
    frame[..6].copy_from_slice(&Mac::BROADCAST.0);
    assert_eq!(parse(&frame, STATION), Parsed::Other(DropReason::Multicast));
}

#[test]
fn transport_lengths_past_the_packet_are_dropped_even_where_padding_would_cover_them() {
    let mut udp = Sample::of(Protocol::UDP).frame();
    udp.extend([0; 20]);
    for (len, sound) in [(7, false), (8, true), (14, true), (15, false)] {
        udp[39] = len;
        let parsed = parse(&udp, STATION);
        assert_eq!(matches!(parsed, Parsed::Ipv4(_)), sound, "UDP length {len}");
        assert!(sound || parsed == Parsed::Drop(DropReason::BadTransportHeader));
    }
    let mut tcp = Sample::of(Protocol::TCP).frame();
    tcp.extend([0; 20]);
    for (words, sound) in [(4, false), (5, true), (6, true), (7, false)] {
        tcp[46] = words << 4;
        let parsed = parse(&tcp, STATION);
        assert_eq!(matches!(parsed, Parsed::Ipv4(_)), sound, "TCP offset {words}");
        assert!(sound || parsed == Parsed::Drop(DropReason::BadTransportHeader));
    }
}

#[test]
fn a_first_fragment_has_ports_if_its_header_is_whole_and_later_ones_have_none() {
    // FRG-1. Flags and offset are bytes 20 and 21.
    let first = packet(&udp_with(20, 0x20));
    assert_eq!(
        (first.fragment, first.key.dst_port),
        (Fragment::First, Port::new(53))
    );
    let later = packet(&udp_with(21, 1));
    assert_eq!(
        (later.fragment, later.key.dst_port),
        (Fragment::Later, Port::new(0))
    );

    let mut tcp = Sample::of(Protocol::TCP).frame();
    tcp[20] = 0x20;
    fix_ip_checksum(&mut tcp);
    let whole_header = packet(&tcp);
    assert_eq!(
        (whole_header.signals, whole_header.transport_len),
        (crate::wire::tcp::SYN, 0)
    );
    // Cut to 8 bytes of TCP header (RFC 1858).
    tcp[17] = 28;
    fix_ip_checksum(&mut tcp);
    let tiny = packet(&tcp);
    assert_eq!(
        (tiny.fragment, tiny.key.dst_port, tiny.signals),
        (Fragment::First, Port::new(0), 0)
    );
}

#[test]
fn a_first_fragment_may_announce_more_than_it_has() {
    let mut frame = udp_with(20, 0x20);
    frame[38..40].copy_from_slice(&3000u16.to_be_bytes());
    assert_eq!(packet(&frame).key.src_port, Port::new(40_000));
}

/// An IPv6 frame with bytes of it changed.
fn v6_with(protocol: Protocol, edits: &[(usize, &[u8])]) -> Parsed {
    let mut frame = Sample::of_v6(protocol).frame();
    for (at, bytes) in edits {
        frame[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    parse(&frame, STATION)
}

#[test]
fn sctp_packets_of_both_families_have_ports_and_say_which_chunks_they_have() {
    let v4 = packet(&Sample::of(Protocol::SCTP).frame());
    let v6 = V6::packet(&Sample::of_v6(Protocol::SCTP).frame());
    for (ports, signals, len) in [
        ((v4.key.src_port, v4.key.dst_port), v4.signals, v4.transport_len),
        ((v6.key.src_port, v6.key.dst_port), v6.signals, v6.transport_len),
    ] {
        assert_eq!(ports, (Port::new(40_000), Port::new(53)));
        assert_eq!((signals, len), (chunks::INIT, 12 + 4 + 6));
    }
}

#[test]
fn one_vlan_tag_is_reported_and_more_are_the_hosts() {
    for sample in [Sample::of(Protocol::UDP), Sample::of_v6(Protocol::UDP)] {
        let plain = sample.frame();
        let tagged = |tags: &[u8]| [&plain[..12], tags, &plain[12..]].concat();
        let parsed = match parse(&tagged(&[0x81, 0, 0xe0, 100]), STATION) {
            Parsed::Ipv4(packet) => (packet.vlan, packet.l3, usize::from(packet.end)),
            Parsed::Ipv6(packet) => (packet.vlan, packet.l3, usize::from(packet.end)),
            other => panic!("{other:?}"),
        };
        assert_eq!(parsed, (100, 18, plain.len() + 4));
        let other = Parsed::Other(DropReason::UnknownEtherType);
        assert_eq!(parse(&tagged(&[0x88, 0xa8, 0, 100]), STATION), other);
        let double = tagged(&[0x81, 0, 0, 1, 0x81, 0, 0, 2]);
        assert_eq!(parse(&double, STATION), other);
    }
}

#[test]
fn icmp_errors_and_echo_requests_are_told_apart_in_both_families() {
    for (sample, errors, request) in [
        (Sample::of(Protocol::ICMP), vec![3, 11, 12], 8),
        (Sample::of_v6(Protocol::ICMPV6), vec![1, 2, 3, 4], 128),
    ] {
        for icmp_type in (0..=255).filter(|t| !(133..=137).contains(t)) {
            let mut frame = sample.frame();
            let l4 = frame.len() - 14;
            frame[l4] = icmp_type;
            let (is_error, is_request) = match parse(&frame, STATION) {
                Parsed::Ipv4(packet) => (packet.is_icmp_error(), packet.is_echo_request()),
                Parsed::Ipv6(packet) => (packet.is_icmp_error(), packet.is_echo_request()),
                other => panic!("{other:?}"),
            };
            assert_eq!(
                (is_error, is_request),
                (errors.contains(&icmp_type), icmp_type == request)
            );
        }
    }
    // Types of one protocol are nothing in the other.
    assert!(!packet(&Sample::of(Protocol::TCP).frame()).is_icmp_error());
}

#[test]
fn a_udp_datagram_over_ipv6_needs_a_checksum() {
    // CSM-1.
    let without = v6_with(Protocol::UDP, &[(60, &[0, 0])]);
    assert_eq!(without, Parsed::Drop(DropReason::NoUdpChecksum));
    let mut v4 = Sample::of(Protocol::UDP).frame();
    v4[40..42].fill(0);
    assert_eq!(packet(&v4).key.dst_port, Port::new(53));
}

#[test]
fn neighbour_discovery_from_this_link_is_the_stewards_and_the_rest_the_hosts() {
    let message = |icmp_type: u8, hop_limit: u8, mac: [u8; 6]| {
        v6_with(
            Protocol::ICMPV6,
            &[
                (0, &mac[..]),
                (21, &[hop_limit]),
                (22, &[0xfe, 0x80]),
                (38, &[0xff, 2]),
                (54, &[icmp_type]),
            ],
        )
    };
    let group = [0x33, 0x33, 0xff, 0, 0, 0x10];
    for icmp_type in [135, 136] {
        for mac in [STATION.0, group] {
            assert_eq!(message(icmp_type, 255, mac), Parsed::Neighbour);
            assert_eq!(
                message(icmp_type, 254, mac),
                Parsed::Other(DropReason::LinkLocal),
                "forwarded by a router"
            );
        }
    }
    for icmp_type in [133, 134, 137] {
        assert_eq!(
            message(icmp_type, 255, group),
            Parsed::Other(DropReason::LinkLocal)
        );
    }
    assert_eq!(
        message(143, 1, group),
        Parsed::Other(DropReason::Multicast),
        "MLD"
    );
}

#[test]
fn ipv6_addresses_that_cannot_send_leave_the_link_or_name_many_are_told_apart() {
    let between = |src: &str, dst: &str| {
        let (src, dst): (Ipv6Addr, Ipv6Addr) = (src.parse().unwrap(), dst.parse().unwrap());
        v6_with(Protocol::UDP, &[(22, &src.octets()), (38, &dst.octets())])
    };
    for src in ["::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
        assert_eq!(
            between(src, "fd00::1"),
            Parsed::Drop(DropReason::BadSource),
            "{src}"
        );
    }
    for dst in ["::", "::1", "::ffff:10.0.0.1"] {
        assert_eq!(
            between("fd00::1", dst),
            Parsed::Drop(DropReason::BadDestination),
            "{dst}"
        );
    }
    for (src, dst) in [("fe80::1", "fd00::1"), ("fd00::1", "fe80::1")] {
        assert_eq!(between(src, dst), Parsed::Other(DropReason::LinkLocal));
    }
    assert_eq!(
        between("::", "ff02::1:2"),
        Parsed::Other(DropReason::Multicast),
        "the host's"
    );
    let broadcast = v6_with(Protocol::UDP, &[(0, &[0xff; 6])]);
    assert_eq!(broadcast, Parsed::Other(DropReason::Multicast));
}

#[test]
fn ipv6_fragments_tell_their_datagram_and_atomic_ones_are_whole() {
    // FRG-1, RFC 6946.
    let fragment = |position: [u8; 2]| {
        let plain = Sample::of_v6(Protocol::UDP).frame();
        let header = [17, 0, position[0], position[1], 1, 2, 3, 4];
        let mut frame = [&plain[..54], &header, &plain[54..]].concat();
        (frame[19], frame[20]) = (frame[19] + 8, 44);
        let packet = V6::packet(&frame);
        assert_eq!((packet.l4, packet.key.protocol), (62, Protocol::UDP));
        (packet.fragment, packet.key.dst_port, packet.fragment_ident)
    };
    assert_eq!(fragment([0, 0]), (Fragment::Whole, Port::new(53), 0));
    assert_eq!(fragment([0, 1]), (Fragment::First, Port::new(53), 0x0102_0304));
    assert_eq!(fragment([5, 0xa8]), (Fragment::Later, Port::new(0), 0x0102_0304));
}

#[test]
fn an_ipv6_packet_with_more_extension_headers_than_any_host_sends_is_dropped() {
    let plain = Sample::of_v6(Protocol::UDP).frame();
    let mut chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(7);
    chain[48] = 17;
    let mut frame = [&plain[..54], &chain, &plain[54..]].concat();
    (frame[19], frame[20]) = (frame[19] + 56, 60);
    assert_eq!(parse(&frame, STATION), Parsed::Drop(DropReason::ExtensionHeaders));
}
