//! One worker's own flows: found by either tuple, followed, expired. No locks, no clock, no packet bytes.
//!
//! A **flow** is one tracked connection: an original and a reply tuple, what to do to packets in each direction, and how
//! far the connection has come (CT-1). Memory is fixed at the start: an entry of one cache line per flow (`flow`), and a
//! hash table that both tuples are in (`table`). What decides speed is how many lines a packet must wait for, so a burst's
//! lines are asked for together, in two waves: the buckets (`ask`), then the entries they name (`guess`).
//!
//! Time comes in as a `Tick`; nobody is told when a flow expires: `expire` looks at a bounded number of entries per call.

use std::io;

use arrayvec::ArrayVec;

use crate::addr::{Address, FlowKey, V4};
use crate::index::FlowIndex;
use crate::nat::Rewrite;
use crate::nic::BURST;
use crate::tick::Tick;

/// A flow's entry.
pub mod flow;
/// States of all protocols.
pub mod state;
/// TCP.
pub mod tcp;
/// SCTP.
pub mod sctp;
/// Idle timeouts.
pub mod timeouts;
/// Source ports for flows that the endpoint must see coming from us.
pub mod ports;

mod admission;
mod bits;
mod group;
mod hash;
/// Flows that outlive the process.
pub mod persist;
mod pool;
mod table;
mod victims;

pub use admission::Admission;
pub use flow::{Direction, Flow, FlowFlags, NewFlow, Touched};
pub use hash::{Hash, HashKey};
pub use pool::Usage;
pub use state::{Dispensable, State};
pub use timeouts::Timeouts;

use pool::Pool;
use table::{ABSENT, Table};
use victims::Victims;

/// Most flows a worker can hold: a table word is a flow's number and one bit for the direction, and two words are no flow's.
pub const MAX_CAPACITY: usize = (1 << 31) - 1;

/// How a worker's flow table is made.
#[derive(Clone, Copy, Debug)]
pub struct FlowConfig {
    /// Most flows at once, 1 to `MAX_CAPACITY` (CT-19). Each costs 84 bytes, of IPv6 148.
    pub capacity: usize,
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// Limits on new flows (CT-18).
    pub admission: Admission,
    /// Secret of the hash.
    pub hash_key: HashKey,
}

impl FlowConfig {
    /// Itself, if its limits make sense. Errors: InvalidInput.
    fn check(&self) -> io::Result<&Self> {
        let Self {
            capacity, admission, ..
        } = *self;
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return invalid(format!(
                "flow table capacity {capacity} is not between 1 and {MAX_CAPACITY}"
            ));
        }
        if !(1..=100).contains(&admission.embryonic_percent) {
            return invalid(format!(
                "{} percent of half-open flows; 1 to 100",
                admission.embryonic_percent
            ));
        }
        Ok(self)
    }
}

/// One worker's flows.
pub struct Flows<A: Address = V4> {
    flows: Pool<Flow<A>>,
    table: Table,
    timeouts: Timeouts,
    hash_key: HashKey,
    /// Entry that `expire` looks at next.
    sweep: usize,
    /// Who may go for a new flow.
    victims: Victims,
    /// Half-open flows now, and most there may be.
    embryonic: usize,
    embryonic_limit: usize,
    rate: admission::Rate,
}

/// What `Flows::guess` found: a word of the table, or what `Table::first` says instead.
#[derive(Clone, Copy, Debug)]
pub struct Guess(u32);

impl Guess {
    /// There was no such flow when the guess was made.
    pub const ABSENT: Self = Self(ABSENT);
}

/// Why a flow could not be opened. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Every entry is in use (CT-18).
    #[error("every flow of the worker's table is in use; give it a larger capacity")]
    Full,
    /// More new flows than the operator allows in a second.
    #[error("new flows come faster than the configured rate")]
    RateLimited,
    /// There are entries, but no place in the table's buckets for one of the tuples.
    #[error("no bucket of the worker's flow table has room for this tuple")]
    BucketsFull,
    /// A flow with this original tuple exists.
    #[error("a flow with this original tuple exists")]
    OriginalTaken,
    /// A flow with this reply tuple exists: it would receive the replies (TP-8).
    #[error("a flow with this reply tuple exists")]
    ReplyTaken,
}

impl<A: Address> Flows<A> {
    /// An empty table. Errors: InvalidInput for limits out of range; ENOMEM.
    pub fn new(config: FlowConfig) -> io::Result<Self> {
        Self::over(Pool::new(config.check()?.capacity)?, config)
    }

