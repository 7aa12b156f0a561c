//! Folders of manifests as a source: reads all `.yaml`, `.yml` and `.json` files in them and below, and on every change
//! says what changed. What a file defined validly stays in force until the file is whole again or gone.
//!
//! `Folders` is the state and the comparison, driven by `scan`; `watch` is the thread that calls it. Symbolic links are
//! followed (a ConfigMap mount is made of them), hidden names are not looked at, a directory is read once however many
//! links lead to it.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher};

use super::{Batch, Event};
use crate::manifest::{self, Body, Key, Object};
use crate::problem::{Problem, Severity, SourceText};

/// Longest file that is read: 100 times a List of all Services of a large cluster's namespace.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// All files together: what the model may take of the gateway's memory.
const MAX_TOTAL_BYTES: u64 = 128 << 20;
/// Files looked at: far beyond one file per object of 10,000 Services, and an end to a folder given by mistake.
const MAX_FILES: usize = 65_536;
/// Levels of folders below the one given.
const MAX_FOLDERS_DEEP: usize = 16;
/// An editor's save is several events (write, rename, remove the old); this long without one more is its end.
const QUIET: Duration = Duration::from_millis(20);
/// Under constant change, scan after this many quiet periods that were not.
const QUIET_TRIES: usize = 10;
/// Watching misses what it cannot see (network file systems, targets of links elsewhere): look anyway this often.
const RESCAN: Duration = Duration::from_secs(2);
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
    files: BTreeMap<(usize, PathBuf), Manifest>,
    in_force: BTreeMap<Key, Object>,
    problems: Vec<Problem>,
    complete: bool,
}

/// What one walk found.
#[derive(Default)]
struct Walk {
    files: Vec<((usize, PathBuf), Metadata)>,
    directories: HashSet<(u64, u64)>,
    problems: Vec<Problem>,
    /// Roots and folders that could not be read: what is below them stays as it was.
    unread: Vec<(usize, PathBuf)>,
}

impl Folders {
    /// The folders `roots`, nothing read yet. Of an object defined in two of them the first counts.
    pub fn new(roots: &[PathBuf]) -> Self {
        Self {
            roots: roots.to_vec(),
            files: BTreeMap::new(),
            in_force: BTreeMap::new(),
            problems: Vec::new(),
            complete: false,
        }
    }

    /// Reads what changed since the last scan and says what that means; nothing if nothing. The first batch that could
    /// read every folder is a reset; before it, batches hold problems only.
    pub fn scan(&mut self) -> Batch {
        let mut walk = Walk::default();
        for (index, root) in self.roots.iter().enumerate() {
            walk.root(index, root);
        }
        self.read_changed(&walk);
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

    /// All that was wrong at the last scan.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn read_changed(&mut self, walk: &Walk) {
        let found: HashSet<&(usize, PathBuf)> = walk.files.iter().map(|(name, _)| name).collect();
        let unread = &walk.unread;
        self.files.retain(|(root, path), _| {
            found.contains(&(*root, path.clone()))
                || unread
                    .iter()
                    .any(|(unread_root, folder)| unread_root == root && path.starts_with(folder))
        });
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
            file.read(&name.1, MAX_TOTAL_BYTES.saturating_sub(total));
            total += file.length;
        }
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
        (objects, conflicts)
    }
}

impl Manifest {
    /// Reads the file; on failure what it defined stays.
    fn read(&mut self, path: &Path, room: u64) {
        let text = match text(path, room) {
            Ok(text) => text,
            Err(message) => {
                self.problems = vec![Problem::of_file(Severity::Error, path, message)];
                (self.source, self.length) = (None, 0);
                return;
            }
        };
        if self.source.as_ref().is_some_and(|source| source.text == text) {
            return;
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
    }
}

fn text(path: &Path, room: u64) -> Result<String, String> {
    let limit = MAX_FILE_BYTES.min(room);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
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

impl Walk {
    fn root(&mut self, index: usize, root: &Path) {
        match fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => self.directory(index, root, &metadata, 0),
            Ok(metadata) => self.file(index, root, metadata),
            Err(error) => self.unread(index, root, &error),
        }
    }

    fn unread(&mut self, index: usize, path: &Path, error: &io::Error) {
        let message = match error.kind() {
            io::ErrorKind::NotFound => "does not exist; waiting for it".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        self.problems
            .push(Problem::of_file(Severity::Error, path, message));
        self.unread.push((index, path.to_owned()));
    }

    fn file(&mut self, index: usize, path: &Path, metadata: Metadata) {
        if self.files.len() >= MAX_FILES {
            // Once is enough said.
            if self
                .problems
                .last()
                .is_none_or(|p| !p.message.starts_with("is left out"))
            {
                let message = format!("is left out, as all after it: more than {MAX_FILES} files");
                self.problems
                    .push(Problem::of_file(Severity::Error, path, message));
            }
            return;
        }
        self.files.push(((index, path.to_owned()), metadata));
    }

    fn directory(&mut self, index: usize, path: &Path, metadata: &Metadata, depth: usize) {
        if !self.directories.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        if depth > MAX_FOLDERS_DEEP {
            let message = format!("is left out: more than {MAX_FOLDERS_DEEP} folders deep");
            self.problems
                .push(Problem::of_file(Severity::Error, path, message));
            return;
        }
        let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.unread(index, path, &error),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            // Gone since it was listed, or a link to nowhere: as if it had never been.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                self.directory(index, &path, &metadata, depth + 1);
            } else if metadata.is_file()
                && path
                    .extension()
                    .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known))
            {
                self.file(index, &path, metadata);
            }
        }
    }
}

