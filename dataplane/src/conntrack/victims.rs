//! Which flows may be given up for new ones (CT-18), by the reason why: a bit for each entry, and a bit for each word of
//! them that is not zero. Finding the next one costs the same whatever lies between: a million established flows in a row
//! are 245 words.
//!
//! Bits change when a flow's class does, which is a few times in its life, and never for the bulk of its packets.

use std::io;

use super::state::{Dispensable, State};
use crate::segment::Slab;

/// Entries, by class.
pub(super) struct Victims([Set; 3]);

/// A set of entries, gone through in a circle.
struct Set {
    words: Slab<u64>,
    /// Bit `i`: word `i` is not zero.
    summary: Slab<u64>,
    /// Where the next search begins.
    hand: usize,
}

impl Victims {
    /// None of `capacity` entries. Errors: ENOMEM.
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self([
            Set::new(capacity)?,
            Set::new(capacity)?,
            Set::new(capacity)?,
        ]))
    }

    /// Entry `at` was in one state and is in another.
    #[inline]
    pub(super) fn moved(&mut self, at: usize, before: State, after: State) {
        let (before, after) = (before.dispensable(), after.dispensable());
        if before == after {
            return;
        }
        if let Some(class) = before {
            self.0[class as usize].remove(at);
        }
        if let Some(class) = after {
            self.0[class as usize].add(at);
        }
    }

    /// The next of a class, going around; the one after it comes next time.
    pub(super) fn next(&mut self, class: Dispensable) -> Option<usize> {
        self.0[class as usize].next()
    }

    /// Bytes of memory taken.
    pub(super) fn bytes(&self) -> usize {
        self.0
            .iter()
            .map(|set| set.words.bytes() + set.summary.bytes())
            .sum()
    }
}

impl Set {
    fn new(capacity: usize) -> io::Result<Self> {
        let words = capacity.div_ceil(64);
        Ok(Self {
            words: Slab::zeroed(words)?,
            summary: Slab::zeroed(words.div_ceil(64))?,
            hand: 0,
        })
    }

    fn add(&mut self, at: usize) {
        self.words[at / 64] |= 1 << (at % 64);
        self.summary[at / 4_096] |= 1 << (at / 64 % 64);
    }

    fn remove(&mut self, at: usize) {
        self.words[at / 64] &= !(1 << (at % 64));
        if self.words[at / 64] == 0 {
            self.summary[at / 4_096] &= !(1 << (at / 64 % 64));
        }
    }

    fn next(&mut self) -> Option<usize> {
        let found = self.from(self.hand).or_else(|| self.from(0))?;
        self.hand = if found + 1 < self.words.len() * 64 {
            found + 1
        } else {
            0
        };
        Some(found)
    }

    /// The first from `start` on.
    fn from(&self, start: usize) -> Option<usize> {
        let word = start / 64;
        let rest = self.words[word] >> (start % 64);
        if rest != 0 {
            return Some(start + rest.trailing_zeros() as usize);
        }
        let mut group = (word + 1) / 64;
        // Of the first group, only the words behind `word`.
        let mut words = self.summary.get(group)? >> ((word + 1) % 64) << ((word + 1) % 64);
        while words == 0 {
            group += 1;
            words = *self.summary.get(group)?;
        }
        let word = group * 64 + words.trailing_zeros() as usize;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_next_is_the_one_that_a_sorted_set_finds(
            steps in prop::collection::vec((0usize..9_000, 0u8..3), 1..200), dense: bool,
        ) {
            let mut set = Set::new(9_000).unwrap();
            let (mut oracle, mut hand) = (BTreeSet::new(), 0);
            for (at, step) in steps {
                let at = if dense { at % 130 } else { at };
                match step {
                    0 => {
                        set.add(at);
                        oracle.insert(at);
                    }
                    1 => {
                        set.remove(at);
                        oracle.remove(&at);
                    }
                    _ => {
                        let next = oracle.range(hand..).next().or_else(|| oracle.iter().next()).copied();
                        prop_assert_eq!(set.next(), next);
                        hand = next.map_or(hand, |next| next + 1);
                    }
                }
            }
        }
    }

    #[test]
    fn the_last_entry_of_any_capacity_is_found_and_left_behind() {
        for capacity in [1, 63, 64, 65, 4_096, 4_097] {
            let mut set = Set::new(capacity).unwrap();
            assert_eq!(set.next(), None);
            set.add(capacity - 1);
            assert_eq!((set.next(), set.next()), (Some(capacity - 1), Some(capacity - 1)));
            set.remove(capacity - 1);
            assert_eq!(set.next(), None);
        }
    }
}
