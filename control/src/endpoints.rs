//! Which endpoints stand behind which Service, as EndpointSlices: those users made, those mirrored from Endpoints, and
//! those that the Service's selector finds among the pods (EPC-1 to EPC-11), in a fixed order.
//!
//! Takes  the model, and what of it was touched.
//! Gives  the slices of every Service, and the Services of which anything is another than before.
//! Never  makes anew what follows from untouched objects only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use rpds::RedBlackTreeMapSync;

use crate::manifest::{Key, Kind};
use crate::model::{Model, Service, ServiceName, Target};

/// For which zones and nodes endpoints are.
mod hints;
/// Slices as Endpoints objects.
pub mod legacy;
/// Endpoints objects as slices.
mod mirror;
/// Pods.
mod pods;
/// Which endpoints take new flows.
pub mod sets;

use hints::Shares;
use pods::{Pods, address_of, container_port};

/// EPC-9.
const ENDPOINTS_PER_SLICE: usize = 100;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

/// All slices of each Service, in force or not (EP-10). A copy costs nothing.
pub type Slices = RedBlackTreeMapSync<ServiceName, Vec<Arc<EndpointSlice>>>;

/// The slices of all Services of `model`.
pub fn slices(model: &Model) -> Slices {
    let mut endpoints = Endpoints::default();
    endpoints.update(model, &model.keys().cloned().collect());
    endpoints.slices
}

/// Slices as they were last made, and what from.
#[derive(Debug, Default)]
pub struct Endpoints {
    slices: Slices,
    /// The Services of users' slices.
    owners: BTreeMap<Key, ServiceName>,
    /// Of Services that select pods.
    made: BTreeMap<ServiceName, Made>,
    zones: BTreeMap<String, Option<String>>,
    shares: Shares,
}

/// Slices of selected pods, and what they were made from.
#[derive(Debug)]
struct Made {
    service: Arc<Service>,
    pods: Vec<Arc<Pod>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Endpoints {
    /// The slices of all Services.
    pub const fn slices(&self) -> &Slices {
        &self.slices
    }

    /// Brings the slices up to date now that objects of `model` were touched. Gives the Services that are another
    /// than before, or have others.
    pub fn update(&mut self, model: &Model, touched: &BTreeSet<Key>) -> BTreeSet<ServiceName> {
        let mut changed = self.named(touched, model);
        self.select(model, touched, &mut changed);
        let mut written = BTreeMap::<ServiceName, Vec<Arc<EndpointSlice>>>::new();
        for slice in model.slices() {
            if let Some(owner) = owner_of(slice).filter(|owner| changed.contains(owner)) {
                written.entry(owner).or_default().push(slice.clone());
            }
        }
        for name in &changed {
            let mut slices = written.remove(name).unwrap_or_default();
            let service = model.service(name);
            if let Some(endpoints) = model.endpoints_of(name)
                && service.is_some_and(|service| service.selector().is_none())
            {
                slices.extend(mirror::slices(name, endpoints).into_iter().map(Arc::new));
            }
            let made = self.made.get(name).into_iter();
            slices.extend(made.flat_map(|made| made.slices.iter().cloned()));
            if slices.is_empty() {
                self.slices.remove_mut(name);
            } else {
                self.slices.insert_mut(name.clone(), slices);
            }
        }
        changed
    }

    /// The Services that `touched` objects are, or name.
    fn named(&mut self, touched: &BTreeSet<Key>, model: &Model) -> BTreeSet<ServiceName> {
        let mut named = BTreeSet::new();
        for key in touched {
            match key.kind {
                Kind::Service | Kind::Endpoints => {
                    named.insert(ServiceName {
                        namespace: key.namespace.clone(),
                        name: key.name.clone(),
                    });
                }
                Kind::EndpointSlice => {
                    named.extend(self.owners.remove(key));
                    if let Some(owner) = model.slice(key).and_then(owner_of) {
                        self.owners.insert(key.clone(), owner.clone());
                        named.insert(owner);
                    }
                }
                _ => {}
            }
        }
        named
    }

    /// Selects pods anew for `changed` Services, and for all if a pod or a node is another.
    fn select(&mut self, model: &Model, touched: &BTreeSet<Key>, changed: &mut BTreeSet<ServiceName>) {
        let selector = |name: &ServiceName| model.service(name).and_then(|service| service.selector());
        self.made
            .retain(|name, _| !changed.contains(name) || selector(name).is_some());
        let all = touched
            .iter()
            .any(|key| matches!(key.kind, Kind::Pod | Kind::Node));
        if !all && changed.iter().all(|name| selector(name).is_none()) {
            return;
        }
        let pods = Pods::new(model);
        let zones = pods.zones();
        // Where a node is, is in every slice that has a pod on it; how big, in those with hints.
        if zones != self.zones || pods.shares != self.shares {
            self.made.clear();
        }
        self.zones = zones;
        self.shares.clone_from(&pods.shares);
        for service in model.services() {
            let Some(selector) = service.selector() else {
                continue;
            };
            if !all && !changed.contains(&service.name) {
                continue;
            }
            let selected = pods.selected(&service.name.namespace, selector);
            let made = self.made.get(&service.name);
            if made.is_some_and(|made| made.is_of(service, &selected)) {
                continue;
            }
            let slices = generate(service, &selected, &pods).into_iter().map(Arc::new);
            let made = Made {
                service: service.clone(),
                slices: slices.collect(),
                pods: selected.into_iter().cloned().collect(),
            };
            self.made.insert(service.name.clone(), made);
            changed.insert(service.name.clone());
        }
    }
}

/// The Service that a user's slice is of.
fn owner_of(slice: &Arc<EndpointSlice>) -> Option<ServiceName> {
    Some(ServiceName {
        namespace: slice.metadata.namespace.clone().unwrap_or_default(),
        name: slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone(),
    })
}

impl Made {
    fn is_of(&self, service: &Arc<Service>, pods: &[&Arc<Pod>]) -> bool {
        let same = |(a, b): (&Arc<Pod>, &&Arc<Pod>)| Arc::ptr_eq(a, b);
        Arc::ptr_eq(&self.service, service)
            && self.pods.len() == pods.len()
            && self.pods.iter().zip(pods).all(same)
    }
}

fn generate(service: &Service, pods: &[&Arc<Pod>], world: &Pods<'_>) -> Vec<EndpointSlice> {
    let spec = service.object.spec.as_ref();
    let families = spec
        .and_then(|spec| spec.ip_families.as_deref())
        .unwrap_or_default();
    let publish = spec.is_some_and(|spec| spec.publish_not_ready_addresses == Some(true));
    let mut slices = Vec::new();
    for family in families {
        // Pods with the same ports share slices.
        let mut by_ports: BTreeMap<Vec<PortKey>, Vec<Endpoint>> = BTreeMap::new();
        for pod in pods {
            if let Some(address) = address_of(pod, family)
                && let Some(endpoint) = endpoint(service, pod, address, publish, world)
            {
                by_ports.entry(ports_of(service, pod)).or_default().push(endpoint);
            }
        }
        if by_ports.is_empty() {
            by_ports.insert(Vec::new(), Vec::new());
        }
        for endpoints in by_ports.values_mut() {
            endpoints.sort_by_cached_key(|endpoint| {
                let address = endpoint.addresses.first();
                let address = address.and_then(|text| text.parse::<IpAddr>().ok());
                let target = endpoint.target_ref.as_ref();
                (address, target.and_then(|target| target.name.clone()))
            });
        }
        let all = by_ports.values_mut().flatten().collect();
        hints::give(service, all, &world.shares);
        for (ports, endpoints) in by_ports {
            // A slice without endpoints is still a slice (EPC-9).
            let count = endpoints.len().div_ceil(ENDPOINTS_PER_SLICE).max(1);
            let mut endpoints = endpoints.into_iter();
            for _ in 0..count {
                let ports = ports.iter().map(PortKey::port).collect::<Vec<_>>();
                let chunk = endpoints.by_ref().take(ENDPOINTS_PER_SLICE).collect();
                slices.push((family, ports, chunk));
            }
        }
    }
    let meta = metadata(service);
    let slice = |index: usize, family: &String, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>| {
        let metadata = ObjectMeta {
            name: Some(format!("{}-{index}", service.name.name)),
            ..meta.clone()
        };
        let ports = (!ports.is_empty()).then_some(ports);
        EndpointSlice {
            address_type: family.clone(),
            endpoints: (!endpoints.is_empty()).then_some(endpoints),
            metadata,
            ports,
        }
    };
    let slices = slices.into_iter().enumerate();
    slices
        .map(|(index, (family, ports, endpoints))| slice(index, family, ports, endpoints))
        .collect()
}

/// EPC-11.
fn metadata(service: &Service) -> ObjectMeta {
    let mut labels = service.object.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| key != HEADLESS);
    labels.insert(SERVICE_NAME.into(), service.name.name.clone());
    labels.insert(MANAGED_BY.into(), "endpointslice-controller.k8s.io".into());
    if service.headless {
        labels.insert(HEADLESS.into(), String::new());
    }
    ObjectMeta {
        namespace: Some(service.name.namespace.clone()),
        generate_name: Some(format!("{}-", service.name.name)),
        creation_timestamp: service.object.metadata.creation_timestamp.clone(),
        owner_references: Some(vec![owner("Service", &service.name.name)]),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

fn owner(kind: &str, name: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: kind.into(),
        name: name.into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    }
}

/// A slice's port, in an order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct PortKey {
    name: String,
    protocol: String,
    number: i32,
    app_protocol: Option<String>,
}

