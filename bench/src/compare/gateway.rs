//! A gateway to compare: a host with one cable toward clients and one toward pods, whose other ends the generator has.
//!
//! ```text
//! generator (our namespace, one core)        gateway (its namespace, another core)
//!   cN  198.51.100.2 ──────────────────── gNc  198.51.100.1   route 10.244.128.0/17
//!   pN  172.18.1.2   ──────────────────── gNp  172.18.1.1     route 10.244.0.0/17
//! ```
//! Everything of the gateway runs on its core: the kernel's receive work by NAPI threads of its interfaces that are pinned
//! there, as is the dataplane's worker; the generator's likewise on its own. Interfaces have one queue.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ipnet::Ipv4Net;
use rustix::process::{Pid, Signal, kill_process};
use sluice_dataplane::addr::{Mac, Protocol};
use sluice_dataplane::channel::client::Connection;
use sluice_dataplane::channel::record::Record;
use sluice_dataplane::counters::CounterId;
use sluice_dataplane::index::{Generation, ServicePortIndex, WorkerIndex};

use super::cpu::Threads;
use super::rules;
use super::sandbox::{Host, run};
use super::world;
use crate::pktgen::plan::Driver;
use crate::pktgen::ports::Ports;
use crate::pktgen::world::World;
use crate::services::{backend, records};

/// Kinds of gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// The dataplane on AF_XDP sockets.
    AfXdp,
    /// The dataplane on AF_PACKET rings.
    AfPacket,
    /// The kernel with kube-proxy's nftables rules.
    Nftables,
    /// The kernel with kube-proxy's iptables rules (the legacy tables, faster per packet than iptables-nft).
    Iptables,
    /// The kernel, only forwarding: no rules, no connection tracking.
    Forward,
    /// AF_XDP in copy mode, only forwarding: what our driver can do at most on these cables.
    Ceiling,
}

impl Kind {
    /// Its name in rows.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// Whether it translates.
    pub const fn translates(self) -> bool {
        !matches!(self, Self::Forward | Self::Ceiling)
    }

