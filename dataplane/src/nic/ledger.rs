//! Which frames a driver has given to the kernel's rings: what the kernel hands back is believed only if it is here,
//! so a wrong address can never make a second `Frame` of one chunk; and what is still out at close is known.

use super::frame::{FrameMemory, RawFrame};

/// In which of a port's rings a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Not in any: a frame somewhere else, or free.
    No,
    /// To be received into.
    Receiving,
    /// To be sent.
    Sending,
}

/// One port's chunks, one byte each.
#[derive(Debug)]
pub(crate) struct Ledger {
    chunks: Box<[Held]>,
    chunk_size: usize,
}

impl Ledger {
    /// For the frames of `memory`, none of them held.
    pub(crate) fn new(memory: &FrameMemory) -> Self {
        Self {
            chunks: vec![Held::No; memory.capacity()].into(),
            chunk_size: memory.chunk_size(),
        }
    }

    /// Notes that the chunk around `address` is given to a ring.
    pub(crate) fn give(&mut self, address: u64, ring: Held) {
        if let Some(held) = self.chunk(address) {
            debug_assert_eq!(*held, Held::No, "a chunk can be in one ring only");
            *held = ring;
        }
    }

    /// Whether the chunk around `address` was in `ring`; then it is no more.
    #[must_use]
    pub(crate) fn take(&mut self, address: u64, ring: Held) -> bool {
        match self.chunk(address) {
            Some(held) if *held == ring => {
                *held = Held::No;
                true
            }
            _ => false,
        }
    }

    /// Frees every chunk that is still in a ring. Only after the kernel has given up the rings.
    pub(crate) fn free_all(self, memory: &mut FrameMemory) {
        for (chunk, held) in self.chunks.iter().enumerate() {
            if *held == Held::No {
                continue;
            }
            let raw = RawFrame {
                address: (chunk * self.chunk_size) as u64,
                len: 0,
            };
            if let Some(frame) = memory.from_raw(raw) {
                memory.free(frame);
            }
        }
    }

    fn chunk(&mut self, address: u64) -> Option<&mut Held> {
        let chunk = usize::try_from(address).ok()? / self.chunk_size;
        self.chunks.get_mut(chunk)
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_comes_back_once_from_the_ring_it_was_given_to() {
        let mut memory = FrameMemory::new(2, 2048).unwrap();
        let mut ledger = Ledger::new(&memory);
        let frame = memory.alloc().unwrap();
        let raw = memory.into_raw(frame);
        ledger.give(raw.address, Held::Receiving);
        assert!(!ledger.take(raw.address, Held::Sending));
        assert!(!ledger.take(4096, Held::Receiving) && !ledger.take(u64::MAX, Held::Receiving));
        assert!(ledger.take(raw.address, Held::Receiving));
        assert!(!ledger.take(raw.address, Held::Receiving));
        ledger.give(raw.address, Held::Sending);
        assert_eq!(memory.available(), 1);
        ledger.free_all(&mut memory);
        assert_eq!(memory.available(), 2);
    }
}
