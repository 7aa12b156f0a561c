//! Random worlds, biased so that things meet: a handful of addresses, ports and Services, and every other packet one of
//! a flow that is there.

use super::bytes::{Ends, ICMP, ICMPV6, LINK, SCTP, TCP, UDP, number};
use super::frames::{from_other_port, is_discovery, is_fragment, is_unrepeatable};
use super::gateway::{Flow, Gateway};
use super::places::{PLACES, Places};
use super::step::{Change, Step, UNDEFINED};
use super::surroundings::Surroundings;
use super::tables::{BackendName, Service};
use crate::support::random::Random;
use crate::support::station::Port;

use std::net::IpAddr;

const SERVICES: [(&str, u8); 6] = [
    ("a", TCP),
    ("b", TCP),
    ("c", TCP),
    ("d", UDP),
    ("e", UDP),
    ("f", SCTP),
];
const ALGORITHMS: [&str; 4] = ["random", "maglev", "round-robin", "least-connections"];
const PORTS: [u16; 3] = [80, 53, 8080];
const NODE_PORTS: [u16; 2] = [30_080, 30_053];
const CLIENT_PORTS: [u16; 4] = [40_000, 40_001, 1500, 80];

/// Pieces of datagrams that are on their way.
const UNDER_WAY: usize = 12;
/// Times around which timeouts end.
const WAITS: [u32; 11] = [1, 2, 3, 10, 11, 28, 31, 60, 119, 121, 3_601];

const AFFINITIES: [u32; 4] = [2, 11, 60, 3_600];

pub struct Chance {
    random: Random,
    number: u16,
    workers: usize,
    host: bool,
    /// IPv4, IPv6: one makes a denser world than both.
    families: &'static [usize],
    /// Fragments that have not come yet.
    pieces: Vec<(Port, Vec<u8>)>,
}

impl Chance {
    pub const fn new(random: Random) -> Self {
        Self {
            random,
            number: 0,
            workers: 1,
            host: true,
            families: &[0],
            pieces: Vec::new(),
        }
    }

    pub const fn below(&mut self, end: usize) -> usize {
        self.random.below(end)
    }

    pub const fn byte(&mut self) -> u8 {
        self.random.next() as u8
    }

