//! Takes  fragments, whole or broken apart, in any order.   Gives  them on with the ports of their datagram.
//! Drops  BadFragment, FragmentsFull, FragmentTimeout.
//! Never  puts a datagram together: its fragments leave as they came, each translated alike (FRG-1).
//! Next   `lookup`.
//!
//! Only the first fragment of a datagram carries ports. What comes after it borrows them; what comes before it is held, in
//! memory of its own so that frames for the ring never run out, until the first arrives or the datagram's time is up.
//! A datagram is forgotten when all its bytes have been seen, so that its identifier may be used again at once.

use std::collections::{HashMap, VecDeque};
use std::io;

use crate::addr::{Address, FlowKey, Port, Protocol, V4, V6};
use crate::index::NicPortIndex;
use crate::nic::FrameMemory;
use crate::parse::{Fragment, Packet};
use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::verdict::DropReason;
use crate::wire::{Ip, Ipv4, Ipv6, sctp, tcp, udp};

mod datagram;

use datagram::Datagram;
pub use datagram::Piece;

/// How fragments are kept.
#[derive(Clone, Copy, Debug)]
pub struct FragmentConfig {
    /// Datagrams under way at once, per worker and family. The oldest makes room for a new one.
    pub datagrams: usize,
    /// Fragments held at once, per worker and family, for firsts that have not come.
    pub held: usize,
    /// Bytes that a held fragment may have: a frame's.
    pub frame_size: usize,
}

impl Default for FragmentConfig {
    /// 1,024 datagrams are more than any link loses or reorders in 30 s short of a flood; what is held of them waits for
    /// milliseconds, so 128 frames are many.
    fn default() -> Self {
        Self {
            datagrams: 1_024,
            held: 128,
            frame_size: 2_048,
        }
    }
}

/// An address family whose packets can be fragments.
pub trait Fragmented: Ip {
    /// How long a datagram may take: as Linux (net.ipv4.ipfrag_time, net.ipv6.ip6frag_time).
    const TIMEOUT: u32;

    /// Where the fragment that `parse` proved `packet` of belongs; `None` if it is none.
    fn piece(bytes: &[u8], packet: &Packet<Self>) -> Option<Piece>;
}

/// What the first fragment tells of all: IPv6's others do not even say the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Protocol.
    pub protocol: Protocol,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// Bytes of the whole datagram from the transport header on, 0 while that is not known (SCTP's checksum needs it).
    pub length: u16,
}

impl Transport {
    /// Of a packet that was given it.
    pub const fn of<A: Ip>(packet: &Packet<A>) -> Self {
        Self {
            protocol: packet.key.protocol,
            src_port: packet.key.src_port,
            dst_port: packet.key.dst_port,
            length: packet.transport_len,
        }
    }

    /// Gives it to a fragment.
    pub fn give<A: Ip>(self, packet: &mut Packet<A>) {
        packet.key.protocol = self.protocol;
        packet.key.src_port = self.src_port;
        packet.key.dst_port = self.dst_port;
        packet.transport_len = self.length;
    }

    const fn without_ports(protocol: Protocol) -> Self {
        Self {
            protocol,
            src_port: Port([0; 2]),
            dst_port: Port([0; 2]),
            length: 0,
        }
    }
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Its datagram has this transport header.
    Known(Transport),
    /// It was copied, and waits.
    Held,
    /// It goes no further.
    Drop(DropReason),
}

/// One worker's datagrams of one family.
pub struct Fragments<A: Address> {
    datagrams: HashMap<FlowKey<A>, Datagram>,
    /// In the order they began. All have the same time, so the first is the next to run out.
    by_age: VecDeque<(Tick, FlowKey<A>)>,
    memory: FrameMemory,
    limit: usize,
    /// Whose held fragments may go.
    ready: VecDeque<FlowKey<A>>,
    /// Held fragments that made room for others, not yet told.
    evicted: usize,
}

impl<A: Fragmented> Fragments<A> {
    /// Room as configured. Errors: InvalidInput for a frame size that is none; ENOMEM.
    pub fn new(config: FragmentConfig) -> io::Result<Self> {
        let limit = config.datagrams.max(1);
        Ok(Self {
            // Twice what is ever in it: a hash map with room to spare never allocates again.
            datagrams: HashMap::with_capacity(2 * limit),
            by_age: VecDeque::with_capacity(2 * limit),
            memory: FrameMemory::new(config.held.max(1), config.frame_size)?,
            limit,
            ready: VecDeque::with_capacity(limit),
            evicted: 0,
        })
    }

