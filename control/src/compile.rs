//! The model as the records of the desired table. Pure: the same model gives the same records in the same order. A
//! service port keeps its number for as long as it exists, over restarts of control too, since the dataplane's flows
//! and counters know it by that number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sluice_dataplane::addr::Protocol;
use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, Key, NetworkKind, NetworkRecord, Record,
    ServicePortRecord, SettingsRecord, SourceRangeRecord,
};
use sluice_dataplane::index::ServicePortIndex;

use crate::endpoints::Slices;
use crate::endpoints::sets::{self, Here};
use crate::model::{Model, Service, ServiceName, ServicePort};

/// What names a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port, "" if unnamed.
    pub port: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// Which service port has which number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<PortName, ServicePortIndex>);

impl Numbers {
    /// As the dataplane has them.
    pub fn learn(records: &[Record]) -> Self {
        let number = |record: &Record| match record {
            Record::ServicePort(r) => Some((
                PortName {
                    namespace: r.namespace.clone(),
                    service: r.name.clone(),
                    port: r.port_name.clone(),
                    protocol: r.protocol,
                },
                r.index,
            )),
            _ => None,
        };
        Self(records.iter().filter_map(number).collect())
    }

    /// The numbers of `names`: those they have, and for new ones the lowest that none had. A number is free for another
    /// one update after its owner is gone, so that in no update it means both.
    fn assign(&self, names: impl Iterator<Item = PortName>) -> Self {
        let had: BTreeSet<u32> = self.0.values().map(|index| index.0).collect();
        let mut free = (0..).filter(|number| !had.contains(number));
        let number = |name: PortName| {
            let kept = self.0.get(&name).copied();
            let index = kept.or_else(|| free.next().map(ServicePortIndex))?;
            Some((name, index))
        };
        Self(names.filter_map(number).collect())
    }
}

/// What holds for all Services.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where this gateway is.
    pub here: Here,
    /// This node's addresses, for source ranges that one of them is in (LBR-3).
    pub node_addresses: Vec<IpAddr>,
    /// Where node addresses accept node ports; none: the primary ones (NP-2).
    pub node_port_addresses: Vec<IpNet>,
    /// Pods' addresses; none: nobody counts as a pod, nor as none (TP-2).
    pub pod_ranges: Vec<IpNet>,
    /// Cluster IPs are in these (VD-5).
    pub service_ranges: Vec<IpNet>,
    /// How a new flow picks its endpoint.
    pub algorithm: Algorithm,
    /// spec.externalIPs counts (SVC-12).
    pub external_ips: bool,
    /// Source ranges of one family close the load-balancer IPs of the other (LBR-4), which they leave open in Kubernetes.
    pub strict_source_ranges: bool,
    /// For the dataplane.
    pub switches: SettingsRecord,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            here: Here::default(),
            node_addresses: Vec::new(),
            node_port_addresses: Vec::new(),
            pod_ranges: Vec::new(),
            service_ranges: Vec::new(),
            algorithm: Algorithm::default(),
            external_ips: true,
            strict_source_ranges: false,
            switches: SettingsRecord::default(),
        }
    }
}

/// The desired table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Its records, in key order.
    pub records: Vec<Record>,
    /// Who has which number now.
    pub numbers: Numbers,
    /// Frontends that an older Service has already, as (Service, frontend): left out (SVC-12).
    pub conflicts: Vec<(String, String)>,
}

/// The desired table in parts, which are the same ones as before where nothing changed.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Frontends, networks and settings, by key.
    pub shared: BTreeMap<Key, Record>,
    /// What else each service port has: itself, its backends, its source ranges, in key order.
    pub ports: BTreeMap<ServicePortIndex, Arc<[Record]>>,
}

impl Desired {
    /// All records, in key order.
    pub fn records(&self) -> Vec<Record> {
        let ports = self.ports.values().flat_map(|records| records.iter());
        let mut all: Vec<Record> = self.shared.values().chain(ports).cloned().collect();
        all.sort_by_cached_key(Record::key);
        all
    }
}

