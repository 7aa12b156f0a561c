//! The thread that scans folders whenever something in them changed, and sends what that means.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::time::Duration;

use notify::event::EventKind;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::Folders;
use crate::manifest::Object;
use crate::source::Batch;

/// An editor's save is several events (write, rename, remove the old); this long without one more is its end.
const QUIET: Duration = Duration::from_millis(20);
/// Under constant change, scan after this many quiet periods that were not: 200 ms at most.
const QUIET_TRIES: usize = 10;
/// Watching misses what it cannot see (network file systems, targets of links elsewhere): look anyway this often.
const RESCAN: Duration = Duration::from_secs(2);

/// Starts the thread that watches `roots` and sends every batch into `batches`, for as long as somebody listens. `own`
/// are objects that belong to the first of them, which is there unless a file defines it.
pub fn watch(roots: &[PathBuf], own: Vec<Object>, batches: Sender<Batch>) -> io::Result<()> {
    // One wake-up waiting is enough: a scan compares all files, whichever changed.
    let (wake, wakes) = mpsc::sync_channel(1);
    let mut watched = Watched::new(roots, &wake).map_err(io::Error::other)?;
    let mut folders = Folders::new(roots).with_own(own);
    std::thread::Builder::new()
        .name("manifests".into())
        .spawn(move || {
            loop {
                // Watch before reading: a change in between is then seen twice rather than never.
                watched.renew();
                let batch = folders.scan();
                if !batch.is_empty() && batches.send(batch).is_err() {
                    return;
                }
                match wakes.recv_timeout(RESCAN) {
                    Ok(()) => {
                        let noisy = |_: &usize| wakes.recv_timeout(QUIET).is_ok();
                        let _ = (0..QUIET_TRIES).take_while(noisy).count();
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    // The watchers are ours and hold the other end: it cannot be gone while we are here.
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
    Ok(())
}

/// What wakes the scanning thread.
struct Watched {
    /// Sees what happens in a folder and below.
    below: RecommendedWatcher,
    /// Sees a folder itself come, go and be replaced, or a single file change: from the folder that holds it.
    above: RecommendedWatcher,
    roots: Vec<Root>,
    /// The kernel has dropped watches, or told of fewer events than there were.
    stale: Arc<AtomicBool>,
}

struct Root {
    path: PathBuf,
    /// Device and inode of the folder watched for it, and of the one above.
    below: Option<(u64, u64)>,
    above: Option<(u64, u64)>,
}

impl Watched {
    fn new(roots: &[PathBuf], wake: &SyncSender<()>) -> notify::Result<Self> {
        let stale = Arc::new(AtomicBool::new(false));
        let names = |path: &PathBuf| path.file_name().map(std::ffi::OsStr::to_owned);
        let names: Vec<_> = roots.iter().filter_map(names).collect();
        let (tell, flag) = (wake.clone(), stale.clone());
        let below = notify::recommended_watcher(move |event| hear(event, &tell, &flag))?;
        let (tell, flag) = (wake.clone(), stale.clone());
        let above = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Its neighbours are not ours.
            let ours = |path: &PathBuf| {
                path.file_name()
                    .is_some_and(|name| names.iter().any(|n| n == name))
            };
            if event
                .as_ref()
                .map_or(true, |event| event.need_rescan() || event.paths.iter().any(ours))
            {
                hear(event, &tell, &flag);
            }
        })?;
        let root = |path: &PathBuf| Root {
            path: path.clone(),
            below: None,
            above: None,
        };
        Ok(Self {
            below,
            above,
            roots: roots.iter().map(root).collect(),
            stale,
        })
    }

    /// Watches what is not watched yet: roots that appeared, or are another directory than before.
    fn renew(&mut self) {
        let stale = self.stale.swap(false, Ordering::Relaxed);
        for root in &mut self.roots {
            if stale {
                (root.below, root.above) = (None, None);
            }
            let above = match root.path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            renew(
                &mut self.above,
                above,
                RecursiveMode::NonRecursive,
                &mut root.above,
            );
            renew(
                &mut self.below,
                &root.path,
                RecursiveMode::Recursive,
                &mut root.below,
            );
        }
    }
}

/// Watches `folder`, if it is one and not the one that is `watched` already.
fn renew(
    watcher: &mut RecommendedWatcher,
    folder: &Path,
    mode: RecursiveMode,
    watched: &mut Option<(u64, u64)>,
) {
    let metadata = fs::metadata(folder).ok().filter(fs::Metadata::is_dir);
    let identity = metadata.map(|metadata| (metadata.dev(), metadata.ino()));
    if identity == *watched {
        return;
    }
    let _ = watcher.unwatch(folder);
    if identity.is_some()
        && let Err(error) = watcher.watch(folder, mode)
    {
        log::warn!(
            "{}: cannot be watched ({error}); looking every {RESCAN:?}",
            folder.display()
        );
    }
    *watched = identity;
}

fn hear(event: notify::Result<notify::Event>, wake: &SyncSender<()>, stale: &AtomicBool) {
    let (news, lost) = match &event {
        // A folder that is removed takes its watch with it, and its inode's number may be that of the next.
        Ok(event) => (
            !event.kind.is_access(),
            event.need_rescan()
                || matches!(event.kind, EventKind::Remove(_)) && event.paths.iter().all(|p| !p.is_file()),
        ),
        Err(_) => (true, true),
    };
    stale.fetch_or(lost, Ordering::Relaxed);
    if news && let Err(TrySendError::Disconnected(())) = wake.try_send(()) {
        log::debug!("a change after the end");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::source::Event;

    /// Longer than a busy machine needs, shorter than it takes to believe that looking every `RESCAN` is watching.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn service(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    }

    /// A folder that is watched, and what has been heard of it.
    struct Listener {
        dir: tempfile::TempDir,
        batches: Receiver<Batch>,
        there: BTreeSet<String>,
    }

    impl Listener {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("manifests")).unwrap();
            let (sender, batches) = mpsc::channel();
            watch(&[dir.path().join("manifests")], Vec::new(), sender).unwrap();
            let mut listener = Self {
                dir,
                batches,
                there: BTreeSet::new(),
            };
            let first = listener.hear();
            assert_eq!(first, [Event::ResetBegin, Event::ResetEnd]);
            listener
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("manifests").join(name)
        }

        fn hear(&mut self) -> Batch {
            let batch = self.batches.recv_timeout(PATIENCE).expect("nothing was heard");
            for event in &batch {
                match event {
                    Event::Apply(object) => drop(self.there.insert(object.key.name.clone())),
                    Event::Delete(key) => assert!(self.there.remove(&key.name), "{key} was not there"),
                    _ => {}
                }
            }
            batch
        }

        /// Listens until exactly these Services are there.
        fn hear_until(&mut self, names: &[&str]) {
            while !self.there.iter().eq(names) {
                self.hear();
            }
        }
    }

    #[test]
    fn a_saved_file_reaches_the_listener_and_an_editors_swap_file_does_not() {
        let mut listener = Listener::new();
        fs::write(listener.path(".a.swp"), service("swap")).unwrap();
        fs::rename(listener.path(".a.swp"), listener.path("a.yaml")).unwrap();
        fs::write(listener.path(".a.swp"), service("other")).unwrap();
        listener.hear();
        listener.hear_until(&["swap"]);
    }

    #[test]
    fn what_vim_and_sed_do_to_save_is_a_change() {
        let mut listener = Listener::new();
        let path = listener.path("a.yaml");
        fs::write(&path, service("a")).unwrap();
        listener.hear_until(&["a"]);
        // vim: the old file becomes the backup, a new one takes its name.
        fs::rename(&path, listener.path("a.yaml~")).unwrap();
        fs::write(&path, service("b")).unwrap();
        fs::remove_file(listener.path("a.yaml~")).unwrap();
        listener.hear_until(&["b"]);
        // sed -i: a new file is renamed over the old one.
        fs::write(listener.path("sedXYZ"), service("c")).unwrap();
        fs::rename(listener.path("sedXYZ"), &path).unwrap();
        listener.hear_until(&["c"]);
    }

    #[test]
    fn a_folder_made_anew_under_its_old_name_is_watched_again() {
        let mut listener = Listener::new();
        let folder = listener.path("");
        for round in ["a", "b", "c"] {
            fs::write(listener.path("f.yaml"), service(round)).unwrap();
            listener.hear_until(&[round]);
            fs::remove_dir_all(&folder).unwrap();
            let missed = |event: &Event| matches!(event, Event::Problems(problems) if problems.len() == 1);
            while !listener.hear().iter().any(missed) {}
            fs::create_dir(&folder).unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_a_link_may_be_pointed_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["one", "two"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("f.yaml"), service(version)).unwrap();
        }
        let root = dir.path().join("current");
        std::os::unix::fs::symlink("one", &root).unwrap();
        let (sender, batches) = mpsc::channel();
        watch(std::slice::from_ref(&root), Vec::new(), sender).unwrap();
        let mut listener = Listener {
            dir,
            batches,
            there: BTreeSet::new(),
        };
        listener.hear_until(&["one"]);
        let new = root.with_file_name("next");
        std::os::unix::fs::symlink("two", &new).unwrap();
        fs::rename(&new, &root).unwrap();
        listener.hear_until(&["two"]);
    }

    #[test]
    fn thousands_of_files_at_once_are_all_heard_of() {
        let mut listener = Listener::new();
        let names: Vec<String> = (0..3000).map(|i| format!("s{i:04}")).collect();
        for (index, name) in names.iter().enumerate() {
            let folder = listener.path(&format!("f{}", index % 7));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("{name}.yaml")), service(name)).unwrap();
        }
        listener.hear_until(&names.iter().map(String::as_str).collect::<Vec<_>>());
    }

    #[test]
    fn a_constant_stream_of_changes_holds_nothing_up() {
        let listener = Listener::new();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let noise = listener.path("noise.txt");
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    fs::write(&noise, "noise").unwrap();
                }
            });
            fs::write(listener.path("a.yaml"), service("a")).unwrap();
            let heard = listener.batches.recv_timeout(PATIENCE);
            stop.store(true, Ordering::Relaxed);
            assert!(matches!(&heard.unwrap()[..], [Event::Apply(object)] if object.key.name == "a"));
        });
    }
}
