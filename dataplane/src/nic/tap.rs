//! A tap: its other end is an ordinary interface of the kernel. As the host port it is the node's, for punted packets and for
//! Service traffic from the node itself; as a link it may be moved, bridged or a virtual machine's. One system call and one
//! copy per packet: it is not the fast path.
//!
//! With several workers it has a queue for each. A packet of a flow comes by the queue that the flow's last packet was sent
//! by, which is its owner's, since the kernel remembers that (drivers/net/tun.c); the first of a new flow by any.
//!
//! A virtio-net header goes with every packet. All offloads are declined, so the kernel segments and completes
//! checksums before it hands a packet over; a packet that comes unfinished all the same is finished here.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::interface::{FRAME_OVERHEAD, Interface};
use super::open::PortSpec;
use super::sys::{self, InterfaceRequest, Request};
use super::transmit_drops::TransmitDrops;
use super::{Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link, OpenError, checksum_fix};
use crate::addr::Mac;

const DEVICE: &str = "/dev/net/tun";
/// `struct virtio_net_hdr` (linux/virtio_net.h): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
const HEADER_LEN: usize = 10;
/// Its flag VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CHECKSUM: u8 = 1;

/// A tap, opened by this process.
#[derive(Debug)]
pub struct Tap {
    device: OwnedFd,
    interface: Interface,
    /// Refreshed elsewhere, by what the first queue gives.
    missed: Arc<AtomicU64>,
    drops: Option<TransmitDrops>,
    info: DriverInfo,
    stats: DriverStats,
    complete_checksums: bool,
    /// Calls that will not read.
    rest: u32,
}

/// Calls without a read after an empty one: a read is a system call, and a busy worker would make one every turn for a
/// port that is mostly silent. Fewer than the empty turns a worker makes before it first waits; woken by the tap itself, it
/// turns (poll(2) returns at once) until the rest is over, so no packet is slept past.
const REST: u32 = 15;

impl Tap {
    /// Creates the tap, or attaches to a persistent one of that name; sets its MTU and brings it up. One made here
    /// disappears when the port, or the last of its `queues`, is closed. Queues but the first attach to what the first made.
    pub(crate) fn open(
        spec: &PortSpec,
        mtu: usize,
        queues: bool,
        memory: &FrameMemory,
    ) -> Result<Self, OpenError> {
        spec.check_mtu(mtu, memory)?;
        InterfaceRequest::new(&spec.interface)
            .map_err(|e| spec.error("not a usable interface name", "choose another name", e))?;
        let device = rustix::fs::open(
            DEVICE,
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| {
            spec.error(
                format!("cannot open {DEVICE}"),
                "load the tun module (modprobe tun) and give the process access to the device",
                e,
            )
        })?;
        attach(device.as_fd(), &spec.interface, queues).map_err(|e| {
            let advice = match e.raw_os_error() {
                Some(libc::EBUSY) => "another process has this tap: stop it or choose another name",
                Some(libc::EINVAL) if queues => {
                    "an interface of this name exists and is no tap with several queues: choose another name, or make it with \
                     ip tuntap add … mode tap multi_queue"
                }
                Some(libc::EINVAL) => "an interface of this name exists and is no tap: choose another name",
                _ => "run with CAP_NET_ADMIN, as root or in a user namespace",
            };
            spec.error("cannot create the tap", advice, e)
        })?;
        // From here on dropping `device` also deletes a tap made here: nothing half-made stays.
        sys::tun_set_offload(device.as_fd(), 0)
            .map_err(|e| spec.error("cannot decline offloads", "use Linux 2.6.27 or newer", e))?;
        // A persistent tap has the header that another program gave it, longer ones for virtio 1.0 among them.
        sys::tun_set_header(device.as_fd(), HEADER_LEN as i32).map_err(|e| {
            spec.error(
                "cannot agree on the virtio-net header",
                "use Linux 2.6.35 or newer",
                e,
            )
        })?;
        let interface = spec.find_interface()?;
        let advice = "run with CAP_NET_ADMIN, as root or in a user namespace";
        let mtu = if spec.queue == 0 {
            interface
                .set_mtu(mtu)
                .map_err(|e| spec.error(format!("cannot set its MTU to {mtu}"), advice, e))?;
            interface
                .set_up()
                .map_err(|e| spec.error("cannot bring it up", advice, e))?;
            mtu
        } else {
            interface
                .mtu()
                .map_err(|e| spec.error("cannot read its MTU", advice, e))?
        };
        let peer_mac = interface
            .mac()
            .map_err(|e| spec.error("cannot read its address", advice, e))?;
        let info = DriverInfo {
            driver: "tap",
            interface: spec.interface.clone(),
            mode: match queues {
                true => "a queue for each worker, virtio-net header, no offloads".to_owned(),
                false => "virtio-net header, no offloads".to_owned(),
            },
            mac: station_mac(&spec.interface),
            peer_mac: Some(peer_mac),
            mtu,
        };
        let stats = DriverStats::default();
        // The interface's, so the first queue's.
        let drops = (spec.queue == 0)
            .then(|| TransmitDrops::of(interface.name()))
            .transpose()
            .map_err(|e| spec.error("what it drops cannot be read", "mount /proc", e))?;
        Ok(Self {
            device,
            interface,
            missed: drops.as_ref().map(TransmitDrops::count).unwrap_or_default(),
            drops,
            info,
            stats,
            complete_checksums: spec.complete_checksums,
            rest: 0,
        })
    }
}

