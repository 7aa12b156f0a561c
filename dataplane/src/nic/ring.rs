#![allow(unsafe_code)]
//! The four rings of an AF_XDP socket over memory shared with the kernel (Documentation/networking/af_xdp.rst): we
//! produce into `Fill` and `Tx`, and consume from `Rx` and `Completion`; the four types differ, so a ring cannot be
//! taken for another.
//!
//! Each side writes one index and reads the other's. The other's index is cached and only read again when the cache
//! has nothing left; our own is published once per batch. What the kernel writes is checked: an index that claims
//! more entries than the ring has gives none.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use bytemuck::{Pod, Zeroable};
use rustix::net::xdp::XdpRingOffset;

use super::sys::Mapping;

/// `struct xdp_desc` (linux/if_xdp.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Descriptor {
    /// Offset of the packet in the frame memory.
    pub(crate) address: u64,
    /// Packet length.
    pub(crate) len: u32,
    /// XDP_PKT_CONTD and friends; none is asked for.
    pub(crate) options: u32,
}

/// Chunks given to the kernel to receive into.
pub(crate) type Fill = Producer<u64>;
/// Packets given to the kernel to send.
pub(crate) type Tx = Producer<Descriptor>;
/// Packets received.
pub(crate) type Rx = Consumer<Descriptor>;
/// Chunks whose packet was sent.
pub(crate) type Completion = Consumer<u64>;

/// XDP_RING_NEED_WAKEUP (linux/if_xdp.h).
const NEED_WAKEUP: u32 = 1;

/// Where the parts of a ring are.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
    /// Keeps the memory mapped; tests bring their own memory.
    _mapping: Option<Mapping>,
    _entries: PhantomData<T>,
}

// SAFETY: the pointers lead into memory that `_mapping` owns or the maker of a test vouches for, without thread
// affinity; a ring is used by one thread at a time, since every method that touches slots takes `&mut self`.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Pod> Shared<T> {
    /// A ring of `size` entries (a power of two) mapped from a socket. `None` if the kernel's offsets do not fit the
    /// mapping or are not aligned, which would be a kernel we do not know.
    fn mapped(mapping: Mapping, offsets: &XdpRingOffset, size: u32) -> Option<Self> {
        let base = mapping.base();
        let part = |offset: u64, len: usize, align: usize| -> Option<NonNull<u8>> {
            let offset = usize::try_from(offset).ok()?;
            let fits = offset.checked_add(len)? <= mapping.len() && offset % align == 0;
            // SAFETY: offset + len lies in the mapping, just checked.
            fits.then(|| unsafe { base.add(offset) })
        };
        let index = |offset| part(offset, 4, 4).map(NonNull::cast::<AtomicU32>);
        let slots = part(
            offsets.desc,
            (size as usize).checked_mul(size_of::<T>())?,
            align_of::<T>(),
        )?
        .cast();
        let (producer, consumer) = (index(offsets.producer)?, index(offsets.consumer)?);
        let flags = index(offsets.flags?)?;
        size.is_power_of_two().then_some(())?;
        Some(Self {
            producer,
            consumer,
            flags,
            slots,
            size,
            _mapping: Some(mapping),
            _entries: PhantomData,
        })
    }

    fn index(part: &NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: `part` points at an aligned u32 inside the mapping (checked in `mapped`), alive as long as self,
        // whose borrow the result carries; both sides access it only atomically.
        unsafe { part.as_ref() }
    }

    const fn slot(&self, index: u32) -> NonNull<T> {
        // SAFETY: index & (size - 1) < size, and `slots` has `size` entries.
        unsafe { self.slots.add((index & (self.size - 1)) as usize) }
    }

    fn needs_wakeup(&self) -> bool {
        Self::index(&self.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

/// Our end of a ring that we fill.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    shared: Shared<T>,
    /// Our index as published.
    head: u32,
    /// The kernel's index when last read.
    tail: u32,
}

impl<T: Pod> Producer<T> {
    pub(crate) fn mapped(mapping: Mapping, offsets: &XdpRingOffset, size: u32) -> Option<Self> {
        Shared::mapped(mapping, offsets, size).map(|shared| Self {
            shared,
            head: 0,
            tail: 0,
        })
    }

    /// Free slots, at most `want`; reads the kernel's index only if the cached one says there are too few.
    pub(crate) fn acquire(&mut self, want: u32) -> u32 {
        if self.room() < want {
            // Acquire: the kernel is done with the slots before it says so.
            self.tail = Shared::<T>::index(&self.shared.consumer).load(Ordering::Acquire);
        }
        self.room().min(want)
    }

    /// Entries that the kernel has not taken yet.
    pub(crate) fn pending(&mut self) -> u32 {
        self.tail = Shared::<T>::index(&self.shared.consumer).load(Ordering::Acquire);
        self.head.wrapping_sub(self.tail).min(self.shared.size)
    }

    /// Writes the `nth` acquired slot.
    pub(crate) fn write(&mut self, nth: u32, entry: T) {
        debug_assert!(nth < self.room());
        // SAFETY: `slot` is in the ring; slots between our index and the kernel's plus the size are ours to write.
        unsafe { self.shared.slot(self.head.wrapping_add(nth)).write(entry) }
    }

    /// Publishes the first `count` written slots.
    pub(crate) fn release(&mut self, count: u32) {
        debug_assert!(count <= self.room());
        self.head = self.head.wrapping_add(count);
        // Release: the entries are written before the kernel sees the index.
        Shared::<T>::index(&self.shared.producer).store(self.head, Ordering::Release);
    }

    /// Whether the kernel waits for a system call before it looks at this ring.
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.shared.needs_wakeup()
    }

    const fn room(&self) -> u32 {
        // More outstanding than the ring has: the kernel's index is nonsense, nothing is free.
        self.shared.size.saturating_sub(self.head.wrapping_sub(self.tail))
    }
}

