//! Golden vectors: a folder each, named for what must happen, with a `vector.txt`:
//!
//! * comment lines: what must happen, then the IDs of the rules that say so;
//! * the world, where it is not as usual: `capacity flows 2`, `without host`, `resolve` (next hops are found by ARP),
//!   `only single: REASON`;
//! * tables: `use NAME` (from `_common`) and records (`support/records.rs`);
//! * what happens, in order: `client > PACKET` (arrives; lines without a break arrive together), `tables put …`,
//!   `wait 31s`; each followed by what must come of it: `pods < PACKET` (leaves), `punt` (the packet leaves unchanged on
//!   the host port), `drop REASON`, `nothing`, `$E in {10.244.0.11:8080, 10.244.0.12:8080}`.
//!
//! Whatever is not expected fails the vector: a packet, a byte of it, a wrong checksum, a drop. `x3` before a packet or a
//! reason is three of them. The packet language is in `support/line.rs`.
//!
//! Every vector holds in every way of `Way`, and what it expects is what the law says, never what the code did.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use sluice_dataplane::channel::record::Record;
use sluice_dataplane::counters::CounterId;
use sluice_dataplane::verdict::DropReason;

use crate::support::line::{Line, Variables};
use crate::support::packet::{self, Way as Side, build};
use crate::support::records::{Changes, Records};
use crate::support::station::Port;
use crate::support::vector::{Action, Arrival, Expected, Step, Vector};
use crate::support::world::{Seen, World};

/// How a vector is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One worker, one packet at a time.
    Single,
    /// One worker, each step's packets inside a burst of other flows' packets, which must come out right, too.
    Burst,
    /// Two workers, each packet on a queue of either.
    Two,
    // A fourth way, once flows outlive the process: saved and restored before every step.
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Burst => "burst",
            Self::Two => "two",
        }
    }

    const fn workers(self) -> u8 {
        match self {
            Self::Single | Self::Burst => 1,
            Self::Two => 2,
        }
    }
}

/// Packets of other flows in a burst, at most: with the step's own they fit one receive burst.
const FILLERS: usize = 56;

/// One vector under way in one way.
struct Run<'a> {
    vector: &'a Vector,
    way: Way,
    world: World,
    variables: Variables,
    fillers: Fillers,
}

/// Runs all vectors that can hold in this way; panics with every failure.
fn run_all(way: Way) {
    let seed = std::env::var("VECTORS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let (mut ran, mut left_out, mut failures, mut letters) = (0, Vec::new(), Vec::new(), 0);
    for vector in vectors() {
        if let Some((ways, reason)) = &vector.setup.only
            && !ways.iter().any(|name| name == way.name())
        {
            left_out.push(format!("{}: {reason}", vector.name));
            continue;
        }
        ran += 1;
        match Run::new(&vector, way, seed).and_then(Run::hold) {
            Ok(read) => letters += read,
            Err(failure) => failures.push(format!("{} ({}): {failure}", vector.file.display(), way.name())),
        }
    }
    println!("{}: {ran} vectors, {} failed; {letters} letters; VECTORS_SEED={seed}", way.name(), failures.len());
    left_out.iter().for_each(|vector| println!("  not this way: {vector}"));
    assert!(way != Way::Two || letters > 0, "two workers that never hand over a packet prove nothing");
    let count = failures.len();
    assert!(failures.is_empty(), "{count} of {ran} vectors failed, VECTORS_SEED={seed}\n\n{}", failures.join("\n\n"));
}

/// All vectors, by name.
fn vectors() -> Vec<Vector> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let folders = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|path| path.is_dir() && !path.ends_with("_common")).collect();
    folders.sort();
    folders.iter().map(|folder| Vector::load(folder).unwrap_or_else(|mistake| panic!("{mistake}"))).collect()
}

