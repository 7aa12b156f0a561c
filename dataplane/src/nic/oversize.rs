//! Whether packets longer than the MTU may come in by an interface: merged ones by the interface itself, unsegmented ones
//! by the veth end on the other side, wherever it is. Such packets fit no frame and are lost, each counted in `rx_errors`;
//! so it is said at start what to do about them.
//!
//! Takes  an interface's name.   Gives  a line for the operator, or nothing.
//! Never  changes anything.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::interface::Interface;

/// linux/rtnetlink.h, linux/netlink.h.
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const REQUEST: u16 = 1;
/// `struct nlmsghdr` and `struct ifinfomsg`.
const HEADERS: usize = 16 + 16;
/// linux/if_link.h: IFLA_…
const NAME: u16 = 3;
const LINK: u16 = 5;
const LINK_INFO: u16 = 18;
const LINK_NAMESPACE: u16 = 37;
const GSO_MAX_SEGMENTS: u16 = 40;
const TARGET_NAMESPACE: u16 = 46;
/// IFLA_INFO_KIND.
const INFO_KIND: u16 = 1;

/// Why packets longer than the MTU may come in by `interface`, and what to do about it; `None` where nothing is known that
/// would send them.
pub fn doubt(interface: &str) -> Option<String> {
    let interface = Interface::find(interface).ok()?;
    if interface.merges() {
        return Some(format!(
            "{0} merges received packets, and longer ones than its MTU are lost: ethtool -K {0} gro off lro off",
            interface.name()
        ));
    }
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )
    .ok()?;
    let own = Link::ask(&socket, interface.index(), None)?;
    let kind = own.attribute(LINK_INFO).and_then(|info| find(info, INFO_KIND))?;
    if !kind.starts_with(b"veth") {
        return None;
    }
    // Its other end; in this namespace if no other is named. One that cannot be looked into is not guessed about.
    let peer = Link::ask(&socket, own.number(LINK)?, own.number(LINK_NAMESPACE))?;
    let name = peer.attribute(NAME)?;
    let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
    (peer.number(GSO_MAX_SEGMENTS)? > 1).then(|| {
        format!(
            "its veth peer {name} may hand over unsegmented packets, and longer ones than the MTU are lost: before sockets \
             are opened there, ip link set {name} gso_max_segs 1"
        )
    })
}

/// What the kernel says about an interface (RTM_NEWLINK).
struct Link(Vec<u8>);

impl Link {
    /// Of the interface with this number in the namespace that ours calls by this number, or in ours.
    fn ask(socket: &OwnedFd, index: u32, namespace: Option<u32>) -> Option<Self> {
        let mut request = vec![0; HEADERS];
        if let Some(namespace) = namespace {
            request.extend(8u16.to_ne_bytes());
            request.extend(TARGET_NAMESPACE.to_ne_bytes());
            request.extend(namespace.to_ne_bytes());
        }
        let length = request.len() as u32;
        request[..4].copy_from_slice(&length.to_ne_bytes());
        request[4..6].copy_from_slice(&GET_LINK.to_ne_bytes());
        request[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
        request[20..24].copy_from_slice(&index.to_ne_bytes());
        rustix::net::send(socket, &request, SendFlags::empty()).ok()?;
        let mut answer = vec![0; 1 << 15];
        // The kernel answers before `send` returns.
        let (read, _) = rustix::net::recv(socket, &mut answer, RecvFlags::DONTWAIT).ok()?;
        answer.truncate(read);
        let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
        (kind == NEW_LINK).then_some(Self(answer))
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        find(self.0.get(HEADERS..)?, kind)
    }

    fn number(&self, kind: u16) -> Option<u32> {
        let bytes = self.attribute(kind)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// The value of the first attribute of that kind: length, kind, value, up to a multiple of four bytes (netlink(7)).
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    // The highest two bits say how the value is made.
    const KIND: u16 = 0x3fff;
    loop {
        let [a, b, c, d] = *attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & KIND == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_what_is_cut_short_is_not() {
        let mut bytes = Vec::new();
        for (kind, value) in [(3u16, &b"eth0\0"[..]), (0x8012, &[1, 2, 3, 4])] {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        assert_eq!(find(&bytes, 3), Some(&b"eth0\0"[..]));
        assert_eq!(find(&bytes, 0x12), Some(&[1, 2, 3, 4][..]));
        assert_eq!(find(&bytes, 5), None);
        for end in 0..bytes.len() {
            assert_eq!(find(&bytes[..end], 0x12), None);
        }
        assert_eq!(find(&[0; 64], 3), None, "an attribute without a header");
    }
}
