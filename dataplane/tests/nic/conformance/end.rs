//! One end of a rig: a port with frame memory of its own, and how the cases send and receive through it.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_dataplane::addr::Mac;
use sluice_dataplane::nic::transmit_drops::TransmitDrops;
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{BURST, Burst, DriverStats, FrameMemory, Link};

use super::{Port, Rig};

/// Frames in the memory of an end.
pub(crate) const FRAMES: usize = 4096;
/// Bytes of a frame, if nothing else is said: the config's default.
pub(super) const FRAME_SIZE: usize = 2048;
/// How long anything may take; a failure, never a success, waits for it.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a receiver waits before it looks again.
const LOOK: Duration = Duration::from_millis(20);
/// Local experimental EtherType (IEEE 802): the kernel's stack ignores it, the cases know their frames by it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Frame `number` of a case, `len` bytes.
pub(super) fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&ETHERTYPE);
    bytes[14..22].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

fn ours(bytes: &[u8]) -> bool {
    bytes[12..14] == ETHERTYPE || bytes[16..18] == ETHERTYPE
}

/// A port and what it works with.
pub(super) struct End {
    pub(super) memory: FrameMemory,
    umem: Option<Umem>,
    port: Option<Port>,
    drops: Option<TransmitDrops>,
}

/// Both ends, opened.
pub(super) fn pair(rig: &mut dyn Rig) -> (End, End) {
    let (mut near, mut far) = (End::closed(FRAME_SIZE), End::closed(FRAME_SIZE));
    near.open(|memory, umem| rig.near(memory, umem));
    far.open(|memory, umem| rig.far(memory, umem));
    (near, far)
}

impl End {
    pub(super) fn closed(frame_size: usize) -> Self {
        // As much memory whatever the size.
        let frames = FRAMES * FRAME_SIZE / frame_size;
        Self {
            memory: FrameMemory::new(frames, frame_size).unwrap(),
            umem: None,
            port: None,
            drops: None,
        }
    }

    pub(super) fn open(&mut self, open: impl FnOnce(&mut FrameMemory, &mut Option<Umem>) -> Port) {
        let mut port = open(&mut self.memory, &mut self.umem);
        self.drops = port.transmit_drops();
        self.port = Some(port);
    }

    /// Closes the port; every frame must be back.
    pub(super) fn close(&mut self) {
        let port = self.port.take().expect("the end is open");
        port.close(&mut self.memory);
        let (available, capacity) = (self.memory.available(), self.memory.capacity());
        assert_eq!(available, capacity, "a closed port keeps no frame");
    }

    /// As a process that is killed: nothing is said to anybody, descriptors and memory end.
    pub(super) fn die(self) {}

    pub(super) fn stats(&self) -> DriverStats {
        if let Some(drops) = &self.drops {
            drops.refresh();
        }
        self.port.as_ref().expect("the end is open").stats()
    }

    pub(super) fn mac(&self) -> Mac {
        self.port.as_ref().expect("the end is open").info().mac
    }

    pub(super) fn link(&self) -> Link {
        self.port.as_ref().expect("the end is open").link()
    }

    /// Waits until the link is so, as a worker does; the kernel tells carriers a moment later.
    pub(super) fn expect_link(&mut self, wanted: Link) {
        let limit = Limit::new();
        while self.link() != wanted {
            limit.check(|| format!("link {:?} and not {wanted:?}", self.link()));
            self.tend();
            std::thread::yield_now();
        }
        self.tend();
    }

    /// What a worker has a port do once a second.
    fn tend(&mut self) {
        let Self { memory, port, .. } = self;
        port.as_mut().expect("the end is open").tend(memory);
    }

