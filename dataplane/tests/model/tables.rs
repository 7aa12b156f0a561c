//! What control has said, as lists to be searched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A service port.
#[derive(Clone, Debug, Default)]
pub struct Service {
    pub protocol: u8,
    pub algorithm: &'static str,
    pub external_local: bool,
    pub internal_local: bool,
    /// Seconds; 0 for none.
    pub affinity: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Cluster,
    External,
    LoadBalancer,
}

/// What an endpoint is named by.
pub type BackendName = (&'static str, IpAddr, u16);

/// An endpoint of a service port.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Whether it is in the Cluster set, and in the Local set (CAT-1, CAT-2: control says so).
    pub sets: [bool; 2],
    pub usable: bool,
    pub serving: bool,
    /// Which of all endpoints there ever were: one that comes back is another.
    pub life: u64,
}

/// A network: an address and the bits of it that count.
pub type Prefix = (IpAddr, u32);

pub fn contains((network, len): Prefix, address: IpAddr) -> bool {
    let (network, address) = match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => (u128::from(n.to_bits()) << 96, u128::from(a.to_bits()) << 96),
        (IpAddr::V6(n), IpAddr::V6(a)) => (n.to_bits(), a.to_bits()),
        _ => return false,
    };
    len == 0 || (network ^ address) >> (128 - len) == 0
}

#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub services: BTreeMap<&'static str, Service>,
    /// By address (the unspecified one of a family: a node port of it), protocol and port.
    pub frontends: BTreeMap<(IpAddr, u8, u16), (Kind, &'static str)>,
    pub backends: BTreeMap<BackendName, Backend>,
    pub pods: Vec<Prefix>,
    pub service_ranges: Vec<Prefix>,
    pub node_port_networks: Vec<Prefix>,
    /// Of a service: who may address its load-balancer IPs.
    pub source_ranges: Vec<(&'static str, Prefix)>,
    pub masquerade_all: bool,
    /// By `step::UNDEFINED`.
    pub undefined_ports: usize,
    lives: u64,
}

impl Tables {
    pub fn put_backend(&mut self, name: BackendName, mut backend: Backend) {
        self.lives += 1;
        backend.life = self.backends.get(&name).map_or(self.lives, |known| known.life);
        self.backends.insert(name, backend);
    }

    /// CT-5: the very endpoint is still there, and serves; or new flows may come to it, published though not ready (EPC-4).
    pub fn serves(&self, name: BackendName, life: u64) -> bool {
        self.backends.get(&name).is_some_and(|backend| {
            let chosen = backend.usable || backend.sets.contains(&true);
            backend.life == life && (backend.serving || chosen)
        })
    }

    /// Those of the family of `client` (SVC-2).
    fn of_family(&self, service: &str, client: IpAddr) -> impl Iterator<Item = (&BackendName, &Backend)> {
        let all = self.backends.iter();
        all.filter(move |((of, address, _), _)| *of == service && address.is_ipv4() == client.is_ipv4())
    }

    /// Where new flows go.
    pub fn set(&self, service: &str, local: bool, client: IpAddr) -> BTreeSet<BackendName> {
        self.of_family(service, client)
            .filter(|(_, b)| b.sets[usize::from(local)])
            .map(|(name, _)| *name)
            .collect()
    }

    /// CAT-7.
    pub fn has_any(&self, service: &str, client: IpAddr) -> bool {
        self.of_family(service, client).any(|(_, backend)| backend.usable)
    }

    /// LBR-2, LBR-4.
    pub fn source_allowed(&self, service: &str, client: IpAddr) -> bool {
        let ranges = self.source_ranges.iter().filter(|(of, _)| *of == service);
        let mut of_family = ranges
            .filter(|(_, range)| range.0.is_ipv4() == client.is_ipv4())
            .peekable();
        of_family.peek().is_none() || of_family.any(|(_, range)| contains(*range, client))
    }

    pub fn is_pod(&self, address: IpAddr) -> bool {
        self.pods.iter().any(|range| contains(*range, address))
    }

    /// TP-2: there are pod ranges of this address's family.
    pub fn has_pod_range(&self, address: IpAddr) -> bool {
        self.pods
            .iter()
            .any(|(range, _)| range.is_ipv4() == address.is_ipv4())
    }

    pub fn in_service_range(&self, address: IpAddr) -> bool {
        self.service_ranges.iter().any(|range| contains(*range, address))
    }

    /// What the address is to Services, whatever the port (VD-4, VD-6).
    pub fn kind_of(&self, address: IpAddr) -> Option<Kind> {
        let mut at = self.frontends.iter().filter(|((of, ..), _)| *of == address);
        at.next().map(|(_, (kind, _))| *kind)
    }
}
