//! Next hops: which MAC address, on which NIC port, an on-link neighbour of either family answers to.
//!
//! One steward writes, every worker reads, nobody locks. A flow names its next hop by index, so a changed MAC address
//! heals every flow at its next packet. An index is the slot of an open-addressed table and the slot's generation: a
//! neighbour that answered once and is forgotten later takes its generation with it, so that whoever still has its
//! index learns that it is `Forgotten` and never finds the slot's next neighbour. 31 generations are enough, because the
//! steward forgets such a neighbour so long after its last answer that an index comes to life again only after more time
//! than any flow may sleep (`neighbours::Pace`).
//!
//! A key is three words, so a reader takes a snapshot (a sequence lock): the tag, then address and state, then the tag
//! again. Orderings:
//! * A: the tag is stored with Release after everything it vouches for, and first loaded with Acquire.
//! * B: a Release fence stands between the tag that vacates a slot and the first word written into it, an Acquire fence
//!   between the last word read and the second load of the tag: whoever read a new word finds another tag. Tags never
//!   repeat: they count.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::addr::{Address, Mac};
use crate::index::{NextHopIndex, NicPortIndex};

/// Slots looked at before a neighbour counts as absent. At the load `NextHops::insert` allows (3/4) and a good
/// hash, runs of 64 do not occur in practice; a full run is refused like a full table.
const PROBES: usize = 64;

/// Whether a neighbour can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Asked for, not answered yet.
    Incomplete,
    /// Answered: packets go to this address.
    Reachable(Mac),
    /// Does not answer.
    Unreachable,
    /// The index is of a neighbour that was forgotten, or `UNKNOWN`: the address must be looked up afresh.
    Forgotten,
}

/// The table, written by the steward at any time.
#[derive(Debug)]
pub struct NextHops {
    keys: Box<[Key]>,
    states: Box<[AtomicU64]>,
    used: AtomicU64,
}

/// Whose a slot is.
#[derive(Debug, Default)]
struct Key {
    /// 0: never anybody's. Else the count of changes (48 bits), the NIC port, and `IPV4`, `IPV6` or `VACANT`.
    tag: AtomicU64,
    address: [AtomicU64; 2],
}

const IPV4: u64 = 1;
const IPV6: u64 = 2;
const VACANT: u64 = 3;
/// What in a tag names a neighbour, together with its address.
const NAMES: u64 = 0xffff;
/// One change of a slot.
const CHANGE: u64 = 0x1_0000;

/// State words: generation (5 bits), used (1), kind (2), NIC port (8), MAC address (48).
const KIND: u64 = 3 << 56;
const REACHABLE: u64 = 1 << 56;
const UNREACHABLE: u64 = 2 << 56;
/// Unreachable, but reachable once: flows may name it.
const LOST: u64 = 3 << 56;
const USED: u64 = 1 << 58;
const GENERATION_AT: u32 = 59;
/// One less than 5 bits can tell: the last is that of `NextHopIndex::UNKNOWN`, which is nobody's.
pub const GENERATIONS: u64 = 31;
const MAC: u64 = (1 << 48) - 1;

/// Bits of an index that are the slot; the others are the generation.
const SLOT_BITS: u32 = 27;

impl NextHops {
    /// Room for `capacity` neighbours, at most 2²⁶ (the table has a third more slots, rounded up to a power of two).
    pub fn new(capacity: usize) -> Self {
        let slots = (capacity.clamp(PROBES, 1 << 26) * 4 / 3).next_power_of_two();
        Self {
            keys: (0..slots).map(|_| Key::default()).collect(),
            states: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            used: AtomicU64::new(0),
        }
    }

    /// The neighbour's index, if the steward has heard of it.
    pub fn find(&self, port: NicPortIndex, address: impl Into<IpAddr>) -> Option<NextHopIndex> {
        Some(self.look_up(port, address)?.0)
    }

