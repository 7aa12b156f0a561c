//! The steward's ARP and neighbour discovery: answers for our addresses, resolves next hops before they are needed, refreshes them
//! before they go stale, and keeps a few packets waiting meanwhile. A scan of addresses where nobody is finds every
//! bound of it, so neighbours that we want (endpoints, routers, the host) have room and questions kept for them.
//!
//! Takes  ARP packets and packets whose next hop is unknown; time is handed in.
//! Gives  ARP packets to send, waiting packets to go on; writes `NextHops`.
//! Never  waits: one neighbour that does not answer holds up nobody else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::addr::Mac;
use crate::index::{NextHopIndex, NicPortIndex};
use crate::network::{Interface, Network};
use crate::next_hop::Reachability;
use crate::tick::{TICKS_PER_SECOND, Tick};
use crate::wire::ethernet::{EtherType, Ethernet};

mod arp;

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
    address: IpAddr,
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
        address: impl Into<IpAddr>,
        packet: Option<(NicPortIndex, &[u8])>,
        now: Tick,
        out: &mut impl Outbox,
    ) -> bool {
        let address = address.into();
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
        let Some(heard) = hear(frame) else {
            return;
        };
        let from_host = network.host() == Some(port);
        if let Some((sender, _)) = heard.about
            && !from_host
            && is_own(network, sender)
            && heard.from != interface.mac
        {
            if self.conflict.is_none_or(|last| now.since(last) >= CONFLICT_LOG) {
                self.conflict = Some(now);
                let (name, from) = (&interface.name, heard.from);
                log::warn!("{name}: {from} uses our address {sender}: address conflict");
            }
            return;
        }
        // The host's own kernel reaches everything through us; only its own addresses are its own business.
        let for_us = is_own(network, heard.target) != from_host;
        if let Some((sender, mac)) = heard.about {
            let known = network.next_hops().find(port, sender);
            // The host's kernel has the node's addresses on its end of the host port, whatever networks links have.
            let on_link = if from_host {
                is_own(network, sender)
            } else {
                known.is_some() || interface.addresses.iter().any(|n| n.contains(&sender))
            };
            let enter = || {
                if for_us {
                    enter(network, port, sender, false)
                } else {
                    known
                }
            };
            if on_link && let Some(index) = enter() {
                let neighbour = self
                    .known
                    .entry(index)
                    .or_insert_with(|| Neighbour::new(port, sender, now));
                self.waiting -= neighbour.waiting.len();
                neighbour.learn(network, index, mac, now, out);
            }
        }
        if for_us && let Some(asked) = heard.asked {
            let sender = heard.about.map(|(sender, _)| sender);
            if let Some(frame) = answer(interface, asked, sender, heard.from) {
                out.send(port, &frame);
            }
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
                (Reachability::Unreachable | Reachability::Forgotten, _) => {
                    (RETRY_UNREACHABLE, Mac::BROADCAST)
                }
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
                log::log!(
                    level,
                    "{}: neighbour {} does not answer",
                    interface.name,
                    neighbour.address
                );
            }
            room = neighbour.ask(network, interface, to, now, out);
            true
        });
        given_up
    }
}

impl Neighbour {
    const fn new(port: NicPortIndex, address: IpAddr, now: Tick) -> Self {
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
        let asked = question(network, interface, self.port, self.address, to)
            .is_none_or(|frame| out.send(self.port, &frame));
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
fn enter(network: &Network, port: NicPortIndex, address: IpAddr, wanted: bool) -> Option<NextHopIndex> {
    let hops = network.next_hops();
    if !wanted && hops.used() >= hops.limit() / 4 * 3 {
        return hops.find(port, address);
    }
    hops.insert(port, address)
}

/// What a neighbour said, whatever its words.
#[derive(Debug)]
struct Heard {
    /// The speaker and its MAC address, unless it keeps them to itself.
    about: Option<(IpAddr, Mac)>,
    /// The station that speaks.
    from: Mac,
    /// The address it asks for, if it asks.
    asked: Option<IpAddr>,
    /// The address it speaks of.
    target: IpAddr,
}

fn hear(frame: &[u8]) -> Option<Heard> {
    let ethernet = Ethernet::new(frame).ok()?;
    match ethernet.ether_type() {
        EtherType::ARP => arp::hear(ethernet.payload()),
        _ => None,
    }
}

fn question(
    network: &Network,
    interface: &Interface,
    port: NicPortIndex,
    address: IpAddr,
    to: Mac,
) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) => Some(arp::question(network, interface, port, address, to)),
        IpAddr::V6(_) => None,
    }
}

fn answer(interface: &Interface, asked: IpAddr, sender: Option<IpAddr>, to: Mac) -> Option<Vec<u8>> {
    let IpAddr::V4(asked) = asked else {
        return None;
    };
    let sender = match sender {
        Some(IpAddr::V4(sender)) => sender,
        _ => Ipv4Addr::UNSPECIFIED,
    };
    Some(arp::answer(interface, asked, (to, sender)))
}

fn is_own(network: &Network, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => network.is_own(v4.octets()),
        IpAddr::V6(v6) => network.is_own(v6.octets()),
    }
}

#[cfg(test)]
mod tests;
