//! A dataplane that hands over a segment of any bytes, and goes: control maps it, checks it, reads what it says, and ends
//! with an inventory or with a reason.

use std::cell::RefCell;
use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use sluice_dataplane::channel::client::Connection;
use sluice_dataplane::channel::codec::SLOT;
use sluice_dataplane::channel::digest::Digest;
use sluice_dataplane::channel::message::Message;
use sluice_dataplane::index::Generation;

use crate::bytes::Bytes;
use crate::channel::{Dataplane, RING_SLOTS};

/// From the protocol's page: the word of the written count of the ring to control, its first slot's byte, and where the
/// counter page begins.
const WRITTEN: usize = 96;
const SLOTS: usize = 4096 + RING_SLOTS * SLOT;
const PAGES: usize = 4096 + 2 * RING_SLOTS * SLOT;

/// Only a dataplane that keeps the socket open can make control wait; this one hangs up.
const PATIENCE: Duration = Duration::from_secs(1);

thread_local! {
    static DATAPLANE: RefCell<Option<Hostile>> = const { RefCell::new(None) };
}

/// A thread that greets whoever connects with the segment it was given last.
struct Hostile {
    folder: tempfile::TempDir,
    /// The first words of a true segment.
    header: [u8; 5 * 8],
    segments: Sender<File>,
}

impl Hostile {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("channel")).unwrap();
        let (segments, next) = channel();
        std::thread::spawn(move || greet(&listener, &next));
        let (_socket, memfd) = Dataplane::new().greet();
        let mut header = [0; 5 * 8];
        memfd.read_exact_at(&mut header, 0).unwrap();
        Self {
            folder,
            header,
            segments,
        }
    }
}

fn greet(listener: &UnixListener, segments: &Receiver<File>) {
    while let Ok(memfd) = segments.recv() {
        let (socket, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [memfd.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let _ = rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(b"S")],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
    }
}

pub(crate) fn run(data: &[u8]) {
    DATAPLANE.with_borrow_mut(|hostile| {
        let hostile = hostile.get_or_insert_with(Hostile::new);
        hostile
            .segments
            .send(segment(&hostile.header, &mut Bytes(data)))
            .unwrap();
        match Connection::connect_within(hostile.folder.path().join("channel"), PATIENCE) {
            Ok((mut connection, inventory)) => {
                let error = connection.publish(Generation(inventory.generation.0.wrapping_add(1)), &[], &[]);
                assert!(error.is_err(), "nobody is there to answer");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}

/// A segment that is true as far as the input does not say otherwise.
fn segment(header: &[u8], bytes: &mut Bytes<'_>) -> File {
    let memfd = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let flags = bytes.byte();
    let len = if flags & 1 == 0 {
        PAGES + 4096
    } else {
        usize::from(bytes.word())
    };
    rustix::fs::ftruncate(&memfd, len as u64).unwrap();
    if flags & 2 == 0 {
        rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    }
    let file = File::from(memfd);
    let write = |at: usize, bytes: &[u8]| {
        // Never longer than it was made: what is sealed cannot grow.
        let room = len.saturating_sub(at).min(bytes.len());
        file.write_all_at(&bytes[..room], at as u64).unwrap();
    };
    write(0, header);
    let (mut written, mut digest) = (0, Digest::default());
    let mut say = |slot: &[u8]| {
        write(SLOTS + written % RING_SLOTS * SLOT, slot);
        written += 1;
        write(WRITTEN * 8, &(written as u64).to_le_bytes());
    };
    for _ in 0..bytes.below(RING_SLOTS) {
        let mut slot = [0; SLOT];
        let len = usize::from(bytes.byte());
        let part = bytes.take(len);
        slot[..part.len()].copy_from_slice(part);
        digest.add(&slot);
        say(&slot);
    }
    if flags & 4 == 0 {
        let (count, digest) = (digest.count, digest.sum);
        let generation = Generation(u64::from(flags >> 3));
        say(&Message::DumpEnd {
            generation,
            count,
            digest,
        }
        .encode()
        .unwrap());
    }
    while !bytes.is_empty() {
        let (at, len) = (usize::from(bytes.word()), bytes.below(16));
        write(at, bytes.take(len));
    }
    file
}
