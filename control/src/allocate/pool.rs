//! A range of numbers of which each has one holder: what cluster IPs and node ports have in common. Who holds which is
//! the allocator's.

/// A range of numbers with a lower band that is given out last (AL-2, AL-5).
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) first: u128,
    pub(super) last: u128,
    /// First of the numbers that are given out first.
    pub(super) dynamic: u128,
}

impl Pool {
    /// The numbers from `first` to `last`. The band is one of `parts` of `size`, within `band`; there is none in 16 or fewer.
    pub(super) fn new(first: u128, last: u128, size: u128, parts: u128, band: (u128, u128)) -> Self {
        let band = if size <= 16 {
            0
        } else {
            (size / parts).clamp(band.0, band.1)
        };
        Self {
            first,
            last,
            dynamic: first + band,
        }
    }

    pub(super) fn has(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// A free number, the same for the same `seed` as long as it is free.
    pub(super) fn pick(&self, seed: u64, free: impl Fn(u128) -> bool) -> Option<u128> {
        // A range may end with the last number there is.
        let probe = |first: u128, last: u128| {
            let length = last.checked_sub(first)?.checked_add(1)?;
            let start = first + u128::from(seed).checked_rem(length)?;
            (start..=last).chain(first..start).find(|number| free(*number))
        };
        probe(self.dynamic, self.last).or_else(|| probe(self.first, self.dynamic.checked_sub(1)?))
    }
}

/// FNV-1a: small, and the same in every build, which the standard library's hasher does not promise.
pub(super) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    // Names that are alike have hashes that lie together in some ranges: mixed once more, by splitmix64's last steps.
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
