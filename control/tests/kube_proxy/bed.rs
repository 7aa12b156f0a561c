//! The gateway in the recorded network: one real worker between NIC ports in memory, given its tables by control's own
//! publisher through the dataplane's own builder. Time moves by hand, and every random choice comes from a fixed seed.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use ipnet::IpNet;
use sluice_control::publish::{Dataplane, Inventory, PublishError, Publisher};
use sluice_dataplane::addr::Mac;
use sluice_dataplane::affinity::Affinity;
use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::conntrack::ports::{PortPoolConfig, Rest};
use sluice_dataplane::conntrack::{Admission, FlowConfig, HashKey, Timeouts};
use sluice_dataplane::counters::{CounterId, CounterPages, WorkerCounters};
use sluice_dataplane::fragments::FragmentConfig;
use sluice_dataplane::index::{Generation, NicPortIndex, WorkerIndex};
use sluice_dataplane::lookup::LookupOptions;
use sluice_dataplane::mailbox::Mailbox;
use sluice_dataplane::network::{Interface, Network, Route};
use sluice_dataplane::next_hop::Reachability;
use sluice_dataplane::nic::memory::{MemoryPeer, port_with_peer};
use sluice_dataplane::nic::{BURST, Driver, FrameMemory};
use sluice_dataplane::steering::Steering;
use sluice_dataplane::table_slot::TableSlot;
use sluice_dataplane::tables::{Picker, TableLimits, TablesBuilder};
use sluice_dataplane::tick::{TICKS_PER_SECOND, Tick};
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::worker::{Shared, SideConfig, Sides, Worker, WorkerParts};

use crate::packet::Packet;
use crate::topology::{Family, KERNEL, Nic, PRIMARY, STATIONS, Station, ip, named};

/// A packet that left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) nic: Nic,
    /// The station it was sent to.
    pub(crate) to: Mac,
    pub(crate) packet: Packet,
}

/// See the module.
pub(crate) struct Bed {
    worker: Worker,
    peers: Vec<MemoryPeer>,
    shared: Rc<Shared>,
    publisher: Publisher<Tables>,
    counters: CounterPages,
    now: Tick,
}

/// The dataplane as control's publisher meets it: the steward's part, without the channel between.
struct Tables {
    builder: Rc<RefCell<TablesBuilder>>,
    shared: Rc<Shared>,
}

impl Dataplane for Tables {
    fn connect(&mut self) -> Result<Inventory, String> {
        let builder = self.builder.borrow();
        Ok(Inventory {
            generation: builder.generation(),
            records: builder.records().collect(),
        })
    }

    fn publish(
        &mut self,
        generation: Generation,
        deletes: &[Key],
        puts: &[Record],
    ) -> Result<(), PublishError> {
        let tables = self.builder.borrow_mut().apply(generation, deletes, puts);
        let tables = tables.map_err(|refusal| PublishError::Refused(refusal.to_string()))?;
        self.shared.slots[0].publish(tables);
        Ok(())
    }

    fn is_alive(&self) -> bool {
        true
    }
}

impl Bed {
    /// Without tables yet; `extra` are addresses of the node beside those of its NIC ports.
    pub(crate) fn new(extra: &[IpAddr]) -> Self {
        let limits = TableLimits {
            service_ports: 512,
            frontends: 4096,
            backends: 4096,
            ..TableLimits::default()
        };
        // Beside node ports (TP-7), and beside the ports that flows of the node itself have here: masquerading to the
        // address that the node spoke with shows only as another port.
        let steering = Steering::new(1, vec![10_000..=29_999, 32_768..=65_535]);
        let builder = TablesBuilder::new(limits);
        let (drivers, peers) = Nic::ALL
            .map(|nic| port_with_peer(&format!("{nic:?}"), 2 * BURST))
            .into_iter()
            .map(|(port, peer)| (Some(Box::new(port) as Box<dyn Driver>), peer))
            .unzip();
        let page = WorkerCounters::private();
        let counters = page.reader();
        let secret = |n: u64| {
            // As even as a secret's bits: a hash with small factors mixes badly. These are pi's.
            HashKey::from([
                0x243f_6a88_85a3_08d3 ^ n,
                0x1319_8a2e_0370_7344,
                0xa409_3822_299f_31d0,
                0x082e_fa98_ec4e_6c89,
            ])
        };
        let pool = PortPoolConfig {
            ports: steering.source_ports(WorkerIndex(0)),
            destinations: 256,
            blocks: 4096,
            rest: Rest::default(),
            hash_key: secret(1),
        };
        let flows = FlowConfig {
            capacity: 1 << 15,
            timeouts: Timeouts::default(),
            admission: Admission::default(),
            hash_key: secret(3),
        };
        let network = network(extra);
        let worker = Worker::new(
            WorkerParts {
                index: WorkerIndex(0),
                memory: FrameMemory::new(2 * BURST, 2048).unwrap(),
                drivers,
                sides: Sides::new(&SideConfig {
                    flows,
                    snat_ports: pool,
                    fragments: FragmentConfig::default(),
                })
                .unwrap(),
                picker: Picker::new(5, &limits),
                counters: page,
                tables: builder.tables().clone(),
            },
            &network,
        );
        let shared = Rc::new(Shared {
            network,
            steering,
            workers: vec![Mailbox::new(2 * BURST, 2048).unwrap()],
            slots: vec![TableSlot::new()],
            steward: Mailbox::new(2 * BURST, 2048).unwrap(),
            stop: AtomicBool::new(false),
            affinity: Affinity::new(1024).unwrap(),
            options: LookupOptions {
                midstream_pickup: true,
            },
            sleep: false,
        });
        let mut publisher = Publisher::new(Tables {
            builder: Rc::new(RefCell::new(builder)),
            shared: shared.clone(),
        });
        publisher.connect().unwrap();
        Self {
            worker,
            peers,
            shared,
            publisher,
            counters,
            now: Tick::now(),
        }
    }

