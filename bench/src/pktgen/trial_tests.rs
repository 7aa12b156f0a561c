//! Trials over the `memory` driver around a real worker, with time moved by hand: exact, and the same on any machine.

use std::cell::Cell;

use sluice_dataplane::addr::Mac;
use sluice_dataplane::index::Generation;
use sluice_dataplane::nic::memory::{MemoryPort, port_pair};
use sluice_dataplane::nic::{Driver, FrameMemory};
use sluice_dataplane::tables::{TableLimits, TablesBuilder};
use sluice_dataplane::tick::Tick;
use sluice_dataplane::worker::{Shared, Worker};

use super::super::judge::Wrong;
use super::super::world::tests::world;
use super::*;
use crate::gateway::{CLIENT_SIDE, Gateway, Setup};
use crate::services::{UDP_AND_TCP, records};

const SECOND: u64 = 1_000_000_000;
const US: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// A gateway with the generator's ports around it.
struct Bench {
    worker: Worker,
    shared: Shared,
    ports: Ports,
}

impl Bench {
    fn new(keep_source: bool) -> Self {
        Self::of(Family::V4, keep_source)
    }

    fn of(family: Family, keep_source: bool) -> Self {
        let (a, client_port) = port_pair("clients", 512);
        let (b, pod_port) = port_pair("pods", 512);
        let setup = Setup {
            flows: 10_000,
            backends: 4,
            keep_source,
            v6: family == Family::V6,
            ..Setup::default()
        };
        let (worker, shared, _) = Gateway::between(setup, Box::new(client_port), Box::new(pod_port)).unwrap();
        Self {
            worker,
            shared,
            ports: ports(a, b),
        }
    }

    /// Runs a trial to its end; each turn of both takes 10 µs, and whatever `stall` says more.
    fn run(&mut self, traffic: &mut Traffic, schedule: Schedule, stall: impl Fn(u64) -> u64) -> Tally {
        let now = Cell::new(0);
        let mut trial = Trial::begin(&mut self.ports, traffic, schedule, 1, 0);
        let mut idle = 0;
        while idle < 1_000 && !(trial.is_sent(now.get()) && trial.is_complete()) {
            let packets = trial.turn(|| now.get());
            now.set(now.get() + 10_000);
            let frozen = stall(now.get());
            if frozen > 0 {
                now.set(now.get() + frozen);
            }
            let tick = Tick(8_000 + (now.get() / (SECOND / 8)) as u32);
            idle = if packets + self.worker.turn(&self.shared, tick) > 0 {
                0
            } else {
                idle + 1
            };
        }
        trial.end()
    }
}

fn ports(a: MemoryPort, b: MemoryPort) -> Ports {
    Ports::new(FrameMemory::new(4_096, 2_048).unwrap(), Box::new(a), Box::new(b))
}

fn traffic(kinds: Vec<Kind>) -> Traffic {
    traffic_of(Family::V4, kinds)
}

fn traffic_of(family: Family, kinds: Vec<Kind>) -> Traffic {
    let request = Template::tcp(family, US, CLIENT_SIDE, Some(200));
    Traffic {
        world: world(family),
        flows: 1_000,
        picks: Picks::Uniform,
        mix: (Weighted::new(&vec![1.0; kinds.len()]), kinds),
        tcp: Tcp {
            script: Script {
                requests: 2,
                bytes: request.tcp_payload() as u32,
            },
            empty: Template::tcp(family, US, CLIENT_SIDE, None),
            request,
            patience: SECOND,
        },
        answer: true,
        seed: 1,
    }
}

fn udp(size: usize) -> Kind {
    Kind::Udp(Template::udp(Family::V4, US, CLIENT_SIDE, size))
}

const fn no_stall(_: u64) -> u64 {
    0
}

#[test]
fn every_datagram_of_every_size_comes_out_right_and_its_answer_too() {
    for family in [Family::V4, Family::V6] {
        let mut bench = Bench::of(family, true);
        let sizes = [family.min_udp_frame(), 570, 1_514];
        let kinds = sizes.map(|size| Kind::Udp(Template::udp(family, US, CLIENT_SIDE, size)));
        let mut traffic = traffic_of(family, kinds.into());
        let tally = bench.run(&mut traffic, Schedule::even(Some(1e6), 0, SECOND / 50), no_stall);
        assert!(
            tally.is_flawless(),
            "{:?} {:?}",
            tally.forward.wrong,
            tally.sample
        );
        assert_eq!((tally.forward.sent, tally.back.received), (20_000, 20_000));
        assert_eq!((tally.forward.overtaken, tally.foreign), (0, 0));
    }
}

