//! A slow, obvious gateway as an oracle: the semantics page as a program of lists and loops that shares no code with the
//! dataplane. Random worlds (updates, packets, time; few addresses, so that all meets again) go through the real workers
//! and through the model, which must agree on every byte that leaves, where it leaves, and why what does not is dropped.
//!
//! A usual run compares `PACKETS`; `SLUICE_MODEL_PACKETS=10000000 cargo test --release -p sluice-dataplane --test main model`
//! compares as many as it is told, from `SLUICE_MODEL_SEED` on. A difference is told as the shortest trace that still
//! shows it, in the language of the golden vectors.

/// Frames as bytes.
mod bytes;
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
/// The rules.
mod gateway;
/// Updates, packets and time.
mod step;
/// The two side by side.
mod pair;
/// What happens in a random world.
mod chance;

use crate::support::random::Random;
use chance::Chance;
use pair::Pair;
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
    let mut seen = std::collections::BTreeMap::<&str, u64>::new();
    for seed in first.. {
        compared += live(seed, &mut seen);
        if compared / PROGRESS > told {
            told = compared / PROGRESS;
            println!("{compared} packets, {} worlds", seed + 1 - first);
        }
        if compared >= packets {
            println!(
                "{compared} packets compared in {} worlds: {seen:?}",
                seed + 1 - first
            );
            break;
        }
    }
    // What was compared was not all of one kind.
    for fate in [
        "leaves",
        "no-local-endpoint",
        "invalid-tcp",
        "backend-gone",
        "late-reply",
        "reject-rate-limited",
        "bad-source",
    ] {
        assert!(
            seen.get(fate).is_some_and(|count| *count > packets / 10_000),
            "hardly any {fate}: {seen:?}"
        );
    }
}

/// One world; packets compared in it.
fn live(seed: u64, seen: &mut std::collections::BTreeMap<&'static str, u64>) -> u64 {
    let mut chance = Chance::new(Random(seed));
    let surroundings = chance.surroundings();
    let mut pair = Pair::new(&surroundings, seed);
    let mut steps: Vec<Step> = chance.beginning();
    let mut compared = 0;
    for at in 0..STEPS {
        if at >= steps.len() {
            steps.push(chance.step(&pair.gateway));
        }
        match pair.step(&steps[at]) {
            Ok(fates) => fates.into_iter().for_each(|fate| {
                compared += 1;
                *seen.entry(fate).or_default() += 1;
            }),
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
