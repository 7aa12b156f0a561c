//! The workers and the model side by side: one step for both, and how they differ.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};

use sluice_dataplane::counters::CounterId;

use super::bytes::{Ends, LINK, Packet, Read, SCTP, TCP, UDP, number, read, read_ip};
use super::gateway::{Fate, Gateway, Observed};
use super::step::Step;
use super::surroundings::Surroundings;
use crate::support::packet::{Side, dissect};
use crate::support::records::Records;
use crate::support::station::Port;
use crate::support::world::{Seen, World};
use sluice_dataplane::verdict::DropReason;

/// What kind of packet was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    family: &'static str,
    protocol: &'static str,
    /// Whole, in fragments, an error that quotes one.
    shape: &'static str,
    workers: usize,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            protocol,
            shape,
            workers,
        } = self;
        write!(f, "{family:7} {protocol:6} {shape:9} {workers} workers")
    }
}

impl Kind {
    fn of(frame: &[u8], port: Port, workers: usize) -> Self {
        let kind = |family, protocol, shape| Self {
            family,
            protocol,
            shape,
            workers,
        };
        let Read::Packet(packet) = read(frame, port.mac()) else {
            return kind("neither", "broken", "");
        };
        let quoted = packet.quoted();
        let protocol = match quoted.as_ref().unwrap_or(&packet).protocol {
            TCP => "tcp",
            UDP => "udp",
            SCTP => "sctp",
            _ if packet.is_icmp() => "icmp",
            _ => "other",
        };
        let shape = match quoted {
            Some(_) => "in error",
            None if packet.piece.is_whole() => "whole",
            None => "fragment",
        };
        kind(if packet.is_ipv6() { "ipv6" } else { "ipv4" }, protocol, shape)
    }
}

/// So much time passes at once: whatever can end has ended.
const A_DAY: u32 = 86_400;

