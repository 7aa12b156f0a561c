//! Making an AF_XDP socket: its rings, its part in the worker's UMEM, its queue.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XdpOptionsFlags, XdpUmemReg,
    XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::interface::Interface;
use super::open::{BusyPoll, PortSpec, ZeroCopy};
use super::ring::{Completion, Descriptor, Fill, Rx, Tx};
use super::sys::Mapping;
use super::{FrameMemory, OpenError, sys};

/// The kernel frees a closed socket's queue from a work queue: a port reopened at once finds it busy for a moment.
const BUSY_RETRIES: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(10);
/// One worker's frame memory as registered with AF_XDP: held by the sockets themselves, known here to find one that
/// a new socket can share it with.
#[derive(Debug, Default)]
pub struct Umem {
    base: usize,
    sockets: Vec<Weak<OwnedFd>>,
}

impl Umem {
    /// The registration of `memory` in `umem`, made empty if there is none yet.
    pub(crate) fn of<'a>(umem: &'a mut Option<Self>, memory: &FrameMemory) -> &'a mut Self {
        let base = memory.region().map_or(0, |region| region.base().addr().get());
        let umem = umem.get_or_insert_default();
        if umem.base != base {
            *umem = Self {
                base,
                sockets: Vec::new(),
            };
        }
        umem.sockets.retain(|socket| socket.strong_count() > 0);
        umem
    }

    /// Notes a bound socket that later ones can share with.
    pub(crate) fn add(&mut self, socket: &Arc<OwnedFd>) {
        self.sockets.push(Arc::downgrade(socket));
    }
}

/// A socket's four rings.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) rx: Rx,
    pub(crate) tx: Tx,
    pub(crate) fill: Fill,
    pub(crate) completion: Completion,
}

/// A new socket with rings, bound to the spec's queue; the bool says whether it shares another socket's UMEM.
pub(crate) fn bind(
    spec: &PortSpec,
    interface: &Interface,
    zero_copy: ZeroCopy,
    memory: &FrameMemory,
    umem: &Umem,
) -> Result<(OwnedFd, Rings, bool), OpenError> {
    try_bind(spec, interface, zero_copy, memory, umem).map_err(|e| explain_bind(spec, e))
}

