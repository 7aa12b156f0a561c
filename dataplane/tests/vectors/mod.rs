//! Golden vectors: a folder each, named for what must happen, with a `vector.txt`:
//!
//! * comment lines: what must happen, then the IDs of the rules that say so;
//! * the world, where it is not as usual: `capacity flows 2`, `without host`, `without peer pods`, `resolve` (next hops are
//!   found by ARP), `only single: REASON`;
//! * tables: `use NAME` (from `_common`) and records (`support/records.rs`);
//! * what happens, in order: `client > PACKET` (arrives; lines without a break arrive together), `tables put …`,
//!   `wait 31s`, `restart` (the process is killed, another adopts its flows, and control has not spoken to it yet),
//!   `control` (it has, and has told all there was), `forget pods 10.244.0.11` (that neighbour, and meet it again); each
//!   followed by what must come of it: `pods < PACKET` (leaves), `punt` (the packet leaves unchanged on the host port),
//!   `drop REASON`, `nothing`, `$E in {10.244.0.11:8080, 10.244.0.12:8080}`.
//!
//! Whatever is not expected fails the vector: a packet, a byte of it, a wrong checksum, a drop. `x3` before a packet or a
//! reason is three of them. The packet language is in `support/line.rs`.
//!
//! Every vector holds in every way of `Way` (`VECTORS_NAMED=part-of-a-name` runs a few), and what it expects is what the law says, never what the code did.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use sluice_dataplane::verdict::DropReason;

use crate::support::vector::{Expected, Vector};

mod filler;
mod run;

use run::{Run, Way};

/// Runs of each vector in each way, with different random choices: queues, places in bursts, source ports, endpoints.
const ROUNDS: u64 = 2;

/// Stack that a worker and the world around it need, whatever comes: a fifth of a thread's.
const STACK: usize = 384 << 10;

/// Runs all vectors that can hold in this way; panics with every failure.
fn run_all(way: Way) {
    let runner = std::thread::Builder::new().stack_size(STACK);
    let ran = runner.spawn(move || run_each(way)).unwrap().join();
    ran.unwrap_or_else(|failure| std::panic::resume_unwind(failure));
}

fn run_each(way: Way) {
    let seed = std::env::var("VECTORS_SEED").map_or_else(
        |_| RandomState::new().build_hasher().finish(),
        |seed| seed.parse().unwrap_or_else(|_| panic!("VECTORS_SEED={seed}")),
    );
    let (mut ran, mut left_out, mut failures, mut letters) = (0, Vec::new(), Vec::new(), 0);
    let part = std::env::var("VECTORS_NAMED").unwrap_or_default();
    for vector in vectors() {
        if !vector.name.contains(&part) {
            left_out.push(format!("{}: its name is without {part}", vector.name));
            continue;
        }
        if let Some((ways, reason)) = &vector.setup.only
            && !ways.iter().any(|name| name == way.name())
        {
            left_out.push(format!("{}: {reason}", vector.name));
            continue;
        }
        ran += 1;
        // One failure of a vector tells enough.
        let held = (0..ROUNDS).try_fold(0, |read, round| {
            Ok(read + Run::new(&vector, way, seed.wrapping_add(round)).and_then(Run::hold)?)
        });
        match held {
            Ok(read) => letters += read,
            Err::<_, String>(failure) => {
                failures.push(format!("{} ({}): {failure}", vector.file.display(), way.name()));
            }
        }
    }
    println!(
        "{}: {ran} vectors, {} failed; {letters} letters; VECTORS_SEED={seed}",
        way.name(),
        failures.len()
    );
    assert!(
        ran > 0
            || left_out
                .iter()
                .any(|vector| !vector.contains("its name is without")),
        "no vector has {part} in its name"
    );
    left_out
        .iter()
        .for_each(|vector| println!("  not this way: {vector}"));
    assert!(
        !matches!(way, Way::Two | Way::Four) || letters > 0 || !part.is_empty(),
        "workers that never hand over a packet prove nothing"
    );
    let count = failures.len();
    assert!(
        failures.is_empty(),
        "{count} of {ran} vectors failed, VECTORS_SEED={seed}\n\n{}",
        failures.join("\n\n")
    );
}

/// All vectors, by name.
fn vectors() -> Vec<Vector> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let folders = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders
        .filter(|path| path.is_dir() && !path.ends_with("_common"))
        .collect();
    folders.sort();
    folders
        .iter()
        .map(|folder| Vector::load(folder).unwrap_or_else(|mistake| panic!("{mistake}")))
        .collect()
}

#[test]
fn every_vector_holds_packet_by_packet() {
    run_all(Way::Single);
}

#[test]
fn every_vector_holds_inside_bursts_of_other_flows() {
    run_all(Way::Burst);
}

#[test]
fn every_vector_holds_split_over_two_workers() {
    run_all(Way::Two);
}

#[test]
fn every_vector_holds_spread_over_four_workers() {
    run_all(Way::Four);
}

#[test]
fn every_vector_holds_while_each_step_has_a_new_worker_that_adopts_the_flows() {
    run_all(Way::Adopted);
}

#[test]
fn every_drop_reason_has_a_vector() {
    let drops = |vector: &Vector| -> Vec<String> {
        let expected = vector.steps.iter().flat_map(|step| &step.expected);
        let drops = expected.filter_map(|(_, e)| {
            if let Expected::Drop(reason) = e {
                Some(reason.clone())
            } else {
                None
            }
        });
        drops.collect()
    };
    let covered: BTreeSet<String> = vectors().iter().flat_map(drops).collect();
    // The kernel's program drops those, not a worker: `tests/live/takeover.rs`.
    let by_workers = |reason: &&DropReason| **reason != DropReason::NoProcess;
    for reason in DropReason::ALL.iter().filter(by_workers) {
        assert!(
            covered.contains(reason.name()),
            "no vector drops a packet for {}: {}",
            reason.name(),
            reason.sentence()
        );
    }
}

#[test]
fn every_vector_is_named_for_what_must_happen_and_quotes_its_rules() {
    let vectors = vectors();
    let rules: BTreeSet<&String> = vectors.iter().flat_map(|vector| &vector.rules).collect();
    println!("{} vectors quote {} rules", vectors.len(), rules.len());
    assert!(vectors.len() >= 600);
    for vector in &vectors {
        let kebab = vector
            .name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        assert!(
            kebab && vector.name.split('-').count() >= 3,
            "{}: no sentence",
            vector.name
        );
        assert!(!vector.steps.is_empty(), "{}: nothing happens", vector.name);
    }
}
