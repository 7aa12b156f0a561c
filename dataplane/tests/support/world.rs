//! A small world around real workers: NIC ports are rings in memory, stations answer to nobody, time moves by hand. The
//! steward is played here, with the dataplane's own tables builder and ARP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;

use sluice_dataplane::addr::{Mac, Port as PacketPort, V4, V6};
use sluice_dataplane::affinity::Affinity;
use sluice_dataplane::channel::record::Record;
use sluice_dataplane::config::Snat;
use sluice_dataplane::conntrack::persist::BootId;
use sluice_dataplane::conntrack::ports::{PortPoolConfig, Rest};
use sluice_dataplane::conntrack::{Admission, FlowConfig, HashKey, Timeouts};
use sluice_dataplane::counters::{CounterId, CounterPages, WorkerCounters};
use sluice_dataplane::fragments::FragmentConfig;
use sluice_dataplane::index::{Generation, NicPortIndex, WorkerIndex};
use sluice_dataplane::lookup::LookupOptions;
use sluice_dataplane::mailbox::{Mailbox, Purpose};
use sluice_dataplane::neighbours::{Neighbours, Outbox};
use sluice_dataplane::network::{Interface, Network, Route};
use sluice_dataplane::next_hop::Reachability;
use sluice_dataplane::nic::memory::MemoryPeer;
use sluice_dataplane::nic::{BURST, Driver, FrameMemory};
use sluice_dataplane::steering::Steering;
use sluice_dataplane::table_slot::TableSlot;
use sluice_dataplane::tables::{Picker, TableLimits, TablesBuilder};
use sluice_dataplane::tick::Tick;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::worker::{FlowFiles, Shared, SideConfig, Sides, Worker, WorkerParts};

use tempfile::TempDir;

use super::nic::Nic;
use super::random::Random;
use super::records::Changes;
use super::station::{KERNEL, Port, ROUTER, ROUTER_V6, station};
use super::vector::Setup;

/// As without a config.
fn usual_ports() -> Vec<RangeInclusive<u16>> {
    Snat::default().ports.into_iter().map(|range| range.0).collect()
}

/// Bytes of a worker's frames, and of the letters that carry them.
const LETTER: usize = 2_048;

/// A frame, and the NIC port it is seen on.
pub type Seen = (Port, Vec<u8>);

/// Table sizes cost memory in every worker; no vector has more than a few records.
fn limits() -> TableLimits {
    TableLimits {
        service_ports: 64,
        frontends: 256,
        backends: 256,
        ..TableLimits::default()
    }
}

/// Everything a vector happens in.
pub struct World {
    setup: Setup,
    workers: Vec<Worker>,
    /// The other side of each worker's queue of each NIC port.
    peers: Vec<Vec<Option<MemoryPeer>>>,
    shared: Shared,
    counters: Vec<CounterPages>,
    builder: TablesBuilder,
    /// What control told the process before this one, and has not told this one.
    untold: Vec<Record>,
    neighbours: Neighbours,
    now: Tick,
    random: Random,
    /// Secrets of flow tables and port pools.
    keys: [HashKey; 2],
    /// Where workers keep their flows.
    files: Option<TempDir>,
    /// Packets that a worker can receive in one turn.
    burst: usize,
    /// Packets and letters that turns have handled.
    handled: u64,
}

impl World {
    /// With `workers` workers; every random choice comes from `seed`.
    pub fn new(setup: &Setup, workers: u8, seed: u64) -> Self {
        Self::with(setup, workers, seed, None)
    }

    /// Whose flows outlive their workers, in files.
    pub fn kept(setup: &Setup, workers: u8, seed: u64) -> Self {
        Self::with(setup, workers, seed, Some(tempfile::tempdir().unwrap()))
    }

    fn with(setup: &Setup, workers: u8, seed: u64, files: Option<TempDir>) -> Self {
        let mut random = Random(seed);
        let ports = setup
            .snat_ports
            .clone()
            .map_or_else(usual_ports, |range| vec![range]);
        let mailbox = |capacity: Option<usize>| Mailbox::new(capacity.unwrap_or(2 * BURST), LETTER).unwrap();
        let shared = Shared {
            network: network(setup),
            steering: Steering::new(workers, ports),
            workers: (0..workers).map(|_| mailbox(setup.letters)).collect(),
            slots: (0..workers).map(|_| TableSlot::new()).collect(),
            steward: mailbox(setup.steward),
            stop: AtomicBool::new(false),
            affinity: Affinity::new(1024).unwrap(),
            options: LookupOptions {
                midstream_pickup: !setup.no_midstream_pickup,
            },
            sleep: false,
        };
        let keys = [(); 2].map(|()| HashKey::from(random.words()));
        let mut world = Self {
            setup: setup.clone(),
            workers: Vec::new(),
            peers: Vec::new(),
            shared,
            counters: Vec::new(),
            builder: TablesBuilder::new(limits()),
            untold: Vec::new(),
            neighbours: Neighbours::default(),
            // Workers read the clock once, when they are made.
            now: Tick::now(),
            random,
            keys,
            files,
            burst: frames(setup).min(BURST).min(setup.ring.unwrap_or(BURST)),
            handled: 0,
        };
        world.know_neighbours(setup);
        world.hire();
        world
    }

