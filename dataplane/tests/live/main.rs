//! The gateway process alive between kernels' own network stacks: real TCP and UDP through it, over links that lose,
//! swap and repeat, while tables, neighbours and path MTUs change. Everything happens in namespaces that a test makes
//! and that end with it, even if it is killed.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "all of this file and its modules are test code"
)]

#[allow(dead_code, reason = "shared with the vectors, which need more of it")]
#[path = "../support/random.rs"]
mod random;
#[allow(dead_code, reason = "shared with the vectors, which need more of it")]
#[path = "../support/records.rs"]
mod records;

mod sandbox;
mod host;
mod gateway;
mod relay;
mod exchange;
mod load;
mod soak;
mod restart;
mod idle;
mod heal;
mod cluster;
mod probe;
mod variants;
mod kernel;
mod mtu;
mod node;
mod owners;
mod tap;
mod exclusive;
mod shared;
mod takeover;
mod steered;
#[allow(dead_code, reason = "shared with the lab's tests, which need more of it")]
mod testpmd;
mod memif;
mod memif_speed;
