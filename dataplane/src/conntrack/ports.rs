//! Takes a destination, gives a source port that no live flow to it uses (TP-6, TP-8); takes it back.
//!
//! A reply tells flows apart by where it comes from and by the port it is sent to, so one source port serves any number
//! of *destinations* (our address, endpoint address and port, protocol), and each has the worker's whole slice.
//!
//! A destination's ports in use are bits in **blocks** of 448, one cache line each, made when the first port in it is
//! taken and given up with the last: a destination of few flows costs two lines. Which blocks exist and which have a free
//! port is in the destination's own line, so taking a port looks at 15 words at most however full it is: there is no
//! probing. Destinations and blocks are found by the same kind of table as flows.
//!
//! Where the search begins is the caller's random number, so ports cannot be counted on (RFC 6056 §3.3). A port given back
//! rests first (`quarantine`), unless its destination has no other left.

use std::io;

use super::MAX_CAPACITY;
use super::bits::{clear, first_from, has, ones, scaled, set};
use super::hash::HashKey;
use super::pool::{Pool, Usage};
use super::table::{NoRoom, Table};
use crate::addr::{Address, FlowKey, Port, V4};
use crate::segment::Slab;
use crate::tick::Tick;

mod config;
mod entry;
mod quarantine;
mod slice;

pub use config::{PortError, PortPoolConfig, Rest, SourcePorts};

use entry::{
    BLOCK_PORTS, BLOCK_WORDS, Block, Entry, SUMMARY_WORDS, block_key, block_word, destination_word, key_of,
};
use quarantine::Quarantine;
use slice::Slice;

/// What a source port is taken for: our address, endpoint address and port, protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Destination<A: Address = V4>(FlowKey<A>);

impl<A: Address> Destination<A> {
    /// From the key of the endpoint's replies; its destination port, the port in question, does not matter.
    pub fn of_reply(reply: &FlowKey<A>) -> Self {
        Self(FlowKey {
            dst_port: Port([0; 2]),
            ..*reply
        })
    }
}

/// One worker's source ports.
pub struct PortPool<A: Address = V4> {
    slice: Slice,
    /// Finds destinations and blocks: a word is the entry's number and one bit for which of the two.
    table: Table,
    destinations: Pool<Entry<A>>,
    blocks: Pool<Block>,
    /// For each block, the ports of it that rest.
    resting: Slab<[u64; BLOCK_WORDS]>,
    quarantine: Quarantine,
    rest: Rest,
    now: Tick,
    hash_key: HashKey,
    taken: usize,
    fullest: usize,
    reused_early: u64,
}

impl<A: Address> PortPool<A> {
    /// A pool with every port free. Errors: InvalidInput for ranges or numbers out of range; ENOMEM.
    pub fn new(config: PortPoolConfig) -> io::Result<Self> {
        let PortPoolConfig {
            ports,
            destinations,
            blocks,
            rest,
            hash_key,
        } = config;
        let slice = Slice::new(ports)?;
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if ![destinations, blocks]
            .iter()
            .all(|count| (1..=MAX_CAPACITY).contains(count))
        {
            let what = format!("source ports: {destinations} destinations and {blocks} blocks");
            return invalid(format!("{what}; each must be between 1 and {MAX_CAPACITY}"));
        }
        if rest.ports > MAX_CAPACITY {
            return invalid(format!("{} ports at rest; at most {MAX_CAPACITY}", rest.ports));
        }
        Ok(Self {
            slice,
            table: Table::new(destinations + blocks)?,
            destinations: Pool::new(destinations)?,
            blocks: Pool::new(blocks)?,
            resting: Slab::zeroed(blocks)?,
            quarantine: Quarantine::new(rest.ports, destinations)?,
            rest,
            now: Tick::default(),
            hash_key,
            taken: 0,
            fullest: 0,
            reused_early: 0,
        })
    }

    /// A free port toward `destination`; `random` is any number an outsider cannot know.
    pub fn take(&mut self, destination: Destination<A>, random: u32) -> Result<Port, PortError> {
        match self.try_take(destination, random) {
            Err(error) if self.call_back(destination, error) => self.try_take(destination, random),
            result => result,
        }
    }

    /// Takes this very `port`, of a flow that exists already. Errors: `NotFree`, and as `take`.
    pub fn reserve(&mut self, destination: Destination<A>, port: Port) -> Result<(), PortError> {
        let (number, bit) = self
            .slice
            .place_of(destination.0.dst, port)
            .ok_or(PortError::NotFree)?;
        let at = match self.find(&destination.0) {
            Some(at) => at,
            None => self.add_destination(destination)?,
        };
        let block = match self.find(&block_key(&destination.0, number)) {
            Some(block) => block,
            None => self
                .add_block(at, number)
                .inspect_err(|_| self.remove_unused(at))?,
        };
        if !has(&self.blocks[block as usize].free, bit) {
            return Err(PortError::NotFree);
        }
        self.take_bit(at, block, bit);
        Ok(())
    }

