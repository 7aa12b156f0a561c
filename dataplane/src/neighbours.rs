//! The steward's ARP (RFC 826): answers for our addresses, resolves next hops before they are needed, refreshes them
//! before they go stale, and keeps a few packets waiting meanwhile. A scan of addresses where nobody is finds every
//! bound of it, so neighbours that we want (endpoints, routers, the host) have room and questions kept for them.
//!
//! Takes  ARP packets and packets whose next hop is unknown; time is handed in.
//! Gives  ARP packets to send, waiting packets to go on; writes `NextHops`.
//! Never  waits: one neighbour that does not answer holds up nobody else.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::addr::Mac;
use crate::index::{NextHopIndex, NicPortIndex};
use crate::network::{Interface, Network};
use crate::next_hop::Reachability;
use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::wire::arp::{Arp, LEN, Operation};
use crate::wire::ethernet::{self, EtherType, Ethernet};

/// Between unanswered questions (RFC 1122 §2.3.2.1: at most one a second for a destination).
const RETRY: u32 = TICKS_PER_SECOND;

/// Questions without an answer before a neighbour counts as unreachable: Linux's mcast_solicit.
const TRIES: u32 = 3;

/// Age at which a known neighbour is asked again, well before anybody would notice a change.
const REFRESH: u32 = 20 * TICKS_PER_SECOND;

/// Between questions to an unreachable neighbour. It is asked on so that it heals by itself.
const RETRY_UNREACHABLE: u32 = 5 * TICKS_PER_SECOND;

/// Packets that wait for one neighbour: Linux keeps 3 and more; a burst's first window of 10 segments fits.
const WAITING: usize = 16;

/// Packets that wait for all neighbours together: 64 full neighbours, 1.5 MB at an MTU of 1,500.
const WAITING_IN_ALL: usize = 1_024;

/// Between two log lines on address conflicts: who causes one can cause a million.
const CONFLICT_LOG: u32 = 10 * TICKS_PER_SECOND;

/// What the steward sends on.
pub trait Outbox {
    /// An ARP packet, ready to go out on this NIC port. `false` if there was no room for it.
    fn send(&mut self, port: NicPortIndex, frame: &[u8]) -> bool;
    /// A packet that was received on this NIC port and waited; its next hop is now known.
    fn release(&mut self, received: NicPortIndex, frame: &[u8]);
}

/// Every neighbour we ever asked for or heard from.
#[derive(Debug, Default)]
pub struct Neighbours {
    known: BTreeMap<NextHopIndex, Neighbour>,
    /// Packets that wait, for all neighbours.
    waiting: usize,
    /// The last `tick`.
    ticked: Tick,
    /// The last log line on an address conflict.
    conflict: Option<Tick>,
}

#[derive(Debug)]
struct Neighbour {
    port: NicPortIndex,
    address: [u8; 4],
    state: Reachability,
    /// When it was last asked or last answered.
    since: Tick,
    /// Questions since the last answer.
    tries: u32,
    waiting: Vec<(NicPortIndex, Vec<u8>)>,
    /// Resolved for its own sake, not for a packet: asked for until it answers.
    wanted: bool,
    /// Has answered once: flows may name it.
    answered: bool,
}

impl Neighbours {
    /// Makes sure `address` on `port` is being resolved, and lets `packet` (received on the port given with it) wait
    /// for it. `false` if there is no room for the packet or for the neighbour.
    #[must_use]
    pub fn resolve(
        &mut self,
        network: &Network,
        port: NicPortIndex,
        address: [u8; 4],
        packet: Option<(NicPortIndex, &[u8])>,
        now: Tick,
        out: &mut impl Outbox,
    ) -> bool {
        let Some(interface) = network.interfaces().get(port.get()) else {
            return false;
        };
        let wanted = packet.is_none();
        let Some(index) = enter(network, port, address, wanted) else {
            return false;
        };
        let mut new = false;
        let neighbour = self.known.entry(index).or_insert_with(|| {
            new = true;
            Neighbour::new(port, address, now)
        });
        neighbour.wanted |= wanted;
        if new {
            if let Some(mac) = interface.peer_mac {
                neighbour.learn(network, index, mac, now, out);
            } else {
                neighbour.ask(network, interface, Mac::BROADCAST, now, out);
            }
        }
        match (neighbour.state, packet) {
            (_, None) => true,
            (Reachability::Reachable(_), Some((received, frame))) => {
                out.release(received, frame);
                true
            }
            (Reachability::Incomplete, Some((received, frame)))
                if neighbour.waiting.len() < WAITING && self.waiting < WAITING_IN_ALL =>
            {
                neighbour.waiting.push((received, frame.to_vec()));
                self.waiting += 1;
                true
            }
            _ => false,
        }
    }

