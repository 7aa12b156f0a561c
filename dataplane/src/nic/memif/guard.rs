#![allow(unsafe_code)]
//! Pages that a peer takes away.
//!
//! Takes  ranges where memory is mapped whose file somebody else can make shorter, or punch holes into.
//! Gives  zeroed pages of our own in the place of all of a range, at the moment when a page of it is touched that is gone.
//! Never  touches any other memory, and leaves every other SIGBUS to whoever had them before.
//!
//! Touching such a page is a SIGBUS (mmap(2)), which ends a process. Seals against it (F_SEAL_SHRINK) are to be had of
//! ordinary memfds only: not of files on a hugetlbfs, which DPDK's and VPP's packet buffers are in, and no seal that still
//! lets us write keeps holes out.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::ptr::{NonNull, null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t};

/// Most ranges at one time: 64 interfaces with as many regions as one may have. Looked through only when a page is gone.
const RANGES: usize = 64 * super::handshake::MAX_REGIONS as usize;

/// A range that is guarded, or a free place for one.
#[derive(Debug)]
struct Range {
    taken: AtomicBool,
    /// First byte; 0: none.
    start: AtomicUsize,
    len: AtomicUsize,
    /// A page of it was gone.
    lost: AtomicBool,
}

impl Range {
    const fn free() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }
}

static GUARDED: [Range; RANGES] = [const { Range::free() }; RANGES];

/// What was done at a SIGBUS before us: Rust's own message at a stack's end, or the end of the process.
static BEFORE: OnceLock<Before> = OnceLock::new();

struct Before(sigaction);

// SAFETY: an action is plain data that says what to call; nobody changes it once it is here.
unsafe impl Send for Before {}
// SAFETY: as above.
unsafe impl Sync for Before {}

/// Guards a mapping as long as it lives, which must end before the mapping does.
#[derive(Debug)]
pub(super) struct Guard(&'static Range);

impl Guard {
    /// Guards `len` bytes from `base` on: one whole shared mapping of ours that holds no Rust value, only memory that is
    /// accessed atomically. Errors: what sigaction(2) says; more ranges than there is room for.
    pub(super) fn new(base: NonNull<u8>, len: usize) -> io::Result<Self> {
        install()?;
        Self::among(&GUARDED, base, len)
    }

    fn among(ranges: &'static [Range], base: NonNull<u8>, len: usize) -> io::Result<Self> {
        let free = |range: &&Range| !range.taken.swap(true, Ordering::Acquire);
        let range = ranges.iter().find(free).ok_or_else(|| {
            io::Error::other(format!("more than {} regions of peers at one time", ranges.len()))
        })?;
        range.lost.store(false, Ordering::Relaxed);
        range.len.store(len, Ordering::Relaxed);
        // Release: whoever finds the start finds the length.
        range.start.store(base.as_ptr().addr(), Ordering::Release);
        Ok(Self(range))
    }

    /// Whether a page was gone.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Relaxed);
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Once in a process: later calls find it done.
fn install() -> io::Result<()> {
    static INSTALLING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = INSTALLING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let mut before = MaybeUninit::<sigaction>::uninit();
    // SAFETY: asks for the action of a signal; the place for it is large enough.
    if unsafe { sigaction(libc::SIGBUS, null(), before.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has filled it.
    BEFORE.get_or_init(|| Before(unsafe { before.assume_init() }));
    // SAFETY: an action is integers and an optional pointer, all of which may be zero.
    let mut ours: sigaction = unsafe { zeroed() };
    ours.sa_sigaction = on_sigbus as *const () as usize;
    // On the thread's other stack if it has one: what Rust's own has to say comes at the end of the first.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for, and calls only what a signal handler may.
    match unsafe { sigaction(libc::SIGBUS, &ours, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A page is gone. If it is one of a guarded range, zeroed pages take that range's place, and the instruction is tried again.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a filled `siginfo_t`, that of a SIGBUS with an address.
    let address = unsafe { (*info).si_addr() }.addr();
    let hit = GUARDED.iter().find(|range| {
        let start = range.start.load(Ordering::Acquire);
        start != 0 && address.wrapping_sub(start) < range.len.load(Ordering::Relaxed)
    });
    if let Some(range) = hit
        && replace(range)
    {
        range.lost.store(true, Ordering::Relaxed);
        return;
    }
    if let Some(Before(before)) = BEFORE.get() {
        // SAFETY: gives the signal back to whoever had it; tried again, the instruction comes to them.
        unsafe { sigaction(signal, before, null_mut()) };
    }
}

/// Maps zeroed pages of ours over a range. mmap(2) is a system call and no more, though no list of what a handler may call
/// has it; it changes `errno` only when it fails, and then the process ends.
fn replace(range: &Range) -> bool {
    let (start, len) = (
        range.start.load(Ordering::Relaxed),
        range.len.load(Ordering::Relaxed),
    );
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
    );
    // SAFETY: the range is a whole mapping of its guard's owner (`Guard::new`), who only accesses it atomically: it may
    // change to any bytes at any time. Two threads may do this one after the other.
    let new = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(start),
            len,
            prot,
            flags,
            -1,
            0,
        )
    };
    new != libc::MAP_FAILED
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_places_and_one_is_free_again_after_its_guard() {
        static FEW: [Range; 2] = [const { Range::free() }; 2];
        let byte = 0;
        let guard = || Guard::among(&FEW, NonNull::from(&byte), 1).map_err(|error| error.to_string());
        let (one, _other) = (guard().unwrap(), guard().unwrap());
        assert_eq!(guard().unwrap_err(), "more than 2 regions of peers at one time");
        one.0.lost.store(true, Ordering::Relaxed);
        drop(one);
        assert!(!guard().unwrap().is_lost());
    }
}
