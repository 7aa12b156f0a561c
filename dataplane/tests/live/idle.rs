//! A gateway that nobody uses costs nothing.

use std::thread;
use std::time::Duration;

use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::sandbox::{now, sandboxed};

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(3);
/// Most processor time of a thread in that time, in percent: a hundred times what ten wake-ups a second take, and a fifth of
/// what a thread that spins gets beside ten others.
const PERCENT: u128 = 2;
const LIMIT: Duration = Duration::from_secs(60);

const CONFIG: &str = "
node: {addresses: [172.18.0.1]}
ports:
- {name: up0, driver: af_packet, interface: up0, addresses: [172.18.0.1/24]}
";

#[test]
fn workers_that_may_sleep_take_no_processor_time_while_idle() {
    let name = "idle::workers_that_may_sleep_take_no_processor_time_while_idle";
    sandboxed(name, LIMIT, || {
        let (near, host) = (Host::silent("near"), Host::silent("gateway"));
        Wires::new().cable((near, "eth0"), (host, "up0"));
        let gateway = Gateway::start_with(host, CONFIG, 2, None);
        // What a start costs is over: the last thread to be made waits for the first time.
        thread::sleep(Duration::from_secs(1));
        let (before, start) = (gateway.busy(), now());
        thread::sleep(WATCHED);
        let (after, watched) = (gateway.busy(), start.elapsed());
        let workers = after
            .iter()
            .filter(|(name, _)| name.starts_with("worker"))
            .count();
        assert_eq!(workers, 2, "{after:?}");
        for ((name, before), (_, after)) in before.iter().zip(&after) {
            let ran = Duration::from_nanos(after - before);
            eprintln!("idle: {name} ran {ran:?} of {watched:?}");
            assert!(
                ran.as_nanos() * 100 <= watched.as_nanos() * PERCENT,
                "{name}: {ran:?} of {watched:?}"
            );
        }
    });
}
