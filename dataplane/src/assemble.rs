//! From the config to running parts: frame memory, NIC ports, flows, tables, channel. Opens everything or nothing, and
//! says in one line each what was opened and what memory it took.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::affinity::Affinity;
use crate::announce;
use crate::channel::BindError;
use crate::channel::server::{Server, ServerOptions};
use crate::config::{Config, DriverKind, Idle, Role};
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
use crate::nic::{DriverInfo, FrameMemory, OpenError};
use crate::segment::{self, Pages};
use crate::shared::SharedPorts;
use crate::steering::Steering;
use crate::steward::Steward;
use crate::table_slot::TableSlot;
use crate::tables::{Picker, TableLimits, TablesBuilder};
use crate::tick::Tick;
use crate::worker::{FlowFiles, Shared, SideConfig, Sides, Worker, WorkerParts};

mod ports;

pub(crate) use ports::Queues;
use ports::{open_ports, overhear, shared_maps};

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
        segment::choose(config.memory.pages);
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
        let steering = config.steering();
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
        let longest = queues.iter().map(|(memory, _)| memory.max_packet()).max();
        let mut workers = Vec::new();
        let mut pages = server.take_counters();
        let own_page = pages.pop().unwrap_or_else(WorkerCounters::private);
        for (((index, mut counters), (memory, drivers)), sides) in indices().zip(pages).zip(queues).zip(sides)
        {
            account(config, index, &memory, &sides);
            counters.set(CounterId::LETTERS_LIMIT, config.workers.letters as u64);
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
        say_pages(config);
        let letters = config.workers.letters;
        let mailbox = || Mailbox::new(letters, longest.unwrap_or_default()).map_err(resources("a mailbox"));
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
            maps.keep().map_err(resources(
                "names of programs that outlive the process (shared.folder)",
            ))?;
            let ports = SharedPorts::new(maps, config.flows.timeouts.longest())
                .map_err(resources("maps of shared interfaces"))?;
            if let Some(folder) = &config.shared.folder {
                let [prefixes, ports] = ports.used();
                log::info!(
                    "shared interfaces: kept in {}; {prefixes} address ranges and {ports} ports are known from the process before",
                    folder.display()
                );
            }
            steward.share(ports, overhear(config)?, &shared);
        }
        Ok(Self {
            steward,
            workers,
            shared: Arc::new(shared),
            counters,
        })
    }
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
            ports: steering.source_ports(worker),
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
            small_pages,
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
        if small_pages {
            log::info!(
                "worker {}: {family} flows are in small pages, so packets of many flows cost twice as much: the kernel gives \
                 huge ones for files on a tmpfs since Linux 6.1, as long as there is memory in one piece",
                worker.0
            );
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
    let letters = config.workers.letters;
    let letters_size = (letters * memory.max_packet()) as f64 / MIB;
    log::info!(
        "worker {}: {capacity} flows of each family in up to {table:.1} MiB, {} frames in {frames:.1} MiB, {letters} letters in \
         {letters_size:.1} MiB",
        worker.0,
        memory.capacity()
    );
}

/// A line if memory is not in the pages that it was to be in.
fn say_pages(config: &Config) {
    const MIB: u64 = 1 << 20;
    let lacking = segment::lacking().div_ceil(MIB);
    if lacking > 0 {
        log::info!(
            "{lacking} MiB are not in reserved huge pages, of which too few are left, but in transparent ones; to reserve \
             more, raise vm.nr_hugepages by {}",
            lacking.div_ceil(2)
        );
    }
    if config.memory.pages == Pages::Small {
        log::info!("memory is in small pages, as memory.pages says, so packets of many flows cost more");
    } else if !segment::has_huge_pages() && (config.memory.pages == Pages::Transparent || lacking > 0) {
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
        // A tap that is a link may be bridged: who is behind it is asked, as on any link.
        peer_mac: info
            .peer_mac
            .filter(|_| port.driver != DriverKind::Tap || port.role == Role::Host),
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
