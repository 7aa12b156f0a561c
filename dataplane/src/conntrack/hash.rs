//! Takes a flow key, gives 64 well-mixed bits that nobody outside can predict.
//!
//! Clients choose their addresses and ports, so a hash they could compute would let them fill one bucket of the table
//! and lock others out. The function is keyed by 256 random bits and multiplies twice, folding the 128-bit product: the
//! first round lets every key bit meet every other, the last hides the product's weak low bits. An IPv6 key takes one
//! round more, whose one factor is already secret. It is not a cryptographic hash: it resists an attacker who sees only that packets are forwarded, never its output.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::addr::{Address, FlowKey};

/// The secret of the hash function.
#[derive(Clone, Copy)]
pub struct HashKey([u64; 4]);

/// What a key hashes to. The halves name its two buckets, both together its tag (see `table`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(pub(crate) u64);

impl HashKey {
    /// A fresh secret, from getrandom(2). Errors: what getrandom says, in practice none.
    pub fn random() -> io::Result<Self> {
        let mut secret = [0u64; 4];
        // Up to 256 bytes come whole or not at all (getrandom(2)).
        getrandom(bytemuck::bytes_of_mut(&mut secret), GetRandomFlags::empty())?;
        Ok(Self::from(secret))
    }

    /// Hashes all 16 or 40 bytes.
    #[inline(always)]
    pub(crate) fn hash<A: Address>(&self, key: &FlowKey<A>) -> Hash {
        let [a, b, c, d] = self.0;
        // Words put together from the fields, not read over them: a key is often hashed right after it was written, and a
        // processor makes a wide load wait for narrow stores.
        let ([src_high, src_low], [dst_high, dst_low]) = (key.src.halves(), key.dst.halves());
        let ports = u64::from(key.ports()) | u64::from(key.protocol.0) << 32;
        let mixed = if A::BITS == 32 {
            fold((src_low | dst_low << 32) ^ a, ports ^ b)
        } else {
            fold(fold(src_high ^ a, src_low ^ b) ^ dst_high, dst_low ^ b) ^ ports
        };
        Hash(fold(mixed ^ c, d))
    }
}

impl From<[u64; 4]> for HashKey {
    /// A secret that is known already: of a table being adopted, or of a test that must repeat itself.
    fn from(mut secret: [u64; 4]) -> Self {
        // An even factor would shift the product and lose a bit.
        secret[3] |= 1;
        Self(secret)
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

/// High and low half of the 128-bit product, one over the other.
#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{V4, V6};

    #[test]
    fn one_bit_of_the_key_changes_half_of_the_hash() {
        one_bit_changes_half::<V4>();
        one_bit_changes_half::<V6>();
    }

    fn one_bit_changes_half<A: Address>() {
        let key = HashKey::from([
            0x243f_6a88_85a3_08d3,
            0x1319_8a2e_0370_7344,
            0xa409_3822_299f_31d0,
            0x082e_fa98_ec4e_6c89,
        ]);
        let (mut changed, mut trials) = (0, 0);
        for n in 0..256u32 {
            let mut base = FlowKey::<A>::default();
            let bytes = bytemuck::bytes_of_mut(&mut base);
            bytes[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_ne_bytes());
            bytes[4..8].copy_from_slice(&n.to_be_bytes());
            // All but the three bytes that are always zero.
            for bit in 0..(bytes.len() - 3) * 8 {
                let mut other = base;
                bytemuck::bytes_of_mut(&mut other)[bit / 8] ^= 1 << (bit % 8);
                let distance = (key.hash(&base).0 ^ key.hash(&other).0).count_ones();
                assert!(distance >= 8, "bit {bit} of key {n} changes only {distance} bits");
                changed += distance;
                trials += 1;
            }
        }
        let mean = f64::from(changed) / f64::from(trials);
        assert!((31.0..33.0).contains(&mean), "mean distance {mean}");
    }

    #[test]
    fn another_secret_gives_another_hash() {
        let key = FlowKey::<V4>::default();
        assert_ne!(
            HashKey::from([1, 2, 3, 5]).hash(&key),
            HashKey::from([7, 2, 3, 5]).hash(&key)
        );
    }
}