    /// Gives `port` toward `destination` back; it rests before it is taken again. Whether it was taken.
    pub fn give(&mut self, destination: Destination<A>, port: Port) -> bool {
        let Some((at, block, bit)) = self.in_use(destination, port) else {
            return false;
        };
        self.taken -= 1;
        if self.rest.ports == 0 {
            self.free_bit(block, bit);
            return true;
        }
        while self.quarantine.is_full() {
            // The first may be a gap, and a gap is room.
            if let Some(oldest) = self.quarantine.oldest()
                && self.quarantine.is_full()
            {
                self.reused_early += 1;
                self.wake(self.blocks[oldest.block as usize].destination);
            }
        }
        self.quarantine.push(at, block, bit, self.now);
        set(&mut self.resting[block as usize], bit);
        true
    }

    /// Gives `port` back that no packet has left with: it is free at once. Whether it was taken.
    pub fn cancel(&mut self, destination: Destination<A>, port: Port) -> bool {
        let Some((_, block, bit)) = self.in_use(destination, port) else {
            return false;
        };
        self.taken -= 1;
        self.free_bit(block, bit);
        true
    }

    /// It is `tick` now: frees up to `budget` ports that have rested.
    pub fn expire(&mut self, tick: Tick, budget: usize) {
        self.now = tick;
        for _ in 0..budget {
            match self.quarantine.oldest() {
                Some(oldest) if tick.since(oldest.since) >= self.rest.period.ticks() => {
                    self.wake(self.blocks[oldest.block as usize].destination);
                }
                _ => return,
            }
        }
    }

    /// Ports taken again before they had rested, ever: their destination, or the pool, had no other.
    pub const fn reused_early(&self) -> u64 {
        self.reused_early
    }

    /// Ports in use toward all destinations together.
    pub const fn taken(&self) -> usize {
        self.taken
    }

    /// Ports in use toward `destination`, of `ports_per_destination`.
    pub fn taken_toward(&self, destination: Destination<A>) -> usize {
        let Some(at) = self.find(&destination.0) else {
            return 0;
        };
        let present = self.destinations[at as usize].present;
        let numbers = (0..SUMMARY_WORDS * 64).filter(|&number| has(&present, number));
        let blocks = numbers.filter_map(|number| self.find(&block_key(&destination.0, number)));
        let in_use = |at: u32| {
            let resting: u32 = self.resting[at as usize]
                .iter()
                .map(|word| word.count_ones())
                .sum();
            usize::from(self.blocks[at as usize].used) - resting as usize
        };
        blocks.map(in_use).sum()
    }

    /// Most ports ever in use or at rest toward one destination, in whole blocks: what is near `ports_per_destination` was
    /// near its end.
    pub fn fullest(&self) -> usize {
        self.fullest.min(self.slice.least())
    }

    /// Ports there are for each destination, on some of our addresses a few more.
    pub const fn ports_per_destination(&self) -> usize {
        self.slice.least()
    }

    /// Destinations with ports in use or at rest.
    pub fn destinations(&self) -> Usage {
        self.destinations.usage()
    }

    /// Blocks with ports in use or at rest.
    pub fn blocks(&self) -> Usage {
        self.blocks.usage()
    }

    /// Bytes of memory taken, all at the start.
    pub fn bytes(&self) -> usize {
        let rest = self.resting.bytes() + self.quarantine.bytes();
        let pools = self.destinations.bytes() + self.blocks.bytes();
        self.slice.bytes() + self.table.bytes() + pools + rest
    }

    fn try_take(&mut self, destination: Destination<A>, random: u32) -> Result<Port, PortError> {
        let at = match self.find(&destination.0) {
            Some(at) => at,
            None => self.add_destination(destination)?,
        };
        self.take_at(at, random).inspect_err(|_| self.remove_unused(at))
    }

    fn take_at(&mut self, at: u32, random: u32) -> Result<Port, PortError> {
        let Entry { key, present, open } = self.destinations[at as usize];
        let possible = self.slice.len(key.dst).div_ceil(BLOCK_PORTS);
        let start = scaled(random, possible);
        let known = first_from(&open, start).and_then(|number| self.find(&block_key(&key, number)));
        let block_at = match known {
            Some(block_at) => block_at,
            None => {
                let all: [u64; SUMMARY_WORDS] = ones(possible);
                let absent: [u64; SUMMARY_WORDS] = std::array::from_fn(|i| all[i] & !present[i]);
                let number = first_from(&absent, start).ok_or(PortError::PortsExhausted)?;
                self.add_block(at, number)?
            }
        };
        let block = &self.blocks[block_at as usize];
        // The high bits chose the block.
        let start = scaled(random.rotate_left(16), BLOCK_PORTS);
        let bit = first_from(&block.free, start).ok_or(PortError::PortsExhausted)?;
        Ok(self.take_bit(at, block_at, bit))
    }

    fn take_bit(&mut self, at: u32, block_at: u32, bit: usize) -> Port {
        let block = &mut self.blocks[block_at as usize];
        clear(&mut block.free, bit);
        block.used += 1;
        let number = usize::from(block.number);
        if block.free == [0; BLOCK_WORDS] {
            clear(&mut self.destinations[at as usize].open, number);
        }
        self.taken += 1;
        self.slice
            .port_at(self.destinations[at as usize].key.dst, number, bit)
    }

