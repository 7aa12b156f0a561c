//! A control process that writes anything anywhere into the shared segment: the dataplane's end reads, refuses or
//! commits, never waits, and serves the next one.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sluice_dataplane::channel::VERSION;
use sluice_dataplane::channel::codec::{SLOT, Slot};
use sluice_dataplane::channel::message::Message;
use sluice_dataplane::channel::server::{Event, Server, ServerOptions};
use sluice_dataplane::index::Generation;
use sluice_dataplane::tables::{TableLimits, TablesBuilder};

use crate::bytes::Bytes;

pub(crate) const RING_SLOTS: usize = 16;
/// Where the ring to the dataplane is, from the protocol's page: the word of its written count, its first slot's byte.
const WRITTEN: usize = 64;
const SLOTS: usize = 4096;

/// Polls that whatever control wrote may keep the dataplane busy: a ring of messages, each answered.
const POLLS: usize = 16 * RING_SLOTS;

thread_local! {
    static DATAPLANE: RefCell<Option<Dataplane>> = const { RefCell::new(None) };
}

/// One dataplane for all inputs: each must leave it fit for the next.
pub(crate) struct Dataplane {
    folder: tempfile::TempDir,
    server: Server,
}

impl Dataplane {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = ServerOptions {
            ring_slots: RING_SLOTS,
            workers: 1,
            max_changes: 64,
        };
        let server = Server::bind(folder.path().join("channel"), options).unwrap();
        Self { folder, server }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("channel")
    }

    /// A connection, and the segment that it is greeted with.
    pub(crate) fn greet(&mut self) -> (UnixStream, File) {
        let socket = UnixStream::connect(self.path()).unwrap();
        // Nobody reads while this thread writes: a bell that finds no room has been rung before.
        socket.set_nonblocking(true).unwrap();
        while self.server.poll().is_some() {}
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut greeting = [0];
        recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut greeting)],
            &mut ancillary,
            RecvFlags::DONTWAIT,
        )
        .unwrap();
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (
            socket,
            File::from(fd.expect("the last control left nothing behind, so this one gets the segment")),
        )
    }

    /// What the steward does, until there is nothing left to do.
    fn serve(&mut self, builder: &mut TablesBuilder) {
        for _ in 0..POLLS {
            match self.server.poll() {
                Some(Event::Transaction(transaction)) => {
                    let generation = transaction.generation;
                    match builder.apply(generation, &transaction.deletes, &transaction.puts) {
                        Ok(_) => self.server.ack(generation),
                        Err(refusal) => self.server.nack(generation, 0, &refusal.to_string()),
                    }
                }
                Some(Event::DumpRequest) => {
                    let records: Vec<_> = builder.records().collect();
                    self.server.dump(builder.generation(), records);
                }
                Some(Event::Disconnected) => {}
                None if self.server.wants_poll() => {}
                None => return,
            }
        }
        panic!("what one control wrote keeps the dataplane busy for ever");
    }
}

pub(crate) fn run(data: &[u8]) {
    DATAPLANE.with_borrow_mut(|dataplane| {
        let dataplane = dataplane.get_or_insert_with(Dataplane::new);
        let limits = TableLimits {
            service_ports: 16,
            frontends: 16,
            backends: 16,
            networks: 4,
            ..TableLimits::default()
        };
        let mut builder = TablesBuilder::new(limits);
        let (socket, memfd) = dataplane.greet();
        let mut control = Control {
            socket,
            memfd,
            written: 0,
        };
        let mut bytes = Bytes(data);
        if bytes.byte() % 8 != 0 {
            control.hello();
        }
        while !bytes.is_empty() {
            control.act(&mut bytes);
            if bytes.byte() % 4 == 0 {
                dataplane.serve(&mut builder);
            }
        }
        dataplane.serve(&mut builder);
        drop(control);
        dataplane.serve(&mut builder);
        assert!(!dataplane.server.is_connected(), "who has gone is forgotten");
    });
}

struct Control {
    socket: UnixStream,
    memfd: File,
    written: usize,
}

impl Control {
    fn act(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(8) {
            // A message; a valid one is often found by its bytes.
            0..=3 => {
                let mut slot = [0; SLOT];
                let len = usize::from(bytes.byte());
                let part = bytes.take(len);
                slot[..part.len()].copy_from_slice(part);
                self.send(&slot);
            }
            // A whole transaction around the same message.
            4 => {
                let generation = Generation(u64::from(bytes.byte()));
                self.send(&Message::Begin { generation }.encode().unwrap());
                let mut digest = sluice_dataplane::channel::digest::Digest::default();
                for _ in 0..bytes.below(4) {
                    let mut slot = [0; SLOT];
                    let len = usize::from(bytes.byte());
                    let part = bytes.take(len);
                    slot[..part.len()].copy_from_slice(part);
                    digest.add(&slot);
                    self.send(&slot);
                }
                let (count, digest) = (digest.count, digest.sum);
                self.send(
                    &Message::Commit {
                        generation,
                        count,
                        digest,
                    }
                    .encode()
                    .unwrap(),
                );
            }
            // Any word of the header's page: counts of both rings among them.
            5 => {
                let (word, value) = (
                    usize::from(bytes.word()) % 512,
                    u64::from(bytes.word()) << bytes.below(49),
                );
                self.write(word * 8, &value.to_le_bytes());
            }
            // Anything anywhere, rings and counter pages.
            6 => {
                let at = usize::from(bytes.word());
                let len = bytes.below(64);
                self.write(at, bytes.take(len));
            }
            _ => {
                let _ = self.socket.write_all(b"!");
            }
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        // Beyond the end the file refuses to grow.
        let _ = self.memfd.write_all_at(bytes, at as u64);
    }

    fn send(&mut self, slot: &Slot) {
        self.write(SLOTS + self.written % RING_SLOTS * SLOT, slot);
        self.written += 1;
        self.write(WRITTEN * 8, &(self.written as u64).to_le_bytes());
        let _ = self.socket.write_all(b"!");
    }

    fn hello(&mut self) {
        let layout_hash = layout_hash(&self.memfd);
        self.send(
            &Message::Hello {
                version: VERSION,
                layout_hash,
            }
            .encode()
            .unwrap(),
        );
    }
}

/// As the segment's header states it.
pub(crate) fn layout_hash(memfd: &File) -> u64 {
    let mut hash = [0; 8];
    memfd.read_exact_at(&mut hash, 2 * 8).unwrap();
    u64::from_le_bytes(hash)
}