/// Our end of a ring that the kernel fills.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    shared: Shared<T>,
    /// Our index as published.
    tail: u32,
    /// The kernel's index when last read.
    head: u32,
}

impl<T: Pod> Consumer<T> {
    pub(crate) fn mapped(mapping: Mapping, offsets: &XdpRingOffset, size: u32) -> Option<Self> {
        Shared::mapped(mapping, offsets, size).map(|shared| Self {
            shared,
            tail: 0,
            head: 0,
        })
    }

    /// Entries to read, at most `want`; reads the kernel's index only if the cached one says there are none.
    pub(crate) fn acquire(&mut self, want: u32) -> u32 {
        if self.ready() == 0 {
            // Acquire: the entries are written before the kernel published the index.
            self.head = Shared::<T>::index(&self.shared.producer).load(Ordering::Acquire);
        }
        self.ready().min(want)
    }

    /// Reads the `nth` acquired entry.
    pub(crate) fn read(&mut self, nth: u32) -> T {
        debug_assert!(nth < self.ready());
        // SAFETY: `slot` is in the ring, initialised (the kernel's pages start zeroed), and any bit pattern is a T;
        // the kernel does not write slots between our index and its own.
        unsafe { self.shared.slot(self.tail.wrapping_add(nth)).read() }
    }

    /// Gives the first `count` slots back.
    pub(crate) fn release(&mut self, count: u32) {
        debug_assert!(count <= self.ready());
        self.tail = self.tail.wrapping_add(count);
        // Release: our reads are done before the kernel may overwrite.
        Shared::<T>::index(&self.shared.consumer).store(self.tail, Ordering::Release);
    }

    const fn ready(&self) -> u32 {
        let ready = self.head.wrapping_sub(self.tail);
        // More than the ring has: the kernel's index is nonsense, nothing is ready.
        if ready > self.shared.size { 0 } else { ready }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring over ordinary memory, with the kernel's end played by a second view.
    fn ring(size: usize, start: u32) -> (Producer<u64>, Consumer<u64>) {
        let slots: &'static mut [u64] = vec![0; size].leak();
        let indices: &'static [AtomicU32] =
            vec![AtomicU32::new(start), AtomicU32::new(start), AtomicU32::new(0)].leak();
        let slots = NonNull::new(slots.as_mut_ptr()).unwrap();
        let view = || Shared {
            producer: NonNull::from(&indices[0]),
            consumer: NonNull::from(&indices[1]),
            flags: NonNull::from(&indices[2]),
            slots,
            size: size as u32,
            _mapping: None,
            _entries: PhantomData,
        };
        (
            Producer {
                shared: view(),
                head: start,
                tail: start,
            },
            Consumer {
                shared: view(),
                head: start,
                tail: start,
            },
        )
    }

    #[test]
    fn entries_come_out_in_order_across_the_wrap_of_the_index() {
        let (mut producer, mut consumer) = ring(4, u32::MAX - 5);
        let mut next = 0;
        for round in 0..20 {
            let room = producer.acquire(3);
            assert_eq!(room, 3, "round {round}");
            (0..room).for_each(|n| producer.write(n, next + u64::from(n)));
            producer.release(room);
            let ready = consumer.acquire(8);
            let read: Vec<_> = (0..ready).map(|n| consumer.read(n)).collect();
            assert_eq!(read, [next, next + 1, next + 2]);
            consumer.release(ready);
            next += 3;
        }
    }

    #[test]
    fn a_full_ring_has_no_room_until_entries_are_released() {
        let (mut producer, mut consumer) = ring(4, 0);
        assert_eq!(producer.acquire(9), 4);
        (0..4).for_each(|n| producer.write(n, 0));
        producer.release(4);
        assert_eq!((producer.acquire(1), producer.pending()), (0, 4));
        assert_eq!(consumer.acquire(1), 1);
        consumer.release(1);
        assert_eq!((producer.acquire(9), producer.pending()), (1, 3));
    }

    #[test]
    fn an_index_beyond_the_ring_gives_nothing() {
        let (mut producer, mut consumer) = ring(4, 0);
        Shared::<u64>::index(&producer.shared.producer).store(5, Ordering::Relaxed);
        assert_eq!(consumer.acquire(9), 0);
        Shared::<u64>::index(&producer.shared.consumer).store(1, Ordering::Relaxed);
        assert_eq!(producer.acquire(9), 0);
    }
}