    fn free_bit(&mut self, block_at: u32, bit: usize) {
        let block = &mut self.blocks[block_at as usize];
        set(&mut block.free, bit);
        block.used -= 1;
        let (at, number, unused) = (block.destination, usize::from(block.number), block.used == 0);
        set(&mut self.destinations[at as usize].open, number);
        if unused {
            self.remove_block(block_at);
            let entry = &mut self.destinations[at as usize];
            clear(&mut entry.present, number);
            clear(&mut entry.open, number);
            self.remove_unused(at);
        }
    }

    /// Numbers of the destination and the block of `port`, and its bit, if it is in use and not at rest.
    fn in_use(&self, destination: Destination<A>, port: Port) -> Option<(u32, u32, usize)> {
        let (number, bit) = self.slice.place_of(destination.0.dst, port)?;
        let at = self.find(&destination.0)?;
        let block = self.find(&block_key(&destination.0, number))?;
        let free = has(&self.blocks[block as usize].free, bit) || has(&self.resting[block as usize], bit);
        (!free).then_some((at, block, bit))
    }

    /// Ends the rest of the oldest port toward destination `at`. Whether there was one.
    fn wake(&mut self, at: u32) -> bool {
        let Some(resting) = self.quarantine.pop(at) else {
            return false;
        };
        clear(&mut self.resting[resting.block as usize], resting.bit.into());
        self.free_bit(resting.block, resting.bit.into());
        true
    }

    /// Ends the rest of a port so that `destination`, which got `error`, can have one. Whether anything has changed.
    #[cold]
    fn call_back(&mut self, destination: Destination<A>, error: PortError) -> bool {
        if let Some(at) = self.find(&destination.0)
            && self.wake(at)
        {
            self.reused_early += 1;
            return true;
        }
        if error == PortError::PortsExhausted {
            return false;
        }
        // Room is full of others: of those that only rest, the oldest go. A bounded number, since one block may hold many.
        let mut woken = 0;
        while woken < 64
            && let Some(oldest) = self.quarantine.oldest()
        {
            self.wake(self.blocks[oldest.block as usize].destination);
            woken += 1;
        }
        self.reused_early += woken;
        woken > 0
    }

    fn add_destination(&mut self, Destination(key): Destination<A>) -> Result<u32, PortError> {
        let entry = Entry {
            key,
            present: [0; SUMMARY_WORDS],
            open: [0; SUMMARY_WORDS],
        };
        let at = self
            .destinations
            .insert(entry)
            .ok_or(PortError::DestinationsFull)?;
        self.insert(destination_word(at)).map_err(|NoRoom| {
            self.destinations.remove(at);
            PortError::DestinationsFull
        })?;
        Ok(at)
    }

    /// Forgets destination `at` if it has no block.
    fn remove_unused(&mut self, at: u32) {
        if self.destinations[at as usize].present != [0; SUMMARY_WORDS] {
            return;
        }
        self.remove(destination_word(at));
        self.destinations.remove(at);
    }

    fn add_block(&mut self, destination: u32, number: usize) -> Result<u32, PortError> {
        // The last block ends where the slice does.
        let free =
            ones(self.slice.len(self.destinations[destination as usize].key.dst) - number * BLOCK_PORTS);
        let block = Block {
            free,
            destination,
            number: number as u16,
            used: 0,
        };
        let at = self.blocks.insert(block).ok_or(PortError::BlocksFull)?;
        self.insert(block_word(at)).map_err(|NoRoom| {
            self.blocks.remove(at);
            PortError::BlocksFull
        })?;
        let entry = &mut self.destinations[destination as usize];
        set(&mut entry.present, number);
        set(&mut entry.open, number);
        let blocks: u32 = entry.present.iter().map(|word| word.count_ones()).sum();
        self.fullest = self.fullest.max(blocks as usize * BLOCK_PORTS);
        Ok(at)
    }

    fn remove_block(&mut self, at: u32) {
        self.remove(block_word(at));
        self.blocks.remove(at);
    }

    /// Number of the destination or block with `key`.
    fn find(&self, key: &FlowKey<A>) -> Option<u32> {
        self.table
            .find(self.hash_key.hash(key), |word| self.key_of(word) == *key)
            .map(|word| word >> 1)
    }

    fn insert(&mut self, word: u32) -> Result<(), NoRoom> {
        let hash_of = |word| {
            self.hash_key
                .hash(&key_of(&self.destinations, &self.blocks, word))
        };
        self.table.insert(hash_of(word), word, hash_of)
    }

    fn remove(&mut self, word: u32) {
        let removed = self.table.remove(self.hash_key.hash(&self.key_of(word)), word);
        debug_assert!(removed, "destinations and blocks in use are in the table");
    }

    fn key_of(&self, word: u32) -> FlowKey<A> {
        key_of(&self.destinations, &self.blocks, word)
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
