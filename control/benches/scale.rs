//! How long control takes with very many Services: from a cold start until the dataplane has all of them, from one saved file
//! until the dataplane has what it says, and `sluice get services`; and how much memory it has by then. The processes are
//! those that users start, the dataplane between files that stay empty.
//!
//! ```text
//! cargo build --release && cargo bench -p sluice-control --bench scale -- --services 10000 --endpoints 10
//! ```

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use sluice_control::api::{self, List, Status};

/// A failure, never a success, waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Arguments {
    /// Services, each with one EndpointSlice, in a file of its own.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Files that are edited, one after the other.
    #[arg(long, default_value_t = 20)]
    edits: u32,
    /// Cold starts.
    #[arg(long, default_value_t = 3)]
    starts: u32,
    /// Without cluster DNS.
    #[arg(long)]
    no_dns: bool,
    /// The processes' log.
    #[arg(long)]
    log: bool,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let stage = Stage::new(dir.path(), &arguments);
    let mut starts = Vec::new();
    for start in 0..arguments.starts {
        let running = stage.start();
        starts.push(running.cold);
        if start + 1 == arguments.starts {
            measure(&stage, &running, &arguments);
        }
    }
    tell(
        "cold start",
        "ms",
        &starts.iter().map(|d| millis(*d)).collect::<Vec<_>>(),
    );
}

fn measure(stage: &Stage, running: &Running, arguments: &Arguments) {
    let edits: Vec<f64> = (0..arguments.edits)
        .map(|edit| {
            let service = edit * (arguments.services / arguments.edits.max(1));
            millis(running.edit(stage, service, arguments.endpoints, edit))
        })
        .collect();
    tell("one edited file", "ms", &edits);
    let gets: Vec<f64> = (0..10).map(|_| millis(stage.get())).collect();
    tell("sluice get services", "ms", &gets);
    let [now, most] = ["VmRSS:", "VmHWM:"].map(|line| memory(running.control.0.id(), line));
    println!("memory of control: {now} MiB, at most {most} MiB");
}

fn tell(what: &str, unit: &str, values: &[f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
        return;
    };
    let median = sorted[sorted.len() / 2];
    println!(
        "{what}: min {min:.1} median {median:.1} max {max:.1} {unit} of {} ({values:.1?})",
        values.len()
    );
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn now() -> Instant {
    // What this is for.
    #[allow(clippy::disallowed_methods)]
    Instant::now()
}

fn memory(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|text| text.strip_prefix(line))
        .expect("proc(5)");
    let kibibytes = line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok());
    kibibytes.expect("proc(5)") / 1024
}

/// Manifests, and configs of both processes.
struct Stage {
    dir: PathBuf,
    log: bool,
}

impl Stage {
    fn new(dir: &Path, arguments: &Arguments) -> Self {
        let stage = Self {
            dir: dir.to_owned(),
            log: arguments.log,
        };
        fs::create_dir(dir.join("manifests")).expect("a folder");
        for service in 0..arguments.services {
            fs::write(stage.file(service), manifest(service, arguments.endpoints, 0)).expect("a file");
        }
        fs::create_dir(dir.join("recordings")).expect("a folder");
        let (services, endpoints) = (arguments.services + 16, arguments.endpoints);
        let dataplane = format!(
            "node: {{addresses: [192.0.2.2]}}
ports:
- {{name: uplink0, driver: pcap, interface: uplink0, addresses: [192.0.2.2/24], pcap: {{read: recordings, write: out.pcap, pace: full}}}}
workers: {{count: 1, idle: sleep}}
tables: {{servicePorts: {services}, frontends: {services}, backends: {}}}
channel: {{socket: dataplane.sock}}
",
            services * endpoints
        );
        // Free until control listens there, unless another process is quick.
        let port = UdpSocket::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port")
            .port();
        let dns = match arguments.no_dns {
            true => String::new(),
            false => format!("dns: {{listen: ['127.0.0.1:{port}'], upstreams: []}}\n"),
        };
        let control = format!(
            "node: {{name: gateway, addresses: [192.0.2.2]}}
manifests: [manifests]
healthz: none
serviceRanges: [10.96.0.0/12]
dataplane: {{socket: dataplane.sock}}
api: {{socket: control.sock}}
state: state.json
{dns}"
        );
        fs::write(dir.join("dataplane.yaml"), dataplane).expect("a file");
        fs::write(dir.join("control.yaml"), control).expect("a file");
        stage
    }

