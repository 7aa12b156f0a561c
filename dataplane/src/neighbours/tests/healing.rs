//! Neighbours of both families that move, fall silent, come back and are forgotten, over hand-moved time.

use std::net::Ipv6Addr;

use super::*;
use crate::addr::Protocol;
use crate::wire::nd::{self, Neighbour as Message};
use crate::wire::{Icmpv6, Ipv6, ipv6};

const MOVED: Mac = Mac([2, 0, 0, 0, 0, 8]);
const SECOND: u32 = TICKS_PER_SECOND;

/// Neighbours at the default pace, and a link on which stations answer at once or are silent.
struct Link {
    network: Network,
    neighbours: Neighbours,
    out: Box_,
    now: Tick,
    /// Who answers for the neighbour, if anybody.
    station: Option<Mac>,
    /// Questions heard on the link.
    questions: usize,
}

impl Link {
    fn new() -> Self {
        let pods = Interface {
            name: "pods0".into(),
            mac: GATEWAY,
            mtu: 1500,
            addresses: vec!["10.244.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
            peer_mac: None,
        };
        Self {
            network: Network::new(vec![pods], vec![], vec![], None, 64),
            neighbours: Neighbours::new(Pace::new(Duration::from_millis(375), 0)),
            out: Box_::default(),
            now: Tick(1000),
            station: Some(POD),
            questions: 0,
        }
    }

    fn resolve(&mut self, address: IpAddr) -> NextHopIndex {
        assert!(
            self.neighbours
                .resolve(&self.network, PODS, address, None, self.now, &mut self.out)
        );
        self.answer();
        self.network.next_hops().find(PODS, address).unwrap()
    }

    /// The station answers what it hears: what is sent to it, or to all.
    fn answer(&mut self) {
        for (_, frame) in std::mem::take(&mut self.out.sent) {
            self.questions += 1;
            let ethernet = Ethernet::new(&frame[..]).unwrap();
            let Some(station) = self.station else { continue };
            if !ethernet.dst().is_group() && ethernet.dst() != station {
                continue;
            }
            let answer = match ethernet.ether_type() {
                EtherType::ARP => {
                    let arp = Arp::new(ethernet.payload()).unwrap();
                    arp::frame(
                        Operation::REPLY,
                        GATEWAY,
                        (station, arp.target_ip()),
                        (GATEWAY, arp.sender_ip()),
                    )
                }
                _ => {
                    let ip = Ipv6::new(ethernet.payload()).unwrap();
                    let asked = Message::received(&ip).unwrap();
                    advertisement(station, asked.target(), nd::SOLICITED | nd::OVERRIDE, ip.src())
                }
            };
            self.neighbours
                .received(&self.network, PODS, &answer, self.now, &mut self.out);
        }
    }

    /// Lets ticks pass, with a packet to the neighbour in each; gives after how many it had this MAC address.
    fn use_until(&mut self, index: NextHopIndex, mac: Mac, most: u32) -> Option<u32> {
        (0..=most).find(|_| {
            if self.network.next_hops().get(index).1 == Reachability::Reachable(mac) {
                return true;
            }
            self.pass();
            false
        })
    }

    fn pass(&mut self) {
        self.now = Tick(self.now.0 + 1);
        self.neighbours.tick(&self.network, self.now, &mut self.out);
        self.answer();
    }

    fn state(&self, index: NextHopIndex) -> Reachability {
        self.network.next_hops().get(index).1
    }
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn both() -> [IpAddr; 2] {
    [IpAddr::from([10, 244, 0, 7]), v6("fd00::7").into()]
}

fn nd_frame(message: [u8; nd::LEN], from: Mac, src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
    let mut bytes = vec![0; 14 + ipv6::HEADER_LEN + nd::LEN];
    let (header, packet) = bytes.split_at_mut(14);
    Ethernet::blank(header, EtherType::IPV6).unwrap().set_src(from);
    let mut ip = Ipv6::blank(packet, Protocol::ICMPV6).unwrap();
    ip.set_hop_limit(hop_limit);
    ip.set_src(src);
    ip.set_dst(dst);
    ip.payload_mut().copy_from_slice(&message);
    let mut icmp = Icmpv6::new(ip.payload_mut()).unwrap();
    icmp.fill_checksum(src.octets(), dst.octets());
    bytes
}

fn advertisement(station: Mac, target: Ipv6Addr, flags: u8, dst: Ipv6Addr) -> Vec<u8> {
    let mut message = [0; nd::LEN];
    let mut builder = Message::blank(&mut message[..], nd::ADVERTISEMENT).unwrap();
    builder.set_target(target);
    builder.set_flags(flags);
    builder.set_link_address(station);
    nd_frame(message, station, target, dst, 255)
}

fn solicitation(station: Mac, src: Ipv6Addr, target: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
    let mut message = [0; nd::LEN];
    let mut builder = Message::blank(&mut message[..], nd::SOLICITATION).unwrap();
    builder.set_target(target);
    builder.set_link_address(station);
    nd_frame(message, station, src, target, hop_limit)
}

#[test]
fn a_silent_change_of_mac_heals_within_a_second_of_use() {
    for address in both() {
        for phase in 0..8 {
            let mut link = Link::new();
            let index = link.resolve(address);
            assert_eq!(link.state(index), Reachability::Reachable(POD));
            (0..phase).for_each(|_| {
                link.state(index);
                link.pass();
            });
            link.station = Some(MOVED);
            let after = link.use_until(index, MOVED, 2 * SECOND).unwrap();
            assert!(after < SECOND, "{address}, phase {phase}: {after} ticks");
        }
    }
}

#[test]
fn a_neighbour_in_use_is_asked_every_third_tick_and_one_that_is_not_every_20_seconds() {
    for address in both() {
        let mut link = Link::new();
        let index = link.resolve(address);
        link.questions = 0;
        (0..30 * SECOND).for_each(|_| {
            link.state(index);
            link.pass();
        });
        assert_eq!(link.questions as u32, 30 * SECOND / 3);
        link.pass();
        link.questions = 0;
        (0..60 * SECOND).for_each(|_| link.pass());
        assert!((2..=4).contains(&link.questions), "{} questions", link.questions);
    }
}

#[test]
fn many_neighbours_in_use_are_asked_a_thousand_times_a_second_in_all_and_none_is_left_out() {
    let pods = Interface {
        name: "pods0".into(),
        mac: GATEWAY,
        mtu: 1500,
        addresses: vec!["10.244.0.1/16".parse().unwrap()],
        peer_mac: None,
    };
    let mut link = Link::new();
    link.network = Network::new(vec![pods], vec![], vec![], None, 4096);
    let indices: Vec<_> = (0..2000u16)
        .map(|n| link.resolve([10, 244, 1 + (n >> 8) as u8, n as u8].into()))
        .collect();
    link.questions = 0;
    for _ in 0..10 * SECOND {
        indices.iter().for_each(|&index| _ = link.state(index));
        link.pass();
    }
    assert!(
        (9_000..=11_000).contains(&link.questions),
        "{} questions",
        link.questions
    );
    link.station = Some(MOVED);
    for _ in 0..5 * SECOND {
        indices.iter().for_each(|&index| _ = link.state(index));
        link.pass();
    }
    let healed = |&&index: &&NextHopIndex| link.state(index) == Reachability::Reachable(MOVED);
    assert_eq!(indices.iter().filter(healed).count(), indices.len());
}

#[test]
fn a_doubt_makes_everybody_be_asked_at_once_and_once_a_second() {
    for address in both() {
        let mut link = Link::new();
        let index = link.resolve(address);
        link.questions = 0;
        link.neighbours
            .doubt(&link.network, PODS, address, link.now, &mut link.out);
        assert_eq!(link.out.sent.len(), 1);
        link.station = Some(MOVED);
        link.answer();
        assert_eq!(link.state(index), Reachability::Reachable(MOVED));
        for _ in 0..100 {
            link.neighbours
                .doubt(&link.network, PODS, address, link.now, &mut link.out);
        }
        assert!(link.out.sent.is_empty());
        let unknown = [10, 244, 0, 99].into();
        link.neighbours
            .doubt(&link.network, PODS, unknown, link.now, &mut link.out);
        assert!(link.out.sent.is_empty(), "who is not known is not asked for");
    }
}

#[test]
fn an_announcement_heals_at_once_but_makes_nobody_known() {
    let mut link = Link::new();
    let [v4, v6_] = both().map(|address| link.resolve(address));
    let pod = Ipv4Addr::new(10, 244, 0, 7);
    let gratuitous = arp::frame(
        Operation::REQUEST,
        Mac::BROADCAST,
        (MOVED, pod),
        (Mac::default(), pod),
    );
    let unsolicited = advertisement(MOVED, v6("fd00::7"), nd::OVERRIDE, v6("ff02::1"));
    let stranger = advertisement(MOVED, v6("fd00::9"), nd::OVERRIDE, v6("ff02::1"));
    for frame in [gratuitous, unsolicited, stranger] {
        link.neighbours
            .received(&link.network, PODS, &frame, link.now, &mut link.out);
    }
    assert_eq!(link.state(v4), Reachability::Reachable(MOVED));
    assert_eq!(link.state(v6_), Reachability::Reachable(MOVED));
    assert_eq!(link.network.next_hops().find(PODS, v6("fd00::9")), None);
}

#[test]
fn an_advertisement_without_override_replaces_nobody_who_answers() {
    // RFC 4861 §7.2.5.
    let mut link = Link::new();
    let index = link.resolve(v6("fd00::7").into());
    let other = advertisement(MOVED, v6("fd00::7"), nd::SOLICITED, v6("fd00::1"));
    link.neighbours
        .received(&link.network, PODS, &other, link.now, &mut link.out);
    assert_eq!(link.state(index), Reachability::Reachable(POD));
    assert_eq!(link.out.sent.len(), 1, "but the one we know is asked");
    link.answer();
    (0..SECOND).for_each(|_| link.pass());
    assert_eq!(link.state(index), Reachability::Reachable(POD));
}

#[test]
fn a_neighbour_that_dies_is_given_up_and_one_that_comes_back_while_in_use_heals_within_a_second() {
    for address in both() {
        let mut link = Link::new();
        let index = link.resolve(address);
        link.station = None;
        for _ in 0..6 * SECOND {
            link.state(index);
            link.pass();
        }
        assert_eq!(link.state(index), Reachability::Unreachable);
        link.station = Some(MOVED);
        assert!(link.use_until(index, MOVED, 2 * SECOND).unwrap() <= SECOND + 1);
    }
}

#[test]
fn who_is_silent_holds_up_nobody_else() {
    let (network, mut neighbours, mut out) = (network(), Neighbours::default(), Box_::default());
    for n in 100..150 {
        for _ in 0..100 {
            let _ = neighbours.resolve(
                &network,
                PODS,
                [10, 244, 0, n],
                Some((HOST, b"p")),
                Tick(0),
                &mut out,
            );
        }
    }
    assert!(neighbours.waiting < WAITING_IN_ALL, "there is room for others");
    assert!(neighbours.resolve(
        &network,
        PODS,
        [10, 244, 0, 7],
        Some((HOST, b"mine")),
        Tick(0),
        &mut out
    ));
    neighbours.received(&network, PODS, &answer(POD), Tick(1), &mut out);
    assert_eq!(out.released, [(HOST, b"mine".to_vec())]);
}

#[test]
fn an_unwanted_neighbour_is_forgotten_an_hour_after_its_last_answer_and_flows_learn_it() {
    for address in both() {
        let mut link = Link::new();
        let index = link.resolve(address);
        link.station = None;
        let step = |link: &mut Link, seconds: u32| {
            for _ in 0..seconds {
                link.now = link.now.plus_seconds(1);
                link.neighbours.tick(&link.network, link.now, &mut link.out);
                link.answer();
            }
        };
        step(&mut link, 4000);
        assert_eq!(
            link.network.next_hops().used(),
            1,
            "as long as it is wanted it stays"
        );
        link.neighbours.want_nobody();
        step(&mut link, 10);
        assert_eq!(link.network.next_hops().used(), 0);
        assert_eq!(link.state(index), Reachability::Forgotten);

        let mut link = Link::new();
        let index = link.resolve(address);
        link.neighbours.want_nobody();
        step(&mut link, 60);
        link.station = None;
        step(&mut link, 3500);
        assert_eq!(link.state(index), Reachability::Unreachable);
        step(&mut link, 130);
        assert_eq!(link.state(index), Reachability::Forgotten);
    }
}

#[test]
fn solicitations_for_our_addresses_are_answered_and_nothing_else() {
    let mut link = Link::new();
    let own = link.network.interfaces()[0].link_local().unwrap();
    let mut ask = |src: &str, target: Ipv6Addr, hop_limit| {
        let frame = solicitation(POD, v6(src), target, hop_limit);
        link.neighbours
            .received(&link.network, PODS, &frame, link.now, &mut link.out);
        std::mem::take(&mut link.out.sent)
    };
    for target in [v6("fd00::1"), own] {
        let [(_, answer)] = &ask("fd00::7", target, 255)[..] else {
            panic!("one answer")
        };
        let ethernet = Ethernet::new(&answer[..]).unwrap();
        assert_eq!((ethernet.src(), ethernet.dst()), (GATEWAY, POD));
        let ip = Ipv6::new(ethernet.payload()).unwrap();
        assert_eq!((ip.src(), ip.dst(), ip.hop_limit()), (target, v6("fd00::7"), 255));
        let answer = Message::received(&ip).unwrap();
        assert_eq!((answer.target(), answer.link_address()), (target, Some(GATEWAY)));
        assert_eq!(answer.flags(), nd::ROUTER | nd::SOLICITED | nd::OVERRIDE);
    }
    assert!(ask("fd00::7", v6("fd00::2"), 255).is_empty(), "not ours");
    assert!(
        ask("fd00::7", v6("fd00::1"), 254).is_empty(),
        "from beyond the link"
    );
    let index = link.network.next_hops().find(PODS, v6("fd00::7")).unwrap();
    assert_eq!(
        link.state(index),
        Reachability::Reachable(POD),
        "who asks for us is known"
    );
}

#[test]
fn a_question_goes_to_the_solicited_node_group_from_our_address_on_that_link() {
    let mut link = Link::new();
    link.station = None;
    for (neighbour, source) in [
        ("fd00::a1b2:c3d4", "fd00::1"),
        ("fe80::a1b2:c3d4", "fe80::ff:fe00:1"),
    ] {
        assert!(
            link.neighbours
                .resolve(&link.network, PODS, v6(neighbour), None, link.now, &mut link.out)
        );
        let (_, frame) = link.out.sent.pop().unwrap();
        let ethernet = Ethernet::new(&frame[..]).unwrap();
        assert_eq!(ethernet.dst(), Mac([0x33, 0x33, 0xff, 0xb2, 0xc3, 0xd4]));
        let ip = Ipv6::new(ethernet.payload()).unwrap();
        assert_eq!((ip.src(), ip.dst()), (v6(source), v6("ff02::1:ffb2:c3d4")));
        let question = Message::received(&ip).unwrap();
        assert!(question.is_solicitation() && question.target() == v6(neighbour));
        assert_eq!(question.link_address(), Some(GATEWAY));
    }
}
