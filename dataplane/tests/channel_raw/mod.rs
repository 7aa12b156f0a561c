//! A control process written a second time, from the protocol's page alone: it writes into the segment through the
//! memfd, wherever it likes, and stops where a test wants it to.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sluice_dataplane::channel::VERSION;
use sluice_dataplane::channel::digest::Digest;
use sluice_dataplane::channel::message::Message;
use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::index::Generation;

pub(crate) const RING_SLOTS: usize = 16;
pub(crate) const TO_DATAPLANE_WRITTEN: usize = 64;
pub(crate) const TO_CONTROL_READ: usize = 112;
const LAYOUT_HASH: usize = 2;
const SLOTS: usize = 4096;
const SLOT: usize = 256;

/// Every message of a transaction, the commit last.
pub(crate) fn transaction(generation: Generation, deletes: &[Key], puts: &[Record]) -> Vec<Message> {
    let mut messages = vec![Message::Begin { generation }];
    messages.extend(deletes.iter().cloned().map(Message::Delete));
    messages.extend(puts.iter().cloned().map(Message::Put));
    let mut digest = Digest::default();
    messages
        .iter()
        .skip(1)
        .for_each(|message| digest.add(&message.encode().unwrap()));
    messages.push(Message::Commit {
        generation,
        count: digest.count,
        digest: digest.sum,
    });
    messages
}

pub(crate) struct RawControl {
    socket: UnixStream,
    /// The segment, once the dataplane has greeted.
    memfd: Option<File>,
    written: usize,
}

impl RawControl {
    /// Connects, and waits for the greeting.
    pub(crate) fn connect(path: &Path) -> Self {
        let mut control = Self::connect_unserved(path);
        control.memfd();
        control
    }

    /// Connects to a dataplane that has yet to greet: the caller's own thread may be its steward.
    pub(crate) fn connect_unserved(path: &Path) -> Self {
        Self {
            socket: UnixStream::connect(path).unwrap(),
            memfd: None,
            written: 0,
        }
    }

    fn memfd(&mut self) -> &File {
        let socket = &self.socket;
        self.memfd.get_or_insert_with(|| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut greeting = [0];
            recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut greeting)],
                &mut ancillary,
                RecvFlags::empty(),
            )
            .unwrap();
            let fd = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            File::from(fd.expect("a segment"))
        })
    }

    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.memfd().write_all_at(bytes, at as u64).unwrap();
    }

    pub(crate) fn write_word(&mut self, word: usize, value: u64) {
        self.write(word * 8, &value.to_le_bytes());
    }

    /// A bell; a dataplane that hung up does not hear it.
    pub(crate) fn ring_bell(&mut self) {
        let _ = self.socket.write_all(b"!");
    }

    /// Writes a slot, shows it, rings. Does not ask for room.
    pub(crate) fn send_slot(&mut self, slot: &[u8; SLOT]) {
        self.write(SLOTS + self.written % RING_SLOTS * SLOT, slot);
        self.written += 1;
        self.write_word(TO_DATAPLANE_WRITTEN, self.written as u64);
        self.ring_bell();
    }

    pub(crate) fn send(&mut self, message: &Message) {
        self.send_slot(&message.encode().unwrap());
    }

    pub(crate) fn hello(&mut self) {
        let mut hash = [0; 8];
        self.memfd()
            .read_exact_at(&mut hash, LAYOUT_HASH as u64 * 8)
            .unwrap();
        self.send(&Message::Hello {
            version: VERSION,
            layout_hash: u64::from_le_bytes(hash),
        });
    }

    /// Waits until the dataplane has hung up.
    pub(crate) fn hear_the_end(&mut self) {
        let mut bells = Vec::new();
        let _ = self.socket.read_to_end(&mut bells);
    }
}
