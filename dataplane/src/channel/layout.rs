#![allow(unsafe_code)]
//! Where things lie in the segment, and the segment as what it is: words that two processes read and write at will.
//!
//! Every access to the segment, by either side, is an atomic access to an aligned 64-bit word: whatever the other
//! process does, there is no data race, only surprising numbers.
//!
//! ```text
//! word    0   header: magic, version, layout hash, ring slots, counter pages; written before hand-over
//! word   64   ring to the dataplane: messages written        (control's word)
//! word   80   ring to the dataplane: messages read           (the dataplane's word)
//! word   96   ring to control: messages written              (the dataplane's word)
//! word  112   ring to control: messages read                 (control's word)
//! word  512   slots of the ring to the dataplane, 32 words each
//!             slots of the ring to control
//!             counter pages, 5,120 words each, one per worker: (each the word of its worker)
//!             512 of counters, then 16 for each NIC port
//! ```
//!
//! The four ring words stand two cache lines apart, since processors fetch lines in pairs.

use std::io;
use std::ops::{Deref, Range};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::segment::Region;

use super::codec::SLOT;
use super::fingerprint::layout_hash;

/// "sluice" and the kind of segment, as bytes read in a hex dump.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"sluicech");
/// Raised by whoever changes what the words or messages mean.
pub const VERSION: u64 = 1;

/// Words of a slot.
pub(super) const SLOT_WORDS: usize = SLOT / 8;
/// Words of the header, and of a worker's counters: 4 KiB.
pub(crate) const PAGE_WORDS: usize = 512;
/// Words of a counter page, 40 KiB: the counters, then what NIC ports' drivers count.
pub(crate) const COUNTER_WORDS: usize = 10 * PAGE_WORDS;
/// Fewest slots of a ring: the slots of one ring fill whole pages.
pub const RING_SLOTS_MIN: usize = 16;
/// Most slots of a ring, 16 MiB: more than a ring a batch behind can use, and a bound on what a header may claim.
pub const RING_SLOTS_MAX: usize = 1 << 16;
/// Most counter pages: a `WorkerIndex` is a byte.
pub const WORKERS_MAX: usize = 256;

/// Memory of 64-bit words that others may read and write at any time: part of a segment, or of this process's own
/// memory where a test or a dataplane without control needs no segment. Clones share the memory.
#[derive(Clone, Debug)]
pub(crate) struct SharedWords {
    memory: Arc<Memory>,
    range: Range<usize>,
}

#[derive(Debug)]
enum Memory {
    Mapped(Region),
    Own(Box<[AtomicU64]>),
}

impl SharedWords {
    /// All words of a mapped segment.
    pub(crate) fn mapped(region: Region) -> Self {
        let range = 0..region.len() / 8;
        Self {
            memory: Arc::new(Memory::Mapped(region)),
            range,
        }
    }

    /// `len` words of this process's own memory, 0.
    pub(crate) fn own(len: usize) -> Self {
        let words = (0..len).map(|_| AtomicU64::new(0)).collect();
        Self {
            memory: Arc::new(Memory::Own(words)),
            range: 0..len,
        }
    }

    /// A part of these words; `None` beyond their end.
    pub(crate) fn part(&self, range: Range<usize>) -> Option<Self> {
        let (start, end) = (
            self.range.start.checked_add(range.start)?,
            self.range.start.checked_add(range.end)?,
        );
        (start <= end && end <= self.range.end).then(|| Self {
            memory: self.memory.clone(),
            range: start..end,
        })
    }

    /// The memfd to hand over.
    fn memfd(&self) -> Option<BorrowedFd<'_>> {
        match &*self.memory {
            Memory::Mapped(region) => region.memfd(),
            Memory::Own(_) => None,
        }
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let all = match &*self.memory {
            // SAFETY: the region holds len() / 8 whole words from a page-aligned base, mapped readable and writable
            // until the Arc that `self` holds is gone, and its file cannot shrink (sealed). Any bits are a u64. All
            // accesses through a shared segment, in this process and in honest others, are to such atomics, so
            // concurrent writes are atomic too; memory that others write non-atomically is still only memory that
            // changes between two of our loads.
            Memory::Mapped(region) => unsafe {
                std::slice::from_raw_parts(region.base().as_ptr().cast::<AtomicU64>(), region.len() / 8)
            },
            Memory::Own(words) => words,
        };
        &all[self.range.clone()]
    }
}

