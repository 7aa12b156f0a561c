//! The one hash of the tables: a folded 64 by 64 bit multiplication. Fixed constants, no seed: what Maglev makes of
//! it must be equal on every gateway and in every release.

/// Odd, with well spread bits (the fractional part of the golden ratio).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Keeps an all-zero input from hashing to zero (the fractional part of pi).
const OFFSET: u64 = 0x243f_6a88_85a3_08d3;

/// Both halves of a 128-bit product, folded: every input bit reaches every output bit.
pub(super) const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128) * (b as u128);
    (product >> 64) as u64 ^ product as u64
}

/// Hashes `value`; another `stream` gives an independent hash of it.
pub(super) const fn hash(value: u64, stream: u64) -> u64 {
    let once = fold(value ^ OFFSET, MULTIPLIER ^ (stream << 1));
    fold(once ^ value, MULTIPLIER)
}

/// Maps a hash evenly onto `0..n` by its high bits (Lemire, "Fast random integer generation in an interval", 2019);
/// the bias is at most n / 2^64. `n` must not be 0.
pub(super) const fn reduce(hash: u64, n: usize) -> usize {
    ((hash as u128 * n as u128) >> 64) as usize
}

/// Several words as one; a single word as itself.
pub(super) fn join(words: &[u64]) -> u64 {
    let joined = words.iter().copied().reduce(|sum, word| hash(sum, 6) ^ word);
    joined.unwrap_or_default()
}
