//! What the dataplane says to control, written as the ring has room.
//!
//! Takes  answers, and a dump as an iterator.     Gives  them to the ring, an answer first, the dump as it is read.
//! Never  blocks, never holds a dump's records: one encoded message waits at most.

use crate::index::Generation;

use super::codec::Slot;
use super::cursor::CorruptIndex;
use super::digest::Digest;
use super::message::Message;
use super::record::Record;
use super::ring::RingWriter;

/// Messages written in one turn, so that a control that reads as fast as we write cannot hold the steward.
pub(super) const BUDGET: usize = 1024;

/// The dataplane's end of the ring to control, and what waits for room in it.
pub(super) struct Outbox {
    ring: RingWriter,
    /// Encoded and waiting for room. An answer to a transaction that is not read before this is empty: at most a few.
    waiting: std::collections::VecDeque<Slot>,
    dump: Option<Dump>,
}

struct Dump {
    records: Box<dyn Iterator<Item = Record> + Send>,
    generation: Generation,
    digest: Digest,
}

/// How far `flush` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    /// All is written.
    Done,
    /// The ring is full: control will ring when it has read.
    Full,
    /// There is more, and room: come again.
    Again,
}

impl Outbox {
    pub(super) const fn new(ring: RingWriter) -> Self {
        Self {
            ring,
            waiting: std::collections::VecDeque::new(),
            dump: None,
        }
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.dump.is_none()
    }

    /// An answer, to be sent at the next `flush`.
    pub(super) fn answer(&mut self, message: &Message) {
        match message.encode() {
            Ok(slot) => self.waiting.push_back(slot),
            // Only names can be too long, and answers have none.
            Err(error) => log::error!("an answer to the control process could not be encoded: {error}"),
        }
    }

    /// A dump, to be sent from the next `flush` on; replaces one that was not sent to its end.
    pub(super) fn dump(&mut self, generation: Generation, records: Box<dyn Iterator<Item = Record> + Send>) {
        self.dump = Some(Dump {
            records,
            generation,
            digest: Digest::default(),
        });
    }

    /// Writes as much as there is room for; true beside the outcome if control has to be rung.
    pub(super) fn flush(&mut self) -> Result<(Flush, bool), CorruptIndex> {
        let mut outcome = Flush::Again;
        for _ in 0..BUDGET {
            let Some(slot) = self.waiting.pop_front().or_else(|| self.next_of_dump()) else {
                outcome = Flush::Done;
                break;
            };
            if !self.ring.push(&slot)? {
                self.waiting.push_front(slot);
                outcome = Flush::Full;
                break;
            }
        }
        Ok((outcome, self.ring.publish()))
    }

    fn next_of_dump(&mut self) -> Option<Slot> {
        let dump = self.dump.as_mut()?;
        for record in dump.records.by_ref() {
            match Message::DumpRecord(record).encode() {
                Ok(slot) => {
                    dump.digest.add(&slot);
                    return Some(slot);
                }
                // Cannot be: the record came in through the same limits. Left out of the digest, so the dump that
                // control verifies is what it was given; it will put the row again and hear what is wrong with it.
                Err(error) => log::error!("a committed record could not be encoded: {error}"),
            }
        }
        let Dump {
            generation, digest, ..
        } = self.dump.take()?;
        Message::DumpEnd {
            generation,
            count: digest.count,
            digest: digest.sum,
        }
        .encode()
        .ok()
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox")
            .field("waiting", &self.waiting.len())
            .field("dumping", &self.dump.is_some())
            .finish()
    }
}
