//! Which packets of an interface that the kernel uses, too, are Services': what the tables mean for the maps of its XDP program
//! (`nic::xdp_shared`).
//!
//! Takes  records and the node's own addresses.
//! Gives  prefixes with flags, and ports: what is new before the workers take a new table, what has gone after all took it, so that
//!        at no time a frontend is nobody's.
//! Never  decides what becomes of a packet: a worker that gets one too many hands it on as any other.
//!
//! Each update goes over all records, some milliseconds for ten thousand: the steward's time, not the packets'.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::{Protocol, V4, V6};
use crate::channel::record::{FrontendKind, NetworkKind, Record};
use crate::network::Network;
use crate::nic::xdp_shared::{FROM, OWN, PARTLY, SharedMaps, TO};
use crate::tables::Tables;

type Prefix = (IpAddr, u8);
type Port = (IpAddr, Protocol, u16);

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Each prefix's own flags.
    prefixes: BTreeMap<Prefix, u32>,
    ports: BTreeSet<Port>,
}

impl Wanted {
    fn of(records: impl Iterator<Item = Record>, tables: &Tables, network: &Network) -> Self {
        let mut wanted = Self::default();
        let own: Vec<IpAddr> = own(network).collect();
        for &address in &own {
            wanted.flag(whole(address), OWN);
        }
        let allowed = tables.node_port_addresses();
        let answers = |address: &IpAddr| match *address {
            IpAddr::V4(v4) => network.is_node_port_address::<V4>(v4.octets(), allowed),
            IpAddr::V6(v6) => network.is_node_port_address::<V6>(v6.octets(), allowed),
        };
        for record in records {
            match record {
                Record::Frontend(f) if f.kind == FrontendKind::NodePort => {
                    let family = own.iter().filter(|a| a.is_ipv4() == f.address.is_ipv4());
                    let ports = family.filter(|a| answers(a)).map(|&a| (a, f.protocol, f.port));
                    wanted.ports.extend(ports);
                }
                Record::Frontend(f) if f.kind == FrontendKind::ClusterIp => {
                    wanted.flag(whole(f.address), TO);
                }
                Record::Frontend(f) => {
                    wanted.ports.insert((f.address, f.protocol, f.port));
                    if !own.contains(&f.address) {
                        wanted.flag(whole(f.address), PARTLY);
                    }
                }
                // An endpoint on the node itself is behind the host port, not the wire.
                Record::Backend(b) if !own.contains(&b.address) => wanted.flag(whole(b.address), FROM),
                Record::Network(n) => {
                    let prefix = (n.network.network(), n.network.prefix_len());
                    match n.kind {
                        NetworkKind::PodRange => wanted.flag(prefix, FROM),
                        NetworkKind::ServiceRange => wanted.flag(prefix, TO),
                        NetworkKind::NodePortAddresses => {}
                    }
                }
                Record::Backend(_)
                | Record::ServicePort(_)
                | Record::SourceRange(_)
                | Record::Settings(_) => {}
            }
        }
        wanted
    }

    fn flag(&mut self, prefix: Prefix, flag: u32) {
        *self.prefixes.entry(prefix).or_default() |= flag;
    }

    fn add(&mut self, other: &Self) {
        for (prefix, flags) in &other.prefixes {
            self.flag(*prefix, *flags);
        }
        self.ports.extend(&other.ports);
    }

    /// Each prefix with the flags of all wider ones, as the longest alone is asked. The node's own addresses are only that: no
    /// service or pod range that they are in takes the kernel's packets.
    fn inherited(&self) -> BTreeMap<Prefix, u32> {
        // A wider prefix comes before those in it.
        let mut around: Vec<(Prefix, u32)> = Vec::new();
        let mut all = BTreeMap::new();
        for (&prefix, &flags) in &self.prefixes {
            while around.last().is_some_and(|(wider, _)| !contains(*wider, prefix)) {
                around.pop();
            }
            let flags = flags | around.last().map_or(0, |(_, flags)| *flags);
            around.push((prefix, flags));
            all.insert(prefix, if flags & OWN == 0 { flags } else { OWN });
        }
        all
    }
}

fn own(network: &Network) -> impl Iterator<Item = IpAddr> {
    let v4 = network.own_addresses::<V4>().map(IpAddr::from);
    v4.chain(network.own_addresses::<V6>().map(IpAddr::from))
}

const fn whole(address: IpAddr) -> Prefix {
    (address, if address.is_ipv4() { 32 } else { 128 })
}

fn contains((wide, length): Prefix, (address, longer): Prefix) -> bool {
    longer >= length && ipnet::IpNet::new(wide, length).is_ok_and(|net| net.contains(&address))
}

/// The maps, and what is in them.
#[derive(Debug)]
pub struct SharedPorts {
    maps: Arc<SharedMaps>,
    /// In the maps, but for what is missing.
    held: Wanted,
    /// What the newest tables mean.
    wanted: Wanted,
    /// What found no room. It is tried again with every update.
    missing: (BTreeSet<Prefix>, BTreeSet<Port>),
    /// Packets that were withheld so far.
    lost: u64,
}

