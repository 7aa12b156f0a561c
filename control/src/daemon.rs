//! `sluice control`: one thread that takes what the source says, brings the model up to date, compiles and publishes.
//! It never stops for a bad manifest, a missing dataplane or a refused update: what worked goes on working.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use nix::sys::signal::{SigSet, Signal};
use sluice_dataplane::channel::record::SettingsRecord;

use crate::allocate::{Allocator, state};
use crate::api::{self, Status, View};
use crate::compile::{Compiler, Settings};
use crate::dns::sockets::Sockets;
use crate::dns::{Server, kube_dns};
use crate::endpoints::{self, Endpoints, sets::Here};
use crate::health::{self, Proxy};
use crate::model::{Family, Model};
use crate::problem::{Problem, Severity};
use crate::publish::{Dataplane, PublishError, Publisher};
use crate::source::{Batch, files};

/// What it is told.
pub mod config;
/// How long changes took.
mod triggers;

use config::Config;
use config::dns::Dns;
pub use triggers::Latency;
use triggers::Triggers;

/// How often a connected dataplane is looked after, and one that is not there looked for: each look is a system call or
/// two, and a dataplane that has come back forwards by its old table, or none, until it is found.
const LOOK: Duration = Duration::from_millis(50);
/// How often a health check's port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long a predecessor may take to end: it answers what it has taken, which is done in well under a second on a machine
/// that does anything else.
const SUCCESSION: Duration = Duration::from_secs(10);
/// A node that the cluster autoscaler is about to take away (HC-6).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Runs for as long as the process does.
pub fn run(config: &Config, dataplane: impl Dataplane) -> anyhow::Result<()> {
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    // Before any thread: all leave these signals to the one that waits for them.
    end.thread_block().context("cannot block signals")?;
    // Before anything that a predecessor may still have or write: its state, its sockets, the dataplane.
    let view = api::serve(&config.api.socket, SUCCESSION)
        .with_context(|| format!("{}: the API's socket cannot be made", config.api.socket.display()))?;
    let holdings = state::load(&config.state)
        .with_context(|| format!("{}: the state file cannot be read", config.state.display()))?;
    let ranges = config.ranges();
    log::info!("node {}, Services from {ranges}", config.node.name);
    for range in &config.service_ranges {
        let family = Family::of(range.addr());
        let of_family = |pods: &IpNet| Family::of(pods.addr()) == family;
        if !config.pod_ranges.is_empty() && !config.pod_ranges.iter().any(of_family) {
            log::warn!("podRanges has none of {family}: of that family nobody is told from a pod (TP-2)");
        }
    }
    let model = Model::new(Allocator::new(ranges, holdings));
    let (sender, batches) = mpsc::channel();
    let dns = config.dns.as_ref();
    let own = dns.map_or_else(Vec::new, |dns| kube_dns::objects(&dns.cluster_ips, &dns.listen));
    files::watch(&config.manifests, own, sender).context("the manifests cannot be watched")?;
    let dns = dns.map(serve_names).transpose()?.map(Arc::new);
    let last = dns.clone();
    thread::Builder::new()
        .name("end".into())
        .spawn(move || end_at(end, last.as_deref()))?;
    let health = health(config).context("health checks cannot be answered")?;
    Daemon {
        dns,
        compiler: Compiler::new(settings(config)),
        endpoints: Endpoints::default(),
        config: &config.file,
        state: &config.state,
        model,
        publisher: Publisher::new(dataplane),
        view,
        health,
        proxy: Proxy::default(),
        retried: now(),
        told: BTreeSet::new(),
        triggers: Triggers::new(Timestamp::now()),
        waiting: None,
    }
    .run(&batches)
}

/// Ends the process when it is told to. Everything else it knows is on disk already.
fn end_at(signals: SigSet, dns: Option<&Server>) {
    if let Err(error) = signals.wait() {
        log::error!("cannot wait for signals: {error}");
        return;
    }
    if let Some(dns) = dns {
        dns.stop();
    }
    std::process::exit(0);
}

/// Starts cluster DNS at the sockets the process was given, or at its own.
fn serve_names(dns: &Dns) -> anyhow::Result<Server> {
    log::info!("{}", dns.summary());
    let mut sockets = Sockets::inherited().context("the inherited sockets cannot be used")?;
    if sockets.is_empty() {
        sockets = Sockets::bind(&dns.listen)?;
    }
    Server::start(sockets, dns.settings()).context("cluster DNS cannot start")
}

