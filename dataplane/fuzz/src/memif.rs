//! A hostile memif peer, in either role, or a server that our frames are lent to: it sends messages of any kind, writes
//! anything anywhere into the memory that it shares with us while packets are received and sent, and takes pages of it away.
//! No frame is lost, and none is longer than a frame.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use sluice_dataplane::nic::memif::Role;
use sluice_dataplane::nic::memif::handshake::{Frames, Handshake, Link, Queue, Terms};
use sluice_dataplane::nic::memif::message::{ETHERNET, MESSAGE, Message, RingPlace, Text, VERSION, Way};
use sluice_dataplane::nic::memif::ring::{Received, Sent};
use sluice_dataplane::nic::{Burst, FrameMemory};
use sluice_dataplane::segment::Region;

use crate::bytes::Bytes;

/// Frames of the worker; more than any ring here has descriptors with packets in them.
const FRAMES: usize = 64;
/// Bytes of a region: a ring of 1,024 fits, one of 4,096 does not.
const REGION: u64 = 1 << 15;
/// From the protocol's header: `memif_ring_t` and its cookie.
const COOKIE: u32 = 0x03e3_1f20;
const HEAD: u64 = 6;
const TAIL: u64 = 64;
const DESCRIPTORS: u64 = 128;
/// Messages of a handshake, and of a peer that goes on after it.
const MESSAGES: usize = 64;

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let role = bytes.one_of(&[Role::Server, Role::Client]);
    let lends = role == Role::Client && bytes.byte() & 1 == 1;
    let terms = Terms {
        name: "ours".into(),
        role,
        id: 0,
        secret: String::new(),
        queues: 2,
        log2_ring: 4,
        buffer_size: 256,
        lends,
    };
    let mut memory = FrameMemory::shared(FRAMES, 2048).unwrap();
    // Of both queues, which one worker has here.
    let file = || memory.region().and_then(Region::memfd).unwrap();
    let frames = || Frames {
        file: file().try_clone_to_owned().unwrap(),
        bytes: (FRAMES * 2048) as u64,
    };
    let lent = if lends {
        vec![frames(), frames()]
    } else {
        Vec::new()
    };
    let mut ours = Handshake::new(terms, lent);
    let mut peer = Peer::default();
    if let Some(hello) = ours.greeting() {
        assert_eq!(Message::decode(&hello.encode()), Some(hello));
    }
    for turn in 0..MESSAGES {
        let (message, file) = match role {
            Role::Server => peer.client(turn, &mut bytes),
            Role::Client => peer.server(turn, &mut bytes),
        };
        let Some(message) = Message::decode(&message) else {
            return;
        };
        let Ok(reply) = ours.receive(message, file) else {
            return;
        };
        if let Some((answer, file)) = reply.answer {
            peer.hear(answer, file);
        }
        if let Some(link) = reply.link {
            return peer.play(link, &mut memory, &mut bytes);
        }
    }
}

/// What the peer can write into.
#[derive(Default)]
struct Peer {
    regions: Vec<File>,
    rings: Vec<RingPlace>,
}

