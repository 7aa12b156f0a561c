//! One vector in one way: what it does is done, and what comes of it is held against what it says.

use std::collections::BTreeMap;

use sluice_dataplane::counters::CounterId;

use super::filler::Fillers;
use crate::support::line::{Line, Variables};
use crate::support::packet::{Side, build, dissect, matches};
use crate::support::records::Changes;
use crate::support::station::{KERNEL, Port};
use crate::support::vector::{Action, Arrival, Expected, Step, Vector};
use crate::support::world::{Seen, World};

/// How a vector is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One worker, one packet at a time.
    Single,
    /// One worker, each step's packets inside a burst of other flows' packets, which must come out right, too.
    Burst,
    /// Two workers, each packet on a queue of either.
    Two,
    /// Four workers, each packet on a queue of any.
    Four,
    /// One worker, whose place is taken by another before every step: flows are adopted from their file (CT-12).
    Adopted,
}

impl Way {
    /// The name in vectors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Burst => "burst",
            Self::Two => "two",
            Self::Four => "four",
            Self::Adopted => "adopted",
        }
    }

    /// Workers it takes.
    const fn workers(self) -> u8 {
        match self {
            Self::Single | Self::Burst | Self::Adopted => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// Packets of other flows in a burst, at most: with the step's own they fit one receive burst.
const FILLERS: usize = 56;

/// One vector under way in one way.
pub struct Run<'a> {
    vector: &'a Vector,
    way: Way,
    world: World,
    variables: Variables,
    fillers: Fillers,
}

impl<'a> Run<'a> {
    /// Its world, with every random choice from `seed`. Errors: the tables refuse the vector's records.
    pub fn new(vector: &'a Vector, way: Way, seed: u64) -> Result<Self, String> {
        let make = if way == Way::Adopted || vector.setup.restarts {
            World::kept
        } else {
            World::new
        };
        let mut world = make(&vector.setup, way.workers(), seed);
        let fillers = Fillers::new(vector, world.random().next());
        let mut start = Changes::default();
        vector
            .tables
            .iter()
            .chain(&fillers.tables)
            .for_each(|changes| start.puts.extend(changes.puts.clone()));
        world
            .apply(&start)
            .map_err(|refusal| format!("the tables are refused: {refusal}"))?;
        Ok(Self {
            vector,
            way,
            world,
            variables: Variables::new(),
            fillers,
        })
    }

    /// Whether everything happens as the vector says; letters read on the way.
    pub fn hold(mut self) -> Result<u64, String> {
        for step in &self.vector.steps {
            if self.way == Way::Adopted {
                self.world.restart();
            }
            self.step(step)?;
        }
        let routed = "udp 172.18.0.77:7 > 10.244.0.251:7";
        let frame = build(&Line::parse(routed)?, Port::Client, Side::In)?;
        match self.world.lost_frames(&frame) {
            0 => Ok(self.world.letters()),
            lost => Err(format!(
                "after the last step: {lost} frames are lost: received, and never sent or freed"
            )),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let count = |world: &World| COUNTED.map(|id| world.count(id));
        let (drops, before) = (self.world.drops(), count(&self.world));
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
            Action::Forget(port, address) => self.world.forget(*port, *address),
            Action::Restart => self.world.start_anew(),
            Action::Control => {
                let refused = |refusal| format!("line {}: what there was is refused: {refusal}", step.at);
                self.world.tell().map_err(refused)?;
            }
            Action::Arrive(arrivals) => arrived = self.arrive(arrivals)?,
        }
        let left = self.world.left();
        let left = self
            .fillers
            .take(left)
            .map_err(|error| format!("line {}: {error}", step.at))?;
        let mut left: Vec<_> = left.into_iter().map(Some).collect();
        let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
        for ((reason, now), (_, before)) in self.world.drops().into_iter().zip(drops) {
            dropped.insert(reason.name().to_owned(), now - before);
        }
        let mut wrong = Vec::new();
        for (at, expected) in &step.expected {
            let met = match expected {
                Expected::Leave(port, line) => self.leaves(*port, line, &mut left),
                Expected::Punt => arrived
                    .iter()
                    .any(|frame| take(&mut left, |seen| is_punted(seen, frame))),
                Expected::Nothing => true,
                Expected::Drop(reason) => match dropped.get_mut(reason) {
                    Some(count) => std::mem::replace(count, count.saturating_sub(1)) > 0,
                    None => return Err(format!("line {at}: there is no drop reason {reason}")),
                },
                Expected::Among(name, wanted, set) => self.among(name, set) == Some(*wanted),
            };
            if !met {
                wrong.push(format!("  line {at}: expected {}", self.say(expected)));
            }
        }
        let unexpected = left
            .iter()
            .flatten()
            .map(|(port, frame)| format!("  got {port} < {}", dissect(frame, *port, Side::Out)));
        wrong.extend(unexpected);
        let unexpected = dropped.iter().filter(|(_, count)| **count > 0);
        wrong.extend(unexpected.map(|(reason, count)| format!("  got drop x{count} {reason}")));
        for (n, after) in count(&self.world).into_iter().enumerate() {
            let (id, wanted, counted) = (COUNTED[n], counts(step)[n], after - before[n]);
            if counted != wanted {
                wrong.push(format!("  {id} should have become {wanted} more, not {counted}"));
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("line {}:\n{}", step.at, wrong.join("\n")))
        }
    }

    /// Lets packets arrive the way this is run; the frames that did.
    fn arrive(&mut self, arrivals: &[Arrival]) -> Result<Vec<Vec<u8>>, String> {
        let mut frames = Vec::new();
        for Arrival { at, port, line, .. } in arrivals {
            let frame = line
                .filled(&self.variables)
                .and_then(|line| build(&line, *port, Side::In));
            frames.push(frame.map_err(|error| format!("line {at}: {error}"))?);
        }
        match self.way {
            Way::Single | Way::Adopted => {
                for (arrival, frame) in arrivals.iter().zip(&frames) {
                    self.world.send(0, arrival.port, frame);
                    self.world.turn();
                }
            }
            Way::Burst => {
                // Before, between and after them, in order.
                let mut places: Vec<_> = arrivals
                    .iter()
                    .map(|_| self.world.random().below(FILLERS))
                    .collect();
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
            Way::Two | Way::Four => {
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
            *seen == port && matches(line, port, frame, variables)
        })
    }

    /// Whether a variable's value, if it has one, is one of `set`: values, variables or ranges of numbers.
    fn among(&self, name: &str, set: &[String]) -> Option<bool> {
        let value = self.variables.get(name)?;
        Some(set.iter().any(|member| {
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
                format!(
                    "{port} < {}",
                    line.filled(&self.variables).unwrap_or_else(|_| line.clone())
                )
            }
            Expected::Punt => "the packet to be punted, unchanged".to_owned(),
            Expected::Nothing => "nothing".to_owned(),
            Expected::Drop(reason) => format!("drop {reason}"),
            Expected::Among(name, wanted, set) => {
                let not = if *wanted { "" } else { "not " };
                let value = self.variables.get(name);
                format!(
                    "${name} {not}in {{{}}}, but it is {}",
                    set.join(", "),
                    value.map_or("nothing: no line has matched it", String::as_str)
                )
            }
        }
    }
}

/// What a step is held against beside its packets and drops.
const COUNTED: [CounterId; 3] = [
    CounterId::PUNTED,
    CounterId::ECHO_REPLIES,
    CounterId::REJECTS_SENT,
];

/// How much more they must be after a step: what leaves, and nobody has sent, is an answer of ours.
fn counts(step: &Step) -> [u64; 3] {
    let arrivals = match &step.action {
        Action::Arrive(arrivals) => arrivals.as_slice(),
        _ => &[],
    };
    let is_echo_reply = |line: &Line| line.head[..2.min(line.head.len())] == ["icmp", "echo-reply"];
    let is_error = |line: &Line| line.quoted.is_some();
    let leaving = |expected: &Expected, is: fn(&Line) -> bool| {
        let came = arrivals.iter().any(|arrival| is(&arrival.line));
        matches!(expected, Expected::Leave(_, line) if is(line)) && !came
    };
    let count = |is: &dyn Fn(&Expected) -> bool| step.expected.iter().filter(|(_, e)| is(e)).count() as u64;
    [
        count(&|expected| matches!(expected, Expected::Punt)),
        count(&|expected| leaving(expected, is_echo_reply)),
        count(&|expected| leaving(expected, is_error)),
    ]
}

/// Takes out the first that `is`.
fn take(left: &mut [Option<Seen>], mut is: impl FnMut(&Seen) -> bool) -> bool {
    let found = left.iter_mut().find(|seen| seen.as_ref().is_some_and(&mut is));
    found.and_then(Option::take).is_some()
}

/// On the host port, between the right stations, and else byte for byte as it came.
fn is_punted((port, frame): &Seen, arrived: &[u8]) -> bool {
    let stations = [KERNEL, Port::Host.mac()].concat();
    *port == Port::Host
        && frame.len() == arrived.len()
        && frame[..12] == stations
        && frame[12..] == arrived[12..]
}

#[test]
fn whatever_is_not_expected_fails_a_vector_and_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let routed = "pods > udp 10.244.0.20:1 > 172.18.0.7:2 \"x\"";
    for (steps, told) in [
        (
            format!("{routed}\nnothing"),
            "line 3:\n  got client < udp 10.244.0.20:1 > 172.18.0.7:2 \"x\"",
        ),
        (
            format!("{routed}\nclient < udp 10.244.0.20:1 > 172.18.0.7:2"),
            "line 4: expected client < udp",
        ),
        (
            format!("{routed}\nclient < udp 10.244.0.20:1 > 172.18.0.7:2 ttl 62 \"x\""),
            "line 4: expected client < udp",
        ),
        (
            format!("{routed}\npods < udp 10.244.0.20:1 > 172.18.0.7:2 \"x\""),
            "line 4: expected pods < udp",
        ),
        (
            format!("{routed}\nclient < x2 udp 10.244.0.20:1 > 172.18.0.7:2 \"x\""),
            "line 4: expected client < udp",
        ),
        (
            format!("{routed}\nclient < udp 10.244.0.20:$P > 172.18.0.7:2 \"x\"\n$P in {{2-9}}"),
            "but it is 1",
        ),
        (
            format!("{routed}\npunt"),
            "punted should have become 1 more, not 0",
        ),
        (
            format!("{routed} badsum l3\nnothing"),
            "got drop x1 bad-ip-checksum",
        ),
        (
            format!("{routed} badsum l3\ndrop no-route"),
            "line 4: expected drop no-route",
        ),
        (
            format!("{routed} badsum l3\ndrop nonsense"),
            "line 4: there is no drop reason nonsense",
        ),
        (
            "pods > udp $X > 172.18.0.7:2\nnothing".to_owned(),
            "line 3: $X has no value here",
        ),
        (
            "client > tcp 1.2.3.4:5 > 172.18.0.2:22 S\nnothing".to_owned(),
            "got host < tcp 1.2.3.4:5",
        ),
    ] {
        std::fs::write(
            folder.path().join("vector.txt"),
            format!("# What must happen.\n# RFC 791\n{steps}\n"),
        )
        .unwrap();
        let vector = Vector::load(folder.path()).unwrap_or_else(|mistake| panic!("{mistake}"));
        for way in [Way::Single, Way::Burst, Way::Two, Way::Four, Way::Adopted] {
            let failure = Run::new(&vector, way, 1).and_then(Run::hold).unwrap_err();
            assert!(failure.contains(told), "{steps}\nin {way:?} is told\n{failure}");
        }
    }
}
