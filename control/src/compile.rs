//! The model as the records of the desired table: the same model gives the same records, whether of all Services at once
//! or one change after the other. A service port keeps its number for as long as it exists, over restarts of control
//! too, since the dataplane's flows and counters know it by that number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sluice_dataplane::channel::record::{
    Algorithm, FrontendRecord, Key, NetworkKind, NetworkRecord, Record, SettingsRecord,
};
use sluice_dataplane::index::ServicePortIndex;

use crate::endpoints::Slices;
use crate::endpoints::sets::Here;
use crate::model::{Model, Service, ServiceName, Services};

/// Which service port has which number.
pub mod numbers;
/// A service port's frontends and backends.
mod service_port;

pub use numbers::Numbers;
use numbers::{PortName, port_names};
use service_port::service_port;

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
    compile_services(model.services_by_name(), slices, settings, before)
}

fn compile_services(services: &Services, slices: &Slices, settings: &Settings, before: &Numbers) -> Compiled {
    let mut compiler = Compiler::new(settings.clone());
    compiler.numbers = before.clone();
    compiler.compile(services, slices, &BTreeSet::new());
    Compiled {
        records: compiler.desired.records(),
        conflicts: compiler.conflicts(),
        numbers: compiler.numbers,
    }
}

/// Compiles again and again, each time only the Services that changed.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    numbers: Numbers,
    made: BTreeMap<ServiceName, Made>,
    /// Who wants which frontend, older Services first: the first has it.
    wanted: BTreeMap<Key, Vec<FrontendRecord>>,
    /// Those that several service ports want.
    contested: BTreeSet<Key>,
    desired: Desired,
    /// Nothing is made, or with other settings or numbers than there are now.
    stale: bool,
}

/// What a Service became.
#[derive(Debug)]
struct Made {
    /// Its ports.
    names: Vec<PortName>,
    indexes: Vec<ServicePortIndex>,
    frontends: Vec<Key>,
}

