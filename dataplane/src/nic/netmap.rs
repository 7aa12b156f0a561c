//! The driver of netmap ports (netmap(4), kernel module of API 14 or 15): rings of a NIC, of the node's own stack (its host
//! rings), of a VALE switch, of a pipe.
//!
//! Ring slots name buffers by number. Where the worker's frame memory is in the same region as the rings, received and sent
//! packets stay where they are and only numbers change places, NS_BUF_CHANGED told; the first netmap port of a worker moves
//! its frame memory there, if the region has as many buffers to give (mode "zero-copy"). Else each packet is copied once
//! (mode "copy", with the reason). Ports of several regions: those of the first are without copies.
//!
//! System calls: one NIOCTXSYNC a sent burst. NIOCRXSYNC when a burst emptied the rx ring or half of it waits to be given
//! back; while it stays empty ever more rarely, down to one in `REST` turns. poll(2) makes both by itself.
//!
//! Packets that the kernel hands over unmerged and finished: GRO is switched off while the port is open, partial checksums are completed.
//! Packets from the node's own stack must be finished by it: netmap drops what needs a checksum or segmentation from the NIC
//! (`ethtool -K IF tx off tso off gso off`, which opening a host ring does). They come to the host rings only while the NIC's
//! own rings are open, by this program or another; before that they pass netmap by. In emulated mode (NICs without a netmap
//! driver, veth) tags are in the frames if the NIC keeps them there. What a VALE switch drops because our ring is full it tells
//! nobody.
//!
//! Rings are asked for alone (NR_EXCLUSIVE). The module keeps an interface that is deleted until its ports are closed, and
//! `ip link` waits: `tend` closes them, and opens them again on the next interface of that name. While an interface is set
//! down the module lets no sync return, not even to be killed: its worker stands still until it is up.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use netmap_sys::netmap::{NS_BUF_CHANGED, NS_MOREFRAG, netmap_slot};

use super::interface::{Interface, InterfaceId};
use super::offloads::Prepared;
use super::open::PortSpec;
use super::registry::Share;
use super::spread::Spreading;
use super::{Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link, checksum_fix};
use abi::{Device, Devices};
use ring::Ring;

/// Requests to the kernel module.
pub mod abi;
/// Names of ports.
pub mod name;
mod open;
mod region;
mod ring;

/// Turns without an rx sync after many empty ones. Fewer than the empty turns a worker makes before it first waits.
const REST: u32 = 15;

/// One ring pair of a netmap port.
#[derive(Debug)]
pub struct Netmap {
    rx: Option<Ring>,
    tx: Option<Ring>,
    /// `None` from when the port behind it was gone until it is back.
    device: Option<Box<dyn Device>>,
    devices: Arc<dyn Devices>,
    spec: PortSpec,
    /// Present if frames are traded with the rings instead of copied.
    trader: Option<Arc<()>>,
    /// Has the NIC pass on group frames.
    _groups: Option<OwnedFd>,
    interface: Option<Interface>,
    info: DriverInfo,
    stats: DriverStats,
    complete_checksums: bool,
    /// Switched on again when the last port of the interface is closed.
    _offloads: Option<Share<InterfaceId, Prepared>>,
    /// Put back as well.
    _spreading: Option<Share<InterfaceId, Spreading>>,
    /// The device refused the last sync: the port behind it is gone, or stopped.
    failed: bool,
    /// Rx slots taken since the last sync.
    taken: u32,
    /// Turns without rx sync still to come, and how many there were last.
    rest: u32,
    rested: u32,
    /// In the middle of a packet of several slots.
    in_pieces: bool,
}

impl Netmap {
    fn sync_tx(&mut self) {
        self.failed = self
            .device
            .as_ref()
            .is_none_or(|device| device.sync_tx().is_err());
    }

    fn sync_rx(&mut self) {
        self.failed = self
            .device
            .as_ref()
            .is_none_or(|device| device.sync_rx().is_err());
        self.taken = 0;
    }

