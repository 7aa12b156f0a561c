//! The two ends of a ring, as numbers: who may touch which slot, and when.
//!
//! Takes  the ring's two shared words and its capacity.     Gives  slot numbers, in order, each to one side at a time.
//! Never  touches a slot, a mapping or a system call; never believes the other side's word without checking it.
//!
//! Both words count messages since the ring was made and never wrap in practice (2⁶⁴); the slot of message `n` is
//! `n & (capacity - 1)`. Each side keeps its own count to itself and shares it once per batch, and remembers a
//! *watermark*: how far it may go before it must look at the other side's word again. In the steady state a batch
//! costs one shared load and one shared store, whatever its length.
//!
//! The letters of the orderings are explained in the channel's page, `channel/mod.rs`.

use super::sync::{AtomicU64, Ordering};

/// The two shared words of one ring, borrowed from wherever they live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    /// Messages written since the ring was made. Its one writer: the `WriteCursor`'s side.
    pub(super) written: &'a AtomicU64,
    /// Messages read since the ring was made. Its one writer: the `ReadCursor`'s side.
    pub(super) read: &'a AtomicU64,
}

/// The other side's word cannot be true: it claims more messages than the ring has slots, or fewer than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other process's ring index is {theirs}, which is impossible while ours is {ours}")]
pub struct CorruptIndex {
    ours: u64,
    theirs: u64,
}

/// The writing end.
#[derive(Debug)]
pub(super) struct WriteCursor {
    capacity: u64,
    /// The next message to write.
    next: u64,
    /// What `written` says.
    published: u64,
    /// Watermark: messages below it have a free slot.
    limit: u64,
}

impl WriteCursor {
    /// A new ring of `capacity` slots, a power of two, whose words are both 0.
    pub(super) const fn new(capacity: u64) -> Self {
        debug_assert!(capacity.is_power_of_two());
        Self {
            capacity,
            next: 0,
            published: 0,
            limit: capacity,
        }
    }

    /// The next slot to fill, ours until `publish`; `None` while the ring is full.
    pub(super) fn claim(&mut self, words: Words<'_>) -> Result<Option<usize>, CorruptIndex> {
        if self.next == self.limit {
            // B1: what the reader did to a slot happened before we fill that slot again.
            let read = words.read.load(Ordering::Acquire);
            // The reader is behind what it could see (`published`) and ahead of what it told us before.
            let before = self.limit.wrapping_sub(self.capacity);
            if read.wrapping_sub(before) > self.published.wrapping_sub(before) {
                return Err(CorruptIndex {
                    ours: self.published,
                    theirs: read,
                });
            }
            self.limit = read.wrapping_add(self.capacity);
            if self.next == self.limit {
                return Ok(None);
            }
        }
        let slot = self.next & (self.capacity - 1);
        self.next = self.next.wrapping_add(1);
        Ok(Some(slot as usize))
    }

    /// Gives every claimed slot to the reader; false if there was none.
    pub(super) fn publish(&mut self, words: Words<'_>) -> bool {
        if self.next == self.published {
            return false;
        }
        // A0: the slots are filled before the reader sees the count.
        words.written.store(self.next, Ordering::Release);
        self.published = self.next;
        true
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct ReadCursor {
    capacity: u64,
    /// The next message to read.
    next: u64,
    /// What `read` says.
    released: u64,
    /// Watermark: messages below it are written.
    limit: u64,
}

impl ReadCursor {
    /// A new ring of `capacity` slots, a power of two, whose words are both 0.
    pub(super) const fn new(capacity: u64) -> Self {
        debug_assert!(capacity.is_power_of_two());
        Self {
            capacity,
            next: 0,
            released: 0,
            limit: 0,
        }
    }

    /// The next filled slot, ours until `release`; `None` while there is none.
    pub(super) fn take(&mut self, words: Words<'_>) -> Result<Option<usize>, CorruptIndex> {
        if self.next == self.limit {
            // A1: what the writer put into a slot happened before we read that slot.
            let written = words.written.load(Ordering::Acquire);
            // The writer is ahead of what it told us before, by no more than the slots it knew to be free.
            let room = self.released.wrapping_add(self.capacity).wrapping_sub(self.limit);
            if written.wrapping_sub(self.limit) > room {
                return Err(CorruptIndex {
                    ours: self.released,
                    theirs: written,
                });
            }
            self.limit = written;
            if self.next == self.limit {
                return Ok(None);
            }
        }
        let slot = self.next & (self.capacity - 1);
        self.next = self.next.wrapping_add(1);
        Ok(Some(slot as usize))
    }

    /// Gives every taken slot back to the writer; false if there was none.
    pub(super) fn release(&mut self, words: Words<'_>) -> bool {
        if self.next == self.released {
            return false;
        }
        // B0: we are done with the slots before the writer sees the count.
        words.read.store(self.next, Ordering::Release);
        self.released = self.next;
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Claim,
        Publish,
        Take,
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Claim),
            1 => Just(Step::Publish),
            4 => Just(Step::Take),
            1 => Just(Step::Release),
        ]
    }

