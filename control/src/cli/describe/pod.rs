//! One pod in full, and every Service that it stands behind.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Condition, Lines, is, or_none, pairs, table};
use crate::endpoints::SERVICE_NAME;
use crate::table::Rows;

/// The whole description. Pure.
pub(super) fn describe(pod: &Pod, slices: &[EndpointSlice]) -> String {
    let (metadata, status) = (&pod.metadata, pod.status.clone().unwrap_or_default());
    let spec = pod.spec.clone().unwrap_or_default();
    let mut lines = Lines::default();
    lines.add("Name", metadata.name.as_deref().unwrap_or_default());
    lines.add("Namespace", metadata.namespace.as_deref().unwrap_or_default());
    lines.add("Node", or_none(spec.node_name.clone().unwrap_or_default()));
    lines.given("Start Time", status.start_time.as_ref().map(|time| time.0));
    lines.several("Labels", pairs(&metadata.labels, "="));
    lines.several("Annotations", pairs(&metadata.annotations, ": "));
    // The word of the table: what its containers wait for, or died of.
    let row = pod.row(jiff::Timestamp::UNIX_EPOCH);
    lines.add("Status", row.get(2).cloned().unwrap_or_default());
    let ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
    lines.several("IPs", ips.collect());
    let mut owners = metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true));
    lines.given(
        "Controlled By",
        owner.map(|owner| format!("{}/{}", owner.kind, owner.name)),
    );
    let mut text = lines.text() + "Containers:\n";
    for one in &spec.containers {
        let mut states = status.container_statuses.iter().flatten();
        let state = states.find(|state| state.name == one.name);
        let _ = write!(text, "{}", container(one, state));
    }
    let mut rows = vec![["Type", "Status"].map(str::to_owned).to_vec()];
    let conditions = status.conditions.iter().flatten();
    rows.extend(conditions.map(|condition| vec![condition.type_.clone(), condition.status.clone()]));
    text + &titled("Conditions", &rows) + &titled("Services", &services(pod, slices))
}

fn titled(title: &str, rows: &[Vec<String>]) -> String {
    match rows.len() {
        1 => format!("{title}:  <none>\n"),
        _ => format!("{title}:\n{}", table(rows)),
    }
}

/// Two columns in, what it has four.
fn container(container: &Container, status: Option<&ContainerStatus>) -> String {
    let mut lines = Lines::default();
    lines.given("Image", container.image.as_ref());
    let ports = container.ports.iter().flatten().map(|port| {
        let name = port.name.as_ref().map(|name| format!(" ({name})"));
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        format!("{}/{protocol}{}", port.container_port, name.unwrap_or_default())
    });
    lines.several("Ports", ports.collect());
    let command = container.command.iter().chain(&container.args).flatten();
    let command: Vec<&str> = command.map(String::as_str).collect();
    lines.given("Command", (!command.is_empty()).then(|| command.join(" ")));
    lines.given("Ready", status.map(|status| status.ready));
    lines.given("Restart Count", status.map(|status| status.restart_count));
    let env = container.env.iter().flatten();
    let env = env.map(|one| format!("{}={}", one.name, one.value.as_deref().unwrap_or_default()));
    lines.several("Environment", env.collect());
    let indented = |line: &str| format!("    {line}\n");
    let rest: String = lines.text().lines().map(indented).collect();
    format!("  {}:\n{rest}", container.name)
}

/// Services that it is an endpoint of.
fn services(pod: &Pod, slices: &[EndpointSlice]) -> Vec<Vec<String>> {
    let mut rows = vec![
        ["Name", "Address", "Ports", "Ready", "Serving", "Terminating"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let here = slices
        .iter()
        .filter(|slice| slice.metadata.namespace == pod.metadata.namespace);
    for slice in here {
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
            continue;
        };
        let number = |port: Option<i32>| port.map_or_else(|| "*".into(), |number| number.to_string());
        let ports: Vec<String> = slice
            .ports
            .iter()
            .flatten()
            .map(|port| number(port.port))
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let target = endpoint.target_ref.as_ref();
            let is_this =
                |kind: Option<&str>, name| kind == Some("Pod") && name == pod.metadata.name.as_ref();
            if target.is_some_and(|target| is_this(target.kind.as_deref(), target.name.as_ref())) {
                rows.push(vec![
                    service.clone(),
                    endpoint.addresses.join(","),
                    or_none(ports.join(",")),
                    is(endpoint, Condition::Ready).to_string(),
                    is(endpoint, Condition::Serving).to_string(),
                    is(endpoint, Condition::Terminating).to_string(),
                ]);
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints;
    use crate::model::tests::{model, reset};

    #[test]
    fn a_pod_is_described_as_kubectl_does_with_the_services_it_stands_behind() {
        let mut model = model();
        model.apply(reset(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: web}, ownerReferences: [{apiVersion: apps/v1, kind: \
             ReplicaSet, name: web, uid: u, controller: true}]}\n\
             spec: {nodeName: n1, containers: [{name: c, image: i, args: [-v], env: [{name: A, value: b}], \
             ports: [{name: web, containerPort: 8080}, {containerPort: 53, protocol: UDP}]}]}\n\
             status: {phase: Running, podIPs: [{ip: 10.244.0.7}], conditions: [{type: Ready, status: \"False\"}], \
             containerStatuses: [{name: c, image: i, imageID: i, ready: false, restartCount: 3}]}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: web}]}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {selector: {app: other}, ports: [{port: 80}]}\n",
        ));
        assert!(model.problems().is_empty(), "{:?}", model.problems());
        let slices = endpoints::slices(&model);
        let slices: Vec<_> = slices.values().flatten().map(|slice| (**slice).clone()).collect();
        assert_eq!(
            describe(model.pods().next().unwrap(), &slices),
            "Name:           a
Namespace:      default
Node:           n1
Labels:         app=web
Annotations:    <none>
Status:         Running
IPs:            10.244.0.7
Controlled By:  ReplicaSet/web
Containers:
  c:
    Image:          i
    Ports:          8080/TCP (web)
                    53/UDP
    Command:        -v
    Ready:          false
    Restart Count:  3
    Environment:    A=b
Conditions:
  Type   Status
  ----   ------
  Ready  False
Services:
  Name  Address     Ports  Ready  Serving  Terminating
  ----  -------     -----  -----  -------  -----------
  web   10.244.0.7  8080   false  false    false
"
        );
    }
}
