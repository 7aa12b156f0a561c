//! A network interface by its index: what a driver asks the kernel about it, before and while its port is open.
//! Never changes anything but what its name says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::Link;
use super::sys::{self, InterfaceRequest, Request};
use crate::addr::Mac;

/// Ethernet header and one VLAN tag: what a frame has beyond the interface's MTU (IEEE 802.3, 802.1Q).
pub(crate) const FRAME_OVERHEAD: usize = 14 + 4;

/// linux/ethtool.h.
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// One interface of the network namespace this was made in.
#[derive(Debug)]
pub(crate) struct Interface {
    /// Any socket carries interface requests; one of our own stays in the namespace it was made in, wherever the
    /// thread goes.
    control: OwnedFd,
    index: u32,
    name: String,
}

impl Interface {
    /// The interface called `name`. Errors: NotFound, InvalidInput for what cannot be a name.
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        InterfaceRequest::new(name)?;
        let control =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let index = rustix::net::netdevice::name_to_index(&control, name).map_err(|error| match error {
            rustix::io::Errno::NODEV => io::Error::new(io::ErrorKind::NotFound, "no such interface"),
            error => error.into(),
        })?;
        Ok(Self {
            control,
            index,
            name: name.to_owned(),
        })
    }

    /// Its number, which it keeps when renamed.
    pub(crate) const fn index(&self) -> u32 {
        self.index
    }

    /// Its hardware address.
    pub(crate) fn mac(&self) -> io::Result<Mac> {
        let answer = self.ask(Request::HardwareAddress)?;
        // struct sockaddr: two bytes of family, then the address.
        let mut mac = [0; 6];
        mac.copy_from_slice(&answer.data[2..8]);
        Ok(Mac(mac))
    }

    /// Largest IP packet it sends, in bytes.
    pub(crate) fn mtu(&self) -> io::Result<usize> {
        Ok(usize::try_from(self.ask(Request::Mtu)?.int()).unwrap_or(0))
    }

    /// Sets the MTU. Errors: EINVAL outside what the driver can do, EPERM.
    pub(crate) fn set_mtu(&self, mtu: usize) -> io::Result<()> {
        let mtu = i32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut request = InterfaceRequest::with_int(&self.name, mtu)?;
        sys::interface_ioctl(self.control.as_fd(), Request::SetMtu, &mut request)
    }

    /// Brings it up, leaving its other flags.
    pub(crate) fn set_up(&self) -> io::Result<()> {
        let mut request = self.ask(Request::Flags)?;
        let flags = request.short() | libc::IFF_UP as i16;
        request.data[..2].copy_from_slice(&flags.to_ne_bytes());
        sys::interface_ioctl(self.control.as_fd(), Request::SetFlags, &mut request)
    }

    /// Its name when it was found.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Stops the kernel and the NIC from merging received packets into ones longer than the MTU. It stays so after close.
    pub(crate) fn disable_merging(&self) -> io::Result<()> {
        let fd = self.control.as_fd();
        let flags = sys::ethtool(fd, &self.name, ETHTOOL_GFLAGS, 0)?;
        if flags & ETH_FLAG_LRO != 0 {
            sys::ethtool(fd, &self.name, ETHTOOL_SFLAGS, flags & !ETH_FLAG_LRO)?;
        }
        sys::ethtool(fd, &self.name, ETHTOOL_SGRO, 0).map(drop)
    }

    /// Has the kernel segment and checksum what it sends before the interface gets it. It stays so after close.
    pub(crate) fn finish_packets(&self) -> io::Result<()> {
        let commands = [ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_STXCSUM];
        let set = |command| sys::ethtool(self.control.as_fd(), &self.name, command, 0).map(drop);
        commands.into_iter().try_for_each(set)
    }

    /// Whether they are merged; `false` where the kernel does not tell.
    pub(crate) fn merges(&self) -> bool {
        let ask = |command| sys::ethtool(self.control.as_fd(), &self.name, command, 0).unwrap_or(0);
        ask(ETHTOOL_GGRO) != 0 || ask(ETHTOOL_GFLAGS) & ETH_FLAG_LRO != 0
    }

    /// Has VLAN tags stay in received frames, where the NIC would take them out: a frame without its tag would seem to
    /// be of another network. It stays so after close.
    pub(crate) fn keep_tags(&self) -> io::Result<()> {
        let fd = self.control.as_fd();
        let flags = sys::ethtool(fd, &self.name, ETHTOOL_GFLAGS, 0)?;
        if flags & ETH_FLAG_RXVLAN == 0 {
            return Ok(());
        }
        sys::ethtool(fd, &self.name, ETHTOOL_SFLAGS, flags & !ETH_FLAG_RXVLAN).map(drop)
    }

    /// Has the NIC pass on frames to all groups while `socket`, an AF_PACKET one, is open: neighbour solicitations come
    /// to groups that the kernel, having none of our addresses, never joins.
    pub(crate) fn receive_groups(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        // struct packet_mreq: index, type, and no address.
        let mut request = [0u8; 16];
        request[..4].copy_from_slice(&self.index.to_ne_bytes());
        request[4..6].copy_from_slice(&(libc::PACKET_MR_ALLMULTI as u16).to_ne_bytes());
        sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    /// A socket that does nothing but `receive_groups`.
    pub(crate) fn group_receiver(&self) -> io::Result<OwnedFd> {
        // Protocol 0: it receives nothing itself.
        let socket =
            rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        self.receive_groups(socket.as_fd())?;
        Ok(socket)
    }

    /// Names the network namespace among all of this boot; 0 on kernels that cannot tell (before 5.14).
    pub(crate) fn namespace(&self) -> u64 {
        sys::get_option(self.control.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE).unwrap_or(0)
    }

    /// Whether it is still there and has a carrier.
    pub(crate) fn link(&self) -> Link {
        const RUNNING: i16 = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        // By index, since it may have been renamed.
        let Ok(mut request) = InterfaceRequest::with_int(&self.name, self.index as i32) else {
            return Link::Gone;
        };
        let fd = self.control.as_fd();
        if sys::interface_ioctl(fd, Request::Name, &mut request).is_err() {
            return Link::Gone;
        }
        match sys::interface_ioctl(fd, Request::Flags, &mut request) {
            Ok(()) if request.short() & RUNNING == RUNNING => Link::Up,
            Ok(()) => Link::Down,
            Err(_) => Link::Gone,
        }
    }

    fn ask(&self, what: Request) -> io::Result<InterfaceRequest> {
        let mut request = InterfaceRequest::new(&self.name)?;
        sys::interface_ioctl(self.control.as_fd(), what, &mut request)?;
        Ok(request)
    }
}

