//! Whether packets longer than the MTU may come in by an interface: merged ones by the interface itself, unsegmented ones
//! by the veth end on the other side, wherever it is. Such packets fit no frame and are lost, each counted in `rx_errors`;
//! so it is said at start what to do about them.
//!
//! Takes  an interface's name.   Gives  a line for the operator, or nothing.
//! Never  changes anything.

use super::interface::Interface;
use super::netlink::{Netlink, attribute, find, number, text};
use super::offloads;

/// linux/rtnetlink.h.
const GET_LINK: u16 = 18;
/// `struct ifinfomsg`.
const HEADER: usize = 16;
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
    if let Some(merging) = offloads::merging(&interface) {
        let off: String = merging.iter().map(|name| format!(" {name} off")).collect();
        return Some(format!(
            "{0} merges received packets, and longer ones than its MTU are lost: ethtool -K {0}{off}",
            interface.name()
        ));
    }
    let netlink = Netlink::route().ok()?;
    let own = link(&netlink, interface.index(), None)?;
    let kind = find(&own, LINK_INFO).and_then(|info| find(info, INFO_KIND))?;
    if !kind.starts_with(b"veth") {
        return None;
    }
    // Its other end; in this namespace if no other is named. One that cannot be looked into is not guessed about.
    let peer = link(&netlink, number(&own, LINK)?, number(&own, LINK_NAMESPACE))?;
    let name = text(&peer, NAME)?;
    (number(&peer, GSO_MAX_SEGMENTS)? > 1).then(|| {
        format!(
            "its veth peer {name} may hand over unsegmented packets, and longer ones than the MTU are lost: before sockets \
             are opened there, ip link set {name} gso_max_segs 1"
        )
    })
}

/// Attributes of the interface with this number in the namespace that ours calls by this number, or in ours.
fn link(netlink: &Netlink, index: u32, namespace: Option<u32>) -> Option<Vec<u8>> {
    let mut request = vec![0; HEADER];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(namespace) = namespace {
        request.extend(attribute(TARGET_NAMESPACE, &namespace.to_ne_bytes()));
    }
    let mut answer = netlink.ask(GET_LINK, &request).ok()?;
    answer.drain(..HEADER.min(answer.len()));
    Some(answer)
}
