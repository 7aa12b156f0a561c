//! Takes  a rejected packet.                Gives  the ICMP error that answers it, in a buffer of its own.
//! Drops  RejectForbidden (RJ-4), RejectRateLimited (RJ-3), Truncated, NoFrame.
//! Never  reads a clock, a table or a counter; never opens a flow (RJ-5); never changes the packet it quotes.
//! Next   `tx`.

use std::net::Ipv4Addr;

use arrayvec::ArrayVec;

use crate::addr::{Mac, Protocol};
use crate::parse::{Fragment, Packet};
use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::verdict::{DropReason, Rejection};
use crate::wire::{Ethernet, Icmp, Ipv4, Tcp, Udp, icmp, ipv4};

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

/// One bucket, counted in what one tick brings to a bucket of one token per second.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    credit: u32,
    filled: Tick,
}

/// What one answer costs.
const TOKEN: u32 = TICKS_PER_SECOND;

impl Bucket {
    /// Adds what came since the last time, up to `depth`.
    fn fill(&mut self, now: Tick, tokens_per_second: u32, depth: u32) {
        let due = now.since(self.filled).saturating_mul(tokens_per_second);
        self.credit = self.credit.saturating_add(due).min(depth);
        self.filled = now;
    }

    const fn has_token(&self) -> bool {
        self.credit >= TOKEN
    }
}

/// Answers per second to all destinations together (RJ-3; Linux's icmp_msgs_per_sec).
const GLOBAL_RATE: u32 = 1000;
/// Answers to all destinations at once (RJ-3; Linux's icmp_msgs_burst).
const GLOBAL_BURST: u32 = 50;
/// A tick stands for 1/8 s, in which a bucket of that rate and burst lets through the burst and an eighth of the rate:
/// without the second part, coarse time alone would keep the rate at 8 × 50 per second.
const GLOBAL_DEPTH: u32 = GLOBAL_BURST * TOKEN + GLOBAL_RATE;

/// Answers per second to one destination (RJ-3).
const DESTINATION_RATE: u32 = 1;
/// Answers to one destination at once, as measured on Linux.
const DESTINATION_BURST: u32 = 6;
const DESTINATION_DEPTH: u32 = DESTINATION_BURST * TOKEN;

/// Destinations remembered. Those forgotten start with a full bucket, but the global bucket holds for them all; 128 are
/// scanned in less time than an answer takes to build.
const DESTINATIONS: usize = 128;

/// How many ICMP errors may be sent (RJ-3): a token bucket for all destinations, and one for each of the last 128. One
/// worker's.
#[derive(Debug)]
pub struct RateLimiter {
    global: Bucket,
    destinations: ArrayVec<(Ipv4Addr, Bucket), DESTINATIONS>,
}

impl RateLimiter {
    /// A limiter whose buckets are full.
    pub fn new(now: Tick) -> Self {
        Self {
            global: Bucket {
                credit: GLOBAL_DEPTH,
                filled: now,
            },
            destinations: ArrayVec::new(),
        }
    }

    /// Takes a token for an answer to `destination`. Errors: `RejectRateLimited`, to be counted; then nothing was taken.
    pub fn take(&mut self, destination: Ipv4Addr, now: Tick) -> Result<(), DropReason> {
        self.global.fill(now, GLOBAL_RATE, GLOBAL_DEPTH);
        // First, so that a flood of sources cannot turn over the memory of destinations once it is over the limit.
        if !self.global.has_token() {
            return Err(DropReason::RejectRateLimited);
        }
        let bucket = self
            .bucket_of(destination, now)
            .ok_or(DropReason::RejectRateLimited)?;
        bucket.fill(now, DESTINATION_RATE, DESTINATION_DEPTH);
        if !bucket.has_token() {
            return Err(DropReason::RejectRateLimited);
        }
        bucket.credit -= TOKEN;
        self.global.credit -= TOKEN;
        Ok(())
    }

