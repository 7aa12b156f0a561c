//! The XDP program of an interface that the kernel uses, too, and the maps it asks: frames that are Services' go to the socket of
//! the queue they arrived on, all others to the kernel as if there were no program. What is in the maps is `crate::shared`'s.
//!
//! A frame is Services' if it goes to an address with `TO`; to an address with `PARTLY` or `OWN` and a port that is in `ports`, or
//! for `OWN` in the ranges of SNAT; or comes from an address with `FROM` and does not go to one with `OWN`. An ICMP error is if
//! the packet it quotes came from such a port, or went to an address with `FROM`. A later fragment has no ports: it goes where the
//! first of its datagram went; if that is not known, it is Services' if it goes to an address with `PARTLY` or comes from one with
//! `FROM`. Never Services': frames to groups, frames of other VLANs than the interface's NIC ports have, ARP, neighbour discovery.
//!
//! A port that was a frontend's drains (`DRAINING`): its TCP connections go on. Those that the kernel has a socket for, and SYNs, are
//! the kernel's.
//!
//! Program and maps end with the process, however that ends: the interface is the kernel's again, which answers Services' packets as
//! its own, with resets. Or the program is *kept* (`Keep`): it has a name in a BPF file system, as the maps have, and outlives the
//! process. Frames that are Services' then find no socket and are dropped and counted, which TCP survives, for as long as the last
//! process had said: it says it anew all the time. A process that comes meanwhile begins with what the maps held, and puts its
//! program in the place of the kept one once its sockets are there. If none comes, the program has everything pass, as if there
//! were none; removing its name detaches it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use rustix::time::{ClockId, clock_gettime};

use super::bpf::{self, Map, MapKind};
use super::interface::Interface;
use super::xdp_program::XdpMode;
use crate::addr::Protocol;
use crate::tick::{Period, TICKS_PER_SECOND};

mod program;

/// All packets to it.
pub const TO: u32 = 1;
/// All packets from it.
pub const FROM: u32 = 2;
/// Packets to those of its ports that are listed, and fragments to it.
pub const PARTLY: u32 = 4;
/// One of the node's own: packets to those of its ports that are listed or SNAT's.
pub const OWN: u32 = 8;

// What is said of a port.
/// It is a frontend's.
pub const SERVED: u32 = 1;
/// It was: its connections are Services', what opens one is the kernel's.
pub const DRAINING: u32 = 2;

/// A prefix, an IPv4 one mapped into IPv6 (RFC 4291 §2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Prefix {
    length: u32,
    address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Port {
    address: [u8; 16],
    /// Of this machine's byte order.
    protocol: u16,
    /// Of the network's.
    port: [u8; 2],
}

/// A fragmented datagram, as all its fragments have it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Datagram {
    src: [u8; 16],
    dst: [u8; 16],
    identification: u32,
    protocol: u32,
}

/// An interface's part in `mode: shared`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// The maps of all.
    pub maps: Arc<SharedMaps>,
    /// Its VLANs that NIC ports have; 0: frames without a tag.
    pub vlans: Vec<u16>,
}

impl Sharing {
    /// Loads the program for the interface, whose sockets are in the map with this descriptor.
    pub(crate) fn load(&self, sockets: i32) -> io::Result<OwnedFd> {
        let maps = &self.maps;
        let program = program::program(maps.numbers(sockets), &maps.snat, &self.vlans);
        bpf::load("sluice_shared", &program)
    }
}

/// That programs and maps outlive the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Where their names are: a folder of a BPF file system.
    pub folder: PathBuf,
    /// How long Services' packets are withheld from the kernel while there is no process.
    pub hold: Period,
}

/// The maps that all shared interfaces of a process ask, and the ports of SNAT.
#[derive(Debug)]
pub struct SharedMaps {
    addresses: Map<Prefix>,
    ports: Map<Port>,
    /// Whose the datagrams are whose first fragment came; 0: the kernel's.
    fragments: Map<Datagram>,
    /// Nanoseconds of CLOCK_MONOTONIC.
    until: Map<u32, u64>,
    /// Packets that were withheld.
    lost: Map<u32, u64>,
    limits: [u32; 2],
    snat: Vec<RangeInclusive<u16>>,
    keep: Option<Keep>,
    /// Links to name once all ports are open.
    links: Mutex<Vec<(PathBuf, OwnedFd)>>,
}

