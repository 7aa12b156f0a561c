//! A NIC port without a NIC: bounded rings between two threads of one process. The other end is a second port
//! (`port_pair`), or a handle for a test, a benchmark or the packet generator (`port_with_peer`).
//! Buffers are made once and go round; packets are copied in and out of frame memory. Drops nothing: a full ring
//! refuses, and the refusal is counted at the end that was too slow.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::{Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link};
use crate::addr::Mac;

/// Longest packet a ring carries: what a default frame holds (2048 bytes less its headroom).
pub const MAX_PACKET: usize = 2048 - super::frame::HEADROOM;

/// Packets in one direction. Every buffer is in exactly one of the queues or in the hands of an end.
#[derive(Debug)]
struct Lane {
    full: ArrayQueue<Vec<u8>>,
    empty: ArrayQueue<Vec<u8>>,
    /// Packets refused because the ring was full.
    refused: AtomicU64,
}

impl Lane {
    fn new(capacity: usize) -> Arc<Self> {
        let lane = Self {
            full: ArrayQueue::new(capacity.max(1)),
            empty: ArrayQueue::new(capacity.max(1)),
            refused: AtomicU64::new(0),
        };
        while lane.empty.push(Vec::with_capacity(MAX_PACKET)).is_ok() {}
        Arc::new(lane)
    }

    /// Whether there was room.
    fn send(&self, packet: &[u8]) -> bool {
        let Some(mut buffer) = self.empty.pop() else {
            return false;
        };
        buffer.clear();
        buffer.extend_from_slice(packet);
        // There are as many buffers as places, so a buffer in hand has a place.
        self.full.push(buffer).is_ok()
    }

    fn receive<R>(&self, take: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let buffer = self.full.pop()?;
        let taken = take(&buffer);
        let _ = self.empty.push(buffer);
        Some(taken)
    }
}

/// One end, as a driver.
#[derive(Debug)]
pub struct MemoryPort {
    rx: Arc<Lane>,
    tx: Arc<Lane>,
    info: DriverInfo,
    stats: DriverStats,
}

/// One end, for whoever plays the other side.
#[derive(Debug)]
pub struct MemoryPeer {
    rx: Arc<Lane>,
    tx: Arc<Lane>,
}

/// Two ports connected back to back, each with room for `capacity` packets (at least 1) per direction.
pub fn port_pair(name: &str, capacity: usize) -> (MemoryPort, MemoryPort) {
    let (there, back) = (Lane::new(capacity), Lane::new(capacity));
    (
        MemoryPort::new(name, 1, back.clone(), there.clone()),
        MemoryPort::new(name, 2, there, back),
    )
}

/// A port and the handle for its other side, with room for `capacity` packets (at least 1) per direction.
pub fn port_with_peer(name: &str, capacity: usize) -> (MemoryPort, MemoryPeer) {
    let (there, back) = (Lane::new(capacity), Lane::new(capacity));
    (
        MemoryPort::new(name, 1, back.clone(), there.clone()),
        MemoryPeer { rx: there, tx: back },
    )
}

impl MemoryPort {
    fn new(name: &str, end: u8, rx: Arc<Lane>, tx: Arc<Lane>) -> Self {
        let info = DriverInfo {
            driver: "memory",
            interface: name.to_owned(),
            mode: format!("ring {}", rx.full.capacity()),
            // Locally administered; the two ends differ.
            mac: Mac([0x02, 0, 0, 0, 0, end]),
            peer_mac: Some(Mac([0x02, 0, 0, 0, 0, 3 - end])),
            mtu: MAX_PACKET - 18,
        };
        Self {
            rx,
            tx,
            info,
            stats: DriverStats::default(),
        }
    }
}

