//! A gateway to compare: a host with one cable toward clients and one toward pods, whose other ends the generator has.
//! Everything of the gateway runs on its core, the kernel's receive work as well as the dataplane's worker.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process};
use sluice_dataplane::addr::{Mac, Protocol};
use sluice_dataplane::channel::client::Connection;
use sluice_dataplane::channel::record::Record;
use sluice_dataplane::counters::CounterId;
use sluice_dataplane::index::{Generation, ServicePortIndex, WorkerIndex};

use super::cables::{self, Cables, mac};
use super::cpu::Threads;
use super::rules;
use super::sandbox::Host;
use super::world;
use crate::pktgen::ports::{Driver, Ports};
use crate::pktgen::world::World;
use crate::services::{backend, records};

/// Kinds of gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The dataplane with a driver.
    Dataplane(Driver),
    /// That driver alone, which only forwards: what the dataplane can do with it at most.
    Ceiling(Driver),
    /// The kernel with kube-proxy's nftables rules.
    Nftables,
    /// The kernel with kube-proxy's iptables rules (the legacy tables, faster per packet than iptables-nft).
    Iptables,
    /// The kernel, only forwarding: no rules, no connection tracking.
    Forward,
}

impl Kind {
    /// Its name in rows.
    pub fn name(self) -> String {
        match self {
            Self::Dataplane(driver) => driver.name().to_owned(),
            Self::Ceiling(driver) => format!("{}-ceiling", driver.name()),
            Self::Nftables => "nftables".to_owned(),
            Self::Iptables => "iptables".to_owned(),
            Self::Forward => "forward".to_owned(),
        }
    }

    /// Whether it translates.
    pub const fn translates(self) -> bool {
        !matches!(self, Self::Forward | Self::Ceiling(_))
    }

    const fn driver(self) -> Option<Driver> {
        match self {
            Self::Dataplane(driver) | Self::Ceiling(driver) => Some(driver),
            Self::Nftables | Self::Iptables | Self::Forward => None,
        }
    }

    const fn cables(self) -> cables::Kind {
        match self.driver() {
            Some(Driver::Tap) => cables::Kind::Tap,
            Some(Driver::Memif) => cables::Kind::Memif,
            _ => cables::Kind::Veth,
        }
    }
}

/// A gateway, in place and running.
pub struct Gateway {
    /// What it is.
    pub kind: Kind,
    /// Its Services.
    pub world: World,
    /// How long all Services took.
    pub load: Duration,
    host: Host,
    cables: Cables,
    process: Option<Child>,
    control: Option<(Connection, Generation)>,
}

/// The cores of both sides.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Of the generator.
    pub generator: usize,
    /// Of the gateway.
    pub gateway: usize,
}

/// What a gateway has room for.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Flows.
    pub flows: u32,
    /// Whether workers without packets spin instead of waiting.
    pub spin: bool,
}

#[allow(clippy::disallowed_methods, reason = "a comparison measures real time")]
fn clock() -> Instant {
    Instant::now()
}

impl Gateway {
    /// Makes it as the `number`-th, and loads its Services. Errors: what was wanted and what the system said.
    pub fn new(kind: Kind, number: usize, size: Size, cores: Cores) -> io::Result<Self> {
        let cables = Cables {
            kind: kind.cables(),
            number,
        };
        // The other kinds of cables have no end that could be elsewhere.
        let host = match cables.kind {
            cables::Kind::Veth => Host::new(&format!("g{number}"))?,
            cables::Kind::Tap | cables::Kind::Memif => Host::here(),
        };
        cables.lay(&host)?;
        let mut gateway = Self {
            kind,
            world: world(size.services, !kind.translates()),
            load: Duration::ZERO,
            host,
            cables,
            process: None,
            control: None,
        };
        match kind {
            Kind::Dataplane(driver) => gateway.start(driver, size, cores)?,
            Kind::Ceiling(driver) => gateway.start_forwarding(driver, cores)?,
            Kind::Nftables | Kind::Iptables | Kind::Forward => gateway.route(size)?,
        }
        gateway.load = gateway.load_services()?;
        Ok(gateway)
    }

