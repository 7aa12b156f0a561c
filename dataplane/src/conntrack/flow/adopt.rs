//! What an entry of memory that another process left must be to be taken for a flow.

use std::mem::offset_of;

use bytemuck::Zeroable;

use super::{Direction, Flow, FlowFlags, State};
use crate::addr::{Address, Protocol};
use crate::class;
use crate::index::{BackendIndex, NextHopIndex, ServicePortIndex};
use crate::nat;
use crate::tick::{TICKS_PER_SECOND, Tick};

impl<A: Address> Flow<A> {
    /// Changes whenever a stored flow would mean something else.
    pub(in crate::conntrack) fn layout() -> u64 {
        let places = [
            size_of::<Self>(),
            size_of::<A>(),
            State::ALL.len(),
            offset_of!(Self, protocol),
            offset_of!(Self, state),
            offset_of!(Self, flags),
            offset_of!(Self, last_seen),
            offset_of!(Self, opened),
            offset_of!(Self, l3_delta),
            offset_of!(Self, l4_delta),
            offset_of!(Self, next_hops),
            TICKS_PER_SECOND as usize,
            // By which it is known whose flow it is.
            class::V6_MIDDLE as usize,
            class::CLASSES,
            class::turn(1),
        ];
        let folds = class::SHIFTS.map(|shift| shift as usize);
        places.iter().chain(&folds).fold(1, |layout: u64, &place| {
            layout.wrapping_mul(257).wrapping_add(place as u64)
        })
    }

    /// No flow, whatever else it holds.
    pub(in crate::conntrack) const fn is_free(&self) -> bool {
        self.state == State::Free as u8
    }

    /// Makes it none, and zero.
    pub(in crate::conntrack) fn clear(&mut self) {
        self.retire();
        *self = Self::zeroed();
    }

    /// Whether all that a packet will be rewritten by can be so: a state of its protocol, tuples that fit each other, the
    /// deltas that follow from them, times that have been. Whether another flow has its tuples is not known here.
    pub(in crate::conntrack) fn is_sound(&self, now: Tick) -> bool {
        let [original, reply] = Direction::BOTH.map(|direction| self.key(direction));
        let addresses = [original.src, original.dst, reply.src, reply.dst];
        let past = |tick: Tick, later: Tick| later.0.wrapping_sub(tick.0) <= u32::MAX / 2;
        // Services carry no others.
        matches!(self.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
            && self.state().is_of(self.protocol)
            && self.flags.0 & !FlowFlags::ALL == 0
            && self.zero == 0
            && !addresses.contains(&A::default())
            && original != reply
            && (self.flags.contains(FlowFlags::SNAT) || reply.dst == original.src)
            && nat::deltas(&original, &reply.reversed()) == (self.l3_delta, self.l4_delta)
            && past(self.opened, self.last_seen)
            && past(self.last_seen, now)
    }

    /// Its slots were another process's.
    pub(in crate::conntrack) const fn adopted(&mut self) {
        self.flags.0 |= FlowFlags::ADOPTED.0;
        self.backend = BackendIndex(u32::MAX);
        self.backend_generation = 0;
        self.service_port = ServicePortIndex(u32::MAX);
        self.next_hops = [NextHopIndex::UNKNOWN; 2];
        self.link = 0;
    }

    pub(in crate::conntrack) const fn rebind(
        &mut self,
        backend: BackendIndex,
        generation: u32,
        service_port: ServicePortIndex,
    ) {
        self.flags.0 &= !FlowFlags::ADOPTED.0;
        self.backend = backend;
        self.backend_generation = generation;
        self.service_port = service_port;
    }

    pub(in crate::conntrack) const fn set_next_hops(&mut self, next_hops: [NextHopIndex; 2]) {
        self.next_hops = next_hops;
    }
}
