use proptest::prelude::*;

use super::*;
use crate::addr::V6;
use crate::parse::{Parsed, parse, parse_into};
use crate::wire::Ipv4;
use crate::wire::samples::{
    PEER, STATION, Sample, Sampled, any_key, any_mutated_frame, any_sample_of, assert_checksums_right,
    fix_ip_checksum,
};

fn packet(frame: &[u8]) -> Packet {
    V4::packet(frame)
}

/// The rewrite of `from` to `to`, and the one back.
fn there_and_back<A: Address>(from: FlowKey<A>, to: FlowKey<A>) -> (Rewrite<A>, Rewrite<A>) {
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

/// Where the transport checksum lies in its header, and how long it is.
fn checksum_place(protocol: Protocol) -> (usize, usize) {
    match protocol {
        Protocol::TCP => (16, 2),
        Protocol::UDP => (6, 2),
        Protocol::SCTP => (8, 4),
        _ => (2, 2),
    }
}

/// A packet, and ends for it to be rewritten to: ports too, unless it is ICMP.
fn any_case_of<A: Sampled>() -> impl Strategy<Value = (Vec<u8>, FlowKey<A>)> {
    (any_sample_of::<A>(), any_key::<A>(Protocol::TCP)).prop_map(|(sample, mut to)| {
        to.protocol = sample.protocol;
        if sample.protocol == A::ICMP {
            (to.src_port, to.dst_port) = Default::default();
        }
        (sample.frame(), to)
    })
}

fn assert_rewritten_right<A: Sampled>(mut frame: Vec<u8>, to: FlowKey<A>) {
    let before = A::packet(&frame);
    let (there, _) = there_and_back(before.key, to);
    rewrite(&mut frame, &before, &there);
    assert_eq!(A::packet(&frame), Packet { key: to, ..before });
    assert_checksums_right(&frame);
    decrement_ttl(&mut frame, &before);
    let ttl = before.ttl.saturating_sub(1);
    assert_eq!(
        A::packet(&frame),
        Packet {
            key: to,
            ttl,
            ..before
        }
    );
    assert_checksums_right(&frame);
}

fn assert_undone<A: Sampled>(mut frame: Vec<u8>, to: FlowKey<A>, checksum: Option<[u8; 4]>) {
    let packet = A::packet(&frame);
    // Any checksum, right or wrong.
    let (at, len) = checksum_place(packet.key.protocol);
    let at = usize::from(packet.l4) + at;
    if let Some(bytes) = checksum {
        frame[at..at + len].copy_from_slice(&bytes[..len]);
    }
    let original = frame.clone();
    let (there, back) = there_and_back(packet.key, to);
    rewrite(&mut frame, &packet, &there);
    rewrite(&mut frame, &packet, &back);
    assert_eq!(frame, original);
}

fn assert_stays_wrong<A: Sampled>(mut frame: Vec<u8>, to: FlowKey<A>, error: u16) {
    // A right twin shows what the difference must be.
    let packet = A::packet(&frame);
    let (at, len) = checksum_place(packet.key.protocol);
    let at = usize::from(packet.l4) + at;
    let mut right = frame.clone();
    let (there, _) = there_and_back(packet.key, to);
    let wrong = if len == 4 {
        [frame[at] ^ error as u8, frame[at + 1] ^ (error >> 8) as u8]
    } else {
        checksum::add(u16::from_be_bytes([frame[at], frame[at + 1]]), error).to_be_bytes()
    };
    if wrong == [0; 2] {
        return;
    }
    frame[at..at + 2].copy_from_slice(&wrong);
    rewrite(&mut right, &packet, &there);
    rewrite(&mut frame, &packet, &there);
    if len == 4 {
        let difference = [frame[at] ^ right[at], frame[at + 1] ^ right[at + 1]];
        assert_eq!(difference, error.to_le_bytes());
    } else {
        let difference = checksum::delta(&right[at..at + 2], &frame[at..at + 2]);
        assert_eq!(difference, error);
    }
    frame[at..at + 2].copy_from_slice(&right[at..at + 2]);
    assert_eq!(frame, right, "nothing but the checksum differs");
}

fn assert_only_headers_change<A: Sampled>(frame: &[u8], packet: &Packet<A>, to: FlowKey<A>) {
    let mut changed = frame.to_vec();
    rewrite(&mut changed, packet, &there_and_back(packet.key, to).0);
    decrement_ttl(&mut changed, packet);
    let header = match packet.key.protocol {
        _ if packet.fragment == Fragment::Later => 0,
        Protocol::TCP => 20,
        Protocol::UDP => 8,
        Protocol::SCTP => 12,
        Protocol::ICMPV6 if A::BITS == 128 => 8,
        _ => 0,
    };
    let (l3, after) = (usize::from(packet.l3), usize::from(packet.l4) + header);
    assert_eq!(&changed[..l3], &frame[..l3]);
    assert_eq!(changed.get(after..), frame.get(after..));
}

fn assert_plain_is_the_same<A: Sampled>(mut frame: Vec<u8>, to: FlowKey<A>) {
    let mut parsed = Parsed::Neighbour;
    let packet = A::packet(&frame);
    if !parse_into(&mut parsed, &frame, STATION) || packet.ttl <= 1 {
        return;
    }
    let (there, _) = there_and_back(packet.key, to);
    let mut plain = frame.clone();
    rewrite_plain(&mut plain, &packet, &there, STATION, PEER);
    rewrite(&mut frame, &packet, &there);
    decrement_ttl(&mut frame, &packet);
    set_macs(&mut frame, STATION, PEER);
    assert_eq!(plain, frame);
}

proptest! {
    #[test]
    fn a_plain_packet_is_rewritten_like_any_other(
        v4 in any_case_of::<V4>(), v6 in any_case_of::<V6>(), checksum in any::<[u8; 2]>(), wrong: bool,
    ) {
        fn with<A: Sampled>((mut frame, to): (Vec<u8>, FlowKey<A>), checksum: Option<[u8; 2]>) -> (Vec<u8>, FlowKey<A>) {
            let packet = A::packet(&frame);
            if let Some(bytes) = checksum {
                let at = usize::from(packet.l4) + checksum_place(packet.key.protocol).0;
                frame[at..at + 2].copy_from_slice(&bytes);
            }
            (frame, to)
        }
        // Zero is no checksum in IPv4, and refused by `parse` in IPv6.
        let checksum = wrong.then_some(checksum).filter(|&checksum| checksum != [0; 2]);
        let ((v4, to_v4), (v6, to_v6)) = (with(v4, checksum), with(v6, checksum));
        assert_plain_is_the_same(v4, to_v4);
        assert_plain_is_the_same(v6, to_v6);
    }

    #[test]
    fn a_rewritten_packet_has_the_new_key_one_hop_less_and_right_checksums(
        v4 in any_case_of::<V4>(), v6 in any_case_of::<V6>(),
    ) {
        assert_rewritten_right(v4.0, v4.1);
        assert_rewritten_right(v6.0, v6.1);
    }

    #[test]
    fn rewriting_there_and_back_changes_no_byte(
        v4 in any_case_of::<V4>(), v6 in any_case_of::<V6>(), set in any::<bool>(),
        // But 0xffff, TCP's and ICMP's other zero, which no sender can compute.
        checksum in any::<[u8; 4]>().prop_filter("a sum", |bytes| bytes[..2] != [0xff; 2]),
    ) {
        assert_undone(v4.0, v4.1, set.then_some(checksum));
        assert_undone(v6.0, v6.1, set.then_some(checksum));
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_by_the_same_amount(
        v4 in any_case_of::<V4>(), v6 in any_case_of::<V6>(), error in 1u16..0xffff,
    ) {
        // CSM-1: never laundered, never made worse.
        assert_stays_wrong(v4.0, v4.1, error);
        assert_stays_wrong(v6.0, v6.1, error);
    }

    #[test]
    fn no_packet_that_parse_accepts_panics_or_changes_outside_its_headers(
        frame in any_mutated_frame(), v4 in any_key::<V4>(Protocol::TCP), v6 in any_key::<V6>(Protocol::TCP),
    ) {
        match parse(&frame, STATION) {
            Parsed::Ipv4(packet) => assert_only_headers_change(&frame, &packet, v4),
            Parsed::Ipv6(packet) => assert_only_headers_change(&frame, &packet, v6),
            _ => {}
        }
    }
}

#[test]
fn the_first_fragment_of_an_sctp_packet_is_right_where_the_packets_length_is_known() {
    // FRG-1: the CRC32c covers what comes in the later ones.
    let mut whole = Sample::of(Protocol::SCTP).frame();
    let mut first = whole[..14 + 20 + 16].to_vec();
    (first[17], first[20]) = (36, 0x20);
    fix_ip_checksum(&mut first);
    let to = to_backend(Protocol::SCTP);
    let proved = packet(&whole);
    rewrite(&mut whole, &proved, &there_and_back(proved.key, to).0);
    let fragment = Packet {
        transport_len: proved.transport_len,
        ..packet(&first)
    };
    rewrite(&mut first, &fragment, &there_and_back(proved.key, to).0);
    assert_eq!(first[34..], whole[34..50]);
}

#[test]
fn udp_over_ipv6_that_computes_to_zero_is_sent_as_ones() {
    // CSM-1: 0 would mean that there is none, and the receiver would drop it.
    let mut frame = Sample::of_v6(Protocol::UDP).frame();
    let packet = V6::packet(&frame);
    let checksum = u16::from_be_bytes([frame[60], frame[61]]);
    let change = Rewrite {
        to: packet.key,
        l3_delta: 0,
        l4_delta: checksum,
    };
    rewrite(&mut frame, &packet, &change);
    assert_eq!(frame[60..62], [0xff; 2]);
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
