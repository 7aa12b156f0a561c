//! How the two ends agree on regions and rings.
//!
//! Takes  the peer's messages, one by one, each with the file that came along.
//! Gives  the answer to each, and in the end a link: the rings of every queue.
//! Never  waits, touches a socket, or believes a number: whatever does not fit ends the handshake with a sentence, which is
//! both for our log and for the peer.
//!
//! The server says hello, the client names the interface (init), adds regions and rings, and connects; the server acknowledges
//! each message, and the client waits for that.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::lend::{LentRx, LentTx};
use super::message::{ETHERNET, Message, RingPlace, Text, VERSION, Way};
use super::queue::{Rx, Tx};
use super::region::{MAX_LOG2_RING, Region, Ring, ring_bytes};
use super::ring::{End, RxRing, STRIDE_EXTRA, TxRing};

/// Most regions of a peer: one with rings and buffers is usual, one for each pool of its buffers the most there is use for.
pub const MAX_REGIONS: u16 = 16;
/// Most bytes of all regions together: a descriptor's offset has 32 bits, so a region has no use for more.
const MAX_BYTES: u64 = 1 << 32;

/// Which end of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Listens; the memory is the other's. Once called master.
    Server,
    /// Connects, and brings the memory. Once called slave.
    Client,
}

/// What we bring to the agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Our interface's name, for the peer's eyes.
    pub name: String,
    /// Which end we are.
    pub role: Role,
    /// Number of the interface at its socket.
    pub id: u32,
    /// What the client must know; empty: nothing.
    pub secret: String,
    /// Queue pairs, 1 to 64.
    pub queues: u16,
    /// Logarithm of the descriptors in a ring: ours as client; the most we take is what the protocol can.
    pub log2_ring: u8,
    /// Bytes of a buffer, as client: a packet may have several.
    pub buffer_size: u32,
    /// As client: no buffers, frames are lent.
    pub lends: bool,
}

/// A worker's frame memory, to be lent to the server.
#[derive(Debug)]
pub struct Frames {
    /// All of it.
    pub file: OwnedFd,
    /// Its bytes, at most 4 GiB.
    pub bytes: u64,
}

impl Frames {
    /// The same memory once more. Errors: no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            bytes: self.bytes,
        })
    }
}

/// What was agreed on.
#[derive(Debug)]
pub struct Link {
    /// One for each of our queues.
    pub queues: Vec<Queue>,
    /// Program and interface of the peer.
    pub peer: String,
    /// Bytes of shared memory.
    pub bytes: u64,
}

/// A queue pair: what the peer has not brought is not there.
#[derive(Debug, Default)]
pub struct Queue {
    /// Packets to us.
    pub rx: Option<Rx>,
    /// Packets from us.
    pub tx: Option<Tx>,
    /// The peer writes to it when packets are there and we asked for it: an eventfd.
    pub rx_interrupt: Option<OwnedFd>,
    /// We write to it when the peer asked for it: an eventfd, which a hostile peer may make block.
    pub tx_interrupt: Option<OwnedFd>,
}

/// What to say next, and the link if there is one now.
#[derive(Debug, Default)]
pub struct Reply {
    /// The answer and the file that goes along.
    pub answer: Option<(Message, Option<OwnedFd>)>,
    /// The end of the handshake.
    pub link: Option<Link>,
}

/// Why there will be no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// One handshake.
#[derive(Debug)]
pub struct Handshake {
    terms: Terms,
    /// Of each queue, if frames are lent.
    frames: Vec<Frames>,
    state: State,
    /// Mapped here: not those that are frame memory.
    regions: Vec<Region>,
    rings: Vec<(RingPlace, OwnedFd)>,
    peer: String,
    /// Bytes of frames that were lent.
    lent: u64,
}