fn try_bind(
    spec: &PortSpec,
    interface: &Interface,
    zero_copy: ZeroCopy,
    memory: &FrameMemory,
    umem: &Umem,
) -> io::Result<(OwnedFd, Rings, bool)> {
    let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    match zero_copy {
        ZeroCopy::Auto => {}
        ZeroCopy::On => flags |= SocketAddrXdpFlags::XDP_ZEROCOPY,
        ZeroCopy::Off => flags |= SocketAddrXdpFlags::XDP_COPY,
    }
    let mut partner = umem.sockets.iter().find_map(Weak::upgrade);
    for attempt in 0.. {
        let (socket, rings) = socket_with_rings(
            spec.ring_size,
            if partner.is_none() { Some(memory) } else { None },
        )?;
        let address = |flags| SocketAddrXdp::new(flags, interface.index(), spec.queue);
        let bound = match &partner {
            Some(partner) => {
                let addr = address(SocketAddrXdpFlags::XDP_SHARED_UMEM);
                let address = SocketAddrXdpWithSharedUmem {
                    addr,
                    shared_umem_fd: partner.as_fd(),
                };
                rustix::net::bind(&socket, &address)
            }
            None => rustix::net::bind(&socket, &address(flags)),
        };
        match bound {
            // A UMEM that is shared is as its first interface has it.
            Ok(()) if partner.is_some() && !as_wanted(&socket, zero_copy) => partner = None,
            Ok(()) => return Ok((socket, rings, partner.is_some())),
            Err(Errno::BUSY) if attempt < BUSY_RETRIES => std::thread::sleep(BUSY_WAIT),
            // A UMEM is zero-copy for all its sockets or for none. An interface that cannot be what the first was
            // registers the same memory a second time: forwarding still moves no bytes.
            Err(_) if partner.is_some() => partner = None,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// Whether frame memory is shared with the hardware.
pub(crate) fn is_zero_copy(socket: &OwnedFd) -> bool {
    let options = sockopt::xdp_options(socket).unwrap_or(XdpOptionsFlags::empty());
    options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY)
}

fn as_wanted(socket: &OwnedFd, zero_copy: ZeroCopy) -> bool {
    match zero_copy {
        ZeroCopy::Auto => true,
        ZeroCopy::On => is_zero_copy(socket),
        ZeroCopy::Off => !is_zero_copy(socket),
    }
}

// asm-generic/socket.h, the same on every architecture this builds for.
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;

/// Has the socket's calls poll the NIC. Errors: EPERM for a budget above the kernel's own; ENOPROTOOPT before Linux 5.11.
pub(crate) fn poll_busily(socket: &OwnedFd, options: BusyPoll) -> io::Result<()> {
    for (name, value) in [
        (SO_PREFER_BUSY_POLL, i32::from(options.prefer)),
        (
            libc::SO_BUSY_POLL,
            i32::try_from(options.micros).unwrap_or(i32::MAX),
        ),
        (SO_BUSY_POLL_BUDGET, i32::from(options.budget)),
    ] {
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, name, &value)?;
    }
    Ok(())
}

/// A socket with its four rings mapped. With `memory`, that is registered as its UMEM.
fn socket_with_rings(size: u32, memory: Option<&FrameMemory>) -> io::Result<(OwnedFd, Rings)> {
    let socket = rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    if let Some(memory) = memory {
        // `AfXdp::open` refuses memory that is not the worker's own.
        let region = memory.region().ok_or(io::ErrorKind::InvalidInput)?;
        let umem = XdpUmemReg {
            addr: region.base().expose_provenance().get() as u64,
            len: (memory.capacity() * memory.chunk_size()) as u64,
            chunk_size: memory.chunk_size() as u32,
            // The kernel itself keeps XDP_PACKET_HEADROOM, 256 bytes: `HEADROOM`.
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&socket, umem)?;
    }
    sockopt::set_xdp_umem_fill_ring_size(&socket, size)?;
    sockopt::set_xdp_umem_completion_ring_size(&socket, size)?;
    sockopt::set_xdp_rx_ring_size(&socket, size)?;
    sockopt::set_xdp_tx_ring_size(&socket, size)?;
    let offsets = sockopt::xdp_mmap_offsets(&socket)?;
    let map = |page: u64, entries: u64, entry: usize| {
        let len = entries as usize + size as usize * entry;
        Mapping::of(socket.as_fd(), page, len)
    };
    let (word, descriptor) = (size_of::<u64>(), size_of::<Descriptor>());
    let rx = map(libc::XDP_PGOFF_RX_RING as u64, offsets.rx.desc, descriptor)?;
    let tx = map(libc::XDP_PGOFF_TX_RING as u64, offsets.tx.desc, descriptor)?;
    let fill = map(libc::XDP_UMEM_PGOFF_FILL_RING, offsets.fr.desc, word)?;
    let completion = map(libc::XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr.desc, word)?;
    let rings = || {
        Some(Rings {
            rx: Rx::mapped(rx, &offsets.rx, size)?,
            tx: Tx::mapped(tx, &offsets.tx, size)?,
            fill: Fill::mapped(fill, &offsets.fr, size)?,
            completion: Completion::mapped(completion, &offsets.cr, size)?,
        })
    };
    let rings = rings().ok_or(io::ErrorKind::Unsupported)?;
    Ok((socket, rings))
}

fn explain_bind(spec: &PortSpec, error: io::Error) -> OpenError {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_RAW",
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP: use driver af_packet",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "raise the locked-memory limit (ulimit -l, LimitMEMLOCK=) or use fewer frames"
        }
        Some(libc::EBUSY) => "another socket has this queue: stop its owner or choose another queue",
        Some(libc::EINVAL) => "the interface has no such queue, or is down: check `queue` and bring it up",
        Some(libc::EOPNOTSUPP) => {
            "its driver cannot share frame memory: leave zeroCopy at auto, or set attach: native"
        }
        Some(libc::ENETDOWN) => "bring the interface up",
        _ => "use driver af_packet",
    };
    spec.error(
        format!("cannot bind an AF_XDP socket to queue {}", spec.queue),
        advice,
        error,
    )
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn busy_polling_is_as_it_is_told() {
        // Any socket has these options.
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        let option = |name| sys::get_option::<i32>(socket.as_fd(), libc::SOL_SOCKET, name).unwrap();
        // The kernel tells nobody the budget.
        let all = || [SO_PREFER_BUSY_POLL, libc::SO_BUSY_POLL].map(option);
        let (micros, budget) = (7, 9);
        for prefer in [true, false] {
            let options = BusyPoll {
                micros,
                budget,
                prefer,
            };
            poll_busily(&socket, options).unwrap();
            assert_eq!(all(), [i32::from(prefer), 7]);
        }
    }
}
