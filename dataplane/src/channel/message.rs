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
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::codec::SLOT;
    use super::super::row::arbitrary::{key, record};
    use super::*;
    use crate::channel::record::{FrontendRecord, ServicePortRecord};

    fn message() -> impl Strategy<Value = Message> {
        let generation = || any::<u64>().prop_map(Generation);
        prop_oneof![
            any::<[u64; 2]>().prop_map(|[version, layout_hash]| Message::Hello { version, layout_hash }),
            generation().prop_map(|generation| Message::Begin { generation }),
            record().prop_map(Message::Put),
            key().prop_map(Message::Delete),
            (generation(), any::<[u64; 2]>()).prop_map(|(generation, [count, digest])| Message::Commit {
                generation,
                count,
                digest
            }),
            generation().prop_map(|generation| Message::Ack { generation }),
            (
                generation(),
                any::<u64>(),
                select(&NackReason::ALL[..]),
                "[ -~ä]{0,110}"
            )
                .prop_map(|(generation, message, reason, text)| Message::Nack(Nack {
                    generation,
                    message,
                    reason,
                    text
                })),
            Just(Message::DumpRequest),
            record().prop_map(Message::DumpRecord),
            (generation(), any::<[u64; 2]>()).prop_map(|(generation, [count, digest])| Message::DumpEnd {
                generation,
                count,
                digest
            }),
        ]
    }

    proptest! {
        #[test]
        fn every_message_survives_its_encoding(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
        }

        #[test]
        fn arbitrary_bytes_are_an_error_or_the_one_encoding_of_a_message(
            kind in 0u8..12, row in 0u8..7, rest in prop::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..SLOT - 2),
        ) {
            let mut slot = [0; SLOT];
            slot[0] = kind;
            slot[1] = row;
            slot[2..2 + rest.len()].copy_from_slice(&rest);
            if let Ok(message) = Message::decode(&slot) {
                prop_assert_eq!(message.encode().unwrap(), slot);
            }
        }

        #[test]
        fn a_message_with_one_byte_changed_is_an_error_or_another_message(
            message in message(), at in 0..SLOT, flip in 1u8..,
        ) {
            let mut slot = message.encode().unwrap();
            slot[at] ^= flip;
            if let Ok(other) = Message::decode(&slot) {
                prop_assert_ne!(&other, &message);
                prop_assert_eq!(other.encode().unwrap(), slot);
            }
        }
    }

    /// The sentence for a put of `record`, after its bytes were changed by `spoil`.
    fn refusal(record: &Record, spoil: impl FnOnce(&mut Slot)) -> String {
        let mut slot = Message::Put(record.clone()).encode().unwrap();
        spoil(&mut slot);
        Message::decode(&slot).unwrap_err().to_string()
    }

    fn service_port() -> ServicePortRecord {
        let slot = crate::channel::fingerprint::samples()[13]; // the put after the first delete
        let Ok(Message::Put(Record::ServicePort(record))) = Message::decode(&slot) else {
            panic!("{slot:?}")
        };
        record
    }

    #[test]
    fn each_fault_has_its_own_sentence() {
        use crate::addr::Protocol;
        use crate::channel::record::{FrontendKind, NetworkKind, NetworkRecord};
        use crate::index::ServicePortIndex;

        let port = Record::ServicePort(ServicePortRecord {
            namespace: "ns".into(),
            name: "web".into(),
            port_name: String::new(),
            ..service_port()
        });
        // kind, record kind, index ×4, protocol at 6, algorithm at 7, affinity at 8, policies at 12, names from 14
        assert_eq!(refusal(&port, |s| s[0] = 99), "99 is no message kind");
        assert_eq!(refusal(&port, |s| s[1] = 9), "9 is no record kind");
        assert_eq!(refusal(&port, |s| s[6] = 1), "1 is no protocol of a Service");
        assert_eq!(refusal(&port, |s| s[7] = 4), "4 is no algorithm");
        assert_eq!(
            refusal(&port, |s| s[10] = 9),
            "the affinity timeout in seconds is 600624, but at most 86400 is allowed"
        );
        assert_eq!(refusal(&port, |s| s[12] = 2), "2 is no externalTrafficPolicy");
        assert_eq!(
            refusal(&port, |s| s[14] = 64),
            "the namespace is 64 bytes long, but at most 63 are allowed"
        );
        assert_eq!(refusal(&port, |s| s[14] = 0), "the namespace is empty");
        assert_eq!(
            refusal(&port, |s| s[15] = 0xff),
            "the namespace is not printable UTF-8 text"
        );
        assert_eq!(
            refusal(&port, |s| s[15] = 0x1b),
            "the namespace is not printable UTF-8 text"
        );
        assert_eq!(
            refusal(&port, |s| s[255] = 1),
            "byte 255, after the last field, is not zero"
        );
        let nameless = Record::ServicePort(ServicePortRecord {
            name: String::new(),
            ..service_port()
        });
        assert_eq!(refusal(&nameless, |_| ()), "the Service name is empty");

        let frontend = Record::Frontend(FrontendRecord {
            address: [0; 4].into(),
            protocol: Protocol::UDP,
            port: 0,
            kind: FrontendKind::NodePort,
            service_port: ServicePortIndex(0),
        });
        assert_eq!(
            refusal(&frontend, |_| ()),
            "the frontend port is 0, but ports are 1 to 65535"
        );
        assert_eq!(refusal(&frontend, |s| s[7] = 2), "2 is no protocol of a Service");
        assert_eq!(
            refusal(&frontend, |s| s[2] = 5),
            "5 is no address family (4 or 6)"
        );

        let network = Record::Network(NetworkRecord {
            kind: NetworkKind::PodRange,
            network: "10.1.0.0/16".parse().unwrap(),
        });
        assert_eq!(
            refusal(&network, |s| s[8] = 33),
            "the prefix length is 33, but at most 32 is allowed"
        );
        assert_eq!(
            refusal(&network, |s| s[8] = 8),
            "the network 10.1.0.0/8 has address bits set beyond its prefix"
        );
    }

    #[test]
    fn a_name_too_long_is_refused_before_it_is_sent() {
        let record = ServicePortRecord {
            name: "x".repeat(64),
            ..service_port()
        };
        let error = Message::Put(Record::ServicePort(record)).encode().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the Service name is 64 bytes long, but at most 63 fit"
        );
    }

    #[test]
    fn the_text_of_a_nack_is_cut_and_kept_to_one_line() {
        let text = format!("a\nb{}", "ä".repeat(200));
        let nack = Nack {
            generation: Generation(1),
            message: 2,
            reason: NackReason::Refused,
            text,
        };
        let Ok(Message::Nack(read)) = Message::decode(&Message::Nack(nack).encode().unwrap()) else {
            panic!("a nack is read as a nack")
        };
        assert!(
            read.text.starts_with("a bää") && read.text.len() <= TEXT_MAX && read.text.len() > TEXT_MAX - 2
        );
    }
}
