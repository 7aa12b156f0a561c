#![allow(unsafe_code)]
//! Memory shared with a memif peer, and the rings in it: the only place that touches either.
//!
//! The peer may write any of it at any time. So no reference into it is ever made, only atomic accesses; each value is
//! read once, and an offset or a length is checked against the region before it is followed. The peer may take pages away:
//! then there are others in their place (`guard`).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use bytemuck::{Pod, Zeroable};
use rustix::fs::FileType;

use super::guard::Guard;
use crate::prefetch::prefetch;
use crate::segment;

/// `MEMIF_COOKIE`: a ring begins with it.
const COOKIE: u32 = 0x03e3_1f20;
/// `MEMIF_RING_FLAG_MASK_INT`: the receiver wants no interrupts.
const MASK_INTERRUPT: u16 = 1;
/// `MEMIF_DESC_FLAG_NEXT`: the packet goes on in the next descriptor's buffer.
pub(super) const NEXT: u16 = 1;

/// `memif_ring_t`: where its words are, one cache line for each side's.
const FLAGS: usize = 4;
const HEAD: usize = 6;
const TAIL: usize = 64;
const DESCRIPTORS: usize = 128;

/// Bytes of a ring with so many descriptors.
pub(super) const fn ring_bytes(size: usize) -> usize {
    DESCRIPTORS + size * size_of::<Descriptor>()
}

/// Largest ring: its indices are of 16 bits, and a full ring must differ from an empty one.
pub(super) const MAX_LOG2_RING: u8 = 15;

/// `memif_desc_t`: a buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Descriptor {
    /// `NEXT` or nothing.
    pub(super) flags: u16,
    /// Region the buffer is in.
    pub(super) region: u16,
    /// Bytes: of the packet, or for a buffer that is to be filled, its capacity.
    pub(super) length: u32,
    /// First byte in the region.
    pub(super) offset: u32,
    /// Not used by version 2.0.
    pub(super) metadata: u32,
}

const _: () = assert!(size_of::<Descriptor>() == 16);

/// A region of shared memory.
#[derive(Debug)]
pub(super) struct Region {
    /// Of a peer's region. It goes before the mapping does.
    guard: Option<Guard>,
    memory: segment::Region,
    len: usize,
}

/// Why a region is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegionError {
    /// A file whose pages may be long in coming, or do things when they are read.
    #[error("its file is no memory: a memfd, or a file of a tmpfs or hugetlbfs, is needed")]
    NoMemory,
    /// The file is shorter than the message says.
    #[error("its file is shorter than its {0} bytes")]
    Short(u64),
    /// The system's word.
    #[error("cannot map it: {0}")]
    Map(#[from] io::Error),
}

impl Region {
    /// A region of ours, to be handed to the peer. Errors: no memory or descriptor left.
    pub(super) fn create(len: usize) -> io::Result<Self> {
        let memory = segment::Region::shared_whole("memif", len)?;
        let guard = None;
        Ok(Self { guard, memory, len })
    }

    /// The peer's region of `len` bytes.
    pub(super) fn adopt(file: OwnedFd, len: u64) -> Result<Self, RegionError> {
        // Not a device, which may be on a tmpfs, too.
        let mode = rustix::fs::fstat(&file).map_err(io::Error::from)?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(RegionError::NoMemory);
        }
        let system = rustix::fs::fstatfs(&file).map_err(io::Error::from)?;
        let page = match system.f_type {
            TMPFS => rustix::param::page_size(),
            HUGETLBFS => usize::try_from(system.f_bsize).map_err(|_| RegionError::NoMemory)?,
            _ => return Err(RegionError::NoMemory),
        };
        let bytes = usize::try_from(len).map_err(|_| RegionError::Short(len))?;
        let memory = segment::Region::foreign(file, bytes, page).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => RegionError::Short(len),
            _ => error.into(),
        })?;
        let region = Self {
            guard: Some(Guard::new(memory.base(), memory.len())?),
            memory,
            len: bytes,
        };
        Ok(if bytes <= PRESENT {
            region.present()
        } else {
            region
        })
    }

    /// Whether its peer took pages of it away, and what is read here is zeroes or what we have written.
    fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_lost)
    }

    /// Has the kernel find all its pages now, so that no packet waits for one.
    fn present(self) -> Self {
        let (base, len) = (self.memory.base().as_ptr().cast(), self.memory.len());
        // SAFETY: the range is this mapping, and the advice changes no contents. Where the kernel does not know it
        // (before 5.14) pages are found as they are touched.
        let _ = unsafe { rustix::mm::madvise(base, len, rustix::mm::Advice::LinuxPopulateWrite) };
        self
    }

    /// Bytes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The file to hand over, of a region of ours.
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.memory.memfd()
    }

    /// Client: marks the beginning of a ring.
    pub(super) fn mark_ring(&self, offset: u32) {
        if let Some(cookie) = self.buffer(offset, size_of_val(&COOKIE) as u32) {
            cookie.write(&COOKIE.to_ne_bytes());
        }
    }

    /// The buffer from `offset` on, if all of it is in here.
    #[inline(always)]
    pub(super) fn buffer(&self, offset: u32, len: u32) -> Option<Buffer<'_>> {
        let end = offset as usize + len as usize;
        // SAFETY: offset <= end <= len, the bytes of the mapping.
        let at = (end <= self.len).then(|| unsafe { self.memory.base().add(offset as usize) })?;
        Some(Buffer {
            at,
            len: len as usize,
            _region: self,
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.is_lost() {
            log::warn!(
                "memif: a peer took away memory that it had shared: its file was made shorter, or there was no page for a hole in it"
            );
        }
    }
}

