//! The manifests of a running control process, for the commands that change them: `apply`, `expose` and `delete` write
//! files, as an editor would, and control takes them from there. Nothing is written that control would refuse: it is judged
//! first, by the same rules, with everything that is there already.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Service;

use super::selector::Selector;
use crate::allocate::{Allocator, state};
use crate::api::{self, List, Status};
use crate::daemon::config::Config;
use crate::dns::kube_dns;
use crate::manifest::{self, Body, Key, Kind, Object};
use crate::model::{Model, ServiceName};
use crate::problem::{Problem, Severity, SourceText};
use crate::source::Event;
use crate::source::files::Folders;

/// How long control may take to have what was written: several times what it promises.
const PATIENCE: Duration = Duration::from_secs(2);

/// A control process's manifests.
pub(super) struct Store {
    socket: PathBuf,
    folders: Vec<PathBuf>,
    objects: BTreeMap<Key, Object>,
    model: Model,
}

/// What putting an object did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Created,
    Configured,
    Unchanged,
}

impl Change {
    /// kubectl's word for it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

impl Store {
    /// That of the control process that answers at `api`, or at the usual places.
    pub(super) fn open(api: Option<PathBuf>) -> anyhow::Result<Self> {
        let socket = api.unwrap_or_else(api::default_api_socket);
        let status: Vec<Status> = api::ask(&socket, List::Status)?;
        let status = status
            .into_iter()
            .next()
            .context("the control process tells no status")?;
        let config = Config::load(&status.config)?;
        let own = config
            .dns
            .as_ref()
            .map(|dns| kube_dns::objects(&dns.cluster_ips, &dns.listen));
        let batch = Folders::new(&config.manifests)
            .with_own(own.unwrap_or_default())
            .scan();
        let applied = batch.iter().filter_map(|event| match event {
            Event::Apply(object) => Some((object.key.clone(), (**object).clone())),
            _ => None,
        });
        let objects = applied.collect();
        let mut model = Model::new(Allocator::new(config.ranges(), state::peek(&config.state)));
        model.apply(batch);
        Ok(Self {
            socket,
            folders: config.manifests,
            objects,
            model,
        })
    }

    /// The object of this name.
    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Names of all objects of a kind in a namespace.
    pub(super) fn names(&self, kind: Kind, namespace: &str) -> Vec<&str> {
        let here = |key: &&Key| key.kind == kind && (key.namespace == namespace || key.namespace.is_empty());
        self.objects
            .keys()
            .filter(here)
            .map(|key| key.name.as_str())
            .collect()
    }

    /// All objects of a kind in a namespace that have such labels. Pods that a set keeps are the set's to end.
    pub(super) fn selected(&self, kind: Kind, namespace: &str, selector: &Selector) -> Vec<Key> {
        let is_meant = |(key, object): &(&Key, &Object)| {
            let metadata = object.body.metadata();
            let is_own = metadata.owner_references.as_ref().is_none_or(Vec::is_empty);
            let is_here = key.kind == kind && (key.namespace == namespace || key.namespace.is_empty());
            is_here && is_own && selector.matches(metadata.labels.as_ref())
        };
        let meant = self.objects.iter().filter(is_meant);
        meant.map(|(key, _)| key.clone()).collect()
    }

    /// What control would refuse `objects` for.
    pub(super) fn judge(&mut self, objects: &[Object]) -> Vec<Problem> {
        let batch = objects
            .iter()
            .cloned()
            .map(|object| Event::Apply(Box::new(object)));
        self.model.apply(batch.collect());
        let labels: Vec<_> = objects.iter().map(|object| object.key.to_string()).collect();
        let mut problems = self.model.problems();
        problems.retain(|problem| problem.severity == Severity::Error && labels.contains(&problem.object));
        problems
    }

