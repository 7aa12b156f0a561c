//! The ports a worker owns, numbered without gaps: block and bit of a port, and the port there.

use std::io;
use std::ops::RangeInclusive;

use super::BLOCK_PORTS;
use crate::addr::Port;

/// Ranges of ports, ascending and apart.
pub(super) struct Slice {
    ranges: Vec<RangeInclusive<u16>>,
    ports: usize,
}

impl Slice {
    /// Errors: InvalidInput for ranges that are none, or overlap.
    pub(super) fn new(mut ranges: Vec<RangeInclusive<u16>>) -> io::Result<Self> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        ranges.sort_by_key(|range| *range.start());
        if ranges.is_empty() {
            return invalid("no source ports: give each worker at least one range".into());
        }
        if let Some(bad) = ranges
            .iter()
            .find(|range| range.is_empty() || *range.start() == 0)
        {
            return invalid(format!(
                "source ports {bad:?}: a range runs upward from 1 or more"
            ));
        }
        if let Some(pair) = ranges.windows(2).find(|pair| pair[1].start() <= pair[0].end()) {
            return invalid(format!("source ports {:?} and {:?} overlap", pair[0], pair[1]));
        }
        let ports = ranges.iter().map(ExactSizeIterator::len).sum();
        Ok(Self { ranges, ports })
    }

    /// Ports in all ranges.
    pub(super) const fn len(&self) -> usize {
        self.ports
    }

    /// Block number and bit of `port`; `None` if it is not ours.
    pub(super) fn place_of(&self, port: Port) -> Option<(usize, usize)> {
        let mut before = 0;
        for range in &self.ranges {
            if range.contains(&port.number()) {
                let at = before + usize::from(port.number() - range.start());
                return Some((at / BLOCK_PORTS, at % BLOCK_PORTS));
            }
            before += range.len();
        }
        None
    }

    /// The port there.
    pub(super) fn port_at(&self, number: usize, bit: usize) -> Port {
        let mut at = number * BLOCK_PORTS + bit;
        for range in &self.ranges {
            if at < range.len() {
                return Port::new(range.start() + at as u16);
            }
            at -= range.len();
        }
        unreachable!("blocks have no free bits past the last port")
    }
}