#[derive(Debug)]
enum State {
    /// Server: nothing heard yet.
    Greeted,
    /// Server: regions and rings come.
    Collecting,
    /// Client: nothing heard yet.
    Waiting,
    /// Client: what is left to say, a message for every acknowledgement.
    Telling(VecDeque<(Message, Option<OwnedFd>)>),
    /// Over.
    Done,
}

impl Handshake {
    /// At its beginning. `frames`: of each queue if the terms say that they are lent, else none.
    pub const fn new(terms: Terms, frames: Vec<Frames>) -> Self {
        let state = match terms.role {
            Role::Server => State::Greeted,
            Role::Client => State::Waiting,
        };
        Self {
            terms,
            frames,
            state,
            regions: Vec::new(),
            rings: Vec::new(),
            peer: String::new(),
            lent: 0,
        }
    }

    /// Server: the first message.
    pub fn greeting(&self) -> Option<Message> {
        (self.terms.role == Role::Server).then(|| Message::Hello {
            name: Text::new(PROGRAM),
            versions: (VERSION, VERSION),
            max_region: MAX_REGIONS - 1,
            max_to_client: self.terms.queues - 1,
            max_to_server: self.terms.queues - 1,
            max_log2_size: MAX_LOG2_RING,
        })
    }

    /// The peer's next message.
    pub fn receive(&mut self, message: Message, file: Option<OwnedFd>) -> Result<Reply, Refusal> {
        let say = |message| Reply {
            answer: Some((message, None)),
            link: None,
        };
        match (&mut self.state, message) {
            (
                State::Greeted,
                Message::Init {
                    version,
                    id,
                    mode,
                    secret,
                    name,
                },
            ) => {
                self.admit(version, id, mode, secret.bytes())?;
                self.peer = name.to_string();
                self.state = State::Collecting;
                Ok(say(Message::Ack))
            }
            (State::Collecting, Message::AddRegion { index, size }) => {
                self.add_region(index, size, file)?;
                Ok(say(Message::Ack))
            }
            (State::Collecting, Message::AddRing(place)) => {
                self.add_ring(place, file)?;
                Ok(say(Message::Ack))
            }
            (State::Collecting, Message::Connect { name }) => {
                self.peer += &format!(" {name}");
                let name = Text::new(&self.terms.name);
                Ok(Reply {
                    link: Some(self.link()?),
                    ..say(Message::Connected { name })
                })
            }
            (
                State::Waiting,
                Message::Hello {
                    name,
                    versions,
                    max_region,
                    max_to_client,
                    max_to_server,
                    max_log2_size,
                },
            ) => {
                if versions.0 > VERSION || versions.1 < VERSION {
                    return Err("incompatible version: this end speaks 2.0".into());
                }
                self.peer = name.to_string();
                let most = |max: u16| self.terms.queues.min(max.saturating_add(1));
                if self.frames.len() > usize::from(max_region) {
                    return Err(Refusal(format!(
                        "the server takes {} regions: too few for rings and the frames of {} queues",
                        u32::from(max_region) + 1,
                        self.frames.len()
                    )));
                }
                self.offer(
                    [most(max_to_server), most(max_to_client)],
                    self.terms.log2_ring.min(max_log2_size),
                )?;
                Ok(self.next())
            }
            (State::Telling(_), Message::Ack) => Ok(self.next()),
            (State::Telling(left), Message::Connected { name }) if left.is_empty() => {
                self.peer += &format!(" {name}");
                Ok(Reply {
                    link: Some(self.link()?),
                    answer: None,
                })
            }
            (_, Message::Disconnect { reason, .. }) => Err(Refusal(format!("the peer says: {reason}"))),
            (_, other) => Err(Refusal(format!("unexpected message: {}", kind(&other)))),
        }
    }

