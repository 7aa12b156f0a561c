//! Where a key's number is found: a hash table of cache lines, of fixed size, that is asked once per packet.
//!
//! ```text
//! bucket  0        20          24         64
//!         ├ 10 tags ┼ elsewhere ┼ 10 words ┤
//! ```
//!
//! A key may live in either of two buckets that its hash names; its tag (16 more bits of the hash, 0 for an empty
//! place) tells it from its neighbours without reading them. It goes into the first bucket if there is room, so a lookup
//! reads one line, and `elsewhere` says how many keys of this bucket had to go into their second: only while that is not
//! zero is a second line read. If both are full, a key that lives in one of them moves to its own other bucket.
//!
//! Nothing is left behind when a key goes (no tombstones), nothing ever grows, and the table does not know what its words
//! mean: whoever asks compares the full key.

use std::io;

use bytemuck::{Pod, Zeroable};

use super::bits::scaled;
use super::group::{self, WIDTH};
use super::hash::Hash;
use crate::prefetch::prefetch;
use crate::segment::Slab;

/// One cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; WIDTH],
    elsewhere: u32,
    words: [u32; WIDTH],
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// Buckets of words.
pub(super) struct Table {
    buckets: Slab<Bucket>,
}

/// What `first` says instead of a word where the table has no such key: no word that is stored.
pub(super) const ABSENT: u32 = u32::MAX;
/// What `first` says where only the second bucket can have the key: no word that is stored.
pub(super) const ELSEWHERE: u32 = u32::MAX - 1;

/// Both buckets of a key are full, and so are the other buckets of all keys in them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Table {
    /// Room for `keys` keys. Three places for two keys: at two thirds full, one key in 45 lives elsewhere, and none is
    /// refused (see the load test). Errors: ENOMEM.
    pub(super) fn new(keys: usize) -> io::Result<Self> {
        let places = keys.checked_mul(3).ok_or(io::ErrorKind::OutOfMemory)?.div_ceil(2);
        // Two at least: every key has two buckets.
        Ok(Self {
            buckets: Slab::zeroed(places.div_ceil(WIDTH).max(2))?,
        })
    }

    /// Bytes of memory taken.
    pub(super) fn bytes(&self) -> usize {
        self.buckets.bytes()
    }

    /// Brings in the line that `find` and `first` read first.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: Hash) {
        prefetch(&self.buckets[self.primary(hash)]);
    }

    /// What the first bucket says of a hash: a word, which may be another's with the same tag, `ABSENT` or `ELSEWHERE`. If
    /// a second bucket must be read, it begins to come in.
    #[inline(always)]
    pub(super) fn first(&self, hash: Hash) -> u32 {
        let bucket = &self.buckets[self.primary(hash)];
        let matching = group::matching(&bucket.tags, tag(hash));
        if matching != 0 {
            return bucket.words[matching.trailing_zeros() as usize];
        }
        if bucket.elsewhere == 0 {
            return ABSENT;
        }
        prefetch(&self.buckets[self.alternate(hash)]);
        ELSEWHERE
    }

    /// The word stored under `hash` for which `is` holds.
    #[inline(always)]
    pub(super) fn find(&self, hash: Hash, is: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = self.primary(hash);
        loop {
            let bucket = &self.buckets[at];
            for place in bucket.places(tag(hash)) {
                if is(bucket.words[place]) {
                    return Some(bucket.words[place]);
                }
            }
            let next = self.alternate(hash);
            if bucket.elsewhere == 0 || at == next {
                return None;
            }
            at = next;
        }
    }

    /// Stores `word`, which must not be stored yet, under `hash`; `hash_of` says under which hash another word is.
    pub(super) fn insert(
        &mut self,
        hash: Hash,
        word: u32,
        hash_of: impl Fn(u32) -> Hash,
    ) -> Result<(), NoRoom> {
        debug_assert!(word < ELSEWHERE);
        let (primary, alternate) = (self.primary(hash), self.alternate(hash));
        for (at, make_room) in [
            (primary, false),
            (alternate, false),
            (primary, true),
            (alternate, true),
        ] {
            let made = make_room && self.make_room(at, &hash_of);
            if (made || !make_room) && self.buckets[at].put(tag(hash), word) {
                self.buckets[primary].elsewhere += u32::from(at == alternate);
                return Ok(());
            }
        }
        Err(NoRoom)
    }

    /// Forgets `word`, stored under `hash`. Whether it was there.
    pub(super) fn remove(&mut self, hash: Hash, word: u32) -> bool {
        let (primary, alternate) = (self.primary(hash), self.alternate(hash));
        if self.buckets[primary].take(tag(hash), word) {
            return true;
        }
        let taken = self.buckets[alternate].take(tag(hash), word);
        self.buckets[primary].elsewhere -= u32::from(taken);
        taken
    }

    /// Moves one key of bucket `at` to its other bucket, if any can.
    fn make_room(&mut self, at: usize, hash_of: &impl Fn(u32) -> Hash) -> bool {
        for place in 0..WIDTH {
            let Bucket { tags, words, .. } = self.buckets[at];
            let hash = hash_of(words[place]);
            let primary = self.primary(hash);
            let at_home = at == primary;
            let other = if at_home { self.alternate(hash) } else { primary };
            if self.buckets[other].put(tags[place], words[place]) {
                self.buckets[at].tags[place] = EMPTY;
                let elsewhere = &mut self.buckets[primary].elsewhere;
                *elsewhere = if at_home { *elsewhere + 1 } else { *elsewhere - 1 };
                return true;
            }
        }
        false
    }

    /// The first bucket: the hash's low half, scaled to the number of buckets.
    #[inline(always)]
    fn primary(&self, hash: Hash) -> usize {
        scaled(hash.0 as u32, self.buckets.len())
    }

    /// The second: the high half, and the next bucket where both halves say the same.
    #[inline(always)]
    fn alternate(&self, hash: Hash) -> usize {
        let at = scaled((hash.0 >> 32) as u32, self.buckets.len());
        if at != self.primary(hash) {
            at
        } else if at + 1 < self.buckets.len() {
            at + 1
        } else {
            0
        }
    }
}