    /// The kernel as the gateway.
    fn route(&self, size: Size) -> io::Result<()> {
        let (clients, pods) = (self.cables.far("c"), self.cables.far("p"));
        self.host.ip(&format!(
            "addr add 198.51.100.1/24 dev {clients}
             addr add 172.18.1.1/24 dev {pods}
             neigh add 198.51.100.2 lladdr {} dev {clients} nud permanent
             neigh add 172.18.1.2 lladdr {} dev {pods} nud permanent
             route add 10.244.128.0/17 via 198.51.100.2
             route add 10.244.0.0/17 via 172.18.1.2",
            mac(1, 2),
            mac(2, 2)
        ))?;
        for (name, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            // As the peers' figures were taken: the kernel need not sum up what it only passes on.
            ("netfilter/nf_conntrack_checksum", "0"),
            (
                "netfilter/nf_conntrack_max",
                &(size.flows * 2 + 65_536).to_string(),
            ),
        ] {
            // A limit of the machine's first namespace cannot be set here; how many flows were opened is measured.
            let _ = self.host.set(name, value);
        }
        for interface in [clients, pods] {
            let _ = self.host.set(&format!("ipv4/conf/{interface}/rp_filter"), "0");
            // A veth has NAPI, and so a thread of its own, only with GRO or an XDP program.
            self.host.run("ethtool", &["-K", &interface, "gro", "on"], "")?;
        }
        Ok(())
    }

    /// The driver alone as the gateway.
    fn start_forwarding(&mut self, driver: Driver, cores: Cores) -> io::Result<()> {
        let mut command = self.host.command(&std::env::current_exe()?);
        command.args(["forward", driver.name()]);
        command.args(["c", "p"].map(|side| match driver {
            Driver::Memif => self.cables.socket(side),
            _ => self.cables.far(side),
        }));
        command.args(["--core", &cores.gateway.to_string()]);
        let log = std::fs::File::create(self.log())?;
        self.process = Some(command.stdin(Stdio::null()).stderr(log).spawn()?);
        self.wait("the driver", |gateway| {
            let said = std::fs::read_to_string(gateway.log())?;
            Ok(said.contains(super::forward::READY).then_some(()))
        })
    }

    /// The dataplane as the gateway.
    fn start(&mut self, driver: Driver, size: Size, cores: Cores) -> io::Result<()> {
        let number = self.cables.number;
        let socket = format!("/run/g{number}.sock");
        let ports: String = [
            ("clients", "c", 1, "198.51.100.1/24"),
            ("pods", "p", 2, "172.18.1.1/24"),
        ]
        .map(|(name, side, net, address)| {
            let memif = match driver {
                Driver::Memif => format!(
                    ", memif: {{socket: {}, role: server, mac: \"{}\", peerMac: \"{}\"}}",
                    self.cables.socket(side),
                    mac(net, 1),
                    mac(net, 2)
                ),
                _ => String::new(),
            };
            format!(
                "- {{name: {name}, driver: {}, interface: {}, addresses: [{address}]{memif}}}\n",
                driver.name(),
                self.cables.far(side)
            )
        })
        .concat();
        let config = format!(
            "node: {{addresses: [198.51.100.1]}}
ports:
{ports}routes:
- {{to: 10.244.128.0/17, via: 198.51.100.2}}
- {{to: 10.244.0.0/17, via: 172.18.1.2}}
workers: {{count: 1, cores: [{}], idle: {}}}
flows: {{capacity: {}}}
channel: {{socket: {socket}}}
",
            cores.gateway,
            if size.spin { "spin" } else { "sleep" },
            size.flows * 4 / 3 + 65_536,
        );
        let file = format!("/run/g{number}.yaml");
        std::fs::write(&file, config)?;
        let mut command = self.host.command(&beside(&std::env::current_exe()?)?);
        command.args(["--config", &file]);
        let log = std::fs::File::create(self.log())?;
        self.process = Some(command.stdin(Stdio::null()).stderr(log).spawn()?);
        let control = self.wait("the dataplane", |_| {
            Ok(Connection::connect_within(&socket, Duration::from_secs(60)).ok())
        })?;
        self.control = Some((control.0, Generation(0)));
        Ok(())
    }

    fn log(&self) -> String {
        format!("/run/g{}.log", self.cables.number)
    }

