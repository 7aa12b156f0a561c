//! Neighbours come and go, over hand-moved time.

use super::*;
use crate::neighbours::neighbour::TRIES;
use crate::wire::arp::{Arp, Operation};

const GATEWAY: Mac = Mac([2, 0, 0, 0, 0, 1]);
const POD: Mac = Mac([2, 0, 0, 0, 0, 7]);
const PODS: NicPortIndex = NicPortIndex(0);
const HOST: NicPortIndex = NicPortIndex(1);

#[derive(Default)]
struct Box_ {
    full: bool,
    sent: Vec<(NicPortIndex, Vec<u8>)>,
    released: Vec<(NicPortIndex, Vec<u8>)>,
}

impl Outbox for Box_ {
    fn send(&mut self, port: NicPortIndex, frame: &[u8]) -> bool {
        if !self.full {
            self.sent.push((port, frame.to_vec()));
        }
        !self.full
    }
    fn release(&mut self, received: NicPortIndex, frame: &[u8]) {
        self.released.push((received, frame.to_vec()));
    }
}

fn network() -> Network {
    let pods = Interface {
        name: "pods0".into(),
        mac: GATEWAY,
        mtu: 1500,
        addresses: vec!["10.244.0.1/24".parse().unwrap()],
        peer_mac: None,
    };
    let host = Interface {
        name: "host0".into(),
        addresses: vec![],
        peer_mac: Some(Mac([2; 6])),
        ..pods.clone()
    };
    Network::new(
        vec![pods, host],
        vec![],
        vec!["172.18.0.2".parse().unwrap()],
        Some(HOST),
        64,
    )
}

fn answer(from: Mac) -> Vec<u8> {
    arp::frame(
        Operation::REPLY,
        GATEWAY,
        (from, Ipv4Addr::new(10, 244, 0, 7)),
        (GATEWAY, Ipv4Addr::new(10, 244, 0, 1)),
    )
}

fn reachability(network: &Network) -> Reachability {
    network
        .next_hops()
        .get(network.next_hops().find(PODS, [10, 244, 0, 7]).unwrap())
        .1
}

#[test]
fn a_packet_waits_for_its_neighbour_and_goes_on_when_it_answers() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    let packet = Some((HOST, &b"packet"[..]));
    assert!(neighbours.resolve(&network, PODS, [10, 244, 0, 7], packet, Tick(0), &mut out));
    assert_eq!(out.sent.len(), 1);
    assert!(out.released.is_empty());
    neighbours.received(&network, PODS, &answer(POD), Tick(1), &mut out);
    assert_eq!(out.released, [(HOST, b"packet".to_vec())]);
    assert_eq!(reachability(&network), Reachability::Reachable(POD));
}

#[test]
fn only_so_many_packets_wait() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    let took = (0..100)
        .filter(|_| {
            neighbours.resolve(
                &network,
                PODS,
                [10, 244, 0, 7],
                Some((HOST, b"p")),
                Tick(0),
                &mut out,
            )
        })
        .count();
    assert_eq!(took, WAITING);
    assert_eq!(out.sent.len(), 1, "one question, however many wait");
}

#[test]
fn a_silent_neighbour_becomes_unreachable_and_heals_when_it_answers() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    assert!(neighbours.resolve(
        &network,
        PODS,
        [10, 244, 0, 7],
        Some((HOST, b"p")),
        Tick(0),
        &mut out
    ));
    for second in 1..=4 {
        neighbours.tick(&network, Tick(0).plus_seconds(second), &mut out);
    }
    assert_eq!(reachability(&network), Reachability::Unreachable);
    assert_eq!(out.sent.len() as u32, 1 + TRIES);
    neighbours.received(&network, PODS, &answer(POD), Tick(0).plus_seconds(5), &mut out);
    assert_eq!(reachability(&network), Reachability::Reachable(POD));
    assert!(out.released.is_empty(), "what waited too long is gone");
}

#[test]
fn a_scan_leaves_room_for_wanted_neighbours_and_is_forgotten() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    let scan = |neighbours: &mut Neighbours, out: &mut Box_, now| {
        let resolve =
            |n: &u8| neighbours.resolve(&network, PODS, [10, 244, 0, *n], Some((HOST, b"p")), now, out);
        (8..=255).filter(resolve).count()
    };
    let took = scan(&mut neighbours, &mut out, Tick(0));
    assert_eq!(took, network.next_hops().limit() / 4 * 3);
    assert!(neighbours.resolve(&network, PODS, [10, 244, 0, 7], None, Tick(0), &mut out));
    for second in 1..=9 {
        neighbours.tick(&network, Tick(0).plus_seconds(second), &mut out);
    }
    assert_eq!((network.next_hops().used(), neighbours.waiting), (1, 0));
    neighbours.received(&network, PODS, &answer(POD), Tick(0).plus_seconds(10), &mut out);
    assert_eq!(
        reachability(&network),
        Reachability::Reachable(POD),
        "the wanted one was kept"
    );
    assert_eq!(
        scan(&mut neighbours, &mut out, Tick(0).plus_seconds(10)),
        took - 1
    );
}

