//! One core's turn: take a newer table, then for every NIC port `rx` → `parse` → `lookup` → `nat` → `tx`, then expire
//! a few flows. Reads the clock once a turn, carries out verdicts and counts them (`burst`, `carry_out`).
//!
//! Takes  its queues of the NIC ports, its mailbox, the tables the steward publishes.
//! Gives  packets; letters to the steward and to other workers.
//! Never  waits while there is work; never locks; never allocates or frees tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::addr::Mac;
use crate::affinity::Affinity;
use crate::counters::{CounterId, WorkerCounters};
use crate::fragments::Transport;
use crate::index::{NicPortIndex, WorkerIndex};
use crate::lookup::LookupOptions;
use crate::mailbox::{Mailbox, Purpose};
use crate::network::{Interface, Network};
use crate::nic::{BURST, Burst, Driver, Frame, FrameMemory};
use crate::parse::Parsed;
use crate::reject::RateLimiter;
use crate::rx;
use crate::steering::Steering;
use crate::table_slot::TableSlot;
use crate::tables::{Picker, Tables};
use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::tx::TxQueue;
use crate::verdict::DropReason;
use crate::wire::Ethernet;

mod answer;
mod burst;
mod carry_out;
mod cut;
mod idle;
mod sides;

use sides::{Arrival, Served};
pub use sides::{FlowFiles, Side, SideConfig, Sides};

/// Flows looked at in a turn with packets: under a microsecond. A tick has more than enough such turns for its share.
const EXPIRE_PER_TURN: usize = 64;

/// Flows looked at in a turn without: a sleeping worker has only ten a second, and a packet may wait these few
/// microseconds.
const EXPIRE_PER_IDLE_TURN: usize = 4_096;

/// Letters opened in a turn: as many as packets, so that neither starves the other.
const LETTERS_PER_TURN: usize = BURST;

/// Empty turns before a sleeping worker waits: packets come in trains, and a wake-up costs more than a few polls.
const TURNS_BEFORE_SLEEP: u32 = 32;

/// What one worker shares with the steward and its fellow workers.
#[derive(Debug)]
pub struct Shared {
    /// Our surroundings.
    pub network: Network,
    /// Who owns what.
    pub steering: Steering,
    /// Every worker's mailbox, by index.
    pub workers: Vec<Mailbox>,
    /// Every worker's table slot, by index.
    pub slots: Vec<TableSlot>,
    /// The steward's mailbox.
    pub steward: Mailbox,
    /// Set when the process is to end.
    pub stop: AtomicBool,
    /// Which endpoints clients had.
    pub affinity: Affinity,
    /// Packet path switches.
    pub options: LookupOptions,
    /// Whether idle workers wait.
    pub sleep: bool,
}

impl Shared {
    /// Tells the workers to stop, and wakes them.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.workers.iter().for_each(Mailbox::ring);
    }
}

/// One worker: everything it owns.
pub struct Worker {
    index: WorkerIndex,
    memory: FrameMemory,
    /// This worker's queue of each NIC port, `None` where the port has no queue for it.
    ports: Vec<Option<NicPort>>,
    tables: Arc<Tables>,
    sides: Sides,
    picker: Picker,
    limiter: RateLimiter,
    counters: WorkerCounters,
    /// Packets sent on in this turn, not yet counted.
    forwarded: u64,
    /// Whom to wake at the end of the turn.
    rung: u64,
    ring_steward: bool,
    /// The last tick in which the steward was told of a doubt.
    doubted: Tick,
    /// When it was last told what the drivers count.
    reported: Tick,
}

struct NicPort {
    driver: Box<dyn Driver>,
    queue: TxQueue,
    /// Of its `Interface`, beside the queue where every packet needs them: what frames are sent from, and the longest.
    mac: Mac,
    longest: usize,
}

/// The parts of a worker, made at start.
pub struct WorkerParts {
    /// Which worker.
    pub index: WorkerIndex,
    /// Frame memory that the drivers were opened with.
    pub memory: FrameMemory,
    /// Its queue of each NIC port.
    pub drivers: Vec<Option<Box<dyn Driver>>>,
    /// What it remembers of packets.
    pub sides: Sides,
    /// Its randomness.
    pub picker: Picker,
    /// Its counter page.
    pub counters: WorkerCounters,
    /// The tables to begin with.
    pub tables: Arc<Tables>,
}

