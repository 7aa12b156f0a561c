#![allow(unsafe_code)]
#![allow(
    clippy::multiple_bound_locations,
    reason = "the derive of AnyBitPattern repeats the bound"
)]
//! A flow's entry: one cache line (IPv6: two) that holds all a known packet needs, so that forwarding it costs one miss
//! after the bucket's. For IPv4:
//!
//! ```text
//!  0          12         24        25     26     27   28         32      36        38
//!  ├ original ┼ reply ───┼ protocol ┼ state ┼ flags ┼ 0 ┼ last seen ┼ opened ┼ l3 delta ┼ l4 delta
//!  40        44                   48             52                    56                 60     64
//!  ├ backend ┼ backend generation ┼ service port ┼ next hop (original) ┼ next hop (reply) ┼ served ┤
//! ```
//!
//! Each tuple is as the packets of that direction arrive (CT-1): the original one addressed to the frontend, the reply
//! one coming from the endpoint. What leaves in one direction is therefore the other tuple reversed.

use std::sync::atomic::{Ordering, compiler_fence};

use bytemuck::{AnyBitPattern, Pod, Zeroable};

use super::pool::Linked;
use super::state::{Advance, State};
use crate::addr::{Address, FlowKey, Port, Protocol, V4, V6};
use crate::index::{BackendIndex, NextHopIndex, ServicePortIndex};
use crate::nat::Rewrite;
use crate::prefetch::prefetch;
use crate::tick::Tick;

mod adopt;

/// Which of its two tuples a packet of a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the frontend.
    Original = 0,
    /// From the endpoint to the client, or to the address that stands in for it.
    Reply = 1,
}

impl Direction {
    /// Both, in storage order.
    pub const BOTH: [Self; 2] = [Self::Original, Self::Reply];

    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// Properties a flow is opened with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct FlowFlags(u8);

impl FlowFlags {
    /// The endpoint sees our address: the reply tuple's destination port was taken from a `PortPool`.
    pub const SNAT: Self = Self(1);
    /// Taken over from another process: its slots are unknown until `Flows::rebind`.
    pub const ADOPTED: Self = Self(2);

    /// No flow any more: what is left of one whose client has gone on to another endpoint, so that the late packets of
    /// the one before are known for what they are.
    pub const REMNANT: Self = Self(4);

    const ALL: u8 = 7;

    /// Neither adopted nor a remnant: its packets simply follow it.
    #[inline(always)]
    pub const fn is_ordinary(self) -> bool {
        self.0 & (Self::ADOPTED.0 | Self::REMNANT.0) == 0
    }

    /// All of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What `Flows::open` needs to know.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow<A: Address = V4> {
    /// Key of the packet that opens the flow.
    pub original: FlowKey<A>,
    /// Key the endpoint's packets will arrive with.
    pub reply: FlowKey<A>,
    /// From `State::opening`.
    pub state: State,
    /// The endpoint.
    pub backend: BackendIndex,
    /// The backend slot's generation now; the flow is stale once they differ.
    pub backend_generation: u32,
    /// The service port.
    pub service_port: ServicePortIndex,
    /// Where packets go: of the original direction, of the reply direction.
    pub next_hops: [NextHopIndex; 2],
    /// `Rewrite::l3_delta` of the original direction.
    pub l3_delta: u16,
    /// `Rewrite::l4_delta` of the original direction.
    pub l4_delta: u16,
    /// Its properties.
    pub flags: FlowFlags,
}

/// Addresses and ports of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Tuple<A: Address> {
    src: A,
    dst: A,
    src_port: Port,
    dst_port: Port,
}

// SAFETY: every field is Zeroable.
unsafe impl<A: Address> Zeroable for Tuple<A> {}
// SAFETY: repr(C), every field is an array of bytes (as in `FlowKey`): any bytes are one, and nothing is padded.
unsafe impl<A: Address> Pod for Tuple<A> {}

impl<A: Address> From<FlowKey<A>> for Tuple<A> {
    #[inline(always)]
    fn from(key: FlowKey<A>) -> Self {
        Self {
            src: key.src,
            dst: key.dst,
            src_port: key.src_port,
            dst_port: key.dst_port,
        }
    }
}

