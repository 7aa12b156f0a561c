//! The module's memory: where descriptions, rings and buffers are in its memfd.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

pub(super) const BUFFER: usize = 2048;
pub(super) const IF_SIZE: usize = 1024;
pub(super) const IFS: usize = 64;
/// Room for 256 slots.
pub(super) const RING_SIZE: usize = 256 + 256 * 16;
pub(super) const RINGS: usize = 32;
pub(super) const RINGS_AT: usize = IFS * IF_SIZE;
pub(super) const BUFFERS_AT: usize = RINGS_AT + RINGS * RING_SIZE;

pub(super) struct Memory {
    pub(super) file: OwnedFd,
    base: *mut u8,
    pub(super) len: usize,
}

// SAFETY: the mapping has no thread affinity; the kernel's lock orders accesses.
unsafe impl Send for Memory {}

impl Memory {
    pub(super) fn new(len: usize) -> Self {
        let len = len.next_multiple_of(4096);
        let file = rustix::fs::memfd_create("netmap", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, len as u64).unwrap();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0).unwrap() };
        Self {
            file,
            base: base.cast(),
            len,
        }
    }

    pub(super) fn read<T: Copy>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= self.len && at.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds and aligned, just checked; only plain integers and slots are read.
        unsafe { self.base.add(at).cast::<T>().read_volatile() }
    }

    pub(super) fn write<T: Copy>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= self.len && at.is_multiple_of(align_of::<T>()));
        // SAFETY: in bounds and aligned, just checked.
        unsafe { self.base.add(at).cast::<T>().write_volatile(value) }
    }

    pub(super) fn copy_buffer(&self, from: u32, to: u32) {
        let place = |index: u32| BUFFERS_AT + index as usize * BUFFER;
        assert!(from != to && place(from.max(to)) + BUFFER <= self.len);
        // SAFETY: two different buffers, in bounds, just checked.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.add(place(from)), self.base.add(place(to)), BUFFER);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: what mmap gave; nobody can use it after.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}
