//! The daemon's own configuration file. A mistake in it is one line that names file, line and column.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use sluice_dataplane::channel::record;

use crate::allocate::Ranges;
use crate::allocate::load_balancer::{self, AddressPool};
use crate::manifest::{decode, yaml};

/// Cluster DNS.
pub mod dns;

use dns::Dns;

/// Everything `sluice control` is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// This gateway as a node.
    pub node: Node,
    /// Folders of manifests, or single files.
    pub manifests: Vec<PathBuf>,
    /// The dataplane.
    pub dataplane: Socket,
    /// The state file.
    pub state: PathBuf,
    /// The API.
    pub api: Socket,
    /// `/healthz` and `/livez` (HC-6), if anywhere.
    pub healthz: Option<SocketAddr>,
    /// Cluster IPs are given out from here: one range, or one of each family, the primary family's first.
    pub service_ranges: Vec<IpNet>,
    /// Further networks of cluster IPs (AL-11).
    pub other_service_ranges: Vec<IpNet>,
    /// Pods' addresses.
    pub pod_ranges: Vec<IpNet>,
    /// Where node addresses accept node ports; none: the primary ones.
    pub node_port_addresses: Vec<IpNet>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Addresses of load balancers.
    pub load_balancer_pools: Vec<AddressPool>,
    /// spec.loadBalancerClass of Services that get such.
    pub load_balancer_class: Option<String>,
    /// How a new flow picks its endpoint.
    pub algorithm: Algorithm,
    /// TP-3.
    pub masquerade_all: bool,
    /// SVC-12.
    pub external_ips: bool,
    /// LBR-4.
    pub strict_source_ranges: bool,
    /// PING-1.
    pub ping_replies: bool,
    /// VD-6.
    pub undefined_ports: UndefinedPorts,
    /// Cluster DNS, if it is served here.
    pub dns: Option<Dns>,
}

/// The file's form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    node: Node,
    manifests: Vec<PathBuf>,
    #[serde(default = "dataplane_socket")]
    dataplane: Socket,
    #[serde(default = "state")]
    state: PathBuf,
    #[serde(default = "api_socket")]
    api: Socket,
    #[serde(default = "healthz")]
    healthz: String,
    #[serde(default = "service_ranges")]
    service_ranges: Vec<IpNet>,
    #[serde(default)]
    other_service_ranges: Vec<IpNet>,
    #[serde(default = "pod_ranges")]
    pod_ranges: Vec<IpNet>,
    #[serde(default)]
    node_port_addresses: NodePortAddresses,
    #[serde(default = "node_port_range")]
    node_port_range: String,
    #[serde(default)]
    load_balancer_pools: Vec<LoadBalancerPool>,
    #[serde(default)]
    load_balancer_class: Option<String>,
    #[serde(default)]
    algorithm: Algorithm,
    #[serde(default)]
    masquerade_all: bool,
    #[serde(default = "yes", rename = "externalIPs")]
    external_ips: bool,
    #[serde(default)]
    strict_source_ranges: bool,
    #[serde(default)]
    ping_replies: bool,
    #[serde(default)]
    undefined_ports: UndefinedPorts,
    dns: Option<dns::Written>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoadBalancerPool {
    name: String,
    addresses: Vec<String>,
    #[serde(default = "yes")]
    auto_assign: bool,
}

/// NP-2.
#[derive(Deserialize)]
#[serde(untagged)]
enum NodePortAddresses {
    Word(String),
    Networks(Vec<String>),
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self::Word("primary".into())
    }
}

impl NodePortAddresses {
    fn networks(self) -> anyhow::Result<Vec<IpNet>> {
        match self {
            Self::Word(word) if word == "primary" => Ok(Vec::new()),
            Self::Word(word) => bail!("must be `primary` or a list of networks, not \"{word}\""),
            Self::Networks(list) if list.is_empty() => {
                bail!("must name a network; without this field it is `primary`")
            }
            Self::Networks(list) => {
                let network = |text: String| {
                    text.parse()
                        .with_context(|| format!("\"{text}\" is not a network"))
                };
                list.into_iter().map(network).collect()
            }
        }
    }
}

/// What becomes of packets to an external or load-balancer IP on a port it does not have (VD-6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UndefinedPorts {
    /// Not ours: routed on.
    #[default]
    PassOn,
    /// Silence.
    Drop,
    /// ICMP port unreachable.
    Reject,
}

impl From<UndefinedPorts> for record::UndefinedPorts {
    fn from(fate: UndefinedPorts) -> Self {
        match fate {
            UndefinedPorts::PassOn => Self::PassOn,
            UndefinedPorts::Drop => Self::Drop,
            UndefinedPorts::Reject => Self::Reject,
        }
    }
}

/// This gateway as a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its name, which endpoints' `nodeName` is compared with. The host's name if absent.
    #[serde(default)]
    pub name: String,
    /// Its addresses: a source range that has one lets the node itself through, too (LBR-3).
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Nodes whose endpoints count as this one's (TP-11); `*` for all.
    #[serde(default)]
    pub treat_as_local: Vec<String>,
}

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Socket {
    /// Its path.
    pub socket: PathBuf,
}

