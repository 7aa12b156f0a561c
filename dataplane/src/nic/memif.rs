//! FD.io's shared-memory packet interface, version 2.0: a NIC port whose other side is a process, as VPP and DPDK programs
//! have it (net_memif).
//!
//! A Unix socket tells of processes that come and go (`control`, a thread of its own, and `handshake`); packets go
//! through rings in shared memory (`ring`). A port without a peer receives nothing, and refuses and counts what it is given to
//! send. When a peer comes, or comes back, it works again by itself.
//!
//! Memory is of the client, which was once called slave. The peer of either role is not trusted with anything but its own
//! packets: see `region` for what it may do to shared memory, and `ring` for what becomes of it. A client may trust its server
//! with more: then frames themselves are lent to it, and nothing is copied here (`lend`).
//!
//! Interrupts: while a worker is busy its rings say that it wants none. One that is about to sleep asks for one, looks once
//! more, and sleeps. A peer that asks for them is sent them by the thread.

use std::cell::Cell;
use std::os::fd::BorrowedFd;

use super::open::PortSpec;
use super::registry::{Registry, Share};
use super::tap::station_mac;
use super::{Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link, OpenError};
use crate::addr::Mac;
use crate::channel::BindError;
use crate::segment::Region;

/// Messages on the socket.
pub mod message;
/// Agreement on regions and rings.
pub mod handshake;
/// Packets out of and into rings.
pub mod ring;
/// Frames in rings.
pub mod lend;
/// Either of them.
pub mod queue;
/// Shared memory.
mod region;
/// Pages that a peer takes away.
mod guard;
/// Where thread and port meet.
mod slot;
/// Messages on their way.
mod socket;
/// The thread.
mod control;

use control::Interface;
pub use handshake::Role;
use handshake::{Frames, Terms};
use ring::{Received, Sent};
use slot::Pair;

/// Bytes of a buffer if nothing else is said: a packet of Ethernet's MTU, as both other implementations have it.
pub const BUFFER_SIZE: u32 = 2048;
/// Smallest and largest buffer: a packet of 9,216 bytes in 64 of the smallest; the largest packet in one.
pub const BUFFER_SIZES: std::ops::RangeInclusive<u32> = 256..=65_536;

/// Longest path or name of a socket (unix(7)).
pub const SOCKET_MAX: usize = 107;

/// A port's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemifSpec {
    /// The socket's path, or a name in the abstract namespace behind an `@`.
    pub socket: String,
    /// Which end of it we are.
    pub role: Role,
    /// Number of the interface at that socket.
    pub id: u32,
    /// What the client must know, at most 23 bytes; empty: nothing.
    pub secret: String,
    /// Queue pairs, 1 to 64: one for each worker.
    pub queues: u16,
    /// Bytes of a buffer, as client: a multiple of 64, of `BUFFER_SIZES`.
    pub buffer_size: u32,
    /// As client: the worker's frames, in memory that can be shared, are lent to the server instead.
    pub zero_copy: bool,
    /// Whether a worker that is about to sleep asks the peer to wake it. If not it sees packets when it wakes by itself.
    pub interrupts: bool,
    /// Largest IP packet, in bytes.
    pub mtu: usize,
    /// Our address; none: one made of the interface's name and the role.
    pub mac: Option<Mac>,
    /// The station at the other side, if it is not to be asked for.
    pub peer_mac: Option<Mac>,
}

impl MemifSpec {
    /// Of interface 0 at `socket` and one queue pair: an open door, Ethernet's MTU, buffers and wake-ups as usual, stations by
    /// themselves.
    pub fn new(socket: impl Into<String>, role: Role) -> Self {
        Self {
            socket: socket.into(),
            role,
            id: 0,
            secret: String::new(),
            queues: 1,
            buffer_size: BUFFER_SIZE,
            zero_copy: false,
            interrupts: true,
            mtu: 1500,
            mac: None,
            peer_mac: None,
        }
    }
}

/// The interfaces of this process.
static INTERFACES: Registry<Key, Interface> = Registry::new();

/// Socket, role and number.
type Key = (String, Role, u32);

/// One queue of a memif interface.
#[derive(Debug)]
pub struct Memif {
    interface: Share<Key, Interface>,
    queue: usize,
    /// The rings of the link there is.
    pair: Option<Box<Pair>>,
    interrupts: bool,
    /// The peer may wake us: since `wait_fd`, until the next receive.
    armed: Cell<bool>,
    info: DriverInfo,
    stats: DriverStats,
}

