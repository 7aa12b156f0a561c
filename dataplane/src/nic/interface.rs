//! A network interface by its index: what a driver asks the kernel about it, before and while its port is open.
//! Never changes anything but what its name says.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::Link;
use super::sys::{self, ETHTOOL_WORDS, Ethtool, InterfaceRequest, Request};
use crate::addr::Mac;

/// Ethernet header and one VLAN tag: what a frame has beyond the interface's MTU (IEEE 802.3, 802.1Q).
pub(crate) const FRAME_OVERHEAD: usize = 14 + 4;

/// Network namespace, 0 on kernels that cannot tell (before 5.14), and index.
pub(crate) type InterfaceId = (u64, u32);

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

    /// Gives it another hardware address. Errors: EBUSY if it must be down for that, EOPNOTSUPP, EPERM.
    pub(crate) fn set_mac(&self, mac: Mac) -> io::Result<()> {
        // Its answer has the kind of hardware that is wanted back.
        let mut request = self.ask(Request::HardwareAddress)?;
        request.data[2..8].copy_from_slice(&mac.0);
        sys::interface_ioctl(self.control.as_fd(), Request::SetHardwareAddress, &mut request)
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

    /// An ethtool request (`sys::ethtool`) about it, by the name it has now.
    pub(crate) fn ethtool(&self, what: Ethtool, words: &mut [u32; ETHTOOL_WORDS]) -> io::Result<()> {
        sys::ethtool(self.control.as_fd(), &self.name_now()?, what, words)
    }

    /// Its name now. Errors: ENODEV once it is gone.
    pub(crate) fn name_now(&self) -> io::Result<String> {
        self.renamed()?.name()
    }

    /// A request that bears the name it has now: it may have another than when it was found. Errors: ENODEV once it is gone.
    fn renamed(&self) -> io::Result<InterfaceRequest> {
        let mut request = InterfaceRequest::with_int(&self.name, self.index as i32)?;
        sys::interface_ioctl(self.control.as_fd(), Request::Name, &mut request)?;
        Ok(request)
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

    /// Which it is, of all that this machine has had since it was booted.
    pub(crate) fn id(&self) -> InterfaceId {
        let namespace = sys::get_option(self.control.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE);
        (namespace.unwrap_or(0), self.index)
    }

    /// Whether it is still there and has a carrier.
    pub(crate) fn link(&self) -> Link {
        const RUNNING: i16 = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        let Ok(mut request) = self.renamed() else {
            return Link::Gone;
        };
        let fd = self.control.as_fd();
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
