//! One core's turn: take a newer table, then for every NIC port `rx` → `parse` → `lookup` → `nat` → `tx`, then expire
//! a few flows. Reads the clock once a turn, carries out verdicts and counts them; the only file that names all stages.
//!
//! Takes  its queues of the NIC ports, its mailbox, the tables the steward publishes.
//! Gives  packets; letters to the steward and to other workers.
//! Never  waits while there is work; never locks; never allocates or frees tables.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;

use crate::addr::Mac;
use crate::conntrack::Flows;
use crate::conntrack::ports::PortPool;
use crate::counters::{CounterId, WorkerCounters};
use crate::index::{NicPortIndex, WorkerIndex};
use crate::lookup::{self, Decision, Lookup, LookupOptions};
use crate::mailbox::{Mailbox, Purpose};
use crate::nat;
use crate::network::Network;
use crate::next_hop::Reachability;
use crate::nic::{BURST, Burst, Driver, Frame, FrameMemory};
use crate::parse::{self, Parsed};
use crate::reject::{self, RateLimiter};
use crate::rx;
use crate::steering::Steering;
use crate::table_slot::TableSlot;
use crate::tables::{Picker, Tables};
use crate::tick::Tick;
use crate::tx::{Flushed, TxQueue};
use crate::verdict::{DropReason, Rejection, Verdict};
use crate::wire::ethernet::{self, Ethernet};

/// Ticks in which all flows are looked at for expiry once: 2 s, the shortest timeout anybody would notice. Looking more
/// often costs a cache line a flow and finds nothing.
const SWEEP_TICKS: usize = 16;

/// Flows looked at in a tick at least: a small table is swept whole.
const SWEEP_MIN: usize = 2_048;

/// Flows looked at in a turn with packets: under a microsecond. A tick has more than enough such turns for its share.
const EXPIRE_PER_TURN: usize = 64;

/// Flows looked at in a turn without: a sleeping worker has only ten a second, and a packet may wait these few
/// microseconds.
const EXPIRE_PER_IDLE_TURN: usize = 4_096;

/// Letters opened in a turn: as many as packets, so that neither starves the other.
const LETTERS_PER_TURN: usize = BURST;

/// Longest sleep of a worker with nothing to do: flows still expire, and a driver without a wait descriptor is polled.
const SLEEP: Duration = Duration::from_millis(100);

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
    flows: Flows,
    snat_ports: PortPool,
    picker: Picker,
    limiter: RateLimiter,
    counters: WorkerCounters,
    /// The tick whose share of the sweep is under way, and how many flows of it are left.
    sweep: (Tick, usize),
    /// Whom to wake at the end of the turn.
    rung: u64,
    ring_steward: bool,
    /// The last tick in which the steward was told of a doubt.
    doubted: Tick,
}

struct NicPort {
    driver: Box<dyn Driver>,
    queue: TxQueue,
}

/// The parts of a worker, made at start.
pub struct WorkerParts {
    /// Which worker.
    pub index: WorkerIndex,
    /// Frame memory that the drivers were opened with.
    pub memory: FrameMemory,
    /// Its queue of each NIC port.
    pub drivers: Vec<Option<Box<dyn Driver>>>,
    /// Its flows.
    pub flows: Flows,
    /// Its SNAT ports.
    pub snat_ports: PortPool,
    /// Its randomness.
    pub picker: Picker,
    /// Its counter page.
    pub counters: WorkerCounters,
    /// The tables to begin with.
    pub tables: Arc<Tables>,
}

