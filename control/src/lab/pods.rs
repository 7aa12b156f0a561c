//! A pod: an address, namespaces, processes, and what a kubelet would say about it.
//!
//! Takes a template; starts and stops the pod's processes and keeps its report in the pods folder true. Which pods there
//! are is the keeper's to decide.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod as PodObject, Service};
use nix::sys::signal::Signal;

use super::ipc::PodStatus;
use super::launch::own_binary;
use super::namespace::Namespaces;
use super::net::Addresses;
use super::now;
use super::probe::{Check, Place};
use super::process::{Exit, HandOver, Reaper, signal};
use super::state::State;
use super::workloads::{Key, SetKind, Template};
use crate::env;

mod process;
mod report;

use process::{Process, Program};

/// Grace from SIGTERM to SIGKILL if the pod names none (core/v1 PodSpec), and the most a lab's user should wait.
const GRACE: Duration = Duration::from_secs(30);

/// How long the kernel may take to end a killed process before it is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// A pod of the lab.
pub(super) struct Pod {
    pub(super) key: Key,
    /// What keeps it, if anything does.
    pub(super) owner: Option<Owner>,
    /// The last octet of its address, which nobody else has; none if its network is the node's.
    pub(super) number: Option<u8>,
    addresses: Addresses,
    pub(super) namespaces: Namespaces,
    template: Template,
    uid: String,
    created: Timestamp,
    containers: Vec<Process>,
    terminating: Option<Terminating>,
    reported: Option<PodObject>,
}

/// What keeps a pod: a set, and what that was made for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Owner {
    pub(super) kind: SetKind,
    pub(super) set: Key,
    /// The Deployment of the set.
    pub(super) deployment: Option<String>,
}

/// As commands name it.
impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.deployment {
            Some(deployment) => write!(f, "deployment/{deployment}"),
            None => write!(f, "{}/{}", self.kind.short(), self.set.name),
        }
    }
}

struct Terminating {
    since: Timestamp,
    /// Whether someone waits for clients to be sent elsewhere.
    leaves: bool,
    /// When its processes are killed; none before they are told to end.
    deadline: Option<Instant>,
}

/// News of a container, with the pod's uid so that old news of an earlier pod is known.
#[derive(Debug)]
pub(super) struct News {
    pub(super) uid: String,
    pub(super) container: usize,
    pub(super) ready: bool,
}

/// What a pod needs of the keeper.
pub(super) struct Surroundings<'a> {
    /// What containers that start now are told of; without it they wait.
    pub(super) services: Option<&'a [Service]>,
    pub(super) state: &'a State,
    pub(super) reaper: &'a Reaper,
    pub(super) news: &'a dyn Fn(News) -> Box<dyn Fn(bool) + Send>,
}

impl Pod {
    pub(super) fn new(
        key: Key,
        owner: Option<Owner>,
        template: Template,
        (number, addresses): (Option<u8>, Addresses),
        namespaces: Namespaces,
        uid: String,
    ) -> Self {
        let containers = template.spec.containers.iter().map(Process::new).collect();
        let created = Timestamp::now();
        let created = Timestamp::from_second(created.as_second()).unwrap_or(created);
        Self {
            key,
            owner,
            number,
            addresses,
            namespaces,
            template,
            uid,
            created,
            containers,
            terminating: None,
            reported: None,
        }
    }

    /// Whether a container is to be started.
    pub(super) fn wants_to_start(&self) -> bool {
        self.terminating.is_none() && self.containers.iter().any(Process::is_due)
    }

    /// Starts all containers, and again those whose wait is over. What cannot start is logged and tried again later.
    pub(super) fn run(&mut self, around: &Surroundings<'_>) {
        let Some(services) = around.services.filter(|_| self.terminating.is_none()) else {
            return;
        };
        for index in 0..self.containers.len() {
            if !self.containers[index].is_due() {
                continue;
            }
            if let Err(error) = self.start_container(index, services, around) {
                log::error!("pod {}: {error:#}", self.key);
                let log = around.state.pod_log(&self.key.namespace, &self.key.name);
                append(&log, &format!("{error:#}\n"));
                self.containers[index].over(Exit::Status(127), true);
            }
        }
    }

