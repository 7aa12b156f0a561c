//! Builds the next tables. Takes transactions of control, in order; gives one new generation for each, or a refusal
//! that changed nothing. Owned by the steward: it allocates, and it may take its time.
//!
//! Nothing is written before `check` has passed the whole transaction, and nothing can fail after, so there is no way
//! back to take.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Tables;
use super::addresses::Addresses;
use super::check::{Changes, check};
use super::frontends::{Frontend, FrontendKey};
use super::limits::TableLimits;
use super::maglev;
use super::networks::{Networks, Ranges};
use super::refusal::Refusal;
use super::rows::{BackendRow, FrontendName, Rows, ServicePortRow, TablesUsed};
use super::service_port::{EndpointSet, Endpoints, Family, ServicePort};
use super::side::Keyed;
use super::slots::{self, Slots};
use crate::addr::{Port, V4, V6};
use crate::channel::record::{
    Algorithm, BackendRecord, FrontendRecord, Key, NetworkKind, Record, ServicePortRecord,
};
use crate::index::{BackendIndex, Generation, ServicePortIndex};

/// The acknowledged record set, the slots of its backends, and the tables built of them.
pub struct TablesBuilder {
    limits: TableLimits,
    rows: Rows,
    addresses: Addresses,
    slots: Slots,
    tables: Arc<Tables>,
}

/// What a transaction has touched and must be built anew.
#[derive(Default)]
struct Touched {
    frontends: BTreeSet<FrontendName>,
    addresses: BTreeSet<IpAddr>,
    service_ports: BTreeSet<ServicePortIndex>,
    networks: bool,
}

