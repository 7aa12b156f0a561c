//! What the kernel is told of neighbours on an interface that it shares with us: a packet socket (packet(7)) that receives a copy
//! of ARP and neighbour discovery. The kernel answers for the addresses, which are its own; both learn from the answers.
//!
//! Takes  frames that the XDP program passed to the kernel.
//! Gives  them whole, to the steward.
//! Never  takes anything away from the kernel, nor sees other traffic: the kernel filters.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::sock_filter;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::interface::Interface;
use super::sys;

/// Of a VLAN, 0 being frames without a tag, which the kernel has taken out: ARP (EtherType 0x0806), and of IPv6 without extension
/// headers (next header 58) solicitations and advertisements of neighbours (types 135, 136). RFC 4861 §6.1.1 has no extension
/// headers forbidden, but nobody sends any.
const fn neighbours(vlan: u16) -> [sock_filter; 13] {
    [
        // linux/filter.h: SKF_AD_OFF + SKF_AD_VLAN_TAG.
        step(0x20, 0, 0, 0xffff_f02c),
        step(0x54, 0, 0, 0x0fff),
        step(0x15, 0, 9, vlan as u32),
        step(0x28, 0, 0, 12),
        step(0x15, 6, 0, 0x0806),
        step(0x15, 0, 6, 0x86dd),
        step(0x30, 0, 0, 20),
        step(0x15, 0, 4, 58),
        step(0x30, 0, 0, 54),
        step(0x15, 1, 0, 135),
        step(0x15, 0, 1, 136),
        step(0x06, 0, 0, 0x4_0000),
        step(0x06, 0, 0, 0),
    ]
}

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Longest frame that is read: neighbour discovery has options, of which ours are first.
const LONGEST: usize = 1_514;

/// See the module.
#[derive(Debug)]
pub struct Overhear {
    socket: OwnedFd,
    name: String,
    /// Number of the interface of that name that it listens on.
    index: u32,
}

impl Overhear {
    /// On an interface by its name, of one of its VLANs. Errors: EPERM without CAP_NET_RAW; NotFound.
    pub fn new(interface: &str, vlan: u16) -> io::Result<Self> {
        let (name, interface) = (interface.to_owned(), Interface::find(interface)?);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0: nothing comes before the filter is there.
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        sys::attach_filter(socket.as_fd(), &neighbours(vlan))?;
        sys::set_option(socket.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32)?;
        sys::bind_packet(socket.as_fd(), interface.index(), libc::ETH_P_ALL as u16)?;
        Ok(Self {
            socket,
            name,
            index: interface.index(),
        })
    }

    /// Listens on the interface that has the name now, if it was made anew.
    pub fn follow(&mut self) {
        if let Ok(interface) = Interface::find(&self.name)
            && interface.index() != self.index
            && sys::bind_packet(self.socket.as_fd(), interface.index(), libc::ETH_P_ALL as u16).is_ok()
        {
            self.index = interface.index();
        }
    }

    /// The next frame, if there is one.
    pub fn read(&self, use_it: impl FnOnce(&[u8])) -> bool {
        let mut frame = [0; LONGEST];
        match rustix::net::recv(&self.socket, &mut frame, RecvFlags::empty()) {
            Ok((length, _)) => {
                use_it(&frame[..length]);
                true
            }
            // The interface may be down or gone.
            Err(_) => false,
        }
    }
}

impl AsFd for Overhear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// linux/if_packet.h.
const PACKET_IGNORE_OUTGOING: i32 = 23;
