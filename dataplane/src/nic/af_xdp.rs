//! The fast driver: one AF_XDP socket (Documentation/networking/af_xdp.rst) per queue of an interface.
//!
//! The sockets of one worker share its frame memory as one UMEM, so forwarding between their ports moves addresses,
//! not bytes. A chunk in the fill or tx ring is the kernel's until it comes back in the rx or completion ring; the
//! ledger knows which are out.
//!
//! Frames of a queue without a socket stay with the kernel: every queue that should be received from needs a port.
//! VLAN tags that the interface strips (or a veth peer never writes) are not seen by XDP: switch that off
//! (rxvlan, and txvlan at a veth peer). Needs CAP_NET_RAW, CAP_BPF and CAP_NET_ADMIN.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XdpOptionsFlags, XdpUmemReg,
    XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::frame::RawFrame;
use super::interface::Interface;
use super::ledger::{Held, Ledger};
use super::open::{Attach, PortSpec, ZeroCopy};
use super::ring::{Completion, Descriptor, Fill, Rx, Tx};
use super::sys::{self, Mapping};
use super::xdp_program::{Attachment, MAX_QUEUES, XdpMode};
use super::{
    BURST, Burst, Driver, DriverInfo, DriverStats, Frame, FrameMemory, Link, OpenError, checksum_fix,
};

/// One sendto sends at most 32 packets in copy mode (TX_BATCH_SIZE, net/xdp/xsk.c).
const SENT_PER_KICK: u32 = 32;
/// The kernel frees a closed socket's queue from a work queue: a port reopened at once finds it busy for a moment.
const BUSY_RETRIES: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(10);
/// Frames the fill rings leave free for packets that the worker itself makes or copies: two bursts.
const RESERVE: usize = 2 * BURST;

/// One worker's frame memory as registered with AF_XDP: held by the sockets themselves, known here to find one that
/// a new socket can share it with.
#[derive(Debug, Default)]
pub struct Umem {
    base: usize,
    sockets: Vec<Weak<OwnedFd>>,
}

/// One AF_XDP socket on one queue.
#[derive(Debug)]
pub struct AfXdp {
    rings: Rings,
    socket: Arc<OwnedFd>,
    /// Keeps the interface's program attached while any port uses it.
    _attachment: Arc<Attachment>,
    ledger: Ledger,
    interface: Interface,
    info: DriverInfo,
    stats: DriverStats,
    zero_copy: bool,
    complete_checksums: bool,
}

#[derive(Debug)]
struct Rings {
    rx: Rx,
    tx: Tx,
    fill: Fill,
    completion: Completion,
}

impl AfXdp {
    /// Binds a socket to the spec's queue and steers the queue's frames to it.
    pub(crate) fn open(
        spec: &PortSpec,
        attach: Attach,
        zero_copy: ZeroCopy,
        memory: &mut FrameMemory,
        umem: &mut Option<Umem>,
    ) -> Result<Self, OpenError> {
        let interface = spec.find_interface()?;
        let mtu = interface
            .mtu()
            .map_err(|e| spec.error("cannot read its MTU", "check the interface", e))?;
        spec.check_mtu(mtu, memory)?;
        let mac = interface
            .mac()
            .map_err(|e| spec.error("cannot read its address", "check the interface", e))?;
        check_sizes(spec, memory)?;
        let base = memory.region().base().addr().get();
        let umem = umem.get_or_insert_default();
        if umem.base != base {
            *umem = Umem {
                base,
                sockets: Vec::new(),
            };
        }
        umem.sockets.retain(|socket| socket.strong_count() > 0);
        let attachment = attachment(spec, &interface, attach)?;
        let (socket, rings, shared) =
            bind(spec, &interface, zero_copy, memory, umem).map_err(|e| explain_bind(spec, e))?;
        let options = sockopt::xdp_options(&socket).unwrap_or(XdpOptionsFlags::empty());
        let zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        let mode = format!(
            "{}, {}, queue {}, ring {}, {}",
            match attachment.mode() {
                XdpMode::Native => "native",
                XdpMode::Generic => "generic",
            },
            if zero_copy { "zero-copy" } else { "copy" },
            spec.queue,
            spec.ring_size,
            if shared { "shared umem" } else { "own umem" },
        );
        let info = DriverInfo {
            driver: "af_xdp",
            interface: spec.interface.clone(),
            mode,
            mac,
            peer_mac: None,
            mtu,
        };
        let mut driver = Self {
            rings,
            socket: Arc::new(socket),
            _attachment: attachment.clone(),
            ledger: Ledger::new(memory),
            interface,
            info,
            stats: DriverStats::default(),
            zero_copy,
            complete_checksums: spec.complete_checksums,
        };
        // Filled before the first frame is steered here, so that none finds an empty fill ring.
        driver.top_up(memory);
        if let Err(error) = attachment.steer(spec.queue, driver.socket.as_fd()) {
            Box::new(driver).close(memory);
            return Err(spec.error(
                "cannot put the socket into the XDP map",
                "report this kernel",
                error,
            ));
        }
        umem.sockets.push(Arc::downgrade(&driver.socket));
        Ok(driver)
    }

