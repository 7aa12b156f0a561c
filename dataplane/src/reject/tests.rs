use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::addr::{V4, V6};
use crate::parse::{Parsed, parse};
use crate::wire::samples::{
    PEER, STATION, Sample, Sampled, any_mutated_frame, any_sample_of, assert_checksums_right, fix_ip_checksum,
};
use crate::wire::{Icmpv6, Ipv4, Ipv6};

const US: V4 = [192, 0, 2, 1];
const US_V6: V6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Builds into a buffer of old bytes.
fn built(build: impl FnOnce(&mut [u8]) -> Result<usize, DropReason>) -> Result<Vec<u8>, DropReason> {
    let mut out = vec![0x55; 2000];
    let len = build(&mut out)?;
    out.truncate(len);
    Ok(out)
}

fn answer(frame: &[u8], rejection: Rejection) -> Result<Vec<u8>, DropReason> {
    built(|out| match parse(frame, STATION) {
        Parsed::Ipv4(packet) => icmp_error(frame, &packet, rejection, US, out),
        Parsed::Ipv6(packet) => icmp_error(frame, &packet, rejection, US_V6, out),
        other => panic!("not for us: {other:?}"),
    })
}

fn echo(frame: &[u8]) -> Result<Vec<u8>, DropReason> {
    built(|out| match parse(frame, STATION) {
        Parsed::Ipv4(packet) => echo_reply(frame, &packet, out),
        Parsed::Ipv6(packet) => echo_reply(frame, &packet, out),
        other => panic!("not for us: {other:?}"),
    })
}

fn refuse(frame: &[u8]) -> Result<Vec<u8>, DropReason> {
    answer(frame, Rejection::PortUnreachable)
}

proptest! {
    #[test]
    fn every_answer_quotes_the_packet_and_has_right_checksums(
        sample in any_sample_of::<V4>(), length in 0usize..1400, padding in vec(any::<u8>(), 0..20),
    ) {
        // RJ-1, RJ-2.
        let mut sample = sample;
        sample.payload.resize(length, 0xa5);
        let mut frame = sample.frame();
        let original = frame[14..].to_vec();
        frame.extend(padding);
        let out = refuse(&frame).unwrap();
        assert_checksums_right(&out);
        let ethernet = Ethernet::new(&out[..]).unwrap();
        prop_assert_eq!((ethernet.dst(), ethernet.src()), (PEER, STATION));
        let ip = Ipv4::new(ethernet.payload()).unwrap();
        prop_assert_eq!((ip.src(), std::net::IpAddr::from(ip.dst()), ip.ttl()), (Ipv4Addr::from(US), sample.src.ip(), 64));
        prop_assert!(ip.total_len() <= 576 && out.len() == 14 + usize::from(ip.total_len()));
        let icmp = Icmp::new(ip.payload()).unwrap();
        prop_assert_eq!((icmp.icmp_type(), icmp.code()), (3, 3));
        prop_assert_eq!(icmp.quoted().unwrap(), &original[..original.len().min(548)]);
    }
}

proptest! {
    #[test]
    fn every_answer_over_ipv6_quotes_the_packet_and_has_right_checksums(
        sample in any_sample_of::<V6>(), length in 0usize..1400, padding in vec(any::<u8>(), 0..20),
    ) {
        // RJ-1, RJ-2.
        let mut sample = sample;
        sample.payload.resize(length, 0xa5);
        let mut frame = sample.frame();
        let original = frame[14..].to_vec();
        frame.extend(padding);
        for (rejection, head) in [
            (Rejection::PortUnreachable, [1, 4, 0, 0, 0, 0]),
            (Rejection::TimeExceeded, [3, 0, 0, 0, 0, 0]),
            (Rejection::TooBig { mtu: 1400 }, [2, 0, 0, 0, 5, 0x78]),
        ] {
            let out = answer(&frame, rejection).unwrap();
            prop_assert!(out.len() <= ANSWER_FRAME_MAX);
            assert_checksums_right(&out);
            let ethernet = Ethernet::new(&out[..]).unwrap();
            prop_assert_eq!((ethernet.dst(), ethernet.src()), (PEER, STATION));
            let ip = Ipv6::new(ethernet.payload()).unwrap();
            prop_assert_eq!((ip.src().octets(), ip.hop_limit()), (US_V6, 64));
            prop_assert_eq!(std::net::IpAddr::from(ip.dst()), sample.src.ip());
            let message = ip.payload();
            prop_assert_eq!((&message[..2], &message[4..8]), (&head[..2], &head[2..]));
            prop_assert_eq!(&message[8..], &original[..original.len().min(1232)]);
        }
    }

    #[test]
    fn an_echo_request_is_answered_with_its_own_data_from_the_address_it_asked(
        v4 in any_sample_of::<V4>(), v6 in any_sample_of::<V6>(),
    ) {
        // PING-1.
        for mut sample in [v4, v6] {
            sample.protocol = if sample.src.is_ipv4() { Protocol::ICMP } else { Protocol::ICMPV6 };
            let mut reply = echo(&sample.frame()).unwrap();
            assert_checksums_right(&reply);
            prop_assert_eq!(&reply[..6], &PEER.0);
            reply[..6].copy_from_slice(&STATION.0); // for `parse`
            let (src, dst, message) = if sample.src.is_ipv4() {
                let key = V4::packet(&reply).key;
                (key.src.into(), key.dst.into(), &reply[34..])
            } else {
                let key = V6::packet(&reply).key;
                (key.src.into(), key.dst.into(), &reply[54..])
            };
            prop_assert_eq!((src, dst), (sample.dst.ip(), sample.src.ip()));
            prop_assert_eq!(message[0], if sample.src.is_ipv4() { 0 } else { 129 });
            let request = sample.frame();
            prop_assert_eq!(&message[4..], &request[request.len() - message.len() + 4..]);
        }
    }
}

