//! More workers than one: what each packet costs when queues and owners agree, when they do not, and when two cores work
//! at one time.
//!
//! Past the cores of the machine, workers take turns on one core: then what is measured is what a packet costs all workers
//! together, hand-over included, and not what they do to each other's caches.

use std::sync::Barrier;

use serde::Serialize;
use sluice_dataplane::addr::Port;
use sluice_dataplane::tick::Tick;
use sluice_dataplane::worker::{Shared, Worker};

use super::packets::{self, Tuple, flags};
use super::{Bench, Error, ROUND, Spread, Workload, now};
use crate::gateway::{CLIENT_SIDE, POD_SIDE, Setup, Workers};
use crate::machine::Machine;
use crate::pktgen::picks::Random;
use crate::treadmill::{Handle, Treadmill};

/// What came out for a number of workers.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Workers.
    pub workers: usize,
    /// Packets came on their owner's queue, or on any.
    pub queues: &'static str,
    /// Workers ran at one time, each on its core; else in turns on one.
    pub parallel: bool,
    /// Packets that were handed to their owner, of all.
    pub handed_over: f64,
    /// What a packet costs one worker, hand-over included.
    pub ns_per_packet: Spread,
    /// Packets of all workers.
    pub mpps: f64,
    /// Against one worker, of as many times its packets, in the same run.
    pub of_linear: f64,
    /// Where.
    pub machine: Machine,
}

/// One worker with its loading ends and the flows it owns.
struct Lane {
    worker: Worker,
    client: Handle,
    flows: Vec<Tuple>,
}

struct Lanes {
    lanes: Vec<Lane>,
    shared: Shared,
    setup: Setup,
}

const NOW: Tick = Tick(8_000);

impl Lanes {
    /// `workload.flows` flows a worker, opened.
    fn new(workload: &Workload, workers: usize) -> Result<Self, Error> {
        let setup = Bench::setup(workload);
        let (mut ports, mut clients) = (Vec::new(), Vec::new());
        for worker in 0..workers {
            let (client_port, client) = Treadmill::new(&format!("client/{worker}"), CLIENT_SIDE);
            let (pod_port, _) = Treadmill::new(&format!("pods/{worker}"), POD_SIDE);
            ports.push((Box::new(client_port) as _, Box::new(pod_port) as _));
            clients.push(client);
        }
        let Workers { workers, shared, .. } = Workers::new(&setup, ports)?;
        let mut lanes: Vec<Lane> = workers
            .into_iter()
            .zip(clients)
            .map(|(worker, client)| Lane {
                worker,
                client,
                flows: Vec::new(),
            })
            .collect();
        let mut flow = 0;
        while lanes.iter().any(|lane| lane.flows.len() < workload.flows) {
            let tuple = packets::tuple(&setup, flow);
            flow += 1;
            let owner = match tuple.src.0 {
                std::net::IpAddr::V4(v4) => shared.steering.client_owner(v4.octets(), Port::new(tuple.src.1)),
                std::net::IpAddr::V6(v6) => shared.steering.client_owner(v6.octets(), Port::new(tuple.src.1)),
            };
            let lane = &mut lanes[owner.get()];
            if lane.flows.len() < workload.flows {
                lane.flows.push(tuple);
            }
        }
        let mut lanes = Self { lanes, shared, setup };
        for lane in &mut lanes.lanes {
            let flows = std::mem::take(&mut lane.flows);
            for tuples in flows.chunks(ROUND) {
                lane.load(&lanes.setup, tuples, &lanes.shared);
                lane.time(&lanes.shared);
            }
            lane.flows = flows;
        }
        Ok(lanes)
    }

