//! The rules (semantics §3 to §5), one packet at a time, in the order of the page.
//!
//! The gateway may choose: an endpoint of the set (VD-8), a source port (TP-6). The model cannot know its choice; it looks
//! at what left, checks that the choice was allowed, and holds the gateway to it from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::affinity::Affinity;
use super::bytes::{Ends, Packet, Read, SCTP, TCP, UDP, read};
use super::fragments::{Fragments, Passage};
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
    /// As what.
    Leaves(&'static str, Port, Vec<u8>),
    Dropped(&'static str),
    /// A fragment, for the first of its datagram.
    Waits,
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
    /// A remnant that may have been left, or not: that depends on which of several workers has another flow.
    pub perhaps: Vec<Flow>,
    pub now: u64,
    pub limiter: Limiter,
    fragments: Fragments,
    /// What was chosen by consistent hash: by set and client.
    pub maglev: BTreeMap<(BTreeSet<BackendName>, IpAddr, u16), BackendName>,
    pub affinity: Affinity,
}

/// A packet that is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Error {
    PortUnreachable,
    TimeExceeded,
}

pub enum Decision {
    /// Goes on as it is.
    Pass,
    /// Goes on between these ends, as what.
    Forward(&'static str, Ends),
    /// An ICMP error goes on, between these ends, and so does what it quotes.
    ForwardError(Packet, Ends),
    /// To the node's own stack, as it is.
    Host,
    Reject(Error),
    Drop(&'static str),
}

use Decision::{Drop, Forward, ForwardError, Host, Pass, Reject};

/// A choice that was not allowed.
pub type Wrong = String;

impl Gateway {
    pub fn new(surroundings: Surroundings) -> Self {
        Self {
            tables: Tables::default(),
            flows: Vec::new(),
            perhaps: Vec::new(),
            now: 0,
            limiter: Limiter::new(surroundings.workers),
            fragments: Fragments::default(),
            maglev: BTreeMap::new(),
            affinity: Affinity::default(),
            surroundings,
        }
    }

    /// A frame arrives.
    pub fn frame(&mut self, port: Port, frame: &[u8], observed: &Observed) -> Result<Fate, Wrong> {
        let around = &self.surroundings;
        let packet = match read(frame, port.mac()) {
            Read::Broken(reason) => return Ok(Fate::Dropped(reason)),
            Read::Host(reason) => return Ok(around.to_host(port, frame, reason)),
            Read::Packet(packet) => packet,
        };
        // Only the node itself speaks with our addresses.
        if port != Port::Host && around.is_own(packet.ends.src) {
            return Ok(Fate::Dropped("bad-source"));
        }
        if packet.piece.is_whole() {
            return self.packet(port, &packet, observed);
        }
        match self.fragments.pass(port, &packet, self.now) {
            Passage::Passes(packet) => self.packet(port, &packet, observed),
            Passage::Waits => Ok(Fate::Waits),
            Passage::Dropped(reason) => Ok(Fate::Dropped(reason)),
        }
    }

    /// The next fragment that has waited for long enough, once all of a burst has been dealt with.
    pub fn released(&mut self) -> Option<(Port, Packet)> {
        self.fragments.release()
    }

    pub fn packet(&mut self, port: Port, packet: &Packet, observed: &Observed) -> Result<Fate, Wrong> {
        let decision = self.decide(packet, observed)?;
        Ok(self.carry_out(port, packet, decision, observed))
    }

    fn carry_out(&mut self, port: Port, packet: &Packet, decision: Decision, observed: &Observed) -> Fate {
        let around = &self.surroundings;
        match decision {
            Drop(reason) => Fate::Dropped(reason),
            Host => around.to_host(port, &packet.frame, "no-host-port"),
            Pass => self.send("routed", packet.ends.dst, packet.frame.clone()),
            Forward(what, to) => self.send(what, to.dst, packet.translated(to)),
            ForwardError(quoted, to) => {
                let frame = packet.error_translated(&quoted, to);
                self.send("error-translated", to.dst, frame)
            }
            Reject(error) => self.reject(port, packet, error, observed),
        }
    }

    fn send(&self, what: &'static str, to: IpAddr, frame: Vec<u8>) -> Fate {
        match self.surroundings.route(to) {
            Some(out) => self.surroundings.send(what, out, to, Packet::hop(frame)),
            None => Fate::Dropped("no-route"),
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
            around.source(port, src)
        };
        if !may_be_answered(packet) || error == Error::PortUnreachable && !is_believed(packet) {
            return Fate::Dropped("reject-forbidden");
        }
        if !self.surroundings.is_own(packet.ends.src)
            && !self.limiter.allows(packet.ends.src, self.now, observed.answered)
        {
            return Fate::Dropped("reject-rate-limited");
        }
        let (kind, code) = match (error, packet.is_ipv6()) {
            (Error::PortUnreachable, false) => (3, 3),
            (Error::TimeExceeded, false) => (11, 0),
            (Error::PortUnreachable, true) => (1, 4),
            (Error::TimeExceeded, true) => (3, 0),
        };
        Fate::Leaves("refused", port, packet.answer(kind, code, from))
    }

    fn decide(&mut self, packet: &Packet, observed: &Observed) -> Result<Decision, Wrong> {
        if let Some(decision) = self.error(packet) {
            return Ok(decision);
        }
        let mut replaced = None;
        if let Some(at) = self.flow_of(packet.protocol, packet.ends) {
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

    /// ICM-1: an ICMP error goes where packets of the flow that it is about go, to the sender of what it quotes. It keeps no
    /// flow alive.
    fn error(&self, packet: &Packet) -> Option<Decision> {
        let quoted = packet.quoted()?;
        let comes = quoted.ends.turned();
        let flow = &self.flows[self.flow_of(quoted.protocol, comes)?];
        let leaves = if flow.original == comes {
            flow.reply
        } else {
            flow.original
        };
        Some(if flow.remnant {
            Drop("late-reply")
        } else if packet.ttl <= 1 {
            Drop("reject-forbidden")
        } else {
            ForwardError(quoted, leaves.turned())
        })
    }

    /// CT-14: what is left of a flow that was replaced, unless its successor has the same reply tuple. What an endpoint
    /// sends to one of our ports comes to us anyway.
    fn leave_remnant(&mut self, gone: &Flow) {
        let original = gone.reply.turned();
        let reply_taken = self.is_taken(gone.protocol, gone.reply);
        if gone.snat || gone.remnant || reply_taken {
            return;
        }
        let remnant = Flow {
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
        };
        if !self.is_taken(gone.protocol, original) {
            self.flows.push(remnant);
        } else if self.surroundings.workers > 1 {
            self.perhaps.push(remnant);
        }
    }

    /// The flow that has this tuple, from either side.
    fn flow_of(&self, protocol: u8, ends: Ends) -> Option<usize> {
        let is = |flow: &Flow| flow.original == ends || flow.reply == ends;
        self.flows
            .iter()
            .position(|flow| flow.protocol == protocol && is(flow))
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
            // CT-4, CT-8, CT-9; and its endpoint must not be heard untranslated (CT-14), for as long as it goes on.
            flow.last = now;
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
        let what = if packet.piece.is_whole() {
            "translated"
        } else {
            "fragment-translated"
        };
        Some(Forward(
            what,
            if reply { flow.original } else { flow.reply }.turned(),
        ))
    }

    /// The frontend that a packet addresses: exact first, node port after (NP-7, NP-1).
    fn frontend(&self, packet: &Packet) -> Option<(Kind, &'static str)> {
        let Ends { dst, dst_port, .. } = packet.ends;
        let frontends = &self.tables.frontends;
        if let Some(exact) = frontends.get(&(dst, packet.protocol, dst_port)) {
            return Some(*exact);
        }
        let every = if dst.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let node_port = frontends.get(&(every, packet.protocol, dst_port))?;
        self.surroundings
            .has_node_ports(dst, &self.tables.node_port_networks)
            .then_some(*node_port)
    }

    /// Some flow's packets arrive with this tuple.
    fn is_taken(&self, protocol: u8, tuple: Ends) -> bool {
        let has = |flow: &Flow| flow.original == tuple || flow.reply == tuple;
        self.flows
            .iter()
            .any(|flow| flow.protocol == protocol && has(flow))
    }

    /// A packet that addresses no frontend (VD-4 to VD-6, PING-1, ICM-2).
    fn unserved(&self, packet: &Packet) -> Decision {
        let dst = packet.ends.dst;
        if self.surroundings.is_own(dst) {
            return Host;
        }
        let mut kind = self.tables.kind_of(dst);
        // VD-6: of what is no cluster IP the operator says.
        let external = kind.is_some_and(|kind| kind != Kind::Cluster);
        if external && self.tables.undefined_ports == 0 {
            kind = None;
        }
        if kind.is_some() && !packet.piece.is_first() {
            return Drop("fragment-without-flow");
        }
        if external && self.tables.undefined_ports == 1 {
            return Drop("undefined-port");
        }
        let refuses = kind.is_some();
        // What has no hop left does not come as far as to be refused (TTL-1).
        let refusal = if packet.ttl <= 1 {
            Error::TimeExceeded
        } else {
            Error::PortUnreachable
        };
        match packet.protocol {
            // CT-15: connection tracking's "invalid" is refused by nobody.
            TCP if refuses && tcp::first(packet.tcp_flags, true).is_none() => return Drop("invalid-tcp"),
            SCTP if refuses && sctp::first(packet.chunk, true).is_none() => return Drop("invalid-tcp"),
            TCP | UDP | SCTP if refuses => return Reject(refusal),
            _ if refuses && packet.is_echo_request() => return Reject(refusal),
            _ if refuses && packet.is_icmp() => return Drop("icmp-error-without-flow"),
            _ if refuses => return Drop("unsupported-protocol"),
            _ if !external && self.tables.in_service_range(dst) => {
                return Drop("unallocated-service-address");
            }
            _ => {}
        }
        if packet.ttl <= 1 {
            return Reject(Error::TimeExceeded);
        }
        Pass
    }

    /// Seconds pass: what is dropped meanwhile.
    pub fn wait(&mut self, seconds: u64) -> Vec<&'static str> {
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
        vec!["fragment-timeout"; self.fragments.expire(now)]
    }
}

/// RJ-4.
fn may_be_answered(packet: &Packet) -> bool {
    let kind = packet.frame[packet.l4..packet.end].first().copied().unwrap_or(0);
    let is_query = if packet.is_ipv6() {
        kind >= 128 && !(133..=137).contains(&kind)
    } else {
        matches!(kind, 0 | 8..=10 | 13..=18)
    };
    let is_error = packet.is_icmp() && (packet.end - packet.l4 < 8 || !is_query);
    let from_group = packet.frame[6] & 1 == 1;
    packet.piece.is_first() && !is_error && !from_group
}

/// A port is refused to who asked for it: a packet with a wrong checksum may have asked for another.
fn is_believed(packet: &Packet) -> bool {
    !packet.piece.is_whole() || packet.transport_checksum_ok()
}

/// The frame from us to the next station.
pub fn addressed(mut frame: Vec<u8>, out: Port, to: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&mac(out));
    frame
}
