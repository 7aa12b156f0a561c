//! The node's own processes: the dataplane and control, with the configurations the lab writes for them.
//!
//! Both run in the node's namespaces. One that ends is started again, with a log line and back-off.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use k8s_openapi::api::core::v1::ServiceSpec;

use super::Driver;
use super::launch::own_binary;
use super::namespace::Namespaces;
use super::net::{
    Addresses, HOST_PEER, HostPort, POD_GATEWAY, load_balancer_ranges, pod_ranges, service_ranges,
};
use super::now;
use super::ports::FurtherPorts;
use super::process::{Backoff, Exit, HandOver, Reaper};
use super::state::{State, write_atomically};
use crate::dns::kube_dns;
use crate::dns::sockets::Sockets;
use crate::manifest::Body;
use crate::source::Event;
use crate::source::files::Folders;

/// The cluster's domain.
pub(super) const DOMAIN: &str = "cluster.local";

/// Where control answers for names: at the node's addresses, as an endpoint that is reached like any other.
fn dns_addresses(dual: bool) -> impl Iterator<Item = SocketAddr> {
    Addresses::node(dual).all().map(|ip| (ip, 53).into())
}

/// What pods know it by.
pub(super) fn dns_ips(dual: bool) -> Vec<IpAddr> {
    service_ranges(dual)
        .filter_map(|range| kube_dns::cluster_ip(&range))
        .collect()
}

