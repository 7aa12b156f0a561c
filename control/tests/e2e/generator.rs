//! A packet generator that nobody here wrote, DPDK's testpmd, at a NIC port that the lab's folder adds to the gateway.

use std::fs;
use std::path::Path;

use crate::lab::{Done, Lab, Setup, root, run, wait_until};
use crate::testpmd::{Memory, Port, Testpmd, present};

/// A burst of testpmd's: few enough for a pod's socket to hold them all, however late its server comes to read them.
const BURST: u64 = 32;
const ROUNDS: u64 = 5;

/// testpmd as the lab's user, sending to a frontend; linked with the gateway.
fn generator(lab: &Lab, to: (&str, &str)) -> Testpmd {
    let socket = lab.directory().join("testpmd.sock");
    let port = Port {
        role: "client",
        socket: socket.to_str().unwrap(),
        mac: "02:00:00:00:00:0a",
    };
    let (address, number) = to;
    let ips = format!("--tx-ip=172.20.0.10,{address}");
    let ports = format!("--tx-udp=4000,{number}");
    let options = [
        "--forward-mode=rxonly",
        "--eth-peer=0,02:00:00:00:00:01",
        "--txpkts=64",
        &ips,
        &ports,
    ];
    // Debian's `nobody`, as whom such a lab is made.
    let user = (lab.setup() == Setup::Unprivileged && root()).then_some("65534");
    let mut testpmd = Testpmd::start_as(user, "lab", Memory::Small, &[port], &options);
    wait_until("testpmd is linked", || testpmd.is_linked(0).then_some(()));
    testpmd
}

/// Datagrams of testpmd's length that the pods have seen, each from the gateway: the answer must come this way.
fn seen(lab: &Lab) -> u64 {
    let logs = lab.pods("echo").into_iter().map(|(pod, _)| {
        let log = lab.log(&pod);
        // 64 bytes without the headers of Ethernet, IPv4 and UDP.
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.ends_with(" UDP 22 bytes"))
            .collect();
        assert!(
            lines.iter().all(|line| line.contains(" 10.244.0.1:")),
            "{pod}: {log}"
        );
        lines.len() as u64
    });
    logs.sum()
}

in_every_lab! {
    fn every_datagram_of_testpmds_is_answered_by_a_pod_and_the_answer_comes_back(lab: &Lab, "memif") {
        present();
        let (cluster_ip, node) = (lab.cluster_ip("echo"), lab.node());
        let mut sent = 0;
        for frontend in [(cluster_ip.as_str(), "53"), (node.as_str(), "30053")] {
            // Each is another peer at the same socket.
            let mut testpmd = generator(lab, frontend);
            for round in 1..=ROUNDS {
                testpmd.send_bursts(1);
                wait_until("every answer is back", || (testpmd.counts(0).received >= round * BURST).then_some(()));
                testpmd.stop();
            }
            let counts = testpmd.counts(0);
            assert_eq!((counts.sent, counts.received), (ROUNDS * BURST, ROUNDS * BURST), "{frontend:?}");
            sent += counts.sent;
            assert_eq!(seen(lab), sent, "{frontend:?}");
        }
    }
}

/// `lab up` with further ports that are not what they should be. Whatever of the lab was made is gone after it.
fn up_with(lab: &Lab, ports: &str) -> Done {
    let folder = lab.stage().join("broken");
    fs::create_dir_all(&folder).unwrap();
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: idle}, spec: {containers: [{name: idle, image: idle}]}}";
    fs::write(folder.join("pod.yaml"), pod).unwrap();
    fs::write(folder.join("ports.conf"), ports).unwrap();
    let done = run(lab.sluice(&["lab", "up", folder.to_str().unwrap()]));
    assert!(run(lab.sluice(&["lab", "down"])).status.success());
    done
}

#[test]
fn further_ports_that_cannot_be_are_told_and_why() {
    let lab = Lab::new(Setup::Unprivileged);
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/lab/memif/ports.conf");
    let sample = fs::read_to_string(sample).unwrap();
    for (from, to, told) in [
        // The lab's own to judge: nothing is made.
        (
            "ports:\n",
            "prots:\n",
            "broken/ports.conf:12:1: unknown field `prots`",
        ),
        // The dataplane's, in its words.
        ("role: server", "role: boss", "unknown variant `boss`, expected"),
        (
            "socket: testpmd.sock",
            "socket: /nowhere/testpmd.sock",
            "/nowhere/testpmd.sock",
        ),
        (
            "interface: testpmd",
            "interface: testpmd\n  role: host",
            "only one NIC port can be the host port",
        ),
    ] {
        assert!(sample.contains(from), "{sample}");
        let done = up_with(&lab, &sample.replace(from, to));
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert!(done.errors.contains(told), "{done:?}");
        assert_eq!(done.errors.lines().count(), 1, "{done:?}");
        println!("{}", done.errors.trim());
    }
}
