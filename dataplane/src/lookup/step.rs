//! Takes  a packet and its flow.            Gives  where it goes, and what its flow does to it; or what stops it.
//! Never  judges what stops it: that is for `Lookup`, which knows everything. A burst's plain packets come here directly.

use crate::addr::{Address, Protocol};
use crate::conntrack::{Direction, Flows, Touched};
use crate::index::{FlowIndex, NextHopIndex};
use crate::nat::Rewrite;
use crate::parse::Packet;
use crate::tables::{BackendState, Tables};
use crate::tick::Tick;

/// Where a packet goes and what its flow does to it.
#[derive(Clone, Copy, Debug)]
pub struct Way<A: Address> {
    /// Its next hop.
    pub next_hop: NextHopIndex,
    /// What to do to it, or to what it quotes.
    pub rewrite: Rewrite<A>,
}

/// Why a packet of a flow may not simply go on; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The flow is not as others: adopted, or a remnant.
    Unusual,
    /// A UDP flow's endpoint does not serve any more.
    BackendGone,
    /// The packet begins another connection.
    Reopens,
    /// Its time to live is used up.
    NoHopLeft,
    /// The flow does not know its next hop.
    NoNextHop,
}

/// One packet further along its flow, whatever it does to its state. What stops it is for `Lookup` to judge. A burst asks
/// this only where the flow is not steady for the packet (`Flow::is_steady`).
#[inline(always)]
pub fn step<A: Address>(
    flows: &mut Flows<A>,
    tables: &Tables,
    packet: &Packet<A>,
    index: FlowIndex,
    direction: Direction,
    tick: Tick,
) -> Result<Way<A>, Stop> {
    let flow = flows.flow(index);
    if !flow.flags().is_ordinary() {
        return Err(Stop::Unusual);
    }
    if flow.served() != tables.losses() && !serves(flows, tables, index) {
        return Err(Stop::BackendGone);
    }
    onward(flows, packet, index, direction, tick)
}

/// Asks the tables whether a flow may go on to its backend, and remembers that it may: what only UDP flows may not (CT-4,
/// CT-8, CT-9), others drain.
#[inline(never)]
fn serves<A: Address>(flows: &mut Flows<A>, tables: &Tables, index: FlowIndex) -> bool {
    let flow = flows.flow(index);
    let serves = flow.protocol() != Protocol::UDP
        || tables.backend_state(flow.backend(), flow.backend_generation()) == BackendState::Serving;
    if serves {
        flows.set_served(index, tables.losses());
    }
    serves
}

/// The rest of `step`, of a flow about which nothing more need be asked: also one that is still adopted.
#[inline(always)]
pub(super) fn onward<A: Address>(
    flows: &mut Flows<A>,
    packet: &Packet<A>,
    index: FlowIndex,
    direction: Direction,
    tick: Tick,
) -> Result<Way<A>, Stop> {
    if packet.ttl <= 1 {
        return Err(Stop::NoHopLeft);
    }
    let flow = flows.flow(index);
    let way = Way {
        next_hop: flow.next_hop(direction),
        rewrite: flow.rewrite(direction),
    };
    if way.next_hop == NextHopIndex::UNKNOWN {
        return Err(Stop::NoNextHop);
    }
    match flows.touch(index, direction, packet.signals, tick) {
        Touched::Continues => Ok(way),
        Touched::Reopens => Err(Stop::Reopens),
    }
}
