//! What each NIC port's driver counts: behind the counters in a worker's page, a row for each port.
//!
//! Takes  a driver's statistics, now and then (they may cost a system call).   Gives  them to whoever maps the page.
//! Never  adds up the queues of a port, which are one worker's each.

use std::sync::atomic::Ordering;

use super::{CounterKind, CounterPages, WorkerCounters};
use crate::channel::layout::{COUNTER_WORDS, PAGE_WORDS};
use crate::index::{NicPortIndex, WorkerIndex};
use crate::nic::{DriverStats, Link};

/// Words of a port's name, and of the whole row.
const NAME_WORDS: usize = 4;
const ROW: usize = 16;
/// Bytes of a port's name that readers see; longer ones are cut.
const NAME_MAX: usize = NAME_WORDS * 8;
/// Most NIC ports: a `NicPortIndex` is a byte, and a config has at most 255.
const PORTS: usize = 255;
const _: () =
    assert!(PAGE_WORDS + PORTS * ROW <= COUNTER_WORDS && NAME_WORDS + PortCounter::ALL.len() <= ROW);

macro_rules! port_counters {
    ($($id:ident $kind:ident $name:literal $sentence:literal $value:expr,)*) => {
        /// One counter of a NIC port's queue.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum PortCounter {
            $(#[doc = $sentence] $id,)*
        }

        impl PortCounter {
            /// All, in the row's order.
            pub const ALL: &[Self] = &[$(Self::$id,)*];

            /// Its name: `rx-missed`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$id => $name,)* }
            }

            /// One sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$id => $sentence,)* }
            }

            /// Whether it only grows.
            pub const fn kind(self) -> CounterKind {
                match self { $(Self::$id => CounterKind::$kind,)* }
            }

            fn of(self, stats: &DriverStats, link: Link) -> u64 {
                // Each names its field.
                let value: fn(&DriverStats, Link) -> u64 = match self { $(Self::$id => $value,)* };
                value(stats, link)
            }
        }
    };
}

port_counters! {
    RxPackets Total "rx-packets" "Frames received." |stats, _| stats.rx_packets,
    RxBytes Total "rx-bytes" "Bytes of frames received." |stats, _| stats.rx_bytes,
    RxMissed Total "rx-missed" "Frames that the kernel or the peer dropped: the ring was full, or there was no free frame." |stats, _| stats.rx_missed,
    RxErrors Total "rx-errors" "Frames refused: longer than a frame, or of an invalid descriptor." |stats, _| stats.rx_errors,
    RxBadDescriptors Total "rx-bad-descriptors" "Those of them whose descriptor was invalid." |stats, _| stats.rx_bad_descriptors,
    RxChecksumsCompleted Total "rx-checksums-completed" "Frames whose checksum was left to hardware, and completed here." |stats, _| stats.rx_checksums_completed,
    TxPackets Total "tx-packets" "Frames sent." |stats, _| stats.tx_packets,
    TxBytes Total "tx-bytes" "Bytes of frames sent." |stats, _| stats.tx_bytes,
    TxErrors Total "tx-errors" "Frames that were accepted and could not be sent." |stats, _| stats.tx_errors,
    TxUnlinked Total "tx-unlinked" "Frames not accepted since nobody was at the other side." |stats, _| stats.tx_unlinked,
    LinkUp Gauge "link-up" "1 while the link has a carrier, else 0." |_, link| u64::from(link == Link::Up),
}

/// Where a port's row begins in its worker's page.
const fn row(port: NicPortIndex) -> usize {
    PAGE_WORDS + port.0 as usize * ROW
}