/// One tracked connection.
#[derive(Clone, Copy, Debug, AnyBitPattern)]
#[repr(C, align(64))]
pub struct Flow<A: Address = V4> {
    tuples: [Tuple<A>; 2],
    protocol: Protocol,
    state: u8,
    flags: FlowFlags,
    zero: u8,
    last_seen: Tick,
    opened: Tick,
    l3_delta: u16,
    l4_delta: u16,
    backend: BackendIndex,
    backend_generation: u32,
    service_port: ServicePortIndex,
    next_hops: [NextHopIndex; 2],
    /// Of a flow: `Tables::losses` when its backend was last seen to serve. Of a free entry: the next free one.
    link: u32,
}

const _: () = assert!(size_of::<Flow<V4>>() == 64 && size_of::<Flow<V6>>() == 128);

/// What a packet means for the flow it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Touched {
    /// Translate and forward it.
    Continues,
    /// It starts another connection with this one's tuple (CT-16), and nothing was changed: close this flow, choose an
    /// endpoint anew.
    Reopens,
}

impl<A: Address> Flow<A> {
    /// The entry of a flow about to be opened: it is none before `publish`.
    pub(super) fn new(new: &NewFlow<A>, tick: Tick) -> Self {
        Self {
            tuples: [new.original.into(), new.reply.into()],
            protocol: new.original.protocol,
            state: State::Free as u8,
            flags: new.flags,
            zero: 0,
            last_seen: tick,
            opened: tick,
            l3_delta: new.l3_delta,
            l4_delta: new.l4_delta,
            backend: new.backend,
            backend_generation: new.backend_generation,
            service_port: new.service_port,
            next_hops: new.next_hops,
            link: 0,
        }
    }

    /// Makes it a flow: the last write of its opening.
    ///
    /// Memory may outlive this process, killed between any two instructions, and the next one takes what has a state for a
    /// flow. A killed thread's earlier writes are all in memory, so only the compiler must be kept from reordering them.
    #[inline(always)]
    pub(super) fn publish(&mut self, state: State) {
        compiler_fence(Ordering::Release);
        self.state = state as u8;
        compiler_fence(Ordering::Release);
    }

    /// Makes it none: the first write of its closing, for the same reason.
    #[inline(always)]
    pub(super) fn retire(&mut self) {
        self.publish(State::Free);
    }

    /// Brings all of it in.
    #[inline(always)]
    pub(super) fn prefetch(&self) {
        prefetch(self);
        if size_of::<Self>() > 64 {
            prefetch(&self.link);
        }
    }

    /// Key that packets of `direction` arrive with.
    #[inline(always)]
    pub fn key(&self, direction: Direction) -> FlowKey<A> {
        let Tuple {
            src,
            dst,
            src_port,
            dst_port,
        } = self.tuples[direction as usize];
        FlowKey {
            src,
            dst,
            src_port,
            dst_port,
            protocol: self.protocol,
            zero: [0; 3],
        }
    }

    /// Whether packets of `direction` arrive with `key`. Compared without branches: hits and near misses mix.
    #[inline(always)]
    pub(super) fn has_key(&self, direction: Direction, key: &FlowKey<A>) -> bool {
        let tuple = &self.tuples[direction as usize];
        (tuple.src == key.src)
            & (tuple.dst == key.dst)
            & (both(tuple.src_port, tuple.dst_port) == both(key.src_port, key.dst_port))
            & (self.protocol == key.protocol)
    }

    /// What happens to packets of `direction`.
    #[inline(always)]
    pub fn rewrite(&self, direction: Direction) -> Rewrite<A> {
        // In ones-complement arithmetic the complement is the negation (RFC 1624 §2): it takes back what was added.
        let sign = match direction {
            Direction::Original => 0,
            Direction::Reply => u16::MAX,
        };
        Rewrite {
            to: self.key(direction.opposite()).reversed(),
            l3_delta: self.l3_delta ^ sign,
            l4_delta: self.l4_delta ^ sign,
        }
    }

    /// Whether a packet surely leaves its state as it is (`State::stays`).
    #[inline(always)]
    pub(super) fn stays(&self, direction: Direction, signals: u8) -> bool {
        State::stays(self.state, direction, signals)
    }