impl Worker {
    /// A worker that has not had its first turn. `network` is what it will find in `Shared`.
    pub fn new(parts: WorkerParts, network: &Network) -> Self {
        let port = |(driver, interface): (Option<Box<dyn Driver>>, &Interface)| {
            Some(NicPort {
                driver: driver?,
                queue: TxQueue::new(),
                mac: interface.mac,
                longest: interface.longest_frame(),
            })
        };
        let mut counters = parts.counters;
        let Sides { v4, v6 } = &parts.sides;
        let flows = v4.tracked.flows.usage().limit + v6.tracked.flows.usage().limit;
        counters.set(CounterId::FLOWS_LIMIT, flows as u64);
        let ports = v4.tracked.snat_ports.ports_per_destination();
        counters.set(CounterId::SNAT_PORTS_LIMIT, ports as u64);
        for (place, (driver, interface)) in parts.drivers.iter().zip(network.interfaces()).enumerate() {
            if driver.is_some() {
                counters.name_port(NicPortIndex(place as u8), &interface.name);
            }
        }
        Self {
            index: parts.index,
            memory: parts.memory,
            ports: parts
                .drivers
                .into_iter()
                .zip(network.interfaces())
                .map(port)
                .collect(),
            tables: parts.tables,
            sides: parts.sides,
            picker: parts.picker,
            limiter: RateLimiter::new(Tick::now()),
            counters,
            forwarded: 0,
            rung: 0,
            ring_steward: false,
            doubted: Tick::default(),
            reported: Tick::now(),
        }
    }

    /// Turns until `Shared::stop`.
    pub fn run(&mut self, shared: &Shared) {
        let mut idle_turns = 0;
        while !shared.stop.load(Ordering::Relaxed) {
            let packets = self.turn(shared, Tick::now());
            idle_turns = if packets == 0 { idle_turns + 1 } else { 0 };
            if shared.sleep && idle_turns >= TURNS_BEFORE_SLEEP {
                self.wait(shared);
            }
        }
        self.farewell(shared);
    }

    /// One line per NIC port: what came, what went, what was lost.
    fn farewell(&self, shared: &Shared) {
        for (interface, port) in shared.network.interfaces().iter().zip(&self.ports) {
            let Some(stats) = port.as_ref().map(|nic| nic.driver.stats()) else {
                continue;
            };
            log::info!(
                "worker {}: {}: {} in ({} missed, {} errors, {} of them bad descriptors), {} out ({} errors, {} while nobody was there)",
                self.index.0,
                interface.name,
                stats.rx_packets,
                stats.rx_missed,
                stats.rx_errors,
                stats.rx_bad_descriptors,
                stats.tx_packets,
                stats.tx_errors,
                stats.tx_unlinked
            );
        }
    }

    /// One turn; how many packets and letters there were. Time is handed in, so that tests move it.
    pub fn turn(&mut self, shared: &Shared, tick: Tick) -> usize {
        if shared.slots[self.index.get()].take(&mut self.tables) {
            self.ring_steward = true; // it waits to acknowledge the generation
        }
        let mut handled = self.letters(shared, tick);
        let mut frames = Burst::new_const();
        for port in 0..self.ports.len() {
            let Some(nic) = &mut self.ports[port] else {
                continue;
            };
            let bytes = rx::take(nic.driver.as_mut(), &mut self.memory, &mut frames);
            if frames.is_empty() {
                continue;
            }
            self.counters.add(CounterId::RX_PACKETS, frames.len() as u64);
            self.counters.add(CounterId::RX_BYTES, bytes as u64);
            handled += frames.len();
            self.receive(shared, NicPortIndex(port as u8), &mut frames, None, tick);
        }
        self.flush();
        self.expire(
            tick,
            if handled > 0 {
                EXPIRE_PER_TURN
            } else {
                EXPIRE_PER_IDLE_TURN
            },
        );
        self.wake(shared);
        if tick.since(self.reported) >= TICKS_PER_SECOND {
            self.report(shared.workers[self.index.get()].waiting(), tick);
        }
        handled
    }

    /// What is done once a second, between two turns: has the drivers see to what is gone, tells what they have counted and how
    /// their links are (system calls), and asks for neighbours afresh.
    #[cold]
    fn report(&mut self, letters: usize, tick: Tick) {
        self.reported = tick;
        self.counters.set(CounterId::LETTERS_USED, letters as u64);
        self.sides.v4.tracked.recent.clear();
        self.sides.v6.tracked.recent.clear();
        for (place, nic) in self.ports.iter_mut().enumerate() {
            if let Some(nic) = nic {
                nic.driver.tend(&mut self.memory);
                let (stats, link) = (nic.driver.stats(), nic.driver.link());
                self.counters.set_port(NicPortIndex(place as u8), &stats, link);
            }
        }
    }

    /// Looks at one packet of a burst, for all of them: if it did not come from the station its neighbour is known by,
    /// the steward is told, once a tick at most.
    fn doubt(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &[Frame],
        packets: &[Parsed],
        tick: Tick,
    ) {
        if self.doubted == tick {
            return;
        }
        let Some(Ok(ethernet)) = frames
            .first()
            .map(|frame| Ethernet::new(self.memory.bytes(frame)))
        else {
            return;
        };
        let moved = match packets.first() {
            Some(Parsed::Ipv4(packet)) => shared.network.moved(port, packet.key.src, ethernet.src()),
            Some(Parsed::Ipv6(packet)) => shared.network.moved(port, packet.key.src, ethernet.src()),
            _ => None,
        };
        if let Some(neighbour) = moved {
            self.doubted = tick;
            // A full box loses a doubt; there will be others.
            self.ring_steward |= shared.steward.post(Purpose::Doubt { neighbour }, port, &[]);
        }
    }