    /// Makes `records` the desired table; the worker takes it with its next turn.
    pub(crate) fn publish(&mut self, records: &[Record]) {
        self.publisher
            .publish(&records.iter().cloned().collect())
            .unwrap();
        self.turn();
    }

    /// All that the dataplane has, as a control that connects anew is told.
    pub(crate) fn inventory(&mut self) -> Vec<Record> {
        self.publisher.connect().unwrap()
    }

    /// What `from` sends, and everything that leaves for it.
    pub(crate) fn send(&mut self, from: &Station, packet: &Packet) -> Vec<Seen> {
        self.send_frame(from, &packet.frame(from.mac(), from.nic.mac()))
    }

    /// The same, with the frame as it is.
    pub(crate) fn send_frame(&mut self, from: &Station, frame: &[u8]) -> Vec<Seen> {
        assert!(
            self.peers[from.nic as usize].send(frame),
            "the ring takes the frame"
        );
        self.turn();
        let mut seen = Vec::new();
        for nic in Nic::ALL {
            while let Some(frame) = self.peers[nic as usize].receive() {
                assert_eq!(frame[6..12], nic.mac().0, "{nic:?} sends with its own address");
                let packet = Packet::parse(&frame[14..])
                    .unwrap_or_else(|| panic!("what leaves is a packet with a sound header: {frame:02x?}"));
                let to = Mac([frame[0], frame[1], frame[2], frame[3], frame[4], frame[5]]);
                seen.push(Seen { nic, to, packet });
            }
        }
        seen
    }

    fn turn(&mut self) {
        while self.worker.turn(&self.shared, self.now) > 0 {}
        // All neighbours are known, so nobody has anything to ask.
        let asked = self.shared.steward.open(|letter| format!("{:?}", letter.purpose));
        assert_eq!(asked, None, "the steward is asked for nothing");
    }

    /// Lets time pass.
    pub(crate) fn wait(&mut self, seconds: u32) {
        self.pass(seconds * TICKS_PER_SECOND);
    }

    /// Lets half a second pass.
    pub(crate) fn wait_half(&mut self) {
        self.pass(TICKS_PER_SECOND / 2);
    }

    fn pass(&mut self, ticks: u32) {
        self.now = Tick(self.now.0.wrapping_add(ticks));
        // A turn without packets looks at 4,096 flows, a tick's share is bounded too.
        for _ in 0..32 {
            self.worker.turn(&self.shared, self.now);
        }
    }

    /// Packets dropped so far, for whatever reason.
    pub(crate) fn dropped(&self) -> u64 {
        DropReason::ALL
            .iter()
            .map(|reason| self.count(CounterId::dropped(*reason)))
            .sum()
    }

    /// A counter.
    pub(crate) fn count(&self, id: CounterId) -> u64 {
        self.counters.get(WorkerIndex(0), id)
    }
}

/// Interfaces, routes and neighbours of `node1`.
fn network(extra: &[IpAddr]) -> Network {
    let interface = |nic: Nic| Interface {
        name: format!("{nic:?}"),
        mac: nic.mac(),
        mtu: 1500,
        addresses: nic.addresses().iter().map(|a| a.parse().unwrap()).collect(),
        peer_mac: (nic == Nic::Host).then_some(KERNEL),
    };
    let port = |nic: Nic| NicPortIndex(nic as u8);
    let routes = [
        ("0.0.0.0/0", "client"),
        ("10.244.2.0/24", "rtr"),
        ("172.18.2.0/24", "rtr"),
        ("::/0", "client"),
        ("fd00:244:2::/64", "rtr"),
        ("fd00:18:2::/64", "rtr"),
    ];
    let route = |(to, via): (&str, &str)| {
        let (to, via): (IpNet, _) = (to.parse().unwrap(), named(via));
        Route {
            to,
            via: Some(via.address(Family::of(to.addr()))),
            port: port(via.nic),
        }
    };
    let node = PRIMARY.iter().map(|a| ip(a)).chain(extra.iter().copied());
    let network = Network::new(
        Nic::ALL.map(interface).to_vec(),
        routes.map(route).to_vec(),
        node.collect(),
        Some(port(Nic::Host)),
        64,
    );
    let know = |nic: Nic, address: IpAddr, mac: Mac| {
        let hops = network.next_hops();
        let index = hops.insert(port(nic), address).unwrap();
        hops.set(index, Reachability::Reachable(mac));
    };
    PRIMARY
        .iter()
        .for_each(|address| know(Nic::Host, ip(address), KERNEL));
    for station in STATIONS
        .iter()
        .filter(|s| s.nic != Nic::Host && !s.is_behind_router())
    {
        for family in [Family::V4, Family::V6] {
            know(station.nic, station.address(family), station.mac());
        }
    }
    network
}
