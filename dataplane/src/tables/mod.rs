//! What the steward builds and every worker reads: which service port is behind a destination, which endpoints are
//! behind a service port, and whether the endpoint of a known flow is still there.
//!
//! `Tables` are immutable and persistent: a new generation shares with the last every shard and chunk that did not
//! change, so an endpoint change costs the same at ten Services and at ten thousand. Workers hold an `Arc<Tables>` and
//! hand the old one back when they take a new one; the memory is freed where it was allocated, by the steward.
//!
//! Frontends, networks and backends are kept by family (`side`), and every question is generic over it, so that an IPv4
//! packet pays nothing for IPv6. Slots of backends and their generations are one number space of both.
//!
//! In reading order: `limits`, then what a packet asks (`side`, `frontends`, `networks`, `service_port`, `choose` with
//! `maglev`, `backend`), then how it comes to be (`rows`, `check`, `slots`, `addresses`, `build`), last what they stand
//! on.

use std::sync::Arc;

use ipnet::IpNet;

use crate::addr::{Port, Protocol, V4, V6};
use crate::channel::record::SettingsRecord;
use crate::index::{BackendIndex, Generation, ServicePortIndex};

mod limits;
mod side;
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
mod addresses;
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
pub use networks::Ranges;
pub use refusal::Refusal;
pub use rows::TablesUsed;
pub use service_port::{EndpointSet, EndpointSetKind, Endpoints, Family, ServicePort, WithoutLocal};
pub use side::{Keyed, Side};

use addresses::Addresses;
use backend::SlotState;
use chunked::Chunked;
use frontends::FrontendKey;

/// What an address is to Services, whatever protocol and port it is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// A cluster IP of at least one frontend: ports it does not have are rejected (VD-4).
    ClusterIp,
    /// An external or load-balancer IP: ports it does not have are not ours (VD-6).
    External,
    /// In a Service range, but of no frontend (VD-5).
    Unallocated,
    /// In no Service range and of no frontend any more. To new flows it is as any `Other`; packets of flows that were
    /// opened when it was a frontend's still belong to their clients' worker (CT-2).
    Former,
    /// None of these.
    Other,
}

/// One generation of the tables. `Send`, `Sync` and read only; cloning shares everything.
#[derive(Clone)]
pub struct Tables {
    /// The transaction that made it.
    pub generation: Generation,
    losses: u32,
    settings: SettingsRecord,
    node_port_addresses: Arc<[IpNet]>,
    v4: Side<V4>,
    v6: Side<V6>,
    // Chunk sizes are near the square root of what the limits allow, which makes a change cheapest; service ports'
    // chunks are smaller since copying one touches the reference count of every service port in it.
    service_ports: Chunked<Option<Arc<ServicePort>>, 64>,
    states: Chunked<SlotState, 4096>,
    without_local: WithoutLocal,
}

impl Tables {
    /// Generation 0: no Service at all.
    pub fn empty() -> Self {
        Self {
            generation: Generation(0),
            losses: 1,
            settings: SettingsRecord::default(),
            node_port_addresses: Arc::default(),
            v4: Side::new(),
            v6: Side::new(),
            service_ports: Chunked::new(),
            states: Chunked::new(),
            without_local: WithoutLocal::default(),
        }
    }

    /// The frontend with exactly this address, protocol and port.
    #[inline]
    pub fn frontend<A: Keyed>(&self, dst: A, protocol: Protocol, port: Port) -> Option<&Frontend> {
        A::side(self)
            .frontends
            .get(FrontendKey::exact(dst, protocol, port))
    }

    /// Starts to load what `frontend` will read.
    #[inline]
    pub fn prefetch<A: Keyed>(&self, dst: A, protocol: Protocol, port: Port) {
        A::side(self)
            .frontends
            .prefetch(FrontendKey::exact(dst, protocol, port));
    }

    /// The family's node port frontend, to be asked after `frontend` (NP-7) and for node-port addresses only (NP-1).
    #[inline]
    pub fn node_port<A: Keyed>(&self, protocol: Protocol, port: Port) -> Option<&Frontend> {
        A::side(self)
            .frontends
            .get(FrontendKey::node_port(protocol, port))
    }

    /// What this address is.
    pub fn address<A: Keyed>(&self, dst: A) -> AddressKind {
        let side = A::side(self);
        let row = side.frontends.get(FrontendKey::address(dst));
        match row.map(Addresses::kind_of) {
            None | Some(AddressKind::Former) if side.networks.services.contains(dst) => {
                AddressKind::Unallocated
            }
            kind => kind.unwrap_or(AddressKind::Other),
        }
    }

    /// The source is a pod. False for all if the family has no pod ranges; what that means is TP-2's to say, see
    /// `has_pod_ranges`.
    pub fn is_pod<A: Keyed>(&self, src: A) -> bool {
        A::side(self).networks.pods.contains(src)
    }

    /// There are pod ranges of this family (TP-2).
    pub fn has_pod_ranges<A: Keyed>(&self) -> bool {
        !A::side(self).networks.pods.is_empty()
    }

    /// Networks whose node addresses accept node ports (NP-2), of both families; none at all means `primary`.
    pub fn node_port_addresses(&self) -> &[IpNet] {
        &self.node_port_addresses
    }

    /// Switches for all Services.
    pub const fn settings(&self) -> &SettingsRecord {
        &self.settings
    }

    /// Service ports that have endpoints, but none here.
    pub const fn without_local(&self) -> WithoutLocal {
        self.without_local
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

    /// The backend in this slot, if it is of this family.
    #[inline]
    pub fn backend<A: Keyed>(&self, index: BackendIndex) -> Option<&Backend<A>> {
        A::side(self).backends.get(index.get())?.as_ref()
    }

    /// The slot and generation of the service port's backend with this address and port, be it in a set or in none:
    /// how a flow that outlived a restart is bound to its endpoint again (CT-12).
    pub fn find_backend<A: Keyed>(
        &self,
        service_port: ServicePortIndex,
        address: A,
        port: Port,
    ) -> Option<(BackendIndex, u32)> {
        let all = &*self.service_port(service_port)?.endpoints::<A>().all;
        let backend = |slot: BackendIndex| self.backend::<A>(slot);
        let before =
            |slot: &BackendIndex| backend(*slot).is_some_and(|b| (b.address, b.port) < (address, port));
        let slot = *all.get(all.partition_point(before))?;
        let found = backend(slot).filter(|b| (b.address, b.port) == (address, port))?;
        Some((slot, found.generation))
    }

    /// Grows with every backend that ceases to serve or to be, from 1: as long as it is the same, a backend that served
    /// serves, and need not be asked for again.
    #[inline(always)]
    pub const fn losses(&self) -> u32 {
        self.losses
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
    pub fn choose<A: Keyed>(
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
            row.endpoints::<A>().set(set),
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
            + size_of_val(&*self.node_port_addresses)
            + self.v4.bytes()
            + self.v6.bytes()
            + self.service_ports.bytes()
            + service_ports
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