impl TablesBuilder {
    /// No rows, generation 0.
    pub fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            rows: Rows::default(),
            addresses: Addresses::default(),
            slots: Slots::default(),
            tables: Arc::new(Tables::empty()),
        }
    }

    /// No rows, generation 0, and these addresses known as those of frontends that are gone: clients of flows that were
    /// taken over speak to them, and their packets must find the flows' worker before control has told what there is, and
    /// also where it tells of no such frontend any more (CT-2, CT-12). The limit of former addresses holds.
    #[must_use]
    pub fn remembering(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut next = Tables::clone(&self.tables);
        let limit = self.limits.former_addresses as usize;
        let mut rows = BTreeSet::new();
        for address in addresses {
            self.addresses.had(address);
            rows.insert(address);
            rows.extend(self.addresses.settle(address, limit));
        }
        self.build_frontends::<V4>(&BTreeSet::new(), &rows, &mut next);
        self.build_frontends::<V6>(&BTreeSet::new(), &rows, &mut next);
        self.tables = Arc::new(next);
        self
    }

    /// The tables in force.
    pub const fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Generation of the tables built last.
    pub fn generation(&self) -> Generation {
        self.tables.generation
    }

    /// Every acknowledged record, each after those it refers to: put in this order, they make the same tables.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.rows.records()
    }

    /// How many rows there are.
    pub fn used(&self) -> TablesUsed {
        self.rows.used()
    }

    /// How many rows there may be.
    pub const fn limits(&self) -> &TableLimits {
        &self.limits
    }

    /// Deletes rows, then puts rows, and gives the tables that are now in force; all of it or, refused, nothing. A row
    /// that is deleted and put at once is a new one: a backend's flows do not outlive that. Cost is proportional to
    /// the change, the service ports it touches, and a shard or chunk for each.
    ///
    /// # Errors
    ///
    /// A generation that is not after the present one, a delete without a row, a put out of bounds or without what
    /// it refers to, a delete of what is referred to, or more rows than the limits.
    pub fn apply(
        &mut self,
        generation: Generation,
        deletes: &[Key],
        puts: &[Record],
    ) -> Result<Arc<Tables>, Refusal> {
        let current = self.tables.generation;
        let changes = check(&self.rows, &self.limits, current, generation, deletes, puts)?;
        // Shares everything with the tables in force until it is written to.
        let mut next = Tables::clone(&self.tables);
        next.generation = generation;
        let mut touched = Touched::default();
        self.delete_rows(&changes, &mut next, &mut touched);
        self.put_rows(&changes, &mut next, &mut touched);
        self.build(&touched, &mut next);
        self.tables = Arc::new(next);
        Ok(Arc::clone(&self.tables))
    }

    fn delete_rows(&mut self, changes: &Changes<'_>, next: &mut Tables, touched: &mut Touched) {
        // Last keys first: what refers to a service port goes before it.
        for (key, change) in changes.iter().rev().filter(|(_, change)| change.delete) {
            match *key {
                Key::Settings => self.rows.settings = None,
                Key::Network(kind, network) => {
                    self.rows.networks.remove(&(kind, network));
                    touched.networks = true;
                }
                Key::Backend(index, address, port) => {
                    self.delete_backend(index, (address, port), next, touched)
                }
                Key::Frontend(address, protocol, port) => {
                    self.delete_frontend((address, protocol, port), touched);
                }
                Key::SourceRange(index, network) => {
                    if let Some(row) = self.rows.service_ports.get_mut(&index) {
                        self.rows.source_ranges -= row.source_ranges.remove(&network) as usize;
                        touched.service_ports.insert(index);
                    }
                }
                // Put again at once: its rows stay where they are.
                Key::ServicePort(_) if change.put.is_some() => {}
                Key::ServicePort(index) => {
                    self.rows.service_ports.remove(&index);
                    touched.service_ports.insert(index);
                }
            }
        }
    }

    fn put_rows(&mut self, changes: &Changes<'_>, next: &mut Tables, touched: &mut Touched) {
        // First keys first: a service port comes before what refers to it.
        for record in changes.values().filter_map(|change| change.put) {
            match record {
                Record::ServicePort(record) => self.put_service_port(record, touched),
                Record::Frontend(record) => self.put_frontend(record, touched),
                Record::Backend(record) => self.put_backend(record, next, touched),
                Record::SourceRange(record) => {
                    if let Some(row) = self.rows.service_ports.get_mut(&record.service_port) {
                        self.rows.source_ranges += row.source_ranges.insert(record.network) as usize;
                        touched.service_ports.insert(record.service_port);
                    }
                }
                Record::Network(record) => {
                    self.rows.networks.insert((record.kind, record.network));
                    touched.networks = true;
                }
                Record::Settings(record) => self.rows.settings = Some(*record),
            }
        }
    }

    fn put_service_port(&mut self, record: &ServicePortRecord, touched: &mut Touched) {
        touched.service_ports.insert(record.index);
        self.rows
            .service_ports
            .entry(record.index)
            .and_modify(|row| row.record = record.clone())
            .or_insert_with(|| ServicePortRow {
                record: record.clone(),
                frontends: BTreeSet::new(),
                backends: BTreeMap::new(),
                source_ranges: BTreeSet::new(),
            });
    }

    fn put_frontend(&mut self, record: &FrontendRecord, touched: &mut Touched) {
        let name = (record.address, record.protocol, record.port);
        self.delete_frontend(name, touched);
        touched.frontends.insert(name);
        if let Some(row) = self.rows.service_ports.get_mut(&record.service_port) {
            row.frontends.insert(name);
        }
        if record.has_own_address() {
            touched.addresses.insert(record.address);
            self.addresses.gain(record.address, record.kind);
        }
        self.rows.frontends.insert(name, record.clone());
    }

    fn delete_frontend(&mut self, name: FrontendName, touched: &mut Touched) {
        let Some(record) = self.rows.frontends.remove(&name) else {
            return;
        };
        touched.frontends.insert(name);
        if let Some(row) = self.rows.service_ports.get_mut(&record.service_port) {
            row.frontends.remove(&name);
        }
        if record.has_own_address() {
            touched.addresses.insert(record.address);
            self.addresses.lose(record.address, record.kind);
        }
    }

    fn put_backend(&mut self, record: &BackendRecord, next: &mut Tables, touched: &mut Touched) {
        touched.service_ports.insert(record.service_port);
        // `check` saw that it exists.
        let Some(service_port) = self.rows.service_ports.get_mut(&record.service_port) else {
            return;
        };
        let name = (record.address, record.port);
        let present = service_port.backends.get(&name);
        self.rows.backends += present.is_none() as usize;
        let slot = present.map_or_else(|| self.slots.take(), |row| row.slot);
        match record.address {
            IpAddr::V4(address) => slots::occupy(next, slot, address.octets(), record),
            IpAddr::V6(address) => slots::occupy(next, slot, address.octets(), record),
        }
        service_port.backends.insert(
            name,
            BackendRow {
                record: record.clone(),
                slot,
            },
        );
    }

    fn delete_backend(
        &mut self,
        index: ServicePortIndex,
        name: (IpAddr, u16),
        next: &mut Tables,
        touched: &mut Touched,
    ) {
        let service_port = self.rows.service_ports.get_mut(&index);
        let Some(row) = service_port.and_then(|row| row.backends.remove(&name)) else {
            return;
        };
        touched.service_ports.insert(index);
        self.rows.backends -= 1;
        self.slots.vacate(next, row.slot);
    }

    fn build(&mut self, touched: &Touched, next: &mut Tables) {
        next.settings = self.rows.settings.unwrap_or_default();
        if touched.networks {
            self.build_networks::<V4>(next);
            self.build_networks::<V6>(next);
            let networks = self.rows.networks.iter();
            let node_ports = networks.filter(|(kind, _)| *kind == NetworkKind::NodePortAddresses);
            next.node_port_addresses = node_ports.map(|(_, network)| *network).collect();
        }
        if !touched.frontends.is_empty() {
            let limit = self.limits.former_addresses as usize;
            let mut addresses = touched.addresses.clone();
            addresses.extend(
                touched
                    .addresses
                    .iter()
                    .filter_map(|&a| self.addresses.settle(a, limit)),
            );
            self.build_frontends::<V4>(&touched.frontends, &addresses, next);
            self.build_frontends::<V6>(&touched.frontends, &addresses, next);
        }
        for index in &touched.service_ports {
            let row = self.rows.service_ports.get(index);
            let built = row.map(|row| Arc::new(self.service_port(row, next)));
            for (service_port, sign) in [(self.tables.service_port(*index), -1), (built.as_deref(), 1)] {
                if let Some(service_port) = service_port {
                    service_port.count(&mut next.without_local, sign);
                }
            }
            next.service_ports.set(index.get(), built);
        }
    }

    fn build_networks<A: Keyed>(&self, next: &mut Tables) {
        A::side_mut(next).networks = Arc::new(Networks::new(self.rows.networks.iter()));
    }

    /// Makes the family's frontend table agree with the rows under these names, and with what these addresses are.
    fn build_frontends<A: Keyed>(
        &self,
        names: &BTreeSet<FrontendName>,
        addresses: &BTreeSet<IpAddr>,
        next: &mut Tables,
    ) {
        let frontends = names.iter().filter_map(|name| {
            let &(address, protocol, port) = name;
            let (address, port) = (A::of(address)?, Port::new(port));
            let key = if address == A::default() {
                FrontendKey::node_port(protocol, port)
            } else {
                FrontendKey::exact(address, protocol, port)
            };
            let row = self.rows.frontends.get(name).map(|row| Frontend {
                service_port: row.service_port,
                kind: row.kind,
            });
            Some((key, row))
        });
        let addresses = addresses.iter().filter_map(|&address| {
            Some((FrontendKey::address(A::of(address)?), self.addresses.row(address)))
        });
        A::side_mut(next).frontends.edit(frontends.chain(addresses));
    }

    fn service_port(&self, row: &ServicePortRow, next: &Tables) -> ServicePort {
        ServicePort {
            record: row.record.clone(),
            v4: self.family(row, next),
            v6: self.family(row, next),
        }
    }

    fn family<A: Keyed>(&self, row: &ServicePortRow, next: &Tables) -> Family<A> {
        Family {
            endpoints: self.endpoints::<A>(row, next),
            sources: Ranges::new(row.source_ranges.iter().copied()),
        }
    }

    fn endpoints<A: Keyed>(&self, row: &ServicePortRow, next: &Tables) -> Endpoints {
        let rows = || {
            row.backends
                .values()
                .filter(|row| A::of(row.record.address).is_some())
        };
        let slots = |member: fn(&BackendRecord) -> bool| -> Vec<BackendIndex> {
            let members = rows().filter(|row| member(&row.record));
            members.map(|row| row.slot).collect()
        };
        let last = self
            .tables
            .service_port(row.record.index)
            .map(ServicePort::endpoints::<A>);
        let algorithm = row.record.algorithm;
        let set = |slots, last| self.endpoint_set::<A>(algorithm, slots, next, last);
        Endpoints::new(
            rows().any(|row| row.record.usable),
            set(
                slots(|record| record.in_cluster_set),
                last.map(|last| &last.cluster),
            ),
            set(slots(|record| record.in_local_set), last.map(|last| &last.local)),
            slots(|_| true),
        )
    }

    /// A set of these slots; the last one itself, if it has the same endpoints: a Maglev table is most of the cost.
    fn endpoint_set<A: Keyed>(
        &self,
        algorithm: Algorithm,
        slots: Vec<BackendIndex>,
        next: &Tables,
        last: Option<&EndpointSet>,
    ) -> EndpointSet {
        let identity = |tables: &Tables, slot| {
            let backend = tables.backend::<A>(slot);
            backend.map_or(0, |backend| maglev::identity(backend.address, backend.port))
        };
        let wanted = if algorithm == Algorithm::Maglev {
            maglev::size(slots.len())
        } else {
            0
        };
        if let Some(last) = last
            && last.maglev().len() == wanted
            && last.backends() == slots
            && slots
                .iter()
                .all(|&slot| identity(&self.tables, slot) == identity(next, slot))
        {
            return last.clone();
        }
        let identities: Vec<u64> = slots.iter().map(|&slot| identity(next, slot)).collect();
        let table = if wanted > 0 {
            maglev::table(&identities)
        } else {
            Vec::new()
        };
        EndpointSet::new(slots, table)
    }
}
