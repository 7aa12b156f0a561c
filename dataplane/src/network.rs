//! What the gateway knows of its surroundings: its own addresses, its routes and its next hops.
//!
//! Fixed at start, but for the next hops, which the steward resolves. Workers only read.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use crate::addr::Mac;
use crate::index::{NextHopIndex, NicPortIndex};
use crate::next_hop::{NextHops, Reachability};

/// What a NIC port is to the gateway.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Name in the config.
    pub name: String,
    /// Station address; frames to others are not ours.
    pub mac: Mac,
    /// Largest IP packet in bytes.
    pub mtu: usize,
    /// Our addresses on it, with their on-link networks; the first is the source of what we originate there.
    pub addresses: Vec<Ipv4Net>,
    /// The only station on the other side, where the driver knows it (a tap's kernel end).
    pub peer_mac: Option<Mac>,
}

/// A static route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub to: Ipv4Net,
    /// The router, or `None` when the destination itself is on the link.
    pub via: Option<Ipv4Addr>,
    /// Outgoing NIC port.
    pub port: NicPortIndex,
}

/// Where a packet to some address goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To this neighbour, which answers.
    Known(NextHopIndex),
    /// To a neighbour that the steward must resolve first.
    Unknown(NicPortIndex, [u8; 4]),
    /// To a neighbour that does not answer.
    Unreachable,
    /// Nowhere.
    NoRoute,
}

/// Addresses, routes, next hops.
#[derive(Debug)]
pub struct Network {
    interfaces: Vec<Interface>,
    /// Longest prefix first.
    routes: Vec<Route>,
    node_addresses: Vec<Ipv4Addr>,
    /// Sorted.
    own: Vec<[u8; 4]>,
    host: Option<NicPortIndex>,
    next_hops: NextHops,
}

impl Network {
    /// From the config: interfaces in NIC port order; routes beside those their on-link networks imply; the node's
    /// addresses, primary first; which interface is the host port. `next_hops` bounds the neighbours.
    pub fn new(
        interfaces: Vec<Interface>,
        mut routes: Vec<Route>,
        node_addresses: Vec<Ipv4Addr>,
        host: Option<NicPortIndex>,
        next_hops: usize,
    ) -> Self {
        for (i, interface) in interfaces.iter().enumerate() {
            let port = NicPortIndex(i as u8);
            let on_link = interface.addresses.iter().filter(|a| a.prefix_len() < 32);
            routes.extend(on_link.map(|a| Route {
                to: a.trunc(),
                via: None,
                port,
            }));
        }
        routes.sort_by_key(|r| std::cmp::Reverse(r.to.prefix_len()));
        let on_ports = interfaces
            .iter()
            .flat_map(|i| i.addresses.iter().map(Ipv4Net::addr));
        let mut own: Vec<_> = node_addresses
            .iter()
            .copied()
            .chain(on_ports)
            .map(|a| a.octets())
            .collect();
        own.sort_unstable();
        own.dedup();
        Self {
            interfaces,
            routes,
            node_addresses,
            own,
            host,
            next_hops: NextHops::new(next_hops),
        }
    }

    /// NIC ports as the network sees them, in `NicPortIndex` order.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The host port, if there is one.
    pub const fn host(&self) -> Option<NicPortIndex> {
        self.host
    }

    /// Where what is punted goes: the host's end of the host port, by the node's primary address. `None` while it has
    /// not answered.
    pub fn host_mac(&self) -> Option<Mac> {
        let (port, address) = (self.host?, self.node_addresses.first()?);
        match self.next_hops.look_up(port, address.octets())? {
            (_, Reachability::Reachable(mac)) => Some(mac),
            _ => None,
        }
    }

    /// The neighbours.
    pub const fn next_hops(&self) -> &NextHops {
        &self.next_hops
    }

    /// One of our addresses: the node's or a NIC port's.
    pub fn is_own(&self, address: [u8; 4]) -> bool {
        self.own.binary_search(&address).is_ok()
    }

    /// All our addresses.
    pub fn own_addresses(&self) -> impl Iterator<Item = [u8; 4]> {
        self.own.iter().copied()
    }

    /// The routers that routes go through.
    pub fn routers(&self) -> impl Iterator<Item = (NicPortIndex, [u8; 4])> {
        self.routes.iter().filter_map(|r| Some((r.port, r.via?.octets())))
    }

    /// Whether node ports answer on this address (NP-1, NP-2): a node address inside `allowed`, or the primary one
    /// when nothing is configured.
    pub fn is_node_port_address(&self, address: [u8; 4], allowed: &[IpNet]) -> bool {
        let address = Ipv4Addr::from(address);
        if allowed.is_empty() {
            return self.node_addresses.first() == Some(&address);
        }
        // CIDRs of only one family leave the other family at "all"; loopback never (NP-3).
        let mut of_family = allowed
            .iter()
            .filter_map(|n| if let IpNet::V4(n) = n { Some(n) } else { None })
            .peekable();
        let listed = of_family.peek().is_none() || of_family.any(|n| n.contains(&address));
        listed && !address.is_loopback() && self.is_own(address.octets())
    }