    fn admit(&self, version: u16, id: u32, mode: u8, secret: &[u8]) -> Result<(), Refusal> {
        let ours = self.terms.secret.as_bytes();
        // Every byte is looked at, so that the time it takes tells nothing of where the first wrong one is.
        let same =
            secret.len() == ours.len() && secret.iter().zip(ours).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0;
        let wrong = if version != VERSION {
            Some("incompatible version: this end speaks 2.0")
        } else if id != self.terms.id {
            Some("ID not found")
        } else if mode != ETHERNET {
            Some("only Ethernet mode is supported")
        } else if !ours.is_empty() && !same {
            Some("incorrect secret")
        } else {
            None
        };
        wrong.map_or(Ok(()), |wrong| Err(wrong.into()))
    }

    fn add_region(&mut self, index: u16, size: u64, file: Option<OwnedFd>) -> Result<(), Refusal> {
        let file = file.ok_or("a region without its file")?;
        if usize::from(index) != self.regions.len() || index >= MAX_REGIONS {
            return Err(Refusal(format!(
                "region {index}: they are numbered from 0 to {}",
                MAX_REGIONS - 1
            )));
        }
        if size > MAX_BYTES - self.bytes().min(MAX_BYTES) {
            return Err(Refusal(format!("regions of more than {MAX_BYTES} bytes")));
        }
        let region =
            Region::adopt(file, size).map_err(|error| Refusal(format!("region {index}: {error}")))?;
        self.regions.push(region);
        Ok(())
    }

    fn add_ring(&mut self, place: RingPlace, file: Option<OwnedFd>) -> Result<(), Refusal> {
        let file = file.ok_or("a ring without its interrupt")?;
        let before = self.rings.iter().filter(|(p, _)| p.way == place.way).count();
        if usize::from(place.index) != before || place.index >= self.terms.queues {
            return Err(Refusal(format!(
                "ring {}: they are numbered from 0 to {}",
                place.index,
                self.terms.queues - 1
            )));
        }
        if place.private_header != 0 {
            return Err("private headers are not supported".into());
        }
        if !is_eventfd(&file) {
            return Err("a ring's interrupt must be an eventfd".into());
        }
        self.rings.push((place, file));
        Ok(())
    }