#[test]
fn packets_that_wait_are_bounded_over_all_neighbours() {
    let interface = Interface {
        name: "pods0".into(),
        mac: GATEWAY,
        mtu: 1500,
        addresses: vec!["10.244.0.1/16".parse().unwrap()],
        peer_mac: None,
    };
    let network = Network::new(vec![interface], vec![], vec![], None, 4096);
    let (mut neighbours, mut out) = (Neighbours::default(), Box_::default());
    let took = (0..2 * WAITING_IN_ALL)
        .filter(|n| {
            let address = [10, 244, 1 + (n >> 8) as u8, *n as u8];
            neighbours.resolve(&network, PODS, address, Some((PODS, b"p")), Tick(0), &mut out)
        })
        .count();
    assert_eq!((took, neighbours.waiting), (WAITING_IN_ALL, WAITING_IN_ALL));
}

#[test]
fn a_question_without_room_is_not_counted_as_unanswered() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    out.full = true;
    assert!(neighbours.resolve(&network, PODS, [10, 244, 0, 7], None, Tick(0), &mut out));
    for second in 1..=10 {
        neighbours.tick(&network, Tick(0).plus_seconds(second), &mut out);
    }
    assert_eq!(reachability(&network), Reachability::Incomplete);
    out.full = false;
    neighbours.tick(&network, Tick(0).plus_seconds(11), &mut out);
    assert_eq!(out.sent.len(), 1);
}

#[test]
fn a_changed_mac_address_is_learnt_at_once() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    assert!(neighbours.resolve(&network, PODS, [10, 244, 0, 7], None, Tick(0), &mut out));
    for last in [7, 8] {
        let mac = Mac([2, 0, 0, 0, 0, last]);
        neighbours.received(&network, PODS, &answer(mac), Tick(1), &mut out);
        assert_eq!(reachability(&network), Reachability::Reachable(mac));
    }
}

#[test]
fn we_answer_for_our_addresses_on_links_and_for_all_others_on_the_host_port() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    let ask = |target: [u8; 4]| {
        arp::frame(
            Operation::REQUEST,
            Mac::BROADCAST,
            (POD, Ipv4Addr::new(10, 244, 0, 7)),
            (Mac::default(), target.into()),
        )
    };
    neighbours.received(&network, PODS, &ask([10, 244, 0, 1]), Tick(0), &mut out);
    neighbours.received(&network, PODS, &ask([10, 244, 0, 8]), Tick(0), &mut out);
    assert_eq!(out.sent.len(), 1);
    let reply = Arp::new(&out.sent[0].1[14..]).unwrap();
    assert_eq!(
        (reply.operation(), reply.sender_mac()),
        (Operation::REPLY, GATEWAY)
    );
    assert_eq!(
        reachability(&network),
        Reachability::Reachable(POD),
        "who asks for us is known at once"
    );
    neighbours.received(&network, HOST, &ask([10, 96, 0, 10]), Tick(0), &mut out);
    neighbours.received(&network, HOST, &ask([172, 18, 0, 2]), Tick(0), &mut out);
    assert_eq!(out.sent.len(), 2);
}

#[test]
fn a_host_port_without_a_known_peer_is_probed_for_the_nodes_address() {
    let pods = Interface {
        name: "pods0".into(),
        mac: GATEWAY,
        mtu: 1500,
        addresses: vec![],
        peer_mac: None,
    };
    let host = Interface {
        name: "host0".into(),
        ..pods.clone()
    };
    let node = "172.18.0.2".parse().unwrap();
    let network = Network::new(vec![pods, host], vec![], vec![node], Some(HOST), 64);
    let (mut neighbours, mut out) = (Neighbours::default(), Box_::default());
    let (port, address) = network.route_to(node).unwrap();
    assert!(neighbours.resolve(&network, port, address, None, Tick(0), &mut out));
    let probe = Arp::new(&out.sent[0].1[14..]).unwrap();
    assert_eq!(
        (probe.sender_ip(), IpAddr::V4(probe.target_ip())),
        (Ipv4Addr::UNSPECIFIED, node)
    );
    let kernel = Mac([2, 0, 0, 0, 0, 99]);
    let answer = arp::frame(
        Operation::REPLY,
        GATEWAY,
        (kernel, Ipv4Addr::new(172, 18, 0, 2)),
        (GATEWAY, Ipv4Addr::UNSPECIFIED),
    );
    neighbours.received(&network, HOST, &answer, Tick(1), &mut out);
    assert_eq!(network.host_mac(), Some(kernel));
}

#[test]
fn the_host_needs_no_arp() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    assert!(neighbours.resolve(
        &network,
        HOST,
        [172, 18, 0, 2],
        Some((PODS, b"p")),
        Tick(0),
        &mut out
    ));
    assert_eq!((out.sent.len(), out.released.len()), (0, 1));
}

mod healing;
