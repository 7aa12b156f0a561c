//! Commands inside a host of the lab.
//!
//! The calling process itself enters and becomes the command, so its output, input, signals and exit status are the
//! command's own. It stays outside the lab's PID namespace; a mark in its environment lets `down` find those that a dead
//! lab left running.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ipc::{Request, Status, ask};
use super::state::{Record, State};

/// The variable that marks a command of a lab; its value is the lab's directory.
const MARK: &str = "SLUICE_LAB";

/// A host of the lab, as typed.
#[derive(Clone, Debug)]
pub struct Target {
    /// `client`, `node`, or a pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
}

/// Becomes the command inside `target`. Returns only if it cannot.
///
/// # Errors
/// No such host, or namespaces that cannot be entered.
pub fn enter(state: &State, record: &Record, target: &Target, command: &[String]) -> anyhow::Error {
    match prepare(state, record, target) {
        Err(error) => error,
        Ok(()) => {
            let Some((program, arguments)) = command.split_first() else {
                return anyhow::anyhow!("no command");
            };
            let mut command = Command::new(program);
            command.args(arguments).env(MARK, state.path());
            anyhow::Error::new(command.exec()).context(format!("cannot run {program}"))
        }
    }
}

fn prepare(state: &State, record: &Record, target: &Target) -> anyhow::Result<()> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let fds = match target.name.as_str() {
        "client" => status.client,
        "node" => status.node,
        name => {
            let pod = status
                .pods
                .iter()
                .find(|pod| pod.name == name && pod.namespace == target.namespace);
            let Some(pod) = pod else {
                let names: Vec<_> = status.pods.iter().map(|pod| pod.name.as_str()).collect();
                bail!(
                    "no pod {name} in namespace {}; there are: client, node, {}",
                    target.namespace,
                    names.join(", ")
                );
            };
            pod.fds
        }
    };
    let open = |path: String| fs::File::open(&path).with_context(|| format!("cannot open {path}"));
    let net = open(format!("/proc/{}/fd/{}", record.pid, fds.net))?;
    let mount = open(format!("/proc/{}/fd/{}", record.pid, fds.mount))?;
    let directory = std::env::current_dir();
    if record.rootless {
        let user = open(format!("/proc/{}/ns/user", record.pid))?;
        setns(user, CloneFlags::CLONE_NEWUSER).context("cannot enter the lab's user namespace")?;
    }
    setns(net, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
    setns(mount, CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace")?;
    // Entering mounts leads to their root directory; the way back is only a convenience.
    if let Ok(directory) = directory {
        let _elsewhere = std::env::set_current_dir(directory);
    }
    Ok(())
}

/// Ends commands that still run in the namespaces of a lab that is no more: they would keep its interfaces alive.
pub(super) fn end_leftovers(state: &State) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if is_marked(&entry.path(), state) {
            // It ended meanwhile, or is not ours to end.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn is_marked(process: &Path, state: &State) -> bool {
    let Ok(environment) = fs::read(process.join("environ")) else {
        return false;
    };
    let mut mark = format!("{MARK}=").into_bytes();
    mark.extend_from_slice(state.path().as_os_str().as_encoded_bytes());
    environment
        .split(|&byte| byte == 0)
        .any(|variable| variable == mark)
}