/// The same maps, whatever is in them.
impl PartialEq for SharedMaps {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for SharedMaps {}

impl SharedMaps {
    /// Maps with room for so many prefixes and ports, and datagrams in fragments, and in them what is kept of another process. Errors: EPERM without CAP_BPF and
    /// CAP_NET_ADMIN; InvalidInput if the folder is in no BPF file system.
    pub fn new(
        [addresses, ports, datagrams]: [u32; 3],
        snat: Vec<RangeInclusive<u16>>,
        keep: Option<Keep>,
    ) -> io::Result<Self> {
        if let Some(keep) = &keep {
            make_folder(&keep.folder)?;
        }
        let kept = |name: &str| keep.as_ref().map(|keep| keep.folder.join(name));
        let maps = Self {
            addresses: Map::new(MapKind::LongestPrefix, addresses)?,
            ports: Map::new(MapKind::Hash, ports)?,
            fragments: Map::new(MapKind::LeastRecent, datagrams)?,
            until: only(kept(UNTIL))?,
            lost: only(kept(LOST))?,
            limits: [addresses, ports],
            snat,
            links: Mutex::default(),
            keep: keep.clone(),
        };
        // A copy, since the room for them may be another now.
        if let Some(old) = kept(ADDRESSES).map(|path| Map::pinned(&path, MapKind::LongestPrefix)) {
            copy(old, &maps.addresses)?;
        }
        if let Some(old) = kept(PORTS).map(|path| Map::pinned(&path, MapKind::Hash)) {
            copy(old, &maps.ports)?;
        }
        maps.renew()?;
        Ok(maps)
    }

    /// All prefixes with their flags, and all ports with what is said of them.
    pub fn contents(&self) -> io::Result<Contents> {
        let prefixes = self.addresses.entries()?.into_iter();
        let ports = self.ports.entries()?.into_iter();
        let port = |port: Port| {
            let protocol = Protocol(port.protocol as u8);
            (from_v6(port.address), protocol, u16::from_be_bytes(port.port))
        };
        Ok((
            prefixes.map(|(p, flags)| (p.unmapped(), flags)).collect(),
            ports.map(|(key, says)| (port(key), says)).collect(),
        ))
    }