    /// Offers one burst; gives how many were accepted.
    pub(super) fn offer_all(&mut self, packets: &[Vec<u8>]) -> usize {
        assert!(packets.len() <= BURST);
        let Self { memory, port, .. } = self;
        let copy = |bytes: &Vec<u8>| {
            memory
                .copy_in(bytes)
                .expect("cases use fewer frames than there are")
        };
        let mut frames: Burst = packets.iter().map(copy).collect();
        port.as_mut()
            .expect("the end is open")
            .tx_burst(memory, &mut frames);
        let accepted = packets.len() - frames.len();
        for (left, packet) in frames.iter().zip(&packets[accepted..]) {
            assert_eq!(memory.bytes(left), packet, "what is not accepted stays, in order");
        }
        frames.drain(..).for_each(|frame| memory.free(frame));
        accepted
    }

    /// Offers one frame; whether it was accepted.
    pub(super) fn offer(&mut self, packet: &[u8]) -> bool {
        self.offer_all(&[packet.to_vec()]) == 1
    }

    /// Sends all, waiting for room.
    pub(super) fn send(&mut self, mut packets: &[Vec<u8>]) {
        let limit = Limit::new();
        while !packets.is_empty() {
            let accepted = self.offer_all(&packets[..packets.len().min(BURST)]);
            packets = &packets[accepted..];
            if accepted == 0 {
                limit.check(|| "no room in the ring".to_owned());
                std::thread::yield_now();
            }
        }
    }

    /// Frames of the cases that have arrived, after waiting for a moment if there are none.
    pub(super) fn receive(&mut self) -> Vec<Vec<u8>> {
        let Self { memory, port, .. } = self;
        let mut received = receive(memory, port.as_mut().expect("the end is open"), LOOK);
        received.retain(|bytes| ours(bytes));
        received
    }

    /// The next `count` frames of the cases.
    pub(super) fn expect(&mut self, count: usize) -> Vec<Vec<u8>> {
        let limit = Limit::new();
        let mut received = Vec::new();
        while received.len() < count {
            received.extend(self.receive());
            let got = received.len();
            limit.check(|| format!("{got} of {count} frames arrived: {:?}", self.stats()));
        }
        received
    }

    /// Waits as a worker does that has nothing to do.
    pub(super) fn sleep_until_readable(&self) {
        let port = self.port.as_ref().expect("the end is open");
        let fd = port
            .wait_fd()
            .expect("a port that can only be polled says so in its rig");
        let wait = Timespec {
            tv_sec: LIMIT.as_secs() as i64,
            tv_nsec: 0,
        };
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap();
        assert_eq!(ready, 1, "nobody woke the sleeper");
    }
}

/// Sends until something arrives, forgetting what was on the way before. A veth may lose what is sent as it comes up, and
/// what a port accepted while its link was down may come later, or never.
pub(super) fn settle(from: &mut End, to: &mut End) {
    let limit = Limit::new();
    for number in 1_000_000.. {
        let marker = frame(number, 60);
        let sent = from.offer(&marker);
        if to.receive().contains(&marker) {
            break;
        }
        limit.check(|| format!("nothing arrives; last accepted: {sent}, {:?}", from.stats()));
    }
}

/// Frames that have arrived, after waiting for at most `wait` if there are none.
pub(crate) fn receive(memory: &mut FrameMemory, port: &mut Port, wait: Duration) -> Vec<Vec<u8>> {
    let mut frames = Burst::new();
    port.rx_burst(memory, &mut frames);
    if frames.is_empty() {
        if let Some(fd) = port.wait_fd() {
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: wait.as_nanos() as i64,
            };
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait));
        }
        port.rx_burst(memory, &mut frames);
    }
    let bytes = frames.iter().map(|frame| memory.bytes(frame).to_vec()).collect();
    frames.drain(..).for_each(|frame| memory.free(frame));
    bytes
}

/// How long a case waits for something before it fails.
pub(super) struct Limit(Instant);

impl Limit {
    #[allow(clippy::disallowed_methods, reason = "bounds how long a failing test waits")]
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    pub(super) fn check(&self, what: impl FnOnce() -> String) {
        assert!(self.0.elapsed() < LIMIT, "after {LIMIT:?}: {}", what());
    }
}
