//! The recorded cluster as Kubernetes objects, and control's way from their text to records.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_control::allocate::{Allocator, Ranges};
use sluice_control::compile::{Compiled, Numbers, Settings, compile};
use sluice_control::endpoints::{self, sets::Here};
use sluice_control::manifest;
use sluice_control::model::Model;
use sluice_control::problem::SourceText;
use sluice_control::source::{Batch, Event};
use sluice_dataplane::channel::record::{Algorithm, SettingsRecord};

use crate::bed::Bed;
use crate::topology::{Family, PRIMARY, ip, named};

/// Where its cluster IPs come from.
const SERVICES: &[&str] = &["10.96.0.0/16", "fd00:10:96::/112"];

/// Options of the proxy, as the records name them.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) masquerade_all: bool,
    /// clusterCIDR.
    pub(crate) pods: Vec<&'static str>,
    /// nodePortAddresses.
    pub(crate) node_ports: Vec<String>,
    /// Addresses of the node that it has beside those of its NIC ports.
    pub(crate) extra: Vec<IpAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            masquerade_all: false,
            pods: vec!["10.244.0.0/16", "fd00:244::/32"],
            node_ports: Vec::new(),
            extra: Vec::new(),
        }
    }
}

/// Control and the gateway it fills.
pub(crate) struct Cluster {
    model: Model,
    settings: Settings,
    numbers: Numbers,
    objects: BTreeMap<String, Value>,
    port: u16,
    node_port: u16,
    pub(crate) bed: Bed,
}

impl Cluster {
    pub(crate) fn new(options: &Options) -> Self {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let settings = Settings {
            here: Here {
                node: "node1".into(),
                ..Here::default()
            },
            node_addresses: PRIMARY.iter().map(|address| ip(address)).collect(),
            node_port_addresses: options
                .node_ports
                .iter()
                .map(|net| net.parse().unwrap())
                .collect(),
            pod_ranges: nets(&options.pods),
            service_ranges: nets(SERVICES),
            algorithm: Algorithm::Random,
            switches: SettingsRecord {
                masquerade_all: options.masquerade_all,
                ..SettingsRecord::default()
            },
            ..Settings::default()
        };
        Self {
            model: Model::new(allocator()),
            settings,
            numbers: Numbers::default(),
            objects: BTreeMap::new(),
            port: 10_000,
            node_port: 1024,
            bed: Bed::new(&options.extra),
        }
    }

    /// A source port that no flow of this cluster has had.
    pub(crate) fn next_port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap();
        self.port
    }

    /// The same for the node itself: none that the gateway could choose for it (see `Bed::new`).
    pub(crate) fn next_node_port(&mut self) -> u16 {
        self.node_port += 1;
        assert!(self.node_port < 10_000, "too many flows of the node's");
        self.node_port
    }

    /// Adds objects, or replaces those of the same kind and name; all of it is one update.
    pub(crate) fn apply(&mut self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            self.objects.insert(key(&object), object);
        }
        self.update();
    }

    /// These objects, and no others; one update.
    pub(crate) fn become_only(&mut self, objects: impl IntoIterator<Item = Value>) {
        self.objects.clear();
        self.apply(objects);
    }

    /// Control ends and begins anew: what it knows, it learns from the dataplane and its source.
    pub(crate) fn restart_control(&mut self) {
        self.numbers = Numbers::learn(&self.bed.inventory());
        self.model = Model::new(allocator());
    }

    fn update(&mut self) {
        let objects = self.objects.values();
        let text: String = objects.map(|object| format!("---\n{object}\n")).collect();
        self.model.apply(said(&text));
        assert!(self.model.problems().is_empty(), "{:?}", self.model.problems());
        let slices = endpoints::slices(&self.model);
        let Compiled { records, numbers, .. } = compile(&self.model, &slices, &self.settings, &self.numbers);
        self.numbers = numbers;
        self.bed.publish(&records);
    }
}

fn allocator() -> Allocator {
    let ranges = Ranges {
        services: SERVICES.iter().map(|range| range.parse().unwrap()).collect(),
        ..Ranges::default()
    };
    Allocator::new(ranges, BTreeMap::new())
}

/// The events of a source that holds `text` and nothing else.
fn said(text: &str) -> Batch {
    let contents = manifest::read(&Arc::new(SourceText {
        path: "cluster.yaml".into(),
        text: text.into(),
    }));
    let objects = contents.objects.into_iter();
    [Event::Problems(contents.problems), Event::ResetBegin]
        .into_iter()
        .chain(objects.map(|object| Event::Apply(Box::new(object))))
        .chain([Event::ResetEnd])
        .collect()
}

fn key(object: &Value) -> String {
    format!("{} {}", object["kind"], object["metadata"]["name"])
}

/// A Service `name` of this spec and status.
pub(crate) fn service(name: &str, spec: Value, load_balancer: &[&str]) -> Value {
    let ingress: Vec<_> = load_balancer
        .iter()
        .map(|address| json!({"ip": address, "ipMode": "VIP"}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// Cluster IPs of both families.
pub(crate) fn cluster_ips(spec: &mut Value, addresses: &[&str]) {
    spec["clusterIP"] = json!(addresses[0]);
    spec["clusterIPs"] = json!(addresses);
    spec["ipFamilyPolicy"] = json!(if addresses.len() == 2 {
        "RequireDualStack"
    } else {
        "SingleStack"
    });
    let name = |a: &&str| if a.contains(':') { "IPv6" } else { "IPv4" };
    spec["ipFamilies"] = json!(addresses.iter().map(name).collect::<Vec<_>>());
}

/// An endpoint's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
}

impl Condition {
    const fn new(ready: bool, serving: bool, terminating: bool) -> Self {
        Self {
            ready,
            serving,
            terminating,
        }
    }
    pub(crate) const READY: Self = Self::new(true, true, false);
    pub(crate) const NOT_READY: Self = Self::new(false, false, false);
    pub(crate) const SERVING_NOT_READY: Self = Self::new(false, true, false);
    pub(crate) const TERMINATING: Self = Self::new(false, true, true);
    pub(crate) const TERMINATING_NOT_SERVING: Self = Self::new(false, false, true);
}

/// The EndpointSlices of Service `name`, one a family; `ports` are (name, protocol, number).
pub(crate) fn slices(name: &str, ports: &[(&str, &str, u16)], endpoints: &[(&str, Condition)]) -> Vec<Value> {
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, protocol, number)| json!({"name": name, "protocol": protocol, "port": number}))
        .collect();
    let slice = |family: &Family| {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(name, condition)| {
                let node = if name.starts_with('l') { "node1" } else { "node2" };
                json!({
                    "addresses": [named(name).address(*family).to_string()], "nodeName": node,
                    "conditions": {
                        "ready": condition.ready, "serving": condition.serving,
                        "terminating": condition.terminating,
                    },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{family:?}").to_lowercase(),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": if *family == Family::V4 { "IPv4" } else { "IPv6" },
            "ports": ports, "endpoints": endpoints,
        })
    };
    [Family::V4, Family::V6].iter().map(slice).collect()
}