#[test]
fn translated_sources_are_right_only_where_the_gateway_may_translate_them() {
    for (family, ours) in [
        (Family::V4, ["192.0.2.2", "10.244.0.1"]),
        (Family::V6, ["fd02::2", "fd44::1"]),
    ] {
        let mut bench = Bench::of(family, false);
        let datagram = Template::udp(family, US, CLIENT_SIDE, family.min_udp_frame());
        let mut traffic = traffic_of(family, vec![Kind::Udp(datagram)]);
        let schedule = Schedule::even(Some(1e5), 0, SECOND / 100);
        let tally = bench.run(&mut traffic, schedule.clone(), no_stall);
        assert_eq!(tally.forward.wrong[Wrong::Source as usize], 1_000);
        assert_eq!(tally.sample.unwrap().1, Wrong::Source);
        traffic.world.snat = ours.map(|address| address.parse().unwrap()).into();
        let tally = bench.run(&mut traffic, schedule, no_stall);
        assert!(tally.is_flawless(), "{:?}", tally.sample);
    }
}

#[test]
fn whole_tcp_lives_and_datagrams_mixed_come_to_their_end() {
    for (family, everybody) in [(Family::V4, "0.0.0.0/0"), (Family::V6, "::/0")] {
        let mut bench = Bench::of(family, true);
        let datagram = Template::udp(family, US, CLIENT_SIDE, family.min_udp_frame());
        let mut traffic = traffic_of(family, vec![Kind::Life, Kind::Udp(datagram)]);
        let tables = TablesBuilder::new(TableLimits::default())
            .apply(
                Generation(1),
                &[],
                &records(&traffic.world, everybody.parse().unwrap(), UDP_AND_TCP),
            )
            .unwrap();
        bench.shared.slots[0].publish(tables);
        let tally = bench.run(&mut traffic, Schedule::even(Some(1e5), 0, SECOND / 50), no_stall);
        assert!(tally.is_flawless(), "{:?}", tally.sample);
        let lives = &tally.lives;
        assert!(lives.started > 800 && lives.finished == lives.started);
        // SYN, two requests, FIN, the last ACK; each but that is answered.
        let datagrams = 2_000 - lives.started;
        assert_eq!(tally.forward.received, 5 * lives.started + datagrams);
        assert_eq!(tally.back.received, 4 * lives.started + datagrams);
        assert_eq!(lives.length.len(), lives.finished);
    }
}

#[test]
fn connections_that_nobody_answers_are_given_up_and_their_segments_lost() {
    // This gateway has a UDP Service only.
    let mut bench = Bench::new(true);
    let mut traffic = traffic(vec![Kind::Life]);
    traffic.tcp.patience = SECOND / 100;
    let tally = bench.run(&mut traffic, Schedule::even(Some(1e4), 0, SECOND / 10), no_stall);
    let lives = &tally.lives;
    assert_eq!((lives.started, lives.finished, lives.failed), (1_000, 0, 1_000));
    assert_eq!((tally.forward.lost(), tally.unsent), (1_000, 0));
}

#[test]
fn what_comes_through_untranslated_is_wrong() {
    let (a, b) = port_pair("wire", 512);
    let mut ports = ports(a, b);
    let mut traffic = traffic(vec![udp(64)]);
    let mut now = 0;
    let mut trial = Trial::begin(
        &mut ports,
        &mut traffic,
        Schedule::even(Some(1e5), 0, SECOND / 100),
        1,
        0,
    );
    while now < SECOND / 50 {
        trial.turn(|| now);
        now += 10_000;
    }
    let tally = trial.end();
    // It has not even made a hop.
    assert_eq!(tally.forward.wrong[Wrong::Ttl as usize], 1_000);
    assert_eq!(tally.forward.received, 0);
}

/// The equal of a packet generator that waits for answers would see one late packet here, not a hundred.
#[test]
fn a_stall_is_charged_to_every_packet_that_was_due_in_it() {
    let mut bench = Bench::new(true);
    let mut traffic = traffic(vec![udp(64)]);
    // 10 kpps for 100 ms; at 50 ms everything stands still for 10 ms: 100 packets are due meanwhile.
    let stalled = Cell::new(false);
    let stall = |now| {
        let first = now >= SECOND / 20 && !stalled.replace(now >= SECOND / 20);
        if first { SECOND / 100 } else { 0 }
    };
    let tally = bench.run(&mut traffic, Schedule::even(Some(1e4), 0, SECOND / 10), stall);
    assert!(tally.is_flawless(), "{:?}", tally.sample);
    let late = |ms: u64| {
        let slow = tally.forward.latency.count_between(ms * 1_000_000, u64::MAX);
        (slow, tally.forward.latency.len())
    };
    assert_eq!(late(0).1, 1_000);
    // Evenly from 0 to 10 ms.
    assert!(
        (95..=101).contains(
            &late(0)
                .0
                .min(late(0).1)
                .min(tally.forward.latency.count_between(100_000, u64::MAX))
        )
    );
    assert!((45..=55).contains(&late(5).0), "{}", late(5).0);
    assert!(tally.latest >= 9_900_000, "{}", tally.latest);
}

