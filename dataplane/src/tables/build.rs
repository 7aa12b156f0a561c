//! Builds the next tables. Takes transactions of control, in order; gives one new generation for each, or a refusal
//! that changed nothing. Owned by the steward: it allocates, and it may take its time.
//!
//! Nothing is written before `check` has passed the whole transaction, and nothing can fail after, so there is no way
//! back to take.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::Tables;
use super::check::{Changes, check};
use super::frontends::{Frontend, FrontendKey};
use super::limits::TableLimits;
use super::maglev;
use super::networks::Networks;
use super::refusal::Refusal;
use super::rows::{BackendRow, FrontendName, Rows, ServicePortRow, TablesUsed};
use super::service_port::{EndpointSet, ServicePort};
use super::slots::{self, Slots};
use crate::addr::Port;
use crate::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, Key, Record, ServicePortRecord,
};
use crate::index::{BackendIndex, Generation, ServicePortIndex};

/// The acknowledged record set, the slots of its backends, and the tables built of them.
pub struct TablesBuilder {
    limits: TableLimits,
    rows: Rows,
    addresses: BTreeMap<Ipv4Addr, AddressUse>,
    slots: Slots,
    tables: Arc<Tables>,
}

/// How many frontends an address has.
#[derive(Clone, Copy, Default)]
struct AddressUse {
    cluster: u32,
    external: u32,
}

/// What a transaction has touched and must be built anew.
#[derive(Default)]
struct Touched {
    frontends: BTreeSet<FrontendName>,
    addresses: BTreeSet<Ipv4Addr>,
    service_ports: BTreeSet<ServicePortIndex>,
    networks: bool,
}

impl TablesBuilder {
    /// No rows, generation 0.
    pub fn new(limits: TableLimits) -> Self {
        Self {
            limits,
            rows: Rows::default(),
            addresses: BTreeMap::new(),
            slots: Slots::default(),
            tables: Arc::new(Tables::empty()),
        }
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

    /// The slot of a backend, if there is such an IPv4 backend: how a flow that outlived a restart finds it again.
    pub fn backend_slot(
        &self,
        service_port: ServicePortIndex,
        address: [u8; 4],
        port: Port,
    ) -> Option<BackendIndex> {
        let row = self.rows.service_ports.get(&service_port)?;
        row.backends.get(&(IpAddr::from(address), port.number()))?.slot
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
            });
    }

    fn put_frontend(&mut self, record: &FrontendRecord, touched: &mut Touched) {
        let name = (record.address, record.protocol, record.port);
        self.delete_frontend(name, touched);
        touched.frontends.insert(name);
        if let Some(row) = self.rows.service_ports.get_mut(&record.service_port) {
            row.frontends.insert(name);
        }
        if let Some(IpAddr::V4(address)) = record.address {
            touched.addresses.insert(address);
            *self.addresses.entry(address).or_default().of(record.kind) += 1;
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
        if let Some(IpAddr::V4(address)) = record.address {
            touched.addresses.insert(address);
            *self.addresses.entry(address).or_default().of(record.kind) -= 1;
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
        let slot = match record.address {
            IpAddr::V4(address) => {
                let slot = present
                    .and_then(|row| row.slot)
                    .unwrap_or_else(|| self.slots.take());
                slots::occupy(next, slot, address, record);
                Some(slot)
            }
            IpAddr::V6(_) => None,
        };
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
        if let Some(slot) = row.slot {
            self.slots.vacate(next, slot);
        }
    }

    fn build(&mut self, touched: &Touched, next: &mut Tables) {
        next.settings = self.rows.settings.unwrap_or_default();
        if touched.networks {
            next.networks = Arc::new(Networks::new(self.rows.networks.iter()));
        }
        if !touched.frontends.is_empty() {
            let frontends = touched.frontends.iter().filter_map(|name| self.frontend(name));
            let addresses = touched.addresses.iter().map(|address| {
                let row = self.addresses.get(address).and_then(AddressUse::frontend);
                (FrontendKey::address(address.octets()), row)
            });
            next.frontends.edit(frontends.chain(addresses));
            for address in &touched.addresses {
                if self
                    .addresses
                    .get(address)
                    .is_some_and(|uses| uses.frontend().is_none())
                {
                    self.addresses.remove(address);
                }
            }
        }
        for index in &touched.service_ports {
            let row = self.rows.service_ports.get(index);
            let built = row.map(|row| Arc::new(self.service_port(row, next)));
            next.service_ports.set(index.get(), built);
        }
    }

    /// The change that makes the table agree with the rows; `None` for a frontend that is IPv6.
    fn frontend(&self, name: &FrontendName) -> Option<(FrontendKey, Option<Frontend>)> {
        let &(address, protocol, port) = name;
        let key = match address {
            Some(IpAddr::V4(v4)) => FrontendKey::exact(v4.octets(), protocol, Port::new(port)),
            Some(IpAddr::V6(_)) => return None,
            None => FrontendKey::node_port(protocol, Port::new(port)),
        };
        let row = self.rows.frontends.get(name);
        Some((
            key,
            row.map(|row| Frontend {
                service_port: row.service_port,
                kind: row.kind,
            }),
        ))
    }

    fn service_port(&self, row: &ServicePortRow, next: &Tables) -> ServicePort {
        let v4 = || {
            row.backends
                .values()
                .filter_map(|backend| Some((backend, backend.slot?)))
        };
        let set = |member: fn(&BackendRecord) -> bool| -> Vec<BackendIndex> {
            v4().filter(|(backend, _)| member(&backend.record))
                .map(|(_, slot)| slot)
                .collect()
        };
        let last = self.tables.service_port(row.record.index);
        let algorithm = row.record.algorithm;
        let build = |slots, last: Option<&EndpointSet>| self.endpoint_set(algorithm, slots, next, last);
        ServicePort {
            record: row.record.clone(),
            has_any: v4().any(|(backend, _)| backend.record.usable),
            cluster: build(
                set(|record| record.in_cluster_set),
                last.map(|last| &last.cluster),
            ),
            local: build(set(|record| record.in_local_set), last.map(|last| &last.local)),
        }
    }

    /// A set of these slots; the last one itself, if it has the same endpoints: a Maglev table is most of the cost.
    fn endpoint_set(
        &self,
        algorithm: Algorithm,
        slots: Vec<BackendIndex>,
        next: &Tables,
        last: Option<&EndpointSet>,
    ) -> EndpointSet {
        let identity = |tables: &Tables, slot| {
            tables.backend(slot).map_or(0, |backend| {
                maglev::identity(backend.address, backend.port.number())
            })
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

impl AddressUse {
    const fn of(&mut self, kind: FrontendKind) -> &mut u32 {
        if kind.is_external() {
            &mut self.external
        } else {
            &mut self.cluster
        }
    }

    /// The row that tells what the address is. A cluster IP is one whatever else it is; the service port means nothing.
    fn frontend(&self) -> Option<Frontend> {
        let kind = match (self.cluster, self.external) {
            (0, 0) => return None,
            (0, _) => FrontendKind::ExternalIp,
            _ => FrontendKind::ClusterIp,
        };
        Some(Frontend {
            service_port: ServicePortIndex(0),
            kind,
        })
    }
}
