//! Whole turns of real workers: frames, updates and time in any order. Nothing panics, no frame is lost, counters add up,
//! every source port taken is given back, and what answers a translated packet is translated back.

use sluice_dataplane::counters::CounterId;

use crate::bytes::{Bytes, fix_ip_checksum};
use crate::support::records::Records;
use crate::support::station::{KERNEL, Port, ROUTER, station};
use crate::support::vector::Setup;
use crate::support::world::{Seen, World};

/// Few, so that what is chosen meets again.
const ADDRESSES: [[u8; 4]; 12] = [
    [172, 18, 0, 7],
    [198, 51, 100, 10],
    [10, 244, 0, 20],
    [10, 244, 0, 11],
    [10, 244, 0, 12],
    [172, 18, 0, 2],
    [10, 244, 0, 1],
    [10, 96, 0, 10],
    [10, 96, 0, 11],
    [203, 0, 113, 80],
    [192, 0, 2, 30],
    [224, 0, 0, 1],
];
const PORTS: [u16; 6] = [80, 53, 8080, 30_080, 1024, 40_000];
/// Steps of one input: a longer one is the next one's.
const STEPS: usize = 64;

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut life = Life::new(bytes.byte(), bytes.byte());
    for _ in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        match bytes.below(8) {
            0..=2 => life.packet(&mut bytes),
            3 => {
                let (port, len) = (bytes.one_of(&Port::ALL), bytes.word() % 1600);
                let frame = bytes.take(usize::from(len)).to_vec();
                life.send(port, &frame);
            }
            4 | 5 => life.answer(&mut bytes),
            6 => life.update(&mut bytes),
            _ => life.wait(u32::from(bytes.byte()) * 16),
        }
        life.check();
    }
    life.end();
}

struct Life {
    world: World,
    records: Records,
    /// A flow stays until time or an update ends it, its replies are looked for where it is, and what leaves is of what
    /// arrived last: the table is not full, there is one worker, and all neighbours are known.
    stays: bool,
    no_host: bool,
    /// What has left, the latest last, and what arrived for it.
    left: Vec<(Vec<u8>, Port, Seen)>,
    sent: u64,
    seen: u64,
}

impl Life {
    fn new(settings: u8, seed: u8) -> Self {
        let no_host = settings & 1 != 0;
        let setup = Setup {
            flows: Some(if settings & 2 == 0 { 64 } else { 4 }),
            snat_ports: Some(1024..=if settings & 4 == 0 { 2047 } else { 1027 }),
            letters: Some(8),
            steward: Some(8),
            ring: Some(16),
            frames: Some(12),
            no_midstream_pickup: settings & 8 != 0,
            no_host,
            resolve: settings & 16 != 0,
            ..Setup::default()
        };
        let workers = 1 + seed % 2;
        let mut world = World::new(&setup, workers, u64::from(seed));
        let mut records = Records::default();
        let begin = "put network pods 10.244.0.0/16, put network services 10.96.0.0/16, \
                     put service a tcp, put service b udp external-local, put service c tcp internal-local, \
                     put cluster-ip a 10.96.0.10:80, put cluster-ip b 10.96.0.10:53, put external-ip b 192.0.2.30:53, \
                     put load-balancer-ip a 203.0.113.80:80, put node-port a 30080, put cluster-ip c 10.96.0.11:80, \
                     put backend a 10.244.0.11:8080, put backend b 10.244.0.12:53 local, put backend c 10.244.0.11:80";
        let changes = records.transaction(begin).unwrap();
        world.apply(&changes).unwrap();
        Self {
            world,
            records,
            stays: settings & (2 | 16) == 0 && workers == 1,
            no_host,
            left: Vec::new(),
            sent: 0,
            seen: 0,
        }
    }

    fn send(&mut self, port: Port, frame: &[u8]) {
        if port == Port::Host && self.no_host {
            return;
        }
        let queue = self.world.any_queue(port);
        self.world.send(queue, port, frame);
        self.sent += 1;
        self.world.settle();
        for seen in self.world.left() {
            self.seen += 1;
            self.left.push((frame.to_vec(), port, seen));
        }
        let old = self.left.len().saturating_sub(8);
        self.left.drain(..old);
    }

