//! Takes  a burst of frames from one NIC port.     Gives  each packet's decision, carried out.
//! Never  reorders packets of one family; never waits for a cache line that it could have asked for earlier.
//!
//! Three waves over the burst, so that what one packet waits for comes in while others are worked on: prove the packets
//! and ask for their buckets; ask for the entries that those name; follow the flows. A plain packet of a known flow (nearly
//! every one) goes through all three without a function call; `consider` judges the others one by one.

use arrayvec::ArrayVec;

use super::{Served, Shared, Worker};
use crate::addr::{V4, V6};
use crate::conntrack::{Guess, Hash, OpenError};
use crate::counters::CounterId;
use crate::fragments::Transport;
use crate::icmp_error;
use crate::index::NicPortIndex;
use crate::lookup::{self, Counted, Decision, Lookup};
use crate::nic::{BURST, Burst, Frame};
use crate::open::{self, Prepared};
use crate::parse::{self, Fragment, Packet, Parsed};
use crate::tick::Tick;
use crate::verdict::{DropReason, Verdict};

/// What the waves found out, by place in the burst.
struct Waves {
    parsed: [Parsed; BURST],
    /// Of plain packets.
    guesses: [Guess; BURST],
    /// Some packet is a fragment.
    fragments: bool,
}

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
            guesses: [Guess::ABSENT; BURST],
            fragments: false,
        };
        self.ask(shared, port, frames, &mut waves);
        self.doubt(shared, port, frames, &waves.parsed, tick);
        if waves.fragments {
            self.gather(shared, port, frames, &mut waves.parsed, gathered, tick);
        }
        let mut at = 0;
        while !frames.is_empty() {
            // Runs of one family, whose loop then holds nothing of the other's.
            let run = match &waves.parsed[at] {
                Parsed::Ipv4(_) => self.follow::<V4>(shared, port, frames, &waves, at, tick),
                Parsed::Ipv6(_) => self.follow::<V6>(shared, port, frames, &waves, at, tick),
                _ => 0,
            };
            at += run;
            if run == 0
                && let Some(frame) = frames.drain(..1).next()
            {
                let verdict = match waves.parsed[at] {
                    Parsed::Settled(verdict) => verdict,
                    Parsed::Other(reason) => lookup::host_or(&shared.network, reason),
                    Parsed::Drop(reason) => Verdict::Drop(reason),
                    _ => Verdict::Neighbour,
                };
                self.settle(shared, port, frame, verdict);
                at += 1;
            }
        }
    }

    /// The first two waves.
    fn ask(&self, shared: &Shared, port: NicPortIndex, frames: &Burst, waves: &mut Waves) {
        // Of the network, not of our queue: what another worker handed over may come from a NIC port we have none of.
        let mac = shared.network.interfaces()[port.get()].mac;
        let from_host = shared.network.host() == Some(port);
        let (v4, v6) = (&self.sides.v4.tracked.flows, &self.sides.v6.tracked.flows);
        let mut hashes = [Hash::default(); BURST];
        let mut plain = 0u64;
        const { assert!(BURST <= 64) };
        for (i, ((frame, parsed), hash)) in frames.iter().zip(&mut waves.parsed).zip(&mut hashes).enumerate()
        {
            let is_plain = parse::parse_into(parsed, self.memory.bytes(frame), mac);
            let ours = match parsed {
                Parsed::Ipv4(packet) if is_plain => {
                    *hash = v4.ask(&packet.key);
                    shared.network.is_own(packet.key.src)
                }
                Parsed::Ipv6(packet) if is_plain => {
                    *hash = v6.ask(&packet.key);
                    shared.network.is_own(packet.key.src)
                }
                _ => self.uncommon(shared, parsed, &mut waves.fragments),
            };
            plain |= u64::from(is_plain) << i;
            if ours && !from_host {
                // Only the host speaks with our addresses; from a link they are forged (RFC 1812 §5.3.8), and would be
                // treated as the node is: exempt from the limit of refusals, served past external traffic policies (TP-4).
                *parsed = Parsed::Drop(DropReason::BadSource);
            }
        }
        let hashes = &hashes[..frames.len()];
        for (i, ((guess, &hash), parsed)) in waves
            .guesses
            .iter_mut()
            .zip(hashes)
            .zip(&waves.parsed)
            .enumerate()
        {
            *guess = match parsed {
                _ if plain >> i & 1 == 0 => Guess::ABSENT,
                Parsed::Ipv4(_) => v4.guess(hash),
                Parsed::Ipv6(_) => v6.guess(hash),
                _ => Guess::ABSENT,
            };
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

    /// The third wave, of the packets of one family from `at` on; how many.
    #[inline(never)]
    fn follow<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frames: &mut Burst,
        waves: &Waves,
        at: usize,
        tick: Tick,
    ) -> usize {
        let end = (at + frames.len()).min(BURST);
        let (parsed, guesses) = (&waves.parsed[at..end], &waves.guesses[at..end]);
        let run = parsed
            .iter()
            .take_while(|parsed| A::packet(parsed).is_some())
            .count();
        // Packets of no known flow, of which many may wait for the flow table together. Whatever else is not simply followed
        // goes after those before it; packets of other flows may overtake them.
        let mut late = ArrayVec::<(Frame, &Packet<A>), BURST>::new_const();
        for ((frame, parsed), &guess) in frames.drain(..run).zip(parsed).zip(guesses) {
            let Some(packet) = A::packet(parsed) else { break };
            let flows = &mut A::own(&mut self.sides).tracked.flows;
            let flow = match flows.confirm(guess, &packet.key) {
                None if !guess.is_absent() => flows.find(&packet.key),
                flow => flow,
            };
            if let Some((index, direction)) = flow
                && let Ok(way) = lookup::step(flows, &self.tables, packet, index, direction, tick)
            {
                self.forward_plain(shared, port, frame, packet, way, tick);
            } else if flow.is_none() && packet.is_plain() {
                late.push((frame, packet));
            } else {
                self.open(shared, port, &mut late, tick);
                self.consider(shared, port, frame, packet, tick);
            }
        }
        self.open(shared, port, &mut late, tick);
        run
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
        for (frame, packet) in late.drain(..) {
            let prepared = self.with_lookup(shared, tick, |lookup| lookup.prepare_only(packet));
            if let Some(prepared) = prepared {
                pending.push((frame, packet, prepared));
            } else {
                self.commit(shared, port, &mut pending, tick);
                self.consider(shared, port, frame, packet, tick);
            }
        }
        self.commit(shared, port, &mut pending, tick);
    }

    fn commit<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        pending: &mut ArrayVec<(Frame, &Packet<A>, Prepared<A>), BURST>,
        tick: Tick,
    ) {
        for (frame, packet, prepared) in pending.drain(..) {
            match self.with_lookup(shared, tick, |lookup| lookup.commit(&prepared)) {
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
