//! The dataplane's config file: NIC ports, routes, workers, capacities. What Services there are comes over the
//! channel, never from here.
//!
//! Every capacity is here with its default and the reason for it; what they cost is told at start (`assemble`).

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use crate::affinity;
use crate::conntrack::ports::Rest;
use crate::conntrack::{Admission, Timeouts};
use crate::fragments::FragmentConfig;
use crate::segment::Pages;
use crate::steering::Steering;
use crate::tick::Period;

mod check;
mod port;

pub use port::*;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// NIC ports, at least one.
    pub ports: Vec<NicPort>,
    /// Routes beside those that the ports' own networks imply.
    #[serde(default)]
    pub routes: Vec<StaticRoute>,
    /// Packet threads.
    #[serde(default)]
    pub workers: Workers,
    /// Connection tracking.
    #[serde(default)]
    pub flows: Flows,
    /// Source ports for SNAT.
    #[serde(default)]
    pub snat: Snat,
    /// Frames per worker.
    #[serde(default)]
    pub frames: Frames,
    /// Datagrams in pieces.
    #[serde(default)]
    pub fragments: Fragments,
    /// Session affinity.
    #[serde(default)]
    pub affinity: Affinity,
    /// Service tables.
    #[serde(default)]
    pub tables: Tables,
    /// Interfaces that the kernel uses, too.
    #[serde(default)]
    pub shared: SharedInterfaces,
    /// Next hops.
    #[serde(default)]
    pub neighbours: Neighbours,
    /// What all of it is in.
    #[serde(default)]
    pub memory: Memory,
    /// The channel to control.
    pub channel: Channel,
}

/// Memory for flows, frames and tables.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Memory {
    /// What pages it is in.
    #[serde(default)]
    pub pages: Pages,
}

/// This node.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The node's addresses, the primary of each family before its others (NP-2).
    pub addresses: Vec<IpAddr>,
}

/// A static route.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticRoute {
    /// Destinations.
    pub to: IpNet,
    /// The router, on one of the ports' networks; or link-local on `port`.
    pub via: IpAddr,
    /// The NIC port it is on: needed for a link-local router, which could be on any.
    #[serde(default)]
    pub port: Option<String>,
}

/// Packet threads.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Workers {
    /// How many.
    pub count: u8,
    /// The CPU of each, in order; empty: not pinned.
    pub cores: Vec<usize>,
    /// What a worker without packets does.
    pub idle: Idle,
    /// Packets of other threads that each of them, and the steward, can have waiting: a few bursts. Each place has room for
    /// the longest packet. 1 to 65536.
    pub letters: usize,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            count: 1,
            cores: Vec::new(),
            idle: Idle::Spin,
            letters: 256,
        }
    }
}

/// What a worker without packets does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Idle {
    /// Polls on: lowest latency, a whole core.
    Spin,
    /// Waits for a NIC port or a letter: a laptop's fan stays off.
    Sleep,
}

/// Connection tracking, per worker.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Flows {
    /// Flows of each family that a worker can hold. 131,072 is kube-proxy's minimum (CT-19).
    pub capacity: usize,
    /// A folder on a tmpfs in which flows outlive the process (CT-12); none: they end with it.
    pub folder: Option<PathBuf>,
    /// CT-15: a lone ACK opens a flow mid-stream, as Linux does by default.
    pub midstream_pickup: bool,
    /// CT-18: percent of the capacity for half-open flows, 1 to 100. Half of the table stays for those that were answered.
    pub embryonic_percent: u8,
    /// CT-18: most new flows a second; 0: no limit.
    pub new_per_second: u32,
    /// Idle timeouts, each from a second to 30 days.
    pub timeouts: Timeouts,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            capacity: 131_072,
            folder: None,
            midstream_pickup: true,
            embryonic_percent: Admission::default().embryonic_percent,
            new_per_second: Admission::default().per_second,
            timeouts: Timeouts::default(),
        }
    }
}

/// Source ports for SNAT, shared out among the workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Snat {
    /// Ranges `first-last`. The default leaves out well-known ports and Kubernetes's node ports: with several workers a
    /// frontend of ours on such a port is served by one of them alone (TP-7). Where the host's
    /// own connections leave with the same address as SNAT does (one interface for everything), leave out the host's
    /// ephemeral ports (net.ipv4.ip_local_port_range), too: their replies could be taken for a flow's.
    pub ports: Vec<PortRange>,
    /// Endpoints (address, port, protocol) a worker can have SNAT flows to at one time.
    pub destinations: usize,
    /// How long a port rests before it is taken again toward the same endpoint: TIME_WAIT of Linux, 60 s.
    pub rest_period: Period,
    /// Most ports a worker has at rest, 16 bytes each; 0: none rests.
    pub resting_ports: usize,
}

impl Default for Snat {
    fn default() -> Self {
        let ports = vec![PortRange(1_024..=29_999), PortRange(32_768..=65_535)];
        Self {
            ports,
            destinations: 16_384,
            rest_period: Rest::default().period,
            resting_ports: Rest::default().ports,
        }
    }
}

