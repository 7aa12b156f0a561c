//! How a pool of source ports is made, and why it may have none.

use std::io;
use std::ops::RangeInclusive;

use super::slice::Slice;
use crate::addr::{Address, Port};
use crate::class;
use crate::conntrack::HashKey;
use crate::tick::Period;

/// How a worker's pool is made.
#[derive(Clone, Debug)]
pub struct PortPoolConfig {
    /// Ports that this worker owns: no other worker, no socket and no node port uses them (TP-7).
    pub ports: SourcePorts,
    /// Most destinations with ports in use at once, at most `conntrack::MAX_CAPACITY`. Each costs 74 bytes, of IPv6 138.
    pub destinations: usize,
    /// Most blocks of 448 ports in use at once, at most `conntrack::MAX_CAPACITY`; a destination has at least one. Each
    /// costs 74 bytes.
    pub blocks: usize,
    /// How ports rest.
    pub rest: Rest,
    /// Secret of the hash.
    pub hash_key: HashKey,
}

/// The ports a worker translates to: of these ranges, on each of our addresses, those with which it is in the worker's
/// classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePorts {
    /// 1 to 65535, in any order, no port twice.
    pub ranges: Vec<RangeInclusive<u16>>,
    /// A bit for each class (`class`).
    pub classes: u128,
}

impl SourcePorts {
    /// All ports of these ranges: there is one worker.
    pub const fn all(ranges: Vec<RangeInclusive<u16>>) -> Self {
        Self {
            ranges,
            classes: u128::MAX,
        }
    }

    /// Errors: InvalidInput for ranges that are none or overlap, or have no port of the worker's on some address.
    pub fn check(&self) -> io::Result<()> {
        Slice::new(self.clone()).map(drop)
    }

    /// Whether `port` on our `address` is one of them.
    pub fn has<A: Address>(&self, address: A, port: Port) -> bool {
        let in_range = self.ranges.iter().any(|range| range.contains(&port.number()));
        in_range && self.classes >> class::of(address, port) & 1 != 0
    }
}

/// How long a port rests that was given back: the endpoint may remember the connection that used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// For how long. The default is what Linux keeps a closed connection in TIME_WAIT, 60 s.
    pub period: Period,
    /// Most ports at rest at once, 16 bytes each; with more, the oldest rest less. 0: none rests.
    pub ports: usize,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            period: Period::from_seconds(60),
            // As many as a worker has flows by default.
            ports: 131_072,
        }
    }
}

/// Why no port could be given. Only new flows are affected, and only until ports are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Every port of the slice is in use toward this destination; others are unaffected (TP-8).
    #[error("every source port toward this endpoint is in use; add endpoints or an address to translate to")]
    PortsExhausted,
    /// As many destinations have ports in use as the pool has room for.
    #[error("source ports are in use toward too many endpoints; raise the pool's number of destinations")]
    DestinationsFull,
    /// As many blocks are in use as the pool has room for.
    #[error("too many blocks of source ports are in use; raise the pool's number of blocks")]
    BlocksFull,
    /// The port asked for is in use toward this destination, or is not one of the worker's.
    #[error("this source port is in use toward this endpoint, or not the worker's")]
    NotFree,
}
