//! Sluice's dataplane: packets as they are.
//!
//! **A packet's way**, one worker, a burst at a time: `rx` → `parse` → `lookup` → `nat` → `tx`, driven by `worker`.
//! **An update's way, this end**: `channel` → `steward` → `tables` → every worker, between two bursts.
//!
//! The modules are listed in the order a packet meets them; what they stand on comes after, the edges last.
#![deny(unsafe_code)]

/// What `parse` proves.
pub mod parse;
/// What `nat` does.
pub mod nat;

/// What becomes of a packet.
pub mod verdict;

/// Counters of every worker.
pub mod counters;

/// The channel to the control process.
pub mod channel;

/// Addresses and flow keys.
pub mod addr;
/// Indices and generations.
pub mod index;
/// Coarse time.
pub mod tick;

/// NIC ports and their drivers.
pub mod nic;
/// Mapped memory.
pub mod segment;
