//! The packet generator: clients on one NIC port, pods on another, a gateway between them, every packet judged.
//!
//! In reading order: what is sent (`rate`, `world`, `picks`, `stamp`, `layout`, `template`, `lives`, `schedule`), what is looked at
//! (`judge`, `tally`), how it goes (`ports`, `neighbours`, `trial`, `run`, `search`, `plan`,
//! `device`).

/// Packets a second and shares of a line.
pub mod rate;
/// Clients, Services, endpoints.
pub mod world;
/// Which flow is next.
pub mod picks;
/// What a packet says of itself.
pub mod stamp;
/// Places in a frame.
pub mod layout;
/// Frames made once.
pub mod template;
/// TCP connections.
pub mod lives;
/// When packets are due.
pub mod schedule;
/// Right or wrong.
pub mod judge;
/// Counts.
pub mod tally;
/// Two NIC ports.
pub mod ports;
/// Everybody's stations.
mod neighbours;
/// One trial.
pub mod trial;
/// Trials in real time.
pub mod run;
/// The rate without loss.
pub mod search;
/// A plan file.
pub mod plan;
/// A gateway in memory.
pub mod device;
