#![allow(unsafe_code)]
//! bpf(2): maps, programs and links by descriptor, and the instructions that programs are written in. Says nothing of what a
//! program does.
//!
//! All end with their last descriptor: however the process ends, nothing of them stays. But what has a name in a BPF file system
//! (`pin`) stays as long as the name.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytemuck::{Pod, Zeroable};

use super::sys;

pub(crate) mod writer;

/// linux/bpf.h, enum bpf_cmd.
mod command {
    pub(super) const MAP_CREATE: i32 = 0;
    pub(super) const MAP_LOOKUP_ELEM: i32 = 1;
    pub(super) const MAP_UPDATE_ELEM: i32 = 2;
    pub(super) const MAP_DELETE_ELEM: i32 = 3;
    pub(super) const MAP_GET_NEXT_KEY: i32 = 4;
    pub(super) const PROG_LOAD: i32 = 5;
    pub(super) const OBJ_PIN: i32 = 6;
    pub(super) const OBJ_GET: i32 = 7;
    #[cfg(test)]
    pub(super) const PROG_TEST_RUN: i32 = 10;
    pub(super) const OBJ_GET_INFO_BY_FD: i32 = 15;
    pub(super) const LINK_CREATE: i32 = 28;
    pub(super) const LINK_UPDATE: i32 = 29;
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
    /// Values by number.
    Array = 2,
    /// Exact keys, of which the least recently used makes room. All memory is taken at once.
    LeastRecent = 9,
    /// Longest prefix: a key begins with its length in bits.
    LongestPrefix = 11,
    /// AF_XDP sockets by queue.
    Sockets = 17,
}

/// A map of keys `K` and values `V`.
#[derive(Debug)]
pub(crate) struct Map<K, V = u32> {
    fd: OwnedFd,
    _entries: PhantomData<fn(K, V)>,
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// Room for `capacity` entries. Errors: EPERM without CAP_BPF; E2BIG, EINVAL.
    pub(crate) fn new(kind: MapKind, capacity: u32) -> io::Result<Self> {
        // BPF_F_NO_PREALLOC, which longest prefixes must have and the others must not.
        let flags = u32::from(matches!(kind, MapKind::Hash | MapKind::LongestPrefix));
        let attributes = MapCreate {
            map_type: kind as u32,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            max_entries: capacity,
            flags,
        };
        // SAFETY: the attributes hold no address, and MAP_CREATE returns a new descriptor.
        let fd = unsafe { sys::bpf_new(command::MAP_CREATE, &attributes)? };
        Ok(Self {
            fd,
            _entries: PhantomData,
        })
    }

    /// The map that has this name in a BPF file system. Errors: ENOENT; InvalidData for one of another shape, EACCES.
    pub(crate) fn pinned(path: &Path, kind: MapKind) -> io::Result<Self> {
        let fd = pinned(path)?;
        // struct bpf_map_info: type, id, size of keys, of values.
        let [is, _, key, value] = info::<[u32; 4]>(fd.as_fd())?;
        if (is, key, value) != (kind as u32, size_of::<K>() as u32, size_of::<V>() as u32) {
            let what = format!("{} is no map of ours", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Self {
            fd,
            _entries: PhantomData,
        })
    }

    /// Its descriptor, by which a program names it.
    pub(crate) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Puts or replaces. Errors: E2BIG or ENOSPC: full; ENOMEM.
    pub(crate) fn set(&self, key: K, value: V) -> io::Result<()> {
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

    /// What a key has. Errors: ENOENT.
    pub(crate) fn get(&self, key: K) -> io::Result<V> {
        let mut value = V::zeroed();
        let attributes = self.element(&key, (&raw mut value).expose_provenance() as u64);
        // SAFETY: key and value are of the sizes that the map was created with, and outlive the call; the kernel writes the value,
        // of which any bits are one.
        unsafe { sys::bpf(command::MAP_LOOKUP_ELEM, &attributes) }?;
        Ok(value)
    }

    /// All that is in it. What others change meanwhile may be missing or there twice.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut last: Option<K> = None;
        loop {
            let mut next = K::zeroed();
            let attributes = MapElement {
                map: self.fd.as_raw_fd() as u32,
                key: last
                    .as_ref()
                    .map_or(0, |key| (&raw const *key).expose_provenance() as u64),
                value: (&raw mut next).expose_provenance() as u64,
                ..MapElement::zeroed()
            };
            // SAFETY: both keys are of the size that the map was created with, and outlive the call; the kernel writes the next one,
            // of which any bits are one. No key asks for the first.
            match unsafe { sys::bpf(command::MAP_GET_NEXT_KEY, &attributes) } {
                Ok(_) => entries.push((next, self.get(next)?)),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(entries),
                Err(error) => return Err(error),
            }
            last = Some(next);
        }
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

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The object that has this name in a BPF file system. Errors: ENOENT, EACCES.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Pin {
        path: name.as_ptr().expose_provenance() as u64,
        ..Pin::zeroed()
    };
    // SAFETY: the path is a NUL-terminated string that outlives the call, and OBJ_GET returns a new descriptor.
    unsafe { sys::bpf_new(command::OBJ_GET, &attributes) }
}

/// Gives a map or a link a name in a BPF file system, in place of what had it. Errors: ENOENT, EPERM where that is none.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push("-new");
    let new = Path::new(&new);
    // Of a process that was killed here.
    let _ = std::fs::remove_file(new);
    let name = CString::new(new.as_os_str().as_bytes())?;
    let attributes = Pin {
        path: name.as_ptr().expose_provenance() as u64,
        object: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    unsafe { sys::bpf(command::OBJ_PIN, &attributes) }?;
    std::fs::rename(new, path)
}

/// What the kernel says of an object: as much of its structure as is asked for.
fn info<T: Pod>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::zeroed();
    let attributes = Info {
        object: object.as_raw_fd() as u32,
        size: size_of::<T>() as u32,
        address: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the address is that of `size` bytes which outlive the call; the kernel writes no more than those, of which any bits
    // are a `T`.
    unsafe { sys::bpf(command::OBJ_GET_INFO_BY_FD, &attributes) }?;
    Ok(info)
}

/// The interface that an XDP link is attached to; 0: it is gone. Errors: InvalidData for what is no such link.
pub(crate) fn interface_of(link: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_link_info: type, id, program, padding, interface. BPF_LINK_TYPE_XDP.
    const LINK_TYPE_XDP: u32 = 6;
    match info::<[u32; 6]>(link)? {
        [LINK_TYPE_XDP, _, _, _, interface, _] => Ok(interface),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Puts another program in the place of a link's, between two frames. Errors: ENOLINK once the interface is gone.
pub(crate) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = LinkUpdate {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        ..LinkUpdate::zeroed()
    };
    // SAFETY: the attributes hold no address.
    unsafe { sys::bpf(command::LINK_UPDATE, &attributes) }.map(drop)
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

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    expected: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Info {
    object: u32,
    size: u32,
    address: u64,
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
        assert_eq!(
            (size_of::<LinkUpdate>(), size_of::<Pin>(), size_of::<Info>()),
            (16, 16, 16)
        );
    }
}
