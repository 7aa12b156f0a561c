//! Servers that nobody here wrote: nginx and iperf3 in pods; and datagrams.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Lab, PATIENCE, Setup, run, run_within, succeed, wait_until};
use crate::requests::curl;

/// Bytes of the download.
const LARGE: u64 = 100 << 20;

in_every_lab! {
    fn nginx_serves_through_both_frontends_byte_for_byte(lab: &Lab, "servers") {
        let summed = write_large_file(&lab.stage().join("www/large"));
        let frontends = [
            ("debug", format!("http://{}", lab.cluster_ip("nginx"))),
            ("client", format!("http://{}:30080", lab.node())),
        ];
        let pods: BTreeSet<_> = lab.pods("nginx").into_iter().map(|pod| pod.1).collect();
        assert_eq!(pods.len(), 3);
        for (from, url) in frontends {
            let mut answered = BTreeSet::new();
            // That one of three never answers 60 times has odds of 3 * (2/3)^60, 1 in 10^10.
            for _ in 0..60 {
                let done = curl(lab, from, &format!("{url}/who"));
                assert!(done.status.success(), "{from}: {}", done.errors);
                answered.insert(done.out.split(' ').next().unwrap().to_owned());
            }
            assert_eq!(answered, pods, "{from}");

            // One connection carries several requests, and stays with its pod.
            let several = format!("{url}/who?[1-20]");
            let words = ["curl", "-sS", "--fail", "--max-time", "5", "-w", "%{num_connects}\\n", &several];
            let out = succeed(lab.exec(from, &words));
            let (answers, connects): (Vec<_>, Vec<_>) = out.lines().partition(|line| line.contains('.'));
            assert_eq!(answers.len(), 20);
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
            assert_eq!(connects.iter().filter(|count| **count == "1").count(), 1, "{connects:?}");

            let script = format!("curl -sS --fail {url}/large | sha256sum");
            assert_eq!(succeed(lab.exec(from, &["sh", "-c", &script])), format!("{summed}  -\n"), "{from}");
        }
    }

    fn datagrams_come_back_from_the_pod_that_got_them(lab: &Lab, "servers") {
        let frontends = [
            ("debug", format!("UDP4:{}:53", lab.cluster_ip("udp"))),
            ("client", format!("UDP4:{}:30053", lab.node())),
        ];
        let pods: BTreeSet<_> = lab.pods("udp").into_iter().map(|pod| pod.0).collect();
        assert_eq!(pods.len(), 2);
        let debug = lab.pod_address("debug");
        for (from, to) in frontends {
            let mut answered = BTreeSet::new();
            // Each from a socket of its own; that one of two gets none of 30 has odds of 2^-29.
            for round in 0..30 {
                let payload = format!("datagram {round} {}", "x".repeat(40 * round));
                let answer = datagram(lab, from, &to, &payload);
                let (head, body) = answer.split_once('\n').unwrap();
                assert_eq!(body, payload, "{from}");
                let &["POD", pod, client] = head.split(' ').collect::<Vec<_>>().as_slice() else { panic!("{head}") };
                answered.insert(pod.to_owned());
                let client = client.split(':').next().unwrap();
                let gateway = ["10.244.0.1", "172.18.0.2"].contains(&client);
                assert!(if from == "debug" { client == debug } else { gateway }, "{from}: {head}");
            }
            assert_eq!(answered, pods, "{from}");
        }
    }

    fn a_bulk_transfer_neither_stalls_nor_breaks(lab: &Lab, "servers") {
        // A pod that comes later: the lab's own proof speaks HTTP, which an iperf3 server answers only with delays.
        fs::copy(lab.stage().join("iperf3.later"), lab.manifests().join("iperf3.yaml")).unwrap();
        wait_until("iperf3 is an endpoint", || {
            lab.get(&["endpoints", "iperf3"]).out.contains(":5201").then_some(())
        });
        wait_until("iperf3 listens", || {
            let listening = run(lab.exec("iperf3", &["grep", "-q", ":1451 .* 0A ", "/proc/net/tcp", "/proc/net/tcp6"]));
            listening.status.success().then_some(())
        });
        let cluster_ip = lab.cluster_ip("iperf3");
        transfer(lab, "debug", &["-c", &cluster_ip, "-p", "5201", "-t", "10"], 10);
        // The reverse direction, and the whole NAT.
        transfer(lab, "client", &["-c", &lab.node(), "-p", "30201", "-t", "5", "-R"], 5);
    }
}

/// Writes a file without any period. Its SHA-256, by `sha256sum`.
fn write_large_file(path: &std::path::Path) -> String {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..LARGE / 8 {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
    let mut sum = Command::new("sha256sum");
    sum.arg(path);
    succeed(sum).split(' ').next().unwrap().to_owned()
}

/// Sends one datagram by socat and gives the first that comes back.
fn datagram(lab: &Lab, from: &str, to: &str, payload: &str) -> String {
    let mut socat = lab.exec(from, &["socat", "-T", "10", "STDIO", to]);
    let mut child = socat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(payload.as_bytes()).unwrap();
    let mut output = child.stdout.take().unwrap();
    let (sender, received) = mpsc::channel();
    // socat writes a datagram at once, so one read has it whole.
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        let count = output.read(&mut buffer).unwrap();
        buffer.truncate(count);
        drop(sender.send(buffer));
    });
    let answer = received.recv_timeout(PATIENCE);
    child.kill().unwrap();
    child.wait().unwrap();
    let answer = String::from_utf8(answer.unwrap()).unwrap();
    assert!(!answer.is_empty(), "no answer from {to} to {from}");
    answer
}

fn transfer(lab: &Lab, from: &str, arguments: &[&str], seconds: usize) {
    let mut words = vec!["iperf3", "-J"];
    words.extend(arguments);
    let limit = Duration::from_secs(seconds as u64) + PATIENCE;
    let done = run_within(limit, lab.exec(from, &words));
    let report: Value =
        serde_json::from_str(&done.out).unwrap_or_else(|_| panic!("{}{}", done.out, done.errors));
    assert!(done.status.success(), "{}", report["error"]);
    assert_eq!(report.get("error"), None);
    let sums: Vec<_> = report["intervals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|interval| &interval["sum"])
        .collect();
    // The last may be a splinter of an interval.
    let whole: Vec<_> = sums
        .iter()
        .filter(|sum| sum["seconds"].as_f64().unwrap() > 0.5)
        .collect();
    assert!(whole.len() >= seconds, "{whole:?}");
    assert!(
        whole.iter().all(|sum| sum["bytes"].as_u64().unwrap() > 0),
        "it stalled: {whole:?}"
    );
    let received = &report["end"]["sum_received"];
    assert!(received["bytes"].as_u64().unwrap() > 0);
    println!(
        "{:?} {}: {:.2} Gbit/s",
        lab.setup(),
        words[2..].join(" "),
        received["bits_per_second"].as_f64().unwrap() / 1e9
    );
}
