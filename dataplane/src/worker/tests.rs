use std::os::fd::BorrowedFd;

use super::idle::{OWING, SLEEP};
use super::*;
use crate::addr::Mac;
use crate::conntrack::ports::{PortPoolConfig, Rest, SourcePorts};
use crate::conntrack::{Admission, FlowConfig, HashKey, Timeouts};
use crate::counters::PortCounter;
use crate::fragments::FragmentConfig;
use crate::nic::{DriverInfo, DriverStats, Link};
use crate::tables::TableLimits;

/// A NIC port that has accepted packets, or not, and sends them when it is called again.
struct Owing(bool, DriverInfo);

impl Driver for Owing {
    fn rx_burst(&mut self, _: &mut FrameMemory, _: &mut Burst) {}

    fn tx_burst(&mut self, _: &mut FrameMemory, _: &mut Burst) {}

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn owes(&mut self) -> bool {
        self.0
    }

    fn info(&self) -> &DriverInfo {
        &self.1
    }

    fn stats(&self) -> DriverStats {
        DriverStats {
            rx_missed: 5,
            ..DriverStats::default()
        }
    }

    fn link(&self) -> Link {
        Link::Up
    }
}

fn worker(owes: [bool; 2]) -> Worker {
    let info = DriverInfo {
        driver: "owing",
        interface: "a".to_owned(),
        mode: String::new(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        peer_mac: None,
        mtu: 1500,
    };
    let hash_key = HashKey::from([1, 2, 3, 4]);
    let sides = SideConfig {
        flows: FlowConfig {
            capacity: 1,
            timeouts: Timeouts::default(),
            admission: Admission::default(),
            hash_key,
        },
        snat_ports: PortPoolConfig {
            ports: SourcePorts::all(vec![1024..=2047]),
            destinations: 1,
            blocks: 1,
            rest: Rest::default(),
            hash_key,
        },
        fragments: FragmentConfig::default(),
    };
    let port = |owes| Some(Box::new(Owing(owes, info.clone())) as Box<dyn Driver>);
    let interface = Interface {
        name: "a".to_owned(),
        mac: info.mac,
        mtu: info.mtu,
        addresses: Vec::new(),
        peer_mac: None,
    };
    let network = Network::new(vec![interface; 3], Vec::new(), Vec::new(), None, 1);
    Worker::new(
        WorkerParts {
            index: WorkerIndex(0),
            memory: FrameMemory::new(1, 2048).unwrap(),
            drivers: vec![port(owes[0]), None, port(owes[1])],
            sides: Sides::new(&sides).unwrap(),
            picker: Picker::new(1, &TableLimits::default()),
            counters: WorkerCounters::private(),
            tables: Arc::new(Tables::empty()),
        },
        &network,
    )
}

#[test]
fn a_worker_whose_packets_wait_for_another_turn_does_not_sleep_on_them() {
    assert_eq!(worker([false, false]).patience(), SLEEP);
    assert_eq!(worker([true, false]).patience(), OWING);
    assert_eq!(worker([false, true]).patience(), OWING);
}

#[test]
fn what_a_worker_has_room_for_is_told_from_the_start() {
    let pages = worker([false, false]).counters.reader();
    let told = |id| pages.get(WorkerIndex(0), id);
    assert_eq!(told(CounterId::FLOWS_LIMIT), 2, "one of each family");
    assert_eq!(told(CounterId::SNAT_PORTS_LIMIT), 1_024);
}

#[test]
fn what_drivers_count_is_told_by_the_ports_that_a_worker_has() {
    let mut worker = worker([false, false]);
    let pages = worker.counters.reader();
    let told = |port| {
        let read = |counter| pages.port(WorkerIndex(0), NicPortIndex(port), counter);
        (read(PortCounter::RxMissed), read(PortCounter::LinkUp))
    };
    assert_eq!(told(0), (0, 0), "nothing before the first time");
    worker.report(3, Tick::default());
    assert_eq!(pages.get(WorkerIndex(0), CounterId::LETTERS_USED), 3);
    assert_eq!((told(0), told(1), told(2)), ((5, 1), (0, 0), (5, 1)));
    let ports: Vec<_> = pages.ports(WorkerIndex(0)).map(|(port, _)| port.0).collect();
    assert_eq!(ports, [0, 2], "worker 0 has no queue of port 1");
}
