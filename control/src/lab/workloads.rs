//! Which pods there should be: the Pods, ReplicaSets, Deployments, StatefulSets and DaemonSets of the manifest folder.
//!
//! Takes files; gives sets of pods to keep and single pods. Other kinds are control's and are passed over; a file that
//! cannot be read keeps what it said last, so that a half-saved edit stops nothing. Never touches a pod.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::Context;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Namespace and name of an object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a pod is made from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) spec: PodSpec,
}

/// How a set keeps its pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SetKind {
    /// So many, whatever they are called.
    Replica,
    /// Pods with ordinals for names, which stay whatever becomes of the pod. `parallel`: at once, else one after the other.
    Stateful { parallel: bool },
    /// One on every node: the lab has one.
    Daemon,
}

impl SetKind {
    /// As manifests write it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Replica => "ReplicaSet",
            Self::Stateful { .. } => "StatefulSet",
            Self::Daemon => "DaemonSet",
        }
    }

    /// As commands name it.
    pub(super) const fn short(self) -> &'static str {
        match self {
            Self::Replica => "rs",
            Self::Stateful { .. } => "sts",
            Self::Daemon => "ds",
        }
    }
}

/// The label that tells which template a pod was made from, where a set replaces pods of an older one.
pub(super) const REVISION: &str = "controller-revision-hash";

/// A number of pods alike.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Set {
    pub(super) kind: SetKind,
    pub(super) replicas: u32,
    pub(super) template: Template,
    /// The Deployment it was made for.
    pub(super) deployment: Option<String>,
}

/// All that the folder asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Workloads {
    /// Single pods.
    pub(super) pods: BTreeMap<Key, Template>,
    /// Sets, those of Deployments included, under their own names.
    pub(super) sets: BTreeMap<Key, Set>,
}

/// Most replicas of one set: a lab has 253 addresses, and a typing error should not start them all twice.
const MOST_REPLICAS: i32 = 250;

/// The folder, as last read.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, Vec<Value>>,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
        }
    }

    /// Reads all files again. What cannot be read is returned as complaints.
    pub(super) fn read(&mut self) -> (Workloads, Vec<String>) {
        let mut complaints = Vec::new();
        let mut files = BTreeMap::new();
        for path in manifest_files(&self.path) {
            let objects = fs::read_to_string(&path)
                .map_err(anyhow::Error::from)
                .and_then(|text| parse(&text))
                .unwrap_or_else(|error| {
                    complaints.push(format!("{}: {error:#}", path.display()));
                    self.files.remove(&path).unwrap_or_default()
                });
            files.insert(path, objects);
        }
        self.files = files;
        let mut workloads = Workloads::default();
        for (path, object) in self
            .files
            .iter()
            .flat_map(|(path, objects)| objects.iter().map(move |o| (path, o)))
        {
            if let Err(error) = workloads.add(object) {
                complaints.push(format!("{}: {error:#}", path.display()));
            }
        }
        (workloads, complaints)
    }
}

