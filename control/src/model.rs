//! Services as meant: every value legal by type. Takes batches of events, gives the Services in force and what is wrong
//! with the others, and tells what was touched. A Service whose newest text is wrong stays as it last was right, as do
//! endpoints; one that waits for an address that another holds is tried again with every batch.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::allocate::{Allocator, Wanted};
use crate::manifest::{Body, Key, Kind, Object};
use crate::problem::{Place, Problem, Severity};
use crate::source::{Batch, Event};

/// What a Service means where it says nothing.
pub mod defaults;
/// What is taken, but hardly does what is meant.
pub mod doubts;
/// Families and cluster IPs of a Service.
mod families;
/// Address families.
mod family;
/// One mistake.
mod field_error;
/// Forms of names and addresses.
pub(crate) mod names;
/// A Service as meant.
mod service;
/// What a Service may not say.
pub mod validate;

pub use family::{Families, Family};
pub(crate) use field_error::Errors;
pub use field_error::{FieldError, Reason};
pub use service::{Service, ServiceName, ServicePort, Target, ingress, protocol};

/// Services by name.
pub type Services = BTreeMap<ServiceName, Arc<Service>>;

/// Everything that is in force.
#[derive(Debug)]
pub struct Model {
    /// All objects as last said, right or wrong.
    objects: BTreeMap<Key, Object>,
    services: Services,
    /// What has come, changed or gone, as it was written or as it is in force, since somebody last asked.
    touched: BTreeSet<Key>,
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
            touched: BTreeSet::new(),
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
                Event::Apply(mut object) => {
                    if let Body::EndpointSlice(slice) = &mut object.body {
                        defaults::endpoint_slice(Arc::make_mut(slice));
                    }
                    if let Some(said) = &mut self.reset {
                        said.insert(object.key.clone());
                    }
                    if self.endpoints_are_right(&object) {
                        touched.push(object.key.clone());
                        self.touched.insert(object.key.clone());
                        self.objects.insert(object.key.clone(), *object);
                    }
                }
                Event::Delete(key) => self.delete(&key),
                Event::ResetEnd => {
                    let said = self.reset.take().unwrap_or_default();
                    let known = self.objects.keys().chain(self.problems.keys());
                    let gone: Vec<Key> = known.filter(|key| !said.contains(key)).cloned().collect();
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
        let wrong = |problem: &Problem| problem.severity == Severity::Error;
        if self
            .problems
            .get(key)
            .is_some_and(|problems| problems.iter().any(wrong))
        {
            self.problems.remove(key);
            self.objects.remove(key);
        }
    }

    /// What has been touched since this was last asked: everything that may be another than it was then.
    pub fn take_touched(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.touched)
    }

    /// The names of all objects.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    /// Whether all has been said at least once (SVC-6).
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The Services in force.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The same by name.
    pub const fn services_by_name(&self) -> &Services {
        &self.services
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
    pub fn pods(&self) -> impl Iterator<Item = &Arc<core::Pod>> {
        self.bodies(Kind::Pod).filter_map(|body| match body {
            Body::Pod(pod) => Some(pod),
            _ => None,
        })
    }

    /// Every namespace there is, as an object of its own or because something is in it.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.keys()
            .map(|key| match key.kind {
                Kind::Namespace => key.name.as_str(),
                _ => key.namespace.as_str(),
            })
            .filter(|name| !name.is_empty())
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &core::Node> {
        self.bodies(Kind::Node).filter_map(|body| match body {
            Body::Node(node) => Some(&**node),
            _ => None,
        })
    }

    /// EndpointSlices that users made.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.bodies(Kind::EndpointSlice).filter_map(|body| match body {
            Body::EndpointSlice(slice) => Some(slice),
            _ => None,
        })
    }

    /// The one of this name.
    pub fn slice(&self, key: &Key) -> Option<&Arc<EndpointSlice>> {
        match &self.objects.get(key)?.body {
            Body::EndpointSlice(slice) => Some(slice),
            _ => None,
        }
    }

    /// Endpoints that users made.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<core::Endpoints>> {
        self.bodies(Kind::Endpoints).filter_map(|body| match body {
            Body::Endpoints(endpoints) => Some(endpoints),
            _ => None,
        })
    }

    /// Those of this Service.
    pub fn endpoints_of(&self, service: &ServiceName) -> Option<&Arc<core::Endpoints>> {
        let key = Key {
            kind: Kind::Endpoints,
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        };
        match &self.objects.get(&key)?.body {
            Body::Endpoints(endpoints) => Some(endpoints),
            _ => None,
        }
    }

    /// All objects of a kind, as users made them.
    pub fn bodies(&self, kind: Kind) -> impl Iterator<Item = &Body> {
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
        self.touched.insert(key.clone());
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

    /// Whether endpoints that a user wrote may be taken. Those that may not stay as they last were, too.
    fn endpoints_are_right(&mut self, object: &Object) -> bool {
        let old = self.objects.get(&object.key).map(|old| &old.body);
        let errors = match (&object.body, old) {
            (Body::EndpointSlice(new), Some(Body::EndpointSlice(old))) => {
                validate::endpoints::endpoint_slice(new, Some(old))
            }
            (Body::EndpointSlice(new), _) => validate::endpoints::endpoint_slice(new, None),
            (Body::Endpoints(new), _) => validate::endpoints::endpoints(new),
            _ => return true,
        };
        if errors.is_empty() {
            self.problems.remove(&object.key);
            return true;
        }
        let (key, kept) = (object.key.clone(), old.is_some());
        let problem =
            |error: FieldError| refusal(&key, object.place.as_ref(), &error.field.clone(), error, kept);
        self.problems
            .insert(key.clone(), errors.into_iter().map(problem).collect());
        false
    }

    /// Brings the Services that changed, and those that could not be before, into force.
    fn settle(&mut self, touched: Vec<Key>) {
        let mut seen = HashSet::new();
        let waiting: Vec<Key> = self.problems.keys().cloned().collect();
        let mut keys: Vec<Key> = touched.into_iter().chain(waiting).collect();
        keys.retain(|key| key.kind == Kind::Service && seen.insert(key.clone()));
        let mut wanted = Wanted::default();
        let services = keys.iter().filter_map(|key| match &self.objects.get(key)?.body {
            Body::Service(service) => Some(service),
            _ => None,
        });
        services.for_each(|service| wanted.add(service));
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
            Ok((service, lacking)) => {
                let problem = |error: FieldError| {
                    let (label, message) = (key.to_string(), error.to_string());
                    Problem::of_field(Severity::Warning, place.as_ref(), &label, &error.field, message)
                };
                let problems: Vec<_> = lacking.into_iter().map(problem).collect();
                self.services.insert(name, Arc::new(service));
                self.touched.insert(key.clone());
                // One that lacks something is tried again, as one that is wrong.
                let whole = problems.is_empty();
                match whole {
                    true => self.problems.remove(key),
                    false => self.problems.insert(key.clone(), problems),
                };
                whole
            }
            Err(errors) => {
                let kept = old.is_some();
                let problem = |error: FieldError| {
                    let field = error.field.clone();
                    let at = written_as(written, &field)?;
                    Some(refusal(key, place.as_ref(), at, error, kept))
                };
                let problems = errors.into_iter().filter_map(problem).collect();
                self.problems.insert(key.clone(), problems);
                false
            }
        }
    }
}

