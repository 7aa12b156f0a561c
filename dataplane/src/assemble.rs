//! From the config to running parts: frame memory, NIC ports, flows, tables, channel. Opens everything or nothing, and
//! says in one line each what was opened and what memory it took.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::IpNet;

use crate::affinity::Affinity;
use crate::announce;
use crate::channel::BindError;
use crate::channel::server::{Server, ServerOptions};
use crate::config::{self, Config, DriverKind, Idle, MemifMode, MemifRole, Mode, Role};
use crate::conntrack::persist::{Adopted, BootId};
use crate::conntrack::ports::{PortPoolConfig, Rest};
use crate::conntrack::{Admission, FlowConfig, HashKey};
use crate::counters::{CounterId, CounterPages, WorkerCounters};
use crate::fragments::FragmentConfig;
use crate::index::{NicPortIndex, WorkerIndex};
use crate::lookup::LookupOptions;
use crate::mailbox::Mailbox;
use crate::neighbours::Pace;
use crate::network::{Interface, Network, Route};
use crate::nic::fanout::Fanout;
use crate::nic::memif::{self, MemifSpec};
use crate::nic::netmap::name::PortName;
use crate::nic::open::{self, DriverSpec, PortSpec, ZeroCopy};
use crate::nic::overhear::Overhear;
use crate::nic::pcap::PcapSpec;
use crate::nic::xdp_shared::SharedMaps;
use crate::nic::xdp_socket::Umem;
use crate::nic::{Driver, DriverInfo, FrameMemory, OpenError, vlan};
use crate::segment;
use crate::shared::SharedPorts;
use crate::steering::Steering;
use crate::steward::Steward;
use crate::table_slot::TableSlot;
use crate::tables::{Picker, TableLimits, TablesBuilder};
use crate::tick::Tick;
use crate::worker::{FlowFiles, Shared, SideConfig, Sides, Worker, WorkerParts};

/// A tap's MTU where there is no other port whose packets it must take: Ethernet's.
const TAP_MTU: usize = 1_500;

/// Letters a worker or the steward can have waiting: a few bursts; each place costs 9 KiB.
const MAILBOX: usize = 256;

/// What every link must carry in one packet (RFC 8200 §5).
const IPV6_MTU: usize = 1_280;

/// Blocks of SNAT ports for each destination the config allows: one that is always there, and half of one on average
/// for destinations with many flows.
const BLOCKS_PER_DESTINATION: usize = 2;

/// A dataplane ready to run.
pub struct Dataplane {
    /// The non-packet thread's part.
    pub steward: Steward,
    /// One for each packet thread.
    pub workers: Vec<Worker>,
    /// What they share.
    pub shared: Arc<Shared>,
    /// Everybody's counters.
    pub counters: CounterPages,
}

/// Why the dataplane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A NIC port.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The channel.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A NIC port with an IPv6 address that cannot carry every IPv6 packet.
    #[error(
        "NIC port {port}: its MTU of {mtu} is too small for IPv6; raise it to {IPV6_MTU} or take its IPv6 addresses away"
    )]
    Mtu {
        /// Its name.
        port: String,
        /// Bytes.
        mtu: usize,
    },
    /// A shared interface, and source ports that the kernel uses, too.
    #[error(
        "snat.ports: {}-{} has ports that this host's own connections use ({}-{}), whose replies a shared interface could not tell \
         apart; set net.ipv4.ip_local_port_range to others, or give snat.ports others",
        snat.start(), snat.end(), local.start(), local.end()
    )]
    LocalPorts {
        /// Of the config.
        snat: RangeInclusive<u16>,
        /// The kernel's.
        local: RangeInclusive<u16>,
    },
    /// Memory or file descriptors.
    #[error("{what}: {source}; lower the capacities in the config or raise the process's limits")]
    Resources {
        /// What could not be had.
        what: String,
        /// Why.
        source: io::Error,
    },
}

fn resources(what: &str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Resources {
        what: what.to_owned(),
        source,
    }
}

