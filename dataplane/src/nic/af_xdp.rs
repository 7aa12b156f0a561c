//! The fast driver: one AF_XDP socket (Documentation/networking/af_xdp.rst) per queue of an interface.
//!
//! The sockets of one worker share its frame memory as one UMEM, so forwarding between their ports moves addresses,
//! not bytes. A chunk in the fill or tx ring is the kernel's until it comes back in the rx or completion ring; the
//! ledger knows which are out.
//!
//! Frames of a queue without a socket stay with the kernel: every queue that should be received from needs a port.
//! VLAN tags that the interface would strip are kept in the frames (their taking out is switched off while the port is open); those that a veth
//! peer never writes are not seen by XDP: switch off txvlan there. Needs CAP_NET_RAW, CAP_BPF and CAP_NET_ADMIN.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, sockopt};

use super::frame::RawFrame;
use super::interface::{Interface, InterfaceId};
use super::ledger::{Held, Ledger};
use super::offloads::{self, Need, Prepared};
use super::open::{Attach, BusyPoll, PortSpec, ZeroCopy};
use super::registry::Share;
use super::ring::Descriptor;
use super::spread::{self, Spreading};
use super::xdp_program::{Attachment, MAX_QUEUES};
use super::xdp_shared::Sharing;
use super::xdp_socket::{Rings, Umem};
use super::{
    BURST, Burst, Driver, DriverInfo, DriverStats, Frame, FrameMemory, Link, OpenError, checksum_fix, sys,
    xdp_attach, xdp_socket,
};

/// One sendto sends at most 32 packets in copy mode (TX_BATCH_SIZE, net/xdp/xsk.c).
const SENT_PER_KICK: u32 = 32;
/// Frames the fill rings leave free for packets that the worker itself makes or copies: two bursts.
const RESERVE: usize = 2 * BURST;

/// One AF_XDP socket on one queue.
#[derive(Debug)]
pub struct AfXdp {
    rings: Rings,
    socket: Arc<OwnedFd>,
    /// Has the NIC pass on group frames.
    _groups: OwnedFd,
    /// Keeps the interface's program attached while any port uses it.
    attachment: Share<InterfaceId, Attachment>,
    ledger: Ledger,
    interface: Interface,
    info: DriverInfo,
    stats: DriverStats,
    zero_copy: bool,
    /// The NIC's work for the queue is done in our calls.
    polls_busily: bool,
    complete_checksums: bool,
    /// Switched on again when the last port of the interface is closed.
    _offloads: Share<InterfaceId, Prepared>,
    /// Put back as well.
    _spreading: Option<Share<InterfaceId, Spreading>>,
}

impl AfXdp {
    /// Binds a socket to the spec's queue and steers the queue's frames to it: those that `shared` names, or all.
    pub(crate) fn open(
        spec: &PortSpec,
        (attach, shared): (Attach, Option<&Sharing>),
        (zero_copy, busy_poll): (ZeroCopy, Option<BusyPoll>),
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
        let groups = interface.group_receiver().map_err(|e| {
            let advice = "run with CAP_NET_RAW, as root";
            spec.error("cannot receive group frames (neighbour solicitations)", advice, e)
        })?;
        let offloads = offloads::prepare(spec, &interface, &[Need::Tagged, Need::Unaggregated])?;
        let umem = Umem::of(umem, memory);
        let attachment = xdp_attach::attachment(spec, &interface, attach, shared)?;
        let (socket, rings, shared_umem) = xdp_socket::bind(spec, &interface, zero_copy, memory, umem)?;
        let zero_copy = xdp_socket::is_zero_copy(&socket);
        if let Some(options) = busy_poll {
            xdp_socket::poll_busily(&socket, options).map_err(|e| {
                let advice = "leave busyPoll out, or run with CAP_NET_ADMIN";
                spec.error("cannot have its calls poll the NIC", advice, e)
            })?;
        }
        // After the program, for which drivers set up their queues anew.
        let spreading = spread::set(spec, &interface);
        let mode = format!(
            "{}{}, {}, {}queue {}, ring {}, {}, {offloads}{}",
            if shared.is_some() { "shared, " } else { "" },
            attachment.mode().name(),
            if zero_copy { "zero-copy" } else { "copy" },
            if busy_poll.is_some() { "busy polling, " } else { "" },
            spec.queue,
            spec.ring_size,
            if shared_umem { "shared umem" } else { "own umem" },
            spread::told(spreading.as_deref()),
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
            _groups: groups,
            attachment,
            ledger: Ledger::new(memory),
            interface,
            info,
            stats: DriverStats::default(),
            zero_copy,
            polls_busily: busy_poll.is_some(),
            complete_checksums: spec.complete_checksums,
            _offloads: offloads,
            _spreading: spreading,
        };
        // Filled before the first frame is steered here, so that none finds an empty fill ring.
        driver.top_up(memory);
        if let Err(error) = driver.attachment.steer(spec.queue, driver.socket.as_fd()) {
            Box::new(driver).close(memory);
            return Err(spec.error(
                "cannot put the socket into the XDP map",
                "report this kernel",
                error,
            ));
        }
        umem.add(&driver.socket);
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
        if self.polls_busily || self.rings.fill.needs_wakeup() {
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

    /// The interface took less than there was, and only a call makes it take more.
    fn owes(&mut self) -> bool {
        self.rings.tx.pending() > 0
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
            rx_bad_descriptors: self.stats.rx_bad_descriptors + kernel.rx_invalid_descs,
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
            interface,
            ..
        } = *self;
        drop(rings);
        drop(socket);
        // In copy mode a closed socket writes no frame any more (what it still sends may go out garbled: the port is
        // closing). In zero-copy mode the interface may, for a moment that cannot be observed: those frames stay out
        // of use, unless it is gone, which it is not before it has been stopped.
        if !zero_copy || interface.link() == Link::Gone {
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
    if memory.region().is_none() {
        return Err(spec.refusal(
            "AF_XDP cannot use frames that are in netmap's memory",
            "list this port before the netmap ports, which then copy",
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
        return Err(spec.refusal(what, format!("raise frames.count by {wanted} or lower ringSize")));
    }
    Ok(())
}