impl FromIterator<Record> for Desired {
    /// The table of these records, in parts.
    fn from_iter<T: IntoIterator<Item = Record>>(records: T) -> Self {
        let mut ports = BTreeMap::<ServicePortIndex, BTreeMap<Key, Record>>::new();
        let mut shared = BTreeMap::new();
        for record in records {
            let of_port = match &record {
                Record::ServicePort(port) => Some(port.index),
                Record::Backend(backend) => Some(backend.service_port),
                Record::SourceRange(range) => Some(range.service_port),
                Record::Frontend(_) | Record::Network(_) | Record::Settings(_) => None,
            };
            let part = of_port.map_or(&mut shared, |index| ports.entry(index).or_default());
            part.insert(record.key(), record);
        }
        let ports = ports.into_iter();
        Self {
            shared,
            ports: ports
                .map(|(index, records)| (index, records.into_values().collect()))
                .collect(),
        }
    }
}

/// Compiles `model`; `before` are the numbers of the last compilation, or of the dataplane's inventory.
pub fn compile(model: &Model, slices: &Slices, settings: &Settings, before: &Numbers) -> Compiled {
    let services: Vec<_> = model.services().cloned().collect();
    compile_services(&services, slices, settings, before)
}

fn compile_services(
    services: &[Arc<Service>],
    slices: &Slices,
    settings: &Settings,
    before: &Numbers,
) -> Compiled {
    let mut compiler = Compiler::new(settings.clone());
    compiler.numbers = before.clone();
    let (desired, conflicts) = compiler.compile(services, slices);
    Compiled {
        records: desired.records(),
        numbers: compiler.numbers,
        conflicts,
    }
}

/// Compiles again and again: what a Service became is remembered, and not made anew while the Service and its slices are the
/// same.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    numbers: Numbers,
    made: BTreeMap<ServiceName, Made>,
}

/// What a Service became, and what from.
#[derive(Debug)]
struct Made {
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
    /// Of each of its ports.
    ports: Vec<(ServicePortIndex, Vec<FrontendRecord>, Arc<[Record]>)>,
}

impl Made {
    fn is_of(
        &self,
        service: &Arc<Service>,
        slices: &[Arc<EndpointSlice>],
        indexes: &[ServicePortIndex],
    ) -> bool {
        let same = |(a, b): (&Arc<EndpointSlice>, &Arc<EndpointSlice>)| Arc::ptr_eq(a, b);
        Arc::ptr_eq(&self.service, service)
            && self.slices.len() == slices.len()
            && self.slices.iter().zip(slices).all(same)
            && self.ports.iter().map(|(index, ..)| index).eq(indexes)
    }
}

impl Compiler {
    /// Nothing is numbered yet.
    pub const fn new(settings: Settings) -> Self {
        Self {
            settings,
            numbers: Numbers(BTreeMap::new()),
            made: BTreeMap::new(),
        }
    }

    /// What holds for all Services.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// From now on this gateway is in this zone.
    pub fn set_zone(&mut self, zone: String) {
        if self.settings.here.zone != zone {
            self.settings.here.zone = zone;
            self.made.clear();
        }
    }

    /// Takes over the numbers that a dataplane has, if it has any.
    pub fn learn(&mut self, inventory: &[Record]) {
        let learnt = Numbers::learn(inventory);
        if learnt != Numbers::default() {
            self.numbers = learnt;
        }
    }

