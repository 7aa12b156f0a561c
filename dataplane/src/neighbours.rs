//! The steward's ARP and neighbour discovery: answers for our addresses, resolves next hops before they are needed, asks
//! those in use again before anybody would notice that they moved, and keeps a few packets waiting meanwhile. A scan of
//! addresses where nobody is finds every bound of it, so neighbours that we want (endpoints, routers, the host) have
//! room and questions kept for them.
//!
//! A neighbour in use that takes another MAC address (a failover, a pod restarted) is healed within a second: by its own
//! announcement; by a worker that sees a packet come from another station (`doubt`); and if it is silent, because it is
//! asked every `Pace`, and everybody a quarter of a second later if it does not answer.
//!
//! Takes  ARP and discovery packets, doubts, and packets whose next hop is unknown; time is handed in.
//! Gives  packets to send, waiting packets to go on; writes `NextHops`.
//! Never  waits: one neighbour that does not answer holds up nobody else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::addr::Mac;
use crate::conntrack::Timeouts;
use crate::index::{NextHopIndex, NicPortIndex};
use crate::mailbox::{Letter, Purpose};
use crate::network::{Interface, Network};
use crate::next_hop::GENERATIONS;
use crate::next_hop::Reachability;
use crate::tick::{TICKS_PER_SECOND, Tick, ticks};
use crate::wire::ethernet::{EtherType, Ethernet};

mod arp;
mod nd;
mod neighbour;

use neighbour::{Due, Neighbour};

/// Packets that wait for one neighbour: Linux keeps 3 and more; a burst's first window of 10 segments fits.
const WAITING: usize = 16;

/// Packets that wait for all neighbours together: 64 full neighbours, 1.5 MB at an MTU of 1,500. Once half of it is
/// taken, a neighbour may keep one packet, so that 32 who do not answer leave room for 512 who may.
const WAITING_IN_ALL: usize = 1_024;

/// Questions in a tick to neighbours that are known, on average: 1,000 a second. With more neighbours each is asked less
/// often.
const KNOWN_PER_TICK: usize = 1_000 / TICKS_PER_SECOND as usize;

/// Between two log lines on address conflicts: who causes one can cause a million.
const CONFLICT_LOG: u32 = 10 * TICKS_PER_SECOND;

/// What the steward sends on.
pub trait Outbox {
    /// A question or an answer, ready to go out on this NIC port. `false` if there was no room for it.
    fn send(&mut self, port: NicPortIndex, frame: &[u8]) -> bool;
    /// A packet that was received on this NIC port and waited; its next hop is now known.
    fn release(&mut self, received: NicPortIndex, frame: &[u8]);
}

/// When known neighbours are asked, and forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Ticks between questions to one in use; `None`: asked only to keep it known.
    every: Option<u32>,
    /// Ticks from the last answer until one that is not wanted is forgotten.
    forget: u32,
}

impl Pace {
    /// Every `interval`, in whole ticks, zero: never; for flows that are idle for `longest_idle` ticks at most. Nobody is
    /// forgotten for an hour, nor so soon that the generations of an index (see `next_hop`) could come round while a flow
    /// sleeps.
    pub fn new(interval: Duration, longest_idle: u32) -> Self {
        Self {
            every: (!interval.is_zero()).then(|| ticks(interval)),
            forget: (3600 * TICKS_PER_SECOND).max(longest_idle / (GENERATIONS as u32 - 1) + 1),
        }
    }

    /// So that `known` neighbours together are not asked too often.
    fn stretched(self, known: usize) -> Self {
        let slowest = (known / KNOWN_PER_TICK) as u32;
        Self {
            every: self.every.map(|every| every.max(slowest)),
            ..self
        }
    }
}

impl Default for Pace {
    /// Asked only to keep them known, for flows with the default timeouts.
    fn default() -> Self {
        Self::new(Duration::ZERO, Timeouts::default().longest())
    }
}

/// Every neighbour we ever asked for or heard from.
#[derive(Debug, Default)]
pub struct Neighbours {
    known: BTreeMap<NextHopIndex, Neighbour>,
    pace: Pace,
    /// Packets that wait, for all neighbours.
    waiting: usize,
    /// The last `tick`.
    ticked: Tick,
    /// The last log line on an address conflict.
    conflict: Option<Tick>,
}