    /// An Ethernet frame with an ARP packet, received on `port`.
    pub fn received(
        &mut self,
        network: &Network,
        port: NicPortIndex,
        frame: &[u8],
        now: Tick,
        out: &mut impl Outbox,
    ) {
        let Some(interface) = network.interfaces().get(port.get()) else {
            return;
        };
        let Some(packet) = frame.get(14..).and_then(|p| Arp::new(p).ok()) else {
            return;
        };
        let (sender, sender_mac) = (packet.sender_ip().octets(), packet.sender_mac());
        let target = packet.target_ip().octets();
        let from_host = network.host() == Some(port);
        if !from_host && network.is_own(sender) && sender_mac != interface.mac {
            if self.conflict.is_none_or(|last| now.since(last) >= CONFLICT_LOG) {
                self.conflict = Some(now);
                let name = &interface.name;
                log::warn!(
                    "{name}: {sender_mac} uses our address {}: address conflict",
                    packet.sender_ip()
                );
            }
            return;
        }
        // The host's kernel has the node's addresses on its end of the host port, whatever networks links have.
        let on_link = if from_host {
            network.is_own(sender)
        } else {
            interface
                .addresses
                .iter()
                .any(|n| n.contains(&packet.sender_ip()))
        };
        let for_us = if from_host {
            // The host's own kernel reaches everything through us; only its own addresses are its own business.
            !network.is_own(target)
        } else {
            network.is_own(target)
        };
        if on_link && sender != [0; 4] && !sender_mac.is_group() {
            let known = network.next_hops().find(port, sender);
            if let Some(index) = if for_us {
                enter(network, port, sender, false)
            } else {
                known
            } {
                let neighbour = self
                    .known
                    .entry(index)
                    .or_insert_with(|| Neighbour::new(port, sender, now));
                self.waiting -= neighbour.waiting.len();
                neighbour.learn(network, index, sender_mac, now, out);
            }
        }
        if for_us && packet.operation() == Operation::REQUEST {
            let reply = arp_frame(
                Operation::REPLY,
                sender_mac,
                (interface.mac, target),
                (sender_mac, sender),
            );
            out.send(port, &reply);
        }
    }

    /// Asks again where it is due, as far as there is room for questions; the rest is asked at the next tick. Forgets
    /// who never answered and is not wanted: the next packet asks anew.
    pub fn tick(&mut self, network: &Network, now: Tick, out: &mut impl Outbox) {
        if self.ticked == now {
            return;
        }
        self.ticked = now;
        let waiting = &mut self.waiting;
        let mut room = true;
        self.known.retain(|&index, neighbour| {
            let Some(interface) = network.interfaces().get(neighbour.port.get()) else {
                return true;
            };
            if !room || interface.peer_mac.is_some() {
                return true;
            }
            let (due, to) = match (neighbour.state, neighbour.tries) {
                (Reachability::Incomplete, 0) => (0, Mac::BROADCAST),
                (Reachability::Reachable(mac), 0) => (REFRESH, mac),
                (Reachability::Reachable(_) | Reachability::Incomplete, _) => (RETRY, Mac::BROADCAST),
                (Reachability::Unreachable, _) => (RETRY_UNREACHABLE, Mac::BROADCAST),
            };
            if now.since(neighbour.since) < due {
                return true;
            }
            if neighbour.state == Reachability::Unreachable {
                if !neighbour.wanted && !neighbour.answered {
                    network.next_hops().forget(index);
                    return false;
                }
            } else if neighbour.tries >= TRIES {
                neighbour.state = Reachability::Unreachable;
                network.next_hops().set(index, neighbour.state);
                *waiting -= neighbour.waiting.len();
                neighbour.waiting = Vec::new();
                // A scan makes thousands of the others.
                let level = if neighbour.wanted {
                    log::Level::Warn
                } else {
                    log::Level::Debug
                };
                let address = Ipv4Addr::from(neighbour.address);
                log::log!(
                    level,
                    "{}: neighbour {address} does not answer ARP",
                    interface.name
                );
            }
            room = neighbour.ask(network, interface, to, now, out);
            true
        });
    }