impl Dataplane {
    /// Opens what `config` describes. What was opened before an error is closed again.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        // The channel first: another dataplane on the same socket must be noticed before a NIC port is touched.
        let options = ServerOptions {
            // The steward counts, too: its page is the last.
            workers: usize::from(config.workers.count) + 1,
            ..ServerOptions::default()
        };
        let mut server = Server::bind(&config.channel.socket, options)?;
        let limits = TableLimits {
            service_ports: config.tables.service_ports as u32,
            frontends: config.tables.frontends as u32,
            backends: config.tables.backends as u32,
            ..TableLimits::default()
        };
        let steering = Steering::new(config.workers.count, snat_ports(config));
        let indices = || (0..config.workers.count).map(WorkerIndex);
        let maps = shared_maps(config)?;
        let mut queues: Vec<Queues> = indices()
            .map(|index| open_ports(config, index, maps.as_ref()))
            .collect::<Result<_, _>>()?;
        announce::ports(config, &queues, &steering);
        // Worker 0 has a queue of every NIC port.
        let drivers = queues
            .iter()
            .take(1)
            .flat_map(|(_, drivers)| drivers.iter().flatten());
        let infos: Vec<DriverInfo> = drivers.map(|driver| driver.info().clone()).collect();
        let open = queues
            .iter_mut()
            .flat_map(|(_, drivers)| drivers.iter_mut().flatten());
        let transmit_drops = open.filter_map(|driver| driver.transmit_drops()).collect();
        let network = network(config, &infos)?;
        let sides: Vec<Sides> = indices()
            .map(|index| open_sides(config, &steering, &network, index))
            .collect::<Result<_, _>>()?;
        let builder =
            TablesBuilder::new(limits).remembering(sides.iter().flat_map(|s| s.addressed(&network)));
        let mut workers = Vec::new();
        let mut pages = server.take_counters();
        let own_page = pages.pop().unwrap_or_else(WorkerCounters::private);
        for (((index, mut counters), (memory, drivers)), sides) in indices().zip(pages).zip(queues).zip(sides)
        {
            account(config, index, &memory, &sides);
            counters.set(CounterId::FLOWS_LIMIT, config.flows.capacity as u64);
            counters.set(
                CounterId::SNAT_PORTS_LIMIT,
                sides.v4.tracked.snat_ports.ports_per_destination() as u64,
            );
            // The standard library's own source of unpredictable keys.
            let seed = RandomState::new().build_hasher().finish();
            workers.push(Worker::new(
                WorkerParts {
                    index,
                    memory,
                    drivers,
                    sides,
                    picker: Picker::new(seed, &limits),
                    counters,
                    tables: Arc::clone(builder.tables()),
                },
                &network,
            ));
        }
        let mailbox = || Mailbox::new(MAILBOX).map_err(resources("a mailbox"));
        let shared = Shared {
            network,
            steering,
            workers: workers.iter().map(|_| mailbox()).collect::<Result<_, _>>()?,
            slots: workers.iter().map(|_| TableSlot::new()).collect(),
            steward: mailbox()?,
            stop: AtomicBool::new(false),
            affinity: Affinity::new(config.affinity.clients)
                .map_err(resources("memory of clients' endpoints"))?,
            options: LookupOptions {
                midstream_pickup: config.flows.midstream_pickup,
            },
            sleep: config.workers.idle == Idle::Sleep,
        };
        let counters = server.counter_pages();
        let probes = Duration::from_millis(config.neighbours.probe_millis.into());
        let pace = Pace::new(probes, config.flows.timeouts.longest());
        let mut steward = Steward::new(server, builder, own_page, pace);
        steward.refresh(transmit_drops);
        if let Some(maps) = maps {
            steward.share(SharedPorts::new(maps), overhear(config)?, &shared);
        }
        Ok(Self {
            steward,
            workers,
            shared: Arc::new(shared),
            counters,
        })
    }
}

/// The maps of shared interfaces, if there are any.
///
/// They hold what two generations of full tables mean, whatever is in them: the tables' limits are reached first.
fn shared_maps(config: &Config) -> Result<Option<Arc<SharedMaps>>, StartError> {
    if config.ports.iter().all(|port| port.mode != Mode::Shared) {
        return Ok(None);
    }
    check_local_ports(config)?;
    let own = config.node.addresses.len() + config.ports.iter().map(|p| p.addresses.len() + 1).sum::<usize>();
    let frontends = config.tables.frontends as u32;
    let addresses = frontends
        .saturating_add(config.tables.backends as u32)
        .saturating_add(own as u32);
    let ports = frontends.saturating_mul(own as u32).saturating_mul(2);
    let maps = SharedMaps::new(
        addresses.saturating_mul(2).saturating_add(MAX_NETWORKS),
        ports,
        snat_ports(config),
    );
    let maps = maps.map_err(resources("maps of shared interfaces (CAP_BPF, CAP_NET_ADMIN)"))?;
    Ok(Some(Arc::new(maps)))
}

