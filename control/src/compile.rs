//! The model as the records of the desired table. Pure: the same model gives the same records in the same order. A
//! service port keeps its number for as long as it exists, over restarts of control too, since the dataplane's flows
//! and counters know it by that number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_dataplane::addr::Protocol;
use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, Key, NetworkKind, NetworkRecord, Record,
    ServicePortRecord, SettingsRecord,
};
use sluice_dataplane::index::ServicePortIndex;

use crate::endpoints::Slices;
use crate::endpoints::sets::{self, Here};
use crate::model::{Model, Service, ServicePort};

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
    /// Addresses that accept node ports; none: the primary one (NP-2).
    pub node_addresses: Vec<IpAddr>,
    /// Pods' addresses.
    pub pod_range: Option<IpNet>,
    /// Cluster IPs.
    pub service_range: IpNet,
    /// How a new flow picks its endpoint.
    pub algorithm: Algorithm,
    /// TP-3.
    pub masquerade_all: bool,
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

/// Compiles `model`; `before` are the numbers of the last compilation, or of the dataplane's inventory.
pub fn compile(model: &Model, slices: &Slices, settings: &Settings, before: &Numbers) -> Compiled {
    let proxied: Vec<&Service> = model
        .services()
        .map(|service| &**service)
        .filter(|service| service.is_proxied())
        .collect();
    let ports = || {
        proxied
            .iter()
            .flat_map(|service| service.ports.iter().map(move |port| (*service, port)))
    };
    let numbers = before.assign(ports().map(|(service, port)| port_name(service, port)));
    let mut table = Table::default();
    table.put(Record::Settings(SettingsRecord {
        masquerade_all: settings.masquerade_all,
        ..SettingsRecord::default()
    }));
    for (kind, network) in networks(settings) {
        table.put(Record::Network(NetworkRecord { kind, network }));
    }
    // Older Services have lower numbers: theirs is the frontend that two want.
    let mut by_number: Vec<_> = ports()
        .filter_map(|(service, port)| Some((*numbers.0.get(&port_name(service, port))?, service, port)))
        .collect();
    by_number.sort_by_key(|(index, ..)| *index);
    for (index, service, port) in by_number {
        let slices = slices.get(&service.name).map_or(&[][..], Vec::as_slice);
        service_port(&mut table, index, service, port, slices, settings);
    }
    Compiled {
        records: table.records.into_values().collect(),
        numbers,
        conflicts: table.conflicts,
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

    fn frontend(&mut self, service: &Service, record: FrontendRecord) {
        let record = Record::Frontend(record);
        let key = record.key();
        if let (Some(_), Key::Frontend(address, protocol, port)) = (self.records.get(&key), &key) {
            let address = if address.is_unspecified() {
                "node port".to_owned()
            } else {
                address.to_string()
            };
            let conflict = (service.name.to_string(), format!("{address} {port}/{protocol}"));
            // A node port is one to its user, in however many families.
            if self.conflicts.last() != Some(&conflict) {
                self.conflicts.push(conflict);
            }
            return;
        }
        self.records.insert(key, record);
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
    let pods = settings
        .pod_range
        .map(|network| (NetworkKind::PodRange, network.trunc()));
    let nodes = settings
        .node_addresses
        .iter()
        .map(|ip| (NetworkKind::NodePortAddresses, IpNet::from(*ip)));
    let services = (NetworkKind::ServiceRange, settings.service_range.trunc());
    pods.into_iter().chain([services]).chain(nodes).collect()
}

/// SVC-2, SVC-7.
fn service_port(
    table: &mut Table,
    index: ServicePortIndex,
    service: &Service,
    port: &ServicePort,
    slices: &[k8s_openapi::api::discovery::v1::EndpointSlice],
    settings: &Settings,
) {
    table.put(Record::ServicePort(ServicePortRecord {
        index,
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        algorithm: settings.algorithm,
        affinity_seconds: service.affinity_seconds,
        external_local: service.external_local,
        internal_local: service.internal_local,
    }));
    let has_family = |address: &IpAddr| {
        service
            .cluster_ips
            .iter()
            .any(|ip| ip.is_ipv6() == address.is_ipv6())
    };
    let cluster = service
        .cluster_ips
        .iter()
        .map(|ip| (FrontendKind::ClusterIp, *ip, port.port));
    let external = service.external_ips.iter().filter(|ip| has_family(ip));
    let external = external.map(|ip| (FrontendKind::ExternalIp, *ip, port.port));
    // In the families the Service has.
    let every = service.cluster_ips.iter().map(|ip| match ip {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    });
    let node = every.filter_map(|every| Some((FrontendKind::NodePort, every, port.node_port?)));
    for (kind, address, number) in cluster.chain(external).chain(node) {
        let record = FrontendRecord {
            address,
            protocol: port.protocol,
            port: number,
            kind,
            service_port: index,
        };
        table.frontend(service, record);
    }
    for candidate in sets::candidates(service, port, slices, &settings.here) {
        if has_family(&candidate.address) {
            table.put(Record::Backend(BackendRecord {
                service_port: index,
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
}