    /// A Service as it will be, once judged.
    pub(super) fn service(&self, key: &Key) -> Option<&Service> {
        let name = ServiceName {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        self.model.service(&name).map(|service| &*service.object)
    }

    /// What putting the object would do.
    pub(super) fn change(&self, object: &Object) -> Change {
        match self.objects.get(&object.key) {
            None => Change::Created,
            Some(old) if old.body == object.body => Change::Unchanged,
            Some(_) => Change::Configured,
        }
    }

    /// Writes an object's text in place of what was there, or into a file of its own.
    pub(super) fn put(&self, object: &Object, text: &str) -> anyhow::Result<Change> {
        let change = self.change(object);
        match self.objects.get(&object.key) {
            Some(_) if change == Change::Unchanged => {}
            Some(old) => edit(file_of(old)?, &object.key, Some(text))?,
            None => self.add(&object.key, text)?,
        }
        Ok(change)
    }

    fn add(&self, key: &Key, text: &str) -> anyhow::Result<()> {
        let folder = self.folders.first().context("control reads no folder")?;
        if folder.is_file() {
            let before =
                fs::read_to_string(folder).with_context(|| format!("cannot read {}", folder.display()))?;
            let line = if before.ends_with('\n') { "" } else { "\n" };
            return write(folder, &format!("{before}{line}---\n{text}"));
        }
        let namespace = if key.namespace.is_empty() {
            String::new()
        } else {
            format!("{}.", key.namespace)
        };
        let file = folder.join(format!(
            "{namespace}{}.{}.yaml",
            key.name,
            key.kind.name().to_lowercase()
        ));
        if file.exists() {
            bail!(
                "{} is there already, and holds something else: move it away",
                file.display()
            );
        }
        write(&file, text)
    }

    /// Takes an object's text out of its file.
    pub(super) fn remove(&self, key: &Key) -> anyhow::Result<()> {
        let object = self
            .objects
            .get(key)
            .with_context(|| format!("there is no {key}"))?;
        // Only a running pod has an identity; what it was made from has none.
        if object.body.metadata().uid.is_some() && key.kind == Kind::Pod {
            bail!(
                "pod {0} runs in the lab: `sluice lab delete pod {0}` ends it",
                key.name
            );
        }
        edit(file_of(object)?, key, None)
    }

    /// Waits until control has these Services as they were judged, or, if gone, no more. Whether it has.
    pub(super) fn wait(&self, keys: &[Key]) -> anyhow::Result<bool> {
        let deadline = now() + PATIENCE;
        let is_done = |services: &[Service]| {
            keys.iter().filter(|key| key.kind == Kind::Service).all(|key| {
                let same = |service: &&Service| {
                    service.metadata.name.as_ref() == Some(&key.name)
                        && service.metadata.namespace.as_ref() == Some(&key.namespace)
                };
                let has = services.iter().find(same).map(|service| &service.spec);
                has == self.service(key).map(|service| &service.spec)
            })
        };
        loop {
            let services: Vec<Service> = api::ask(&self.socket, List::Services)?;
            if is_done(&services) {
                return Ok(true);
            }
            if now() > deadline {
                return Ok(false);
            }
            // Asked again: who waits for news is told of none only after much longer than our patience.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// From now on these are gone.
    pub(super) fn forget(&mut self, keys: &[Key]) {
        self.model
            .apply(keys.iter().cloned().map(Event::Delete).collect());
    }
}

// A person waits, no packet.
#[allow(clippy::disallowed_methods)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn file_of(object: &Object) -> anyhow::Result<&Path> {
    let place = object.place.as_ref().context("it came from no file")?;
    Ok(&place.source.path)
}

/// Puts `text` where the document of `key` is in `file`; nothing: takes it out.
fn edit(file: &Path, key: &Key, text: Option<&str>) -> anyhow::Result<()> {
    let before = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let source = Arc::new(SourceText {
        path: file.into(),
        text: before,
    });
    let contents = manifest::read(&source);
    let found = contents.objects.iter().find(|object| object.key == *key);
    let place = found.and_then(|object| object.place.as_ref());
    let place = place.with_context(|| format!("{}: {key} is no longer there", file.display()))?;
    if !place.prefix.is_empty() {
        let at = format!("{}:{}", file.display(), place.lines_before + 1);
        bail!("{at}: {key} is one of a List: edit the file itself");
    }
    let old = &source.text[place.document.clone()];
    if text.is_some()
        && old
            .trim_start()
            .trim_start_matches("---")
            .trim_start()
            .starts_with('{')
    {
        bail!(
            "{}: {key} is written as JSON: edit the file itself",
            file.display()
        );
    }
    let first_line = old.lines().next().filter(|line| line.starts_with("---"));
    let new = match (text, first_line) {
        (None, _) => String::new(),
        (Some(text), None) => text.to_owned(),
        (Some(text), Some(line)) => format!("{line}\n{text}"),
    };
    let mut after = source.text.clone();
    after.replace_range(place.document.clone(), &new);
    let is_empty = after
        .lines()
        .all(|line| line.trim().is_empty() || line.starts_with(['#', '-', '%']));
    match is_empty && text.is_none() {
        true => fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display())),
        false => write(file, &after),
    }
}

/// A reader sees the old file or the new one, whole.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    let wrong = || format!("cannot write {}", file.display());
    let mut part = tempfile::Builder::new()
        .prefix(".sluice-")
        .suffix(".part")
        .tempfile_in(folder)
        .with_context(wrong)?;
    std::io::Write::write_all(&mut part, text.as_bytes()).with_context(wrong)?;
    // As the file was, or as any new one: a temporary file is its owner's alone.
    let mode = fs::metadata(file).map_or(0o644, |metadata| {
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions())
    });
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    part.as_file().set_permissions(permissions).with_context(wrong)?;
    part.persist(file).with_context(wrong)?;
    Ok(())
}

/// An object as a document.
pub(super) fn document(body: &Body) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(&body.value()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# Ours.\nkind: Service\napiVersion: v1\nmetadata: {name: a}\n--- # second\napiVersion: v1\nkind: Service\nmetadata: {name: b}\n";

    fn key(name: &str) -> Key {
        Key {
            kind: Kind::Service,
            namespace: "default".into(),
            name: name.into(),
        }
    }

    fn edited(before: &str, name: &str, text: Option<&str>) -> anyhow::Result<Option<String>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, before).unwrap();
        edit(&file, &key(name), text)?;
        assert!(
            fs::read_dir(folder.path()).unwrap().count() <= 1,
            "nothing else is left"
        );
        Ok(fs::read_to_string(&file).ok())
    }

    #[test]
    fn one_document_of_a_file_is_changed_or_taken_out_and_the_others_stay_to_the_byte() {
        let new = "apiVersion: v1\nkind: Service\nmetadata: {name: b, labels: {x: y}}\n";
        let (first, second) = TWO.split_at(TWO.find("---").unwrap());
        assert_eq!(
            edited(TWO, "b", Some(new)).unwrap().unwrap(),
            format!("{first}--- # second\n{new}")
        );
        assert_eq!(edited(TWO, "b", None).unwrap().unwrap(), first);
        assert_eq!(edited(TWO, "a", None).unwrap().unwrap(), second);
        assert_eq!(
            edited(first, "a", None).unwrap(),
            None,
            "a file of nothing is none"
        );
    }

    #[test]
    fn what_cannot_be_edited_safely_is_left_to_the_person() {
        let list =
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n";
        let json = "{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"a\"}}\n";
        for (before, said) in [
            (list, "one of a List"),
            (json, "written as JSON"),
            ("", "no longer there"),
        ] {
            let error = edited(before, "a", Some("x")).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
