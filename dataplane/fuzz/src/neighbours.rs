//! Neighbours' messages of any bytes, questions and time: bounded, and every question, answer and waiting packet goes where
//! it may.

use std::net::Ipv4Addr;

use sluice_dataplane::addr::Mac;
use sluice_dataplane::index::NicPortIndex;
use sluice_dataplane::neighbours::{Neighbours, Outbox};
use sluice_dataplane::network::{Interface, Network, Route};
use sluice_dataplane::next_hop::Reachability;
use sluice_dataplane::tick::Tick;
use sluice_dataplane::wire::{Arp, EtherType, Ethernet};

use crate::bytes::Bytes;

const PORTS: u8 = 3;

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let network = network();
    let (mut neighbours, mut now) = (Neighbours::default(), Tick(1000));
    let mut out = Sent { waiting: 0 };
    while !bytes.is_empty() {
        let port = NicPortIndex(bytes.byte() % PORTS);
        match bytes.below(4) {
            0 => {
                let frame = arp(&mut bytes);
                neighbours.received(&network, port, &frame, now, &mut out);
            }
            1 => {
                let address = [10, 0, port.0, bytes.byte()];
                if neighbours.resolve(&network, port, address, Some((port, &[0; 60])), now, &mut out) {
                    out.waiting += 1;
                }
            }
            2 => {
                let len = bytes.below(64);
                neighbours.received(&network, port, bytes.take(len), now, &mut out);
            }
            _ => {
                now = Tick(now.0.wrapping_add(u32::from(bytes.byte())));
                out.waiting -= neighbours.tick(&network, now, &mut out) as isize;
            }
        }
        assert!(network.next_hops().used() <= network.next_hops().limit());
    }
    // Long enough for every neighbour to be given up: what waited goes on or is given up, never both, never neither.
    for _ in 0..20 {
        now = now.plus_seconds(1);
        out.waiting -= neighbours.tick(&network, now, &mut out) as isize;
    }
    assert_eq!(out.waiting, 0, "packets wait for ever, or were given twice");
}

/// Bytes that look like ARP, with addresses that matter.
fn arp(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut frame = vec![0; 42];
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, bytes.byte() % 4]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 1, bytes.byte()]);
    frame[22..28].copy_from_slice(&[2 | bytes.byte() & 1, 0, 0, 0, 1, bytes.byte()]);
    frame[28..32].copy_from_slice(&[10, 0, bytes.byte() % PORTS, bytes.byte()]);
    frame[38..42].copy_from_slice(&[10, 0, bytes.byte() % PORTS, bytes.byte()]);
    frame
}

struct Sent {
    /// Packets that were taken to wait and have neither gone on nor been given up.
    waiting: isize,
}

impl Outbox for Sent {
    fn send(&mut self, port: NicPortIndex, frame: &[u8]) -> bool {
        let ethernet = Ethernet::new(frame).unwrap();
        assert!(ethernet.ether_type() == EtherType::ARP && port.0 < PORTS && !ethernet.src().is_group());
        let arp = Arp::new(ethernet.payload()).unwrap();
        assert_eq!(
            arp.sender_mac(),
            Mac([2, 0, 0, 0, 0, port.0]),
            "we speak for ourselves"
        );
        true
    }

    fn release(&mut self, _: NicPortIndex, _: &[u8]) {
        self.waiting -= 1;
    }
}

fn network() -> Network {
    let interface = |n: u8| Interface {
        name: n.to_string(),
        mac: Mac([2, 0, 0, 0, 0, n]),
        mtu: 1500,
        addresses: vec![format!("10.0.{n}.1/24").parse().unwrap()],
        peer_mac: None,
    };
    let route = Route {
        to: "0.0.0.0/0".parse().unwrap(),
        via: Some(Ipv4Addr::new(10, 0, 0, 254).into()),
        port: NicPortIndex(0),
    };
    let network = Network::new(
        (0..PORTS).map(interface).collect(),
        vec![route],
        vec![Ipv4Addr::new(10, 0, 0, 1).into()],
        Some(NicPortIndex(2)),
        // As few as there may be: scans must not push out who is wanted.
        1,
    );
    let router = network
        .next_hops()
        .insert(NicPortIndex(0), [10, 0, 0, 254])
        .unwrap();
    network
        .next_hops()
        .set(router, Reachability::Reachable(Mac([2, 0, 0, 0, 1, 254])));
    network
}