/// A wire that does things to packets.
struct Bad<F> {
    port: MemoryPort,
    change: F,
}

impl<F: FnMut(&mut Vec<Vec<u8>>) + Send> Driver for Bad<F> {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.port.rx_burst(memory, frames);
        let mut packets: Vec<Vec<u8>> = frames.iter().map(|frame| memory.bytes(frame).to_vec()).collect();
        frames.drain(..).for_each(|frame| memory.free(frame));
        (self.change)(&mut packets);
        frames.extend(packets.iter().map(|packet| memory.copy_in(packet).unwrap()));
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        self.port.tx_burst(memory, frames);
    }

    fn wait_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    fn info(&self) -> &sluice_dataplane::nic::DriverInfo {
        self.port.info()
    }

    fn stats(&self) -> sluice_dataplane::nic::DriverStats {
        self.port.stats()
    }

    fn link(&self) -> sluice_dataplane::nic::Link {
        self.port.link()
    }
}

/// A gateway whose cable toward the pods loses, repeats, swaps and damages a packet of each burst of at least four.
fn damaged(change: impl FnMut(&mut Vec<Vec<u8>>) + Send + 'static) -> Tally {
    let mut bench = Bench::new(true);
    let (a, client_port) = port_pair("clients", 512);
    let (b, pod_port) = port_pair("pods", 512);
    let setup = Setup {
        flows: 10_000,
        backends: 4,
        keep_source: true,
        ..Setup::default()
    };
    (bench.worker, bench.shared, _) =
        Gateway::between(setup, Box::new(client_port), Box::new(pod_port)).unwrap();
    let memory = FrameMemory::new(4_096, 2_048).unwrap();
    bench.ports = Ports::new(memory, Box::new(a), Box::new(Bad { port: b, change }));
    let mut traffic = traffic(vec![udp(100)]);
    traffic.flows = 1;
    bench.run(&mut traffic, Schedule::even(Some(1e6), 0, SECOND / 100), no_stall)
}

#[test]
fn what_a_bad_cable_does_is_counted_by_its_name_and_exactly() {
    let lost = damaged(|packets| drop(packets.pop()));
    assert!(lost.forward.lost() > 100 && lost.forward.lost() == lost.forward.sent - lost.back.received);
    assert!(!lost.is_flawless());
    let repeated = damaged(|packets| packets.extend(packets.first().cloned()));
    assert!(repeated.forward.duplicates > 100 && repeated.forward.lost() == 0);
    assert_eq!(repeated.back.received, repeated.forward.sent, "answered once");
    let swapped = damaged(|packets| packets.reverse());
    assert!(swapped.forward.overtaken > 1_000 && swapped.is_flawless());
    let flipped = damaged(|packets| {
        if let Some(packet) = packets.first_mut() {
            *packet.last_mut().unwrap() ^= 1;
        }
    });
    let wrong = flipped.forward.wrong[Wrong::Checksum as usize];
    assert!(wrong > 100 && wrong == flipped.forward.lost() && wrong == flipped.forward.wrong());
}

#[test]
fn what_the_driver_takes_no_more_of_is_unsent_and_not_lost() {
    // Nobody reads the other ends.
    let (a, _client_port) = port_pair("clients", 32);
    let (b, _pod_port) = port_pair("pods", 32);
    let mut ports = ports(a, b);
    let mut traffic = traffic(vec![udp(88)]);
    let mut now = 0;
    let mut trial = Trial::begin(
        &mut ports,
        &mut traffic,
        Schedule::even(Some(1e6), 0, 1_000_000),
        1,
        0,
    );
    while now < 2_000_000 {
        trial.turn(|| now);
        now += 10_000;
    }
    assert!(!trial.is_sent(now));
    let tally = trial.end();
    assert_eq!((tally.forward.sent, tally.unsent), (32, 968));
    assert_eq!(ports.memory.available(), ports.memory.capacity());
}