/// How a new flow picks its endpoint; see `record::Algorithm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Uniformly random.
    Random,
    /// The same pick on every gateway.
    #[default]
    Maglev,
    /// In turn.
    RoundRobin,
    /// Fewest live flows.
    LeastConnections,
}

impl From<Algorithm> for record::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Random => Self::Random,
            Algorithm::Maglev => Self::Maglev,
            Algorithm::RoundRobin => Self::RoundRobin,
            Algorithm::LeastConnections => Self::LeastConnections,
        }
    }
}

fn dataplane_socket() -> Socket {
    Socket {
        socket: "/run/sluice/dataplane.sock".into(),
    }
}

fn api_socket() -> Socket {
    Socket {
        socket: crate::api::SYSTEM_SOCKET.into(),
    }
}

/// kube-proxy's.
fn healthz() -> String {
    "0.0.0.0:10256".into()
}

fn state() -> PathBuf {
    "/var/lib/sluice/control.json".into()
}

fn service_ranges() -> Vec<IpNet> {
    Ranges::default().services
}

fn pod_ranges() -> Vec<IpNet> {
    let range = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16);
    vec![range.into()]
}

const fn yes() -> bool {
    true
}

fn node_port_range() -> String {
    "30000-32767".into()
}

impl Config {
    /// Where cluster IPs and node ports come from.
    pub fn ranges(&self) -> Ranges {
        Ranges {
            services: self.service_ranges.clone(),
            other_services: self.other_service_ranges.clone(),
            node_ports: self.node_ports.clone(),
            load_balancers: self.load_balancer_pools.clone(),
            load_balancer_class: self.load_balancer_class.clone(),
        }
    }

    /// Reads `path`. Relative paths in it are relative to its folder.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: the configuration cannot be read", path.display()))?;
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        let config = Self::parse(&text, folder).map_err(|(spot, message)| match spot {
            Some(spot) => anyhow::anyhow!("{}:{}:{}: {message}", path.display(), spot.line, spot.column),
            None => anyhow::anyhow!("{}: {message}", path.display()),
        })?;
        // Others are told where it is, and they may be elsewhere.
        let file = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self { file, ..config })
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, (Option<yaml::Spot>, String)> {
        let node = match yaml::read(text) {
            Ok(Some(node)) => node,
            Ok(None) => {
                return Err((
                    None,
                    "is empty; configs/gateway/control.yaml is one to copy".into(),
                ));
            }
            Err(broken) => return Err((Some(broken.spot), broken.message)),
        };
        let written: Written = decode::decode(&node).map_err(|mut mistakes| {
            let first = mistakes.swap_remove(0);
            let colon = if first.field.is_empty() { "" } else { ": " };
            (
                Some(first.spot),
                format!("{}{colon}{}", first.field, first.message),
            )
        })?;
        let at = |field: &str, error: anyhow::Error| (Some(node.locate(field)), format!("{field}: {error}"));
        let healthz = match written.healthz.as_str() {
            "none" => None,
            text => Some(text.parse().map_err(|_| {
                let message =
                    format!("must be an address and port such as 0.0.0.0:10256, or `none`, not \"{text}\"");
                at("healthz", anyhow::anyhow!(message))
            })?),
        };
        let node_ports = port_range(&written.node_port_range).map_err(|error| at("nodePortRange", error))?;
        check_service_ranges(&written.service_ranges).map_err(|(index, error)| {
            let field = index.map_or_else(
                || "serviceRanges".into(),
                |index| format!("serviceRanges[{index}]"),
            );
            at(&field, error)
        })?;
        for (index, range) in written.other_service_ranges.iter().enumerate() {
            let known = written
                .service_ranges
                .iter()
                .any(|known| same_family(known, range));
            let wrong = if known {
                wrong_range(range, FEWEST)
            } else {
                Some(format!("{range} is of a family that serviceRanges has not"))
            };
            if let Some(wrong) = wrong {
                return Err(at(
                    &format!("otherServiceRanges[{index}]"),
                    anyhow::anyhow!(wrong),
                ));
            }
        }
        let pools = pools(
            written.load_balancer_pools,
            &written.service_ranges,
            &written.other_service_ranges,
        );
        let load_balancer_pools = pools.map_err(|(field, error)| at(&field, anyhow::anyhow!(error)))?;
        if written.manifests.is_empty() {
            return Err(at("manifests", anyhow::anyhow!("must name at least one folder")));
        }
        let node_port_addresses = written.node_port_addresses.networks();
        let node_port_addresses = node_port_addresses.map_err(|error| at("nodePortAddresses", error))?;
        let mut this_node = written.node;
        if this_node.name.is_empty() {
            let host = nix::unistd::gethostname().map_err(|error| at("node.name", error.into()))?;
            this_node.name = host.to_string_lossy().to_lowercase();
        }
        let dns = written
            .dns
            .map(|dns| dns.meaning(&this_node.addresses, &written.service_ranges));
        let dns = dns.transpose().map_err(|(field, error)| at(field, error))?;
        let resolve = |path: PathBuf| folder.join(path);
        Ok(Self {
            file: PathBuf::new(),
            node: this_node,
            manifests: written.manifests.into_iter().map(resolve).collect(),
            dataplane: Socket {
                socket: resolve(written.dataplane.socket),
            },
            state: resolve(written.state),
            api: Socket {
                socket: resolve(written.api.socket),
            },
            healthz,
            service_ranges: written.service_ranges,
            other_service_ranges: written.other_service_ranges,
            pod_ranges: written.pod_ranges,
            node_port_addresses,
            node_ports,
            load_balancer_pools,
            load_balancer_class: written.load_balancer_class,
            algorithm: written.algorithm,
            masquerade_all: written.masquerade_all,
            external_ips: written.external_ips,
            strict_source_ranges: written.strict_source_ranges,
            ping_replies: written.ping_replies,
            undefined_ports: written.undefined_ports,
            dns,
        })
    }
}

