//! `sluice-dataplane --probe`: what this machine can do for the dataplane, interface by interface, and a config to begin with.
//!
//! Takes  nothing: the machine is looked at, by whoever asks and with the privileges they have.
//! Gives  a `Machine`, as text for a person and as JSON for a program; `suggest` makes a config of it.
//! Never  changes anything, opens a port, or sends or takes a packet.

use std::fmt;
use std::path::Path;

use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::nic::rss::Rss;
use crate::nic::survey::Survey;
use crate::nic::{census, numa};
use crate::segment;

mod suggest;
mod verdict;

pub use suggest::suggest;
pub use verdict::Verdict;
use verdict::verdicts;

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// What this process may do.
    pub privileges: Privileges,
    /// Memory in large pages.
    pub huge_pages: HugePages,
    /// Devices that drivers open.
    pub devices: Devices,
    /// CPUs that this process may use, each with its NUMA node.
    pub cpus: Vec<Cpu>,
    /// Interfaces of this network namespace.
    pub interfaces: Vec<Interface>,
}

/// What this process may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Privileges {
    /// CAP_NET_RAW: packet sockets.
    pub net_raw: bool,
    /// CAP_NET_ADMIN: taps, offloads, XDP.
    pub net_admin: bool,
    /// CAP_BPF, or CAP_SYS_ADMIN that holds it.
    pub bpf: bool,
    /// Root of a user namespace only: what bpf(2) asks for does not count there.
    pub in_user_namespace: bool,
}

/// Memory in large pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HugePages {
    /// Whether the kernel gives transparent ones to those who ask, as the dataplane does.
    pub transparent: bool,
    /// Reserved 2 MiB pages that are free: for memif peers of DPDK, and for the dataplane's `memory.pages: reserved`.
    pub free_2mib: u64,
}

/// Devices that drivers open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Devices {
    /// `/dev/netmap`.
    pub netmap: Presence,
    /// `/dev/net/tun`.
    pub tun: Presence,
}

/// Whether a device can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Presence {
    /// It is not there.
    #[default]
    Absent,
    /// It is there, but not for this user.
    Forbidden,
    /// It can be opened.
    Present,
}

/// A CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Its number.
    pub cpu: usize,
    /// Its NUMA node.
    pub numa: Option<u32>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its driver in the kernel, or the kind of a virtual one.
    pub driver: String,
    /// Where the device is; empty for virtual ones.
    pub bus: String,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// An Ethernet link.
    pub is_ethernet: bool,
    /// Administratively up.
    pub is_up: bool,
    /// A port of a bridge or bond.
    pub is_enslaved: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Its station address.
    pub mac: String,
    /// The kernel's addresses on it.
    pub addresses: Vec<String>,
    /// Receive queues in use.
    pub queues: Option<u32>,
    /// Queues that received packets are spread over, where the driver tells its table.
    pub rss_queues: Option<u32>,
    /// Whether its hash is Toeplitz's, where the driver tells.
    pub rss_toeplitz: Option<bool>,
    /// Offloads that are on, by the kernel's names.
    pub offloads: Vec<String>,
    /// Whether an XDP program is attached.
    pub has_xdp_program: bool,
    /// What each driver could do with it.
    pub drivers: Vec<Verdict>,
}

impl Machine {
    /// Looks at this machine. Errors: the kernel does not list interfaces.
    pub fn look() -> std::io::Result<Self> {
        let sys = Path::new(numa::SYS);
        let mut machine = Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            privileges: Privileges::own(),
            huge_pages: HugePages {
                transparent: segment::has_huge_pages(),
                free_2mib: std::fs::read_to_string(
                    "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                )
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or_default(),
            },
            devices: Devices {
                netmap: Presence::of("/dev/netmap"),
                tun: Presence::of("/dev/net/tun"),
            },
            cpus: cpus(sys),
            interfaces: Vec::new(),
        };
        for listed in census::interfaces()? {
            let survey = Survey::of(&listed.name).unwrap_or_default();
            let mut interface = Interface {
                driver: if survey.driver.is_empty() {
                    listed.kind.clone()
                } else {
                    survey.driver
                },
                bus: survey.bus,
                numa: survey.numa,
                is_ethernet: listed.is_ethernet,
                is_up: listed.is_up,
                is_enslaved: listed.is_enslaved,
                mtu: listed.mtu,
                mac: listed.mac.to_string(),
                addresses: listed.addresses.iter().map(ToString::to_string).collect(),
                queues: survey.queues,
                rss_queues: survey.rss.as_ref().map(|rss| rss.queues()),
                rss_toeplitz: survey.rss.as_ref().map(Rss::is_toeplitz),
                offloads: survey.offloads,
                has_xdp_program: listed.has_xdp_program,
                drivers: Vec::new(),
                name: listed.name,
            };
            interface.drivers = verdicts(&machine, &interface, census::xdp_features(listed.index));
            machine.interfaces.push(interface);
        }
        Ok(machine)
    }
}

