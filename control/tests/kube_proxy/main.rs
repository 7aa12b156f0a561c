//! The records of a real kube-proxy 1.36.2 (`oracle/kube-proxy/`, see its README), replayed through everything we have: Kubernetes
//! objects as text, control's model and compiler, the publisher, the dataplane's tables and a worker with real packets.
//! Each test prints an account of its file's rows.

// A test may panic; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used)]

#[path = "../support.rs"]
#[allow(dead_code, reason = "shared with the other replays")]
mod support;

mod affinity;
mod bed;
mod bench;
mod cluster;
mod differences;
mod errors;
mod fate;
mod flows;
mod ledger;
mod matrix;
mod objects;
mod odd;
mod packet;
mod pieces;
mod probe;
mod rules;
mod shape;
mod stories;
mod topology;
mod updates;
mod variants;
