//! What a Service means where it says nothing (DEF-1 to DEF-3). Pure, and the same twice: defaulting what has been
//! defaulted changes nothing.

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerStatus, Service, ServiceSpec, ServiceStatus, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Families, families};
use crate::allocate::Holding;

/// Seconds a ClientIP affinity lasts if nothing is said (AFF-2).
const AFFINITY_SECONDS: i32 = 10_800;

/// DEF-2: NodePort, LoadBalancer, or ClusterIP with external IPs.
pub(super) fn is_externally_reachable(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") => true,
        Some("ClusterIP") => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
        _ => false,
    }
}

/// HC-1: load balancers ask nodes where the Service has endpoints.
pub(crate) fn is_health_checked(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local")
}

pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn set<T>(field: &mut Option<T>, value: T) {
    field.get_or_insert(value);
}

/// Fills in what `service` leaves out, in a cluster with these families; `held` is what it had before.
pub fn apply(service: &mut Service, cluster: Families, held: Option<&Holding>) {
    // Status is not the user's to write; what a manifest says there is an old printout. But for a load balancer's
    // addresses: a folder has no controller that would give them, so that here they are given by whoever writes it.
    let balanced = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    let mut written = service.status.take().and_then(|status| status.load_balancer);
    for ingress in written
        .iter_mut()
        .flat_map(|written| written.ingress.iter_mut().flatten())
    {
        if ingress.ip.is_some() {
            set(&mut ingress.ip_mode, "VIP".into());
        }
    }
    service.status = Some(ServiceStatus {
        load_balancer: written
            .filter(|_| balanced)
            .or_else(|| Some(LoadBalancerStatus::default())),
        ..ServiceStatus::default()
    });
    let spec = service.spec.get_or_insert_default();
    for text in [
        &mut spec.type_,
        &mut spec.session_affinity,
        &mut spec.cluster_ip,
        &mut spec.external_name,
        &mut spec.external_traffic_policy,
        &mut spec.load_balancer_ip,
    ] {
        // The empty text is how Kubernetes' own types say "not given".
        if text.as_deref() == Some("") {
            *text = None;
        }
    }
    set(&mut spec.type_, "ClusterIP".into());
    set(&mut spec.session_affinity, "None".into());
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {
            let config = spec
                .session_affinity_config
                .get_or_insert_with(SessionAffinityConfig::default);
            let client_ip = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            set(&mut client_ip.timeout_seconds, AFFINITY_SECONDS);
        }
        _ => spec.session_affinity_config = None,
    }
    for port in spec.ports.iter_mut().flatten() {
        if port.protocol.as_deref().is_none_or(str::is_empty) {
            port.protocol = Some("TCP".into());
        }
        port.name = port.name.take().filter(|name| !name.is_empty());
        port.node_port = port.node_port.filter(|number| *number != 0);
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(text)) => text.is_empty(),
            Some(IntOrString::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if let Some(true) = spec.publish_not_ready_addresses.map(|publish| !publish) {
        spec.publish_not_ready_addresses = None;
    }
    spec.selector = spec.selector.take().filter(|selector| !selector.is_empty());
    for list in [
        &mut spec.external_ips,
        &mut spec.load_balancer_source_ranges,
        &mut spec.cluster_ips,
    ] {
        *list = list.take().filter(|list| !list.is_empty());
    }
    match spec.type_.as_deref() {
        Some("ExternalName") => spec.internal_traffic_policy = None,
        _ => set(&mut spec.internal_traffic_policy, "Cluster".into()),
    }
    if is_externally_reachable(spec) {
        set(&mut spec.external_traffic_policy, "Cluster".into());
    }
    spec.health_check_node_port = spec.health_check_node_port.filter(|number| *number != 0);
    if spec.type_.as_deref() == Some("LoadBalancer") {
        set(&mut spec.allocate_load_balancer_node_ports, true);
    }
    if spec.type_.as_deref() != Some("ExternalName") {
        families::complete(spec, cluster, held);
    }
}

/// What the API server adds to a slice that a user wrote.
pub(super) fn endpoint_slice(slice: &mut EndpointSlice) {
    slice.ports = slice.ports.take().filter(|ports| !ports.is_empty());
    slice.endpoints = slice.endpoints.take().filter(|endpoints| !endpoints.is_empty());
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.conditions.get_or_insert_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::model::tests::service;

    const CLUSTER: Families = Families {
        primary: Family::V4,
        dual: true,
    };

    #[test]
    fn the_least_that_can_be_said_is_completed() {
        let mut plain = service("{ports: [{port: 80}]}");
        apply(&mut plain, CLUSTER, None);
        let spec = plain.spec.unwrap();
        assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
        assert_eq!(spec.internal_traffic_policy.as_deref(), Some("Cluster"));
        assert_eq!(
            spec.external_traffic_policy, None,
            "DEF-2: not reachable from outside"
        );
        let port = &spec.ports.unwrap()[0];
        assert_eq!(
            (port.protocol.as_deref(), &port.target_port),
            (Some("TCP"), &Some(IntOrString::Int(80)))
        );
    }

    #[test]
    fn defaulting_twice_is_defaulting_once() {
        for text in [
            "{ports: [{port: 80}]}",
            "{clusterIP: None}",
            "{type: NodePort, sessionAffinity: ClientIP}",
            "{ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]}",
        ] {
            let mut once = service(text);
            apply(&mut once, CLUSTER, None);
            let mut twice = once.clone();
            apply(&mut twice, CLUSTER, None);
            assert_eq!(once, twice);
        }
    }
}
