//! A gateway in memory: one worker between a client port and a pod port, Services with endpoints, every next hop known.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sluice_dataplane::addr::{Mac, Protocol};
use sluice_dataplane::affinity::Affinity;
use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, NetworkKind, NetworkRecord, Record,
    ServicePortRecord,
};
use sluice_dataplane::conntrack::persist::BootId;
use sluice_dataplane::conntrack::ports::{PortPoolConfig, Rest, SourcePorts};
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
use sluice_dataplane::worker::{FlowFiles, Shared, SideConfig, Sides, Worker, WorkerParts};

/// Our address toward clients.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The Service.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The Service's port, and its endpoints'.
pub const PORT: u16 = 80;
/// Station address of the client port.
pub const CLIENT_SIDE: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// Station address of the pod port.
pub const POD_SIDE: Mac = Mac([2, 0, 0, 0, 0, 2]);
const NEIGHBOUR: Mac = Mac([2, 0, 0, 0, 0, 9]);
/// Frames: a prepared round and what the rings of a real port would hold.
const FRAMES: usize = 8_192;

/// A worker between two NIC ports.
pub struct Gateway {
    /// The worker.
    pub worker: Worker,
    /// What it shares with nobody here.
    pub shared: Shared,
    /// The worker's counters.
    pub counters: CounterPages,
    /// Bytes of what grows with flows, of the Services' family.
    pub bytes: usize,
}

/// What is on it.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Room for flows.
    pub flows: usize,
    /// Services: one port each.
    pub services: u32,
    /// Endpoints of each.
    pub backends: u16,
    /// Clients count as pods, so that their address is kept (DNAT); else full NAT.
    pub keep_source: bool,
    /// What the Services speak.
    pub protocol: Protocol,
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Flows in files on a tmpfs, as where they are to outlive the process.
    pub files: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            flows: 1_024,
            services: 1,
            backends: 4,
            keep_source: true,
            protocol: Protocol::UDP,
            v6: false,
            files: false,
        }
    }
}

impl Setup {
    /// The cluster IP of a Service.
    pub fn frontend(&self, service: u32) -> IpAddr {
        if self.v6 {
            Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10)) + u128::from(service))
                .into()
        } else {
            Ipv4Addr::from(u32::from(CLUSTER_IP) + service).into()
        }
    }

    /// The address of a Service's endpoint: of a single Service on the link, of many behind nodes of 4,096 pods each.
    pub fn endpoint(&self, service: u32, backend: u32) -> IpAddr {
        let n = service * u32::from(self.backends) + backend;
        match (self.v6, self.services) {
            (false, 1) => Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 1, 0)) + n).into(),
            (false, _) => Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + n).into(),
            (true, 1) => Ipv6Addr::new(0xfd44, 0, 0, 0, 0, 0, 1, n as u16).into(),
            (true, _) => Ipv6Addr::from((0xfd28 << 112) + u128::from(n)).into(),
        }
    }

    const PODS_OF_A_NODE: u32 = 4_096;

    /// The nodes that pods are behind, each with its network.
    fn nodes(&self) -> Vec<(IpAddr, ipnet::IpNet)> {
        if self.services == 1 {
            return Vec::new();
        }
        let pods = self.services * u32::from(self.backends);
        (0..pods.div_ceil(Self::PODS_OF_A_NODE))
            .filter_map(|node| {
                let first = node * Self::PODS_OF_A_NODE;
                let address =
                    self.endpoint(first / u32::from(self.backends), first % u32::from(self.backends));
                let (router, bits) = if self.v6 {
                    (
                        Ipv6Addr::new(0xfd44, 0, 0, 0, 0, 0, 0, 0x100 + node as u16).into(),
                        116,
                    )
                } else {
                    (
                        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 10)) + node).into(),
                        20,
                    )
                };
                Some((router, ipnet::IpNet::new(address, bits).ok()?.trunc()))
            })
            .collect()
    }
}

/// Ports of one worker: toward clients, toward pods.
type Pair = (Box<dyn Driver>, Box<dyn Driver>);

/// Several workers, and what they share.
pub struct Workers {
    /// Each.
    pub workers: Vec<Worker>,
    /// What they share.
    pub shared: Shared,
    /// Their counters.
    pub counters: Vec<CounterPages>,
}

