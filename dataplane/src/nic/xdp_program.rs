#![allow(unsafe_code)]
//! The XDP program of an exclusively owned interface and its attachment: every frame goes to the socket bound to the
//! queue it arrived on; where no socket is bound the kernel keeps it.
//!
//! Written as instructions, since five of them need no compiler. Attached through a BPF link, which the kernel drops
//! with its last descriptor: however the process ends, the interface is the kernel's again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use bytemuck::{Pod, Zeroable};

use super::sys;

/// Queues one interface can have sockets on: more than NICs have, at 8 bytes each.
pub(crate) const MAX_QUEUES: u32 = 1024;

/// linux/bpf.h, enum bpf_cmd.
mod command {
    pub(super) const MAP_CREATE: i32 = 0;
    pub(super) const MAP_UPDATE_ELEM: i32 = 2;
    pub(super) const PROG_LOAD: i32 = 5;
    pub(super) const LINK_CREATE: i32 = 28;
}
/// linux/bpf.h: BPF_MAP_TYPE_XSKMAP, BPF_PROG_TYPE_XDP, attach type BPF_XDP.
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// linux/if_link.h: XDP_FLAGS_SKB_MODE and XDP_FLAGS_DRV_MODE.
const FLAGS_GENERIC: u32 = 1 << 1;
const FLAGS_NATIVE: u32 = 1 << 2;

/// One BPF instruction (`struct bpf_insn`, linux/bpf.h; RFC 9669 §3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct Instruction {
    opcode: u8,
    /// Destination register in the low half, source in the high half (little-endian bit-field order).
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        opcode,
        registers: dst | src << 4,
        offset,
        immediate,
    }
}

/// The program, with `map` the descriptor of its XSKMAP. A test holds it to `xdp_program.disasm`.
const fn redirect_to_queue(map: i32) -> [Instruction; 6] {
    [
        // r2 = context->rx_queue_index, the fifth u32 of struct xdp_md: the key.
        instruction(0x61, 2, 1, 16, 0),
        // r1 = the map, named by its descriptor (source register 1: BPF_PSEUDO_MAP_FD). Two slots: a 64-bit value.
        instruction(0x18, 1, 1, 0, map),
        instruction(0x00, 0, 0, 0, 0),
        // r3 = XDP_PASS (2): the verdict when the map has no socket for the key.
        instruction(0xb7, 3, 0, 0, 2),
        // r0 = bpf_redirect_map(r1, r2, r3), helper 51: XDP_REDIRECT (4), or r3.
        instruction(0x85, 0, 0, 0, 51),
        // Return r0.
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// How the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before a socket buffer exists.
    Native,
    /// In the network stack, on any interface.
    Generic,
}

/// The program on one interface and its map. Detached on drop.
#[derive(Debug)]
pub(crate) struct Attachment {
    map: OwnedFd,
    _link: OwnedFd,
    mode: XdpMode,
}

impl Attachment {
    /// Loads the program and attaches it. Errors: EPERM without CAP_BPF and CAP_NET_ADMIN, EBUSY or EEXIST when the
    /// interface has another program, EOPNOTSUPP or EINVAL when it cannot run one in this mode.
    pub(crate) fn new(ifindex: u32, mode: XdpMode) -> io::Result<Self> {
        let map = create_map()?;
        let program = load(&redirect_to_queue(map.as_raw_fd()))?;
        let flags = match mode {
            XdpMode::Native => FLAGS_NATIVE,
            XdpMode::Generic => FLAGS_GENERIC,
        };
        let attributes = LinkCreate {
            program: program.as_raw_fd() as u32,
            ifindex,
            attach_type: ATTACH_XDP,
            flags,
        };
        // SAFETY: the attributes hold no address, and LINK_CREATE returns a new descriptor.
        let link = unsafe { sys::bpf_new(command::LINK_CREATE, &attributes)? };
        Ok(Self {
            map,
            _link: link,
            mode,
        })
    }

    /// How the program runs.
    pub(crate) const fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Sends the frames of `queue` (below `MAX_QUEUES`) to `socket`, until the socket is closed.
    pub(crate) fn steer(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        let attributes = MapUpdate {
            map: self.map.as_raw_fd() as u32,
            padding: 0,
            key: (&raw const queue).expose_provenance() as u64,
            value: (&raw const value).expose_provenance() as u64,
            flags: 0,
        };
        // SAFETY: key and value are 4 bytes each, as the map was created with, and outlive the call.
        unsafe { sys::bpf(command::MAP_UPDATE_ELEM, &attributes) }.map(drop)
    }
}

fn create_map() -> io::Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: MAP_TYPE_XSKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: MAX_QUEUES,
        flags: 0,
    };
    // SAFETY: the attributes hold no address, and MAP_CREATE returns a new descriptor.
    unsafe { sys::bpf_new(command::MAP_CREATE, &attributes) }
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let licence = c"Apache-2.0";
    let mut name = [0; 16];
    name[..15].copy_from_slice(b"sluice_redirect");
    let attributes = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        count: program.len() as u32,
        instructions: program.as_ptr().expose_provenance() as u64,
        licence: licence.as_ptr().expose_provenance() as u64,
        name,
        ..ProgLoad::zeroed()
    };
    // SAFETY: `instructions` points at `count` instructions and `licence` at a NUL-terminated string, both alive
    // during the call; there is no log buffer. PROG_LOAD returns a new descriptor.
    unsafe { sys::bpf_new(command::PROG_LOAD, &attributes) }
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
struct MapUpdate {
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
mod tests {
    use super::*;

    /// The program with map descriptor 7, as llvm-objdump prints its bytes.
    const LISTING: &str = include_str!("xdp_program.disasm");

    #[test]
    fn the_instructions_are_those_of_the_listing() {
        let bytes: Vec<String> = redirect_to_queue(7)
            .iter()
            .map(|i| {
                bytemuck::bytes_of(i)
                    .iter()
                    .map(|b| format!("{b:02x}"))
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        let listed: Vec<&str> = LISTING
            .lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(number, _)| number.trim().parse::<u32>().is_ok())
            .flat_map(|(_, rest)| rest.split('\t').nth(1))
            .map(str::trim)
            .collect();
        // The 16-byte load is listed as one line; cut every line into instructions.
        let listed: Vec<&str> = listed
            .iter()
            .flat_map(|line| [line.get(..23), line.get(24..)])
            .flatten()
            .filter(|s| !s.is_empty())
            .collect();
        assert_eq!(bytes, listed);
    }

    #[test]
    fn attribute_structures_have_the_kernels_sizes() {
        assert_eq!((size_of::<MapCreate>(), size_of::<MapUpdate>()), (20, 32));
        assert_eq!((size_of::<ProgLoad>(), size_of::<LinkCreate>()), (64, 16));
    }
}
