//! Folders of manifests as a source: reads all `.yaml`, `.yml` and `.json` files in them and below, and on every change
//! says what changed. What a file defined validly stays in force until the file is whole again or gone.
//!
//! `Folders` is the state and the comparison, driven by `scan`; `walk` finds the files, `watch` is the thread that scans
//! when something changed.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Batch, Event};
use crate::manifest::{self, Body, Key, Object};
use crate::problem::{Problem, Severity, SourceText};

/// Which files there are.
mod walk;
/// When to look.
mod watch;

use walk::Walk;
pub use watch::watch;

/// Longest file that is read: 100 times a List of all Services of a large cluster's namespace.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// All files together: what the model may take of the gateway's memory.
const MAX_TOTAL_BYTES: u64 = 128 << 20;
/// A file changed this recently may change again within one tick of its clock: it is read again at the next scan.
const UNSETTLED: Duration = Duration::from_secs(2);

/// What a file was when it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A manifest file as last read.
#[derive(Default)]
struct Manifest {
    /// `None` if it must be read again whatever its metadata say.
    signature: Option<Signature>,
    source: Option<Arc<SourceText>>,
    /// What it defines, and what it defined before it broke.
    objects: Vec<Object>,
    problems: Vec<Problem>,
    length: u64,
}

/// Folders (and single files) of manifests, and what they last held.
pub struct Folders {
    roots: Vec<PathBuf>,
    /// What there is if no file defines the first of them.
    own: Vec<Object>,
    files: BTreeMap<(usize, PathBuf), Manifest>,
    in_force: BTreeMap<Key, Object>,
    problems: Vec<Problem>,
    /// Those of them that are about folders.
    walked: Vec<Problem>,
    complete: bool,
}

impl Folders {
    /// The folders `roots`, nothing read yet. Of an object defined in two of them the first counts.
    pub fn new(roots: &[PathBuf]) -> Self {
        Self {
            roots: roots.to_vec(),
            own: Vec::new(),
            files: BTreeMap::new(),
            in_force: BTreeMap::new(),
            problems: Vec::new(),
            walked: Vec::new(),
            complete: false,
        }
    }

    /// With objects of our own, which belong to the first of them: whoever defines that has their own.
    #[must_use]
    pub fn with_own(self, own: Vec<Object>) -> Self {
        Self { own, ..self }
    }

    /// Reads what changed since the last scan and says what that means; nothing if nothing. The first batch that could
    /// read every folder is a reset; before it, batches hold problems only.
    pub fn scan(&mut self) -> Batch {
        let mut walk = Walk::default();
        for (index, root) in self.roots.iter().enumerate() {
            walk.root(index, root);
        }
        if !self.read_changed(&walk) && self.complete && walk.problems == self.walked {
            return Batch::new();
        }
        self.walked.clone_from(&walk.problems);
        let (objects, conflicts) = self.merge();
        let problems: Vec<Problem> = walk
            .problems
            .into_iter()
            .chain(self.files.values().flat_map(|file| file.problems.iter().cloned()))
            .chain(conflicts)
            .collect();

        let mut batch = Batch::new();
        if problems != self.problems {
            self.problems.clone_from(&problems);
            batch.push(Event::Problems(problems));
        }
        if !self.complete {
            if !walk.unread.is_empty() {
                return batch;
            }
            self.complete = true;
            batch.push(Event::ResetBegin);
            batch.extend(
                objects
                    .values()
                    .cloned()
                    .map(|object| Event::Apply(Box::new(object))),
            );
            batch.push(Event::ResetEnd);
        } else {
            let gone = self.in_force.keys().filter(|key| !objects.contains_key(key));
            batch.extend(gone.cloned().map(Event::Delete));
            let changed = objects
                .iter()
                .filter(|(key, object)| self.in_force.get(key) != Some(object));
            batch.extend(changed.map(|(_, object)| Event::Apply(Box::new(object.clone()))));
        }
        self.in_force = objects;
        batch
    }

