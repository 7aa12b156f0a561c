//! Takes  packets with their flow keys.     Gives  a decision each: a verdict, and the rewrite of its flow if it has one.
//! Drops  for every reason that is a rule: policies, pools and tables that are full, what may not open a flow.
//! Never  touches a packet's bytes or a counter; reads no clock.
//! Next   `nat`.
//!
//! A packet of a known flow follows its flow whatever the tables now say (VD-7), unless its endpoint is gone (CT-2 to
//! CT-9); an ICMP error follows the flow of the packet it quotes (ICM-1). Any other packet may open a flow (`open`), or is
//! routed, punted or refused.

use crate::addr::{Address, FlowKey, V4, V6};
use crate::affinity::Affinity;
use crate::channel::record::Algorithm;
use crate::conntrack::ports::{Destination, PortPool};
use crate::conntrack::{Direction, Flow, FlowFlags, Flows, Touched};
use crate::fragments::Fragmented;
use crate::index::{FlowIndex, NextHopIndex, ServicePortIndex, WorkerIndex};
use crate::nat::Rewrite;
use crate::network::{Hop, Network};
use crate::next_hop::Recent;
use crate::open::Prepared;
use crate::parse::{Packet, Parsed};
use crate::steering::Steering;
use crate::tables::{Frontend, Keyed, Picker, Tables};
use crate::tick::Tick;
use crate::verdict::{DropReason, Rejection, Verdict};

mod remnant;
mod step;
mod unserved;

use step::onward;
pub use step::{Stop, Way, step};
pub use unserved::host_or;

/// What is to be done with one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<A: Address = V4> {
    /// Its fate.
    pub verdict: Verdict,
    /// What its flow does to it, or to what it quotes; `None` for packets of no flow.
    pub rewrite: Option<Rewrite<A>>,
}

impl<A: Address> Decision<A> {
    /// Without a flow.
    pub const fn plain(verdict: Verdict) -> Self {
        Self {
            verdict,
            rewrite: None,
        }
    }
}

impl<A: Address> From<Way<A>> for Decision<A> {
    fn from(way: Way<A>) -> Self {
        Self {
            verdict: Verdict::Forward(way.next_hop),
            rewrite: Some(way.rewrite),
        }
    }
}

/// Switches of the packet path.
#[derive(Clone, Copy, Debug)]
pub struct LookupOptions {
    /// CT-15: a packet that begins no connection opens a flow mid-stream, as Linux does; else it is dropped.
    pub midstream_pickup: bool,
}

/// An address family that the packet path serves.
pub trait Family: Fragmented + Keyed {
    /// The packet, if it is of this family.
    fn packet(parsed: &Parsed) -> Option<&Packet<Self>>;
}

impl Family for V4 {
    #[inline(always)]
    fn packet(parsed: &Parsed) -> Option<&Packet<Self>> {
        match parsed {
            Parsed::Ipv4(packet) => Some(packet),
            _ => None,
        }
    }
}

impl Family for V6 {
    #[inline(always)]
    fn packet(parsed: &Parsed) -> Option<&Packet<Self>> {
        match parsed {
            Parsed::Ipv6(packet) => Some(packet),
            _ => None,
        }
    }
}

/// One family's flows and source ports.
pub struct Tracked<A: Address> {
    /// Flows.
    pub flows: Flows<A>,
    /// Ports for those that the endpoint must see coming from us.
    pub snat_ports: PortPool<A>,
    /// Neighbours that packets of no flow, and new flows, went to of late.
    pub recent: Recent<A>,
}

impl<A: Address> Tracked<A> {
    /// Gives back what a flow that ended had taken: its SNAT port, its place in its backend's count.
    pub fn ended(flow: &Flow<A>, ports: &mut PortPool<A>, picker: &mut Picker) {
        picker.closed(flow.backend(), flow.backend_generation());
        if flow.flags().contains(FlowFlags::SNAT) {
            let reply = flow.key(Direction::Reply);
            ports.give(Destination::of_reply(&reply), reply.dst_port);
        }
    }
}

/// What a flow that is not as others means for its packet.
enum Unusual {
    /// It is as others now.
    Bound,
    /// It goes on as it did: nobody has said yet which endpoints there are.
    Unbound,
    /// It is no flow any more.
    Over,
    /// It is a late packet of an endpoint that the client has left.
    Late,
}

/// What was counted in a burst.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Flows opened.
    pub opened: u64,
    /// Flows that made room for others (CT-18).
    pub evicted: u64,
    /// Clients whose endpoint was forgotten for another client's (AFF-7).
    pub affinity_evicted: u64,
}

