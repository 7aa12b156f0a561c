//! Indices and generations, each its own type: an index of one thing can never be used for another.

use std::fmt;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// As a subscript.
            pub const fn get(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

index!(
    /// A service port in the tables; chosen by control, kept over its restarts (see `channel::record`).
    ServicePortIndex(u32)
);
index!(
    /// A backend's slot in the tables; chosen by the steward, reused only with a new backend generation.
    BackendIndex(u32)
);
index!(
    /// A flow in one worker's shard.
    FlowIndex(u32)
);
index!(
    /// A next hop: one neighbour on one NIC port.
    NextHopIndex(u32)
);
index!(
    /// A NIC port of the dataplane, in config order.
    NicPortIndex(u8)
);
index!(
    /// A worker, in start order.
    WorkerIndex(u8)
);

impl NextHopIndex {
    /// None yet: of a flow that was adopted from another process, or that a first fragment opened while it waits.
    pub const UNKNOWN: Self = Self(u32::MAX);
}

/// The number of a committed table update. 0 is the empty table of a dataplane that no control has spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);