    /// A packet with a hop left does no more to the flow than to `refresh` it: it is as others, its backend has served since
    /// it was asked for (`Tables::losses`), and its state stays.
    #[inline(always)]
    pub(crate) fn is_steady(&self, direction: Direction, signals: u8, losses: u32) -> bool {
        self.flags.is_ordinary() & (self.link == losses) & self.stays(direction, signals)
    }

    /// Follows one packet: the state, and when the flow was last seen.
    #[inline(always)]
    pub(super) fn touch(&mut self, direction: Direction, signals: u8, tick: Tick) -> Touched {
        let state = self.state();
        let next = match state.advance(self.protocol, direction, signals) {
            Advance::Next(next) => next,
            Advance::Reopen => return Touched::Reopens,
            // Never dropped, never remembered (CT-14).
            Advance::Invalid => state,
        };
        self.state = next as u8;
        self.last_seen = tick;
        Touched::Continues
    }

    /// Starts its idle time anew.
    #[inline(always)]
    pub(crate) const fn refresh(&mut self, tick: Tick) {
        self.last_seen = tick;
    }

    /// Transport protocol.
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// How far it has come.
    #[inline(always)]
    pub fn state(&self) -> State {
        // Memory adopted from another process could hold anything: what is no state is no flow.
        State::ALL
            .get(usize::from(self.state))
            .copied()
            .unwrap_or(State::Free)
    }

    /// Its properties.
    pub const fn flags(&self) -> FlowFlags {
        self.flags
    }

    /// When its last packet came.
    pub const fn last_seen(&self) -> Tick {
        self.last_seen
    }

    /// When its first packet came.
    pub const fn opened(&self) -> Tick {
        self.opened
    }

    /// Its endpoint's slot.
    pub const fn backend(&self) -> BackendIndex {
        self.backend
    }

    /// The slot's generation when the flow was opened.
    pub const fn backend_generation(&self) -> u32 {
        self.backend_generation
    }

    /// `Tables::losses` when the backend was last seen to serve; 0 for not yet.
    #[inline(always)]
    pub const fn served(&self) -> u32 {
        self.link
    }

    pub(super) const fn set_served(&mut self, losses: u32) {
        self.link = losses;
    }

    /// Its service port.
    pub const fn service_port(&self) -> ServicePortIndex {
        self.service_port
    }

    /// Where packets of `direction` go.
    #[inline(always)]
    pub const fn next_hop(&self, direction: Direction) -> NextHopIndex {
        self.next_hops[direction as usize]
    }
}

/// Two ports in one register.
#[inline(always)]
const fn both(Port([a, b]): Port, Port([c, d]): Port) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

impl<A: Address> Linked for Flow<A> {
    fn link(&self) -> u32 {
        self.link
    }

    fn set_link(&mut self, link: u32) {
        self.link = link;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_storage_and_nonsense_is_no_flow() {
        for (stored, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, stored);
            assert_eq!(
                Flow {
                    state: stored as u8,
                    ..Flow::<V4>::zeroed()
                }
                .state(),
                state
            );
        }
        assert_eq!(
            Flow {
                state: 200,
                ..Flow::<V4>::zeroed()
            }
            .state(),
            State::Free
        );
    }

    fn differs_in_one_bit<A: Address>(key: FlowKey<A>) {
        let mut flow = Flow {
            protocol: Protocol::UDP,
            ..Flow::zeroed()
        };
        flow.tuples[1] = key.into();
        assert!(flow.has_key(Direction::Reply, &key) && !flow.has_key(Direction::Original, &key));
        // All but the three bytes that are always zero.
        for bit in 0..(size_of::<FlowKey<A>>() - 3) * 8 {
            let mut other = key;
            bytemuck::bytes_of_mut(&mut other)[bit / 8] ^= 1 << (bit % 8);
            assert!(!flow.has_key(Direction::Reply, &other), "bit {bit}");
        }
    }

    #[test]
    fn a_key_that_differs_in_one_bit_is_another_flows() {
        differs_in_one_bit::<V4>(bytemuck::cast(*b"srcIdstISPDP\x11\0\0\0"));
        differs_in_one_bit::<V6>(bytemuck::cast(*b"sixteen source...sixteen dest...SPDP\x11\0\0\0"));
    }
}
