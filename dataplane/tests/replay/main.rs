//! The process between files: a recording of clients in, NAT, a recording of what the pods would get out; and back. What
//! comes out is the golden files beside this one, byte for byte: `clients-out.pcap` and `pods-out.pcap`. What goes in is in other
//! formats: big-endian microseconds, and pcapng. One of the clients' packets is for another station.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "all of this file and its modules are test code"
)]

#[allow(dead_code, reason = "shared with the vectors, which need more of it")]
#[path = "../support/records.rs"]
mod records;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use records::Records;
use rustix::process::{Pid, Signal, kill_process};
use sluice_dataplane::channel::client::Connection;
use sluice_dataplane::index::Generation;

/// How long anything may take; a failure, never a success, waits for it.
const LIMIT: Duration = Duration::from_secs(20);

const TABLES: &str = "put network pods 10.244.0.0/15, put network services 10.96.0.0/16, \
    put service web tcp, put cluster-ip web 10.96.0.10:80, put backend web 10.245.0.11:8080, \
    put service dns udp, put cluster-ip dns 10.96.0.10:53, put backend dns 10.245.0.11:5353";

/// Ended with the test, however that ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn packets_of_a_file_go_through_nat_into_the_golden_file_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["clients", "pods"] {
        fs::create_dir(at(name)).unwrap();
    }
    let config = format!(
        "
node: {{addresses: [10.244.0.1]}}
ports:
- name: clients
  driver: pcap
  interface: clients
  addresses: [10.244.0.1/24]
  pcap: {{read: {0}/clients, write: {0}/clients-out.pcap, mac: \"02:00:00:00:00:01\", peerMac: \"02:00:00:00:00:c1\"}}
- name: pods
  driver: pcap
  interface: pods
  addresses: [10.245.0.1/24]
  pcap: {{read: {0}/pods, write: {0}/pods-out.pcap, mac: \"02:00:00:00:00:02\", peerMac: \"02:00:00:00:00:b1\"}}
workers: {{count: 1, idle: sleep}}
flows: {{capacity: 1024}}
frames: {{count: 8192, size: 2048}}
snat: {{destinations: 64}}
tables: {{servicePorts: 64, frontends: 256, backends: 1024}}
channel: {{socket: {0}/sluice.sock}}
",
        folder.path().display()
    );
    fs::write(at("gateway.yaml"), config).unwrap();
    let mut process = Process(
        Command::new(env!("CARGO_BIN_EXE_sluice-dataplane"))
            .arg("--config")
            .arg(at("gateway.yaml"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap(),
    );
    let log = || fs::read_to_string(at("log")).unwrap_or_default();
    let mut control = until(log, || Connection::connect(at("sluice.sock")).ok()).0;
    let changes = Records::default().transaction(TABLES).unwrap();
    control
        .publish(Generation(1), &changes.deletes, &changes.puts)
        .unwrap();
    let mut outputs = Vec::new();
    // Whole files, moved in: the gateway looks at them when they are there.
    for (input, port, output) in [
        ("clients-in.pcap", "clients", "pods-out.pcap"),
        ("pods-in.pcapng", "pods", "clients-out.pcap"),
    ] {
        fs::copy(beside(input), at(input)).unwrap();
        fs::rename(at(input), at(port).join(input)).unwrap();
        let golden = fs::read(beside(output)).unwrap_or_default();
        let came = || {
            fs::read(at(output))
                .ok()
                .filter(|came| came.len() >= golden.len())
        };
        let came = until(log, came);
        // Kept, to be looked at and, if it is right, to become the golden file.
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(output);
        fs::write(&kept, &came).unwrap();
        assert!(
            came == golden && !golden.is_empty(),
            "{} is not the golden {output}\n{}",
            kept.display(),
            log()
        );
        outputs.push((output, golden));
    }
    // All that was to come has come. Nothing else did.
    kill_process(Pid::from_child(&process.0), Signal::TERM).unwrap();
    assert!(process.0.wait().unwrap().success(), "{}", log());
    for (output, golden) in outputs {
        assert!(
            fs::read(at(output)).unwrap() == golden,
            "more came out than the golden {output}"
        );
    }
}

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/replay")
        .join(name)
}

#[allow(clippy::disallowed_methods, reason = "bounds how long a failing test waits")]
fn until<T>(log: impl Fn() -> String, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(done) = done() {
            return done;
        }
        assert!(start.elapsed() < LIMIT, "after {LIMIT:?}:\n{}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
}