    /// All workers end, and others take their places, with the flows in their files if they have any.
    pub fn restart(&mut self) {
        assert!(self.left().is_empty(), "nothing is in the rings");
        self.workers.clear();
        self.peers.clear();
        self.hire();
    }

    /// The process ends, and another takes its place with the flows in its files: no control has spoken to it.
    pub fn start_anew(&mut self) {
        self.untold.extend(self.builder.records());
        self.builder = TablesBuilder::new(limits());
        let workers = self.workers.len();
        self.shared.slots = (0..workers).map(|_| TableSlot::new()).collect();
        self.shared.affinity = Affinity::new(1024).unwrap();
        self.restart();
    }

    /// Control tells the new process all that it told the one before.
    pub fn tell(&mut self) -> Result<(), String> {
        let puts = std::mem::take(&mut self.untold);
        self.apply(&Changes {
            puts,
            ..Changes::default()
        })
    }

    /// A neighbour is forgotten, and known again by another index.
    pub fn forget(&mut self, port: Port, address: IpAddr) {
        let (hops, port) = (self.shared.network.next_hops(), NicPortIndex(port as u8));
        let index = hops.find(port, address).unwrap();
        let (_, reachability) = hops.get(index);
        hops.forget(index);
        hops.set(hops.insert(port, address).unwrap(), reachability);
    }

    fn hire(&mut self) {
        let indices = || (0..self.shared.workers.len() as u8).map(WorkerIndex);
        let sides: Vec<Sides> = indices().map(|index| self.sides(index)).collect();
        if self.builder.generation().0 == 0 {
            let addressed = sides.iter().flat_map(|s| s.addressed(&self.shared.network));
            self.builder = TablesBuilder::new(limits()).remembering(addressed);
        }
        for (index, sides) in indices().zip(sides).collect::<Vec<_>>() {
            let mut drivers: Vec<Option<Box<dyn Driver>>> = Vec::new();
            let mut ends = Vec::new();
            for port in Port::ALL {
                // As with a tap: one queue, worker 0's.
                if port == Port::Host && (index.0 > 0 || self.setup.no_host) {
                    drivers.push(None);
                    ends.push(None);
                    continue;
                }
                let (mut nic, end) = Nic::new(port, self.setup.ring.unwrap_or(4 * BURST));
                nic.has_peer = self.setup.no_peer != Some(port);
                drivers.push(Some(Box::new(nic)));
                ends.push(Some(end));
            }
            self.peers.push(ends);
            let page = WorkerCounters::private();
            self.counters.push(page.reader());
            self.workers.push(Worker::new(
                WorkerParts {
                    index,
                    memory: FrameMemory::new(frames(&self.setup), LETTER).unwrap(),
                    drivers,
                    sides,
                    picker: Picker::new(self.random.next(), &limits()),
                    counters: page,
                    tables: self.builder.tables().clone(),
                },
                &self.shared.network,
            ));
        }
    }

    /// What a worker remembers: nothing, or what its files say and the source ports of those flows.
    fn sides(&self, index: WorkerIndex) -> Sides {
        let [flows_key, ports_key] = self.keys;
        let flows = FlowConfig {
            capacity: self.setup.flows.unwrap_or(1024),
            timeouts: Timeouts::default(),
            admission: Admission {
                per_second: self.setup.flows_per_second.unwrap_or(0),
                ..Admission::default()
            },
            hash_key: flows_key,
        };
        let snat_ports = PortPoolConfig {
            ports: self.shared.steering.source_ports(index),
            destinations: 64,
            blocks: 256,
            rest: Rest::default(),
            hash_key: ports_key,
        };
        let config = SideConfig {
            flows,
            snat_ports,
            fragments: FragmentConfig::default(),
        };
        let Some(folder) = &self.files else {
            return Sides::new(&config).unwrap();
        };
        let files = FlowFiles {
            folder: folder.path(),
            worker: index,
            workers: self.shared.workers.len() as u8,
            boot: BootId::from([7; 36]),
        };
        let (sides, adopted) = Sides::adopt(&config, &files, &self.shared.network, self.now).unwrap();
        for adopted in adopted {
            assert_eq!(adopted.discarded, 0, "what was written is sound: {adopted:?}");
        }
        sides
    }

