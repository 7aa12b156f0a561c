//! The interfaces of this network namespace, as the kernel lists them.
//!
//! Takes  nothing.   Gives  each interface with its state and addresses, and what its driver has for XDP.
//! Never  changes anything.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{Netlink, ask_family, attribute, find, number, text};
use crate::addr::Mac;

/// linux/rtnetlink.h.
const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
/// Bytes of `struct ifinfomsg` and `struct ifaddrmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
/// RT_SCOPE_LINK: addresses beyond it are of use on the link alone.
const SCOPE_LINK: u8 = 253;

/// What XDP programs can do in an interface's driver (enum netdev_xdp_act, linux/netdev.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// An Ethernet link, not a tunnel or the loopback.
    pub is_ethernet: bool,
    /// The kind of a virtual one: `veth`, `bridge`, `tun`; empty for hardware.
    pub kind: String,
    /// Its station address.
    pub mac: Mac,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub is_up: bool,
    /// It is a port of another interface: a bridge, a bond.
    pub is_enslaved: bool,
    /// An XDP program is attached.
    pub has_xdp_program: bool,
    /// The kernel's addresses on it, with their networks; link-local ones left out.
    pub addresses: Vec<IpNet>,
}

impl XdpFeatures {
    /// Programs run in the driver, and may redirect packets to sockets.
    pub const fn native(self) -> bool {
        self.0 & 0b11 == 0b11
    }

    /// Sockets may share their memory with the hardware.
    pub const fn zero_copy(self) -> bool {
        self.native() && self.0 & 1 << 3 != 0
    }
}

/// Every interface, in the kernel's order. Errors: no socket to be had.
pub fn interfaces() -> io::Result<Vec<Listed>> {
    let netlink = Netlink::route()?;
    let links = netlink.dump(GET_LINK, &[0; LINK_HEADER])?;
    let addresses = netlink.dump(GET_ADDRESS, &[0; ADDRESS_HEADER])?;
    let mut listed: Vec<Listed> = links.iter().filter_map(|message| link(message)).collect();
    for (index, network) in addresses.iter().filter_map(|message| address(message)) {
        if let Some(of) = listed.iter_mut().find(|listed| listed.index == index) {
            of.addresses.push(network);
        }
    }
    Ok(listed)
}

/// What XDP can do there; `None` where the kernel has no word for it (before 6.3).
pub fn xdp_features(index: u32) -> Option<XdpFeatures> {
    // linux/netdev.h: NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, NETDEV_A_DEV_XDP_FEATURES.
    let answer = ask_family("netdev", 1, &attribute(1, &index.to_ne_bytes())).ok()?;
    let features = find(&answer, 3)?.first_chunk()?;
    Some(XdpFeatures(u64::from_ne_bytes(*features)))
}

fn link(message: &[u8]) -> Option<Listed> {
    // struct ifinfomsg: family, pad, type, index, flags, change.
    let header: &[u8; LINK_HEADER] = message.first_chunk()?;
    let attributes = message.get(LINK_HEADER..)?;
    let number_at = |at: usize| {
        header
            .get(at..)?
            .first_chunk()
            .map(|bytes| u32::from_ne_bytes(*bytes))
    };
    // linux/if_link.h: IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_XDP; IFLA_INFO_KIND,
    // IFLA_XDP_ATTACHED.
    let kind = find(attributes, 18).and_then(|info| text(info, 1));
    let attached = find(attributes, 43).and_then(|xdp| find(xdp, 2)?.first().copied());
    Some(Listed {
        name: text(attributes, 3)?,
        index: number_at(4)?,
        is_ethernet: u16::from_ne_bytes([header[2], header[3]]) == libc::ARPHRD_ETHER,
        kind: kind.unwrap_or_default(),
        mac: Mac(find(attributes, 1)
            .and_then(|mac| mac.try_into().ok())
            .unwrap_or_default()),
        mtu: number(attributes, 4).unwrap_or_default(),
        is_up: number_at(8)? & libc::IFF_UP as u32 != 0,
        is_enslaved: number(attributes, 10).is_some(),
        has_xdp_program: attached.unwrap_or_default() != 0,
        addresses: Vec::new(),
    })
}

fn address(message: &[u8]) -> Option<(u32, IpNet)> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let &[family, prefix, _, scope, a, b, c, d] = message.first_chunk()?;
    let attributes = message.get(ADDRESS_HEADER..)?;
    if scope >= SCOPE_LINK {
        return None;
    }
    // linux/if_addr.h: IFA_LOCAL is our own end, IFA_ADDRESS is it too where there is no other.
    let value = find(attributes, 2).or_else(|| find(attributes, 1))?;
    let ip = match i32::from(family) {
        libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
        _ => return None,
    };
    Some((u32::from_ne_bytes([a, b, c, d]), IpNet::new(ip, prefix).ok()?))
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_and_is_no_ethernet_link() {
        let listed = interfaces().unwrap();
        let lo = listed.iter().find(|listed| listed.name == "lo").unwrap();
        assert!(lo.index > 0 && !lo.is_ethernet && !lo.is_enslaved && !lo.has_xdp_program);
    }

    #[test]
    fn what_is_cut_short_is_not_listed() {
        let header = [0, 0, 1, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let whole = [
            &header[..],
            &attribute(3, b"eth0\0"),
            &attribute(4, &1_500u32.to_ne_bytes()),
        ]
        .concat();
        let eth0 = link(&whole).unwrap();
        assert_eq!((eth0.name.as_str(), eth0.mtu, eth0.is_up), ("eth0", 1_500, true));
        for end in 0..LINK_HEADER + 9 {
            assert_eq!(link(&whole[..end]), None, "{end}");
        }
        let header = [libc::AF_INET as u8, 24, 0, 0, 7, 0, 0, 0];
        let whole = [&header[..], &attribute(2, &[192, 0, 2, 2])].concat();
        assert_eq!(address(&whole), Some((7, "192.0.2.2/24".parse().unwrap())));
        for end in 0..whole.len() {
            assert_eq!(address(&whole[..end]), None, "{end}");
        }
        let too_long = [
            &[libc::AF_INET as u8, 33, 0, 0, 7, 0, 0, 0][..],
            &attribute(2, &[192, 0, 2, 2]),
        ]
        .concat();
        assert_eq!(address(&too_long), None, "no such prefix");
    }
}