    pub const fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn places(&mut self) -> &'static Places {
        &PLACES[self.of(self.families)]
    }

    pub fn next_number(&mut self) -> u16 {
        self.number = self.number.wrapping_add(1).max(1);
        self.number
    }

    pub fn surroundings(&mut self) -> Surroundings {
        self.workers = self.of(&[1, 1, 2, 4]);
        self.families = self.of(&[&[0], &[1], &[0, 1]]);
        self.host = !self.one_in(4);
        let few = self.one_in(4);
        Surroundings {
            workers: self.workers,
            host: self.host,
            default_route: !self.one_in(6),
            midstream: !self.one_in(3),
            snat_ports: if few {
                1024..=1024 + 4 * self.workers as u16 - 1
            } else {
                1024..=29_999
            },
            mtu: 1500,
        }
    }

    /// The tables that a world begins with.
    pub fn beginning(&mut self) -> Vec<Step> {
        let mut changes = Vec::new();
        for places in &PLACES {
            if !self.one_in(4) {
                changes.push(Change::Network("pods", places.pods));
            }
            if !self.one_in(4) {
                changes.push(Change::Network("services", places.services));
            }
            if self.one_in(4) {
                changes.push(Change::Network("node-ports", self.of(&places.node_ports)));
            }
        }
        changes.push(self.settings());
        for (name, protocol) in SERVICES {
            changes.push(self.service(name, protocol));
            for _ in 0..6 {
                changes.push(self.frontend(name));
                changes.push(self.backend(name));
            }
        }
        changes.into_iter().map(Step::Change).collect()
    }

    fn service(&mut self, name: &'static str, protocol: u8) -> Change {
        let service = Service {
            protocol,
            algorithm: self.of(&ALGORITHMS),
            external_local: self.one_in(2),
            internal_local: self.one_in(3),
            affinity: if self.one_in(3) { self.of(&AFFINITIES) } else { 0 },
        };
        Change::Service(name, service)
    }

    fn frontend(&mut self, name: &'static str) -> Change {
        let (places, port) = (self.places(), self.of(&PORTS));
        match self.below(4) {
            0 | 1 => Change::Frontend("cluster-ip", name, self.of(&places.cluster_ips), port),
            2 => {
                let kind = self.of(&["external-ip", "load-balancer-ip"]);
                Change::Frontend(kind, name, self.of(&places.external_ips), port)
            }
            _ => Change::Frontend("node-port", name, places.unspecified, self.of(&NODE_PORTS)),
        }
    }

    fn settings(&mut self) -> Change {
        Change::Settings(
            self.one_in(4),
            if self.one_in(2) {
                0
            } else {
                self.below(UNDEFINED.len())
            },
        )
    }

    fn backend(&mut self, name: &'static str) -> Change {
        let [local, terminating, unready, not_serving] =
            [self.one_in(2), self.one_in(5), self.one_in(6), self.one_in(8)];
        let mut sets = [false; 3];
        // Control puts whom new flows may come to into sets, and nobody else: also who is published though not ready.
        let usable = !not_serving && (terminating || !unready);
        if (usable || not_serving && !terminating) && self.one_in(2) {
            sets = self.of(&[
                [true, false, false],
                [true, true, false],
                [false, true, false],
                [false, false, true],
            ]);
        }
        let [cluster, near, none] = sets;
        let states = [local, terminating, unready, not_serving, cluster, near, none];
        Change::Backend(self.backend_name(name), states)
    }

    fn backend_name(&mut self, name: &'static str) -> BackendName {
        let places = self.places();
        (name, self.of(&places.endpoints), self.of(&PORTS))
    }

    /// What happens next.
    pub fn step(&mut self, gateway: &Gateway) -> Step {
        match self.below(100) {
            0 | 1 => Step::Wait(self.of(&WAITS)),
            3 if self.one_in(10) => Step::Wait(86_401),
            4..=9 => Step::Change(self.change(gateway)),
            _ => self.frames(gateway),
        }
    }

    fn change(&mut self, gateway: &Gateway) -> Change {
        let (name, protocol) = self.of(&SERVICES);
        let tables = &gateway.tables;
        match self.below(14) {
            0..=3 => self.backend(name),
            4..=6 => {
                let present: Vec<_> = tables.backends.keys().copied().collect();
                if present.is_empty() {
                    self.backend(name)
                } else {
                    Change::DeleteBackend(self.of(&present))
                }
            }
            7 => self.frontend(name),
            8 => match self.frontend(name) {
                Change::Frontend(kind, name, address, port) => {
                    Change::DeleteFrontend(kind, name, address, port)
                }
                other => other,
            },
            9 | 10 => self.service(name, protocol),
            11 | 12 => {
                let places = self.places();
                let range = self.of(&places.sources);
                if tables.source_ranges.contains(&(name, range)) {
                    Change::DeleteSourceRange(name, range)
                } else {
                    Change::SourceRange(name, range)
                }
            }
            _ if self.one_in(3) => Change::DeleteService(name),
            _ if self.one_in(2) => self.settings(),
            _ => {
                let places = self.places();
                let (kind, network, known) = match self.below(3) {
                    0 => ("pods", places.pods, &tables.pods),
                    1 => ("services", places.services, &tables.service_ranges),
                    _ => (
                        "node-ports",
                        self.of(&places.node_ports),
                        &tables.node_port_networks,
                    ),
                };
                if known.contains(&network) {
                    Change::DeleteNetwork(kind, network)
                } else {
                    Change::Network(kind, network)
                }
            }
        }
    }

    /// A burst on one queue: of one packet, usually.
    fn frames(&mut self, gateway: &Gateway) -> Step {
        let (port, first) = self.frame(gateway);
        let queue = if port == Port::Host {
            0
        } else {
            self.below(self.workers)
        };
        // Which of a burst got the last port cannot be told, nor, with several workers, in which order they see fragments.
        let scarce = gateway.surroundings.snat_ports.len() < 100;
        let alone = |frame: &[u8]| scarce || self.workers > 1 && is_fragment(frame);
        let mut frames = vec![first];
        if alone(&frames[0]) {
            return Step::Frames(port, queue, frames);
        }
        while self.one_in(4) && frames.len() < 8 {
            let (other, mut frame) = self.frame(gateway);
            if other != port {
                // The same again: of a new flow, perhaps.
                frame = self.renumbered(frames[0].clone());
            }
            let number_of = |frame: &[u8]| frame.get(LINK..).and_then(number).map(|(number, _)| number);
            let known = frames.iter().any(|known| number_of(known) == number_of(&frame));
            if !(known || self.workers > 1 && is_fragment(&frame)) {
                frames.push(frame);
            }
        }
        Step::Frames(port, queue, frames)
    }

    fn frame(&mut self, gateway: &Gateway) -> (Port, Vec<u8>) {
        if !self.pieces.is_empty() && self.one_in(3) {
            // In order or not, all or not.
            let at = if self.one_in(2) {
                0
            } else {
                self.below(self.pieces.len())
            };
            let (port, frame) = self.pieces.remove(at);
            if self.one_in(12) && !is_unrepeatable(&frame, port) {
                self.pieces.push((port, frame.clone()));
            }
            return (port, frame);
        }
        let (protocol, ends) = self.tuple(gateway);
        let (from, is_error) = (self.complainer(ends), self.one_in(12));
        let natural = gateway
            .surroundings
            .route(if is_error { from } else { ends.src })
            .unwrap_or(Port::Client);
        let port = if self.one_in(20) {
            self.of(&Port::ALL)
        } else {
            natural
        };
        let port = if port == Port::Host && !self.host {
            Port::Client
        } else {
            port
        };
        let whole = if is_error {
            // What it is about went the other way.
            self.error(port, from, protocol, ends.turned())
        } else if self.one_in(12) {
            self.in_pieces(port, protocol, ends)
        } else {
            self.packet(port, protocol, ends, 0)
        };
        if !self.one_in(25) {
            return (port, whole);
        }
        let broken = self.broken(whole.clone());
        let frame = if is_discovery(&broken, port) {
            whole
        } else {
            broken
        };
        (port, frame)
    }

    /// The first to come of a packet's pieces; the others are under way.
    fn in_pieces(&mut self, port: Port, protocol: u8, ends: Ends) -> Vec<u8> {
        let least = 24 + self.below(100);
        let whole = self.packet(port, protocol, ends, least);
        let mut pieces = self.pieces(&whole);
        if is_unrepeatable(&pieces[0], port) {
            let first = pieces[0].clone();
            pieces.retain(|piece| *piece != first);
            pieces.insert(0, first);
        }
        if self.one_in(10) {
            // The sender's numbers come round: another datagram's first has the same.
            let again = from_other_port(pieces[0].clone());
            pieces.push(again);
        }
        let first = pieces.remove(if self.one_in(2) {
            0
        } else {
            self.below(pieces.len())
        });
        self.pieces.extend(pieces.into_iter().map(|piece| (port, piece)));
        let old = self.pieces.len().saturating_sub(UNDER_WAY);
        self.pieces.drain(..old);
        first
    }

    /// Who may complain of a packet that answers one with these ends.
    fn complainer(&mut self, ends: Ends) -> IpAddr {
        let places = &PLACES[usize::from(ends.src.is_ipv6())];
        let from = self.of(&[
            ends.src,
            ends.src,
            places.outside[0],
            places.outside[1],
            places.endpoints[0],
        ]);
        if !self.host && places.node.contains(&from) {
            places.outside[1]
        } else {
            from
        }
    }

    /// Of a flow that is there, or any. With several workers, not what a client sends straight to the endpoint it had: it
    /// may be looked for at another one than what is left of its flow.
    fn tuple(&mut self, gateway: &Gateway) -> (u8, Ends) {
        loop {
            let known = self.one_in(2) && !gateway.flows.is_empty();
            let (protocol, ends) = if known {
                let flow = &gateway.flows[self.below(gateway.flows.len())];
                let ends = if self.one_in(2) { flow.original } else { flow.reply };
                (flow.protocol, ends)
            } else {
                self.ends(gateway)
            };
            let straight =
                |flow: &Flow| !flow.snat && flow.protocol == protocol && flow.reply == ends.turned();
            if self.workers == 1 || !gateway.flows.iter().any(straight) {
                return (protocol, ends);
            }
        }
    }

    fn ends(&mut self, gateway: &Gateway) -> (u8, Ends) {
        let places = self.places();
        let mut src = match self.below(10) {
            0..=4 => self.of(&places.outside),
            5..=7 => self.of(&places.endpoints),
            8 => self.of(&places.node),
            _ => self.of(&places.others),
        };
        // With several workers, replies to clients that have a Service's address are looked for at another one.
        if !self.host && places.node.contains(&src) || self.workers > 1 && src == places.others[0] {
            src = places.outside[0];
        }
        let mut src_port = self.of(&CLIENT_PORTS);
        // TP-7: no socket of the node's has one of the ports that are ours to take.
        while places.node.contains(&src) && gateway.surroundings.snat_ports.contains(&src_port) {
            src_port = self.of(&CLIENT_PORTS);
        }
        let (dst, dst_port) = match self.below(20) {
            0..=7 => (self.of(&places.cluster_ips), self.of(&PORTS)),
            8..=11 => (self.of(&places.external_ips), self.of(&PORTS)),
            12..=14 => (self.of(&places.node), self.of(&NODE_PORTS)),
            15 | 16 => (self.of(&places.endpoints), self.of(&PORTS)),
            17 => (self.of(&places.others), self.of(&PORTS)),
            18 => (self.of(&places.outside), self.of(&CLIENT_PORTS)),
            _ => (self.of(&places.cluster_ips), self.of(&CLIENT_PORTS)),
        };
        let icmp = if src.is_ipv6() { ICMPV6 } else { ICMP };
        let protocol = self.of(&[TCP, TCP, TCP, TCP, UDP, UDP, UDP, UDP, SCTP, SCTP, icmp, 47]);
        (
            protocol,
            Ends {
                src,
                dst,
                src_port,
                dst_port,
            },
        )
    }
}
