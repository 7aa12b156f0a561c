//! What the gateway knows of its surroundings, in both families: its own addresses, its routes and its next hops.
//!
//! Fixed at start, but for the next hops, which the steward resolves. Workers only read.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;

use crate::addr::{Address, Families, Mac, V4, V6};
use crate::index::{NextHopIndex, NicPortIndex};
use crate::next_hop::{NextHops, Reachability};
use crate::wire::ethernet;

/// What a NIC port is to the gateway.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Name in the config.
    pub name: String,
    /// Station address; frames to others are not ours.
    pub mac: Mac,
    /// Largest IP packet in bytes.
    pub mtu: usize,
    /// Our addresses on it, with their on-link networks; a family's first is the source of what we originate there.
    /// `Network::new` adds the link-local IPv6 address, if there is none (RFC 4291 §2.5.6, Appendix A).
    pub addresses: Vec<IpNet>,
    /// The only station on the other side, where the driver knows it (a tap's kernel end).
    pub peer_mac: Option<Mac>,
}

impl Interface {
    /// Longest frame, in bytes, that the NIC port takes.
    pub const fn longest_frame(&self) -> usize {
        self.mtu + ethernet::HEADER_LEN
    }

    /// Our link-local address on it: what neighbour discovery speaks with.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|a| match a.addr() {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(v6),
            _ => None,
        })
    }
}

/// A static route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub to: IpNet,
    /// The router, of the same family, or `None` when the destination itself is on the link.
    pub via: Option<IpAddr>,
    /// Outgoing NIC port.
    pub port: NicPortIndex,
}

/// Where a packet to some address goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To the destination itself, which is on the link and answers.
    Neighbour(NextHopIndex),
    /// To this router, which answers.
    Router(NextHopIndex),
    /// To a neighbour that the steward must resolve first.
    Unknown(NicPortIndex, IpAddr),
    /// To a neighbour that does not answer.
    Unreachable,
    /// Nowhere.
    NoRoute,
}

/// The bit of `Side::own_bits` that an address names.
#[inline(always)]
fn bit<A: Address>(address: A) -> u64 {
    1 << (address.spread() >> 58)
}

/// A route, as it is asked for with every new flow.
#[derive(Debug)]
struct Destinations<A> {
    first: A,
    last: A,
    via: Option<A>,
    port: NicPortIndex,
    /// The router's index, when it was last looked up. It names no other neighbour, ever (`next_hop`).
    router: AtomicU32,
}

impl<A: Address> Destinations<A> {
    /// `route`, if it is of the family.
    fn of(route: &Route) -> Option<Self> {
        Some(Self {
            first: A::of(route.to.network())?,
            last: A::of(route.to.broadcast())?,
            via: match route.via {
                Some(router) => Some(A::of(router)?),
                None => None,
            },
            port: route.port,
            router: AtomicU32::new(NextHopIndex::UNKNOWN.0),
        })
    }
}

/// What the network knows in one family.
#[derive(Debug)]
pub struct Side<A> {
    /// Longest prefix first.
    routes: Vec<Destinations<A>>,
    /// The node's addresses, primary first.
    node: Vec<A>,
    /// All our addresses, sorted.
    own: Vec<A>,
    /// Of each, the bit that its hash names: one look tells nearly every packet from ours.
    own_bits: u64,
    /// What we send from, by NIC port.
    sources: Vec<Option<A>>,
}

/// Addresses, routes, next hops.
#[derive(Debug)]
pub struct Network {
    interfaces: Vec<Interface>,
    v4: Side<V4>,
    v6: Side<V6>,
    host: Option<NicPortIndex>,
    next_hops: NextHops,
}

impl Families for Network {
    type Part<A: Address> = Side<A>;

    fn v4(&self) -> &Side<V4> {
        &self.v4
    }

    fn v6(&self) -> &Side<V6> {
        &self.v6
    }
}

