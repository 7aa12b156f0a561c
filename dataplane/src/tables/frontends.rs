//! Which service port is behind a destination: a hash table per family of 256 shards, each a flat array of lines of
//! four slots. One lookup reads the shard's directory entry and, nearly always, one line: for IPv4 one cache line, for
//! IPv6 two that lie side by side.
//!
//! Three questions share the one table, told apart by their keys: which frontend, which node port, and what an address
//! is, whatever the port.
//!
//! A shard that changes is built anew from its rows in key order, so there are no tombstones and its layout depends
//! only on what is in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::hash::{hash, join, reduce};
use super::side::Keyed;
use crate::addr::{Port, Protocol, V4, V6};
use crate::channel::record::FrontendKind;
use crate::index::ServicePortIndex;
use crate::prefetch::prefetch;

/// What is behind an (address, protocol, port) that clients address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The service port.
    pub service_port: ServicePortIndex,
    /// Which kind of frontend.
    pub kind: FrontendKind,
}

/// A question, as the words of an address with its port, protocol and kind. Never 0, which marks a free slot, since no
/// kind is 0.
pub(super) struct FrontendKey<A: Keyed>(A::Words);

// Not derived: a derive would ask the same of `A`.
impl<A: Keyed> Clone for FrontendKey<A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: Keyed> Copy for FrontendKey<A> {}

impl<A: Keyed> FrontendKey<A> {
    fn new(kind: u64, address: A, protocol: Protocol, port: Port) -> Self {
        let rest = kind << 56 | u64::from(protocol.0) << 48 | u64::from(port.number());
        Self(address.words(rest))
    }

    #[inline]
    pub(super) fn exact(dst: A, protocol: Protocol, port: Port) -> Self {
        Self::new(1, dst, protocol, port)
    }

    #[inline]
    pub(super) fn node_port(protocol: Protocol, port: Port) -> Self {
        Self::new(2, A::default(), protocol, port)
    }

    #[inline]
    pub(super) fn address(dst: A) -> Self {
        Self::new(3, dst, Protocol(0), Port([0; 2]))
    }

    #[inline]
    fn hash(self) -> u64 {
        hash(join(self.0.as_ref()), 0)
    }
}

/// 256 shards: at 131,072 frontends a change rebuilds about 512 rows and copies a directory of 4 KiB, which is about
/// the same work.
const SHARDS: usize = 256;
const SLOTS_PER_LINE: usize = 4;
/// Half full on average: of a line's four slots two are taken, and 19 of 20 lines do not overflow into the next.
const ROWS_PER_LINE: usize = 2;

#[derive(Clone, Copy)]
struct Slot<W> {
    /// All zeroes: free.
    key: W,
    frontend: Frontend,
}

impl<W: Default> Slot<W> {
    fn free() -> Self {
        Self {
            key: W::default(),
            frontend: Frontend {
                service_port: ServicePortIndex(0),
                kind: FrontendKind::ClusterIp,
            },
        }
    }
}

/// Slots fill from the first, so a free last slot ends a search.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line<W>([Slot<W>; SLOTS_PER_LINE]);

const _: () = assert!(
    size_of::<Line<<V4 as Keyed>::Words>>() == 64,
    "four slots are one cache line"
);
const _: () = assert!(
    size_of::<Line<<V6 as Keyed>::Words>>() == 128,
    "four slots are two cache lines"
);

type Shard<A> = Arc<[Line<<A as Keyed>::Words>]>;

/// See the module.
pub(super) struct FrontendTable<A: Keyed> {
    shards: Arc<[Shard<A>; SHARDS]>,
}

impl<A: Keyed> Clone for FrontendTable<A> {
    fn clone(&self) -> Self {
        Self {
            shards: Arc::clone(&self.shards),
        }
    }
}

impl<A: Keyed> FrontendTable<A> {
    pub(super) fn new() -> Self {
        let none: Shard<A> = Arc::new([]);
        Self {
            shards: Arc::new(std::array::from_fn(|_| Arc::clone(&none))),
        }
    }

