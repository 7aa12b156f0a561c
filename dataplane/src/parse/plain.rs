//! Takes  a frame's bytes.                  Gives  what `inspect` finds in it, of nearly every frame.
//! Never  decides: of whatever is not plain to see it says nothing, and `inspect` looks.
//!
//! Plain is an untagged frame to this station with a whole TCP or UDP packet, without IPv4 options or IPv6 extension
//! headers, between addresses that may speak. Everything then lies at fixed places, so a few wide comparisons prove what
//! `inspect` proves field by field, in a quarter of its instructions.

use super::{Fragment, Packet, Parsed};
use crate::addr::{FlowKey, Mac, Protocol};
use crate::wire::{checksum, ethernet, ipv4, ipv6, tcp, udp};

const L3: usize = ethernet::HEADER_LEN;
const V4_L4: usize = L3 + ipv4::HEADER_LEN;
const V6_L4: usize = L3 + ipv6::HEADER_LEN;

/// Whether `frame` was plain; then `place` says what it is.
#[inline(always)]
pub(super) fn inspect(place: &mut Parsed, frame: &[u8], station: Mac) -> bool {
    let Some(head) = frame.first_chunk::<{ V4_L4 + udp::HEADER_LEN }>() else {
        return false;
    };
    if le64(head, 0) << 16 != station.bits() << 16 {
        return false;
    }
    // EtherType and the IP version: with IPv4's header length.
    let kind = u32::from_le_bytes(array(head, L3 - 2));
    if kind & 0x00ff_ffff == 0x0045_0008 {
        inspect_v4(place, frame, head)
    } else if kind & 0x00f0_ffff == 0x0060_dd86 {
        inspect_v6(place, frame)
    } else {
        false
    }
}

#[inline(always)]
fn inspect_v4(place: &mut Parsed, frame: &[u8], head: &[u8; V4_L4 + udp::HEADER_LEN]) -> bool {
    let total_len = usize::from(be16(head, L3 + 2));
    // Neither an offset nor "more fragments"; "don't fragment" as it likes.
    let whole = be16(head, L3 + 6) & 0x3fff == 0;
    let addresses = le64(head, L3 + ipv4::SRC);
    let (src, dst) = (addresses as u8, (addresses >> 32) as u8);
    // Below multicast and what is reserved, and neither "this network" nor loopback (RFC 6890).
    let speaks = |first: u8| (first.wrapping_sub(1) < 223) & (first != 127);
    if !(whole & speaks(src) & speaks(dst) & checksum_ok(head)) | (L3 + total_len > frame.len()) {
        return false;
    }
    let protocol = Protocol(head[L3 + 9]);
    let Some(transport_len) = total_len.checked_sub(ipv4::HEADER_LEN) else {
        return false;
    };
    let Some((ports, signals)) = transport::<V4_L4>(frame, protocol, transport_len, true) else {
        return false;
    };
    *place = Parsed::Ipv4(Packet {
        key: FlowKey::of_words(&addresses.to_le_bytes(), ports, protocol),
        fragment_ident: 0,
        l3: L3 as u16,
        l4: V4_L4 as u16,
        // A frame is no longer than its length's 16 bits.
        end: (L3 + total_len) as u16,
        transport_len: transport_len as u16,
        vlan: 0,
        ttl: head[L3 + ipv4::TTL],
        signals,
        icmp_type: 0,
        fragment: Fragment::Whole,
    });
    true
}