    /// A table of no flows over these entries.
    fn over(flows: Pool<Flow<A>>, config: FlowConfig) -> io::Result<Self> {
        let FlowConfig {
            capacity,
            timeouts,
            admission,
            hash_key,
        } = config;
        Ok(Self {
            flows,
            table: Table::new(2 * capacity)?,
            timeouts,
            hash_key,
            sweep: 0,
            victims: Victims::new(capacity)?,
            embryonic: 0,
            embryonic_limit: (capacity * usize::from(admission.embryonic_percent) / 100).max(1),
            rate: admission::Rate::new(admission.per_second),
        })
    }

    /// The flow that a packet with `key` belongs to, and which way it goes.
    pub fn find(&self, key: &FlowKey<A>) -> Option<(FlowIndex, Direction)> {
        self.find_hashed(self.hash_key.hash(key), key)
    }

    /// First of two waves: what a key hashes to. Its bucket begins to come in.
    #[inline(always)]
    pub fn ask(&self, key: &FlowKey<A>) -> Hash {
        let hash = self.hash_key.hash(key);
        self.table.prefetch(hash);
        hash
    }

    /// Second wave: which flow it must be. Its entry begins to come in.
    #[inline(always)]
    pub fn guess(&self, hash: Hash) -> Guess {
        let word = self.table.first(hash);
        // What stands for no flow is beyond `MAX_CAPACITY`.
        if let Some(flow) = self.flows.get(at(word)) {
            flow.prefetch();
        }
        Guess(word)
    }

    /// Which flow it is, if the guess was right. Only the key in the entry counts, so that it may be an old guess.
    #[inline(always)]
    pub(crate) fn confirm(&mut self, guess: Guess, key: &FlowKey<A>) -> Option<(&mut Flow<A>, Direction)> {
        let (FlowIndex(at), direction) = parts(guess.0);
        let flow = self.flows.get_mut(at as usize)?;
        flow.has_key(direction, key).then_some((flow, direction))
    }

    /// Which flow it is, whether or not the guess was right: but for a guess of none, which is believed.
    pub(crate) fn find_guessed(&self, guess: Guess, key: &FlowKey<A>) -> Option<(FlowIndex, Direction)> {
        if guess.0 == ABSENT {
            return None;
        }
        let (index, direction) = parts(guess.0);
        match self.flows.get(index.get()) {
            Some(flow) if flow.has_key(direction, key) => Some((index, direction)),
            _ => self.find(key),
        }
    }

    /// Opens a flow, its first packet having come at `tick`. A flow that had to go for it (CT-18) is shown to `gone`, as by
    /// `expire`; its state says why it could go (`State::dispensable`).
    pub fn open(
        &mut self,
        new: &NewFlow<A>,
        tick: Tick,
        gone: &mut impl FnMut(&Flow<A>),
    ) -> Result<FlowIndex, OpenError> {
        debug_assert!(new.state != State::Free && new.original.protocol == new.reply.protocol);
        let original = self.hash_key.hash(&new.original);
        let reply = self.hash_key.hash(&new.reply);
        self.table.prefetch(reply);
        if self.find_hashed(original, &new.original).is_some() {
            return Err(OpenError::OriginalTaken);
        }
        if new.reply == new.original || self.find_hashed(reply, &new.reply).is_some() {
            return Err(OpenError::ReplyTaken);
        }
        // What is left of a flow is none that comes in.
        if !new.flags.contains(FlowFlags::REMNANT) && !self.rate.take(tick) {
            return Err(OpenError::RateLimited);
        }
        let embryonic = new.state.is_embryonic();
        if embryonic && self.embryonic >= self.embryonic_limit {
            if !self.evict(tick, true, gone) {
                return Err(OpenError::Full);
            }
        } else if self.flows.is_full() && !self.evict(tick, false, gone) {
            return Err(OpenError::Full);
        }
        let at = self.flows.insert(Flow::new(new, tick)).ok_or(OpenError::Full)?;
        let index = FlowIndex(at);
        let (first, second) = (word(index, Direction::Original), word(index, Direction::Reply));
        if self.insert(original, first).is_err() {
            self.flows.remove(at);
            return Err(OpenError::BucketsFull);
        }
        if self.insert(reply, second).is_err() {
            self.table.remove(original, first);
            self.flows.remove(at);
            return Err(OpenError::BucketsFull);
        }
        self.flows[index.get()].publish(new.state);
        self.victims.moved(index.get(), State::Free, new.state);
        self.embryonic += usize::from(embryonic);
        Ok(index)
    }

    /// Flow `index`.
    #[inline(always)]
    pub fn flow(&self, index: FlowIndex) -> &Flow<A> {
        &self.flows[index.get()]
    }

    /// What to do to a packet of flow `index`.
    #[inline(always)]
    pub fn rewrite(&self, index: FlowIndex, direction: Direction) -> Rewrite<A> {
        self.flow(index).rewrite(direction)
    }

