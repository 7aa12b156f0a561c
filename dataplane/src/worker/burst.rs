//! Takes  a burst of frames from one NIC port.     Gives  each packet's decision, carried out.
//! Never  lets a packet overtake another of its flow; never waits for a cache line that it could have asked for earlier.
//!
//! Three waves over the burst, behind one that asks for the headers, so that what one packet waits for comes in while others
//! are worked on: prove the packets and ask for their buckets; ask for the entries that those name; follow the flows. A plain packet of a known
//! flow, nearly every one, goes through all of them without a function call. Those of no flow are opened together (`open`);
//! `consider` judges the others one by one.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::carry_out::Egress;
use super::{Served, Shared, Worker};
use crate::addr::{V4, V6};
use crate::conntrack::{Guess, Hash, OpenError};
use crate::counters::CounterId;
use crate::fragments::Transport;
use crate::icmp_error;
use crate::index::NicPortIndex;
use crate::lookup::{self, Counted, Decision, Lookup, Way};
use crate::nic::{BURST, Burst, Frame};
use crate::open::{self, Prepared};
use crate::parse::{self, Fragment, Packet, Parsed};
use crate::tick::Tick;
use crate::verdict::{DropReason, Verdict};

/// Packets that a wave takes at a time: prefetches for so many do not have to wait for each other, and what one wave does to
/// them takes as long as what the wave before asked for needs to come in.
const PART: usize = 16;

/// What is left of a burst.
type Frames = arrayvec::IntoIter<Frame, BURST>;

/// What the waves found out, by place in the burst.
struct Waves {
    parsed: [Parsed; BURST],
    hashes: [Hash; BURST],
    guesses: [Guess; BURST],
    /// Whose headers are at fixed places, a bit each, of IPv4 and of IPv6.
    plain: [u64; 2],
}

const _: () = assert!(BURST <= 64, "a bit for each");

impl Worker {
    /// Decides on a burst from one NIC port and carries the decisions out. `gathered`: of a single fragment whose
    /// datagram's first fragment another worker, or we, have seen.
    pub(super) fn burst(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &mut Burst,
        gathered: Option<Transport>,
        tick: Tick,
    ) {
        let mut waves = Waves {
            parsed: [Parsed::Neighbour; BURST],
            hashes: [Hash::default(); BURST],
            guesses: [Guess::ABSENT; BURST],
            plain: [0; 2],
        };
        let mut frames = std::mem::take(frames).into_iter();
        let all = frames.len();
        // The waves follow each other a part of the burst apart: long enough for what they asked for to come in, and few
        // enough lines under way for the core to keep count of.
        for front in (0..all + 3 * PART).step_by(PART) {
            let part = |behind: usize| {
                let start = front.checked_sub(behind * PART)?;
                (start < all).then(|| start..(start + PART).min(all))
            };
            let gone = all - frames.len();
            if let Some(part) = part(0) {
                // Headers were written by a device or another core.
                for frame in &frames.as_slice()[part.start - gone..part.end - gone] {
                    self.memory.prefetch(frame);
                }
            }
            if let Some(part) = part(1) {
                let coming = &frames.as_slice()[part.start - gone..part.end - gone];
                let fragments = self.ask(shared, port, coming, &mut waves, part.clone());
                if part.start == 0 {
                    self.doubt(shared, port, coming, &waves.parsed, tick);
                }
                if fragments {
                    self.gather(shared, port, coming, &mut waves.parsed[part], gathered, tick);
                }
            }
            if let Some(part) = part(2) {
                self.guess(&mut waves, part);
            }
            if let Some(part) = part(3) {
                self.follow_all(shared, port, &mut frames, &waves, part, tick);
            }
        }
    }

    /// The first wave, of the packets that are in `part` of the burst; whether there is a fragment among them.
    fn ask(
        &self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &[Frame],
        waves: &mut Waves,
        part: Range<usize>,
    ) -> bool {
        // Of the network, not of our queue: what another worker handed over may come from a NIC port we have none of.
        let mac = shared.network.interfaces()[port.get()].mac;
        let from_host = shared.network.host() == Some(port);
        let (v4, v6) = (&self.sides.v4.tracked.flows, &self.sides.v6.tracked.flows);
        let (mut fragments, mut plain) = (false, [0; 2]);
        let places = waves.parsed[part.clone()]
            .iter_mut()
            .zip(&mut waves.hashes[part.clone()]);
        for ((at, frame), (parsed, hash)) in part.zip(frames).zip(places) {
            let is_plain = parse::parse_into(parsed, self.memory.bytes(frame), mac);
            let ours = match parsed {
                Parsed::Ipv4(packet) if is_plain => {
                    *hash = v4.ask(&packet.key);
                    plain[0] |= 1 << at;
                    shared.network.is_own(packet.key.src)
                }
                Parsed::Ipv6(packet) if is_plain => {
                    *hash = v6.ask(&packet.key);
                    plain[1] |= 1 << at;
                    shared.network.is_own(packet.key.src)
                }
                _ => self.uncommon(shared, parsed, &mut fragments),
            };
            if ours && !from_host {
                // Only the host speaks with our addresses; from a link they are forged (RFC 1812 §5.3.8), and would be
                // treated as the node is: exempt from the limit of refusals, served past external traffic policies (TP-4).
                *parsed = Parsed::Drop(DropReason::BadSource);
            }
        }
        waves.plain[0] |= plain[0];
        waves.plain[1] |= plain[1];
        fragments
    }

