//! Takes  a packet that is to be answered instead of sent on.   Gives  an ICMP error or an echo reply, back where it came from.
//! Drops  what may not be answered, and what has no frame for its answer.
//! Never  decides that there is to be an answer.

use super::{Served, Shared, Worker};
use crate::counters::CounterId;
use crate::index::NicPortIndex;
use crate::lookup;
use crate::nic::Frame;
use crate::parse::Packet;
use crate::reject;
use crate::tick::Tick;
use crate::verdict::{DropReason, Rejection};

impl Worker {
    /// Answers a packet that goes no further with an ICMP error.
    pub(super) fn answer<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: Frame,
        packet: &Packet<A>,
        rejection: Rejection,
        tick: Tick,
    ) {
        self.counters.add(CounterId::REJECTED, 1);
        let answer = self.reject(shared, port, &frame, packet, rejection, tick);
        self.reply(shared, port, frame, answer, CounterId::REJECTS_SENT);
    }

    /// Answers an echo request to a Service address in its name (PING-1).
    pub(super) fn echo<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: Frame,
        packet: &Packet<A>,
    ) {
        let answer = self.build(&frame, |original, out| reject::echo_reply(original, packet, out));
        self.reply(shared, port, frame, answer, CounterId::ECHO_REPLIES);
    }

    /// Sends an answer back where the frame it answers came from, and counts it.
    fn reply(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: Frame,
        answer: Result<Frame, DropReason>,
        counter: CounterId,
    ) {
        match answer {
            Ok(answer) => {
                self.counters.add(counter, 1);
                self.enqueue(shared, port, answer);
                self.memory.free(frame);
            }
            Err(reason) => self.drop_frame(frame, reason),
        }
    }

    /// The ICMP error that answers a rejected packet.
    fn reject<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: &Frame,
        packet: &Packet<A>,
        rejection: Rejection,
        tick: Tick,
    ) -> Result<Frame, DropReason> {
        let (network, key) = (&shared.network, &packet.key);
        let from_frontend =
            rejection != Rejection::PortUnreachable && lookup::frontend(key, &self.tables, network).is_some();
        // Measured on Linux: what a Service packet meets on its way speaks with the frontend's address; else the address
        // that was spoken to, if it is ours; the node's own sockets hear it from their own.
        let from = if from_frontend || network.is_own(key.dst) {
            key.dst
        } else if network.is_own(key.src) {
            key.src
        } else {
            network.source_address(port).ok_or(DropReason::NoRoute)?
        };
        reject::may_answer(self.memory.bytes(frame), packet, rejection)?;
        // As in Linux, the node itself is exempt from the limit, and so is what path MTU discovery lives on.
        if !network.is_own(key.src) && !matches!(rejection, Rejection::TooBig { .. }) {
            self.limiter.take(key.src.into(), tick)?;
        }
        self.build(frame, |original, out| {
            reject::icmp_error(original, packet, rejection, from, out)
        })
    }

    /// A frame of its own, built from another.
    fn build(
        &mut self,
        frame: &Frame,
        build: impl FnOnce(&[u8], &mut [u8]) -> Result<usize, DropReason>,
    ) -> Result<Frame, DropReason> {
        let mut built = self.memory.alloc().ok_or(DropReason::NoFrame)?;
        let room = self.memory.max_packet();
        let fits = self.memory.set_len(&mut built, room);
        debug_assert!(fits, "a fresh frame holds max_packet bytes");
        match build(self.memory.bytes(frame), self.memory.bytes_mut(&mut built)) {
            Ok(len) => {
                let fits = self.memory.set_len(&mut built, len);
                debug_assert!(fits, "shorter than before");
                Ok(built)
            }
            Err(reason) => {
                self.memory.free(built);
                Err(reason)
            }
        }
    }
}