impl Worker {
    /// A worker that has not had its first turn.
    pub fn new(parts: WorkerParts) -> Self {
        let port = |driver: Box<dyn Driver>| NicPort {
            driver,
            queue: TxQueue::new(),
        };
        Self {
            index: parts.index,
            memory: parts.memory,
            ports: parts.drivers.into_iter().map(|d| d.map(port)).collect(),
            tables: parts.tables,
            flows: parts.flows,
            snat_ports: parts.snat_ports,
            picker: parts.picker,
            limiter: RateLimiter::new(Tick::now()),
            counters: parts.counters,
            sweep: (Tick::default(), 0),
            rung: 0,
            ring_steward: false,
            doubted: Tick::default(),
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
                "worker {}: {}: {} in ({} missed, {} errors), {} out ({} errors)",
                self.index.0,
                interface.name,
                stats.rx_packets,
                stats.rx_missed,
                stats.rx_errors,
                stats.tx_packets,
                stats.tx_errors
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
            self.burst(shared, NicPortIndex(port as u8), &mut frames, tick);
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
        handled
    }

    /// Decides on a burst from one NIC port and carries the decisions out.
    fn burst(&mut self, shared: &Shared, port: NicPortIndex, frames: &mut Burst, tick: Tick) {
        // Of the network, not of our queue: what another worker handed over may come from a NIC port we have none of.
        let mac = shared.network.interfaces()[port.get()].mac;
        let from_host = shared.network.host() == Some(port);
        let parse = |frame: &Frame| match parse::parse(self.memory.bytes(frame), mac) {
            // Only the host speaks with our addresses; from a link they are forged (RFC 1812 §5.3.8), and would be
            // treated as the node is: exempt from the limit of refusals, served past external traffic policies (TP-4).
            Parsed::Ipv4(packet) if !from_host && shared.network.is_own(packet.key.src) => {
                Parsed::Drop(DropReason::BadSource)
            }
            Parsed::Ipv4(packet) if packet.vlan != 0 => Parsed::Other(DropReason::UnknownEtherType),
            parsed => parsed,
        };
        let packets: ArrayVec<Parsed, BURST> = frames.iter().map(parse).collect();
        self.doubt(shared, port, frames, &packets, tick);
        let mut decisions = [Decision {
            verdict: Verdict::Punt,
            rewrite: None,
        }; BURST];
        let mut lookup = Lookup {
            tables: &self.tables,
            network: &shared.network,
            steering: &shared.steering,
            worker: self.index,
            flows: &mut self.flows,
            snat_ports: &mut self.snat_ports,
            picker: &mut self.picker,
            options: shared.options,
            opened: 0,
            tick,
        };
        lookup.burst(&packets, &mut |i, decision| decisions[i] = decision);
        self.counters.add(CounterId::FLOWS_OPENED, lookup.opened);
        for ((frame, packet), decision) in frames.drain(..).zip(&packets).zip(&decisions) {
            self.carry_out(shared, port, frame, packet, decision, tick);
        }
    }

    /// Looks at one packet of a burst, for all of them: if it did not come from the station its neighbour is known by,
    /// the steward is told, once a tick at most.
    fn doubt(&mut self, shared: &Shared, port: NicPortIndex, frames: &Burst, packets: &[Parsed], tick: Tick) {
        let (Some(frame), Some(Parsed::Ipv4(packet))) = (frames.first(), packets.first()) else {
            return;
        };
        let Ok(ethernet) = Ethernet::new(self.memory.bytes(frame)) else {
            return;
        };
        if self.doubted != tick
            && let Some(neighbour) = shared.network.moved(port, packet.key.src, ethernet.src())
        {
            self.doubted = tick;
            // A full box loses a doubt; there will be others.
            self.ring_steward |= shared.steward.post(Purpose::Doubt { neighbour }, port, &[]);
        }
    }

    fn carry_out(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        mut frame: Frame,
        packet: &Parsed,
        decision: &Decision,
        tick: Tick,
    ) {
        let done = match decision.verdict {
            Verdict::Forward(next_hop) => {
                let (out, reachability) = shared.network.next_hops().get(next_hop);
                match (reachability, packet) {
                    (Reachability::Reachable(mac), Parsed::Ipv4(packet)) => {
                        let bytes = self.memory.bytes_mut(&mut frame);
                        if let Some(rewrite) = &decision.rewrite {
                            nat::rewrite(bytes, packet, rewrite);
                        }
                        nat::decrement_ttl(bytes, packet);
                        self.counters.add(CounterId::FORWARDED, 1);
                        return self.send(shared, out, mac, frame);
                    }
                    _ => Err(DropReason::NeighbourUnreachable),
                }
            }
            Verdict::Punt => match shared.network.host() {
                Some(host) if host != port => match shared.network.host_mac() {
                    Some(mac) => {
                        self.counters.add(CounterId::PUNTED, 1);
                        return self.send(shared, host, mac, frame);
                    }
                    None => Err(DropReason::NeighbourUnreachable),
                },
                // What the host sent to itself or to a group has nowhere to go.
                _ => Err(DropReason::NoHostPort),
            },
            Verdict::Neighbour => self.post(
                &shared.steward,
                Purpose::Neighbour,
                port,
                &frame,
                DropReason::StewardQueueFull,
            ),
            Verdict::Resolve(out, neighbour) => self.ask_steward(shared, out, neighbour, port, &frame),
            Verdict::Handover(owner) => {
                self.rung |= 1 << owner.0;
                let mailbox = &shared.workers[owner.get()];
                self.post(
                    mailbox,
                    Purpose::Receive,
                    port,
                    &frame,
                    DropReason::HandoverQueueFull,
                )
            }
            Verdict::Reject(rejection) => match packet {
                Parsed::Ipv4(packet) => {
                    self.counters.add(CounterId::REJECTED, 1);
                    let answer = self.reject(shared, port, &frame, packet, rejection, tick);
                    answer.map(|answer| self.enqueue(shared, port, answer))
                }
                _ => Err(DropReason::RejectForbidden),
            },
            Verdict::Drop(reason) => Err(reason),
        };
        match done {
            Ok(()) => self.memory.free(frame),
            Err(reason) => self.drop_frame(frame, reason),
        }
    }

    /// Builds the ICMP error that answers a rejected packet.
    fn reject(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: &Frame,
        packet: &parse::Packet,
        rejection: Rejection,
        tick: Tick,
    ) -> Result<Frame, DropReason> {
        let from = match rejection {
            // Measured on Linux: an expiry on the way of a Service flow speaks with the frontend's address.
            Rejection::TimeExceeded
                if lookup::frontend(&packet.key, &self.tables, &shared.network).is_some() =>
            {
                packet.key.dst
            }
            _ => shared.network.source_address(port).ok_or(DropReason::NoRoute)?,
        };
        // The node itself is exempt from the limit, as it is in Linux.
        if !shared.network.is_own(packet.key.src) {
            self.limiter.take(packet.key.src.into(), tick)?;
        }
        let mut answer = self.memory.alloc().ok_or(DropReason::NoFrame)?;
        let room = self.memory.max_packet();
        let fits = self.memory.set_len(&mut answer, room);
        debug_assert!(fits, "a fresh frame holds max_packet bytes");
        let original = self.memory.bytes(frame);
        match reject::icmp_error(
            original,
            packet,
            rejection,
            from,
            self.memory.bytes_mut(&mut answer),
        ) {
            Ok(len) => {
                let fits = self.memory.set_len(&mut answer, len);
                debug_assert!(fits, "shorter than before");
                self.counters.add(CounterId::REJECTS_SENT, 1);
                Ok(answer)
            }
            Err(reason) => {
                self.memory.free(answer);
                Err(reason)
            }
        }
    }

    /// Addresses a frame to its next station and sends it.
    fn send(&mut self, shared: &Shared, out: NicPortIndex, to: Mac, mut frame: Frame) {
        let interface = &shared.network.interfaces()[out.get()];
        if frame.len() > interface.mtu + ethernet::HEADER_LEN {
            return self.drop_frame(frame, DropReason::TooBig);
        }
        nat::set_macs(self.memory.bytes_mut(&mut frame), to, interface.mac);
        self.enqueue(shared, out, frame);
    }

    /// Sends a whole frame: on our queue of the NIC port, or through a worker that has one.
    fn enqueue(&mut self, shared: &Shared, out: NicPortIndex, frame: Frame) {
        if let Some(nic) = &mut self.ports[out.get()] {
            let flushed = nic.queue.push(frame, nic.driver.as_mut(), &mut self.memory);
            self.count_sent(flushed);
            return;
        }
        // Ports with one queue (a tap) belong to worker 0.
        self.rung |= 1;
        let posted = self.post(
            &shared.workers[0],
            Purpose::Send,
            out,
            &frame,
            DropReason::HandoverQueueFull,
        );
        match posted {
            Ok(()) => self.memory.free(frame),
            Err(reason) => self.drop_frame(frame, reason),
        }
    }

    fn ask_steward(
        &mut self,
        shared: &Shared,
        out: NicPortIndex,
        neighbour: IpAddr,
        received: NicPortIndex,
        frame: &Frame,
    ) -> Result<(), DropReason> {
        // Packets for nobody, at whatever rate, must leave room for the ARP that keeps everybody else reachable.
        if shared.steward.waiting() > shared.steward.capacity() / 2 {
            return Err(DropReason::NeighbourPending);
        }
        let purpose = Purpose::Resolve { port: out, neighbour };
        self.post(
            &shared.steward,
            purpose,
            received,
            frame,
            DropReason::NeighbourPending,
        )
    }

    fn post(
        &mut self,
        mailbox: &Mailbox,
        purpose: Purpose,
        port: NicPortIndex,
        frame: &Frame,
        full: DropReason,
    ) -> Result<(), DropReason> {
        if !matches!(purpose, Purpose::Receive | Purpose::Send) {
            self.ring_steward = true;
            self.counters.add(CounterId::TO_STEWARD, 1);
        }
        if mailbox.post(purpose, port, self.memory.bytes(frame)) {
            Ok(())
        } else {
            Err(full)
        }
    }

    fn count_drops(&mut self, reason: DropReason, count: usize) {
        if count > 0 {
            self.counters.add(CounterId::dropped(reason), count as u64);
            self.counters.add(CounterId::DROPPED, count as u64);
        }
    }

    fn drop_frame(&mut self, frame: Frame, reason: DropReason) {
        self.count_drops(reason, 1);
        self.memory.free(frame);
    }

    /// Packets that other threads sent us.
    fn letters(&mut self, shared: &Shared, tick: Tick) -> usize {
        let mailbox = &shared.workers[self.index.get()];
        let mut opened = 0;
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
            match purpose {
                Purpose::Send => self.enqueue(shared, port, frame),
                _ => {
                    let mut frames = Burst::new_const();
                    frames.push(frame);
                    self.burst(shared, port, &mut frames, tick);
                }
            }
        }
        opened
    }

