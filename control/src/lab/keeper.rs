//! The keeper: the first process of a lab, and the one that knows everything about it.
//!
//! Other threads only wait (for files, children, commands, probes) and send an [`Event`]; this one loop holds all state
//! and acts. Each turn: take one event, then make what is like what should be, then report what changed.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Service;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::departure;
use super::ipc::{Answer, Request, Status};
use super::net::{Addresses, Network};
use super::pods::{News, Pod, Surroundings};
use super::process::{Exit, Reaper};
use super::resolv::ResolvConf;
use super::services::Service as Process;
use super::state::State;
use super::workloads::{Folder, Key, Workloads};
use super::{Driver, now, probe};

mod begin;
mod known;
mod replicas;
mod outcome;

use known::Known;

/// The line on which the keeper says that the lab is up.
pub(super) const READY: &str = "\u{1}ready";
/// How a line begins on which the keeper says that it is not, and why.
pub(super) const FAILED: &str = "\u{1}failed ";
/// How a line begins on which it, or its launcher, says why it ends.
pub(super) const ENDED: &str = "\u{1}ended ";

/// How long the lab may take to come up: several times what a slow machine needs.
const COMING_UP: Duration = Duration::from_secs(30);
/// Files change in bursts (an editor's save is three or four events): read them when a burst is over.
const SETTLE: Duration = Duration::from_millis(50);
/// How long processes may take after SIGTERM when the whole lab ends.
const FAREWELL: Duration = Duration::from_secs(3);

enum Event {
    /// Manifests, or files beside them, changed.
    Files,
    /// A child ended.
    Ended(i32, Exit),
    /// A container listens, or its probe changed its mind.
    Container(News, bool),
    /// Nothing new is sent to these pods, by their uids.
    Departed(Vec<String>),
    /// Control told of its Services, or did not.
    Services(Option<Vec<Service>>),
    /// The host port was configured, or not.
    HostPort(anyhow::Result<()>),
    /// A command asks.
    Ask(Request, Answer),
    /// SIGTERM.
    End,
}

struct Keeper {
    state: State,
    network: Network,
    reaper: Reaper,
    events: Sender<Event>,
    folder: Folder,
    wanted: Workloads,
    /// Replicas by command: for a set's or Deployment's name, the file's number then, and the command's.
    scaled: BTreeMap<(bool, Key), (u32, u32)>,
    pods: BTreeMap<Key, Pod>,
    last_number: u8,
    services: Vec<Process>,
    known: Known,
    machine_dns: ResolvConf,
    host_port: bool,
    files_changed: Option<Instant>,
}

/// Runs the keeper until `down` or SIGTERM. Standard output is the progress that `up` reads, until [`READY`].
pub(super) fn run(state: State, driver: Driver, rootless: bool, with_services: bool) -> anyhow::Result<()> {
    if std::process::id() != 1 {
        bail!("`sluice lab keeper` is what `sluice lab up` starts; it is nothing to run by hand");
    }
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_target(false)
        .init();
    // Before any thread: all leave these signals to the thread that waits for them.
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    end.thread_block().context("cannot block signals")?;
    state.record(driver, rootless)?;
    let (events, inbox) = mpsc::channel();
    match begin::begin(state, driver, with_services, events, end) {
        Ok((keeper, _watcher)) => keeper.live(&inbox),
        Err(error) => {
            progress(&format!("{ENDED}{error:#}"));
            Err(error)
        }
    }
}

