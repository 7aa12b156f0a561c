//! What is in a lab, for a person and as JSON.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service as ServiceObject};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde::Serialize;
use serde_json::json;

use super::super::args::LabOutput;
use super::print::{Style, paint, program, table};
use crate::api::{self, List};
use crate::dns::kube_dns;
use crate::lab;
use crate::lab::ipc::{PodStatus, Request, Status, ask};
use crate::lab::namespace::innermost_pid;
use crate::lab::state::State;
use crate::model::Family;
use crate::table::Rows;

/// A Service as control works with it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Vec<String>,
    pub(super) ports: Vec<Port>,
}

impl Service {
    /// Whether it is cluster DNS: not one that answers as pods do.
    pub(super) fn is_dns(&self) -> bool {
        let dns = kube_dns::name();
        (&self.namespace, &self.name) == (&dns.namespace, &dns.name)
    }
}

/// A service port.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) protocol: String,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
}

/// `sluice lab status`.
pub(super) fn status(state: &State, output: Option<LabOutput>) -> anyhow::Result<()> {
    let record = lab::living(state)?;
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let pid = |name: &str| outer_pid(record.pid, *status.processes.get(name)?);
    if output.is_none() {
        let both = |addresses: &[IpAddr]| {
            let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            texts.join(" and ")
        };
        say!(
            "Lab {}, driver {}, node {}, client {}",
            state.name(),
            record.driver.name(),
            both(&status.node_addresses),
            both(&status.client_addresses)
        );
        say!("Manifests: {}\n", state.manifests().display());
        processes(state, record.pid, &pid);
        say!("");
        return made(state);
    }
    let pods = status.pods.iter().map(|pod| {
        let PodStatus {
            namespace,
            name,
            ip,
            ips,
            ready,
            phase,
            labels,
            ..
        } = pod;
        json!({"namespace": namespace, "name": name, "ip": ip, "ips": ips, "ready": ready, "status": phase, "labels": labels})
    });
    let process = |name: &str| Some(json!({"pid": pid(name)?}));
    let whole = json!({
        "name": state.name(),
        "driver": record.driver.name(),
        "node": {"addresses": status.node_addresses},
        "pods": pods.collect::<Vec<_>>(),
        "services": services(state)?,
        "processes": {"dataplane": process("dataplane"), "control": process("control")},
        "manifests": state.manifests(),
    });
    say!("{}", serde_json::to_string_pretty(&whole)?);
    Ok(())
}

fn processes(state: &State, keeper: i32, pid: &dyn Fn(&str) -> Option<i32>) {
    let row = |name: &str, pid: Option<i32>| {
        [
            name.to_owned(),
            pid.map_or_else(|| "not running".to_owned(), |pid| pid.to_string()),
            state.log(name).display().to_string(),
        ]
    };
    let mut rows = vec![row("keeper", Some(keeper))];
    for name in ["dataplane", "control"] {
        if state.config(name).exists() {
            rows.push(row(name, pid(name)));
        }
    }
    table(["PROCESS", "PID", "LOG"], &rows);
}

