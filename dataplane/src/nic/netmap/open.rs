//! Takes  the name of a port.   Gives  its rings, mapped; and again, when what was behind it was gone and is back.
//! Never  receives or sends.

use std::io;
use std::sync::Arc;

use super::Netmap;
use super::abi::{self, Devices, Module, NR_EXCLUSIVE, NR_RX_RINGS_ONLY, NR_TX_RINGS_ONLY, Register};
use super::name::PortName;
use super::region::{self, Direction, Region};
use super::ring::Ring;
use crate::addr::Mac;
use crate::nic::interface::{FRAME_OVERHEAD, Interface};
use crate::nic::offloads::{self, Need};
use crate::nic::open::PortSpec;
use crate::nic::reopen::restore_station;
use crate::nic::spread;
use crate::nic::tap::station_mac;
use crate::nic::{DriverInfo, DriverStats, FrameMemory, OpenError};

/// IP's share of the longest frame that a VALE switch takes (NM_BDG_MFS_DEFAULT: 1514 bytes); pipes are given the same.
const VIRTUAL_MTU: usize = 1500;

impl Netmap {
    /// Opens the port by the kernel's module.
    pub(crate) fn open(spec: &PortSpec, memory: &mut FrameMemory) -> Result<Self, OpenError> {
        Self::open_by(spec, memory, &(Arc::new(Module) as Arc<dyn Devices>))
    }

    /// Opens the port by whoever plays the kernel's module.
    pub fn open_by(
        spec: &PortSpec,
        memory: &mut FrameMemory,
        devices: &Arc<dyn Devices>,
    ) -> Result<Self, OpenError> {
        let name = PortName::parse(&spec.interface).map_err(|what| {
            spec.refusal(
                format!("the name {what}"),
                "write netmap:IF, netmap:IF-RING, netmap:IF^, valeX:PORT or a pipe, netmap:IF{PIPE",
            )
        })?;
        let interface = name
            .interface
            .as_ref()
            .map(|interface| {
                let spec = PortSpec {
                    interface: interface.clone(),
                    ..spec.clone()
                };
                spec.find_interface()
            })
            .transpose()?;
        let device = devices.open().map_err(|e| {
            let advice = match e.kind() {
                io::ErrorKind::NotFound => "load netmap's kernel module (modprobe netmap)",
                _ => "run as root",
            };
            spec.error(format!("cannot open {}", abi::DEVICE), advice, e)
        })?;
        let mut request = wanted(spec, &name);
        device
            .register(&name.kernel, &mut request)
            .map_err(|e| explain(spec, &name, request.ring, e))?;
        let failed = |e: io::Error| spec.error("cannot use netmap's memory", "report this kernel", e);
        let region = Region::map(&*device, &request).map_err(failed)?;
        let ring = |direction, excluded| {
            let asked = name.flags & excluded == 0;
            asked.then(|| region.ring(direction, name.is_host(), request.ring))
        };
        let rx = ring(Direction::Rx, NR_TX_RINGS_ONLY)
            .transpose()
            .map_err(failed)?;
        let tx = ring(Direction::Tx, NR_RX_RINGS_ONLY)
            .transpose()
            .map_err(failed)?;
        let Some(buffers) = rx.as_ref().or(tx.as_ref()).map(Ring::buffers) else {
            return Err(spec.refusal("the name asks for neither direction", "leave out /R or /T"));
        };
        let why_copy = lend(&**devices, request.mem_id, buffers, memory);
        let trader = memory.trader(request.mem_id.into());
        let (mac, peer_mac, mtu) = stations(spec, &name, interface.as_ref())?;
        if mtu + FRAME_OVERHEAD > buffers.size {
            let what = format!(
                "its MTU of {mtu} bytes does not fit netmap's buffers of {} bytes",
                buffers.size
            );
            let advice = "lower the MTU or load the module with larger ones (buf_size)";
            return Err(spec.refusal(what, advice));
        }
        if trader.is_none() {
            spec.check_mtu(mtu, memory)?;
        }
        let (offloads, groups) = match &interface {
            Some(interface) if name.is_host() => {
                (Some(offloads::prepare(spec, interface, &[Need::Finished])?), None)
            }
            Some(interface) => (
                Some(offloads::prepare(
                    spec,
                    interface,
                    &[Need::Unmerged, Need::Tagged],
                )?),
                interface.group_receiver().ok(),
            ),
            None => (None, None),
        };
        // After the registration, for which drivers set up their queues anew.
        let spreading = interface
            .as_ref()
            .and_then(|interface| spread::set(spec, interface));
        let slots = |ring: &Option<Ring>| ring.as_ref().map_or(0, Ring::size);
        let copying = why_copy.map_or_else(|| "zero-copy".to_owned(), |why| format!("copy ({why})"));
        let mode = format!(
            "{copying}, region {}, ring pair {}, {} rx and {} tx slots{}{}",
            request.mem_id,
            request.ring,
            slots(&rx),
            slots(&tx),
            offloads
                .as_ref()
                .map_or_else(String::new, |offloads| format!(", {offloads}")),
            spread::told(spreading.as_deref()),
        );
        Ok(Self {
            rx,
            tx,
            device: Some(device),
            devices: Arc::clone(devices),
            spec: spec.clone(),
            trader,
            _groups: groups,
            interface,
            info: DriverInfo {
                driver: "netmap",
                interface: spec.interface.clone(),
                mode,
                mac,
                peer_mac,
                mtu,
            },
            stats: DriverStats::default(),
            complete_checksums: spec.complete_checksums,
            _offloads: offloads,
            _spreading: spreading,
            failed: false,
            taken: 0,
            rest: 0,
            rested: 0,
            in_pieces: false,
        })
    }