    /// From now on, packets that find no socket are withheld from the kernel for so long; not at all if nothing is kept.
    pub fn renew(&self) -> io::Result<()> {
        let Some(keep) = &self.keep else { return Ok(()) };
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = now.tv_sec as u64 + u64::from(keep.hold.ticks().div_ceil(TICKS_PER_SECOND));
        self.until.set(0, seconds * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// How many were, since the maps are kept.
    pub fn lost(&self) -> io::Result<u64> {
        self.lost.get(0)
    }

    /// Names what is to be kept, once every port is open.
    pub fn keep(&self) -> io::Result<()> {
        let Some(keep) = &self.keep else { return Ok(()) };
        let named = [
            (ADDRESSES, self.addresses.as_fd()),
            (PORTS, self.ports.as_fd()),
            (UNTIL, self.until.as_fd()),
            (LOST, self.lost.as_fd()),
        ];
        for (name, map) in named {
            bpf::pin(map, &keep.folder.join(name))?;
        }
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, link) in links.drain(..) {
            bpf::pin(link.as_fd(), &path)?;
        }
        Ok(())
    }

    /// The link of an interface that another process has left, and how its program runs.
    pub(crate) fn kept_link(&self, interface: &Interface) -> Option<(XdpMode, OwnedFd)> {
        for mode in [XdpMode::Native, XdpMode::Generic] {
            let path = self.link_name(interface, mode)?;
            let Ok(link) = bpf::pinned(&path) else { continue };
            // It may be of one that had the name before.
            if bpf::interface_of(link.as_fd()).is_ok_and(|index| index == interface.index()) {
                return Some((mode, link));
            }
            let _ = fs::remove_file(path);
        }
        None
    }

    /// Notes a new link to keep.
    pub(crate) fn keep_link(
        &self,
        interface: &Interface,
        mode: XdpMode,
        link: BorrowedFd<'_>,
    ) -> io::Result<()> {
        if let Some(path) = self.link_name(interface, mode) {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.push((path, link.try_clone_to_owned()?));
        }
        Ok(())
    }

    /// Removes the name of a link, which detaches it.
    pub(crate) fn forget_link(&self, interface: &Interface, mode: XdpMode) {
        if let Some(path) = self.link_name(interface, mode) {
            let _ = fs::remove_file(path);
        }
    }

    /// Dots are forbidden there, and colons in names of interfaces.
    fn link_name(&self, interface: &Interface, mode: XdpMode) -> Option<PathBuf> {
        let folder = &self.keep.as_ref()?.folder;
        let name = interface.name().replace('.', ":");
        Some(folder.join(format!("{name}-{}", mode.name())))
    }

    /// Most prefixes and ports.
    pub const fn limits(&self) -> [u32; 2] {
        self.limits
    }

    /// What the longest prefix of an address says holds alone: `flags` are those of all wider prefixes, too. Errors: ENOSPC.
    pub fn set_prefix(&self, (address, length): (IpAddr, u8), flags: u32) -> io::Result<()> {
        self.addresses.set(prefix(address, length), flags)
    }

    /// Takes a prefix out.
    pub fn remove_prefix(&self, (address, length): (IpAddr, u8)) -> io::Result<()> {
        self.addresses.remove(prefix(address, length))
    }

    /// Says something of a port of an address. Errors: E2BIG.
    pub fn set_port(&self, key: AddressPort, says: u32) -> io::Result<()> {
        self.ports.set(port(key), says)
    }

    /// Takes a port out.
    pub fn remove_port(&self, key: AddressPort) -> io::Result<()> {
        self.ports.remove(port(key))
    }

    fn numbers(&self, sockets: i32) -> program::Maps {
        program::Maps {
            addresses: self.addresses.number(),
            ports: self.ports.number(),
            fragments: self.fragments.number(),
            sockets,
            until: self.until.number(),
            lost: self.lost.number(),
        }
    }
}

/// Prefixes and their flags, ports and what is said of them.
pub type Contents = (Vec<((IpAddr, u8), u32)>, Vec<(AddressPort, u32)>);

/// A port of an address.
pub type AddressPort = (IpAddr, Protocol, u16);

// Names of maps, which differ from those of all links in having no hyphen. A digit counts the shapes that keys have had.
const ADDRESSES: &str = "addresses1";
const PORTS: &str = "ports1";
const UNTIL: &str = "until1";
const LOST: &str = "lost1";

/// linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    if rustix::fs::statfs(folder)?.f_type as u32 == BPF_FS_MAGIC {
        return Ok(());
    }
    let what = format!(
        "{} is in no BPF file system, as there commonly is one at /sys/fs/bpf (mount -t bpf bpf /sys/fs/bpf)",
        folder.display()
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// The kept array of one value, or a new one.
fn only(kept: Option<PathBuf>) -> io::Result<Map<u32, u64>> {
    let kept = kept.map(|path| Map::pinned(&path, MapKind::Array));
    kept.and_then(Result::ok)
        .map_or_else(|| Map::new(MapKind::Array, 1), Ok)
}

/// What is kept, if there is anything, to a new map; what finds no room there is left out.
fn copy<K: Pod>(kept: io::Result<Map<K>>, new: &Map<K>) -> io::Result<()> {
    let Ok(kept) = kept else { return Ok(()) };
    for (key, value) in kept.entries()? {
        let _ = new.set(key, value);
    }
    Ok(())
}

fn prefix(address: IpAddr, length: u8) -> Prefix {
    let mapped = if address.is_ipv4() { 96 } else { 0 };
    Prefix {
        length: u32::from(length) + mapped,
        address: mapped_to_v6(address),
    }
}

const fn port((address, protocol, port): AddressPort) -> Port {
    Port {
        address: mapped_to_v6(address),
        protocol: protocol.0 as u16,
        port: port.to_be_bytes(),
    }
}

impl Prefix {
    fn unmapped(self) -> (IpAddr, u8) {
        let address = from_v6(self.address);
        let mapped = if address.is_ipv4() { 96 } else { 0 };
        (address, self.length.saturating_sub(mapped) as u8)
    }
}

fn from_v6(address: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

const fn mapped_to_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
#[path = "xdp_shared/tests.rs"]
mod tests;