/// Everything a worker looks packets of one family up in. Borrowed for one burst.
pub struct Lookup<'a, A: Address = V4> {
    /// The tables of this burst.
    pub tables: &'a Tables,
    /// Our surroundings.
    pub network: &'a Network,
    /// Which worker owns what.
    pub steering: &'a Steering,
    /// Which endpoints clients had, of all workers.
    pub affinity: &'a Affinity,
    /// This worker.
    pub worker: WorkerIndex,
    /// This worker's flows and ports.
    pub tracked: &'a mut Tracked<A>,
    /// This worker's randomness and turn counters.
    pub picker: &'a mut Picker,
    /// Switches.
    pub options: LookupOptions,
    /// For the counters.
    pub counted: Counted,
    /// Reply tuple of the flow that the packet under way has ended.
    pub replaced: Option<FlowKey<A>>,
    /// Coarse time.
    pub tick: Tick,
}

impl<A: Family> Lookup<'_, A> {
    /// Decides on one packet, whatever it is. `quoted` is the key of the packet that an ICMP error quotes.
    pub fn packet(&mut self, packet: &Packet<A>, quoted: Option<FlowKey<A>>) -> Decision<A> {
        if packet.is_icmp_error() {
            return self.error(packet, quoted);
        }
        if let Some((index, direction)) = self.tracked.flows.find(&packet.key)
            && let Some(decision) = self.known(packet, index, direction)
        {
            return decision;
        }
        let decision = match self.steering.owner(&packet.key, self.tables, self.network) {
            owner if owner != self.worker => Decision::plain(Verdict::Handover(owner)),
            _ => match frontend(&packet.key, self.tables, self.network) {
                Some(frontend) => self.open(packet, frontend),
                None => Decision::plain(self.unserved(packet)),
            },
        };
        if let Some(reply) = self.replaced.take() {
            self.leave_remnant(reply);
        }
        decision
    }

    /// The first half of opening a flow, for a plain packet of no flow that was known: several of a burst may be prepared
    /// before the first of them is committed, and wait for the table's lines together. `None` for a packet that `packet`
    /// must judge, after those before it.
    pub(crate) fn prepare_only(&mut self, packet: &Packet<A>) -> Option<Prepared<A>> {
        let key = &packet.key;
        if self.network.is_own(key.src) || self.steering.owner(key, self.tables, self.network) != self.worker
        {
            return None;
        }
        let frontend = frontend(key, self.tables, self.network)?;
        // Where the choice depends on the flows before, those must be open.
        match self.tables.service_port(frontend.service_port)?.record.algorithm {
            Algorithm::Random | Algorithm::Maglev => self.prepare(packet, frontend).ok(),
            Algorithm::RoundRobin | Algorithm::LeastConnections => None,
        }
    }

    /// A packet of a known flow. `None` if the flow ended here and the packet may open another.
    fn known(&mut self, packet: &Packet<A>, index: FlowIndex, direction: Direction) -> Option<Decision<A>> {
        let (tables, tick) = (self.tables, self.tick);
        let mut stepped = step(&mut self.tracked.flows, tables, packet, index, direction, tick);
        if matches!(stepped, Err(Stop::Unusual)) {
            stepped = match self.unusual(index, direction) {
                Unusual::Bound => step(&mut self.tracked.flows, tables, packet, index, direction, tick),
                Unusual::Unbound => onward(&mut self.tracked.flows, packet, index, direction, tick),
                Unusual::Over => return None,
                Unusual::Late => return Some(Decision::plain(Verdict::Drop(DropReason::LateReply))),
            };
        }
        match stepped {
            Ok(way) => Some(way.into()),
            // Resolved above.
            Err(Stop::Unusual) => None,
            Err(Stop::BackendGone) => match direction {
                // CT-4, CT-8, CT-9: UDP has no end of its own, so a flow to a gone endpoint would be a black hole.
                Direction::Original => {
                    self.replace(index);
                    None
                }
                // The flow stays until its client speaks, or the endpoint is silent for as long as flows live: without it, the
                // next late answer would leave with the endpoint's address (CT-14).
                Direction::Reply => {
                    self.tracked.flows.refresh(index, tick);
                    Some(Decision::plain(Verdict::Drop(DropReason::BackendGone)))
                }
            },
            Err(Stop::Reopens) => {
                // CT-16: a new connection on the tuple of a finished one is balanced afresh.
                self.replace(index);
                None
            }
            // It was seen, but goes no further.
            Err(Stop::NoHopLeft) => {
                let expired = Decision::plain(Verdict::Reject(Rejection::TimeExceeded));
                let flows = &mut self.tracked.flows;
                match flows.touch(index, direction, packet.signals, tick) {
                    Touched::Reopens => {
                        self.replace(index);
                        None
                    }
                    Touched::Continues => Some(expired),
                }
            }
            Err(Stop::NoNextHop) => match self.find_next_hops(index) {
                Ok(_) => self.known(packet, index, direction),
                Err(verdict) => Some(Decision::plain(verdict)),
            },
        }
    }

    /// On along a flow, without being a packet of it.
    pub(crate) fn follow(&mut self, index: FlowIndex, direction: Direction) -> Decision<A> {
        let mut next_hop = self.tracked.flows.flow(index).next_hop(direction);
        let rewrite = self.tracked.flows.rewrite(index, direction);
        if next_hop == NextHopIndex::UNKNOWN {
            match self.find_next_hops(index) {
                Ok(next_hops) => next_hop = next_hops[direction as usize],
                Err(verdict) => return Decision::plain(verdict),
            }
        }
        Way { next_hop, rewrite }.into()
    }

    /// A flow that is not as others.
    #[cold]
    fn unusual(&mut self, index: FlowIndex, direction: Direction) -> Unusual {
        if !self.is_remnant(index) {
            return if self.rebind(index) {
                Unusual::Bound
            } else {
                Unusual::Unbound
            };
        }
        match direction {
            // The client speaks to the endpoint itself, which has nothing to do with the flow that was.
            Direction::Original => {
                self.close(index);
                Unusual::Over
            }
            // For as long as the endpoint goes on: nobody tells it that its connection is over.
            Direction::Reply => {
                self.tracked.flows.refresh(index, self.tick);
                Unusual::Late
            }
        }
    }

    /// A flow of the process before us (CT-12): once control has told the tables, its endpoint is found in them again, or
    /// is gone. Whether it has.
    fn rebind(&mut self, index: FlowIndex) -> bool {
        if self.tables.generation.0 == 0 {
            return false;
        }
        let flow = self.tracked.flows.flow(index);
        let (original, endpoint) = (flow.key(Direction::Original), flow.key(Direction::Reply));
        // By what the client addresses: service ports may have other numbers now. Without it the endpoint is none of ours.
        let service_port = frontend(&original, self.tables, self.network)
            .map_or(ServicePortIndex(u32::MAX), |frontend| frontend.service_port);
        // No slot has generation 0: what is not found counts as gone.
        let (backend, generation) = self
            .tables
            .find_backend(service_port, endpoint.src, endpoint.src_port)
            .unwrap_or_default();
        self.tracked
            .flows
            .rebind(index, backend, generation, service_port);
        self.picker.opened(backend, generation);
        true
    }

    /// Next hops of a flow that has none: it was adopted, waits with its first fragment, or its neighbour was forgotten.
    #[cold]
    fn find_next_hops(&mut self, index: FlowIndex) -> Result<[NextHopIndex; 2], Verdict> {
        let flows = &self.tracked.flows;
        let to = |direction| flows.rewrite(index, direction).to.dst;
        let [there, back] = Direction::BOTH.map(to);
        let next_hops = [self.next_hop(there)?, self.next_hop(back)?];
        self.tracked.flows.set_next_hops(index, next_hops);
        Ok(next_hops)
    }

    /// An ICMP error goes where the flow's packets in that direction go, whose sender it is about (ICM-1). It keeps no
    /// flow alive.
    #[cold]
    fn error(&mut self, packet: &Packet<A>, quoted: Option<FlowKey<A>>) -> Decision<A> {
        // What is quoted went the other way.
        if let Some(key) = quoted.map(FlowKey::reversed) {
            match self.steering.owner(&key, self.tables, self.network) {
                owner if owner == self.worker => {}
                owner => return Decision::plain(Verdict::Handover(owner)),
            }
            if let Some((index, direction)) = self.tracked.flows.find(&key) {
                // It would tell the client of an endpoint that it never heard of.
                if self.is_remnant(index) {
                    return Decision::plain(Verdict::Drop(DropReason::LateReply));
                }
                if packet.ttl <= 1 {
                    return Decision::plain(Verdict::Drop(DropReason::RejectForbidden)); // RJ-4
                }
                return self.follow(index, direction);
            }
        }
        Decision::plain(self.unserved(packet))
    }

    /// The next hop to an address; a verdict where there is none that answers. So a flow names no other, but for one that a
    /// first fragment opens while it waits.
    pub(crate) fn next_hop(&mut self, address: A) -> Result<NextHopIndex, Verdict> {
        if let Some(index) = self.tracked.recent.get(self.network.next_hops(), address) {
            return Ok(index);
        }
        match self.network.hop(address) {
            Hop::Router(index) => Ok(index),
            Hop::Neighbour(index) => {
                self.tracked.recent.put(address, index);
                Ok(index)
            }
            Hop::Unknown(port, neighbour) => Err(Verdict::Resolve(port, neighbour)),
            Hop::Unreachable => Err(Verdict::Drop(DropReason::NeighbourUnreachable)),
            Hop::NoRoute => Err(Verdict::Drop(DropReason::NoRoute)),
        }
    }

    fn close(&mut self, index: FlowIndex) {
        if let Some(flow) = self.tracked.flows.close(index) {
            Tracked::ended(&flow, &mut self.tracked.snat_ports, self.picker);
        }
    }
}

/// The frontend that a key addresses, if any: exact first, node port after (NP-7).
pub fn frontend<A: Family>(key: &FlowKey<A>, tables: &Tables, network: &Network) -> Option<Frontend> {
    if let Some(frontend) = tables.frontend(key.dst, key.protocol, key.dst_port) {
        return Some(*frontend);
    }
    let frontend = tables.node_port::<A>(key.protocol, key.dst_port)?;
    network
        .is_node_port_address(key.dst, tables.node_port_addresses())
        .then_some(*frontend)
}