    /// Takes back the frames that were sent.
    fn reclaim(&mut self, memory: &mut FrameMemory) {
        loop {
            let ready = self.rings.completion.acquire(BURST as u32);
            if ready == 0 {
                break;
            }
            for nth in 0..ready {
                let address = self.rings.completion.read(nth);
                let frame = self
                    .ledger
                    .take(address, Held::Sending)
                    .then_some(RawFrame { address, len: 0 });
                match frame.and_then(|raw| memory.from_raw(raw)) {
                    Some(frame) => memory.free(frame),
                    None => self.stats.tx_errors += 1,
                }
            }
            self.rings.completion.release(ready);
        }
    }

    /// Gives the kernel free frames to receive into, as many as its ring and the reserve allow.
    fn top_up(&mut self, memory: &mut FrameMemory) {
        let spare = memory.available().saturating_sub(RESERVE);
        let room = self
            .rings
            .fill
            .acquire(u32::try_from(spare).unwrap_or(u32::MAX).min(MAX_FILL));
        let mut given = 0;
        while given < room {
            let Some(frame) = memory.alloc() else { break };
            let address = memory.into_raw(frame).address;
            self.ledger.give(address, Held::Receiving);
            self.rings.fill.write(given, address);
            given += 1;
        }
        if given > 0 {
            self.rings.fill.release(given);
        }
        if self.rings.fill.needs_wakeup() {
            let _ = rustix::net::recv(&*self.socket, &mut [0u8; 0], RecvFlags::DONTWAIT);
        }
    }

    /// Has the kernel send what is in the tx ring, as far as the interface takes it now.
    fn kick(&mut self) {
        let mut pending = self.rings.tx.pending();
        // Twice the calls that a smooth run needs: the interface may take less per call, but not for ever.
        let mut calls = 2 * pending.div_ceil(SENT_PER_KICK);
        while pending > 0 && calls > 0 && self.rings.tx.needs_wakeup() {
            let sent = rustix::net::send(&*self.socket, &[], SendFlags::DONTWAIT);
            let before = std::mem::replace(&mut pending, self.rings.tx.pending());
            match sent {
                // EAGAIN says only that more than one call's worth was waiting.
                Ok(_) | Err(Errno::AGAIN) if pending < before => {}
                Err(Errno::INTR) => {}
                // Full, down or gone: what is left is tried again at the next burst.
                _ => break,
            }
            calls -= 1;
        }
    }

    /// The frame a descriptor of the rx ring tells of; `None`, with its chunk saved where possible, if it cannot be.
    fn accept(&mut self, memory: &mut FrameMemory, descriptor: Descriptor) -> Option<Frame> {
        if !self.ledger.take(descriptor.address, Held::Receiving) {
            return None;
        }
        let raw = RawFrame {
            address: descriptor.address,
            len: descriptor.len,
        };
        // Options would say that the packet goes on in a second frame, which was not asked for.
        let frame = if descriptor.options == 0 {
            memory.from_raw(raw)
        } else {
            None
        };
        if frame.is_none()
            && let Some(chunk) = memory.from_raw(RawFrame { len: 0, ..raw })
        {
            memory.free(chunk);
        }
        frame
    }
}

/// Most chunks given per call: bounds a burst's time, and refills faster than it receives.
const MAX_FILL: u32 = 2 * BURST as u32;

impl Driver for AfXdp {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.reclaim(memory);
        let ready = self.rings.rx.acquire(frames.remaining_capacity() as u32);
        for nth in 0..ready {
            let descriptor = self.rings.rx.read(nth);
            let Some(mut frame) = self.accept(memory, descriptor) else {
                self.stats.rx_errors += 1;
                continue;
            };
            if self.complete_checksums {
                checksum_fix::complete(memory.bytes_mut(&mut frame), &mut self.stats);
            }
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += frame.len() as u64;
            frames.push(frame);
        }
        if ready > 0 {
            self.rings.rx.release(ready);
        }
        self.top_up(memory);
        self.kick();
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.reclaim(memory);
        let room = self.rings.tx.acquire(frames.len() as u32);
        for (nth, frame) in (0..room).zip(frames.drain(..room as usize)) {
            self.stats.tx_packets += 1;
            self.stats.tx_bytes += frame.len() as u64;
            let RawFrame { address, len } = memory.into_raw(frame);
            self.ledger.give(address, Held::Sending);
            self.rings.tx.write(
                nth,
                Descriptor {
                    address,
                    len,
                    options: 0,
                },
            );
        }
        if room > 0 {
            self.rings.tx.release(room);
        }
        self.kick();
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        let Ok(kernel) = sockopt::xdp_statistics(&*self.socket) else {
            return self.stats;
        };
        // `rx_dropped` counts both want of a frame and packets longer than one; the former are also counted apart.
        let starved = kernel
            .rx_fill_ring_empty_descs
            .unwrap_or(0)
            .min(kernel.rx_dropped);
        DriverStats {
            rx_missed: starved + kernel.rx_ring_full.unwrap_or(0),
            rx_errors: self.stats.rx_errors + (kernel.rx_dropped - starved) + kernel.rx_invalid_descs,
            tx_errors: self.stats.tx_errors + kernel.tx_invalid_descs,
            ..self.stats
        }
    }

    fn link(&self) -> Link {
        let link = self.interface.link();
        if link != Link::Up {
            sys::clear_error(&*self.socket);
        }
        link
    }

    fn close(self: Box<Self>, memory: &mut FrameMemory) {
        let Self {
            rings,
            socket,
            ledger,
            zero_copy,
            ..
        } = *self;
        drop(rings);
        drop(socket);
        // In copy mode a closed socket touches no frame any more. In zero-copy mode the interface may, for a moment
        // that cannot be observed: those frames stay out of use.
        if !zero_copy {
            ledger.free_all(memory);
        }
    }
}

