//! The rules (semantics §3 to §5), one packet at a time, in the order of the page.
//!
//! The gateway may choose: an endpoint of the set (VD-8), a source port (TP-6). The model cannot know its choice; it looks
//! at what left, checks that the choice was allowed, and holds the gateway to it from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::bytes::{Ends, Fragment, ICMP, Packet, Read, SCTP, TCP, UDP, read};
use super::limit::Limiter;
use super::surroundings::{Surroundings, mac};
use super::tables::{BackendName, Kind, Tables};
use super::{sctp, tcp};
use crate::support::station::Port;

/// One tracked connection (CT-1).
#[derive(Clone, Debug)]
pub struct Flow {
    pub protocol: u8,
    /// As the client's packets arrive.
    pub original: Ends,
    /// As the endpoint's packets arrive.
    pub reply: Ends,
    /// `tcp::State`, `sctp::State`, or nothing.
    pub state: usize,
    pub replied: bool,
    pub opened: u64,
    pub last: u64,
    pub backend: BackendName,
    /// Which of the endpoints of that name.
    pub life: u64,
    /// Its source port was taken (TP-6).
    pub snat: bool,
    /// It was replaced, and stays to stop late packets of the endpoint that it had (CT-14).
    pub remnant: bool,
}

/// What must come of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Leaves(Port, Vec<u8>),
    Dropped(&'static str),
}

/// What came of it, as far as it may have been chosen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The IP packet that left for it, read where the model would receive it.
    pub left: Option<Packet>,
    /// An answer that quotes it left.
    pub answered: bool,
    /// Reasons of what was dropped with it, but for those that are explained.
    pub dropped: Vec<&'static str>,
}

pub struct Gateway {
    pub tables: Tables,
    pub surroundings: Surroundings,
    pub flows: Vec<Flow>,
    pub now: u64,
    pub limiter: Limiter,
    /// What was chosen by consistent hash: by set and client.
    maglev: BTreeMap<(BTreeSet<BackendName>, IpAddr, u16), BackendName>,
}

/// A packet that is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Error {
    PortUnreachable,
    TimeExceeded,
}

enum Decision {
    /// Goes on, between these ends.
    Forward(Ends),
    /// To the node's own stack, as it is.
    Host,
    Reject(Error),
    Drop(&'static str),
}

use Decision::{Drop, Forward, Host, Reject};

/// A choice that was not allowed.
pub type Wrong = String;

impl Gateway {
    pub fn new(surroundings: Surroundings) -> Self {
        let limiter = Limiter::new(surroundings.workers);
        let (tables, flows, maglev) = (Tables::default(), Vec::new(), BTreeMap::new());
        Self {
            tables,
            surroundings,
            flows,
            now: 0,
            limiter,
            maglev,
        }
    }

    /// A frame arrives.
    pub fn frame(&mut self, port: Port, frame: &[u8], observed: &Observed) -> Result<Fate, Wrong> {
        let around = &self.surroundings;
        Ok(match read(frame, port.mac()) {
            Read::Broken(reason) => Fate::Dropped(reason),
            Read::Host(reason) => around.to_host(port, frame, reason),
            // Only the node itself speaks with our addresses.
            Read::Packet(packet) if port != Port::Host && around.is_own(packet.ends.src) => {
                Fate::Dropped("bad-source")
            }
            Read::Packet(packet) => {
                let decision = self.decide(&packet, observed)?;
                self.carry_out(port, &packet, decision, observed)
            }
        })
    }

    fn carry_out(&mut self, port: Port, packet: &Packet, decision: Decision, observed: &Observed) -> Fate {
        let around = &self.surroundings;
        match decision {
            Drop(reason) => Fate::Dropped(reason),
            Host => around.to_host(port, &packet.frame, "no-host-port"),
            Forward(to) => {
                let Some(out) = around.route(to.dst) else {
                    return Fate::Dropped("no-route");
                };
                around.send(out, to.dst, Packet::hop(packet.translated(to)))
            }
            Reject(error) => self.reject(port, packet, error, observed),
        }
    }

    /// RJ-1 to RJ-4, TTL-1.
    fn reject(&mut self, port: Port, packet: &Packet, error: Error, observed: &Observed) -> Fate {
        let to_frontend = self.frontend(packet).is_some();
        let Ends { src, dst, .. } = packet.ends;
        let around = &self.surroundings;
        // Measured: on a Service's way the frontend speaks; else who was spoken to, if that is us; to ourselves we do.
        let from = if error == Error::TimeExceeded && to_frontend || around.is_own(dst) {
            dst
        } else if around.is_own(src) {
            src
        } else {
            around.source(port)
        };
        if !may_be_answered(packet) || error == Error::PortUnreachable && !is_believed(packet) {
            return Fate::Dropped("reject-forbidden");
        }
        if !self.surroundings.is_own(packet.ends.src)
            && !self.limiter.allows(packet.ends.src, self.now, observed.answered)
        {
            return Fate::Dropped("reject-rate-limited");
        }
        let (kind, code) = match error {
            Error::PortUnreachable => (3, 3),
            Error::TimeExceeded => (11, 0),
        };
        Fate::Leaves(port, packet.answer(kind, code, from))
    }

