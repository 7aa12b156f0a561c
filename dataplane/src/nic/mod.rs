//! NIC ports: the driver contract, one file per driver.
//!
//! A driver gives one queue of one NIC port to one worker: bursts received and sent, what was found at open (`DriverInfo`),
//! counters (`DriverStats`) and the state of the other side (`Link`). What every driver must do, and
//! `tests/nic/conformance` holds every driver to:
//! * `rx_burst` and `tx_burst` never block and never allocate; a worker with nothing to do waits on `wait_fd`, which wakes it
//!   for the next packet.
//! * Order is kept in both directions, across every wrap of a ring; a frame arrives whole, tag and all, or not at all.
//! * A frame handed to `tx_burst` and accepted is the driver's until its memory is free again; the driver then frees
//!   it into the worker's `FrameMemory` itself (at the next call). What is not accepted stays in `frames`, in order.
//! * Nothing is lost uncounted: what was accepted is in `tx_packets` or `tx_errors`, what came and could not be taken, for
//!   want of room or of free frames, in `rx_missed`, what is too long for a frame in `rx_errors`.
//! * Nothing a peer or the kernel writes into a ring may cause a panic or an access outside the frame memory: what
//!   does not fit is counted as an error and forgotten.
//! * When the other side vanishes (interface deleted, peer closed) `rx_burst` gives nothing, `tx_burst` takes nothing
//!   or counts, and `link()` says `Gone`; nothing panics. Where it can come back to an open port, traffic flows again by
//!   itself (after `tend`), as it does after the link was down or the MTU another.
//! * `close` gives all frames back, whatever happened before; a port closed and opened anew works, and a thousand times
//!   that leaks neither descriptors nor memory.
//! * The transport checksums of what `rx_burst` gives are complete: a driver that can receive packets whose checksum
//!   its sender left to hardware (veth, tap) completes them, and counts them.

use std::io;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;

/// Frame memory.
pub mod frame;
/// Ports between threads of one process.
pub mod memory;
/// One queue shared out by VLAN.
pub mod vlan;

/// Opening a port by its description.
#[cfg(feature = "nic")]
pub mod open;
/// What interfaces do to packets by themselves.
#[cfg(feature = "nic")]
pub mod offloads;
/// Ports whose interface goes and comes back.
#[cfg(feature = "nic")]
mod reopen;
/// What ports of one interface share.
#[cfg(feature = "nic")]
mod registry;
/// Which interfaces there are.
#[cfg(feature = "nic")]
pub mod census;
/// Where in the machine an interface is.
#[cfg(feature = "nic")]
pub mod numa;
/// What there is to know of an interface.
#[cfg(feature = "nic")]
pub mod survey;
/// Where hardware puts packets.
#[cfg(feature = "nic")]
pub mod rss;
/// RSS set so that packets come to their flow's owner.
#[cfg(feature = "nic")]
mod spread;
/// Packets longer than the MTU.
#[cfg(feature = "nic")]
pub mod oversize;
/// AF_XDP sockets.
#[cfg(feature = "nic")]
pub mod af_xdp;
/// AF_PACKET sockets.
#[cfg(feature = "nic")]
pub mod af_packet;
/// Which AF_PACKET socket gets a packet.
#[cfg(feature = "nic")]
pub mod fanout;
/// In which order its sockets are opened.
#[cfg(feature = "nic")]
mod seats;
/// Shared memory with another process.
#[cfg(feature = "nic")]
pub mod memif;
/// Netmap ports.
#[cfg(feature = "nic")]
pub mod netmap;
/// Recorded packets.
#[cfg(feature = "nic")]
pub mod pcap;
/// The host port, or a link.
#[cfg(feature = "nic")]
pub mod tap;
/// What the kernel could not send by an interface.
#[cfg(feature = "nic")]
pub mod transmit_drops;

/// Checksums left to hardware.
#[cfg(feature = "nic")]
pub mod checksum_fix;
/// AF_XDP's program.
#[cfg(feature = "nic")]
pub mod xdp_program;
/// AF_XDP's program for interfaces that the kernel uses, too.
#[cfg(feature = "nic")]
pub mod xdp_shared;
/// What the kernel hears of neighbours.
#[cfg(feature = "nic")]
pub mod overhear;
#[cfg(feature = "nic")]
mod bpf;
#[cfg(feature = "nic")]
mod xdp_attach;
/// Sockets of AF_XDP.
#[cfg(feature = "nic")]
pub mod xdp_socket;
#[cfg(feature = "nic")]
mod ledger;
#[cfg(feature = "nic")]
mod ring;
#[cfg(feature = "nic")]
mod packet_ring;
#[cfg(feature = "nic")]
mod ethtool;
#[cfg(feature = "nic")]
mod interface;
#[cfg(feature = "nic")]
mod netlink;
#[cfg(feature = "nic")]
mod sys;

/// Frames and the memory they are in.
pub use frame::{Frame, FrameMemory};

