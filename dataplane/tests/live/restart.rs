//! The process is killed under load, and replaced: what it tracked goes on, before and after control speaks to the next,
//! and nothing ever leaves untranslated.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use crate::gateway::Gateway;
use crate::load::{Load, Way};
use crate::relay::UNHARMED;
use crate::sandbox::{now, sandboxed, wait_until};
use crate::soak::{Place, tables};

/// By which signals processes end: a crash has no time for anything, an upgrade asks.
const ENDS: [Signal; 4] = [Signal::KILL, Signal::TERM, Signal::KILL, Signal::KILL];
/// Load between them: connections that came and went.
const PACE: u64 = 300;
/// The longest that long connections may stand still while nobody has spoken to the new process: a retransmission after
/// the start, which itself takes its time on a busy machine.
const STANDSTILL: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(240);

/// The client is the way to everybody else: what is routed instead of translated comes to it and is seen.
const CONFIG: &str = "
node: {addresses: [198.51.100.1, \"2001:db8:c::1\"]}
ports:
- {name: up0, driver: af_packet, interface: up0, addresses: [198.51.100.1/24, \"2001:db8:c::1/64\"]}
- {name: pods0, driver: af_packet, interface: pods0, addresses: [10.244.0.1/24, \"fd00:244::1/64\"]}
routes:
- {to: 0.0.0.0/0, via: 198.51.100.10}
- {to: \"::/0\", via: \"2001:db8:c::10\"}
";

fn replaced(workers: u8) {
    let place = Place::new([UNHARMED; 2]);
    // On a good link connections are so short that more of them are remembered.
    place.client.set("ipv4/ip_local_port_range", "20000 59999");
    let mut gateway = Gateway::start_with(place.gateway, CONFIG, workers, Some("/run/flows"));
    gateway.publish(&tables());
    let load = Arc::new(Load::default());
    let clients = place.clients(&load, 4);
    let busy = || {
        let ended = || load.done()[Way::Short as usize].1;
        let before = ended();
        wait_until("connections come and go", STANDSTILL, || {
            (ended() >= before + PACE).then_some(())
        });
    };
    for signal in ENDS {
        busy();
        let open = gateway.counter("flows-used");
        let start = now();
        gateway.replace(signal);
        let started = start.elapsed();
        let said = gateway.said();
        let kept: u64 = said
            .lines()
            .filter_map(|line| {
                line.split_once(" flows taken over")?
                    .0
                    .rsplit(' ')
                    .nth(1)?
                    .parse::<u64>()
                    .ok()
            })
            .sum();
        assert!(kept > 0, "of {open} flows none was taken over:\n{said}");
        // Control is silent until the long connections have come a long way without it.
        let talked = || load.done()[Way::Chat as usize].1;
        let before = talked();
        wait_until(
            "long connections go on before control has spoken",
            STANDSTILL,
            || (talked() >= before + 100).then_some(()),
        );
        let (silent, dropped) = (start.elapsed() - started, gateway.drops());
        gateway.publish(&tables());
        eprintln!(
            "restart: {workers} workers, {signal:?}: {open} flows open, {kept} taken over, started in {started:?}, 100 exchanges \
             within {silent:?} before control spoke; dropped meanwhile: {dropped}"
        );
    }
    busy();
    place.end(&load, clients);
    eprintln!("restart: {workers} workers: {load}");
    place
        .relays
        .iter()
        .for_each(|relay| eprintln!("restart: {}", relay.report()));
}

#[test]
fn no_connection_is_lost_and_nothing_leaves_untranslated_when_the_process_is_killed() {
    let name = "restart::no_connection_is_lost_and_nothing_leaves_untranslated_when_the_process_is_killed";
    sandboxed(name, LIMIT, || replaced(1));
}

#[test]
fn nor_when_a_process_of_several_workers_is_killed() {
    sandboxed(
        "restart::nor_when_a_process_of_several_workers_is_killed",
        LIMIT,
        || replaced(2),
    );
}
