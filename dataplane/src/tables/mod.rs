//! What the steward builds and every worker reads: which service port is behind a destination, which endpoints are
//! behind a service port, and whether the endpoint of a known flow is still there.
//!
//! `Tables` are immutable and persistent: a new generation shares with the last every shard and chunk that did not
//! change, so an endpoint change costs the same at ten Services and at ten thousand. Workers hold an `Arc<Tables>` and
//! hand the old one back when they take a new one; the memory is freed where it was allocated, by the steward.
//!
//! The packet path is IPv4. IPv6 records are accepted, kept and given back, but nothing is built of them: a second
//! family adds its own frontend table and backend slots beside these.
//!
//! In reading order: `limits`, then what a packet asks (`frontends`, `networks`, `service_port`, `choose` with
//! `maglev`, `backend`), then how it comes to be (`rows`, `check`, `slots`, `build`), last what they stand on.

use std::sync::Arc;

use ipnet::IpNet;

use crate::addr::{Port, Protocol};
use crate::channel::record::{FrontendKind, SettingsRecord};
use crate::index::{BackendIndex, Generation, ServicePortIndex};

mod limits;
mod frontends;
mod networks;
mod service_port;
mod choose;
mod maglev;
mod backend;

mod rows;
mod refusal;
mod check;
mod slots;
mod build;

mod chunked;
mod hash;

#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendState};
pub use build::TablesBuilder;
pub use choose::{Picker, client_hash};
pub use frontends::Frontend;
pub use limits::TableLimits;
pub use refusal::Refusal;
pub use rows::TablesUsed;
pub use service_port::{EndpointSet, EndpointSetKind, ServicePort};

use backend::SlotState;
use chunked::Chunked;
use frontends::{FrontendKey, FrontendTable};
use networks::Networks;

/// What an address is to Services, whatever protocol and port it is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// A cluster IP of at least one frontend: ports it does not have are rejected (VD-4).
    ClusterIp,
    /// An external or load-balancer IP: ports it does not have are not ours (VD-6).
    External,
    /// In a Service range, but of no frontend (VD-5).
    Unallocated,
    /// None of these.
    Other,
}

/// One generation of the tables. `Send`, `Sync` and read only; cloning shares everything.
#[derive(Clone)]
pub struct Tables {
    /// The transaction that made it.
    pub generation: Generation,
    settings: SettingsRecord,
    networks: Arc<Networks>,
    frontends: FrontendTable,
    // Chunk sizes are near the square root of what the limits allow, which makes a change cheapest; service ports'
    // chunks are smaller since copying one touches the reference count of every service port in it.
    service_ports: Chunked<Option<Arc<ServicePort>>, 64>,
    backends: Chunked<Option<Backend>, 1024>,
    states: Chunked<SlotState, 4096>,
}

impl Tables {
    /// Generation 0: no Service at all.
    pub fn empty() -> Self {
        Self {
            generation: Generation(0),
            settings: SettingsRecord::default(),
            networks: Arc::default(),
            frontends: FrontendTable::new(),
            service_ports: Chunked::new(),
            backends: Chunked::new(),
            states: Chunked::new(),
        }
    }

    /// The frontend with exactly this address, protocol and port.
    #[inline]
    pub fn frontend(&self, dst: [u8; 4], protocol: Protocol, port: Port) -> Option<&Frontend> {
        self.frontends.get(FrontendKey::exact(dst, protocol, port))
    }

    /// Starts to load what `frontend` will read.
    #[inline]
    pub fn prefetch(&self, dst: [u8; 4], protocol: Protocol, port: Port) {
        self.frontends.prefetch(FrontendKey::exact(dst, protocol, port));
    }

    /// The node port frontend, to be asked after `frontend` (NP-7) and for node-port addresses only (NP-1).
    #[inline]
    pub fn node_port(&self, protocol: Protocol, port: Port) -> Option<&Frontend> {
        self.frontends.get(FrontendKey::node_port(protocol, port))
    }

    /// What this address is.
    pub fn address(&self, dst: [u8; 4]) -> AddressKind {
        match self.frontends.get(FrontendKey::address(dst)) {
            Some(row) if row.kind == FrontendKind::ClusterIp => AddressKind::ClusterIp,
            Some(_) => AddressKind::External,
            None if self.networks.in_service_range(dst) => AddressKind::Unallocated,
            None => AddressKind::Other,
        }
    }

    /// The source is a pod. False for all if there are no IPv4 pod ranges; what that means is TP-2's to say, see
    /// `has_pod_ranges`.
    pub fn is_pod(&self, src: [u8; 4]) -> bool {
        self.networks.is_pod(src)
    }

    /// There are IPv4 pod ranges (TP-2).
    pub fn has_pod_ranges(&self) -> bool {
        self.networks.has_pod_ranges()
    }

    /// Networks whose node addresses accept node ports (NP-2), of both families; none at all means `primary`.
    pub fn node_port_addresses(&self) -> &[IpNet] {
        self.networks.node_port_addresses()
    }

    /// Switches for all Services.
    pub const fn settings(&self) -> &SettingsRecord {
        &self.settings
    }

    /// The service port with this index.
    #[inline]
    pub fn service_port(&self, index: ServicePortIndex) -> Option<&ServicePort> {
        self.service_ports.get(index.get())?.as_deref()
    }

    /// Every service port, by index.
    pub fn service_ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.service_ports.iter().filter_map(|slot| slot.as_deref())
    }

    /// The backend in this slot.
    #[inline]
    pub fn backend(&self, index: BackendIndex) -> Option<&Backend> {
        self.backends.get(index.get())?.as_ref()
    }

    /// What became of the backend that had this slot in this generation of the slot: one word read.
    #[inline]
    pub fn backend_state(&self, index: BackendIndex, generation: u32) -> BackendState {
        self.states
            .get(index.get())
            .map_or(BackendState::Gone, |state| state.of(generation))
    }

    /// The backend for a new flow to this service port, by its algorithm; `client` is `client_hash`, `pick` the
    /// worker's own. `None` if there is no such service port or the set is empty.
    pub fn choose(
        &self,
        service_port: ServicePortIndex,
        set: EndpointSetKind,
        client: u64,
        pick: &mut Picker,
    ) -> Option<BackendIndex> {
        let row = self.service_port(service_port)?;
        let generation =
            |slot: BackendIndex| self.states.get(slot.get()).map_or(0, |state| state.generation());
        pick.choose(
            row.record.algorithm,
            service_port,
            row.set(set),
            client,
            generation,
        )
    }

    /// An estimate of the memory these tables hold, counting what they share with other generations. Walks all of
    /// them: for reports, not for packets.
    pub fn bytes(&self) -> usize {
        let arc = 2 * size_of::<usize>();
        let service_ports: usize = self
            .service_ports()
            .map(|row| arc + size_of::<ServicePort>() + row.bytes())
            .sum();
        size_of::<Self>()
            + self.networks.bytes()
            + self.frontends.bytes()
            + self.service_ports.bytes()
            + service_ports
            + self.backends.bytes()
            + self.states.bytes()
    }
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
