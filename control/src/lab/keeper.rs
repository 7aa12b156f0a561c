//! The keeper: the first process of a lab, and the one that knows everything about it.
//!
//! Other threads only wait (for files, children, commands, probes) and send an [`Event`]; this one loop holds all state
//! and acts. Each turn: take one event, then make what is like what should be, then report what changed.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use notify::Watcher;
use serde_json::{Value, json};

use super::ipc::{self, Answer, Request, Status};
use super::net::{FIRST_POD, HostPort, LAST_POD, Network};
use super::pods::{News, Pod, Surroundings};
use super::process::{Exit, Reaper};
use super::services::{self, Service};
use super::state::State;
use super::workloads::{Folder, Key, Template, Workloads, name_part};
use super::{Driver, now, probe, random, uid};

/// The line on which the keeper says that the lab is up.
pub(super) const READY: &str = "\u{1}ready";
/// How a line begins on which the keeper says that it is not, and why.
pub(super) const FAILED: &str = "\u{1}failed ";

/// How long the lab may take to come up: several times what a slow machine needs.
const COMING_UP: Duration = Duration::from_secs(30);
/// A dataplane or control that ended so often while the lab comes up will not run.
const HOPELESS: u32 = 3;
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
    last_address: u8,
    services: Vec<Service>,
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
    match begin(state, driver, with_services, events, end) {
        Ok((keeper, _watcher)) => keeper.live(&inbox),
        Err(error) => {
            progress(&format!("{FAILED}{error:#}"));
            Err(error)
        }
    }
}

fn progress(line: &str) {
    // `up` may be gone: the lab goes on.
    let _gone = writeln!(std::io::stdout(), "{line}");
}

fn begin(
    state: State,
    driver: Driver,
    with_services: bool,
    events: Sender<Event>,
    end: SigSet,
) -> anyhow::Result<(Keeper, notify::RecommendedWatcher)> {
    let host_port = HostPort::possible();
    let services = if with_services {
        services::prepare(&state, driver, host_port)?
    } else {
        Vec::new()
    };
    let network = Network::create()?;
    if with_services && host_port == HostPort::Veth {
        network.create_host_pair()?;
    } else if with_services {
        let events = events.clone();
        network.configure_host_port(move |result| drop(events.send(Event::HostPort(result))))?;
    } else {
        network.forward_in_kernel()?;
    }
    progress("network: client, node, fabric");
    let ended = events.clone();
    let reaper = Reaper::start(move |pid, exit| drop(ended.send(Event::Ended(pid, exit))))?;
    let asked = events.clone();
    ipc::serve(&state.socket("keeper"), move |request, answer| {
        drop(asked.send(Event::Ask(request, answer)))
    })?;
    listen_for_readiness(&state, events.clone())?;
    let signalled = events.clone();
    thread::spawn(move || {
        while end.wait().is_ok() {
            drop(signalled.send(Event::End));
        }
    });
    let watcher = watch_files(&state, events.clone())?;
    let mut folder = Folder::new(state.manifests());
    let (wanted, complaints) = folder.read();
    complaints.iter().for_each(|complaint| log::warn!("{complaint}"));
    let keeper = Keeper {
        state,
        network,
        reaper,
        events,
        folder,
        wanted,
        scaled: BTreeMap::new(),
        pods: BTreeMap::new(),
        last_address: FIRST_POD - 1,
        host_port: !with_services || host_port == HostPort::Veth,
        services,
        files_changed: None,
    };
    Ok((keeper, watcher))
}

/// Built-in servers send a datagram when they listen.
fn listen_for_readiness(state: &State, events: Sender<Event>) -> anyhow::Result<()> {
    let socket =
        UnixDatagram::bind(state.socket("notify")).context("cannot listen for pods to become ready")?;
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length) = socket.recv(&mut buffer) {
            let word = String::from_utf8_lossy(&buffer[..length]);
            let container = word
                .strip_prefix("READY=1\nSTATUS=")
                .and_then(|rest| rest.split_once(' '));
            let Some((uid, Ok(container))) = container.map(|(uid, index)| (uid.to_owned(), index.parse()))
            else {
                continue;
            };
            drop(events.send(Event::Container(
                News {
                    uid,
                    container,
                    ready: true,
                },
                true,
            )));
        }
    });
    Ok(())
}

