//! Which service port is behind a destination: a hash table of 256 shards, each a flat array of cache lines of four
//! slots. One lookup reads the shard's directory entry and, nearly always, one line.
//!
//! Three questions share the one table, told apart by their keys: (address, protocol, port) is a frontend,
//! (0.0.0.0, protocol, port) a node port, and (address, 0, 0) tells what an address is, whatever the port.
//!
//! A shard that changes is built anew from its rows in key order, so there are no tombstones and its layout depends
//! only on what is in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::hash::{hash, reduce};
use crate::addr::{Port, Protocol};
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

/// Address, port and protocol as one number. Never 0, which marks a free slot: a node port's port is not 0, nor is
/// the address of the other two kinds of rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FrontendKey(u64);

impl FrontendKey {
    pub(super) const fn exact(dst: [u8; 4], protocol: Protocol, port: Port) -> Self {
        let ([a, b, c, d], [e, f]) = (dst, port.0);
        Self(u64::from_le_bytes([a, b, c, d, e, f, protocol.0, 0]))
    }

    pub(super) const fn node_port(protocol: Protocol, port: Port) -> Self {
        Self::exact([0; 4], protocol, port)
    }

    pub(super) const fn address(dst: [u8; 4]) -> Self {
        Self::exact(dst, Protocol(0), Port([0; 2]))
    }
}

/// 256 shards: at 131,072 frontends a change rebuilds about 512 rows and copies a directory of 4 KiB, which is about
/// the same work.
const SHARDS: usize = 256;
const SLOTS_PER_LINE: usize = 4;
/// Half full on average: of a line's four slots two are taken, and 19 of 20 lines do not overflow into the next.
const ROWS_PER_LINE: usize = 2;

#[derive(Clone, Copy)]
struct Slot {
    key: FrontendKey,
    frontend: Frontend,
}

impl Slot {
    const FREE: Self = Self {
        key: FrontendKey(0),
        frontend: Frontend {
            service_port: ServicePortIndex(0),
            kind: FrontendKind::ClusterIp,
        },
    };
}

/// Slots fill from the first, so a free last slot ends a search.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([Slot; SLOTS_PER_LINE]);

const _: () = assert!(size_of::<Line>() == 64, "four slots are one cache line");

/// See the module.
#[derive(Clone)]
pub(super) struct FrontendTable {
    shards: Arc<[Arc<[Line]>; SHARDS]>,
}

impl FrontendTable {
    pub(super) fn new() -> Self {
        let none: Arc<[Line]> = Arc::new([]);
        Self {
            shards: Arc::new(std::array::from_fn(|_| Arc::clone(&none))),
        }
    }

    /// The row under `key`.
    #[inline]
    pub(super) fn get(&self, key: FrontendKey) -> Option<&Frontend> {
        let (lines, mut at) = self.seek(key);
        for _ in 0..lines.len() {
            let slots = &lines[at].0;
            if let Some(slot) = slots.iter().find(|slot| slot.key == key) {
                return Some(&slot.frontend);
            }
            if slots[SLOTS_PER_LINE - 1].key == Slot::FREE.key {
                return None;
            }
            at = (at + 1) % lines.len();
        }
        None
    }

    /// Starts to load the line a `get` of `key` will read.
    #[inline]
    pub(super) fn prefetch(&self, key: FrontendKey) {
        let (lines, at) = self.seek(key);
        if let Some(line) = lines.get(at) {
            prefetch(line);
        }
    }

    #[inline]
    fn seek(&self, key: FrontendKey) -> (&[Line], usize) {
        let hash = hash(key.0, 0);
        let lines = &*self.shards[shard_of(hash)];
        // The shard took the lowest bits, `reduce` uses the highest.
        (lines, reduce(hash, lines.len()))
    }

    /// Puts (`Some`) and removes (`None`) rows; shards without a change stay shared.
    pub(super) fn edit(&mut self, changes: impl IntoIterator<Item = (FrontendKey, Option<Frontend>)>) {
        let mut by_shard = BTreeMap::<usize, Vec<_>>::new();
        for (key, frontend) in changes {
            by_shard
                .entry(shard_of(hash(key.0, 0)))
                .or_default()
                .push((key, frontend));
        }
        for (shard, changes) in by_shard {
            let lines = &self.shards[shard];
            let mut rows: BTreeMap<_, _> = rows(lines).map(|slot| (slot.key, slot.frontend)).collect();
            for (key, frontend) in changes {
                match frontend {
                    Some(frontend) => rows.insert(key, frontend),
                    None => rows.remove(&key),
                };
            }
            Arc::make_mut(&mut self.shards)[shard] = build(&rows);
        }
    }

    /// Memory held.
    pub(super) fn bytes(&self) -> usize {
        let lines: usize = self.shards.iter().map(|shard| shard.len()).sum();
        size_of_val(&*self.shards) + lines * size_of::<Line>()
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

fn rows(lines: &[Line]) -> impl Iterator<Item = &Slot> {
    lines
        .iter()
        .flat_map(|line| line.0.iter())
        .filter(|slot| slot.key != Slot::FREE.key)
}

fn build(rows: &BTreeMap<FrontendKey, Frontend>) -> Arc<[Line]> {
    let mut lines = vec![Line([Slot::FREE; SLOTS_PER_LINE]); rows.len().div_ceil(ROWS_PER_LINE)];
    let count = lines.len();
    for (&key, &frontend) in rows {
        let mut at = reduce(hash(key.0, 0), count);
        // Ends: there are twice as many slots as rows.
        loop {
            if let Some(free) = lines[at].0.iter_mut().find(|slot| slot.key == Slot::FREE.key) {
                *free = Slot { key, frontend };
                break;
            }
            at = (at + 1) % count;
        }
    }
    lines.into()
}
