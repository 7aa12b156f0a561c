//! A fixed number of equal entries in mapped memory, handed out by number and taken back: flows, port blocks.
//!
//! Free entries are chained through themselves, last freed first used: the memory that is warm stays warm, and what was
//! never used is never touched, so the kernel need not back it.

use std::io;
use std::ops::{Deref, DerefMut};

use bytemuck::AnyBitPattern;

use crate::prefetch::prefetch;
use crate::segment::Slab;

/// An entry with room for the chain of free entries: number of the next free one plus one, 0 at the end. The room may
/// serve for something else while the entry is in use.
pub(super) trait Linked: AnyBitPattern {
    /// What `set_link` stored; 0 in a zeroed entry.
    fn link(&self) -> u32;
    /// Called only on a zeroed entry.
    fn set_link(&mut self, link: u32);
}

/// The entries.
#[derive(Debug)]
pub(super) struct Pool<T> {
    entries: Slab<T>,
    free: u32,
    used: usize,
    high_water: usize,
}

/// How full something with a limit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use now.
    pub used: usize,
    /// Most that can be.
    pub limit: usize,
    /// Most that ever were.
    pub high_water: usize,
}

impl<T: Linked> Pool<T> {
    /// `limit` entries. Errors: ENOMEM.
    pub(super) fn new(limit: usize) -> io::Result<Self> {
        Ok(Self {
            entries: Slab::zeroed(limit)?,
            free: 0,
            used: 0,
            high_water: 0,
        })
    }

    /// Over entries that are as they are: none counts as used before `recount`.
    pub(super) const fn empty(entries: Slab<T>) -> Self {
        Self {
            entries,
            free: 0,
            used: 0,
            high_water: 0,
        }
    }

    /// Counts the entries below `end` that `is_used`, and chains the others, which must be zeroed; those from `end` on are
    /// zeroed, too.
    pub(super) fn recount(&mut self, end: usize, is_used: impl Fn(&T) -> bool) {
        (self.free, self.used, self.high_water) = (0, 0, end);
        for at in (0..end).rev() {
            if is_used(&self.entries[at]) {
                self.used += 1;
            } else {
                self.entries[at].set_link(self.free);
                self.free = at as u32 + 1;
            }
        }
    }

    /// Puts `entry` into a free place and says which; `None` if there is none.
    pub(super) fn insert(&mut self, entry: T) -> Option<u32> {
        let at = match self.free {
            // The chain is empty, so every entry that was ever used is in use now.
            0 if self.used < self.entries.len() => self.used as u32,
            0 => return None,
            link => link - 1,
        };
        let place = &mut self.entries[at as usize];
        self.free = place.link();
        *place = entry;
        // The next one to be taken, whose link is read then.
        if let Some(next) = self.entries.get(self.free.wrapping_sub(1) as usize) {
            prefetch(next);
        }
        self.used += 1;
        self.high_water = self.high_water.max(self.used);
        Some(at)
    }

    /// Frees entry `at`, which must be in use, and zeroes it.
    pub(super) fn remove(&mut self, at: u32) -> T {
        let place = &mut self.entries[at as usize];
        let entry = std::mem::replace(place, T::zeroed());
        place.set_link(std::mem::replace(&mut self.free, at + 1));
        self.used -= 1;
        entry
    }

    /// Every entry that was ever used, free ones zeroed but for their link.
    pub(super) fn touched(&self) -> &[T] {
        &self.entries[..self.high_water]
    }

    /// Whether no entry is free.
    #[inline(always)]
    pub(super) fn is_full(&self) -> bool {
        self.used == self.entries.len()
    }

    /// How full.
    pub(super) fn usage(&self) -> Usage {
        Usage {
            used: self.used,
            limit: self.entries.len(),
            high_water: self.high_water,
        }
    }

    /// Bytes of memory taken.
    pub(super) fn bytes(&self) -> usize {
        self.entries.bytes()
    }
}

impl<T: Linked> Deref for Pool<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.entries
    }
}

impl<T: Linked> DerefMut for Pool<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.entries
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    #[repr(C)]
    struct Entry {
        value: u32,
        link: u32,
    }

    impl Linked for Entry {
        fn link(&self) -> u32 {
            self.link
        }

        fn set_link(&mut self, link: u32) {
            self.link = link;
        }
    }

    #[test]
    fn entries_are_handed_out_once_run_out_and_come_back() {
        let mut pool = Pool::new(100).unwrap();
        let fill = |pool: &mut Pool<Entry>| -> BTreeSet<u32> {
            std::iter::from_fn(|| pool.insert(Entry { value: 9, link: 77 })).collect()
        };
        assert_eq!(fill(&mut pool).len(), 100);
        for at in (0..100).step_by(3) {
            assert_eq!(pool.remove(at).value, 9);
        }
        assert_eq!(
            pool.usage(),
            Usage {
                used: 66,
                limit: 100,
                high_water: 100
            }
        );
        assert_eq!(fill(&mut pool), (0..100).step_by(3).collect());
        assert_eq!(pool.usage().used, 100);
    }

    #[test]
    fn memory_that_was_never_used_is_not_touched() {
        let mut pool = Pool::new(1000).unwrap();
        for _ in 0..50 {
            let (a, b) = (
                pool.insert(Entry { value: 1, link: 0 }),
                pool.insert(Entry { value: 2, link: 0 }),
            );
            pool.remove(a.unwrap());
            pool.remove(b.unwrap());
        }
        assert_eq!(pool.touched().len(), 2);
    }
}
