//! The one thread beside the workers (but for memif's): takes transactions from the channel, builds the next tables, hands
//! them to every worker, acknowledges when all have taken them; answers and asks ARP and neighbour discovery; reads the counts that would
//! make a worker wait; keeps the programs of shared interfaces from expiring.
//!
//! Takes  transactions, letters from workers, signals.
//! Gives  tables to workers, acknowledgements to control, questions and answers to the links.
//! Never  handles a packet that has somewhere to go; nothing it does makes a worker wait.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::channel::record::{FrontendKind, Record};
use crate::channel::server::{Event, Server, Transaction};
use crate::counters::{CounterId, CounterPages, WorkerCounters};
use crate::index::{Generation, NicPortIndex, WorkerIndex};
use crate::mailbox::Purpose;
use crate::neighbours::{Neighbours, Outbox, Pace};
#[cfg(feature = "nic")]
use crate::nic::overhear::Overhear;
#[cfg(feature = "nic")]
use crate::nic::transmit_drops::TransmitDrops;
#[cfg(feature = "nic")]
use crate::shared::SharedPorts;
use crate::tables::{Tables, TablesBuilder, WithoutLocal};
use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::verdict::DropReason;
use crate::worker::Shared;

#[cfg(feature = "nic")]
mod interfaces;

/// Letters read before the channel has its turn: a few bursts.
const LETTERS_PER_TURN: usize = 256;

/// How often neighbours are looked after: every tick.
const WAKE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000_000 / TICKS_PER_SECOND as i64,
};

/// Between two looks at which neighbours are still wanted, as far as something was deleted: a look goes over all records.
const WANT: u32 = 60 * TICKS_PER_SECOND;

/// Percent of a worker's source ports toward one endpoint from which on it is said that they run out: time to act.
const ALARM_PERCENT: u64 = 80;

/// Workers whose source ports toward some endpoint have been that few.
fn crowded(pages: &CounterPages) -> impl Iterator<Item = WorkerIndex> + '_ {
    let workers = (0..pages.workers()).map(|page| WorkerIndex(page as u8));
    workers.filter(|&worker| {
        let [most, limit] =
            [CounterId::SNAT_PORTS_HIGH_WATER, CounterId::SNAT_PORTS_LIMIT].map(|id| pages.get(worker, id));
        // The steward's own page has no limit.
        limit > 0 && most * 100 >= limit * ALARM_PERCENT
    })
}

/// The steward's own.
pub struct Steward {
    server: Server,
    builder: TablesBuilder,
    neighbours: Neighbours,
    /// Packets that waited for a neighbour in vain.
    counters: WorkerCounters,
    /// When it was last said which neighbours are wanted, and whether something was deleted since.
    wanted: (Tick, bool),
    /// Everybody's counters, and the workers, a bit each, whose source ports were said to run out.
    pages: CounterPages,
    alarmed: u64,
    /// Published, but not yet taken by every worker.
    unacknowledged: Option<Generation>,
    /// Of interfaces that the kernel uses, too.
    #[cfg(feature = "nic")]
    shared_ports: Option<(SharedPorts, Vec<(NicPortIndex, Overhear)>)>,
    /// What drivers leave to us to read, and when it was read.
    #[cfg(feature = "nic")]
    transmit_drops: (Vec<TransmitDrops>, Tick),
}

impl Steward {
    /// A steward that serves control on `server`, builds with `builder`, counts on a page of its own and asks neighbours
    /// at this pace.
    pub fn new(server: Server, builder: TablesBuilder, counters: WorkerCounters, pace: Pace) -> Self {
        Self {
            pages: server.counter_pages(),
            alarmed: 0,
            server,
            builder,
            neighbours: Neighbours::new(pace),
            wanted: (Tick::now(), false),
            counters,
            unacknowledged: None,
            #[cfg(feature = "nic")]
            shared_ports: None,
            #[cfg(feature = "nic")]
            transmit_drops: (Vec::new(), Tick::now()),
        }
    }

