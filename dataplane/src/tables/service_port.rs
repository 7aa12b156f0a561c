//! A service port as workers see it: its record, and its endpoints as two sets ready to be chosen from.

use std::sync::Arc;

use crate::channel::record::ServicePortRecord;
use crate::index::BackendIndex;

/// A service port, its policies and its endpoints.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Names, protocol, algorithm, affinity and traffic policies, as control put them.
    pub record: ServicePortRecord,
    /// At least one usable endpoint anywhere (CAT-7): decides between reject and drop when the chosen set is empty.
    pub has_any: bool,
    /// The Cluster set (CAT-1).
    pub cluster: EndpointSet,
    /// The Local set (CAT-2).
    pub local: EndpointSet,
}

impl ServicePort {
    /// The set of that kind.
    pub const fn set(&self, kind: EndpointSetKind) -> &EndpointSet {
        match kind {
            EndpointSetKind::Cluster => &self.cluster,
            EndpointSetKind::Local => &self.local,
        }
    }

    /// Memory held beyond the struct itself.
    pub(super) fn bytes(&self) -> usize {
        let names = &self.record;
        let names = names.namespace.len() + names.name.len() + names.port_name.len();
        names + self.cluster.bytes() + self.local.bytes()
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
            backends: backends.into(),
            maglev: maglev.into(),
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
        // Two reference counts before each of the two slices.
        4 * size_of::<usize>() + size_of_val(&*self.backends) + size_of_val(&*self.maglev)
    }
}
