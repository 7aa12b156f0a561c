//! One Service in full.

use std::fmt::Write as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Condition, Described, Event, Lines, is, joined, or_none, pairs, table};
use crate::api::{self, List};
use crate::model;
use crate::table::few;

/// The Service of this name, and its endpoints, as the control process tells of them.
pub(super) fn described(socket: &Path, namespace: &str, name: &str) -> anyhow::Result<Described> {
    let services: Vec<Service> = api::ask_of_service(socket, List::Services, namespace, name)?;
    let events: Vec<Event> = api::ask_of_service(socket, List::Problems, namespace, name)?;
    let Some(service) = services.first() else {
        let mut reason = format!("Error from server (NotFound): services \"{name}\" not found");
        for event in events {
            let _ = write!(reason, "\nits manifest is not taken: {}", event.text());
        }
        return Ok(Err(reason));
    };
    let slices: Vec<EndpointSlice> = api::ask_of_service(socket, List::EndpointSlices, namespace, name)?;
    Ok(Ok(describe(service, &slices, &events)))
}

/// The whole description. Pure.
fn describe(service: &Service, slices: &[EndpointSlice], events: &[Event]) -> String {
    let spec = service.spec.clone().unwrap_or_default();
    let mut lines = Lines::default();
    lines.add("Name", service.metadata.name.as_deref().unwrap_or_default());
    lines.add(
        "Namespace",
        service.metadata.namespace.as_deref().unwrap_or_default(),
    );
    lines.several("Labels", pairs(&service.metadata.labels, "="));
    lines.several("Annotations", pairs(&service.metadata.annotations, ": "));
    lines.add("Selector", or_none(pairs(&spec.selector, "=").join(",")));
    lines.add("Type", spec.type_.as_deref().unwrap_or_default());
    lines.given("IP Family Policy", spec.ip_family_policy.as_ref());
    lines.add("IP Families", or_none(joined(&spec.ip_families)));
    lines.add("IP", spec.cluster_ip.as_deref().unwrap_or_default());
    lines.add("IPs", or_none(joined(&spec.cluster_ips)));
    lines.given(
        "External IPs",
        Some(joined(&spec.external_ips)).filter(|ips| !ips.is_empty()),
    );
    lines.given("Desired LoadBalancer IP", spec.load_balancer_ip.as_ref());
    lines.given("External Name", spec.external_name.as_ref());
    let ingress = ingress(service);
    lines.given(
        "LoadBalancer Ingress",
        (!ingress.is_empty()).then(|| ingress.join(", ")),
    );
    for port in spec.ports.iter().flatten() {
        one_port(port, slices, &mut lines);
    }
    lines.add(
        "Session Affinity",
        spec.session_affinity.as_deref().unwrap_or_default(),
    );
    lines.given("External Traffic Policy", spec.external_traffic_policy.as_ref());
    lines.given("Internal Traffic Policy", spec.internal_traffic_policy.as_ref());
    lines.given("Traffic Distribution", spec.traffic_distribution.as_ref());
    lines.given("HealthCheck NodePort", spec.health_check_node_port);
    let ranges = joined(&spec.load_balancer_source_ranges);
    lines.given(
        "LoadBalancer Source Ranges",
        (!ranges.is_empty()).then_some(ranges),
    );
    lines.text() + &frontends(service, &spec) + &endpoints(slices) + &occurred(events)
}

fn one_port(port: &ServicePort, slices: &[EndpointSlice], lines: &mut Lines) {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let name = port.name.as_deref().unwrap_or("<unset>");
    lines.add("Port", format!("{name}  {}/{protocol}", port.port));
    lines.add(
        "TargetPort",
        match &port.target_port {
            Some(IntOrString::String(name)) => format!("{name}/{protocol}"),
            Some(IntOrString::Int(number)) => format!("{number}/{protocol}"),
            None => format!("{}/{protocol}", port.port),
        },
    );
    lines.given(
        "NodePort",
        port.node_port
            .map(|number| format!("{name}  {number}/{protocol}")),
    );
    lines.add("Endpoints", ready(port, slices));
}

/// The ready endpoints of a port, the first few.
fn ready(port: &ServicePort, slices: &[EndpointSlice]) -> String {
    let wanted = port.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for slice in slices {
        let named =
            |port: &&k8s_openapi::api::discovery::v1::EndpointPort| port.name.as_deref() == Some(wanted);
        for number in slice
            .ports
            .iter()
            .flatten()
            .filter(named)
            .filter_map(|port| port.port)
        {
            for endpoint in slice
                .endpoints
                .iter()
                .flatten()
                .filter(|endpoint| is(endpoint, Condition::Ready))
            {
                found.extend(endpoint.addresses.first().map(|address| at(address, number)));
            }
        }
    }
    let count = found.len();
    few(found, "", count)
}