    /// A packet between stations that matter, with a few of its bytes changed.
    fn packet(&mut self, bytes: &mut Bytes<'_>) {
        let port = bytes.one_of(&Port::ALL);
        let (src, dst) = (bytes.one_of(&ADDRESSES), bytes.one_of(&ADDRESSES));
        let ports = (bytes.one_of(&PORTS), bytes.one_of(&PORTS));
        let (protocol, flags) = (bytes.one_of(&[6, 17, 6, 17, 1, 132]), bytes.byte());
        let ttl = bytes.one_of(&[64, 64, 64, 1, 0, 2, 255]);
        let mut frame = vec![0; 14 + 20];
        frame[..6].copy_from_slice(&port.mac());
        frame[6..12].copy_from_slice(&match port {
            Port::Client if src[0] == 172 => station(src),
            Port::Client => station(ROUTER),
            Port::Pods => station(src),
            Port::Host => KERNEL,
        });
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        (frame[22], frame[23]) = (ttl, protocol);
        frame[26..30].copy_from_slice(&src);
        frame[30..34].copy_from_slice(&dst);
        frame.extend(ports.0.to_be_bytes());
        frame.extend(ports.1.to_be_bytes());
        frame.extend(match protocol {
            6 => [0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0].to_vec(),
            17 => vec![0, 8 + flags % 8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            _ => vec![flags; 20],
        });
        let len = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        for _ in 0..bytes.below(4) {
            let at = bytes.below(frame.len());
            frame[at] = bytes.byte();
        }
        if bytes.below(8) != 0 {
            fix_ip_checksum(&mut frame);
        }
        self.send(port, &frame);
    }

    /// Something that left comes back turned around: at once, so its flow is there.
    fn answer(&mut self, bytes: &mut Bytes<'_>) {
        let Some((arrived, from, (port, left))) = self.left.iter().rev().nth(bytes.below(8)).cloned() else {
            return;
        };
        let mut frame = left;
        let is_flow = frame.len() >= 42 && frame[12..15] == [8, 0, 0x45] && matches!(frame[23], 6 | 17);
        if is_flow {
            swap(&mut frame, 26, 30, 4);
            swap(&mut frame, 34, 36, 2);
            frame[22] = 64;
        }
        if frame.len() >= 14 {
            swap(&mut frame, 0, 6, 6);
        }
        if is_flow && frame[23] == 6 {
            frame[47] = bytes.byte();
        }
        let broken = bytes.below(2) == 1;
        if broken {
            let at = bytes.below(frame.len().max(1));
            frame[at] = bytes.byte();
        }
        if is_flow {
            fix_ip_checksum(&mut frame);
        }
        let before = self.left.len();
        let sent = frame.clone();
        self.send(port, &frame);
        // CT-14: to the client of a flow its endpoint speaks only as the frontend, if at all.
        let translated = self.stays
            && is_flow
            && !broken
            && arrived.len() >= 42
            && arrived[12..15] == [8, 0, 0x45]
            && arrived[30..34] != sent[26..30]
            && arrived[20..22] == [0, 0];
        if translated && let Some((_, _, (to, reply))) = self.left.get(before..).and_then(|new| new.last()) {
            let to_client = *to == from && reply.len() >= 42 && reply[30..34] == arrived[26..30];
            let leaks = to_client && reply[26..30] == sent[26..30] && reply[36..38] == arrived[34..36];
            // An ICMP error of ours has another protocol.
            assert!(
                !leaks || reply[23] != arrived[23],
                "an endpoint's address leaves toward its client"
            );
        }
    }

    /// Time passes, and flows with it: what left is of no flow any more.
    fn wait(&mut self, seconds: u32) {
        // Neighbours are asked and given up in half a minute; what is left of the time only lets flows end, and a thousand
        // steps of it would be nearly all that an input costs.
        let stepwise = seconds.min(30);
        self.world.wait(stepwise);
        if seconds > stepwise {
            self.world.leap(seconds - stepwise);
        }
        self.left.clear();
    }

    fn update(&mut self, bytes: &mut Bytes<'_>) {
        let service = bytes.one_of(&["a", "b", "c"]);
        let protocol = if service == "b" { "udp" } else { "tcp" };
        let backend = format!(
            "{service} 10.244.0.{}:{}",
            11 + bytes.below(3),
            bytes.one_of(&PORTS)
        );
        let state = bytes.one_of(&["", "local", "terminating", "unready", "not-serving"]);
        let algorithm = bytes.one_of(&["random", "maglev", "round-robin", "least-connections"]);
        let text = match bytes.below(8) {
            0..=2 => format!("put backend {backend} {state}"),
            3 | 4 => format!("delete backend {backend}"),
            5 => format!("put service {service} {protocol} {algorithm}"),
            6 => format!("put service {service} {protocol} {algorithm} external-local internal-local"),
            _ => format!(
                "delete cluster-ip {service} 10.96.0.{}:{}",
                10 + bytes.below(2),
                bytes.one_of(&PORTS)
            ),
        };
        // What the tables do not have cannot be deleted: no transaction.
        if let Ok(changes) = self.records.transaction(&text) {
            self.world
                .apply(&changes)
                .unwrap_or_else(|refusal| panic!("{text}: {refusal}"));
        }
    }

    fn check(&mut self) {
        self.seen += self.world.left().len() as u64;
        let count = |id| self.world.count(id);
        let drops: u64 = self.world.drops().iter().map(|(_, count)| count).sum();
        assert_eq!(
            count(CounterId::RX_PACKETS),
            self.sent,
            "every frame sent was received"
        );
        assert_eq!(count(CounterId::DROPPED), drops, "drops by reason are all drops");
        assert_eq!(
            count(CounterId::TX_PACKETS),
            self.seen,
            "what was sent is what left"
        );
        assert!(count(CounterId::SNAT_PORTS_USED) <= count(CounterId::FLOWS_USED));
        assert!(
            count(CounterId::FLOWS_USED) + count(CounterId::FLOWS_EXPIRED) <= count(CounterId::FLOWS_OPENED)
        );
    }

    /// Everything ends: all flows expire, all their ports come back, all frames are free.
    fn end(&mut self) {
        self.world.leap(86_401);
        self.check();
        assert_eq!(self.world.count(CounterId::FLOWS_USED), 0, "every flow has ended");
        assert_eq!(
            self.world.count(CounterId::SNAT_PORTS_USED),
            0,
            "every port was given back"
        );
        let mut routed = vec![0; 34];
        routed[..6].copy_from_slice(&Port::Client.mac());
        assert_eq!(self.world.lost_frames(&routed), 0, "no frame is lost");
    }
}

fn swap(frame: &mut [u8], a: usize, b: usize, len: usize) {
    (0..len).for_each(|i| frame.swap(a + i, b + i));
}
