#![allow(unsafe_code)]
//! One ring of a netmap port (`netmap_ring` and its slots, sys/net/netmap.h). Slots from `head` to before `tail` are ours: to
//! be filled in a tx ring, filled in an rx ring. We move `head`, the kernel `tail`, each at a sync.
//!
//! Where everything is was checked when the ring was found and is not read again; `tail`, slots and buffers are looked at
//! afresh and checked each time. `netmap_sys` has the structures; its NETMAP_BUF_IDX, nm_ring_space and NETMAP_RXRING are
//! not used: they add where they must subtract, overflow at the wrap, and know one host ring only.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use netmap_sys::netmap::{netmap_ring, netmap_slot};

use super::region::{Buffers, FIRST_BUFFER, Region};
use crate::nic::sys::Mapping;

const _: () = assert!(size_of::<netmap_ring>() == 256 && size_of::<netmap_slot>() == 16);
const _: () = assert!(offset_of!(netmap_ring, slot) == 256 && offset_of!(netmap_ring, tail) == 28);

/// A ring with more slots has more than 16 times what the kernel gives (NM_BDG_MAXSLOTS and NICs: 4096).
const MOST_SLOTS: u32 = 65_536;

/// Our end of a ring.
#[derive(Debug)]
pub(crate) struct Ring {
    cur: NonNull<AtomicU32>,
    head: NonNull<AtomicU32>,
    tail: NonNull<AtomicU32>,
    slots: NonNull<netmap_slot>,
    size: u32,
    /// The first slot that is ours; what the memory says only after `publish`.
    next: u32,
    buffers: Buffers,
    mapping: Arc<Mapping>,
}

// SAFETY: the pointers lead into memory that `mapping` keeps, without thread affinity; what touches slots or buffers takes
// `&mut self`.
unsafe impl Send for Ring {}

impl Ring {
    /// The ring at `offset` of the memory; `None` if it, one of its slots or a buffer would be outside.
    pub(crate) fn at(region: &Region, offset: usize) -> Option<Self> {
        let len = region.mapping.len();
        let word = |field: usize| region.read::<u32>(offset.checked_add(field)?);
        let size = word(offset_of!(netmap_ring, num_slots))?;
        let buffer = word(offset_of!(netmap_ring, nr_buf_size))?;
        let next = word(offset_of!(netmap_ring, head))?;
        let start = region.read::<i64>(offset)?;
        let slots = offset.checked_add(size_of::<netmap_ring>())?;
        let sound = (2..=MOST_SLOTS).contains(&size)
            && next < size
            && slots.checked_add(size as usize * size_of::<netmap_slot>())? <= len
            // A slot tells a length in 16 bits.
            && (64..=65_536).contains(&buffer);
        let start = offset.checked_add_signed(isize::try_from(start).ok()?)?;
        let count = len.checked_sub(start)?.checked_div(buffer as usize)?;
        if !sound || count <= FIRST_BUFFER as usize {
            return None;
        }
        let base = region.mapping.base();
        // SAFETY: `offset` to behind the last slot lies in the mapping, just checked.
        let (ring, slots) = unsafe { (base.add(offset), base.add(slots).cast::<netmap_slot>()) };
        let index = |field| {
            // SAFETY: a field of the ring, which lies in the mapping; 4-aligned since `word` read such fields at `offset`.
            unsafe { ring.add(field).cast::<AtomicU32>() }
        };
        Some(Self {
            cur: index(offset_of!(netmap_ring, cur)),
            head: index(offset_of!(netmap_ring, head)),
            tail: index(offset_of!(netmap_ring, tail)),
            slots,
            size,
            next,
            buffers: Buffers {
                offset: start,
                size: buffer as usize,
                count: u32::try_from(count).unwrap_or(u32::MAX),
            },
            mapping: Arc::clone(&region.mapping),
        })
    }

    /// Slots in all; one fewer can be ours at a time.
    pub(crate) const fn size(&self) -> u32 {
        self.size
    }

    /// Where the buffers are.
    pub(crate) const fn buffers(&self) -> Buffers {
        self.buffers
    }

    fn word(at: &NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: `at` points at an aligned u32 in the mapping (checked in `at`), alive as long as the ring, whose borrow the
        // result carries.
        unsafe { at.as_ref() }
    }

    /// Slots that are ours. A `tail` outside of the ring is nonsense: then none are.
    pub(crate) fn available(&self) -> u32 {
        // Acquire: the kernel writes slots before it moves `tail`.
        let tail = Self::word(&self.tail).load(Ordering::Acquire);
        match tail {
            tail if tail >= self.size => 0,
            tail if tail >= self.next => tail - self.next,
            tail => tail + self.size - self.next,
        }
    }

    /// Our first slot, as it is now. Only while some are available.
    pub(crate) fn slot(&mut self) -> netmap_slot {
        // SAFETY: `next < size` always, so the slot lies in the mapping, aligned as the ring is; any bit pattern is a slot.
        unsafe { self.slots.add(self.next as usize).read_volatile() }
    }

    /// Writes our first slot and goes on to the next.
    pub(crate) fn put(&mut self, slot: netmap_slot) {
        // SAFETY: as in `slot`.
        unsafe { self.slots.add(self.next as usize).write_volatile(slot) };
        self.skip();
    }

    /// Goes on to the next slot.
    pub(crate) const fn skip(&mut self) {
        self.next += 1;
        if self.next == self.size {
            self.next = 0;
        }
    }

    /// Tells the kernel how far we are; it looks at the next sync.
    pub(crate) fn publish(&self) {
        // Release: slots and buffers are written before.
        Self::word(&self.cur).store(self.next, Ordering::Release);
        Self::word(&self.head).store(self.next, Ordering::Release);
    }

    /// The first `len` bytes of a buffer; `None` for what is none of a ring's, or longer.
    pub(crate) fn buffer(&mut self, index: u32, len: usize) -> Option<&mut [u8]> {
        let Buffers { offset, size, count } = self.buffers;
        if index < FIRST_BUFFER || index >= count || len > size {
            return None;
        }
        // SAFETY: all `count` buffers from `offset` on lie in the mapping (checked in `at`), and any bytes are bytes. The
        // protocol gives a buffer of a slot that is ours to us alone; a kernel that writes into it all the same changes
        // bytes, nothing else. The borrow of `self` ends before another buffer can be had.
        let bytes = unsafe {
            let at = self.mapping.base().add(offset + index as usize * size);
            slice::from_raw_parts_mut(at.as_ptr(), len)
        };
        Some(bytes)
    }
}
