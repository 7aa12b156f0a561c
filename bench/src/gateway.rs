//! A gateway in memory: one worker between a client port and a pod port, one UDP Service, every next hop known.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sluice_dataplane::addr::{Mac, Protocol};
use sluice_dataplane::affinity::Affinity;
use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, NetworkKind, NetworkRecord, Record,
    ServicePortRecord,
};
use sluice_dataplane::conntrack::ports::{PortPoolConfig, Rest};
use sluice_dataplane::conntrack::{Admission, FlowConfig, HashKey, Timeouts};
use sluice_dataplane::counters::{CounterPages, WorkerCounters};
use sluice_dataplane::fragments::FragmentConfig;
use sluice_dataplane::index::{Generation, NicPortIndex, ServicePortIndex, WorkerIndex};
use sluice_dataplane::lookup::LookupOptions;
use sluice_dataplane::mailbox::Mailbox;
use sluice_dataplane::network::{Interface, Network, Route};
use sluice_dataplane::next_hop::Reachability;
use sluice_dataplane::nic::{Driver, FrameMemory};
use sluice_dataplane::steering::Steering;
use sluice_dataplane::table_slot::TableSlot;
use sluice_dataplane::tables::{Picker, TableLimits, TablesBuilder};
use sluice_dataplane::tick::Tick;
use sluice_dataplane::worker::{Shared, SideConfig, Sides, Worker, WorkerParts};

use crate::treadmill::{Handle, Treadmill};

/// Our address toward clients.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The Service.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The Service's port, and its endpoints'.
pub const PORT: u16 = 80;
/// Station address of the client port.
pub const CLIENT_SIDE: Mac = Mac([2, 0, 0, 0, 0, 1]);
const POD_SIDE: Mac = Mac([2, 0, 0, 0, 0, 2]);
const NEIGHBOUR: Mac = Mac([2, 0, 0, 0, 0, 9]);
/// Frames: a prepared round and what the rings of a real port would hold.
const FRAMES: usize = 8_192;

/// A worker and the loading ends of its two ports.
pub struct Gateway {
    /// The worker.
    pub worker: Worker,
    /// What it shares with nobody here.
    pub shared: Shared,
    /// The client port.
    pub client: Handle,
    /// The pod port.
    pub pods: Handle,
    /// The worker's counters.
    pub counters: CounterPages,
}

/// What is on it.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Room for flows.
    pub flows: usize,
    /// Endpoints of the Service.
    pub backends: u16,
    /// Clients count as pods, so that their address is kept (DNAT); else full NAT.
    pub keep_source: bool,
}

impl Gateway {
    /// Builds it. Errors: no memory, or a setup the tables refuse (more than 65,000 endpoints).
    pub fn new(setup: Setup) -> Result<Self, Box<dyn std::error::Error>> {
        let (client_port, client) = Treadmill::new("client", CLIENT_SIDE);
        let (pod_port, pods) = Treadmill::new("pods", POD_SIDE);
        let (worker, shared, counters) = Self::between(setup, Box::new(client_port), Box::new(pod_port))?;
        Ok(Self {
            worker,
            shared,
            client,
            pods,
            counters,
        })
    }

