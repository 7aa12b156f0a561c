//! Pods, the sets that keep them, and nodes, as rows.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Node, NodeAddress, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{Rows, age, name, or, pairs};

/// A role of a node is the rest of such a label.
const ROLE: &str = "node-role.kubernetes.io/";

impl Rows for Pod {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "AGE",
        "IP",
        "NODE",
        "NOMINATED NODE",
        "READINESS GATES",
    ];
    const WIDE: usize = 4;
    const KIND: &'static str = "pod";
    const PLURAL: &'static str = "pods";
    const FIELDS: &'static [&'static str] = &[
        "spec.nodeName",
        "spec.restartPolicy",
        "status.phase",
        "status.podIP",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (spec, status) = (
            self.spec.clone().unwrap_or_default(),
            self.status.clone().unwrap_or_default(),
        );
        let states = status.container_statuses.as_deref().unwrap_or_default();
        let ready = states.iter().filter(|state| state.ready).count();
        let restarts: i32 = states.iter().map(|state| state.restart_count).sum();
        let none = |text: Option<String>| or(text.unwrap_or_default(), "<none>");
        let gates = gates(&spec, &status);
        vec![
            name(&self.metadata),
            format!("{ready}/{}", spec.containers.len()),
            pod_status(self),
            restarts.to_string(),
            age(self.metadata.creation_timestamp.as_ref(), now),
            none(
                status
                    .pod_ips
                    .iter()
                    .flatten()
                    .map(|ip| ip.ip.clone())
                    .next()
                    .or(status.pod_ip),
            ),
            none(spec.node_name),
            none(status.nominated_node_name),
            gates,
        ]
    }
}

/// The one word kubectl has for how a pod is: what its containers wait for or died of, else its phase.
fn pod_status(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "Pending".into();
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".into();
    }
    let mut word = status
        .reason
        .clone()
        .or_else(|| status.phase.clone())
        .unwrap_or_else(|| "Pending".into());
    let mut running = false;
    for state in status.container_statuses.iter().flatten().rev() {
        let current = state.state.clone().unwrap_or_default();
        let waiting = current.waiting.and_then(|waiting| waiting.reason);
        let ended = current.terminated.map(|ended| match ended.reason {
            Some(reason) if !reason.is_empty() => reason,
            _ => format!("ExitCode:{}", ended.exit_code),
        });
        match waiting.filter(|reason| !reason.is_empty()).or(ended) {
            Some(reason) => word = reason,
            None => running |= state.ready && current.running.is_some(),
        }
    }
    if word == "Completed" && running {
        "Running".into()
    } else {
        word
    }
}

/// How many of a pod's readiness gates are open.
fn gates(spec: &PodSpec, status: &PodStatus) -> String {
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = |gate: &str| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|condition| condition.type_ == gate && condition.status == "True")
    };
    let count = gates.iter().filter(|gate| open(&gate.condition_type)).count();
    format!("{count}/{}", gates.len())
}

/// Names and images of containers, each in one cell.
fn containers(spec: Option<&PodSpec>) -> [String; 2] {
    let list = |of: fn(&k8s_openapi::api::core::v1::Container) -> String| {
        let all = spec.iter().flat_map(|spec| &spec.containers);
        all.map(of).collect::<Vec<_>>().join(",")
    };
    [
        list(|container| container.name.clone()),
        list(|container| container.image.clone().unwrap_or_default()),
    ]
}

fn selector(selector: &LabelSelector) -> String {
    or(pairs(selector.match_labels.as_ref()), "<none>")
}

impl Rows for Deployment {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "READY",
        "UP-TO-DATE",
        "AVAILABLE",
        "AGE",
        "CONTAINERS",
        "IMAGES",
        "SELECTOR",
    ];
    const WIDE: usize = 3;
    const KIND: &'static str = "deployment.apps";
    const PLURAL: &'static str = "deployments.apps";

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (spec, status) = (
            self.spec.clone().unwrap_or_default(),
            self.status.clone().unwrap_or_default(),
        );
        let count = |count: Option<i32>| count.unwrap_or_default().to_string();
        let [names, images] = containers(spec.template.spec.as_ref());
        vec![
            name(&self.metadata),
            format!("{}/{}", count(status.ready_replicas), spec.replicas.unwrap_or(1)),
            count(status.updated_replicas),
            count(status.available_replicas),
            age(self.metadata.creation_timestamp.as_ref(), now),
            names,
            images,
            selector(&spec.selector),
        ]
    }
}