    fn decide(&mut self, packet: &Packet, observed: &Observed) -> Result<Decision, Wrong> {
        let mut replaced = None;
        if let Some(at) = self.flow_of(packet) {
            if let Some(decision) = self.follow(at, packet) {
                return Ok(decision);
            }
            replaced = Some(self.flows.remove(at));
        }
        let decision = match self.frontend(packet) {
            Some((kind, service)) => self.open(packet, kind, service, observed)?,
            None => self.unserved(packet),
        };
        if let Some(flow) = replaced {
            self.leave_remnant(&flow);
        }
        Ok(decision)
    }

    /// CT-14: what is left of a flow that was replaced, unless its successor has the same reply tuple. What an endpoint
    /// sends to one of our ports comes to us anyway.
    fn leave_remnant(&mut self, gone: &Flow) {
        let original = gone.reply.turned();
        let taken = self.is_taken(gone.protocol, gone.reply) || self.is_taken(gone.protocol, original);
        if gone.snat || gone.remnant || taken {
            return;
        }
        self.flows.push(Flow {
            original,
            state: match gone.protocol {
                TCP => tcp::TIME_WAIT,
                SCTP => sctp::CLOSED,
                _ => 0,
            },
            replied: false,
            opened: self.now,
            last: self.now,
            remnant: true,
            ..gone.clone()
        });
    }

    /// The flow that has this tuple, from either side.
    fn flow_of(&self, packet: &Packet) -> Option<usize> {
        let is = |flow: &Flow| flow.original == packet.ends || flow.reply == packet.ends;
        self.flows
            .iter()
            .position(|flow| flow.protocol == packet.protocol && is(flow))
    }

    /// A packet of a known flow (VD-7); none if the flow ends with it and the packet may open another.
    fn follow(&mut self, at: usize, packet: &Packet) -> Option<Decision> {
        let (now, flow) = (self.now, &mut self.flows[at]);
        let reply = flow.reply == packet.ends;
        if flow.remnant {
            flow.last = now; // for as long as the endpoint goes on
            return reply.then_some(Drop("late-reply"));
        }
        if flow.protocol == UDP && !self.tables.serves(flow.backend, flow.life) {
            // CT-4, CT-8, CT-9; and its endpoint must not be heard untranslated (CT-14).
            return reply.then_some(Drop("backend-gone"));
        }
        let state = match flow.protocol {
            TCP => tcp::next(flow.state, reply, packet.tcp_flags),
            SCTP => sctp::next(flow.state, reply, packet.chunk),
            _ => Some(0),
        };
        flow.state = state?;
        flow.last = now; // CT-20
        flow.replied |= reply;
        if packet.ttl <= 1 {
            return Some(Reject(Error::TimeExceeded));
        }
        Some(Forward(if reply { flow.original } else { flow.reply }.turned()))
    }

    /// The frontend that a packet addresses: exact first, node port after (NP-7, NP-1).
    fn frontend(&self, packet: &Packet) -> Option<(Kind, &'static str)> {
        let Ends { dst, dst_port, .. } = packet.ends;
        let frontends = &self.tables.frontends;
        if let Some(exact) = frontends.get(&(Some(dst), packet.protocol, dst_port)) {
            return Some(*exact);
        }
        let node_port = frontends.get(&(None, packet.protocol, dst_port))?;
        self.surroundings
            .has_node_ports(dst, &self.tables.node_port_networks)
            .then_some(*node_port)
    }

    /// §3.3: which endpoints (true: Local only), and whether they see our address.
    fn policy(&self, src: IpAddr, kind: Kind, service: &str) -> (bool, bool) {
        let service = &self.tables.services[service];
        let pod = self.tables.is_pod(src);
        // TP-2
        let not_pod = self.tables.has_pod_range(src) && !pod;
        match kind {
            Kind::Cluster => (service.internal_local, not_pod || self.tables.masquerade_all),
            Kind::External if !service.external_local => (false, true),
            // TP-4
            Kind::External if pod => (false, false),
            Kind::External if self.surroundings.is_own(src) => (false, true),
            Kind::External => (true, false),
        }
    }

