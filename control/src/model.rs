//! Services as meant: every value legal by type. Takes batches of events, gives the Services in force and what is wrong
//! with the others. A Service whose newest text is wrong stays as it last was right; one that waits for an address that
//! another holds is tried again with every batch.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_dataplane::addr::Protocol;

use crate::allocate::{Allocator, Wanted};
use crate::manifest::{Body, Key, Kind, Object};
use crate::problem::{Problem, Severity};
use crate::source::{Batch, Event};

/// What a Service means where it says nothing.
pub mod defaults;
/// Forms of names and addresses.
pub(crate) mod names;
/// What a Service may not say.
pub mod validate;

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
    /// Left to another proxy (SVC-4).
    pub others: bool,
    /// As a Kubernetes object: defaulted, with what it was given.
    pub object: Arc<core::Service>,
}

impl Service {
    /// The meaning of a valid object.
    fn new(name: ServiceName, object: core::Service) -> Result<Self, String> {
        let spec = object.spec.as_ref().ok_or("has no spec")?;
        let port = |port: &core::ServicePort| -> Result<ServicePort, String> {
            let number = |n: i32| u16::try_from(n).map_err(|_| format!("{n} is not a port"));
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
                .filter_map(|text| text.parse().ok())
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

/// The number of a protocol's name; TCP if it has none.
pub fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP" | "") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        Some(_) => None,
    }
}

/// Everything that is in force.
#[derive(Debug)]
pub struct Model {
    /// All objects as last said, right or wrong.
    objects: BTreeMap<Key, Object>,
    services: BTreeMap<ServiceName, Arc<Service>>,
    problems: BTreeMap<Key, Vec<Problem>>,
    source_problems: Vec<Problem>,
    /// What a reset has said so far, while one is under way.
    reset: Option<HashSet<Key>>,
    complete: bool,
    allocator: Allocator,
}

impl Model {
    /// An empty model that allocates by `allocator`.
    pub fn new(allocator: Allocator) -> Self {
        Self {
            objects: BTreeMap::new(),
            services: BTreeMap::new(),
            problems: BTreeMap::new(),
            source_problems: Vec::new(),
            reset: None,
            complete: false,
            allocator,
        }
    }

    /// Takes a batch of events.
    pub fn apply(&mut self, batch: Batch) {
        let mut touched = Vec::new();
        for event in batch {
            match event {
                Event::ResetBegin => self.reset = Some(HashSet::new()),
                Event::Apply(object) => {
                    if let Some(said) = &mut self.reset {
                        said.insert(object.key.clone());
                    }
                    touched.push(object.key.clone());
                    self.objects.insert(object.key.clone(), *object);
                }
                Event::Delete(key) => self.delete(&key),
                Event::ResetEnd => {
                    let said = self.reset.take().unwrap_or_default();
                    let gone: Vec<Key> = self
                        .objects
                        .keys()
                        .filter(|key| !said.contains(key))
                        .cloned()
                        .collect();
                    gone.iter().for_each(|key| self.delete(key));
                    self.complete = true;
                }
                Event::Problems(problems) => self.source_problems = problems,
            }
        }
        self.settle(touched);
        // A file that cannot be read may hold any of them.
        if self.complete
            && !self
                .source_problems
                .iter()
                .any(|problem| problem.severity == Severity::Error)
        {
            let objects = &self.objects;
            self.allocator
                .retain(|name| objects.contains_key(&service_key(name)));
        }
    }

    /// Takes back what was last said of a Service that could not be: as if the edit had never been made.
    pub fn forget(&mut self, key: &Key) {
        if self.problems.remove(key).is_some() {
            self.objects.remove(key);
        }
    }

    /// Whether all has been said at least once (SVC-6).
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The Services in force.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The Service of this name, if one is in force.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// Who holds what.
    pub fn allocator(&mut self) -> &mut Allocator {
        &mut self.allocator
    }