/// The one way of each ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ToDataplane,
    ToControl,
}

impl Way {
    /// Words (written, read) of this ring.
    const fn cursors(self) -> (usize, usize) {
        match self {
            Self::ToDataplane => (64, 80),
            Self::ToControl => (96, 112),
        }
    }
}

/// The sizes that the header states and the rest of the layout follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) ring_slots: usize,
    pub(super) workers: usize,
}

impl Geometry {
    /// Within the bounds that let every sum below fit.
    const fn is_sound(self) -> bool {
        self.ring_slots.is_power_of_two()
            && self.ring_slots >= RING_SLOTS_MIN
            && self.ring_slots <= RING_SLOTS_MAX
            && self.workers <= WORKERS_MAX
    }

    const fn slots(self, way: Way) -> Range<usize> {
        let words = self.ring_slots * SLOT_WORDS;
        match way {
            Way::ToDataplane => PAGE_WORDS..PAGE_WORDS + words,
            Way::ToControl => PAGE_WORDS + words..PAGE_WORDS + 2 * words,
        }
    }

    const fn counters(self) -> Range<usize> {
        let start = self.slots(Way::ToControl).end;
        start..start + self.workers * COUNTER_WORDS
    }
}

/// Why a segment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Not a segment of this kind.
    #[error("the segment does not begin with Sluice's magic number: the socket belongs to another program")]
    Magic,
    /// Made by another version.
    #[error(
        "the dataplane speaks channel version {theirs} (layout {their_hash:016x}), this program version {ours} \
         (layout {our_hash:016x}): run both programs from one release"
    )]
    Version {
        /// This program's version.
        ours: u64,
        /// The segment's.
        theirs: u64,
        /// This program's layout hash.
        our_hash: u64,
        /// The segment's.
        their_hash: u64,
    },
    /// The header's sizes do not fit each other or the segment.
    #[error(
        "the segment's header states {ring_slots} ring slots and {workers} counter pages, which cannot be"
    )]
    Geometry {
        /// As stated.
        ring_slots: u64,
        /// As stated.
        workers: u64,
    },
    /// Memory could not be had or mapped.
    #[error("the shared segment cannot be mapped: {0}")]
    Map(#[from] io::Error),
}

/// The whole segment, laid out.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    words: SharedWords,
    geometry: Geometry,
}

impl Segment {
    /// A new segment with its header filled in.
    pub(super) fn create(geometry: Geometry) -> Result<Self, LayoutError> {
        if !geometry.is_sound() {
            let Geometry { ring_slots, workers } = geometry;
            return Err(LayoutError::Geometry {
                ring_slots: ring_slots as u64,
                workers: workers as u64,
            });
        }
        let words = SharedWords::mapped(Region::shared("sluice-channel", geometry.counters().end * 8)?);
        let segment = Self { words, geometry };
        segment.prepare();
        Ok(segment)
    }

