//! A packet that may start a flow: to which endpoint, and from which source (§3.3 to §3.6).

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::affinity::Known;
use super::bytes::{Ends, Packet, SCTP, TCP};
use super::gateway::Decision::{self, Drop, Forward, Reject};
use super::gateway::{Error, Flow, Gateway, Observed, Wrong};
use super::tables::{BackendName, Kind};
use super::{sctp, tcp};

impl Gateway {
    /// §3.3: which endpoints (true: Local only), and whether they see our address.
    fn policy(&self, src: IpAddr, kind: Kind, service: &str) -> (bool, bool) {
        let service = &self.tables.services[service];
        let pod = self.tables.is_pod(src);
        // TP-2
        let not_pod = self.tables.has_pod_range(src) && !pod;
        match kind {
            Kind::Cluster => (service.internal_local, not_pod || self.tables.masquerade_all),
            _ if !service.external_local => (false, true),
            // TP-4
            _ if pod => (false, false),
            _ if self.surroundings.is_own(src) => (false, true),
            _ => (true, false),
        }
    }

    /// A packet that may start a flow.
    pub fn open(
        &mut self,
        packet: &Packet,
        kind: Kind,
        service: &'static str,
        observed: &Observed,
    ) -> Result<Decision, Wrong> {
        if !packet.piece.is_first() {
            return Ok(Drop("fragment-without-flow"));
        }
        let state = match packet.protocol {
            TCP => tcp::first(packet.tcp_flags, self.surroundings.midstream),
            SCTP => sctp::first(packet.chunk, self.surroundings.midstream),
            _ => Some(0),
        };
        let Some(state) = state else {
            return Ok(Drop("invalid-tcp"));
        };
        // LBR-1, LBR-2, LBR-7
        if kind == Kind::LoadBalancer && !self.tables.source_allowed(service, packet.ends.src) {
            return Ok(Drop("source-range"));
        }
        let (local, snat) = self.policy(packet.ends.src, kind, service);
        let set = self.tables.set(service, local, packet.ends.src);
        if set.is_empty() {
            // CAT-7, VD-1 to VD-3
            let nobody = !self.tables.has_any(service, packet.ends.src);
            return Ok(if nobody {
                Reject(Error::PortUnreachable)
            } else {
                Drop("no-local-endpoint")
            });
        }
        let client = (service, local, packet.ends.src);
        let timeout = u64::from(self.tables.services[service].affinity);
        let known = self.affinity.known(client, timeout, self.now, &self.tables, &set);
        let seen = observed.left.as_ref().filter(|_| packet.ttl > 1);
        if timeout > 0 {
            let chosen = seen.map(|left| (service, left.ends.dst, left.ends.dst_port));
            self.affinity.note(client, known, chosen, self.now, &self.tables);
        }
        // AFF-1
        let set = match known {
            Known::Endpoint(endpoint) => BTreeSet::from([endpoint]),
            Known::Nothing | Known::Unseen => set,
        };
        if packet.ttl <= 1 {
            return Ok(Reject(Error::TimeExceeded));
        }
        let Some(left) = seen else {
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
        if known == Known::Nothing {
            self.check_choice(packet, &set, chosen)?;
        }
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
        // A remnant is there for its reply tuple only.
        let live = |flow: &Flow| flow.reply == reply || flow.original == reply && !flow.remnant;
        let taken = |flow: &Flow| flow.protocol == packet.protocol && live(flow);
        if self.flows.iter().any(taken) || reply == packet.ends {
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
        let what = match known {
            Known::Endpoint(_) => "opened-by-affinity",
            Known::Nothing | Known::Unseen => "opened",
        };
        Ok(Forward(what, reply.turned()))
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
            kept.src = self.surroundings.source(out, backend.1);
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

    fn check_choice(
        &mut self,
        packet: &Packet,
        set: &BTreeSet<BackendName>,
        chosen: BackendName,
    ) -> Result<(), Wrong> {
        if self.tables.services[chosen.0].algorithm == "maglev" {
            // Who is to have one endpoint is known by the address alone.
            let port = match self.tables.services[chosen.0].affinity {
                0 => packet.ends.src_port,
                _ => 0,
            };
            let client = (set.clone(), packet.ends.src, port);
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
            (
                "no-route",
                set.iter().any(unrouted) || around.route(packet.ends.src).is_none(),
            ),
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
}