impl Gateway {
    /// Between two NIC ports, toward clients and toward pods. Errors: no memory, or a setup the tables refuse (a Service of
    /// more than 65,000 endpoints).
    pub fn new(
        setup: Setup,
        [client_port, pod_port]: [Box<dyn Driver>; 2],
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let bytes = bytes(&setup)?;
        let (worker, shared, counters) = Self::between(setup, client_port, pod_port)?;
        Ok(Self {
            worker,
            shared,
            counters,
            bytes,
        })
    }

    /// Its parts. Errors: as `new`.
    pub fn between(
        setup: Setup,
        client_port: Box<dyn Driver>,
        pod_port: Box<dyn Driver>,
    ) -> Result<(Worker, Shared, CounterPages), Box<dyn std::error::Error>> {
        let Workers {
            mut workers,
            shared,
            mut counters,
        } = Workers::new(&setup, vec![(client_port, pod_port)])?;
        let one = workers.pop().zip(counters.pop());
        let (worker, counters) = one.ok_or("a worker for one pair of ports")?;
        Ok((worker, shared, counters))
    }

    /// One turn at `tick`; how many packets.
    pub fn turn(&mut self, tick: Tick) -> usize {
        self.worker.turn(&self.shared, tick)
    }
}

impl Workers {
    /// A worker for each pair of ports, all of one gateway. Errors: as `Gateway::new`.
    pub fn new(setup: &Setup, ports: Vec<Pair>) -> Result<Self, Box<dyn std::error::Error>> {
        let steering = Steering::new(ports.len() as u8, RANGES.to_vec());
        let limits = TableLimits::default();
        let tables = TablesBuilder::new(limits).apply(Generation(1), &[], &records(setup))?;
        let mailboxes =
            || (0..ports.len()).map(|_| Mailbox::new(if ports.len() == 1 { 1 } else { LETTERS }, LETTER));
        let shared = Shared {
            network: network(setup)?,
            workers: mailboxes().collect::<Result<_, _>>()?,
            slots: ports.iter().map(|_| TableSlot::new()).collect(),
            steward: Mailbox::new(1, LETTER)?,
            stop: AtomicBool::new(false),
            affinity: Affinity::new(1)?,
            options: LookupOptions {
                midstream_pickup: true,
            },
            sleep: false,
            steering,
        };
        let (mut workers, mut counters) = (Vec::new(), Vec::new());
        for (index, (client_port, pod_port)) in ports.into_iter().enumerate() {
            let index = WorkerIndex(index as u8);
            let page = WorkerCounters::private();
            counters.push(page.reader());
            workers.push(Worker::new(
                WorkerParts {
                    index,
                    memory: FrameMemory::new(FRAMES, LETTER)?,
                    drivers: vec![Some(client_port), Some(pod_port)],
                    sides: remembered(setup, &shared, index)?,
                    picker: Picker::new(u64::from(index.0) + 1, &limits),
                    counters: page,
                    tables: Arc::clone(&tables),
                },
                &shared.network,
            ));
        }
        Ok(Self {
            workers,
            shared,
            counters,
        })
    }
}

/// Source ports: all but those of node ports.
const RANGES: [std::ops::RangeInclusive<u16>; 2] = [1_024..=29_999, 32_768..=u16::MAX];

/// The tmpfs that every machine has (shm_overview(7)).
const TMPFS: &str = "/dev/shm";

/// Packets under way to a worker that has fellows.
const LETTERS: usize = 1_024;

/// Bytes of a frame, and so of a letter.
const LETTER: usize = 2_048;

/// What a worker remembers. Its files have no name any more as soon as they are mapped.
fn remembered(setup: &Setup, shared: &Shared, worker: WorkerIndex) -> std::io::Result<Sides> {
    let config = sides(setup, shared.steering.source_ports(worker))?;
    if !setup.files {
        return Sides::new(&config);
    }
    let folder = tempfile::tempdir_in(TMPFS)?;
    let files = FlowFiles {
        folder: folder.path(),
        worker,
        workers: shared.workers.len() as u8,
        boot: BootId::current()?,
    };
    Sides::adopt(&config, &files, &shared.network, Tick(0)).map(|(sides, _)| sides)
}

fn sides(setup: &Setup, ports: SourcePorts) -> std::io::Result<SideConfig> {
    let hash_key = HashKey::random()?;
    let endpoints = setup.services as usize * usize::from(setup.backends);
    Ok(SideConfig {
        flows: FlowConfig {
            capacity: setup.flows,
            timeouts: Timeouts::default(),
            admission: Admission::default(),
            hash_key,
        },
        snat_ports: PortPoolConfig {
            ports,
            destinations: endpoints + 1,
            blocks: setup.flows / 256 + 2 * endpoints + 16,
            rest: Rest::default(),
            hash_key,
        },
        fragments: FragmentConfig::default(),
    })
}

