//! What control says, put together: messages in, whole transactions out.
//!
//! Takes  slots from the ring, one by one, from anyone.     Gives  a whole, counted and digested transaction, a request
//! for a dump, or a refusal.     Never  gives half a transaction; never holds more than its limit; answers each bad
//! transaction once, however much follows of it.

use crate::index::Generation;

use super::codec::Slot;
use super::digest::Digest;
use super::fingerprint::layout_hash;
use super::layout::VERSION;
use super::message::{Message, Nack, NackReason};
use super::record::{Key, Record};

/// A transaction as control meant it: first the deletes, then the puts. Rows may still contradict each other, the
/// table they change or the dataplane's capacity; that is the steward's to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The generation that the table has after it; never 0.
    pub generation: Generation,
    /// Rows to remove. The first is message 1 of the transaction.
    pub deletes: Vec<Key>,
    /// Rows to add or replace; their message numbers go on where the deletes' end.
    pub puts: Vec<Record>,
}

/// What one message led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for the next.
    More,
    /// Whole; nothing may be read before it is answered.
    Transaction(Transaction),
    /// Nothing may be read before the dump is written.
    DumpRequest,
    /// Answer this.
    Refuse(Nack),
    /// Answer this and hang up: the two cannot talk.
    HangUp(Nack),
}

/// The state between two messages.
#[derive(Debug)]
pub(super) struct Intake {
    phase: Phase,
    /// Most puts and deletes in one transaction.
    limit: usize,
}

#[derive(Debug)]
enum Phase {
    /// Nothing said yet.
    New,
    /// Between transactions.
    Idle,
    /// Inside one.
    Collecting(Transaction, Digest),
    /// Inside one that was refused.
    Skipping,
}

impl Intake {
    /// For a new connection.
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            phase: Phase::New,
            limit,
        }
    }

    /// The transaction that would be lost if control went away now, and its messages so far.
    pub(super) const fn unfinished(&self) -> Option<(Generation, u64)> {
        match &self.phase {
            Phase::Collecting(transaction, digest) => Some((transaction.generation, digest.count)),
            _ => None,
        }
    }

    /// Takes the next message.
    pub(super) fn take(&mut self, slot: &Slot) -> Step {
        let message = Message::decode(slot);
        match (std::mem::replace(&mut self.phase, Phase::Skipping), message) {
            (
                Phase::New,
                Ok(Message::Hello {
                    version,
                    layout_hash: hash,
                }),
            ) => {
                if (version, hash) == (VERSION, layout_hash()) {
                    self.phase = Phase::Idle;
                    return Step::More;
                }
                Step::HangUp(nack(
                    NackReason::Version,
                    format!("the dataplane speaks channel version {VERSION}"),
                ))
            }
            (Phase::New, _) => Step::HangUp(nack(
                NackReason::OutOfOrder,
                "the first message must be a hello".into(),
            )),

            (
                _,
                Ok(Message::Begin {
                    generation: Generation(0),
                }),
            ) => Step::Refuse(nack(
                NackReason::OutOfOrder,
                "generation 0 is the empty table's".into(),
            )),
            (_, Ok(Message::Begin { generation })) => {
                let transaction = Transaction {
                    generation,
                    deletes: Vec::new(),
                    puts: Vec::new(),
                };
                self.phase = Phase::Collecting(transaction, Digest::default());
                Step::More
            }
            (Phase::Idle | Phase::Skipping, Ok(Message::DumpRequest)) => {
                self.phase = Phase::Idle;
                Step::DumpRequest
            }
            (Phase::Collecting(transaction, digest), message) => {
                self.collect(transaction, digest, slot, message)
            }
            (Phase::Skipping, Ok(Message::Commit { .. })) => {
                self.phase = Phase::Idle;
                Step::More
            }
            (Phase::Skipping, _) => Step::More,
            (Phase::Idle, Err(error)) => Step::Refuse(nack(NackReason::Malformed, error.to_string())),
            (Phase::Idle, Ok(message)) => Step::Refuse(nack(
                NackReason::OutOfOrder,
                format!("a {} outside a transaction", message.name()),
            )),
        }
    }

    /// A message inside a transaction; on return we are inside it still, or `Skipping` what follows, or `Idle`.
    fn collect(
        &mut self,
        mut transaction: Transaction,
        mut digest: Digest,
        slot: &Slot,
        message: Result<Message, super::codec::DecodeError>,
    ) -> Step {
        let (generation, number) = (transaction.generation, digest.count + 1);
        let refuse = |reason, text: String| {
            Step::Refuse(Nack {
                generation,
                message: number,
                reason,
                text,
            })
        };
        let change = match message {
            Ok(Message::Commit {
                generation: committed,
                count,
                digest: sum,
            }) => {
                self.phase = Phase::Idle;
                if committed != generation {
                    return refuse(
                        NackReason::OutOfOrder,
                        format!("it commits generation {}", committed.0),
                    );
                }
                if (count, sum) != (digest.count, digest.sum) {
                    let text = format!(
                        "{count} messages with digest {sum:016x} were sent, {} with digest {:016x} arrived",
                        digest.count, digest.sum
                    );
                    return refuse(NackReason::Incomplete, text);
                }
                return Step::Transaction(transaction);
            }
            Ok(change @ (Message::Put(_) | Message::Delete(_))) => change,
            Ok(other) => {
                return refuse(
                    NackReason::OutOfOrder,
                    format!("a {} inside a transaction", other.name()),
                );
            }
            Err(error) => return refuse(NackReason::Malformed, error.to_string()),
        };
        if transaction.deletes.len() + transaction.puts.len() >= self.limit {
            return refuse(
                NackReason::TooLarge,
                format!("at most {} rows may change at once", self.limit),
            );
        }
        match change {
            Message::Delete(_) if !transaction.puts.is_empty() => {
                return refuse(NackReason::OutOfOrder, "a delete after a put".into());
            }
            Message::Delete(key) => transaction.deletes.push(key),
            Message::Put(record) => transaction.puts.push(record),
            _ => {}
        }
        digest.add(slot);
        self.phase = Phase::Collecting(transaction, digest);
        Step::More
    }
}