    /// Nanoseconds a packet and worker, each worker's packets on its own queue.
    fn parallel(&mut self, rounds: usize) -> f64 {
        let barrier = Barrier::new(self.lanes.len());
        let (shared, setup) = (&self.shared, &self.setup);
        let each: Vec<f64> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .lanes
                .iter_mut()
                .enumerate()
                .map(|(core, lane)| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        core_affinity::set_for_current(core_affinity::CoreId { id: core });
                        let mut random = Random(core as u64 + 1);
                        barrier.wait();
                        let mut spent = 0;
                        for _ in 0..rounds {
                            let tuples = lane.pick(&mut random);
                            lane.load(setup, &tuples, shared);
                            spent += lane.time(shared);
                        }
                        spent as f64 / (rounds * ROUND) as f64
                    })
                })
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        });
        each.iter().sum::<f64>() / each.len() as f64
    }

    /// Nanoseconds that a packet costs all workers, which take turns; and the share that was handed over.
    fn in_turns(&mut self, rounds: usize, any_queue: bool) -> (f64, f64) {
        let mut random = Random(7);
        let workers = self.lanes.len();
        let (mut spent, mut strangers) = (0, 0);
        for _ in 0..rounds {
            let mut queues: Vec<Vec<Tuple>> = vec![Vec::new(); workers];
            for owner in 0..workers {
                for tuple in self.lanes[owner].pick(&mut random) {
                    let queue = if any_queue { random.below(workers) } else { owner };
                    strangers += usize::from(queue != owner);
                    queues[queue].push(tuple);
                }
            }
            for (lane, tuples) in self.lanes.iter_mut().zip(&queues) {
                lane.load(&self.setup, tuples, &self.shared);
            }
            // Nobody's mailbox must run over while its owner waits for its turn.
            let start = now();
            while self
                .lanes
                .iter_mut()
                .map(|lane| lane.worker.turn(&self.shared, NOW))
                .sum::<usize>()
                > 0
            {}
            spent += start.elapsed().as_nanos() as u64;
        }
        let packets = (rounds * ROUND * workers) as f64;
        (spent as f64 / packets, strangers as f64 / packets)
    }
}

impl Lane {
    fn pick(&self, random: &mut Random) -> Vec<Tuple> {
        (0..ROUND)
            .map(|_| self.flows[random.below(self.flows.len())])
            .collect()
    }

    fn load(&mut self, setup: &Setup, tuples: &[Tuple], shared: &Shared) {
        let size = packets::least(setup);
        self.client.load(|loaded| {
            for &tuple in tuples {
                packets::write(
                    loaded.add(size),
                    (CLIENT_SIDE, setup.protocol),
                    tuple,
                    flags::ACK,
                    0,
                );
            }
        });
        self.worker.turn(shared, NOW); // stages the frames
    }

    fn time(&mut self, shared: &Shared) -> u64 {
        let start = now();
        while self.worker.turn(shared, NOW) > 0 {}
        start.elapsed().as_nanos() as u64
    }
}

/// One to `workers` workers by powers of two. Errors: as `nat::run`.
pub fn run(workload: &Workload, workers: usize) -> Result<Vec<Row>, Error> {
    let rounds = (workload.packets / ROUND).max(1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut one = Lanes::new(workload, 1)?;
    let mut rows = Vec::new();
    let mut count = 1;
    while count <= workers {
        let mut many = Lanes::new(workload, count)?;
        for (parallel, any_queue) in [(true, false), (false, false), (false, true)] {
            if parallel && count > cores || count == 1 && any_queue {
                continue;
            }
            let (mut ns, mut alone, mut share) = (Vec::new(), Vec::new(), 0.0);
            for _ in 0..workload.repeats {
                if parallel {
                    alone.push(one.parallel(rounds));
                    ns.push(many.parallel(rounds));
                } else {
                    alone.push(one.in_turns(rounds, false).0);
                    let (cost, handed_over) = many.in_turns(rounds, any_queue);
                    ns.push(cost);
                    share = handed_over;
                }
            }
            let (ns, alone) = (Spread::of(ns), Spread::of(alone));
            let round = |value: f64| (value * 1_000.0).round() / 1_000.0;
            rows.push(Row {
                workers: count,
                queues: if any_queue { "any" } else { "owner's" },
                parallel,
                handed_over: round(share),
                ns_per_packet: ns,
                mpps: round(1_000.0 / ns.p50 * count as f64),
                of_linear: round(alone.p50 / ns.p50),
                machine: Machine::this(),
            });
        }
        count *= 2;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::rows::workload;
    use super::*;

    #[test]
    fn packets_on_their_owners_queue_are_never_handed_over_and_on_any_queue_most_are() {
        let workload = Workload {
            flows: 3_000,
            packets: ROUND,
            repeats: 1,
            ..workload("by-hand")
        };
        let rows = run(&workload, 4).unwrap();
        let share = |workers, queues| {
            let row = |row: &&Row| row.workers == workers && row.queues == queues && !row.parallel;
            rows.iter().find(row).map(|row| row.handed_over)
        };
        assert_eq!(share(4, "owner's"), Some(0.0));
        // Three of four, give or take five standard deviations of 8,192 packets.
        assert!(
            share(4, "any").is_some_and(|share| (0.725..0.775).contains(&share)),
            "{rows:?}"
        );
    }
}