    /// Serves until `quit` is readable. Errors: poll(2) failed, which leaves nothing to serve by; a worker ended, which
    /// leaves its queues to nobody.
    pub fn run(&mut self, shared: &Shared, quit: BorrowedFd<'_>) -> io::Result<()> {
        self.greet(shared);
        loop {
            {
                let mut fds = vec![
                    PollFd::from_borrowed_fd(quit, PollFlags::IN),
                    PollFd::from_borrowed_fd(shared.steward.bell(), PollFlags::IN),
                ];
                fds.extend(
                    self.server
                        .fds()
                        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
                );
                #[cfg(feature = "nic")]
                if let Some((_, heard)) = &self.shared_ports {
                    fds.extend(heard.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::IN)));
                }
                let wait = if self.server.wants_poll() {
                    Timespec::default()
                } else {
                    WAKE
                };
                match poll(&mut fds, Some(&wait)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
                if fds[0].revents().contains(PollFlags::IN) {
                    return Ok(());
                }
            }
            if shared.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("a worker ended: see the line before this one"));
            }
            shared.steward.quiet();
            self.letters(shared);
            #[cfg(feature = "nic")]
            self.overhear(shared, Tick::now());
            self.acknowledge(shared);
            while let Some(event) = self.server.poll() {
                self.channel(shared, event);
            }
            let given_up = self
                .neighbours
                .tick(&shared.network, Tick::now(), &mut Post { shared });
            self.count(DropReason::NeighbourUnreachable, given_up);
            let (used, limit) = (
                shared.network.next_hops().used(),
                shared.network.next_hops().limit(),
            );
            self.counters.set(CounterId::NEIGHBOURS_USED, used as u64);
            self.counters.set(CounterId::NEIGHBOURS_LIMIT, limit as u64);
            #[cfg(feature = "nic")]
            {
                self.count_shared(Tick::now());
                self.refresh_interfaces(Tick::now());
            }
            self.alarm();
            self.want_afresh(shared);
        }
    }

    /// Says once of each worker that its source ports toward some endpoint run out, before they have.
    fn alarm(&mut self) {
        for worker in crowded(&self.pages) {
            let bit = 1 << worker.0;
            if self.alarmed & bit == 0 {
                self.alarmed |= bit;
                log::warn!(
                    "worker {}: {ALARM_PERCENT} % of its source ports toward one endpoint are in use or at rest; without any, new \
                     connections to it are refused: add endpoints, or workers' ports (snat.ports)",
                    worker.0
                );
            }
        }
    }

    /// Wants the neighbours of what there is, and no longer those of what was deleted: they may be forgotten.
    fn want_afresh(&mut self, shared: &Shared) {
        if self.wanted.1 && Tick::now().since(self.wanted.0) >= WANT {
            self.wanted = (Tick::now(), false);
            self.neighbours.want_nobody();
            self.greet(shared);
            let records: Vec<_> = self.builder.records().collect();
            self.pre_resolve(shared, &records);
        }
    }

    /// Enters what needs no question: the host behind its port, and every router of a route.
    fn greet(&mut self, shared: &Shared) {
        let network = &shared.network;
        for (port, address) in network.hosts().chain(network.routers()).collect::<Vec<_>>() {
            self.resolve(shared, port, address);
        }
    }

    fn resolve(&mut self, shared: &Shared, port: NicPortIndex, address: IpAddr) {
        if !self.neighbours.resolve(
            &shared.network,
            port,
            address,
            None,
            Tick::now(),
            &mut Post { shared },
        ) {
            let limit = shared.network.next_hops().limit();
            log::warn!("no room for another neighbour: {limit} are known; raise neighbours.capacity");
        }
    }

    fn count(&mut self, reason: DropReason, packets: usize) {
        if packets > 0 {
            self.counters.add(CounterId::dropped(reason), packets as u64);
            self.counters.add(CounterId::DROPPED, packets as u64);
        }
    }

    fn count_without_local(&mut self, WithoutLocal { internal, external }: WithoutLocal) {
        for (id, count) in [
            (CounterId::INTERNAL_WITHOUT_LOCAL, internal),
            (CounterId::EXTERNAL_WITHOUT_LOCAL, external),
        ] {
            self.counters.set(id, u64::try_from(count).unwrap_or_default());
        }
    }

    fn letters(&mut self, shared: &Shared) {
        let now = Tick::now();
        let mut post = Post { shared };
        // Bounded: what comes while we read is read after the channel has had its turn.
        for _ in 0..LETTERS_PER_TURN {
            let read = shared.steward.open(|letter| {
                let taken = self.neighbours.read(&shared.network, letter, now, &mut post);
                self.count(DropReason::NeighbourPending, usize::from(!taken));
            });
            if read.is_none() {
                return;
            }
        }
    }

    fn channel(&mut self, shared: &Shared, event: Event) {
        match event {
            Event::Transaction(Transaction {
                generation,
                deletes,
                puts,
                ..
            }) => match self.builder.apply(generation, &deletes, &puts) {
                Ok(tables) => {
                    log::info!(
                        "generation {}: {} puts, {} deletes",
                        generation.0,
                        puts.len(),
                        deletes.len()
                    );
                    warn_of_shared_ports(shared, &puts);
                    self.count_without_local(tables.without_local());
                    #[cfg(feature = "nic")]
                    self.extend_shared(shared, &tables);
                    self.publish(shared, &tables);
                    self.wanted.1 |= !deletes.is_empty();
                    self.pre_resolve(shared, &puts);
                }
                Err(refusal) => {
                    log::warn!("generation {} refused: {refusal}", generation.0);
                    self.server.nack(generation, 0, &refusal.to_string());
                }
            },
            Event::DumpRequest => {
                let generation = self.builder.generation();
                self.server
                    .dump(generation, self.builder.records().collect::<Vec<_>>());
            }
            Event::Disconnected => log::info!("control has gone; packets go on as the tables stand"),
        }
    }

    fn publish(&mut self, shared: &Shared, tables: &Arc<Tables>) {
        for (slot, mailbox) in shared.slots.iter().zip(&shared.workers) {
            slot.publish(Arc::clone(tables));
            mailbox.ring();
        }
        self.unacknowledged = Some(tables.generation);
    }

    /// Tells control that every worker uses the newest tables: only then is the update in force.
    fn acknowledge(&mut self, shared: &Shared) {
        if let Some(generation) = self.unacknowledged
            && shared.slots.iter().all(|slot| slot.taken() >= generation.0)
        {
            #[cfg(feature = "nic")]
            if let Some((ports, _)) = &mut self.shared_ports {
                ports.settle(Tick::now());
            }
            self.server.ack(generation);
            self.unacknowledged = None;
        }
    }

    /// Asks for every new backend's next hop now, so that its first packet need not wait.
    fn pre_resolve(&mut self, shared: &Shared, puts: &[Record]) {
        for record in puts {
            if let Record::Backend(backend) = record
                && let Some((port, neighbour)) = shared.network.route_to(backend.address)
            {
                self.resolve(shared, port, neighbour);
            }
        }
    }
}

