//! Slices as Endpoints objects, the older form, which `get endpoints` shows. Nothing else reads it.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::EndpointPort;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Slices;
use crate::model::{Service, ServiceName};

/// Endpoints objects, as `get endpoints` shows them: those users made, and one for every Service with a selector.
pub fn endpoints(services: &[Arc<Service>], users: &[Arc<Endpoints>], slices: &Slices) -> Vec<Endpoints> {
    let selecting = || services.iter().filter(|service| service.selector().is_some());
    // A Service that has a selector by now makes its own of the same name.
    let made: HashSet<&ServiceName> = selecting().map(|service| &service.name).collect();
    let is_users = |endpoints: &&Arc<Endpoints>| {
        let metadata = &endpoints.metadata;
        let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone());
        !made.contains(&ServiceName {
            namespace: namespace.unwrap_or_default(),
            name: name.unwrap_or_default(),
        })
    };
    let users = users.iter().filter(is_users);
    let mut found: Vec<Endpoints> = users.map(|endpoints| defaulted(endpoints)).collect();
    for service in selecting() {
        // As upstream: of the first family alone, the only one there was when these objects were made.
        let spec = service.object.spec.as_ref();
        let primary = spec.and_then(|spec| spec.ip_families.as_ref()?.first());
        let own = slices.get(&service.name).into_iter().flatten();
        let own = own.filter(|slice| Some(&slice.address_type) == primary);
        let mut subsets: Vec<EndpointSubset> = Vec::new();
        for slice in own {
            let ports: Vec<_> = slice.ports.iter().flatten().map(core_port).collect();
            let ports = (!ports.is_empty()).then_some(ports);
            // As upstream: a pod without any of the ports is in no subset, unless the Service has no ports at all.
            if ports.is_none() && !service.ports.is_empty() {
                continue;
            }
            let index = subsets
                .iter()
                .position(|subset| subset.ports == ports)
                .unwrap_or_else(|| {
                    subsets.push(EndpointSubset {
                        ports: ports.clone(),
                        ..EndpointSubset::default()
                    });
                    subsets.len() - 1
                });
            for endpoint in slice.endpoints.iter().flatten() {
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                // These objects have no word for a pod that ends, and none for one that is nowhere.
                let ending = conditions.and_then(|c| c.terminating).unwrap_or(false) && !ready;
                if ending || endpoint.node_name.is_none() {
                    continue;
                }
                let subset = &mut subsets[index];
                let list = if ready {
                    &mut subset.addresses
                } else {
                    &mut subset.not_ready_addresses
                };
                list.get_or_insert_default().push(EndpointAddress {
                    ip: endpoint.addresses.first().cloned().unwrap_or_default(),
                    hostname: endpoint.hostname.clone(),
                    node_name: endpoint.node_name.clone(),
                    target_ref: endpoint.target_ref.clone(),
                });
            }
        }
        subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
        found.push(Endpoints {
            metadata: ObjectMeta {
                name: Some(service.name.name.clone()),
                namespace: Some(service.name.namespace.clone()),
                labels: service.object.metadata.labels.clone(),
                creation_timestamp: service.object.metadata.creation_timestamp.clone(),
                ..ObjectMeta::default()
            },
            subsets: (!subsets.is_empty()).then_some(subsets),
        });
    }
    found.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
    found
}

/// What the API server adds to one that a user wrote.
fn defaulted(endpoints: &Endpoints) -> Endpoints {
    let mut endpoints = endpoints.clone();
    let subsets = endpoints.subsets.iter_mut().flatten();
    for port in subsets.flat_map(|subset| subset.ports.iter_mut().flatten()) {
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
    endpoints
}

fn core_port(port: &EndpointPort) -> k8s_openapi::api::core::v1::EndpointPort {
    k8s_openapi::api::core::v1::EndpointPort {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone(),
        app_protocol: port.app_protocol.clone(),
    }
}
