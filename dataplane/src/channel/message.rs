//! The messages of the channel, each in one slot.
//!
//! Takes  a message or 256 bytes from anywhere.     Gives  the bytes, or the message or a sentence why it is none.
//! Never  panics on any bytes; never accepts two encodings of one message.

use crate::index::Generation;

use super::codec::{DecodeError, Decoder, EncodeError, Encoder, Slot};
use super::record::{Key, Record};
use super::row;

/// One message, either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Control's first: both must mean the same by every later byte.
    Hello {
        /// `layout::VERSION`.
        version: u64,
        /// The layout hash.
        layout_hash: u64,
    },
    /// Control begins a transaction; one that was not finished is forgotten.
    Begin {
        /// The generation it leads to.
        generation: Generation,
    },
    /// This row shall be so.
    Put(Record),
    /// This row shall not be. All deletes of a transaction come before its puts.
    Delete(Key),
    /// Control has said all; nothing holds before this.
    Commit {
        /// As in `Begin`.
        generation: Generation,
        /// Puts and deletes between `Begin` and here.
        count: u64,
        /// Their digest.
        digest: u64,
    },
    /// The dataplane has committed.
    Ack {
        /// As in `Commit`.
        generation: Generation,
    },
    /// The dataplane has not, and nothing has changed.
    Nack(Nack),
    /// Control asks for every record the dataplane has committed.
    DumpRequest,
    /// One of them.
    DumpRecord(Record),
    /// That was all.
    DumpEnd {
        /// The generation they make up.
        generation: Generation,
        /// Records before this.
        count: u64,
        /// Their digest.
        digest: u64,
    },
}

/// Why a transaction was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("generation {}, message {message}: {reason}: {text}", generation.0)]
pub struct Nack {
    /// The transaction's generation; 0 where none had begun.
    pub generation: Generation,
    /// The message that was refused, counted from `Begin`, which is 0.
    pub message: u64,
    /// What kind of fault.
    pub reason: NackReason,
    /// The fault, for a person; at most `TEXT_MAX` bytes, the rest is cut.
    pub text: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NackReason {
    /// The two programs are of different releases.
    #[error("another version")]
    Version,
    /// Bytes that are no message.
    #[error("malformed message")]
    Malformed,
    /// A message where it may not stand.
    #[error("message out of order")]
    OutOfOrder,
    /// More puts and deletes than one transaction may have.
    #[error("transaction too large")]
    TooLarge,
    /// Count or digest do not match what arrived.
    #[error("transaction incomplete")]
    Incomplete,
    /// The steward found that the rows do not fit each other, or the dataplane.
    #[error("table refused")]
    Refused,
}

impl NackReason {
    /// A reason's place is its byte.
    pub(super) const ALL: [Self; 6] = [
        Self::Version,
        Self::Malformed,
        Self::OutOfOrder,
        Self::TooLarge,
        Self::Incomplete,
        Self::Refused,
    ];
}

/// Longest text of a `Nack`: what a slot has left.
pub const TEXT_MAX: usize = 220;

const HELLO: u8 = 1;
const BEGIN: u8 = 2;
const PUT: u8 = 3;
const DELETE: u8 = 4;
const COMMIT: u8 = 5;
const ACK: u8 = 6;
const NACK: u8 = 7;
const DUMP_REQUEST: u8 = 8;
const DUMP_RECORD: u8 = 9;
const DUMP_END: u8 = 10;

impl Message {
    /// The message as bytes. Errors: a name longer than `NAME_MAX`.
    pub fn encode(&self) -> Result<Slot, EncodeError> {
        let mut to = Encoder::new();
        match self {
            Self::Hello { version, layout_hash } => numbers(&mut to, HELLO, [*version, *layout_hash]),
            Self::Begin { generation } => numbers(&mut to, BEGIN, [generation.0]),
            Self::Put(record) => {
                to.u8(PUT);
                row::encode_record(&mut to, record)?;
            }
            Self::Delete(key) => {
                to.u8(DELETE);
                row::encode_key(&mut to, key);
            }
            Self::Commit {
                generation,
                count,
                digest,
            } => {
                numbers(&mut to, COMMIT, [generation.0, *count, *digest]);
            }
            Self::Ack { generation } => numbers(&mut to, ACK, [generation.0]),
            Self::Nack(nack) => {
                numbers(&mut to, NACK, [nack.generation.0, nack.message]);
                to.u8(nack.reason as u8);
                to.text("text", &printable(&nack.text), TEXT_MAX)?;
            }
            Self::DumpRequest => to.u8(DUMP_REQUEST),
            Self::DumpRecord(record) => {
                to.u8(DUMP_RECORD);
                row::encode_record(&mut to, record)?;
            }
            Self::DumpEnd {
                generation,
                count,
                digest,
            } => {
                numbers(&mut to, DUMP_END, [generation.0, *count, *digest]);
            }
        }
        Ok(to.finish())
    }

    /// The message that these bytes are. Errors: `DecodeError` names the field and what is wrong with it.
    pub fn decode(slot: &Slot) -> Result<Self, DecodeError> {
        let mut from = Decoder::new(slot);
        let generation = |from: &mut Decoder<'_>| from.u64("generation").map(Generation);
        let message = match from.u8("message kind")? {
            HELLO => Self::Hello {
                version: from.u64("version")?,
                layout_hash: from.u64("layout hash")?,
            },
            BEGIN => Self::Begin {
                generation: generation(&mut from)?,
            },
            PUT => Self::Put(row::decode_record(&mut from)?),
            DELETE => Self::Delete(row::decode_key(&mut from)?),
            COMMIT => Self::Commit {
                generation: generation(&mut from)?,
                count: from.u64("count")?,
                digest: from.u64("digest")?,
            },
            ACK => Self::Ack {
                generation: generation(&mut from)?,
            },
            NACK => Self::Nack(Nack {
                generation: generation(&mut from)?,
                message: from.u64("message number")?,
                reason: from.choice("reason", &NackReason::ALL)?,
                text: from.text("text", TEXT_MAX)?,
            }),
            DUMP_REQUEST => Self::DumpRequest,
            DUMP_RECORD => Self::DumpRecord(row::decode_record(&mut from)?),
            DUMP_END => Self::DumpEnd {
                generation: generation(&mut from)?,
                count: from.u64("count")?,
                digest: from.u64("digest")?,
            },
            value => {
                return Err(DecodeError::Unknown {
                    what: "message kind",
                    value,
                });
            }
        };
        from.finish()?;
        Ok(message)
    }

    /// What a log line or a Nack calls it.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Begin { .. } => "begin",
            Self::Put(_) => "put",
            Self::Delete(_) => "delete",
            Self::Commit { .. } => "commit",
            Self::Ack { .. } => "ack",
            Self::Nack(_) => "nack",
            Self::DumpRequest => "dump request",
            Self::DumpRecord(_) => "dump record",
            Self::DumpEnd { .. } => "dump end",
        }
    }
}

fn numbers<const N: usize>(to: &mut Encoder, kind: u8, numbers: [u64; N]) {
    to.u8(kind);
    for number in numbers {
        to.u64(number);
    }
}

/// `text` on one line and short enough for a slot.
fn printable(text: &str) -> String {
    let mut line = text.replace(char::is_control, " ");
    line.truncate(line.floor_char_boundary(TEXT_MAX));
    line
}

#[cfg(test)]
mod tests;