    fn start_container(
        &mut self,
        index: usize,
        services: &[Service],
        around: &Surroundings<'_>,
    ) -> anyhow::Result<()> {
        let process = &self.containers[index];
        let log = around.state.pod_log(&self.key.namespace, &self.key.name);
        let links = self.template.spec.enable_service_links.unwrap_or(true);
        let variables = env::of_container(&process.container, services, &self.key.namespace, links);
        let expand = |text: &String| env::expand(text, |name| variables.get(name).map(String::as_str));
        let mut command = match &process.program {
            Program::Nothing => {
                self.containers[index].ready = true;
                self.containers[index].ended = Some(Exit::Status(0));
                return Ok(());
            }
            Program::Own(words) => {
                let mut command = Command::new(words.first().map(expand).context("an empty command")?);
                command.args(words[1..].iter().map(expand));
                command
            }
            Program::Server { tcp, udp } => {
                let mut command = Command::new(own_binary()?);
                command.args(["lab", "server"]);
                command.args(tcp.iter().flat_map(|port| ["--tcp".to_owned(), port.to_string()]));
                command.args(udp.iter().flat_map(|port| ["--udp".to_owned(), port.to_string()]));
                command.env("NOTIFY_SOCKET", around.state.socket("notify"));
                command.env("SLUICE_CONTAINER", format!("{} {index}", self.uid));
                command
            }
        };
        command.envs(&variables);
        command.env("POD_NAME", &self.key.name);
        command.env("POD_NAMESPACE", &self.key.namespace);
        command.env("POD_IP", self.addresses.v4.to_string());
        let scratch = self.scratch(around.state);
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        command.env("TMPDIR", scratch);
        // Without a directory of its own, a container begins beside the manifests: there is no image to have one.
        let manifests = around.state.manifests();
        command.current_dir(
            process
                .container
                .working_dir
                .as_ref()
                .map_or(manifests, Into::into),
        );
        let check = Check::of(&process.container).unwrap_or_else(|error| {
            let told = format!("{error:#}; it is ready as it starts");
            log::warn!("pod {}: {}: {told}", self.key, process.container.name);
            append(&log, &format!("{told}\n"));
            None
        });
        let set = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let (environment, folder) = (set.collect(), command.get_current_dir().map(Into::into));
        let pid = around
            .reaper
            .spawn(&self.namespaces, command, &log, &HandOver::default())?;
        let process = &mut self.containers[index];
        process.pid = Some(pid);
        process.restarts += u32::from(process.ended.is_some());
        process.ended = None;
        process.restart = None;
        process.backoff.restarted();
        // The built-in server tells when it listens; a program of the machine is ready as it starts, unless probed.
        process.ready = check.is_none() && matches!(process.program, Program::Own(_));
        if let Some(check) = check {
            let news = News {
                uid: self.uid.clone(),
                container: index,
                ready: false,
            };
            let place = Place {
                namespaces: self
                    .namespaces
                    .try_clone()
                    .context("cannot hold the pod's namespaces")?,
                address: self.addresses.v4,
                reaper: around.reaper.clone(),
                environment,
                folder,
            };
            process.probe = Some(check.start(place, (around.news)(news))?);
        }
        Ok(())
    }

    /// A built-in server listens: without a probe, that is ready.
    pub(super) fn listening(&mut self, container: usize) {
        if let Some(process) = self.containers.get_mut(container)
            && process.probe.is_none()
        {
            process.ready = true;
        }
    }

    /// A probe's verdict changed.
    pub(super) fn probed(&mut self, container: usize, ready: bool) {
        if let Some(process) = self.containers.get_mut(container)
            && process.pid.is_some()
        {
            process.ready = ready;
        }
    }

    /// A process ended. Whether it was this pod's.
    pub(super) fn ended(&mut self, pid: i32, exit: Exit) -> bool {
        let policy = self.template.spec.restart_policy.as_deref().unwrap_or("Always");
        let restart = match policy {
            "Never" => false,
            "OnFailure" => exit != Exit::Status(0),
            _ => true,
        };
        let terminating = self.terminating.is_some();
        let Some(process) = self
            .containers
            .iter_mut()
            .find(|process| process.pid == Some(pid))
        else {
            return false;
        };
        process.over(exit, restart && !terminating);
        if !terminating {
            log::warn!("pod {}: {} {exit}", self.key, process.container.name);
        }
        true
    }