impl Network {
    /// From the config: interfaces in NIC port order; routes beside those their on-link networks imply; the node's
    /// addresses, the primary of each family before its others; which interface is the host port. `next_hops` bounds
    /// the neighbours.
    pub fn new(
        mut interfaces: Vec<Interface>,
        mut routes: Vec<Route>,
        node_addresses: Vec<IpAddr>,
        host: Option<NicPortIndex>,
        next_hops: usize,
    ) -> Self {
        for (i, interface) in interfaces.iter_mut().enumerate() {
            if interface.link_local().is_none() {
                interface.addresses.push(link_local(interface.mac).into());
            }
            let port = NicPortIndex(i as u8);
            let whole = |a: &&IpNet| a.prefix_len() < a.max_prefix_len() && !is_link_local(a.addr());
            routes.extend(interface.addresses.iter().filter(whole).map(|a| Route {
                to: a.trunc(),
                via: None,
                port,
            }));
        }
        routes.sort_by_key(|r| std::cmp::Reverse(r.to.prefix_len()));
        Self {
            v4: Side::new(&interfaces, &routes, &node_addresses),
            v6: Side::new(&interfaces, &routes, &node_addresses),
            interfaces,
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

    /// Where what is punted goes: the host's end of the host port, by a primary address of the node. `None` while it
    /// has not answered.
    pub fn host_mac(&self) -> Option<Mac> {
        self.hosts()
            .find_map(|(port, address)| match self.next_hops.look_up(port, address)? {
                (_, Reachability::Reachable(mac)) => Some(mac),
                _ => None,
            })
    }

    /// The neighbours.
    pub const fn next_hops(&self) -> &NextHops {
        &self.next_hops
    }

    /// One of our addresses: the node's or a NIC port's.
    #[inline(always)]
    pub fn is_own<A: Address>(&self, address: A) -> bool {
        let side = A::part(self);
        side.own_bits & bit(address) != 0 && side.own.binary_search(&address).is_ok()
    }

    /// All our addresses of one family.
    pub fn own_addresses<A: Address>(&self) -> impl Iterator<Item = A> {
        A::part(self).own.iter().copied()
    }

    /// The routers that routes go through.
    pub fn routers(&self) -> impl Iterator<Item = (NicPortIndex, IpAddr)> {
        let v4 = self
            .v4
            .routes
            .iter()
            .filter_map(|r| Some((r.port, r.via?.into())));
        let v6 = self
            .v6
            .routes
            .iter()
            .filter_map(|r| Some((r.port, r.via?.into())));
        v4.chain(v6)
    }

    /// The node's own stack as a neighbour on the host port: by its primary address of each family.
    pub fn hosts(&self) -> impl Iterator<Item = (NicPortIndex, IpAddr)> {
        let v4 = self.v4.node.first().copied().map(IpAddr::from);
        let v6 = self.v6.node.first().copied().map(IpAddr::from);
        let primary = v4.into_iter().chain(v6);
        self.host
            .into_iter()
            .flat_map(move |port| primary.clone().map(move |a| (port, a)))
    }

    /// Whether node ports answer on this address (NP-1, NP-2): one of ours inside `allowed`, or the family's primary
    /// one when nothing is configured.
    pub fn is_node_port_address<A: Address>(&self, address: A, allowed: &[IpNet]) -> bool {
        let side = A::part(self);
        if allowed.is_empty() {
            return side.node.first() == Some(&address);
        }
        // CIDRs of only one family leave the other family at "all".
        let bits = |n: &&IpNet| n.max_prefix_len() == A::BITS;
        let mut of_family = allowed.iter().filter(bits).peekable();
        let ip: IpAddr = address.into();
        let listed = of_family.peek().is_none() || of_family.any(|n| n.contains(&ip));
        // Loopback never (NP-3), nor what only one link can reach.
        listed && !ip.is_loopback() && !is_link_local(ip) && self.is_own(address)
    }

    /// The address we send from through this NIC port (TP-6), for SNAT and for our own ICMP errors: the port's first, or
    /// the node's primary; a link-local one only where there is no other (RFC 6724 §5, rule 2).
    pub fn source_address<A: Address>(&self, port: NicPortIndex) -> Option<A> {
        A::part(self).sources.get(port.get()).copied().flatten()
    }

    /// The outgoing NIC port and the neighbour to ask for. All our own addresses are the host's, which answers to the
    /// node's primary one. Link-local destinations have no route: no packet to one may leave its link (RFC 4291 §2.5.6).
    pub fn route<A: Address>(&self, destination: A) -> Option<(NicPortIndex, A)> {
        if self.is_own(destination) {
            return Some((self.host?, *A::part(self).node.first()?));
        }
        let route = self.destinations(destination)?;
        Some((route.port, route.via.unwrap_or(destination)))
    }

    /// The route to somebody else.
    fn destinations<A: Address>(&self, destination: A) -> Option<&Destinations<A>> {
        if is_link_local(destination.into()) {
            return None;
        }
        let reaches = |route: &&Destinations<A>| route.first <= destination && destination <= route.last;
        A::part(self).routes.iter().find(reaches)
    }

    /// The neighbour that packets from `source` come by on `port`, if this one came from another station than we know
    /// it by: it may have moved, or another may have sent it.
    pub fn moved<A: Address>(&self, port: NicPortIndex, source: A, station: Mac) -> Option<IpAddr> {
        let (out, neighbour) = self.route(source)?;
        match self.next_hops.look_up(out, neighbour)? {
            (_, Reachability::Reachable(known)) if out == port && known != station => Some(neighbour.into()),
            _ => None,
        }
    }

    /// `route` for an address of whichever family.
    pub fn route_to(&self, destination: IpAddr) -> Option<(NicPortIndex, IpAddr)> {
        match destination {
            IpAddr::V4(v4) => self.route(v4.octets()).map(|(port, a)| (port, a.into())),
            IpAddr::V6(v6) => self.route(v6.octets()).map(|(port, a)| (port, a.into())),
        }
    }

    /// Where a packet to `destination` goes next.
    pub fn hop<A: Address>(&self, destination: A) -> Hop {
        if self.is_own(destination) {
            return self.hop_to(self.route(destination));
        }
        let Some(route) = self.destinations(destination) else {
            return Hop::NoRoute;
        };
        let Some(router) = route.via else {
            return self.hop_to(Some((route.port, destination)));
        };
        let index = NextHopIndex(route.router.load(Ordering::Relaxed));
        if self.next_hops.is_reachable(index) {
            return Hop::Router(index);
        }
        match self.hop_to(Some((route.port, router))) {
            Hop::Neighbour(index) => {
                route.router.store(index.0, Ordering::Relaxed);
                Hop::Router(index)
            }
            hop => hop,
        }
    }

    /// `hop`, to a neighbour that `route` says.
    fn hop_to<A: Address>(&self, route: Option<(NicPortIndex, A)>) -> Hop {
        let Some((port, neighbour)) = route else {
            return Hop::NoRoute;
        };
        match self.next_hops.look_up(port, neighbour) {
            Some((index, Reachability::Reachable(_))) => Hop::Neighbour(index),
            Some((_, Reachability::Unreachable)) => Hop::Unreachable,
            _ => Hop::Unknown(port, neighbour.into()),
        }
    }
}

impl<A: Address> Side<A> {
    fn new(interfaces: &[Interface], routes: &[Route], node_addresses: &[IpAddr]) -> Self {
        let node: Vec<A> = node_addresses.iter().copied().filter_map(A::of).collect();
        let on_port = |i: &Interface| {
            i.addresses
                .iter()
                .filter_map(|a| A::of(a.addr()))
                .collect::<Vec<A>>()
        };
        let source = |i: &Interface| {
            let on_port = on_port(i);
            let wide = |a: &&A| !is_link_local((**a).into());
            let chosen = on_port.iter().find(wide).or_else(|| node.first());
            chosen.or_else(|| on_port.first()).copied()
        };
        let mut own: Vec<A> = node.clone();
        own.extend(interfaces.iter().flat_map(on_port));
        own.sort_unstable();
        own.dedup();
        Self {
            routes: routes.iter().filter_map(Destinations::of).collect(),
            sources: interfaces.iter().map(source).collect(),
            node,
            own_bits: own.iter().fold(0, |bits, &address| bits | bit(address)),
            own,
        }
    }
}

/// Reaches one link only. IPv4's 169.254/16 is an ordinary network where it is configured (cloud gateways have it).
const fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A station's link-local address and network, made of its MAC address (RFC 4291 Appendix A). Whether another station
/// has it, too, is not asked: MAC addresses differ, or frames are lost anyway.
fn link_local(mac: Mac) -> ipnet::Ipv6Net {
    let [a, b, c, d, e, f] = mac.0;
    let identifier = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let address = 0xfe80 << 112 | u128::from(u64::from_be_bytes(identifier));
    ipnet::Ipv6Net::new_assert(Ipv6Addr::from_bits(address), 64)
}

#[cfg(test)]
mod tests;
