//! A file's text to typed Kubernetes objects. Takes text, gives the objects in it and what is wrong with the rest: one
//! broken document never hides the others. It reads no file, checks no value against another (that is `model`), and
//! knows nothing of what the text held before.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::names;
use crate::problem::{Place, Problem, Severity, SourceText};

/// Typed values out of trees.
pub mod decode;
/// Trees out of text.
pub mod yaml;

macro_rules! kinds {
    ($($kind:ident $api_version:literal $scope:ident;)*) => {
        /// Kinds of objects that have a meaning here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(
                #[doc = concat!($api_version, " ", stringify!($kind))]
                $kind,
            )*
        }

        /// A typed object. Shared, since sources, the model and those who ask all keep it.
        #[derive(Clone, Debug)]
        pub enum Body {
            $(
                #[doc = concat!("A ", stringify!($kind))]
                $kind(Arc<$kind>),
            )*
        }

        impl PartialEq for Body {
            fn eq(&self, other: &Self) -> bool {
                // Most are compared with themselves, and the same object is equal without a look at it.
                match (self, other) {
                    $((Self::$kind(a), Self::$kind(b)) => Arc::ptr_eq(a, b) || a == b,)*
                    _ => false,
                }
            }
        }

        impl Kind {
            /// As manifests write it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }

            const ALL: &'static [(Self, &'static str, &'static str)] =
                &[$((Self::$kind, $api_version, stringify!($kind)),)*];

            /// Whether it lives in a namespace.
            pub const fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => matches!(Scope::$scope, Scope::Namespaced),)* }
            }

            fn decode(self, node: &yaml::Node) -> Result<Body, Vec<decode::Mistake>> {
                match self { $(Self::$kind => Ok(Body::$kind(Arc::new(decode::decode(node)?))),)* }
            }
        }

        impl Body {
            /// Its kind.
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// Its metadata.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata,)* }
            }

            /// It, with `apiVersion` and `kind`.
            ///
            /// # Errors
            /// It cannot be written, which no Kubernetes type is.
            pub fn value(&self) -> serde_json::Result<serde_json::Value> {
                match self { $(Self::$kind(object) => serde_json::to_value(&**object),)* }
            }
        }
    };
}

enum Scope {
    Namespaced,
    Cluster,
}

kinds! {
    Service "v1" Namespaced;
    Pod "v1" Namespaced;
    Endpoints "v1" Namespaced;
    EndpointSlice "discovery.k8s.io/v1" Namespaced;
    ReplicaSet "apps/v1" Namespaced;
    Deployment "apps/v1" Namespaced;
    StatefulSet "apps/v1" Namespaced;
    DaemonSet "apps/v1" Namespaced;
    Node "v1" Cluster;
    Namespace "v1" Cluster;
}

impl Kind {
    /// Its group, with a dot before it.
    fn group(self) -> &'static str {
        match self {
            Self::EndpointSlice => ".discovery.k8s.io",
            Self::ReplicaSet | Self::Deployment | Self::StatefulSet | Self::DaemonSet => ".apps",
            _ => "",
        }
    }

    /// As messages have one of it: `deployment.apps`.
    pub fn resource(self) -> String {
        self.name().to_lowercase() + self.group()
    }

    /// As messages have several of it: `deployments.apps`.
    pub fn resources(self) -> String {
        self.plural() + self.group()
    }

    fn plural(self) -> String {
        let name = self.name().to_lowercase();
        // Endpoints are several already.
        if name.ends_with('s') && self != Self::Endpoints {
            name + "es"
        } else {
            name.trim_end_matches('s').to_owned() + "s"
        }
    }

    /// The kind of this name: singular, plural, short, or with its group, as kubectl takes them.
    pub fn named(text: &str) -> Option<Self> {
        let text = text.to_lowercase();
        let short = |kind: Self| match kind {
            Self::Service => "svc",
            Self::Pod => "po",
            Self::Endpoints => "ep",
            Self::EndpointSlice => "endpointslices",
            Self::ReplicaSet => "rs",
            Self::Deployment => "deploy",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
            Self::Node => "no",
            Self::Namespace => "ns",
        };
        let is = |kind: Self| {
            let names = [
                kind.name().to_lowercase(),
                kind.plural(),
                kind.resource(),
                kind.resources(),
            ];
            short(kind) == text || names.contains(&text)
        };
        Self::ALL.iter().map(|(kind, ..)| *kind).find(|kind| is(*kind))
    }
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, "" for one that has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind.name(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.name(), self.name),
        }
    }
}

