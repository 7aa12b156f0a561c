#![allow(unsafe_code)]
//! The drivers' system calls that no safe crate offers, each in a typed coat: socket options, interface requests,
//! bpf(2), mapped rings, one batched send. Nothing here keeps state or knows a driver.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use arrayvec::ArrayVec;
use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};
use rustix::mm::{MapFlags, ProtFlags};

use super::BURST;
use super::netmap::abi::{Header, NIOCCTRL, Register};

/// A ring that the kernel shares with us, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a Mapping owns its pages and has no thread affinity; it gives out only its base pointer and length.
unsafe impl Send for Mapping {}
// SAFETY: as above, and what is done with the pointer is governed by whoever does it.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of `fd` from `offset`, read and written, present from the start (the packet path never faults).
    pub(crate) fn of(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Self::map(fd, offset, len, MapFlags::SHARED | MapFlags::POPULATE)
    }

    /// `len` bytes of `fd` from its first, of which only a part will be touched: brought in as it is.
    pub(crate) fn sparse(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::map(fd, 0, len, MapFlags::SHARED)
    }

    fn map(fd: BorrowedFd<'_>, offset: u64, len: usize, flags: MapFlags) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses overlaps nothing of ours.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset)? };
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned the null page"))?;
        Ok(Self { base, len })
    }

    /// First byte; page-aligned and fixed for the Mapping's life.
    pub(crate) const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are what mmap gave, and nobody can reach the pages after the drop.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// setsockopt(2) with a plain value.
pub(crate) fn set_option<T: NoUninit>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let bytes = bytemuck::bytes_of(value);
    // SAFETY: the pointer and the length describe `bytes`, alive during the call; the kernel only reads them.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            bytes.as_ptr().cast(),
            bytes.len() as libc::socklen_t,
        )
    };
    checked(done).map(drop)
}

/// PACKET_FANOUT_DATA: the program that shares out the packets of a socket's group. Errors: EINVAL for what the kernel's
/// checker refuses.
pub(crate) fn set_fanout_program(fd: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    set_program(fd, (libc::SOL_PACKET, PACKET_FANOUT_DATA), program)
}

/// SO_ATTACH_FILTER: the socket receives what `program` lets through. Errors: EINVAL if it is not sound.
pub(crate) fn attach_filter(fd: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    set_program(fd, (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), program)
}

fn set_program(
    fd: BorrowedFd<'_>,
    (level, name): (i32, i32),
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    let size = size_of_val(&filter) as libc::socklen_t;
    // SAFETY: the pointer and the size describe `filter`, which points at `len` instructions; the kernel copies both during
    // the call and writes neither.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const filter).cast(), size) };
    checked(done).map(drop)
}

/// linux/if_packet.h.
const PACKET_FANOUT_DATA: libc::c_int = 22;

/// getsockopt(2) of a plain value. A kernel that answers with fewer bytes is too old to have it: Unsupported.
pub(crate) fn get_option<T: AnyBitPattern + NoUninit>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
) -> io::Result<T> {
    let mut value = T::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut value);
    let mut len = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into `bytes`, and any bit pattern is a T.
    checked(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, bytes.as_mut_ptr().cast(), &mut len) })?;
    if len as usize == size_of::<T>() {
        Ok(value)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Binds an AF_PACKET socket to one interface and EtherType (ETH_P_ALL for every frame).
pub(crate) fn bind_packet(fd: BorrowedFd<'_>, ifindex: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length describe `address`, which the kernel only reads.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
}

/// Sends packets in order with one system call, without blocking. Gives how many went; an error only if none did.
pub(crate) fn send_batch(fd: BorrowedFd<'_>, packets: &ArrayVec<&[u8], BURST>) -> io::Result<usize> {
    let mut parts: ArrayVec<libc::iovec, BURST> = packets
        .iter()
        .map(|p| libc::iovec {
            iov_base: p.as_ptr().cast_mut().cast(),
            iov_len: p.len(),
        })
        .collect();
    let mut messages: ArrayVec<libc::mmsghdr, BURST> = ArrayVec::new();
    for part in &mut parts {
        // SAFETY: mmsghdr is integers and pointers, for which zero and null are values.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        messages.push(message);
    }
    // SAFETY: every message points at one iovec of `parts`, which points at one packet; all outlive the call, none
    // moves after its address was taken, and sending only reads the packets.
    let sent = unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as u32,
            libc::MSG_DONTWAIT,
        )
    };
    checked(sent).map(|n| n as usize)
}