/// Manifests are edited, and sockets appear beside them.
fn watch_files(state: &State, events: Sender<Event>) -> anyhow::Result<notify::RecommendedWatcher> {
    let sockets = state.path().to_owned();
    let manifests = state.manifests();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let relevant = event.is_ok_and(|event| {
            !event.kind.is_access()
                && event.paths.iter().any(|path| {
                    let socket =
                        path.parent() == Some(&sockets) && path.extension().is_some_and(|e| e == "sock");
                    socket || path.starts_with(&manifests)
                })
        });
        if relevant {
            drop(events.send(Event::Files));
        }
    })
    .context("cannot watch files")?;
    watcher
        .watch(state.path(), notify::RecursiveMode::NonRecursive)
        .and_then(|()| watcher.watch(&state.manifests(), notify::RecursiveMode::Recursive))
        .with_context(|| format!("cannot watch {}", state.path().display()))?;
    Ok(watcher)
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
                    None => Err(anyhow::anyhow!("no pod {key}")),
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
            pods: self.pods.values().map(Pod::status).collect(),
            client: self.network.client.fds(),
            node: self.network.node.fds(),
            processes: running.collect(),
        }
    }

    fn scale(&mut self, deployment: bool, key: &Key, replicas: u32) -> anyhow::Result<Value> {
        let most = u32::from(LAST_POD - FIRST_POD);
        if replicas > most {
            bail!("{replicas} replicas are more than the lab's {most} pod addresses");
        }
        let set = self.wanted.sets.iter().find(|(set, spec)| match deployment {
            true => set.namespace == key.namespace && spec.deployment.as_deref() == Some(&key.name),
            false => *set == key && spec.deployment.is_none(),
        });
        let Some((_, set)) = set else {
            let kind = if deployment { "Deployment" } else { "ReplicaSet" };
            bail!("no {kind} {key} in {}", self.state.manifests().display());
        };
        self.scaled
            .insert((deployment, key.clone()), (set.replicas, replicas));
        Ok(Value::Null)
    }

    /// Fetches in a thread inside the host, so that the loop goes on.
    fn fetch(&self, from: &str, to: std::net::SocketAddrV4, udp: bool, answer: &Answer) {
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
            self.services.iter_mut().for_each(Service::begin);
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
        let around = Surroundings {
            state: &self.state,
            reaper: &self.reaper,
            news: &news,
        };
        for pod in self.pods.values_mut() {
            pod.run(&around);
            pod.report(&self.state);
        }
    }

    fn remove_ended_pods(&mut self) {
        let over: Vec<Key> = self
            .pods
            .iter_mut()
            .filter_map(|(key, pod)| pod.is_over().then(|| key.clone()))
            .collect();
        for key in over {
            let Some(pod) = self.pods.remove(&key) else {
                continue;
            };
            pod.kill_orphans();
            pod.remove_report(&self.state);
            if let Err(error) = self.network.remove_pod(pod.address) {
                log::error!("pod {key}: {error:#}");
            }
            log::info!("pod {key} is gone");
        }
    }

    /// How many pods a set should have, a command's word included.
    fn replicas(&mut self, key: &Key) -> u32 {
        let Some(set) = self.wanted.sets.get(key) else {
            return 0;
        };
        let target = match &set.deployment {
            Some(name) => (
                true,
                Key {
                    namespace: key.namespace.clone(),
                    name: name.clone(),
                },
            ),
            None => (false, key.clone()),
        };
        match self.scaled.get(&target) {
            // The last word counts: a file edited after the command overrules it.
            Some(&(file, replicas)) if file == set.replicas => replicas,
            Some(_) => {
                self.scaled.remove(&target);
                set.replicas
            }
            None => set.replicas,
        }
    }

    fn match_sets(&mut self) {
        let sets: Vec<(Key, Template, Option<String>)> = self
            .wanted
            .sets
            .iter()
            .map(|(key, set)| (key.clone(), set.template.clone(), set.deployment.clone()))
            .collect();
        let mut replaced = Vec::new();
        for (key, template, deployment) in sets {
            let wanted = self.replicas(&key) as usize;
            let mut owned: Vec<Key> = self.pods_where(|pod| pod.set.as_ref() == Some(&key));
            // The ones that serve stay longest.
            owned.sort_by_key(|pod| self.pods.get(pod).is_none_or(|pod| !pod.is_ready()));
            for pod in owned.iter().skip(wanted) {
                self.terminate(pod);
            }
            for _ in owned.len()..wanted {
                let name = format!("{}-{}", key.name, name_part(random(), 5));
                let pod = Key {
                    namespace: key.namespace.clone(),
                    name,
                };
                if let Err(error) = self.add_pod(pod, Some(key.clone()), deployment.clone(), template.clone())
                {
                    log::error!("{key}: {error:#}");
                    break;
                }
            }
            let ready = self
                .pods
                .values()
                .filter(|pod| pod.set.as_ref() == Some(&key) && pod.is_ready())
                .count();
            if ready >= wanted {
                replaced.extend(deployment.map(|name| (key.namespace, name)));
            }
        }
        // A set that is no longer wanted ends; that of a changed Deployment only when the new one serves.
        let orphans = self.pods_where(|pod| {
            let Some(set) = &pod.set else { return false };
            let waits = pod.deployment.as_ref().is_some_and(|deployment| {
                let same = |spec: &super::workloads::Set| spec.deployment.as_ref() == Some(deployment);
                self.wanted
                    .sets
                    .iter()
                    .any(|(key, spec)| key.namespace == set.namespace && same(spec))
                    && !replaced.contains(&(set.namespace.clone(), deployment.clone()))
            });
            !self.wanted.sets.contains_key(set) && !waits
        });
        orphans.iter().for_each(|pod| self.terminate(pod));
    }

    fn match_single_pods(&mut self) {
        let unwanted = self.pods_where(|pod| pod.set.is_none() && !self.wanted.pods.contains_key(&pod.key));
        unwanted.iter().for_each(|pod| self.terminate(pod));
        let missing: Vec<_> = self
            .wanted
            .pods
            .iter()
            .filter(|(key, _)| !self.pods.contains_key(key))
            .collect();
        for (key, template) in missing
            .into_iter()
            .map(|(k, t)| (k.clone(), t.clone()))
            .collect::<Vec<_>>()
        {
            if let Err(error) = self.add_pod(key.clone(), None, None, template) {
                log::error!("pod {key}: {error:#}");
            }
        }
    }

    /// Pods that are not being stopped and fit.
    fn pods_where(&self, fits: impl Fn(&Pod) -> bool) -> Vec<Key> {
        let fitting = self
            .pods
            .values()
            .filter(|pod| !pod.is_terminating() && fits(pod));
        fitting.map(|pod| pod.key.clone()).collect()
    }

    fn terminate(&mut self, key: &Key) {
        if let Some(pod) = self.pods.get_mut(key) {
            pod.terminate(&self.state);
        }
    }

    fn add_pod(
        &mut self,
        key: Key,
        set: Option<Key>,
        deployment: Option<String>,
        template: Template,
    ) -> anyhow::Result<()> {
        let address = self.next_address()?;
        let namespaces = self.network.create_pod(address)?;
        log::info!("pod {key} has {address}");
        let pod = Pod::new(
            key.clone(),
            set,
            deployment,
            template,
            address,
            namespaces,
            uid(random()),
        );
        self.pods.insert(key, pod);
        Ok(())
    }

    /// The next free address in a circle, so that one just freed is used last.
    fn next_address(&mut self) -> anyhow::Result<Ipv4Addr> {
        for _ in FIRST_POD..=LAST_POD {
            self.last_address = if self.last_address >= LAST_POD {
                FIRST_POD
            } else {
                self.last_address + 1
            };
            let address = Ipv4Addr::new(10, 244, 0, self.last_address);
            if self.pods.values().all(|pod| pod.address != address) {
                return Ok(address);
            }
        }
        bail!("all {} pod addresses are taken", LAST_POD - FIRST_POD + 1)
    }

    fn next_look(&self) -> Option<Instant> {
        let pods = self.pods.values().filter_map(Pod::next_look);
        let services = self.services.iter().filter_map(Service::next_look);
        pods.chain(services)
            .chain(self.files_changed.map(|at| at + SETTLE))
            .min()
    }

    fn is_up(&self) -> bool {
        self.host_port
            && self.services.iter().all(|service| service.is_ready(&self.state))
            && self.pods.values().all(Pod::is_ready)
    }

    /// Whether dataplane or control cannot run, so that waiting longer is in vain.
    fn is_hopeless(&self) -> bool {
        self.services.iter().any(|service| service.ends >= HOPELESS)
    }

    fn up_or_why_not(&self) -> String {
        if let Some(service) = self.services.iter().find(|service| service.ends >= HOPELESS) {
            return format!(
                "{FAILED}{} keeps ending: {}",
                service.name,
                service.last_words(&self.state)
            );
        }
        let seconds = COMING_UP.as_secs();
        if let Some(service) = self
            .services
            .iter()
            .find(|service| !service.is_ready(&self.state))
        {
            let log = self.state.log(service.name);
            return format!(
                "{FAILED}{} does not listen after {seconds} s; see {}",
                service.name,
                log.display()
            );
        }
        if !self.host_port {
            let log = self.state.log("dataplane");
            return format!(
                "{FAILED}the dataplane made no host0 within {seconds} s; see {}",
                log.display()
            );
        }
        if let Some(pod) = self.pods.values().find(|pod| !pod.is_ready()) {
            let log = self.state.pod_log(&pod.key.namespace, &pod.key.name);
            return format!(
                "{FAILED}pod {} is not ready after {seconds} s; see {}",
                pod.key,
                log.display()
            );
        }
        READY.to_owned()
    }

    /// Ends all processes, kindly first. With this process the kernel ends the rest.
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
