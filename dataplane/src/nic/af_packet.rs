//! The fallback driver: an AF_PACKET socket (packet(7)) with a mapped receive ring. Needs CAP_NET_RAW only, so it
//! works in an unprivileged user namespace, and on every interface. One copy each way.
//!
//! The kernel's own stack also sees every frame. An interface given to this driver must therefore have no addresses
//! and not answer for itself (no IPv4 or IPv6 address, `net.ipv6.conf.IF.disable_ipv6=1`, not enslaved to a bridge):
//! else the kernel answers the same ARP requests, and resets the connections that the dataplane carries.
//!
//! Packets longer than a frame are counted in `rx_errors`. The kernel's merging of received packets (GRO) is switched
//! off while the port is open. A veth peer's unsegmented TCP (GSO) must be stopped at the peer, before its sockets are opened:
//! `ip link set PEER gso_max_segs 1` (IFLA_GSO_MAX_SEGS), which needs no ethtool.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::fanout::Fanout;
use super::interface::{FRAME_OVERHEAD, Interface, InterfaceId};
use super::offloads::{self, Need, Prepared};
use super::open::PortSpec;
use super::packet_ring::{PacketRing, Received};
use super::registry::Share;
use super::seats::Seat;
use super::{
    BURST, Burst, Driver, DriverInfo, DriverStats, Frame, FrameMemory, Link, OpenError, checksum_fix, sys,
};

/// linux/if_ether.h: every protocol.
const ETH_P_ALL: u16 = 3;
/// Bytes of a VLAN tag, and where it stands: behind the two addresses.
const VLAN_LEN: usize = 4;
const VLAN_AT: usize = 12;

/// One AF_PACKET socket on one interface.
#[derive(Debug)]
pub struct AfPacket {
    ring: PacketRing,
    socket: OwnedFd,
    interface: Interface,
    info: DriverInfo,
    stats: DriverStats,
    /// Losses reported so far: the kernel forgets its count when asked.
    missed: Cell<u64>,
    complete_checksums: bool,
    /// Switched on again when the last port of the interface is closed.
    _offloads: Share<InterfaceId, Prepared>,
    /// Its place in the fanout group, if it has one.
    _seat: Option<Seat>,
}

impl AfPacket {
    /// Opens the interface. With `fanout`, sockets of the same group share its frames, those of a flow to one of them.
    pub(crate) fn open(
        spec: &PortSpec,
        fanout: Option<&Fanout>,
        memory: &FrameMemory,
    ) -> Result<Self, OpenError> {
        let interface = spec.find_interface()?;
        let mtu = interface
            .mtu()
            .map_err(|e| spec.error("cannot read its MTU", "check the interface", e))?;
        spec.check_mtu(mtu, memory)?;
        let mac = interface
            .mac()
            .map_err(|e| spec.error("cannot read its address", "check the interface", e))?;
        let is_early = |fanout: &Fanout| !Seat::is_next(&interface, fanout.group, spec.queue);
        if fanout.is_some_and(is_early) {
            let what = "the sockets of the workers before this one are not open yet";
            return Err(spec.refusal(what, "wait for them"));
        }
        // Protocol 0: nothing is received before the ring is there and the socket bound.
        let socket =
            rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)
                .map_err(|e| {
                    spec.error(
                        "cannot open a packet socket",
                        "run with CAP_NET_RAW, as root or in a user namespace",
                        e,
                    )
                })?;
        let ring = PacketRing::new(socket.as_fd(), spec.ring_size as usize, memory.max_packet())
            .map_err(|e| spec.error("cannot make the receive ring", "lower ringSize or free memory", e))?;
        let ignored = sys::set_option(
            socket.as_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            &1i32,
        );
        ignored.map_err(|e| spec.error("cannot ignore outgoing frames", "use Linux 4.20 or newer", e))?;
        let offloads = offloads::prepare(spec, &interface, &[Need::Unmerged])?;
        sys::bind_packet(socket.as_fd(), interface.index(), ETH_P_ALL).map_err(|e| {
            spec.error(
                "cannot bind the socket",
                "check that the interface still exists",
                e,
            )
        })?;
        interface.receive_groups(socket.as_fd()).map_err(|e| {
            let advice = "check that the interface still exists";
            spec.error("cannot receive group frames (neighbour solicitations)", advice, e)
        })?;
        let mut mode = format!(
            "tpacket v2, ring {} in {:.1} MiB, {offloads}",
            ring.capacity(),
            ring.bytes() as f64 / 1_048_576.0
        );
        let mut seat = None;
        if let Some(fanout) = fanout {
            mode += &join(spec, socket.as_fd(), fanout)?;
            seat = Some(Seat::take(&interface, fanout.group, spec.queue));
        }
        let info = DriverInfo {
            driver: "af_packet",
            interface: spec.interface.clone(),
            mode,
            mac,
            peer_mac: None,
            mtu,
        };
        let stats = DriverStats::default();
        let complete_checksums = spec.complete_checksums;
        Ok(Self {
            ring,
            socket,
            interface,
            info,
            stats,
            missed: Cell::new(0),
            complete_checksums,
            _offloads: offloads,
            _seat: seat,
        })
    }

    /// Asks the kernel for losses since the last time.
    fn count_missed(&self) {
        // struct tpacket_stats: packets, drops.
        let read =
            sys::get_option::<[u32; 2]>(self.socket.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS);
        if let Ok([_, drops]) = read {
            self.missed.set(self.missed.get() + u64::from(drops));
        }
    }
}

