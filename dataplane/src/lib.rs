//! Sluice's dataplane: packets as they are.
//!
//! **A packet's way**, one worker, a burst at a time: `rx` → `parse` → `fragments` → `lookup` → `open` → `nat` → `tx`, driven
//! by `worker`.
//! **An update's way, this end**: `channel` → `steward` → `tables` → every worker, between two bursts.
//!
//! The modules are listed in the order a packet meets them; what they stand on comes after, the edges last.
#![deny(unsafe_code)]

/// One core's turn.
pub mod worker;

/// Frames off a ring.
pub mod rx;
/// Frames to packets.
pub mod parse;
/// Fragments given their ports.
pub mod fragments;
/// Packets to decisions.
pub mod lookup;
/// Flows opened.
pub mod open;
/// Packets rewritten.
pub mod nat;
/// ICMP errors about flows.
pub mod icmp_error;
/// Packets refused.
pub mod reject;
/// Frames to rings.
pub mod tx;

/// What becomes of a packet.
pub mod verdict;
/// Flows.
pub mod conntrack;
/// Services.
pub mod tables;
/// Which endpoint a client was sent to.
pub mod affinity;
/// Tables from the steward to a worker.
pub mod table_slot;
/// Surroundings.
pub mod network;
/// Neighbours as workers see them.
pub mod next_hop;
/// Which worker owns what.
pub mod steering;
/// Clients in classes, as NICs see them, too.
pub mod class;
/// Letters between threads.
pub mod mailbox;

/// Counters of every worker.
pub mod counters;

/// The channel to the control process.
pub mod channel;
/// The non-packet thread.
pub mod steward;
/// Interfaces that the kernel uses, too: which packets are Services'.
#[cfg(feature = "nic")]
pub mod shared;
/// ARP, the steward's side.
pub mod neighbours;
/// The config file.
#[cfg(feature = "nic")]
pub mod config;
/// Config to running parts.
#[cfg(feature = "nic")]
pub mod assemble;
/// What the machine can do.
#[cfg(feature = "nic")]
pub mod probe;
/// What was opened, said.
#[cfg(feature = "nic")]
mod announce;

/// Addresses and flow keys.
pub mod addr;
/// Indices and generations.
pub mod index;
/// Coarse time.
pub mod tick;
/// Protocol headers.
pub mod wire;

/// NIC ports and their drivers.
pub mod nic;
/// Mapped memory.
pub mod segment;
/// One hint.
pub mod prefetch;
