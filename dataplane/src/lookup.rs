//! Takes  packets with their flow keys.     Gives  a decision each: a verdict, and the rewrite of its flow if it has one.
//! Drops  for every reason that is a rule: policies, pools and tables that are full, what may not open a flow.
//! Never  touches a packet's bytes or a counter; reads no clock.
//! Next   `nat`.
//!
//! A packet of a known flow follows its flow whatever the tables now say (VD-7), unless its endpoint is gone (CT-2 to
//! CT-9). Any other packet asks: which frontend, which endpoints, SNAT or not (semantics §3.3), and opens a flow.

use crate::addr::{FlowKey, Port, Protocol, V4};
use crate::conntrack::ports::{Destination, PortPool};
use crate::conntrack::{Direction, Flow, FlowFlags, Flows, NewFlow, OpenError, State, Touched};
use crate::index::{BackendIndex, FlowIndex, NextHopIndex, ServicePortIndex, WorkerIndex};
use crate::nat::{self, Rewrite};
use crate::network::{Hop, Network};
use crate::nic::BURST;
use crate::parse::{Fragment, Packet, Parsed};
use crate::steering::Steering;
use crate::tables::{
    AddressKind, BackendState, EndpointSetKind, Frontend, Picker, ServicePort, Tables, client_hash,
};
use crate::tick::Tick;
use crate::verdict::{DropReason, Rejection, Verdict};
use crate::wire::icmp;

/// Source ports tried when two flows without SNAT would share a reply tuple (two Services in front of one endpoint, one
/// client port): kept client addresses have 64k ports each, so even with half of them taken 32 tries fail once in 2³².
const CLASH_TRIES: usize = 32;

/// What is to be done with one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its fate.
    pub verdict: Verdict,
    /// What its flow does to it; `None` for packets of no flow.
    pub rewrite: Option<Rewrite>,
}

impl Decision {
    const fn plain(verdict: Verdict) -> Self {
        Self {
            verdict,
            rewrite: None,
        }
    }
}

/// Switches of the packet path.
#[derive(Clone, Copy, Debug)]
pub struct LookupOptions {
    /// CT-15: a lone ACK to a frontend opens a flow mid-stream, as Linux does; else it is dropped.
    pub midstream_pickup: bool,
}

/// Everything a worker looks packets up in. Borrowed for one burst.
pub struct Lookup<'a> {
    /// The tables of this burst.
    pub tables: &'a Tables,
    /// Our surroundings.
    pub network: &'a Network,
    /// Which worker owns what.
    pub steering: &'a Steering,
    /// This worker.
    pub worker: WorkerIndex,
    /// This worker's flows.
    pub flows: &'a mut Flows,
    /// This worker's SNAT ports.
    pub snat_ports: &'a mut PortPool,
    /// This worker's randomness and turn counters.
    pub picker: &'a mut Picker,
    /// Switches.
    pub options: LookupOptions,
    /// Flows opened by this burst, for the counters.
    pub opened: u64,
    /// Coarse time.
    pub tick: Tick,
}

