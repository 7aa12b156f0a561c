#![allow(unsafe_code)]
//! One hint to the processor: this will be read soon. It changes nothing but time, so it is nothing at all under
//! miri and on processors it has not been written for.

/// Starts bringing the first cache line of `item` into the nearest cache.
#[inline(always)]
pub fn prefetch<T>(item: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads and writes nothing the program can see and never faults; SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = item;
}
