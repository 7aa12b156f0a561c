//! The lab: a cluster of network namespaces on one machine, to try Services in.
//!
//! `up` starts a *keeper* (`launch`) that makes the network (`net`), runs dataplane and control (`services`) and the
//! pods (`workloads`, `pods`), and lives until `down`. Commands talk to it over a socket (`ipc`); what it writes
//! lies in one directory (`state`). Nothing outside the lab's namespaces and that directory is made or changed.

use std::fs;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

pub mod state;
pub mod launch;
pub mod ipc;
pub mod server;
mod departure;
mod exec;
mod keeper;
pub mod namespace;
pub mod net;
mod netlink;
mod pods;
mod ports;
mod probe;
mod process;
mod resolv;
mod services;
mod workloads;

pub use exec::{Target, enter};

use ipc::Request;
use state::{Found, Record, State};

/// What moves the packets of the node's NIC ports.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Driver {
    /// AF_XDP sockets; needs root
    AfXdp,
    /// Raw packet sockets; works in a user namespace
    AfPacket,
}

impl Driver {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfXdp => "af_xdp",
            Self::AfPacket => "af_packet",
        }
    }
}

/// What `up` may be told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The driver; else af_xdp for root, af_packet for others.
    pub driver: Option<Driver>,
    /// Leave dataplane and control out: only namespaces, links and pods. The kernel forwards in their place.
    pub no_services: bool,
    /// Make a user namespace even as root.
    pub user_namespace: bool,
}

/// Makes the lab `state` from a folder of manifests. Lines of progress go to `progress`.
///
/// # Errors
/// A folder without manifests, a lab of this name that is up, or what kept the lab from coming up; in the last case
/// what runs of it stays for inspection, and the error says so.
pub fn up(
    folder: &Path,
    state: &State,
    options: &Options,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    require_manifests(folder)?;
    // Judged before anything is made, and by the name that the person knows it by.
    ports::FurtherPorts::of(folder)?;
    let _lock = state.lock()?;
    match state.find()? {
        Found::Alive(_) => bail!(
            "the lab {0} is up already: `sluice lab down --name {0}` ends it",
            state.name()
        ),
        Found::Remains => {
            progress("an earlier lab of this name died: removing what it left");
            clean(state)?;
        }
        Found::Nothing => {}
    }
    state.create()?;
    copy_manifests(folder, &state.manifests())?;
    match launch::start(state, options, progress) {
        Ok(()) => Ok(()),
        Err(failure) if failure.alive => Err(look_into(state, &failure.reason)),
        Err(failure) => {
            // Nothing runs, so nothing is there to look into that the error does not say.
            clean(state)?;
            Err(failure.reason)
        }
    }
}

fn require_manifests(folder: &Path) -> anyhow::Result<()> {
    let hint = "give a folder such as configs/lab/quickstart";
    if !folder.exists() {
        bail!("there is no folder {}: {hint}", folder.display());
    }
    if !folder.is_dir() {
        bail!("{} is no folder: {hint}", folder.display());
    }
    fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    if workloads::manifest_files(folder).is_empty() {
        bail!(
            "no manifests (*.yaml, *.yml, *.json) in {}: {hint}",
            folder.display()
        );
    }
    Ok(())
}

/// The reason why a lab does not work, and where it can be looked into.
pub fn look_into(state: &State, reason: &anyhow::Error) -> anyhow::Error {
    let name = state.name();
    anyhow::anyhow!(
        "{reason:#}; the lab is left to look into at {} (`sluice lab down --name {name}` ends it)",
        state.path().display()
    )
}

/// Ends a lab, living or dead. Whether there was one.
///
/// # Errors
/// A keeper that cannot be killed, or a directory that cannot be removed.
pub fn down(state: &State) -> anyhow::Result<bool> {
    let lock = state.lock()?;
    let found = state.find()?;
    if let Found::Alive(record) = &found {
        end(state, record)?;
    }
    clean(state)?;
    state.forget(lock)?;
    Ok(!matches!(found, Found::Nothing))
}

/// The keeper's record of a lab that must be up.
///
/// # Errors
/// There is no such lab, or it died.
pub fn living(state: &State) -> anyhow::Result<Record> {
    match state.find()? {
        Found::Alive(record) => Ok(record),
        Found::Nothing => bail!(
            "there is no lab {}: `sluice lab up configs/lab/quickstart` makes one",
            state.name()
        ),
        Found::Remains => bail!(
            "the lab {0} died; `sluice lab down --name {0}` removes what it left",
            state.name()
        ),
    }
}

/// How long pods may take to stop when the whole lab ends, before the kernel kills what is left.
const FAREWELL: Duration = Duration::from_secs(5);

fn end(state: &State, record: &Record) -> anyhow::Result<()> {
    use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
    let pid = Pid::from_raw(record.pid).context("the keeper's record names no process")?;
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    // Asked kindly, pods end as they would in a cluster. The keeper ends all the same if it is killed.
    let kind = ipc::ask::<serde_json::Value>(&state.socket("keeper"), &Request::Down);
    if kind.is_err() || !ends(handle.as_fd(), FAREWELL)? {
        kill_process(pid, Signal::KILL).ok();
    }
    // The keeper's end is seen only after that of every process of its PID namespace (pid_namespaces(7)).
    if !ends(handle.as_fd(), FAREWELL)? {
        bail!("the lab's keeper (process {}) does not end", record.pid);
    }
    Ok(())
}

fn ends(process: std::os::fd::BorrowedFd<'_>, within: Duration) -> anyhow::Result<bool> {
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    let mut handles = [PollFd::new(process, PollFlags::POLLIN)];
    Ok(poll(&mut handles, timeout).context("cannot wait for the lab's keeper")? > 0)
}

/// Removes what a dead lab left: commands that still run in its namespaces, and its directory.
fn clean(state: &State) -> anyhow::Result<()> {
    exec::end_leftovers(state);
    state.remove()
}

/// Copies the folder, with the files beside the manifests that pods' commands may read.
fn copy_manifests(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let (file, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if file.is_dir() {
            copy_manifests(&file, &target)?;
        } else if file.is_file() {
            fs::copy(&file, &target).with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    Ok(())
}

/// The lab's clock: no packet waits for it.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// A number nobody can foresee, for names. Not for secrets.
fn random() -> u64 {
    RandomState::new().hash_one(now())
}

/// An object's uid: the same for the same object, in the form Kubernetes has (RFC 9562, version 8).
fn uid(of: impl Hash) -> String {
    let half = |salt: u64| {
        let mut hasher = std::hash::DefaultHasher::new();
        (salt, &of).hash(&mut hasher);
        hasher.finish()
    };
    let (high, low) = (half(1), half(2));
    format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | (low >> 48) & 0x3fff,
        low & 0xffff_ffff_ffff
    )
}