    fn flush(&mut self) {
        for port in 0..self.ports.len() {
            let Some(nic) = &mut self.ports[port] else {
                continue;
            };
            let flushed = nic.queue.flush(nic.driver.as_mut(), &mut self.memory);
            self.count_sent(flushed);
        }
    }

    fn count_sent(&mut self, flushed: Flushed) {
        if flushed.packets > 0 {
            self.counters.add(CounterId::TX_PACKETS, flushed.packets as u64);
            self.counters.add(CounterId::TX_BYTES, flushed.bytes as u64);
        }
        self.count_drops(DropReason::TxFull, flushed.refused);
    }

    /// Looks at up to `most` flows of this tick's share of the sweep.
    fn expire(&mut self, tick: Tick, most: usize) {
        if self.sweep.0 != tick {
            self.sweep = (tick, (self.flows.usage().high_water / SWEEP_TICKS).max(SWEEP_MIN));
        }
        let budget = self.sweep.1.min(most);
        self.sweep.1 -= budget;
        let Self {
            flows,
            snat_ports,
            picker,
            ..
        } = self;
        let mut expired = 0;
        flows.expire(tick, budget, &mut |flow| {
            lookup::ended(flow, snat_ports, picker);
            expired += 1;
        });
        snat_ports.expire(tick, budget);
        self.counters.add(CounterId::FLOWS_EXPIRED, expired);
        self.counters
            .set(CounterId::SNAT_PORTS_USED, self.snat_ports.taken() as u64);
        self.counters
            .set(CounterId::FLOWS_USED, self.flows.usage().used as u64);
    }