impl Driver for MemoryPort {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        while !frames.is_full() && memory.available() > 0 {
            let Some(frame) = self.rx.receive(|packet| memory.copy_in(packet)) else {
                break;
            };
            match frame {
                Some(frame) => {
                    self.stats.rx_packets += 1;
                    self.stats.rx_bytes += frame.len() as u64;
                    frames.push(frame);
                }
                None => self.stats.rx_errors += 1,
            }
        }
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        let mut sent = 0;
        for frame in frames.iter() {
            if frame.len() > MAX_PACKET {
                self.stats.tx_errors += 1;
            } else if self.tx.send(memory.bytes(frame)) {
                self.stats.tx_packets += 1;
                self.stats.tx_bytes += frame.len() as u64;
            } else {
                break;
            }
            sent += 1;
        }
        frames.drain(..sent).for_each(|frame| memory.free(frame));
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        DriverStats {
            rx_missed: self.rx.refused.load(Ordering::Relaxed),
            ..self.stats
        }
    }

    fn link(&self) -> Link {
        if Arc::strong_count(&self.rx) == 1 {
            Link::Gone
        } else {
            Link::Up
        }
    }
}

impl MemoryPeer {
    /// Gives the port a packet of at most `MAX_PACKET` bytes; `false` if the ring is full (then counted as missed by
    /// the port) or the packet is too long.
    pub fn send(&self, packet: &[u8]) -> bool {
        if packet.len() > MAX_PACKET {
            return false;
        }
        let sent = self.tx.send(packet);
        if !sent {
            self.tx.refused.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Takes a packet that the port sent.
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.rx.receive(<[u8]>::to_vec)
    }

    /// Shows a packet that the port sent to `look`, without copying it.
    pub fn receive_with<R>(&self, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.rx.receive(look)
    }

    /// Whether the port still exists.
    pub fn link(&self) -> Link {
        if Arc::strong_count(&self.rx) == 1 {
            Link::Gone
        } else {
            Link::Up
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_sends_is_received_and_the_other_way_round() {
        let mut memory = FrameMemory::new(4, 2048).unwrap();
        let (mut port, peer) = port_with_peer("test", 4);
        assert!(peer.send(b"in"));
        let mut frames = Burst::new();
        port.rx_burst(&mut memory, &mut frames);
        assert_eq!(memory.bytes(&frames[0]), b"in");
        port.tx_burst(&mut memory, &mut frames);
        assert_eq!(
            (peer.receive().unwrap(), frames.len(), memory.available()),
            (b"in".to_vec(), 0, 4)
        );
    }

    #[test]
    fn a_full_ring_refuses_and_the_refusals_of_the_peer_are_counted() {
        let mut memory = FrameMemory::new(8, 2048).unwrap();
        let (mut port, peer) = port_with_peer("test", 2);
        assert_eq!(
            [peer.send(b"1"), peer.send(b"2"), peer.send(b"3")],
            [true, true, false]
        );
        assert_eq!(port.stats().rx_missed, 1);
        let mut frames: Burst = (0..3).map(|n| memory.copy_in(&[n]).unwrap()).collect();
        port.tx_burst(&mut memory, &mut frames);
        assert_eq!(
            (frames.len(), memory.bytes(&frames[0]), port.stats().tx_packets),
            (1, &[2][..], 2)
        );
    }

    #[test]
    fn packets_wait_in_the_ring_while_there_is_no_free_frame() {
        let mut memory = FrameMemory::new(1, 2048).unwrap();
        let (mut port, peer) = port_with_peer("test", 4);
        assert!(peer.send(b"1") && peer.send(b"2"));
        let mut frames = Burst::new();
        port.rx_burst(&mut memory, &mut frames);
        assert_eq!(frames.len(), 1);
        frames.drain(..).for_each(|frame| memory.free(frame));
        port.rx_burst(&mut memory, &mut frames);
        assert_eq!(
            (memory.bytes(&frames[0]), port.stats().rx_packets),
            (&b"2"[..], 2)
        );
    }

    #[test]
    fn a_dropped_peer_is_gone_and_its_last_packets_can_still_be_read() {
        let mut memory = FrameMemory::new(1, 2048).unwrap();
        let (mut port, peer) = port_with_peer("test", 4);
        assert_eq!((port.link(), peer.send(b"last")), (Link::Up, true));
        drop(peer);
        assert_eq!(port.link(), Link::Gone);
        let mut frames = Burst::new();
        port.rx_burst(&mut memory, &mut frames);
        assert_eq!(frames.len(), 1);
    }
}
