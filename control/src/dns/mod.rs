//! Cluster DNS: the names of Services, of their ports and endpoints (DNS-1 to DNS-25).
//!
//! **A question's way**: `server` (or `tcp`) reads it → `wire` proves it to be one → `answer` finds what there is in the
//! `zone` of the moment → `wire` writes it → `server` sends it. What is not the cluster's goes by way of `upstream`, in a
//! thread of its own. A new zone is made aside whenever the model changes; nobody waits for it.
//!
//! It is itself a Service, `kube-system/kube-dns`, reached through the dataplane like every other: see `kube_dns.rs`.

/// What names stand for.
pub mod zone;
/// Question to answer.
pub mod answer;
/// Bytes to question, answer to bytes.
pub mod wire;
/// Names of others.
pub mod upstream;
/// Where questions come in.
pub mod sockets;
/// Threads.
pub mod server;
mod tcp;
/// The Service of this server.
pub mod kube_dns;

pub use server::{Counts, Server, Settings};
pub use zone::{Options, PodNames, Zone};