    fn file(&self, service: u32) -> PathBuf {
        self.dir.join(format!("manifests/s{service:05}.yaml"))
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Both processes with nothing in them, and control without what it remembers.
    fn start(&self) -> Running {
        for file in ["state.json", "control.sock"] {
            let _ = fs::remove_file(self.dir.join(file));
        }
        let sluice = env!("CARGO_BIN_EXE_sluice");
        let dataplane = Path::new(sluice).with_file_name("sluice-dataplane");
        assert!(
            dataplane.exists(),
            "{} is not there: cargo build --release",
            dataplane.display()
        );
        let dataplane = self.run(&dataplane, &["--config", "dataplane.yaml"]);
        let listening = now();
        while !self.dir.join("dataplane.sock").exists() {
            assert!(listening.elapsed() < PATIENCE, "the dataplane does not start");
            std::thread::yield_now();
        }
        let started = now();
        let control = self.run(Path::new(sluice), &["control", "--config", "control.yaml"]);
        while !self.socket().exists() {
            assert!(started.elapsed() < PATIENCE, "control does not start");
            std::thread::yield_now();
        }
        self.wait(|status| status.complete && status.generation > 0);
        let cold = started.elapsed();
        Running {
            control,
            _dataplane: dataplane,
            cold,
        }
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Process {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        if !self.log {
            command.stderr(Stdio::null());
        }
        Process(command.spawn().expect("the program starts"))
    }

    fn wait(&self, done: impl Fn(&Status) -> bool) -> u64 {
        let (started, mut revision) = (now(), None);
        loop {
            assert!(started.elapsed() < PATIENCE, "it never comes");
            let Ok((status, now)) = api::ask_for_news::<Status>(&self.socket(), List::Status, revision)
            else {
                continue;
            };
            if let Some(status) = status.iter().find(|status| done(status)) {
                return status.generation;
            }
            revision = Some(now);
        }
    }

    fn get(&self) -> Duration {
        let started = now();
        let mut get = Command::new(env!("CARGO_BIN_EXE_sluice"));
        let get = get
            .args(["get", "services", "-A", "--api", "control.sock"])
            .current_dir(&self.dir);
        let got = get.output().expect("sluice get");
        assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
        started.elapsed()
    }
}

struct Running {
    control: Process,
    _dataplane: Process,
    cold: Duration,
}

impl Running {
    /// From before the file is saved, as editors do, by renaming, until the dataplane has acknowledged.
    fn edit(&self, stage: &Stage, service: u32, endpoints: u32, edit: u32) -> Duration {
        let before = stage.wait(|_| true);
        let new = stage.dir.join("new.yaml");
        fs::write(&new, manifest(service, endpoints, edit + 1)).expect("a file");
        let started = now();
        fs::rename(new, stage.file(service)).expect("a file");
        stage.wait(|status| status.generation > before);
        started.elapsed()
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Service and its endpoints: its port, and the first endpoint, are others in every version.
fn manifest(service: u32, endpoints: u32, version: u32) -> String {
    let name = format!("s{service:05}");
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{name: http, port: {}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-a, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n",
        80 + version
    );
    let first = u32::from(Ipv4Addr::new(172, 16, 0, 0));
    for endpoint in 0..endpoints {
        let number = service * endpoints + endpoint;
        let address = match endpoint {
            0 => Ipv4Addr::from(first + (1 << 19) + number + version * 256),
            _ => Ipv4Addr::from(first + number),
        };
        let _ = writeln!(text, "- {{addresses: [{address}], conditions: {{ready: true}}}}");
    }
    text
}
