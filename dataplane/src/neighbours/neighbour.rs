//! One neighbour: what we know of it and when it is asked next. The same for both families.

use std::net::IpAddr;

use super::{Outbox, Pace, question};
use crate::addr::Mac;
use crate::index::{NextHopIndex, NicPortIndex};
use crate::network::{Interface, Network};
use crate::next_hop::Reachability;
use crate::tick::{TICKS_PER_SECOND, Tick};

/// Between unanswered questions (RFC 1122 §2.3.2.1, RFC 4861 §7.2.2: at most one a second for a destination).
pub(super) const RETRY: u32 = TICKS_PER_SECOND;

/// From a question to the station we know, until everybody is asked: 1/4 s, far longer than a station needs.
pub(super) const DOUBT: u32 = 2;

/// Questions without an answer before a neighbour counts as unreachable: Linux's mcast_solicit.
pub(super) const TRIES: u32 = 3;

/// The same for one that has answered before: 4 s without any of five answers.
const TRIES_KNOWN: u32 = 5;

/// Age at which a neighbour that nobody uses is asked again.
const REFRESH: u32 = 20 * TICKS_PER_SECOND;

/// Between questions to an unreachable neighbour that no flow uses. It is asked on so that it heals by itself.
const RETRY_UNREACHABLE: u32 = 5 * TICKS_PER_SECOND;

#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) port: NicPortIndex,
    pub(super) address: IpAddr,
    pub(super) state: Reachability,
    /// When it was last asked or last answered.
    since: Tick,
    /// When it last answered, if it ever did: flows may name it.
    answered: Option<Tick>,
    /// When it was last doubted.
    doubted: Option<Tick>,
    /// Questions since the last answer.
    tries: u32,
    pub(super) waiting: Vec<(NicPortIndex, Vec<u8>)>,
    /// Resolved for its own sake, not for a packet: asked for until it answers.
    pub(super) wanted: bool,
}

/// What is due for a neighbour.
pub(super) enum Due {
    Nothing,
    /// A question to this station or to all.
    Question(Mac),
    /// It has not answered often enough.
    GiveUp,
    /// Nobody needs to know it any more.
    Forget,
}

impl Neighbour {
    pub(super) const fn new(port: NicPortIndex, address: IpAddr, now: Tick) -> Self {
        Self {
            port,
            address,
            state: Reachability::Incomplete,
            since: now,
            answered: None,
            doubted: None,
            tries: 0,
            waiting: Vec::new(),
            wanted: false,
        }
    }

    /// What is due now. `used` is asked at most once a pace.
    pub(super) fn due(&self, now: Tick, pace: Pace, used: impl FnOnce() -> bool) -> Due {
        let age = now.since(self.since);
        let after = |ticks, due| if age >= ticks { due } else { Due::Nothing };
        let everybody = Due::Question(Mac::BROADCAST);
        match (self.state, self.tries) {
            (Reachability::Reachable(mac), 0) => {
                let paced = pace.every.is_some_and(|every| age >= every) && used();
                after(if paced { 0 } else { REFRESH }, Due::Question(mac))
            }
            (Reachability::Reachable(_), 1) => after(DOUBT, everybody),
            (Reachability::Reachable(_), TRIES_KNOWN..) | (Reachability::Incomplete, TRIES..) => {
                after(RETRY, Due::GiveUp)
            }
            (Reachability::Incomplete, 0) => everybody,
            (Reachability::Reachable(_) | Reachability::Incomplete, _) => after(RETRY, everybody),
            _ => {
                let known = self.answered.is_some_and(|last| now.since(last) < pace.forget);
                if !known && !self.wanted {
                    return after(RETRY_UNREACHABLE, Due::Forget);
                }
                let eager = age >= RETRY && used();
                after(if eager { RETRY } else { RETRY_UNREACHABLE }, everybody)
            }
        }
    }

    /// Asks. A question that found no room was not one.
    pub(super) fn ask(
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

    /// Whether a sign of another MAC address is reason to ask everybody: not while it is being asked, nor once more
    /// within a second.
    pub(super) fn doubt(&mut self, now: Tick) -> bool {
        let rare = self.doubted.is_none_or(|last| now.since(last) >= RETRY);
        let doubt = rare && self.tries == 0 && matches!(self.state, Reachability::Reachable(_));
        if doubt {
            self.doubted = Some(now);
        }
        doubt
    }

    pub(super) fn learn(
        &mut self,
        network: &Network,
        index: NextHopIndex,
        mac: Mac,
        now: Tick,
        out: &mut impl Outbox,
    ) {
        if self.state != Reachability::Reachable(mac) {
            self.state = Reachability::Reachable(mac);
            network.next_hops().set(index, self.state);
        }
        self.answered = Some(now);
        self.tries = 0;
        self.since = now;
        for (received, frame) in self.waiting.drain(..) {
            out.release(received, &frame);
        }
    }
}