/// Frontends on our own addresses whose ports are SNAT's, too, are served right, but each by one worker only (TP-7).
fn warn_of_shared_ports(shared: &Shared, puts: &[Record]) {
    if shared.steering.workers() == 1 {
        return;
    }
    let is_own = |address: IpAddr| match address {
        IpAddr::V4(address) => shared.network.is_own(address.octets()),
        IpAddr::V6(address) => shared.network.is_own(address.octets()),
    };
    for record in puts {
        if let Record::Frontend(frontend) = record
            && (frontend.kind == FrontendKind::NodePort || is_own(frontend.address))
            && shared.steering.is_snat_port(frontend.port)
        {
            log::warn!(
                "port {} of a frontend on this node's own address is one of snat.ports: one worker alone serves it; leave it \
                 out of snat.ports to share it among all",
                frontend.port
            );
        }
    }
}

/// Letters to worker 0, which has a queue of every NIC port; a released packet finds its owner from there.
struct Post<'a> {
    shared: &'a Shared,
}

impl Post<'_> {
    fn post(&self, purpose: Purpose, port: NicPortIndex, frame: &[u8]) -> bool {
        self.shared.workers.first().is_some_and(|mailbox| {
            let posted = mailbox.post(purpose, port, frame);
            mailbox.ring();
            posted
        })
    }
}

impl Outbox for Post<'_> {
    fn send(&mut self, port: NicPortIndex, frame: &[u8]) -> bool {
        self.post(Purpose::Send, port, frame)
    }

    fn release(&mut self, received: NicPortIndex, frame: &[u8]) {
        // A full box loses the packet; its sender sends it again.
        let _ = self.post(Purpose::Receive, received, frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_said_to_run_out_at_four_fifths_of_a_workers_own() {
        let mut page = WorkerCounters::private();
        let pages = page.reader();
        let mut crowded_at = |most, limit| {
            page.set(CounterId::SNAT_PORTS_HIGH_WATER, most);
            page.set(CounterId::SNAT_PORTS_LIMIT, limit);
            crowded(&pages).count() == 1
        };
        assert!(!crowded_at(799, 1000));
        assert!(crowded_at(800, 1000));
        assert!(crowded_at(1000, 1000));
        assert!(!crowded_at(0, 0), "the steward's own page");
    }
}