fn same_family(a: &IpNet, b: &IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

/// AL-1: what kube-apiserver takes for `--service-cluster-ip-range`, and which of them is wrong.
fn check_service_ranges(ranges: &[IpNet]) -> Result<(), (Option<usize>, anyhow::Error)> {
    if let Some((index, wrong)) = ranges
        .iter()
        .enumerate()
        .find_map(|(i, range)| Some((i, wrong_range(range, FEWEST_OF_FIRST)?)))
    {
        return Err((Some(index), anyhow::anyhow!(wrong)));
    }
    match ranges {
        [_] => Ok(()),
        [a, b] if !same_family(a, b) => Ok(()),
        [_, _] => Err((
            Some(1),
            anyhow::anyhow!("must be of another family than the first"),
        )),
        _ => Err((
            None,
            anyhow::anyhow!("must be one network, or one of each family, the primary family's first"),
        )),
    }
}

/// Longest prefixes of IPv4 and IPv6 of the ranges that a cluster is made with: eight addresses, as for kube-apiserver.
const FEWEST_OF_FIRST: (u8, u8) = (29, 125);
/// Of further ranges, which may be as small as a ServiceCIDR: the least that has more than one address to give.
const FEWEST: (u8, u8) = (30, 126);

/// The most is 2^24 addresses of IPv4, all of 10.0.0.0/8, and 2^64 of IPv6.
fn wrong_range(range: &IpNet, (longest_v4, longest_v6): (u8, u8)) -> Option<String> {
    let (lengths, example) = match range {
        IpNet::V4(_) => (8..=longest_v4, "10.96.0.0/16"),
        IpNet::V6(_) => (64..=longest_v6, "fd00:96::/112"),
    };
    (!lengths.contains(&range.prefix_len()) || range.addr() != range.network()).then(|| {
        let (first, last) = lengths.into_inner();
        format!("must be a network with a length from {first} to {last}, such as {example}, not {range}")
    })
}

/// Pools, or which field is wrong and how.
fn pools(
    written: Vec<LoadBalancerPool>,
    services: &[IpNet],
    other_services: &[IpNet],
) -> Result<Vec<AddressPool>, (String, String)> {
    let mut found: Vec<AddressPool> = Vec::new();
    for (index, pool) in written.into_iter().enumerate() {
        let mut ranges = Vec::new();
        for (item, text) in pool.addresses.iter().enumerate() {
            let field = || format!("loadBalancerPools[{index}].addresses[{item}]");
            let range = load_balancer::addresses(text).map_err(|wrong| (field(), wrong))?;
            let meets = |(first, last): (IpAddr, IpAddr)| first <= range.1 && range.0 <= last;
            let earlier = || found.iter().flat_map(|pool| &pool.ranges).chain(&ranges).copied();
            if let Some(network) = services
                .iter()
                .chain(other_services)
                .find(|network| meets((network.network(), network.broadcast())))
            {
                return Err((field(), format!("overlaps with the Service range {network}")));
            }
            if let Some((first, last)) = earlier().find(|other| meets(*other)) {
                return Err((field(), format!("overlaps with {first}-{last}")));
            }
            ranges.push(range);
        }
        if found.iter().any(|other| other.name == pool.name) {
            let message = format!("names another pool already: {}", pool.name);
            return Err((format!("loadBalancerPools[{index}].name"), message));
        }
        found.push(AddressPool {
            name: pool.name,
            ranges,
            auto_assign: pool.auto_assign,
        });
    }
    Ok(found)
}

fn port_range(text: &str) -> anyhow::Result<RangeInclusive<u16>> {
    let ends = text
        .split_once('-')
        .map(|(first, last)| (first.trim().parse::<u16>(), last.trim().parse::<u16>()));
    match ends {
        Some((Ok(first), Ok(last))) if first > 0 && first <= last => Ok(first..=last),
        _ => bail!("must be two ports such as \"30000-32767\", not \"{text}\""),
    }
}

#[cfg(test)]
mod tests;