    /// Whether packets wait in the rx ring, having asked the kernel if it seems empty and it is time to ask.
    fn has_packets(&mut self) -> bool {
        let waiting = |ring: &Option<Ring>| ring.as_ref().is_some_and(|ring| ring.available() > 0);
        if waiting(&self.rx) {
            return true;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        self.sync_rx();
        if waiting(&self.rx) {
            self.rested = 0;
            return true;
        }
        self.rested = (2 * self.rested + 1).min(REST);
        self.rest = self.rested;
        // What the kernel could not send at once, or is done with, it looks at when asked.
        if self.unsent() > 0 {
            self.sync_tx();
        }
        false
    }

    /// Slots of the tx ring that the kernel has.
    fn unsent(&self) -> u32 {
        self.tx.as_ref().map_or(0, |tx| tx.size() - 1 - tx.available())
    }
}

impl Driver for Netmap {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        if !self.has_packets() {
            return;
        }
        let Self {
            rx,
            trader,
            stats,
            in_pieces,
            ..
        } = self;
        let Some(rx) = rx else { return };
        let (ready, mut taken) = (rx.available(), 0);
        while taken < ready && !frames.is_full() {
            let slot = rx.slot();
            let whole = !*in_pieces && slot.flags & NS_MOREFRAG == 0 && slot.len > 0;
            if !whole {
                // A packet in several slots, which nothing here asks for: one error, at its last.
                *in_pieces = slot.flags & NS_MOREFRAG != 0;
                stats.rx_errors += u64::from(!*in_pieces);
                rx.skip();
                taken += 1;
                continue;
            }
            let len = usize::from(slot.len);
            let received = if trader.is_some() {
                let Some(spare) = memory.alloc() else { break };
                match memory.trade(spare, slot.buf_idx, len) {
                    Ok((frame, given)) => {
                        rx.put(netmap_slot {
                            buf_idx: given,
                            len: 0,
                            flags: NS_BUF_CHANGED,
                            ptr: 0,
                        });
                        Some(frame)
                    }
                    Err(spare) => {
                        memory.free(spare);
                        rx.skip();
                        None
                    }
                }
            } else {
                if memory.available() == 0 {
                    break;
                }
                let frame = rx
                    .buffer(slot.buf_idx, len)
                    .and_then(|packet| memory.copy_in(packet));
                rx.skip();
                frame
            };
            taken += 1;
            let Some(mut frame) = received else {
                stats.rx_errors += 1;
                continue;
            };
            if self.complete_checksums {
                checksum_fix::complete(memory.bytes_mut(&mut frame), stats);
            }
            stats.rx_packets += 1;
            stats.rx_bytes += frame.len() as u64;
            frames.push(frame);
        }
        rx.publish();
        let (drained, half) = (taken == ready, rx.size() / 2);
        self.taken += taken;
        if drained || self.taken >= half {
            self.sync_rx();
        }
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        let Some(room) = self.tx.as_ref().map(Ring::available) else {
            self.stats.tx_errors += frames.len() as u64;
            return frames.drain(..).for_each(|frame| memory.free(frame));
        };
        if (room as usize) < frames.len() {
            self.sync_tx();
        }
        let Self {
            tx: Some(tx),
            trader,
            stats,
            ..
        } = self
        else {
            return;
        };
        let longest = tx.buffers().size;
        let room = (tx.available() as usize).min(frames.len());
        for mut frame in frames.drain(..room) {
            let len = frame.len();
            if len > longest || len > usize::from(u16::MAX) {
                // No slot for it: one of length 0 would go out, as a frame without a byte.
                stats.tx_errors += 1;
                memory.free(frame);
                continue;
            }
            let slot = tx.slot();
            let filled = if trader.is_some() {
                // Slots know no offset.
                if memory.move_packet(&mut frame, 0) {
                    memory.trade(frame, slot.buf_idx, 0)
                } else {
                    Err(frame)
                }
            } else {
                match tx.buffer(slot.buf_idx, len) {
                    Some(buffer) => {
                        buffer.copy_from_slice(memory.bytes(&frame));
                        Ok((frame, slot.buf_idx))
                    }
                    None => Err(frame),
                }
            };
            match filled {
                Ok((freed, buf_idx)) => {
                    stats.tx_packets += 1;
                    stats.tx_bytes += len as u64;
                    let flags = if trader.is_some() { NS_BUF_CHANGED } else { 0 };
                    tx.put(netmap_slot {
                        buf_idx,
                        len: len as u16,
                        flags,
                        ptr: 0,
                    });
                    memory.free(freed);
                }
                Err(frame) => {
                    // The slot names no buffer, which only the kernel could mend. Nothing is sent with it.
                    stats.tx_errors += 1;
                    tx.put(netmap_slot { len: 0, ..slot });
                    memory.free(frame);
                }
            }
        }
        if room > 0 {
            tx.publish();
            self.sync_tx();
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.as_ref().map(|device| device.readable())
    }

    /// The kernel has not said of every packet that it is sent, and looks again only when asked.
    fn owes(&mut self) -> bool {
        if self.unsent() > 0 && !self.failed {
            self.sync_tx();
        }
        self.unsent() > 0 && !self.failed
    }

    fn tend(&mut self, memory: &mut FrameMemory) {
        if self.device.is_none() {
            self.open_again(memory);
        } else if self.link() == Link::Gone {
            self.let_go();
        }
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        self.stats
    }

    /// Only a sync tells that a port without an interface is gone. One that has an interface may be stopped and go on.
    fn link(&self) -> Link {
        match (&self.device, &self.interface) {
            (Some(_), Some(interface)) => interface.link(),
            (Some(device), None) if device.sync_rx().is_ok() => Link::Up,
            _ => Link::Gone,
        }
    }

    /// The last netmap port of a worker moves the frame memory back: netmap's is used no longer.
    fn close(self: Box<Self>, memory: &mut FrameMemory) {
        let traded = self.trader.is_some();
        drop(self);
        if traded
            && memory.is_whole()
            && let Ok(own) = FrameMemory::new(memory.capacity(), memory.chunk_size())
        {
            *memory = own;
        }
    }
}
