//! Letters between threads: a packet with what to do with it, for a worker or for the steward.
//!
//! Every recipient has one mailbox with a fixed stock of envelopes, so posting allocates nothing, never blocks, and
//! a flood of letters is refused (and counted by the sender) instead of growing memory.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::fragments::Transport;
use crate::index::NicPortIndex;

/// What the recipient does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Treat it as received on this NIC port: a flow's owner, or a packet that waited for its next hop.
    Receive,
    /// Likewise: a fragment, and the transport header of its datagram.
    Fragment(Transport),
    /// Send it on this NIC port as it is.
    Send,
    /// Steward: an ARP or neighbour discovery packet received on this NIC port.
    Neighbour,
    /// Steward: what came by this neighbour on this NIC port came from another station than we know.
    Doubt {
        /// The neighbour.
        neighbour: IpAddr,
    },
    /// Steward: received on this NIC port; its next hop must be resolved before it can go on.
    Resolve {
        /// NIC port of the neighbour.
        port: NicPortIndex,
        /// The neighbour.
        neighbour: IpAddr,
    },
}

/// A packet under way between threads.
#[derive(Debug)]
pub struct Letter {
    /// What to do with it.
    pub purpose: Purpose,
    /// The NIC port the purpose speaks of.
    pub port: NicPortIndex,
    len: usize,
    bytes: Box<[u8]>,
}

impl Letter {
    /// The packet.
    pub fn packet(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// One recipient's letters.
#[derive(Debug)]
pub struct Mailbox {
    waiting: ArrayQueue<Box<Letter>>,
    envelopes: ArrayQueue<Box<Letter>>,
    bell: OwnedFd,
}

impl Mailbox {
    /// Room for `capacity` letters of packets of up to `longest` bytes. Errors: no file descriptor left for the bell.
    pub fn new(capacity: usize, longest: usize) -> io::Result<Self> {
        let envelopes = ArrayQueue::new(capacity.max(1));
        for _ in 0..envelopes.capacity() {
            let letter = Letter {
                purpose: Purpose::Send,
                port: NicPortIndex(0),
                len: 0,
                bytes: vec![0; longest].into(),
            };
            let pushed = envelopes.push(Box::new(letter));
            debug_assert!(pushed.is_ok(), "the stock fits its queue");
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            waiting: ArrayQueue::new(capacity.max(1)),
            envelopes,
            bell,
        })
    }

    /// Puts a copy of `packet` into the box; `false` if the box is full or the packet longer than its letters.
    /// The recipient notices at `ring`, or when it looks by itself.
    #[must_use]
    pub fn post(&self, purpose: Purpose, port: NicPortIndex, packet: &[u8]) -> bool {
        let Some(mut letter) = self.envelopes.pop() else {
            return false;
        };
        let Some(bytes) = letter.bytes.get_mut(..packet.len()) else {
            let _ = self.envelopes.push(letter);
            return false;
        };
        bytes.copy_from_slice(packet);
        letter.purpose = purpose;
        letter.port = port;
        letter.len = packet.len();
        // Cannot be full: there are exactly as many envelopes as places.
        self.waiting.push(letter).is_ok()
    }

    /// Wakes a recipient that waits on `bell`.
    pub fn ring(&self) {
        // EAGAIN means the bell rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Recipient: readable after `ring` until `quiet`.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Recipient: the bell has been heard.
    pub fn quiet(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }

    /// Most letters that can wait.
    pub fn capacity(&self) -> usize {
        self.waiting.capacity()
    }

    /// Letters that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Recipient: opens the oldest letter.
    pub fn open<R>(&self, read: impl FnOnce(&Letter) -> R) -> Option<R> {
        let letter = self.waiting.pop()?;
        let result = read(&letter);
        let _ = self.envelopes.push(letter);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_arrive_in_order_and_a_full_box_refuses() {
        let mailbox = Mailbox::new(2, 8).unwrap();
        assert!(mailbox.post(Purpose::Send, NicPortIndex(3), b"one"));
        assert!(mailbox.post(Purpose::Receive, NicPortIndex(4), b"two"));
        assert!(!mailbox.post(Purpose::Send, NicPortIndex(0), b"three"));
        let read = |l: &Letter| (l.purpose, l.port, l.packet().to_vec());
        assert_eq!(
            mailbox.open(read),
            Some((Purpose::Send, NicPortIndex(3), b"one".to_vec()))
        );
        assert!(mailbox.post(Purpose::Send, NicPortIndex(0), b"four"));
        assert_eq!(mailbox.open(read).unwrap().2, b"two");
        assert_eq!(mailbox.open(read).unwrap().2, b"four");
        assert_eq!(mailbox.open(read), None);
    }

    #[test]
    fn a_packet_longer_than_a_letter_is_refused() {
        let mailbox = Mailbox::new(1, 100).unwrap();
        assert!(!mailbox.post(Purpose::Send, NicPortIndex(0), &[0; 101]));
        assert!(mailbox.post(Purpose::Send, NicPortIndex(0), &[0; 100]));
    }
}
