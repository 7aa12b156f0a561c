//! What a trial counted.

use hdrhistogram::Histogram;

use super::judge::Wrong;
use super::stamp::{Arrival, Seen};

/// Longest latency that is told apart, ns: a minute. Longer ones count as this.
const LONGEST: u64 = 60_000_000_000;

/// One direction.
#[derive(Clone, Debug)]
pub struct Direction {
    /// Packets given to the driver.
    pub sent: u64,
    /// Packets that came out right, each counted once.
    pub received: u64,
    /// Packets that came out right again.
    pub duplicates: u64,
    /// Packets that were overtaken by one of their own flow.
    pub overtaken: u64,
    /// Packets that came out wrong, by `Wrong`.
    pub wrong: [u64; Wrong::ALL.len()],
    /// From when the client's packet was due to when it came out here, ns.
    pub latency: Histogram<u64>,
    seen: Vec<Seen>,
}

impl Direction {
    fn new(flows: usize) -> Self {
        Self {
            sent: 0,
            received: 0,
            duplicates: 0,
            overtaken: 0,
            wrong: [0; Wrong::ALL.len()],
            // The bounds are constants that hdrhistogram accepts; memory is all that can be wanting, as for any Vec.
            latency: Histogram::new_with_bounds(1, LONGEST, 3).unwrap_or_else(|_| unreachable!()),
            seen: vec![Seen::default(); flows],
        }
    }

    /// A right packet with a sequence number. Whether it is the first of it.
    #[inline]
    pub(super) fn arrived(&mut self, flow: u32, sequence: u32, latency: u64) -> bool {
        match self.seen[flow as usize].note(sequence) {
            Arrival::Again => {
                self.duplicates += 1;
                return false;
            }
            Arrival::Overtaken => self.overtaken += 1,
            Arrival::InOrder => {}
        }
        self.count(latency);
        true
    }

    /// A right packet whose place its connection knows.
    #[inline]
    pub(super) fn count(&mut self, latency: u64) {
        self.received += 1;
        self.latency.saturating_record(latency);
    }

    /// Packets that never came out right.
    pub const fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// The share of them, 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 {
            0.0
        } else {
            self.lost() as f64 / self.sent as f64
        }
    }

    /// Packets that came out wrong.
    pub fn wrong(&self) -> u64 {
        self.wrong.iter().sum()
    }
}

/// TCP connections, from SYN to the last ACK.
#[derive(Clone, Debug)]
pub struct Lives {
    /// Begun.
    pub started: u64,
    /// Ended as they should.
    pub finished: u64,
    /// Given up: something of them was lost.
    pub failed: u64,
    /// From when the SYN was due to the last answer, ns.
    pub length: Histogram<u64>,
}

/// Everything.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Client to pod.
    pub forward: Direction,
    /// Pod to client.
    pub back: Direction,
    /// TCP.
    pub lives: Lives,
    /// Packets and connections that were due and could not be begun: the driver took no more, or all flows were busy.
    pub unsent: u64,
    /// Answers that the driver toward the gateway took no more of.
    pub unanswered: u64,
    /// The longest that a packet was sent after it was due, ns.
    pub latest: u64,
    /// Frames that were not ours.
    pub foreign: u64,
    /// The first wrong frame: from the pods' side or the clients', why, and its bytes.
    pub sample: Option<(&'static str, Wrong, Vec<u8>)>,
}

impl Tally {
    /// Of `flows` flows.
    pub fn new(flows: usize) -> Self {
        let forward = Direction::new(flows);
        let length = forward.latency.clone();
        Self {
            forward,
            back: Direction::new(flows),
            lives: Lives {
                started: 0,
                finished: 0,
                failed: 0,
                length,
            },
            unsent: 0,
            unanswered: 0,
            latest: 0,
            foreign: 0,
            sample: None,
        }
    }

    /// A wrong packet.
    #[cold]
    pub(super) fn wrong(&mut self, back: bool, wrong: Wrong, frame: &[u8]) {
        let (side, direction) = if back {
            ("clients", &mut self.back)
        } else {
            ("pods", &mut self.forward)
        };
        direction.wrong[wrong as usize] += 1;
        if self.sample.is_none() {
            self.sample = Some((side, wrong, frame.to_vec()));
        }
    }

    /// Whether every packet that was sent came out right, exactly once, answers included.
    pub fn is_flawless(&self) -> bool {
        let clean = |direction: &Direction| {
            direction.lost() == 0 && direction.wrong() == 0 && direction.duplicates == 0
        };
        clean(&self.forward) && clean(&self.back) && self.unsent == 0 && self.lives.failed == 0
    }
}
