//! Network and mount namespaces: made, held open, entered by a thread.
//!
//! A namespace lives as long as somebody holds it: here the keeper's open files, which others reach as
//! `/proc/PID/fd/N`. Entering happens in a thread of its own, since a thread that has entered stays there; a child it
//! spawns is there too. Never changes the namespaces of the calling thread.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstat;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The namespaces of one host of the lab: the client, the node, or a pod.
#[derive(Debug)]
pub(super) struct Namespaces {
    net: OwnedFd,
    mount: OwnedFd,
}

/// The numbers of the keeper's open files, under which another process finds the namespaces.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct NamespaceFds {
    /// The network namespace is `/proc/KEEPER/fd/NET`.
    pub net: RawFd,
    /// The mount namespace is `/proc/KEEPER/fd/MOUNT`.
    pub mount: RawFd,
}

impl Namespaces {
    /// Makes new ones: an empty network, and a copy of the keeper's mounts.
    pub(super) fn create() -> anyhow::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("cannot make a network namespace")?;
            Ok(Self {
                net: own("net")?,
                mount: own("mnt")?,
            })
        })
    }

    /// This network, with another copy of the keeper's mounts.
    pub(super) fn with_other_mounts(&self) -> anyhow::Result<Self> {
        let net = self.net.try_clone().context("cannot hold a network namespace")?;
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
            Ok(Self {
                net,
                mount: own("mnt")?,
            })
        })
    }

    /// Runs something in a thread that is inside.
    pub(super) fn enter<T: Send>(&self, run: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        in_thread(|| {
            self.enter_this_thread()?;
            run()
        })
    }

    /// Moves the calling thread inside, for good. The thread must be one that ends there.
    pub(super) fn enter_this_thread(&self) -> anyhow::Result<()> {
        // A thread shares its root and working directory with its process until told otherwise, and may not change
        // its mounts before (setns(2)).
        unshare(CloneFlags::CLONE_FS).context("cannot enter a namespace")?;
        setns(&self.net, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
        setns(&self.mount, CloneFlags::CLONE_NEWNS).context("cannot enter a mount namespace")
    }

    /// Kills every process of the caller's PID namespace that is inside, threads of the caller itself excepted. Inside is who
    /// is in the network, or, where that is others', too, who has the mounts.
    pub(super) fn kill_inhabitants(&self, network_is_shared: bool) -> anyhow::Result<()> {
        let (namespace, kind) = match network_is_shared {
            true => (&self.mount, "ns/mnt"),
            false => (&self.net, "ns/net"),
        };
        let own = fstat(namespace).context("cannot read a namespace")?.st_ino;
        for entry in fs::read_dir("/proc").context("cannot read /proc")?.flatten() {
            let inside = fs::metadata(entry.path().join(kind)).is_ok_and(|meta| meta.ino() == own);
            // /proc is the outer one; the same process has another number here, its last (proc(5), NSpid). One that is
            // not of this PID namespace has none here: a command that `exec` runs, which a user may end.
            if inside
                && same_pid_namespace(&entry.path())
                && let Some(pid) = innermost_pid(&entry.path())
            {
                // It may have ended meanwhile.
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        Ok(())
    }

    /// The network namespace, to place an interface into.
    pub(super) fn net(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// Where another process finds them.
    pub(super) fn fds(&self) -> NamespaceFds {
        NamespaceFds {
            net: self.net.as_raw_fd(),
            mount: self.mount.as_raw_fd(),
        }
    }

    /// The same namespaces, held once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            net: self.net.try_clone()?,
            mount: self.mount.try_clone()?,
        })
    }
}

/// A namespace of the calling thread.
fn own(kind: &str) -> anyhow::Result<OwnedFd> {
    let path = format!("/proc/thread-self/ns/{kind}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    Ok(file.into())
}

fn in_thread<T: Send>(run: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn same_pid_namespace(process: &Path) -> bool {
    let namespace = |path: &Path| fs::metadata(path.join("ns/pid")).map(|meta| meta.ino()).ok();
    namespace(process).is_some_and(|inode| namespace(Path::new("/proc/self")) == Some(inode))
}

/// A process's id in its own PID namespace: the last number of `NSpid` (proc(5)).
pub(crate) fn innermost_pid(process: &Path) -> Option<i32> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

/// Writes a kernel setting of the calling thread's network namespace, e.g. `ipv4/ip_forward`.
pub(super) fn set_sysctl(name: &str, value: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
}