/// What became of a packet that was compared.
pub type Compared = (Kind, &'static str);

pub struct Pair {
    pub gateway: Gateway,
    world: World,
    records: Records,
    in_order: bool,
}

impl Pair {
    pub fn new(surroundings: &Surroundings, seed: u64) -> Self {
        let mut world = World::new(&surroundings.setup(), surroundings.workers as u8, seed);
        let mut records = Records::default();
        // Control has spoken, however little it says.
        let spoken = records.transaction("put settings").unwrap();
        world.apply(&spoken).unwrap();
        let in_order = surroundings.workers == 1;
        Self {
            gateway: Gateway::new(surroundings.clone()),
            world,
            records,
            in_order,
        }
    }

    /// One step for both. The fates of its packets; errors: how they differ.
    pub fn step(&mut self, step: &Step) -> Result<Vec<Compared>, String> {
        let fates = self.both(step)?;
        for remnant in std::mem::take(&mut self.gateway.perhaps) {
            if self.world.count(CounterId::FLOWS_USED) > self.gateway.flows.len() as u64 {
                self.gateway.flows.push(remnant);
            }
        }
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

    fn both(&mut self, step: &Step) -> Result<Vec<Compared>, String> {
        match step {
            Step::Frames(port, queue, frames) => self.frames(*port, *queue, frames),
            Step::Wait(seconds) => {
                let before = self.world.drops();
                if *seconds < A_DAY {
                    self.world.wait(*seconds);
                } else {
                    self.world.leap(*seconds);
                }
                let dropped = self.dropped_since(before);
                let dropping = self.gateway.wait((*seconds).into());
                if dropping == dropped {
                    return Ok(Vec::new());
                }
                Err(tell("the model", &[], &dropping) + &tell("the workers", &[], &dropped))
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

    fn dropped_since(&self, before: Vec<(DropReason, u64)>) -> Vec<&'static str> {
        let both = before.into_iter().zip(self.world.drops());
        both.flat_map(|((reason, before), (_, after))| (before..after).map(move |_| reason.name()))
            .collect()
    }

    fn frames(&mut self, port: Port, queue: usize, frames: &[Vec<u8>]) -> Result<Vec<Compared>, String> {
        let before = self.world.drops();
        for frame in frames {
            self.world.send(queue, port, frame);
        }
        self.world.settle();
        let mut left = self.world.left();
        let mut dropped = self.dropped_since(before);
        let mut told = Vec::new();
        let (mut leaving, mut dropping) = (Vec::new(), Vec::new());
        let mut unexplained = dropped.clone();
        let mut flows = BTreeMap::new();
        let mut arriving: VecDeque<&Vec<u8>> = frames.iter().collect();
        loop {
            // What waited for a fragment goes on once all of the burst has.
            let (frame, fate) = if let Some(frame) = arriving.pop_front() {
                let observed = observed(frame, &left, &unexplained);
                (frame.clone(), self.gateway.frame(port, frame, &observed))
            } else if let Some((port, packet)) = self.gateway.released() {
                let observed = observed(&packet.frame, &left, &unexplained);
                let fate = self.gateway.packet(port, &packet, &observed);
                (packet.frame, fate)
            } else {
                break;
            };
            let fate = match fate {
                Ok(Fate::Leaves(what, port, frame)) => {
                    leaving.push((port, frame));
                    what
                }
                Ok(Fate::Dropped(reason)) => {
                    dropping.push(reason);
                    unexplained
                        .iter()
                        .position(|other| *other == reason)
                        .map(|at| unexplained.remove(at));
                    reason
                }
                // It is told when it goes on.
                Ok(Fate::Waits) => continue,
                Err(wrong) => return Err(format!("{wrong}\n{}", tell("the workers", &left, &dropped))),
            };
            if let (Some(number), Some(ends)) = (numbered(&frame), ends(&frame)) {
                flows.insert(number, ends);
            }
            told.push((Kind::of(&frame, port, self.gateway.surroundings.workers), fate));
        }
        // Of one flow in the order of arrival, where one worker does it all.
        let flow = |(port, frame): &Seen| (*port, numbered(frame).and_then(|number| flows.get(&number)));
        leaving.sort_by_key(flow);
        left.sort_by_key(flow);
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

/// What of all that left is this frame's: packets are numbered, and answers quote the number.
fn observed(frame: &[u8], left: &[Seen], dropped: &[&'static str]) -> Observed {
    let number_of = |frame: &[u8]| frame.get(LINK..).and_then(number);
    // Where it went it would be read.
    let as_packet = |(_, seen): &Seen| match read(seen, seen.first_chunk().copied().unwrap_or_default()) {
        Read::Packet(packet) => Some(packet),
        Read::Host(_) | Read::Broken(_) => None,
    };
    let quotes = |packet: &Packet| {
        let is_answer = matches!(
            (packet.is_ipv6(), packet.icmp_type),
            (false, 3 | 11) | (true, 1 | 3)
        );
        let quote = packet.frame.get(packet.l4 + 8..).and_then(number);
        packet.is_icmp() && is_answer && quote.is_some() && quote == number_of(frame)
    };
    let of_frame = |(_, seen): &&Seen| number_of(seen).is_some() && number_of(seen) == number_of(frame);
    Observed {
        left: left.iter().find(of_frame).and_then(as_packet),
        answered: left.iter().filter_map(as_packet).any(|packet| quotes(&packet)),
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

/// The ends that a frame arrived with: packets that open a flow may be overtaken by other flows', never by their own.
fn ends(frame: &[u8]) -> Option<(Ends, u8)> {
    frame.get(LINK..)?;
    let mut packet = read_ip(frame, false).ok()?;
    // A fragment without ports has none.
    let _ = packet.read_transport();
    Some((packet.ends, packet.protocol))
}

/// The number that a frame arrived with; of our answers, which have none, that of what they quote.
fn numbered(frame: &[u8]) -> Option<(u16, u16)> {
    match number(frame.get(LINK..)?)? {
        (0, _) => number(frame.get(read_ip(frame, false).ok()?.l4 + 8..)?),
        number => Some(number),
    }
}