    /// The same between any two NIC ports, toward clients and toward pods. Errors: as `new`.
    pub fn between(
        setup: Setup,
        client_port: Box<dyn Driver>,
        pod_port: Box<dyn Driver>,
    ) -> Result<(Worker, Shared, CounterPages), Box<dyn std::error::Error>> {
        let ranges = vec![1_024..=29_999, 32_768..=u16::MAX];
        let steering = Steering::new(1, ranges.clone());
        let network = network()?;
        let limits = TableLimits::default();
        let mut builder = TablesBuilder::new(limits);
        let records = records(setup);
        let tables = builder.apply(Generation(1), &[], &records)?;
        for record in &records {
            if let Record::Backend(BackendRecord {
                address: std::net::IpAddr::V4(address),
                ..
            }) = record
            {
                know(&network, NicPortIndex(1), *address);
            }
        }
        know(&network, NicPortIndex(0), Ipv4Addr::new(192, 0, 2, 1));
        let hash_key = HashKey::random()?;
        let counters = WorkerCounters::private();
        let reader = counters.reader();
        let worker = Worker::new(WorkerParts {
            index: WorkerIndex(0),
            memory: FrameMemory::new(FRAMES, 2_048)?,
            drivers: vec![Some(client_port), Some(pod_port)],
            sides: Sides::new(&SideConfig {
                flows: FlowConfig {
                    capacity: setup.flows,
                    timeouts: Timeouts::default(),
                    admission: Admission::default(),
                    hash_key,
                },
                snat_ports: PortPoolConfig {
                    ranges,
                    destinations: usize::from(setup.backends) + 1,
                    blocks: setup.flows / 256 + 2 * usize::from(setup.backends) + 16,
                    rest: Rest::default(),
                    hash_key,
                },
                fragments: FragmentConfig::default(),
            })?,
            picker: Picker::new(1, &limits),
            counters,
            tables: Arc::clone(&tables),
        });
        let shared = Shared {
            network,
            steering,
            workers: vec![Mailbox::new(1)?],
            slots: vec![TableSlot::new()],
            steward: Mailbox::new(1)?,
            stop: AtomicBool::new(false),
            affinity: Affinity::new(1)?,
            options: LookupOptions {
                midstream_pickup: true,
            },
            sleep: false,
        };
        Ok((worker, shared, reader))
    }

    /// One turn at `tick`; how many packets.
    pub fn turn(&mut self, tick: Tick) -> usize {
        self.worker.turn(&self.shared, tick)
    }
}

fn network() -> Result<Network, ipnet::AddrParseError> {
    let interface = |name: &str, mac, address: &str| -> Result<Interface, ipnet::AddrParseError> {
        Ok(Interface {
            name: name.into(),
            mac,
            mtu: 1500,
            addresses: vec![address.parse()?],
            peer_mac: None,
        })
    };
    let interfaces = vec![
        interface("client", CLIENT_SIDE, "192.0.2.2/24")?,
        interface("pods", POD_SIDE, "10.244.0.1/16")?,
    ];
    let default = Route {
        to: "0.0.0.0/0".parse()?,
        via: Some(Ipv4Addr::new(192, 0, 2, 1).into()),
        port: NicPortIndex(0),
    };
    Ok(Network::new(
        interfaces,
        vec![default],
        vec![NODE.into()],
        None,
        1 << 17,
    ))
}

fn know(network: &Network, port: NicPortIndex, address: Ipv4Addr) {
    if let Some(index) = network.next_hops().insert(port, address) {
        network.next_hops().set(index, Reachability::Reachable(NEIGHBOUR));
    }
}

fn records(setup: Setup) -> Vec<Record> {
    let service_port = ServicePortIndex(0);
    let mut records = vec![
        Record::ServicePort(ServicePortRecord {
            index: service_port,
            namespace: "bench".into(),
            name: "udp".into(),
            port_name: String::new(),
            protocol: Protocol::UDP,
            algorithm: Algorithm::Random,
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
        }),
        Record::Frontend(FrontendRecord {
            address: CLUSTER_IP.into(),
            protocol: Protocol::UDP,
            port: PORT,
            kind: FrontendKind::ClusterIp,
            service_port,
        }),
    ];
    // A range that clients are in or not decides about SNAT (semantics §3.3).
    let pods = if setup.keep_source {
        ipnet::Ipv4Net::default()
    } else {
        ipnet::Ipv4Net::from(Ipv4Addr::new(10, 244, 0, 2))
    };
    records.push(Record::Network(NetworkRecord {
        kind: NetworkKind::PodRange,
        network: pods.into(),
    }));
    records.extend((0..setup.backends).map(|i| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 1, 0)) + u32::from(i));
        Record::Backend(BackendRecord {
            service_port,
            address: address.into(),
            port: PORT,
            in_cluster_set: true,
            in_local_set: false,
            usable: true,
            serving: true,
            local: false,
        })
    }));
    records
}