    fn wake(&mut self, shared: &Shared) {
        if std::mem::take(&mut self.ring_steward) {
            shared.steward.ring();
        }
        let mut rung = std::mem::take(&mut self.rung) & !(1 << self.index.0);
        if !shared.sleep {
            return; // nobody waits on a bell, and a ring is a system call
        }
        while rung != 0 {
            shared.workers[rung.trailing_zeros() as usize].ring();
            rung &= rung - 1;
        }
    }

    /// Waits for a packet, a letter, a newer table, or `SLEEP`.
    fn wait(&self, shared: &Shared) {
        let mailbox = &shared.workers[self.index.get()];
        let mut fds: ArrayVec<PollFd<'_>, 257> = ArrayVec::new_const();
        fds.push(PollFd::from_borrowed_fd(mailbox.bell(), PollFlags::IN));
        for fd in self.ports.iter().flatten().filter_map(|nic| nic.driver.wait_fd()) {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let timeout = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: SLEEP.as_nanos() as i64,
        };
        // EINTR is a wake-up like any other.
        let _ = poll(&mut fds, Some(&timeout));
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        let mut lost = false;
        for fd in fds.iter().filter(|fd| fd.revents().intersects(broken)) {
            // Reading a socket's error clears it (a link that went down); what stays broken would wake us for ever.
            lost |= sockopt::socket_error(fd).is_err();
        }
        if lost {
            std::thread::sleep(Duration::from_millis(1));
        }
        mailbox.quiet();
    }
}