    /// The second wave.
    fn guess(&self, waves: &mut Waves, part: Range<usize>) {
        let (v4, v6) = (&self.sides.v4.tracked.flows, &self.sides.v6.tracked.flows);
        let all = u64::MAX >> (64 - part.len()) << part.start;
        let [plain_v4, plain_v6] = waves.plain;
        let places = waves.guesses[part.clone()]
            .iter_mut()
            .zip(&waves.hashes[part.clone()]);
        // Nearly always of one family, and then without a question for each.
        if plain_v4 & all == all {
            places.for_each(|(guess, &hash)| *guess = v4.guess(hash));
        } else if plain_v6 & all == all {
            places.for_each(|(guess, &hash)| *guess = v6.guess(hash));
        } else {
            for (at, (guess, &hash)) in part.zip(places) {
                if plain_v4 >> at & 1 != 0 {
                    *guess = v4.guess(hash);
                } else if plain_v6 >> at & 1 != 0 {
                    *guess = v6.guess(hash);
                }
            }
        }
    }

    /// The third wave.
    fn follow_all(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &mut Frames,
        waves: &Waves,
        mut part: Range<usize>,
        tick: Tick,
    ) {
        while !part.is_empty() {
            // Runs of one family, whose loop then holds nothing of the other's.
            let done = match waves.parsed[part.start] {
                Parsed::Ipv4(_) => self.follow::<V4>(shared, port, frames, waves, part.clone(), tick),
                Parsed::Ipv6(_) => self.follow::<V6>(shared, port, frames, waves, part.clone(), tick),
                other => {
                    let verdict = match other {
                        Parsed::Settled(verdict) => verdict,
                        Parsed::Other(reason) => lookup::host_or(&shared.network, reason),
                        Parsed::Drop(reason) => Verdict::Drop(reason),
                        _ => Verdict::Neighbour,
                    };
                    if let Some(frame) = frames.next() {
                        self.settle(shared, port, frame, verdict);
                    }
                    1
                }
            };
            // Never none: a run begins with a packet of its family.
            part.start += done.max(1);
        }
    }

    /// What the first wave wants to know of a packet that is not plain: whether it claims to be from us.
    #[inline(never)]
    fn uncommon(&self, shared: &Shared, parsed: &mut Parsed, fragments: &mut bool) -> bool {
        let (ours, vlan, fragment) = match parsed {
            Parsed::Ipv4(packet) => (
                shared.network.is_own(packet.key.src),
                packet.vlan,
                packet.fragment,
            ),
            Parsed::Ipv6(packet) => (
                shared.network.is_own(packet.key.src),
                packet.vlan,
                packet.fragment,
            ),
            _ => return false,
        };
        if vlan != 0 {
            *parsed = Parsed::Other(DropReason::UnknownEtherType); // of a VLAN that no NIC port has
            return false;
        }
        *fragments |= fragment != Fragment::Whole;
        ours
    }

