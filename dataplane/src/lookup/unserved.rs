//! Takes  a packet that addresses no frontend and belongs to no flow.
//! Gives  its verdict: it is the host's, asks a Service address for what that does not have, or is routed on.

use super::{Family, Lookup};
use crate::addr::Protocol;
use crate::channel::record::UndefinedPorts;
use crate::conntrack::State;
use crate::network::Network;
use crate::parse::{Fragment, Packet};
use crate::tables::AddressKind;
use crate::verdict::{DropReason, Rejection, Verdict};

impl<A: Family> Lookup<'_, A> {
    /// A packet that addresses no frontend: the node's own, a service address without this port, or routed on.
    pub(super) fn unserved(&mut self, packet: &Packet<A>) -> Verdict {
        let key = &packet.key;
        if self.network.is_own(key.dst) {
            return host_or(self.network, DropReason::NoHostPort);
        }
        let kind = self.tables.address(key.dst);
        match kind {
            // Its first was refused.
            AddressKind::ClusterIp if packet.fragment == Fragment::Later => {
                return Verdict::Drop(DropReason::FragmentWithoutFlow);
            }
            AddressKind::ClusterIp | AddressKind::External
                if packet.is_echo_request() && self.tables.settings().ping_replies =>
            {
                return Verdict::EchoReply; // PING-1
            }
            AddressKind::ClusterIp => return self.refused(packet),
            // VD-6.
            AddressKind::External => match self.tables.settings().undefined_ports {
                UndefinedPorts::PassOn => {}
                _ if packet.fragment == Fragment::Later => {
                    return Verdict::Drop(DropReason::FragmentWithoutFlow);
                }
                UndefinedPorts::Drop => return Verdict::Drop(DropReason::UndefinedPort),
                UndefinedPorts::Reject => return self.refused(packet),
            },
            AddressKind::Unallocated => return Verdict::Drop(DropReason::UnallocatedServiceAddress), // VD-5
            // The node itself may speak to others: control must reach what tells it what there is.
            AddressKind::Former | AddressKind::Other
                if self.tables.generation.0 == 0
                    && !(kind == AddressKind::Other && self.network.is_own(key.src)) =>
            {
                return Verdict::Drop(DropReason::NoTables);
            }
            AddressKind::Former | AddressKind::Other => {}
        }
        if packet.ttl <= 1 {
            return Verdict::Reject(Rejection::TimeExceeded);
        }
        match self.next_hop(key.dst) {
            Ok(next_hop) => Verdict::Forward(next_hop),
            Err(verdict) => verdict,
        }
    }

    /// A port or protocol that a Service address does not have (VD-4, PING-1).
    fn refused(&self, packet: &Packet<A>) -> Verdict {
        // Measured on Linux: a packet without a hop left does not come as far as to be refused (TTL-1).
        let refusal = Verdict::Reject(match packet.ttl {
            0 | 1 => Rejection::TimeExceeded,
            _ => Rejection::PortUnreachable,
        });
        match packet.key.protocol {
            protocol @ (Protocol::TCP | Protocol::SCTP)
                if State::opening(protocol, packet.signals).is_none() =>
            {
                Verdict::Drop(DropReason::InvalidTcp)
            }
            Protocol::TCP | Protocol::UDP | Protocol::SCTP => refusal,
            protocol if protocol != A::ICMP => Verdict::Drop(DropReason::UnsupportedProtocol),
            _ if packet.is_echo_request() => refusal,
            _ => Verdict::Drop(DropReason::IcmpErrorWithoutFlow),
        }
    }
}

/// The host port, where there is one.
pub const fn host_or(network: &Network, reason: DropReason) -> Verdict {
    if network.host().is_some() {
        Verdict::Punt
    } else {
        Verdict::Drop(reason)
    }
}
