//! Takes  a packet and its rewrite.         Gives  the same packet: addresses, ports, checksums, TTL and MACs changed.
//! Drops  nothing: whatever could fail was proven by `parse`.
//! Never  reads a clock, a table or a counter; never recomputes a checksum (a wrong one stays wrong).
//! Next   `tx`.

use crate::addr::{Address, FlowKey, Mac, Port, Protocol, V4};
use crate::nic::{Frame, FrameMemory};
use crate::parse::{Fragment, Packet};
use crate::verdict::DropReason;
use crate::wire::{Ethernet, Ip, Tcp, Udp, checksum, ethernet, icmpv6, sctp, tcp, udp};

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
/// and a first fragment without a whole, sound transport header carry no ports: only their addresses change. Other protocols
/// than TCP, UDP, SCTP and ICMPv6 likewise: their checksums, if any, do not cover addresses.
#[inline]
pub fn rewrite<A: Ip>(bytes: &mut [u8], packet: &Packet<A>, rewrite: &Rewrite<A>) {
    let Some(header) = header_at(bytes, packet.l3, packet.end, A::HEADER_LEN) else {
        return;
    };
    put_addresses(header, &rewrite.to);
    if let Some(at) = A::CHECKSUM {
        update(header, at, |checksum| checksum::apply(checksum, rewrite.l3_delta));
    }

    if packet.fragment != Fragment::Whole && !carries_ports(bytes, packet) {
        return;
    }
    match packet.key.protocol {
        Protocol::TCP => {
            let Some(header) = header_at(bytes, packet.l4, packet.end, tcp::HEADER_LEN) else {
                return;
            };
            put_ports(header, &rewrite.to);
            update(header, tcp::CHECKSUM, |checksum| {
                checksum::apply(checksum, rewrite.l4_delta)
            });
        }
        Protocol::UDP => {
            let Some(header) = header_at(bytes, packet.l4, packet.end, udp::HEADER_LEN) else {
                return;
            };
            put_ports(header, &rewrite.to);
            update(header, udp::CHECKSUM, |checksum| {
                checksum::apply_udp(checksum, rewrite.l4_delta)
            });
        }
        Protocol::SCTP => rewrite_sctp(bytes, packet, &rewrite.to),
        Protocol::ICMPV6 if A::ICMP == Protocol::ICMPV6 => {
            let Some(header) = header_at(bytes, packet.l4, packet.end, icmpv6::HEADER_LEN) else {
                return;
            };
            update(header, icmpv6::CHECKSUM, |checksum| {
                checksum::apply(checksum, rewrite.l3_delta)
            });
        }
        _ => {}
    }
}

/// Whether a fragment has the ports that its key says: where `parse` did not believe the header it learned none.
#[cold]
fn carries_ports<A: Ip>(bytes: &[u8], packet: &Packet<A>) -> bool {
    let header = bytes.get(usize::from(packet.l4)..usize::from(packet.end));
    let header = header.unwrap_or_default();
    packet.fragment == Fragment::First
        && match packet.key.protocol {
            Protocol::TCP => Tcp::partial(header).is_ok(),
            Protocol::UDP => Udp::partial(header).is_ok(),
            _ => true,
        }
}

/// SCTP's CRC32c covers ports and no addresses. That of a first fragment whose datagram's length is not known cannot be
/// kept right: such a packet leaves translated, and its receiver drops it. Kept out of the main way.
#[cold]
fn rewrite_sctp<A: Ip>(bytes: &mut [u8], packet: &Packet<A>, to: &FlowKey<A>) {
    if let Some(header) = header_at(bytes, packet.l4, packet.end, sctp::HEADER_LEN) {
        rewrite_sctp_header(header, to, packet.transport_len);
    }
}

/// Writes the ports into an SCTP common header, and updates its CRC32c for a packet of `len` bytes; 0 for not known.
pub(crate) fn rewrite_sctp_header<A: Address>(header: &mut [u8], to: &FlowKey<A>, len: u16) {
    let Some(&old) = header.first_chunk::<4>() else {
        return;
    };
    put_ports(header, to);
    if old == ports(to) || len == 0 {
        return;
    }
    // As much of it as there is: each byte changes by itself.
    let crc = header.get_mut(sctp::CHECKSUM..).unwrap_or_default();
    let delta = sctp::crc_delta(old, ports(to), len).to_le_bytes();
    crc.iter_mut()
        .zip(delta)
        .for_each(|(byte, change)| *byte ^= change);
}