impl<'a> Run<'a> {
    fn new(vector: &'a Vector, way: Way, seed: u64) -> Result<Self, String> {
        let mut world = World::new(&vector.setup, way.workers(), seed);
        let fillers = Fillers::new(vector, world.random().next());
        let mut start = Changes::default();
        vector.tables.iter().chain(&fillers.tables).for_each(|changes| start.puts.extend(changes.puts.clone()));
        world.apply(&start).map_err(|refusal| format!("the tables are refused: {refusal}"))?;
        Ok(Self { vector, way, world, variables: Variables::new(), fillers })
    }

    /// Whether everything happens as the vector says; letters read on the way.
    fn hold(mut self) -> Result<u64, String> {
        for step in &self.vector.steps {
            self.step(step)?;
        }
        let routed = "udp 172.18.0.77:7 > 10.244.0.251:7";
        let frame = build(&Line::parse(routed)?, Port::Client, Side::In)?;
        match self.world.lost_frames(&frame) {
            0 => Ok(self.world.letters()),
            lost => Err(format!("after the last step: {lost} frames are lost: received, and never sent or freed")),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let (drops, punted) = (self.world.drops(), self.world.count(CounterId::PUNTED));
        let mut arrived = Vec::new();
        match &step.action {
            Action::Tables(changes) => {
                let refused = |refusal| format!("line {}: the update is refused: {refusal}", step.at);
                self.world.apply(changes).map_err(refused)?;
            }
            Action::Wait(seconds) => {
                self.fillers.forget();
                self.world.wait(*seconds);
            }
            Action::Arrive(arrivals) => arrived = self.arrive(arrivals)?,
        }
        let left = self.world.left();
        let left = self.fillers.take(left).map_err(|error| format!("line {}: {error}", step.at))?;
        let mut left: Vec<_> = left.into_iter().map(Some).collect();
        let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
        for ((reason, now), (_, before)) in self.world.drops().into_iter().zip(drops) {
            dropped.insert(reason.name().to_owned(), now - before);
        }
        let mut punts = 0;
        let mut wrong = Vec::new();
        for (at, expected) in &step.expected {
            let met = match expected {
                Expected::Leave(port, line) => self.leaves(*port, line, &mut left),
                Expected::Punt => {
                    punts += 1;
                    arrived.iter().any(|frame| take(&mut left, |seen| is_punted(seen, frame)))
                }
                Expected::Nothing => true,
                Expected::Drop(reason) => match dropped.get_mut(reason) {
                    Some(count) => std::mem::replace(count, count.saturating_sub(1)) > 0,
                    None => return Err(format!("line {at}: there is no drop reason {reason}")),
                },
                Expected::Among(name, wanted, set) => self.among(name, set)? == *wanted,
            };
            if !met {
                wrong.push(format!("  line {at}: expected {}", self.say(expected)));
            }
        }
        let unexpected = left.iter().flatten().map(|(port, frame)| {
            format!("  got {port} < {}", packet::dissect(frame, *port, Side::Out))
        });
        wrong.extend(unexpected);
        let unexpected = dropped.iter().filter(|(_, count)| **count > 0);
        wrong.extend(unexpected.map(|(reason, count)| format!("  got drop x{count} {reason}")));
        let counted = self.world.count(CounterId::PUNTED) - punted;
        if counted != punts {
            wrong.push(format!("  {punts} packets should have been punted; the counter says {counted}"));
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("line {}:\n{}", step.at, wrong.join("\n"))) }
    }

