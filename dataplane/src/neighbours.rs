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
    /// who never answered and is not wanted: the next packet asks anew. Gives how many packets waited for neighbours
    /// that are now given up.
    pub fn tick(&mut self, network: &Network, now: Tick, out: &mut impl Outbox) -> usize {
        if self.ticked == now {
            return 0;
        }
        self.ticked = now;
        let mut given_up = 0;
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
                given_up += neighbour.waiting.len();
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
        given_up
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
mod tests;
