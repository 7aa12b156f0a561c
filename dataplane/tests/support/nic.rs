//! The driver of this world's NIC ports: `memory`, with MAC addresses that tell the ports apart.

use std::os::fd::BorrowedFd;

use sluice_dataplane::addr::Mac;
use sluice_dataplane::nic::memory::{MemoryPeer, MemoryPort, port_with_peer};
use sluice_dataplane::nic::{Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link};

use super::station::Port;

/// A NIC port in memory, with the MAC address it has in this world.
pub struct Nic {
    port: MemoryPort,
    info: DriverInfo,
    /// Somebody is at the other side; else nothing is taken.
    pub has_peer: bool,
}

impl Nic {
    /// The port, and the handle of its other side; `ring` packets fit each way.
    pub fn new(port: Port, ring: usize) -> (Self, MemoryPeer) {
        let (memory, end) = port_with_peer(port.name(), ring);
        let info = DriverInfo {
            mac: Mac(port.mac()),
            peer_mac: None,
            ..memory.info().clone()
        };
        let nic = Self {
            port: memory,
            info,
            has_peer: true,
        };
        (nic, end)
    }
}

impl Driver for Nic {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.port.rx_burst(memory, frames);
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        if self.has_peer {
            self.port.tx_burst(memory, frames);
        }
    }

    fn has_peer(&self) -> bool {
        self.has_peer
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.wait_fd()
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        self.port.stats()
    }

    fn link(&self) -> Link {
        self.port.link()
    }
}