/// Networks with a meaning, of two generations: a cluster has a handful.
const MAX_NETWORKS: u32 = 4_096;

/// The kernel's own connections must not have ports that SNAT has: replies to them would be taken for Services'.
fn check_local_ports(config: &Config) -> Result<(), StartError> {
    let file = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(file).map_err(resources(file))?;
    let mut numbers = text.split_whitespace().map_while(|n| n.parse::<u16>().ok());
    let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else {
        return Ok(());
    };
    let clash = config
        .snat
        .ports
        .iter()
        .find(|r| *r.0.start() <= last && first <= *r.0.end());
    clash.map_or(Ok(()), |range| {
        Err(StartError::LocalPorts {
            snat: range.0.clone(),
            local: first..=last,
        })
    })
}

/// What the kernel hears on each shared interface.
fn overhear(config: &Config) -> Result<Vec<(NicPortIndex, Overhear)>, StartError> {
    let ports = config
        .ports
        .iter()
        .enumerate()
        .filter(|(_, p)| p.mode == Mode::Shared);
    let opened = ports.map(|(i, port)| {
        let socket = Overhear::new(&port.interface).map_err(resources("a packet socket"))?;
        Ok((NicPortIndex(i as u8), socket))
    });
    opened.collect()
}

/// A worker's frame memory, and its queue of each NIC port that has one for it.
pub(crate) type Queues = (FrameMemory, Vec<Option<Box<dyn Driver>>>);

/// A worker's frame memory and its queue of every NIC port that has one for it.
fn open_ports(
    config: &Config,
    worker: WorkerIndex,
    maps: Option<&Arc<SharedMaps>>,
) -> Result<Queues, StartError> {
    let mut memory =
        FrameMemory::new(config.frames.count, config.frames.size).map_err(resources("frame memory"))?;
    let mut umem: Option<Umem> = None;
    let mut drivers: Vec<Option<Box<dyn Driver>>> = config.ports.iter().map(|_| None).collect();
    // Taps last: what comes by any other port must fit into them.
    let (taps, others): (Vec<_>, Vec<_>) =
        (config.ports.iter().enumerate()).partition(|(_, port)| port.driver == DriverKind::Tap);
    let mut mtu = 0;
    for (i, port) in others.into_iter().chain(taps) {
        let same = |(_, p): &(usize, &config::NicPort)| p.interface == port.interface;
        let sharing: Vec<_> = config.ports.iter().enumerate().filter(same).collect();
        // What has one queue is worker 0's. An interface with VLANs is opened with its first port.
        let elsewhere = worker.0 > 0 && has_one_queue(port);
        if elsewhere || sharing.first().is_some_and(|(first, _)| *first < i) {
            continue;
        }
        let driver = open::open(&spec(config, port, worker, mtu, maps), &mut memory, &mut umem)?;
        mtu = mtu.max(driver.info().mtu);
        if sharing.len() == 1 && port.vlan.is_none() {
            drivers[i] = Some(driver);
            continue;
        }
        let vlans: Vec<_> = sharing.iter().map(|(_, p)| p.vlan.unwrap_or(0)).collect();
        let shared = vlan::share(driver, &vlans).map_err(resources("file descriptors"))?;
        for ((place, _), driver) in sharing.into_iter().zip(shared) {
            drivers[place] = Some(driver);
        }
    }
    Ok((memory, drivers))
}

/// Files, and all netmap ports but those of an interface that leave open which ring pair.
fn has_one_queue(port: &config::NicPort) -> bool {
    match port.driver {
        DriverKind::Pcap => true,
        DriverKind::Netmap => !PortName::parse(&port.interface).is_ok_and(|name| name.has_queues()),
        DriverKind::AfXdp | DriverKind::AfPacket | DriverKind::Memif | DriverKind::Tap => false,
    }
}