/// `struct ifreq` of netdevice(7): a name and 24 bytes whose meaning the request tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    /// The union.
    pub(crate) data: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl InterfaceRequest {
    /// For the interface called `name`; InvalidInput if that cannot be a name (1 to 15 bytes, no NUL, no slash).
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let sound = !name.is_empty() && name.len() < libc::IFNAMSIZ && !name.contains(['\0', '/']);
        if !sound {
            let what = "an interface name has 1 to 15 bytes and no slash";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut request = Self::zeroed();
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    /// With an int in the union.
    pub(crate) fn with_int(name: &str, value: i32) -> io::Result<Self> {
        let mut request = Self::new(name)?;
        request.data[..4].copy_from_slice(&value.to_ne_bytes());
        Ok(request)
    }

    /// The interface's name. Errors: InvalidData if it is no UTF-8, as the kernel allows.
    pub(crate) fn name(&self) -> io::Result<String> {
        let name = self.name.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(name.to_owned())
    }

    /// The union's int.
    pub(crate) const fn int(&self) -> i32 {
        let [a, b, c, d, ..] = self.data;
        i32::from_ne_bytes([a, b, c, d])
    }

    /// The union's short: the interface flags.
    pub(crate) const fn short(&self) -> i16 {
        i16::from_ne_bytes([self.data[0], self.data[1]])
    }
}

/// The requests used here: all take a `struct ifreq` whose union holds no pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    /// SIOCGIFNAME: by index.
    Name,
    /// SIOCGIFFLAGS.
    Flags,
    /// SIOCSIFFLAGS.
    SetFlags,
    /// SIOCGIFMTU.
    Mtu,
    /// SIOCSIFMTU.
    SetMtu,
    /// SIOCGIFHWADDR.
    HardwareAddress,
    /// SIOCSIFHWADDR.
    SetHardwareAddress,
    /// TUNSETIFF: on /dev/net/tun.
    TunSetInterface,
}

/// ioctl(2) with a `struct ifreq`.
pub(crate) fn interface_ioctl(
    fd: BorrowedFd<'_>,
    what: Request,
    request: &mut InterfaceRequest,
) -> io::Result<()> {
    let number = match what {
        Request::Name => libc::SIOCGIFNAME,
        Request::Flags => libc::SIOCGIFFLAGS,
        Request::SetFlags => libc::SIOCSIFFLAGS,
        Request::Mtu => libc::SIOCGIFMTU,
        Request::SetMtu => libc::SIOCSIFMTU,
        Request::HardwareAddress => libc::SIOCGIFHWADDR,
        Request::SetHardwareAddress => libc::SIOCSIFHWADDR,
        Request::TunSetInterface => libc::TUNSETIFF,
    };
    // SAFETY: each of these requests reads and writes one `struct ifreq`, which `request` is in size and layout, and
    // follows no pointer in it.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), number as _, std::ptr::from_mut(request)) }).map(drop)
}

/// TUNSETOFFLOAD: which unfinished work (checksums, segmentation) the tap's reader accepts.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: the argument of TUNSETOFFLOAD is the flags themselves, no pointer.
    let done = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD as _,
            libc::c_ulong::from(flags),
        )
    };
    checked(done).map(drop)
}

/// TUNSETVNETHDRSZ: bytes of the header in front of every packet of a tap.
pub(crate) fn tun_set_header(fd: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const bytes) }).map(drop)
}

/// Words of an ethtool answer, at most: 16 KiB hold every name of a feature (of which there are some 64, 32 bytes each) and
/// an indirection table of 4,000 queues.
pub(crate) const ETHTOOL_WORDS: usize = 4096;
/// Of those, for a header.
const HEADER_WORDS: usize = 64;

/// The requests of SIOCETHTOOL used here (linux/ethtool.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ethtool {
    /// ETHTOOL_GDRVINFO.
    Driver,
    /// ETHTOOL_GSTRINGS of ETH_SS_FEATURES.
    FeatureNames,
    /// ETHTOOL_GRXFH.
    HashFields,
    /// ETHTOOL_GFEATURES.
    Features,
    /// ETHTOOL_SFEATURES.
    SetFeatures,
    /// ETHTOOL_GCHANNELS.
    Channels,
    /// ETHTOOL_GRSSH.
    Rss,
    /// ETHTOOL_SRSSH.
    SetRss,
    /// ETHTOOL_SRXFH.
    SetHashFields,
}

