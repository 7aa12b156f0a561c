//! A slow, obvious gateway as an oracle: the semantics page as a program of lists and loops that shares no code with the
//! dataplane. Random worlds (updates, packets, time; few addresses, so that all meets again) go through the real workers
//! and through the model, which must agree on every byte that leaves, where it leaves, and why what does not is dropped.
//!
//! It knows both families, TCP, UDP, SCTP and ICMP's errors, fragments, affinity and source ranges, one and several workers.
//! Not here, but in the golden vectors: frames that are too big for a link or tagged, tables that are full, limits on new
//! flows and on memory for fragments, neighbours that do not answer or change, echo replies, what is told before control
//! has spoken, and flows that another process adopts; chunks bundled into one SCTP packet. Nor how evenly endpoints are
//! chosen (only that each was allowed), which tests of the tables look at, nor threads: all workers take their turns in one.
//!
//! A usual run compares `PACKETS`; `SLUICE_MODEL_PACKETS=10000000 cargo test --release -p sluice-dataplane --test main model`
//! compares as many as it is told, from `SLUICE_MODEL_SEED` on. A difference is told as the shortest trace that still
//! shows it, in the language of the golden vectors.

/// Frames read.
mod bytes;
/// Packets written.
mod rewrite;
/// What control has said.
mod tables;
/// Where the gateway is.
mod surroundings;
/// TCP states.
mod tcp;
/// SCTP states.
mod sctp;
/// Answers' rate limit.
mod limit;
/// Datagrams in pieces.
mod fragments;
/// Clients' endpoints.
mod affinity;
/// The rules.
mod gateway;
/// Those for new flows.
mod open;
/// Updates, packets and time.
mod step;
/// The two side by side.
mod pair;
/// Addresses of random worlds.
mod places;
/// Their frames.
mod frames;
/// What happens in them.
mod chance;

use std::collections::BTreeMap;

use crate::support::random::Random;
use chance::Chance;
use pair::{Compared, Kind, Pair};
use step::Step;

/// Packets of a usual run: a few seconds of it.
const PACKETS: u64 = 200_000;

/// Steps of one world. A world is cheap, and a trace of a thousand steps is as much as anybody shortens.
const STEPS: usize = 1_000;

/// Between two lines that say how far a long run is.
const PROGRESS: u64 = 1_000_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}={text}"))
    })
}

#[test]
fn the_workers_do_to_every_packet_what_the_model_does() {
    let packets = number("SLUICE_MODEL_PACKETS", PACKETS);
    let first = number("SLUICE_MODEL_SEED", 1);
    let (mut compared, mut told) = (0, 0);
    let mut fates = Counts::new();
    let mut kinds = BTreeMap::<Kind, u64>::new();
    let mut seed = first;
    while compared < packets {
        for (kind, fate) in live(seed) {
            compared += 1;
            *fates.entry(fate).or_default() += 1;
            *kinds.entry(kind).or_default() += 1;
        }
        seed += 1;
        if compared / PROGRESS > told {
            told = compared / PROGRESS;
            println!("{compared} packets, seeds {first} to {}", seed - 1);
        }
    }
    println!("{compared} packets compared, seeds {first} to {}", seed - 1);
    kinds
        .iter()
        .for_each(|(kind, count)| println!("{kind} {count:9}"));
    println!("{fates:?}");
    // What was compared was not all of one kind.
    for fate in [
        "translated",
        "opened",
        "opened-by-affinity",
        "fragment-translated",
        "error-translated",
        "routed",
        "punted",
        "refused",
        "no-local-endpoint",
        "invalid-tcp",
        "backend-gone",
        "late-reply",
        "reject-rate-limited",
        "bad-source",
        "bad-fragment",
        "fragment-without-flow",
        "source-range",
    ] {
        assert!(
            fates.get(fate).is_some_and(|count| *count > packets / 10_000),
            "hardly any {fate}: {fates:?}"
        );
    }
}

/// How often, by what became of packets.
type Counts = BTreeMap<&'static str, u64>;

/// One world; packets compared in it.
fn live(seed: u64) -> Vec<Compared> {
    let mut chance = Chance::new(Random(seed));
    let surroundings = chance.surroundings();
    let mut pair = Pair::new(&surroundings, seed);
    let mut steps: Vec<Step> = chance.beginning();
    let mut compared = Vec::new();
    for at in 0..STEPS {
        if at >= steps.len() {
            steps.push(chance.step(&pair.gateway));
        }
        match pair.step(&steps[at]) {
            Ok(mut fates) => compared.append(&mut fates),
            Err(difference) => {
                steps.truncate(at + 1);
                let steps = shortest(&surroundings, seed, steps);
                let mut last = Pair::new(&surroundings, seed);
                let difference = steps
                    .iter()
                    .find_map(|step| last.step(step).err())
                    .unwrap_or(difference);
                let lines: Vec<String> = steps.iter().map(Step::to_string).collect();
                panic!("seed {seed}\n{surroundings}{}\n{difference}", lines.join("\n"));
            }
        }
    }
    compared
}

/// The steps without those that do not matter to the difference.
fn shortest(surroundings: &surroundings::Surroundings, seed: u64, mut steps: Vec<Step>) -> Vec<Step> {
    let differs = |steps: &[Step]| {
        let mut pair = Pair::new(surroundings, seed);
        steps.iter().any(|step| pair.step(step).is_err())
    };
    let mut chunk = steps.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < steps.len() {
            let end = (at + chunk).min(steps.len());
            let without = [&steps[..at], &steps[end..]].concat();
            if differs(&without) {
                steps = without;
            } else {
                at = end;
            }
        }
        chunk /= 2;
    }
    steps
}