impl Lookup<'_> {
    /// Decides on a burst: keys hashed and prefetched together, then packet by packet in order, so that two packets of
    /// one new flow in one burst make one flow.
    pub fn burst(&mut self, packets: &[Parsed], decide: &mut impl FnMut(usize, Decision)) {
        let mut keys = [FlowKey::default(); BURST];
        for (key, packet) in keys.iter_mut().zip(packets) {
            if let Parsed::Ipv4(packet) = packet {
                *key = packet.key;
            }
        }
        let mut found = [None; BURST];
        self.flows
            .find_burst(&keys[..packets.len()], &mut found[..packets.len()]);
        let mut changed = false;
        for (i, packet) in packets.iter().enumerate() {
            let decision = match packet {
                Parsed::Ipv4(packet) => {
                    // A flow opened earlier in this burst was not there when the burst was looked up, and one closed
                    // since then must not be followed.
                    let flow = if changed {
                        self.flows.find(&packet.key)
                    } else {
                        found[i]
                    };
                    self.packet(packet, flow, &mut changed)
                }
                Parsed::Neighbour => Decision::plain(Verdict::Neighbour),
                Parsed::Ipv6(_) => Decision::plain(self.host_or(DropReason::UnknownEtherType)),
                Parsed::Other(reason) => Decision::plain(self.host_or(*reason)),
                Parsed::Drop(reason) => Decision::plain(Verdict::Drop(*reason)),
            };
            decide(i, decision);
        }
    }

    fn packet(
        &mut self,
        packet: &Packet,
        flow: Option<(FlowIndex, Direction)>,
        changed: &mut bool,
    ) -> Decision {
        if let Some((index, direction)) = flow
            && let Some(decision) = self.known(packet, index, direction, changed)
        {
            return decision;
        }
        match self.steering.owner(packet, self.tables, self.network) {
            owner if owner == self.worker => {}
            owner => return Decision::plain(Verdict::Handover(owner)),
        }
        if let Some(frontend) = self.frontend(&packet.key) {
            *changed = true;
            return self.open(packet, frontend);
        }
        Decision::plain(self.unserved(packet))
    }

    /// The frontend a packet addresses: exact first, node port after (NP-7).
    fn frontend(&self, key: &FlowKey) -> Option<Frontend> {
        frontend(key, self.tables, self.network)
    }

    /// A packet of a known flow. `None` if the flow ended here and the packet may open another.
    fn known(
        &mut self,
        packet: &Packet,
        index: FlowIndex,
        direction: Direction,
        changed: &mut bool,
    ) -> Option<Decision> {
        let flow = self.flows.flow(index);
        if packet.key.protocol == Protocol::UDP
            && self
                .tables
                .backend_state(flow.backend(), flow.backend_generation())
                != BackendState::Serving
        {
            return match direction {
                // CT-4, CT-8, CT-9: UDP has no end of its own, so a flow to a gone endpoint would be a black hole.
                Direction::Original => {
                    self.close(index);
                    *changed = true;
                    None
                }
                // The flow stays until its client speaks or it expires: without it, the next late answer would leave
                // with the endpoint's address (CT-14).
                Direction::Reply => Some(Decision::plain(Verdict::Drop(DropReason::BackendGone))),
            };
        }
        if self.flows.touch(index, direction, packet.signals, self.tick) == Touched::Reopens {
            // CT-16: a new connection on the tuple of a finished one is balanced afresh.
            self.close(index);
            *changed = true;
            return None;
        }
        if packet.ttl <= 1 {
            return Some(Decision::plain(Verdict::Reject(Rejection::TimeExceeded)));
        }
        let flow = self.flows.flow(index);
        Some(Decision {
            verdict: Verdict::Forward(flow.next_hop(direction)),
            rewrite: Some(self.flows.rewrite(index, direction)),
        })
    }

    /// Opens a flow to one of the frontend's endpoints.
    fn open(&mut self, packet: &Packet, frontend: Frontend) -> Decision {
        match self.try_open(packet, frontend) {
            Ok(decision) => decision,
            Err(verdict) => Decision::plain(verdict),
        }
    }

    fn try_open(&mut self, packet: &Packet, frontend: Frontend) -> Result<Decision, Verdict> {
        if packet.fragment != Fragment::Whole {
            return Err(Verdict::Drop(DropReason::Fragment));
        }
        let state = self
            .opening(packet)
            .ok_or(Verdict::Drop(DropReason::InvalidTcp))?;
        // The builder refuses a frontend without its service port, so this is only a type's formality.
        let Some(service_port) = self.tables.service_port(frontend.service_port) else {
            return Err(Verdict::Drop(DropReason::UnallocatedServiceAddress));
        };
        let (set, mut snat) = self.policy(&packet.key, frontend, service_port);
        let client = client_hash(packet.key.src, packet.key.src_port);
        let Some(backend_index) = self
            .tables
            .choose::<V4>(frontend.service_port, set, client, self.picker)
        else {
            return Err(if service_port.endpoints::<V4>().has_any {
                Verdict::Drop(DropReason::NoLocalEndpoint)
            } else {
                Verdict::Reject(Rejection::PortUnreachable)
            });
        };
        if packet.ttl <= 1 {
            return Err(Verdict::Reject(Rejection::TimeExceeded));
        }
        let Some(backend) = self.tables.backend::<V4>(backend_index) else {
            return Err(Verdict::Drop(DropReason::BackendGone));
        };
        snat |= backend.address == packet.key.src; // TP-5: hairpin
        let (backend_address, backend_port, generation) = (backend.address, backend.port, backend.generation);
        let to_backend = self.next_hop(backend_address)?;
        let to_client = self.next_hop(packet.key.src)?;
        let source = if snat {
            Some(self.snat_address(to_backend)?)
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
            next_hops: [to_backend, to_client],
        };
        let index = match source {
            Some(address) => self.open_snat(flow, address)?,
            None => self.open_kept(flow)?,
        };
        Ok(Decision {
            verdict: Verdict::Forward(to_backend),
            rewrite: Some(self.flows.rewrite(index, Direction::Original)),
        })
    }

    /// The state of a flow that this packet opens, if it may (CT-15).
    fn opening(&self, packet: &Packet) -> Option<State> {
        let state = State::opening(packet.key.protocol, packet.signals)?;
        (!state.is_midstream() || self.options.midstream_pickup).then_some(state)
    }

    /// The matrix of semantics §3.3: which endpoint set, and whether the endpoint sees our address.
    fn policy(
        &self,
        key: &FlowKey,
        frontend: Frontend,
        service_port: &ServicePort,
    ) -> (EndpointSetKind, bool) {
        // TP-2: without pod ranges nobody counts as "not a pod", and nobody as a pod.
        let pod = self.tables.is_pod(key.src);
        let not_pod = self.tables.has_pod_ranges::<V4>() && !pod;
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

    /// The next hop to an address; a verdict where there is none that answers. So a flow never names another.
    fn next_hop(&self, address: [u8; 4]) -> Result<NextHopIndex, Verdict> {
        match self.network.hop(address) {
            Hop::Known(index) => Ok(index),
            Hop::Unknown(port, neighbour) => Err(Verdict::Resolve(port, neighbour)),
            Hop::Unreachable => Err(Verdict::Drop(DropReason::NeighbourUnreachable)),
            Hop::NoRoute => Err(Verdict::Drop(DropReason::NoRoute)),
        }
    }

    fn snat_address(&self, next_hop: NextHopIndex) -> Result<[u8; 4], Verdict> {
        let (port, _) = self.network.next_hops().get(next_hop);
        self.network
            .source_address(port)
            .ok_or(Verdict::Drop(DropReason::NoRoute))
    }

    /// A flow whose endpoint sees our address and one of our ports.
    fn open_snat(&mut self, flow: Opening, address: [u8; 4]) -> Result<FlowIndex, Verdict> {
        let forwarded = FlowKey {
            src: address,
            ..flow.forwarded
        };
        let destination = Destination::of_reply(&forwarded.reversed());
        let Ok(port) = self.snat_ports.take(destination, self.picker.random() as u32) else {
            return Err(Verdict::Drop(DropReason::SnatPortsExhausted));
        };
        let forwarded = FlowKey {
            src_port: port,
            ..forwarded
        };
        self.insert(&flow, forwarded, FlowFlags::SNAT).map_err(|error| {
            self.snat_ports.cancel(destination, port);
            refusal(error)
        })
    }

    /// A flow whose endpoint sees the client's address, and its port unless that would share a reply tuple.
    fn open_kept(&mut self, flow: Opening) -> Result<FlowIndex, Verdict> {
        let mut forwarded = flow.forwarded;
        for _ in 0..CLASH_TRIES {
            match self.insert(&flow, forwarded, FlowFlags::default()) {
                Err(OpenError::ReplyTaken) => {}
                result => return result.map_err(refusal),
            }
            // The replies must find their way to this worker: of n workers, one port in n is ours.
            for _ in 0..CLASH_TRIES * self.steering.workers() {
                let random = self.picker.random() as u16;
                forwarded.src_port = Port::new(random.max(1024));
                if self
                    .steering
                    .client_owner(forwarded.src, forwarded.src_port, self.network)
                    == self.worker
                {
                    break;
                }
            }
        }
        Err(refusal(OpenError::ReplyTaken))
    }

    fn insert(
        &mut self,
        flow: &Opening,
        forwarded: FlowKey,
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
        let Self {
            flows,
            snat_ports,
            picker,
            ..
        } = self;
        let index = flows.open(&new, self.tick, &mut |gone| ended(gone, snat_ports, picker))?;
        self.picker.opened(flow.backend, flow.backend_generation);
        self.opened += 1;
        Ok(index)
    }

    fn close(&mut self, index: FlowIndex) {
        if let Some(flow) = self.flows.close(index) {
            ended(&flow, self.snat_ports, self.picker);
        }
    }

    /// A packet that addresses no frontend: the node's own, a service address without this port, or routed on.
    fn unserved(&self, packet: &Packet) -> Verdict {
        let key = &packet.key;
        if self.network.is_own(key.dst) {
            return self.host_or(DropReason::NoHostPort);
        }
        match self.tables.address(key.dst) {
            AddressKind::ClusterIp | AddressKind::External if packet.fragment == Fragment::Later => {
                return Verdict::Drop(DropReason::Fragment); // its first may have gone to an endpoint
            }
            AddressKind::ClusterIp => match key.protocol {
                Protocol::TCP if State::opening(key.protocol, packet.signals).is_none() => {
                    return Verdict::Drop(DropReason::InvalidTcp);
                }
                Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
                    return Verdict::Reject(Rejection::PortUnreachable); // VD-4
                }
                Protocol::ICMP if packet.icmp_type == icmp::ECHO_REQUEST => {
                    return Verdict::Reject(Rejection::PortUnreachable); // PING-1
                }
                Protocol::ICMP => return Verdict::Drop(DropReason::IcmpErrorWithoutFlow),
                _ => return Verdict::Drop(DropReason::UnsupportedProtocol),
            },
            AddressKind::Unallocated => return Verdict::Drop(DropReason::UnallocatedServiceAddress), // VD-5
            AddressKind::External | AddressKind::Former | AddressKind::Other => {}                   // VD-6
        }
        if packet.ttl <= 1 {
            return Verdict::Reject(Rejection::TimeExceeded);
        }
        match self.next_hop(key.dst) {
            Ok(next_hop) => Verdict::Forward(next_hop),
            Err(verdict) => verdict,
        }
    }

    fn host_or(&self, reason: DropReason) -> Verdict {
        if self.network.host().is_some() {
            Verdict::Punt
        } else {
            Verdict::Drop(reason)
        }
    }
}

