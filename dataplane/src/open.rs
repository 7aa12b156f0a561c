//! Takes  a packet of no flow, and the frontend it addresses.   Gives  a decision, and a flow where there is to be one.
//! Drops  by policy, and what pools and tables have no room for.
//! Never  opens a flow for a packet that goes no further (RJ-5); one that waits for a next hop opens it when it comes again,
//!        unless it is a first fragment.
//! Next   `nat`.
//!
//! In this order: source ranges, the matrix of semantics §3.3 (which endpoint set, SNAT or not), affinity, the endpoint,
//! the next hops both ways, a source port where the endpoint is to see our address, the flow.

use arrayvec::ArrayVec;

use crate::addr::{Address, FlowKey, Port};
use crate::affinity::Occupant;
use crate::channel::record::FrontendKind;
use crate::conntrack::ports::Destination;
use crate::conntrack::{Direction, FlowFlags, NewFlow, OpenError, State};
use crate::index::{BackendIndex, FlowIndex, NextHopIndex, ServicePortIndex};
use crate::lookup::{self, Decision, Family, Lookup, Tracked, Way};
use crate::nat;
use crate::parse::{Fragment, Packet};
use crate::tables::{AddressKind, EndpointSetKind, Frontend, ServicePort, client_hash};
use crate::tick::TICKS_PER_SECOND;
use crate::verdict::{DropReason, Rejection, Verdict};

/// Source ports tried: where they are frontends of ours, and when two flows without SNAT would share a reply tuple (two Services in front of one endpoint, one
/// client port): kept client addresses have 64k ports each, so even with half of them taken 32 tries fail once in 2³².
const CLASH_TRIES: usize = 32;

/// A flow about to be opened: what the packet came with, and what it leaves with before SNAT.
struct Opening<A: Address> {
    original: FlowKey<A>,
    forwarded: FlowKey<A>,
    state: State,
    backend: BackendIndex,
    backend_generation: u32,
    service_port: ServicePortIndex,
    next_hops: [NextHopIndex; 2],
}

/// A flow about to be opened: all is decided but what only the flow table can say. What it took, `commit` gives back if
/// the table says no.
pub(crate) struct Prepared<A: Address> {
    flow: Opening<A>,
    /// What the packet leaves with.
    forwarded: FlowKey<A>,
    /// Where its source port was taken from, if the endpoint is to see our address.
    taken: Option<Destination<A>>,
}

