//! What is said to netmap's kernel module: requests of API 14 (sys/net/netmap.h), and who carries them, the module itself
//! (`Module`) or a test that plays it.
//!
//! The structures that both sides share in memory are `netmap_sys`'s; it binds API 11, whose requests today's module
//! refuses, so those of NIOCCTRL are here.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytemuck::{Pod, Zeroable};
use netmap_sys::netmap;
use rustix::fs::{Mode, OFlags};

use crate::nic::sys;

/// The module's control device.
pub const DEVICE: &str = "/dev/netmap";
/// NETMAP_API; the module takes 14 and 15.
pub(crate) const API: u16 = 14;
/// Room for a name, with its 0.
pub(crate) const NETMAP_REQ_IFNAMSIZ: usize = 64;
/// NETMAP_REQ_REGISTER.
const REGISTER: u16 = 1;
/// NR_REG_NULL and NR_REG_ONE_SW, newer than `netmap_sys`: memory without rings, and one of several host ring pairs.
pub const NR_REG_NULL: u32 = 7;
/// As above.
pub const NR_REG_ONE_SW: u32 = 8;

pub(crate) const NR_MONITOR_TX: u64 = netmap::NR_MONITOR_TX as u64;
pub(crate) const NR_MONITOR_RX: u64 = netmap::NR_MONITOR_RX as u64;
pub(crate) const NR_ZCOPY_MON: u64 = netmap::NR_ZCOPY_MON as u64;
pub(crate) const NR_EXCLUSIVE: u64 = netmap::NR_EXCLUSIVE as u64;
pub(crate) const NR_RX_RINGS_ONLY: u64 = netmap::NR_RX_RINGS_ONLY as u64;
pub(crate) const NR_TX_RINGS_ONLY: u64 = netmap::NR_TX_RINGS_ONLY as u64;

/// `struct nmreq_header`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Header {
    version: u16,
    kind: u16,
    reserved: u32,
    name: [u8; NETMAP_REQ_IFNAMSIZ],
    options: u64,
    pub(crate) body: u64,
}

/// `struct nmreq_register`: what is wanted, and what the kernel made of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Register {
    /// Out: where the `netmap_if` is in the memory.
    pub offset: u64,
    /// Out: bytes of the memory.
    pub memsize: u64,
    /// Slots of a tx ring.
    pub tx_slots: u32,
    /// Slots of an rx ring.
    pub rx_slots: u32,
    /// Rings.
    pub tx_rings: u16,
    /// Rings.
    pub rx_rings: u16,
    /// Host rings.
    pub host_tx_rings: u16,
    /// Host rings.
    pub host_rx_rings: u16,
    /// Which memory; in: 0 leaves it to the kernel.
    pub mem_id: u16,
    /// Which ring pair.
    pub ring: u16,
    /// `NR_REG_…`.
    pub mode: u32,
    /// Buffers beside those of the rings.
    pub extra_bufs: u32,
    /// 0.
    pub padding: u32,
    /// `NR_…`.
    pub flags: u64,
}

const _: () = assert!(size_of::<Header>() == 88 && size_of::<Register>() == 56);

/// NIOCCTRL: `_IOWR('i', 151, struct nmreq_header)`, wherever ioctl numbers are made the usual way.
pub(crate) const NIOCCTRL: u64 = 3 << 30 | (size_of::<Header>() as u64) << 16 | (b'i' as u64) << 8 | 151;
const _: () = assert!(NIOCCTRL == 0xc058_6997);
// NIOCTXSYNC and NIOCRXSYNC are `netmap_sys`'s: `_IO('i', 148)` and 149.
const _: () = assert!(netmap::NIOCTXSYNC == 0x6994 && netmap::NIOCRXSYNC == 0x6995);

/// One open control device: a port, once registered.
pub trait Device: Debug + Send + Sync {
    /// Binds it to the port that `name` and `request` tell of, and fills in `request`. Errors: as the module's.
    fn register(&self, name: &str, request: &mut Register) -> io::Result<()>;

    /// Gives the kernel what was put into tx rings, and learns what it is done with.
    fn sync_tx(&self) -> io::Result<()>;

    /// Gives the kernel the slots of rx rings that are done with, and learns what arrived.
    fn sync_rx(&self) -> io::Result<()>;

    /// What to map, from its first byte, to see the memory.
    fn memory(&self) -> BorrowedFd<'_>;

    /// Readable when packets wait.
    fn readable(&self) -> BorrowedFd<'_>;
}

/// Who opens control devices.
pub trait Devices: Debug + Send + Sync {
    /// Opens one, not registered yet.
    fn open(&self) -> io::Result<Box<dyn Device>>;
}

/// The module.
#[derive(Debug)]
pub(crate) struct Module;

impl Devices for Module {
    fn open(&self) -> io::Result<Box<dyn Device>> {
        let fd = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Box::new(Control(fd)))
    }
}

/// Its device.
#[derive(Debug)]
struct Control(OwnedFd);

impl Device for Control {
    fn register(&self, name: &str, request: &mut Register) -> io::Result<()> {
        let mut header = Header::zeroed();
        (header.version, header.kind) = (API, REGISTER);
        match header.name.split_at_mut_checked(name.len()) {
            // At least one byte of 0 stays.
            Some((room, rest)) if !rest.is_empty() => room.copy_from_slice(name.as_bytes()),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        sys::netmap_control(self.0.as_fd(), &mut header, request)
    }

    fn sync_tx(&self) -> io::Result<()> {
        sys::netmap_sync(self.0.as_fd(), netmap::NIOCTXSYNC.into())
    }

    fn sync_rx(&self) -> io::Result<()> {
        sys::netmap_sync(self.0.as_fd(), netmap::NIOCRXSYNC.into())
    }

    fn memory(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
