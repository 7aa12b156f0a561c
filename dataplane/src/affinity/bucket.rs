//! One bucket of the memory: the clients that hash to it, in two cache lines, shared by all workers without locks.
//!
//! Takes  what names a client here, and how to judge and to pick its endpoint.     Gives  the endpoint, to all alike.
//! Never  waits for another worker; reads no clock.
//!
//! Two workers that open flows of one client at once must agree (AFF-1), and which of the bucket's entries a new client
//! gets depends on when one looks. So every change of the bucket is decided by one compare-and-swap of one word,
//! `newest`, which says the whole change: who, where to, and in which entry. Whoever comes first carries it out, before
//! anything else; a second change can only follow when the first has been carried out. A worker that stops between the
//! two holds nobody up.
//!
//! Orderings: an entry is carried out with release and read with acquire, so that who sees it sees that its time was
//! noted before. `newest` is changed with both, so that who notes a time for a change has the change before it.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::index::BackendIndex;
use crate::tick::Tick;

/// A client's endpoint: 24 bits of what names the client, 24 of the backend's slot, 8 of its generation, 4 of the entry
/// it is in, 4 that differ from one change of a bucket to the next. 0 is nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const NOBODY: Self = Self(0);

    const fn new(tag: Tag, backend: Occupant, way: usize, turn: u64) -> Self {
        let generation = (backend.generation as u64) & 0xff;
        let slot = (backend.slot.0 as u64) & 0xff_ffff;
        Self((tag.0 as u64) << 40 | slot << 16 | generation << 8 | (way as u64) << 4 | turn & 0xf)
    }

    const fn is_of(self, tag: Tag) -> bool {
        self.0 >> 40 == tag.0 as u64
    }

    const fn slot(self) -> BackendIndex {
        BackendIndex((self.0 >> 16) as u32 & 0xff_ffff)
    }

    /// Whether the occupant of its slot is still the one it means. Of 32 bits of a generation 8 are kept: should a slot
    /// have changed hands a multiple of 256 times, its clients follow it to another endpoint of the same set.
    const fn means(self, generation: u32) -> bool {
        (self.0 >> 8) as u8 == generation as u8
    }

    const fn way(self) -> usize {
        (self.0 >> 4) as usize & 0xf
    }

    const fn turn(self) -> u64 {
        self.0 & 0xf
    }
}

/// What names a client in its bucket, 24 bits, not 0. Where two share one, they share their endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u32);

impl Tag {
    pub(super) const fn new(hash: u64) -> Self {
        let bits = (hash & 0xff_ffff) as u32;
        Self(if bits == 0 { 1 } else { bits })
    }
}

/// A backend's slot and who is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// The slot.
    pub slot: BackendIndex,
    /// The generation of its occupant.
    pub generation: u32,
}

impl Occupant {
    /// Slots that an entry has room for; tables are smaller.
    const SLOTS: u32 = 1 << 24;
}

/// Where a new flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The backend.
    pub backend: Occupant,
    /// Another client was forgotten before its time, to be counted (AFF-7).
    pub evicted: bool,
}

/// See the module.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Bucket<const WAYS: usize> {
    newest: AtomicU64,
    entries: [AtomicU64; WAYS],
    /// When each entry's client last opened a flow.
    last: [AtomicU32; WAYS],
}

impl<const WAYS: usize> Default for Bucket<WAYS> {
    fn default() -> Self {
        const { assert!(WAYS > 0 && WAYS <= 16, "an entry's number has 4 bits") };
        Self {
            newest: AtomicU64::new(0),
            entries: std::array::from_fn(|_| AtomicU64::new(0)),
            last: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl<const WAYS: usize> Bucket<WAYS> {
    /// The endpoint of a new flow of this client: the remembered one, if its last new flow is less than `timeout` ticks
    /// ago and it is in the set still (`occupant` gives the generation of a slot that is in the set); else the one that
    /// `pick` picks, which is then remembered in its place. `None` if nothing is picked; that refreshes nothing.
    pub(super) fn choose(
        &self,
        tag: Tag,
        timeout: u32,
        now: Tick,
        occupant: impl Fn(BackendIndex) -> Option<u32>,
        pick: impl FnOnce() -> Option<Occupant>,
    ) -> Option<Choice> {
        let (mut pick, mut picked) = (Some(pick), None);
        // Goes round again only where another worker has changed the bucket meanwhile.
        loop {
            let newest = Entry(self.newest.load(Ordering::Acquire));
            self.carry_out(newest, now);
            let known = (0..WAYS)
                .map(|way| (way, self.entry(way)))
                .find(|(_, entry)| entry.is_of(tag));
            if let Some((way, entry)) = known
                && self.age(way, now) < timeout
                && let Some(generation) = occupant(entry.slot()).filter(|&g| entry.means(g))
            {
                // If not, the age may be that of who is about to get this entry.
                if self.newest.load(Ordering::Acquire) == newest.0 {
                    self.note(way, now);
                    let slot = entry.slot();
                    return Some(Choice {
                        backend: Occupant { slot, generation },
                        evicted: false,
                    });
                }
                continue;
            }
            if let Some(pick) = pick.take() {
                picked = Some(pick()?);
            }
            let backend = picked?;
            if backend.slot.0 >= Occupant::SLOTS {
                return Some(Choice {
                    backend,
                    evicted: false,
                });
            }
            let way = known.map_or_else(|| self.least_recent(now), |(way, _)| way);
            let evicted = known.is_none() && self.entry(way) != Entry::NOBODY && self.age(way, now) < timeout;
            let change = Entry::new(tag, backend, way, newest.turn() + 1);
            let decided =
                self.newest
                    .compare_exchange(newest.0, change.0, Ordering::AcqRel, Ordering::Relaxed);
            if decided.is_ok() {
                self.carry_out(change, now);
                return Some(Choice { backend, evicted });
            }
        }
    }

    /// Writes the newest change to its entry, unless that has been done.
    fn carry_out(&self, newest: Entry, now: Tick) {
        let way = newest.way();
        let old = self.entry(way);
        // A newer one was decided by someone who had seen this one carried out.
        if newest == Entry::NOBODY || old == newest || self.newest.load(Ordering::Acquire) != newest.0 {
            return;
        }
        if old == Entry::NOBODY {
            // No time was noted yet that this one could be compared with.
            self.last[way].store(now.0, Ordering::Release);
        } else {
            self.note(way, now);
        }
        // Fails where someone else has done it.
        let _ = self.entries[way].compare_exchange(old.0, newest.0, Ordering::Release, Ordering::Relaxed);
    }

    fn entry(&self, way: usize) -> Entry {
        Entry(self.entries[way].load(Ordering::Acquire))
    }

    fn age(&self, way: usize, now: Tick) -> u32 {
        now.since(Tick(self.last[way].load(Ordering::Acquire)))
    }

    /// Notes a new flow; not if one as new was noted, which spares the others' caches, too.
    fn note(&self, way: usize, now: Tick) {
        if self.age(way, now) > 0 {
            self.last[way].store(now.0, Ordering::Release);
        }
    }

    fn least_recent(&self, now: Tick) -> usize {
        let rank = |&way: &usize| {
            let nobody = self.entry(way) == Entry::NOBODY;
            (nobody, self.age(way, now))
        };
        (0..WAYS).max_by_key(rank).unwrap_or(0)
    }
}