    /// Begins to stop it: its report says so before its processes hear of it ([`Self::stop`]).
    pub(super) fn terminate(&mut self, state: &State) {
        if self.terminating.is_some() {
            return;
        }
        let since = Timestamp::now();
        self.terminating = Some(Terminating {
            since: Timestamp::from_second(since.as_second()).unwrap_or(since),
            leaves: false,
            deadline: None,
        });
        for process in &mut self.containers {
            process.restart = None;
        }
        self.report(state);
    }

    /// Its uid, once, when it is to go: somebody has to wait until it may stop.
    pub(super) fn begins_to_leave(&mut self) -> Option<String> {
        let terminating = self.terminating.as_mut().filter(|t| !t.leaves)?;
        terminating.leaves = true;
        Some(self.uid.clone())
    }

    /// Tells its processes to end; when its grace is over they are killed.
    pub(super) fn stop(&mut self) {
        let grace = self.template.spec.termination_grace_period_seconds;
        let grace = grace
            .and_then(|s| u64::try_from(s).ok())
            .map_or(GRACE, Duration::from_secs)
            .min(GRACE);
        if let Some(terminating) = &mut self.terminating {
            terminating.deadline = Some(now() + grace);
            self.processes().for_each(|pid| signal(pid, Signal::SIGTERM));
        }
    }

    /// Whether it is being stopped.
    pub(super) fn is_terminating(&self) -> bool {
        self.terminating.is_some()
    }

    /// Whether it is being stopped and no process is left. Kills those whose grace is over.
    pub(super) fn is_over(&mut self) -> bool {
        let Some(terminating) = &mut self.terminating else {
            return false;
        };
        let late = terminating.deadline.is_some_and(|deadline| deadline <= now());
        if late {
            // The kernel may take a moment; it is told again after the next.
            terminating.deadline = Some(now() + AGAIN);
        }
        let mut over = true;
        for pid in self.containers.iter().filter_map(|process| process.pid) {
            over = false;
            if late {
                signal(pid, Signal::SIGKILL);
            }
        }
        over
    }

    /// When the keeper has to look at it again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        match &self.terminating {
            Some(terminating) => terminating.deadline,
            None => self.containers.iter().filter_map(|process| process.restart).min(),
        }
    }

    /// Whether its containers are ready.
    fn containers_ready(&self) -> bool {
        self.containers.iter().all(|process| process.ready)
    }

    /// Whether Services may send to it.
    pub(super) fn is_ready(&self) -> bool {
        self.terminating.is_none() && self.containers_ready()
    }

    /// A label of its own.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.template.labels.get(key).map(String::as_str)
    }

    /// Its processes.
    pub(super) fn processes(&self) -> impl Iterator<Item = i32> {
        self.containers.iter().filter_map(|process| process.pid)
    }

    /// Whether it is the pod that `uid` names.
    pub(super) fn has_uid(&self, uid: &str) -> bool {
        self.uid == uid
    }

    /// What commands are told.
    pub(super) fn status(&self) -> PodStatus {
        PodStatus {
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            ip: self.addresses.v4,
            ips: self.addresses.all().collect(),
            ready: self.is_ready(),
            containers: (
                self.containers.iter().filter(|process| process.ready).count(),
                self.containers.len(),
            ),
            phase: self.doing().to_owned(),
            restarts: self.containers.iter().map(|process| process.restarts).sum(),
            owner: self.owner.as_ref().map(ToString::to_string),
            labels: self.template.labels.clone(),
            fds: self.namespaces.fds(),
        }
    }

    fn scratch(&self, state: &State) -> PathBuf {
        state.pod_scratch(&self.key.namespace, &self.key.name)
    }

    /// Takes away the files its processes may have made.
    pub(super) fn remove_scratch(&self, state: &State) {
        match fs::remove_dir_all(self.scratch(state)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{}: {error}", self.scratch(state).display());
            }
            _ => {}
        }
    }

    /// Kills what its processes left behind in groups of their own, such as a server that went to the background.
    pub(super) fn kill_orphans(&self) {
        if let Err(error) = self.namespaces.kill_inhabitants(self.number.is_none()) {
            log::error!("pod {}: {error:#}", self.key);
        }
    }
}

fn append(log: &std::path::Path, text: &str) {
    let file = fs::File::options().create(true).append(true).open(log);
    if let Err(error) = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())) {
        log::error!("cannot write {}: {error}", log.display());
    }
}
