//! VLANs (IEEE 802.1Q): one queue of an interface, shared out to several NIC ports by the tags of their frames. Nobody
//! beyond this file sees the tag of a NIC port's own VLAN, so what has none pays nothing for those that have one.
//!
//! Takes  the driver of the interface, and the VLAN of each port, 0 for the one whose frames have no tag.
//! Gives  a driver for each port: its frames come without the tag, and leave with it.
//! Never  looks into a second tag; a frame of a VLAN that no port has goes to the port without one as it came, and is
//!        its worker's to refuse, or is counted as an error where there is no such port.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Burst, Driver, DriverInfo, DriverStats, Frame, FrameMemory, Link};

const TAG: [u8; 2] = [0x81, 0x00];
const TAG_LEN: isize = 4;
/// Where a tag stands: behind both stations.
const TAG_AT: usize = 12;

/// What the ports of one interface share. Its mutex makes the ports `Send`; all of them are one worker's, so nobody ever
/// waits for it.
struct Trunk {
    /// `None` once the last port is closed.
    driver: Option<Box<dyn Driver>>,
    /// Received for each port and not yet taken by it.
    received: Vec<(u16, Burst)>,
    /// Frames of VLANs that no port has.
    refused: u64,
    open: usize,
}

struct Port {
    trunk: Arc<Mutex<Trunk>>,
    place: usize,
    vlan: u16,
    /// Tagged, and not yet accepted by the driver.
    sending: Burst,
    wait: Option<OwnedFd>,
    info: DriverInfo,
    stats: DriverStats,
}

/// Shares `driver` out to a port for each of `vlans`, in their order. Errors: no file descriptor left.
pub fn share(driver: Box<dyn Driver>, vlans: &[u16]) -> io::Result<Vec<Box<dyn Driver>>> {
    let info = driver.info().clone();
    let mut wait = Vec::new();
    for _ in vlans {
        wait.push(driver.wait_fd().map(|fd| fd.try_clone_to_owned()).transpose()?);
    }
    let trunk = Arc::new(Mutex::new(Trunk {
        driver: Some(driver),
        received: vlans.iter().map(|&vlan| (vlan, Burst::new())).collect(),
        refused: 0,
        open: vlans.len(),
    }));
    let port = |((place, &vlan), wait)| -> Box<dyn Driver> {
        let mut info = info.clone();
        if vlan != 0 {
            info.interface += &format!(".{vlan}");
        }
        Box::new(Port {
            trunk: Arc::clone(&trunk),
            place,
            vlan,
            sending: Burst::new(),
            wait,
            info,
            stats: DriverStats::default(),
        })
    };
    Ok(vlans.iter().enumerate().zip(wait).map(port).collect())
}

impl Trunk {
    /// Takes a burst from the driver and sorts it, once every port has taken what it had.
    fn receive(&mut self, memory: &mut FrameMemory) {
        let Some(driver) = &mut self.driver else { return };
        if self.received.iter().any(|(_, waiting)| !waiting.is_empty()) {
            return;
        }
        let mut burst = Burst::new_const();
        driver.rx_burst(memory, &mut burst);
        for mut frame in burst {
            let vlan = vlan(memory.bytes(&frame));
            let own = |id| self.received.iter().position(|&(vlan, _)| vlan == id);
            let place = match (own(vlan.unwrap_or(0)), vlan) {
                (Some(place), None) => Some(place),
                (Some(place), Some(_)) => strip(memory, &mut frame).then_some(place),
                (None, _) => own(0),
            };
            match place {
                // There is room: as much as in `burst`, and it was empty.
                Some(place) => self.received[place].1.push(frame),
                None => {
                    self.refused += 1;
                    memory.free(frame);
                }
            }
        }
    }
}

/// The VLAN of a frame with a tag; 0 if the tag says only a priority.
fn vlan(frame: &[u8]) -> Option<u16> {
    let &[.., tpid_high, tpid_low, high, low] = frame.first_chunk::<16>()?;
    ([tpid_high, tpid_low] == TAG).then_some(u16::from_be_bytes([high, low]) & 0x0fff)
}

/// Takes the tag out: the stations move over it.
fn strip(memory: &FrameMemory, frame: &mut Frame) -> bool {
    memory.bytes_mut(frame).copy_within(..TAG_AT, TAG_LEN as usize);
    memory.move_start(frame, TAG_LEN)
}

