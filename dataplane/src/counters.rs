//! Counters: one page per worker in the channel's segment.
//!
//! Takes  counts from the worker that owns the page, once a burst.     Gives  them to whoever maps the page.
//! Never  adds pages up (that is the reader's business), never locks, never allocates on the worker's side.
//!
//! A word has one writer, its worker, so adding is a load and a store, not a locked instruction. All accesses are
//! relaxed: each counter is true by itself; two counters read together may be one burst apart.

use std::fmt;
use std::sync::atomic::Ordering;

use crate::channel::layout::{COUNTER_WORDS, PAGE_WORDS, SharedWords};
use crate::index::WorkerIndex;
use crate::verdict::DropReason;

mod ports;

pub use ports::PortCounter;

/// One counter of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterId(u16);

/// How a counter moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// Only grows, from 0 at the dataplane's start.
    Total,
    /// Goes up and down: the present number of something.
    Gauge,
}

macro_rules! counters {
    ($($id:ident $kind:ident $name:literal $sentence:literal,)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "only to number the constants")]
        enum Place { $($id,)* First }

        impl CounterId {
            $(#[doc = $sentence] pub const $id: Self = Self(Place::$id as u16);)*
        }

        /// Name, kind and sentence of every counter but the drops, in order.
        const TABLE: &[(&str, CounterKind, &str)] = &[$(($name, CounterKind::$kind, $sentence),)*];
        /// Where the drops begin.
        const DROPS: u16 = Place::First as u16;
    };
}

counters! {
    RX_PACKETS Total "rx-packets" "Frames taken from this worker's receive queues.",
    RX_BYTES Total "rx-bytes" "Bytes of the frames taken from this worker's receive queues.",
    TX_PACKETS Total "tx-packets" "Frames that this worker's transmit queues accepted.",
    TX_BYTES Total "tx-bytes" "Bytes of the frames that this worker's transmit queues accepted.",
    FORWARDED Total "forwarded" "Packets with the verdict forward.",
    PUNTED Total "punted" "Packets handed to the host's own network stack.",
    TO_STEWARD Total "to-steward" "Packets handed to the steward: ARP, or a next hop to resolve first.",
    HANDED_OVER Total "handed-over" "Packets given to the worker that owns their flow. Their share of rx-packets is what the NIC's spreading of packets costs.",
    REJECTED Total "rejected" "Packets with the verdict reject.",
    DROPPED Total "dropped" "Packets with the verdict drop, whatever the reason.",
    REJECTS_SENT Total "rejects-sent" "ICMP errors sent as answers to rejected packets.",
    ECHO_REPLIES Total "echo-replies" "Echo requests to Service addresses answered in their name (PING-1).",
    FRAGMENTS_HELD Total "fragments-held" "Fragments that had to wait for the first of their datagram.",
    FLOWS_USED Gauge "flows-used" "Flows open now.",
    FLOWS_LIMIT Gauge "flows-limit" "Most flows this worker can hold, of both families.",
    FLOWS_OPENED Total "flows-opened" "Flows opened.",
    FLOWS_EVICTED Total "flows-evicted" "Flows that made room for others (CT-18).",
    AFFINITY_EVICTED Total "affinity-evicted" "Clients whose endpoint was forgotten to remember another client's (AFF-7).",
    FLOWS_EXPIRED Total "flows-expired" "Flows that ended by their timeout.",
    SNAT_PORTS_USED Gauge "snat-ports-used" "Source ports that flows hold now.",
    SNAT_PORTS_HIGH_WATER Gauge "snat-ports-high-water" "Most source ports ever in use or at rest toward one destination, in blocks of 448.",
    INTERNAL_WITHOUT_LOCAL Gauge "internal-without-local" "Service ports with internal traffic policy Local and endpoints, but none here, in each family. Counted by the steward.",
    EXTERNAL_WITHOUT_LOCAL Gauge "external-without-local" "Service ports with external traffic policy Local and endpoints, but none here, in each family. Counted by the steward.",
    NEIGHBOURS_USED Gauge "neighbours-used" "Neighbours known now, on all NIC ports. Counted by the steward.",
    NEIGHBOURS_LIMIT Gauge "neighbours-limit" "Most neighbours that can be known.",
    SNAT_PORTS_LIMIT Gauge "snat-ports-limit" "Source ports that this worker may hand out toward one destination.",
    LETTERS_USED Gauge "letters-used" "Packets of other threads that waited for this worker when last looked at, once a second.",
    LETTERS_LIMIT Gauge "letters-limit" "Most that can wait.",
    SHARED_PREFIXES_USED Gauge "shared-prefixes-used" "Address ranges that the XDP programs of shared interfaces know. Counted by the steward.",
    SHARED_PREFIXES_LIMIT Gauge "shared-prefixes-limit" "Most address ranges that they can know.",
    SHARED_PORTS_USED Gauge "shared-ports-used" "Ports that they know, of addresses of which they take some ports only. Counted by the steward.",
    SHARED_PORTS_LIMIT Gauge "shared-ports-limit" "Most ports that they can know.",
    SHARED_MISSING Gauge "shared-missing" "Address ranges and ports that found no room there: the kernel has their packets. Counted by the steward.",
}

/// Number of counters of a page.
const COUNT: usize = DROPS as usize + DropReason::ALL.len();
const _: () = assert!(COUNT <= PAGE_WORDS, "a page has a word for every counter");

