//! Slices as Endpoints objects, the older form, which `get endpoints` shows. Nothing else reads it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::EndpointPort;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Slices;
use crate::model::Service;

/// Endpoints objects, as `get endpoints` shows them: those users made, and one for every Service with a selector.
pub fn endpoints(services: &[Arc<Service>], users: &[Arc<Endpoints>], slices: &Slices) -> Vec<Endpoints> {
    let mut found: Vec<Endpoints> = users.iter().map(|endpoints| (**endpoints).clone()).collect();
    for service in services.iter().filter(|service| service.selector().is_some()) {
        let own = slices.get(&service.name).into_iter().flatten();
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
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
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

fn core_port(port: &EndpointPort) -> k8s_openapi::api::core::v1::EndpointPort {
    k8s_openapi::api::core::v1::EndpointPort {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone(),
        app_protocol: port.app_protocol.clone(),
    }
}
