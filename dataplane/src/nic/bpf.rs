#![allow(unsafe_code)]
//! bpf(2): maps, programs and links by descriptor, and the instructions that programs are written in. Says nothing of what a
//! program does.
//!
//! All end with their last descriptor: however the process ends, nothing of them stays.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use bytemuck::{NoUninit, Pod, Zeroable};

use super::sys;

/// linux/bpf.h, enum bpf_cmd.
mod command {
    pub(super) const MAP_CREATE: i32 = 0;
    pub(super) const MAP_UPDATE_ELEM: i32 = 2;
    pub(super) const MAP_DELETE_ELEM: i32 = 3;
    pub(super) const PROG_LOAD: i32 = 5;
    #[cfg(test)]
    pub(super) const PROG_TEST_RUN: i32 = 10;
    pub(super) const LINK_CREATE: i32 = 28;
}
/// linux/bpf.h: BPF_PROG_TYPE_XDP, attach type BPF_XDP.
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// linux/if_link.h: XDP_FLAGS_SKB_MODE and XDP_FLAGS_DRV_MODE.
pub(crate) const FLAGS_GENERIC: u32 = 1 << 1;
/// In the driver.
pub(crate) const FLAGS_NATIVE: u32 = 1 << 2;

/// One BPF instruction (`struct bpf_insn`, linux/bpf.h; RFC 9669 §3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Instruction {
    pub(crate) opcode: u8,
    /// Destination register in the low half, source in the high half (little-endian bit-field order).
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

pub(crate) const fn instruction(opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        opcode,
        registers: dst | src << 4,
        offset,
        immediate,
    }
}

/// Kinds of maps (linux/bpf.h, enum bpf_map_type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapKind {
    /// Exact keys. Memory is taken with the entries.
    Hash = 1,
    /// Longest prefix: a key begins with its length in bits.
    LongestPrefix = 11,
    /// AF_XDP sockets by queue.
    Sockets = 17,
}

/// A map of keys `K` and values of four bytes.
#[derive(Debug)]
pub(crate) struct Map<K> {
    fd: OwnedFd,
    _keys: std::marker::PhantomData<fn(K)>,
}

impl<K: NoUninit> Map<K> {
    /// Room for `capacity` entries. Errors: EPERM without CAP_BPF; E2BIG, EINVAL.
    pub(crate) fn new(kind: MapKind, capacity: u32) -> io::Result<Self> {
        // BPF_F_NO_PREALLOC, which longest prefixes must have and sockets must not.
        let flags = u32::from(kind != MapKind::Sockets);
        let attributes = MapCreate {
            map_type: kind as u32,
            key_size: size_of::<K>() as u32,
            value_size: 4,
            max_entries: capacity,
            flags,
        };
        // SAFETY: the attributes hold no address, and MAP_CREATE returns a new descriptor.
        let fd = unsafe { sys::bpf_new(command::MAP_CREATE, &attributes)? };
        Ok(Self {
            fd,
            _keys: std::marker::PhantomData,
        })
    }

    /// Its descriptor, by which a program names it.
    pub(crate) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Puts or replaces. Errors: E2BIG or ENOSPC: full; ENOMEM.
    pub(crate) fn set(&self, key: K, value: u32) -> io::Result<()> {
        let attributes = self.element(&key, (&raw const value).expose_provenance() as u64);
        // SAFETY: key and value are of the sizes that the map was created with, and outlive the call.
        unsafe { sys::bpf(command::MAP_UPDATE_ELEM, &attributes) }.map(drop)
    }

    /// Removes. Errors: ENOENT.
    pub(crate) fn remove(&self, key: K) -> io::Result<()> {
        let attributes = self.element(&key, 0);
        // SAFETY: the key is of the size that the map was created with, and outlives the call.
        unsafe { sys::bpf(command::MAP_DELETE_ELEM, &attributes) }.map(drop)
    }

    fn element(&self, key: &K, value: u64) -> MapElement {
        MapElement {
            map: self.fd.as_raw_fd() as u32,
            padding: 0,
            key: (&raw const *key).expose_provenance() as u64,
            value,
            flags: 0,
        }
    }
}

/// Loads an XDP program; a name has at most 15 letters. Errors: EPERM, EACCES or EINVAL where the kernel's verifier refuses it.
pub(crate) fn load(name: &str, program: &[Instruction]) -> io::Result<OwnedFd> {
    let licence = c"Apache-2.0";
    let mut attributes = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        count: program.len() as u32,
        instructions: program.as_ptr().expose_provenance() as u64,
        licence: licence.as_ptr().expose_provenance() as u64,
        ..ProgLoad::zeroed()
    };
    let bytes = name.as_bytes();
    let length = bytes.len().min(15);
    attributes.name[..length].copy_from_slice(&bytes[..length]);
    // SAFETY: `instructions` points at `count` instructions and `licence` at a NUL-terminated string, both alive
    // during the call; there is no log buffer. PROG_LOAD returns a new descriptor.
    unsafe { sys::bpf_new(command::PROG_LOAD, &attributes) }
}

/// Attaches an XDP program to an interface for as long as what is returned is open.
pub(crate) fn attach(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        ifindex,
        attach_type: ATTACH_XDP,
        flags,
    };
    // SAFETY: the attributes hold no address, and LINK_CREATE returns a new descriptor.
    unsafe { sys::bpf_new(command::LINK_CREATE, &attributes) }
}

/// What an XDP program returns for a frame, which goes nowhere.
#[cfg(test)]
pub(super) fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        data_in: frame.as_ptr().expose_provenance() as u64,
        ..TestRun::zeroed()
    };
    let size = size_of::<TestRun>();
    // SAFETY: `data_in` points at `size_in` bytes, which the kernel only reads; there is no `data_out`. It writes its answer into
    // the attributes, which are borrowed mutably for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command::PROG_TEST_RUN,
            std::ptr::from_mut(&mut attributes),
            size,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes.answer)
}

/// The parts of `union bpf_attr` used here.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgLoad {
    prog_type: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[cfg(test)]
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TestRun {
    program: u32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_structures_have_the_kernels_sizes() {
        assert_eq!((size_of::<MapCreate>(), size_of::<MapElement>()), (20, 32));
        assert_eq!((size_of::<ProgLoad>(), size_of::<LinkCreate>()), (64, 16));
        assert_eq!(size_of::<TestRun>(), 32);
    }
}
