//! Maglev's consistent hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI
//! 2016, §3.4): every backend walks its own permutation of the table and takes, in turn, the next slot that is free.
//! The table depends on the backends' addresses and ports alone, so every gateway that knows the same backends builds
//! the same one. Losing one of N backends moves the N-th of the slots that was its own and, on average, less than as
//! many again; a single unlucky loss can move a little more.

use super::hash::{hash, join};
use super::side::Keyed;
use crate::addr::Port;

/// Slots by the number of backends: primes, so that every step walks the whole table, at least 100 per backend, so
/// that shares differ by at most 1 %. Sizes are a factor of four apart because flows move when the size changes: that
/// happens only where a set outgrows a step. The last size bounds a table to 2 MiB and a build to some tens of
/// milliseconds; sets beyond it trade evenness for that (16 slots per backend at the very end).
const SIZES: [(usize, usize); 6] = [
    (10, 1_009),
    (40, 4_001),
    (160, 16_001),
    (640, 65_537),
    (2_560, 262_147),
    (usize::MAX, 1_048_583),
];

/// Slots of the table for so many backends; none where there is nothing to choose.
pub(super) fn size(backends: usize) -> usize {
    if backends < 2 {
        return 0;
    }
    SIZES
        .iter()
        .find(|(most, _)| backends <= *most)
        .map_or(0, |&(_, size)| size)
}

/// The identity of a backend on every gateway.
pub(super) fn identity<A: Keyed>(address: A, port: Port) -> u64 {
    join(address.words(port.number().into()).as_ref())
}

/// The table for backends of these identities, at most 65,535: each slot names a position in `backends`.
pub(super) fn table(backends: &[u64]) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let size = size(backends.len());
    if size == 0 {
        return Vec::new();
    }
    let mut walks: Vec<(usize, usize)> = backends
        .iter()
        .map(|&id| {
            (
                (hash(id, 1) % size as u64) as usize,
                1 + (hash(id, 2) % (size as u64 - 1)) as usize,
            )
        })
        .collect();
    let mut table = vec![FREE; size];
    let mut left = size;
    loop {
        for (position, (at, skip)) in walks.iter_mut().enumerate() {
            // Ends: a slot is free, and the walk visits every slot.
            while table[*at] != FREE {
                *at += *skip;
                if *at >= size {
                    *at -= size;
                }
            }
            table[*at] = position as u16;
            left -= 1;
            if left == 0 {
                return table;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identities(count: usize) -> Vec<u64> {
        (0..count)
            .map(|i| identity([10, 1, (i >> 8) as u8, i as u8], Port::new(8080)))
            .collect()
    }

    #[test]
    fn every_table_size_is_a_prime_of_at_least_a_hundred_slots_per_backend() {
        for (most, size) in SIZES {
            assert!(
                (2..).take_while(|d| d * d <= size).all(|d| size % d != 0),
                "{size} is not prime"
            );
            assert!(
                most == usize::MAX || size >= 100 * most,
                "{size} is too small for {most}"
            );
        }
        assert_eq!((size(0), size(1), size(2), size(11)), (0, 0, 1_009, 4_001));
    }

    #[test]
    fn shares_of_backends_differ_by_at_most_one_slot() {
        for count in [2, 3, 7, 10, 11, 40, 160] {
            let table = table(&identities(count));
            let mut shares = vec![0usize; count];
            table.iter().for_each(|&position| shares[position as usize] += 1);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1 && *least >= 100, "{count}: {least} to {most}");
        }
    }

    /// Eisenbud §5.3: what moves beyond the lost 1/N grows with N at a fixed number of slots per backend. Fixed sets of
    /// neighbouring addresses, as pods have: the bound is statistical.
    #[test]
    fn losing_a_backend_moves_at_most_two_nths_of_the_slots_up_to_forty_and_four_nths_up_to_160() {
        for (count, nths) in [(12, 2), (20, 2), (31, 2), (40, 2), (100, 4), (160, 4)] {
            let before = identities(count);
            let old = table(&before);
            let mut moved_in_all = 0;
            for lost in 0..count {
                let mut after = before.clone();
                after.remove(lost);
                let new = table(&after);
                assert_eq!(
                    new.len(),
                    old.len(),
                    "{count}: a step of the table's size, at which nearly all moves once"
                );
                let moved = old
                    .iter()
                    .zip(&new)
                    .filter(|(o, n)| before[**o as usize] != after[**n as usize])
                    .count();
                assert!(
                    moved * count <= (nths + 1) * old.len(),
                    "{count}: {moved} of {}",
                    old.len()
                );
                moved_in_all += moved;
            }
            assert!(
                moved_in_all <= nths * old.len(),
                "{count}: {moved_in_all} of {}",
                old.len()
            );
        }
    }
}