/// asm-generic/socket.h, the same on every architecture this builds for.
const SO_NETNS_COOKIE: i32 = 71;

/// How many packets the kernel wanted to send by an interface and dropped: for a tap, those not read in time.
#[derive(Debug)]
pub(crate) struct TransmitDrops {
    route: OwnedFd,
    index: u32,
}

impl TransmitDrops {
    /// For one interface of this thread's network namespace.
    pub(crate) fn of(interface: &Interface) -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let route = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            route,
            index: interface.index,
        })
    }

    /// The count since the interface exists; `None` once it does not.
    pub(crate) fn read(&self) -> Option<u64> {
        // linux/rtnetlink.h RTM_GETSTATS, linux/if_link.h IFLA_STATS_LINK_64 as attribute and as bit of the mask.
        const GET_STATS: u32 = 94;
        const LINK_64: u16 = 1;
        const REQUEST: u32 = 1;
        // struct nlmsghdr (length, type | flags << 16, sequence, port), then struct if_stats_msg.
        let type_and_flags = if cfg!(target_endian = "little") {
            GET_STATS | REQUEST << 16
        } else {
            GET_STATS << 16 | REQUEST
        };
        let request: [u32; 7] = [28, type_and_flags, 0, 0, 0, self.index, 1 << (LINK_64 - 1)];
        let mut answer = [0; 1024];
        rustix::net::send(&self.route, bytemuck::bytes_of(&request), SendFlags::empty()).ok()?;
        // The kernel answers before `send` returns.
        let (read, _) = rustix::net::recv(&self.route, &mut answer, RecvFlags::DONTWAIT).ok()?;
        // Behind both headers comes one attribute: length, type, and struct rtnl_link_stats64.
        let attribute = answer.get(28..read)?;
        let kind = u16::from_ne_bytes([*attribute.get(2)?, *attribute.get(3)?]);
        let dropped = attribute.get(4 + 7 * 8..4 + 8 * 8)?;
        (kind == LINK_64).then(|| u64::from_ne_bytes(dropped.try_into().unwrap_or_default()))
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_and_a_missing_one_is_not() {
        let lo = Interface::find("lo").unwrap();
        assert!(lo.index() > 0 && lo.mtu().unwrap() >= 1500);
        assert_eq!(lo.mac().unwrap(), Mac::default());
        assert_ne!(lo.link(), Link::Gone);
        assert_eq!(
            Interface::find("no-such-if0").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