    /// A packet that may start a flow.
    fn open(
        &mut self,
        packet: &Packet,
        kind: Kind,
        service: &'static str,
        observed: &Observed,
    ) -> Result<Decision, Wrong> {
        if packet.fragment != Fragment::Whole {
            return Ok(Drop("fragment"));
        }
        let state = match packet.protocol {
            TCP => tcp::first(packet.tcp_flags, self.surroundings.midstream),
            SCTP => sctp::first(packet.chunk, self.surroundings.midstream),
            _ => Some(0),
        };
        let Some(state) = state else {
            return Ok(Drop("invalid-tcp"));
        };
        let (local, snat) = self.policy(packet.ends.src, kind, service);
        let set = self.tables.set(service, local);
        if set.is_empty() {
            // CAT-7, VD-1 to VD-3
            let nobody = !self.tables.has_any(service);
            return Ok(if nobody {
                Reject(Error::PortUnreachable)
            } else {
                Drop("no-local-endpoint")
            });
        }
        if packet.ttl <= 1 {
            return Ok(Reject(Error::TimeExceeded));
        }
        let Some(left) = &observed.left else {
            return self.not_opened(packet, &set, snat, observed);
        };
        let chosen = (service, left.ends.dst, left.ends.dst_port);
        let Some(backend) = self
            .tables
            .backends
            .get(&chosen)
            .filter(|_| set.contains(&chosen))
        else {
            return Err(format!("{chosen:?} is not of the set {set:?}"));
        };
        let life = backend.life;
        self.check_choice(packet, &set, chosen)?;
        let snat = snat || chosen.1 == packet.ends.src; // TP-5
        let source = self.source(packet, left, snat, chosen)?;
        // The node's own address with another port than its socket's: with one of ours.
        let moved = self.surroundings.is_own(packet.ends.src) && source.src_port != packet.ends.src_port;
        let snat = snat || moved;
        let reply = source.turned();
        if !snat {
            // What is left of a flow takes no other's place.
            let gone = |flow: &Flow| flow.remnant && flow.protocol == packet.protocol && flow.reply == reply;
            self.flows.retain(|flow| !gone(flow));
        }
        if self.is_taken(packet.protocol, reply) || reply == packet.ends {
            return Err(format!("{reply:?} is a live flow's already"));
        }
        let (protocol, original, now) = (packet.protocol, packet.ends, self.now);
        self.flows.push(Flow {
            protocol,
            original,
            reply,
            state,
            replied: false,
            opened: now,
            last: now,
            backend: chosen,
            life,
            snat,
            remnant: false,
        });
        Ok(Forward(reply.turned()))
    }

    /// The client as the endpoint sees it: `left`'s source, if that was allowed.
    fn source(
        &self,
        packet: &Packet,
        left: &Packet,
        snat: bool,
        backend: BackendName,
    ) -> Result<Ends, Wrong> {
        let mut kept = Ends {
            dst: backend.1,
            dst_port: backend.2,
            ..packet.ends
        };
        let seen = left.ends;
        if snat {
            // TP-6, TP-7
            let out = self.surroundings.route(backend.1).ok_or("no route")?;
            kept.src = self.surroundings.source(out);
        } else {
            // So that its replies find the worker that has its flow, one of several.
            let may_move = self.surroundings.is_own(kept.src) && self.surroundings.workers > 1;
            // The node's own gets one of our ports then, a remnant's tuple among others.
            let own = self.surroundings.is_own(kept.src);
            let has = |flow: &Flow| {
                let tuple = kept.turned();
                flow.original == tuple || flow.reply == tuple && (own || !flow.remnant)
            };
            let must_move = self
                .flows
                .iter()
                .any(|flow| flow.protocol == packet.protocol && has(flow));
            if seen.src_port == packet.ends.src_port || !may_move && !must_move {
                return Ok(kept);
            }
        }
        let ours = snat || self.surroundings.is_own(kept.src);
        if ours && !self.surroundings.snat_ports.contains(&seen.src_port) {
            return Err(format!("port {} is none of ours", seen.src_port));
        }
        kept.src_port = seen.src_port;
        Ok(kept)
    }

    /// Some flow's packets arrive with this tuple.
    fn is_taken(&self, protocol: u8, tuple: Ends) -> bool {
        let has = |flow: &Flow| flow.original == tuple || flow.reply == tuple;
        self.flows
            .iter()
            .any(|flow| flow.protocol == protocol && has(flow))
    }