    /// Notes a fragment, received on `port`, and says what becomes of it. `bytes` is the frame.
    pub fn pass(&mut self, packet: &Packet<A>, bytes: &[u8], port: NicPortIndex, now: Tick) -> Passage {
        let Some(piece) = A::piece(bytes, packet) else {
            return Passage::Drop(DropReason::BadFragment);
        };
        // All but the last carry multiples of eight bytes (RFC 791 §3.1, RFC 8200 §4.5).
        if piece.end <= piece.start || piece.end > 65_535 || !piece.last && (piece.end - piece.start) % 8 != 0
        {
            return Passage::Drop(DropReason::BadFragment);
        }
        if A::BITS == V4::BITS && !carries_ports(packet.key.protocol) {
            return Passage::Known(Transport::without_ports(packet.key.protocol));
        }
        let first = match packet.fragment {
            // Ports hidden in the second fragment (RFC 1858 §3).
            Fragment::First if transport(packet).is_none() => return Passage::Drop(DropReason::BadFragment),
            Fragment::First => transport(packet),
            _ => None,
        };
        let key = key(packet);
        self.restart_if_reused(&key, first);
        if !self.datagrams.contains_key(&key) {
            self.begin(key, now);
        }
        let Some(datagram) = self.datagrams.get_mut(&key) else {
            return Passage::Drop(DropReason::FragmentsFull); // never: it was begun
        };
        if datagram.broken || datagram.see(piece).is_err() {
            datagram.broken = true;
            return Passage::Drop(DropReason::BadFragment);
        }
        if first.is_some() {
            datagram.transport = datagram.transport.or(first);
            datagram.options = u32::from(packet.l4).saturating_sub(u32::from(packet.end) - piece.end);
        }
        let complete = datagram.complete();
        if let (Some(transport), Some(total)) = (&mut datagram.transport, datagram.total) {
            transport.length = total.saturating_sub(datagram.options) as u16;
        }
        let passes = |transport: &Transport| {
            // SCTP's checksum changes by the length of all that follows the ports, so its last fragment must be here; and
            // its first must go before what was held.
            transport.protocol != Protocol::SCTP || complete && (first.is_some() || datagram.held.is_empty())
        };
        let passage = match datagram.transport {
            Some(transport) if passes(&transport) => Passage::Known(transport),
            _ => hold(&mut self.memory, datagram, bytes, port, first.is_some()),
        };
        if datagram.lets_go().is_some() && !datagram.held.is_empty() {
            self.ready.push_back(key);
        } else if complete {
            self.datagrams.remove(&key);
        }
        passage
    }

    /// The next fragment that was held and may go: where it was received, its bytes, its datagram's transport header.
    pub fn release<R>(&mut self, give: impl FnOnce(NicPortIndex, &[u8], Transport) -> R) -> Option<R> {
        loop {
            let key = *self.ready.front()?;
            let Some(datagram) = self.datagrams.get_mut(&key) else {
                self.ready.pop_front();
                continue;
            };
            // It may be another datagram than the one that was ready: that one was forgotten meanwhile, for others' sake.
            if let Some(transport) = datagram.lets_go()
                && let Some((port, frame)) = datagram.held.pop_at(0)
            {
                let given = give(port, self.memory.bytes(&frame), transport);
                self.memory.free(frame);
                return Some(given);
            }
            if datagram.complete() {
                self.datagrams.remove(&key);
            }
            self.ready.pop_front();
        }
    }

    /// Forgets datagrams whose time is up; how many held fragments were lost, by this and by making room.
    pub fn expire(&mut self, now: Tick) -> usize {
        let mut lost = std::mem::take(&mut self.evicted);
        while let Some(&(since, key)) = self.by_age.front() {
            let current = self
                .datagrams
                .get(&key)
                .is_some_and(|datagram| datagram.since == since);
            if current && now.since(since) < A::TIMEOUT * TICKS_PER_SECOND {
                break;
            }
            self.by_age.pop_front();
            if current {
                lost += self.forget(&key);
            }
        }
        lost
    }

    /// Bytes of memory for what is held.
    pub const fn bytes(&self) -> usize {
        self.memory.capacity() * self.memory.chunk_size()
    }

