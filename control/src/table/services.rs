//! Services, and who stands behind them, as rows.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Rows, age, few, name, or, pairs};
use crate::model::ingress;

impl Rows for Service {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "TYPE",
        "CLUSTER-IP",
        "EXTERNAL-IP",
        "PORT(S)",
        "AGE",
        "SELECTOR",
    ];
    const WIDE: usize = 1;
    const KIND: &'static str = "service";
    const PLURAL: &'static str = "services";
    const FIELDS: &'static [&'static str] = &["spec.clusterIP", "spec.type"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        let cluster_ip = spec
            .cluster_ips
            .iter()
            .flatten()
            .next()
            .or(spec.cluster_ip.as_ref())
            .cloned();
        let ports = spec.ports.iter().flatten().map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            match port.node_port {
                Some(node_port) if node_port > 0 => format!("{}:{node_port}/{protocol}", port.port),
                _ => format!("{}/{protocol}", port.port),
            }
        });
        vec![
            name(&self.metadata),
            spec.type_.clone().unwrap_or_default(),
            or(cluster_ip.unwrap_or_default(), "<none>"),
            external_ip(self),
            or(ports.collect::<Vec<_>>().join(","), "<none>"),
            age(self.metadata.creation_timestamp.as_ref(), now),
            or(pairs(spec.selector.as_ref()), "<none>"),
        ]
    }
}

/// GET-3.
fn external_ip(service: &Service) -> String {
    let Some(spec) = &service.spec else {
        return "<none>".into();
    };
    let external = spec.external_ips.clone().unwrap_or_default();
    match spec.type_.as_deref() {
        Some("ExternalName") => spec.external_name.clone().unwrap_or_default(),
        Some("LoadBalancer") => {
            let mut all: Vec<String> = ingress(service)
                .iter()
                .filter_map(|ingress| {
                    ingress
                        .ip
                        .clone()
                        .filter(|ip| !ip.is_empty())
                        .or_else(|| ingress.hostname.clone())
                })
                .filter(|text| !text.is_empty())
                .collect();
            all.sort();
            all.dedup();
            all.extend(external);
            or(all.join(","), "<pending>")
        }
        _ => or(external.join(","), "<none>"),
    }
}

impl Rows for Endpoints {
    const COLUMNS: &'static [&'static str] = &["NAME", "ENDPOINTS", "AGE"];
    const WIDE: usize = 0;
    const KIND: &'static str = "endpoints";
    const PLURAL: &'static str = "endpoints";

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let mut all = Vec::new();
        for subset in self.subsets.iter().flatten() {
            let addresses = || {
                subset
                    .addresses
                    .iter()
                    .flatten()
                    .map(|address| address.ip.clone())
            };
            let host = |ip: String| if ip.contains(':') { format!("[{ip}]") } else { ip };
            match subset.ports.as_deref().unwrap_or_default() {
                [] => all.extend(addresses()),
                ports => {
                    for port in ports {
                        all.extend(addresses().map(|ip| format!("{}:{}", host(ip), port.port)));
                    }
                }
            }
        }
        let count = all.len();
        let endpoints = few(all, "<none>", count);
        vec![
            name(&self.metadata),
            endpoints,
            age(self.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

impl Rows for EndpointSlice {
    const COLUMNS: &'static [&'static str] = &["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"];
    const WIDE: usize = 0;
    const KIND: &'static str = "endpointslice.discovery.k8s.io";
    const PLURAL: &'static str = "endpointslices.discovery.k8s.io";

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let number = |port: Option<i32>| port.map_or_else(|| "*".to_owned(), |port| port.to_string());
        let ports: Vec<String> = self
            .ports
            .iter()
            .flatten()
            .map(|port| number(port.port))
            .collect();
        let addresses: Vec<String> = self
            .endpoints
            .iter()
            .flatten()
            .flat_map(|endpoint| endpoint.addresses.iter().cloned())
            .collect();
        let (port_count, address_count) = (ports.len(), addresses.len());
        vec![
            name(&self.metadata),
            self.address_type.clone(),
            few(ports, "<unset>", port_count),
            few(addresses, "<unset>", address_count),
            age(self.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}
