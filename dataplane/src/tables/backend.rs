//! A backend's slot: where packets go, and whether a flow that was opened to it may still go there. The second is
//! asked on every packet of a flow, so it has its own dense array of one word per slot.

use crate::addr::{Address, Port, V4, V6};
use crate::index::ServicePortIndex;

/// An endpoint of a service port in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A: Address = V4> {
    /// Endpoint address.
    pub address: A,
    /// Endpoint port.
    pub port: Port,
    /// On this node.
    pub local: bool,
    /// The service port it is an endpoint of.
    pub service_port: ServicePortIndex,
    /// Which occupant of the slot this is; a flow remembers it beside the slot's index.
    pub generation: u32,
}

const _: () = assert!(
    size_of::<Option<Backend<V4>>>() == 16,
    "four slots to a cache line"
);
const _: () = assert!(
    size_of::<Option<Backend<V6>>>() <= 32,
    "two slots to a cache line"
);

/// What became of the backend a flow was opened to (CT-2 to CT-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Present, and keeps its flows (`BackendRecord::keeps_flows`): the flow goes on.
    Serving,
    /// Present but neither serving (CT-5) nor to be chosen: a UDP flow leaves it, others stay.
    NotServing,
    /// Removed, whoever may be in its slot now: a UDP flow leaves it, others drain.
    Gone,
}

/// The word of one slot: the occupant's generation (or, in a free slot, the next occupant's, which no flow can know
/// yet) and whether it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotState(u32);

impl Default for SlotState {
    /// Generations begin at 1, so that a zeroed flow entry matches no backend.
    fn default() -> Self {
        Self::new(1, false)
    }
}

impl SlotState {
    /// The last generation a slot can have; after it the slot is never used again.
    pub(super) const LAST_GENERATION: u32 = u32::MAX >> 1;

    pub(super) const fn new(generation: u32, serving: bool) -> Self {
        Self(generation << 1 | serving as u32)
    }

    pub(super) const fn generation(self) -> u32 {
        self.0 >> 1
    }

    #[inline]
    pub(super) const fn of(self, generation: u32) -> BackendState {
        if self.generation() != generation {
            BackendState::Gone
        } else if self.0 & 1 == 1 {
            BackendState::Serving
        } else {
            BackendState::NotServing
        }
    }
}