proptest! {
    #[test]
    fn no_packet_that_parse_accepts_panics_and_what_is_answered_is_answered_right(
        frame in any_mutated_frame(),
    ) {
        if matches!(parse(&frame, STATION), Parsed::Ipv4(_) | Parsed::Ipv6(_)) {
            match echo(&frame) {
                Ok(out) => assert_checksums_right(&out),
                Err(reason) => prop_assert_eq!(reason, DropReason::RejectForbidden),
            }
            for rejection in [
                Rejection::PortUnreachable,
                Rejection::TimeExceeded,
                Rejection::TooBig { mtu: 1280 },
            ] {
                match answer(&frame, rejection) {
                    Ok(out) => assert_checksums_right(&out),
                    Err(reason) => prop_assert_eq!(reason, DropReason::RejectForbidden),
                }
            }
        }
    }
}

#[test]
fn the_bytes_of_a_port_unreachable_are_these() {
    let out = refuse(&Sample::of(Protocol::UDP).frame()).unwrap();
    assert_eq!(out[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    assert_eq!(out[14..24], [0x45, 0xc0, 0, 62, 0, 0, 0x40, 0, 64, 1]);
    assert_eq!(out[26..36], [192, 0, 2, 1, 10, 1, 0, 7, 3, 3]);
    assert_eq!(out[38..42], [0; 4]);
    assert_eq!(out[42..], Sample::of(Protocol::UDP).frame()[14..]);
}

#[test]
fn a_packet_whose_time_to_live_ended_is_answered_even_if_its_transport_checksum_is_wrong() {
    // TTL-1.
    let mut frame = Sample {
        ttl: 1,
        ..Sample::of(Protocol::UDP)
    }
    .frame();
    frame[40] ^= 1;
    let out = answer(&frame, Rejection::TimeExceeded).unwrap();
    assert_checksums_right(&out);
    assert_eq!(out[34..36], [11, 0]);
}

#[test]
fn a_port_is_not_refused_to_a_packet_whose_checksum_is_wrong() {
    for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP, Protocol::ICMP] {
        let mut frame = Sample::of(protocol).frame();
        assert!(refuse(&frame).is_ok());
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(refuse(&frame), Err(DropReason::RejectForbidden), "{protocol}");
    }
    let mut without = Sample::of(Protocol::UDP).frame();
    without[40..42].fill(0);
    assert!(refuse(&without).is_ok(), "no checksum is no wrong checksum");
}

#[test]
fn icmp_errors_and_unknown_icmp_types_are_never_answered_but_echo_is() {
    // RJ-4, PING-1.
    for icmp_type in 0..=255 {
        let mut frame = Sample::of(Protocol::ICMP).frame();
        frame[34] = icmp_type;
        Icmp::new(&mut frame[34..]).unwrap().fill_checksum();
        let expected = matches!(icmp_type, 0 | 8..=10 | 13..=18);
        assert_eq!(refuse(&frame).is_ok(), expected, "type {icmp_type}");
        assert_eq!(
            answer(&frame, Rejection::TimeExceeded).is_ok(),
            expected,
            "type {icmp_type}"
        );
    }
}

#[test]
fn later_fragments_are_never_answered_and_first_ones_are() {
    // RJ-4.
    let mut frame = Sample::of(Protocol::UDP).frame();
    frame[21] = 1;
    fix_ip_checksum(&mut frame);
    assert_eq!(refuse(&frame), Err(DropReason::RejectForbidden));
    frame[20..22].copy_from_slice(&[0x20, 0]);
    fix_ip_checksum(&mut frame);
    let answer = refuse(&frame).unwrap();
    let own = &answer[14..];
    assert_eq!(
        own[6] & 0x3f,
        0,
        "the answer is whole: neither a first fragment nor a later one"
    );
    assert_eq!(own[7], 0);
    assert_eq!(own[28 + 6], 0x20, "what it quotes is as it was");
    // A first fragment of ICMP that hides its type could be an error.
    frame[23] = 1;
    frame[17] = 24;
    fix_ip_checksum(&mut frame);
    assert_eq!(refuse(&frame), Err(DropReason::RejectForbidden));
}

#[test]
fn what_names_many_stations_or_none_is_never_answered() {
    // RJ-4. `parse` lets none of these through: shared mode may.
    let frame = Sample::of(Protocol::UDP).frame();
    let Parsed::Ipv4(packet) = parse(&frame, STATION) else {
        panic!()
    };
    let mut edits = vec![
        (0, vec![0xff; 6]),
        (0, vec![1, 0, 0x5e, 0, 0, 1]),
        (6, vec![0xff; 6]),
    ];
    edits.extend([vec![224, 0, 0, 1], vec![255; 4], vec![0; 4], vec![127, 0, 0, 1]].map(|src| (26, src)));
    edits.extend([vec![224, 0, 0, 1], vec![255; 4]].map(|dst| (30, dst)));
    for (at, value) in edits {
        let mut frame = frame.clone();
        frame[at..at + value.len()].copy_from_slice(&value);
        let mut packet = packet;
        packet.key.src = *frame[26..].first_chunk().unwrap();
        packet.key.dst = *frame[30..].first_chunk().unwrap();
        let result = icmp_error(
            &frame,
            &packet,
            Rejection::TimeExceeded,
            US,
            &mut [0; ANSWER_FRAME_MAX],
        );
        assert_eq!(result, Err(DropReason::RejectForbidden), "byte {at} is {value:?}");
    }
}

#[test]
fn a_buffer_too_short_or_a_packet_of_another_frame_is_an_error_and_no_panic() {
    let frame = Sample::of(Protocol::UDP).frame();
    let Parsed::Ipv4(packet) = parse(&frame, STATION) else {
        panic!()
    };
    let build = |frame: &[u8], room: usize| {
        icmp_error(frame, &packet, Rejection::PortUnreachable, US, &mut vec![0; room])
    };
    let len = build(&frame, ANSWER_FRAME_MAX).unwrap();
    for room in 0..len {
        assert_eq!(build(&frame, room), Err(DropReason::NoFrame));
    }
    for cut in 0..frame.len() {
        assert_eq!(build(&frame[..cut], ANSWER_FRAME_MAX), Err(DropReason::Truncated));
    }
}

#[test]
fn what_does_not_fit_the_next_link_is_told_its_size() {
    // RFC 1191 §4.
    let out = answer(
        &Sample::of(Protocol::UDP).frame(),
        Rejection::TooBig { mtu: 1400 },
    )
    .unwrap();
    assert_checksums_right(&out);
    assert_eq!((&out[34..36], &out[38..42]), (&[3, 4][..], &[0, 0, 5, 0x78][..]));
}

#[test]
fn icmpv6_errors_and_redirects_are_never_answered_but_other_messages_are() {
    // RJ-4, RFC 4443 §2.4 (e).
    for icmp_type in (0..=255).filter(|t| !(133..=137).contains(t)) {
        let sample = Sample::of_v6(Protocol::ICMPV6);
        let mut frame = sample.frame();
        frame[54] = icmp_type;
        let packet = V6::packet(&frame);
        Icmpv6::new(&mut frame[54..])
            .unwrap()
            .fill_checksum(packet.key.src, packet.key.dst);
        assert_eq!(refuse(&frame).is_ok(), icmp_type >= 128, "type {icmp_type}");
    }
}

#[test]
fn a_sender_to_a_group_is_told_only_what_is_too_big_and_only_in_ipv6() {
    // RFC 4443 §2.4 (e.3).
    let frame = Sample::of_v6(Protocol::UDP).frame();
    let mut packet = V6::packet(&frame);
    packet.key.dst[0] = 0xff;
    let mut out = [0; ANSWER_FRAME_MAX];
    let mut build = |rejection| icmp_error(&frame, &packet, rejection, US_V6, &mut out).is_ok();
    assert!(build(Rejection::TooBig { mtu: 1280 }) && !build(Rejection::TimeExceeded));
    let frame = Sample::of(Protocol::UDP).frame();
    let mut packet = V4::packet(&frame);
    packet.key.dst = [224, 0, 0, 1];
    let too_big = icmp_error(&frame, &packet, Rejection::TooBig { mtu: 576 }, US, &mut out);
    assert_eq!(too_big, Err(DropReason::RejectForbidden));
}

#[test]
fn what_is_no_sound_echo_request_gets_no_echo() {
    // PING-1.
    for protocol in [Protocol::ICMP, Protocol::UDP] {
        assert_eq!(
            echo(&Sample::of(protocol).frame()).is_ok(),
            protocol == Protocol::ICMP
        );
    }
    let mut wrong = Sample::of(Protocol::ICMP).frame();
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(echo(&wrong), Err(DropReason::RejectForbidden));
    let mut reply = Sample::of(Protocol::ICMP).frame();
    reply[34] = 0;
    assert_eq!(echo(&reply), Err(DropReason::RejectForbidden));
}
