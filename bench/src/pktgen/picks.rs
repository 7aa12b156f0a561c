//! Whose turn it is: the next flow, or the next kind of traffic, by a distribution, without allocating.

/// SplitMix64: the same flows in the same order in every run with the same seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below `bound`.
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }
}

/// Choices with weights, picked in constant time: Vose's alias method (IEEE Trans. Softw. Eng. 17(9), 1991).
#[derive(Clone, Debug)]
pub struct Weighted {
    /// For each choice the share of its column that is its own, and who has the rest.
    columns: Vec<(u32, u32)>,
}

impl Weighted {
    /// Choices 0.. with these weights, each at least 0 and one above; at most 2³² choices.
    pub fn new(weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        let mut scaled: Vec<f64> = weights
            .iter()
            .map(|weight| weight * weights.len() as f64 / total)
            .collect();
        let mut columns: Vec<(u32, u32)> = (0..weights.len() as u32).map(|i| (u32::MAX, i)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|&i| scaled[i] < 1.0);
        while let (Some(few), Some(&many)) = (small.pop(), large.last()) {
            columns[few] = ((scaled[few] * f64::from(u32::MAX)) as u32, many as u32);
            scaled[many] -= 1.0 - scaled[few];
            if scaled[many] < 1.0 {
                large.pop();
                small.push(many);
            }
        }
        Self { columns }
    }

    /// One of them.
    #[inline]
    pub fn pick(&self, random: &mut Random) -> usize {
        let at = random.below(self.columns.len());
        let (own, other) = self.columns[at];
        if random.bits() as u32 <= own {
            at
        } else {
            other as usize
        }
    }
}

/// How the next flow is chosen.
#[derive(Clone, Debug)]
pub enum Picks {
    /// Every flow as likely as any other, independently each time.
    Uniform,
    /// One after the other: with more flows than the gateway remembers, every packet is of a new one.
    InTurn(usize),
    /// Few flows have most packets: the k-th likeliest in proportion to 1/kˢ.
    Weighted(Weighted),
}

impl Picks {
    /// Zipf's distribution of `flows` flows with exponent `s` (web traffic: 0.6 to 1.1).
    pub fn zipf(flows: usize, s: f64) -> Self {
        let weights: Vec<f64> = (1..=flows).map(|k| (k as f64).powf(-s)).collect();
        Self::Weighted(Weighted::new(&weights))
    }

    /// The next of `flows` flows.
    #[inline]
    pub fn next(&mut self, flows: usize, random: &mut Random) -> usize {
        match self {
            Self::Uniform => random.below(flows),
            Self::InTurn(next) => {
                let flow = *next;
                *next = if flow + 1 < flows { flow + 1 } else { 0 };
                flow
            }
            Self::Weighted(weighted) => weighted.pick(random),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_picked_as_often_as_its_weight_says() {
        let weighted = Weighted::new(&[1.0, 0.0, 3.0, 6.0]);
        let mut random = Random(7);
        let mut seen = [0f64; 4];
        (0..100_000).for_each(|_| seen[weighted.pick(&mut random)] += 1.0);
        for (seen, expected) in seen.iter().zip([10_000.0, 0.0, 30_000.0, 60_000.0]) {
            // Five standard deviations of the largest are 775.
            assert!((seen - expected).abs() < 775.0, "{seen} instead of {expected}");
        }
        assert!(seen[1] < 1.0);
    }

    #[test]
    fn zipf_gives_the_first_flow_its_harmonic_share() {
        let mut picks = Picks::zipf(1_000, 1.0);
        let mut random = Random(3);
        let first = (0..100_000)
            .filter(|_| picks.next(1_000, &mut random) == 0)
            .count();
        // 1/H(1000) = 0.1336; five standard deviations are 538.
        assert!((12_822..=13_898).contains(&first), "{first}");
    }

    #[test]
    fn in_turn_comes_round() {
        let mut picks = Picks::InTurn(0);
        let mut random = Random(0);
        let order: Vec<_> = (0..5).map(|_| picks.next(3, &mut random)).collect();
        assert_eq!(order, [0, 1, 2, 0, 1]);
    }
}
