//! A NIC port for measuring: it gives the frames that were loaded onto it and keeps those sent, so that making and
//! judging packets stays outside the timed region, and what is timed is the worker.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_dataplane::addr::Mac;
use sluice_dataplane::nic::{Burst, Driver, DriverInfo, DriverStats, Frame, FrameMemory, Link};

/// Frames waiting to be received, and frames sent; shared with whoever loads and unloads.
#[derive(Debug, Default)]
pub struct Belt {
    loaded: Vec<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    keep_sent: bool,
}

/// The loading end.
#[derive(Clone, Debug, Default)]
pub struct Handle(Arc<Mutex<Belt>>);

impl Handle {
    /// Puts packets on the belt; the port takes them into frames at its next `rx_burst` after `stage`.
    pub fn load(&self, packets: impl IntoIterator<Item = Vec<u8>>) {
        self.belt(|belt| belt.loaded.extend(packets));
    }

    /// Keep copies of what is sent from now on (for verifying), or stop keeping.
    pub fn keep_sent(&self, keep: bool) {
        self.belt(|belt| belt.keep_sent = keep);
    }

    /// What was sent while it was kept.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.belt(|belt| std::mem::take(&mut belt.sent))
    }

    fn belt<R>(&self, with: impl FnOnce(&mut Belt) -> R) -> R {
        // A panic elsewhere leaves plain vectors behind: as good as before.
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The port. The first call after `load` only stages: it copies the loaded packets into frames and gives none, so the
/// caller times the turns after it.
pub struct Treadmill {
    info: DriverInfo,
    stats: DriverStats,
    handle: Handle,
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
}

impl Driver for Treadmill {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        if self.staged.is_empty() {
            let loaded = self.handle.belt(|belt| std::mem::take(&mut belt.loaded));
            // Last first: frames are taken from the end.
            self.staged
                .extend(loaded.iter().rev().map_while(|packet| memory.copy_in(packet)));
            return;
        }
        let room = frames.remaining_capacity().min(self.staged.len());
        frames.extend(self.staged.drain(self.staged.len() - room..).rev());
        self.stats.rx_packets += room as u64;
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.stats.tx_packets += frames.len() as u64;
        self.handle.belt(|belt| {
            if belt.keep_sent {
                belt.sent
                    .extend(frames.iter().map(|frame| memory.bytes(frame).to_vec()));
            }
        });
        for frame in frames.drain(..) {
            memory.free(frame);
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