impl Rows for ReplicaSet {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "DESIRED",
        "CURRENT",
        "READY",
        "AGE",
        "CONTAINERS",
        "IMAGES",
        "SELECTOR",
    ];
    const WIDE: usize = 3;
    const KIND: &'static str = "replicaset.apps";
    const PLURAL: &'static str = "replicasets.apps";

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (spec, status) = (
            self.spec.clone().unwrap_or_default(),
            self.status.clone().unwrap_or_default(),
        );
        let template = spec.template.and_then(|template| template.spec);
        let [names, images] = containers(template.as_ref());
        vec![
            name(&self.metadata),
            spec.replicas.unwrap_or(1).to_string(),
            status.replicas.to_string(),
            status.ready_replicas.unwrap_or_default().to_string(),
            age(self.metadata.creation_timestamp.as_ref(), now),
            names,
            images,
            selector(&spec.selector),
        ]
    }
}

impl Rows for StatefulSet {
    const COLUMNS: &'static [&'static str] = &["NAME", "READY", "AGE", "CONTAINERS", "IMAGES"];
    const WIDE: usize = 2;
    const KIND: &'static str = "statefulset.apps";
    const PLURAL: &'static str = "statefulsets.apps";

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (spec, status) = (
            self.spec.clone().unwrap_or_default(),
            self.status.clone().unwrap_or_default(),
        );
        let [names, images] = containers(spec.template.spec.as_ref());
        vec![
            name(&self.metadata),
            format!(
                "{}/{}",
                status.ready_replicas.unwrap_or_default(),
                spec.replicas.unwrap_or(1)
            ),
            age(self.metadata.creation_timestamp.as_ref(), now),
            names,
            images,
        ]
    }
}

impl Rows for DaemonSet {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "DESIRED",
        "CURRENT",
        "READY",
        "UP-TO-DATE",
        "AVAILABLE",
        "NODE SELECTOR",
        "AGE",
        "CONTAINERS",
        "IMAGES",
        "SELECTOR",
    ];
    const WIDE: usize = 3;
    const KIND: &'static str = "daemonset.apps";
    const PLURAL: &'static str = "daemonsets.apps";

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (spec, status) = (
            self.spec.clone().unwrap_or_default(),
            self.status.clone().unwrap_or_default(),
        );
        let template = spec.template.spec.as_ref();
        let [names, images] = containers(template);
        let count = |count: Option<i32>| count.unwrap_or_default().to_string();
        let nodes = template.and_then(|template| template.node_selector.as_ref());
        vec![
            name(&self.metadata),
            status.desired_number_scheduled.to_string(),
            status.current_number_scheduled.to_string(),
            status.number_ready.to_string(),
            count(status.updated_number_scheduled),
            count(status.number_available),
            or(pairs(nodes), "<none>"),
            age(self.metadata.creation_timestamp.as_ref(), now),
            names,
            images,
            selector(&spec.selector),
        ]
    }
}

impl Rows for Node {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "STATUS",
        "ROLES",
        "AGE",
        "VERSION",
        "INTERNAL-IP",
        "EXTERNAL-IP",
        "OS-IMAGE",
        "KERNEL-VERSION",
        "CONTAINER-RUNTIME",
    ];
    const WIDE: usize = 5;
    const KIND: &'static str = "node";
    const PLURAL: &'static str = "nodes";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (spec, status) = (
            self.spec.clone().unwrap_or_default(),
            self.status.clone().unwrap_or_default(),
        );
        let mut conditions = status.conditions.iter().flatten();
        let ready = conditions.find(|condition| condition.type_ == "Ready");
        let ready = match ready.map(|condition| condition.status.as_str()) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        };
        let cordoned = if spec.unschedulable == Some(true) {
            ",SchedulingDisabled"
        } else {
            ""
        };
        let labels = self.metadata.labels.iter().flatten();
        let roles: Vec<&str> = labels.filter_map(|(key, _)| key.strip_prefix(ROLE)).collect();
        let address = |kind: &str| {
            let mut all = status.addresses.iter().flatten();
            let found = all.find(|NodeAddress { type_, .. }| type_ == kind);
            found.map_or_else(|| "<none>".into(), |found| found.address.clone())
        };
        let info = status.node_info.clone().unwrap_or_default();
        vec![
            name(&self.metadata),
            format!("{ready}{cordoned}"),
            or(roles.join(","), "<none>"),
            age(self.metadata.creation_timestamp.as_ref(), now),
            info.kubelet_version,
            address("InternalIP"),
            address("ExternalIP"),
            or(info.os_image, "<unknown>"),
            or(info.kernel_version, "<unknown>"),
            or(info.container_runtime_version, "<unknown>"),
        ]
    }
}

impl Rows for Namespace {
    const COLUMNS: &'static [&'static str] = &["NAME", "STATUS", "AGE"];
    const WIDE: usize = 0;
    const KIND: &'static str = "namespace";
    const PLURAL: &'static str = "namespaces";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let phase = self.status.as_ref().and_then(|status| status.phase.clone());
        vec![
            name(&self.metadata),
            phase.unwrap_or_else(|| "Active".into()),
            age(self.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}
