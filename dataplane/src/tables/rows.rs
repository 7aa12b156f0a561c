//! The acknowledged record set: every row control has put and the steward accepted, in key order, with what refers to
//! what. The tables are built of it, and a fresh control asks for it back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::Protocol;
use crate::channel::record::{
    BackendRecord, FrontendRecord, Key, NetworkKind, NetworkRecord, Record, ServicePortRecord,
    SettingsRecord, SourceRangeRecord,
};
use crate::index::{BackendIndex, ServicePortIndex};

/// How many rows of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TablesUsed {
    /// Service ports.
    pub service_ports: usize,
    /// Frontends.
    pub frontends: usize,
    /// Backends.
    pub backends: usize,
    /// Source ranges.
    pub source_ranges: usize,
    /// Networks.
    pub networks: usize,
}

/// Address, protocol and port of a frontend, as in `Key::Frontend`.
pub(super) type FrontendName = (IpAddr, Protocol, u16);

/// A backend and its slot.
pub(super) struct BackendRow {
    pub(super) record: BackendRecord,
    pub(super) slot: BackendIndex,
}

/// A service port and what refers to it.
pub(super) struct ServicePortRow {
    pub(super) record: ServicePortRecord,
    pub(super) frontends: BTreeSet<FrontendName>,
    /// By address and port: the order of endpoint sets.
    pub(super) backends: BTreeMap<(IpAddr, u16), BackendRow>,
    pub(super) source_ranges: BTreeSet<IpNet>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) service_ports: BTreeMap<ServicePortIndex, ServicePortRow>,
    pub(super) frontends: BTreeMap<FrontendName, FrontendRecord>,
    pub(super) networks: BTreeSet<(NetworkKind, IpNet)>,
    pub(super) settings: Option<SettingsRecord>,
    /// How many backends all service ports have together.
    pub(super) backends: usize,
    /// How many source ranges all service ports have together.
    pub(super) source_ranges: usize,
}

impl Rows {
    pub(super) fn contains(&self, key: &Key) -> bool {
        match *key {
            Key::ServicePort(index) => self.service_ports.contains_key(&index),
            Key::Frontend(address, protocol, port) => self.frontends.contains_key(&(address, protocol, port)),
            Key::Backend(index, address, port) => self
                .service_ports
                .get(&index)
                .is_some_and(|row| row.backends.contains_key(&(address, port))),
            Key::SourceRange(index, network) => self
                .service_ports
                .get(&index)
                .is_some_and(|row| row.source_ranges.contains(&network)),
            Key::Network(kind, network) => self.networks.contains(&(kind, network)),
            Key::Settings => self.settings.is_some(),
        }
    }

    pub(super) fn used(&self) -> TablesUsed {
        TablesUsed {
            service_ports: self.service_ports.len(),
            frontends: self.frontends.len(),
            backends: self.backends,
            source_ranges: self.source_ranges,
            networks: self.networks.len(),
        }
    }

    /// Every record, each after those it refers to.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        let settings = self.settings.iter().map(|&settings| Record::Settings(settings));
        let networks = self
            .networks
            .iter()
            .map(|&(kind, network)| Record::Network(NetworkRecord { kind, network }));
        let rows = self.service_ports.values();
        let service_ports = rows.clone().map(|row| Record::ServicePort(row.record.clone()));
        let frontends = self
            .frontends
            .values()
            .map(|record| Record::Frontend(record.clone()));
        let backends = rows.clone().flat_map(|row| {
            row.backends
                .values()
                .map(|backend| Record::Backend(backend.record.clone()))
        });
        let source_ranges = rows.flat_map(|row| {
            let service_port = row.record.index;
            let record = move |&network| {
                Record::SourceRange(SourceRangeRecord {
                    service_port,
                    network,
                })
            };
            row.source_ranges.iter().map(record)
        });
        settings
            .chain(networks)
            .chain(service_ports)
            .chain(frontends)
            .chain(backends)
            .chain(source_ranges)
    }
}
