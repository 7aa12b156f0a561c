//! Where a lab keeps its files, and whether it lives.
//!
//! One directory per lab holds everything a person may want to read: the copied manifests, the configurations written
//! from them, the pods as reported, the logs. A lab lives as long as its keeper, which is known by process id *and* start
//! time, since the kernel gives ids out again. Never deletes the directory of a keeper that lives.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::Driver;

/// Longest name of a lab: it is part of socket paths, which end at 107 bytes (unix(7)).
const LONGEST_NAME: usize = 32;

/// The directory of one lab, and the files in it.
#[derive(Clone, Debug)]
pub struct State {
    name: String,
    path: PathBuf,
}

/// What the keeper says about itself, once, as it starts.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    /// The keeper's process id outside its PID namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc(5), `/proc/PID/stat` field 22).
    pub started: u64,
    /// The driver of the node's NIC ports.
    pub driver: Driver,
    /// Whether the lab is in a user namespace of its own.
    pub rootless: bool,
}

/// What is found of a lab.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A directory whose keeper is gone.
    Remains,
    /// A living keeper.
    Alive(Record),
}

impl State {
    /// The directory of the lab `name`, whether it exists or not.
    ///
    /// # Errors
    /// A name that is not 1 to 32 of `a-z 0-9 -`.
    pub fn of(name: &str) -> anyhow::Result<Self> {
        let valid = (1..=LONGEST_NAME).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !valid {
            bail!("{name:?} cannot name a lab: use 1 to {LONGEST_NAME} of a-z, 0-9 and -");
        }
        Ok(Self {
            name: name.to_owned(),
            path: base().join(name),
        })
    }

    /// The state in a directory known by path: how the keeper finds its own.
    pub(super) fn at(path: &Path) -> anyhow::Result<Self> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("a lab's directory has no name")?;
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The copied manifests: edit these.
    pub fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    /// Every pod as a kubelet would report it, one file each.
    pub fn pods(&self) -> PathBuf {
        self.path.join("pods")
    }

    /// The log of a pod's processes.
    pub fn pod_log(&self, namespace: &str, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{namespace}.{name}.log"))
    }

    /// A folder of the pod's own, removed with it.
    pub fn pod_scratch(&self, namespace: &str, name: &str) -> PathBuf {
        self.path.join("tmp").join(format!("{namespace}.{name}"))
    }

    /// The pod's resolv.conf.
    pub fn pod_resolv_conf(&self, namespace: &str, name: &str) -> PathBuf {
        self.path.join("resolv").join(format!("{namespace}.{name}.conf"))
    }

    /// The log of the keeper, the dataplane or control.
    pub fn log(&self, process: &str) -> PathBuf {
        self.path.join(format!("{process}.log"))
    }

    /// The socket of the keeper, of control's API, of the dataplane's channel.
    pub fn socket(&self, process: &str) -> PathBuf {
        self.path.join(format!("{process}.sock"))
    }

    /// The configuration of the dataplane or control.
    pub fn config(&self, process: &str) -> PathBuf {
        self.path.join(format!("{process}.yaml"))
    }

    fn record_file(&self) -> PathBuf {
        self.path.join("keeper.json")
    }

    /// Keeps other commands from making or removing this lab meanwhile, until dropped.
    pub fn lock(&self) -> anyhow::Result<File> {
        make_private(&base())?;
        let path = self.lock_file();
        loop {
            let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
            // The one who held it may have removed the file meanwhile: then this is a lock on nothing.
            let locked = file.metadata().map(|meta| meta.ino()).ok();
            if locked.is_some() && locked == fs::metadata(&path).map(|meta| meta.ino()).ok() {
                return Ok(file);
            }
        }
    }

    fn lock_file(&self) -> PathBuf {
        base().join(format!(".{}.lock", self.name))
    }

    /// Gives the lock up and removes its file: nothing of the lab is left.
    pub fn forget(&self, lock: File) -> anyhow::Result<()> {
        let path = self.lock_file();
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        drop(lock);
        Ok(())
    }