impl Compiler {
    /// Nothing is numbered yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            numbers: Numbers::default(),
            made: BTreeMap::new(),
            wanted: BTreeMap::new(),
            contested: BTreeSet::new(),
            desired: Desired::default(),
            stale: true,
        }
    }

    /// Who has which number, as of the last compilation.
    pub const fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// What holds for all Services.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// From now on this gateway is in this zone.
    pub fn set_zone(&mut self, zone: String) {
        if self.settings.here.zone != zone {
            self.settings.here.zone = zone;
            self.stale = true;
        }
    }

    /// Takes over the numbers that a dataplane has, if it has any.
    pub fn learn(&mut self, inventory: &[Record]) {
        let learnt = Numbers::learn(inventory);
        if learnt != Numbers::default() && learnt != self.numbers {
            self.numbers = learnt;
            self.stale = true;
        }
    }

    /// Brings the desired table up to date now that `changed` Services, or their slices, are others than before.
    pub fn compile(&mut self, services: &Services, slices: &Slices, changed: &BTreeSet<ServiceName>) {
        let mut changed = changed.clone();
        let mut old: Vec<PortName> = Vec::new();
        if std::mem::take(&mut self.stale) {
            self.begin();
            changed.extend(services.keys().cloned());
            old.extend(self.numbers.0.keys().cloned());
        }
        let before: Vec<Made> = changed.iter().filter_map(|name| self.made.remove(name)).collect();
        old.extend(before.iter().flat_map(|made| made.names.iter().cloned()));
        let proxied = changed.iter().filter_map(|name| services.get(name));
        let proxied: Vec<&Arc<Service>> = proxied.filter(|service| service.is_proxied()).collect();
        self.numbers.assign(
            old,
            proxied.iter().flat_map(|service| port_names(service)).collect(),
        );
        let mut touched = BTreeSet::new();
        for made in before {
            self.withdraw(made, &mut touched);
        }
        for service in proxied {
            let slices = slices.get(&service.name).map_or(&[][..], Vec::as_slice);
            self.add(service, slices, &mut touched);
        }
        touched.into_iter().for_each(|key| self.settle(key));
    }

    /// The desired table, as of the last compilation.
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Frontends that an older Service has already, as (Service, frontend).
    pub fn conflicts(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for wishes in self.contested.iter().filter_map(|key| self.wanted.get(key)) {
            let Some((first, others)) = wishes.split_first() else {
                continue;
            };
            for wish in others {
                if wish.service_port == first.service_port {
                    continue;
                }
                let address = if wish.has_own_address() {
                    wish.address.to_string()
                } else {
                    "node port".to_owned()
                };
                let frontend = format!("{address} {}/{}", wish.port, wish.protocol);
                found.push((wish.service_port, self.owner(wish.service_port), frontend));
            }
        }
        // A node port is one to its user, in however many families.
        found.sort();
        found.dedup();
        found
            .into_iter()
            .map(|(_, service, frontend)| (service, frontend))
            .collect()
    }

    fn owner(&self, port: ServicePortIndex) -> String {
        let mut records = self
            .desired
            .ports
            .get(&port)
            .into_iter()
            .flat_map(|all| all.iter());
        let owner = records.find_map(|record| match record {
            Record::ServicePort(port) => Some(format!("{}/{}", port.namespace, port.name)),
            _ => None,
        });
        owner.unwrap_or_default()
    }

    /// Forgets what was made, and makes what follows from the settings alone.
    fn begin(&mut self) {
        self.made.clear();
        self.wanted.clear();
        self.contested.clear();
        let networks = networks(&self.settings).into_iter();
        let networks = networks.map(|(kind, network)| Record::Network(NetworkRecord { kind, network }));
        self.desired = networks
            .chain([Record::Settings(self.settings.switches)])
            .collect();
    }

    fn withdraw(&mut self, made: Made, touched: &mut BTreeSet<Key>) {
        for index in &made.indexes {
            self.desired.ports.remove(index);
        }
        for key in &made.frontends {
            if let Some(wishes) = self.wanted.get_mut(key) {
                wishes.retain(|wish| !made.indexes.contains(&wish.service_port));
            }
        }
        touched.extend(made.frontends);
    }

    fn add(&mut self, service: &Arc<Service>, slices: &[Arc<EndpointSlice>], touched: &mut BTreeSet<Key>) {
        let mut made = Made {
            names: port_names(service),
            indexes: Vec::new(),
            frontends: Vec::new(),
        };
        for (port, name) in service.ports.iter().zip(&made.names) {
            let Some(&index) = self.numbers.0.get(name) else {
                continue;
            };
            let (frontends, records) = service_port(index, service, port, slices, &self.settings);
            made.indexes.push(index);
            self.desired.ports.insert(index, records.into_values().collect());
            for frontend in frontends {
                let key = Key::Frontend(frontend.address, frontend.protocol, frontend.port);
                let wishes = self.wanted.entry(key.clone()).or_default();
                // Older Services have lower numbers. One address may be written twice, or be of two kinds: the first of these.
                let place = wishes.partition_point(|wish| wish.service_port <= index);
                wishes.insert(place, frontend);
                touched.insert(key.clone());
                made.frontends.push(key);
            }
        }
        self.made.insert(service.name.clone(), made);
    }

    /// Gives a frontend to whom it belongs now.
    fn settle(&mut self, key: Key) {
        let wishes = self.wanted.get(&key).map_or(&[][..], Vec::as_slice);
        let Some((first, others)) = wishes.split_first() else {
            self.wanted.remove(&key);
            self.contested.remove(&key);
            self.desired.shared.remove(&key);
            return;
        };
        let record = Record::Frontend(first.clone());
        if others
            .iter()
            .any(|other| other.service_port != first.service_port)
        {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(&key);
        }
        self.desired.shared.insert(key, record);
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

#[cfg(test)]
mod tests;
