//! Sluice's control process: Services as they are meant, turned into the dataplane's tables.
//!
//! **An update's way**: `source` → `manifest` → `model` (with `allocate`) → `endpoints` → `compile` → `publish`,
//! driven by `daemon`. The other end of the channel is `sluice_dataplane::channel`.
//!
//! The modules are listed in the order an update meets them; what reads the result comes after, the commands last.
//! Nothing here touches a packet, and nothing here is privileged: control needs its folders and its sockets.
#![forbid(unsafe_code)]

/// Where objects come from.
pub mod source;

/// Bytes to typed objects.
pub mod manifest;

/// Services as meant.
pub mod model;

/// Cluster IPs and node ports.
pub mod allocate;

/// Endpoints behind Services.
pub mod endpoints;

/// Model to records.
pub mod compile;

/// Records to the dataplane.
pub mod publish;

/// Names of Services, for those who ask.
pub mod dns;
/// Services as environment variables.
pub mod env;

/// The process that does all of it.
pub mod daemon;
/// How the node is, for load balancers.
pub mod health;
/// What a controller would say of sets of pods.
mod workloads;
/// What others may ask it.
pub mod api;

/// What is wrong, and where.
pub mod problem;

/// A cluster of network namespaces to try Services in.
pub mod lab;

/// Objects as rows.
pub mod table;
/// Commands.
pub mod cli;
