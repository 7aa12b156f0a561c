//! Takes bytes, or a checksum and what changed. Gives ones-complement sums (RFC 1071) and checksums kept right, or
//! exactly as wrong as they were, by difference (RFC 1624). Never reads a packet's structure.
//!
//! All values are the numbers that network byte order writes. In ones-complement arithmetic 0 and 0xffff are both zero:
//! * A *sum* is not inverted; over bytes that include a right checksum it is 0xffff.
//! * A *checksum* is the inverted sum, as the header carries it.
//! * A *delta* is what a sum grows by, and is never 0xffff: zero is written 0, so that no change changes no byte.

use crate::addr::{Address, Protocol};

/// The sum of bytes whose checksum is right.
pub const RIGHT: u16 = 0xffff;

/// Ones-complement addition of two sums.
#[inline]
pub const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    // End-around carry. Cannot overflow: a sum that carried is at most 0xfffe.
    sum + carry as u16
}

/// The sum of `bytes` as 16-bit words, an odd last byte padded with zero (RFC 1071 §1). Eight bytes at a time in the
/// machine's own byte order: the sum does not depend on it (RFC 1071 §2 (B)) nor on the word's width (§2 (C)). Always
/// inlined, because over a length that the compiler knows it is a few instructions.
#[inline(always)]
pub fn sum(bytes: &[u8]) -> u16 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut total = 0u64;
    for word in words {
        total = add_wide(total, u64::from_ne_bytes(*word));
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    fold(add_wide(total, u64::from_ne_bytes(last)))
}

/// `sum` of words in the machine's own byte order, each of whole 16-bit words.
#[inline(always)]
pub fn sum_words<const N: usize>(words: [u64; N]) -> u16 {
    fold(words.into_iter().fold(0, add_wide))
}

/// A sum 64 bits wide and in the machine's own byte order, 16 bits wide and in the network's.
#[inline(always)]
const fn fold(total: u64) -> u16 {
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 16 & 0xffff) + (total & 0xffff) + (total >> 32);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    u16::from_be(total as u16)
}

/// `add`, 64 bits wide.
#[inline]
const fn add_wide(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u64
}

/// The sum of the pseudo-header that TCP, UDP and ICMPv6 checksums cover besides their own bytes (RFC 9293 §3.1,
/// RFC 768, RFC 8200 §8.1). `len`: bytes of the segment, datagram or message, header included; IPv6 writes it and the
/// protocol wider, which sums the same.
#[inline]
pub fn pseudo_header<A: Address>(src: A, dst: A, protocol: Protocol, len: u16) -> u16 {
    let addresses = add(sum(src.as_ref()), sum(dst.as_ref()));
    add(add(addresses, u16::from(protocol.0)), len)
}

/// What the sum of bytes grows by when `old` among them becomes `new`: ~m + m' in RFC 1624's words. Both start at an
/// even offset of what the checksum covers.
#[inline]
pub fn delta(old: &[u8], new: &[u8]) -> u16 {
    difference(sum(old), sum(new))
}

/// `delta`, from the sums of the bytes before and after.
#[inline]
pub const fn difference(before: u16, after: u16) -> u16 {
    match add(!before, after) {
        0xffff => 0,
        delta => delta,
    }
}

/// The delta that undoes `delta`.
#[inline]
pub const fn negate(delta: u16) -> u16 {
    if delta == 0 { 0 } else { !delta }
}

/// The checksum after what it covers changed by `delta`. A right checksum stays right, a wrong one wrong by the same
/// amount. Undone by `apply(_, negate(delta))` to the bit, except that 0xffff, which no sender of a non-zero header
/// can compute, may come back as the other zero.
#[inline]
#[must_use]
pub const fn apply(checksum: u16, delta: u16) -> u16 {
    // RFC 1624 §3, equation 3: HC' = ~(~HC + ~m + m').
    !add(!checksum, delta)
}