/// No key has this tag.
const EMPTY: u16 = 0;

/// From the low bits of both halves, which name the buckets by their high bits: within one bucket all 16 still vary.
#[inline(always)]
fn tag(hash: Hash) -> u16 {
    (hash.0 as u16 ^ (hash.0 >> 32) as u16).max(1)
}

impl Bucket {
    /// Places that hold `tag`.
    #[inline(always)]
    fn places(&self, tag: u16) -> impl Iterator<Item = usize> + use<> {
        let mut matching = group::matching(&self.tags, tag);
        std::iter::from_fn(move || {
            let place = matching.trailing_zeros() as usize;
            matching &= matching.wrapping_sub(1);
            (place < WIDTH).then_some(place)
        })
    }

    fn put(&mut self, tag: u16, word: u32) -> bool {
        let Some(place) = self.places(EMPTY).next() else {
            return false;
        };
        self.tags[place] = tag;
        self.words[place] = word;
        true
    }

    fn take(&mut self, tag: u16, word: u32) -> bool {
        let Some(place) = self.places(tag).find(|&place| self.words[place] == word) else {
            return false;
        };
        self.tags[place] = EMPTY;
        true
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use proptest::prelude::*;

    /// Deterministic well-mixed hashes (SplitMix64's finaliser): word n is stored under the nth.
    fn mixed(n: u32) -> Hash {
        let mut x = (u64::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Hash(x ^ (x >> 31))
    }

    impl Table {
        /// Recounts every bucket's `elsewhere` from the words.
        fn check(&self, hash_of: impl Fn(u32) -> Hash) {
            let mut elsewhere = vec![0; self.buckets.len()];
            for (at, bucket) in self.buckets.iter().enumerate() {
                for place in (0..WIDTH).filter(|&i| bucket.tags[i] != EMPTY) {
                    let hash = hash_of(bucket.words[place]);
                    assert_eq!(bucket.tags[place], tag(hash));
                    let primary = self.primary(hash);
                    assert!(
                        at == primary || at == self.alternate(hash),
                        "a word in a bucket it does not belong to"
                    );
                    elsewhere[primary] += u32::from(at != primary);
                }
            }
            assert!(self.buckets.iter().map(|b| b.elsewhere).eq(elsewhere));
        }
    }

    proptest! {
        #[test]
        fn a_table_holds_exactly_what_a_hash_map_holds(
            steps in prop::collection::vec((any::<bool>(), 0u32..90, any::<bool>()), 1..600),
            narrow: bool,
        ) {
            // 4 buckets of 10 for up to 90 words: often full. `narrow` hashes collide in tag and bucket on purpose.
            let hash_of = |n: u32| if narrow { mixed(n % 7) } else { mixed(n) };
            let mut table = Table::new(26).unwrap();
            let mut oracle = HashMap::new();
            for (insert, n, _) in steps {
                if insert && !oracle.contains_key(&n) {
                    if table.insert(hash_of(n), n, hash_of).is_ok() {
                        oracle.insert(n, ());
                    }
                } else {
                    prop_assert_eq!(table.remove(hash_of(n), n), oracle.remove(&n).is_some());
                }
                table.check(hash_of);
            }
            for n in 0..90 {
                let known = oracle.contains_key(&n).then_some(n);
                prop_assert_eq!(table.find(hash_of(n), |word| word == n), known);
            }
        }
    }

    #[test]
    fn nothing_is_refused_up_to_the_promised_number_of_keys() {
        const KEYS: u32 = 200_000;
        let mut table = Table::new(KEYS as usize).unwrap();
        for n in 0..KEYS {
            assert_eq!(table.insert(mixed(n), n, mixed), Ok(()));
            if n == KEYS * 3 / 4 {
                assert!(table.living_elsewhere() * 200 < n, "over 0.5 % elsewhere at 75 %");
            }
        }
        assert!(
            table.living_elsewhere() * 40 < KEYS,
            "over 2.5 % elsewhere when full"
        );
        table.check(mixed);
        assert!((0..KEYS).all(|n| table.find(mixed(n), |word| word == n) == Some(n)));
    }

    #[test]
    fn the_first_refusal_comes_when_nine_of_ten_places_are_taken() {
        let mut table = Table::new(100_000).unwrap();
        let places = table.buckets.len() * WIDTH;
        let refused = (0..)
            .find(|&n| table.insert(mixed(n), n, mixed).is_err())
            .unwrap() as usize;
        assert!(refused * 10 > places * 9, "{refused} of {places}");
    }

    impl Table {
        fn living_elsewhere(&self) -> u32 {
            self.buckets.iter().map(|b| b.elsewhere).sum()
        }
    }
}
