//! Which packets of an interface that the kernel uses, too, are Services': what the tables mean for the maps of its XDP program
//! (`nic::xdp_shared`).
//!
//! Takes  records and the node's own addresses.
//! Gives  prefixes with flags, and ports: what is new before the workers take a new table, what has gone after all took it, so that
//!        at no time a frontend is nobody's. What has gone drains: connections that are open go on (CT-2), for as long as a flow may
//!        be idle, or until there is no room for what is newer.
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
use crate::nic::xdp_shared::{AddressPort, DRAINING, FROM, OWN, PARTLY, SERVED, SharedMaps, TO};
use crate::tables::Tables;
use crate::tick::{TICKS_PER_SECOND, Tick};

type Prefix = (IpAddr, u8);

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Each prefix's own flags.
    prefixes: BTreeMap<Prefix, u32>,
    /// What is said of each.
    ports: BTreeMap<AddressPort, u32>,
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
                    wanted.ports.extend(ports.map(|port| (port, SERVED)));
                }
                Record::Frontend(f) if f.kind == FrontendKind::ClusterIp => {
                    wanted.flag(whole(f.address), TO);
                }
                Record::Frontend(f) => {
                    wanted.ports.insert((f.address, f.protocol, f.port), SERVED);
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
        for (&port, &says) in &other.ports {
            let of_both = self.ports.entry(port).or_insert(says);
            *of_both = says.min(*of_both);
        }
    }

    fn subtract(&mut self, other: &Self) {
        self.ports.retain(|port, _| !other.ports.contains_key(port));
        self.prefixes.retain(|prefix, flags| {
            *flags &= !other.prefixes.get(prefix).copied().unwrap_or_default();
            *flags != 0
        });
    }

    /// What of this is not in `newer` and need not end with it: connections by TCP, endpoints and addresses that are not the node's.
    fn draining(&self, newer: &Self) -> Self {
        let flags = |(&prefix, &flags): (&Prefix, &u32)| {
            let left = flags & !OWN & !newer.around(prefix);
            (left != 0 && flags & OWN == 0).then_some((prefix, left))
        };
        let ports = self.ports.keys().filter(|port| port.1 == Protocol::TCP);
        let gone = ports.filter(|port| !newer.ports.contains_key(port));
        Self {
            prefixes: self.prefixes.iter().filter_map(flags).collect(),
            ports: gone.map(|&port| (port, DRAINING)).collect(),
        }
    }

    /// The flags that packets of a prefix have.
    fn around(&self, (address, length): Prefix) -> u32 {
        let Ok(net) = ipnet::IpNet::new(address, length) else {
            return 0;
        };
        let wider = std::iter::successors(Some(net), ipnet::IpNet::supernet);
        let flags = wider.filter_map(|net| self.prefixes.get(&(net.network(), net.prefix_len())));
        flags.fold(0, |all, flags| all | flags)
    }

    fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.ports.is_empty()
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

/// Between two looks at what has drained.
const LOOK: u32 = 60 * TICKS_PER_SECOND;

/// The maps, and what is in them.
#[derive(Debug)]
pub struct SharedPorts {
    maps: Arc<SharedMaps>,
    /// In the maps, but for what is missing.
    held: Wanted,
    /// What the newest tables mean.
    wanted: Wanted,
    /// What any tables mean that a worker may have.
    in_use: Wanted,
    /// What older ones meant, by when it is forgotten.
    draining: BTreeMap<Tick, Wanted>,
    /// How long, in ticks; and when it was last looked for what is over.
    drain: u32,
    looked: Tick,
    /// What found no room. It is tried again with every update.
    missing: (BTreeSet<Prefix>, BTreeSet<AddressPort>),
    /// Packets that were withheld so far.
    lost: u64,
}

impl SharedPorts {
    /// For maps that are empty, or hold what another process meant: that stays until the first update. What is gone drains for
    /// `drain` ticks. Errors: as of bpf(2).
    pub fn new(maps: Arc<SharedMaps>, drain: u32) -> io::Result<Self> {
        let (prefixes, ports) = maps.contents()?;
        let held = Wanted {
            prefixes: prefixes.into_iter().collect(),
            ports: ports.into_iter().collect(),
        };
        Ok(Self {
            maps,
            in_use: held.clone(),
            held,
            wanted: Wanted::default(),
            draining: BTreeMap::new(),
            drain,
            looked: Tick(0),
            missing: Default::default(),
            lost: 0,
        })
    }

    /// Has the programs withhold Services' packets should this process end; gives how many were withheld since the last call.
    pub fn renew(&mut self, now: Tick) -> u64 {
        if now.since(self.looked) >= LOOK {
            self.looked = now;
            let before = self.draining.len();
            self.draining.retain(|&end, _| now.since(end) == 0);
            if self.draining.len() < before {
                self.write();
            }
        }
        // They could only fail for want of memory that the kernel has long had.
        let _ = self.maps.renew();
        let lost = self.maps.lost().unwrap_or(self.lost);
        lost - std::mem::replace(&mut self.lost, lost).min(lost)
    }

    /// Before workers take `tables`: adds what they mean.
    pub fn extend(&mut self, records: impl Iterator<Item = Record>, tables: &Tables, network: &Network) {
        self.mean(Wanted::of(records, tables, network));
    }

    fn mean(&mut self, wanted: Wanted) {
        for older in self.draining.values_mut() {
            older.subtract(&wanted);
        }
        self.in_use.add(&wanted);
        self.wanted = wanted;
        self.write();
    }

    /// After all workers took the newest tables: lets drain what only older ones meant.
    pub fn settle(&mut self, now: Tick) {
        if self.in_use == self.wanted && self.missing() == 0 {
            return;
        }
        let mut known = self.wanted.clone();
        self.draining.values().for_each(|older| known.add(older));
        let gone = self.in_use.draining(&known);
        self.in_use = self.wanted.clone();
        if !gone.is_empty() {
            let end = Tick(now.0.wrapping_add(self.drain));
            self.draining.entry(end).or_default().add(&gone);
        }
        self.write();
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

    /// What is in use, and what drains, as far as there is room.
    fn write(&mut self) {
        let mut all = self.in_use.clone();
        self.draining.values().for_each(|older| all.add(older));
        self.try_write(all);
        if self.missing() > 0 && !self.draining.is_empty() {
            self.draining.clear();
            log::warn!(
                "no room in the maps of shared interfaces: connections of deleted frontends are left to the kernel"
            );
            self.try_write(self.in_use.clone());
        }
    }

    fn try_write(&mut self, new: Wanted) {
        let (old, flags) = (self.held.inherited(), new.inherited());
        // First, so that there is room; what is missing is not there to be removed.
        for port in self
            .held
            .ports
            .keys()
            .filter(|port| !new.ports.contains_key(port))
        {
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
        for (port, says) in &new.ports {
            let known = self.held.ports.get(port) == Some(says) && !ports.contains(port);
            if !known && self.maps.set_port(*port, *says).is_err() {
                self.missing.1.insert(*port);
            }
        }
        self.held = new;
    }
}

#[cfg(test)]
mod tests;