impl Memif {
    /// Claims the spec's queue of the interface, which the first port of it opens.
    pub(crate) fn open(
        spec: &PortSpec,
        options: &MemifSpec,
        memory: &FrameMemory,
    ) -> Result<Self, OpenError> {
        spec.check_mtu(options.mtu, memory)?;
        check(spec, options)?;
        let interface = interface(spec, options)?;
        let queue = spec.queue as usize;
        let frames = options.zero_copy.then(|| frames(spec, memory)).transpose()?;
        if !interface.claim(queue, frames) {
            return Err(spec.refusal(
                format!("queue {queue} of {} is taken", options.queues),
                "give every worker a queue of its own",
            ));
        }
        let role = match options.role {
            Role::Server => "server",
            Role::Client => "client",
        };
        let buffers = match options.role {
            Role::Server => String::new(),
            Role::Client if options.zero_copy => format!("ring {}, ", spec.ring_size),
            Role::Client => format!(
                "ring {}, buffers of {} bytes, ",
                spec.ring_size, options.buffer_size
            ),
        };
        let copy = if options.zero_copy { "zero-copy" } else { "copy" };
        let info = DriverInfo {
            driver: "memif",
            interface: spec.interface.clone(),
            mode: format!(
                "{role} at {}, id {}, {} queues, {buffers}{copy}, {}",
                options.socket,
                options.id,
                options.queues,
                if options.interrupts {
                    "interrupts"
                } else {
                    "polling"
                }
            ),
            // The two ends of one name must differ.
            mac: options
                .mac
                .unwrap_or_else(|| station_mac(&format!("{} {role}", spec.interface))),
            peer_mac: options.peer_mac,
            mtu: options.mtu,
        };
        Ok(Self {
            interface,
            queue,
            pair: None,
            interrupts: options.interrupts,
            armed: Cell::new(false),
            info,
            stats: DriverStats::default(),
        })
    }

    /// The rings of the newest link, if there is one.
    #[inline(always)]
    fn refresh(&mut self, memory: &mut FrameMemory) {
        let slot = &self.interface.shared.slots[self.queue];
        if slot.is_newer() && slot.take(&mut self.pair, memory) {
            self.interface.shared.kick();
        }
    }

    /// Gives up on the link: its peer does not keep to the protocol.
    #[cold]
    fn give_up(&mut self, link: u32, memory: &mut FrameMemory) {
        self.interface.shared.broken(self.queue, link);
        if let Some(pair) = &mut self.pair {
            pair.end(memory);
            pair.rx = None;
            pair.tx = None;
        }
    }
}

impl Driver for Memif {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.refresh(memory);
        if self.armed.take() {
            self.interface.shared.slots[self.queue].quiet();
            if let Some(rx) = self.pair.as_ref().and_then(|pair| pair.rx.as_ref()) {
                rx.want_interrupt(false);
            }
        }
        let Some(pair) = &mut self.pair else { return };
        let Some(rx) = &mut pair.rx else { return };
        let mut received = Received::default();
        let free = pair.tx.as_mut().map_or(Ok(()), |tx| tx.reclaim(memory));
        let result = free.and_then(|()| rx.receive(memory, frames, &mut received));
        self.stats.rx_packets += received.packets;
        self.stats.rx_bytes += received.bytes;
        self.stats.rx_errors += received.bad_descriptors + received.bad_lengths;
        self.stats.rx_bad_descriptors += received.bad_descriptors;
        if result.is_err() {
            let link = pair.link;
            self.give_up(link, memory);
        }
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.refresh(memory);
        if let Some(pair) = &mut self.pair
            && let Some(tx) = &mut pair.tx
        {
            let mut sent = Sent::default();
            let result = tx.send(memory, frames, &mut sent);
            self.stats.tx_packets += sent.packets;
            self.stats.tx_bytes += sent.bytes;
            if sent.interrupt {
                self.interface.shared.interrupt(self.queue);
            }
            if result.is_ok() {
                return;
            }
            let link = pair.link;
            self.give_up(link, memory);
        }
        self.stats.tx_unlinked += frames.len() as u64;
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        let slot = &self.interface.shared.slots[self.queue];
        if self.interrupts
            && let Some(rx) = self.pair.as_ref().and_then(|pair| pair.rx.as_ref())
        {
            rx.want_interrupt(true);
            // What came before the wish was seen comes without an interrupt.
            if rx.ready() != Ok(0) {
                slot.wake();
            }
        }
        self.armed.set(true);
        Some(slot.events())
    }

    fn has_peer(&self) -> bool {
        self.pair.as_ref().is_some_and(|pair| pair.tx.is_some())
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        self.stats
    }

    fn link(&self) -> Link {
        if self.interface.shared.slots[self.queue].is_up() {
            Link::Up
        } else {
            Link::Gone
        }
    }

    /// What a server still writes into frames that were lent to it may garble a packet: it hears a moment later.
    fn close(mut self: Box<Self>, memory: &mut FrameMemory) {
        if let Some(pair) = &mut self.pair {
            pair.end(memory);
        }
    }
}