fn at(address: &str, port: impl ToString) -> String {
    let port = port.to_string();
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn ingress(service: &Service) -> Vec<String> {
    let text = |one: &k8s_openapi::api::core::v1::LoadBalancerIngress| match (&one.ip, &one.ip_mode) {
        (Some(ip), Some(mode)) => Some(format!("{ip} ({mode})")),
        (Some(ip), None) => Some(ip.clone()),
        (None, _) => one.hostname.clone(),
    };
    model::ingress(service).iter().filter_map(text).collect()
}

/// What clients can address.
fn frontends(service: &Service, spec: &ServiceSpec) -> String {
    let mut rows = vec![["Kind", "Address", "Port"].map(str::to_owned).to_vec()];
    let cluster_ips = spec.cluster_ips.iter().flatten().filter(|ip| *ip != "None");
    let cluster_ips = cluster_ips.map(|ip| ("ClusterIP", ip.clone()));
    let balanced = model::ingress(service)
        .iter()
        .filter(|one| one.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|one| Some(("LoadBalancer", one.ip.clone()?)));
    let external = spec
        .external_ips
        .iter()
        .flatten()
        .map(|ip| ("ExternalIP", ip.clone()));
    let addresses: Vec<_> = cluster_ips.chain(balanced).chain(external).collect();
    for port in spec.ports.iter().flatten() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let row = |kind: &str, address: &str, number: i32| {
            vec![
                kind.to_owned(),
                address.to_owned(),
                format!("{number}/{protocol}"),
            ]
        };
        rows.extend(
            addresses
                .iter()
                .map(|(kind, address)| row(kind, address, port.port)),
        );
        rows.extend(port.node_port.map(|number| row("NodePort", "<node>", number)));
    }
    match rows.len() {
        1 => "Frontends:  <none>\n".into(),
        _ => format!("Frontends:\n{}", table(&rows)),
    }
}

fn endpoints(slices: &[EndpointSlice]) -> String {
    let mut rows = vec![
        [
            "Address",
            "Ports",
            "Ready",
            "Serving",
            "Terminating",
            "Node",
            "Zone",
            "Target",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for slice in slices {
        let port = |port: &k8s_openapi::api::discovery::v1::EndpointPort| {
            let number = port.port.map_or_else(|| "*".into(), |number| number.to_string());
            format!("{number}/{}", port.protocol.as_deref().unwrap_or("TCP"))
        };
        let ports: Vec<_> = slice.ports.iter().flatten().map(port).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let text = |text: &Option<String>| or_none(text.clone().unwrap_or_default());
            let target = endpoint
                .target_ref
                .as_ref()
                .and_then(|target| Some(format!("{}/{}", target.kind.as_deref()?, target.name.as_deref()?)));
            rows.push(vec![
                endpoint.addresses.join(","),
                or_none(ports.join(",")),
                is(endpoint, Condition::Ready).to_string(),
                is(endpoint, Condition::Serving).to_string(),
                is(endpoint, Condition::Terminating).to_string(),
                text(&endpoint.node_name),
                text(&endpoint.zone),
                or_none(target.unwrap_or_default()),
            ]);
        }
    }
    match rows.len() {
        1 => "Conditions:  <none>\n".into(),
        _ => format!("Conditions:\n{}", table(&rows)),
    }
}

fn occurred(events: &[Event]) -> String {
    if events.is_empty() {
        return "Events:  <none>\n".into();
    }
    let mut rows = vec![["Type", "From", "Message"].map(str::to_owned).to_vec()];
    let kind = |event: &Event| {
        if event.severity == "note" {
            "Normal"
        } else {
            "Warning"
        }
        .to_owned()
    };
    rows.extend(
        events
            .iter()
            .map(|event| vec![kind(event), "control".to_owned(), event.text()]),
    );
    format!("Events:\n{}", table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints;
    use crate::model::tests::{model, reset};

    #[test]
    fn a_service_is_described_as_kubectl_does_with_its_frontends_and_endpoints_after() {
        let mut model = model();
        model.apply(reset(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {app: web, tier: front}}\nspec:\n  type: LoadBalancer\n  \
             clusterIP: 10.96.0.5\n  selector: {app: web}\n  ports: [{name: http, port: 80, targetPort: web, nodePort: 30080}]\n\
             status: {loadBalancer: {ingress: [{ip: 203.0.113.5}]}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: web}}\n\
             spec: {nodeName: n1, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\n\
             status: {podIP: 10.244.0.7, conditions: [{type: Ready, status: \"True\"}]}\n",
        ));
        assert!(model.problems().is_empty(), "{:?}", model.problems());
        let service = model.services().next().unwrap().object.clone();
        let slices = endpoints::slices(&model);
        let slices: Vec<_> = slices.values().flatten().map(|slice| (**slice).clone()).collect();
        let event = Event {
            severity: "warning".into(),
            file: "web.yaml".into(),
            line: Some(4),
            column: Some(9),
            field: "spec.x".into(),
            message: "is odd".into(),
        };
        assert_eq!(
            describe(&service, &slices, &[event]),
            "Name:                     web
Namespace:                default
Labels:                   app=web
                          tier=front
Annotations:              <none>
Selector:                 app=web
Type:                     LoadBalancer
IP Family Policy:         SingleStack
IP Families:              IPv4
IP:                       10.96.0.5
IPs:                      10.96.0.5
LoadBalancer Ingress:     203.0.113.5 (VIP)
Port:                     http  80/TCP
TargetPort:               web/TCP
NodePort:                 http  30080/TCP
Endpoints:                10.244.0.7:8080
Session Affinity:         None
External Traffic Policy:  Cluster
Internal Traffic Policy:  Cluster
Frontends:
  Kind          Address      Port
  ----          -------      ----
  ClusterIP     10.96.0.5    80/TCP
  LoadBalancer  203.0.113.5  80/TCP
  NodePort      <node>       30080/TCP
Conditions:
  Address     Ports     Ready  Serving  Terminating  Node  Zone    Target
  -------     -----     -----  -------  -----------  ----  ----    ------
  10.244.0.7  8080/TCP  true   true     false        n1    <none>  Pod/a
Events:
  Type     From     Message
  ----     ----     -------
  Warning  control  web.yaml:4:9: spec.x: is odd
"
        );
    }
}
