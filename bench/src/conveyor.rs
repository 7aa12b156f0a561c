//! A NIC port whose frames come from another core: through a ring of slots, 2 KiB apart, a burst at a time, copied in and
//! out as by any driver without a device. What is timed with it is the worker, the copies and the lines that change cores.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use sluice_dataplane::addr::Mac;
use sluice_dataplane::nic::{BURST, Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link};

use crate::treadmill::Packets;

/// Bytes of a slot: of other drivers' frames, too.
const SLOT: usize = 2_048;

/// A burst's packets, one a slot.
#[derive(Debug)]
pub struct Batch {
    slots: Box<[u8]>,
    lens: Vec<usize>,
}

impl Batch {
    fn new() -> Self {
        Self {
            slots: vec![0; BURST * SLOT].into(),
            lens: Vec::with_capacity(BURST),
        }
    }

    /// The next slot's first `len` bytes, zeroed, to be filled in; at most `BURST` of 2,048 bytes each.
    pub fn add(&mut self, len: usize) -> &mut [u8] {
        let start = self.lens.len() * SLOT;
        self.lens.push(len);
        let slot = &mut self.slots[start..start + len];
        slot.fill(0);
        slot
    }

    /// Each in order.
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let slots = self.slots.chunks(SLOT);
        slots.zip(&self.lens).map(|(slot, &len)| &slot[..len])
    }
}

/// One way: batches on their way, and those that are free.
#[derive(Debug)]
struct Ring {
    full: ArrayQueue<Batch>,
    free: ArrayQueue<Batch>,
}

impl Ring {
    fn new(batches: usize) -> Self {
        let ring = Self {
            full: ArrayQueue::new(batches),
            free: ArrayQueue::new(batches),
        };
        while ring.free.push(Batch::new()).is_ok() {}
        ring
    }

    /// Whether there was a free batch. There are as many as places.
    fn send(&self, fill: impl FnOnce(&mut Batch)) -> bool {
        let Some(mut batch) = self.free.pop() else {
            return false;
        };
        batch.lens.clear();
        fill(&mut batch);
        self.full.push(batch).is_ok()
    }

    /// The oldest batch.
    fn receive<R>(&self, take: impl FnOnce(&Batch) -> R) -> Option<R> {
        let batch = self.full.pop()?;
        let taken = take(&batch);
        let _ = self.free.push(batch);
        Some(taken)
    }
}

/// The other core's end.
#[derive(Clone, Debug)]
pub struct Loader {
    there: Arc<Ring>,
    back: Arc<Ring>,
}

impl Loader {
    /// Puts a burst into the ring; whether there was room.
    pub fn load(&self, fill: impl FnOnce(&mut Batch)) -> bool {
        self.there.send(fill)
    }

    /// All that was sent and not taken yet.
    pub fn take(&self) -> Packets {
        let mut sent = Packets::default();
        let mut add = |batch: &Batch| {
            for packet in batch.iter() {
                sent.add(packet.len()).copy_from_slice(packet);
            }
        };
        while self.back.receive(&mut add).is_some() {}
        sent
    }

    /// Looks at none of it.
    pub fn forget(&self) {
        while self.back.receive(|_| ()).is_some() {}
    }
}

/// The port.
pub struct Conveyor {
    info: DriverInfo,
    stats: DriverStats,
    rx: Arc<Ring>,
    tx: Arc<Ring>,
}

impl Conveyor {
    /// A port with this station address, and the other core's end; `bursts` each way.
    pub fn new(name: &str, mac: Mac, bursts: usize) -> (Self, Loader) {
        let [there, back] = [(); 2].map(|()| Arc::new(Ring::new(bursts)));
        let info = DriverInfo {
            driver: "conveyor",
            interface: name.to_owned(),
            mode: "from another core".to_owned(),
            mac,
            peer_mac: None,
            mtu: 1500,
        };
        let port = Self {
            info,
            stats: DriverStats::default(),
            rx: Arc::clone(&there),
            tx: Arc::clone(&back),
        };
        (port, Loader { there, back })
    }
}

impl Driver for Conveyor {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        // A burst comes whole or not yet.
        if !frames.is_empty() {
            return;
        }
        self.rx.receive(|batch| {
            let taken = batch.iter().map_while(|packet| memory.copy_in(packet));
            frames.extend(taken.take(BURST));
            self.stats.rx_packets += frames.len() as u64;
            self.stats.rx_errors += (batch.lens.len() - frames.len()) as u64;
        });
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        if frames.is_empty() {
            return;
        }
        let room = self.tx.send(|batch| {
            for frame in frames.iter() {
                batch.add(frame.len()).copy_from_slice(memory.bytes(frame));
            }
        });
        // What finds no room stays, as on any ring.
        if room {
            self.stats.tx_packets += frames.len() as u64;
            memory.free_all(frames.drain(..));
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        self.stats
    }

    fn link(&self) -> Link {
        Link::Up
    }
}
