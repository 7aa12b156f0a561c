//! Golden vectors: tables, packets in, packets out, counters. The packet language and the small world that the
//! vectors happen in are in `support`; the vectors themselves, a folder each, and what runs them in `vectors`.

mod support;
mod vectors;