    /// Makes the directory and its folders.
    pub fn create(&self) -> anyhow::Result<()> {
        for path in [
            self.path.clone(),
            self.manifests(),
            self.pods(),
            self.path.join("logs"),
        ] {
            make_private(&path)?;
        }
        Ok(())
    }

    /// Removes the directory.
    pub fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes down who keeps this lab.
    pub(super) fn record(&self, driver: Driver, rootless: bool) -> anyhow::Result<()> {
        // /proc is still the outer one, so the link names the keeper as others see it.
        let link = fs::read_link("/proc/self").context("cannot read /proc/self")?;
        let pid = link
            .to_str()
            .and_then(|pid| pid.parse().ok())
            .context("/proc/self names no process")?;
        let started = start_time(pid).context("cannot read /proc/self/stat")?;
        let record = Record {
            pid,
            started,
            driver,
            rootless,
        };
        write_atomically(&self.record_file(), &serde_json::to_vec(&record)?)
    }

    /// Looks for the lab.
    pub fn find(&self) -> anyhow::Result<Found> {
        if !self.path.exists() {
            return Ok(Found::Nothing);
        }
        // No record: its maker was killed before the keeper started, or the keeper as it started.
        let Ok(bytes) = fs::read(self.record_file()) else {
            return Ok(Found::Remains);
        };
        let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
            return Ok(Found::Remains);
        };
        Ok(if start_time(record.pid) == Some(record.started) {
            Found::Alive(record)
        } else {
            Found::Remains
        })
    }
}

/// Where labs live: for root `/run/sluice/lab`, else the user's runtime directory, else `/tmp/sluice-UID/lab`.
pub fn base() -> PathBuf {
    let user = nix::unistd::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/sluice/lab");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if Path::new(&runtime).is_dir() => Path::new(&runtime).join("sluice/lab"),
        _ => PathBuf::from(format!("/tmp/sluice-{user}/lab")),
    }
}

/// The socket of control in the lab that came up last, of those that live.
pub fn newest_control() -> Option<PathBuf> {
    let labs = fs::read_dir(base()).ok()?.flatten();
    let living = labs.filter_map(|entry| {
        let state = State::at(&entry.path()).ok()?;
        let Ok(Found::Alive(record)) = state.find() else {
            return None;
        };
        let socket = state.socket("control");
        socket.exists().then_some((record.started, socket))
    });
    living.max().map(|(_, socket)| socket)
}

/// Replaces a file so that a reader sees the old or the new one whole.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    // A leading dot would suit better, but a suffix other than .yaml is as good to those that watch for manifests.
    part.push(".part");
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// When a process started, in clock ticks since boot; nothing if there is none, if only its exit status is left, or if it
/// is on its way there: a killed keeper is still seen while the kernel ends the processes of its PID namespace.
fn start_time(pid: i32) -> Option<u64> {
    /// The process is exiting (include/linux/sched.h).
    const PF_EXITING: u64 = 0x4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything, even parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Counted from the third, the state: flags are field 9, the start time is field 22 (proc(5)).
    let flags: u64 = fields.get(6)?.parse().ok()?;
    let ended = matches!(fields.first(), Some(&("Z" | "X"))) || flags & PF_EXITING != 0;
    if ended || is_killed(pid) {
        None
    } else {
        fields.get(19)?.parse().ok()
    }
}

/// SIGKILL was sent and not yet acted on.
fn is_killed(pid: i32) -> bool {
    const SIGKILL: u64 = 1 << (9 - 1);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().filter_map(|line| {
        line.strip_prefix("ShdPnd:")
            .or_else(|| line.strip_prefix("SigPnd:"))
    });
    pending
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL != 0)
}

/// Makes a directory only its owner may enter; refuses one somebody else made (`/tmp` is everybody's).
fn make_private(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    let owner = fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .uid();
    if owner != nix::unistd::geteuid().as_raw() {
        bail!(
            "{} belongs to user {owner}: remove it, or set XDG_RUNTIME_DIR to a directory of yours",
            path.display()
        );
    }
    Ok(())
}
