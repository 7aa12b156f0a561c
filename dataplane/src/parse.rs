//! Takes  a frame's bytes.                  Gives  a `Packet`: offsets proven in bounds, and the flow key.
//! Drops  Truncated, BadIpHeader, BadIpChecksum, BadTransportHeader, BadSource, …
//! Never  reads a clock, a table or a counter; never allocates; never trusts a length field.
//! Next   `lookup`.

use crate::addr::FlowKey;
use crate::verdict::DropReason;

/// What `parse` proved about a frame. All offsets are from the Ethernet header and in bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The packet's key; ports are zero where the protocol has none or a fragment hides them.
    pub key: FlowKey,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset just past the IP packet (its total length; padding of the frame comes after).
    pub end: u16,
    /// Time to live as received.
    pub ttl: u8,
    /// TCP flags byte (RFC 9293 §3.1), 0 for other protocols.
    pub tcp_flags: u8,
    /// ICMP type, 0 for other protocols.
    pub icmp_type: u8,
    /// Set for every fragment, first or later.
    pub fragment: Fragment,
}

/// Whether the IP packet is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    #[default]
    Whole,
    /// The first fragment: has the ports.
    First,
    /// A later one: has none.
    Later,
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IPv4 packet for this station.
    Ipv4(Packet),
    /// ARP: the steward's.
    Arp,
    /// Not IPv4 for this station (IPv6, multicast, unknown EtherType): the host's, where there is a host port.
    Other(DropReason),
    /// Broken.
    Drop(DropReason),
}