    /// Neighbours that answer.
    pub fn reachable(&self) -> usize {
        self.known
            .values()
            .filter(|n| matches!(n.state, Reachability::Reachable(_)))
            .count()
    }
}

impl Neighbour {
    const fn new(port: NicPortIndex, address: [u8; 4], now: Tick) -> Self {
        Self {
            port,
            address,
            state: Reachability::Incomplete,
            since: now,
            tries: 0,
            waiting: Vec::new(),
            wanted: false,
            answered: false,
        }
    }

    /// Asks; a question that found no room was not one.
    fn ask(
        &mut self,
        network: &Network,
        interface: &Interface,
        to: Mac,
        now: Tick,
        out: &mut impl Outbox,
    ) -> bool {
        let asked = out.send(
            self.port,
            &question(network, interface, self.port, self.address, to),
        );
        if asked {
            self.tries = self.tries.saturating_add(1);
            self.since = now;
        }
        asked
    }

    fn learn(&mut self, network: &Network, index: NextHopIndex, mac: Mac, now: Tick, out: &mut impl Outbox) {
        if self.state != Reachability::Reachable(mac) {
            self.state = Reachability::Reachable(mac);
            network.next_hops().set(index, self.state);
        }
        self.answered = true;
        self.tries = 0;
        self.since = now;
        for (received, frame) in self.waiting.drain(..) {
            out.release(received, &frame);
        }
    }
}

/// The neighbour's index, entered if new. The last quarter of the room is for wanted ones: no scan takes it.
fn enter(network: &Network, port: NicPortIndex, address: [u8; 4], wanted: bool) -> Option<NextHopIndex> {
    let hops = network.next_hops();
    if !wanted && hops.used() >= hops.limit() / 4 * 3 {
        return hops.find(port, address);
    }
    hops.insert(port, address)
}

/// Asks who has `address`, from our address on that link, else any of ours (a router on an unnumbered port). The host
/// is asked for its own addresses, which are ours, too, so that question has no sender (a probe, RFC 5227 §2.1.1).
fn question(
    network: &Network,
    interface: &Interface,
    port: NicPortIndex,
    address: [u8; 4],
    to: Mac,
) -> Vec<u8> {
    let on_link = interface
        .addresses
        .iter()
        .find(|n| n.contains(&Ipv4Addr::from(address)))
        .map(|n| n.addr().octets());
    let any = || {
        if network.is_own(address) {
            None
        } else {
            network.source_address(port)
        }
    };
    let source = on_link.or_else(any).unwrap_or_default();
    arp_frame(
        Operation::REQUEST,
        to,
        (interface.mac, source),
        (Mac::default(), address),
    )
}

/// An Ethernet frame to `to` with an ARP packet from `sender` about `target`.
fn arp_frame(operation: Operation, to: Mac, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::HEADER_LEN + LEN];
    let (header, payload) = bytes.split_at_mut(ethernet::HEADER_LEN);
    // Both buffers are exactly as long as what is built in them.
    if let (Ok(mut header), Ok(mut arp)) = (
        Ethernet::blank(header, EtherType::ARP),
        Arp::blank(payload, operation),
    ) {
        header.set_dst(to);
        header.set_src(sender.0);
        arp.set_sender(sender.0, sender.1.into());
        arp.set_target(target.0, target.1.into());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

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
        arp_frame(
            Operation::REPLY,
            GATEWAY,
            (from, [10, 244, 0, 7]),
            (GATEWAY, [10, 244, 0, 1]),
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
            arp_frame(
                Operation::REQUEST,
                Mac::BROADCAST,
                (POD, [10, 244, 0, 7]),
                (Mac::default(), target),
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
        let (port, address) = network.route([172, 18, 0, 2]).unwrap();
        assert!(neighbours.resolve(&network, port, address, None, Tick(0), &mut out));
        let probe = Arp::new(&out.sent[0].1[14..]).unwrap();
        assert_eq!((probe.sender_ip().octets(), probe.target_ip()), ([0; 4], node));
        let kernel = Mac([2, 0, 0, 0, 0, 99]);
        let answer = arp_frame(
            Operation::REPLY,
            GATEWAY,
            (kernel, [172, 18, 0, 2]),
            (GATEWAY, [0; 4]),
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
}
