//! The comparison as its user starts it, small: every kind of gateway comes up, has its Services, translates rightly and
//! is gone afterwards, whatever ends it. Needs root and what `.ci/run e2e` installs; figures are not judged here.
#![allow(clippy::unwrap_used, reason = "all of this file is test code")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Whether it can be done; says so if not.
fn may_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: 1 (compare: needs root)");
    }
    root
}

/// The program beside a dataplane's of its own profile, as a user has them.
fn compare(arguments: &[&str]) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_sluice-bench"));
    assert!(
        program.with_file_name("sluice-dataplane").exists(),
        "build the dataplane as well: cargo build -p sluice-dataplane, with --release if this test has it"
    );
    let mut command = Command::new(program);
    command.arg("compare").args(arguments);
    command
}

/// Of this machine's namespaces, those that are not ours alone: named ones.
fn hosts() -> usize {
    std::fs::read_dir("/run/netns").map_or(0, Iterator::count)
}

/// Processes in another network namespace than ours whose environment says `mark`.
fn inside(mark: &str) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let marked = |path: &PathBuf| {
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|word| word == mark.as_bytes())
    };
    let ours = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    let elsewhere = |path: &PathBuf| {
        let namespace = std::fs::metadata(path.join("ns/net"));
        namespace.is_ok_and(|namespace| namespace.ino() != ours)
    };
    processes
        .map(|process| process.path())
        .filter(|path| marked(path) && elsewhere(path))
        .collect()
}

#[test]
fn every_gateway_translates_rightly_under_both_generators_and_leaves_nothing_behind() {
    if !may_run() {
        return;
    }
    let before = hosts();
    // (all gateways with their ceilings, those that translate)
    for (generator, driver, gateways, translating) in [
        (
            "af_xdp",
            "af_xdp,af_packet,tap,memif,nftables,iptables,forward",
            11,
            6,
        ),
        ("af_packet", "af_xdp,tap,nftables", 5, 3),
    ] {
        let output = compare(&["--driver", driver, "--generator", generator, "--json"])
            .args(["--services", "30", "--flows", "60", "--repeats", "1"])
            .args(["--seconds", "0.4", "--rate", "1000", "--changes", "2"])
            .output()
            .unwrap();
        let (out, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{generator}: {errors}");
        let rows: Vec<Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |kind: &str| rows.iter().filter(|row| row["kind"] == kind).collect::<Vec<_>>();
        assert_eq!(
            (of("compare-update").len(), of("compare").len()),
            (translating, gateways),
            "{out}"
        );
        for row in of("compare") {
            let row = &row["row"];
            for direction in ["forward", "back"] {
                let flow = &row["paced"][direction];
                assert!(flow["received"].as_u64().unwrap() > 0, "{generator}: {row}");
                // The kernel may give two endpoints to a flow whose first packets race (README, limits).
                let kernel = ["nftables", "iptables"]
                    .iter()
                    .any(|name| row["gateway"] == *name);
                assert!(
                    kernel || flow["wrong"] == serde_json::json!({}),
                    "{generator}: {row}"
                );
            }
            // From a flood down to what the gateway carries, or to the ladder's end.
            let ladder = row["ladder"].as_array().unwrap();
            let carried = ladder.last().unwrap()["loss"].as_f64().unwrap() <= 0.01;
            assert!(ladder.len() == 7 || carried, "{row}");
            // Not the flood's: on a machine that is busy with others nothing may come out of that in so short a time.
            assert!(
                row["paced_gateway_ns_per_packet"].as_f64().unwrap() > 0.0,
                "{row}"
            );
        }
    }
    assert_eq!(hosts(), before);
}

#[test]
fn one_that_is_killed_leaves_neither_process_nor_host_behind() {
    if !may_run() {
        return;
    }
    let before = hosts();
    let mark = format!("SLUICE_BENCH_TEST={}", std::process::id());
    let (name, value) = mark.split_once('=').unwrap();
    let mut child = compare(&["--driver", "af_packet,memif", "--services", "30", "--flows", "60"])
        .args(["--seconds", "20", "--rate", "1000"])
        .env(name, value)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says when a dataplane has its Services: those of memif are the last.
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let up = said.any(|line| line.unwrap().starts_with("memif: 30 services"));
    let running = inside(&mark);
    child.kill().unwrap();
    child.wait().unwrap();
    // Itself, two dataplanes and a forwarder at least.
    assert!(up && running.len() >= 4, "{running:?}");
    let began = now();
    while !inside(&mark).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", inside(&mark));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(hosts(), before);
}

#[test]
fn another_user_than_root_is_told_so() {
    if !may_run() {
        return;
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([env!("CARGO_BIN_EXE_sluice-bench"), "compare"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    // Where the binary itself is out of that user's reach, setpriv says so.
    let told = errors.contains("run it as root") || errors.contains("failed to execute");
    assert!(!output.status.success() && told, "{errors}");
}

#[allow(clippy::disallowed_methods, reason = "tests measure real time")]
fn now() -> Instant {
    Instant::now()
}
