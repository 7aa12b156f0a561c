//! Opens a NIC port from its description. Every failure is one line that says what happened and what to do next, and
//! leaves nothing behind: whatever was made is owned by a value that undoes it when dropped.

use std::io;

use serde::Deserialize;

use super::af_packet::AfPacket;
use super::af_xdp::AfXdp;
use super::fanout::Fanout;
use super::frame::HEADROOM;
use super::interface::{FRAME_OVERHEAD, Interface};
use super::memif::{Memif, MemifSpec};
use super::netmap::Netmap;
use super::pcap::{Pcap, PcapSpec};
use super::reopen::Reopening;
use super::tap::Tap;
use super::xdp_shared::Sharing;
use super::xdp_socket::Umem;
use super::{Driver, FrameMemory, OpenError};
use crate::class::CLASSES;
use crate::index::WorkerIndex;

/// Ring slots if nothing else is said: a millisecond of 64-byte frames at 1 Mpps, the most a copying driver carries.
pub const DEFAULT_RING_SIZE: u32 = 1024;
/// Largest ring: 64 k packets are already 50 ms at 1 Mpps; more would be delay, not safety.
pub const MAX_RING_SIZE: u32 = 65536;

/// One queue of one NIC port, as a config describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Name of the NIC port, for messages.
    pub port: String,
    /// Interface name.
    pub interface: String,
    /// Receive queue of the interface (`af_xdp`, `tap`), ring pair (`netmap`), queue pair (`memif`), the worker's number
    /// (`af_packet`: its place in the fanout group); from 0.
    pub queue: u32,
    /// Slots per ring: a power of two from 64 to `MAX_RING_SIZE`.
    pub ring_size: u32,
    /// Complete partial transport checksums of received packets. Off only where every sender is known to finish them.
    pub complete_checksums: bool,
    /// What becomes of offloads that would lose or mutilate packets.
    pub offloads: Offloads,
    /// `af_xdp`, `netmap`: how the NIC is to share packets out; `None`: as it does.
    pub spread: Option<Spread>,
    /// Which driver, and its own options.
    pub driver: DriverSpec,
}

/// What becomes of an interface's offloads that the driver cannot live with (`offloads`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offloads {
    /// They are switched off, and on again at the end.
    #[default]
    Fix,
    /// The port does not open while they are on.
    Refuse,
    /// They stay as they are, which is said at start.
    Ignore,
}

/// Who is beyond an interface (`faces`), which tells the end of its packets that names their owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Faces {
    /// Clients and endpoints, or that is not known.
    #[default]
    Both,
    /// Clients: packets that come by it are owned by their source.
    Clients,
    /// Endpoints that are no clients: packets that come by it are answers, owned by their destination.
    Endpoints,
}

/// How a NIC is to share packets out to the queues of their owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Who is beyond it.
    pub faces: Faces,
    /// The worker, and so the queue, of each class.
    pub owners: [WorkerIndex; CLASSES],
    /// Whether there is IPv4 on it.
    pub ipv4: bool,
}

/// A driver and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverSpec {
    /// AF_XDP.
    AfXdp {
        /// Where the XDP program runs.
        attach: Attach,
        /// Whether frame memory is shared with the hardware.
        zero_copy: ZeroCopy,
        /// Whether the worker's calls poll the NIC.
        busy_poll: Option<BusyPoll>,
        /// What is taken from an interface that the kernel uses, too; `None`: everything is.
        shared: Option<Sharing>,
    },
    /// AF_PACKET.
    AfPacket {
        /// The sockets that share the interface's frames; `None` if there is only one.
        fanout: Option<Fanout>,
    },
    /// Shared memory with another process.
    Memif(MemifSpec),
    /// A netmap port; the interface's name is in netmap's grammar (`netmap::name`).
    Netmap,
    /// Files of packets.
    Pcap(PcapSpec),
    /// A tap: the host port, or a link.
    Tap {
        /// Largest IP packet, in bytes.
        mtu: usize,
        /// It has a queue for every worker: this is the `queue`-th of them, the first of which makes the tap.
        queues: bool,
    },
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// In the interface's driver where it can, else in the network stack.
    #[default]
    Auto,
    /// In the interface's driver, or the port does not open.
    Native,
    /// In the network stack: any interface.
    Generic,
}

/// Whether AF_XDP shares frame memory with the hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZeroCopy {
    /// Where the interface's driver can.
    #[default]
    Auto,
    /// It does, or the port does not open.
    On,
    /// Copy always.
    Off,
}

/// That a worker does an AF_XDP queue's work in the kernel in its own calls, instead of interrupts on whatever core
/// (Documentation/networking/napi.rst, "Busy polling").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BusyPoll {
    /// SO_BUSY_POLL, microseconds, at least 1. AF_XDP's calls look once and never wait, so it only says that they look.
    pub micros: u32,
    /// SO_BUSY_POLL_BUDGET: most packets a call takes from the NIC, 1 to 65,535. 64, a worker's burst, is the kernel's own
    /// measure, too; more needs CAP_NET_ADMIN.
    pub budget: u16,
    /// SO_PREFER_BUSY_POLL: interrupts stay off for as long as calls come. Only with `napi_defer_hard_irqs` and
    /// `gro_flush_timeout` of the interface set.
    pub prefer: bool,
}

