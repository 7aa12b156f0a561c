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
mod tests {
    use super::*;

    const WAN: NicPortIndex = NicPortIndex(0);
    const PODS: NicPortIndex = NicPortIndex(1);
    const HOST: NicPortIndex = NicPortIndex(2);

    fn v6(text: &str) -> V6 {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    fn network() -> Network {
        let interface = |name: &str, last: u8, addresses: &[&str]| Interface {
            name: name.into(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            peer_mac: None,
        };
        let route = |to: &str, via: &str, port| Route {
            to: to.parse().unwrap(),
            via: Some(via.parse().unwrap()),
            port,
        };
        let node = ["192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3"];
        Network::new(
            vec![
                interface("wan", 1, &["192.0.2.2/24", "fe80::2/64", "2001:db8::2/64"]),
                interface("pods", 2, &["10.244.0.1/24", "fd00:10:244::1/64"]),
                interface("host", 3, &[]),
            ],
            vec![
                route("0.0.0.0/0", "192.0.2.1", WAN),
                route("::/0", "fe80::1", WAN),
            ],
            node.map(|a| a.parse().unwrap()).to_vec(),
            Some(HOST),
            64,
        )
    }

    #[test]
    fn the_longest_prefix_wins_and_the_rest_goes_to_the_router() {
        let network = network();
        for (to, port, neighbour) in [
            ([10, 244, 0, 9], PODS, [10, 244, 0, 9]),
            ([192, 0, 2, 77], WAN, [192, 0, 2, 77]),
            ([8, 8, 8, 8], WAN, [192, 0, 2, 1]),
        ] {
            assert_eq!(network.route(to), Some((port, neighbour)));
        }
        for (to, port, neighbour) in [
            ("fd00:10:244::9", PODS, "fd00:10:244::9"),
            ("2001:db8::77", WAN, "2001:db8::77"),
            ("2600::1", WAN, "fe80::1"),
        ] {
            assert_eq!(network.route(v6(to)), Some((port, v6(neighbour))));
        }
    }

    #[test]
    fn our_own_addresses_are_the_hosts() {
        let network = network();
        assert_eq!(network.route([10, 244, 0, 1]), Some((HOST, [192, 0, 2, 2])));
        assert_eq!(network.route(v6("fe80::2")), Some((HOST, v6("2001:db8::2"))));
        assert!(network.is_own([192, 0, 2, 3]) && !network.is_own([192, 0, 2, 4]));
        assert!(network.is_own(v6("2001:db8::3")) && !network.is_own(v6("2001:db8::4")));
    }

    #[test]
    fn every_nic_port_has_one_link_local_address_and_nothing_is_routed_to_others() {
        let network = network();
        let found: Vec<_> = network
            .interfaces()
            .iter()
            .map(|i| i.link_local().unwrap())
            .collect();
        let wanted = ["fe80::2", "fe80::ff:fe00:2", "fe80::ff:fe00:3"];
        assert_eq!(found, wanted.map(|a| a.parse::<Ipv6Addr>().unwrap()));
        assert!(wanted.iter().all(|a| network.is_own(v6(a))));
        assert_eq!(network.hop(v6("fe80::77")), Hop::NoRoute);
    }

    #[test]
    fn tp_6_we_send_from_the_ports_address_then_the_nodes_and_from_a_link_local_one_last() {
        let network = network();
        assert_eq!(network.source_address(WAN), Some([192, 0, 2, 2]));
        assert_eq!(network.source_address(WAN), Some(v6("2001:db8::2")));
        assert_eq!(network.source_address(PODS), Some(v6("fd00:10:244::1")));
        assert_eq!(network.source_address(HOST), Some([192, 0, 2, 2]));
        assert_eq!(network.source_address(HOST), Some(v6("2001:db8::2")));
        let lone = Interface {
            addresses: vec![],
            ..network.interfaces()[1].clone()
        };
        let lone = Network::new(vec![lone], vec![], vec![], None, 64);
        assert_eq!(lone.source_address(NicPortIndex(0)), Some(v6("fe80::ff:fe00:2")));
        assert_eq!(lone.source_address::<V4>(NicPortIndex(0)), None);
    }

    fn is_unknown_until_it_has_answered<A: Address>(address: A) {
        let network = network();
        let unknown = Hop::Unknown(PODS, address.into());
        assert_eq!(network.hop(address), unknown);
        let index = network.next_hops().insert(PODS, address).unwrap();
        assert_eq!(network.hop(address), unknown);
        network
            .next_hops()
            .set(index, Reachability::Reachable(Mac([2; 6])));
        assert_eq!(network.hop(address), Hop::Neighbour(index));
        network.next_hops().set(index, Reachability::Unreachable);
        assert_eq!(network.hop(address), Hop::Unreachable);
    }

    #[test]
    fn a_neighbour_is_unknown_until_it_has_answered() {
        is_unknown_until_it_has_answered([10, 244, 0, 9]);
        is_unknown_until_it_has_answered(v6("fd00:10:244::9"));
    }

    fn a_router_is_found_as_long_as_it_answers<A: Address>(destination: A, router: A) {
        let network = network();
        let unknown = Hop::Unknown(WAN, router.into());
        assert_eq!(network.hop(destination), unknown);
        let index = network.next_hops().insert(WAN, router).unwrap();
        let reachable = Reachability::Reachable(Mac([2; 6]));
        network.next_hops().set(index, reachable);
        // Looked for, then remembered by the route: though nobody has sent to it.
        assert_eq!(
            [(); 2].map(|()| network.hop(destination)),
            [Hop::Router(index); 2]
        );
        assert!(!network.next_hops().take_used(index));
        network.next_hops().set(index, Reachability::Unreachable);
        assert_eq!(network.hop(destination), Hop::Unreachable);
    }

    #[test]
    fn a_router_is_found_whether_or_not_anything_was_sent_to_it() {
        a_router_is_found_as_long_as_it_answers([8, 8, 8, 8], [192, 0, 2, 1]);
        a_router_is_found_as_long_as_it_answers(v6("2600::1"), v6("fe80::1"));
    }

    #[test]
    fn a_packet_from_another_station_than_its_neighbours_is_noticed_on_the_neighbours_port_only() {
        let network = network();
        let (known, other) = (Mac([2; 6]), Mac([4; 6]));
        let hops = network.next_hops();
        for (port, address) in [(PODS, "fd00:10:244::9"), (WAN, "192.0.2.1")] {
            let index = hops.insert(port, address.parse::<IpAddr>().unwrap()).unwrap();
            hops.set(index, Reachability::Reachable(known));
        }
        let pod = v6("fd00:10:244::9");
        assert_eq!(network.moved(PODS, pod, other), Some(pod.into()));
        assert_eq!(network.moved(PODS, pod, known), None);
        assert_eq!(
            network.moved(WAN, pod, other),
            None,
            "asymmetric routes are no sign"
        );
        assert_eq!(
            network.moved(PODS, v6("fd00:10:244::8"), other),
            None,
            "nor is a stranger"
        );
        let router = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(
            network.moved(WAN, [8, 8, 8, 8], other),
            Some(router),
            "whoever is behind it"
        );
    }

    #[test]
    fn np_2_node_ports_answer_on_the_primary_address_of_each_family_or_on_those_listed() {
        let network = network();
        assert!(network.is_node_port_address([192, 0, 2, 2], &[]));
        assert!(!network.is_node_port_address([192, 0, 2, 3], &[]));
        assert!(network.is_node_port_address(v6("2001:db8::2"), &[]));
        assert!(!network.is_node_port_address(v6("2001:db8::3"), &[]));
        let listed = ["192.0.2.3/32".parse().unwrap()];
        assert!(network.is_node_port_address([192, 0, 2, 3], &listed));
        assert!(!network.is_node_port_address([192, 0, 2, 2], &listed));
        assert!(
            network.is_node_port_address(v6("2001:db8::3"), &listed),
            "the other family is at all"
        );
        let all = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        assert!(network.is_node_port_address([10, 244, 0, 1], &all));
        assert!(!network.is_node_port_address([10, 244, 0, 7], &all));
    }

    #[test]
    fn np_3_node_ports_answer_on_no_loopback_and_no_link_local_address() {
        let node = ["127.0.0.1", "::1", "fe80::2"].map(|a| a.parse().unwrap());
        let network = Network::new(vec![], vec![], node.to_vec(), None, 64);
        let all = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        assert!(!network.is_node_port_address([127, 0, 0, 1], &all));
        assert!(!network.is_node_port_address(v6("::1"), &all));
        assert!(!network.is_node_port_address(v6("fe80::2"), &all));
    }
}