/// `mtu`: the largest of the ports opened before it.
fn spec(
    config: &Config,
    port: &config::NicPort,
    worker: WorkerIndex,
    mtu: usize,
    maps: Option<&Arc<SharedMaps>>,
) -> PortSpec {
    let driver = match port.driver {
        DriverKind::AfXdp => DriverSpec::AfXdp {
            attach: port.attach,
            zero_copy: ZeroCopy::Auto,
            shared: maps.filter(|_| port.mode == Mode::Shared).cloned(),
        },
        DriverKind::AfPacket => DriverSpec::AfPacket {
            fanout: (config.workers.count > 1).then(|| fanout(config, port)),
        },
        DriverKind::Memif => DriverSpec::Memif(memif_spec(config, port)),
        DriverKind::Netmap => DriverSpec::Netmap,
        DriverKind::Pcap => DriverSpec::Pcap(pcap_spec(port)),
        DriverKind::Tap => DriverSpec::Tap {
            mtu: if mtu == 0 { TAP_MTU } else { mtu },
            queues: config.workers.count > 1,
        },
    };
    PortSpec {
        queue: u32::from(worker.0),
        ring_size: port.ring_size,
        complete_checksums: port.complete_checksums,
        offloads: port.offloads,
        ..PortSpec::new(&port.name, &port.interface, driver)
    }
}

fn pcap_spec(port: &config::NicPort) -> PcapSpec {
    // The config has been checked: a pcap port has these.
    let pcap = port.pcap.clone().unwrap_or_default();
    PcapSpec {
        read: pcap.read,
        write: pcap.write,
        recorded_pace: pcap.pace == config::Pace::Recorded,
        mac: pcap.mac.map(|station| station.0),
        peer_mac: pcap.peer_mac.map(|station| station.0),
    }
}

fn memif_spec(config: &Config, port: &config::NicPort) -> MemifSpec {
    // The config has been checked: a memif port has these.
    let memif = port.memif.clone().unwrap_or_default();
    MemifSpec {
        socket: memif.socket,
        role: match memif.role {
            MemifRole::Server => memif::Role::Server,
            MemifRole::Client => memif::Role::Client,
        },
        id: memif.id,
        secret: memif.secret,
        queues: u16::from(config.workers.count),
        buffer_size: memif.buffer_size,
        interrupts: memif.mode == MemifMode::Interrupt,
        mtu: memif.mtu,
        mac: memif.mac.map(|station| station.0),
        peer_mac: memif.peer_mac.map(|station| station.0),
    }
}

/// How a port's sockets share its packets. A group has one interface, and its number is the network namespace's: so each
/// port its own, counted from one that is likely to be no other process's.
fn fanout(config: &Config, port: &config::NicPort) -> Fanout {
    let first = (rustix::process::getpid().as_raw_nonzero().get() as u16).wrapping_mul(256);
    let nth = config
        .ports
        .iter()
        .position(|p| p.interface == port.interface)
        .unwrap_or(0);
    // Those that are ours (`Network::is_own`).
    let on_ports = config.ports.iter().flat_map(|port| &port.addresses);
    let mut own: Vec<IpAddr> = on_ports
        .map(IpNet::addr)
        .chain(config.node.addresses.clone())
        .collect();
    own.sort_unstable();
    own.dedup();
    Fanout {
        group: first.wrapping_add(nth as u16),
        workers: config.workers.count,
        own,
        ports: snat_ports(config),
    }
}

fn snat_ports(config: &Config) -> Vec<RangeInclusive<u16>> {
    config.snat.ports.iter().map(|range| range.0.clone()).collect()
}