/// Joins the group; says how packets are shared out.
fn join(spec: &PortSpec, socket: BorrowedFd<'_>, fanout: &Fanout) -> Result<String, OpenError> {
    let (group, program) = (fanout.group, fanout.program());
    let (kind, by) = match program {
        Some(_) => (libc::PACKET_FANOUT_CBPF, "owner"),
        None => (libc::PACKET_FANOUT_HASH, "hash"),
    };
    let value = u32::from(group) | kind << 16;
    sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &value)
        .and_then(|()| program.map_or(Ok(()), |program| sys::set_fanout_program(socket, &program)))
        .map_err(|e| {
            spec.error(
                format!("cannot join fanout group {group}"),
                "choose a group number that no other program on this interface uses",
                e,
            )
        })?;
    Ok(format!(", fanout group {group} by {by}"))
}

impl Driver for AfPacket {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        while !frames.is_full() && memory.available() > 0 {
            let Some(received) = self.ring.peek() else { break };
            let frame = received.ok().and_then(|received| {
                if received.checksum_partial && self.complete_checksums {
                    checksum_fix::complete(received.packet, &mut self.stats);
                }
                copy_in(memory, &received)
            });
            self.ring.release();
            match frame {
                Some(frame) => {
                    self.stats.rx_packets += 1;
                    self.stats.rx_bytes += frame.len() as u64;
                    frames.push(frame);
                }
                None => self.stats.rx_errors += 1,
            }
        }
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        while !frames.is_empty() {
            let packets: ArrayVec<&[u8], BURST> = frames.iter().map(|frame| memory.bytes(frame)).collect();
            let sent = sys::send_batch(self.socket.as_fd(), &packets);
            let count = *sent.as_ref().unwrap_or(&0);
            let bytes: u64 = packets.iter().take(count).map(|p| p.len() as u64).sum();
            drop(packets);
            let taken = match sent {
                Ok(sent) => {
                    self.stats.tx_packets += sent as u64;
                    self.stats.tx_bytes += bytes;
                    sent
                }
                // The socket's buffer or the interface's queue is full: the frames stay with the caller.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => 0,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                // Too long for the interface, or it is down or gone: this frame cannot be sent, the next may.
                Err(_) => {
                    self.stats.tx_errors += 1;
                    1
                }
            };
            if taken == 0 {
                break;
            }
            frames.drain(..taken).for_each(|frame| memory.free(frame));
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        self.count_missed();
        DriverStats {
            rx_missed: self.missed.get(),
            ..self.stats
        }
    }

    fn link(&self) -> Link {
        let link = self.interface.link();
        if link != Link::Up {
            // The kernel leaves ENETDOWN in the socket, and a poll would return at once until it is read.
            sys::clear_error(&self.socket);
        }
        link
    }
}

/// The frame in frame memory, with the VLAN tag back where it was on the wire.
fn copy_in(memory: &mut FrameMemory, received: &Received<'_>) -> Option<Frame> {
    let mut frame = memory.copy_in(received.packet)?;
    let Some((tpid, tci)) = received.vlan else {
        return Some(frame);
    };
    if frame.len() < VLAN_AT || !memory.move_start(&mut frame, -(VLAN_LEN as isize)) {
        memory.free(frame);
        return None;
    }
    let bytes = memory.bytes_mut(&mut frame);
    bytes.copy_within(VLAN_LEN..VLAN_LEN + VLAN_AT, 0);
    bytes[VLAN_AT..VLAN_AT + 2].copy_from_slice(&tpid.to_be_bytes());
    bytes[VLAN_AT + 2..VLAN_AT + VLAN_LEN].copy_from_slice(&tci.to_be_bytes());
    Some(frame)
}

const _: () = assert!(FRAME_OVERHEAD == 14 + VLAN_LEN);

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_stripped_vlan_tag_is_put_back() {
        let mut memory = FrameMemory::new(1, 2048).unwrap();
        let mut packet = *b"dstmacsrcmac\x08\x00payload";
        let received = Received {
            packet: &mut packet,
            vlan: Some((0x8100, 7)),
            checksum_partial: false,
        };
        let frame = copy_in(&mut memory, &received).unwrap();
        assert_eq!(
            memory.bytes(&frame),
            b"dstmacsrcmac\x81\x00\x00\x07\x08\x00payload"
        );
    }

    #[test]
    fn a_frame_too_short_for_its_tag_is_refused_without_losing_the_frame() {
        let mut memory = FrameMemory::new(1, 2048).unwrap();
        let mut packet = *b"short";
        let received = Received {
            packet: &mut packet,
            vlan: Some((0x8100, 7)),
            checksum_partial: false,
        };
        assert!(copy_in(&mut memory, &received).is_none());
        assert_eq!(memory.available(), 1);
    }
}