    /// The third wave, of the packets of one family that a part begins with; how many.
    #[inline(never)]
    fn follow<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &mut Frames,
        waves: &Waves,
        part: Range<usize>,
        tick: Tick,
    ) -> usize {
        let (start, plain) = (part.start, waves.plain[0] | waves.plain[1]);
        let (parsed, guesses) = (&waves.parsed[part.clone()], &waves.guesses[part]);
        let mut run = 0;
        // Packets of no known flow, of which many may wait for the flow table together. Whatever else is not simply followed
        // goes after those before it; packets of other flows may overtake them.
        let mut late = ArrayVec::<(Frame, &Packet<A>), BURST>::new_const();
        for (parsed, &guess) in parsed.iter().zip(guesses) {
            let Some(packet) = A::packet(parsed) else { break };
            let Some(frame) = frames.next() else { break };
            run += 1;
            let flows = &mut A::own(&mut self.sides).tracked.flows;
            if let Some((flow, direction)) = flows.confirm(guess, &packet.key)
                && flow.is_steady(direction, packet.signals, self.tables.losses())
                && packet.ttl > 1
                && let Some(egress) = Egress::open(shared, &mut self.ports, flow.next_hop(direction), &frame)
            {
                egress.send(&self.memory, frame, packet, &flow.rewrite(direction));
                flow.refresh(tick);
                self.forwarded += 1;
            } else {
                let guess = (plain >> (start + run - 1) & 1 != 0).then_some(guess);
                self.follow_slowly(shared, port, (frame, packet), guess, &mut late, tick);
            }
        }
        self.open(shared, port, &mut late, tick);
        run
    }

    /// `follow`, of a packet that is to do more than to pass. Without a guess nobody has looked for its flow.
    #[inline(never)]
    fn follow_slowly<'p, A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        (frame, packet): (Frame, &'p Packet<A>),
        guess: Option<Guess>,
        late: &mut ArrayVec<(Frame, &'p Packet<A>), BURST>,
        tick: Tick,
    ) {
        let flows = &mut A::own(&mut self.sides).tracked.flows;
        let flow = guess.and_then(|guess| flows.find_guessed(guess, &packet.key));
        if let Some((index, direction)) = flow
            && let Ok(way) = lookup::step(flows, &self.tables, packet, index, direction, tick)
        {
            self.forward_plain(shared, port, frame, packet, way, tick);
        } else if flow.is_none() && guess.is_some() {
            late.push((frame, packet));
        } else {
            self.open(shared, port, late, tick);
            self.consider(shared, port, frame, packet, tick);
        }
    }

    /// Plain packets that probably open flows, in order: prepared together, so that they wait for the flow table together.
    fn open<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        late: &mut ArrayVec<(Frame, &Packet<A>), BURST>,
        tick: Tick,
    ) {
        if late.is_empty() {
            return;
        }
        for (_, Packet { key, .. }) in &*late {
            self.tables.prefetch(key.dst, key.protocol, key.dst_port);
        }
        let mut pending = ArrayVec::<(Frame, &Packet<A>, Prepared<A>), BURST>::new_const();
        let mut late = late.drain(..);
        loop {
            let other = self.with_lookup(shared, tick, |lookup| {
                for (frame, packet) in &mut late {
                    match lookup.prepare_only(packet) {
                        Some(prepared) => pending.push((frame, packet, prepared)),
                        None => return Some((frame, packet)),
                    }
                }
                None
            });
            self.commit(shared, port, &mut pending, tick);
            let Some((frame, packet)) = other else { break };
            self.consider(shared, port, frame, packet, tick);
        }
    }

    fn commit<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        pending: &mut ArrayVec<(Frame, &Packet<A>, Prepared<A>), BURST>,
        tick: Tick,
    ) {
        let mut ways = ArrayVec::<Result<Way<A>, OpenError>, BURST>::new_const();
        self.with_lookup(shared, tick, |lookup| {
            ways.extend(pending.iter().map(|(_, _, prepared)| lookup.commit(prepared)));
        });
        for ((frame, packet, _), way) in pending.drain(..).zip(ways) {
            match way {
                Ok(way) => self.forward_plain(shared, port, frame, packet, way, tick),
                // Another packet of this burst has opened it.
                Err(OpenError::OriginalTaken) => self.consider(shared, port, frame, packet, tick),
                Err(error) => {
                    let decision = Decision::plain(open::refusal(error));
                    self.carry_out(shared, port, frame, packet, &decision, tick);
                }
            }
        }
    }

    /// Decides on one packet, whatever it is, and carries the decision out.
    #[inline(never)]
    pub(super) fn consider<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: Frame,
        packet: &Packet<A>,
        tick: Tick,
    ) {
        let quoted = packet
            .is_icmp_error()
            .then(|| icmp_error::quoted(self.memory.bytes(&frame), packet))
            .flatten()
            .map(|quoted| quoted.key);
        let decision = self.with_lookup(shared, tick, |lookup| lookup.packet(packet, quoted));
        self.carry_out(shared, port, frame, packet, &decision, tick);
    }

    /// Asks something of `Lookup`, and counts what it did.
    #[inline(always)]
    fn with_lookup<A: Served, R>(
        &mut self,
        shared: &Shared,
        tick: Tick,
        ask: impl FnOnce(&mut Lookup<'_, A>) -> R,
    ) -> R {
        let mut lookup = Lookup {
            tables: &self.tables,
            network: &shared.network,
            steering: &shared.steering,
            affinity: &shared.affinity,
            worker: self.index,
            tracked: &mut A::own(&mut self.sides).tracked,
            picker: &mut self.picker,
            options: shared.options,
            counted: Counted::default(),
            replaced: None,
            tick,
        };
        let answer = ask(&mut lookup);
        let Counted {
            opened,
            evicted,
            affinity_evicted,
        } = lookup.counted;
        self.counters.add(CounterId::FLOWS_OPENED, opened);
        self.counters.add(CounterId::FLOWS_EVICTED, evicted);
        self.counters.add(CounterId::AFFINITY_EVICTED, affinity_evicted);
        answer
    }
}
