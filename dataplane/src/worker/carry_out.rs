//! Takes  a frame, its packet and the decision on it.    Gives  frames to queues, letters to the steward and other workers.
//! Drops  whatever was decided to be dropped, and what has no room where it goes.
//! Never  decides on a packet; never waits.

use std::net::IpAddr;

use super::cut::may_be_fragmented;
use super::{NicPort, Served, Shared, Worker};
use crate::addr::Mac;
use crate::counters::CounterId;
use crate::fragments::Transport;
use crate::icmp_error;
use crate::index::{NextHopIndex, NicPortIndex, WorkerIndex};
use crate::lookup::{Decision, Way};
use crate::mailbox::{Mailbox, Purpose};
use crate::nat::{self, Rewrite};
use crate::next_hop::Reachability;
use crate::nic::{Frame, FrameMemory};
use crate::parse::{Fragment, Packet};
use crate::tick::Tick;
use crate::tx::Flushed;
use crate::verdict::{DropReason, Rejection, Verdict};
use crate::wire::{Ethernet, ethernet};

impl Worker {
    /// Carries out the decision on a packet.
    pub(super) fn carry_out<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: Frame,
        packet: &Packet<A>,
        decision: &Decision<A>,
        tick: Tick,
    ) {
        match decision.verdict {
            Verdict::Forward(next_hop) => {
                let way = (next_hop, decision.rewrite.as_ref());
                self.forward(shared, port, frame, packet, way, tick);
            }
            Verdict::Reject(rejection) => self.answer(shared, port, frame, packet, rejection, tick),
            Verdict::EchoReply => self.echo(shared, port, frame, packet),
            Verdict::Handover(owner) if packet.fragment != Fragment::Whole => {
                // The owner cannot know the ports of a later fragment.
                let purpose = Purpose::Fragment(Transport::of(packet));
                self.hand_over(shared, owner, purpose, port, frame);
            }
            verdict => self.settle(shared, port, frame, verdict),
        }
    }

    /// `forward`, of a plain packet of a flow.
    pub(super) fn forward_plain<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: Frame,
        packet: &Packet<A>,
        Way { next_hop, rewrite }: Way<A>,
        tick: Tick,
    ) {
        if let Some(egress) = Egress::open(shared, &mut self.ports, next_hop, &frame) {
            egress.send(&self.memory, frame, packet, &rewrite);
            self.forwarded += 1;
        } else {
            self.forward(shared, port, frame, packet, (next_hop, Some(&rewrite)), tick);
        }
    }

    /// Sends a packet on, translated where it has a flow.
    #[inline(never)]
    pub(super) fn forward<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        mut frame: Frame,
        packet: &Packet<A>,
        (next_hop, rewrite): (NextHopIndex, Option<&Rewrite<A>>),
        tick: Tick,
    ) {
        let (out, reachability) = shared.network.next_hops().get(next_hop);
        let mac = match reachability {
            Reachability::Reachable(mac) => mac,
            Reachability::Forgotten => return self.look_again(shared, port, frame, packet, tick),
            Reachability::Incomplete | Reachability::Unreachable => {
                return self.drop_frame(frame, DropReason::NeighbourUnreachable);
            }
        };
        let mtu = shared.network.interfaces()[out.get()].mtu;
        let fits = usize::from(packet.end - packet.l3) <= mtu;
        if !(fits || A::FRAGMENTS && may_be_fragmented(self.memory.bytes(&frame), packet.l3)) {
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            return self.answer(shared, port, frame, packet, Rejection::TooBig { mtu }, tick);
        }
        let bytes = self.memory.bytes_mut(&mut frame);
        match rewrite {
            Some(rewrite) if packet.is_icmp_error() => {
                // Its flow was found by what it quotes.
                if let Some(quoted) = icmp_error::quoted(bytes, packet) {
                    icmp_error::translate(bytes, packet, &quoted, rewrite);
                }
            }
            Some(rewrite) => nat::rewrite(bytes, packet, rewrite),
            None => {}
        }
        nat::decrement_ttl(bytes, packet);
        if frame.len() > shared.network.interfaces()[out.get()].longest_frame() {
            // What follows the packet is no part of it.
            let cut = self.memory.set_len(&mut frame, packet.end.into());
            debug_assert!(cut, "a packet ends within its frame");
        }
        self.forwarded += 1;
        if fits {
            self.send(shared, out, mac, frame);
        } else {
            self.send_in_fragments(shared, out, mac, frame, packet.l3, mtu);
        }
    }

    /// A flow's next hop was forgotten, for it had been silent for long: the flow finds the neighbour afresh.
    #[cold]
    fn look_again<A: Served>(
        &mut self,
        shared: &Shared,
        port: NicPortIndex,
        frame: Frame,
        packet: &Packet<A>,
        tick: Tick,
    ) {
        let key = if packet.is_icmp_error() {
            icmp_error::quoted(self.memory.bytes(&frame), packet).map(|quoted| quoted.key.reversed())
        } else {
            Some(packet.key)
        };
        let flows = &mut A::own(&mut self.sides).tracked.flows;
        let Some((index, _)) = key.and_then(|key| flows.find(&key)) else {
            return self.drop_frame(frame, DropReason::NeighbourUnreachable);
        };
        flows.set_next_hops(index, [NextHopIndex::UNKNOWN; 2]);
        self.consider(shared, port, frame, packet, tick);
    }

    /// Carries out what needs nothing known about the packet.
    pub(super) fn settle(&mut self, shared: &Shared, port: NicPortIndex, frame: Frame, verdict: Verdict) {
        let done = match verdict {
            Verdict::Punt => match (shared.network.host(), shared.network.host_mac()) {
                (Some(host), Some(mac)) if host != port => {
                    self.counters.add(CounterId::PUNTED, 1);
                    return self.send(shared, host, mac, frame);
                }
                (Some(host), None) if host != port => Err(DropReason::NeighbourUnreachable),
                // What the host sent to itself or to a group has nowhere to go.
                _ => Err(DropReason::NoHostPort),
            },
            Verdict::Neighbour => self.post(
                &shared.steward,
                Purpose::Neighbour,
                port,
                &frame,
                DropReason::StewardQueueFull,
            ),
            Verdict::Resolve(out, neighbour) => self.ask_steward(shared, out, neighbour, port, &frame),
            Verdict::Handover(owner) => return self.hand_over(shared, owner, Purpose::Receive, port, frame),
            Verdict::Hold => {
                self.counters.add(CounterId::FRAGMENTS_HELD, 1);
                Ok(())
            }
            Verdict::Drop(reason) => Err(reason),
            // Only packets are forwarded or answered, and those are carried out.
            Verdict::Forward(_) | Verdict::Reject(_) | Verdict::EchoReply => Err(DropReason::RejectForbidden),
        };
        match done {
            Ok(()) => self.memory.free(frame),
            Err(reason) => self.drop_frame(frame, reason),
        }
    }

    fn hand_over(
        &mut self,
        shared: &Shared,
        owner: WorkerIndex,
        purpose: Purpose,
        port: NicPortIndex,
        frame: Frame,
    ) {
        self.rung |= 1 << owner.0;
        let mailbox = &shared.workers[owner.get()];
        match self.post(mailbox, purpose, port, &frame, DropReason::HandoverQueueFull) {
            Ok(()) => {
                self.counters.add(CounterId::HANDED_OVER, 1);
                self.memory.free(frame);
            }
            Err(reason) => self.drop_frame(frame, reason),
        }
    }

    /// Addresses a frame to its next station and sends it.
    pub(super) fn send(&mut self, shared: &Shared, out: NicPortIndex, to: Mac, mut frame: Frame) {
        let interface = &shared.network.interfaces()[out.get()];
        // A tag of VLAN 0 gives a priority up to the next station (IEEE 802.1Q §9.6); Linux takes it off, too.
        if Ethernet::new(self.memory.bytes(&frame)).is_ok_and(|ethernet| ethernet.vlan() == Some(0)) {
            let moved = self.memory.move_start(&mut frame, ethernet::TAG_LEN as isize);
            debug_assert!(moved, "a tag is before the packet");
        }
        if frame.len() > interface.longest_frame() {
            return self.drop_frame(frame, DropReason::TooBig);
        }
        nat::set_macs(self.memory.bytes_mut(&mut frame), to, interface.mac);
        self.enqueue(shared, out, frame);
    }

    /// Sends a whole frame: on our queue of the NIC port, or through a worker that has one.
    pub(super) fn enqueue(&mut self, shared: &Shared, out: NicPortIndex, frame: Frame) {
        if let Some(nic) = &mut self.ports[out.get()] {
            if nic.queue.is_full() {
                let flushed = nic.queue.flush(nic.driver.as_mut(), &mut self.memory);
                nic.queue.push(frame);
                self.count_sent(flushed);
            } else {
                nic.queue.push(frame);
            }
            return;
        }
        // Ports with one queue (files) belong to worker 0.
        self.rung |= 1;
        let posted = self.post(
            &shared.workers[0],
            Purpose::Send,
            out,
            &frame,
            DropReason::HandoverQueueFull,
        );
        match posted {
            Ok(()) => self.memory.free(frame),
            Err(reason) => self.drop_frame(frame, reason),
        }
    }

    fn ask_steward(
        &mut self,
        shared: &Shared,
        out: NicPortIndex,
        neighbour: IpAddr,
        received: NicPortIndex,
        frame: &Frame,
    ) -> Result<(), DropReason> {
        // Packets for nobody, at whatever rate, must leave room for the ARP that keeps everybody else reachable.
        if shared.steward.waiting() > shared.steward.capacity() / 2 {
            return Err(DropReason::NeighbourPending);
        }
        let purpose = Purpose::Resolve { port: out, neighbour };
        self.post(
            &shared.steward,
            purpose,
            received,
            frame,
            DropReason::NeighbourPending,
        )
    }

    fn post(
        &mut self,
        mailbox: &Mailbox,
        purpose: Purpose,
        port: NicPortIndex,
        frame: &Frame,
        full: DropReason,
    ) -> Result<(), DropReason> {
        if matches!(purpose, Purpose::Neighbour | Purpose::Resolve { .. }) {
            self.ring_steward = true;
            self.counters.add(CounterId::TO_STEWARD, 1);
        }
        if mailbox.post(purpose, port, self.memory.bytes(frame)) {
            Ok(())
        } else {
            Err(full)
        }
    }

    pub(super) fn count_drops(&mut self, reason: DropReason, count: usize) {
        if count > 0 {
            self.counters.add(CounterId::dropped(reason), count as u64);
            self.counters.add(CounterId::DROPPED, count as u64);
        }
    }

    pub(super) fn drop_frame(&mut self, frame: Frame, reason: DropReason) {
        self.count_drops(reason, 1);
        self.memory.free(frame);
    }

    pub(super) fn count_sent(&mut self, flushed: Flushed) {
        if flushed.packets > 0 {
            self.counters.add(CounterId::TX_PACKETS, flushed.packets as u64);
            self.counters.add(CounterId::TX_BYTES, flushed.bytes as u64);
        }
        let reason = if flushed.no_peer {
            DropReason::NoPeer
        } else {
            DropReason::TxFull
        };
        self.count_drops(reason, flushed.refused);
    }
}

/// The way to a next hop where all is as nearly always: it is known and in use, the frame fits, and there is room for it.
pub(super) struct Egress<'a> {
    nic: &'a mut NicPort,
    to: Mac,
}

impl<'a> Egress<'a> {
    /// `None`: `forward` sees to it.
    #[inline(always)]
    pub(super) fn open(
        shared: &Shared,
        ports: &'a mut [Option<NicPort>],
        next_hop: NextHopIndex,
        frame: &Frame,
    ) -> Option<Self> {
        let (out, to) = shared.network.next_hops().get_reachable(next_hop)?;
        let nic = ports.get_mut(out.get())?.as_mut()?;
        (frame.len() <= nic.longest && !nic.queue.is_full()).then_some(Egress { nic, to })
    }

    /// Rewrites a plain packet and adds it to the queue.
    #[inline(always)]
    pub(super) fn send<A: Served>(
        self,
        memory: &FrameMemory,
        mut frame: Frame,
        packet: &Packet<A>,
        rewrite: &Rewrite<A>,
    ) {
        nat::rewrite_plain(
            memory.bytes_mut(&mut frame),
            packet,
            rewrite,
            self.to,
            self.nic.mac,
        );
        self.nic.queue.push(frame);
    }
}