fn check_sizes(spec: &PortSpec, memory: &FrameMemory) -> Result<(), OpenError> {
    if spec.queue >= MAX_QUEUES {
        return Err(spec.refusal(
            format!("queue {} is above {}", spec.queue, MAX_QUEUES - 1),
            "choose a lower queue",
        ));
    }
    let page = rustix::param::page_size();
    if memory.chunk_size() > page {
        let what = format!(
            "AF_XDP cannot use frames of {} bytes, more than a page",
            memory.chunk_size()
        );
        return Err(spec.refusal(
            what,
            format!("use frames of 2048 or {page} bytes, or driver af_packet"),
        ));
    }
    let wanted = spec.ring_size as usize + RESERVE;
    if memory.available() < wanted {
        let what = format!(
            "{} free frames are too few for a ring of {}",
            memory.available(),
            spec.ring_size
        );
        return Err(spec.refusal(
            what,
            format!("raise the worker's frames by {wanted} or lower ring_size"),
        ));
    }
    Ok(())
}

/// A new socket with rings, bound to the queue; the bool says whether it shares another socket's UMEM.
fn bind(
    spec: &PortSpec,
    interface: &Interface,
    zero_copy: ZeroCopy,
    memory: &FrameMemory,
    umem: &Umem,
) -> io::Result<(OwnedFd, Rings, bool)> {
    let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    if zero_copy == ZeroCopy::Never {
        flags |= SocketAddrXdpFlags::XDP_COPY;
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

/// A socket with its four rings mapped. With `memory`, that is registered as its UMEM.
fn socket_with_rings(size: u32, memory: Option<&FrameMemory>) -> io::Result<(OwnedFd, Rings)> {
    let socket = rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    if let Some(memory) = memory {
        let umem = XdpUmemReg {
            addr: memory.region().base().expose_provenance().get() as u64,
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

/// The attachments of this process: an interface has one XDP program, and the ports of its queues, in whichever
/// worker, share it. Keyed by network namespace and interface.
static ATTACHMENTS: Mutex<Vec<((u64, u32), Weak<Attachment>)>> = Mutex::new(Vec::new());

/// The interface's attachment: the one another port has made, or a new one.
fn attachment(spec: &PortSpec, interface: &Interface, attach: Attach) -> Result<Arc<Attachment>, OpenError> {
    let key = (interface.namespace(), interface.index());
    let mut attachments = ATTACHMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    attachments.retain(|(_, attachment)| attachment.strong_count() > 0);
    let known = attachments
        .iter()
        .find(|(k, _)| *k == key)
        .and_then(|(_, attachment)| attachment.upgrade());
    let wanted: &[XdpMode] = match attach {
        Attach::Auto => &[XdpMode::Native, XdpMode::Generic],
        Attach::Native => &[XdpMode::Native],
        Attach::Generic => &[XdpMode::Generic],
    };
    if let Some(known) = known {
        return if wanted.contains(&known.mode()) {
            Ok(known)
        } else {
            let what = format!("another queue has already attached it as {:?}", known.mode());
            Err(spec.refusal(what, "give all queues of an interface the same attach option"))
        };
    }
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for mode in wanted {
        result = Attachment::new(interface.index(), *mode);
        match &result {
            // Only what another mode could cure.
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EPERM | libc::EBUSY | libc::EEXIST)) => {}
            _ => break,
        }
    }
    let attachment = Arc::new(result.map_err(|e| explain_attach(spec, e))?);
    attachments.push((key, Arc::downgrade(&attachment)));
    Ok(attachment)
}

fn explain_attach(spec: &PortSpec, error: io::Error) -> OpenError {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => "run as root or with CAP_BPF and CAP_NET_ADMIN, or use driver af_packet",
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is attached: stop its owner or remove it (`ip link set IF xdp off`)"
        }
        _ => "set attach: generic, or use driver af_packet",
    };
    spec.error("cannot attach the XDP program", advice, error)
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
        Some(libc::ENETDOWN) => "bring the interface up",
        _ => "use driver af_packet",
    };
    spec.error(
        format!("cannot bind an AF_XDP socket to queue {}", spec.queue),
        advice,
        error,
    )
}
