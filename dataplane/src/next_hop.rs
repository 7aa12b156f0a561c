//! Next hops: which MAC address, on which NIC port, an on-link neighbour answers to.
//!
//! One steward writes, every worker reads, nobody locks. A flow names its next hop by index, so a changed MAC address
//! heals every flow at its next packet. The index is the slot of an open-addressed table, and a slot whose neighbour
//! has once been reachable keeps it for the life of the process. Flows name only such slots, so an index in a flow can
//! never come to mean another station; slots of neighbours that never answered are given to others.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::Mac;
use crate::index::{NextHopIndex, NicPortIndex};

/// Slots looked at before a neighbour counts as absent. At the load `NextHops::insert` allows (3/4) and a good
/// hash, runs of 64 do not occur in practice; a full run is refused like a full table.
const PROBES: usize = 64;

/// Key word of a slot whose neighbour never answered and was forgotten. No neighbour's: their lowest bit is set.
const FORGOTTEN: u64 = 2;

/// Whether a neighbour can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Asked for by ARP, not answered yet.
    Incomplete,
    /// Answered: packets go to this address.
    Reachable(Mac),
    /// Does not answer.
    Unreachable,
}

/// The table, written by the steward at any time (key 0 = never used).
#[derive(Debug)]
pub struct NextHops {
    key: Box<[AtomicU64]>,
    state: Box<[AtomicU64]>,
    used: AtomicU64,
}

impl NextHops {
    /// Room for `capacity` neighbours (the table has a third more slots, rounded up to a power of two).
    pub fn new(capacity: usize) -> Self {
        let slots = (capacity.max(PROBES) * 4 / 3).next_power_of_two();
        let words = || (0..slots).map(|_| AtomicU64::new(0)).collect();
        Self {
            key: words(),
            state: words(),
            used: AtomicU64::new(0),
        }
    }

    /// The neighbour's index, if the steward has heard of it.
    pub fn find(&self, port: NicPortIndex, address: [u8; 4]) -> Option<NextHopIndex> {
        let key = key_word(port, address);
        for slot in self.probes(key) {
            // Acquire pairs with the Release in `insert`: a key seen means its state is initialised.
            match self.key[slot].load(Ordering::Acquire) {
                0 => return None,
                found if found == key => return Some(NextHopIndex(slot as u32)),
                _ => {}
            }
        }
        None
    }

    /// The neighbour's index and reachability, if the steward has heard of it: what a new flow may rely on.
    pub fn look_up(&self, port: NicPortIndex, address: [u8; 4]) -> Option<(NextHopIndex, Reachability)> {
        let index = self.find(port, address)?;
        // Acquire pairs with the Release in `set`: if this is the state of another neighbour that was given the slot
        // meanwhile, the key read next is another, too. (A reachable one keeps the slot: the key cannot come back.)
        let (_, reachability) = unpack(self.state[index.get()].load(Ordering::Acquire));
        let same = self.key[index.get()].load(Ordering::Relaxed) == key_word(port, address);
        same.then_some((index, reachability))
    }

    /// The NIC port and reachability behind an index. The index must come from this table.
    pub fn get(&self, index: NextHopIndex) -> (NicPortIndex, Reachability) {
        // Relaxed: the word is complete in itself, and an old MAC address for one more burst does no harm.
        unpack(self.state[index.get()].load(Ordering::Relaxed))
    }

    /// Steward: the index of this neighbour, entered as `Incomplete` if new; `None` when the table is full.
    pub fn insert(&self, port: NicPortIndex, address: [u8; 4]) -> Option<NextHopIndex> {
        if let Some(index) = self.find(port, address) {
            return Some(index);
        }
        if self.used() >= self.limit() {
            return None;
        }
        let key = key_word(port, address);
        let unused = |&slot: &usize| matches!(self.key[slot].load(Ordering::Relaxed), 0 | FORGOTTEN);
        let slot = self.probes(key).find(unused)?;
        self.state[slot].store(pack(port, Reachability::Incomplete), Ordering::Relaxed);
        self.key[slot].store(key, Ordering::Release);
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(NextHopIndex(slot as u32))
    }

    /// Steward: what became of a neighbour.
    pub fn set(&self, index: NextHopIndex, reachability: Reachability) {
        let (port, _) = self.get(index);
        // Release: see `look_up`.
        self.state[index.get()].store(pack(port, reachability), Ordering::Release);
    }