/// linux/magic.h TMPFS_MAGIC: what a memfd of ordinary pages is of.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;
/// HUGETLBFS_MAGIC: and one of huge pages, whose size is the file system's block.
const HUGETLBFS: rustix::fs::FsWord = 0x9584_58f6;

/// Most bytes of a peer's region that are made present at once: rings of 4,096 with buffers of 2,048, both ways, for 8 queues.
/// Whoever offers more may be after our memory.
const PRESENT: usize = 128 << 20;

/// Bytes of a region that the peer may change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer<'a> {
    at: NonNull<u8>,
    len: usize,
    _region: &'a Region,
}

impl Buffer<'_> {
    /// Bytes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Begins to bring in its first cache line.
    #[inline(always)]
    pub(super) fn prefetch(&self) {
        if self.len > 0 {
            // SAFETY: its first byte, in the region as in `read`.
            prefetch(unsafe { self.at.cast::<AtomicU8>().as_ref() });
        }
    }

    /// Copies its first bytes out, as many as `to` has; whatever they are by then. `to` is no longer than it.
    #[inline(always)]
    pub(super) fn read(&self, to: &mut [u8]) {
        assert!(to.len() <= self.len);
        // SAFETY: at most `len` bytes from `at` lie in the region, mapped as long as it is borrowed.
        let byte = |n: usize| unsafe { self.at.add(n).cast::<AtomicU8>().as_ref() }.load(Ordering::Relaxed);
        let lead = self.lead(to.len());
        let (front, rest) = to.split_at_mut(lead);
        front.iter_mut().enumerate().for_each(|(n, to)| *to = byte(n));
        let mut words = rest.chunks_exact_mut(WORD);
        let mut at = lead;
        for to in &mut words {
            // SAFETY: as above for eight bytes, at an address that `lead` makes a multiple of eight.
            let word = unsafe { self.at.add(at).cast::<AtomicU64>().as_ref() };
            to.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            at += WORD;
        }
        for (n, to) in words.into_remainder().iter_mut().enumerate() {
            *to = byte(at + n);
        }
    }

    /// Copies `from` to its front; `from` is no longer than it.
    #[inline(always)]
    pub(super) fn write(&self, from: &[u8]) {
        assert!(from.len() <= self.len);
        // SAFETY: as in `read`.
        let byte = |n: usize| unsafe { self.at.add(n).cast::<AtomicU8>().as_ref() };
        let lead = self.lead(from.len());
        let (front, rest) = from.split_at(lead);
        for (n, from) in front.iter().enumerate() {
            byte(n).store(*from, Ordering::Relaxed);
        }
        let words = rest.chunks_exact(WORD);
        let last = words.remainder();
        let mut at = lead;
        for from in words {
            // SAFETY: as in `read`.
            let word = unsafe { self.at.add(at).cast::<AtomicU64>().as_ref() };
            word.store(
                u64::from_ne_bytes(from.try_into().unwrap_or_default()),
                Ordering::Relaxed,
            );
            at += WORD;
        }
        for (n, from) in last.iter().enumerate() {
            byte(at + n).store(*from, Ordering::Relaxed);
        }
    }

    /// Bytes before the first whole word, of `len` in all.
    fn lead(&self, len: usize) -> usize {
        (self.at.addr().get().wrapping_neg() % WORD).min(len)
    }
}