/// `first-last`, both included.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange(pub RangeInclusive<u16>);

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed = text.split_once('-').and_then(|(first, last)| {
            Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
        });
        match parsed {
            Some(range) if *range.start() > 0 && range.start() <= range.end() => Ok(Self(range)),
            _ => Err(format!(
                "\"{text}\" is not a port range; write for example \"32768-65535\""
            )),
        }
    }
}

/// Frames, per worker.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Frames {
    /// How many. Every NIC port keeps up to a ring of them for receiving and one for sending.
    pub count: usize,
    /// Bytes each, a power of two from 2048 to 32768; a packet may have 256 less. 2,048 holds a 1,500-byte MTU.
    pub size: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            count: 16_384,
            size: 2_048,
        }
    }
}

/// Session affinity, of all workers together.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Affinity {
    /// Clients whose endpoints are remembered; each costs 21 bytes.
    pub clients: usize,
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            clients: affinity::Affinity::CLIENTS,
        }
    }
}

/// Datagrams in pieces, per worker and family.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fragments {
    /// Datagrams under way at once, 1 to 65,536: 1,024 are more than any link loses or reorders in 30 s short of a flood.
    pub datagrams: usize,
    /// Fragments held for a first one that has not come yet, which is milliseconds, 1 to 65,536: 128 are many. Each costs
    /// a frame.
    pub held: usize,
}

impl Default for Fragments {
    fn default() -> Self {
        let FragmentConfig { datagrams, held, .. } = FragmentConfig::default();
        Self { datagrams, held }
    }
}

/// Service tables.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tables {
    /// Service ports.
    pub service_ports: usize,
    /// Frontends of all kinds.
    pub frontends: usize,
    /// Backends of all service ports.
    pub backends: usize,
}

impl Default for Tables {
    fn default() -> Self {
        // Above the largest cluster Kubernetes is tested with (10,000 Services, 150,000 pods; 5,000 nodes).
        Self {
            service_ports: 65_536,
            frontends: 131_072,
            backends: 1_048_576,
        }
    }
}

/// Interfaces that the kernel uses, too (`mode: shared`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SharedInterfaces {
    /// A folder of a BPF file system, in which their programs outlive the process; none: they end with it, and the kernel has all
    /// packets until the next one.
    pub folder: Option<PathBuf>,
    /// How long Services' packets are withheld from the kernel, which would reset their connections, while there is no process.
    /// 30 s: longer than a supervisor takes to start the next, and shorter than TCP gives up a connection.
    pub hold: Period,
}

impl Default for SharedInterfaces {
    fn default() -> Self {
        Self {
            folder: None,
            hold: Period::from_seconds(30),
        }
    }
}

/// Next hops.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Neighbours {
    /// Neighbours on all ports: as many as the kernel keeps by raising gc_thresh3 to a large network's needs.
    pub capacity: usize,
    /// Milliseconds between questions to a neighbour in use, so that one that takes another MAC address without a word is
    /// found within a second: 3 questions of 42 bytes (IPv6: 86) a second and their answers, for each; with more than
    /// 375 neighbours in longer intervals, so that all together are 1,000 a second. 0: known neighbours are asked every
    /// 20 seconds only.
    pub probe_millis: u32,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self {
            capacity: 16_384,
            probe_millis: 375,
        }
    }
}

/// The channel to control.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Channel {
    /// The Unix socket that control connects to.
    pub socket: PathBuf,
}

/// Why a config was refused, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot read the config file: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML of this shape.
    #[error("{path}:{problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// `line:column: what`.
        problem: String,
    },
    /// Values that contradict each other.
    #[error("{path}: {field}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Field path.
        field: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a config file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Reads and checks a config; `path` is for the errors only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = serde_saphyr::from_str(text).map_err(|error| {
            let place = error
                .location()
                .map_or_else(String::new, |l| format!("{}:{}: ", l.line(), l.column()));
            let text = error.without_snippet().to_string();
            ConfigError::Parse {
                path: path.to_owned(),
                problem: place + text.lines().next().unwrap_or_default(),
            }
        })?;
        match config.contradiction() {
            None => Ok(config),
            Some((field, problem)) => Err(ConfigError::Value {
                path: path.to_owned(),
                field,
                problem,
            }),
        }
    }

    /// How flows and source ports are divided among the workers.
    pub fn steering(&self) -> Steering {
        Steering::new(self.workers.count, self.snat_ports())
    }

    /// The ranges of source ports.
    pub fn snat_ports(&self) -> Vec<RangeInclusive<u16>> {
        self.snat.ports.iter().map(|range| range.0.clone()).collect()
    }

    /// The NIC port that a route's router is on.
    pub fn port_of(&self, route: &StaticRoute) -> Option<usize> {
        if let Some(name) = &route.port {
            return self.ports.iter().position(|p| p.name == *name);
        }
        let on_link = |p: &NicPort| p.addresses.iter().any(|a| a.contains(&route.via));
        self.ports
            .iter()
            .position(|p| on_link(p) && !check::is_link_local(route.via))
    }
}

#[cfg(test)]
mod tests;