    /// Writes the header and sets the ring words to 0: before each hand-over, while nobody else uses them. The
    /// control before may have written anything anywhere.
    pub(super) fn prepare(&self) {
        let Geometry { ring_slots, workers } = self.geometry;
        let header = [MAGIC, VERSION, layout_hash(), ring_slots as u64, workers as u64];
        let values = header.into_iter().chain(std::iter::repeat(0));
        for (word, value) in self.words.iter().take(PAGE_WORDS).zip(values) {
            // Relaxed: the hand-over of the segment through the socket orders these before any access of control's.
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Maps a segment that the dataplane handed over, and checks that both mean the same by it.
    pub(super) fn adopt(memfd: OwnedFd) -> Result<Self, LayoutError> {
        let size = rustix::fs::fstat(&memfd).map_err(io::Error::from)?.st_size;
        let size = usize::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let words = SharedWords::mapped(Region::adopt(memfd, size)?);
        let word = |i: usize| words[i].load(Ordering::Relaxed); // as in `prepare`
        if word(0) != MAGIC {
            return Err(LayoutError::Magic);
        }
        let (theirs, their_hash, our_hash) = (word(1), word(2), layout_hash());
        if (theirs, their_hash) != (VERSION, our_hash) {
            return Err(LayoutError::Version {
                ours: VERSION,
                theirs,
                our_hash,
                their_hash,
            });
        }
        let (ring_slots, workers) = (word(3), word(4));
        let bad = LayoutError::Geometry { ring_slots, workers };
        let (Ok(slots), Ok(pages)) = (usize::try_from(ring_slots), usize::try_from(workers)) else {
            return Err(bad);
        };
        let geometry = Geometry {
            ring_slots: slots,
            workers: pages,
        };
        if !geometry.is_sound() || geometry.counters().end > words.len() {
            return Err(bad);
        }
        Ok(Self { words, geometry })
    }

    /// Sizes.
    pub(super) const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The memfd to hand over; `None` never for a segment made by `create`.
    pub(super) fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.words.memfd()
    }

    /// Both words of a ring (written, read).
    pub(super) fn cursor_words(&self, way: Way) -> (&AtomicU64, &AtomicU64) {
        let (written, read) = way.cursors();
        (&self.words[written], &self.words[read])
    }

    /// The words of slot `slot` of a ring.
    pub(super) fn slot(&self, way: Way, slot: usize) -> &[AtomicU64] {
        let start = self.geometry.slots(way).start + slot * SLOT_WORDS;
        &self.words[start..start + SLOT_WORDS]
    }

    /// All counter pages.
    pub(super) fn counter_words(&self) -> SharedWords {
        let range = self.geometry.counters();
        SharedWords {
            memory: self.words.memory.clone(),
            range,
        }
    }

    /// Any word, to corrupt it.
    #[cfg(test)]
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.words
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        ring_slots: 16,
        workers: 3,
    };

    fn handed_over(segment: &Segment) -> OwnedFd {
        segment
            .memfd()
            .expect("made")
            .try_clone_to_owned()
            .expect("a descriptor")
    }

    #[test]
    fn an_adopted_segment_has_the_geometry_and_the_words_of_its_maker() {
        let made = Segment::create(GEOMETRY).unwrap();
        let adopted = Segment::adopt(handed_over(&made)).unwrap();
        assert_eq!(adopted.geometry(), GEOMETRY);
        made.slot(Way::ToControl, 15)[31].store(7, Ordering::Relaxed);
        assert_eq!(adopted.slot(Way::ToControl, 15)[31].load(Ordering::Relaxed), 7);
        assert_eq!(adopted.counter_words().len(), 3 * COUNTER_WORDS);
        assert!(
            adopted
                .counter_words()
                .iter()
                .all(|w| w.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn a_header_that_lies_is_refused_with_its_reason() {
        let refused = |word: usize, value: u64| {
            let made = Segment::create(GEOMETRY).unwrap();
            made.words()[word].store(value, Ordering::Relaxed);
            Segment::adopt(handed_over(&made)).unwrap_err()
        };
        assert!(matches!(refused(0, 1), LayoutError::Magic));
        assert!(matches!(refused(1, 2), LayoutError::Version { theirs: 2, .. }));
        assert!(matches!(
            refused(2, 9),
            LayoutError::Version { their_hash: 9, .. }
        ));
        for slots in [0, 8, 17, 32, 1 << 20, u64::MAX] {
            assert!(
                matches!(refused(3, slots), LayoutError::Geometry { .. }),
                "{slots}"
            );
        }
        for workers in [4, 257, u64::MAX] {
            assert!(
                matches!(refused(4, workers), LayoutError::Geometry { .. }),
                "{workers}"
            );
        }
    }

    #[test]
    fn parts_never_reach_beyond_their_words() {
        let words = SharedWords::own(10);
        assert_eq!(words.part(2..10).unwrap().len(), 8);
        assert!(words.part(2..11).is_none());
        assert!(words.part(2..10).unwrap().part(4..9).is_none());
        assert!(words.part(usize::MAX..usize::MAX).is_none());
    }
}
