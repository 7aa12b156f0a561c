//! Which new flows get in, and which old ones must go for them (CT-18): memory is fixed, so a flood of new flows may
//! only ever cost those that nothing has answered.
//!
//! * No more than so many new flows a second, if the operator says so.
//! * Half-open flows have their share of the table: over it, one more takes the place of another of them.
//! * When the table is full, a finished flow goes, else a half-open one, else one without an answer that was idle for long.
//!
//! Established connections and streams with replies are never evicted. Victims are found by their class (`victims`), not by
//! searching: no list is kept of who was seen last, since packets would pay for it.

use super::flow::Flow;
use super::state::Dispensable;
use super::{Direction, Flows};
use crate::addr::Address;
use crate::index::FlowIndex;
use crate::tick::{TICKS_PER_SECOND, Tick};

/// Flows without an answer of which the one that was idle longest goes: a line each, so about a microsecond in the worst
/// case.
const LOOKS: usize = 8;

/// Limits on new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Percent of the capacity for half-open flows, 1 to 100.
    pub embryonic_percent: u8,
    /// Most new flows in a second, as many at once; 0: no limit.
    pub per_second: u32,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            // Half of the table stays for connections that somebody answered.
            embryonic_percent: 50,
            per_second: 0,
        }
    }
}

/// A bucket that fills by the tick and holds a second's worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    per_second: u32,
    /// In parts of a flow, as many as there are ticks in a second.
    tokens: u64,
    filled: Option<Tick>,
}

impl Rate {
    pub(super) const fn new(per_second: u32) -> Self {
        Self {
            per_second,
            tokens: 0,
            filled: None,
        }
    }

    /// Whether one more may come in.
    #[inline]
    pub(super) fn take(&mut self, tick: Tick) -> bool {
        if self.per_second == 0 {
            return true;
        }
        const ONE: u64 = TICKS_PER_SECOND as u64;
        let (rate, full) = (u64::from(self.per_second), u64::from(self.per_second) * ONE);
        self.tokens = match self.filled {
            None => full,
            Some(filled) => full.min(self.tokens + u64::from(tick.since(filled)) * rate),
        };
        self.filled = Some(tick);
        if self.tokens < ONE {
            return false;
        }
        self.tokens -= ONE;
        true
    }
}

impl<A: Address> Flows<A> {
    /// Closes one flow that may go, if there is one; only a half-open one if `embryonic`. Whether it did.
    #[cold]
    pub(super) fn evict(&mut self, tick: Tick, embryonic: bool, gone: &mut impl FnMut(&Flow<A>)) -> bool {
        let victim = if embryonic {
            self.victims.next(Dispensable::Embryonic)
        } else {
            self.victims
                .next(Dispensable::Finished)
                .or_else(|| self.victims.next(Dispensable::Embryonic))
                .or_else(|| self.unreplied(tick))
        };
        let closed = victim.and_then(|at| self.close(FlowIndex(at as u32)));
        if let Some(flow) = &closed {
            gone(flow);
        }
        closed.is_some()
    }

    /// Of the next few without an answer, the one that was idle longest.
    fn unreplied(&mut self, tick: Tick) -> Option<usize> {
        (0..LOOKS)
            .filter_map(|_| self.victims.next(Dispensable::Unreplied))
            .max_by_key(|&at| tick.since(self.flows[at].last_seen()))
    }

    /// Half-open flows now.
    pub const fn embryonic(&self) -> usize {
        self.embryonic
    }

    /// Asks for the lines of the table that closing this flow will read.
    pub(super) fn prefetch_buckets(&self, flow: &Flow<A>) {
        for direction in Direction::BOTH {
            self.table.prefetch(self.hash_key.hash(&flow.key(direction)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_a_seconds_worth_in_at_once_and_then_so_many_a_second() {
        let mut rate = Rate::new(20);
        let mut taken = |tick| (0..1000).filter(|_| rate.take(Tick(tick))).count();
        assert_eq!(taken(100), 20);
        assert_eq!((101..109).map(&mut taken).sum::<usize>(), 20);
        assert_eq!(taken(100_000), 20, "no more than a second's worth is saved up");
        assert_eq!(taken(99_000), 0, "time that runs backwards fills nothing");
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut rate = Rate::new(0);
        assert!((0..1000).all(|_| rate.take(Tick(1))));
    }
}