    /// Gives fragments the transport header of their datagram (FRG-1), each at the worker that gathers it.
    #[cold]
    fn gather(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &[Frame],
        packets: &mut [Parsed],
        gathered: Option<Transport>,
        tick: Tick,
    ) {
        for (frame, parsed) in frames.iter().zip(packets) {
            let bytes = self.memory.bytes(frame);
            let arrival = Arrival {
                port,
                bytes,
                gathered,
                tick,
            };
            let settled = match parsed {
                Parsed::Ipv4(packet) => arrival.pass(&mut self.sides, &shared.steering, self.index, packet),
                Parsed::Ipv6(packet) => arrival.pass(&mut self.sides, &shared.steering, self.index, packet),
                _ => None,
            };
            if let Some(verdict) = settled {
                *parsed = Parsed::Settled(verdict);
            }
        }
    }

    /// Fragments that waited for the first of their datagram, which a burst has brought. Never from within a burst: there
    /// may be as many as can be held, and stack for one after the other only.
    fn release(&mut self, shared: &Shared, tick: Tick) {
        loop {
            let (memory, Sides { v4, v6 }) = (&mut self.memory, &mut self.sides);
            let mut copy = |port, bytes: &[u8], transport| (port, memory.copy_in(bytes), transport);
            let Some((port, frame, transport)) = v4
                .fragments
                .release(&mut copy)
                .or_else(|| v6.fragments.release(&mut copy))
            else {
                return;
            };
            let Some(frame) = frame else {
                self.count_drops(DropReason::NoFrame, 1);
                continue;
            };
            let mut frames = Burst::new_const();
            frames.push(frame);
            self.burst(shared, port, &mut frames, Some(transport), tick);
        }
    }

    /// Packets that other threads sent us: those received for us as the bursts they would have been.
    fn letters(&mut self, shared: &Shared, tick: Tick) -> usize {
        let mailbox = &shared.workers[self.index.get()];
        let mut opened = 0;
        let (mut received_on, mut frames) = (NicPortIndex(0), Burst::new_const());
        while opened < LETTERS_PER_TURN {
            let Some((purpose, port, frame)) =
                mailbox.open(|letter| (letter.purpose, letter.port, self.memory.copy_in(letter.packet())))
            else {
                break;
            };
            opened += 1;
            let Some(frame) = frame else {
                self.count_drops(DropReason::NoFrame, 1);
                continue;
            };
            if purpose != Purpose::Receive || port != received_on {
                self.receive(shared, received_on, &mut frames, None, tick);
            }
            match purpose {
                Purpose::Send => self.enqueue(shared, port, frame),
                Purpose::Fragment(transport) => {
                    frames.push(frame);
                    self.receive(shared, port, &mut frames, Some(transport), tick);
                }
                _ => {
                    received_on = port;
                    frames.push(frame);
                }
            }
        }
        self.receive(shared, received_on, &mut frames, None, tick);
        opened
    }

    /// A burst, and the fragments that waited for something in it.
    fn receive(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &mut Burst,
        gathered: Option<Transport>,
        tick: Tick,
    ) {
        if !frames.is_empty() {
            self.burst(shared, port, frames, gathered, tick);
            self.release(shared, tick);
        }
    }

    fn flush(&mut self) {
        self.counters
            .add(CounterId::FORWARDED, std::mem::take(&mut self.forwarded));
        for port in 0..self.ports.len() {
            let Some(nic) = &mut self.ports[port] else {
                continue;
            };
            let flushed = nic.queue.flush(nic.driver.as_mut(), &mut self.memory);
            self.count_sent(flushed);
        }
    }

    /// Looks at up to `most` flows of each family's share of this tick's sweep.
    fn expire(&mut self, tick: Tick, most: usize) {
        let Sides { v4, v6 } = &mut self.sides;
        let [expired_v4, expired_v6] = [
            v4.expire(&mut self.picker, tick, most),
            v6.expire(&mut self.picker, tick, most),
        ];
        self.counters
            .add(CounterId::FLOWS_EXPIRED, expired_v4.flows + expired_v6.flows);
        let ports = v4.tracked.snat_ports.taken() + v6.tracked.snat_ports.taken();
        self.counters.set(CounterId::SNAT_PORTS_USED, ports as u64);
        let fullest = v4
            .tracked
            .snat_ports
            .fullest()
            .max(v6.tracked.snat_ports.fullest());
        self.counters
            .set(CounterId::SNAT_PORTS_HIGH_WATER, fullest as u64);
        let flows = v4.tracked.flows.usage().used + v6.tracked.flows.usage().used;
        self.counters.set(CounterId::FLOWS_USED, flows as u64);
        self.count_drops(
            DropReason::FragmentTimeout,
            expired_v4.fragments + expired_v6.fragments,
        );
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests;