    /// Lets packets arrive the way this is run; the frames that did.
    fn arrive(&mut self, arrivals: &[Arrival]) -> Result<Vec<Vec<u8>>, String> {
        let mut frames = Vec::new();
        for Arrival { at, port, line, .. } in arrivals {
            let frame = line.filled(&self.variables).and_then(|line| build(&line, *port, Side::In));
            frames.push(frame.map_err(|error| format!("line {at}: {error}"))?);
        }
        match self.way {
            Way::Single => {
                for (arrival, frame) in arrivals.iter().zip(&frames) {
                    self.world.send(0, arrival.port, frame);
                    self.world.turn();
                }
            }
            Way::Burst => {
                // Before, between and after them, in order.
                let mut places: Vec<_> = arrivals.iter().map(|_| self.world.random().below(FILLERS)).collect();
                places.sort_unstable();
                let mut next = places.iter().zip(arrivals.iter().zip(&frames)).peekable();
                for i in 0..FILLERS {
                    while let Some((_, (arrival, frame))) = next.next_if(|(place, _)| **place == i) {
                        self.world.send(0, arrival.port, frame);
                    }
                    let filler = self.fillers.make(self.world.random().next(), arrivals[0].port)?;
                    self.world.send(0, arrivals[0].port, &filler);
                }
            }
            Way::Two => {
                for (arrival, frame) in arrivals.iter().zip(&frames) {
                    let any = self.world.any_queue(arrival.port);
                    self.world.send(arrival.queue.unwrap_or(any), arrival.port, frame);
                    // A step's packets are in some order: the next is received when this one is done with, unless the
                    // vector is about queues.
                    if arrival.queue.is_none() {
                        self.world.turn();
                    }
                }
            }
        }
        self.world.settle();
        Ok(frames)
    }

    fn leaves(&mut self, port: Port, line: &Line, left: &mut [Option<Seen>]) -> bool {
        let variables = &mut self.variables;
        take(left, |(seen, frame)| {
            *seen == port && line.matches(&packet::dissect(frame, port, Side::Out), variables)
        })
    }

    /// Whether a variable's value is one of `set`: values, variables or ranges of numbers.
    fn among(&self, name: &str, set: &[String]) -> Result<bool, String> {
        let value = self.variables.get(name).ok_or_else(|| format!("${name} has no value: nothing has matched it"))?;
        Ok(set.iter().any(|member| {
            let range = member.split_once('-').and_then(|(from, to)| {
                Some((from.parse::<u32>().ok()?..=to.parse().ok()?).contains(&value.parse().ok()?))
            });
            let other = member.strip_prefix('$').and_then(|name| self.variables.get(name));
            range == Some(true) || other.unwrap_or(member) == value
        }))
    }

    fn say(&self, expected: &Expected) -> String {
        match expected {
            Expected::Leave(port, line) => {
                format!("{port} < {}", line.filled(&self.variables).unwrap_or_else(|_| line.clone()))
            }
            Expected::Punt => "the packet to be punted, unchanged".to_owned(),
            Expected::Nothing => "nothing".to_owned(),
            Expected::Drop(reason) => format!("drop {reason}"),
            Expected::Among(name, wanted, set) => {
                let not = if *wanted { "" } else { "not " };
                format!("${name} {not}in {{{}}}, but it is {}", set.join(", "), self.variables[name])
            }
        }
    }
}

/// Takes out the first that `is`.
fn take(left: &mut [Option<Seen>], mut is: impl FnMut(&Seen) -> bool) -> bool {
    let found = left.iter_mut().find(|seen| seen.as_ref().is_some_and(&mut is));
    found.and_then(Option::take).is_some()
}

/// On the host port, between the right stations, and else byte for byte as it came.
fn is_punted((port, frame): &Seen, arrived: &[u8]) -> bool {
    let stations = [crate::support::station::KERNEL, Port::Host.mac()].concat();
    *port == Port::Host && frame.len() == arrived.len() && frame[..12] == stations && frame[12..] == arrived[12..]
}

/// Packets of other flows, for `Way::Burst`: routed ones, and ones of a Service of their own in both directions.
struct Fillers {
    tables: Vec<Changes>,
    /// Not where flows would use up what the vector gives out sparingly, or masquerade-all would change them.
    with_flows: bool,
    number: u64,
    /// Ports of clients whose flow is open.
    open: BTreeSet<u16>,
    /// What must come out, by payload.
    due: BTreeMap<String, Line>,
}

