#![allow(unsafe_code)]
//! Compares one tag with a bucket's ten at once, by SSE2 on x86_64 and by a plain loop elsewhere; both give the same.

/// Tags in a bucket: with a 4-byte word each and one counter they fill a cache line.
pub(super) const WIDTH: usize = 10;

/// Bit `i` of the answer says whether `tags[i]` equals `tag`.
#[inline(always)]
pub(super) fn matching(tags: &[u16; WIDTH], tag: u16) -> u16 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        // SAFETY: SSE2 is part of every x86_64 processor.
        unsafe { sse2(tags, tag) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    portable(tags, tag)
}

/// # Safety
/// The processor must have SSE2.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "sse2")]
#[inline]
fn sse2(tags: &[u16; WIDTH], tag: u16) -> u16 {
    use core::arch::x86_64::{
        _mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16,
    };

    const { assert!(WIDTH == 10) };
    let wanted = _mm_set1_epi16(tag.cast_signed());
    // SAFETY: both unaligned loads read 16 bytes inside the array's 20: from byte 0, and from byte 4.
    let (front, back) = unsafe {
        (
            _mm_loadu_si128(tags.as_ptr().cast()),
            _mm_loadu_si128(tags.as_ptr().add(2).cast()),
        )
    };
    // One byte per comparison: tags 0 to 7, then tags 2 to 9. The overlap says the same twice.
    let bytes = _mm_packs_epi16(_mm_cmpeq_epi16(front, wanted), _mm_cmpeq_epi16(back, wanted));
    let bits = _mm_movemask_epi8(bytes) as u16;
    (bits & 0xff) | (bits >> 8 << 2)
}

#[cfg(any(test, miri, not(target_arch = "x86_64")))]
fn portable(tags: &[u16; WIDTH], tag: u16) -> u16 {
    tags.iter()
        .enumerate()
        .fold(0, |bits, (i, &t)| bits | u16::from(t == tag) << i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_single_position_is_found() {
        for i in 0..WIDTH {
            let mut tags = [7; WIDTH];
            tags[i] = 0x8001;
            assert_eq!(matching(&tags, 0x8001), 1 << i);
        }
    }

    proptest! {
        #[test]
        fn the_fast_way_agrees_with_the_plain_one(tags: [u16; WIDTH], few in 0u16..4, some: [bool; WIDTH]) {
            // Tags from a small range, too, so that there are matches to find.
            let tags = std::array::from_fn(|i| if some[i] { tags[i] % 4 } else { tags[i] });
            prop_assert_eq!(matching(&tags, few), portable(&tags, few));
            prop_assert_eq!(matching(&tags, tags[9]), portable(&tags, tags[9]));
        }
    }
}