    /// Next hops as if ARP and neighbour discovery had been answered; with `resolve`, only what the steward enters without asking.
    fn know_neighbours(&mut self, setup: &Setup) {
        let network = &self.shared.network;
        let know = |port: Port, address: IpAddr, mac| {
            let hops = network.next_hops();
            let index = hops.insert(NicPortIndex(port as u8), address).unwrap();
            hops.set(index, Reachability::Reachable(Mac(mac)));
        };
        if !setup.no_host {
            let own = network.own_addresses::<V4>().map(IpAddr::from);
            own.chain(network.own_addresses::<V6>().map(IpAddr::from))
                .for_each(|own| know(Port::Host, own, KERNEL));
        }
        let is_own = |address: IpAddr| match address {
            IpAddr::V4(address) => network.is_own(address.octets()),
            IpAddr::V6(address) => network.is_own(address.octets()),
        };
        // The last pods are the filler's, whose next hops are no vector's business.
        let v4 = |last: u8| {
            [
                Ipv4Addr::new(172, 18, 0, last).into(),
                Ipv4Addr::new(10, 244, 0, last).into(),
            ]
        };
        let v6 = |last: u16| [0x18, 0x244].map(|net| Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, last).into());
        let mut stations: Vec<([IpAddr; 2], bool)> = (1..=254).map(|last| (v4(last), last >= 200)).collect();
        stations.extend((1..=0x99).map(|last| (v6(last), false)));
        for ([client, pod], filler) in stations {
            let preset = !setup.resolve;
            if preset && !is_own(client) {
                know(Port::Client, client, station(client));
            }
            if (preset || filler) && !is_own(pod) {
                know(Port::Pods, pod, station(pod));
            }
        }
    }

    /// Commits an update and lets every worker take it. Errors: why the tables refuse it.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), String> {
        let generation = Generation(self.builder.tables().generation.0 + 1);
        let tables = self
            .builder
            .apply(generation, &changes.deletes, &changes.puts)
            .map_err(|e| e.to_string())?;
        self.shared
            .slots
            .iter()
            .for_each(|slot| slot.publish(tables.clone()));
        self.settle();
        assert!(
            self.shared.slots.iter().all(|slot| slot.taken() == generation.0),
            "every worker takes every generation"
        );
        Ok(())
    }

    /// A random one of the workers that have a queue of this port.
    pub fn any_queue(&mut self, port: Port) -> usize {
        let queues = self
            .peers
            .iter()
            .filter(|ends| ends[port as usize].is_some())
            .count();
        self.random.below(queues.max(1))
    }

    /// Puts a frame into a receive ring.
    pub fn send(&mut self, queue: usize, port: Port, frame: &[u8]) {
        let end = self.peers[queue % self.peers.len()][port as usize].as_ref();
        let end = end.unwrap_or_else(|| panic!("there is no {port} port in this vector"));
        assert!(end.send(frame), "{port}'s ring takes the frame");
    }

    /// Turns of the workers until none has anything to do; the steward sleeps.
    pub fn turn(&mut self) {
        loop {
            let handled: usize = self
                .workers
                .iter_mut()
                .map(|worker| worker.turn(&self.shared, self.now))
                .sum();
            self.handled += handled as u64;
            if handled == 0 {
                return;
            }
        }
    }

    /// Turns of one worker until it has nothing to do; all others sleep.
    #[allow(dead_code, reason = "for what two workers share, a test program of its own")]
    pub fn turn_alone(&mut self, worker: usize) {
        while self.workers[worker].turn(&self.shared, self.now) > 0 {}
    }

    /// The worker whose flows this client's are.
    #[allow(dead_code, reason = "for what two workers share, a test program of its own")]
    pub fn owner(&self, client: Ipv4Addr, port: u16) -> usize {
        let (address, port) = (client.octets(), PacketPort::new(port));
        let owner = self.shared.steering.client_owner(address, port);
        owner.0.into()
    }

    /// Turns of everybody until nobody has anything to do.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            self.turn();
            if self.steward() == 0 {
                return;
            }
        }
        panic!("workers and steward write each other letters for ever");
    }

    /// The steward reads its letters: how many there were.
    fn steward(&mut self) -> usize {
        let (shared, neighbours, now) = (&self.shared, &mut self.neighbours, self.now);
        let mut post = Post { shared };
        let mut read = 0;
        while read < shared.steward.capacity() {
            let letter = shared.steward.open(|letter| {
                let _ = neighbours.read(&shared.network, letter, now, &mut post);
            });
            if letter.is_none() {
                break;
            }
            read += 1;
        }
        read
    }

    /// Lets time pass, in steps of a second (or, for hours, of a thousandth of them).
    pub fn wait(&mut self, seconds: u32) {
        let mut left = seconds;
        while left > 0 {
            let step = (seconds / 1000).clamp(1, left);
            left -= step;
            self.now = self.now.plus_seconds(step);
            self.neighbours
                .tick(&self.shared.network, self.now, &mut Post { shared: &self.shared });
            self.settle();
        }
        self.expire();
    }

    /// Lets time pass at once, where nobody has anything to do meanwhile but to forget.
    pub fn leap(&mut self, seconds: u32) {
        self.now = self.now.plus_seconds(seconds);
        self.settle();
        self.expire();
    }

    fn expire(&mut self) {
        // A turn looks at 64 flows: enough turns for all of them.
        (0..32).for_each(|_| self.turn_idle());
    }

    fn turn_idle(&mut self) {
        for worker in &mut self.workers {
            worker.turn(&self.shared, self.now);
        }
    }

    /// Everything that has left since the last time, per port in order.
    pub fn left(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        for port in Port::ALL {
            for end in self.peers.iter().filter_map(|ends| ends[port as usize].as_ref()) {
                seen.extend(std::iter::from_fn(|| end.receive()).map(|frame| (port, frame)));
            }
        }
        seen
    }

    /// Packets dropped so far, by reason.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.count(CounterId::dropped(reason))))
            .collect()
    }

    /// A counter, of all workers together.
    pub fn count(&self, id: CounterId) -> u64 {
        self.counters
            .iter()
            .map(|page| page.get(WorkerIndex(0), id))
            .sum()
    }

    /// Randomness of this world.
    pub const fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Letters that workers have read.
    pub fn letters(&self) -> u64 {
        self.handled - self.count(CounterId::RX_PACKETS)
    }

    /// Every frame is free again: each worker receives a whole burst in one turn, which it cannot if one is lost.
    pub fn lost_frames(&mut self, routed: &[u8]) -> usize {
        let burst = self.burst;
        let mut lost = 0;
        for worker in 0..self.workers.len() {
            self.settle();
            (0..burst).for_each(|_| self.send(worker, Port::Client, routed));
            let handled = self.workers[worker].turn(&self.shared, self.now);
            self.handled += handled as u64;
            lost += burst - handled;
            self.settle();
            self.left();
        }
        lost
    }
}

