//! What IPv4 neighbours say and are asked: ARP (RFC 826).

use std::net::{IpAddr, Ipv4Addr};

use super::Heard;
use crate::addr::{Mac, V4};
use crate::index::NicPortIndex;
use crate::network::{Interface, Network};
use crate::wire::arp::{Arp, LEN, Operation};
use crate::wire::ethernet::{self, EtherType, Ethernet};

/// What an ARP packet says. A probe (RFC 5227 §2.1.1) says nothing about its sender.
pub(super) fn hear(payload: &[u8]) -> Option<Heard> {
    let packet = Arp::new(payload).ok()?;
    let (sender, mac) = (packet.sender_ip(), packet.sender_mac());
    let speaks = !sender.is_unspecified() && !mac.is_group();
    Some(Heard {
        about: speaks.then_some((sender.into(), mac)),
        asker: speaks.then_some(sender.into()),
        from: mac,
        asked: packet.operation() == Operation::REQUEST,
        target: packet.target_ip().into(),
        replaces: true,
    })
}

/// Asks who has `address`, from our address on that link, else any of ours (a router on an unnumbered port). The host
/// is asked for its own addresses, which are ours, too, so that question has no sender (a probe).
pub(super) fn question(
    network: &Network,
    interface: &Interface,
    port: NicPortIndex,
    address: Ipv4Addr,
    to: Mac,
) -> Vec<u8> {
    let on_link = interface
        .addresses
        .iter()
        .find(|n| n.contains(&IpAddr::V4(address)));
    let on_link = on_link.and_then(|n| match n.addr() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    let any = || {
        let own = network.is_own(address.octets());
        let source: Option<V4> = if own { None } else { network.source_address(port) };
        source.map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)
    };
    let sender = (interface.mac, on_link.unwrap_or_else(any));
    frame(Operation::REQUEST, to, sender, (Mac::default(), address))
}

/// Tells `to` that `address` is at our station.
pub(super) fn answer(interface: &Interface, address: Ipv4Addr, to: (Mac, Ipv4Addr)) -> Vec<u8> {
    frame(Operation::REPLY, to.0, (interface.mac, address), to)
}

/// An Ethernet frame to `to` with an ARP packet from `sender` about `target`.
pub(super) fn frame(
    operation: Operation,
    to: Mac,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::HEADER_LEN + LEN];
    let (header, payload) = bytes.split_at_mut(ethernet::HEADER_LEN);
    // Both buffers are exactly as long as what is built in them.
    if let (Ok(mut header), Ok(mut arp)) = (
        Ethernet::blank(header, EtherType::ARP),
        Arp::blank(payload, operation),
    ) {
        header.set_dst(to);
        header.set_src(sender.0);
        arp.set_sender(sender.0, sender.1);
        arp.set_target(target.0, target.1);
    }
    bytes
}