impl Privileges {
    fn own() -> Self {
        let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        // The first user namespace has every user in one line.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self {
            net_raw: held.contains(CapabilitySet::NET_RAW),
            net_admin: held.contains(CapabilitySet::NET_ADMIN),
            bpf: held.intersects(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN),
            in_user_namespace: map.split_whitespace().nth(2) != Some("4294967295"),
        }
    }
}

impl Presence {
    fn of(path: &str) -> Self {
        use rustix::fs::{Access, access};
        if access(path, Access::READ_OK | Access::WRITE_OK).is_ok() {
            Self::Present
        } else if access(path, Access::EXISTS).is_ok() {
            Self::Forbidden
        } else {
            Self::Absent
        }
    }
}

fn cpus(sys: &Path) -> Vec<Cpu> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let numbers = 0..rustix::thread::CpuSet::MAX_CPU;
    let cpu = |cpu| Cpu {
        cpu,
        numa: numa::of_cpu(sys, cpu),
    };
    numbers.filter(|&n| allowed.is_set(n)).map(cpu).collect()
}

/// A report for a person.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Privileges {
            net_raw,
            net_admin,
            bpf,
            in_user_namespace,
        } = self.privileges;
        let have = |held: bool| if held { "yes" } else { "no" };
        let user = if in_user_namespace {
            ", within a user namespace"
        } else {
            ""
        };
        writeln!(
            f,
            "Linux {}, {} CPUs for this process",
            self.kernel,
            self.cpus.len()
        )?;
        writeln!(
            f,
            "privileges: CAP_NET_RAW {}, CAP_NET_ADMIN {}, CAP_BPF {}{user}",
            have(net_raw),
            have(net_admin),
            have(bpf)
        )?;
        writeln!(
            f,
            "memory: transparent huge pages {}, {} free huge pages of 2 MiB",
            if self.huge_pages.transparent {
                "given"
            } else {
                "not given: packets of many flows cost more"
            },
            self.huge_pages.free_2mib
        )?;
        writeln!(
            f,
            "devices: /dev/netmap {}, /dev/net/tun {}",
            self.devices.netmap, self.devices.tun
        )?;
        self.interfaces
            .iter()
            .try_for_each(|interface| write!(f, "\n{interface}"))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            driver,
            bus,
            mac,
            mtu,
            ..
        } = self;
        let at = if bus.is_empty() {
            String::new()
        } else {
            format!(" at {bus}")
        };
        let driver = if driver.is_empty() { "virtual" } else { driver };
        let state = if self.is_up { "up" } else { "down" };
        writeln!(f, "{name}: {driver}{at}, {state}, {mac}, MTU {mtu}")?;
        if !self.addresses.is_empty() {
            writeln!(f, "  addresses of the kernel's: {}", self.addresses.join(" "))?;
        }
        let told = |number: Option<u32>| number.map_or_else(|| "not told".to_owned(), |n| n.to_string());
        let rss = match (self.rss_queues, self.rss_toeplitz) {
            (Some(queues), Some(true)) => format!("Toeplitz over {queues}"),
            (Some(queues), _) => format!("another function over {queues}"),
            _ => "not told".to_owned(),
        };
        writeln!(
            f,
            "  queues: {}, RSS: {rss}, NUMA node: {}",
            told(self.queues),
            told(self.numa)
        )?;
        if !self.offloads.is_empty() {
            writeln!(f, "  offloads on: {}", self.offloads.join(" "))?;
        }
        self.drivers
            .iter()
            .try_for_each(|verdict| writeln!(f, "  {verdict}"))
    }
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "absent",
            Self::Forbidden => "not for this user",
            Self::Present => "usable",
        })
    }
}
