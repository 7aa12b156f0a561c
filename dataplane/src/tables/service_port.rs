//! A service port as workers see it: its record, and for each family its endpoints as two sets ready to be chosen from.

use std::sync::Arc;

use super::networks::Ranges;
use super::side::Keyed;
use crate::addr::{V4, V6};
use crate::channel::record::ServicePortRecord;
use crate::index::BackendIndex;

/// A service port, its policies and its endpoints.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Names, protocol, algorithm, affinity and traffic policies, as control put them.
    pub record: ServicePortRecord,
    pub(super) v4: Family<V4>,
    pub(super) v6: Family<V6>,
}

/// Service ports with endpoints, but none here, by the policy that wants them here; one counts in each of its families. What
/// is sent there is dropped (VD-2, VD-3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// internalTrafficPolicy: Local.
    pub internal: i32,
    /// externalTrafficPolicy: Local.
    pub external: i32,
}

/// What a service port has once per family (SVC-2).
#[derive(Clone, Debug)]
pub struct Family<A> {
    pub(super) endpoints: Endpoints,
    pub(super) sources: Ranges<A>,
}

impl ServicePort {
    /// Its endpoints of one family.
    #[inline]
    pub fn endpoints<A: Keyed>(&self) -> &Endpoints {
        &A::family(self).endpoints
    }

    /// Whether this client may address its load-balancer IPs (LBR-2). To be asked with the address the packet came
    /// with (LBR-6), for frontends of kind `LoadBalancerIp` only (LBR-1, NP-4), and before anything is chosen (LBR-7).
    #[inline]
    pub fn source_allowed<A: Keyed>(&self, src: A) -> bool {
        let sources = &A::family(self).sources;
        sources.is_empty() || sources.contains(src)
    }

    /// Adds what it counts for, or takes it away.
    pub(super) fn count(&self, without: &mut WithoutLocal, sign: i32) {
        for endpoints in [&self.v4.endpoints, &self.v6.endpoints] {
            if endpoints.has_any && endpoints.local.backends().is_empty() {
                let count = |policy: bool| sign * i32::from(policy);
                without.internal += count(self.record.internal_local);
                without.external += count(self.record.external_local);
            }
        }
    }

    /// Memory held beyond the struct itself.
    pub(super) fn bytes(&self) -> usize {
        let names = &self.record;
        let names = names.namespace.len() + names.name.len() + names.port_name.len();
        let endpoints = self.v4.endpoints.bytes() + self.v6.endpoints.bytes();
        names + endpoints + self.v4.sources.bytes() + self.v6.sources.bytes()
    }
}

/// The endpoints of a service port in one family.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// At least one usable endpoint anywhere (CAT-7): decides between reject and drop when the chosen set is empty.
    pub has_any: bool,
    /// The Cluster set (CAT-1).
    pub cluster: EndpointSet,
    /// The Local set (CAT-2).
    pub local: EndpointSet,
    /// Everyone, also those in no set, in the order of the sets.
    pub(super) all: Arc<[BackendIndex]>,
}

impl Endpoints {
    pub(super) fn new(
        has_any: bool,
        cluster: EndpointSet,
        local: EndpointSet,
        all: Vec<BackendIndex>,
    ) -> Self {
        let shared = *all == *cluster.backends;
        let all = if shared {
            Arc::clone(&cluster.backends)
        } else {
            slice(all)
        };
        Self {
            has_any,
            cluster,
            local,
            all,
        }
    }

    /// The set of that kind.
    #[inline]
    pub const fn set(&self, kind: EndpointSetKind) -> &EndpointSet {
        match kind {
            EndpointSetKind::Cluster => &self.cluster,
            EndpointSetKind::Local => &self.local,
        }
    }

    /// Memory held beyond the struct itself.
    fn bytes(&self) -> usize {
        let own = !Arc::ptr_eq(&self.all, &self.cluster.backends);
        let all = if own { bytes(&self.all) } else { 0 };
        self.cluster.bytes() + self.local.bytes() + all
    }
}

/// Which of a service port's endpoint sets a new flow chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointSetKind {
    /// All endpoints of the cluster that may be used (CAT-1).
    Cluster,
    /// Those on this node (CAT-2).
    Local,
}

/// Endpoints a new flow may go to, ordered by address and port: equal sets are in equal order on every gateway.
#[derive(Clone, Debug)]
pub struct EndpointSet {
    backends: Arc<[BackendIndex]>,
    /// Slots that name positions in `backends`; empty unless the algorithm is Maglev and there is a choice to make.
    maglev: Arc<[u16]>,
}

impl EndpointSet {
    pub(super) fn new(backends: Vec<BackendIndex>, maglev: Vec<u16>) -> Self {
        Self {
            backends: slice(backends),
            maglev: slice(maglev),
        }
    }

    /// The set nobody can choose from.
    pub fn empty() -> Self {
        Self::new(Vec::new(), Vec::new())
    }

    /// Its backends.
    pub fn backends(&self) -> &[BackendIndex] {
        &self.backends
    }

    /// Its Maglev table, positions in `backends()`; empty if it has none.
    pub fn maglev(&self) -> &[u16] {
        &self.maglev
    }

    /// Without a backend.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    fn bytes(&self) -> usize {
        bytes(&self.backends) + bytes(&self.maglev)
    }
}

/// All empty slices are one: most Services are of one family and have no Local set.
fn slice<T>(items: Vec<T>) -> Arc<[T]> {
    if items.is_empty() {
        Arc::default()
    } else {
        items.into()
    }
}

fn bytes<T>(items: &[T]) -> usize {
    // Two reference counts before a slice.
    let counts = if items.is_empty() {
        0
    } else {
        2 * size_of::<usize>()
    };
    counts + size_of_val(items)
}