    fn check_choice(
        &mut self,
        packet: &Packet,
        set: &BTreeSet<BackendName>,
        chosen: BackendName,
    ) -> Result<(), Wrong> {
        if self.tables.services[chosen.0].algorithm == "maglev" {
            let client = (set.clone(), packet.ends.src, packet.ends.src_port);
            let before = *self.maglev.entry(client).or_insert(chosen);
            if before != chosen {
                return Err(format!(
                    "the client went to {before:?} before, of the same endpoints, and now to {chosen:?}"
                ));
            }
        }
        Ok(())
    }

    /// Nothing left: a flow could not be opened, and one of the reasons must hold.
    fn not_opened(
        &self,
        packet: &Packet,
        set: &BTreeSet<BackendName>,
        snat: bool,
        observed: &Observed,
    ) -> Result<Decision, Wrong> {
        let around = &self.surroundings;
        // TP-8: toward some endpoint that could have been chosen there is no port left in some worker's share.
        let exhausted = |(_, address, port): &BackendName| {
            let hairpin = *address == packet.ends.src;
            let own = around.is_own(packet.ends.src);
            let used = self.flows.iter().filter(|flow| {
                flow.snat
                    && flow.protocol == packet.protocol
                    && (flow.reply.src, flow.reply.src_port) == (*address, *port)
            });
            (snat || hairpin || own) && used.count() >= around.snat_ports.len() / around.workers
        };
        let unrouted = |(_, address, _): &BackendName| around.route(*address).is_none();
        for (reason, holds) in [
            ("no-route", set.iter().any(unrouted)),
            ("snat-ports-exhausted", set.iter().any(exhausted)),
        ] {
            if holds && observed.dropped.contains(&reason) {
                return Ok(Drop(reason));
            }
        }
        Err(format!(
            "a flow should have been opened to one of {set:?}, not {:?}",
            observed.dropped
        ))
    }

    /// A packet that addresses no frontend (VD-4 to VD-6, PING-1, ICM-2).
    fn unserved(&self, packet: &Packet) -> Decision {
        let dst = packet.ends.dst;
        if self.surroundings.is_own(dst) {
            return Host;
        }
        let kind = self.tables.kind_of(dst);
        if kind.is_some() && packet.fragment == Fragment::Later {
            return Drop("fragment");
        }
        // What has no hop left does not come as far as to be refused (TTL-1).
        let refusal = if packet.ttl <= 1 {
            Error::TimeExceeded
        } else {
            Error::PortUnreachable
        };
        match (kind, packet.protocol) {
            // CT-15: connection tracking's "invalid" is refused by nobody.
            (Some(Kind::Cluster), TCP) if tcp::first(packet.tcp_flags, true).is_none() => {
                return Drop("invalid-tcp");
            }
            (Some(Kind::Cluster), SCTP) if sctp::first(packet.chunk, true).is_none() => {
                return Drop("invalid-tcp");
            }
            (Some(Kind::Cluster), TCP | UDP | SCTP) => return Reject(refusal),
            (Some(Kind::Cluster), ICMP) if packet.icmp_type == 8 => return Reject(refusal),
            (Some(Kind::Cluster), ICMP) => return Drop("icmp-error-without-flow"),
            (Some(Kind::Cluster), _) => return Drop("unsupported-protocol"),
            (None, _) if self.tables.in_service_range(dst) => return Drop("unallocated-service-address"),
            (Some(Kind::External) | None, _) => {}
        }
        if packet.ttl <= 1 {
            return Reject(Error::TimeExceeded);
        }
        Forward(packet.ends)
    }

    /// Seconds pass.
    pub fn wait(&mut self, seconds: u64) {
        self.now += seconds;
        let now = self.now;
        self.flows.retain(|flow| {
            let timeout = match flow.protocol {
                TCP => tcp::timeout(flow.state),
                SCTP => sctp::timeout(flow.state),
                // A query and its answer are no stream.
                UDP if flow.replied && flow.last - flow.opened > 2 => 120,
                UDP => 30,
                _ => 600,
            };
            now - flow.last <= timeout
        });
    }
}

/// RJ-4.
fn may_be_answered(packet: &Packet) -> bool {
    let is_error = packet.protocol == ICMP
        && (packet.end - packet.l4 < 8 || !matches!(packet.frame[packet.l4], 0 | 8..=10 | 13..=18));
    let from_group = packet.frame[6] & 1 == 1;
    packet.fragment != Fragment::Later && !is_error && !from_group
}

/// A port is refused to who asked for it: a packet with a wrong checksum may have asked for another.
fn is_believed(packet: &Packet) -> bool {
    packet.fragment != Fragment::Whole || packet.transport_checksum_ok()
}

/// The frame from us to the next station.
pub fn addressed(mut frame: Vec<u8>, out: Port, to: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&mac(out));
    frame
}
