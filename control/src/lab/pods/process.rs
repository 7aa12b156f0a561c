//! One container of a pod: what runs for it, and how that goes.

use std::sync::mpsc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Container;

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
}