impl<A: Family> Lookup<'_, A> {
    /// Opens a flow to one of the frontend's endpoints.
    pub(crate) fn open(&mut self, packet: &Packet<A>, frontend: Frontend) -> Decision<A> {
        let prepared = self.prepare(packet, frontend);
        match prepared.and_then(|prepared| self.commit(&prepared).map_err(refusal)) {
            // It waits, as do the later fragments of its datagram: each as a packet of the flow that is open now.
            Ok(way) if way.next_hop == NextHopIndex::UNKNOWN => match self.tracked.flows.find(&packet.key) {
                Some((index, direction)) => self.follow(index, direction),
                None => Decision::plain(Verdict::Drop(DropReason::FragmentWithoutFlow)), // never: it was opened
            },
            Ok(way) => way.into(),
            Err(verdict) => Decision::plain(verdict),
        }
    }

    /// Decides where a new flow goes. The table's line for its replies begins to come in.
    pub(crate) fn prepare(&mut self, packet: &Packet<A>, frontend: Frontend) -> Result<Prepared<A>, Verdict> {
        if packet.fragment == Fragment::Later {
            return Err(Verdict::Drop(DropReason::FragmentWithoutFlow));
        }
        let state = self
            .opening(packet)
            .ok_or(Verdict::Drop(DropReason::InvalidTcp))?;
        // The builder refuses a frontend without its service port, so this is only a type's formality.
        let Some(service_port) = self.tables.service_port(frontend.service_port) else {
            return Err(Verdict::Drop(DropReason::UnallocatedServiceAddress));
        };
        // Before everything else, also before "no endpoint at all" (LBR-1, LBR-2, LBR-7).
        if frontend.kind == FrontendKind::LoadBalancerIp && !service_port.source_allowed(packet.key.src) {
            return Err(Verdict::Drop(DropReason::SourceRange));
        }
        let (set, mut snat) = self.policy(&packet.key, frontend, service_port);
        let Some(backend_index) = self.endpoint(&packet.key, frontend.service_port, service_port, set) else {
            return Err(if service_port.endpoints::<A>().has_any {
                Verdict::Drop(DropReason::NoLocalEndpoint)
            } else {
                Verdict::Reject(Rejection::PortUnreachable)
            });
        };
        if packet.ttl <= 1 {
            return Err(Verdict::Reject(Rejection::TimeExceeded));
        }
        let Some(backend) = self.tables.backend::<A>(backend_index) else {
            return Err(Verdict::Drop(DropReason::BackendGone));
        };
        snat |= backend.address == packet.key.src; // TP-5: hairpin
        let (backend_address, backend_port, generation) = (backend.address, backend.port, backend.generation);
        let to_backend = self.next_hop_of_flow(packet, backend_address)?;
        let to_client = self.next_hop_of_flow(packet, packet.key.src)?;
        let mut next_hops = [to_backend, to_client];
        if next_hops.contains(&NextHopIndex::UNKNOWN) {
            next_hops = [NextHopIndex::UNKNOWN; 2];
        }
        let source = if snat {
            Some(self.snat_address(to_backend, backend_address)?)
        } else {
            None
        };
        let forwarded = FlowKey {
            dst: backend_address,
            dst_port: backend_port,
            ..packet.key
        };
        let flow = Opening {
            original: packet.key,
            forwarded,
            state,
            backend: backend_index,
            backend_generation: generation,
            service_port: frontend.service_port,
            next_hops,
        };
        let source = match source {
            // The node's own address stays, but not a port with which replies would be looked for where their sender's
            // flows are, or that another flow has: those of its other ports that are free are its sockets' (TP-7).
            None if self.network.is_own(packet.key.src)
                && (!self.returns_here(&flow.forwarded)
                    || self.tracked.flows.find(&flow.forwarded.reversed()).is_some()) =>
            {
                Some(packet.key.src)
            }
            // A client that speaks from a Service's address: replies to it are looked for where their sender's flows are,
            // whatever its port. So the endpoint must see our address.
            None if !self.returns_here(&flow.forwarded)
                && self.tables.address(packet.key.src) != AddressKind::Other =>
            {
                Some(self.snat_address(to_backend, backend_address)?)
            }
            source => source,
        };
        let (forwarded, taken) = match source {
            Some(address) => {
                let (forwarded, destination) = self.source_port(&flow, address)?;
                (forwarded, Some(destination))
            }
            None => (flow.forwarded, None),
        };
        self.tracked.flows.ask(&forwarded.reversed());
        Ok(Prepared {
            flow,
            forwarded,
            taken,
        })
    }

    /// Opens the flow, or gives back what it took.
    pub(crate) fn commit(&mut self, prepared: &Prepared<A>) -> Result<Way<A>, OpenError> {
        let Prepared {
            flow,
            forwarded,
            taken,
        } = prepared;
        let index = match *taken {
            Some(destination) => self
                .insert(flow, *forwarded, FlowFlags::SNAT)
                .or_else(|error| self.open_elsewhere(flow, *forwarded, destination, error))?,
            None => self.open_kept(flow)?,
        };
        Ok(Way {
            next_hop: flow.next_hops[0],
            rewrite: self.tracked.flows.rewrite(index, Direction::Original),
        })
    }

    /// Whether the endpoint's answers to what it is sent find their way to this worker.
    fn returns_here(&self, forwarded: &FlowKey<A>) -> bool {
        let reply = forwarded.reversed();
        self.steering.owner(&reply, self.tables, self.network) == self.worker
    }

    /// The state of a flow that this packet opens, if it may (CT-15).
    fn opening(&self, packet: &Packet<A>) -> Option<State> {
        let state = State::opening(packet.key.protocol, packet.signals)?;
        (!state.is_midstream() || self.options.midstream_pickup).then_some(state)
    }

    /// The matrix of semantics §3.3: which endpoint set, and whether the endpoint sees our address.
    fn policy(
        &self,
        key: &FlowKey<A>,
        frontend: Frontend,
        service_port: &ServicePort,
    ) -> (EndpointSetKind, bool) {
        // TP-2: without pod ranges nobody counts as "not a pod", and nobody as a pod.
        let pod = self.tables.is_pod(key.src);
        let not_pod = self.tables.has_pod_ranges::<A>() && !pod;
        let cluster = EndpointSetKind::Cluster;
        if !frontend.kind.is_external() {
            let set = if service_port.record.internal_local {
                EndpointSetKind::Local
            } else {
                cluster
            };
            return (set, not_pod || self.tables.settings().masquerade_all);
        }
        if !service_port.record.external_local {
            return (cluster, true);
        }
        // TP-4: pod and node sources behave as if they had gone out to the load balancer and back.
        if pod {
            (cluster, false)
        } else if self.network.is_own(key.src) {
            (cluster, true)
        } else {
            (EndpointSetKind::Local, false)
        }
    }

    /// The endpoint of a new flow: the one the client had, if it is to have the same (AFF-1), else by the service port's
    /// algorithm.
    fn endpoint(
        &mut self,
        key: &FlowKey<A>,
        index: ServicePortIndex,
        service_port: &ServicePort,
        set: EndpointSetKind,
    ) -> Option<BackendIndex> {
        let (tables, picker) = (self.tables, &mut *self.picker);
        let seconds = service_port.record.affinity_seconds;
        if seconds == 0 {
            return tables.choose::<A>(index, set, client_hash(key.src, key.src_port), picker);
        }
        // Whoever is to have one endpoint for all connections has the same one on every gateway, too.
        let client = client_hash(key.src, Port::default());
        let backend = |slot: BackendIndex| tables.backend::<A>(slot);
        let place = |slot| backend(slot).map(|backend| (backend.address, backend.port));
        let members = service_port.endpoints::<A>().set(set).backends();
        let occupant = |slot: BackendIndex| {
            // Sets are in the order of addresses and ports.
            members
                .binary_search_by_key(&place(slot), |&member| place(member))
                .ok()?;
            Some(backend(slot)?.generation)
        };
        let pick = || {
            let slot = tables.choose::<A>(index, set, client, picker)?;
            let generation = backend(slot)?.generation;
            Some(Occupant { slot, generation })
        };
        let timeout = seconds.saturating_mul(TICKS_PER_SECOND);
        let choice = self
            .affinity
            .choose(index, set, key.src, timeout, self.tick, occupant, pick)?;
        self.counted.affinity_evicted += u64::from(choice.evicted);
        Some(choice.backend.slot)
    }

    /// The next hop that a flow is opened with: one that answers. A first fragment opens its flow though it must wait, since
    /// the others of its datagram cannot: `UNKNOWN`.
    fn next_hop_of_flow(&mut self, packet: &Packet<A>, address: A) -> Result<NextHopIndex, Verdict> {
        match self.next_hop(address) {
            Err(Verdict::Resolve(..)) if packet.fragment == Fragment::First => Ok(NextHopIndex::UNKNOWN),
            found => found,
        }
    }

    /// The address that the endpoint sees, by the way to it.
    fn snat_address(&self, next_hop: NextHopIndex, backend: A) -> Result<A, Verdict> {
        let port = match next_hop {
            NextHopIndex::UNKNOWN => self.network.route(backend).map(|(port, _)| port),
            known => Some(self.network.next_hops().get(known).0),
        };
        port.and_then(|port| self.network.source_address(port))
            .ok_or(Verdict::Drop(DropReason::NoRoute))
    }

    /// What the endpoint is to see of us: our address and one of our ports, and where that was taken from.
    fn source_port(
        &mut self,
        flow: &Opening<A>,
        address: A,
    ) -> Result<(FlowKey<A>, Destination<A>), Verdict> {
        let forwarded = FlowKey {
            src: address,
            ..flow.forwarded
        };
        let destination = Destination::of_reply(&forwarded.reversed());
        let Some(port) = self.take_port(destination, forwarded.reversed()) else {
            return Err(Verdict::Drop(DropReason::SnatPortsExhausted));
        };
        let forwarded = FlowKey {
            src_port: port,
            ..forwarded
        };
        Ok((forwarded, destination))
    }

    /// A source port toward `destination`, by which its `reply` is told from others', and that is no frontend's of ours: what
    /// an endpoint itself asks there would be taken for an answer (TP-7). `None` if there is none.
    fn take_port(&mut self, destination: Destination<A>, mut reply: FlowKey<A>) -> Option<Port> {
        let ports = &mut self.tracked.snat_ports;
        let mut frontends = ArrayVec::<Port, CLASH_TRIES>::new();
        let found = loop {
            let Ok(port) = ports.take(destination, self.picker.random() as u32) else {
                break None;
            };
            reply.dst_port = port;
            if lookup::frontend(&reply, self.tables, self.network).is_none() {
                break Some(port);
            }
            frontends.push(port);
            if frontends.is_full() {
                break None;
            }
        };
        for port in frontends {
            ports.cancel(destination, port);
        }
        found
    }

    /// A flow whose endpoint was to see this port of ours: by another, if a flow of the node's own has it, since those that
    /// nobody translates have their sockets' ports. What was taken is given back where that is not the reason, or is of no use.
    #[cold]
    fn open_elsewhere(
        &mut self,
        flow: &Opening<A>,
        mut forwarded: FlowKey<A>,
        destination: Destination<A>,
        mut error: OpenError,
    ) -> Result<FlowIndex, OpenError> {
        for _ in 0..CLASH_TRIES {
            let port = forwarded.src_port;
            let other = match error {
                OpenError::ReplyTaken => self.take_port(destination, forwarded.reversed()),
                _ => None,
            };
            // Only now, so that the other is another.
            self.tracked.snat_ports.cancel(destination, port);
            let Some(other) = other else { return Err(error) };
            forwarded.src_port = other;
            match self.insert(flow, forwarded, FlowFlags::SNAT) {
                Err(again) => error = again,
                opened => return opened,
            }
        }
        self.tracked.snat_ports.cancel(destination, forwarded.src_port);
        Err(error)
    }

    /// A flow whose endpoint sees the client's address, and its port unless that would share a reply tuple or lead replies
    /// to another worker.
    fn open_kept(&mut self, flow: &Opening<A>) -> Result<FlowIndex, OpenError> {
        let mut forwarded = flow.forwarded;
        for _ in 0..CLASH_TRIES {
            if self.returns_here(&forwarded) {
                match self.insert(flow, forwarded, FlowFlags::default()) {
                    Err(OpenError::ReplyTaken) if self.forget_remnant(&forwarded.reversed()) => continue,
                    Err(OpenError::ReplyTaken) => {}
                    result => return result,
                }
            }
            // The replies must find their way to this worker: of n workers, one port in n is ours.
            for _ in 0..CLASH_TRIES * self.steering.workers() {
                let random = self.picker.random() as u16;
                forwarded.src_port = Port::new(random.max(1024));
                if self.returns_here(&forwarded) {
                    break;
                }
            }
        }
        Err(OpenError::ReplyTaken)
    }

    fn insert(
        &mut self,
        flow: &Opening<A>,
        forwarded: FlowKey<A>,
        flags: FlowFlags,
    ) -> Result<FlowIndex, OpenError> {
        let (l3_delta, l4_delta) = nat::deltas(&flow.original, &forwarded);
        let new = NewFlow {
            original: flow.original,
            reply: forwarded.reversed(),
            state: flow.state,
            backend: flow.backend,
            backend_generation: flow.backend_generation,
            service_port: flow.service_port,
            next_hops: flow.next_hops,
            l3_delta,
            l4_delta,
            flags,
        };
        let Tracked {
            flows, snat_ports, ..
        } = &mut *self.tracked;
        let (picker, counted) = (&mut *self.picker, &mut self.counted);
        let index = flows.open(&new, self.tick, &mut |gone| {
            Tracked::ended(gone, snat_ports, picker);
            counted.evicted += u64::from(!gone.flags().contains(FlowFlags::REMNANT));
        })?;
        self.picker.opened(flow.backend, flow.backend_generation);
        self.counted.opened += 1;
        Ok(index)
    }
}

pub(crate) const fn refusal(error: OpenError) -> Verdict {
    Verdict::Drop(match error {
        OpenError::Full | OpenError::BucketsFull => DropReason::FlowTableFull,
        OpenError::RateLimited => DropReason::FlowRateLimited,
        OpenError::OriginalTaken | OpenError::ReplyTaken => DropReason::SnatPortsExhausted,
    })
}