/// Tables of the pods and Services of a lab.
///
/// # Errors
/// The keeper does not answer. A control that does not is told of in the table's place.
pub(super) fn made(state: &State) -> anyhow::Result<()> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let rows: Vec<_> = status.pods.iter().map(pod_row).collect();
    table(["NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "IP"], &rows);
    if !state.config("control").exists() {
        return Ok(());
    }
    say!("");
    match service_rows(state) {
        Ok(rows) if rows.is_empty() => say!("No Services."),
        Ok(rows) => table(
            [
                "NAMESPACE",
                "SERVICE",
                "TYPE",
                "CLUSTER-IP",
                "PORT(S)",
                "ENDPOINTS",
            ],
            &rows,
        ),
        Err(error) => say!("{}", paint(Style::Red, &format!("Services: {error:#}"))),
    }
    Ok(())
}

fn pod_row(pod: &PodStatus) -> [String; 6] {
    let (ready, all) = pod.containers;
    [
        pod.namespace.clone(),
        pod.name.clone(),
        format!("{ready}/{all}"),
        pod.phase.clone(),
        pod.restarts.to_string(),
        pod.ip.to_string(),
    ]
}

fn service_rows(state: &State) -> anyhow::Result<Vec<[String; 6]>> {
    let endpoints: Vec<Endpoints> = api::ask(&state.socket("control"), List::Endpoints)?;
    let rows = services(state)?.into_iter().map(|service| {
        let ports = service.ports.iter().map(|port| match port.node_port {
            Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
            None => format!("{}/{}", port.port, port.protocol),
        });
        let ports = ports.collect::<Vec<_>>().join(",");
        let own = endpoints.iter().find(|endpoints| {
            let metadata = &endpoints.metadata;
            metadata.name.as_ref() == Some(&service.name)
                && metadata.namespace.as_ref() == Some(&service.namespace)
        });
        [
            service.namespace,
            service.name,
            service.kind,
            service.cluster_ip,
            ports,
            own.map_or_else(
                || "<none>".to_owned(),
                |own| own.row(Timestamp::now()).swap_remove(1),
            ),
        ]
    });
    Ok(rows.collect())
}

/// Commands to go on with; `answered` is a pod that answered requests, if one did.
pub(super) fn try_these(state: &State, answered: Option<&str>) -> anyhow::Result<()> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let name = match state.name() {
        "default" => String::new(),
        name => format!(" --name {name}"),
    };
    let (sluice, lab) = (program(), format!("{} lab{name}", program()));
    let mut commands = Vec::new();
    let with_services = state.config("control").exists();
    if with_services {
        commands.push((format!("{sluice} get services"), "as kubectl prints them"));
    }
    let debug = status.pods.iter().find(|pod| pod.name == "debug");
    // Brackets mean something to shells.
    let url = |address: IpAddr, port: u16| match (address, port) {
        (IpAddr::V4(address), 80) => format!("http://{address}/"),
        (IpAddr::V4(address), _) => format!("http://{address}:{port}/"),
        (IpAddr::V6(address), 80) => format!("'http://[{address}]/'"),
        (IpAddr::V6(address), _) => format!("'http://[{address}]:{port}/'"),
    };
    let services = if with_services {
        services(state)?
    } else {
        Vec::new()
    };
    let services = services.iter().filter(|service| !service.is_dns());
    let ports = services.flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let tcp: Vec<(&Service, &Port)> = ports.filter(|(_, port)| port.protocol == "TCP").collect();
    let inside = tcp
        .iter()
        .find(|(service, _)| service.cluster_ip.parse::<IpAddr>().is_ok());
    if let (Some(debug), Some((service, port))) = (debug, inside) {
        // As short as the search list of the pod's resolv.conf allows.
        let mut host = service.name.clone();
        if service.namespace != debug.namespace {
            host = format!("{host}.{}", service.namespace);
        }
        if port.port != 80 {
            host = format!("{host}:{}", port.port);
        }
        commands.push((
            format!("{lab} exec {} -- curl -s http://{host}/", debug.name),
            "from a pod, by name",
        ));
    }
    if let Some(port) = tcp.iter().find_map(|(_, port)| port.node_port) {
        for address in &status.node_addresses {
            let url = url(*address, port);
            commands.push((format!("{lab} exec client -- curl -s {url}"), "from outside"));
        }
    }
    let pods = || status.pods.iter().filter(|pod| pod.owner.is_some());
    let pod = pods()
        .find(|pod| Some(pod.name.as_str()) == answered)
        .or_else(|| pods().next());
    if let Some(pod) = pod {
        let namespace = match pod.namespace.as_str() {
            "default" => String::new(),
            namespace => format!(" -n {namespace}"),
        };
        let PodStatus { name, owner, .. } = pod;
        commands.push((format!("{lab} logs {name}{namespace}"), "one line a request"));
        commands.push((
            format!("{lab} delete pod {name}{namespace}"),
            "another takes its place",
        ));
        let owner = owner.as_deref().unwrap_or_default();
        commands.push((format!("{lab} scale {owner} 5{namespace}"), ""));
    }
    commands.push((format!("{lab} status"), "where everything is"));
    commands.push((format!("{lab} down"), "removes all of it"));
    let width = commands
        .iter()
        .map(|(command, _)| command.len())
        .max()
        .unwrap_or(0);
    say!("\n{}", paint(Style::Bold, "Try"));
    for (command, why) in commands {
        let line = if why.is_empty() {
            command
        } else {
            format!("{command:width$}   # {why}")
        };
        say!("  {line}");
    }
    say!("\nThe manifests to edit are in {}", state.manifests().display());
    Ok(())
}

/// The names of all pods.
pub(super) fn pod_names(state: &State) -> anyhow::Result<Vec<String>> {
    lab::living(state)?;
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    Ok(status.pods.into_iter().map(|pod| pod.name).collect())
}

/// A process's id as the caller sees it: the keeper's PID namespace has its own.
fn outer_pid(keeper: i32, inner: i32) -> Option<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let lab = namespace(keeper)?;
    let pids = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|&pid: &i32| {
        innermost_pid(Path::new(&format!("/proc/{pid}"))) == Some(inner)
            && namespace(pid).as_ref() == Some(&lab)
    })
}

/// The Services, from control; without control there are none.
pub(super) fn services(state: &State) -> anyhow::Result<Vec<Service>> {
    let socket = state.socket("control");
    if !socket.exists() {
        return Ok(Vec::new());
    }
    let objects: Vec<ServiceObject> = api::ask(&socket, List::Services)?;
    Ok(objects.into_iter().map(service).collect())
}

fn service(object: ServiceObject) -> Service {
    let (metadata, spec) = (object.metadata, object.spec.unwrap_or_default());
    let number = |port: i32| u16::try_from(port).ok().filter(|&port| port != 0);
    let ports = spec.ports.into_iter().flatten().filter_map(|port| {
        Some(Port {
            name: port.name,
            protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
            port: number(port.port)?,
            node_port: port.node_port.and_then(number),
        })
    });
    Service {
        namespace: metadata.namespace.unwrap_or_else(|| "default".to_owned()),
        name: metadata.name.unwrap_or_default(),
        kind: spec.type_.unwrap_or_else(|| "ClusterIP".to_owned()),
        cluster_ip: spec.cluster_ip.unwrap_or_default(),
        cluster_ips: spec.cluster_ips.unwrap_or_default(),
        ports: ports.collect(),
    }
}

/// The families in which something stands ready behind a Service, by its EndpointSlices.
pub(super) fn ready_families(state: &State, service: &Service) -> anyhow::Result<BTreeSet<Family>> {
    let slices: Vec<EndpointSlice> = api::ask(&state.socket("control"), List::EndpointSlices)?;
    let of_service = slices.iter().filter(|slice| {
        let label = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("kubernetes.io/service-name"));
        label == Some(&service.name) && slice.metadata.namespace.as_deref() == Some(&service.namespace)
    });
    // Unknown counts as ready (discovery/v1 EndpointConditions).
    let is_ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
    let ready = of_service.filter(|slice| slice.endpoints.iter().flatten().any(is_ready));
    Ok(ready
        .filter_map(|slice| Family::named(&slice.address_type))
        .collect())
}