impl PortKey {
    fn port(&self) -> EndpointPort {
        EndpointPort {
            name: Some(self.name.clone()),
            protocol: Some(self.protocol.clone()),
            port: Some(self.number),
            app_protocol: self.app_protocol.clone(),
        }
    }
}

/// EPC-5, EPC-6: what the Service's ports are on this pod; a name that the pod lacks is left out.
fn ports_of(service: &Service, pod: &Pod) -> Vec<PortKey> {
    let mut ports: Vec<_> = service
        .ports
        .iter()
        .filter_map(|port| {
            let number = match &port.target {
                Target::Number(number) => i32::from(*number),
                Target::Name(name) => container_port(pod, name, port.protocol)?,
            };
            let app_protocol = port.app_protocol.clone();
            Some(PortKey {
                name: port.name.clone(),
                protocol: port.protocol.to_string(),
                number,
                app_protocol,
            })
        })
        .collect();
    ports.sort();
    ports
}

/// EPC-2 to EPC-4, EPC-7, EPC-8: the pod as an endpoint, if it is eligible.
fn endpoint(
    service: &Service,
    pod: &Pod,
    address: IpAddr,
    publish: bool,
    world: &Pods<'_>,
) -> Option<Endpoint> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let node = spec.node_name.as_deref().filter(|node| !node.is_empty());
    if !publish && !node.is_some_and(|node| world.knows(node)) {
        return None;
    }
    let mut conditions = status.conditions.iter().flatten();
    let serving = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let own_name = spec.subdomain.as_deref() == Some(service.name.name.as_str());
    Some(Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.hostname.clone().filter(|name| own_name && !name.is_empty()),
        node_name: node.map(str::to_owned),
        zone: node
            .and_then(|node| world.nodes.get(node).copied().flatten())
            .cloned(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}