/// A flow about to be opened: what the packet came with, and what it leaves with before SNAT.
struct Opening {
    original: FlowKey,
    forwarded: FlowKey,
    state: State,
    backend: BackendIndex,
    backend_generation: u32,
    service_port: ServicePortIndex,
    next_hops: [NextHopIndex; 2],
}

/// The frontend that a key addresses, if any.
pub fn frontend(key: &FlowKey, tables: &Tables, network: &Network) -> Option<Frontend> {
    if let Some(frontend) = tables.frontend(key.dst, key.protocol, key.dst_port) {
        return Some(*frontend);
    }
    let frontend = tables.node_port::<V4>(key.protocol, key.dst_port)?;
    network
        .is_node_port_address(key.dst, tables.node_port_addresses())
        .then_some(*frontend)
}

/// Gives back what a flow that ended had taken: its SNAT port, its place in its backend's count.
pub fn ended(flow: &Flow, ports: &mut PortPool, picker: &mut Picker) {
    picker.closed(flow.backend(), flow.backend_generation());
    if flow.flags().contains(FlowFlags::SNAT) {
        let reply = flow.key(Direction::Reply);
        ports.give(Destination::of_reply(&reply), reply.dst_port);
    }
}

const fn refusal(error: OpenError) -> Verdict {
    Verdict::Drop(match error {
        OpenError::Full | OpenError::BucketsFull => DropReason::FlowTableFull,
        OpenError::RateLimited => DropReason::FlowRateLimited,
        OpenError::OriginalTaken | OpenError::ReplyTaken => DropReason::SnatPortsExhausted,
    })
}
