//! The ports a worker owns, numbered without gaps on each of our addresses: block and bit of a port, and the port there.

use std::io;
use std::ops::RangeInclusive;

use super::{BLOCK_PORTS, SourcePorts};
use crate::addr::{Address, Port};
use crate::class::{self, CLASSES};

/// Ranges of ports, ascending and apart, and which ports of them are the worker's.
///
/// Of 128 ports that follow each other, one is in each class: so the worker's are the same places of each 128, on every
/// address that adds the same to the class.
pub(super) struct Slice {
    ranges: Vec<RangeInclusive<u16>>,
    /// By what our address adds to the class; one if the worker has all classes, whatever that is.
    places: Vec<Places>,
    least: usize,
}

/// Places among 128 ports.
struct Places {
    count: u32,
    /// Ascending.
    places: [u8; CLASSES],
    /// Whether each place is one of them, and how many are before it.
    ranks: [(bool, u8); CLASSES],
    /// Of each range: how many ports of ours are below it, and in it.
    spans: Vec<(u32, u32)>,
    /// Ports in all ranges.
    ports: usize,
}

impl Slice {
    /// Errors: InvalidInput for ranges that are none, or overlap, or have no port of ours on some address.
    pub(super) fn new(SourcePorts { mut ranges, classes }: SourcePorts) -> io::Result<Self> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        ranges.sort_by_key(|range| *range.start());
        if ranges.is_empty() {
            return invalid("no source ports: give at least one range".into());
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
        let different = if classes == u128::MAX { 1 } else { CLASSES };
        let places: Vec<Places> = (0..different)
            .map(|added| Places::new(&ranges, classes, added))
            .collect();
        let least = places.iter().map(|places| places.ports).min().unwrap_or(0);
        if least == 0 {
            return invalid("too few source ports to give every worker one: give a wider range".into());
        }
        Ok(Self {
            ranges,
            places,
            least,
        })
    }

    /// Memory taken.
    pub(super) fn bytes(&self) -> usize {
        let spans = self.places.len() * self.ranges.len() * size_of::<(u32, u32)>();
        self.places.len() * size_of::<Places>() + spans
    }

    /// Ports on any of our addresses; on some there may be a few more.
    pub(super) const fn least(&self) -> usize {
        self.least
    }

    /// Ports on our `address`.
    pub(super) fn len<A: Address>(&self, address: A) -> usize {
        self.on(address).ports
    }

    /// Block number and bit of `port` on our `address`; `None` if it is not ours.
    pub(super) fn place_of<A: Address>(&self, address: A, port: Port) -> Option<(usize, usize)> {
        let places = self.on(address);
        let number = u32::from(port.number());
        let mut before = 0;
        for (range, (below, count)) in self.ranges.iter().zip(&places.spans) {
            if range.contains(&port.number()) {
                let at = before + places.below(number) - below;
                let (is_ours, _) = places.ranks[number as usize % CLASSES];
                return is_ours.then_some((at as usize / BLOCK_PORTS, at as usize % BLOCK_PORTS));
            }
            before += count;
        }
        None
    }

    /// The port there on our `address`.
    pub(super) fn port_at<A: Address>(&self, address: A, number: usize, bit: usize) -> Port {
        let places = self.on(address);
        let mut at = (number * BLOCK_PORTS + bit) as u32;
        for (below, count) in &places.spans {
            if at < *count {
                let nth = at + below;
                let place = places.places[(nth % places.count) as usize];
                return Port::new((nth / places.count * CLASSES as u32) as u16 + u16::from(place));
            }
            at -= count;
        }
        unreachable!("blocks have no free bits past the last port")
    }

    fn on<A: Address>(&self, address: A) -> &Places {
        // One, or all 128.
        &self.places[usize::from(class::of_address(address)) & (self.places.len() - 1)]
    }
}

impl Places {
    fn new(ranges: &[RangeInclusive<u16>], classes: u128, added: usize) -> Self {
        let mut new = Self {
            count: 0,
            places: [0; CLASSES],
            ranks: [(false, 0); CLASSES],
            spans: Vec::new(),
            ports: 0,
        };
        for place in 0..CLASSES {
            let is_ours = classes >> (place ^ added) & 1 != 0;
            new.ranks[place] = (is_ours, new.count as u8);
            if is_ours {
                new.places[new.count as usize] = place as u8;
                new.count += 1;
            }
        }
        let span = |range: &RangeInclusive<u16>| {
            let below = new.below(u32::from(*range.start()));
            (below, new.below(u32::from(*range.end()) + 1) - below)
        };
        new.spans = ranges.iter().map(span).collect();
        new.ports = new.spans.iter().map(|(_, count)| *count as usize).sum();
        new
    }

    /// How many ports of ours are below `port`.
    const fn below(&self, port: u32) -> u32 {
        let (whole, place) = (port / CLASSES as u32, port as usize % CLASSES);
        whole * self.count + self.ranks[place].1 as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_ours_has_a_place_of_its_own_and_the_places_have_no_gaps() {
        for classes in [u128::MAX, 1, 0x5555 << 50, u128::MAX << 43] {
            let ports = SourcePorts {
                ranges: vec![32_768..=65_535, 1_000..=29_999],
                classes,
            };
            let slice = Slice::new(ports.clone()).unwrap();
            for own in [[192, 0, 2, 1], [192, 0, 2, 77], [10, 1, 2, 3]] {
                let mut next = 0;
                for port in (0..=u16::MAX).map(Port::new) {
                    let place = slice.place_of(own, port);
                    assert_eq!(place.is_some(), ports.has(own, port), "{port:?}");
                    if let Some((number, bit)) = place {
                        assert_eq!(number * BLOCK_PORTS + bit, next);
                        assert_eq!(slice.port_at(own, number, bit), port);
                        next += 1;
                    }
                }
                assert_eq!(next, slice.len(own));
                assert!(next >= slice.least());
            }
        }
    }

    #[test]
    fn a_worker_without_a_port_is_refused() {
        let ports = SourcePorts {
            ranges: vec![40_000..=40_003],
            classes: 1,
        };
        let error = Slice::new(ports).err().unwrap().to_string();
        assert!(error.contains("too few source ports"), "{error}");
    }
}