impl WorkerCounters {
    /// This worker has a queue of this port, which has this name.
    pub fn name_port(&mut self, port: NicPortIndex, name: &str) {
        let end = (0..=NAME_MAX.min(name.len()))
            .rev()
            .find(|&end| name.is_char_boundary(end));
        let mut bytes = [0; NAME_MAX];
        let cut = &name.as_bytes()[..end.unwrap_or_default()];
        bytes[..cut.len()].copy_from_slice(cut);
        for (word, bytes) in self.page.iter().skip(row(port)).zip(bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// What the port's driver has counted until now.
    pub fn set_port(&mut self, port: NicPortIndex, stats: &DriverStats, link: Link) {
        let words = self.page.iter().skip(row(port) + NAME_WORDS);
        for (word, counter) in words.zip(PortCounter::ALL) {
            word.store(counter.of(stats, link), Ordering::Relaxed);
        }
    }
}

impl CounterPages {
    /// The name of a port of which this worker has a queue; `None` if it has none.
    pub fn port_name(&self, worker: WorkerIndex, port: NicPortIndex) -> Option<String> {
        let words = self.row(worker, port)?.take(NAME_WORDS);
        let bytes: Vec<u8> = words
            .flat_map(u64::to_ne_bytes)
            .take_while(|&byte| byte != 0)
            .collect();
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A counter of a worker's queue of a port, a second old at most; 0 if it has none.
    pub fn port(&self, worker: WorkerIndex, port: NicPortIndex, counter: PortCounter) -> u64 {
        let row = self.row(worker, port);
        row.and_then(|mut row| row.nth(NAME_WORDS + counter as usize))
            .unwrap_or_default()
    }

    /// Every port that this worker has a queue of.
    pub fn ports(&self, worker: WorkerIndex) -> impl Iterator<Item = (NicPortIndex, String)> + '_ {
        let ports = (0..PORTS).map(|port| NicPortIndex(port as u8));
        ports.filter_map(move |port| Some((port, self.port_name(worker, port)?)))
    }

    fn row(&self, worker: WorkerIndex, port: NicPortIndex) -> Option<impl Iterator<Item = u64> + '_> {
        let start = worker.get() * COUNTER_WORDS + row(port);
        let words = self.pages.get(start..start + ROW)?;
        Some(words.iter().map(|word| word.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::channel::layout::SharedWords;

    #[test]
    fn every_port_counter_has_its_own_name_and_a_sentence() {
        let names: BTreeSet<&str> = PortCounter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), PortCounter::ALL.len());
        assert!(
            PortCounter::ALL
                .iter()
                .all(|counter| counter.sentence().ends_with('.'))
        );
        assert_eq!(PortCounter::LinkUp.kind(), CounterKind::Gauge);
    }

    #[test]
    fn what_a_driver_counts_is_read_by_port_and_touches_no_other_word() {
        let pages = CounterPages::new(SharedWords::own(2 * COUNTER_WORDS));
        let mut second = pages.writer(WorkerIndex(1)).unwrap();
        let stats = DriverStats {
            rx_missed: 7,
            rx_bad_descriptors: 3,
            tx_errors: 2,
            ..DriverStats::default()
        };
        for port in [0, 254] {
            second.name_port(NicPortIndex(port), &format!("port{port}"));
            second.set_port(NicPortIndex(port), &stats, Link::Up);
        }
        let ports: Vec<_> = pages.ports(WorkerIndex(1)).collect();
        assert_eq!(
            ports,
            [
                (NicPortIndex(0), "port0".into()),
                (NicPortIndex(254), "port254".into())
            ]
        );
        let read = |worker, port, counter| pages.port(WorkerIndex(worker), NicPortIndex(port), counter);
        assert_eq!(read(1, 254, PortCounter::RxMissed), 7);
        assert_eq!(read(1, 0, PortCounter::RxBadDescriptors), 3);
        assert_eq!(read(1, 0, PortCounter::TxErrors), 2);
        assert_eq!(read(1, 0, PortCounter::LinkUp), 1);
        assert_eq!(
            (read(1, 1, PortCounter::LinkUp), read(0, 0, PortCounter::RxMissed)),
            (0, 0)
        );
        assert_eq!(read(2, 0, PortCounter::RxMissed), 0, "no such worker");
        assert_eq!(pages.ports(WorkerIndex(0)).count(), 0);
        let ids = super::super::CounterId::all();
        assert!(ids.into_iter().all(|id| pages.get(WorkerIndex(1), id) == 0));
    }

    #[test]
    fn a_name_is_cut_between_characters_and_bytes_that_are_none_are_read_as_such() {
        let mut page = WorkerCounters::private();
        let pages = page.reader();
        let name = |pages: &CounterPages| pages.port_name(WorkerIndex(0), NicPortIndex(3)).unwrap();
        page.name_port(NicPortIndex(3), &format!("{}ü", "x".repeat(NAME_MAX - 1)));
        assert_eq!(name(&pages), "x".repeat(NAME_MAX - 1));
        page.page[row(NicPortIndex(3))].store(u64::MAX, Ordering::Relaxed);
        assert!(name(&pages).starts_with('\u{fffd}'));
    }
}
