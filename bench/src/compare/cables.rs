//! The two links of a gateway, toward clients and toward pods, whose other ends the generator has. Of whatever kind, an
//! interface has one queue, and what both sides receive is received on their own core.
//!
//! ```text
//! generator (our namespace, one core)        gateway (another core)
//!   cN  198.51.100.2 ──────────────────── gNc  198.51.100.1   route 10.244.128.0/17
//!   pN  172.18.1.2   ──────────────────── gNp  172.18.1.1     route 10.244.0.0/17
//! ```

use std::io;
use std::time::{Duration, Instant};

use sluice_dataplane::addr::Mac;
use sluice_dataplane::nic::open::{Attach, DriverSpec};
use sluice_dataplane::nic::{Link, tap};

use super::cpu::Threads;
use super::gateway::Cores;
use super::sandbox::{Host, run};
use crate::pktgen::ports::{Driver, Port, Ports};

/// Niceness of wires, gateways and generator.
const WIRE: i32 = -16;

/// What they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pairs of virtual interfaces, one of each in the gateway's namespace.
    Veth,
    /// Taps of the gateway's, whose kernel ends the generator opens.
    Tap,
    /// Memory shared by two processes.
    Memif,
}

/// Those of the `number`-th gateway.
#[derive(Clone, Copy, Debug)]
pub struct Cables {
    /// What they are.
    pub kind: Kind,
    /// Whose.
    pub number: usize,
}

/// Toward clients and pods.
const SIDES: [&str; 2] = ["c", "p"];

impl Cables {
    /// Lays those that must be there before the gateway is: between us and `host`.
    pub fn lay(&self, host: &Host) -> io::Result<()> {
        if self.kind != Kind::Veth {
            return Ok(());
        }
        for (ours, theirs, net) in [
            (self.near("c"), self.far("c"), 1),
            (self.near("p"), self.far("p"), 2),
        ] {
            let words = format!(
                "link add {ours} address {} numrxqueues 1 numtxqueues 1 type veth peer name {theirs} address {} \
                 numrxqueues 1 numtxqueues 1",
                mac(net, 2),
                mac(net, 1)
            );
            run("ip", &words.split_whitespace().collect::<Vec<_>>())?;
            host.take(&theirs)?;
            // A veth hands packets to its peer's NAPI only if it segments nothing itself (veth_skb_is_eligible_for_gro).
            run("ethtool", &["-K", &ours, "tso", "off"])?;
            host.run("ethtool", &["-K", &theirs, "tso", "off"], "")?;
            run("ip", &["link", "set", &ours, "up"])?;
            host.ip(&format!("link set {theirs} up"))?;
        }
        Ok(())
    }

    /// The generator's end, as its drivers name it.
    fn near(&self, side: &str) -> String {
        match self.kind {
            Kind::Veth => format!("{side}{}", self.number),
            Kind::Tap => self.far(side),
            Kind::Memif => self.socket(side),
        }
    }

    /// The gateway's end: an interface, or a memif's name.
    pub fn far(&self, side: &str) -> String {
        format!("g{}{side}", self.number)
    }

    /// A memif's socket.
    pub fn socket(&self, side: &str) -> String {
        format!("/run/{}.sock", self.far(side))
    }

    /// The gateway's station address toward clients.
    pub fn mac(&self) -> Mac {
        match self.kind {
            Kind::Tap => tap::station_mac(&self.far("c")),
            Kind::Veth | Kind::Memif => mac(1, 1),
        }
    }

    /// Opens the generator's ends, by this driver where several can. Errors: the drivers', and that no gateway is there.
    pub fn open(&self, driver: Driver) -> io::Result<Ports> {
        let driver = if self.kind == Kind::Memif {
            Driver::Memif
        } else {
            driver
        };
        let specs = SIDES.map(|side| Port::on(driver, &self.near(side)).spec(side));
        let [Some(mut clients), Some(mut pods)] = specs else {
            return Err(io::Error::other("driver memory has no interfaces"));
        };
        for spec in [&mut clients, &mut pods] {
            // In the driver it would be run by a thread of its own, which the gateway would pay for waking: up to half of
            // what a packet costs then, whoever the gateway is (README, results).
            if let DriverSpec::AfXdp { attach, .. } = &mut spec.driver {
                *attach = Attach::Generic;
            }
        }
        let ports = Ports::open(&clients, &pods, 16_384).map_err(io::Error::other)?;
        let began = clock();
        while [&ports.clients, &ports.pods]
            .iter()
            .any(|side| side.driver.link() != Link::Up)
        {
            if began.elapsed() > Duration::from_secs(5) {
                return Err(io::Error::other("no gateway at the other end of the cables"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(ports)
    }

    /// Has each side's packets received on its core, now that both ends are open. The kernel's threads that receive the
    /// gateway's.
    pub fn settle(&self, host: &Host, cores: Cores) -> io::Result<Threads> {
        if self.kind == Kind::Memif {
            return Ok(Threads::default());
        }
        let (near, far) = (
            SIDES.map(|side| self.near(side)),
            SIDES.map(|side| self.far(side)),
        );
        for interface in &near {
            run("sh", &["-c", &receive_on(interface, cores.generator)])?;
        }
        let wires = threads(&near, cores.generator);
        wires.hurry(WIRE);
        if self.kind == Kind::Tap {
            return Ok(Threads::default());
        }
        for interface in &far {
            host.run("sh", &["-c", &receive_on(interface, cores.gateway)], "")?;
        }
        let kernel = threads(&far, cores.gateway);
        kernel.hurry(WIRE);
        Ok(kernel)
    }

    /// What is measured goes before whatever else the machine does. Niceness counts within a session's group only, and so
    /// the group needs some, too (sched(7), autogroup).
    pub fn hurry() {
        let _ = std::fs::write("/proc/self/autogroup", WIRE.to_string());
    }
}

/// The threads that receive for some interfaces, kept on a core.
fn threads(interfaces: &[String; 2], core: usize) -> Threads {
    let threads = Threads::named(&[0, 1].map(|side: usize| format!("napi/{}-", interfaces[side])));
    threads.pin(core);
    threads
}

/// A station of the first or second net, at the gateway's end (1) or the generator's (2).
pub const fn mac(net: u8, end: u8) -> Mac {
    Mac([2, 0, 0, 0, net, end])
}

/// Has an interface's packets received on a core: by a thread, which is to be pinned there, where the interface has NAPI;
/// else (a tap; AF_PACKET sockets switch GRO off, and NAPI with it) by the kernel's backlog of that core.
fn receive_on(interface: &str, core: usize) -> String {
    let device = format!("/sys/class/net/{interface}");
    let mask = 1u64 << core;
    format!("echo 1 2>&- > {device}/threaded || echo {mask:x} > {device}/queues/rx-0/rps_cpus")
}

#[allow(clippy::disallowed_methods, reason = "a comparison measures real time")]
fn clock() -> Instant {
    Instant::now()
}
