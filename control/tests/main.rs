//! What the control process does, from text to records: against what Kubernetes 1.36 did (`oracle/`, see its README),
//! and against cases of our own (`cases/`).

// A test may panic; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used)]

mod allocation;
mod cases;
mod channel;
mod command;
mod dns;
mod dns_server;
mod endpointslices;
mod get;
mod support;
mod validation;