/// TUNSETIFF. A persistent tap may have been made for several queues though one is wanted, never the other way.
fn attach(device: BorrowedFd<'_>, name: &str, queues: bool) -> std::io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let with = |flags| {
        let mut request = InterfaceRequest::with_int(name, flags)?;
        sys::interface_ioctl(device, Request::TunSetInterface, &mut request)
    };
    let several = flags | libc::IFF_MULTI_QUEUE;
    if queues {
        return with(several);
    }
    match with(flags) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => with(several),
        done => done,
    }
}

impl Driver for Tap {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        while !frames.is_full() {
            let Some(mut frame) = memory.alloc() else { break };
            let room = memory.max_packet();
            let mut header = [0; HEADER_LEN];
            let read = if memory.set_len(&mut frame, room) {
                let mut parts = [
                    IoSliceMut::new(&mut header),
                    IoSliceMut::new(memory.bytes_mut(&mut frame)),
                ];
                rustix::io::readv(&self.device, &mut parts)
            } else {
                Ok(0)
            };
            let len = match read {
                Ok(read) => read.saturating_sub(HEADER_LEN),
                Err(error) => {
                    memory.free(frame);
                    if error == Errno::INTR {
                        continue;
                    }
                    // EAGAIN: nothing waits. Others: the tap is down or gone, which `link` tells.
                    self.rest = REST;
                    break;
                }
            };
            // A packet that fills the frame to its last byte was longer: the kernel cuts to what we offer, and the
            // MTU keeps whole ones shorter.
            if len == 0 || len >= room || !memory.set_len(&mut frame, len) {
                self.stats.rx_errors += 1;
                memory.free(frame);
                continue;
            }
            if header[0] & NEEDS_CHECKSUM != 0 && self.complete_checksums {
                checksum_fix::complete(memory.bytes_mut(&mut frame), &mut self.stats);
            }
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += len as u64;
            frames.push(frame);
        }
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        let mut taken = 0;
        while let Some(frame) = frames.get(taken) {
            // All zero: complete checksum, no segmentation.
            let parts = [IoSlice::new(&[0; HEADER_LEN]), IoSlice::new(memory.bytes(frame))];
            match rustix::io::writev(&self.device, &parts) {
                Ok(_) => {
                    self.stats.tx_packets += 1;
                    self.stats.tx_bytes += frame.len() as u64;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => break,
                // Shorter than an Ethernet header, or the tap is down or gone.
                Err(_) => self.stats.tx_errors += 1,
            }
            taken += 1;
        }
        frames.drain(..taken).for_each(|frame| memory.free(frame));
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.device.as_fd())
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        DriverStats {
            rx_missed: self.missed.load(Ordering::Relaxed),
            ..self.stats
        }
    }

    fn transmit_drops(&mut self) -> Option<TransmitDrops> {
        self.drops.take()
    }

    fn link(&self) -> Link {
        self.interface.link()
    }
}

/// Our own station address where there is no hardware: locally administered, and the same for a name after every restart, so
/// that neighbours' entries stay right (FNV-1a of the name).
pub fn station_mac(name: &str) -> Mac {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

const _: () = assert!(
    FRAME_OVERHEAD > 14,
    "a packet of MTU size leaves room in the frame"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_station_address_is_stable_local_and_differs_by_name() {
        let mac = station_mac("sluice0");
        assert_eq!(mac, station_mac("sluice0"));
        assert_ne!(mac, station_mac("sluice1"));
        assert!(!mac.is_group() && mac.0[0] & 2 != 0);
    }
}