    /// All that is wrong now.
    pub fn problems(&self) -> Vec<Problem> {
        self.source_problems
            .iter()
            .chain(self.problems.values().flatten())
            .cloned()
            .collect()
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &core::Pod> {
        self.of_kind(Kind::Pod).filter_map(|body| {
            if let Body::Pod(pod) = body {
                Some(&**pod)
            } else {
                None
            }
        })
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &core::Node> {
        self.of_kind(Kind::Node).filter_map(|body| {
            if let Body::Node(node) = body {
                Some(&**node)
            } else {
                None
            }
        })
    }

    /// EndpointSlices that users made.
    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.of_kind(Kind::EndpointSlice).filter_map(|body| {
            if let Body::EndpointSlice(slice) = body {
                Some(&**slice)
            } else {
                None
            }
        })
    }

    /// Endpoints that users made.
    pub fn endpoints(&self) -> impl Iterator<Item = &core::Endpoints> {
        self.of_kind(Kind::Endpoints).filter_map(|body| {
            if let Body::Endpoints(endpoints) = body {
                Some(&**endpoints)
            } else {
                None
            }
        })
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Body> {
        let from = Key {
            kind,
            namespace: String::new(),
            name: String::new(),
        };
        self.objects
            .range(from..)
            .take_while(move |(key, _)| key.kind == kind)
            .map(|(_, object)| &object.body)
    }

    fn delete(&mut self, key: &Key) {
        self.objects.remove(key);
        self.problems.remove(key);
        if key.kind == Kind::Service {
            let name = ServiceName {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            };
            self.services.remove(&name);
            self.allocator.release(&name);
        }
    }

    /// Brings the Services that changed, and those that could not be before, into force.
    fn settle(&mut self, touched: Vec<Key>) {
        let mut seen = HashSet::new();
        let waiting: Vec<Key> = self.problems.keys().cloned().collect();
        let mut keys: Vec<Key> = touched.into_iter().chain(waiting).collect();
        keys.retain(|key| key.kind == Kind::Service && seen.insert(key.clone()));
        let mut wanted = Wanted::default();
        let specs = keys.iter().filter_map(|key| match &self.objects.get(key)?.body {
            Body::Service(service) => service.spec.as_ref(),
            _ => None,
        });
        specs.for_each(|spec| wanted.add(spec));
        // One Service may wait for what another lets go of in the same batch.
        while !keys.is_empty() {
            let before = keys.len();
            keys.retain(|key| !self.bring_into_force(key, &wanted));
            if keys.len() == before {
                break;
            }
        }
    }

    /// Whether it is in force as it is written now.
    fn bring_into_force(&mut self, key: &Key, wanted: &Wanted) -> bool {
        let Some(Object {
            body: Body::Service(written),
            place,
            ..
        }) = self.objects.get(key)
        else {
            return true;
        };
        let name = ServiceName {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        let old = self.services.get(&name);
        match meaning(
            &mut self.allocator,
            &name,
            written,
            old.map(|service| &*service.object),
            wanted,
        ) {
            Ok(service) => {
                self.services.insert(name, Arc::new(service));
                self.problems.remove(key);
                true
            }
            Err(errors) => {
                let label = key.to_string();
                let kept = if old.is_some() {
                    " (what it said before stays in force)"
                } else {
                    ""
                };
                let problem = |error: validate::FieldError| {
                    let message = format!("{error}{kept}");
                    let at = written_as(written, &error.field);
                    let mut problem = Problem::of_field(Severity::Error, place.as_ref(), &label, at, message);
                    problem.field = error.field;
                    problem
                };
                let problems = errors.into_iter().map(problem).collect();
                self.problems.insert(key.clone(), problems);
                false
            }
        }
    }
}

/// Where a person wrote what the API server's errors call `field`.
fn written_as<'a>(written: &core::Service, field: &'a str) -> &'a str {
    let spec = written.spec.as_ref();
    match field {
        "spec.clusterIPs" | "spec.clusterIPs[0]" if spec.is_some_and(|spec| spec.cluster_ips.is_none()) => {
            "spec.clusterIP"
        }
        _ if field.starts_with("spec.LoadBalancerSourceRanges") => "spec.loadBalancerSourceRanges",
        _ => field,
    }
}

/// What `written` means, with everything it leaves out: defaults, then what is wrong, then addresses and ports.
fn meaning(
    allocator: &mut Allocator,
    name: &ServiceName,
    written: &core::Service,
    old: Option<&core::Service>,
    wanted: &Wanted,
) -> Result<Service, Vec<validate::FieldError>> {
    let mut object = written.clone();
    defaults::apply(&mut object);
    let mut errors = validate::service(&object);
    if let Some(old) = old {
        errors.extend(validate::update(old, &object));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    allocator.allocate(name, object.spec.get_or_insert_default(), wanted)?;
    object.metadata.creation_timestamp = allocator.created(name).map(Time);
    Service::new(name.clone(), object).map_err(|message| {
        let reason = validate::Reason::Invalid;
        vec![validate::FieldError {
            field: "spec".into(),
            reason,
            value: None,
            message,
        }]
    })
}

fn service_key(name: &ServiceName) -> Key {
    Key {
        kind: Kind::Service,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::allocate::Ranges;
    use crate::manifest;
    use crate::problem::SourceText;

    /// A Service `default/s` with this spec.
    pub(crate) fn service(spec: &str) -> core::Service {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: default}}\nspec: {spec}\n"
        );
        let node = manifest::yaml::read(&text).unwrap().unwrap();
        manifest::decode::decode(&node).unwrap()
    }

