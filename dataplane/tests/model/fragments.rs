//! Datagrams in pieces (FRG-1): ports come with the first fragment, and all others borrow them. What comes before it
//! waits; SCTP's wait until all is there, since its checksum covers all of it. Nothing that overlaps goes on.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::bytes::{Packet, SCTP, TCP, UDP};
use crate::support::station::Port;

/// What the fragments of a datagram have in common (RFC 791 §3.2; RFC 8200 §4.5, without the protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    src: IpAddr,
    dst: IpAddr,
    protocol: Option<u8>,
    ident: u32,
}

impl Name {
    fn of(packet: &Packet) -> Self {
        Self {
            src: packet.ends.src,
            dst: packet.ends.dst,
            protocol: (!packet.is_ipv6()).then_some(packet.protocol),
            ident: packet.piece.ident,
        }
    }
}

/// Protocol and ports.
type Transport = (u8, u16, u16);

#[derive(Clone, Debug)]
struct Datagram {
    name: Name,
    since: u64,
    transport: Option<Transport>,
    /// Bytes between where fragments begin to count and the transport header.
    options: usize,
    /// Which of its bytes have been seen.
    seen: Vec<bool>,
    /// How many there are, once the last fragment has come.
    total: Option<usize>,
    broken: bool,
    held: VecDeque<(Port, Packet)>,
}

impl Datagram {
    /// Notes a fragment's bytes. False if it contradicts what was seen.
    fn see(&mut self, packet: &Packet) -> bool {
        let piece = packet.piece;
        let longer = piece.end > self.total.unwrap_or(usize::MAX);
        let last = self.seen.iter().rposition(|seen| *seen).map_or(0, |at| at + 1);
        let other_end = !piece.more && (last > piece.end || self.total.is_some_and(|end| end != piece.end));
        if longer || other_end {
            return false;
        }
        if !piece.more {
            self.total = Some(piece.end);
        }
        self.seen.resize(self.seen.len().max(piece.end), false);
        let bytes = &mut self.seen[piece.start..piece.end];
        // All or nothing: one that came before, or one that is new.
        if bytes.iter().any(|seen| *seen != bytes[0]) {
            return false;
        }
        bytes.fill(true);
        true
    }

    fn is_complete(&self) -> bool {
        self.total
            .is_some_and(|total| self.seen.len() == total && self.seen.iter().all(|seen| *seen))
    }

    /// What its fragments go on with, if they may.
    fn lets_go(&self) -> Option<Transport> {
        self.transport
            .filter(|(protocol, ..)| *protocol != SCTP || self.is_complete())
    }

    /// The fragment with what its datagram lends it.
    fn lend(&self, transport: Transport, mut packet: Packet) -> Packet {
        (packet.protocol, packet.ends.src_port, packet.ends.dst_port) = transport;
        packet.datagram = self.total.map(|total| total - self.options);
        packet
    }
}

/// What becomes of a fragment.
pub enum Passage {
    Passes(Packet),
    Waits,
    Dropped(&'static str),
}

#[derive(Default)]
pub struct Fragments {
    datagrams: Vec<Datagram>,
    /// Whose waiting fragments may go, when the burst is done.
    ready: VecDeque<Name>,
    /// Waiting fragments that were given up and not told yet.
    lost: usize,
}

impl Fragments {
    pub fn pass(&mut self, port: Port, packet: &Packet, now: u64) -> Passage {
        let piece = packet.piece;
        let len = piece.end.saturating_sub(piece.start);
        if len == 0 || piece.end > 65_535 || piece.more && !len.is_multiple_of(8) {
            return Passage::Dropped("bad-fragment");
        }
        if !packet.is_ipv6() && !packet.has_ports() {
            return Passage::Passes(packet.clone());
        }
        // RFC 1858: ports or flags hidden in the second.
        let header = match packet.protocol {
            TCP => 20,
            UDP => 8,
            SCTP => 12,
            _ => 0,
        };
        if piece.is_first() && packet.end - packet.l4 < header {
            return Passage::Dropped("bad-fragment");
        }
        let transport = (packet.protocol, packet.ends.src_port, packet.ends.dst_port);
        let name = Name::of(packet);
        // A first fragment with other ports: the sender's numbers have come round (RFC 6864 §3).
        let other = |known: &Datagram| {
            piece.is_first() && known.transport.is_some_and(|of| of != transport) && known.name == name
        };
        if let Some(at) = self.datagrams.iter().position(other) {
            self.lost += self.datagrams.remove(at).held.len();
        }
        let at = match self.datagrams.iter().position(|known| known.name == name) {
            Some(at) => at,
            None => {
                self.datagrams.push(Datagram {
                    name,
                    since: now,
                    transport: None,
                    options: 0,
                    seen: Vec::new(),
                    total: None,
                    broken: false,
                    held: VecDeque::new(),
                });
                self.datagrams.len() - 1
            }
        };
        let datagram = &mut self.datagrams[at];
        // RFC 5722: nothing of it goes on any more.
        if datagram.broken || !datagram.see(packet) {
            datagram.broken = true;
            return Passage::Dropped("bad-fragment");
        }
        if piece.is_first() {
            datagram.transport = Some(transport);
            datagram.options = piece.end - (packet.end - packet.l4);
        }
        // The first goes before the others.
        let goes_first = piece.is_first() || datagram.held.is_empty();
        let passage = match datagram.lets_go() {
            Some(transport) if transport.0 != SCTP || goes_first => {
                Passage::Passes(datagram.lend(transport, packet.clone()))
            }
            _ => {
                let held = (port, packet.clone());
                if piece.is_first() {
                    datagram.held.push_front(held);
                } else {
                    datagram.held.push_back(held);
                }
                Passage::Waits
            }
        };
        if datagram.lets_go().is_some() && !datagram.held.is_empty() {
            self.ready.push_back(name);
        } else if datagram.is_complete() {
            self.datagrams.remove(at);
        }
        passage
    }

    /// The next that may go, with what its datagram lends it.
    pub fn release(&mut self) -> Option<(Port, Packet)> {
        while let Some(name) = self.ready.front() {
            let at = self.datagrams.iter().position(|known| known.name == *name);
            if let Some(at) = at {
                let datagram = &mut self.datagrams[at];
                if let Some(transport) = datagram.lets_go()
                    && let Some((port, packet)) = datagram.held.pop_front()
                {
                    return Some((port, datagram.lend(transport, packet)));
                }
                if datagram.is_complete() {
                    self.datagrams.remove(at);
                }
            }
            self.ready.pop_front();
        }
        None
    }

    /// Datagrams whose time is up are forgotten (30 s; IPv6 60 s): how many fragments waited in vain.
    pub fn expire(&mut self, now: u64) -> usize {
        let is_over =
            |datagram: &Datagram| now - datagram.since >= if datagram.name.src.is_ipv6() { 60 } else { 30 };
        for datagram in &self.datagrams {
            self.lost += if is_over(datagram) { datagram.held.len() } else { 0 };
        }
        self.datagrams.retain(|datagram| !is_over(datagram));
        std::mem::take(&mut self.lost)
    }
}