    /// Follows a packet of flow `index`; `signals` are what `parse` found: TCP's flags, SCTP's chunks.
    #[inline(always)]
    pub fn touch(&mut self, index: FlowIndex, direction: Direction, signals: u8, tick: Tick) -> Touched {
        let flow = &mut self.flows[index.get()];
        if flow.stays(direction, signals) {
            flow.refresh(tick);
            return Touched::Continues;
        }
        self.advance(index, direction, signals, tick)
    }

    #[inline(never)]
    fn advance(&mut self, index: FlowIndex, direction: Direction, signals: u8, tick: Tick) -> Touched {
        let flow = &mut self.flows[index.get()];
        let before = flow.state();
        let touched = flow.touch(direction, signals, tick);
        let after = flow.state();
        self.embryonic -= usize::from(before.is_embryonic());
        self.embryonic += usize::from(after.is_embryonic());
        self.victims.moved(index.get(), before, after);
        touched
    }

    /// Flow `index`'s backend serves, as of these `Tables::losses`.
    pub fn set_served(&mut self, index: FlowIndex, losses: u32) {
        self.flows[index.get()].set_served(losses);
    }

    /// Starts flow `index`'s idle time anew, its state as it is.
    pub fn refresh(&mut self, index: FlowIndex, tick: Tick) {
        self.flows[index.get()].refresh(tick);
    }

    /// Forgets flow `index` and gives what it was, so that its source port can be given back. `None` if there was none.
    pub fn close(&mut self, index: FlowIndex) -> Option<Flow<A>> {
        let flow = self.flows[index.get()];
        if flow.state() == State::Free {
            return None;
        }
        for direction in Direction::BOTH {
            let hash = self.hash_key.hash(&flow.key(direction));
            let removed = self.table.remove(hash, word(index, direction));
            debug_assert!(removed, "an open flow's tuples are in the table");
        }
        self.embryonic -= usize::from(flow.state().is_embryonic());
        self.victims.moved(index.get(), flow.state(), State::Free);
        self.flows[index.get()].retire();
        self.flows.remove(index.0);
        Some(flow)
    }

    /// Looks at the next `budget` entries and closes those idle for longer than their timeout, each shown to `gone`.
    ///
    /// In memory order and only as far as entries were ever used, so the lines come in by themselves; the table's are
    /// asked for together.
    pub fn expire(&mut self, tick: Tick, budget: usize, gone: &mut impl FnMut(&Flow<A>)) {
        let end = self.flows.touched().len();
        let mut budget = budget.min(end);
        while budget > 0 {
            if self.sweep >= end {
                self.sweep = 0;
            }
            let run = budget.min(end - self.sweep).min(BURST);
            let mut idle = ArrayVec::<FlowIndex, BURST>::new();
            for at in self.sweep..self.sweep + run {
                let flow = &self.flows[at];
                if flow.state() != State::Free && tick.since(flow.last_seen()) > self.timeouts.idle(flow) {
                    self.prefetch_buckets(flow);
                    idle.push(FlowIndex(at as u32));
                }
            }
            for index in idle {
                if let Some(flow) = self.close(index) {
                    gone(&flow);
                }
            }
            self.sweep += run;
            budget -= run;
        }
    }

    /// Every flow, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (FlowIndex, &Flow<A>)> {
        let used = self.flows.touched().iter().enumerate();
        used.filter(|(_, flow)| flow.state() != State::Free)
            .map(|(at, flow)| (FlowIndex(at as u32), flow))
    }

    /// Bytes of memory taken, all at the start.
    pub fn bytes(&self) -> usize {
        self.flows.bytes() + self.table.bytes() + self.victims.bytes()
    }

    /// Flows now, at most, and most ever.
    pub fn usage(&self) -> Usage {
        self.flows.usage()
    }

    #[inline(always)]
    fn find_hashed(&self, hash: Hash, key: &FlowKey<A>) -> Option<(FlowIndex, Direction)> {
        self.table.find(hash, |word| self.is(word, key)).map(parts)
    }

    #[inline(always)]
    fn is(&self, word: u32, key: &FlowKey<A>) -> bool {
        let (index, direction) = parts(word);
        self.flow(index).has_key(direction, key)
    }

    fn insert(&mut self, hash: Hash, word: u32) -> Result<(), table::NoRoom> {
        let hash_of = |word| {
            let (index, direction) = parts(word);
            self.hash_key.hash(&self.flows[index.get()].key(direction))
        };
        self.table.insert(hash, word, hash_of)
    }
}

/// What the table keeps for a tuple: the flow's number, and which of its tuples it is.
const fn word(index: FlowIndex, direction: Direction) -> u32 {
    index.0 << 1 | direction as u32
}

const fn at(word: u32) -> usize {
    (word >> 1) as usize
}

const fn parts(word: u32) -> (FlowIndex, Direction) {
    (
        FlowIndex(word >> 1),
        if word & 1 == 0 {
            Direction::Original
        } else {
            Direction::Reply
        },
    )
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