    /// Waits for what nothing reports, at most 20 s.
    fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&Self) -> io::Result<Option<T>>) -> io::Result<T> {
        let began = clock();
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            let ended = match &mut self.process {
                Some(process) => process.try_wait()?,
                None => None,
            };
            if ended.is_some() || began.elapsed() > Duration::from_secs(20) {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                return Err(io::Error::other(format!("{what} did not come up: {log}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn load_services(&mut self) -> io::Result<Duration> {
        match self.kind {
            Kind::Forward | Kind::Ceiling(_) => Ok(Duration::ZERO),
            Kind::Nftables => self.timed("nft", &["-f", "-"], &rules::nftables(&self.world)),
            Kind::Iptables => self.timed("iptables-legacy-restore", &[], &rules::iptables(&self.world)),
            Kind::Dataplane(_) => {
                let pods = rules::PODS.parse::<IpNet>().map_err(io::Error::other)?;
                let records = records(&self.world, pods, &[Protocol::UDP]);
                self.publish(&[], &records)
            }
        }
    }

    /// Takes an endpoint from a service, or gives it back; how long until that is in force.
    pub fn change(&mut self, service: u32, take: bool) -> io::Result<Duration> {
        let whole = self.world.endpoints.per_service;
        let endpoints = whole - u32::from(take);
        match self.kind {
            Kind::Forward | Kind::Ceiling(_) => Ok(Duration::ZERO),
            Kind::Nftables => {
                let text = rules::nftables_change(&self.world, service, endpoints);
                self.timed("nft", &["-f", "-"], &text)
            }
            Kind::Iptables => {
                let text = rules::iptables_change(&self.world, service, endpoints);
                self.timed("iptables-legacy-restore", &["--noflush"], &text)
            }
            Kind::Dataplane(_) => {
                let record = backend(ServicePortIndex(service), self.world.endpoint(service, whole - 1));
                if take {
                    self.publish(&[record.key()], &[])
                } else {
                    self.publish(&[], &[record])
                }
            }
        }
    }

    fn publish(
        &mut self,
        deletes: &[sluice_dataplane::channel::record::Key],
        puts: &[Record],
    ) -> io::Result<Duration> {
        let Some((control, generation)) = &mut self.control else {
            return Err(io::Error::other("no channel"));
        };
        let began = clock();
        generation.0 += 1;
        control
            .publish(*generation, deletes, puts)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(began.elapsed())
    }

    fn timed(&self, program: &str, arguments: &[&str], input: &str) -> io::Result<Duration> {
        let began = clock();
        self.host.run(program, arguments, input)?;
        Ok(began.elapsed())
    }

    /// Stops its process, so that it takes nothing of the core while another gateway is measured; or lets it go on.
    pub fn pause(&self, pause: bool) -> io::Result<()> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let signal = if pause { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(process), signal)?;
        Ok(())
    }

    /// What the dataplane has dropped so far, by its reasons.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let Some((control, _)) = &self.control else {
            return BTreeMap::new();
        };
        let counters = control.counters();
        let sum = |id: CounterId| {
            let pages = 0..counters.workers();
            pages
                .map(|page| counters.get(WorkerIndex(page as u8), id))
                .sum::<u64>()
        };
        CounterId::all()
            .filter(|id| id.drop_reason().is_some() && sum(*id) > 0)
            .map(|id| (id.to_string(), sum(id)))
            .collect()
    }

    /// Opens the generator's ends, with all receive work of both sides where it belongs. What the gateway's threads are.
    pub fn connect(&self, driver: Driver, cores: Cores) -> io::Result<(Ports, Threads)> {
        let ports = self.cables.open(driver)?;
        let kernel = self.cables.settle(&self.host, cores)?;
        let process = self
            .process
            .as_ref()
            .map(|process| Threads::of_process(process.id()))
            .unwrap_or_default();
        Cables::hurry();
        let softirqs = Threads::named(&[format!("ksoftirqd/{}", cores.gateway)]);
        Ok((ports, process.and(kernel).and(softirqs)))
    }

    /// Its station address toward clients.
    pub fn mac(&self) -> Mac {
        self.cables.mac()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The dataplane's program, beside ours.
fn beside(program: &std::path::Path) -> io::Result<PathBuf> {
    let path = program.with_file_name("sluice-dataplane");
    if path.exists() {
        return Ok(path);
    }
    let advice = "build it as well: cargo build --release -p sluice-dataplane";
    Err(io::Error::other(format!(
        "{}: not there; {advice}",
        path.display()
    )))
}
