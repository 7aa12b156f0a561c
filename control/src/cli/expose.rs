//! `sluice expose KIND NAME`: a Service for what there is, with kubectl's defaults, put into the folder that control
//! watches.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{PodSpec, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::args::{ExposeArgs, kind};
use super::selector::pairs;
use super::store::{Store, document};
use crate::manifest::{self, Body, Key, Kind, Object};
use crate::problem::SourceText;

/// Runs the verb.
pub(super) fn run(args: &ExposeArgs) -> anyhow::Result<ExitCode> {
    let (word, name) = match (args.kind.split_once('/'), &args.target) {
        (Some((word, name)), None) => (word, name),
        (None, Some(name)) => (args.kind.as_str(), name.as_str()),
        _ => bail!("say what to expose: KIND NAME, or KIND/NAME"),
    };
    let kind = kind(word)?;
    let mut store = Store::open(args.api.clone())?;
    let key = |kind, name: &str| Key {
        kind,
        namespace: args.namespace.clone(),
        name: name.into(),
    };
    let Some(target) = store.get(&key(kind, name)) else {
        bail!(
            "there is no {word} \"{name}\" in namespace {}; there are: {}",
            args.namespace,
            none(&store.names(kind, &args.namespace))
        );
    };
    let service = exposing(args, &target.body)?;
    let new = key(
        Kind::Service,
        service.metadata.name.as_deref().unwrap_or_default(),
    );
    if store.get(&new).is_some() {
        bail!(
            "services \"{0}\" already exists: give another --name, or `sluice delete service {0}` first",
            new.name
        );
    }
    let text = document(&Body::Service(Arc::new(service)))?;
    // Read back from its text: it is judged, and told of, as any manifest.
    let contents = manifest::read(&Arc::new(SourceText {
        path: "<expose>".into(),
        text,
    }));
    let objects: Vec<Object> = contents.objects;
    super::apply::put(&mut store, &objects, args.dry_run, args.output)
}

fn none(names: &[&str]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

/// The Service that leads to `target`.
fn exposing(args: &ExposeArgs, target: &Body) -> anyhow::Result<Service> {
    let metadata = target.metadata();
    let selector = match &args.selector {
        Some(text) => pairs(text).context("--selector")?,
        None => selector_of(target)?,
    };
    let ports = match args.port {
        Some(port) => vec![ServicePort {
            port: port.into(),
            protocol: Some(args.protocol.clone()),
            target_port: args.target_port.as_deref().map(target_port),
            ..ServicePort::default()
        }],
        None => ports_of(target, args.target_port.as_deref())?,
    };
    let labels = match &args.labels {
        Some(text) => pairs(text).context("--labels")?,
        None => metadata.labels.clone().unwrap_or_default(),
    };
    let list = |texts: &[String]| (!texts.is_empty()).then(|| texts.to_vec());
    Ok(Service {
        metadata: ObjectMeta {
            name: args.name.clone().or_else(|| metadata.name.clone()),
            namespace: metadata.namespace.clone(),
            labels: (!labels.is_empty()).then_some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some(selector),
            ports: Some(ports),
            type_: args.kind_of_service.clone(),
            cluster_ip: args.cluster_ip.clone(),
            external_ips: list(&args.external_ips),
            load_balancer_ip: args.load_balancer_ip.clone(),
            session_affinity: args.session_affinity.clone(),
            ..ServiceSpec::default()
        }),
        status: None,
    })
}

fn target_port(text: &str) -> IntOrString {
    text.parse()
        .map_or_else(|_| IntOrString::String(text.into()), IntOrString::Int)
}

fn selector_of(target: &Body) -> anyhow::Result<BTreeMap<String, String>> {
    let of_workload = |selector: &LabelSelector| {
        if selector
            .match_expressions
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        {
            bail!("its selector has matchExpressions, which a Service cannot have: give one with --selector");
        }
        Ok(selector.match_labels.clone().unwrap_or_default())
    };
    let selector = match target {
        Body::Pod(pod) => pod.metadata.labels.clone().unwrap_or_default(),
        Body::Service(service) => service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.clone())
            .unwrap_or_default(),
        Body::ReplicaSet(set) => set
            .spec
            .as_ref()
            .map(|spec| of_workload(&spec.selector))
            .transpose()?
            .unwrap_or_default(),
        Body::Deployment(one) => one
            .spec
            .as_ref()
            .map(|spec| of_workload(&spec.selector))
            .transpose()?
            .unwrap_or_default(),
        Body::StatefulSet(one) => one
            .spec
            .as_ref()
            .map(|spec| of_workload(&spec.selector))
            .transpose()?
            .unwrap_or_default(),
        Body::DaemonSet(one) => one
            .spec
            .as_ref()
            .map(|spec| of_workload(&spec.selector))
            .transpose()?
            .unwrap_or_default(),
        other => bail!(
            "a {} cannot be exposed: name a pod, service, deployment, replicaset, statefulset or daemonset",
            other.kind().name()
        ),
    };
    if selector.is_empty() {
        bail!("it has no labels to select by: give some with --selector");
    }
    Ok(selector)
}

/// Without --port, every port of the containers is one of the Service's, under its own name.
fn ports_of(target: &Body, to: Option<&str>) -> anyhow::Result<Vec<ServicePort>> {
    let spec: Option<PodSpec> = match target {
        Body::Pod(pod) => pod.spec.clone(),
        Body::ReplicaSet(set) => set.spec.as_ref().and_then(|spec| spec.template.clone()?.spec),
        Body::Deployment(one) => one.spec.as_ref().and_then(|spec| spec.template.spec.clone()),
        Body::StatefulSet(one) => one.spec.as_ref().and_then(|spec| spec.template.spec.clone()),
        Body::DaemonSet(one) => one.spec.as_ref().and_then(|spec| spec.template.spec.clone()),
        Body::Service(service) => {
            let mut ports = service
                .spec
                .as_ref()
                .and_then(|spec| spec.ports.clone())
                .unwrap_or_default();
            ports.iter_mut().for_each(|port| port.node_port = None);
            return Ok(ports);
        }
        _ => None,
    };
    let containers = spec.map(|spec| spec.containers).unwrap_or_default();
    let found: Vec<_> = containers
        .into_iter()
        .flat_map(|container| container.ports.unwrap_or_default())
        .collect();
    if found.is_empty() {
        bail!("it names no container port: say which the Service has with --port");
    }
    let several = found.len() > 1;
    let port = |(index, port): (usize, k8s_openapi::api::core::v1::ContainerPort)| ServicePort {
        name: port
            .name
            .clone()
            .or_else(|| several.then(|| format!("port-{}", index + 1))),
        port: port.container_port,
        protocol: port.protocol.clone(),
        target_port: to.map(target_port),
        ..ServicePort::default()
    };
    Ok(found.into_iter().enumerate().map(port).collect())
}