/// A list as YAML has it; quoted, for the colons of IPv6.
fn list(items: impl Iterator<Item = impl ToString>) -> String {
    let quoted: Vec<_> = items.map(|item| format!("\"{}\"", item.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

/// The dataplane's file: `config.rs` of sluice-dataplane reads it.
fn dataplane_config(
    state: &State,
    driver: Driver,
    host_port: HostPort,
    dual: bool,
    further: &FurtherPorts,
) -> anyhow::Result<String> {
    let (driver, socket) = (driver.name(), serde_json::to_string(&state.socket("dataplane"))?);
    let (host_driver, host_interface) = match host_port {
        HostPort::Tap => ("tap", "host0"),
        HostPort::Veth => ("af_packet", HOST_PEER),
    };
    let (node, gateway) = (Addresses::node(dual), Addresses::pod(POD_GATEWAY, dual));
    Ok(format!(
        "# Written by `sluice lab up`.
node: {{addresses: {}}}
workers: {{count: 1, idle: sleep}}
flows: {{capacity: 131072}}
channel: {{socket: {socket}}}
ports:
- {{name: client0, driver: {driver}, interface: client0, addresses: {}}}
- {{name: pods0, driver: {driver}, interface: pods0, addresses: {}}}
- {{name: host0, driver: {host_driver}, interface: {host_interface}, role: host}}
{further}",
        list(node.all()),
        list(node.networks(24, 64)),
        list(gateway.networks(24, 64)),
    ))
}

/// Control's file: the `sluice control --config` reads it.
fn control_config(state: &State, dual: bool) -> anyhow::Result<String> {
    let path = |path: std::path::PathBuf| serde_json::to_string(&path);
    Ok(format!(
        "# Written by `sluice lab up`.
node: {{name: lab, addresses: {}}}
manifests: [{}, {}]
dataplane: {{socket: {}}}
state: {}
api: {{socket: {}}}
serviceRanges: {}
podRanges: {}
loadBalancerPools: [{{name: lab, addresses: {}}}]
algorithm: random
dns: {{listen: {}, clusterIPs: {}, domain: {DOMAIN}, upstreams: []}}
",
        list(Addresses::node(dual).all()),
        path(state.manifests())?,
        path(state.pods())?,
        path(state.socket("dataplane"))?,
        path(state.path().join("allocations.json"))?,
        path(state.socket("control"))?,
        list(service_ranges(dual)),
        list(pod_ranges(dual)),
        list(load_balancer_ranges(dual)),
        list(dns_addresses(dual)),
        list(dns_ips(dual).into_iter()),
    ))
}

/// The first Service in `folder` that asks for IPv6.
pub(super) fn asking_for_ipv6(folder: &Path) -> Option<String> {
    let batch = Folders::new(&[folder.to_owned()]).scan();
    batch.into_iter().find_map(|event| match event {
        Event::Apply(object) => match &object.body {
            Body::Service(service) if asks_for_ipv6(service.spec.as_ref()?) => {
                Some(format!("{}/{}", object.key.namespace, object.key.name))
            }
            _ => None,
        },
        _ => None,
    })
}

fn asks_for_ipv6(spec: &ServiceSpec) -> bool {
    let both = ["PreferDualStack", "RequireDualStack"];
    let policy = spec.ip_family_policy.as_deref();
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    policy.is_some_and(|policy| both.contains(&policy))
        || spec.ip_families.iter().flatten().any(|family| family == "IPv6")
        || ips.into_iter().any(|ip| ip.parse::<Ipv6Addr>().is_ok())
}

/// One of the two.
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) pid: Option<i32>,
    /// How often it ended by itself.
    pub(super) ends: u32,
    backoff: Backoff,
    restart: Option<Instant>,
    /// Sockets that outlive it, so that what is asked while it restarts is answered then.
    sockets: HandOver,
}

/// Writes the configurations and gives the two: the dataplane to be started at once, control by [`Service::begin`].
pub(super) fn prepare(
    state: &State,
    driver: Driver,
    host_port: HostPort,
    dual: bool,
    further: &FurtherPorts,
) -> anyhow::Result<Vec<Service>> {
    let dataplane = dataplane_config(state, driver, host_port, dual, further)?;
    write_atomically(&state.config("dataplane"), dataplane.as_bytes())?;
    write_atomically(&state.config("control"), control_config(state, dual)?.as_bytes())?;
    let program = dataplane_binary()?;
    anyhow::ensure!(
        program.exists(),
        "there is no {}: build it with `cargo build --release`",
        program.display()
    );
    let service = |name, at| Service {
        name,
        pid: None,
        ends: 0,
        backoff: Backoff::new(),
        restart: at,
        sockets: HandOver::default(),
    };
    Ok(vec![service("dataplane", Some(now())), service("control", None)])
}

/// The dataplane's binary lies beside this one.
fn dataplane_binary() -> anyhow::Result<std::path::PathBuf> {
    Ok(own_binary()?.with_file_name("sluice-dataplane"))
}

/// Gives control the sockets of cluster DNS, made inside of the node.
pub(super) fn hand_over_dns(services: &mut [Service], node: &Namespaces, dual: bool) -> anyhow::Result<()> {
    let addresses: Vec<SocketAddr> = dns_addresses(dual).collect();
    let Sockets { udp, tcp } = node.enter(|| Sockets::bind(&addresses))?;
    let sockets: Vec<OwnedFd> = udp
        .into_iter()
        .map(OwnedFd::from)
        .chain(tcp.into_iter().map(OwnedFd::from))
        .collect();
    if let Some(control) = services.iter_mut().find(|service| service.name == "control") {
        control.sockets = HandOver::new(&sockets)?;
    }
    Ok(())
}

impl Service {
    /// Starts it if it is to be started now. An error is logged, and tried again later.
    pub(super) fn run(&mut self, state: &State, node: &Namespaces, reaper: &Reaper) {
        if self.pid.is_some() || self.restart.is_none_or(|at| at > now()) {
            return;
        }
        match self.start(state, node, reaper) {
            Ok(pid) => {
                self.backoff.restarted();
                self.restart = None;
                self.pid = Some(pid);
                log::info!("{} runs", self.name);
            }
            Err(error) => {
                let wait = self.backoff.ended();
                self.restart = Some(now() + wait);
                log::error!("{}: {error:#}; the next try is in {wait:?}", self.name);
            }
        }
    }

    fn start(&self, state: &State, node: &Namespaces, reaper: &Reaper) -> anyhow::Result<i32> {
        let mut command = match self.name {
            "dataplane" => Command::new(dataplane_binary()?),
            name => {
                let mut command = Command::new(own_binary()?);
                command.arg(name);
                command
            }
        };
        command
            .arg("--config")
            .arg(state.config(self.name))
            // Sockets and files of further ports may be named without a folder: then they go with the lab.
            .current_dir(state.path());
        // What a killed one left would look like the new one's.
        match fs::remove_file(state.socket(self.name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("cannot remove the old socket");
            }
            _ => {}
        }
        reaper.spawn(node, command, &state.log(self.name), &self.sockets)
    }

    /// Starts it now if it never ran.
    pub(super) fn begin(&mut self) {
        if self.pid.is_none() && self.restart.is_none() {
            self.restart = Some(now());
        }
    }

    /// A process ended. Whether it was this one.
    pub(super) fn ended(&mut self, pid: i32, exit: Exit) -> bool {
        if self.pid != Some(pid) {
            return false;
        }
        let wait = self.backoff.ended();
        self.pid = None;
        self.ends += 1;
        self.restart = Some(now() + wait);
        log::warn!("{} {exit}; it is started again in {wait:?}", self.name);
        true
    }

    /// The last line it wrote.
    pub(super) fn last_words(&self, state: &State) -> String {
        let log = fs::read_to_string(state.log(self.name)).unwrap_or_default();
        log.lines().last().unwrap_or("it left no word").to_owned()
    }

    /// When it is to be started again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.restart
    }

    /// Whether it runs and listens.
    pub(super) fn is_ready(&self, state: &State) -> bool {
        self.pid.is_some() && state.socket(self.name).exists()
    }
}
