//! The XDP program of an interface and its attachment. Of an exclusively owned one every frame goes to the socket bound to the
//! queue it arrived on; of a shared one what `xdp_shared` picks. Where no socket is bound the kernel keeps it.
//!
//! Attached through a BPF link, which the kernel drops with its last descriptor: however the process ends, the interface is the
//! kernel's again. But a shared interface's may be kept (`xdp_shared`).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use super::bpf::{self, Instruction, Map, MapKind, instruction};
use super::xdp_shared::Sharing;

/// Queues one interface can have sockets on: more than NICs have, at 8 bytes each.
pub(crate) const MAX_QUEUES: u32 = 1024;

/// The program of an exclusive interface, with `map` the descriptor of its XSKMAP. Five instructions need no compiler. A test
/// holds it to `xdp_program.disasm`.
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

impl XdpMode {
    /// As the config says it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The program on one interface and its map. Detached on drop, unless it is kept.
#[derive(Debug)]
pub(crate) struct Attachment {
    sockets: Map<u32>,
    link: OwnedFd,
    /// Takes the place of the link's present one with the first socket: until then another process may have the interface.
    next: Mutex<Option<OwnedFd>>,
    mode: XdpMode,
}

impl Attachment {
    /// Loads the program, that of a shared interface if there are maps for it, and attaches it. Errors: EPERM without CAP_BPF
    /// and CAP_NET_ADMIN, EBUSY or EEXIST when the interface has another program, EOPNOTSUPP or EINVAL when it cannot run one
    /// in this mode.
    pub(crate) fn new(ifindex: u32, mode: XdpMode, shared: Option<&Sharing>) -> io::Result<Self> {
        let (sockets, program) = load(shared)?;
        let flags = match mode {
            XdpMode::Native => bpf::FLAGS_NATIVE,
            XdpMode::Generic => bpf::FLAGS_GENERIC,
        };
        Ok(Self {
            link: bpf::attach(program.as_fd(), ifindex, flags)?,
            next: Mutex::default(),
            sockets,
            mode,
        })
    }

    /// Loads the program, to take the place of the one that a shared interface has.
    pub(crate) fn take_over(link: OwnedFd, mode: XdpMode, shared: &Sharing) -> io::Result<Self> {
        let (sockets, program) = load(Some(shared))?;
        Ok(Self {
            link,
            next: Mutex::new(Some(program)),
            sockets,
            mode,
        })
    }

    /// What holds the program at the interface.
    pub(crate) fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// How the program runs.
    pub(crate) const fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Sends the frames of `queue` (below `MAX_QUEUES`) to `socket`, until the socket is closed.
    pub(crate) fn steer(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.sockets.set(queue, socket.as_raw_fd() as u32)?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = &*next {
            bpf::replace(self.link.as_fd(), program.as_fd())?;
        }
        *next = None;
        Ok(())
    }
}

fn load(shared: Option<&Sharing>) -> io::Result<(Map<u32>, OwnedFd)> {
    let sockets = Map::new(MapKind::Sockets, MAX_QUEUES)?;
    let program = match shared {
        None => bpf::load("sluice_redirect", &redirect_to_queue(sockets.number()))?,
        Some(shared) => shared.load(sockets.number())?,
    };
    Ok((sockets, program))
}

/// A listing's instructions as text, eight bytes each: what tests hold programs to.
#[cfg(test)]
pub(super) fn listed(listing: &str) -> Vec<String> {
    let lines = listing
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(number, _)| number.trim().parse::<u32>().is_ok())
        .filter_map(|(_, rest)| rest.split('\t').nth(1));
    // A 16-byte load is listed as one line: eight bytes and eight more.
    lines
        .flat_map(|line| [line.get(..23), line.get(24..47)])
        .flatten()
        .map(|bytes| bytes.trim().to_owned())
        .filter(|bytes| !bytes.is_empty())
        .collect()
}

/// The same of a program.
#[cfg(test)]
pub(super) fn written(program: &[Instruction]) -> Vec<String> {
    let bytes = program.iter().map(bytemuck::bytes_of);
    let text = bytes.map(|i| i.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>());
    text.map(|words| words.join(" ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instructions_are_those_of_the_listing() {
        // The program with map descriptor 7, as llvm-mc prints its bytes.
        let listing = include_str!("xdp_program.disasm");
        assert_eq!(written(&redirect_to_queue(7)), listed(listing));
    }
}