    /// Client: makes the memory and the rings in it, and all that is to be said about them.
    fn offer(&mut self, [to_server, to_client]: [u16; 2], log2_size: u8) -> Result<(), Refusal> {
        let failed = |error: io::Error| Refusal(format!("no memory or descriptors for the regions: {error}"));
        self.terms.log2_ring = log2_size;
        let rings = u64::from(to_server + to_client);
        let bytes = usize::try_from(self.terms.bytes(rings))
            .map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let region = Region::create(bytes).map_err(failed)?;
        let file = region
            .file()
            .map(|file| file.try_clone_to_owned())
            .transpose()
            .map_err(failed)?;
        let init = Message::Init {
            version: VERSION,
            id: self.terms.id,
            mode: ETHERNET,
            secret: Text::new(&self.terms.secret),
            name: Text::new(PROGRAM),
        };
        let size = bytes as u64;
        let mut left = VecDeque::from([(init, None), (Message::AddRegion { index: 0, size }, file)]);
        for (queue, frames) in (0..).zip(std::mem::take(&mut self.frames)) {
            let (index, size) = (frame_region(queue), frames.bytes);
            self.lent += size;
            left.push_back((Message::AddRegion { index, size }, Some(frames.file)));
        }
        let numbered = |way, count| (0..count).map(move |index| (way, index));
        for (way, index) in numbered(Way::ToServer, to_server).chain(numbered(Way::ToClient, to_client)) {
            let place = RingPlace {
                way,
                index,
                region: 0,
                offset: (self.rings.len() * ring_bytes(1 << log2_size)) as u32,
                log2_size,
                private_header: 0,
            };
            region.mark_ring(place.offset);
            let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|error| failed(error.into()))?;
            let copy = interrupt.try_clone().map_err(failed)?;
            left.push_back((Message::AddRing(place), Some(copy)));
            self.rings.push((place, interrupt));
        }
        let name = Text::new(&self.terms.name);
        left.push_back((Message::Connect { name }, None));
        self.regions.push(region);
        self.state = State::Telling(left);
        Ok(())
    }

    /// Client: the next of what is to be told.
    fn next(&mut self) -> Reply {
        let answer = match &mut self.state {
            State::Telling(left) => left.pop_front(),
            _ => None,
        };
        Reply { answer, link: None }
    }

    /// The rings as queues, if each is where its message says.
    fn link(&mut self) -> Result<Link, Refusal> {
        let Terms {
            role,
            queues,
            log2_ring,
            buffer_size,
            lends,
            ..
        } = self.terms;
        let bytes = self.bytes() + self.lent;
        let regions: Arc<[Region]> = std::mem::take(&mut self.regions).into();
        let rings = std::mem::take(&mut self.rings);
        self.state = State::Done;
        // Client: the buffers begin behind the rings, a ring's worth after the other.
        let (first, share) = (
            rings.len() * ring_bytes(1 << log2_ring),
            (buffer_size + STRIDE_EXTRA) << log2_ring,
        );
        let mut queues: Vec<Queue> = (0..queues).map(|_| Queue::default()).collect();
        for (nth, (place, interrupt)) in rings.into_iter().enumerate() {
            let ring =
                Ring::at(&regions, place.region, place.offset, place.log2_size).filter(Ring::is_marked);
            let (Some(ring), Some(queue)) = (ring, queues.get_mut(usize::from(place.index))) else {
                return Err(Refusal(format!(
                    "ring {}: there is none where it is said to be",
                    place.index
                )));
            };
            let end = match role {
                Role::Server => End::Server,
                Role::Client => End::Client {
                    first: first as u32 + nth as u32 * share,
                    size: buffer_size,
                },
            };
            let regions = Arc::clone(&regions);
            let frames = frame_region(place.index);
            if (place.way == Way::ToServer) == (role == Role::Server) {
                queue.rx = Some(if lends {
                    Rx::Lending(LentRx::new(ring, frames))
                } else {
                    Rx::Copying(RxRing::new(ring, end, regions))
                });
                queue.rx_interrupt = Some(interrupt);
            } else {
                queue.tx = Some(if lends {
                    Tx::Lending(LentTx::new(ring, frames))
                } else {
                    Tx::Copying(TxRing::new(ring, end, regions))
                });
                queue.tx_interrupt = Some(interrupt);
            }
        }
        Ok(Link {
            queues,
            peer: std::mem::take(&mut self.peer),
            bytes,
        })
    }

    fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.len() as u64).sum()
    }
}

impl Terms {
    /// Bytes of shared memory that a client brings for so many rings, frames apart.
    pub fn bytes(&self, rings: u64) -> u64 {
        let buffers = if self.lends {
            0
        } else {
            u64::from(self.buffer_size + STRIDE_EXTRA) << self.log2_ring
        };
        rings * (ring_bytes(1 << self.log2_ring) as u64 + buffers)
    }
}

/// The region that a queue's frames are: 0 has the rings.
const fn frame_region(queue: u16) -> u16 {
    1 + queue
}

/// What both ends call themselves.
const PROGRAM: &str = concat!("Sluice ", env!("CARGO_PKG_VERSION"));

/// What is written to or waited on for a peer must be an eventfd: anything else could stop us, or do things. The kernel's
/// word, since an eventfd has no call that tells (proc(5)): a file with a path cannot have this name.
fn is_eventfd(file: &OwnedFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]")
}

const fn kind(message: &Message) -> &'static str {
    match message {
        Message::Ack => "ack",
        Message::Hello { .. } => "hello",
        Message::Init { .. } => "init",
        Message::AddRegion { .. } => "add region",
        Message::AddRing(_) => "add ring",
        Message::Connect { .. } => "connect",
        Message::Connected { .. } => "connected",
        Message::Disconnect { .. } => "disconnect",
    }
}

#[cfg(test)]
#[cfg(not(miri))]
pub(super) mod tests;