    /// The neighbour's index and reachability, if the steward has heard of it: what a new flow may rely on.
    pub fn look_up(
        &self,
        port: NicPortIndex,
        address: impl Into<IpAddr>,
    ) -> Option<(NextHopIndex, Reachability)> {
        let (name, words) = key(port, address.into());
        for slot in self.probes(name, words) {
            let key = &self.keys[slot];
            let tag = key.tag.load(Ordering::Acquire); // A
            if tag == 0 {
                return None;
            }
            if tag & NAMES != name {
                continue;
            }
            let found = [0, 1].map(|i| key.address[i].load(Ordering::Relaxed));
            let state = self.states[slot].load(Ordering::Relaxed);
            fence(Ordering::Acquire); // B
            if found == words && key.tag.load(Ordering::Relaxed) == tag {
                return Some((index(slot, state), reachability(state)));
            }
        }
        None
    }

    /// The NIC port and reachability behind an index, which must come from this table. Marks it as used.
    #[inline]
    pub fn get(&self, index: NextHopIndex) -> (NicPortIndex, Reachability) {
        let word = &self.states[self.slot(index)];
        // Relaxed: the word is complete in itself, and an old MAC address for one more burst does no harm.
        let state = word.load(Ordering::Relaxed);
        let reachability = if is_of(index, state) {
            reachability(state)
        } else {
            Reachability::Forgotten
        };
        if state & USED == 0 {
            // Once between two looks of the steward. Should the slot change hands meanwhile, its next neighbour is
            // asked once more than it had to be.
            word.fetch_or(USED, Ordering::Relaxed);
        }
        (port(state), reachability)
    }

    /// `get`, of a neighbour that is as nearly all are: of this index, reachable, and marked as used. `None`: ask `get`.
    #[inline(always)]
    pub fn get_reachable(&self, index: NextHopIndex) -> Option<(NicPortIndex, Mac)> {
        // Relaxed: as in `get`.
        let state = self.states[self.slot(index)].load(Ordering::Relaxed);
        let wanted = u64::from(index.0 >> SLOT_BITS) << GENERATION_AT | USED | REACHABLE;
        (state & !(0xff << 48 | MAC) == wanted).then(|| (port(state), mac(state)))
    }

    /// Whether the neighbour of this index can be sent to.
    #[inline(always)]
    pub fn is_reachable(&self, index: NextHopIndex) -> bool {
        // Relaxed: as in `get`.
        let state = self.states[self.slot(index)].load(Ordering::Relaxed);
        is_of(index, state) && state & KIND == REACHABLE
    }

    /// Steward: the index of this neighbour, entered as `Incomplete` if new; `None` when the table is full.
    pub fn insert(&self, port: NicPortIndex, address: impl Into<IpAddr>) -> Option<NextHopIndex> {
        let address = address.into();
        if let Some(index) = self.find(port, address) {
            return Some(index);
        }
        if self.used() >= self.limit() {
            return None;
        }
        let (name, words) = key(port, address);
        let tag = |slot: usize| self.keys[slot].tag.load(Ordering::Relaxed);
        let free = |&slot: &usize| tag(slot) == 0 || tag(slot) & NAMES == VACANT;
        let slot = self.probes(name, words).find(free)?;
        let key = &self.keys[slot];
        fence(Ordering::Release); // B
        for (to, word) in key.address.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
        let generation = generation(self.states[slot].load(Ordering::Relaxed));
        let state = generation << GENERATION_AT | u64::from(port.0) << 48;
        self.states[slot].store(state, Ordering::Relaxed);
        let count = (tag(slot) & !NAMES).wrapping_add(CHANGE);
        key.tag.store(count | name, Ordering::Release); // A
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(index(slot, state))
    }

    /// Steward: what became of a neighbour. One that was reachable never becomes `Incomplete` again.
    pub fn set(&self, index: NextHopIndex, reachability: Reachability) {
        let word = &self.states[self.slot(index)];
        let state = word.load(Ordering::Relaxed);
        let once = matches!(state & KIND, REACHABLE | LOST);
        let kind = match reachability {
            Reachability::Reachable(mac) => REACHABLE | mac.bits(),
            _ if once => LOST,
            Reachability::Unreachable => UNREACHABLE,
            Reachability::Incomplete | Reachability::Forgotten => 0,
        };
        word.store(state & !(KIND | MAC) | kind, Ordering::Relaxed);
    }

    /// Steward: whether a worker has used the neighbour since this was asked last.
    pub fn take_used(&self, index: NextHopIndex) -> bool {
        let word = &self.states[self.slot(index)];
        word.load(Ordering::Relaxed) & USED != 0 && word.fetch_and(!USED, Ordering::Relaxed) & USED != 0
    }

