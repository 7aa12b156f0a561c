//! A Service as meant: every value legal by type. Made from a Kubernetes object that has been defaulted, validated and
//! given its addresses; never changed after.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_dataplane::addr::Protocol;

use super::{defaults, names};

/// What names a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name in it.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a service port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This number on every pod.
    Number(u16),
    /// The container port of this name, which may differ from pod to pod (EPC-5).
    Name(String),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// "" if unnamed.
    pub name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// What clients address.
    pub port: u16,
    /// What pods listen on.
    pub target: Target,
    /// The port on every node, if it has one.
    pub node_port: Option<u16>,
    /// Carried through to EndpointSlices.
    pub app_protocol: Option<String>,
}

/// A Service as meant.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its ports, in the order written.
    pub ports: Vec<ServicePort>,
    /// Its cluster IPs; none if it is headless or stands for an external name.
    pub cluster_ips: Vec<IpAddr>,
    /// spec.externalIPs.
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer IPs that are addressed here: `status.loadBalancer.ingress` in VIP mode (SVC-9, SVC-10).
    pub load_balancer_ips: Vec<IpAddr>,
    /// spec.loadBalancerSourceRanges, of both families.
    pub source_ranges: Vec<IpNet>,
    /// Where load balancers ask whether this node has endpoints (HC-1).
    pub health_check_node_port: Option<u16>,
    /// ClientIP affinity in seconds, 0 for none.
    pub affinity_seconds: u32,
    /// externalTrafficPolicy: Local.
    pub external_local: bool,
    /// internalTrafficPolicy: Local.
    pub internal_local: bool,
    /// `clusterIP: None`.
    pub headless: bool,
    /// type: ExternalName.
    pub external_name: bool,
    /// Left to another proxy (SVC-4): nothing of it is served. Its cluster IP is then one that the Service range has no Service
    /// for, and is dropped (VD-5), as by kube-proxy: passed on by the default route, it would come back from whoever has the
    /// range by way of this gateway. Its addresses outside of the range are passed on.
    pub others: bool,
    /// As a Kubernetes object: defaulted, with what it was given.
    pub object: Arc<core::Service>,
}

impl Service {
    /// The meaning of a valid object.
    pub(crate) fn new(name: ServiceName, object: core::Service) -> Result<Self, String> {
        let spec = object.spec.as_ref().ok_or("has no spec")?;
        let number = |n: i32| u16::try_from(n).map_err(|_| format!("{n} is not a port"));
        let port = |port: &core::ServicePort| -> Result<ServicePort, String> {
            Ok(ServicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_deref()).ok_or("has an unknown protocol")?,
                port: number(port.port)?,
                target: match &port.target_port {
                    Some(IntOrString::Int(n)) => Target::Number(number(*n)?),
                    Some(IntOrString::String(name)) => Target::Name(name.clone()),
                    None => Target::Number(number(port.port)?),
                },
                node_port: port.node_port.map(number).transpose()?,
                app_protocol: port.app_protocol.clone(),
            })
        };
        let addresses = |list: &Option<Vec<String>>| -> Vec<IpAddr> {
            list.iter()
                .flatten()
                .filter_map(|text| names::old_address(text))
                .collect()
        };
        let affinity = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref());
        let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        let label = "service.kubernetes.io/service-proxy-name";
        let external_name = spec.type_.as_deref() == Some("ExternalName");
        Ok(Self {
            name,
            ports: spec.ports.iter().flatten().map(port).collect::<Result<_, _>>()?,
            cluster_ips: if external_name {
                Vec::new()
            } else {
                addresses(&spec.cluster_ips)
            },
            external_ips: addresses(&spec.external_ips),
            load_balancer_ips: load_balancer_ips(&object),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|text| names::old_network(text))
                .collect(),
            health_check_node_port: spec.health_check_node_port.map(number).transpose()?,
            affinity_seconds: affinity
                .and_then(|config| config.timeout_seconds)
                .and_then(|seconds| u32::try_from(seconds).ok())
                .unwrap_or(0),
            external_local: local(&spec.external_traffic_policy),
            internal_local: local(&spec.internal_traffic_policy),
            headless: defaults::is_headless(spec),
            external_name,
            others: object
                .metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.contains_key(label)),
            object: Arc::new(object),
        })
    }

    /// The selector, if it selects anything (EPC-1).
    pub fn selector(&self) -> Option<&BTreeMap<String, String>> {
        let selector = self.object.spec.as_ref()?.selector.as_ref()?;
        (!selector.is_empty() && !self.external_name).then_some(selector)
    }

    /// Whether the dataplane serves it (SVC-1, SVC-4).
    pub fn is_proxied(&self) -> bool {
        !self.headless && !self.external_name && !self.others && !self.cluster_ips.is_empty()
    }
}

fn load_balancer_ips(object: &core::Service) -> Vec<IpAddr> {
    let balanced = |spec: &core::ServiceSpec| spec.type_.as_deref() == Some("LoadBalancer");
    let ingress = ingress(object).iter();
    ingress
        .filter(|_| object.spec.as_ref().is_some_and(balanced))
        .filter(|one| one.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
        .filter_map(|one| names::old_address(one.ip.as_deref()?))
        .filter(|address| names::unusable(*address).is_none())
        .collect()
}

/// What is said of a Service's load balancer, in its status.
pub fn ingress(object: &core::Service) -> &[core::LoadBalancerIngress] {
    let status = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    status
        .and_then(|status| status.ingress.as_deref())
        .unwrap_or_default()
}

/// The number of a protocol's name; TCP if it has none.
pub fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP" | "") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        Some(_) => None,
    }
}