fn open_sides(
    config: &Config,
    steering: &Steering,
    network: &Network,
    worker: WorkerIndex,
) -> Result<Sides, StartError> {
    let random = || HashKey::random().map_err(resources("random numbers"));
    let sides = SideConfig {
        flows: FlowConfig {
            capacity: config.flows.capacity,
            timeouts: config.flows.timeouts,
            admission: Admission {
                embryonic_percent: config.flows.embryonic_percent,
                per_second: config.flows.new_per_second,
            },
            hash_key: random()?,
        },
        snat_ports: PortPoolConfig {
            ranges: steering.slice(worker),
            destinations: config.snat.destinations,
            blocks: config.snat.destinations.saturating_mul(BLOCKS_PER_DESTINATION),
            rest: Rest {
                period: config.snat.rest_period,
                ports: config.snat.resting_ports,
            },
            hash_key: random()?,
        },
        fragments: FragmentConfig {
            datagrams: config.fragments.datagrams,
            held: config.fragments.held,
            frame_size: config.frames.size,
        },
    };
    let Some(folder) = &config.flows.folder else {
        return Sides::new(&sides).map_err(resources("memory for flows, source ports and fragments"));
    };
    let what = || format!("the flow files of worker {} in {}", worker.0, folder.display());
    let failed = |source| StartError::Resources { what: what(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let files = FlowFiles {
        folder,
        worker,
        workers: config.workers.count,
        boot: BootId::current().map_err(failed)?,
    };
    let (sides, adopted) = Sides::adopt(&sides, &files, network, Tick::now()).map_err(failed)?;
    for (
        family,
        Adopted {
            kept,
            discarded,
            refused,
        },
    ) in ["IPv4", "IPv6"].into_iter().zip(adopted)
    {
        match refused {
            Some(refused) => log::info!("worker {}: no {family} flows to take over: {refused}", worker.0),
            None => log::info!(
                "worker {}: {kept} {family} flows taken over, {discarded} not sound",
                worker.0
            ),
        }
    }
    Ok(sides)
}

/// One line per worker: what its capacities cost.
fn account(config: &Config, worker: WorkerIndex, memory: &FrameMemory, sides: &Sides) {
    const MIB: f64 = 1_048_576.0;
    let frames = (memory.capacity() * memory.chunk_size()) as f64 / MIB;
    let table = sides.bytes() as f64 / MIB;
    let capacity = config.flows.capacity;
    log::info!(
        "worker {}: {capacity} flows of each family in up to {table:.1} MiB, {} frames in {frames:.1} MiB",
        worker.0,
        memory.capacity()
    );
    if worker.0 == 0 && !segment::has_huge_pages() {
        log::info!(
            "memory is in small pages, so packets of many flows cost more: this machine gives no transparent huge pages; \
             to allow them, write \"madvise\" into {}",
            segment::HUGE_PAGES
        );
    }
}

fn network(config: &Config, infos: &[DriverInfo]) -> Result<Network, StartError> {
    for (port, info) in config.ports.iter().zip(infos) {
        let ipv6 = port.addresses.iter().any(|a| a.addr().is_ipv6());
        if ipv6 && info.mtu < IPV6_MTU {
            return Err(StartError::Mtu {
                port: port.name.clone(),
                mtu: info.mtu,
            });
        }
    }
    let interfaces = config.ports.iter().zip(infos).map(|(port, info)| Interface {
        name: port.name.clone(),
        mac: info.mac,
        mtu: info.mtu,
        addresses: port.addresses.clone(),
        peer_mac: info.peer_mac,
    });
    let routes = config.routes.iter().filter_map(|route| {
        let port = config.port_of(route)?;
        Some(Route {
            to: route.to,
            via: Some(route.via),
            port: NicPortIndex(port as u8),
        })
    });
    let host = config
        .ports
        .iter()
        .position(|p| p.role == Role::Host)
        .map(|i| NicPortIndex(i as u8));
    Ok(Network::new(
        interfaces.collect(),
        routes.collect(),
        config.node.addresses.clone(),
        host,
        config.neighbours.capacity,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_netmap_ports_of_an_interface_have_a_ring_pair_for_every_worker() {
        let port = |interface: &str| {
            let text = format!("{{name: p0, driver: netmap, interface: \"{interface}\"}}");
            serde_saphyr::from_str::<config::NicPort>(&text).unwrap()
        };
        for one in ["netmap:eth0-0", "netmap:eth0^", "vale0:p", "netmap:x{1"] {
            assert!(has_one_queue(&port(one)), "{one}");
        }
        assert!(!has_one_queue(&port("eth0")) && !has_one_queue(&port("netmap:eth0")));
    }

    #[test]
    fn every_af_packet_port_has_a_fanout_group_of_its_own_for_all_workers() {
        let text = "
node: {addresses: [172.18.0.2]}
ports:
- {name: client0, driver: af_packet, interface: client0}
- {name: pods0, driver: af_packet, interface: pods0}
workers: {count: 2}
channel: {socket: /run/sluice/dataplane.sock}
";
        let config = Config::parse(text, std::path::Path::new("gateway.yaml")).unwrap();
        let group = |port: usize, worker| {
            let spec = spec(&config, &config.ports[port], WorkerIndex(worker), 0, None);
            match spec.driver {
                DriverSpec::AfPacket { fanout } => fanout.unwrap().group,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(group(0, 0), group(0, 1));
        assert_ne!(group(0, 0), group(1, 0));
    }
}
