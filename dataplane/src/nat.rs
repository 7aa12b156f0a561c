//! Takes  a packet and its rewrite.         Gives  the same packet: addresses, ports, checksums, TTL and MACs changed.
//! Drops  nothing: whatever could fail was proven by `parse`.
//! Never  reads a clock, a table or a counter; never recomputes a checksum (a wrong one stays wrong).
//! Next   `tx`.

use crate::addr::{Address, FlowKey, Mac, Protocol, V4};
use crate::parse::{Fragment, Packet};
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
    let addresses = |key: &FlowKey<A>| {
        let ([a, b], [c, d]) = (key.src.halves(), key.dst.halves());
        checksum::sum_words([a, b, c, d])
    };
    let ports = |key: &FlowKey<A>| checksum::add(key.src_port.number(), key.dst_port.number());
    let (before, after) = (addresses(from), addresses(to));
    (
        checksum::difference(before, after),
        checksum::difference(
            checksum::add(before, ports(from)),
            checksum::add(after, ports(to)),
        ),
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

/// `rewrite`, `decrement_ttl` and `set_macs` in one, of a plain packet (`parse_into`) with a hop left: its headers are at
/// fixed places, so bounds are checked once and each line of the frame is written in one go.
#[inline(always)]
pub fn rewrite_plain<A: Ip>(bytes: &mut [u8], packet: &Packet<A>, rewrite: &Rewrite<A>, dst: Mac, src: Mac) {
    const L3: usize = ethernet::HEADER_LEN;
    let l4 = L3 + A::HEADER_LEN;
    let tcp = packet.key.protocol == Protocol::TCP;
    // Of UDP and of TCP, counted from the transport header.
    let checksum_at = if tcp { tcp::CHECKSUM } else { udp::CHECKSUM };
    let Some((headers, rest)) = bytes.split_at_mut_checked(l4 + 4) else {
        return;
    };
    let Some(checksum) = rest.get_mut(checksum_at - 4..checksum_at - 2) else {
        return;
    };
    let (dst, src) = (dst.bits(), src.bits());
    headers[..8].copy_from_slice(&(dst | src << 48).to_le_bytes());
    headers[8..12].copy_from_slice(&((src >> 16) as u32).to_le_bytes());
    let ip = &mut headers[L3..l4];
    put_addresses(ip, &rewrite.to);
    ip[A::TTL] = ip[A::TTL].wrapping_sub(1);
    if let Some(at) = A::CHECKSUM {
        // The time to live is the high byte of its word, so the header's sum shrinks by 0x0100.
        let delta = checksum::add(rewrite.l3_delta, !0x0100);
        update(ip, at, |checksum| checksum::apply(checksum, delta));
    }
    put_ports(&mut headers[l4..], &rewrite.to);
    update(checksum, 0, |old| {
        if tcp {
            checksum::apply(old, rewrite.l4_delta)
        } else {
            checksum::apply_udp(old, rewrite.l4_delta)
        }
    });
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
    header[..2].copy_from_slice(&to.src_port.0);
    header[2..4].copy_from_slice(&to.dst_port.0);
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
mod tests;