const WORD: usize = size_of::<u64>();

/// A ring in a region: its words and descriptors, wherever their values lead.
#[derive(Debug)]
pub(super) struct Ring {
    base: NonNull<u8>,
    mask: u16,
    /// Keeps the memory mapped.
    _regions: Arc<[Region]>,
}

// SAFETY: the pointer leads into memory that `_regions` keeps mapped, without thread affinity; all access is atomic.
unsafe impl Send for Ring {}

impl Ring {
    /// The ring of 2^`log2_size` descriptors at `offset` of a region; `None` if it does not fit there or is not aligned.
    pub(super) fn at(regions: &Arc<[Region]>, region: u16, offset: u32, log2_size: u8) -> Option<Self> {
        if log2_size > MAX_LOG2_RING || !(offset as usize).is_multiple_of(WORD) {
            return None;
        }
        let size = 1 << log2_size;
        let bytes = regions
            .get(usize::from(region))?
            .buffer(offset, ring_bytes(size) as u32)?;
        Some(Self {
            base: bytes.at,
            mask: (size - 1) as u16,
            _regions: Arc::clone(regions),
        })
    }

    /// Descriptors.
    pub(super) const fn size(&self) -> u16 {
        self.mask + 1
    }

    fn word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is FLAGS, HEAD or TAIL: even, and in the ring, which `at` found to be in the region at a multiple of
        // eight; mapped as long as self. Both sides access it only atomically.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    const fn cookie(&self) -> &AtomicU32 {
        // SAFETY: as for `word`, the first four bytes.
        unsafe { self.base.cast().as_ref() }
    }

    const fn halves(&self, slot: u16) -> &[AtomicU64; 2] {
        let at = DESCRIPTORS + (slot & self.mask) as usize * size_of::<Descriptor>();
        // SAFETY: a slot of the ring, 16 bytes at a multiple of eight, as for `word`.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    /// Whether a ring begins here, as the client says it does.
    pub(super) fn is_marked(&self) -> bool {
        self.cookie().load(Ordering::Relaxed) == COOKIE
    }

    /// Descriptors that the client has put in. Acquire: what it wrote before it said so is seen.
    pub(super) fn head(&self) -> u16 {
        self.word(HEAD).load(Ordering::Acquire)
    }

    /// Client: everything before `head` is written. Release: our writes are seen before it.
    pub(super) fn set_head(&self, head: u16) {
        self.word(HEAD).store(head, Ordering::Release);
    }

    /// Descriptors that the server is done with. Acquire as in `head`.
    pub(super) fn tail(&self) -> u16 {
        self.word(TAIL).load(Ordering::Acquire)
    }

    /// Server: done with everything before `tail`. Release as in `set_head`.
    pub(super) fn set_tail(&self, tail: u16) {
        self.word(TAIL).store(tail, Ordering::Release);
    }

    /// Receiver: whether an interrupt is wanted for the next packet. What is read after it is newer than the wish.
    pub(super) fn want_interrupt(&self, wanted: bool) {
        let flags = if wanted { 0 } else { MASK_INTERRUPT };
        self.word(FLAGS).store(flags, Ordering::Relaxed);
        // With the fence in `wants_interrupt`: either the sender sees the wish or we see its packet.
        fence(Ordering::SeqCst);
    }

    /// Sender, after it published: whether the receiver waits for an interrupt.
    pub(super) fn wants_interrupt(&self) -> bool {
        fence(Ordering::SeqCst);
        self.word(FLAGS).load(Ordering::Relaxed) & MASK_INTERRUPT == 0
    }

    /// What a descriptor says at this moment; `slot` counts on, round and round.
    #[inline(always)]
    pub(super) fn descriptor(&self, slot: u16) -> Descriptor {
        bytemuck::cast(
            self.halves(slot)
                .each_ref()
                .map(|half| half.load(Ordering::Relaxed)),
        )
    }

    /// Writes a descriptor.
    #[inline(always)]
    pub(super) fn set_descriptor(&self, slot: u16, descriptor: Descriptor) {
        let halves: [u64; 2] = bytemuck::cast(descriptor);
        for (place, half) in self.halves(slot).iter().zip(halves) {
            place.store(half, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
