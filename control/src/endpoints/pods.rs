//! Pods, and what is asked about them: which have these labels, where they are, what their ports are called.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use sluice_dataplane::addr::Protocol;

use super::ZONE;
use super::hints::{self, Shares};
use crate::model::{Model, protocol};

/// All pods.
pub(super) struct Pods<'m> {
    /// By namespace and label: a selector is answered from its rarest pair instead of from all pods.
    by_label: HashMap<(&'m str, &'m str, &'m str), Vec<&'m Arc<Pod>>>,
    /// Zone of each node, `None` if it has none.
    pub(super) nodes: HashMap<&'m str, Option<&'m String>>,
    pub(super) shares: Shares,
}

impl<'m> Pods<'m> {
    pub(super) fn new(model: &'m Model) -> Self {
        let mut by_label: HashMap<_, Vec<&Arc<Pod>>> = HashMap::new();
        for pod in model.pods() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for (key, value) in pod.metadata.labels.iter().flatten() {
                by_label
                    .entry((namespace, key.as_str(), value.as_str()))
                    .or_default()
                    .push(pod);
            }
        }
        let zone = |labels: &'m Option<BTreeMap<String, String>>| labels.as_ref()?.get(ZONE);
        let nodes = model
            .nodes()
            .filter_map(|node| Some((node.metadata.name.as_deref()?, zone(&node.metadata.labels))))
            .collect();
        Self {
            by_label,
            nodes,
            shares: hints::shares(model.nodes()),
        }
    }

    /// Pods with all labels of `selector`, by name.
    pub(super) fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<&'m Arc<Pod>> {
        let rarest = selector
            .iter()
            .map(
                |(key, value)| match self.by_label.get(&(namespace, key.as_str(), value.as_str())) {
                    Some(pods) => pods.as_slice(),
                    None => &[],
                },
            )
            .min_by_key(|pods| pods.len())
            .unwrap_or_default();
        let matches = |pod: &&&Arc<Pod>| {
            let labels = pod.metadata.labels.as_ref();
            selector
                .iter()
                .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        };
        rarest.iter().filter(matches).copied().collect()
    }

    /// Zone of each node, for later.
    pub(super) fn zones(&self) -> BTreeMap<String, Option<String>> {
        let zone = |(node, zone): (&&str, &Option<&String>)| ((*node).to_owned(), zone.cloned());
        self.nodes.iter().map(zone).collect()
    }

    /// Whether the node is one we may believe in: declared, or no node is declared at all (EPC-2).
    pub(super) fn knows(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.contains_key(node)
    }
}

/// EPC-5: the number of the container port `name`; of sidecars too.
pub(super) fn container_port(pod: &Pod, name: &str, wanted: Protocol) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let mut ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .find(|port| port.name.as_deref() == Some(name) && protocol(port.protocol.as_deref()) == Some(wanted))
        .map(|port| port.container_port)
}

/// The pod's address of a family, `IPv4` or `IPv6`.
pub(super) fn address_of(pod: &Pod, family: &str) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let texts: Vec<&str> = match listed.clone().next() {
        Some(_) => listed.collect(),
        None => status.pod_ip.as_deref().into_iter().collect(),
    };
    texts
        .into_iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .find(|ip| ip.is_ipv6() == (family == "IPv6"))
}