/// An object as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its name.
    pub key: Key,
    /// Its fields.
    pub body: Body,
    /// Where it was written; for messages only.
    pub place: Option<Place>,
}

/// What a file's text holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The objects that could be read, in order.
    pub objects: Vec<Object>,
    /// What is wrong with the others.
    pub problems: Vec<Problem>,
}

/// Reads all documents of `source`.
pub fn read(source: &Arc<SourceText>) -> Contents {
    let mut contents = Contents::default();
    for (range, lines_before) in documents(&source.text) {
        let text = &source.text[range.clone()];
        let place = Place {
            source: source.clone(),
            document: range,
            lines_before,
            prefix: String::new(),
        };
        match yaml::read(text) {
            Ok(None) => {}
            Ok(Some(node)) if node.is_null() => {}
            Ok(Some(node)) => contents.document(&node, place),
            Err(broken) => {
                contents.problems.push(Problem::at(
                    Severity::Error,
                    &place,
                    &broken.spot,
                    "",
                    "",
                    broken.message,
                ));
            }
        }
    }
    contents
}

/// The documents of a file, with the number of lines before each: text between lines that begin with `---`. The split
/// is by lines, as kubectl's is, so that a mistake in one document cannot spoil where the next begins.
fn documents(text: &str) -> Vec<(std::ops::Range<usize>, usize)> {
    let mut found = Vec::new();
    let (mut start, mut start_line, mut at) = (text.len() - text.trim_start_matches('\u{feff}').len(), 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marks = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marks && at > start {
            found.push((start..at, start_line));
            (start, start_line) = (at, number);
        }
        at += line.len();
    }
    found.push((start..at, start_line));
    // Directives stand before the `---` of their document; the one that matters, %YAML, changes nothing here.
    found.retain(|(range, _)| {
        text[range.clone()]
            .lines()
            .any(|line| !line.trim().is_empty() && !line.starts_with(['#', '%']))
    });
    found
}

impl Contents {
    fn document(&mut self, node: &yaml::Node, place: Place) {
        let kind = node.get("kind").and_then(yaml::Node::text).unwrap_or_default();
        let Some(item_kind) = kind.strip_suffix("List") else {
            return self.object(node, kind, place);
        };
        let Some(yaml::Value::Sequence(items)) = node.get("items").map(|items| &items.value) else {
            return self.mistake(
                &place,
                &node.spot,
                "",
                "items",
                "a List needs a list of items".into(),
            );
        };
        for (index, item) in items.iter().enumerate() {
            let place = Place {
                prefix: format!("items[{index}]"),
                ..place.clone()
            };
            let kind = item.get("kind").and_then(yaml::Node::text).unwrap_or(item_kind);
            self.object(item, kind, place);
        }
    }

    fn mistake(&mut self, place: &Place, spot: &yaml::Spot, object: &str, field: &str, message: String) {
        self.problems
            .push(Problem::at(Severity::Error, place, spot, object, field, message));
    }