/// Starts the thread that watches `roots` and sends every batch into `events`, for as long as somebody listens.
pub fn watch<T: Send + 'static>(
    roots: &[PathBuf],
    events: Sender<T>,
    wrap: impl Fn(Batch) -> T + Send + 'static,
) -> io::Result<()> {
    let (changed, changes) = mpsc::channel::<()>();
    // Which paths changed does not matter: a scan compares all of them, and a queue may have overflowed.
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| !event.kind.is_access()) {
            let _ = changed.send(());
        }
    })
    .map_err(io::Error::other)?;
    let mut watched = Watched {
        watcher,
        roots: roots.iter().map(|root| (root.clone(), None)).collect(),
    };
    let mut folders = Folders::new(roots);
    std::thread::Builder::new()
        .name("manifests".into())
        .spawn(move || {
            loop {
                // Watch before reading: a change in between is then seen twice rather than never.
                watched.renew();
                let batch = folders.scan();
                if !batch.is_empty() && events.send(wrap(batch)).is_err() {
                    return;
                }
                match changes.recv_timeout(RESCAN) {
                    Ok(()) => {
                        for _ in 0..QUIET_TRIES {
                            match changes.recv_timeout(QUIET) {
                                Ok(()) => while changes.try_recv().is_ok() {},
                                Err(_) => break,
                            }
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    // The watcher is ours and holds the other end: it cannot be gone while we are here.
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
    Ok(())
}

struct Watched {
    watcher: notify::RecommendedWatcher,
    /// Each root, with the directory that is watched for it.
    roots: Vec<(PathBuf, Option<(u64, u64)>)>,
}

impl Watched {
    /// Watches roots that appeared, or were replaced by another directory of the same name.
    fn renew(&mut self) {
        for (root, watched) in &mut self.roots {
            let Ok(metadata) = fs::metadata(&*root) else {
                *watched = None;
                continue;
            };
            let identity = (metadata.dev(), metadata.ino());
            if *watched == Some(identity) {
                continue;
            }
            // A file is watched by its folder: an editor replaces the file itself.
            let (path, mode) = match metadata.is_dir() {
                true => (root.as_path(), RecursiveMode::Recursive),
                false => (root.parent().unwrap_or(root), RecursiveMode::NonRecursive),
            };
            let path = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            let _ = self.watcher.unwatch(path);
            match self.watcher.watch(path, mode) {
                Ok(()) => *watched = Some(identity),
                Err(error) => {
                    log::warn!(
                        "{}: cannot be watched ({error}); looking every {RESCAN:?}",
                        path.display()
                    );
                    *watched = Some(identity);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    }

    fn names(batch: &Batch) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::ResetBegin => "begin".into(),
            Event::ResetEnd => "end".into(),
            Event::Apply(object) => format!("+{}", object.key.name),
            Event::Delete(key) => format!("-{}", key.name),
            Event::Problems(problems) => format!("!{}", problems.len()),
        };
        batch.iter().map(name).collect()
    }

    #[test]
    fn the_first_scan_is_a_reset_and_later_ones_are_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        fs::write(dir.path().join("sub/b.yml"), service("b")).unwrap();
        fs::write(dir.path().join("notes.txt"), "kind: [").unwrap();
        let mut folders = Folders::new(&[dir.path().into()]);
        assert_eq!(names(&folders.scan()), ["begin", "+a", "+b", "end"]);
        assert!(folders.scan().is_empty());
        fs::write(dir.path().join("a.yaml"), service("c")).unwrap();
        assert_eq!(names(&folders.scan()), ["-a", "+c"]);
    }

    #[test]
    fn what_a_file_defined_stays_in_force_while_it_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.yaml");
        fs::write(&path, format!("{}---\n{}", service("a"), service("b"))).unwrap();
        let mut folders = Folders::new(&[dir.path().into()]);
        folders.scan();
        fs::write(&path, format!("{}---\nkind: [\n", service("a"))).unwrap();
        assert_eq!(
            names(&folders.scan()),
            ["!1", "+a"],
            "`a` is written elsewhere now; `b` stays"
        );
        fs::write(&path, service("a")).unwrap();
        let said = names(&folders.scan());
        assert_eq!((said[0].as_str(), said[1].as_str()), ("!0", "-b"), "{said:?}");
        fs::remove_file(&path).unwrap();
        assert_eq!(names(&folders.scan()), ["-a"]);
    }

    #[test]
    fn nothing_is_said_before_every_folder_could_be_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        let late = dir.path().join("late");
        let mut folders = Folders::new(&[dir.path().into(), late.clone()]);
        assert_eq!(names(&folders.scan()), ["!1"]);
        fs::create_dir(&late).unwrap();
        assert_eq!(names(&folders.scan()), ["!0", "begin", "+a", "end"]);
    }

    #[test]
    fn a_folder_that_vanishes_takes_nothing_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("a.yaml"), service("a")).unwrap();
        let mut folders = Folders::new(std::slice::from_ref(&sub));
        folders.scan();
        fs::rename(&sub, dir.path().join("elsewhere")).unwrap();
        assert_eq!(names(&folders.scan()), ["!1"]);
    }

    #[test]
    fn a_configmap_swap_is_one_change() {
        let dir = tempfile::tempdir().unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
        };
        for (version, name) in [("..1", "a"), ("..2", "b")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("f.yaml"), service(name)).unwrap();
        }
        link("..1", "..data");
        link("..data/f.yaml", "f.yaml");
        let mut folders = Folders::new(&[dir.path().into()]);
        assert_eq!(names(&folders.scan()), ["begin", "+a", "end"]);
        link("..2", "..data_tmp");
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        assert_eq!(names(&folders.scan()), ["-a", "+b"]);
    }

    #[test]
    fn loops_of_links_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), service("a")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("self.yaml", dir.path().join("self.yaml")).unwrap();
        assert_eq!(
            names(&Folders::new(&[dir.path().into()]).scan()),
            ["begin", "+a", "end"]
        );
    }

    #[test]
    fn a_file_that_is_not_text_or_too_long_is_one_line_of_report() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), b"kind: x\n\xff\n").unwrap();
        File::create(dir.path().join("b.yaml"))
            .unwrap()
            .set_len(MAX_FILE_BYTES + 1)
            .unwrap();
        let mut folders = Folders::new(&[dir.path().into()]);
        folders.scan();
        let said: Vec<_> = folders.problems().iter().map(|p| p.message.as_str()).collect();
        assert_eq!(
            said,
            [
                "is not UTF-8 text (line 2)",
                "is longer than 16 MiB: split it into several files"
            ]
        );
    }

    #[test]
    fn an_object_defined_twice_is_reported_on_the_later_naming_the_earlier() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), service("x")).unwrap();
        fs::write(dir.path().join("b.yaml"), service("x")).unwrap();
        let mut folders = Folders::new(&[dir.path().into()]);
        folders.scan();
        let said = folders.problems()[0].to_string();
        assert!(
            said.contains("b.yaml:3:18: Service default/x: metadata.name: is already defined in"),
            "{said}"
        );
        assert!(said.ends_with("a.yaml; that one counts"), "{said}");
    }

    #[test]
    fn a_pod_with_status_stands_for_the_one_without() {
        let (users, agents) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n";
        fs::write(users.path().join("p.yaml"), pod).unwrap();
        fs::write(
            agents.path().join("p.yaml"),
            format!("{pod}status: {{phase: Running}}\n"),
        )
        .unwrap();
        let mut folders = Folders::new(&[users.path().into(), agents.path().into()]);
        let batch = folders.scan();
        let Event::Apply(object) = &batch[1] else {
            panic!("{batch:?}")
        };
        assert!(matches!(&object.body, Body::Pod(pod) if pod.status.is_some()));
        assert!(folders.problems().is_empty());
    }

    #[test]
    fn a_saved_file_reaches_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, batches) = mpsc::channel();
        watch(&[dir.path().into()], sender, |batch| batch).unwrap();
        let next = || batches.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(names(&next()), ["begin", "end"]);
        fs::write(dir.path().join(".a.swp"), service("a")).unwrap();
        fs::rename(dir.path().join(".a.swp"), dir.path().join("a.yaml")).unwrap();
        assert_eq!(names(&next()), ["+a"]);
    }
}