impl Neighbours {
    /// Nobody known; those in use will be asked at this pace.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            ..Self::default()
        }
    }

    /// A letter from a worker. `false` if its packet found no room to wait.
    #[must_use]
    pub fn read(&mut self, network: &Network, letter: &Letter, now: Tick, out: &mut impl Outbox) -> bool {
        let received = (letter.port, letter.packet());
        match letter.purpose {
            Purpose::Neighbour => self.received(network, received.0, received.1, now, out),
            Purpose::Resolve { port, neighbour } => {
                return self.resolve(network, port, neighbour, Some(received), now, out);
            }
            Purpose::Doubt { neighbour } => self.doubt(network, received.0, neighbour, now, out),
            Purpose::Send | Purpose::Receive | Purpose::Fragment(_) => {}
        }
        true
    }

    /// A packet came by this neighbour, but from another station than we know: everybody is asked. The packet's station is
    /// not believed: anybody can send a packet.
    pub fn doubt(
        &mut self,
        network: &Network,
        port: NicPortIndex,
        address: IpAddr,
        now: Tick,
        out: &mut impl Outbox,
    ) {
        if let Some(index) = network.next_hops().find(port, address)
            && let Some(neighbour) = self.known.get_mut(&index)
            && let Some(interface) = network.interfaces().get(port.get())
            && interface.peer_mac.is_none()
            && neighbour.doubt(now)
        {
            neighbour.ask(network, interface, Mac::BROADCAST, now, out);
        }
    }

    /// Whom we resolve for their own sake is from now on said afresh.
    pub fn want_nobody(&mut self) {
        self.known.values_mut().for_each(|n| n.wanted = false);
    }

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
        let most = if self.waiting < WAITING_IN_ALL / 2 {
            WAITING
        } else {
            1
        };
        match (neighbour.state, packet) {
            (_, None) => true,
            (Reachability::Reachable(_), Some((received, frame))) => {
                out.release(received, frame);
                true
            }
            (Reachability::Incomplete, Some((received, frame)))
                if neighbour.waiting.len() < most && self.waiting < WAITING_IN_ALL =>
            {
                neighbour.waiting.push((received, frame.to_vec()));
                self.waiting += 1;
                true
            }
            _ => false,
        }
    }

    /// An Ethernet frame with an ARP or neighbour discovery packet, received on `port`.
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
        let for_us = is_for_us(network, interface, &heard, from_host);
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
                match neighbour.state {
                    // RFC 4861 §7.2.5: believed only once the station we know no longer answers.
                    Reachability::Reachable(other) if other != mac && !heard.replaces => {
                        if neighbour.doubt(now) {
                            neighbour.ask(network, interface, other, now, out);
                        }
                    }
                    _ => {
                        self.waiting -= neighbour.waiting.len();
                        neighbour.learn(network, index, mac, now, out);
                    }
                }
            }
        }
        if for_us
            && heard.asked
            && let Some(frame) = answer(interface, &heard)
        {
            out.send(port, &frame);
        }
    }

    /// Asks again where it is due, as far as there is room for questions; the rest is asked at the next tick. Forgets
    /// whom nobody needs: the next packet asks anew. Gives how many packets waited for neighbours that are now given up.
    pub fn tick(&mut self, network: &Network, now: Tick, out: &mut impl Outbox) -> usize {
        if self.ticked == now {
            return 0;
        }
        self.ticked = now;
        let mut given_up = 0;
        let pace = self.pace.stretched(self.known.len());
        let waiting = &mut self.waiting;
        let mut room = true;
        self.known.retain(|&index, neighbour| {
            let Some(interface) = network.interfaces().get(neighbour.port.get()) else {
                return true;
            };
            if !room || interface.peer_mac.is_some() {
                return true;
            }
            let used = || network.next_hops().take_used(index);
            match neighbour.due(now, pace, used) {
                Due::Nothing => {}
                Due::Question(to) => room = neighbour.ask(network, interface, to, now, out),
                Due::Forget => {
                    network.next_hops().forget(index);
                    return false;
                }
                Due::GiveUp => {
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
                    let (name, address) = (&interface.name, neighbour.address);
                    log::log!(level, "{name}: neighbour {address} does not answer");
                    room = neighbour.ask(network, interface, Mac::BROADCAST, now, out);
                }
            }
            true
        });
        given_up
    }
}

/// Whether what was heard speaks to us. The host's own kernel reaches everything through us; only its own addresses are
/// its own business, and what it asks without an address: whether its own are free.
fn is_for_us(network: &Network, interface: &Interface, heard: &Heard, from_host: bool) -> bool {
    let own = is_own(network, heard.target);
    match heard.target {
        _ if !from_host => own,
        IpAddr::V6(v6) if interface.link_local() == Some(v6) => true,
        IpAddr::V6(v6) => !own && heard.asker.is_some() && !v6.is_unicast_link_local(),
        IpAddr::V4(_) => !own,
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
    /// An address and its MAC address.
    about: Option<(IpAddr, Mac)>,
    /// Who asks, unless it keeps its address to itself.
    asker: Option<IpAddr>,
    /// The station that speaks.
    from: Mac,
    /// Whether it asks for `target`.
    asked: bool,
    /// The address it speaks of.
    target: IpAddr,
    /// Whether it may replace a MAC address that we know.
    replaces: bool,
}

fn hear(frame: &[u8]) -> Option<Heard> {
    let ethernet = Ethernet::new(frame).ok()?;
    if ethernet.vlan().is_some_and(|vlan| vlan != 0) {
        return None; // of another network than the NIC port's
    }
    match ethernet.ether_type() {
        EtherType::ARP => arp::hear(ethernet.payload()),
        EtherType::IPV6 => nd::hear(&ethernet),
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
        IpAddr::V6(address) => nd::question(interface, address, to),
    }
}

fn answer(interface: &Interface, heard: &Heard) -> Option<Vec<u8>> {
    match (heard.target, heard.asker) {
        (IpAddr::V4(target), asker) => {
            let asker = match asker {
                Some(IpAddr::V4(asker)) => asker,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            Some(arp::answer(interface, target, (heard.from, asker)))
        }
        (IpAddr::V6(target), Some(IpAddr::V6(asker))) => {
            nd::answer(interface, target, (heard.from, Some(asker)))
        }
        (IpAddr::V6(target), _) => nd::answer(interface, target, (heard.from, None)),
    }
}

fn is_own(network: &Network, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => network.is_own(v4.octets()),
        IpAddr::V6(v6) => network.is_own(v6.octets()),
    }
}

#[cfg(test)]
mod tests;