    /// The destination's bucket; for a new destination a full one, in place of the one asked for longest ago.
    fn bucket_of(&mut self, destination: Ipv4Addr, now: Tick) -> Option<&mut Bucket> {
        let at = match self
            .destinations
            .iter()
            .position(|(address, _)| *address == destination)
        {
            Some(at) => at,
            None => {
                let new = (
                    destination,
                    Bucket {
                        credit: DESTINATION_DEPTH,
                        filled: now,
                    },
                );
                match self.destinations.try_push(new) {
                    Ok(()) => self.destinations.len() - 1,
                    Err(_) => {
                        let ages = self
                            .destinations
                            .iter()
                            .map(|(_, bucket)| now.since(bucket.filled));
                        let (oldest, _) = ages.enumerate().max_by_key(|(_, age)| *age)?;
                        self.destinations[oldest] = new;
                        oldest
                    }
                }
            }
        };
        self.destinations.get_mut(at).map(|(_, bucket)| bucket)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::parse::{Parsed, parse};
    use crate::wire::samples::{PEER, STATION, Sample, any_sample, assert_checksums_right, fix_ip_checksum};

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

    fn host(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0a00_0000 + number)
    }

    /// Answers let through of `asked` to one destination at one instant.
    fn granted(limiter: &mut RateLimiter, to: Ipv4Addr, now: Tick, asked: usize) -> usize {
        (0..asked).filter(|_| limiter.take(to, now).is_ok()).count()
    }

    #[test]
    fn a_destination_gets_six_answers_at_once_then_one_a_second() {
        // RJ-3.
        let start = Tick(u32::MAX - 20); // The clock's wrap is in the middle of it.
        let mut limiter = RateLimiter::new(start);
        assert_eq!(granted(&mut limiter, host(1), start, 100), 6);
        assert_eq!(limiter.take(host(1), start), Err(DropReason::RejectRateLimited));
        for second in 1..10 {
            let now = start.plus_seconds(second);
            let just_before = Tick(now.0.wrapping_sub(1));
            assert_eq!(
                granted(&mut limiter, host(1), just_before, 10),
                0,
                "second {second}"
            );
            assert_eq!(granted(&mut limiter, host(1), now, 10), 1, "second {second}");
        }
        assert_eq!(
            granted(&mut limiter, host(2), start.plus_seconds(9), 10),
            6,
            "another has its own bucket"
        );
        assert_eq!(
            granted(&mut limiter, host(1), start.plus_seconds(3600), 10),
            6,
            "never more than the burst"
        );
    }

    #[test]
    fn all_destinations_together_get_the_burst_and_a_thousand_a_second() {
        // RJ-3. Within k ticks: 50 + k × 125, however many ask.
        let mut limiter = RateLimiter::new(Tick(0));
        let mut total = 0;
        for tick in 0..80 {
            let fresh = (0..400).map(|i| host(tick * 400 + i));
            let granted = fresh.filter(|to| limiter.take(*to, Tick(tick)).is_ok()).count();
            assert_eq!(granted, if tick == 0 { 175 } else { 125 }, "tick {tick}");
            total += granted;
        }
        assert_eq!(total, 50 + 80 * 125);
    }

    #[test]
    fn a_destination_over_its_own_limit_takes_nothing_from_the_others() {
        let mut limiter = RateLimiter::new(Tick(0));
        assert_eq!(granted(&mut limiter, host(0), Tick(0), 10_000), 6);
        let others = (1..200)
            .filter(|i| limiter.take(host(*i), Tick(0)).is_ok())
            .count();
        assert_eq!(others, 175 - 6);
    }

    #[test]
    fn of_more_destinations_than_are_remembered_the_one_asked_for_longest_ago_is_forgotten() {
        let mut limiter = RateLimiter::new(Tick(0));
        let last = DESTINATIONS as u32 - 1;
        for i in 0..=last {
            assert_eq!(granted(&mut limiter, host(i), Tick(i), 10), 6);
        }
        // Asked for again (refilled meanwhile), the eldest is no longer the oldest.
        let now = Tick(last);
        assert_eq!(granted(&mut limiter, host(0), now, 10), 6);
        assert_eq!(granted(&mut limiter, host(1000), now, 10), 6);
        assert_eq!(limiter.destinations.len(), DESTINATIONS);
        assert_eq!(granted(&mut limiter, host(0), now, 10), 0, "still remembered");
        assert!(
            !limiter
                .destinations
                .iter()
                .any(|(address, _)| *address == host(1)),
            "forgotten"
        );
    }

    #[test]
    fn time_that_seems_to_run_backwards_grants_nothing() {
        let mut limiter = RateLimiter::new(Tick(100));
        assert_eq!(granted(&mut limiter, host(1), Tick(100), 10), 6);
        assert_eq!(granted(&mut limiter, host(1), Tick(90), 10), 0);
    }
}