    /// How many files there were at the last scan.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// All that was wrong at the last scan.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether any file came, went, or holds something else than before.
    fn read_changed(&mut self, walk: &Walk) -> bool {
        let found: HashSet<&(usize, PathBuf)> = walk.files.iter().map(|(name, _)| name).collect();
        let unread = |(root, path): &(usize, PathBuf)| {
            let mut folders = walk.unread.iter();
            folders.any(|(unread_root, folder)| unread_root == root && path.starts_with(folder))
        };
        let before = self.files.len();
        self.files.retain(|name, _| found.contains(name) || unread(name));
        let mut changed = before != self.files.len();
        let mut total: u64 = self.files.values().map(|file| file.length).sum();
        for (name, metadata) in &walk.files {
            let signature = Signature::of(metadata);
            let file = self.files.entry(name.clone()).or_default();
            if file.signature == Some(signature) {
                continue;
            }
            total -= file.length;
            let settled = metadata.modified().is_ok_and(|at| {
                SystemTime::now()
                    .duration_since(at)
                    .is_ok_and(|age| age > UNSETTLED)
            });
            file.signature = settled.then_some(signature);
            changed |= file.read(&name.1, MAX_TOTAL_BYTES.saturating_sub(total));
            total += file.length;
        }
        changed
    }

    /// All objects, one per key. Earlier folders, then earlier files, then earlier documents win; but a Pod that says how
    /// it is wins over one that only says what it should be: the first is the node agent's, the second the user's.
    fn merge(&self) -> (BTreeMap<Key, Object>, Vec<Problem>) {
        let mut objects: BTreeMap<Key, Object> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for object in self.files.values().flat_map(|file| &file.objects) {
            let Some(holder) = objects.get(&object.key) else {
                objects.insert(object.key.clone(), object.clone());
                continue;
            };
            match (&holder.body, &object.body) {
                (Body::Pod(holder), Body::Pod(pod)) if holder.status.is_none() != pod.status.is_none() => {
                    if pod.status.is_some() {
                        objects.insert(object.key.clone(), object.clone());
                    }
                }
                _ => {
                    let first = holder.place.as_ref().map(|p| p.source.path.display().to_string());
                    let message = format!(
                        "is already defined in {}; that one counts",
                        first.unwrap_or_default()
                    );
                    let label = object.key.to_string();
                    conflicts.push(Problem::of_field(
                        Severity::Error,
                        object.place.as_ref(),
                        &label,
                        "metadata.name",
                        message,
                    ));
                }
            }
        }
        if self
            .own
            .first()
            .is_some_and(|first| !objects.contains_key(&first.key))
        {
            for object in &self.own {
                objects
                    .entry(object.key.clone())
                    .or_insert_with(|| object.clone());
            }
        }
        (objects, conflicts)
    }
}

impl Manifest {
    /// Reads the file; on failure what it defined stays. Whether that changed anything.
    fn read(&mut self, path: &Path, room: u64) -> bool {
        let text = match text(path, room) {
            Ok(text) => text,
            Err(message) => {
                self.problems = vec![Problem::of_file(Severity::Error, path, message)];
                (self.source, self.length) = (None, 0);
                return true;
            }
        };
        if self.source.as_ref().is_some_and(|source| source.text == text) {
            return false;
        }
        self.length = text.len() as u64;
        let source = Arc::new(SourceText {
            path: path.to_owned(),
            text,
        });
        let contents = manifest::read(&source);
        self.source = Some(source);
        self.problems = contents.problems;
        let before = std::mem::replace(&mut self.objects, contents.objects);
        if self
            .problems
            .iter()
            .any(|problem| problem.severity == Severity::Error)
        {
            // Any of the documents that cannot be read may be one of these.
            let named: HashSet<Key> = self.objects.iter().map(|object| object.key.clone()).collect();
            self.objects
                .extend(before.into_iter().filter(|object| !named.contains(&object.key)));
        }
        true
    }
}

/// A manifest's text from a stream, under the same limit as that of a file.
///
/// # Errors
/// It is too long, no text, or cannot be read.
pub fn text_from(stream: impl Read) -> Result<String, String> {
    text_of(stream, MAX_TOTAL_BYTES)
}

fn text(path: &Path, room: u64) -> Result<String, String> {
    File::open(path)
        .map_err(|error| format!("cannot be read: {error}"))
        .and_then(|file| text_of(file, room))
}

/// What `from` gives, if it is text, no longer than a file may be, and there is `room` for it.
fn text_of(from: impl Read, room: u64) -> Result<String, String> {
    let limit = MAX_FILE_BYTES.min(room);
    let mut bytes = Vec::new();
    from.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err(match limit {
            MAX_FILE_BYTES => format!(
                "is longer than {} MiB: split it into several files",
                MAX_FILE_BYTES >> 20
            ),
            _ => format!(
                "is left out: all manifests together are more than {} MiB",
                MAX_TOTAL_BYTES >> 20
            ),
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("is not UTF-8 text (line {line})")
    })
}

#[cfg(test)]
mod tests;