impl Workloads {
    fn add(&mut self, object: &Value) -> anyhow::Result<()> {
        match object.get("kind").and_then(Value::as_str) {
            Some("Pod") => {
                let pod: Pod = typed(object)?;
                let (key, template) = (key(&pod.metadata)?, template(Some(&pod.metadata), pod.spec));
                self.pods.insert(key, template);
            }
            Some("ReplicaSet") => {
                let set: ReplicaSet = typed(object)?;
                let (key, spec) = (key(&set.metadata)?, set.spec.unwrap_or_default());
                let pod = spec.template.unwrap_or_default();
                let template = template(pod.metadata.as_ref(), pod.spec);
                self.set(
                    key,
                    Set {
                        kind: SetKind::Replica,
                        replicas: replicas(spec.replicas),
                        template,
                        deployment: None,
                    },
                )?;
            }
            Some("StatefulSet") => {
                let set: StatefulSet = typed(object)?;
                let (key, spec) = (key(&set.metadata)?, set.spec.unwrap_or_default());
                let mut template = revised(
                    &key,
                    template(spec.template.metadata.as_ref(), spec.template.spec),
                );
                // Pods are found under it by name (DNS-16).
                template.spec.subdomain = spec.service_name.filter(|name| !name.is_empty());
                let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
                self.set(
                    key,
                    Set {
                        kind: SetKind::Stateful { parallel },
                        replicas: replicas(spec.replicas),
                        template,
                        deployment: None,
                    },
                )?;
            }
            Some("DaemonSet") => {
                let set: DaemonSet = typed(object)?;
                let (key, spec) = (key(&set.metadata)?, set.spec.unwrap_or_default());
                let template = revised(
                    &key,
                    template(spec.template.metadata.as_ref(), spec.template.spec),
                );
                self.set(
                    key,
                    Set {
                        kind: SetKind::Daemon,
                        replicas: 1,
                        template,
                        deployment: None,
                    },
                )?;
            }
            Some("Deployment") => {
                let deployment: Deployment = typed(object)?;
                let (key, spec) = (key(&deployment.metadata)?, deployment.spec.unwrap_or_default());
                let mut template = template(spec.template.metadata.as_ref(), spec.template.spec);
                let hash = template_hash(&template);
                template
                    .labels
                    .insert("pod-template-hash".to_owned(), hash.clone());
                let set = Key {
                    namespace: key.namespace,
                    name: format!("{}-{hash}", key.name),
                };
                let replicas = replicas(spec.replicas);
                self.set(
                    set,
                    Set {
                        kind: SetKind::Replica,
                        replicas,
                        template,
                        deployment: Some(key.name),
                    },
                )?;
            }
            Some("List") => {
                for item in object
                    .get("items")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    self.add(item)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn set(&mut self, key: Key, set: Set) -> anyhow::Result<()> {
        if let Some(other) = self
            .sets
            .get(&key)
            .filter(|other| other.kind.name() != set.kind.name())
        {
            anyhow::bail!(
                "{} {key}: a {} has this name already, and the lab tells its pods by it: give one another name",
                set.kind.name(),
                other.kind.name()
            );
        }
        self.sets.insert(key, set);
        Ok(())
    }
}

/// A template with the label that tells it from an older one.
fn revised(set: &Key, mut template: Template) -> Template {
    let revision = format!("{}-{}", set.name, template_hash(&template));
    template.labels.insert(REVISION.to_owned(), revision);
    template
}

/// The manifests below a folder, in the order of their names.
pub(super) fn manifest_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let manifest = path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if !hidden && path.is_dir() {
            files.extend(manifest_files(&path));
        } else if !hidden && manifest {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    // One line: the rest of the parser's message is an excerpt of the file, which `sluice check` shows better.
    serde_saphyr::from_multiple::<Value>(text).map_err(|error| {
        let message = error.to_string();
        anyhow::anyhow!(
            "{}",
            message.lines().next().unwrap_or("cannot be read").to_owned()
        )
    })
}

fn typed<T: DeserializeOwned>(object: &Value) -> anyhow::Result<T> {
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or("?");
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or("?");
    T::deserialize(object).with_context(|| format!("{kind} {name}"))
}

fn key(metadata: &ObjectMeta) -> anyhow::Result<Key> {
    let name = metadata.name.clone().context("an object has no metadata.name")?;
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    // Names become parts of file names.
    for part in [&name, &namespace] {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if part.is_empty() || part.len() > 200 || part.starts_with('.') || !part.bytes().all(valid) {
            anyhow::bail!("{part:?} is no name: use a-z, 0-9, - and .");
        }
    }
    Ok(Key { namespace, name })
}

fn template(metadata: Option<&ObjectMeta>, spec: Option<PodSpec>) -> Template {
    Template {
        labels: metadata.and_then(|m| m.labels.clone()).unwrap_or_default(),
        annotations: metadata.and_then(|m| m.annotations.clone()).unwrap_or_default(),
        spec: spec.unwrap_or_default(),
    }
}

fn replicas(asked: Option<i32>) -> u32 {
    // apps/v1: one unless said otherwise.
    asked.unwrap_or(1).clamp(0, MOST_REPLICAS).unsigned_abs()
}

/// Characters of generated names: no vowels and nothing alike, so that no name is a word or misread, as in Kubernetes
/// (k8s.io/apimachinery/pkg/util/rand).
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `length` characters of the alphabet, decided by `seed`.
pub(super) fn name_part(mut seed: u64, length: usize) -> String {
    let base = ALPHABET.len() as u64;
    let mut part = String::with_capacity(length);
    for _ in 0..length {
        part.push(char::from(ALPHABET[(seed % base) as usize]));
        seed /= base;
    }
    part
}

fn template_hash(template: &Template) -> String {
    let mut hasher = DefaultHasher::new();
    // The same template gives the same name in every run: serde writes maps in order.
    serde_json::to_string(&(&template.labels, &template.annotations, &template.spec))
        .unwrap_or_default()
        .hash(&mut hasher);
    name_part(hasher.finish(), 10)
}

#[cfg(test)]
mod tests;
