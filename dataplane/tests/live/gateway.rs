//! The program under test, as its users start it, and a control process that is the test.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sluice_dataplane::channel::client::Connection;
use sluice_dataplane::counters::{CounterId, PortCounter};
use sluice_dataplane::index::{Generation, WorkerIndex};

use crate::host::Host;
use crate::records::Records;
use crate::sandbox::wait_until;

/// Capacities far below a cluster's, so that a start is quick; and flows that are over are forgotten soon, so that this can
/// be waited for. Those that are not over, established or half closed, have their usual time.
const SMALL: &str = "
workers: {count: WORKERS, idle: sleep}
flows:
  FOLDER
  capacity: 65536
  timeouts: {tcpSynSent: 10s, tcpSynRecv: 10s, tcpMidstream: 10s, tcpFinWait: 10s, tcpLastAck: 10s, tcpTimeWait: 20s, tcpClose: 10s, udp: 10s, udpStream: 10s}
frames: {count: 8192, size: 2048}
tables: {servicePorts: 64, frontends: 256, backends: 1024}
snat: {destinations: 256}
";

pub(crate) struct Gateway {
    host: Host,
    process: Child,
    control: Connection,
    records: Records,
    generation: Generation,
    log: String,
}

impl Gateway {
    /// Starts it on a host with what `config` says about node, ports and routes; its af_packet is another driver where
    /// `SLUICE_LIVE_DRIVER` says so.
    pub(crate) fn start(host: Host, config: &str) -> Self {
        Self::start_with(host, config, 1, None)
    }

    /// The same with a worker that never sleeps, on a CPU of its own.
    pub(crate) fn start_awake(host: Host, config: &str, cpu: usize) -> Self {
        Self::start_as(
            host,
            config,
            SMALL.replace("idle: sleep", &format!("idle: spin, cores: [{cpu}]")),
            1,
            None,
        )
    }

    /// The same with so many workers, and flows that outlive it in a folder.
    pub(crate) fn start_with(host: Host, config: &str, workers: u8, folder: Option<&str>) -> Self {
        Self::start_as(host, config, SMALL.to_owned(), workers, folder)
    }

    fn start_as(host: Host, config: &str, rest: String, workers: u8, folder: Option<&str>) -> Self {
        let driver = std::env::var("SLUICE_LIVE_DRIVER").unwrap_or_else(|_| "af_packet".to_owned());
        let config = config.replace("driver: af_packet", &format!("driver: {driver}"));
        let small = rest.replace("WORKERS", &workers.to_string()).replace(
            "FOLDER",
            &folder.map_or_else(String::new, |folder| format!("folder: {folder}")),
        );
        let socket = path(host, "sock");
        fs::write(
            path(host, "yaml"),
            format!("{config}{small}channel: {{socket: {socket}}}\n"),
        )
        .unwrap();
        let log = path(host, "log");
        let (process, control) = run(host, &log);
        Self {
            host,
            process,
            control,
            records: Records::default(),
            generation: Generation(0),
            log,
        }
    }

    /// Another process takes its place, once it has ended by this signal: control has not spoken to it yet.
    pub(crate) fn replace(&mut self, signal: Signal) {
        self.end(signal);
        self.start_again();
    }