    /// Steward: forgets a neighbour, so that others have room. One that was `Reachable` must not have been for an hour.
    pub fn forget(&self, index: NextHopIndex) {
        let slot = self.slot(index);
        let tag = &self.keys[slot].tag;
        let count = (tag.load(Ordering::Relaxed) & !NAMES).wrapping_add(CHANGE);
        tag.store(count | VACANT, Ordering::Relaxed);
        fence(Ordering::Release); // B
        let state = self.states[slot].load(Ordering::Relaxed);
        if matches!(state & KIND, REACHABLE | LOST) {
            let next = (generation(state) + 1) % GENERATIONS;
            self.states[slot].store(next << GENERATION_AT, Ordering::Relaxed);
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Neighbours known.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed) as usize
    }

    /// Neighbours there is room for.
    pub fn limit(&self) -> usize {
        self.keys.len() / 4 * 3
    }

    fn slot(&self, index: NextHopIndex) -> usize {
        index.get() & (self.states.len() - 1)
    }

    fn probes(&self, name: u64, words: [u64; 2]) -> impl Iterator<Item = usize> {
        let mask = self.keys.len() - 1;
        // Fibonacci hashing: consecutive addresses, the usual case, spread evenly.
        let word = words[0].rotate_left(32) ^ words[1] ^ name << 40;
        let start = (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
        (0..PROBES).map(move |i| (start + i) & mask)
    }
}

/// On-link neighbours that one worker has asked for in the last second, by address (a route remembers its router): a few
/// Services have most new flows, and the same endpoints need not be looked for over and over. What is remembered is as good
/// as an index in a flow: it names no other neighbour.
#[derive(Debug)]
pub struct Recent<A>(Box<[(A, NextHopIndex); RECENT]>);

/// Of IPv4, two kilobytes: what else a new flow needs stays in the first cache beside them.
const RECENT: usize = 256;

impl<A: Address> Recent<A> {
    /// The index of `address`, if it was `put` and can be sent to.
    #[inline(always)]
    pub fn get(&self, hops: &NextHops, address: A) -> Option<NextHopIndex> {
        let (of, index) = self.0[Self::place(address)];
        (of == address && hops.is_reachable(index)).then_some(index)
    }

    /// Remembers the index of `address`.
    pub fn put(&mut self, address: A, index: NextHopIndex) {
        self.0[Self::place(address)] = (address, index);
    }

    /// Forgets all: whatever has happened to neighbours since, an index that was just found is right.
    pub fn clear(&mut self) {
        self.0.fill((A::default(), NextHopIndex::UNKNOWN));
    }

    #[inline(always)]
    fn place(address: A) -> usize {
        (address.spread() >> (64 - RECENT.trailing_zeros())) as usize
    }
}

impl<A: Address> Default for Recent<A> {
    fn default() -> Self {
        Self(Box::new([(A::default(), NextHopIndex::UNKNOWN); RECENT]))
    }
}

/// What in a tag, and which words, name this neighbour.
fn key(port: NicPortIndex, address: IpAddr) -> (u64, [u64; 2]) {
    let (family, bits) = match address {
        IpAddr::V4(v4) => (IPV4, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (IPV6, v6.to_bits()),
    };
    (
        u64::from(port.0) << 8 | family,
        [(bits >> 64) as u64, bits as u64],
    )
}

fn index(slot: usize, state: u64) -> NextHopIndex {
    NextHopIndex((generation(state) << SLOT_BITS) as u32 | slot as u32)
}

const fn generation(state: u64) -> u64 {
    state >> GENERATION_AT
}

fn is_of(index: NextHopIndex, state: u64) -> bool {
    u64::from(index.0 >> SLOT_BITS) == generation(state)
}

fn port(state: u64) -> NicPortIndex {
    NicPortIndex((state >> 48) as u8)
}

#[inline(always)]
const fn mac(state: u64) -> Mac {
    Mac::of_bits(state)
}

fn reachability(state: u64) -> Reachability {
    match state & KIND {
        0 => Reachability::Incomplete,
        REACHABLE => Reachability::Reachable(mac(state)),
        _ => Reachability::Unreachable,
    }
}

#[cfg(test)]
mod tests;
