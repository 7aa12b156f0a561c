//! How many packets a worker translates between memif rings, with testpmd as generator and sink on another core: one port,
//! flows of 60-byte frames (64 with FCS) to a Service, or of full ones, and out again to its endpoint.
//!
//! It judges counts, not speed. For figures: `SLUICE_MEMIF_SECONDS=5 SLUICE_MEMIF_REPEATS=7` on an otherwise idle machine of two
//! cores or more, `--release`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use sluice_dataplane::nic::Burst;
use sluice_dataplane::nic::memif::Role;

use crate::gateway::Gateway;
use crate::host::Host;
use crate::memif::{Station, settled};
use crate::sandbox::{now, sandboxed, wait_until};
use crate::testpmd::{Counts, Memories, Memory, Port, Testpmd, present};

const LIMIT: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_secs(10);
const SOCKET: &str = "/run/wire.sock";
/// What testpmd's flow generator writes into every frame: its station, and ours; the client is 10.254.0.0, the Service's
/// addresses are 10.253.0.0 and those after it, from port 1000 to port 1001.
const OURS: &str = "00:01:02:03:04:01";
const THEIRS: &str = "00:01:02:03:04:00";
/// Of either way of testpmd's: every packet made anew, or one packet a burst made and sent 32 times.
const CLONES: [&str; 2] = ["--flowgen-clones=0", "--flowgen-clones=31"];
const FLOWS: u8 = 64;
/// Bytes of a packet without its FCS, a clone setting, and which end is ours.
const ROWS: [(&str, &str, End); 6] = [
    ("60", CLONES[0], End::Server),
    ("60", CLONES[1], End::Server),
    ("60", CLONES[1], End::Client),
    ("60", CLONES[1], End::Lender),
    ("1514", CLONES[1], End::Client),
    ("1514", CLONES[1], End::Lender),
];

/// Which end of the link is ours, and what becomes of frames there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The memory is testpmd's; packets are copied here.
    Server,
    /// It is ours; they are copied here and there.
    Client,
    /// Our frames are lent; they are copied there.
    Lender,
}

impl End {
    /// As the config has it.
    const fn role(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Lender => "client, zeroCopy: true",
        }
    }
}

fn gateway(host: Host, cpu: usize, end: End) -> Gateway {
    let role = end.role();
    let config = format!(
        "
node: {{addresses: [10.254.0.1]}}
ports:
- name: wire
  driver: memif
  interface: wire
  addresses: [10.254.0.1/16, 10.244.1.1/24]
  memif: {{socket: {SOCKET}, role: {role}, mac: \"{OURS}\", peerMac: \"{THEIRS}\"}}
"
    );
    let mut gateway = Gateway::start_awake(host, &config, cpu);
    let frontends: String = (0..FLOWS)
        .map(|n| format!("put cluster-ip echo 10.253.0.{n}:1001\n"))
        .collect();
    gateway.publish(&format!(
        "put service echo udp\n{frontends}put backend echo 10.244.1.11:5353\n"
    ));
    gateway
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Testpmd's flows to the port, as many rates as are asked for, and what it has counted in the end.
fn measure(
    memory: Memory,
    (bytes, clones, end): (&str, &str, End),
    forwarded: impl Fn() -> u64,
) -> (Vec<f64>, Counts) {
    let (seconds, repeats) = (
        setting("SLUICE_MEMIF_SECONDS", 1),
        setting("SLUICE_MEMIF_REPEATS", 1),
    );
    let port = Port {
        role: if end == End::Server { "client" } else { "server" },
        socket: SOCKET,
        mac: THEIRS,
    };
    let (flows, bytes) = (format!("--flowgen-flows={FLOWS}"), format!("--txpkts={bytes}"));
    let options = ["--forward-mode=flowgen", clones, &flows, &bytes];
    let mut testpmd = Testpmd::start("flows", memory, &[port], &options);
    testpmd.forward();
    wait_until("packets come back", SOON, || {
        (testpmd.counts(0).received > 1000).then_some(())
    });
    let mut rates: Vec<f64> = (0..repeats)
        .map(|_| {
            let (before, start) = (forwarded(), now());
            thread::sleep(Duration::from_secs(seconds));
            (forwarded() - before) as f64 / start.elapsed().as_secs_f64() / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    testpmd.stop();
    // What was in the rings when it stopped is received by nobody.
    settled(&forwarded);
    (rates, testpmd.counts(0))
}

fn tell(what: &str, memory: Memory, rates: &[f64], counts: Counts) {
    let at = |part: usize| rates[(rates.len() - 1) * part / 2];
    eprintln!(
        "memif: {what}, testpmd in {memory:?} pages: {:.2} {:.2} {:.2} Mpps (min, median, max of {}); {} sent, {} received back",
        at(0),
        at(1),
        at(2),
        rates.len(),
        counts.sent,
        counts.received
    );
}

/// The same packets through the driver alone, from its receive to its transmit: what no gateway can exceed.
fn ceiling(memory: Memory, cpu: usize, row: (&str, &str, End)) {
    let stop = AtomicBool::new(false);
    let forwarded = AtomicU64::new(0);
    thread::scope(|scope| {
        let forward = || {
            core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
            let role = if row.2 == End::Server {
                Role::Server
            } else {
                Role::Client
            };
            let mut station = Station::open(SOCKET, role, row.2 == End::Lender);
            let mut frames = Burst::new();
            while !stop.load(Relaxed) {
                station.port.rx_burst(&mut station.memory, &mut frames);
                if !frames.is_empty() {
                    station.port.tx_burst(&mut station.memory, &mut frames);
                    frames.drain(..).for_each(|frame| station.memory.free(frame));
                    forwarded.store(station.port.stats().tx_packets, Relaxed);
                }
            }
        };
        // As a worker's, for whoever looks at threads by their names.
        thread::Builder::new()
            .name("worker-0".into())
            .spawn_scoped(scope, forward)
            .unwrap();
        let (rates, counts) = measure(memory, row, || forwarded.load(Relaxed));
        stop.store(true, Relaxed);
        tell(&format!("{row:?}, driver alone"), memory, &rates, counts);
    });
}

#[test]
fn a_worker_that_never_sleeps_translates_all_it_receives() {
    let name = "memif_speed::a_worker_that_never_sleeps_translates_all_it_receives";
    sandboxed(name, LIMIT, || {
        present();
        let host = Host::silent("gateway");
        let memories = Memories::new(name);
        let huge = memories.kinds.contains(&Memory::Huge);
        let memory = if huge { Memory::Huge } else { Memory::Small };
        let cpus = rustix::thread::sched_getaffinity(None).unwrap();
        let cpu = (0..rustix::thread::CpuSet::MAX_CPU)
            .rev()
            .find(|&n| cpus.is_set(n))
            .unwrap();
        for row in ROWS {
            ceiling(memory, cpu, row);
            let gateway = gateway(host, cpu, row.2);
            let (rates, counts) = measure(memory, row, || gateway.counter("forwarded"));
            tell(&format!("{row:?}, translated"), memory, &rates, counts);
            let (handled, dropped) = (gateway.counter("rx-packets"), gateway.dropped());
            eprintln!("memif: {handled} in; dropped: {}", gateway.drops());
            assert_eq!(handled, counts.sent, "all that was sent was received here");
            let (back, ring) = (counts.received + dropped, 1024);
            assert!(
                back <= handled && back + ring >= handled,
                "{back} of {handled} went back, but for a ring"
            );
        }
    });
}
