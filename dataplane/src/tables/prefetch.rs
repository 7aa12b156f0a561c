//! Asks the processor for a cache line before it is needed. Changes no value; where there is no such instruction,
//! does nothing.
#![allow(unsafe_code)]

/// Starts to load the cache line of `value` into all cache levels.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is part of SSE, which every x86_64 has; it is a hint that never faults, and the pointer comes
    // from a reference besides.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