/// A mistake for which an object is not taken; `at` is the field as it was written.
fn refusal(key: &Key, place: Option<&Place>, at: &str, error: FieldError, kept: bool) -> Problem {
    let kept = if kept {
        " (what it said before stays in force)"
    } else {
        ""
    };
    let message = format!("{error}{kept}");
    let mut problem = Problem::of_field(Severity::Error, place, &key.to_string(), at, message);
    problem.field = error.field;
    problem
}

/// The items of a list, none if it is not given.
fn given<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}

/// Where a person wrote what the API server's errors call `field`; nowhere if it only repeats another error: a
/// `targetPort` that was left out is as wrong as the `port` it was taken from.
fn written_as<'a>(written: &core::Service, field: &'a str) -> Option<&'a str> {
    let spec = written.spec.as_ref();
    let target_port_of = |index: &str| {
        let port = spec?.ports.as_ref()?.get(index.parse::<usize>().ok()?)?;
        port.target_port.as_ref()
    };
    let bare = |field: &'a str| field.strip_prefix("spec.ports[")?.strip_suffix("].targetPort");
    match field {
        "spec.clusterIPs" | "spec.clusterIPs[0]" if spec.is_some_and(|spec| spec.cluster_ips.is_none()) => {
            Some("spec.clusterIP")
        }
        _ if field.starts_with("spec.LoadBalancerSourceRanges") => Some("spec.loadBalancerSourceRanges"),
        _ if bare(field).is_some_and(|index| target_port_of(index).is_none()) => None,
        _ => Some(field),
    }
}

/// What `written` means, with everything it leaves out: defaults, then what is wrong, then addresses and ports. Beside it,
/// what it lacks but can do without.
fn meaning(
    allocator: &mut Allocator,
    name: &ServiceName,
    written: &core::Service,
    old: Option<&core::Service>,
    wanted: &Wanted,
) -> Result<(Service, Vec<FieldError>), Vec<FieldError>> {
    let mut object = written.clone();
    let cluster = allocator.families();
    defaults::apply(&mut object, cluster, allocator.held(name));
    let mut errors = validate::service(&object, cluster);
    if let Some(old) = old {
        errors.extend(validate::update(old, &object));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    allocator.allocate(name, object.spec.get_or_insert_default(), wanted)?;
    let lacking = allocator.balance(name, &mut object, wanted);
    object.metadata.creation_timestamp = allocator.held(name).map(|held| Time(held.created));
    match Service::new(name.clone(), object) {
        Ok(service) => Ok((service, lacking)),
        Err(message) => Err(vec![FieldError {
            field: "spec".into(),
            reason: Reason::Invalid,
            value: None,
            message,
        }]),
    }
}

fn service_key(name: &ServiceName) -> Key {
    Key {
        kind: Kind::Service,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