/// SIOCETHTOOL: `words` are the request without its command, which is put first, and the answer.
pub(crate) fn ethtool(
    fd: BorrowedFd<'_>,
    interface: &str,
    what: Ethtool,
    words: &mut [u32; ETHTOOL_WORDS],
) -> io::Result<()> {
    // The sizes that the caller states bound what the kernel writes; those of other requests are its own.
    let (command, stated) = match what {
        Ethtool::Driver => (0x03, 0),
        Ethtool::FeatureNames => {
            const ETH_SS_FEATURES: u32 = 4;
            words[1] = ETH_SS_FEATURES;
            (0x1b, 0)
        }
        Ethtool::HashFields => (0x29, 0),
        Ethtool::Features => (0x3a, words[1].saturating_mul(4)),
        Ethtool::SetFeatures => (0x3b, words[1].saturating_mul(2)),
        Ethtool::Channels => (0x3c, 0),
        // Entries of the table, a word each, and bytes of the key.
        Ethtool::Rss => (0x46, words[2].saturating_add(words[3].div_ceil(4))),
        Ethtool::SetRss => (0x47, words[2].saturating_add(words[3].div_ceil(4))),
        Ethtool::SetHashFields => (0x2a, 0),
    };
    words[0] = command;
    if stated as usize > ETHTOOL_WORDS - HEADER_WORDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = InterfaceRequest::new(interface)?;
    let pointer = words.as_mut_ptr().expose_provenance();
    request.data[..size_of::<usize>()].copy_from_slice(&pointer.to_ne_bytes());
    // SAFETY: the union holds a pointer to `words`, which outlive the call, as SIOCETHTOOL wants; each of these requests reads
    // and writes a header of at most 200 bytes and what belongs to it: names of features (the string set is fixed above;
    // the kernel has NETDEV_FEATURE_COUNT of them, and 16 KiB hold 500), or as many words as `stated`, which fit.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) }).map(drop)
}

/// NIOCCTRL of netmap (sys/net/netmap.h): `header`, whose body is `request`.
pub(crate) fn netmap_control(
    fd: BorrowedFd<'_>,
    header: &mut Header,
    request: &mut Register,
) -> io::Result<()> {
    header.body = std::ptr::from_mut(request).expose_provenance() as u64;
    // SAFETY: NETMAP_REQ_REGISTER, the only request a `Header` can be made for, reads and writes one nmreq_header and the
    // nmreq_register that its body points at, which both outlive the call; there are no options.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), NIOCCTRL as _, std::ptr::from_mut(header)) }).map(drop)
}

/// NIOCTXSYNC or NIOCRXSYNC of netmap.
pub(crate) fn netmap_sync(fd: BorrowedFd<'_>, direction: libc::c_ulong) -> io::Result<()> {
    // SAFETY: neither request has an argument.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), direction as _) }).map(drop)
}

/// bpf(2): `attributes` is the command's part of `union bpf_attr`, zeros after it understood. Gives what the kernel
/// returned: a new descriptor for the commands that make one.
///
/// # Safety
/// Addresses inside `attributes` must point at memory of the size the command says, alive during the call.
pub(crate) unsafe fn bpf<T: NoUninit>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: pointer and size describe `attributes`; what it points at is the caller's promise.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>() as libc::c_uint,
        )
    };
    checked(done as libc::c_int)
}

/// bpf(2) for the commands that make a descriptor.
///
/// # Safety
/// As `bpf`, and `command` must be one that returns a new descriptor.
pub(crate) unsafe fn bpf_new<T: NoUninit>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: promised by the caller.
    let fd = unsafe { bpf(command, attributes)? };
    // SAFETY: the command returned a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forgets a socket's pending error, so that polling it waits again instead of reporting the error for ever.
pub(crate) fn clear_error(fd: impl AsFd) {
    let _ = rustix::net::sockopt::socket_error(fd);
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a\0b"] {
            assert_eq!(
                InterfaceRequest::new(name).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{name:?}"
            );
        }
        assert_eq!(
            InterfaceRequest::new("fifteen-bytes-x").unwrap().name,
            *b"fifteen-bytes-x\0"
        );
    }

    #[test]
    fn an_option_the_kernel_answers_shorter_than_asked_is_unsupported() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(get_option::<u32>(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap() > 0);
        let wide = get_option::<[u32; 2]>(socket.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF);
        assert_eq!(wide.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