    /// The desired table, and the frontends that an older Service has already, as (Service, frontend).
    pub fn compile(
        &mut self,
        services: &[Arc<Service>],
        slices: &Slices,
    ) -> (Desired, Vec<(String, String)>) {
        let proxied = || services.iter().filter(|service| service.is_proxied());
        let ports =
            proxied().flat_map(|service| service.ports.iter().map(move |port| port_name(service, port)));
        self.numbers = self.numbers.assign(ports);
        let mut before = std::mem::take(&mut self.made);
        for service in proxied() {
            let slices = slices.get(&service.name).map_or(&[][..], Vec::as_slice);
            let numbered = service.ports.iter().filter_map(|port| {
                let index = self.numbers.0.get(&port_name(service, port)).copied();
                index.map(|index| (index, port))
            });
            let numbered: Vec<_> = numbered.collect();
            let indexes: Vec<_> = numbered.iter().map(|(index, _)| *index).collect();
            let made = before
                .remove(&service.name)
                .filter(|made| made.is_of(service, slices, &indexes));
            let made = made.unwrap_or_else(|| {
                let port = |(index, port): (ServicePortIndex, &ServicePort)| {
                    let (frontends, records) = service_port(index, service, port, slices, &self.settings);
                    (index, frontends, records.into_values().collect())
                };
                Made {
                    service: service.clone(),
                    slices: slices.to_vec(),
                    ports: numbered.into_iter().map(port).collect(),
                }
            });
            self.made.insert(service.name.clone(), made);
        }
        let mut table = Table::default();
        table.put(Record::Settings(self.settings.switches));
        for (kind, network) in networks(&self.settings) {
            table.put(Record::Network(NetworkRecord { kind, network }));
        }
        let mut desired = Desired::default();
        // Older Services have lower numbers: theirs is the frontend that two want.
        let mut by_number = BTreeMap::new();
        for made in self.made.values() {
            for (index, frontends, records) in &made.ports {
                by_number.insert(*index, (&made.service, frontends));
                desired.ports.insert(*index, records.clone());
            }
        }
        for (service, frontends) in by_number.into_values() {
            for frontend in frontends {
                table.frontend(service, frontend.clone());
            }
        }
        desired.shared = table.records;
        (desired, table.conflicts)
    }
}

#[derive(Default)]
struct Table {
    records: BTreeMap<Key, Record>,
    conflicts: Vec<(String, String)>,
}

impl Table {
    fn put(&mut self, record: Record) {
        self.records.insert(record.key(), record);
    }

    /// The first of a key stays; who is refused is told, unless it is the same service port: one address may be written
    /// twice, or be of two kinds.
    fn frontend(&mut self, service: &Service, record: FrontendRecord) {
        let key = Key::Frontend(record.address, record.protocol, record.port);
        match self.records.get(&key) {
            Some(Record::Frontend(had)) if had.service_port == record.service_port => {}
            Some(_) => {
                let address = if record.has_own_address() {
                    record.address.to_string()
                } else {
                    "node port".to_owned()
                };
                let frontend = format!("{address} {}/{}", record.port, record.protocol);
                let conflict = (service.name.to_string(), frontend);
                // A node port is one to its user, in however many families.
                if self.conflicts.last() != Some(&conflict) {
                    self.conflicts.push(conflict);
                }
            }
            None => self.put(Record::Frontend(record)),
        }
    }
}

fn port_name(service: &Service, port: &ServicePort) -> PortName {
    PortName {
        namespace: service.name.namespace.clone(),
        service: service.name.name.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
    }
}

fn networks(settings: &Settings) -> Vec<(NetworkKind, IpNet)> {
    let pods = settings.pod_ranges.iter();
    let services = settings.service_ranges.iter();
    let mut node_ports = settings.node_port_addresses.clone();
    // NP-2: a list of one family leaves the other at "all".
    for zero in [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())] {
        let same = |network: &IpNet| network.addr().is_ipv4() == zero.addr().is_ipv4();
        if !node_ports.is_empty() && !node_ports.iter().any(same) {
            node_ports.push(zero);
        }
    }
    let pods = pods.map(|network| (NetworkKind::PodRange, network.trunc()));
    let services = services.map(|network| (NetworkKind::ServiceRange, network.trunc()));
    let node_ports = node_ports
        .iter()
        .map(|network| (NetworkKind::NodePortAddresses, network.trunc()));
    pods.chain(services).chain(node_ports).collect()
}

/// The frontends that a service port wants, and what else it has.
fn service_port(
    index: ServicePortIndex,
    service: &Service,
    port: &ServicePort,
    slices: &[Arc<EndpointSlice>],
    settings: &Settings,
) -> (Vec<FrontendRecord>, BTreeMap<Key, Record>) {
    let mut made = (Vec::new(), BTreeMap::new());
    let record = Record::ServicePort(ServicePortRecord {
        index,
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        algorithm: settings.algorithm,
        affinity_seconds: service.affinity_seconds,
        external_local: service.external_local,
        internal_local: service.internal_local,
    });
    made.1.insert(record.key(), record);
    // SVC-2, SVC-3: a family without a cluster IP has nothing.
    for cluster_ip in &service.cluster_ips {
        let family = Family {
            index,
            service,
            port,
            cluster_ip: *cluster_ip,
        };
        family.compile(&mut made, slices, settings);
    }
    made
}