    /// The address we send from through this NIC port (TP-6), for SNAT and for our own ICMP errors.
    pub fn source_address(&self, port: NicPortIndex) -> Option<[u8; 4]> {
        let on_port = self
            .interfaces
            .get(port.get())
            .and_then(|i| i.addresses.first())
            .map(Ipv4Net::addr);
        on_port
            .or_else(|| self.node_addresses.first().copied())
            .map(|a| a.octets())
    }

    /// The outgoing NIC port and the neighbour to ask for. All our own addresses are the host's, which answers to the
    /// node's primary one.
    pub fn route(&self, destination: [u8; 4]) -> Option<(NicPortIndex, [u8; 4])> {
        if self.is_own(destination) {
            return Some((self.host?, self.node_addresses.first()?.octets()));
        }
        let address = Ipv4Addr::from(destination);
        let route = self.routes.iter().find(|r| r.to.contains(&address))?;
        Some((route.port, route.via.map_or(destination, |via| via.octets())))
    }

    /// Where a packet to `destination` goes next.
    pub fn hop(&self, destination: [u8; 4]) -> Hop {
        match self.route(destination) {
            None => Hop::NoRoute,
            Some((port, neighbour)) => match self.next_hops.look_up(port, neighbour) {
                Some((index, Reachability::Reachable(_))) => Hop::Known(index),
                Some((_, Reachability::Unreachable)) => Hop::Unreachable,
                Some((_, Reachability::Incomplete)) | None => Hop::Unknown(port, neighbour),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let interface = |name: &str, addresses: &[&str]| Interface {
            name: name.into(),
            mac: Mac::default(),
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            peer_mac: None,
        };
        Network::new(
            vec![
                interface("wan", &["192.0.2.2/24"]),
                interface("pods", &["10.244.0.1/24"]),
                interface("host", &[]),
            ],
            vec![Route {
                to: "0.0.0.0/0".parse().unwrap(),
                via: Some(Ipv4Addr::new(192, 0, 2, 1)),
                port: NicPortIndex(0),
            }],
            vec![Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 3)],
            Some(NicPortIndex(2)),
            64,
        )
    }

    #[test]
    fn the_longest_prefix_wins_and_the_rest_goes_to_the_router() {
        let network = network();
        assert_eq!(
            network.route([10, 244, 0, 9]),
            Some((NicPortIndex(1), [10, 244, 0, 9]))
        );
        assert_eq!(
            network.route([192, 0, 2, 77]),
            Some((NicPortIndex(0), [192, 0, 2, 77]))
        );
        assert_eq!(
            network.route([8, 8, 8, 8]),
            Some((NicPortIndex(0), [192, 0, 2, 1]))
        );
    }

    #[test]
    fn our_own_addresses_are_the_hosts() {
        let network = network();
        assert_eq!(
            network.route([10, 244, 0, 1]),
            Some((NicPortIndex(2), [192, 0, 2, 2]))
        );
        assert!(network.is_own([192, 0, 2, 3]) && !network.is_own([192, 0, 2, 4]));
    }

    #[test]
    fn a_neighbour_is_unknown_until_it_has_answered() {
        let network = network();
        assert_eq!(
            network.hop([10, 244, 0, 9]),
            Hop::Unknown(NicPortIndex(1), [10, 244, 0, 9])
        );
        let index = network
            .next_hops()
            .insert(NicPortIndex(1), [10, 244, 0, 9])
            .unwrap();
        assert_eq!(
            network.hop([10, 244, 0, 9]),
            Hop::Unknown(NicPortIndex(1), [10, 244, 0, 9])
        );
        network
            .next_hops()
            .set(index, Reachability::Reachable(Mac::BROADCAST));
        assert_eq!(network.hop([10, 244, 0, 9]), Hop::Known(index));
        network.next_hops().set(index, Reachability::Unreachable);
        assert_eq!(network.hop([10, 244, 0, 9]), Hop::Unreachable);
    }

    #[test]
    fn np_2_node_ports_answer_on_the_primary_address_or_on_those_listed() {
        let network = network();
        assert!(network.is_node_port_address([192, 0, 2, 2], &[]));
        assert!(!network.is_node_port_address([192, 0, 2, 3], &[]));
        let listed = ["192.0.2.3/32".parse().unwrap()];
        assert!(network.is_node_port_address([192, 0, 2, 3], &listed));
        assert!(!network.is_node_port_address([192, 0, 2, 2], &listed));
        assert!(network.is_node_port_address([10, 244, 0, 1], &["0.0.0.0/0".parse().unwrap()]));
        assert!(!network.is_node_port_address([10, 244, 0, 7], &["0.0.0.0/0".parse().unwrap()]));
    }
}