/// The IPv4 header's checksum is right. Every carry goes around at once: half the instructions of a sum in wider steps.
#[inline(always)]
fn checksum_ok(head: &[u8; V4_L4 + udp::HEADER_LEN]) -> bool {
    let (sum, carry) = le64(head, L3).overflowing_add(le64(head, L3 + 8));
    let rest = u64::from(u32::from_le_bytes(array(head, L3 + 16))) + u64::from(carry);
    let (sum, carry) = sum.overflowing_add(rest);
    let sum = sum + u64::from(carry);
    let (half, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    let half = half + u32::from(carry);
    let (folded, carry) = (half as u16).overflowing_add((half >> 16) as u16);
    folded + u16::from(carry) == checksum::RIGHT
}

#[inline(always)]
fn inspect_v6(place: &mut Parsed, frame: &[u8]) -> bool {
    let Some(head) = frame.first_chunk::<{ V6_L4 + udp::HEADER_LEN }>() else {
        return false;
    };
    let transport_len = usize::from(be16(head, L3 + 4));
    // What is global or unique local: 2000::/3 to fd00::/8, without what begins with zeros, fe or ff (RFC 6890).
    let (src, dst) = (head[L3 + 8], head[L3 + 24]);
    let speaks = (src.wrapping_sub(0x20) < 0xde) & (dst.wrapping_sub(0x20) < 0xde);
    if !speaks | (V6_L4 + transport_len > frame.len()) {
        return false;
    }
    let protocol = Protocol(head[L3 + 6]);
    let Some((ports, signals)) = transport::<V6_L4>(frame, protocol, transport_len, false) else {
        return false;
    };
    *place = Parsed::Ipv6(Packet {
        key: FlowKey::of_words(&array::<32, _>(head, L3 + 8), ports, protocol),
        fragment_ident: 0,
        l3: L3 as u16,
        l4: V6_L4 as u16,
        end: (V6_L4 + transport_len) as u16,
        transport_len: transport_len as u16,
        vlan: 0,
        ttl: head[L3 + 7],
        signals,
        icmp_type: 0,
        fragment: Fragment::Whole,
    });
    true
}

/// Ports and signals of the TCP or UDP header at `AT`, whose packet has `len` bytes from there on, all of them in `frame`.
#[inline(always)]
fn transport<const AT: usize>(
    frame: &[u8],
    protocol: Protocol,
    len: usize,
    may_lack_checksum: bool,
) -> Option<([u8; 4], u8)> {
    let header = &frame.get(AT..AT + len)?;
    match protocol {
        Protocol::UDP => {
            let header = header.first_chunk::<{ udp::HEADER_LEN }>()?;
            let sound = usize::from(be16(header, 4)).wrapping_sub(udp::HEADER_LEN) <= len - udp::HEADER_LEN;
            let summed = may_lack_checksum | (be16(header, udp::CHECKSUM) != 0);
            (sound & summed).then(|| (array(header, 0), 0))
        }
        Protocol::TCP => {
            let header = header.first_chunk::<{ tcp::HEADER_LEN }>()?;
            let own = usize::from(header[12] >> 4) * 4;
            let sound = (own >= tcp::HEADER_LEN) & (own <= len);
            sound.then(|| (array(header, 0), header[13]))
        }
        _ => None,
    }
}

#[inline(always)]
fn le64<const N: usize>(head: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(array(head, at))
}

#[inline(always)]
fn be16<const N: usize>(head: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([head[at], head[at + 1]])
}

#[inline(always)]
fn array<const N: usize, T: AsRef<[u8]> + ?Sized>(bytes: &T, at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes.as_ref()[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::samples::{STATION, any_mutated_frame, any_sample};

    fn assert_agrees(frame: &[u8]) -> bool {
        let (mut plain, mut full) = (Parsed::Neighbour, Parsed::Neighbour);
        let is_plain = inspect(&mut plain, frame, STATION);
        if is_plain {
            assert_eq!(super::super::inspect(&mut full, frame, STATION), Ok(()));
            assert_eq!(plain, full);
        }
        is_plain
    }

    proptest! {
        #[test]
        fn what_is_plain_is_what_the_full_look_finds(
            frame in any_mutated_frame(), sample in any_sample(), padding in 0usize..20,
        ) {
            assert_agrees(&frame);
            let mut frame = sample.frame();
            frame.extend(vec![0; padding]);
            assert_agrees(&frame);
        }

        #[test]
        fn a_byte_changed_anywhere_is_judged_as_by_the_full_look(
            sample in any_sample(), at in 0usize..60, value: u8, fix: bool,
        ) {
            let mut frame = sample.frame();
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
            if fix && frame.len() >= 14 + usize::from(frame[14] & 0x0f) * 4 {
                crate::wire::samples::fix_ip_checksum(&mut frame);
            }
            assert_agrees(&frame);
        }
    }

    #[test]
    fn ordinary_packets_of_both_families_and_protocols_are_plain() {
        use crate::wire::samples::Sample;
        for protocol in [Protocol::UDP, Protocol::TCP] {
            assert!(assert_agrees(&Sample::of(protocol).frame()));
            assert!(assert_agrees(&Sample::of_v6(protocol).frame()));
        }
    }
}
