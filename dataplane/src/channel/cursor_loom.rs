#![allow(unsafe_code)]
//! The ring's two cursors under loom: every interleaving and every permitted reordering of a writer and a reader.
//!
//! `cursor.rs` is compiled here a second time, over loom's atomics; all else in this crate keeps core's.
//!
//! Each slot has what the segment's slots have, relaxed atomics, and a checked cell that stands for their bytes: loom
//! fails the test where both sides use a slot at once, or one after the other with no lettered pair between.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use loom::sync::atomic as sync;

#[path = "cursor.rs"]
#[allow(unreachable_pub, reason = "public where the channel has it")]
mod cursor;

use cursor::{ReadCursor, Words, WriteCursor};
use sync::{AtomicU64, Ordering};

/// Two slots: the smallest ring in which a batch and a wrap-around can meet.
const CAPACITY: usize = 2;

struct Ring {
    written: AtomicU64,
    read: AtomicU64,
    slots: [Slot; CAPACITY],
}

struct Slot {
    /// Two halves, so that a torn message would show.
    halves: [AtomicU64; 2],
    cell: UnsafeCell<()>,
}

// SAFETY: the cells hold nothing and are never dereferenced; loom checks their uses, which is what they are for.
unsafe impl Sync for Slot {}

impl Slot {
    fn new() -> Self {
        Self {
            halves: [AtomicU64::new(0), AtomicU64::new(0)],
            cell: UnsafeCell::new(()),
        }
    }

    fn store(&self, message: u64) {
        self.cell.with_mut(|_| {
            self.halves[0].store(message, Ordering::Relaxed);
            self.halves[1].store(!message, Ordering::Relaxed);
        });
    }

    fn load(&self) -> [u64; 2] {
        self.cell
            .with(|_| self.halves.each_ref().map(|half| half.load(Ordering::Relaxed)))
    }
}

impl Ring {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            slots: std::array::from_fn(|_| Slot::new()),
        })
    }

    fn words(&self) -> Words<'_> {
        Words {
            written: &self.written,
            read: &self.read,
        }
    }
}

/// Writes `1..=messages`, published every `batch` messages and whenever the ring is full.
fn write(ring: &Ring, messages: u64, batch: u64) {
    let mut cursor = WriteCursor::new(CAPACITY as u64);
    for message in 1..=messages {
        let slot = loop {
            if let Some(slot) = cursor.claim(ring.words()).expect("the reader is honest") {
                break slot;
            }
            cursor.publish(ring.words());
            thread::yield_now();
        };
        ring.slots[slot].store(message);
        if message % batch == 0 {
            cursor.publish(ring.words());
        }
    }
    cursor.publish(ring.words());
}

/// Reads `1..=messages` in order, released every `batch` messages and whenever the ring is empty.
fn read(ring: &Ring, messages: u64, batch: u64) {
    let mut cursor = ReadCursor::new(CAPACITY as u64);
    for expected in 1..=messages {
        let slot = loop {
            if let Some(slot) = cursor.take(ring.words()).expect("the writer is honest") {
                break slot;
            }
            cursor.release(ring.words());
            thread::yield_now();
        };
        assert_eq!(
            ring.slots[slot].load(),
            [expected, !expected],
            "lost, repeated or torn"
        );
        if expected % batch == 0 {
            cursor.release(ring.words());
        }
    }
}

/// `preemptions`: most times a thread is interrupted where it did not yield; `None` for every interleaving there is.
fn model(messages: u64, write_batch: u64, read_batch: u64, preemptions: Option<usize>) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        let ring = Ring::new();
        let writer = {
            let ring = ring.clone();
            thread::spawn(move || write(&ring, messages, write_batch))
        };
        read(&ring, messages, read_batch);
        writer.join().expect("the writer finishes");
    });
}

#[test]
fn loom_finds_no_lost_or_torn_message_one_by_one() {
    model(2, 1, 1, None);
}

#[test]
fn loom_finds_no_lost_or_torn_message_in_batches_around_the_wrap() {
    model(4, 2, 2, None);
}

// Message by message around the wrap there are too many interleavings to try all; few bugs need more interruptions.
#[test]
fn loom_finds_no_lost_or_torn_message_around_the_wrap() {
    model(3, 1, 1, Some(3));
}

#[test]
fn loom_finds_no_lost_or_torn_message_when_batches_differ() {
    model(4, 2, 1, Some(2));
    model(4, 1, 2, Some(2));
}