fn health(config: &Config) -> std::io::Result<health::server::Server> {
    let server = health::server::Server::new(config.node_port_addresses.clone())?;
    if let Some(address) = config.healthz {
        let ranges = config.service_ranges.iter();
        let families = ranges.map(|range| Family::of(range.addr())).collect();
        match server.serve_node(address, families) {
            Ok(()) => log::info!("/healthz and /livez at {address}"),
            Err(error) => log::warn!(
                "{address} cannot be listened on ({error}): no /healthz and /livez; give another address as `healthz`, or none"
            ),
        }
    }
    Ok(server)
}

fn settings(config: &Config) -> Settings {
    Settings {
        here: Here {
            node: config.node.name.clone(),
            as_local: config.node.treat_as_local.clone(),
            zone: String::new(),
        },
        node_addresses: config.node.addresses.clone(),
        node_port_addresses: config.node_port_addresses.clone(),
        pod_ranges: config.pod_ranges.clone(),
        service_ranges: config.ranges().networks().collect(),
        algorithm: config.algorithm.into(),
        external_ips: config.external_ips,
        strict_source_ranges: config.strict_source_ranges,
        switches: SettingsRecord {
            masquerade_all: config.masquerade_all,
            ping_replies: config.ping_replies,
            undefined_ports: config.undefined_ports.into(),
        },
    }
}

struct Daemon<'a, D> {
    dns: Option<Arc<Server>>,
    compiler: Compiler,
    endpoints: Endpoints,
    config: &'a Path,
    state: &'a Path,
    model: Model,
    publisher: Publisher<D>,
    view: api::Shared,
    health: health::server::Server,
    proxy: Proxy,
    /// When ports of health checks were last tried again.
    retried: Instant,
    /// Problems that have been logged and still stand.
    told: BTreeSet<String>,
    /// What changes of endpoints followed from.
    triggers: Triggers,
    /// Why there is no dataplane, once it has been logged.
    waiting: Option<String>,
}

