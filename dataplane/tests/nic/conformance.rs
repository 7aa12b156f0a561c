//! What every driver must do, as one suite over a pair of connected ports that share a worker's frame memory.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{Burst, Driver, FrameMemory, Link};

/// Frames in the memory of a test.
pub(crate) const FRAMES: usize = 4096;
/// How long anything may take; a failure, never a success, waits for it.
const LIMIT: Duration = Duration::from_secs(10);
/// Local experimental EtherType (IEEE 802): the kernel's stack ignores it, the tests know their frames by it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

pub(crate) type Port = Box<dyn Driver>;
pub(crate) type Open<'a> = dyn FnMut(&mut FrameMemory, &mut Option<Umem>) -> (Port, Port) + 'a;

/// Two connected ports and what they share.
pub(crate) struct Pair {
    pub(crate) memory: FrameMemory,
    pub(crate) a: Port,
    pub(crate) b: Port,
}

impl Pair {
    pub(crate) fn open(open: &mut Open<'_>) -> Self {
        let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
        let mut umem = None;
        let (a, b) = open(&mut memory, &mut umem);
        Self { memory, a, b }
    }

    /// Closes both ports; every frame must be back.
    pub(crate) fn close(mut self) {
        self.a.close(&mut self.memory);
        self.b.close(&mut self.memory);
        assert_eq!(self.memory.available(), FRAMES, "a closed port keeps no frame");
    }
}

/// The whole suite. `open` opens a fresh pair each time; `overload` frames are more than the ports' rings hold;
/// `remove` takes the interface away under the given pair.
pub(crate) fn conformance(open: &mut Open<'_>, overload: usize, remove: impl FnOnce(&mut Pair)) {
    let mut pair = Pair::open(open);
    let Pair { memory, a, b, .. } = &mut pair;
    order_is_kept(memory, a, b);
    order_is_kept(memory, b, a);
    every_length_arrives_whole(memory, a, b);
    every_length_arrives_whole(memory, b, a);
    a_vlan_tag_arrives(memory, a, b);
    a_vlan_tag_arrives(memory, b, a);
    a_full_ring_is_counted(memory, a, b, overload);
    a_full_ring_is_counted(memory, b, a, overload);
    order_is_kept(memory, a, b);
    pair.close();
    opening_and_closing_leaks_nothing(open);
    let mut pair = Pair::open(open);
    remove(&mut pair);
    a_removed_interface_is_gone(pair);
}

fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; len];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&ETHERTYPE);
    bytes[14..22].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

/// Offers one frame; whether it was accepted.
fn offer(memory: &mut FrameMemory, port: &mut Port, bytes: &[u8]) -> bool {
    let mut frames = Burst::new();
    frames.push(
        memory
            .copy_in(bytes)
            .expect("tests use fewer frames than there are"),
    );
    port.tx_burst(memory, &mut frames);
    let accepted = frames.is_empty();
    frames.drain(..).for_each(|frame| memory.free(frame));
    accepted
}

/// Sends one frame, waiting for room.
fn send(memory: &mut FrameMemory, port: &mut Port, bytes: &[u8]) {
    let start = now();
    while !offer(memory, port, bytes) {
        assert!(start.elapsed() < LIMIT, "no room in the ring for {LIMIT:?}");
        std::thread::yield_now();
    }
}

/// Frames of the tests that have arrived, after waiting for at most `wait` if there are none.
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

/// The next `count` frames of the tests.
fn expect(memory: &mut FrameMemory, port: &mut Port, count: usize) -> Vec<Vec<u8>> {
    let start = now();
    let mut received = Vec::new();
    while received.len() < count {
        received.extend(
            receive(memory, port, Duration::from_millis(100))
                .into_iter()
                .filter(ours),
        );
        assert!(
            start.elapsed() < LIMIT,
            "{} of {count} frames after {LIMIT:?}: {:?}",
            received.len(),
            port.stats()
        );
    }
    received
}

#[allow(clippy::ptr_arg, reason = "a filter over owned frames")]
fn ours(bytes: &Vec<u8>) -> bool {
    bytes[12..14] == ETHERTYPE || bytes[16..18] == ETHERTYPE
}

fn order_is_kept(memory: &mut FrameMemory, from: &mut Port, to: &mut Port) {
    let mut next = 0;
    // Ten rounds of half a burst: more than a small ring, never more at a time.
    for round in 0..10 {
        let numbers = round * 32..(round + 1) * 32;
        numbers.clone().for_each(|n| send(memory, from, &frame(n, 64)));
        for bytes in expect(memory, to, numbers.len()) {
            assert_eq!(bytes, frame(next, 64), "frame {next} must be the next to arrive");
            next += 1;
        }
    }
}

fn every_length_arrives_whole(memory: &mut FrameMemory, from: &mut Port, to: &mut Port) {
    for len in (60..=1514).step_by(13).chain([1514]) {
        send(memory, from, &frame(len, len));
        assert_eq!(expect(memory, to, 1), [frame(len, len)]);
    }
}

fn a_vlan_tag_arrives(memory: &mut FrameMemory, from: &mut Port, to: &mut Port) {
    let mut tagged = frame(1, 100);
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
    send(memory, from, &tagged);
    assert_eq!(expect(memory, to, 1), [tagged]);
}

/// What was accepted at one end is received or counted as missed at the other; what was not, the caller still had.
fn a_full_ring_is_counted(memory: &mut FrameMemory, from: &mut Port, to: &mut Port, overload: usize) {
    let missed_before = to.stats().rx_missed;
    let accepted = (0..overload)
        .filter(|n| offer(memory, from, &frame(*n, 60)))
        .count() as u64;
    let start = now();
    let mut received = 0;
    let missed = loop {
        received += receive(memory, to, Duration::from_millis(10))
            .iter()
            .filter(|b| ours(b))
            .count() as u64;
        let missed = to.stats().rx_missed - missed_before;
        if received + missed >= accepted {
            break missed;
        }
        assert!(
            start.elapsed() < LIMIT,
            "{accepted} accepted, {received} received, {missed} missed"
        );
    };
    assert_eq!(received + missed, accepted);
    assert!(
        missed > 0 || accepted < overload as u64,
        "{overload} frames must be more than the ring holds"
    );
}

fn opening_and_closing_leaks_nothing(open: &mut Open<'_>) {
    let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
    let mut umem = None;
    let before = descriptors();
    for _ in 0..50 {
        let (mut a, mut b) = open(&mut memory, &mut umem);
        send(&mut memory, &mut a, &frame(1, 60));
        assert_eq!(expect(&mut memory, &mut b, 1).len(), 1);
        a.close(&mut memory);
        b.close(&mut memory);
        assert_eq!(memory.available(), FRAMES);
    }
    assert_eq!(descriptors(), before, "every descriptor must be closed");
}

fn a_removed_interface_is_gone(mut pair: Pair) {
    let Pair { memory, a, b, .. } = &mut pair;
    for port in [a, b] {
        assert_eq!(port.link(), Link::Gone);
        for _ in 0..3 {
            offer(memory, port, &frame(1, 60));
            receive(memory, port, Duration::from_millis(1));
        }
    }
    pair.close();
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[allow(clippy::disallowed_methods, reason = "bounds how long a failing test waits")]
fn now() -> Instant {
    Instant::now()
}
