//! The section `dns`: cluster DNS, if there is to be one here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hickory_proto::rr::Name;
use ipnet::IpNet;
use serde::Deserialize;

use crate::dns::upstream::Upstream;
use crate::dns::{Options, PodNames, Settings, kube_dns};
use crate::model::{Family, names};

/// The port of DNS (RFC 1035 §4.2).
const PORT: u16 = 53;
/// What CoreDNS takes (DNS-20).
const LONGEST_TTL: u32 = 3600;

/// Cluster DNS, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Cluster IPs of its Service.
    pub cluster_ips: Vec<IpAddr>,
    domain: Name,
    ttl: u32,
    pods: PodNames,
    endpoint_pod_names: bool,
    namespaces: Option<Vec<String>>,
    ignore_empty_services: bool,
    upstreams: Vec<SocketAddr>,
    timeout: Duration,
    forwards: usize,
    connections: usize,
    threads: usize,
}

/// The section's form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Written {
    listen: Option<Vec<String>>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<IpAddr>>,
    #[serde(default = "domain")]
    domain: String,
    #[serde(default = "ttl")]
    ttl: u32,
    #[serde(default)]
    pods: PodNames,
    #[serde(default)]
    endpoint_pod_names: bool,
    namespaces: Option<Vec<String>>,
    #[serde(default)]
    ignore_empty_services: bool,
    upstreams: Option<Vec<String>>,
    #[serde(default = "timeout_seconds")]
    timeout_seconds: u64,
    #[serde(default = "forwards")]
    forwards: usize,
    #[serde(default = "connections")]
    connections: usize,
    #[serde(default = "threads")]
    threads: usize,
}

fn domain() -> String {
    "cluster.local".into()
}

const fn ttl() -> u32 {
    30
}

/// Twice this is less than a client's patience (5 s, resolv.conf(5)).
const fn timeout_seconds() -> u64 {
    2
}

/// A thread each while they are asked: 64 MiB of stacks that are hardly touched.
const fn forwards() -> usize {
    256
}

const fn connections() -> usize {
    256
}

/// One answers over 100,000 questions a second.
const fn threads() -> usize {
    1
}

impl Written {
    /// What it means, or the field that is wrong and why.
    pub(super) fn meaning(
        self,
        node: &[IpAddr],
        ranges: &[IpNet],
    ) -> Result<Dns, (&'static str, anyhow::Error)> {
        let listen = match self.listen {
            None => node.iter().map(|ip| (*ip, PORT).into()).collect(),
            Some(list) => addresses(&list).map_err(|error| ("dns.listen", error))?,
        };
        if listen.is_empty() {
            let error = anyhow::anyhow!("must name an address, or node.addresses must");
            return Err(("dns.listen", error));
        }
        let cluster_ips = match self.cluster_ips {
            None => ranges.iter().filter_map(kube_dns::cluster_ip).collect(),
            Some(ips) => ips,
        };
        check_cluster_ips(&cluster_ips, ranges).map_err(|error| ("dns.clusterIPs", error))?;
        let upstreams = match self.upstreams {
            None => nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
                .filter(|server| !listen.contains(server) && !cluster_ips.contains(&server.ip()))
                .collect(),
            Some(list) => addresses(&list).map_err(|error| ("dns.upstreams", error))?,
        };
        if let Some(own) = upstreams
            .iter()
            .find(|server| listen.contains(server) || cluster_ips.contains(&server.ip()))
        {
            let error = anyhow::anyhow!("{own} is this server itself: questions would go round for ever");
            return Err(("dns.upstreams", error));
        }
        if self.ttl > LONGEST_TTL {
            let error = anyhow::anyhow!("must be from 0 to {LONGEST_TTL} seconds, not {}", self.ttl);
            return Err(("dns.ttl", error));
        }
        if let Some(namespaces) = &self.namespaces {
            check_namespaces(namespaces).map_err(|error| ("dns.namespaces", error))?;
        }
        for (field, number, most) in [
            ("dns.threads", self.threads, 64),
            ("dns.forwards", self.forwards, 65_536),
            ("dns.connections", self.connections, 65_536),
            (
                "dns.timeoutSeconds",
                usize::try_from(self.timeout_seconds).unwrap_or(0),
                60,
            ),
        ] {
            if !(1..=most).contains(&number) {
                return Err((field, anyhow::anyhow!("must be from 1 to {most}, not {number}")));
            }
        }
        Ok(Dns {
            listen,
            cluster_ips,
            domain: domain_name(&self.domain).map_err(|error| ("dns.domain", error))?,
            ttl: self.ttl,
            pods: self.pods,
            endpoint_pod_names: self.endpoint_pod_names,
            namespaces: self.namespaces,
            ignore_empty_services: self.ignore_empty_services,
            upstreams,
            timeout: Duration::from_secs(self.timeout_seconds),
            forwards: self.forwards,
            connections: self.connections,
            threads: self.threads,
        })
    }
}

