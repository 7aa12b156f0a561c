//! Golden vectors: tables, packets in, packets out, counters. The packet language and the small world that the
//! vectors happen in are in `support`; the vectors themselves, a folder each, and what runs them in `vectors`.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "all of this file and its modules are test code"
)]

mod support;
mod vectors;
mod model;