    /// Gives up what is gone. Until then the module keeps the interface, and whoever removes it waits.
    pub(super) fn let_go(&mut self) {
        log::warn!(
            "NIC port {}: {} is gone; it is opened again when it is back",
            self.spec.port,
            self.spec.interface
        );
        // The buffers that are in the rings stay the module's.
        (self.rx, self.tx, self.device, self.trader) = (None, None, None, None);
        (self._groups, self._offloads, self._spreading) = (None, None, None);
        self.in_pieces = false;
    }

    /// Opens what is back.
    pub(super) fn open_again(&mut self, memory: &mut FrameMemory) {
        let old = self.interface.as_ref();
        if let Some(interface) = old.and_then(|old| Interface::find(old.name()).ok()) {
            let station = self.info.peer_mac.unwrap_or(self.info.mac);
            restore_station(&self.spec, &interface, station);
        }
        let Ok(port) = Self::open_by(&self.spec, memory, &self.devices) else {
            return;
        };
        let mode = port.info.mode.clone();
        log::info!(
            "NIC port {}: {} is back, {mode}",
            self.spec.port,
            self.spec.interface
        );
        let info = DriverInfo {
            mode,
            ..self.info.clone()
        };
        let stats = self.stats;
        *self = Self { info, stats, ..port };
    }
}

/// What to ask the kernel for.
fn wanted(spec: &PortSpec, name: &PortName) -> Register {
    let mut request = Register {
        mode: name.mode,
        ring: if name.any_ring {
            spec.queue as u16
        } else {
            name.ring
        },
        // Two programs in one ring would use each other's buffers.
        flags: name.flags | NR_EXCLUSIVE,
        mem_id: name.region,
        ..Register::default()
    };
    if name.interface.is_none() {
        // The rings of switches and pipes are made as asked; NICs' are as they are.
        (request.tx_slots, request.rx_slots) = (spec.ring_size, spec.ring_size);
    }
    request
}

fn explain(spec: &PortSpec, name: &PortName, ring: u16, error: io::Error) -> OpenError {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root",
        Some(libc::EINVAL) => {
            "check that the ring pair (ethtool -l) and the memory region (@) exist, and that the module is of API 14 or 15"
        }
        Some(libc::ENXIO | libc::ENODEV) => {
            "check the name and the network namespace (`ip link` lists what there is)"
        }
        Some(libc::EBUSY) => "another program uses it: stop it",
        Some(libc::ENOMEM) => {
            "the module's memory is used up: raise its buf_num, ring_num, ring_size or if_num (priv_buf_num and so on for a \
             switch or pipe without @1), or lower ringSize"
        }
        Some(libc::EOPNOTSUPP) => "the module cannot drive this interface, not even in emulated mode",
        _ => "see the kernel's log (dmesg)",
    };
    spec.error(
        format!("netmap refuses ring pair {ring} of {}: {error}", name.kernel),
        advice,
        error,
    )
}

/// Moves the worker's frame memory into region `id` unless it is there; says why not, if it cannot be.
fn lend(
    devices: &dyn Devices,
    id: u16,
    buffers: region::Buffers,
    memory: &mut FrameMemory,
) -> Option<String> {
    if memory.trader(id.into()).is_some() {
        return None;
    }
    if memory.region().is_none() {
        return Some("frames are in another region".to_owned());
    }
    if !memory.is_whole() {
        return Some("another port uses the frames".to_owned());
    }
    if buffers.size != memory.chunk_size() {
        return Some(format!(
            "buffers of {} bytes, frames of {}",
            buffers.size,
            memory.chunk_size()
        ));
    }
    let lent = devices
        .open()
        .and_then(|device| Region::lend(device, id, buffers, memory));
    lent.err()
        .map(|error| format!("no memory in it for frames: {error}"))
}

/// Our station address, the other side's if it is the node's own stack, and the MTU.
fn stations(
    spec: &PortSpec,
    name: &PortName,
    interface: Option<&Interface>,
) -> Result<(Mac, Option<Mac>, usize), OpenError> {
    let Some(interface) = interface else {
        return Ok((station_mac(&spec.interface), None, VIRTUAL_MTU));
    };
    let read = |e| spec.error("cannot read its address and MTU", "check the interface", e);
    let (mac, mtu) = (interface.mac().map_err(read)?, interface.mtu().map_err(read)?);
    Ok(if name.is_host() {
        (station_mac(&spec.interface), Some(mac), mtu)
    } else {
        (mac, None, mtu)
    })
}
