//! Random worlds, biased so that things meet: a handful of addresses, ports and Services, and every other packet one of
//! a flow that is there.

use std::net::{IpAddr, Ipv4Addr};

use super::bytes::{
    ACK, Ends, FIN, ICMP, LINK, RST, Read, SCTP, SYN, TCP, UDP, fix_header, fix_transport, read,
};
use super::gateway::{Flow, Gateway};
use super::step::{Change, Step};
use super::surroundings::Surroundings;
use super::tables::{BackendName, Service};
use crate::support::random::Random;
use crate::support::station::{KERNEL, Port};

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

const fn ip(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const CLUSTER_IPS: [IpAddr; 2] = [ip(10, 96, 0, 10), ip(10, 96, 0, 11)];
const EXTERNAL_IPS: [IpAddr; 2] = [ip(192, 0, 2, 80), ip(203, 0, 113, 80)];
const NODE: [IpAddr; 2] = [ip(172, 18, 0, 2), ip(10, 244, 0, 1)];
/// Pods of this node, of another one beyond the router, and the node itself.
const ENDPOINTS: [IpAddr; 5] = [
    ip(10, 244, 0, 11),
    ip(10, 244, 0, 12),
    ip(10, 244, 0, 13),
    ip(10, 244, 9, 11),
    ip(172, 18, 0, 2),
];
const OUTSIDE: [IpAddr; 3] = [ip(172, 18, 0, 7), ip(198, 51, 100, 10), ip(198, 51, 100, 11)];
/// Nobody's.
const OTHERS: [IpAddr; 3] = [ip(10, 96, 0, 99), ip(10, 244, 0, 20), ip(192, 0, 2, 9)];
/// Times around which timeouts end.
const WAITS: [u32; 11] = [1, 2, 3, 10, 11, 28, 31, 60, 119, 121, 3_601];

pub struct Chance {
    random: Random,
    number: u16,
    workers: usize,
    host: bool,
}

impl Chance {
    pub const fn new(random: Random) -> Self {
        Self {
            random,
            number: 0,
            workers: 1,
            host: true,
        }
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.random.below(n) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.below(choices.len())]
    }

    pub fn surroundings(&mut self) -> Surroundings {
        self.workers = self.of(&[1, 1, 2, 3]);
        self.host = !self.one_in(4);
        let few = self.one_in(4);
        Surroundings {
            workers: self.workers,
            host: self.host,
            default_route: true,
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
        if !self.one_in(4) {
            changes.push(Change::Network("pods", (ip(10, 244, 0, 0), 16)));
        }
        if !self.one_in(4) {
            changes.push(Change::Network("services", (ip(10, 96, 0, 0), 16)));
        }
        if self.one_in(3) {
            let networks = [
                (ip(10, 244, 0, 0), 16),
                (ip(0, 0, 0, 0), 0),
                (ip(172, 18, 0, 2), 32),
            ];
            changes.push(Change::Network("node-ports", self.of(&networks)));
        }
        changes.push(Change::Masquerade(self.one_in(4)));
        for (name, protocol) in SERVICES {
            changes.push(self.service(name, protocol));
            for _ in 0..3 {
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
        };
        Change::Service(name, service)
    }

    fn frontend(&mut self, name: &'static str) -> Change {
        let port = self.of(&PORTS);
        match self.random.below(4) {
            0 | 1 => Change::Frontend("cluster-ip", name, Some(self.of(&CLUSTER_IPS)), port),
            2 => {
                let kind = self.of(&["external-ip", "load-balancer-ip"]);
                Change::Frontend(kind, name, Some(self.of(&EXTERNAL_IPS)), port)
            }
            _ => Change::Frontend("node-port", name, None, self.of(&NODE_PORTS)),
        }
    }

    fn backend(&mut self, name: &'static str) -> Change {
        let states = [self.one_in(2), self.one_in(5), self.one_in(6), self.one_in(8)];
        Change::Backend(self.backend_name(name), states)
    }

    fn backend_name(&mut self, name: &'static str) -> BackendName {
        (name, self.of(&ENDPOINTS), self.of(&PORTS))
    }

    /// What happens next.
    pub fn step(&mut self, gateway: &Gateway) -> Step {
        match self.random.below(100) {
            0..=2 => Step::Wait(self.of(&WAITS)),
            3 if self.one_in(10) => Step::Wait(86_401),
            4..=9 => Step::Change(self.change(gateway)),
            _ => self.frames(gateway),
        }
    }

    fn change(&mut self, gateway: &Gateway) -> Change {
        let (name, protocol) = self.of(&SERVICES);
        let tables = &gateway.tables;
        match self.random.below(12) {
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
            _ if self.one_in(3) => Change::DeleteService(name),
            _ if self.one_in(2) => Change::Masquerade(self.one_in(4)),
            _ => {
                let network = ("pods", (ip(10, 244, 0, 0), 16));
                let put = gateway.tables.pods.is_empty();
                if put {
                    Change::Network(network.0, network.1)
                } else {
                    Change::DeleteNetwork(network.0, network.1)
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
            self.random.below(self.workers)
        };
        let mut frames = vec![first];
        // Which of a burst got the last port cannot be told.
        let scarce = gateway.surroundings.snat_ports.len() < 100;
        while !scarce && self.one_in(4) && frames.len() < 8 {
            let (other, frame) = self.frame(gateway);
            // The same again: of a new flow, perhaps.
            let again = self.renumbered(frames[0].clone());
            frames.push(if other == port { frame } else { again });
        }
        Step::Frames(port, queue, frames)
    }

    fn frame(&mut self, gateway: &Gateway) -> (Port, Vec<u8>) {
        let known = self.one_in(2) && !gateway.flows.is_empty();
        let (protocol, ends) = if known {
            let flow = &gateway.flows[self.random.below(gateway.flows.len())];
            (
                flow.protocol,
                if self.one_in(2) { flow.original } else { flow.reply },
            )
        } else {
            self.ends(gateway)
        };
        // Finding 4: with several workers, what a client sends straight to the endpoint it had may be looked for at another
        // one than what is left of its flow.
        let straight = |flow: &&Flow| !flow.snat && flow.protocol == protocol && flow.reply == ends.turned();
        let ends = match gateway.flows.iter().find(straight) {
            Some(flow) if self.workers > 1 => flow.reply,
            _ => ends,
        };
        let natural = gateway.surroundings.route(ends.src).unwrap_or(Port::Client);
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
        let frame = self.packet(port, protocol, ends);
        (
            port,
            if self.one_in(25) {
                self.broken(frame)
            } else {
                frame
            },
        )
    }

    fn ends(&mut self, gateway: &Gateway) -> (u8, Ends) {
        let mut src = match self.random.below(10) {
            0..=4 => self.of(&OUTSIDE),
            5..=7 => self.of(&ENDPOINTS),
            8 => self.of(&NODE),
            _ => self.of(&OTHERS),
        };
        // Finding 2: with several workers, replies to clients that have a Service's address are looked for at another one.
        if !self.host && NODE.contains(&src) || self.workers > 1 && src == OTHERS[0] {
            src = OUTSIDE[0];
        }
        let mut src_port = self.of(&CLIENT_PORTS);
        // TP-7: no socket of the node's has one of the ports that are ours to take.
        while NODE.contains(&src) && gateway.surroundings.snat_ports.contains(&src_port) {
            src_port = self.of(&CLIENT_PORTS);
        }
        let (dst, dst_port) = match self.random.below(20) {
            0..=7 => (self.of(&CLUSTER_IPS), self.of(&PORTS)),
            8..=11 => (self.of(&EXTERNAL_IPS), self.of(&PORTS)),
            12..=14 => (self.of(&NODE), self.of(&NODE_PORTS)),
            15 | 16 => (self.of(&ENDPOINTS), self.of(&PORTS)),
            17 => (self.of(&OTHERS), self.of(&PORTS)),
            18 => (self.of(&OUTSIDE), self.of(&CLIENT_PORTS)),
            _ => (self.of(&CLUSTER_IPS), self.of(&CLIENT_PORTS)),
        };
        let protocol = self.of(&[TCP, TCP, TCP, TCP, UDP, UDP, UDP, UDP, SCTP, SCTP, ICMP, 47]);
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

    /// A packet as a sender would make it, mostly.
    fn packet(&mut self, port: Port, protocol: u8, ends: Ends) -> Vec<u8> {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (ends.src, ends.dst) else {
            panic!("no IPv6 yet")
        };
        let len = if self.one_in(20) {
            self.random.below(1400)
        } else {
            self.random.below(20)
        };
        let mut data: Vec<u8> = (0..len).map(|_| self.random.next() as u8).collect();
        let flags = self.of(&[
            SYN,
            SYN,
            SYN | ACK,
            ACK,
            ACK,
            FIN | ACK,
            RST,
            RST | ACK,
            SYN | FIN,
            0,
            ACK | 8,
        ]);
        let mut l4 = Vec::new();
        match protocol {
            TCP => {
                l4.extend([ends.src_port.to_be_bytes(), ends.dst_port.to_be_bytes()].concat());
                l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 4, 0, 0, 0, 0, 0]);
            }
            UDP => {
                l4.extend([ends.src_port.to_be_bytes(), ends.dst_port.to_be_bytes()].concat());
                l4.extend((8 + len as u16).to_be_bytes());
                l4.extend([0, 0]);
            }
            SCTP => {
                l4.extend([ends.src_port.to_be_bytes(), ends.dst_port.to_be_bytes()].concat());
                l4.extend([
                    0,
                    0,
                    0,
                    9,
                    0,
                    0,
                    0,
                    0,
                    self.of(&[1, 1, 10, 11, 0, 0, 3, 2, 6, 7, 8, 14]),
                    0,
                ]);
                l4.extend((4 + len as u16).to_be_bytes());
            }
            ICMP => l4.extend([self.of(&[8, 8, 0, 3, 11, 13]), 0, 0, 0, 0, 1, 0, 2]),
            _ => l4.extend([0; 4]),
        }
        l4.append(&mut data);
        let options = if self.one_in(20) {
            1 + self.random.below(10)
        } else {
            0
        };
        let mac = if port == Port::Host {
            KERNEL
        } else {
            port.next_station(ends.src)
        };
        let mut frame = [&port.mac()[..], &mac, &[8, 0]].concat();
        let total = 20 + 4 * options + l4.len();
        frame.extend([0x45 + options as u8, self.random.next() as u8]);
        frame.extend((total as u16).to_be_bytes());
        frame.extend([0, 0, self.of(&[0, 0x40]), 0]);
        let ttl = if self.one_in(8) {
            self.of(&[0, 1, 2, 255])
        } else {
            64
        };
        frame.extend([ttl, protocol, 0, 0]);
        frame.extend(src.octets());
        frame.extend(dst.octets());
        frame.extend(vec![1; 4 * options]);
        frame.append(&mut l4);
        if self.one_in(6) {
            frame.resize(frame.len() + self.random.below(20), 0xee);
        }
        let mut frame = self.renumbered(frame);
        if self.one_in(10) {
            return frame; // without a checksum, which is a wrong one but for UDP
        }
        if let Read::Packet(mut packet) = read(&frame, port.mac()) {
            fix_transport(&mut packet);
            frame = packet.frame;
            if self.one_in(12) {
                let at = self.within(&frame);
                frame[at] ^= 1 << self.random.below(8);
                fix_header(&mut frame);
            }
        }
        frame
    }

    /// Anywhere in the transport header or the data.
    fn within(&mut self, frame: &[u8]) -> usize {
        let from = LINK + usize::from(frame[LINK] & 15) * 4;
        if frame[LINK + 9] == SCTP {
            // One chunk a packet: what several do together is `conntrack`'s own test.
            return (from + self.random.below(12)).min(frame.len() - 1);
        }
        (from + self.random.below(frame.len().saturating_sub(from).max(1))).min(frame.len() - 1)
    }

    /// With an identification that no other packet of the world has.
    fn renumbered(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        if frame.len() < LINK + 20 {
            return frame;
        }
        self.number = self.number.wrapping_add(1).max(1);
        frame[LINK + 4..LINK + 6].copy_from_slice(&self.number.to_be_bytes());
        fix_header(&mut frame);
        frame
    }

    /// A frame that something is wrong with, from the link's header on. Its number stays.
    fn broken(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        match self.random.below(6) {
            0 => {
                let len = self.random.below(frame.len());
                // Short of a number it could not be told from others.
                frame.truncate(len);
            }
            1 => {
                let at = self.random.below(6);
                frame[at] ^= 1 << self.random.below(8);
            }
            2 => frame[12..14].copy_from_slice(&self.of(&[[0x88, 0xcc], [0, 46], [0x90, 0]])),
            3 => {
                let at = LINK + self.of(&[0, 2, 3, 8, 9, 10, 11, 12, 16, 17, 18]);
                frame[at] = self.random.next() as u8;
                if self.one_in(2) {
                    fix_header(&mut frame);
                }
            }
            4 => {
                let at = self.within(&frame);
                frame[at] = self.random.next() as u8;
            }
            // As it came from a station that is none.
            _ => frame[6] |= 1,
        }
        frame
    }
}
