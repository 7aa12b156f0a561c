//! The workers and the model side by side: one step for both, and how they differ.

use std::fmt::Write;

use sluice_dataplane::counters::CounterId;

use super::bytes::{ICMP, LINK, Read, read, word};
use super::gateway::{Fate, Gateway, Observed};
use super::step::Step;
use super::surroundings::Surroundings;
use crate::support::packet::{Side, dissect};
use crate::support::records::Records;
use crate::support::station::Port;
use crate::support::world::{Seen, World};

pub struct Pair {
    pub gateway: Gateway,
    world: World,
    records: Records,
    in_order: bool,
}

impl Pair {
    pub fn new(surroundings: &Surroundings, seed: u64) -> Self {
        let world = World::new(&surroundings.setup(), surroundings.workers as u8, seed);
        let in_order = surroundings.workers == 1;
        Self {
            gateway: Gateway::new(surroundings.clone()),
            world,
            records: Records::default(),
            in_order,
        }
    }

    /// One step for both. The fates of its packets; errors: how they differ.
    pub fn step(&mut self, step: &Step) -> Result<Vec<&'static str>, String> {
        let fates = self.both(step)?;
        let live = &self.gateway.flows;
        for (what, id, wanted) in [
            ("flows", CounterId::FLOWS_USED, live.len()),
            // What is taken is given back with its flow, and once.
            (
                "source ports",
                CounterId::SNAT_PORTS_USED,
                live.iter().filter(|flow| flow.snat).count(),
            ),
        ] {
            let counted = self.world.count(id);
            if counted != wanted as u64 {
                return Err(format!("{counted} {what} are in use; the model has {wanted}"));
            }
        }
        Ok(fates)
    }

    fn both(&mut self, step: &Step) -> Result<Vec<&'static str>, String> {
        match step {
            Step::Frames(port, queue, frames) => self.frames(*port, *queue, frames),
            Step::Wait(seconds) => {
                self.world.wait(*seconds);
                self.gateway.wait((*seconds).into());
                Ok(Vec::new())
            }
            Step::Change(change) => {
                if change.fits(&self.gateway.tables) {
                    let changes = self.records.transaction(&change.to_string())?;
                    self.world.apply(&changes)?;
                    change.apply(&mut self.gateway.tables);
                }
                Ok(Vec::new())
            }
        }
    }

    fn frames(&mut self, port: Port, queue: usize, frames: &[Vec<u8>]) -> Result<Vec<&'static str>, String> {
        let before = self.world.drops();
        for frame in frames {
            self.world.send(queue, port, frame);
        }
        self.world.settle();
        let mut left = self.world.left();
        let mut dropped = Vec::new();
        for ((reason, before), (_, after)) in before.into_iter().zip(self.world.drops()) {
            dropped.extend((before..after).map(|_| reason.name()));
        }
        let mut told = Vec::new();
        let (mut leaving, mut dropping) = (Vec::new(), Vec::new());
        let mut unexplained = dropped.clone();
        for frame in frames {
            let observed = observed(frame, &left, &unexplained);
            match self.gateway.frame(port, frame, &observed) {
                Ok(Fate::Leaves(port, frame)) => {
                    leaving.push((port, frame));
                    told.push("leaves");
                }
                Ok(Fate::Dropped(reason)) => {
                    dropping.push(reason);
                    unexplained
                        .iter()
                        .position(|other| *other == reason)
                        .map(|at| unexplained.remove(at));
                    told.push(reason);
                }
                Err(wrong) => return Err(format!("{wrong}\n{}", tell("the workers", &left, &dropped))),
            }
        }
        // Of one NIC port in the order of arrival, where one worker does it all.
        leaving.sort_by_key(|(port, _)| *port);
        left.sort_by_key(|(port, _)| *port);
        if !self.in_order {
            leaving.sort();
            left.sort();
        }
        dropping.sort_unstable();
        dropped.sort_unstable();
        if (&leaving, &dropping) == (&left, &dropped) {
            return Ok(told);
        }
        Err(tell("the model", &leaving, &dropping) + &tell("the workers", &left, &dropped))
    }
}

/// What of all that left is this frame's: packets are numbered by their identification, answers quote it.
fn observed(frame: &[u8], left: &[Seen], dropped: &[&'static str]) -> Observed {
    let number = |at: usize, bytes: &[u8]| (bytes.len() >= at + 6).then(|| word(bytes, at + 4));
    let of_frame =
        |(_, seen): &&Seen| number(LINK, seen).is_some() && number(LINK, seen) == number(LINK, frame);
    let quotes = |(_, seen): &Seen| {
        let is_error = seen.len() > LINK + 28 && seen[LINK + 9] == ICMP && matches!(seen[LINK + 20], 3 | 11);
        is_error && number(LINK + 28, seen) == number(LINK, frame)
    };
    // Where it went it would be read.
    let as_packet = |(_, seen): &Seen| match read(seen, seen.first_chunk().copied().unwrap_or_default()) {
        Read::Packet(packet) => Some(packet),
        Read::Host(_) | Read::Broken(_) => None,
    };
    let answered = left.iter().any(quotes);
    Observed {
        left: left.iter().find(of_frame).and_then(as_packet),
        answered,
        dropped: dropped.to_vec(),
    }
}

fn tell(who: &str, left: &[Seen], dropped: &[&'static str]) -> String {
    let mut text = format!("{who}:\n");
    for (port, frame) in left {
        let bytes: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let _ = writeln!(
            text,
            "  {port} < {}   # {bytes}",
            dissect(frame, *port, Side::Out)
        );
    }
    for reason in dropped {
        let _ = writeln!(text, "  drop {reason}");
    }
    text
}