    proptest! {
        /// The oracle: a queue of what is claimed, one of what is published, and a count of slots not yet given back.
        #[test]
        fn a_ring_is_a_bounded_queue_whose_slots_belong_to_one_side_at_a_time(
            capacity_log in 0u32..5,
            steps in prop::collection::vec(step(), 0..400),
        ) {
            let capacity = 1u64 << capacity_log;
            let (written, read) = (AtomicU64::new(0), AtomicU64::new(0));
            let words = Words { written: &written, read: &read };
            let (mut writer, mut reader) = (WriteCursor::new(capacity), ReadCursor::new(capacity));
            let (mut claimed, mut published, mut taken) = (VecDeque::new(), VecDeque::new(), 0);
            let mut count = 0u64;
            for step in steps {
                match step {
                    Step::Claim => {
                        let full = claimed.len() + published.len() + taken == capacity as usize;
                        let expected = (!full).then_some((count % capacity) as usize);
                        prop_assert_eq!(writer.claim(words).unwrap(), expected);
                        if let Some(slot) = expected {
                            claimed.push_back(slot);
                            count += 1;
                        }
                    }
                    Step::Publish => {
                        prop_assert_eq!(writer.publish(words), !claimed.is_empty());
                        published.append(&mut claimed);
                    }
                    Step::Take => {
                        let expected = published.pop_front();
                        prop_assert_eq!(reader.take(words).unwrap(), expected);
                        taken += usize::from(expected.is_some());
                    }
                    Step::Release => {
                        prop_assert_eq!(reader.release(words), taken > 0);
                        taken = 0;
                    }
                }
            }
        }

        #[test]
        fn an_index_that_the_other_side_cannot_have_is_refused_and_never_followed(
            sent in 0u64..8, received in 0u64..8, lie in any::<u64>(),
        ) {
            let received = received.min(sent);
            let (written, read) = (AtomicU64::new(0), AtomicU64::new(0));
            let words = Words { written: &written, read: &read };
            let (mut writer, mut reader) = (WriteCursor::new(8), ReadCursor::new(8));
            for _ in 0..sent { writer.claim(words).unwrap().unwrap(); }
            writer.publish(words);
            for _ in 0..received { reader.take(words).unwrap().unwrap(); }
            reader.release(words);

            // The reader sees between what it saw before and a full ring: anything else is a lie.
            written.store(lie, Ordering::Relaxed);
            let seen = if received > 0 { sent } else { 0 };
            let mut taken = received;
            let verdict = loop {
                match reader.take(words) {
                    Ok(Some(_)) => taken += 1,
                    other => break other,
                }
            };
            prop_assert_eq!(verdict.is_ok(), (seen..=received + 8).contains(&lie));
            prop_assert!(taken <= received + 8);

            read.store(lie, Ordering::Relaxed);
            let mut claimed = sent;
            let verdict = loop {
                match writer.claim(words) {
                    Ok(Some(_)) => claimed += 1,
                    other => break other,
                }
            };
            prop_assert_eq!(verdict.is_ok(), (0..=sent).contains(&lie));
            prop_assert!(claimed <= sent + 8);
        }
    }
}
