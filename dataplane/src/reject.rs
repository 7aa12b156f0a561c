//! Takes  a rejected packet.                Gives  the ICMP error that answers it, in a buffer of its own.
//! Drops  RejectForbidden (RJ-4), RejectRateLimited (RJ-3, `limit`), Truncated, NoFrame.
//! Never  reads a clock, a table or a counter; never opens a flow (RJ-5); never changes the packet it quotes.
//! Next   `tx`.

use std::net::Ipv4Addr;

use crate::addr::{Mac, Protocol};
use crate::parse::{Fragment, Packet};
use crate::verdict::{DropReason, Rejection};
use crate::wire::{Ethernet, Icmp, Ipv4, Tcp, Udp, icmp, ipv4};

mod limit;

pub use limit::RateLimiter;

/// Longest IP packet that answers: every host must be able to take it (RFC 1812 §4.3.2.3; RJ-2).
const ANSWER_MAX: usize = 576;

/// Most bytes of the original IP packet that an answer quotes (RJ-2): 548, as Linux does.
pub const QUOTE_MAX: usize = ANSWER_MAX - ipv4::HEADER_LEN - icmp::HEADER_LEN;

/// Longest frame that `icmp_error` builds, with room for a VLAN tag.
pub const ANSWER_FRAME_MAX: usize = 18 + ANSWER_MAX;

/// Linux's default for packets of its own (IPDEFTTL, RFC 1700).
const TTL: u8 = 64;

/// Precedence "internetwork control", which ICMP errors should have (RFC 1812 §4.3.2.5).
const TRAFFIC_CLASS: u8 = 0xc0;

/// Builds in `out` the frame that answers the rejected packet (RJ-1, TTL-1), to go back to the station it came from, and
/// gives its length. `original_frame` is as received: not yet rewritten (RJ-2). `from`: an address of ours. `out` may
/// hold anything; `ANSWER_FRAME_MAX` bytes always suffice.
///
/// Errors: `RejectForbidden` where RJ-4 allows no answer, or where a port would be refused in a packet whose transport
/// checksum is wrong (its port cannot be believed); `NoFrame` if `out` is too short; `Truncated` if `packet` is not of
/// `original_frame`.
pub fn icmp_error(
    original_frame: &[u8],
    packet: &Packet,
    rejection: Rejection,
    from: Ipv4Addr,
    out: &mut [u8],
) -> Result<usize, DropReason> {
    let (l3, end) = (usize::from(packet.l3), usize::from(packet.end));
    let link = original_frame.get(..l3).ok_or(DropReason::Truncated)?;
    let original = original_frame.get(l3..end).ok_or(DropReason::Truncated)?;
    let (ethernet, ip) = (Ethernet::new(link)?, Ipv4::new(original)?);
    if !may_answer(packet, &ethernet, &ip) {
        return Err(DropReason::RejectForbidden);
    }
    // A host would have found the port closed only after the checksum (RFC 1122 §4.1.3.4); a router whose time to live
    // ran out never looked at it.
    if rejection == Rejection::PortUnreachable && !transport_checksum_ok(packet, &ip) {
        return Err(DropReason::RejectForbidden);
    }
    let (icmp_type, code) = match rejection {
        Rejection::PortUnreachable => (icmp::UNREACHABLE, icmp::PORT_UNREACHABLE),
        Rejection::TimeExceeded => (icmp::TIME_EXCEEDED, icmp::TTL_EXCEEDED),
    };
    let quote = &original[..original.len().min(QUOTE_MAX)];

    let len = l3 + ipv4::HEADER_LEN + icmp::HEADER_LEN + quote.len();
    let out = out.get_mut(..len).ok_or(DropReason::NoFrame)?;
    let (out_link, out_ip) = out.split_at_mut(l3);
    out_link.copy_from_slice(link);
    let mut answer_link = Ethernet::new(out_link)?;
    answer_link.set_dst(ethernet.src());
    answer_link.set_src(ethernet.dst());

    let mut answer = Ipv4::blank(out_ip, Protocol::ICMP)?;
    answer.set_traffic_class(TRAFFIC_CLASS);
    answer.set_ttl(TTL);
    answer.set_src(from);
    answer.set_dst(ip.src());
    answer.fill_checksum();
    let mut message = Icmp::blank(answer.payload_mut(), icmp_type, code)?;
    message.payload_mut().copy_from_slice(quote);
    message.fill_checksum();
    Ok(len)
}