impl Dns {
    /// What the server is told.
    pub fn settings(&self) -> Settings {
        let upstream =
            (!self.upstreams.is_empty()).then(|| Upstream::new(self.upstreams.clone(), self.timeout));
        Settings {
            options: Options {
                domain: self.domain.clone(),
                ttl: self.ttl,
                pods: self.pods,
                endpoint_pod_names: self.endpoint_pod_names,
                namespaces: self.namespaces.clone(),
                ignore_empty_services: self.ignore_empty_services,
                service: kube_dns::name(),
                addresses: self.listen.iter().map(SocketAddr::ip).collect(),
            },
            threads: self.threads,
            connections: self.connections,
            forwards: self.forwards,
            upstream,
        }
    }

    /// One line for the log at start: what there is room for, and who is asked.
    pub fn summary(&self) -> String {
        let list = |addresses: &[SocketAddr]| {
            addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let upstreams = match self.upstreams.as_slice() {
            [] => "nobody".into(),
            servers => list(servers),
        };
        format!(
            "dns: {} at {}, {} connections; for other names asks {upstreams}, {} at once",
            self.domain,
            list(&self.listen),
            self.connections,
            self.forwards
        )
    }
}

/// Addresses with or without a port.
fn addresses(list: &[String]) -> anyhow::Result<Vec<SocketAddr>> {
    let address = |text: &String| {
        let ip = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
        ip.or_else(|_| text.parse()).with_context(|| {
            format!("\"{text}\" is no address such as 192.0.2.2, 192.0.2.2:53 or [2001:db8::2]:53")
        })
    };
    list.iter().map(address).collect()
}

fn check_namespaces(namespaces: &[String]) -> anyhow::Result<()> {
    ensure!(
        !namespaces.is_empty(),
        "must name a namespace; without this field all are exposed"
    );
    for name in namespaces {
        if let Some(wrong) = names::label(name) {
            bail!("\"{name}\": {wrong}");
        }
    }
    Ok(())
}

fn check_cluster_ips(ips: &[IpAddr], ranges: &[IpNet]) -> anyhow::Result<()> {
    let families: Vec<Family> = ips.iter().copied().map(Family::of).collect();
    match families.as_slice() {
        [_] => {}
        [first, second] if first != second => {}
        [] => bail!("must name an address: the Service range is too small to have a tenth"),
        _ => bail!("must be one address, or one of each family"),
    }
    for ip in ips {
        ensure!(
            ranges.iter().any(|range| range.contains(ip)),
            "{ip} is in none of serviceRanges"
        );
    }
    Ok(())
}

fn domain_name(text: &str) -> anyhow::Result<Name> {
    let mut name = Name::from_ascii(text).ok().filter(|name| name.num_labels() > 0);
    if let Some(name) = &mut name {
        name.set_fqdn(true);
    }
    name.with_context(|| format!("\"{text}\" is no domain such as cluster.local"))
}

/// The servers of a resolv.conf(5).
fn nameservers(text: &str) -> impl Iterator<Item = SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    servers.map(|ip| (ip, PORT).into())
}