impl SharedPorts {
    /// For maps that are empty, or hold what another process meant: that stays until the first update. Errors: as of bpf(2).
    pub fn new(maps: Arc<SharedMaps>) -> io::Result<Self> {
        let (prefixes, ports) = maps.contents()?;
        let held = Wanted {
            prefixes: prefixes.into_iter().collect(),
            ports: ports.into_iter().collect(),
        };
        Ok(Self {
            maps,
            held,
            wanted: Wanted::default(),
            missing: Default::default(),
            lost: 0,
        })
    }

    /// Has the programs withhold Services' packets should this process end; gives how many were withheld since the last call.
    pub fn renew(&mut self) -> u64 {
        // They could only fail for want of memory that the kernel has long had.
        let _ = self.maps.renew();
        let lost = self.maps.lost().unwrap_or(self.lost);
        lost - std::mem::replace(&mut self.lost, lost).min(lost)
    }

    /// Before workers take `tables`: adds what they mean.
    pub fn extend(&mut self, records: impl Iterator<Item = Record>, tables: &Tables, network: &Network) {
        self.wanted = Wanted::of(records, tables, network);
        let mut both = self.held.clone();
        both.add(&self.wanted);
        self.write(both);
    }

    /// After all workers took the newest tables: removes what only older ones meant.
    pub fn settle(&mut self) {
        if self.held != self.wanted || self.missing() > 0 {
            self.write(self.wanted.clone());
        }
    }

    /// Frontends and endpoints that found no room, and are left to the kernel.
    pub fn missing(&self) -> usize {
        self.missing.0.len() + self.missing.1.len()
    }

    /// Most prefixes and ports.
    pub fn limits(&self) -> [u32; 2] {
        self.maps.limits()
    }

    /// Prefixes and ports in the maps.
    pub fn used(&self) -> [usize; 2] {
        let (prefixes, ports) = (self.held.prefixes.len(), self.held.ports.len());
        [prefixes - self.missing.0.len(), ports - self.missing.1.len()]
    }

    fn write(&mut self, new: Wanted) {
        let (old, flags) = (self.held.inherited(), new.inherited());
        // First, so that there is room; what is missing is not there to be removed.
        for port in self.held.ports.difference(&new.ports) {
            let _ = self.maps.remove_port(*port);
        }
        for prefix in old.keys().filter(|prefix| !flags.contains_key(prefix)) {
            let _ = self.maps.remove_prefix(*prefix);
        }
        let (prefixes, ports) = std::mem::take(&mut self.missing);
        let changed =
            |prefix: &Prefix, flags: &u32| old.get(prefix) != Some(flags) || prefixes.contains(prefix);
        for (prefix, flags) in flags.into_iter().filter(|(prefix, flags)| changed(prefix, flags)) {
            if self.maps.set_prefix(prefix, flags).is_err() {
                self.missing.0.insert(prefix);
            }
        }
        for port in &new.ports {
            if (ports.contains(port) || !self.held.ports.contains(port)) && self.maps.set_port(*port).is_err()
            {
                self.missing.1.insert(*port);
            }
        }
        self.held = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let net: ipnet::IpNet = text.parse().unwrap();
        (net.network(), net.prefix_len())
    }

    #[test]
    fn a_longer_prefix_has_the_flags_of_those_around_it_and_an_own_address_only_that() {
        let mut wanted = Wanted::default();
        for (text, flag) in [
            ("10.0.0.0/8", FROM),
            ("10.96.0.0/16", TO),
            ("10.96.0.1/32", PARTLY),
            ("10.97.0.1/32", OWN),
            ("10.98.0.1/32", PARTLY),
            ("11.0.0.1/32", TO),
            ("::/0", FROM),
        ] {
            wanted.flag(prefix(text), flag);
        }
        let all = wanted.inherited();
        for (text, flags) in [
            ("10.0.0.0/8", FROM),
            ("10.96.0.0/16", FROM | TO),
            ("10.96.0.1/32", FROM | TO | PARTLY),
            ("10.97.0.1/32", OWN),
            ("10.98.0.1/32", FROM | PARTLY),
            ("11.0.0.1/32", TO),
            ("::/0", FROM),
        ] {
            assert_eq!(all[&prefix(text)], flags, "{text}");
        }
    }

    #[test]
    fn what_found_no_room_is_counted_and_has_it_once_something_else_is_gone() {
        let maps = match SharedMaps::new(2, 1, Vec::new(), None) {
            Ok(maps) => Arc::new(maps),
            Err(error) => return println!("SKIPPED: bpf(2) is not for us here: {error}"),
        };
        let mut ports = SharedPorts::new(maps).unwrap();
        let mut first = Wanted::default();
        for text in ["10.96.0.1/32", "10.96.0.2/32", "10.96.0.3/32"] {
            first.flag(prefix(text), TO);
        }
        let port = |port| (IpAddr::from([192, 0, 2, 1]), Protocol::TCP, port);
        first.ports.extend([port(80), port(443)]);
        ports.write(first.clone());
        assert_eq!((ports.used(), ports.missing()), ([2, 1], 2));

        let mut second = Wanted::default();
        second.flag(prefix("10.96.0.3/32"), TO);
        second.ports.insert(port(443));
        // As with any update: first all that either wants, then what is wanted.
        first.add(&second);
        ports.write(first);
        assert_eq!(ports.missing(), 2);
        ports.wanted = second;
        ports.settle();
        assert_eq!((ports.used(), ports.missing()), ([1, 1], 0));
    }
}