/// Bytes of what grows with flows, of the Services' family.
fn bytes(setup: &Setup) -> std::io::Result<usize> {
    let Sides { v4, v6 } = Sides::new(&sides(setup, SourcePorts::all(RANGES.to_vec()))?)?;
    let (flows, ports) = if setup.v6 {
        (v6.tracked.flows.bytes(), v6.tracked.snat_ports.bytes())
    } else {
        (v4.tracked.flows.bytes(), v4.tracked.snat_ports.bytes())
    };
    Ok(flows + if setup.keep_source { 0 } else { ports })
}

fn network(setup: &Setup) -> Result<Network, ipnet::AddrParseError> {
    let interface = |name: &str, mac, addresses: [&str; 2]| -> Result<Interface, ipnet::AddrParseError> {
        let addresses: Result<_, _> = addresses.iter().map(|address| address.parse()).collect();
        Ok(Interface {
            name: name.into(),
            mac,
            mtu: 1500,
            addresses: addresses?,
            peer_mac: None,
        })
    };
    let interfaces = vec![
        interface("client", CLIENT_SIDE, ["192.0.2.2/24", "fd02::2/64"])?,
        interface("pods", POD_SIDE, ["10.244.0.1/16", "fd44::1/64"])?,
    ];
    let [client_v4, client_v6]: [IpAddr; 2] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 1).into(),
    ];
    let route = |to, via, port| Route {
        to,
        via: Some(via),
        port: NicPortIndex(port),
    };
    let mut routes = vec![
        route("0.0.0.0/0".parse()?, client_v4, 0),
        route("::/0".parse()?, client_v6, 0),
    ];
    let nodes = setup.nodes();
    routes.extend(nodes.iter().map(|&(router, pods)| route(pods, router, 1)));
    let own = vec![
        NODE.into(),
        IpAddr::from(Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 2)),
    ];
    let network = Network::new(interfaces, routes, own, None, 1 << 17);
    know(&network, NicPortIndex(0), client_v4);
    know(&network, NicPortIndex(0), client_v6);
    nodes
        .iter()
        .for_each(|&(router, _)| know(&network, NicPortIndex(1), router));
    if setup.services == 1 {
        for backend in 0..u32::from(setup.backends) {
            know(&network, NicPortIndex(1), setup.endpoint(0, backend));
        }
    }
    Ok(network)
}

fn know(network: &Network, port: NicPortIndex, address: IpAddr) {
    if let Some(index) = network.next_hops().insert(port, address) {
        network.next_hops().set(index, Reachability::Reachable(NEIGHBOUR));
    }
}

fn records(setup: &Setup) -> Vec<Record> {
    // A range that clients are in or not decides about SNAT (semantics §3.3).
    let nobody: [ipnet::IpNet; 2] = [
        ipnet::Ipv4Net::from(Ipv4Addr::new(10, 244, 0, 2)).into(),
        ipnet::Ipv6Net::from(Ipv6Addr::new(0xfd44, 0, 0, 0, 0, 0, 0, 2)).into(),
    ];
    let everybody: [ipnet::IpNet; 2] = [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
    let pods = if setup.keep_source { everybody } else { nobody };
    let mut records: Vec<Record> = pods
        .map(|network| {
            Record::Network(NetworkRecord {
                kind: NetworkKind::PodRange,
                network,
            })
        })
        .into();
    records.extend((0..setup.services).flat_map(|service| service_records(setup, service)));
    records
}

fn service_records(setup: &Setup, service: u32) -> Vec<Record> {
    let service_port = ServicePortIndex(service);
    let mut records = vec![
        Record::ServicePort(ServicePortRecord {
            index: service_port,
            namespace: "bench".into(),
            name: format!("s{service:05}"),
            port_name: String::new(),
            protocol: setup.protocol,
            algorithm: Algorithm::Maglev,
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
        }),
        Record::Frontend(FrontendRecord {
            address: setup.frontend(service),
            protocol: setup.protocol,
            port: PORT,
            kind: FrontendKind::ClusterIp,
            service_port,
        }),
    ];
    records.extend((0..u32::from(setup.backends)).map(|backend| {
        Record::Backend(BackendRecord {
            service_port,
            address: setup.endpoint(service, backend),
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