/// A turn receives and answers a whole burst, and not one frame more.
fn frames(setup: &Setup) -> usize {
    setup.frames.unwrap_or(BURST + 1)
}

/// The world's addresses and routes.
fn network(setup: &Setup) -> Network {
    let interface = |port: Port, addresses: &[&str]| Interface {
        name: port.name().to_owned(),
        mac: Mac(port.mac()),
        mtu: if port == Port::Pods {
            setup.mtu.unwrap_or(1500)
        } else {
            1500
        },
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        peer_mac: (port == Port::Host).then_some(Mac(KERNEL)),
    };
    let client = NicPortIndex(Port::Client as u8);
    let default = |to: &str, via| Route {
        to: to.parse().unwrap(),
        via: Some(via),
        port: client,
    };
    let node = ["172.18.0.2", "fd00:18::2"].map(|address| address.parse().unwrap());
    let interfaces = vec![
        interface(Port::Client, &["172.18.0.2/24", "fd00:18::2/64"]),
        interface(Port::Pods, &["10.244.0.1/24", "fd00:244::1/64"]),
        interface(Port::Host, &[]),
    ];
    let routes = if setup.no_default_route {
        vec![]
    } else {
        vec![
            default("0.0.0.0/0", ROUTER.into()),
            default("::/0", ROUTER_V6.into()),
        ]
    };
    let host = (!setup.no_host).then_some(NicPortIndex(Port::Host as u8));
    Network::new(interfaces, routes, node.to_vec(), host, 1024)
}

/// The steward's letters: to worker 0, which has a queue of every port.
struct Post<'a> {
    shared: &'a Shared,
}

impl Outbox for Post<'_> {
    fn send(&mut self, port: NicPortIndex, frame: &[u8]) -> bool {
        assert!(
            self.shared.workers[0].post(Purpose::Send, port, frame),
            "worker 0 reads its letters"
        );
        true
    }

    fn release(&mut self, received: NicPortIndex, frame: &[u8]) {
        assert!(
            self.shared.workers[0].post(Purpose::Receive, received, frame),
            "worker 0 reads its letters"
        );
    }
}