fn join(names: impl Iterator<Item = impl ToString>) -> String {
    let names: Vec<String> = names.map(|name| name.to_string()).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn progress(line: &str) {
    // `up` may be gone: the lab goes on.
    let _gone = writeln!(std::io::stdout(), "{line}");
}

impl Keeper {
    fn live(mut self, inbox: &Receiver<Event>) -> anyhow::Result<()> {
        let mut coming_up = Some(now() + COMING_UP);
        self.reconcile();
        progress(&format!("pods: {} started", self.pods.len()));
        loop {
            if let Some(deadline) = coming_up
                && (self.is_up() || self.is_hopeless() || deadline <= now())
            {
                coming_up = None;
                progress(&self.up_or_why_not());
            }
            let look = [self.next_look(), coming_up].into_iter().flatten().min();
            let event = match look {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(now())),
            };
            match event {
                Ok(Event::End) => return self.end(inbox, None),
                Ok(Event::Ask(Request::Down, answer)) => return self.end(inbox, Some(answer)),
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the keeper's threads are gone"),
            }
            self.reconcile();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Files => self.files_changed = Some(now()),
            Event::Ended(pid, exit) => {
                let known = self.services.iter_mut().any(|service| service.ended(pid, exit))
                    || self.pods.values_mut().any(|pod| pod.ended(pid, exit));
                if !known {
                    log::debug!("an orphan, {pid}, {exit}");
                }
            }
            Event::Container(news, listens) => {
                if let Some(pod) = self.pods.values_mut().find(|pod| pod.has_uid(&news.uid)) {
                    if listens {
                        pod.listening(news.container)
                    } else {
                        pod.probed(news.container, news.ready)
                    }
                }
            }
            Event::Departed(uids) => {
                let gone = |pod: &&mut Pod| uids.iter().any(|uid| pod.has_uid(uid));
                self.pods.values_mut().filter(gone).for_each(Pod::stop);
            }
            Event::Services(services) => self.services_known(services),
            Event::HostPort(Ok(())) => {
                log::info!("host0 has the node's address");
                self.host_port = true;
            }
            Event::HostPort(Err(error)) => log::error!("{error:#}"),
            Event::Ask(request, answer) => self.answer(request, &answer),
            Event::End => {}
        }
    }

    fn answer(&mut self, request: Request, answer: &Answer) {
        let result = match request {
            Request::Status => serde_json::to_value(self.status()).map_err(anyhow::Error::from),
            Request::Scale {
                deployment,
                namespace,
                name,
                replicas,
            } => self.scale(deployment, &Key { namespace, name }, replicas),
            Request::Delete { namespace, name } => {
                let key = Key { namespace, name };
                match self.pods.get_mut(&key) {
                    None => Err(anyhow::anyhow!(
                        "no pod {key}; there are: {}",
                        join(self.pods.keys())
                    )),
                    Some(pod) => {
                        pod.terminate(&self.state);
                        Ok(Value::Null)
                    }
                }
            }
            Request::Fetch { from, to, udp } => return self.fetch(&from, to, udp, answer),
            Request::Down => return,
        };
        // The command may be gone.
        drop(answer.send(result));
    }

    fn status(&self) -> Status {
        let running = self
            .services
            .iter()
            .filter_map(|service| Some((service.name.to_owned(), service.pid?)));
        Status {
            node_addresses: Addresses::node(self.network.dual).all().collect(),
            client_addresses: Addresses::client(self.network.dual).all().collect(),
            pods: self.pods.values().map(Pod::status).collect(),
            client: self.network.client.fds(),
            node: self.network.node.fds(),
            processes: running.collect(),
        }
    }

    fn fetch(&self, from: &str, to: std::net::SocketAddr, udp: bool, answer: &Answer) {
        let namespaces = match from {
            "client" => Some(&self.network.client),
            "node" => Some(&self.network.node),
            pod => self
                .pods
                .iter()
                .find(|(key, _)| key.to_string() == pod)
                .map(|(_, pod)| &pod.namespaces),
        };
        let namespaces = namespaces
            .with_context(|| format!("no host {from}"))
            .and_then(|n| Ok(n.try_clone()?));
        let answer = answer.clone();
        thread::spawn(move || {
            let result = namespaces.and_then(|namespaces| {
                namespaces.enter_this_thread()?;
                Ok(json!(probe::fetch(to, udp)?))
            });
            drop(answer.send(result));
        });
    }

    /// Makes what is like what should be.
    fn reconcile(&mut self) {
        if self.files_changed.is_some_and(|at| at + SETTLE <= now()) {
            self.files_changed = None;
            let (wanted, complaints) = self.folder.read();
            complaints
                .iter()
                .for_each(|complaint| log::warn!("{complaint}; what it said before stays"));
            self.wanted = wanted;
        }
        if self
            .services
            .iter()
            .any(|service| service.name == "dataplane" && service.is_ready(&self.state))
        {
            self.services.iter_mut().for_each(Process::begin);
        }
        for service in &mut self.services {
            service.run(&self.state, &self.network.node, &self.reaper);
        }
        self.remove_ended_pods();
        self.match_sets();
        self.match_single_pods();
        let events = self.events.clone();
        let news = move |news: News| -> Box<dyn Fn(bool) + Send> {
            let events = events.clone();
            Box::new(move |ready| {
                let news = News {
                    uid: news.uid.clone(),
                    container: news.container,
                    ready,
                };
                drop(events.send(Event::Container(news, false)));
            })
        };
        let services = self.services_now();
        let around = Surroundings {
            services: services.as_deref().map(Vec::as_slice),
            state: &self.state,
            reaper: &self.reaper,
            news: &news,
        };
        for pod in self.pods.values_mut() {
            pod.run(&around);
            pod.report(&self.state);
        }
        if self.pods.values().any(Pod::wants_to_start) {
            self.ask_for_services();
        }
        self.see_off();
    }

    /// Has the pods that are to go stop as soon as nothing new is sent to them.
    fn see_off(&mut self) {
        let leaving: Vec<String> = self.pods.values_mut().filter_map(Pod::begins_to_leave).collect();
        if leaving.is_empty() {
            return;
        }
        let control = (!self.services.is_empty()).then(|| self.state.socket("control"));
        let events = self.events.clone();
        thread::spawn(move || {
            if let Some(control) = control {
                departure::wait_until_known(&control, &leaving);
            }
            drop(events.send(Event::Departed(leaving)));
        });
    }

    fn next_look(&self) -> Option<Instant> {
        // Control's answer wakes those that wait for it.
        let waits = |pod: &&Pod| self.known.is_asked() && pod.wants_to_start();
        let pods = self
            .pods
            .values()
            .filter(|pod| !waits(pod))
            .filter_map(Pod::next_look);
        let services = self.services.iter().filter_map(Process::next_look);
        pods.chain(services)
            .chain(self.files_changed.map(|at| at + SETTLE))
            .min()
    }

    fn end(self, inbox: &Receiver<Event>, answer: Option<Answer>) -> anyhow::Result<()> {
        // From the first process of a PID namespace, -1 is everyone in it but itself (kill(2)).
        let _none = kill(Pid::from_raw(-1), Signal::SIGTERM);
        let deadline = now() + FAREWELL;
        let mut left: Vec<i32> = self.services.iter().filter_map(|service| service.pid).collect();
        left.extend(self.pods.values().flat_map(Pod::processes));
        while !left.is_empty() {
            match inbox.recv_timeout(deadline.saturating_duration_since(now())) {
                Ok(Event::Ended(pid, _)) => left.retain(|&other| other != pid),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        if let Some(answer) = answer {
            drop(answer.send(Ok(Value::Null)));
        }
        Ok(())
    }
}