impl CounterId {
    /// The counter of drops for this reason.
    pub const fn dropped(reason: DropReason) -> Self {
        Self(DROPS + reason as u16)
    }

    /// Every counter, in the page's order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT as u16).map(Self)
    }

    /// As a subscript into the page.
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// The reason, for a counter of drops.
    pub fn drop_reason(self) -> Option<DropReason> {
        DropReason::ALL
            .get(self.get().checked_sub(DROPS as usize)?)
            .copied()
    }

    /// Whether it only grows.
    pub fn kind(self) -> CounterKind {
        TABLE.get(self.get()).map_or(CounterKind::Total, |row| row.1)
    }

    /// One sentence for the operator.
    pub fn sentence(self) -> &'static str {
        TABLE.get(self.get()).map_or_else(
            || self.drop_reason().map_or("", DropReason::sentence),
            |row| row.2,
        )
    }
}

/// The counter's name: `rx-packets`, or `drop-` and the reason's name.
impl fmt::Display for CounterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (TABLE.get(self.get()), self.drop_reason()) {
            (Some(row), _) => f.write_str(row.0),
            (None, Some(reason)) => write!(f, "drop-{}", reason.name()),
            (None, None) => Ok(()), // no such id can be made
        }
    }
}

/// One worker's page, to write: there is exactly one of these per page.
#[derive(Debug)]
pub struct WorkerCounters {
    page: SharedWords,
}

impl WorkerCounters {
    /// Counters in this process's own memory: for tests, and wherever nobody reads them from outside.
    pub fn private() -> Self {
        Self {
            page: SharedWords::own(COUNTER_WORDS),
        }
    }

    /// Adds `n`.
    pub fn add(&mut self, id: CounterId, n: u64) {
        let word = &self.page[id.get()];
        word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&mut self, id: CounterId, value: u64) {
        self.page[id.get()].store(value, Ordering::Relaxed);
    }

    /// A reader of this one page.
    pub fn reader(&self) -> CounterPages {
        CounterPages {
            pages: self.page.clone(),
        }
    }
}

/// All workers' pages, to read.
#[derive(Clone, Debug)]
pub struct CounterPages {
    pages: SharedWords,
}

impl CounterPages {
    /// Whole pages of counters; a rest is not read.
    pub(crate) const fn new(pages: SharedWords) -> Self {
        Self { pages }
    }

    /// Number of pages, one per worker.
    pub fn workers(&self) -> usize {
        self.pages.len() / COUNTER_WORDS
    }

    /// A counter of a worker; 0 for a worker that does not exist.
    pub fn get(&self, worker: WorkerIndex, id: CounterId) -> u64 {
        self.pages
            .get(worker.get() * COUNTER_WORDS + id.get())
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The writer of a worker's page. Whoever asks sees to it that a page has one writer.
    pub(crate) fn writer(&self, worker: WorkerIndex) -> Option<WorkerCounters> {
        let start = worker.get() * COUNTER_WORDS;
        Some(WorkerCounters {
            page: self.pages.part(start..start + COUNTER_WORDS)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_counter_has_its_own_name_word_and_sentence() {
        let names: BTreeSet<String> = CounterId::all().map(|id| id.to_string()).collect();
        let words: BTreeSet<usize> = CounterId::all().map(CounterId::get).collect();
        assert_eq!((names.len(), words.len()), (COUNT, COUNT));
        assert!(CounterId::all().all(|id| id.sentence().ends_with('.')));
        assert_eq!(CounterId::RX_PACKETS.to_string(), "rx-packets");
        assert_eq!(CounterId::FLOWS_USED.kind(), CounterKind::Gauge);
        for &reason in DropReason::ALL {
            assert_eq!(CounterId::dropped(reason).drop_reason(), Some(reason));
            assert_eq!(
                CounterId::dropped(reason).to_string(),
                format!("drop-{}", reason.name())
            );
        }
    }

    #[test]
    fn a_worker_writes_its_own_page_and_everyone_reads_it() {
        let pages = CounterPages::new(SharedWords::own(2 * COUNTER_WORDS));
        let (mut first, mut second) = (
            pages.writer(WorkerIndex(0)).unwrap(),
            pages.writer(WorkerIndex(1)).unwrap(),
        );
        assert!(pages.writer(WorkerIndex(2)).is_none());
        first.add(CounterId::RX_PACKETS, 3);
        first.add(CounterId::RX_PACKETS, 4);
        second.set(CounterId::FLOWS_USED, 9);
        second.add(CounterId::dropped(DropReason::TxFull), 1);
        assert_eq!(pages.workers(), 2);
        assert_eq!(pages.get(WorkerIndex(0), CounterId::RX_PACKETS), 7);
        assert_eq!(pages.get(WorkerIndex(1), CounterId::RX_PACKETS), 0);
        assert_eq!(pages.get(WorkerIndex(1), CounterId::FLOWS_USED), 9);
        assert_eq!(
            pages.get(WorkerIndex(1), CounterId::dropped(DropReason::TxFull)),
            1
        );
        assert_eq!(pages.get(WorkerIndex(2), CounterId::FLOWS_USED), 0);
        assert_eq!(second.reader().get(WorkerIndex(0), CounterId::FLOWS_USED), 9);
    }
}