    /// Steward: forgets a neighbour that has never been `Reachable`, so that others have room.
    pub fn forget(&self, index: NextHopIndex) {
        self.key[index.get()].store(FORGOTTEN, Ordering::Relaxed);
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Neighbours known.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed) as usize
    }

    /// Neighbours there is room for.
    pub fn limit(&self) -> usize {
        self.key.len() / 4 * 3
    }

    fn probes(&self, key: u64) -> impl Iterator<Item = usize> {
        let mask = self.key.len() - 1;
        // Fibonacci hashing: consecutive addresses, the usual case, spread evenly.
        let start = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
        (0..PROBES).map(move |i| (start + i) & mask)
    }
}

/// Never 0: the lowest bit marks a slot in use.
fn key_word(port: NicPortIndex, address: [u8; 4]) -> u64 {
    u64::from(u32::from_be_bytes(address)) << 16 | u64::from(port.0) << 8 | 1
}

fn pack(port: NicPortIndex, reachability: Reachability) -> u64 {
    let (state, mac) = match reachability {
        Reachability::Incomplete => (0, Mac::default()),
        Reachability::Reachable(mac) => (1, mac),
        Reachability::Unreachable => (2, Mac::default()),
    };
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([state, port.0, a, b, c, d, e, f])
}

fn unpack(word: u64) -> (NicPortIndex, Reachability) {
    let [state, port, a, b, c, d, e, f] = word.to_be_bytes();
    let reachability = match state {
        0 => Reachability::Incomplete,
        1 => Reachability::Reachable(Mac([a, b, c, d, e, f])),
        _ => Reachability::Unreachable,
    };
    (NicPortIndex(port), reachability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_keeps_its_index_while_its_mac_changes() {
        let hops = NextHops::new(100);
        let index = hops.insert(NicPortIndex(1), [10, 0, 0, 7]).unwrap();
        assert_eq!(hops.get(index), (NicPortIndex(1), Reachability::Incomplete));
        for last in [1, 2] {
            let mac = Mac([2, 0, 0, 0, 0, last]);
            hops.set(index, Reachability::Reachable(mac));
            assert_eq!(hops.find(NicPortIndex(1), [10, 0, 0, 7]), Some(index));
            assert_eq!(hops.get(index), (NicPortIndex(1), Reachability::Reachable(mac)));
        }
        assert_eq!(hops.insert(NicPortIndex(1), [10, 0, 0, 7]), Some(index));
        assert_eq!(hops.used(), 1);
    }

    #[test]
    fn a_forgotten_neighbours_slot_serves_another_and_hides_nobody() {
        let hops = NextHops::new(100);
        let all: Vec<_> = (0..=u8::MAX)
            .map_while(|n| hops.insert(NicPortIndex(0), [10, 0, 0, n]))
            .collect();
        assert_eq!(hops.used(), hops.limit());
        hops.forget(all[7]);
        assert_eq!(hops.look_up(NicPortIndex(0), [10, 0, 0, 7]), None);
        for (n, index) in all.iter().enumerate().filter(|(n, _)| *n != 7) {
            let found = hops.look_up(NicPortIndex(0), [10, 0, 0, n as u8]);
            assert_eq!(found, Some((*index, Reachability::Incomplete)));
        }
        assert!(hops.insert(NicPortIndex(0), [10, 0, 1, 7]).is_some());
    }

    #[test]
    fn the_same_address_on_another_port_is_another_neighbour() {
        let hops = NextHops::new(100);
        let one = hops.insert(NicPortIndex(0), [10, 0, 0, 7]);
        assert_eq!(hops.find(NicPortIndex(1), [10, 0, 0, 7]), None);
        assert_ne!(hops.insert(NicPortIndex(1), [10, 0, 0, 7]), one);
    }

    #[test]
    fn a_full_table_refuses_new_neighbours_and_keeps_the_old() {
        let hops = NextHops::new(100);
        let known: Vec<_> = (0..=u16::MAX)
            .map(|n| [10, 0, (n >> 8) as u8, n as u8])
            .map_while(|a| hops.insert(NicPortIndex(0), a))
            .collect();
        assert!(known.len() >= 100 && known.len() <= hops.limit());
        assert_eq!(hops.insert(NicPortIndex(0), [192, 0, 2, 1]), None);
        assert_eq!(hops.find(NicPortIndex(0), [10, 0, 0, 0]), Some(known[0]));
    }
}
