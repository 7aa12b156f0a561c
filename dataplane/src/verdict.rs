//! What becomes of a packet. A verdict is a value, never an error; every drop has a name, a sentence and a counter.

use std::net::IpAddr;

use crate::index::{NextHopIndex, NicPortIndex, WorkerIndex};

/// The fate of one packet, decided by the stages up to `open` and carried out by `worker::carry_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send to this next hop, rewritten if a flow said so.
    Forward(NextHopIndex),
    /// Hand to the host's own network stack by the host port.
    Punt,
    /// Hand to the steward: ARP or neighbour discovery.
    Neighbour,
    /// Hand to the steward: this neighbour, on this NIC port, must be resolved before the packet can go on.
    Resolve(NicPortIndex, IpAddr),
    /// Hand to the worker that owns the flow.
    Handover(WorkerIndex),
    /// It was copied, and waits for the first fragment of its datagram.
    Hold,
    /// Answer an echo request to a Service address in its name (PING-1).
    EchoReply,
    /// Answer with an ICMP error built from this packet.
    Reject(Rejection),
    /// Forget it, for this reason.
    Drop(DropReason),
}

/// Which ICMP error answers a rejected packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No endpoint, or a port that the cluster IP does not have (RJ-1: type 3, code 3).
    PortUnreachable,
    /// The packet's time to live ended here (TTL-1: type 11, code 0).
    TimeExceeded,
    /// Larger than the next link can send, which takes this many bytes, and not to be fragmented (type 3, code 4; IPv6:
    /// type 2).
    TooBig {
        /// What the link takes.
        mtu: u16,
    },
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident $text:literal $sentence:literal,)*) => {
        /// Why a packet was dropped. The table below is the only place that lists them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $sentence] $name,)* }

        impl DropReason {
            /// Every reason, in counter order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The counter's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// One sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }
        }
    };
}

drop_reasons! {
    Truncated "truncated" "The frame ends before the header that its previous header announces.",
    BadIpHeader "bad-ip-header" "IP version, header lengths or total length contradict each other or the frame.",
    BadIpChecksum "bad-ip-checksum" "The IPv4 header checksum is wrong.",
    BadTransportHeader "bad-transport-header" "The transport header contradicts itself or the packet's length.",
    NoUdpChecksum "no-udp-checksum" "A UDP datagram over IPv6 without a checksum (CSM-1).",
    BadSource "bad-source" "The source address cannot send: multicast, broadcast, loopback, unspecified, IPv4 in IPv6, or our own on a link.",
    BadDestination "bad-destination" "The destination is no host's on a wire: loopback, unspecified, or IPv4 in IPv6.",
    ExtensionHeaders "extension-headers" "More IPv6 extension headers than are looked through.",
    UnknownEtherType "unknown-ethertype" "Neither IP nor ARP, or in a network inside of a network, and there is no host port to give it to.",
    NotForUs "not-for-us" "A unicast frame for another station's MAC address.",
    LinkLocal "link-local" "Between addresses of one link, or discovery on it, and there is no host port to give it to.",
    Multicast "multicast" "Multicast or broadcast IP traffic, and there is no host port to give it to.",
    BadFragment "bad-fragment" "A fragment that overlaps another, or is too small for its transport header.",
    FragmentsFull "fragments-full" "No room to hold a fragment until the first of its datagram comes.",
    FragmentTimeout "fragment-timeout" "Held, but the first fragment of its datagram did not come.",
    FragmentWithoutFlow "fragment-without-flow" "A later fragment of a Service packet whose first fragment opened no flow.",
    UnsupportedProtocol "unsupported-protocol" "A protocol Services do not carry, addressed to a Service address.",
    SourceRange "source-range" "The client is outside the Service's loadBalancerSourceRanges (LBR-2).",
    UndefinedPort "undefined-port" "An external or load-balancer IP does not have this port, and such packets are to be dropped (VD-6).",
    NoLocalEndpoint "no-local-endpoint" "The traffic policy is Local and no endpoint is on this node (VD-2, VD-3).",
    NoTables "no-tables" "Of no flow we know, and control has not said yet what is a Service; it would leave untranslated (CT-14).",
    UnallocatedServiceAddress "unallocated-service-address" "Inside a Service range, but no Service has this address (VD-5).",
    InvalidTcp "invalid-tcp" "A TCP packet that opens no flow and belongs to none.",
    FlowTableFull "flow-table-full" "No flow could be opened: the flow table is full of flows that may not be evicted.",
    FlowRateLimited "flow-rate-limited" "No flow could be opened: new flows come faster than the configured rate.",
    SnatPortsExhausted "snat-ports-exhausted" "No flow could be opened: every source port toward this endpoint is in use.",
    BackendGone "backend-gone" "The flow's endpoint was removed and the protocol cannot move to another.",
    LateReply "late-reply" "A late packet of an endpoint whose client has gone on to another; it would leave untranslated (CT-14).",
    IcmpErrorWithoutFlow "icmp-error-without-flow" "An ICMP error that quotes a packet of no flow we know.",
    NoRoute "no-route" "No route leads to the destination.",
    NeighbourPending "neighbour-pending" "The next hop's MAC address is not known yet and its waiting queue is full.",
    NeighbourUnreachable "neighbour-unreachable" "The next hop does not answer ARP or neighbour discovery.",
    RejectRateLimited "reject-rate-limited" "An ICMP error was due, but its rate limit is used up (RJ-3).",
    RejectForbidden "reject-forbidden" "An ICMP error was due, but must not answer this packet (RJ-4).",
    NoHostPort "no-host-port" "For the node itself, but no host port is configured.",
    StewardQueueFull "steward-queue-full" "The steward's queue is full.",
    HandoverQueueFull "handover-queue-full" "The owning worker's queue is full.",
    NoFrame "no-frame" "No free frame to receive into or to build an answer in.",
    TooBig "too-big" "Larger than the outgoing NIC port can send.",
    TxFull "tx-full" "The outgoing ring is full.",
    NoProcess "no-process" "For a Service, by a shared interface, on a queue that no process received from. Counted by the steward.",
    NoPeer "no-peer" "Nobody is at the other side of the outgoing NIC port.",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_counter() {
        let names: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.sentence().ends_with('.'));
        }
    }
}
