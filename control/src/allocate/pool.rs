//! A range of numbers of which each has one holder: what cluster IPs and node ports have in common.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ServiceName;

/// A range of numbers with a lower band that is given out last (AL-2, AL-5), and who holds which of them.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) first: u32,
    pub(super) last: u32,
    /// First of the numbers that are given out first.
    pub(super) dynamic: u32,
    pub(super) holders: BTreeMap<u32, ServiceName>,
}

impl Pool {
    pub(super) fn new(first: u32, last: u32, band: u32) -> Self {
        Self {
            first,
            last,
            dynamic: first + band,
            holders: BTreeMap::new(),
        }
    }

    pub(super) fn has(&self, number: u32) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// A free number, the same for the same `seed` as long as it is free.
    pub(super) fn pick(&self, seed: u64, avoid: &BTreeSet<u32>, mine: &BTreeSet<u32>) -> Option<u32> {
        let probe = |first: u32, end: u32| {
            let length = u64::from(end.checked_sub(first)?);
            let start = first + u32::try_from(seed.checked_rem(length)?).ok()?;
            let free = |n: &u32| !self.holders.contains_key(n) && !avoid.contains(n) && !mine.contains(n);
            (start..end).chain(first..start).find(free)
        };
        probe(self.dynamic, self.last + 1).or_else(|| probe(self.first, self.dynamic))
    }
}

/// FNV-1a: small, and the same in every build, which the standard library's hasher does not promise.
pub(super) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