    /// Ends the process.
    pub(crate) fn end(&mut self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, signal).unwrap();
        self.process.wait().unwrap();
    }

    /// Another process, with the config that lies there.
    pub(crate) fn start_again(&mut self) {
        (self.process, self.control) = run(self.host, &self.log);
    }

    /// What happens to packets meanwhile is the kernel's doing alone.
    pub(crate) fn while_it_stands_still(&self, act: impl FnOnce()) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::STOP).unwrap();
        act();
        kill_process(pid, Signal::CONT).unwrap();
    }

    /// What a second process with the same config, but for a channel of its own, says while it cannot start.
    pub(crate) fn refused_beside(&self) -> String {
        let config = fs::read_to_string(path(self.host, "yaml")).unwrap();
        let other = path(self.host, "beside.yaml");
        let (sock, beside) = (path(self.host, "sock"), path(self.host, "beside.sock"));
        fs::write(&other, config.replace(&sock, &beside)).unwrap();
        let mut command = self
            .host
            .command(env!("CARGO_BIN_EXE_sluice-dataplane"), &["--config", &other]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "two processes on one interface");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Changes the config for processes that start from now on.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let file = path(self.host, "yaml");
        let config = fs::read_to_string(&file).unwrap();
        assert!(config.contains(from), "{from}");
        fs::write(file, config.replace(from, to)).unwrap();
    }

    /// What the present process has said.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Nanoseconds that each of its threads has run, by the thread's name.
    pub(crate) fn busy(&self) -> Vec<(String, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let read = |task: &Path, file| fs::read_to_string(task.join(file)).unwrap();
        tasks
            .map(|task| task.unwrap().path())
            .map(|task| {
                let ran = read(&task, "schedstat");
                let ran = ran.split_whitespace().next().unwrap().parse().unwrap();
                (read(&task, "comm").trim().to_owned(), ran)
            })
            .collect()
    }

    /// One transaction: lines of `put RECORD` and `delete RECORD`. It is in force when this returns.
    pub(crate) fn publish(&mut self, changes: &str) {
        let lines: Vec<&str> = changes
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let changes = self
            .records
            .transaction(&lines.join(","))
            .unwrap_or_else(|error| panic!("{error}"));
        self.generation.0 += 1;
        self.control
            .publish(self.generation, &changes.deletes, &changes.puts)
            .unwrap();
    }

    /// A counter by its name, of all workers.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let id = CounterId::all().find(|id| id.to_string() == name);
        self.sum(id.unwrap_or_else(|| panic!("no counter {name}")))
    }

    /// What the drivers of a NIC port have counted, of all workers; a second old at most.
    pub(crate) fn port_counter(&self, name: &str, counter: PortCounter) -> u64 {
        self.queues(name, counter).into_iter().sum()
    }

    /// The same, of each worker that has a queue of it.
    pub(crate) fn queues(&self, name: &str, counter: PortCounter) -> Vec<u64> {
        let counters = self.control.counters();
        let workers = (0..counters.workers()).map(|page| WorkerIndex(page as u8));
        let queue = |worker| {
            let (port, _) = counters.ports(worker).find(|(_, its)| its == name)?;
            Some(counters.port(worker, port, counter))
        };
        workers.filter_map(queue).collect()
    }

    fn sum(&self, id: CounterId) -> u64 {
        let counters = self.control.counters();
        (0..counters.workers())
            .map(|page| counters.get(WorkerIndex(page as u8), id))
            .sum()
    }

    /// Packets dropped so far, for whatever reason.
    pub(crate) fn dropped(&self) -> u64 {
        let drops = CounterId::all().filter(|id| id.drop_reason().is_some());
        drops.map(|id| self.sum(id)).sum()
    }

    /// What was dropped so far, by reason.
    pub(crate) fn drops(&self) -> String {
        let drops = CounterId::all().filter(|id| id.drop_reason().is_some() && self.sum(*id) > 0);
        drops
            .map(|id| format!("{id} {}, ", self.sum(id)))
            .collect::<String>()
            .trim_end_matches(", ")
            .to_owned()
    }
}

fn path(host: Host, ending: &str) -> String {
    format!("/run/{}.{ending}", host.0)
}

/// The process with the config that lies there, and a connection to it.
fn run(host: Host, log: &str) -> (Child, Connection) {
    let config = path(host, "yaml");
    let mut command = host.command(env!("CARGO_BIN_EXE_sluice-dataplane"), &["--config", &config]);
    command.stdin(Stdio::null()).stderr(File::create(log).unwrap());
    let mut process = command.spawn().unwrap();
    let (control, _) = wait_until("the dataplane listens", Duration::from_secs(20), || {
        if let Some(status) = process.try_wait().unwrap() {
            let [log, config] = [log, &config].map(|file| fs::read_to_string(file).unwrap());
            panic!("{status}: {log}{config}");
        }
        Connection::connect(path(host, "sock")).ok()
    });
    (process, control)
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let told: Vec<&str> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
            eprintln!("dropped: {}\n{}", self.drops(), told.join("\n"));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