/// Puts the tag in, the frame growing into its headroom. `false` if it has none left.
fn tag(memory: &FrameMemory, frame: &mut Frame, vlan: u16) -> bool {
    if frame.len() < TAG_AT || !memory.move_start(frame, -TAG_LEN) {
        return false;
    }
    let bytes = memory.bytes_mut(frame);
    bytes.copy_within(TAG_LEN as usize..TAG_LEN as usize + TAG_AT, 0);
    bytes[TAG_AT..TAG_AT + 2].copy_from_slice(&TAG);
    bytes[TAG_AT + 2..TAG_AT + 4].copy_from_slice(&vlan.to_be_bytes());
    true
}

impl Port {
    fn trunk(&self) -> MutexGuard<'_, Trunk> {
        // A poisoned trunk is one whose worker panicked: the process ends.
        self.trunk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_tagged(&mut self, memory: &mut FrameMemory) {
        let Self { trunk, sending, .. } = self;
        if sending.is_empty() {
            return;
        }
        let mut trunk = trunk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = &mut trunk.driver {
            driver.tx_burst(memory, sending);
        }
    }
}

impl Driver for Port {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.send_tagged(memory);
        let mut trunk = self.trunk();
        trunk.receive(memory);
        let waiting = &mut trunk.received[self.place].1;
        let taken = waiting.len().min(frames.remaining_capacity());
        let bytes: usize = waiting.iter().take(taken).map(Frame::len).sum();
        frames.extend(waiting.drain(..taken));
        drop(trunk);
        self.stats.rx_packets += taken as u64;
        self.stats.rx_bytes += bytes as u64;
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        let size = |frames: &Burst| {
            (
                frames.len() as u64,
                frames.iter().map(|f| f.len() as u64).sum::<u64>(),
            )
        };
        let before = size(frames);
        if self.vlan == 0 {
            if let Some(driver) = &mut self.trunk().driver {
                driver.tx_burst(memory, frames);
            }
        } else {
            self.send_tagged(memory);
            let room = self.sending.remaining_capacity().min(frames.len());
            for mut frame in frames.drain(..room) {
                if tag(memory, &mut frame, self.vlan) {
                    self.sending.push(frame);
                } else {
                    self.stats.tx_errors += 1;
                    memory.free(frame);
                }
            }
            self.send_tagged(memory);
        }
        let after = size(frames);
        self.stats.tx_packets += before.0 - after.0;
        self.stats.tx_bytes += before.1 - after.1;
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wait.as_ref().map(AsFd::as_fd)
    }

    fn owes(&mut self) -> bool {
        !self.sending.is_empty() || self.trunk().driver.as_mut().is_some_and(|driver| driver.owes())
    }

    /// The first port has the driver see to itself; what each waits on may be another then.
    fn tend(&mut self, memory: &mut FrameMemory) {
        let place = self.place;
        let mut trunk = self.trunk();
        let Some(driver) = &mut trunk.driver else { return };
        if place == 0 {
            driver.tend(memory);
        }
        // Without a descriptor left it is woken ten times a second.
        let wait = driver.wait_fd().and_then(|fd| fd.try_clone_to_owned().ok());
        drop(trunk);
        self.wait = wait;
    }

    fn has_peer(&self) -> bool {
        self.trunk()
            .driver
            .as_ref()
            .is_none_or(|driver| driver.has_peer())
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        let trunk = self.trunk();
        // What the interface lost is said once, by the first port.
        let lost = match &trunk.driver {
            Some(driver) if self.place == 0 => driver.stats(),
            _ => DriverStats::default(),
        };
        let refused = if self.place == 0 { trunk.refused } else { 0 };
        DriverStats {
            rx_missed: lost.rx_missed,
            rx_errors: lost.rx_errors + refused,
            rx_bad_descriptors: lost.rx_bad_descriptors,
            rx_checksums_completed: lost.rx_checksums_completed,
            tx_errors: self.stats.tx_errors + lost.tx_errors,
            tx_unlinked: lost.tx_unlinked,
            ..self.stats
        }
    }

    #[cfg(feature = "nic")]
    fn transmit_drops(&mut self) -> Option<super::transmit_drops::TransmitDrops> {
        self.trunk().driver.as_mut()?.transmit_drops()
    }

    fn link(&self) -> Link {
        self.trunk()
            .driver
            .as_ref()
            .map_or(Link::Gone, |driver| driver.link())
    }

    fn close(mut self: Box<Self>, memory: &mut FrameMemory) {
        for frame in std::mem::take(&mut self.sending) {
            memory.free(frame);
        }
        let mut trunk = self.trunk();
        for frame in std::mem::take(&mut trunk.received[self.place].1) {
            memory.free(frame);
        }
        trunk.open -= 1;
        if trunk.open == 0
            && let Some(driver) = trunk.driver.take()
        {
            driver.close(memory);
        }
    }
}

#[cfg(test)]
mod tests;
