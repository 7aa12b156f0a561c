//! What a Service may not say (VAL-1 to VAL-20). Takes a defaulted Service, gives everything that is wrong with it, each
//! with its field; what is wrong with its families is `families`', allocation's own errors are `allocate`'s. One rule is one paragraph: more are added at the end
//! of the function of their field.

use std::collections::{BTreeMap, HashSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::defaults::{is_externally_reachable, is_headless, is_health_checked};
use super::field_error::{Errors, FieldError};
use super::{Families, families, given, ingress, names};

/// What endpoints that users write may not say.
pub(super) mod endpoints;

/// Everything wrong with a defaulted Service of a cluster with these families.
pub fn service(service: &Service, cluster: Families) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata(&service.metadata, &mut errors);
    let Some(spec) = &service.spec else {
        errors.required("spec", "a Service needs a spec");
        return errors.0;
    };
    kinds(spec, &mut errors);
    ports(spec, &mut errors);
    addresses(spec, &mut errors);
    families::check(spec, cluster, &mut errors);
    policies(spec, &mut errors);
    load_balancer(service, spec, &mut errors);
    load_balancer_status(service, &mut errors);
    errors.0
}

/// VAL-20: what may not change while a Service lives.
pub fn update(old: &Service, new: &Service) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (Some(old), Some(new)) = (&old.spec, &new.spec) else {
        return errors.0;
    };
    families::check_update(old, new, &mut errors);
    let class = |spec: &ServiceSpec| spec.load_balancer_class.clone();
    let load_balancer = |spec: &ServiceSpec| spec.type_.as_deref() == Some("LoadBalancer");
    if load_balancer(old) && load_balancer(new) && class(old) != class(new) {
        let message = "may not change while the type is LoadBalancer";
        errors.invalid("spec.loadBalancerClass", class(new).unwrap_or_default(), message);
    }
    let health = |spec: &ServiceSpec| spec.health_check_node_port;
    if is_health_checked(old) && is_health_checked(new) && health(new).is_some() && health(old) != health(new)
    {
        let message = "may not change while the type is LoadBalancer and externalTrafficPolicy Local";
        errors.forbidden("spec.healthCheckNodePort", message);
    }
    errors.0
}

/// VAL-1, VAL-2.
fn metadata(metadata: &ObjectMeta, errors: &mut Errors) {
    let name = metadata.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        errors.required("metadata.name", "a Service needs a name");
    } else if let Some(wrong) = names::label(name) {
        errors.invalid("metadata.name", format!("\"{name}\""), wrong);
    }
    labels("metadata.labels", metadata.labels.as_ref(), errors);
    for key in metadata.annotations.iter().flatten().map(|(key, _)| key) {
        for wrong in names::qualified(&key.to_ascii_lowercase()) {
            errors.invalid("metadata.annotations", format!("\"{key}\""), wrong);
        }
    }
    for (index, finalizer) in given(&metadata.finalizers).iter().enumerate() {
        let field = format!("metadata.finalizers[{index}]");
        for wrong in names::qualified(finalizer) {
            errors.invalid(&field, format!("\"{finalizer}\""), wrong);
        }
    }
    let annotation = |name: &str| metadata.annotations.as_ref().and_then(|all| all.get(name));
    let (new, old) = (
        "service.kubernetes.io/topology-mode",
        "service.kubernetes.io/topology-aware-hints",
    );
    if let (Some(mode), Some(hints)) = (annotation(new), annotation(old))
        && mode != hints
    {
        errors.invalid(
            &format!("metadata.annotations[{new}]"),
            mode,
            format!("must be equal to {old}"),
        );
    }
}

fn labels(field: &str, labels: Option<&BTreeMap<String, String>>, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        for wrong in names::qualified(key) {
            errors.invalid(field, format!("\"{key}\""), wrong);
        }
        if let Some(wrong) = names::label_value(value) {
            errors.invalid(field, format!("\"{value}\""), wrong);
        }
    }
}

/// VAL-8, VAL-12, VAL-13.
fn kinds(spec: &ServiceSpec, errors: &mut Errors) {
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    errors.one_of("spec.type", spec.type_.as_deref(), &kinds);
    match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") if is_headless(spec) => {
            errors.invalid(
                "spec.clusterIPs[0]",
                "None",
                "may be None for type ClusterIP only",
            );
        }
        Some("ExternalName") => external_name(spec, errors),
        _ => {}
    }
    labels("spec.selector", spec.selector.as_ref(), errors);
    errors.one_of(
        "spec.sessionAffinity",
        spec.session_affinity.as_deref(),
        &["ClientIP", "None"],
    );
    let client_ip = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = client_ip.and_then(|client_ip| client_ip.timeout_seconds)
        && !(1..=86_400).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.invalid(field, seconds, "must be from 1 to 86400 (one day)");
    }
}