    pub(crate) fn model() -> Model {
        let ranges = Ranges {
            services: "10.96.0.0/16".parse().unwrap(),
            node_ports: 30_000..=32_767,
        };
        Model::new(Allocator::new(ranges, BTreeMap::new()))
    }

    /// The events of a source that holds `text`.
    pub(crate) fn reset(text: &str) -> Batch {
        let contents = manifest::read(&Arc::new(SourceText {
            path: "f.yaml".into(),
            text: text.into(),
        }));
        let objects = contents
            .objects
            .into_iter()
            .map(|object| Event::Apply(Box::new(object)));
        let problems = Event::Problems(contents.problems);
        [problems, Event::ResetBegin]
            .into_iter()
            .chain(objects)
            .chain([Event::ResetEnd])
            .collect()
    }

    fn node_port(name: &str, port: u16) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{type: NodePort, ports: [{{port: 80, nodePort: {port}}}]}}\n"
        )
    }

    fn said(model: &Model) -> Vec<String> {
        model.problems().iter().map(ToString::to_string).collect()
    }

    fn ports(model: &Model) -> Vec<(String, Option<u16>)> {
        model
            .services()
            .map(|s| (s.name.name.clone(), s.ports[0].node_port))
            .collect()
    }

    #[test]
    fn a_service_that_becomes_wrong_stays_as_it_was_and_says_where() {
        let mut model = model();
        model.apply(reset(&node_port("a", 30_026)));
        model.apply(reset(&node_port("a", 80)));
        assert_eq!(ports(&model), [("a".into(), Some(30_026))]);
        assert_eq!(
            said(&model),
            [
                "f.yaml:5:53: Service default/a: spec.ports[0].nodePort: Invalid value: 80: must be from 30000 to 32767 \
              (what it said before stays in force)"
            ]
        );
        model.apply(reset(&node_port("a", 30_027)));
        assert_eq!(
            (ports(&model), said(&model)),
            (vec![("a".into(), Some(30_027))], vec![])
        );
    }

    #[test]
    fn a_service_waits_for_what_another_holds_and_gets_it_when_it_is_free() {
        let mut model = model();
        model.apply(reset(&node_port("b", 30_026)));
        model.apply(reset(&(node_port("a", 30_026) + &node_port("b", 30_026))));
        assert_eq!(ports(&model), [("b".into(), Some(30_026))]);
        assert!(
            said(&model)[0].contains("is already held by Service default/b"),
            "{:?}",
            said(&model)
        );
        model.apply(reset(&node_port("a", 30_026)));
        assert_eq!(
            (ports(&model), said(&model)),
            (vec![("a".into(), Some(30_026))], vec![])
        );
    }

    #[test]
    fn al_10_an_explicit_request_wins_over_a_dynamic_pick_made_at_the_same_time() {
        let dynamic =
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
        let mut first = model();
        first.apply(reset(dynamic));
        let picked = first.services().next().unwrap().cluster_ips[0];
        let explicit = dynamic
            .replace("name: a", "name: z")
            .replace("{ports", &format!("{{clusterIP: {picked}, ports"));
        let mut both = model();
        both.apply(reset(&(dynamic.to_owned() + &explicit)));
        assert!(said(&both).is_empty(), "{:?}", said(&both));
        let ips: Vec<_> = both.services().map(|s| s.cluster_ips[0]).collect();
        assert!(ips[1] == picked && ips[0] != picked);
    }

    #[test]
    fn val_20_a_cluster_ip_may_not_change_while_the_service_lives() {
        let with = |ip: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: {ip}, ports: [{{port: 1}}]}}\n"
            )
        };
        let mut model = model();
        model.apply(reset(&with("10.96.0.7")));
        model.apply(reset(&with("10.96.0.8")));
        assert!(
            said(&model)[0].contains("may not change (it is 10.96.0.7)"),
            "{:?}",
            said(&model)
        );
        model.apply(reset(""));
        model.apply(reset(&with("10.96.0.8")));
        assert_eq!(said(&model), Vec::<String>::new());
    }
}
