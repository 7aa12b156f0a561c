//! Ports that were given back and rest before they are taken again: a ring in the order of time, and in it a list for
//! each destination, so that the oldest of all and the oldest toward one destination are both at hand.
//!
//! A port that is called back before its time leaves a gap in the ring, which goes when it comes to the front. Memory is
//! fixed: 16 bytes a resting port, 8 a destination.

use std::io;

use bytemuck::{Pod, Zeroable};

use crate::segment::Slab;
use crate::tick::Tick;

/// A resting port, as bit of a block.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Resting {
    /// When it was given back.
    pub(super) since: Tick,
    pub(super) block: u32,
    /// Place plus one of the next of the same destination, 0 for none.
    next: u32,
    pub(super) bit: u16,
    /// 0: a gap.
    live: u16,
}

/// Places plus one of a destination's oldest and youngest; 0: none.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct List {
    first: u32,
    last: u32,
}

/// All resting ports.
pub(super) struct Quarantine {
    ring: Slab<Resting>,
    lists: Slab<List>,
    /// Place of the oldest.
    head: usize,
    /// Places in use, gaps included.
    used: usize,
    limit: usize,
}

impl Quarantine {
    /// Room for `ports` ports of `destinations` destinations. Errors: ENOMEM.
    pub(super) fn new(ports: usize, destinations: usize) -> io::Result<Self> {
        Ok(Self {
            ring: Slab::zeroed(ports)?,
            lists: Slab::zeroed(destinations)?,
            head: 0,
            used: 0,
            limit: ports,
        })
    }

    /// Lays a port to rest, as the youngest; there must be room.
    pub(super) fn push(&mut self, destination: u32, block: u32, bit: usize, since: Tick) {
        debug_assert!(!self.is_full());
        let at = (self.head + self.used) % self.limit;
        self.used += 1;
        self.ring[at] = Resting {
            since,
            block,
            next: 0,
            bit: bit as u16,
            live: 1,
        };
        let list = &mut self.lists[destination as usize];
        match list.last {
            0 => list.first = at as u32 + 1,
            last => self.ring[last as usize - 1].next = at as u32 + 1,
        }
        list.last = at as u32 + 1;
    }

    /// Whether the ring is full; gaps in front are gone then.
    pub(super) fn is_full(&self) -> bool {
        self.used == self.limit
    }

    /// The oldest of all. Gaps in front of it go: each once, so whoever made them has paid for it.
    pub(super) fn oldest(&mut self) -> Option<Resting> {
        while self.used > 0 {
            let oldest = self.ring[self.head];
            if oldest.live != 0 {
                return Some(oldest);
            }
            self.head = (self.head + 1) % self.limit;
            self.used -= 1;
        }
        None
    }

    /// Takes out the oldest toward `destination`.
    pub(super) fn pop(&mut self, destination: u32) -> Option<Resting> {
        let list = &mut self.lists[destination as usize];
        let at = (list.first as usize).checked_sub(1)?;
        let resting = &mut self.ring[at];
        resting.live = 0;
        list.first = resting.next;
        if list.first == 0 {
            list.last = 0;
        }
        Some(*resting)
    }

    /// Bytes of memory taken.
    pub(super) const fn bytes(&self) -> usize {
        self.ring.bytes() + self.lists.bytes()
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_oldest_of_all_and_of_each_destination_are_what_plain_queues_say(
            steps in prop::collection::vec((0u32..4, 0u8..3), 1..300),
        ) {
            let mut quarantine = Quarantine::new(20, 4).unwrap();
            let mut oracle: VecDeque<(u32, u32)> = VecDeque::new();
            for (n, (destination, what)) in (0u32..).zip(steps) {
                match what {
                    0 | 1 => {
                        let oldest = quarantine.oldest().map(|resting| resting.block);
                        prop_assert_eq!(oldest, oracle.front().map(|front| front.1));
                        if quarantine.is_full() {
                            let (destination, block) = oracle.pop_front().unwrap();
                            prop_assert_eq!(quarantine.pop(destination).map(|resting| resting.block), Some(block));
                            quarantine.oldest();
                        }
                        quarantine.push(destination, n, 0, Tick(n));
                        oracle.push_back((destination, n));
                    }
                    _ => {
                        let first = oracle.iter().position(|one| one.0 == destination);
                        let block = first.and_then(|at| oracle.remove(at)).map(|one| one.1);
                        prop_assert_eq!(quarantine.pop(destination).map(|resting| resting.block), block);
                    }
                }
            }
        }
    }
}
