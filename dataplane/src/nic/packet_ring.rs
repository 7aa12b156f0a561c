#![allow(unsafe_code)]
//! The receive ring of an AF_PACKET socket, TPACKET_V2 (Documentation/networking/packet_mmap.rst): equal slots, each
//! with a header and one frame; a status word says whose the slot is. What the kernel writes is checked against the
//! slot before a byte is read.
//!
//! Version 2, not 3: version 3 hands over a block when it is full or when its timer of at least 1 ms fires, so a lone
//! packet waits for the timer; version 2 hands over each packet at once. Measured on veth, one packet at a time, one
//! way: 1 us at the median with version 2, 1000 us with version 3. Latency of a single request matters more to a
//! gateway's fallback driver than the fifth of throughput that version 3 gains under full load.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{io, slice};

use bytemuck::{Pod, Zeroable};

use super::sys::{self, Mapping};

/// `struct tpacket2_hdr` (linux/if_packet.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Header {
    status: u32,
    len: u32,
    captured: u32,
    mac: u16,
    net: u16,
    sec: u32,
    nsec: u32,
    vlan_tci: u16,
    vlan_tpid: u16,
    padding: [u8; 4],
}

const _: () = assert!(size_of::<Header>() == size_of::<libc::tpacket2_hdr>());

/// Bytes the kernel puts in front of the frame, at most: header, address and alignment (TPACKET2_HDRLEN is 52).
const SLOT_OVERHEAD: usize = 128;
/// Bytes per block: the kernel allocates in blocks of whole pages, and asks nothing more of version 2.
const BLOCK: usize = 64 * 1024;

/// A received frame in its slot.
#[derive(Debug)]
pub(crate) struct Received<'ring> {
    /// From the Ethernet header on.
    pub(crate) packet: &'ring mut [u8],
    /// The tag the kernel took out of the frame: protocol and TCI.
    pub(crate) vlan: Option<(u16, u16)>,
    /// The sender left the checksum to hardware.
    pub(crate) checksum_partial: bool,
}

/// The ring, read in order.
#[derive(Debug)]
pub(crate) struct PacketRing {
    mapping: Mapping,
    slot_size: usize,
    slots: usize,
    next: usize,
}

impl PacketRing {
    /// Makes the socket's receive ring with room for at least `slots` frames of `max_packet` bytes.
    pub(crate) fn new(socket: BorrowedFd<'_>, slots: usize, max_packet: usize) -> io::Result<Self> {
        let slot_size = (max_packet + SLOT_OVERHEAD).next_power_of_two().min(BLOCK);
        let per_block = BLOCK / slot_size;
        let blocks = slots.max(1).div_ceil(per_block);
        let slots = blocks * per_block;
        // struct tpacket_req.
        let request = [BLOCK, blocks, slot_size, slots].map(|n| n as u32);
        let version = libc::tpacket_versions::TPACKET_V2 as i32;
        sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let mapping = Mapping::of(socket, 0, blocks * BLOCK)?;
        Ok(Self {
            mapping,
            slot_size,
            slots,
            next: 0,
        })
    }

    /// Memory that the kernel gave it, in bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.mapping.len()
    }

    /// Slots in all.
    pub(crate) const fn capacity(&self) -> usize {
        self.slots
    }

    /// The next received frame: `Some(Err(()))` for one that was cut to the slot or is nonsense. It stays until
    /// `release`.
    pub(crate) fn peek(&mut self) -> Option<Result<Received<'_>, ()>> {
        // Acquire: the kernel writes the slot before its status.
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let at = self.next * self.slot_size;
        // SAFETY: next < slots, so the slot lies in the mapping; it is 16-aligned (slots are powers of two from 256
        // up on a page), any bit pattern is a Header, and while the status says USER the kernel does not write here.
        let header = unsafe { self.mapping.base().add(at).cast::<Header>().read() };
        let (start, len) = (usize::from(header.mac), header.captured as usize);
        let whole = header.captured == header.len;
        let fits = start >= size_of::<Header>() && start.saturating_add(len) <= self.slot_size;
        if !whole || !fits {
            return Some(Err(()));
        }
        // SAFETY: start + len lies in the slot behind the header, just checked; the slot is ours until `release`,
        // which needs `&mut self` and so ends this borrow.
        let packet = unsafe { slice::from_raw_parts_mut(self.mapping.base().add(at + start).as_ptr(), len) };
        let tpid = if status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
            header.vlan_tpid
        } else {
            0x8100
        };
        Some(Ok(Received {
            packet,
            vlan: (status & libc::TP_STATUS_VLAN_VALID != 0).then_some((tpid, header.vlan_tci)),
            checksum_partial: status & libc::TP_STATUS_CSUMNOTREADY != 0,
        }))
    }

    /// Gives the slot that `peek` showed back to the kernel.
    pub(crate) fn release(&mut self) {
        // Release: our reads are done before the kernel may overwrite.
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: next < slots: in the mapping and aligned as in `peek`; `status` is the header's first field, which
        // both sides access atomically, alive as long as the mapping that `&self` borrows.
        unsafe {
            self.mapping
                .base()
                .add(self.next * self.slot_size)
                .cast::<AtomicU32>()
                .as_ref()
        }
    }
}