fn nack(reason: NackReason, text: String) -> Nack {
    Nack {
        generation: Generation(0),
        message: 0,
        reason,
        text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::codec::SLOT;
    use super::super::row::arbitrary::{key, record};
    use super::*;

    const LIMIT: usize = 8;
    const G: Generation = Generation(7);

    fn hello() -> Message {
        Message::Hello {
            version: VERSION,
            layout_hash: layout_hash(),
        }
    }

    fn greeted() -> Intake {
        let mut intake = Intake::new(LIMIT);
        assert_eq!(intake.take(&hello().encode().unwrap()), Step::More);
        intake
    }

    /// Begin, deletes, puts, commit.
    fn messages(transaction: &Transaction) -> Vec<Slot> {
        let generation = transaction.generation;
        let deletes = transaction.deletes.iter().cloned().map(Message::Delete);
        let changes = deletes.chain(transaction.puts.iter().cloned().map(Message::Put));
        let changes: Vec<Slot> = changes.map(|m| m.encode().unwrap()).collect();
        let mut digest = Digest::default();
        changes.iter().for_each(|slot| digest.add(slot));
        let commit = Message::Commit {
            generation,
            count: digest.count,
            digest: digest.sum,
        };
        let mut slots = vec![Message::Begin { generation }.encode().unwrap()];
        slots.extend(changes);
        slots.push(commit.encode().unwrap());
        slots
    }

    fn transaction() -> impl Strategy<Value = Transaction> {
        let rows = (
            prop::collection::vec(key(), 0..4),
            prop::collection::vec(record(), 1..4),
        );
        rows.prop_map(|(deletes, puts)| Transaction {
            generation: G,
            deletes,
            puts,
        })
    }

    fn reason(step: Step) -> Option<NackReason> {
        match step {
            Step::Refuse(nack) | Step::HangUp(nack) => Some(nack.reason),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn a_transaction_comes_out_as_it_went_in_and_only_at_its_commit(transaction in transaction()) {
            let mut intake = greeted();
            let slots = messages(&transaction);
            let (commit, before) = slots.split_last().unwrap();
            for (number, slot) in before.iter().enumerate() {
                prop_assert_eq!(intake.take(slot), Step::More);
                prop_assert_eq!(intake.unfinished(), Some((G, number as u64)));
            }
            prop_assert_eq!(intake.take(commit), Step::Transaction(transaction));
            prop_assert_eq!(intake.unfinished(), None);
        }

        #[test]
        fn a_lost_repeated_or_changed_message_refuses_the_whole_and_the_next_one_is_whole_again(
            transaction in transaction(), at in any::<prop::sample::Index>(), fault in 0..3,
        ) {
            let good = messages(&transaction);
            let mut bad = good.clone();
            let at = 1 + at.index(bad.len() - 2);
            match fault {
                0 => drop(bad.remove(at)),
                1 => bad.insert(at, bad[at]),
                _ => bad[at][SLOT - 1] ^= 1,
            }
            let mut intake = greeted();
            let refusals = bad.iter().filter_map(|slot| reason(intake.take(slot))).count();
            prop_assert_eq!(refusals, 1);
            let last = good.iter().map(|slot| intake.take(slot)).last();
            prop_assert_eq!(last, Some(Step::Transaction(transaction)));
        }

        #[test]
        fn no_sequence_of_messages_and_garbage_makes_a_transaction_without_its_commit(
            slots in prop::collection::vec((0u8..12, 0u8..6, any::<[u8; 16]>()), 0..60),
        ) {
            let mut intake = greeted();
            for (kind, row, rest) in slots {
                let mut slot = [0; SLOT];
                slot[0] = kind;
                slot[1] = row;
                slot[2..18].copy_from_slice(&rest);
                if let Step::Transaction(transaction) = intake.take(&slot) {
                    prop_assert_eq!(messages(&transaction).pop(), Some(slot));
                }
                prop_assert!(intake.unfinished().is_none_or(|(_, count)| count <= LIMIT as u64));
            }
        }
    }

    #[test]
    fn a_stranger_and_another_version_are_hung_up_on() {
        let first = |message: Message| Intake::new(LIMIT).take(&message.encode().unwrap());
        assert!(matches!(first(Message::DumpRequest), Step::HangUp(n) if n.reason == NackReason::OutOfOrder));
        let other = Message::Hello {
            version: VERSION + 1,
            layout_hash: layout_hash(),
        };
        assert!(matches!(first(other), Step::HangUp(n) if n.reason == NackReason::Version));
        let other = Message::Hello {
            version: VERSION,
            layout_hash: !layout_hash(),
        };
        assert!(matches!(first(other), Step::HangUp(n) if n.reason == NackReason::Version));
    }

    #[test]
    fn what_may_not_stand_where_it_stands_is_refused() {
        let refused = |messages: &[Message]| {
            let mut intake = greeted();
            let mut steps: Vec<Step> = messages
                .iter()
                .map(|m| intake.take(&m.encode().unwrap()))
                .collect();
            steps.pop().and_then(reason)
        };
        let begin = Message::Begin { generation: G };
        let put = Message::Put(Record::Settings(Default::default()));
        let delete = Message::Delete(Key::Settings);
        let out_of_order = Some(NackReason::OutOfOrder);
        assert_eq!(refused(std::slice::from_ref(&put)), out_of_order);
        assert_eq!(refused(&[hello()]), out_of_order);
        assert_eq!(
            refused(&[Message::Begin {
                generation: Generation(0)
            }]),
            out_of_order
        );
        assert_eq!(refused(&[begin.clone(), put.clone(), delete]), out_of_order);
        assert_eq!(refused(&[begin.clone(), Message::DumpRequest]), out_of_order);
        let commit = Message::Commit {
            generation: Generation(8),
            count: 0,
            digest: 0,
        };
        assert_eq!(refused(&[begin.clone(), commit]), out_of_order);

        let mut full = vec![put; LIMIT + 2];
        full[0] = begin;
        assert_eq!(refused(&full), Some(NackReason::TooLarge));
        full.pop();
        assert_eq!(refused(&full), None);
    }
}