impl Default for BusyPoll {
    fn default() -> Self {
        Self {
            micros: 20,
            budget: 64,
            prefer: true,
        }
    }
}

/// Opens the port. `memory` is the worker's frame memory, the same for all calls that `driver` will get; `umem` is the
/// worker's registration of it with AF_XDP, made by the first such port and shared by the later ones.
pub fn open(
    spec: &PortSpec,
    memory: &mut FrameMemory,
    umem: &mut Option<Umem>,
) -> Result<Box<dyn Driver>, OpenError> {
    if !spec.ring_size.is_power_of_two() || !(64..=MAX_RING_SIZE).contains(&spec.ring_size) {
        let what = format!(
            "ringSize {} is no power of two from 64 to {MAX_RING_SIZE}",
            spec.ring_size
        );
        return Err(spec.refusal(what, format!("leave it out or set {DEFAULT_RING_SIZE}")));
    }
    Ok(match &spec.driver {
        DriverSpec::AfXdp {
            attach,
            zero_copy,
            busy_poll,
            shared,
        } => {
            let (attach, copying, shared) = (*attach, (*zero_copy, *busy_poll), shared.clone());
            let port = AfXdp::open(spec, (attach, shared.as_ref()), copying, memory, umem)?;
            // The registration that other ports share may have ended with this one's socket: it makes its own then.
            let again = move |spec: &PortSpec, memory: &mut FrameMemory| {
                AfXdp::open(spec, (attach, shared.as_ref()), copying, memory, &mut None)
            };
            Box::new(Reopening::new(spec, port, Box::new(again)))
        }
        DriverSpec::AfPacket { fanout } => {
            let fanout = fanout.clone();
            let port = AfPacket::open(spec, fanout.as_ref(), memory)?;
            let again = move |spec: &PortSpec, memory: &mut FrameMemory| {
                AfPacket::open(spec, fanout.as_ref(), memory)
            };
            Box::new(Reopening::new(spec, port, Box::new(again)))
        }
        DriverSpec::Memif(options) => Box::new(Memif::open(spec, options, memory)?),
        DriverSpec::Netmap => Box::new(Netmap::open(spec, memory)?),
        DriverSpec::Pcap(options) => Box::new(Pcap::open(spec, options)?),
        DriverSpec::Tap { mtu, queues } => Box::new(Tap::open(spec, *mtu, *queues, memory)?),
    })
}

impl PortSpec {
    /// A port with default options.
    pub fn new(port: &str, interface: &str, driver: DriverSpec) -> Self {
        Self {
            port: port.to_owned(),
            interface: interface.to_owned(),
            queue: 0,
            ring_size: DEFAULT_RING_SIZE,
            complete_checksums: true,
            offloads: Offloads::Fix,
            spread: None,
            driver,
        }
    }

    /// What failed with a system error.
    pub(crate) fn error(
        &self,
        what: impl Into<String>,
        advice: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> OpenError {
        let source = source.into();
        OpenError {
            source: Some(source),
            ..self.refusal(what, advice)
        }
    }

    /// What cannot work as described.
    pub(crate) fn refusal(&self, what: impl Into<String>, advice: impl Into<String>) -> OpenError {
        OpenError {
            port: self.port.clone(),
            interface: self.interface.clone(),
            what: what.into(),
            advice: advice.into(),
            source: None,
        }
    }

    /// The interface, or an error that says how to see which there are.
    pub(crate) fn find_interface(&self) -> Result<Interface, OpenError> {
        Interface::find(&self.interface).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                let advice = "check the name and the network namespace (`ip link` lists what there is)";
                self.error("no such interface", advice, e)
            }
            io::ErrorKind::InvalidInput => {
                self.error("not an interface name", "use 1 to 15 characters without slash", e)
            }
            _ => self.error(
                "cannot look up the interface",
                "check the process's limits and privileges",
                e,
            ),
        })
    }

    /// A packet of `mtu` bytes must fit a frame.
    pub(crate) fn check_mtu(&self, mtu: usize, memory: &FrameMemory) -> Result<(), OpenError> {
        let room = memory.max_packet() - FRAME_OVERHEAD;
        if mtu < room {
            return Ok(());
        }
        let what = format!(
            "its MTU of {mtu} bytes does not fit the frames of {} bytes",
            memory.chunk_size()
        );
        let larger = (mtu + FRAME_OVERHEAD + HEADROOM + 1).next_power_of_two();
        let advice = format!("lower the MTU below {room} or use larger frames (frames.size: {larger})");
        Err(self.refusal(what, advice))
    }
}