/// RJ-4, and RFC 1122 §3.2.2: an error may answer neither an error nor what names many stations or none.
fn may_answer(packet: &Packet, ethernet: &Ethernet<&[u8]>, ip: &Ipv4<&[u8]>) -> bool {
    // The type as the packet has it: 0 in `Packet` is also a header that a first fragment lacks.
    let about_an_error = packet.key.protocol == Protocol::ICMP
        && !Icmp::partial(ip.payload()).is_ok_and(|message| icmp::is_query(message.icmp_type()));
    packet.fragment != Fragment::Later
        && !about_an_error
        && ipv4::can_send(ip.src())
        && !ipv4::is_group(ip.dst())
        && is_station(ethernet.src())
        && is_station(ethernet.dst())
}

/// The address names one station. A tap's frames may come from none at all.
fn is_station(mac: Mac) -> bool {
    !mac.is_group()
}

/// False if the transport checksum is certainly wrong. A first fragment's cannot be known, and other protocols have none
/// that is checked here (SCTP's CRC32c): they are answered.
fn transport_checksum_ok(packet: &Packet, ip: &Ipv4<&[u8]>) -> bool {
    if packet.fragment != Fragment::Whole {
        return true;
    }
    match packet.key.protocol {
        Protocol::TCP => Tcp::new(ip.payload()).is_ok_and(|tcp| tcp.checksum_ok(ip.src(), ip.dst())),
        Protocol::UDP => Udp::new(ip.payload()).is_ok_and(|udp| udp.checksum_ok(ip.src(), ip.dst())),
        Protocol::ICMP => Icmp::new(ip.payload()).is_ok_and(|icmp| icmp.checksum_ok()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::parse::{Parsed, parse};
    use crate::wire::samples::{
        PEER, STATION, Sample, any_mutated_frame, any_sample, assert_checksums_right, fix_ip_checksum,
    };

    const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn answer(frame: &[u8], rejection: Rejection) -> Result<Vec<u8>, DropReason> {
        let Parsed::Ipv4(packet) = parse(frame, STATION) else {
            panic!("not for us: {frame:02x?}")
        };
        let mut out = vec![0x55; ANSWER_FRAME_MAX];
        let len = icmp_error(frame, &packet, rejection, US, &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    fn refuse(frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        answer(frame, Rejection::PortUnreachable)
    }

    proptest! {
        #[test]
        fn every_answer_quotes_the_packet_and_has_right_checksums(
            sample in any_sample(), length in 0usize..1400, padding in vec(any::<u8>(), 0..20),
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
            prop_assert_eq!((ip.src(), ip.dst(), ip.ttl()), (US, *sample.src.ip(), 64));
            prop_assert!(ip.total_len() <= 576 && out.len() == 14 + usize::from(ip.total_len()));
            let icmp = Icmp::new(ip.payload()).unwrap();
            prop_assert_eq!((icmp.icmp_type(), icmp.code()), (3, 3));
            prop_assert_eq!(icmp.quoted().unwrap(), &original[..original.len().min(548)]);
        }
    }

    proptest! {
        #[test]
        fn no_packet_that_parse_accepts_panics_and_what_is_answered_is_answered_right(
            frame in any_mutated_frame(),
        ) {
            if matches!(parse(&frame, STATION), Parsed::Ipv4(_)) {
                for rejection in [Rejection::PortUnreachable, Rejection::TimeExceeded] {
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
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ICMP] {
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
        assert!(refuse(&frame).is_ok());
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
}