impl<D: Dataplane> Daemon<'_, D> {
    fn run(&mut self, batches: &Receiver<Batch>) -> anyhow::Result<()> {
        loop {
            match batches.recv_timeout(LOOK) {
                Ok(batch) => {
                    let started = now();
                    // What has come meanwhile is one update.
                    for batch in std::iter::once(batch).chain(batches.try_iter()) {
                        self.triggers.hear(&batch);
                        self.model.apply(batch);
                    }
                    self.update(started);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the manifests are no longer watched"),
            }
            if !self.publisher.is_connected() {
                self.reconnect();
            }
            if !self.health.failures().is_empty() && self.retried.elapsed() > RETRY {
                self.retried = now();
                if self.health.retry() {
                    self.update(now());
                }
            }
        }
    }

    /// Looks for the dataplane once. Why there is none is said when it changes, not at every look.
    fn reconnect(&mut self) {
        match self.publisher.connect() {
            Ok(inventory) => {
                log::info!(
                    "dataplane connected at generation {}",
                    self.publisher.generation().0
                );
                self.compiler.learn(&inventory);
                self.waiting = None;
                self.update(now());
            }
            Err(reason) => {
                if self.waiting.as_ref() != Some(&reason) {
                    log::warn!("{reason}; trying again until it answers");
                    self.waiting = Some(reason);
                    self.tell_health();
                    let status = self.status();
                    self.view.set_status(status);
                }
            }
        }
    }

    /// Model to dataplane, and to whoever asks.
    fn update(&mut self, started: Instant) {
        // What is held must be on disk before anybody is told of it.
        if let Err(error) = self.model.allocator().save(self.state) {
            log::error!(
                "{}: cannot be written ({error}); a restart would allocate anew",
                self.state.display()
            );
        }
        self.compiler.set_zone(self.zone());
        let touched = self.model.take_touched();
        let changed = self.endpoints.update(&self.model, &touched);
        let slices = self.endpoints.slices();
        self.compiler
            .compile(self.model.services_by_name(), slices, &changed);
        let mut problems = self.model.problems();
        problems.extend(self.compiler.conflicts().iter().map(|(service, frontend)| {
            let message = format!("{frontend} is left out: an older Service has it");
            Problem::of_field(
                Severity::Warning,
                None,
                &format!("Service {service}"),
                "",
                message,
            )
        }));
        let checks = health::checks(&self.model, slices, &self.compiler.settings().here);
        self.proxy.pending_since.get_or_insert(started);
        if self.model.is_complete() && self.publisher.is_connected() {
            match self.publisher.publish(self.compiler.desired()) {
                Ok(Some(difference)) => {
                    self.updated();
                    let took = started.elapsed().as_millis();
                    let cause = self.triggers.acknowledged(Timestamp::now());
                    let cause = cause.map(|millis| format!(", {millis} ms after its cause"));
                    log::info!(
                        "generation {}: {difference}, in {took} ms{}",
                        self.publisher.generation().0,
                        cause.unwrap_or_default()
                    );
                }
                Ok(None) => {
                    self.updated();
                    let _nothing_to_do = self.triggers.acknowledged(Timestamp::now());
                }
                Err(error @ PublishError::Refused(_)) => {
                    // It answers, and serves all others.
                    self.updated();
                    log::error!(
                        "{error}; it goes on with generation {}",
                        self.publisher.generation().0
                    );
                }
                Err(error @ PublishError::Lost(_)) => {
                    log::warn!("{error}; connecting again, then the difference is sent")
                }
            }
        }
        // A load balancer sends clients as soon as it is told that it may: the dataplane knows by then.
        self.tell_health();
        if self.proxy.last_updated.is_some() {
            self.health.set_checks(checks);
        }
        problems.extend(self.health.failures().iter().map(|(service, reason)| {
            let message = format!(
                "load balancers cannot ask: {reason}; tried again every {} s",
                RETRY.as_secs()
            );
            let (severity, object) = (Severity::Warning, format!("Service {service}"));
            Problem::of_field(severity, None, &object, "spec.healthCheckNodePort", message)
        }));
        self.tell(&problems);
        if let Some(dns) = &self.dns {
            let zone = dns.zone();
            dns.set(zone.next(
                dns.options(),
                &self.model,
                self.endpoints.slices(),
                serial(),
                changed.iter(),
            ));
        }
        let view = View::new(&self.model, self.endpoints.slices().clone(), problems);
        // Whoever sees an object, or its name, knows that the dataplane has what follows from it, if there is a dataplane.
        self.view.set(view);
        let status = self.status();
        self.view.set_status(status);
    }

    /// The dataplane has all there is.
    fn updated(&mut self) {
        self.proxy.pending_since = None;
        self.proxy.last_updated = Some(Timestamp::now());
    }

    /// How the gateway is, for whoever asks over HTTP.
    fn tell_health(&mut self) {
        self.proxy.connected = self.publisher.is_connected();
        let leaving = self.node().is_some_and(|node| {
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            node.metadata.deletion_timestamp.is_some()
                || taints.into_iter().any(|taint| taint.key == TO_BE_DELETED)
        });
        self.proxy.leaving = leaving;
        self.health.set_proxy(self.proxy.clone());
    }

    fn status(&mut self) -> Status {
        Status {
            node: self.compiler.settings().here.node.clone(),
            complete: self.model.is_complete(),
            connected: self.publisher.is_connected(),
            generation: self.publisher.generation().0,
            dns: self.dns.as_deref().map(Server::counts),
            config: self.config.to_owned(),
            programming: self.triggers.latency(),
        }
    }

    /// This gateway's Node object.
    fn node(&self) -> Option<&Node> {
        let here = &self.compiler.settings().here.node;
        let mut nodes = self.model.nodes();
        nodes.find(|node| node.metadata.name.as_ref() == Some(here))
    }

    /// Its zone.
    fn zone(&self) -> String {
        self.node()
            .and_then(|node| node.metadata.labels.as_ref()?.get(endpoints::ZONE))
            .cloned()
            .unwrap_or_default()
    }

    /// Logs problems that are new, and that old ones are gone.
    fn tell(&mut self, problems: &[Problem]) {
        let now: BTreeSet<String> = problems.iter().map(ToString::to_string).collect();
        for problem in problems
            .iter()
            .filter(|problem| !self.told.contains(&problem.to_string()))
        {
            match problem.severity {
                Severity::Error => log::error!("{}", problem.with_source(false)),
                Severity::Warning => log::warn!("{}", problem.with_source(false)),
                Severity::Note => log::info!("{problem}"),
            }
        }
        for gone in self.told.difference(&now) {
            log::info!("no longer: {gone}");
        }
        self.told = now;
    }
}

/// That of a zone made now: seconds, so that a later one has a greater one (RFC 1982 for 2106 and after).
fn serial() -> u32 {
    jiff::Timestamp::now().as_second() as u32
}

fn now() -> Instant {
    // How long an update took is told to people; nothing depends on it.
    #[allow(clippy::disallowed_methods)]
    Instant::now()
}

#[cfg(test)]
mod tests;
