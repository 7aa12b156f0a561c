//! Folders of manifests as a source: reads all `.yaml`, `.yml` and `.json` files in them and below, and on every change
//! says what changed. What a file defined validly stays in force until the file is whole again or gone.
//!
//! `Folders` is the state and the comparison, driven by `scan`; `walk` finds the files, `watch` is the thread that scans
//! when something changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
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

/// Which of the roots, and where.
type Name = (usize, PathBuf);

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
    /// In the order of their names.
    files: Vec<(Name, Manifest)>,
    in_force: BTreeMap<Key, Object>,
    /// What is defined more than once.
    conflicts: BTreeMap<Key, Vec<Problem>>,
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
            files: Vec::new(),
            in_force: BTreeMap::new(),
            conflicts: BTreeMap::new(),
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
    ///
    /// Every file is looked at, but only objects of changed ones are compared.
    pub fn scan(&mut self) -> Batch {
        let mut walk = Walk::default();
        for (index, root) in self.roots.iter().enumerate() {
            walk.root(index, root);
        }
        let Walk {
            files,
            problems: walked,
            unread,
            ..
        } = walk;
        let (changed, touched) = self.read_changed(files, &unread);
        if !changed && self.complete && walked == self.walked {
            return Batch::new();
        }
        self.walked = walked;
        let events = self.merge(touched);
        let of_files = self.files.iter().flat_map(|(_, file)| &file.problems);
        let problems = self.walked.iter().chain(of_files);
        let problems: Vec<Problem> = problems
            .chain(self.conflicts.values().flatten())
            .cloned()
            .collect();

        let mut batch = Batch::new();
        if problems != self.problems {
            self.problems.clone_from(&problems);
            batch.push(Event::Problems(problems));
        }
        if self.complete {
            batch.extend(events);
        } else if unread.is_empty() {
            self.complete = true;
            batch.push(Event::ResetBegin);
            let all = self.in_force.values().cloned();
            batch.extend(all.map(|object| Event::Apply(Box::new(object))));
            batch.push(Event::ResetEnd);
        }
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

    /// Whether any file came, went, or holds something else than before; and what those files define, or did.
    fn read_changed(
        &mut self,
        found: Vec<(Name, Metadata)>,
        unread: &[(usize, PathBuf)],
    ) -> (bool, BTreeSet<Key>) {
        let is_unread = |(root, path): &Name| {
            let mut folders = unread.iter();
            folders.any(|(unread_root, folder)| unread_root == root && path.starts_with(folder))
        };
        let (mut changed, mut touched) = (false, BTreeSet::new());
        let mut total: u64 = self.files.iter().map(|(_, file)| file.length).sum();
        // Both are in the order of names, and most of the time the same.
        debug_assert!(found.is_sorted_by(|(a, _), (b, _)| a < b));
        let mut before = std::mem::take(&mut self.files).into_iter().peekable();
        let mut leave =
            |files: &mut Vec<(Name, Manifest)>, (name, file): (Name, Manifest), total: &mut u64| {
                if is_unread(&name) {
                    files.push((name, file));
                } else {
                    changed = true;
                    *total -= file.length;
                    touched.extend(file.keys());
                }
            };
        let mut files = Vec::with_capacity(found.len());
        let mut read = Vec::new();
        for (name, metadata) in found {
            let same =
                |(had, _): &(Name, Manifest)| had.0 == name.0 && had.1.as_os_str() == name.1.as_os_str();
            let mut had = before.next_if(same);
            while had.is_none()
                && let Some(gone) = before.next_if(|(had, _)| *had < name)
            {
                leave(&mut files, gone, &mut total);
                had = before.next_if(same);
            }
            let file = had.map_or_else(Manifest::default, |(_, file)| file);
            if file.signature != Some(Signature::of(&metadata)) {
                read.push((files.len(), metadata));
            }
            files.push((name, file));
        }
        for gone in before {
            leave(&mut files, gone, &mut total);
        }
        for (place, metadata) in read {
            let (name, file) = &mut files[place];
            let settled = metadata.modified().is_ok_and(|at| {
                SystemTime::now()
                    .duration_since(at)
                    .is_ok_and(|age| age > UNSETTLED)
            });
            file.signature = settled.then(|| Signature::of(&metadata));
            total -= file.length;
            let before = file.keys();
            if file.read(&name.1, MAX_TOTAL_BYTES.saturating_sub(total)) {
                changed = true;
                touched.extend(before);
                touched.extend(file.keys());
            }
            total += file.length;
        }
        self.files = files;
        (changed, touched)
    }

    /// Brings what is in force of `touched` up to date, one object per key. Earlier folders, then earlier files, then earlier
    /// documents win; but a Pod that says how it is wins over one that only says what it should be: the first is the node
    /// agent's, the second the user's.
    fn merge(&mut self, mut touched: BTreeSet<Key>) -> Batch {
        // All of our own are there, or none.
        let first = self.own.first().map(|object| &object.key);
        if first.is_some_and(|key| !self.complete || touched.contains(key)) {
            touched.extend(self.own.iter().map(|object| object.key.clone()));
        }
        let mut objects: BTreeMap<&Key, &Object> = BTreeMap::new();
        self.conflicts.retain(|key, _| !touched.contains(key));
        let all = self.files.iter().flat_map(|(_, file)| &file.objects);
        for object in all.filter(|object| touched.contains(&object.key)) {
            let Some(holder) = objects.get(&object.key) else {
                objects.insert(&object.key, object);
                continue;
            };
            match (&holder.body, &object.body) {
                (Body::Pod(holder), Body::Pod(pod)) if holder.status.is_none() != pod.status.is_none() => {
                    if pod.status.is_some() {
                        objects.insert(&object.key, object);
                    }
                }
                _ => {
                    let first = holder.place.as_ref().map(|p| p.source.path.display().to_string());
                    let message = format!(
                        "is already defined in {}; that one counts",
                        first.unwrap_or_default()
                    );
                    let label = object.key.to_string();
                    let place = object.place.as_ref();
                    let problem = Problem::of_field(Severity::Error, place, &label, "metadata.name", message);
                    self.conflicts
                        .entry(object.key.clone())
                        .or_default()
                        .push(problem);
                }
            }
        }
        let first = self.own.first().map(|object| &object.key);
        if first.is_some_and(|key| touched.contains(key) && !objects.contains_key(key)) {
            for object in &self.own {
                objects.entry(&object.key).or_insert(object);
            }
        }
        let (mut deleted, mut applied) = (Batch::new(), Batch::new());
        for key in touched {
            match objects.get(&key) {
                Some(object) if self.in_force.get(&key) != Some(object) => {
                    applied.push(Event::Apply(Box::new((*object).clone())));
                    self.in_force.insert(key, (*object).clone());
                }
                Some(_) => {}
                None if self.in_force.remove(&key).is_some() => deleted.push(Event::Delete(key)),
                None => {}
            }
        }
        deleted.extend(applied);
        deleted
    }
}

impl Manifest {
    /// What it defines.
    fn keys(&self) -> Vec<Key> {
        self.objects.iter().map(|object| object.key.clone()).collect()
    }

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