impl Drop for Memif {
    fn drop(&mut self) {
        self.pair = None;
        self.interface.give_up(self.queue);
    }
}

fn check(spec: &PortSpec, options: &MemifSpec) -> Result<(), OpenError> {
    if !(1..=64).contains(&options.queues) || spec.queue >= u32::from(options.queues) {
        let what = format!("queue {} of {}", spec.queue, options.queues);
        return Err(spec.refusal(what, "use 1 to 64 queues"));
    }
    if options.socket.is_empty() {
        return Err(spec.refusal("no socket is named", "give a path, or @ and a name"));
    }
    if spec.ring_size > 1 << region::MAX_LOG2_RING {
        let most = 1 << region::MAX_LOG2_RING;
        return Err(spec.refusal(
            format!("a ring of {}", spec.ring_size),
            format!("use at most {most}"),
        ));
    }
    if options.zero_copy && options.role == Role::Server {
        return Err(spec.refusal(
            "zero-copy as server: the memory is the client's",
            "be its client, or leave zeroCopy out",
        ));
    }
    if options.secret.len() >= message::SECRET {
        return Err(spec.refusal("its secret is too long", "use at most 23 bytes"));
    }
    if !BUFFER_SIZES.contains(&options.buffer_size) || !options.buffer_size.is_multiple_of(64) {
        let what = format!("buffers of {} bytes", options.buffer_size);
        return Err(spec.refusal(what, "use a multiple of 64 from 256 to 65536, as 2048"));
    }
    let bytes = terms(spec, options).bytes(2 * u64::from(options.queues));
    if u32::try_from(bytes).is_err() {
        let what = format!("{bytes} bytes of buffers, more than the protocol's 4 GiB");
        return Err(spec.refusal(what, "lower ringSize, the buffers' size or the number of workers"));
    }
    Ok(())
}

/// What is lent of a worker's frames: all of them.
fn frames(spec: &PortSpec, memory: &FrameMemory) -> Result<Frames, OpenError> {
    let Some(file) = memory.region().and_then(Region::memfd) else {
        return Err(spec.refusal(
            "zero-copy with frames in memory that cannot be shared",
            "list this port before any netmap port",
        ));
    };
    let bytes = (memory.capacity() * memory.chunk_size()) as u64;
    if u32::try_from(bytes).is_err() {
        return Err(spec.refusal(
            format!("zero-copy with {bytes} bytes of frames, more than the protocol's 4 GiB"),
            "lower frames.count",
        ));
    }
    match file.try_clone_to_owned() {
        Ok(file) => Ok(Frames { file, bytes }),
        Err(error) => Err(spec.error(
            "cannot hand over the frames",
            "raise the limit of open files",
            error,
        )),
    }
}

fn terms(spec: &PortSpec, options: &MemifSpec) -> Terms {
    Terms {
        name: spec.interface.clone(),
        role: options.role,
        id: options.id,
        secret: options.secret.clone(),
        queues: options.queues,
        log2_ring: spec.ring_size.ilog2() as u8,
        buffer_size: options.buffer_size,
        lends: options.zero_copy,
    }
}

/// The interface another port has opened, or a new one.
fn interface(spec: &PortSpec, options: &MemifSpec) -> Result<Share<Key, Interface>, OpenError> {
    let terms = terms(spec, options);
    let fits = |there: &Interface| {
        if there.terms == terms {
            return Ok(true);
        }
        Err(spec.refusal(
            format!(
                "{} has id {} already, opened otherwise",
                options.socket, options.id
            ),
            "give every memif port a socket or an id of its own",
        ))
    };
    let make = || {
        Interface::open(&options.socket, terms.clone()).map_err(|error| match error {
            BindError::Io { error, .. } => spec.error(
                format!("cannot use {}", options.socket),
                "check that its folder exists and may be written to",
                error,
            ),
            error => spec.refusal(error.to_string(), "choose another socket"),
        })
    };
    INTERFACES.hold((options.socket.clone(), options.role, options.id), fits, make)
}