    const fn is_process(self) -> bool {
        matches!(self, Self::AfXdp | Self::AfPacket | Self::Ceiling)
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
    number: usize,
    process: Option<Child>,
    control: Option<(Connection, Generation)>,
}

/// Niceness of wires, gateways and generator.
const WIRE: i32 = -16;

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
        let host = Host::new(&format!("g{number}"))?;
        for (near, far, net) in [("c", "c", 1), ("p", "p", 2)] {
            let (ours, theirs) = (format!("{near}{number}"), format!("g{number}{far}"));
            let (our_mac, their_mac) = (mac(net, 2), mac(net, 1));
            let words = format!(
                "link add {ours} address {our_mac} numrxqueues 1 numtxqueues 1 type veth peer name {theirs} \
                 address {their_mac} netns {} numrxqueues 1 numtxqueues 1",
                host.0
            );
            run("ip", &words.split_whitespace().collect::<Vec<_>>())?;
            // A veth hands packets to its peer's NAPI only if it segments nothing itself (veth_skb_is_eligible_for_gro).
            run("ethtool", &["-K", &ours, "tso", "off"])?;
            host.run("ethtool", &["-K", &theirs, "tso", "off"], "")?;
            run("ip", &["link", "set", &ours, "up"])?;
            host.ip(&format!("link set {theirs} up"))?;
        }
        let mut gateway = Self {
            kind,
            world: world(size.services, !kind.translates()),
            load: Duration::ZERO,
            host,
            number,
            process: None,
            control: None,
        };
        if kind.is_process() {
            gateway.start(size, cores)?;
        } else {
            gateway.route(size)?;
        }
        gateway.load = gateway.load_services()?;
        Ok(gateway)
    }

    fn interface(&self, side: &str) -> String {
        format!("g{}{side}", self.number)
    }

    /// The kernel as the gateway.
    fn route(&self, size: Size) -> io::Result<()> {
        let (clients, pods) = (self.interface("c"), self.interface("p"));
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

    /// A process as the gateway.
    fn start(&mut self, size: Size, cores: Cores) -> io::Result<()> {
        let program = std::env::current_exe()?;
        let log = std::fs::File::create(format!("/run/g{}.log", self.number))?;
        if self.kind == Kind::Ceiling {
            let mut command = self.host.command(&program);
            command.args(["forward", &self.interface("c"), &self.interface("p")]);
            command.args(["--core", &cores.gateway.to_string()]);
            self.process = Some(command.stdin(Stdio::null()).stderr(log).spawn()?);
            // Its sockets are there when the program is attached; nothing else tells.
            return self.wait("its sockets", |gateway| {
                let shown = gateway
                    .host
                    .run("ip", &["-d", "link", "show", &gateway.interface("p")], "")?;
                Ok(shown.contains("xdp").then_some(()))
            });
        }
        let interfaces = [self.interface("c"), self.interface("p")];
        let driver = if self.kind == Kind::AfXdp {
            "af_xdp"
        } else {
            "af_packet"
        };
        let socket = format!("/run/g{}.sock", self.number);
        let config = format!(
            "node: {{addresses: [198.51.100.1]}}
ports:
- {{name: clients, driver: {driver}, interface: {}, addresses: [198.51.100.1/24]}}
- {{name: pods, driver: {driver}, interface: {}, addresses: [172.18.1.1/24]}}
routes:
- {{to: 10.244.128.0/17, via: 198.51.100.2}}
- {{to: 10.244.0.0/17, via: 172.18.1.2}}
workers: {{count: 1, cores: [{}], idle: {}}}
flows: {{capacity: {}}}
channel: {{socket: {socket}}}
",
            interfaces[0],
            interfaces[1],
            cores.gateway,
            if size.spin { "spin" } else { "sleep" },
            size.flows * 4 / 3 + 65_536,
        );
        let file = format!("/run/g{}.yaml", self.number);
        std::fs::write(&file, config)?;
        let mut command = self.host.command(&beside(&program)?);
        command.args(["--config", &file]);
        self.process = Some(command.stdin(Stdio::null()).stderr(log).spawn()?);
        let control = self.wait("the dataplane", |_| {
            Ok(Connection::connect_within(&socket, Duration::from_secs(60)).ok())
        })?;
        self.control = Some((control.0, Generation(0)));
        Ok(())
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
                let log = std::fs::read_to_string(format!("/run/g{}.log", self.number)).unwrap_or_default();
                return Err(io::Error::other(format!("{what} did not come up: {log}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn load_services(&mut self) -> io::Result<Duration> {
        match self.kind {
            Kind::Forward | Kind::Ceiling => Ok(Duration::ZERO),
            Kind::Nftables => self.timed("nft", &["-f", "-"], &rules::nftables(&self.world)),
            Kind::Iptables => self.timed("iptables-legacy-restore", &[], &rules::iptables(&self.world)),
            Kind::AfXdp | Kind::AfPacket => {
                let pods = rules::PODS.parse::<Ipv4Net>().map_err(io::Error::other)?;
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
            Kind::Forward | Kind::Ceiling => Ok(Duration::ZERO),
            Kind::Nftables => {
                let text = rules::nftables_change(&self.world, service, endpoints);
                self.timed("nft", &["-f", "-"], &text)
            }
            Kind::Iptables => {
                let text = rules::iptables_change(&self.world, service, endpoints);
                self.timed("iptables-legacy-restore", &["--noflush"], &text)
            }
            Kind::AfXdp | Kind::AfPacket => {
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
        let ports = self.open(driver)?;
        let names = |interface: String| format!("napi/{interface}-");
        let (near, far) = (
            [format!("c{}", self.number), format!("p{}", self.number)],
            [self.interface("c"), self.interface("p")],
        );
        for interface in &near {
            run("sh", &["-c", &receive_on(interface, cores.generator)])?;
        }
        for interface in &far {
            self.host
                .run("sh", &["-c", &receive_on(interface, cores.gateway)], "")?;
        }
        let wires = Threads::named(&near.map(names));
        wires.pin(cores.generator);
        let kernel = Threads::named(&far.map(names));
        kernel.pin(cores.gateway);
        let process = self
            .process
            .as_ref()
            .map(|process| Threads::of_process(process.id()))
            .unwrap_or_default();
        // What is measured goes before whatever else the machine does.
        wires.hurry(WIRE);
        kernel.hurry(WIRE);
        // Niceness counts within a session's group only, and so the group needs some, too (sched(7), autogroup).
        let _ = std::fs::write("/proc/self/autogroup", WIRE.to_string());
        let softirqs = Threads::named(&[format!("ksoftirqd/{}", cores.gateway)]);
        Ok((ports, process.and(kernel).and(softirqs)))
    }

    fn open(&self, driver: Driver) -> io::Result<Ports> {
        let spec = |side: &str| {
            let interface = format!("{side}{}", self.number);
            crate::pktgen::plan::Port::on(driver, &interface).spec(side)
        };
        let (Some(clients), Some(pods)) = (spec("c"), spec("p")) else {
            return Err(io::Error::other("driver memory has no interfaces"));
        };
        Ports::open(&clients, &pods, 16_384).map_err(io::Error::other)
    }

    /// The gateway's station address toward clients.
    pub const fn mac(&self) -> Mac {
        Mac([2, 0, 0, 0, 1, 1])
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

fn mac(net: u8, end: u8) -> Mac {
    Mac([2, 0, 0, 0, net, end])
}

/// Has an interface's packets received on a core: by a thread, which is to be pinned there, where the interface has NAPI;
/// else (AF_PACKET sockets switch GRO off, and NAPI with it) by the kernel's backlog of that core.
fn receive_on(interface: &str, core: usize) -> String {
    let device = format!("/sys/class/net/{interface}");
    let mask = 1u64 << core;
    format!("echo 1 2>&- > {device}/threaded || echo {mask:x} > {device}/queues/rx-0/rps_cpus")
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