    fn object(&mut self, node: &yaml::Node, kind: &str, place: Place) {
        let spot_of = |field| node.locate(field);
        let name = |field| {
            node.get("metadata")
                .and_then(|m| m.get(field))
                .and_then(yaml::Node::text)
        };
        if !matches!(node.value, yaml::Value::Mapping(_)) {
            return self.mistake(
                &place,
                &node.spot,
                "",
                "",
                "is not an object: a mapping was expected".into(),
            );
        }
        if kind.is_empty() {
            let message = "is missing; an object needs `apiVersion` and `kind`".into();
            return self.mistake(&place, &node.spot, "", "kind", message);
        }
        let Some((kind, api_version, _)) = Kind::ALL.iter().find(|(_, _, name)| *name == kind) else {
            return self.unknown_kind(node, kind, &place);
        };
        let given = node.get("apiVersion").and_then(yaml::Node::text);
        if given.is_some_and(|given| given != *api_version) || (given.is_none() && place.prefix.is_empty()) {
            let message = format!("must be {api_version} for a {}", kind.name());
            return self.mistake(&place, &spot_of("apiVersion"), "", "apiVersion", message);
        }
        let label = name("name")
            .map(|name| format!("{} {name}", kind.name()))
            .unwrap_or_default();
        let body = match kind.decode(node) {
            Ok(body) => body,
            Err(mistakes) => {
                for mistake in mistakes {
                    self.mistake(&place, &mistake.spot, &label, &mistake.field, mistake.message);
                }
                return;
            }
        };
        let metadata = body.metadata();
        let Some(name) = metadata.name.clone().filter(|name| !name.is_empty()) else {
            let message = "is required".into();
            return self.mistake(
                &place,
                &spot_of("metadata.name"),
                kind.name(),
                "metadata.name",
                message,
            );
        };
        let namespace = match kind.is_namespaced() {
            true => metadata
                .namespace
                .clone()
                .filter(|n| !n.is_empty())
                .unwrap_or_else(|| "default".into()),
            false => String::new(),
        };
        // VAL-2. Here rather than with the rules of a Service: what names an object must be right before anything can be
        // said of it, and a wrong one in a record would have the dataplane refuse all others with it.
        if let Some(wrong) = names::label(&namespace).filter(|_| kind.is_namespaced()) {
            let (field, message) = (
                "metadata.namespace",
                format!("Invalid value: \"{namespace}\": {wrong}"),
            );
            return self.mistake(&place, &spot_of(field), &label, field, message);
        }
        let mut body = body;
        if kind.is_namespaced() {
            body.set_namespace(&namespace);
        }
        self.objects.push(Object {
            key: Key {
                kind: *kind,
                namespace,
                name,
            },
            body,
            place: Some(place),
        });
    }

    fn unknown_kind(&mut self, node: &yaml::Node, kind: &str, place: &Place) {
        let known: Vec<&str> = Kind::ALL.iter().map(|(_, _, name)| *name).collect();
        let spot = node.locate("kind");
        // "service" is a slip; "Secret" is somebody else's.
        if let Some(near) = known.iter().find(|known| known.eq_ignore_ascii_case(kind)) {
            return self.mistake(
                place,
                &spot,
                "",
                "kind",
                format!("is not known; did you mean `{near}`?"),
            );
        }
        let message = format!(
            "{kind} is ignored; objects with a meaning here are {}",
            known.join(", ")
        );
        self.problems
            .push(Problem::at(Severity::Note, place, &spot, "", "kind", message));
    }
}

impl Body {
    /// Puts it into a namespace, if it lives in any.
    pub fn set_namespace(&mut self, namespace: &str) {
        let metadata = match self {
            Self::Service(o) => &mut Arc::make_mut(o).metadata,
            Self::Pod(o) => &mut Arc::make_mut(o).metadata,
            Self::Endpoints(o) => &mut Arc::make_mut(o).metadata,
            Self::EndpointSlice(o) => &mut Arc::make_mut(o).metadata,
            Self::ReplicaSet(o) => &mut Arc::make_mut(o).metadata,
            Self::Deployment(o) => &mut Arc::make_mut(o).metadata,
            Self::StatefulSet(o) => &mut Arc::make_mut(o).metadata,
            Self::DaemonSet(o) => &mut Arc::make_mut(o).metadata,
            Self::Node(_) | Self::Namespace(_) => return,
        };
        metadata.namespace = Some(namespace.into());
    }
}

#[cfg(test)]
mod tests;