/// `apply` for UDP over IPv4 (CSM-1): 0 means that the sender computed none and stays 0; a computed 0 is sent as 0xffff
/// (RFC 768). Undone by `apply_udp(_, negate(delta))` to the bit, always.
#[inline]
#[must_use]
pub const fn apply_udp(checksum: u16, delta: u16) -> u16 {
    if checksum == 0 {
        0
    } else {
        never_zero(apply(checksum, delta))
    }
}

/// A computed checksum as UDP sends it: 0xffff for 0 (RFC 768).
#[inline]
#[must_use]
pub const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1, two bytes at a time: slow and obvious.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut total = 0u64;
        for pair in bytes.chunks(2) {
            total += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
        }
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn the_rfc_1071_example_sums_as_the_rfc_says() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn a_whole_packet_of_ones_does_not_overflow_the_sum() {
        assert_eq!(sum(&vec![0xff; 65_535]), slow_sum(&vec![0xff; 65_535]));
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn udp_without_a_checksum_stays_without_and_a_computed_zero_is_sent_as_ones() {
        // CSM-1.
        assert_eq!(apply_udp(0, 0x1234), 0);
        for checksum in 1..=u16::MAX {
            // The delta that takes this checksum to a computed zero.
            assert_eq!(apply(checksum, checksum), 0);
            assert_eq!(apply_udp(checksum, checksum), 0xffff);
        }
    }

    #[test]
    fn a_delta_of_nothing_changes_no_checksum() {
        assert_eq!(delta(&[1, 2, 3, 4], &[1, 2, 3, 4]), 0);
        assert_eq!(delta(&[1, 2, 3, 4], &[3, 4, 1, 2]), 0);
        for checksum in 0..=u16::MAX {
            assert_eq!(apply(checksum, 0), checksum);
            assert_eq!(apply_udp(checksum, 0), checksum);
        }
    }

    proptest! {
        #[test]
        fn the_fast_sum_equals_the_slow_one(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&bytes), slow_sum(&bytes));
        }

        #[test]
        fn a_right_checksum_updated_by_delta_equals_the_recomputed_one(
            mut bytes in vec(any::<u8>(), 20..120), new in any::<[u8; 12]>(), word in 0usize..4,
        ) {
            // A first byte that is not zero, as in every header: the recomputed checksum is never 0xffff.
            bytes[19] |= 1;
            let before = !sum(&bytes);
            let change = delta(&bytes[2 * word..2 * word + 12], &new);
            bytes[2 * word..2 * word + 12].copy_from_slice(&new);
            prop_assert_eq!(apply(before, change), !sum(&bytes));
            prop_assert_eq!(apply_udp(never_zero(before), change), never_zero(!sum(&bytes)));
        }

        #[test]
        fn a_wrong_checksum_stays_wrong_by_the_same_amount(
            mut bytes in vec(any::<u8>(), 20..120), new in any::<[u8; 8]>(), wrong in any::<u16>(),
        ) {
            bytes[19] |= 1;
            let error_before = add(sum(&bytes), wrong);
            let change = delta(&bytes[..8], &new);
            bytes[..8].copy_from_slice(&new);
            let error_after = add(sum(&bytes), apply(wrong, change));
            // Both are sums over at least one non-zero word, so zero is 0xffff in both.
            prop_assert_eq!(error_before, error_after);
        }

        #[test]
        fn a_delta_and_its_negation_cancel_to_the_bit(
            old in any::<[u8; 12]>(), new in any::<[u8; 12]>(), checksum in 0u16..0xffff,
        ) {
            let change = delta(&old, &new);
            prop_assert_eq!(negate(change), delta(&new, &old));
            prop_assert_eq!(apply(apply(checksum, change), negate(change)), checksum);
            let udp = never_zero(checksum);
            prop_assert_eq!(apply_udp(apply_udp(udp, change), negate(change)), udp);
        }
    }
}
