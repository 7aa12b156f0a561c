//! What is in a lab, for a person and as JSON.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Service as ServiceObject;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde_json::json;

use super::super::args::LabOutput;
use crate::api::{self, List};
use crate::lab;
use crate::lab::ipc::{PodStatus, Request, Status, ask};
use crate::lab::namespace::innermost_pid;
use crate::lab::net::NODE_ADDRESS;
use crate::lab::state::State;

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
    pub(super) ports: Vec<Port>,
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
    if output.is_none() {
        println!(
            "lab {}, driver {}, node {NODE_ADDRESS}",
            state.name(),
            record.driver.name()
        );
        return tables(state, &status);
    }
    let services = services(state)?;
    let pods = status.pods.iter().map(|pod| {
        let PodStatus {
            namespace,
            name,
            ip,
            ready,
            labels,
            ..
        } = pod;
        json!({"namespace": namespace, "name": name, "ip": ip, "ready": ready, "labels": labels})
    });
    let process = |name: &str| {
        let inner = status.processes.get(name)?;
        Some(json!({"pid": outer_pid(record.pid, *inner)?}))
    };
    let whole = json!({
        "name": state.name(),
        "driver": record.driver.name(),
        "node": {"addresses": [NODE_ADDRESS]},
        "pods": pods.collect::<Vec<_>>(),
        "services": services,
        "processes": {"dataplane": process("dataplane"), "control": process("control")},
        "manifests": state.manifests(),
    });
    println!("{}", serde_json::to_string_pretty(&whole)?);
    Ok(())
}

/// What `up` made.
pub(super) fn made(state: &State) -> anyhow::Result<()> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    tables(state, &status)
}

/// Commands to go on with.
pub(super) fn try_these(state: &State) -> anyhow::Result<()> {
    let lab = if state.name() == "default" {
        String::new()
    } else {
        format!(" --name {}", state.name())
    };
    let names = pod_names(state)?;
    println!("\nTry:");
    for service in services(state).unwrap_or_default() {
        let port = service.ports.iter().find(|port| port.protocol == "TCP");
        let Some(port) = port else { continue };
        if let Some(node_port) = port.node_port {
            println!("  sluice lab exec{lab} client -- curl http://{NODE_ADDRESS}:{node_port}/");
        } else if service.cluster_ip.parse::<std::net::Ipv4Addr>().is_ok()
            && names.iter().any(|name| name == "debug")
        {
            println!(
                "  sluice lab exec{lab} debug -- curl http://{}:{}/",
                service.cluster_ip, port.port
            );
        }
    }
    if let Some(pod) = names.iter().find(|name| *name != "debug") {
        println!("  sluice lab logs{lab} {pod}");
    }
    println!("  sluice lab status{lab}");
    println!("  edit {} and watch", state.manifests().display());
    println!("  sluice lab down{lab}");
    Ok(())
}

/// The names of all pods.
pub(super) fn pod_names(state: &State) -> anyhow::Result<Vec<String>> {
    lab::living(state)?;
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    Ok(status.pods.into_iter().map(|pod| pod.name).collect())
}

fn tables(state: &State, status: &Status) -> anyhow::Result<()> {
    let mut rows = vec![["NAMESPACE", "POD", "IP", "READY"].map(str::to_owned)];
    rows.extend(status.pods.iter().map(|pod| {
        let ready = if pod.ready { "yes" } else { "no" };
        [
            pod.namespace.clone(),
            pod.name.clone(),
            pod.ip.to_string(),
            ready.to_owned(),
        ]
    }));
    print_table(&rows);
    let services = services(state)?;
    if !services.is_empty() {
        let mut rows = vec![["NAMESPACE", "SERVICE", "CLUSTER-IP", "PORTS"].map(str::to_owned)];
        rows.extend(services.into_iter().map(|service| {
            let ports = service.ports.iter().map(|port| match port.node_port {
                Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
                None => format!("{}/{}", port.port, port.protocol),
            });
            [
                service.namespace,
                service.name,
                service.cluster_ip,
                ports.collect::<Vec<_>>().join(","),
            ]
        }));
        println!();
        print_table(&rows);
    }
    Ok(())
}

fn print_table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
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
        ports: ports.collect(),
    }
}

/// The pods that stand ready behind a Service, by its EndpointSlices. Those of other makers have no names.
pub(super) fn ready_endpoints(state: &State, service: &Service) -> anyhow::Result<usize> {
    let slices: Vec<EndpointSlice> = api::ask(&state.socket("control"), List::EndpointSlices)?;
    let of_service = slices.iter().filter(|slice| {
        let label = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("kubernetes.io/service-name"));
        label == Some(&service.name) && slice.metadata.namespace.as_deref() == Some(&service.namespace)
    });
    let endpoints = of_service.flat_map(|slice| slice.endpoints.iter().flatten());
    // Unknown counts as ready (discovery/v1 EndpointConditions).
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    Ok(ready.count())
}
