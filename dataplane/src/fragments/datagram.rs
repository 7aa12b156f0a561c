//! What has been seen of one datagram.
//!
//! Takes  the places of its fragments, in any order, and those that must wait.
//! Gives  whether all of it was seen, and whether what waits may go.
//! Never  believes two fragments that contradict each other.

use arrayvec::ArrayVec;

use super::Transport;
use crate::addr::Protocol;
use crate::index::NicPortIndex;
use crate::nic::Frame;
use crate::tick::Tick;

/// Fragments of one datagram that can wait for its first: the longest datagram, 65,535 bytes, in an Ethernet's packets
/// of 1,500.
const HELD_MAX: usize = 45;

/// Gaps that one datagram may have at a time. More than this is no reordering but an attack on our memory.
const RUNS_MAX: usize = 16;

/// Where a fragment belongs in its datagram (RFC 791 §3.1, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte's place.
    pub start: u32,
    /// The place after its last byte.
    pub end: u32,
    /// No fragment comes after it.
    pub last: bool,
}

pub(super) struct Datagram {
    /// Tells it from a later datagram of the same key in `by_age`.
    pub(super) since: Tick,
    pub(super) transport: Option<Transport>,
    /// Bytes between the fragment header and the transport header (IPv6 destination options).
    pub(super) options: u32,
    pub(super) held: ArrayVec<(NicPortIndex, Frame), HELD_MAX>,
    /// Bytes seen: ascending, apart.
    runs: ArrayVec<(u32, u32), RUNS_MAX>,
    /// Bytes in all, once the last fragment has come.
    pub(super) total: Option<u32>,
    /// Nothing of it passes any more (RFC 5722 §4).
    pub(super) broken: bool,
}

/// A piece contradicts what was seen of its datagram.
#[derive(Debug)]
pub(super) struct Contradiction;

impl Datagram {
    pub(super) const fn new(since: Tick) -> Self {
        Self {
            since,
            transport: None,
            options: 0,
            held: ArrayVec::new_const(),
            runs: ArrayVec::new_const(),
            total: None,
            broken: false,
        }
    }

    /// Notes a piece. One that was seen whole before is a duplicate, and welcome.
    pub(super) fn see(&mut self, piece: Piece) -> Result<(), Contradiction> {
        let past_the_end = |total| piece.end > total || piece.last && piece.end != total;
        let beyond = self
            .runs
            .last()
            .is_some_and(|run| piece.last && run.1 > piece.end);
        if self.total.is_some_and(past_the_end) || beyond {
            return Err(Contradiction);
        }
        if piece.last {
            self.total = Some(piece.end);
        }
        let run = (piece.start, piece.end);
        if self.runs.iter().any(|seen| seen.0 <= run.0 && run.1 <= seen.1) {
            return Ok(());
        }
        if self.runs.iter().any(|seen| seen.0 < run.1 && run.0 < seen.1) {
            return Err(Contradiction);
        }
        let at = self.runs.partition_point(|seen| seen.0 < run.0);
        self.runs.try_insert(at, run).map_err(|_| Contradiction)?;
        self.join(at);
        self.join(at.wrapping_sub(1));
        Ok(())
    }

    /// Makes one run of `at` and the next, if they touch.
    fn join(&mut self, at: usize) {
        if let (Some(&before), Some(&after)) = (self.runs.get(at), self.runs.get(at.wrapping_add(1)))
            && before.1 == after.0
        {
            self.runs[at] = (before.0, after.1);
            self.runs.remove(at + 1);
        }
    }

    pub(super) fn complete(&self) -> bool {
        self.total
            .is_some_and(|total| self.runs.as_slice() == [(0, total)])
    }

    /// The transport header with which what is held goes on, once it may.
    pub(super) fn lets_go(&self) -> Option<Transport> {
        self.transport
            .filter(|transport| transport.protocol != Protocol::SCTP || self.complete())
    }
}