/// A service port in one of its Service's families.
struct Family<'a> {
    index: ServicePortIndex,
    service: &'a Service,
    port: &'a ServicePort,
    cluster_ip: IpAddr,
}

impl Family<'_> {
    fn has(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.cluster_ip.is_ipv6()
    }

    fn compile(
        &self,
        (wanted, records): &mut (Vec<FrontendRecord>, BTreeMap<Key, Record>),
        slices: &[Arc<EndpointSlice>],
        settings: &Settings,
    ) {
        let mut put = |record: Record| records.insert(record.key(), record);
        let (service, port) = (self.service, self.port);
        // SVC-7.
        let mut frontends = vec![(FrontendKind::ClusterIp, self.cluster_ip, port.port)];
        let of_family = |kind, ip: IpAddr| self.has(ip).then_some((kind, ip, port.port));
        // Before external IPs: an address that is both has its source ranges.
        let balanced = service.load_balancer_ips.iter();
        frontends.extend(balanced.filter_map(|ip| of_family(FrontendKind::LoadBalancerIp, *ip)));
        let external_ips = service.external_ips.iter().filter(|_| settings.external_ips);
        frontends.extend(external_ips.filter_map(|ip| of_family(FrontendKind::ExternalIp, *ip)));
        if let Some(number) = port.node_port {
            let every = match self.cluster_ip {
                IpAddr::V4(_) => IpAddr::from([0; 4]),
                IpAddr::V6(_) => IpAddr::from([0; 16]),
            };
            frontends.push((FrontendKind::NodePort, every, number));
        }
        let external = frontends.iter().any(|(kind, ..)| kind.is_external());
        for (kind, address, number) in frontends {
            let record = FrontendRecord {
                address,
                protocol: port.protocol,
                port: number,
                kind,
                service_port: self.index,
            };
            wanted.push(record);
        }
        for network in self.source_ranges(settings) {
            let service_port = self.index;
            put(Record::SourceRange(SourceRangeRecord {
                service_port,
                network,
            }));
        }
        let ipv6 = self.cluster_ip.is_ipv6();
        for candidate in sets::candidates(service, port, slices, &settings.here, ipv6, external) {
            put(Record::Backend(BackendRecord {
                service_port: self.index,
                address: candidate.address,
                port: candidate.port,
                in_cluster_set: candidate.in_cluster_set,
                in_local_set: candidate.in_local_set,
                usable: candidate.usable,
                serving: candidate.serving,
                local: candidate.local,
            }));
        }
    }

    /// A source range that no packet comes from: the unspecified address never sends (RFC 1122 §3.2.1.3, RFC 4291 §2.5.2).
    const fn nobody(&self) -> IpNet {
        match self.cluster_ip {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
        }
    }

    /// LBR-3 to LBR-5: none where the family is unrestricted. LBR-8: the annotation is not read.
    fn source_ranges(&self, settings: &Settings) -> Vec<IpNet> {
        let balanced = self.service.load_balancer_ips.iter();
        let balanced: Vec<IpAddr> = balanced.copied().filter(|ip| self.has(*ip)).collect();
        let ranges = self
            .service
            .source_ranges
            .iter()
            .filter(|range| self.has(range.addr()));
        let mut ranges: Vec<IpNet> = ranges.copied().collect();
        if balanced.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
            return Vec::new();
        }
        if ranges.is_empty() {
            let closed = settings.strict_source_ranges && !self.service.source_ranges.is_empty();
            return closed.then(|| self.nobody()).into_iter().collect();
        }
        // The node talks to an address that is its own, too: from it.
        let node_is_in = |range: &IpNet| settings.node_addresses.iter().any(|node| range.contains(node));
        if ranges.iter().any(node_is_in) {
            ranges.extend(balanced.into_iter().map(IpNet::from));
        }
        ranges
    }
}

#[cfg(test)]
mod tests;