impl Fillers {
    fn new(vector: &Vector, seed: u64) -> Self {
        let changes = vector.steps.iter().filter_map(|s| if let Action::Tables(c) = &s.action { Some(c) } else { None });
        let mut puts = vector.tables.iter().chain(changes).flat_map(|changes| &changes.puts);
        let with_flows = vector.setup.flows.is_none() && !puts.any(|record| matches!(record, Record::Settings(_)));
        let mut records = Records::default();
        let mut tables = Vec::new();
        if with_flows {
            for text in ["service filler udp", "cluster-ip filler 10.96.255.250:7", "backend filler 10.244.0.250:7"] {
                tables.push(Changes { deletes: Vec::new(), puts: vec![records.put_at(63, text).unwrap()] });
            }
        }
        Self { tables, with_flows, number: seed % 1000, open: BTreeSet::new(), due: BTreeMap::new() }
    }

    /// Time passes: flows may be gone.
    fn forget(&mut self) {
        self.open.clear();
    }

    fn make(&mut self, random: u64, port: Port) -> Result<Vec<u8>, String> {
        self.number += 1;
        let payload = format!("filler {}", self.number);
        let client = 20_000 + (random >> 8) as u16 % 64;
        let known = self.open.contains(&client);
        let (comes, goes) = match random % 4 {
            0 if self.with_flows && known => (
                format!("udp 10.244.0.250:7 > 10.244.0.201:{client}"),
                format!("udp 10.96.255.250:7 > 10.244.0.201:{client}"),
            ),
            1 | 2 if self.with_flows => {
                self.open.insert(client);
                (format!("udp 10.244.0.201:{client} > 10.96.255.250:7"), "udp $C > 10.244.0.250:7".to_owned())
            }
            _ => {
                let line = format!("udp 172.18.0.77:{client} > 10.244.0.251:7");
                (line.clone(), line)
            }
        };
        let with_payload = |text: &str| Line::parse(&format!("{text} \"{payload}\""));
        let frame = build(&with_payload(&comes)?, port, Side::In)?;
        self.due.insert(payload.clone(), with_payload(&goes)?);
        Ok(frame)
    }

    /// Takes the fillers out of what left. Errors: one that came out wrong or not at all.
    fn take(&mut self, left: Vec<Seen>) -> Result<Vec<Seen>, String> {
        let mut rest = Vec::new();
        for (port, frame) in left {
            let line = packet::dissect(&frame, port, Side::Out);
            let due = line.text.as_ref().and_then(|text| self.due.remove(text));
            match due {
                None => rest.push((port, frame)),
                Some(due) if port == Port::Pods && due.matches(&line, &mut Variables::new()) => {}
                Some(due) => return Err(format!("a packet of another flow in the burst\n  expected pods < {due}\n  got {port} < {line}")),
            }
        }
        match self.due.pop_first() {
            None => Ok(rest),
            Some((_, due)) => Err(format!("a packet of another flow in the burst did not leave: pods < {due}")),
        }
    }
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
fn every_drop_reason_has_a_vector() {
    let drops = |vector: &Vector| -> Vec<String> {
        let expected = vector.steps.iter().flat_map(|step| &step.expected);
        let drops = expected.filter_map(|(_, e)| if let Expected::Drop(reason) = e { Some(reason.clone()) } else { None });
        drops.collect()
    };
    let covered: BTreeSet<String> = vectors().iter().flat_map(drops).collect();
    for reason in DropReason::ALL {
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
    assert!(vectors.len() >= 70);
    for vector in &vectors {
        let kebab = vector.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        assert!(kebab && vector.name.split('-').count() >= 3, "{}: no sentence", vector.name);
        assert!(!vector.steps.is_empty(), "{}: nothing happens", vector.name);
    }
}
