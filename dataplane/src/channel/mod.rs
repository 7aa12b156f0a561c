//! The channel between the control process and the dataplane.

mod sync;
mod cursor;
#[cfg(all(test, loom))]
mod cursor_loom;
mod digest;
pub mod codec;
pub mod record;
mod row;
pub mod message;
mod intake;
pub(crate) mod layout;
mod peer;
mod socket;
mod endpoint;
#[cfg(not(loom))]
mod ring;
#[cfg(not(loom))]
mod outbox;
#[cfg(not(loom))]
pub mod server;
#[cfg(not(loom))]
pub mod client;

pub use cursor::CorruptIndex;
pub use endpoint::BindError;
pub use layout::{LayoutError, RING_SLOTS_MAX, RING_SLOTS_MIN, VERSION, WORKERS_MAX};
