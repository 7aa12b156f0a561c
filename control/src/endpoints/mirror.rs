//! Endpoints objects as EndpointSlices (EPM-2). Takes one object whose Service has no selector, gives its slices.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{MANAGED_BY, PortKey, SERVICE_NAME, owner};
use crate::model::ServiceName;

/// EPM-2, EPM-4.
const MIRRORED_PER_SUBSET: usize = 1000;
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What kubectl leaves behind is not worth carrying over.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The slices of `endpoints`; none if it asks not to be mirrored.
pub(super) fn slices(service: &ServiceName, endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let given = &endpoints.metadata;
    let skipped = given
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP))
        .is_some_and(|value| value == "true");
    if skipped
        || given
            .annotations
            .as_ref()
            .is_some_and(|annotations| annotations.contains_key(LEADER))
    {
        return Vec::new();
    }
    // An address in several subsets has the ports of all of them, and is not ready if any says so.
    let mut by_address: BTreeMap<IpAddr, (bool, Vec<PortKey>, &EndpointAddress)> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = subset.ports.iter().flatten().map(|port| PortKey {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number: port.port,
            app_protocol: port.app_protocol.clone(),
        });
        let ports: Vec<PortKey> = ports.collect();
        let ready = subset.addresses.iter().flatten().map(|address| (true, address));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (false, address));
        for (ready, address) in ready.chain(not_ready).take(MIRRORED_PER_SUBSET) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                continue;
            };
            let entry = by_address
                .entry(ip)
                .or_insert_with(|| (true, Vec::new(), address));
            entry.0 &= ready;
            entry.1.extend(ports.iter().cloned());
        }
    }
    let mut by_ports: BTreeMap<(bool, Vec<PortKey>), Vec<Endpoint>> = BTreeMap::new();
    for (ip, (ready, mut ports, address)) in by_address {
        ports.sort();
        ports.dedup();
        by_ports.entry((ip.is_ipv6(), ports)).or_default().push(Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                ..EndpointConditions::default()
            }),
            hostname: address.hostname.clone().filter(|name| !name.is_empty()),
            node_name: address.node_name.clone(),
            target_ref: address.target_ref.clone(),
            ..Endpoint::default()
        });
    }
    let mut labels = given.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.name.clone());
    labels.insert(
        MANAGED_BY.into(),
        "endpointslicemirroring-controller.k8s.io".into(),
    );
    let mut annotations = given.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    let slice = |index: usize, (v6, ports): (bool, Vec<PortKey>), endpoints: Vec<Endpoint>| {
        let ports: Vec<EndpointPort> = ports.iter().map(PortKey::port).collect();
        EndpointSlice {
            address_type: if v6 { "IPv6" } else { "IPv4" }.into(),
            endpoints: Some(endpoints),
            metadata: ObjectMeta {
                name: Some(format!("{}-mirrored-{index}", service.name)),
                namespace: Some(service.namespace.clone()),
                generate_name: Some(format!("{}-", service.name)),
                creation_timestamp: given.creation_timestamp.clone(),
                owner_references: Some(vec![owner("Endpoints", &service.name)]),
                labels: Some(labels.clone()),
                annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                ..ObjectMeta::default()
            },
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    by_ports
        .into_iter()
        .enumerate()
        .map(|(index, (ports, endpoints))| slice(index, ports, endpoints))
        .collect()
}