fn external_name(spec: &ServiceSpec, errors: &mut Errors) {
    if spec.cluster_ip.is_some() || !given(&spec.cluster_ips).is_empty() {
        errors.forbidden("spec.clusterIPs", "may not be given for type ExternalName");
    }
    if !given(&spec.ip_families).is_empty() {
        errors.forbidden("spec.ipFamilies", "may not be given for type ExternalName");
    }
    if spec.ip_family_policy.is_some() {
        errors.forbidden("spec.ipFamilyPolicy", "may not be given for type ExternalName");
    }
    let name = spec.external_name.as_deref().unwrap_or_default();
    match name.strip_suffix('.').unwrap_or(name) {
        "" => errors.required(
            "spec.externalName",
            "type ExternalName needs the name it stands for",
        ),
        bare => {
            if let Some(wrong) = names::subdomain(bare) {
                errors.invalid("spec.externalName", format!("\"{name}\""), wrong);
            }
        }
    }
}

/// VAL-3 to VAL-7, VAL-11.
fn ports(spec: &ServiceSpec, errors: &mut Errors) {
    let ports = given(&spec.ports);
    let external_name = spec.type_.as_deref() == Some("ExternalName");
    if ports.is_empty() && !is_headless(spec) && !external_name {
        errors.required(
            "spec.ports",
            "a Service that is not headless needs at least one port",
        );
    }
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        one_port(&field, port, ports.len() > 1, errors);
        if let Some(name) = &port.name
            && !names.insert(name)
        {
            errors.duplicate(&format!("{field}.name"), name, "names of ports must differ");
        }
        if !numbers.insert((&port.protocol, port.port)) {
            let value = format!("{}/{}", port.port, port.protocol.as_deref().unwrap_or_default());
            errors.duplicate(&field, value, "ports of one protocol must differ");
        }
        let Some(number) = port.node_port else { continue };
        match spec.type_.as_deref() {
            Some("ClusterIP") => {
                let message = "may not be given for type ClusterIP; type: NodePort has node ports";
                errors.forbidden(&format!("{field}.nodePort"), message);
            }
            Some("NodePort" | "LoadBalancer") if !node_ports.insert((&port.protocol, number)) => {
                let message = "node ports of one protocol must differ";
                errors.duplicate(&format!("{field}.nodePort"), number, message);
            }
            _ => {}
        }
    }
}

fn one_port(field: &str, port: &ServicePort, one_of_several: bool, errors: &mut Errors) {
    const RANGE: &str = "must be from 1 to 65535";
    match port.name.as_deref() {
        None if one_of_several => {
            errors.required(&format!("{field}.name"), "each of several ports needs a name");
        }
        Some(name) => {
            if let Some(wrong) = names::label(name) {
                errors.invalid(&format!("{field}.name"), format!("\"{name}\""), wrong);
            }
        }
        None => {}
    }
    let legal = |number: i32| (1..=65_535).contains(&number);
    if !legal(port.port) {
        errors.invalid(&format!("{field}.port"), port.port, RANGE);
    }
    errors.one_of(
        &format!("{field}.protocol"),
        port.protocol.as_deref(),
        &["SCTP", "TCP", "UDP"],
    );
    match &port.target_port {
        Some(IntOrString::Int(number)) if !legal(*number) => {
            errors.invalid(&format!("{field}.targetPort"), number, RANGE);
        }
        Some(IntOrString::String(name)) => {
            if let Some(wrong) = names::port_name(name) {
                errors.invalid(&format!("{field}.targetPort"), format!("\"{name}\""), wrong);
            }
        }
        _ => {}
    }
    if let Some(protocol) = &port.app_protocol {
        for wrong in names::qualified(protocol) {
            errors.invalid(&format!("{field}.appProtocol"), format!("\"{protocol}\""), wrong);
        }
    }
}

/// VAL-15.
fn addresses(spec: &ServiceSpec, errors: &mut Errors) {
    for (index, text) in given(&spec.external_ips).iter().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        match names::address(text) {
            Err(wrong) => errors.invalid(&field, format!("\"{text}\""), wrong),
            Ok(address) => {
                if let Some(wrong) = names::unusable(address) {
                    errors.invalid(&field, text, wrong);
                }
            }
        }
    }
}

