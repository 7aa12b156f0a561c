//! Digests: a 64-bit hash of a message's bytes, and a sum of hashes that does not depend on their order.
//!
//! They tell two honest processes apart that disagree, by a bug or a lost message. They are no defence against a
//! liar: the steward checks every record for itself.

/// A 64-bit hash of `bytes`: multiply and fold per word, then the finaliser of SplitMix64 (Steele, Lea, Flood 2014),
/// so that sums of hashes of similar records differ in every bit.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state ^= state >> 32;
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Count and order-independent sum of the messages of a transaction or a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Messages added.
    pub count: u64,
    /// Sum of their hashes.
    pub sum: u64,
}

impl Digest {
    /// Adds one encoded message.
    pub fn add(&mut self, slot: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(slot));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_changed_bit_anywhere_changes_the_hash() {
        let slot = [0x5a; 256];
        let mut hashes = std::collections::HashSet::from([hash(&slot)]);
        for bit in 0..slot.len() * 8 {
            let mut other = slot;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(hashes.insert(hash(&other)), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn the_sum_forgets_the_order_but_not_a_message(mut slots in prop::collection::vec(any::<[u8; 16]>(), 1..20)) {
            let of = |slots: &[[u8; 16]]| slots.iter().fold(Digest::default(), |mut d, s| { d.add(s); d });
            let digest = of(&slots);
            slots.reverse();
            prop_assert_eq!(of(&slots), digest);
            let last = slots.pop();
            prop_assert_ne!(of(&slots), digest);
            slots.extend(last.into_iter().chain(last));
            prop_assert_ne!(of(&slots), digest);
        }
    }
}