impl Peer {
    /// What comes next from a client that means well, more or less.
    fn client(&mut self, turn: usize, bytes: &mut Bytes<'_>) -> ([u8; MESSAGE], Option<OwnedFd>) {
        let (message, file) = match turn {
            0 => {
                let (name, secret) = (Text::new("fuzz"), Text::new(""));
                let (version, id, mode) = (VERSION, 0, ETHERNET);
                let init = Message::Init {
                    version,
                    id,
                    mode,
                    secret,
                    name,
                };
                (init, None)
            }
            1 => {
                let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap();
                ftruncate(&file, REGION - u64::from(bytes.byte() == 255)).unwrap();
                self.regions.push(file.try_clone().unwrap().into());
                let region = Message::AddRegion {
                    index: 0,
                    size: REGION,
                };
                (region, Some(file))
            }
            2 | 3 => {
                let place = RingPlace {
                    way: [Way::ToServer, Way::ToClient][turn - 2],
                    index: 0,
                    region: 0,
                    offset: self.rings.len() as u32 * 512 + u32::from(bytes.byte()),
                    log2_size: 4 + bytes.byte() % 16,
                    private_header: 0,
                };
                self.write(0, place.offset.into(), &COOKIE.to_ne_bytes());
                self.rings.push(place);
                let file = [true, bytes.byte() != 255];
                let file = file[1].then(|| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
                (Message::AddRing(place), file)
            }
            _ => (
                Message::Connect {
                    name: Text::new("fuzz0"),
                },
                None,
            ),
        };
        mutated(message, file, bytes)
    }

    /// Likewise of a server.
    fn server(&mut self, turn: usize, bytes: &mut Bytes<'_>) -> ([u8; MESSAGE], Option<OwnedFd>) {
        let message = match turn {
            0 => Message::Hello {
                name: Text::new("fuzz"),
                versions: (VERSION, VERSION),
                max_region: 0,
                max_to_client: bytes.byte().into(),
                max_to_server: bytes.byte().into(),
                max_log2_size: 4 + bytes.byte() % 32,
            },
            // Init, the region, a ring each way and queue, connect.
            _ if turn <= 2 + self.rings.len() => Message::Ack,
            _ => Message::Connected {
                name: Text::new("fuzz0"),
            },
        };
        mutated(message, None, bytes)
    }

    fn hear(&mut self, message: Message, file: Option<OwnedFd>) {
        match message {
            Message::AddRegion { .. } => self.regions.extend(file.map(File::from)),
            Message::AddRing(place) => self.rings.push(place),
            _ => {}
        }
    }

    fn write(&self, region: usize, at: u64, bytes: &[u8]) {
        if let Some(file) = self.regions.get(region) {
            // Beyond its end a file of ours refuses to grow.
            let _ = file.write_all_at(bytes, at);
        }
    }

    /// Rings are used while the peer writes.
    fn play(&self, mut link: Link, memory: &mut FrameMemory, bytes: &mut Bytes<'_>) {
        for rx in link.queues.iter_mut().filter_map(|queue| queue.rx.as_mut()) {
            rx.begin(memory);
        }
        self.write_and_look(&mut link, memory, bytes);
        for queue in &mut link.queues {
            queue.rx.iter_mut().for_each(|rx| rx.end(memory));
            queue.tx.iter_mut().for_each(|tx| tx.end(memory));
        }
        assert_eq!(memory.available(), FRAMES, "no frame is lost");
    }

    fn write_and_look(&self, link: &mut Link, memory: &mut FrameMemory, bytes: &mut Bytes<'_>) {
        let mut heads = [0u16; 8];
        while !bytes.is_empty() {
            let queue = bytes.below(2);
            let Some(pair) = link.queues.get_mut(queue) else {
                return;
            };
            let nth = bytes.below(self.rings.len().clamp(1, heads.len()));
            let Some(place) = self.rings.get(nth) else { return };
            let at = u64::from(place.offset);
            match bytes.below(8) {
                0 | 1 => receive(pair, memory),
                2 => send(pair, memory, bytes),
                // A few more descriptors, as a sender or a receiver that goes on.
                3 | 4 => {
                    heads[nth] = heads[nth].wrapping_add(bytes.byte().into());
                    let word = bytes.one_of(&[HEAD, TAIL]);
                    self.write(0, at + word, &heads[nth].to_ne_bytes());
                }
                // Any index.
                5 => {
                    let word = bytes.one_of(&[HEAD, TAIL]);
                    self.write(0, at + word, &bytes.word().to_ne_bytes());
                }
                // A descriptor.
                6 => {
                    let slot = u64::from(bytes.byte());
                    let (flags, region) = (bytes.byte() & 1, bytes.byte() & 3);
                    let (length, offset) = (
                        u32::from(bytes.word()) << bytes.below(17),
                        u32::from(bytes.word()) << bytes.below(17),
                    );
                    let head = [u16::from(flags), u16::from(region)]
                        .map(u16::to_ne_bytes)
                        .concat();
                    let body = [length, offset].map(u32::to_ne_bytes).concat();
                    self.write(0, at + DESCRIPTORS + 16 * slot, &[head, body].concat());
                }
                // Anything anywhere, or pages gone: a file of ours refuses that.
                _ => {
                    let at = u64::from(bytes.word());
                    let len = bytes.below(64);
                    match self.regions.first() {
                        Some(file) if at == u64::from(u16::MAX) => drop(file.set_len(512 * len as u64)),
                        _ => self.write(0, at, bytes.take(len)),
                    }
                }
            }
        }
    }
}

/// The message as it is, or with a byte changed, or any other, with or without a file.
fn mutated(
    message: Message,
    file: Option<OwnedFd>,
    bytes: &mut Bytes<'_>,
) -> ([u8; MESSAGE], Option<OwnedFd>) {
    let mut encoded = message.encode();
    match bytes.byte() {
        0..=0xdf => {}
        0xe0..=0xef => encoded[bytes.below(MESSAGE)] = bytes.byte(),
        0xf0..=0xf7 => {
            let any = bytes.take(MESSAGE);
            encoded[..any.len()].copy_from_slice(any);
        }
        _ => return (encoded, None),
    }
    (encoded, file)
}

fn receive(pair: &mut Queue, memory: &mut FrameMemory) {
    let (mut frames, mut received) = (Burst::new(), Received::default());
    if let Some(rx) = &mut pair.rx {
        let result = rx.receive(memory, &mut frames, &mut received);
        assert_eq!(received.packets as usize, frames.len());
        for frame in &frames {
            assert!(!frame.is_empty() && memory.bytes(frame).len() <= memory.max_packet());
        }
        if result.is_err() {
            rx.end(memory);
            pair.rx = None;
        }
    }
    frames.drain(..).for_each(|frame| memory.free(frame));
}

fn send(pair: &mut Queue, memory: &mut FrameMemory, bytes: &mut Bytes<'_>) {
    let packet = [0x5a; 2048 - 256];
    let lengths = (0..bytes.below(8)).map(|_| 1 + usize::from(bytes.word()) % packet.len());
    let mut frames: Burst = lengths.map_while(|len| memory.copy_in(&packet[..len])).collect();
    let (offered, mut sent) = (frames.len(), Sent::default());
    if let Some(tx) = &mut pair.tx {
        let result = tx.send(memory, &mut frames, &mut sent);
        assert_eq!(sent.packets as usize, offered - frames.len());
        if result.is_err() {
            tx.end(memory);
            pair.tx = None;
        }
    }
    frames.drain(..).for_each(|frame| memory.free(frame));
}
