//! What IPv6 neighbours say and are asked: neighbour discovery (RFC 4861). That nobody else has our addresses (RFC 4862
//! §5.4) is not asked: they are configured, and a gateway that would not start for a clash would be the greater harm; one
//! is logged. We defend them.

use std::net::{IpAddr, Ipv6Addr};

use super::Heard;
use crate::addr::{Mac, Protocol};
use crate::network::Interface;
use crate::wire::ethernet::{self, EtherType, Ethernet};
use crate::wire::nd::{self, Neighbour};
use crate::wire::{Icmpv6, Ipv6, ipv6};

/// Every node of the link (RFC 4291 §2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a solicitation or advertisement says. One that is not sound says nothing.
pub(super) fn hear(ethernet: &Ethernet<&[u8]>) -> Option<Heard> {
    let ip = Ipv6::new(ethernet.payload()).ok()?;
    let message = Neighbour::received(&ip).ok()?;
    let target = message.target();
    let from = ethernet.src();
    Some(if message.is_solicitation() {
        let sender = (!ip.src().is_unspecified()).then(|| ip.src().into());
        Heard {
            about: sender.zip(message.link_address()),
            asker: sender,
            from,
            asked: true,
            target: target.into(),
            replaces: true,
        }
    } else {
        // An answer may leave out the address that the question was sent to (RFC 4861 §4.4).
        let solicited = message.flags() & nd::SOLICITED != 0;
        let mac = message.link_address().or_else(|| solicited.then_some(from));
        Heard {
            about: mac.map(|mac| (target.into(), mac)),
            asker: None,
            from,
            asked: false,
            target: target.into(),
            replaces: message.flags() & nd::OVERRIDE != 0,
        }
    })
}

/// Asks who has `address`: the group of all who could, or its station.
pub(super) fn question(interface: &Interface, address: Ipv6Addr, to: Mac) -> Option<Vec<u8>> {
    let on_link = interface
        .addresses
        .iter()
        .find(|n| n.contains(&IpAddr::V6(address)));
    let on_link = on_link.and_then(|n| match n.addr() {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    });
    let source = on_link.or_else(|| interface.link_local())?;
    let to = if to.is_group() {
        let group = solicited_node(address);
        (group_mac(group), group)
    } else {
        (to, address)
    };
    message(interface.mac, nd::SOLICITATION, 0, to, source, address)
}

/// Tells `to` that `address` is at our station. Who asks without an address asks whether anybody has it, and all hear.
pub(super) fn answer(
    interface: &Interface,
    address: Ipv6Addr,
    to: (Mac, Option<Ipv6Addr>),
) -> Option<Vec<u8>> {
    let flags = nd::ROUTER | nd::OVERRIDE;
    let (flags, to) = match to {
        (mac, Some(asker)) => (flags | nd::SOLICITED, (mac, asker)),
        (_, None) => (flags, (group_mac(ALL_NODES), ALL_NODES)),
    };
    message(interface.mac, nd::ADVERTISEMENT, flags, to, address, address)
}

fn message(
    station: Mac,
    kind: u8,
    flags: u8,
    to: (Mac, Ipv6Addr),
    source: Ipv6Addr,
    target: Ipv6Addr,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0; ethernet::HEADER_LEN + ipv6::HEADER_LEN + nd::LEN];
    let (header, packet) = bytes.split_at_mut(ethernet::HEADER_LEN);
    let mut header = Ethernet::blank(header, EtherType::IPV6).ok()?;
    header.set_dst(to.0);
    header.set_src(station);
    let mut ip = Ipv6::blank(packet, Protocol::ICMPV6).ok()?;
    ip.set_hop_limit(nd::HOP_LIMIT);
    ip.set_src(source);
    ip.set_dst(to.1);
    let mut message = Neighbour::blank(ip.payload_mut(), kind).ok()?;
    message.set_flags(flags);
    message.set_target(target);
    message.set_link_address(station);
    let mut icmp = Icmpv6::new(ip.payload_mut()).ok()?;
    icmp.fill_checksum(source.octets(), to.1.octets());
    Some(bytes)
}

/// The group that everybody with this address listens to (RFC 4291 §2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = address.to_bits() as u32 & 0x00ff_ffff;
    Ipv6Addr::from_bits(0xff02 << 112 | 1 << 32 | 0xff00_0000 | u128::from(low))
}

/// The stations of a group (RFC 2464 §7).
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}