/// Takes one from the time to live or hop limit (TTL-1). One that is 0 stays 0: `lookup` answers or drops those that may
/// not go on.
#[inline]
pub fn decrement_ttl<A: Ip>(bytes: &mut [u8], packet: &Packet<A>) {
    let Some(header) = header_at(bytes, packet.l3, packet.end, A::HEADER_LEN) else {
        return;
    };
    if header[A::TTL] == 0 {
        return;
    }
    header[A::TTL] -= 1;
    // The time to live is the high byte of its word, so the header's sum shrinks by 0x0100.
    if let Some(at) = A::CHECKSUM {
        update(header, at, |checksum| checksum::apply(checksum, negate(0x0100)));
    }
}

/// Writes the Ethernet addresses for the next hop; the EtherType stays.
#[inline]
pub fn set_macs(bytes: &mut [u8], dst: Mac, src: Mac) {
    if let Ok(mut ethernet) = Ethernet::new(bytes) {
        ethernet.set_dst(dst);
        ethernet.set_src(src);
    }
}

/// Makes `frame` one of this VLAN, 0 for untagged, and writes the Ethernet addresses for the next hop. A tag is put
/// before the packet or taken away by moving the frame's start, so nothing of the packet moves; offsets that `parse` found
/// are void afterwards. Errors: `NoFrame` where the headroom is used up.
pub fn set_link(
    memory: &FrameMemory,
    frame: &mut Frame,
    vlan: u16,
    dst: Mac,
    src: Mac,
) -> Result<(), DropReason> {
    let tagged = Ethernet::new(memory.bytes(frame))?.vlan().is_some();
    let moved = match (tagged, vlan) {
        (false, 0) => true,
        (true, 0) => memory.move_start(frame, ethernet::TAG_LEN as isize),
        (true, _) => true,
        (false, _) => memory.move_start(frame, -(ethernet::TAG_LEN as isize)),
    };
    if !moved {
        return Err(DropReason::NoFrame);
    }
    let bytes = memory.bytes_mut(frame);
    if vlan != 0 {
        ethernet::put_tag(bytes, vlan);
    }
    set_macs(bytes, dst, src);
    Ok(())
}

/// The `len` bytes at `start`, if they end by `end`. They do for every header that `parse` proved. Always inlined: `len`
/// is known, and with it that no index into the header can be out of bounds.
#[inline(always)]
fn header_at(bytes: &mut [u8], start: u16, end: u16, len: usize) -> Option<&mut [u8]> {
    bytes
        .get_mut(usize::from(start)..usize::from(end))?
        .get_mut(..len)
}

/// Source and destination address, as both families' headers have them: one after the other.
#[inline(always)]
pub(crate) fn put_addresses<A: Ip>(header: &mut [u8], to: &FlowKey<A>) {
    let len = size_of::<A>();
    header[A::SRC..A::SRC + len].copy_from_slice(to.src.as_ref());
    header[A::SRC + len..A::SRC + 2 * len].copy_from_slice(to.dst.as_ref());
}

/// Source and destination port, as TCP, UDP and SCTP have them: first of all.
#[inline(always)]
pub(crate) fn put_ports<A: Address>(header: &mut [u8], to: &FlowKey<A>) {
    header[..4].copy_from_slice(&ports(to));
}

#[inline(always)]
const fn ports<A: Address>(key: &FlowKey<A>) -> [u8; 4] {
    let ([a, b], [c, d]) = (key.src_port.0, key.dst_port.0);
    [a, b, c, d]
}

/// Changes the checksum at `at`.
#[inline(always)]
pub(crate) fn update(header: &mut [u8], at: usize, change: impl FnOnce(u16) -> u16) {
    let checksum = change(u16::from_be_bytes([header[at], header[at + 1]]));
    header[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::V6;
    use crate::parse::{Parsed, parse};
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

    proptest! {
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

    #[test]
    fn a_vlan_tag_is_put_on_changed_and_taken_off_and_nothing_else_of_the_packet() {
        let plain = Sample::of(Protocol::UDP).frame();
        let mut memory = FrameMemory::new(1, 2048).unwrap();
        let mut frame = memory.copy_in(&plain).unwrap();
        for vlan in [0, 5, 4094, 0, 7] {
            set_link(&memory, &mut frame, vlan, PEER, STATION).unwrap();
            let bytes = memory.bytes(&frame);
            let ethernet = Ethernet::new(bytes).unwrap();
            assert_eq!((ethernet.dst(), ethernet.src()), (PEER, STATION));
            assert_eq!(ethernet.vlan().unwrap_or_default(), vlan);
            assert_eq!(ethernet.ether_type(), crate::wire::EtherType::IPV4);
            assert_eq!(ethernet.payload(), &plain[14..]);
        }
        memory.free(frame);
    }
}
