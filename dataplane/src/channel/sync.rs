//! The atomics of the channel: core's, or loom's when the model checker drives them.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
