//! `sluice describe service NAME`: one Service in full, as kubectl describes it, and what kubectl does not know: every
//! frontend, every endpoint with its conditions, and what stands in the way.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use super::args::{DescribeArgs, GetKind};
use crate::api::{self, List};
use crate::model;
use crate::table::few;

/// What the control process says of a mistake.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Event {
    severity: String,
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    field: String,
    message: String,
}

impl Event {
    /// `file:line:column: field: message`.
    pub(super) fn text(&self) -> String {
        let place = match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", self.file),
            _ => self.file.clone(),
        };
        let parts = [place.as_str(), &self.field, &self.message];
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(": ")
    }
}

/// Runs the verb.
pub(super) fn run(args: &DescribeArgs) -> anyhow::Result<ExitCode> {
    let (kind, names) = args.object.wanted()?;
    if kind != GetKind::Services {
        anyhow::bail!(
            "only services are described; `sluice get {} -o yaml` shows all of the others",
            args.object.kind
        );
    }
    let socket: PathBuf = args.api.clone().unwrap_or_else(api::default_api_socket);
    let namespace = &args.object.namespace;
    let names = match names.is_empty() {
        false => names,
        true => {
            let all: Vec<Service> = api::ask(&socket, List::Services)?;
            let here = all.into_iter().map(|service| service.metadata);
            let here = here.filter(|metadata| metadata.namespace.as_ref() == Some(namespace));
            here.filter_map(|metadata| metadata.name).collect()
        }
    };
    if names.is_empty() {
        eprintln!("No resources found in {namespace} namespace.");
    }
    let mut failed = false;
    let mut texts = Vec::new();
    for name in &names {
        match described(&socket, namespace, name)? {
            Ok(text) => texts.push(text),
            Err(reason) => {
                failed = true;
                eprintln!("{reason}");
            }
        }
    }
    // Whoever reads no further (`| head`) needs no more.
    let _ = std::io::stdout().write_all(texts.join("\n\n").as_bytes());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn described(socket: &Path, namespace: &str, name: &str) -> anyhow::Result<Result<String, String>> {
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

/// Lines of a name and what it is, the second column where the longest name ends.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn add(&mut self, name: &str, value: impl ToString) {
        self.0.push((format!("{name}:"), value.to_string()));
    }

    fn given<T: ToString>(&mut self, name: &str, value: Option<T>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// One line a value; the name before the first.
    fn several(&mut self, name: &str, values: Vec<String>) {
        let mut values = values.into_iter();
        self.add(name, values.next().unwrap_or_else(|| "<none>".into()));
        self.0.extend(values.map(|value| (String::new(), value)));
    }

    fn text(&self) -> String {
        let width = self
            .0
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0)
            + 2;
        let line = |(name, value): &(String, String)| format!("{name:width$}{value}\n");
        self.0.iter().map(line).collect()
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

fn joined(list: &Option<Vec<String>>) -> String {
    list.as_deref().unwrap_or_default().join(",")
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
    let pairs = |map: &Option<std::collections::BTreeMap<String, String>>, between: &str| -> Vec<String> {
        map.iter()
            .flatten()
            .map(|(key, value)| format!("{key}{between}{value}"))
            .collect()
    };
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

#[derive(Clone, Copy)]
enum Condition {
    Ready,
    Serving,
    Terminating,
}

/// EP-7.
fn is(endpoint: &Endpoint, condition: Condition) -> bool {
    let conditions = endpoint.conditions.as_ref();
    match condition {
        Condition::Ready => conditions.and_then(|c| c.ready).unwrap_or(true),
        Condition::Serving => conditions.and_then(|c| c.serving).unwrap_or(true),
        Condition::Terminating => conditions.and_then(|c| c.terminating).unwrap_or(false),
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

/// Two more columns in, heads underlined, two apart.
fn table(rows: &[Vec<String>]) -> String {
    let mut rows = rows.to_vec();
    if let Some(heads) = rows.first() {
        let lines = heads
            .iter()
            .map(|head| "-".repeat(head.chars().count()))
            .collect();
        rows.insert(1, lines);
    }
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
            + 2
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<String>();
        let _ = writeln!(out, "  {}", line.trim_end());
    }
    out
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
        let slices = endpoints::slices(&model).into_values().flatten();
        let slices: Vec<_> = slices.map(|slice| (*slice).clone()).collect();
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