/// VAL-9, VAL-10, VAL-18.
fn policies(spec: &ServiceSpec, errors: &mut Errors) {
    let local = ["Cluster", "Local"];
    match spec.external_traffic_policy.as_deref() {
        Some(policy) if !is_externally_reachable(spec) => {
            let message = "may be given only where a Service is reachable from outside: type NodePort or LoadBalancer, \
                           or with externalIPs";
            errors.invalid("spec.externalTrafficPolicy", policy, message);
        }
        None if !is_externally_reachable(spec) => {}
        policy => errors.one_of("spec.externalTrafficPolicy", policy, &local),
    }
    if spec.type_.as_deref() != Some("ExternalName") || spec.internal_traffic_policy.is_some() {
        errors.one_of(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &local,
        );
    }
    if let Some(number) = spec.health_check_node_port
        && !is_health_checked(spec)
    {
        let message = "may be given only for type LoadBalancer with externalTrafficPolicy Local";
        errors.invalid("spec.healthCheckNodePort", number, message);
    }
    if let Some(distribution) = spec.traffic_distribution.as_deref() {
        let allowed = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        errors.one_of("spec.trafficDistribution", Some(distribution), &allowed);
    }
}

/// VAL-17. Only of load balancers: what the manifest of another type says of its status is not read.
fn load_balancer_status(service: &Service, errors: &mut Errors) {
    for (index, one) in ingress(service).iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{index}].{name}");
        if let Some(text) = &one.ip
            && let Err(wrong) = names::address(text)
        {
            errors.invalid(&field("ip"), format!("\"{text}\""), wrong);
        }
        match &one.ip_mode {
            Some(_) if one.ip.is_none() => {
                errors.forbidden(&field("ipMode"), "may be given only beside an ip");
            }
            mode => {
                if mode.is_some() {
                    errors.one_of(&field("ipMode"), mode.as_deref(), &["Proxy", "VIP"]);
                }
            }
        }
        if let Some(hostname) = &one.hostname {
            let wrong = names::subdomain(hostname);
            let is_address = hostname.parse::<std::net::IpAddr>().is_ok();
            let wrong = wrong.or_else(|| is_address.then_some("must be a DNS name, not an IP address"));
            if let Some(wrong) = wrong {
                errors.invalid(&field("hostname"), format!("\"{hostname}\""), wrong);
            }
        }
    }
}

/// VAL-16. The field of the ranges is spelt as the API server spells it.
fn load_balancer(service: &Service, spec: &ServiceSpec, errors: &mut Errors) {
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let range_error = |text: &str| {
        let (address, length) = text.trim().split_once('/')?;
        let plain = length == "0" || !length.starts_with('0');
        let network: IpNet = text.trim().parse().ok()?;
        (plain && names::address(address).is_ok() && network.addr() == network.network()).then_some(())
    };
    let wanted = "must be a network such as 192.0.2.0/24, without bits beyond its length";
    let ranges = given(&spec.load_balancer_source_ranges);
    if !ranges.is_empty() && !is_load_balancer {
        errors.forbidden(
            "spec.LoadBalancerSourceRanges",
            "may be given for type LoadBalancer only",
        );
    } else {
        for (index, range) in ranges.iter().enumerate() {
            if range_error(range).is_none() {
                let field = format!("spec.LoadBalancerSourceRanges[{index}]");
                errors.invalid(&field, format!("\"{range}\""), wanted);
            }
        }
    }
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges";
    if let Some(text) = service
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(annotation))
        && ranges.is_empty()
    {
        let field = format!("metadata.annotations[{annotation}]");
        if !is_load_balancer {
            errors.forbidden(&field, "may be given for type LoadBalancer only");
        } else if !text.trim().is_empty() && text.split(',').any(|range| range_error(range).is_none()) {
            errors.invalid(&field, format!("\"{text}\""), wanted);
        }
    }
    if spec.allocate_load_balancer_node_ports.is_some() && !is_load_balancer {
        errors.forbidden(
            "spec.allocateLoadBalancerNodePorts",
            "may be given for type LoadBalancer only",
        );
    }
    match &spec.load_balancer_class {
        Some(_) if !is_load_balancer => {
            errors.forbidden(
                "spec.loadBalancerClass",
                "may be given for type LoadBalancer only",
            );
        }
        Some(class) => {
            for wrong in names::qualified(class) {
                errors.invalid("spec.loadBalancerClass", format!("\"{class}\""), wrong);
            }
        }
        None => {}
    }
}
