//! Small arithmetic on bitmaps and on random numbers.

/// A number below `limit`, each as likely as another if `random` is uniform.
pub(super) const fn scaled(random: u32, limit: usize) -> usize {
    ((random as u64 * limit as u64) >> 32) as usize
}

/// The first bit that is set, from `start` on and around.
pub(super) fn first_from<const N: usize>(words: &[u64; N], start: usize) -> Option<usize> {
    let (first, below) = (start / 64, (1u64 << (start % 64)) - 1);
    for i in 0..=N {
        let at = (first + i) % N;
        // The first word is looked at twice: from `start`, and at the end the rest of it.
        let bits = match i {
            0 => words[at] & !below,
            _ if i == N => words[at] & below,
            _ => words[at],
        };
        if bits != 0 {
            return Some(at * 64 + bits.trailing_zeros() as usize);
        }
    }
    None
}

/// The lowest `count` bits, or all there are.
pub(super) fn ones<const N: usize>(count: usize) -> [u64; N] {
    std::array::from_fn(|i| match count.saturating_sub(i * 64) {
        left @ 0..64 => (1 << left) - 1,
        _ => u64::MAX,
    })
}

pub(super) const fn has<const N: usize>(words: &[u64; N], bit: usize) -> bool {
    words[bit / 64] >> (bit % 64) & 1 == 1
}

pub(super) const fn set<const N: usize>(words: &mut [u64; N], bit: usize) {
    words[bit / 64] |= 1 << (bit % 64);
}

pub(super) const fn clear<const N: usize>(words: &mut [u64; N], bit: usize) {
    words[bit / 64] &= !(1 << (bit % 64));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scaling_reaches_the_first_and_the_last_and_no_further() {
        assert_eq!([0, u32::MAX].map(|random| scaled(random, 7)), [0, 6]);
    }

    #[test]
    fn ones_stop_at_the_count_and_at_the_end() {
        for count in 0..200 {
            let words: [u64; 2] = ones(count);
            assert!((0..128).all(|bit| has(&words, bit) == (bit < count)));
        }
    }

    proptest! {
        #[test]
        fn the_first_bit_from_any_start_is_the_one_a_slow_search_finds(
            bits in prop::collection::vec(0usize..192, 0..6), start in 0usize..192,
        ) {
            let mut words = [0u64; 3];
            bits.iter().for_each(|&bit| set(&mut words, bit));
            let slow = (0..192).map(|i| (start + i) % 192).find(|bit| bits.contains(bit));
            prop_assert_eq!(first_from(&words, start), slow);
            bits.iter().for_each(|&bit| clear(&mut words, bit));
            prop_assert_eq!(words, [0; 3]);
        }
    }
}
