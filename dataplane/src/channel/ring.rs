//! A ring of fixed 256-byte slots in the segment: the cursor of one side, and copies in and out of slots.
//!
//! Takes  one end of one ring.     Gives  messages as bytes, in order, each copied out exactly once.
//! Never  looks at a slot twice: the peer may write into it at any time, so what is checked is our own copy.

use std::sync::atomic::Ordering;

use super::codec::{SLOT, Slot};
use super::cursor::{CorruptIndex, ReadCursor, Words, WriteCursor};
use super::layout::{Segment, Way};

fn words(segment: &Segment, way: Way) -> Words<'_> {
    let (written, read) = segment.cursor_words(way);
    Words { written, read }
}

/// The writing end of a ring.
#[derive(Debug)]
pub(super) struct RingWriter {
    segment: Segment,
    way: Way,
    cursor: WriteCursor,
}

impl RingWriter {
    /// The one writer of this ring since `Segment::prepare`.
    pub(super) fn new(segment: &Segment, way: Way) -> Self {
        let cursor = WriteCursor::new(segment.geometry().ring_slots as u64);
        Self {
            segment: segment.clone(),
            way,
            cursor,
        }
    }

    /// Puts a message into the next slot, unseen until `publish`; false if the ring is full.
    pub(super) fn push(&mut self, message: &Slot) -> Result<bool, CorruptIndex> {
        let Some(slot) = self.cursor.claim(words(&self.segment, self.way))? else {
            return Ok(false);
        };
        let (chunks, _) = message.as_chunks();
        for (word, bytes) in self.segment.slot(self.way, slot).iter().zip(chunks) {
            // Relaxed: A0 orders the slots before the count that shows them.
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Shows the reader everything pushed; false if there was nothing new.
    pub(super) fn publish(&mut self) -> bool {
        self.cursor.publish(words(&self.segment, self.way))
    }
}

/// The reading end of a ring.
#[derive(Debug)]
pub(super) struct RingReader {
    segment: Segment,
    way: Way,
    cursor: ReadCursor,
}

impl RingReader {
    /// The one reader of this ring since `Segment::prepare`.
    pub(super) fn new(segment: &Segment, way: Way) -> Self {
        let cursor = ReadCursor::new(segment.geometry().ring_slots as u64);
        Self {
            segment: segment.clone(),
            way,
            cursor,
        }
    }

    /// Slots of the ring.
    pub(super) const fn slots(&self) -> usize {
        self.segment.geometry().ring_slots
    }

    /// Copies the next message out; `None` if there is none. Its slot is the writer's again after `release`.
    pub(super) fn pop(&mut self) -> Result<Option<Slot>, CorruptIndex> {
        let Some(slot) = self.cursor.take(words(&self.segment, self.way))? else {
            return Ok(None);
        };
        let mut message = [0; SLOT];
        let (chunks, _) = message.as_chunks_mut();
        for (bytes, word) in chunks.iter_mut().zip(self.segment.slot(self.way, slot)) {
            // Relaxed: A1 orders the count before the slots it showed.
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        Ok(Some(message))
    }

    /// Gives the slots of everything popped back to the writer; false if there was nothing new.
    pub(super) fn release(&mut self) -> bool {
        self.cursor.release(words(&self.segment, self.way))
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::layout::Geometry;
    use super::*;

    fn ring() -> (Segment, RingWriter, RingReader) {
        let geometry = Geometry {
            ring_slots: 16,
            workers: 0,
        };
        let segment = Segment::create(geometry).expect("shared memory");
        let (writer, reader) = (
            RingWriter::new(&segment, Way::ToDataplane),
            RingReader::new(&segment, Way::ToDataplane),
        );
        (segment, writer, reader)
    }

    #[test]
    fn messages_come_out_whole_and_in_order_around_many_wraps() {
        let (_segment, mut writer, mut reader) = ring();
        let (mut sent, mut received) = (0u64, 0u64);
        while received < 1000 {
            let mut slot = [0; SLOT];
            slot.as_chunks_mut::<8>().0.fill(sent.to_le_bytes());
            if sent < 1000 && writer.push(&slot).unwrap() {
                sent += 1;
                continue;
            }
            assert!(writer.publish());
            while let Some(slot) = reader.pop().unwrap() {
                assert!(slot.as_chunks().0.iter().all(|c| *c == received.to_le_bytes()));
                received += 1;
            }
            assert!(reader.release());
        }
    }

    #[test]
    fn the_two_rings_of_a_segment_do_not_meet() {
        let (segment, mut writer, mut reader) = ring();
        for _ in 0..16 {
            assert!(writer.push(&[1; SLOT]).unwrap());
        }
        assert!(!writer.push(&[1; SLOT]).unwrap());
        writer.publish();
        let mut other = RingWriter::new(&segment, Way::ToControl);
        while other.push(&[2; SLOT]).unwrap() {}
        other.publish();
        while let Some(slot) = reader.pop().unwrap() {
            assert_eq!(slot, [1; SLOT]);
        }
    }

    #[test]
    fn messages_cross_between_threads_without_loss() {
        let (_segment, mut writer, mut reader) = ring();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for n in 0..20_000u64 {
                    let mut slot = [0; SLOT];
                    slot.as_chunks_mut::<8>().0.fill(n.to_le_bytes());
                    while !writer.push(&slot).unwrap() {
                        writer.publish();
                        std::thread::yield_now();
                    }
                }
                writer.publish();
            });
            let mut expected = 0u64;
            while expected < 20_000 {
                let Some(slot) = reader.pop().unwrap() else {
                    reader.release();
                    std::thread::yield_now();
                    continue;
                };
                assert!(slot.as_chunks().0.iter().all(|c| *c == expected.to_le_bytes()));
                expected += 1;
            }
        });
    }
}
