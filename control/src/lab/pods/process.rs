//! One container of a pod: what runs for it, and how that goes.

use std::sync::mpsc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus,
};

use super::super::now;
use super::super::process::{Backoff, Exit};

/// One container's process.
pub(super) struct Process {
    pub(super) container: Container,
    pub(super) program: Program,
    pub(super) pid: Option<i32>,
    pub(super) ended: Option<Exit>,
    pub(super) ready: bool,
    pub(super) backoff: Backoff,
    pub(super) restart: Option<Instant>,
    /// How often it was started again.
    pub(super) restarts: u32,
    pub(super) probe: Option<mpsc::Sender<()>>,
}

/// What runs for a container.
pub(super) enum Program {
    /// A program of the machine.
    Own(Vec<String>),
    /// The built-in server.
    Server { tcp: Vec<u16>, udp: Vec<u16> },
    /// Nothing: it only holds the namespaces.
    Nothing,
}

impl Process {
    /// Nothing runs yet.
    pub(super) fn new(container: &Container) -> Self {
        let words: Vec<_> = container
            .command
            .iter()
            .chain(&container.args)
            .flatten()
            .cloned()
            .collect();
        let ports = |protocol: &str| -> Vec<u16> {
            let ports = container.ports.iter().flatten();
            let same = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol);
            same.filter_map(|port| u16::try_from(port.container_port).ok())
                .collect()
        };
        let (tcp, udp) = (ports("TCP"), ports("UDP"));
        let program = if !words.is_empty() {
            Program::Own(words)
        } else if tcp.is_empty() && udp.is_empty() {
            Program::Nothing
        } else {
            Program::Server { tcp, udp }
        };
        Self {
            container: container.clone(),
            program,
            pid: None,
            ended: None,
            ready: false,
            backoff: Backoff::new(),
            restart: None,
            restarts: 0,
            probe: None,
        }
    }

    /// Whether it is to be started now.
    pub(super) fn is_due(&self) -> bool {
        self.pid.is_none() && (self.ended.is_none() || self.restart.is_some_and(|at| at <= now()))
    }

    /// It ended, or could not start.
    pub(super) fn over(&mut self, exit: Exit, restart: bool) {
        self.pid = None;
        self.ended = Some(exit);
        self.ready = false;
        self.probe = None;
        self.restart = restart.then(|| now() + self.backoff.ended());
    }

    /// What a kubelet would say of it.
    pub(super) fn status(&self) -> ContainerStatus {
        let runs = self.pid.is_some() || self.ready;
        let waits = |reason: &str| ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.to_owned()),
                ..ContainerStateWaiting::default()
            }),
            ..ContainerState::default()
        };
        let state = match self.ended {
            _ if runs => ContainerState {
                running: Some(ContainerStateRunning::default()),
                ..ContainerState::default()
            },
            None => waits("ContainerCreating"),
            Some(_) if self.restart.is_some() => waits("CrashLoopBackOff"),
            Some(exit) => ContainerState {
                terminated: Some(terminated(exit)),
                ..ContainerState::default()
            },
        };
        ContainerStatus {
            name: self.container.name.clone(),
            image: self.container.image.clone().unwrap_or_default(),
            ready: self.ready,
            started: Some(runs),
            restart_count: i32::try_from(self.restarts).unwrap_or(i32::MAX),
            state: Some(state),
            ..ContainerStatus::default()
        }
    }
}

/// A signal's exit code is a shell's: 128 and its number.
fn terminated(exit: Exit) -> ContainerStateTerminated {
    let (exit_code, signal) = match exit {
        Exit::Status(code) => (code, None),
        Exit::Signal(signal) => (128 + signal as i32, Some(signal as i32)),
    };
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    ContainerStateTerminated {
        exit_code,
        signal,
        reason: Some(reason.to_owned()),
        ..ContainerStateTerminated::default()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn a_containers_status_is_that_of_its_process() {
        let mut process = Process::new(&Container {
            name: "c".into(),
            command: Some(vec!["true".into()]),
            ..Container::default()
        });
        let said = |process: &Process| {
            let status = process.status();
            let state = status.state.unwrap();
            let reason = state.waiting.and_then(|waiting| waiting.reason);
            let ended = state
                .terminated
                .map(|ended| format!("{} {}", ended.reason.unwrap(), ended.exit_code));
            (
                reason.or(ended).unwrap_or_else(|| "runs".into()),
                status.ready,
                status.restart_count,
            )
        };
        assert_eq!(said(&process), ("ContainerCreating".into(), false, 0));
        (process.pid, process.ready) = (Some(7), true);
        assert_eq!(said(&process), ("runs".into(), true, 0));
        process.over(Exit::Status(1), true);
        process.restarts = 1;
        assert_eq!(said(&process), ("CrashLoopBackOff".into(), false, 1));
        process.over(Exit::Status(0), false);
        assert_eq!(said(&process), ("Completed 0".into(), false, 1));
        process.over(Exit::Signal(Signal::SIGKILL), false);
        assert_eq!(said(&process), ("Error 137".into(), false, 1));
    }
}
