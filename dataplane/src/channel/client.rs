//! Control's end of the channel.
//!
//! Takes  the socket's path, then differences to publish.     Gives  what the dataplane has, then its answers.
//! Never  returns from `publish` before the dataplane has answered, is gone, or has been silent for too long.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::counters::CounterPages;
use crate::index::Generation;

use super::codec::{DecodeError, EncodeError, Slot};
use super::cursor::CorruptIndex;
use super::digest::Digest;
use super::fingerprint::layout_hash;
use super::layout::{LayoutError, Segment, VERSION, Way};
use super::message::{Message, Nack};
use super::record::{Key, Record};
use super::ring::{RingReader, RingWriter};
use super::socket::{self, Doorbell, Greeting};

/// Most records a dump may have: four times what one transaction may put by default. A dataplane that sends more is
/// out of its mind, and shall not take control's memory with it.
const DUMP_MAX: usize = 1 << 22;

/// How long a dataplane may be silent where it should speak. Its steward builds tables of all capacities in less; one
/// that takes longer is stopped or stuck, and whoever waits for it has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What the dataplane has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// 0 for a dataplane that no control has spoken to.
    pub generation: Generation,
    /// Every record, in no order.
    pub records: Vec<Record>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error(
        "no dataplane listens at {path} ({error}): start sluice-dataplane, or correct the channel's path"
    )]
    NoDataplane {
        /// The socket's path.
        path: PathBuf,
        /// What connect(2) said.
        error: io::Error,
    },
    /// The dataplane does not want us.
    #[error("the dataplane refused the connection: {0}")]
    Refused(String),
    /// The two programs do not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The dump is not what the dataplane said it was.
    #[error(
        "the dataplane's dump is incomplete: {said} records were announced, {arrived} arrived, or their digests differ"
    )]
    Dump {
        /// Records announced.
        said: u64,
        /// Records that arrived.
        arrived: u64,
    },
    /// It went away.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why an update was not committed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The dataplane refused it, and has what it had before.
    #[error("the dataplane refused the update: {0}")]
    Refused(Nack),
    /// It cannot be said; the dataplane has what it had before.
    #[error("the update cannot be sent, message {message}: {error}")]
    Unsendable {
        /// Its number: deletes count from 1, puts go on after them.
        message: u64,
        /// Why.
        error: EncodeError,
    },
    /// The dataplane is gone; whether it committed is known after the next connect.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why the connection is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// It closed, or died.
    #[error("the dataplane closed the channel")]
    Closed,
    /// It wrote nonsense into the ring.
    #[error("the dataplane sent a malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// It wrote nonsense into the ring's indices.
    #[error("the channel is corrupt: {0}")]
    Corrupt(#[from] CorruptIndex),
    /// It said something that is no answer.
    #[error("the dataplane sent a {0} where it should answer")]
    Unexpected(&'static str),
    /// It is there and says nothing.
    #[error("the dataplane has not answered for {0:?}: it is stopped or stuck")]
    Silent(Duration),
    /// The system refused.
    #[error("the channel failed: {0}")]
    Io(String),
}

/// A connection to a dataplane; the only one it has.
#[derive(Debug)]
pub struct Connection {
    doorbell: Doorbell,
    inbox: RingReader,
    outbox: RingWriter,
    counters: CounterPages,
    patience: Duration,
    /// Why it is over, once it is.
    lost: Option<Lost>,
    /// The other end is closed; what it published before may still be read.
    closed: bool,
}

impl Connection {
    /// Connects to the dataplane that listens at `path` and learns what it has. Blocks until it has answered, or has
    /// been silent for `PATIENCE`.
    pub fn connect(path: impl AsRef<Path>) -> Result<(Self, Inventory), ConnectError> {
        Self::connect_within(path, PATIENCE)
    }

    /// As `connect`, with another patience, for this and all that follows on the connection.
    pub fn connect_within(
        path: impl AsRef<Path>,
        patience: Duration,
    ) -> Result<(Self, Inventory), ConnectError> {
        let path = path.as_ref();
        let no_dataplane = |error| ConnectError::NoDataplane {
            path: path.to_owned(),
            error,
        };
        let socket = match socket::connect(path) {
            // It listens, but its queue of connections is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Lost::Silent(patience).into());
            }
            socket => socket.map_err(no_dataplane)?,
        };
        let greeting = match socket::receive(&socket, patience) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Lost::Silent(patience).into());
            }
            greeting => greeting.map_err(no_dataplane)?,
        };
        let segment = match greeting {
            Greeting::Segment(memfd) => Segment::adopt(memfd)?,
            Greeting::Refused(sentence) => return Err(ConnectError::Refused(sentence)),
        };
        let mut connection = Self {
            doorbell: Doorbell::new(socket),
            inbox: RingReader::new(&segment, Way::ToControl),
            outbox: RingWriter::new(&segment, Way::ToDataplane),
            counters: CounterPages::new(segment.counter_words()),
            patience,
            lost: None,
            closed: false,
        };
        let inventory = connection.inventory()?;
        Ok((connection, inventory))
    }

    /// Makes the dataplane's table be without `deletes` and with `puts`, as generation `generation`, whole or not at
    /// all. Blocks until the dataplane has answered, is gone, or has been silent for as long as the connection's patience.
    pub fn publish(
        &mut self,
        generation: Generation,
        deletes: &[Key],
        puts: &[Record],
    ) -> Result<(), PublishError> {
        self.send(&encode(&Message::Begin { generation }, 0)?)?;
        let mut digest = Digest::default();
        let deletes = deletes.iter().map(|key| Message::Delete(key.clone()));
        for message in deletes.chain(puts.iter().map(|record| Message::Put(record.clone()))) {
            let slot = encode(&message, digest.count + 1)?;
            digest.add(&slot);
            self.send(&slot)?;
        }
        let commit = Message::Commit {
            generation,
            count: digest.count,
            digest: digest.sum,
        };
        self.send(&encode(&commit, digest.count + 1)?)?;
        self.publish_sent();
        match self.receive()? {
            Message::Ack { generation: acked } if acked == generation => Ok(()),
            answer => Err(self.refusal(answer)),
        }
    }

    /// The counter pages of the dataplane's workers, live; after its end, as they were last.
    pub const fn counters(&self) -> &CounterPages {
        &self.counters
    }

    /// Whether the dataplane is still there.
    pub fn is_alive(&self) -> bool {
        self.lost.is_none() && !self.closed && !self.doorbell.is_hung_up()
    }

    /// Says hello and reads the dump.
    fn inventory(&mut self) -> Result<Inventory, ConnectError> {
        let hello = Message::Hello {
            version: VERSION,
            layout_hash: layout_hash(),
        };
        for message in [hello, Message::DumpRequest] {
            // Neither has a name that could be too long, and the ring is empty.
            if let Ok(slot) = message.encode() {
                self.outbox.push(&slot).map_err(Lost::from)?;
            }
        }
        self.publish_sent();
        let (mut records, mut digest) = (Vec::new(), Digest::default());
        loop {
            let (slot, message) = self.receive_slot()?;
            match message {
                Message::DumpRecord(record) if records.len() < DUMP_MAX => {
                    digest.add(&slot);
                    records.push(record);
                }
                Message::DumpEnd {
                    generation,
                    count,
                    digest: sum,
                } => {
                    if (count, sum) != (digest.count, digest.sum) {
                        return Err(ConnectError::Dump {
                            said: count,
                            arrived: digest.count,
                        });
                    }
                    return Ok(Inventory { generation, records });
                }
                Message::Nack(nack) => return Err(ConnectError::Refused(nack.to_string())),
                other => return Err(self.lose(Lost::Unexpected(other.name())).into()),
            }
        }
    }

    /// Puts a message into the ring, waiting for room; an answer that comes before its question ends is a refusal.
    fn send(&mut self, slot: &Slot) -> Result<(), PublishError> {
        loop {
            if let Some(lost) = &self.lost {
                return Err(lost.clone().into());
            }
            if self.outbox.push(slot).map_err(|error| self.lose(error.into()))? {
                return Ok(());
            }
            self.publish_sent();
            if let Some((_, answer)) = self.received()? {
                return Err(self.refusal(answer));
            }
            self.wait()?;
        }
    }

    fn publish_sent(&mut self) {
        if self.outbox.publish() {
            self.doorbell.ring();
        }
    }

    fn receive(&mut self) -> Result<Message, Lost> {
        self.receive_slot().map(|(_, message)| message)
    }

    /// The next message and its bytes, waiting for it.
    fn receive_slot(&mut self) -> Result<(Slot, Message), Lost> {
        loop {
            if let Some(received) = self.received()? {
                return Ok(received);
            }
            self.wait()?;
        }
    }

    /// The next message, if there is one.
    fn received(&mut self) -> Result<Option<(Slot, Message)>, Lost> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let Some(slot) = self.inbox.pop().map_err(|error| self.lose(error.into()))? else {
            if self.inbox.release() {
                self.doorbell.ring();
            }
            return Ok(None);
        };
        let message = Message::decode(&slot).map_err(|error| self.lose(error.into()))?;
        Ok(Some((slot, message)))
    }

    /// Waits for a bell. The first time the other end is found closed the rings are worth one more look.
    fn wait(&mut self) -> Result<(), Lost> {
        if self.closed {
            return Err(self.lose(Lost::Closed));
        }
        match self.doorbell.wait(self.patience) {
            Ok(true) => {}
            Ok(false) => return Err(self.lose(Lost::Silent(self.patience))),
            Err(error) => return Err(self.lose(Lost::Io(error.to_string()))),
        }
        self.closed = !self.doorbell.drain();
        Ok(())
    }

    fn refusal(&mut self, answer: Message) -> PublishError {
        match answer {
            Message::Nack(nack) => PublishError::Refused(nack),
            other => self.lose(Lost::Unexpected(other.name())).into(),
        }
    }

    fn lose(&mut self, lost: Lost) -> Lost {
        self.lost.get_or_insert(lost).clone()
    }
}

/// Readable or hung up when there is something to learn from `is_alive`.
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}

fn encode(message: &Message, number: u64) -> Result<Slot, PublishError> {
    message.encode().map_err(|error| PublishError::Unsendable {
        message: number,
        error,
    })
}