/// Most packets one turn of a worker handles from one queue. 64: enough for the waves of `burst` to overlap, and a
/// burst's headers still fit the first-level cache.
pub const BURST: usize = 64;

/// Up to one burst of frames.
pub type Burst = ArrayVec<Frame, BURST>;

/// One queue of one NIC port, owned by one worker.
pub trait Driver: Send {
    /// Appends up to the burst's remaining room of received frames, from `memory`.
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst);

    /// Sends frames from the front of `frames`; those the ring has no room for stay.
    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst);

    /// Readable when packets wait to be received; `None` if the driver can only be polled.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Packets that were accepted wait for another call to be sent: whoever sleeps must come back soon. Most drivers send in
    /// `tx_burst` or refuse.
    fn owes(&mut self) -> bool {
        false
    }

    /// Called once a second between two turns, and may block as no burst may: whoever holds what is gone lets go of it, and
    /// opens it again once it is back.
    fn tend(&mut self, _memory: &mut FrameMemory) {}

    /// Whether somebody is at the other side, as far as is known without asking: why frames were not accepted.
    fn has_peer(&self) -> bool {
        true
    }

    /// What was opened, for the start-up line and for the steward's ARP.
    fn info(&self) -> &DriverInfo;

    /// Counters since open. May cost a system call, though none that waits for others: to be asked once a second, not per
    /// burst.
    fn stats(&self) -> DriverStats;

    /// What keeps a part of `stats` up to date that no worker has the time to ask for: given once, to be refreshed by a
    /// thread that no packet waits for.
    #[cfg(feature = "nic")]
    fn transmit_drops(&mut self) -> Option<transmit_drops::TransmitDrops> {
        None
    }

    /// Whether the other side is there. As dear as `stats`.
    fn link(&self) -> Link;

    /// Closes the port and frees the frames that were in its rings into `memory`. A driver that is only dropped takes
    /// those frames with it, which does no harm where the memory ends with it.
    fn close(self: Box<Self>, memory: &mut FrameMemory) {
        // Most drivers hold no frames between calls.
        let _ = memory;
    }
}

/// What a driver found when it opened its NIC port.
#[derive(Clone, Debug)]
pub struct DriverInfo {
    /// Driver name as in the config: `af_xdp`, `af_packet`, `memif`, `netmap`, `pcap`, `tap`, `memory`.
    pub driver: &'static str,
    /// Interface name, or the driver's own word for the other side.
    pub interface: String,
    /// What was chosen: copy or zero-copy, native or generic attach, ring sizes.
    pub mode: String,
    /// The station address frames to this port carry.
    pub mac: crate::addr::Mac,
    /// The other side's address where the driver knows it: a tap's kernel end. Needs no ARP.
    pub peer_mac: Option<crate::addr::Mac>,
    /// Largest IP packet the port sends, in bytes.
    pub mtu: usize,
}

/// Counters of one queue. Errors are frames that could not be taken from or given to a ring for a reason other than
/// a full ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames the kernel or peer reports lost because we did not take them in time, or had no free frame.
    pub rx_missed: u64,
    /// Frames refused: descriptor out of bounds, longer than a frame.
    pub rx_errors: u64,
    /// Those of them whose descriptor led out of the memory it may lead into.
    pub rx_bad_descriptors: u64,
    /// Frames whose partial checksum was completed.
    pub rx_checksums_completed: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames the driver accepted but could not send.
    pub tx_errors: u64,
    /// Frames that the driver did not accept since nobody was at the other side.
    pub tx_unlinked: u64,
}

impl std::ops::Add for DriverStats {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            rx_packets: self.rx_packets + more.rx_packets,
            rx_bytes: self.rx_bytes + more.rx_bytes,
            rx_missed: self.rx_missed + more.rx_missed,
            rx_errors: self.rx_errors + more.rx_errors,
            rx_bad_descriptors: self.rx_bad_descriptors + more.rx_bad_descriptors,
            rx_checksums_completed: self.rx_checksums_completed + more.rx_checksums_completed,
            tx_packets: self.tx_packets + more.tx_packets,
            tx_bytes: self.tx_bytes + more.tx_bytes,
            tx_errors: self.tx_errors + more.tx_errors,
            tx_unlinked: self.tx_unlinked + more.tx_unlinked,
        }
    }
}

/// State of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Carrier present.
    Up,
    /// Interface present, no carrier.
    Down,
    /// Interface or peer no longer exists.
    Gone,
}

/// Why a NIC port could not be opened: what, where, and what to do next, in one line.
#[derive(Debug, thiserror::Error)]
#[error("NIC port {port}: {interface}: {what}; {advice}")]
pub struct OpenError {
    /// Name of the NIC port in the config.
    pub port: String,
    /// Interface name.
    pub interface: String,
    /// What happened.
    pub what: String,
    /// What to do next.
    pub advice: String,
    /// The system's error, where there was one.
    #[source]
    pub source: Option<io::Error>,
}
