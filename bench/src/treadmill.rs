//! A NIC port for measuring: it gives the frames that were loaded onto it and keeps those sent, so that making and
//! judging packets stays outside the timed region, and what is timed is the worker and a ring's least work.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sluice_dataplane::addr::Mac;
use sluice_dataplane::nic::{Burst, Driver, DriverInfo, DriverStats, Frame, FrameMemory, Link};

/// Packets end to end.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Packets {
    /// Adds one of `len` bytes, zeroed, to be filled in.
    pub fn add(&mut self, len: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        self.ends.push(start + len);
        &mut self.bytes[start..]
    }

    /// Each in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, &end)| &self.bytes[start..end])
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// None.
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Forgets them, keeping the room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Frames waiting to be received, and frames sent; shared with whoever loads and unloads.
#[derive(Debug, Default)]
struct Belt {
    loaded: Packets,
    sent: Packets,
}

/// The loading end.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    belt: Arc<Mutex<Belt>>,
    keep_sent: Arc<AtomicBool>,
}

impl Handle {
    /// Puts packets on the belt; the port takes them into frames at its next `rx_burst`, and gives them from the one after.
    pub fn load(&self, fill: impl FnOnce(&mut Packets)) {
        self.belt(|belt| fill(&mut belt.loaded));
    }

    /// Keep copies of what is sent from now on (for verifying), or stop keeping.
    pub fn keep_sent(&self, keep: bool) {
        self.keep_sent.store(keep, Ordering::Relaxed);
    }

    /// What was sent while it was kept.
    pub fn sent(&self) -> Packets {
        self.belt(|belt| std::mem::take(&mut belt.sent))
    }

    fn belt<R>(&self, with: impl FnOnce(&mut Belt) -> R) -> R {
        // A panic elsewhere leaves plain vectors behind: as good as before.
        with(&mut self.belt.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The port. The first call after `load` only stages: it copies the loaded packets into frames and gives none, so the
/// caller times the turns after it.
pub struct Treadmill {
    info: DriverInfo,
    stats: DriverStats,
    handle: Handle,
    /// Last first: frames are taken from the end.
    staged: Vec<Frame>,
}

impl Treadmill {
    /// A port with this station address, and its loading end.
    pub fn new(name: &str, mac: Mac) -> (Self, Handle) {
        let handle = Handle::default();
        let info = DriverInfo {
            driver: "treadmill",
            interface: name.to_owned(),
            mode: "prepared frames".to_owned(),
            mac,
            peer_mac: None,
            mtu: 1500,
        };
        let port = Self {
            info,
            stats: DriverStats::default(),
            handle: handle.clone(),
            staged: Vec::new(),
        };
        (port, handle)
    }

    #[cold]
    fn stage(&mut self, memory: &mut FrameMemory) {
        self.handle.belt(|belt| {
            let frames = belt.loaded.iter().map_while(|packet| memory.copy_in(packet));
            self.staged.extend(frames);
            self.staged.reverse();
            belt.loaded.clear();
        });
    }
}

impl Driver for Treadmill {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        if self.staged.is_empty() {
            return self.stage(memory);
        }
        let rest = self.staged.len().saturating_sub(frames.remaining_capacity());
        self.stats.rx_packets += (self.staged.len() - rest) as u64;
        frames.extend(self.staged.drain(rest..).rev());
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.stats.tx_packets += frames.len() as u64;
        if self.handle.keep_sent.load(Ordering::Relaxed) {
            self.handle.belt(|belt| {
                for frame in frames.iter() {
                    belt.sent.add(frame.len()).copy_from_slice(memory.bytes(frame));
                }
            });
        }
        memory.free_all(frames.drain(..));
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
