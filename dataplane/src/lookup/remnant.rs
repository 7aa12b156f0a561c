//! Takes  a flow that its client has left.
//! Gives  room for another on its tuple, and a remnant: its reply tuple, so that late packets of the endpoint before are
//!        dropped instead of leaving with the endpoint's address (CT-14).

use super::{Family, Lookup};
use crate::addr::{FlowKey, Protocol};
use crate::conntrack::{Direction, FlowFlags, NewFlow, State};
use crate::index::{BackendIndex, FlowIndex, NextHopIndex, ServicePortIndex};

impl<A: Family> Lookup<'_, A> {
    /// Ends a flow whose client goes on to another endpoint, or to none. Late packets of the one it had would leave as they
    /// are, with the endpoint's address (CT-14): what is left of the flow stops them. With SNAT they come to us anyway.
    #[cold]
    pub(super) fn replace(&mut self, index: FlowIndex) {
        let flow = self.tracked.flows.flow(index);
        if !flow.flags().contains(FlowFlags::SNAT) {
            self.replaced = Some(flow.key(Direction::Reply));
        }
        self.close(index);
    }

    /// Remembers the reply tuple of a flow that was replaced, unless its successor has it again.
    #[cold]
    pub(super) fn leave_remnant(&mut self, reply: FlowKey<A>) {
        let state = match reply.protocol {
            Protocol::TCP => State::TimeWait,
            Protocol::SCTP => State::SctpClosed,
            _ => State::Unreplied,
        };
        let remnant = NewFlow {
            original: reply.reversed(),
            reply,
            state,
            backend: BackendIndex(u32::MAX),
            backend_generation: 0,
            service_port: ServicePortIndex(u32::MAX),
            next_hops: [NextHopIndex::UNKNOWN; 2],
            l3_delta: 0,
            l4_delta: 0,
            flags: FlowFlags::REMNANT,
        };
        // It is worth no flow: where the table is full, its successor may be the one that would go for it.
        let usage = self.tracked.flows.usage();
        if usage.used < usage.limit {
            let _ = self.tracked.flows.open(&remnant, self.tick, &mut |_| {});
        }
    }

    pub(super) fn is_remnant(&self, index: FlowIndex) -> bool {
        let flags = self.tracked.flows.flow(index).flags();
        flags.contains(FlowFlags::REMNANT)
    }

    /// Forgets what is left of a flow with this reply tuple, for another flow that is to have it. Whether there was any.
    pub(crate) fn forget_remnant(&mut self, reply: &FlowKey<A>) -> bool {
        match self.tracked.flows.find(reply) {
            Some((index, Direction::Reply)) if self.is_remnant(index) => {
                self.close(index);
                true
            }
            _ => false,
        }
    }
}