    /// Datagrams under way, and most that can be.
    pub fn usage(&self) -> (usize, usize) {
        (self.datagrams.len(), self.limit)
    }

    fn begin(&mut self, key: FlowKey<A>, now: Tick) {
        // Ages of datagrams that are complete are dropped as they come up; never more than fit.
        while self.datagrams.len() >= self.limit || self.by_age.len() >= 2 * self.limit {
            let Some((since, oldest)) = self.by_age.pop_front() else {
                break;
            };
            if self
                .datagrams
                .get(&oldest)
                .is_some_and(|datagram| datagram.since == since)
            {
                self.evicted += self.forget(&oldest);
            }
        }
        self.datagrams.insert(key, Datagram::new(now));
        self.by_age.push_back((now, key));
    }

    /// A first fragment with other ports than its datagram's belongs to another datagram: the sender's numbers have come
    /// round (RFC 6864 §3).
    fn restart_if_reused(&mut self, key: &FlowKey<A>, first: Option<Transport>) {
        let known = self.datagrams.get(key).and_then(|datagram| datagram.transport);
        if let (Some(known), Some(first)) = (known, first)
            && (Transport { length: 0, ..known }) != first
        {
            self.evicted += self.forget(key);
        }
    }

    /// Removes a datagram; how many of its fragments were held.
    fn forget(&mut self, key: &FlowKey<A>) -> usize {
        let Some(datagram) = self.datagrams.remove(key) else {
            return 0;
        };
        let held = datagram.held.len();
        for (_, frame) in datagram.held {
            self.memory.free(frame);
        }
        held
    }
}

/// Keeps a copy; a first fragment before the others.
fn hold(
    memory: &mut FrameMemory,
    datagram: &mut Datagram,
    bytes: &[u8],
    port: NicPortIndex,
    first: bool,
) -> Passage {
    let full = Passage::Drop(DropReason::FragmentsFull);
    if datagram.held.is_full() {
        return full;
    }
    let Some(frame) = memory.copy_in(bytes) else {
        return full;
    };
    datagram
        .held
        .insert(if first { 0 } else { datagram.held.len() }, (port, frame));
    Passage::Held
}

/// What its fragments have in common (RFC 791 §3.2; RFC 8200 §4.5, where the protocol is not part of it).
fn key<A: Ip>(packet: &Packet<A>) -> FlowKey<A> {
    let protocol = if A::BITS == V4::BITS {
        packet.key.protocol
    } else {
        Protocol(0)
    };
    let [a, b, c, d] = packet.fragment_ident.to_be_bytes();
    FlowKey {
        src_port: Port([a, b]),
        dst_port: Port([c, d]),
        protocol,
        ..packet.key
    }
}

const fn carries_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
}

/// The transport header of a first fragment, if all of it is there.
fn transport<A: Ip>(packet: &Packet<A>) -> Option<Transport> {
    let least = match packet.key.protocol {
        Protocol::TCP => tcp::HEADER_LEN,
        Protocol::UDP => udp::HEADER_LEN,
        Protocol::SCTP => sctp::HEADER_LEN,
        _ => 0,
    };
    let there = usize::from(packet.l4) + least <= usize::from(packet.end);
    there.then_some(Transport {
        protocol: packet.key.protocol,
        src_port: packet.key.src_port,
        dst_port: packet.key.dst_port,
        length: 0,
    })
}

impl Fragmented for V4 {
    const TIMEOUT: u32 = 30;

    fn piece(bytes: &[u8], packet: &Packet<Self>) -> Option<Piece> {
        let ip = Ipv4::new(bytes.get(usize::from(packet.l3)..)?).ok()?;
        let start = ip.fragment_offset() as u32;
        Some(Piece {
            start,
            end: start + ip.payload().len() as u32,
            last: !ip.more_fragments(),
        })
    }
}

impl Fragmented for V6 {
    const TIMEOUT: u32 = 60;

    fn piece(bytes: &[u8], packet: &Packet<Self>) -> Option<Piece> {
        let ip = Ipv6::new(bytes.get(usize::from(packet.l3)..)?).ok()?;
        let header = ip.upper().ok()?.fragment?;
        let start = header.offset as u32;
        Some(Piece {
            start,
            end: start + u32::try_from(ip.total_len().checked_sub(header.payload)?).ok()?,
            last: !header.more,
        })
    }
}

#[cfg(test)]
mod tests;