    /// The row under `key`.
    #[inline]
    pub(super) fn get(&self, key: FrontendKey<A>) -> Option<&Frontend> {
        let (lines, mut at) = self.seek(key);
        for _ in 0..lines.len() {
            let slots = &lines[at].0;
            if let Some(slot) = slots.iter().find(|slot| slot.key == key.0) {
                return Some(&slot.frontend);
            }
            if slots[SLOTS_PER_LINE - 1].key == A::Words::default() {
                return None;
            }
            at = (at + 1) % lines.len();
        }
        None
    }

    /// Starts to load the line a `get` of `key` will read.
    #[inline]
    pub(super) fn prefetch(&self, key: FrontendKey<A>) {
        let (lines, at) = self.seek(key);
        if let Some(line) = lines.get(at) {
            prefetch(line);
            if size_of_val(line) > 64 {
                prefetch(&line.0[SLOTS_PER_LINE / 2]);
            }
        }
    }

    #[inline]
    fn seek(&self, key: FrontendKey<A>) -> (&[Line<A::Words>], usize) {
        let hash = key.hash();
        let lines = &*self.shards[shard_of(hash)];
        // The shard took the lowest bits, `reduce` uses the highest.
        (lines, reduce(hash, lines.len()))
    }

    /// Puts (`Some`) and removes (`None`) rows; shards without a change stay shared.
    pub(super) fn edit(&mut self, changes: impl IntoIterator<Item = (FrontendKey<A>, Option<Frontend>)>) {
        let mut by_shard = BTreeMap::<usize, Vec<_>>::new();
        for (key, frontend) in changes {
            by_shard
                .entry(shard_of(key.hash()))
                .or_default()
                .push((key, frontend));
        }
        for (shard, changes) in by_shard {
            let lines = &self.shards[shard];
            let mut rows: BTreeMap<_, _> = rows::<A>(lines).collect();
            for (key, frontend) in changes {
                match frontend {
                    Some(frontend) => rows.insert(key.0, frontend),
                    None => rows.remove(&key.0),
                };
            }
            Arc::make_mut(&mut self.shards)[shard] = build::<A>(&rows);
        }
    }

    /// Memory held.
    pub(super) fn bytes(&self) -> usize {
        let lines: usize = self.shards.iter().map(|shard| size_of_val(&**shard)).sum();
        size_of_val(&*self.shards) + lines
    }

    /// How many shards this table and `other` do not share.
    #[cfg(test)]
    pub(super) fn unshared(&self, other: &Self) -> usize {
        self.shards
            .iter()
            .zip(other.shards.iter())
            .filter(|(a, b)| !Arc::ptr_eq(a, b))
            .count()
    }
}

const fn shard_of(hash: u64) -> usize {
    hash as usize % SHARDS
}

fn rows<A: Keyed>(lines: &[Line<A::Words>]) -> impl Iterator<Item = (A::Words, Frontend)> {
    lines
        .iter()
        .flat_map(|line| line.0.iter())
        .filter(|slot| slot.key != A::Words::default())
        .map(|slot| (slot.key, slot.frontend))
}

fn build<A: Keyed>(rows: &BTreeMap<A::Words, Frontend>) -> Shard<A> {
    let mut lines = vec![Line([Slot::free(); SLOTS_PER_LINE]); rows.len().div_ceil(ROWS_PER_LINE)];
    let count = lines.len();
    for (&key, &frontend) in rows {
        let mut at = reduce(FrontendKey::<A>(key).hash(), count);
        // Ends: there are twice as many slots as rows.
        loop {
            let free = |slot: &&mut Slot<A::Words>| slot.key == A::Words::default();
            if let Some(free) = lines[at].0.iter_mut().find(free) {
                *free = Slot { key, frontend };
                break;
            }
            at = (at + 1) % count;
        }
    }
    lines.into()
}
