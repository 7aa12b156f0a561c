//! Sluice measured: the true pipeline over NIC ports that are only memory.
//!
//! In reading order: `treadmill` (a driver that gives prepared frames), `conveyor` (one whose packets another core makes),
//! `gateway` (a worker with Services on it), `nat`
//! (what one packet costs); `pktgen` (clients and pods around any gateway), `services` (what a world has, as table
//! records), `machine` (what it ran on), `compare` (gateways side by side), `report` (rows to a page).

/// A driver of prepared frames.
pub mod treadmill;
/// A driver of frames from another core.
pub mod conveyor;
/// A worker to measure.
pub mod gateway;
/// Cost of a packet.
pub mod nat;
/// Packet generator.
pub mod pktgen;
/// Services of a world.
pub mod services;
/// What it was measured on.
pub mod machine;
/// Gateways side by side.
pub mod compare;
/// Rows to a page.
pub mod report;
