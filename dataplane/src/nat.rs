//! Takes  a packet and its rewrite.         Gives  the same packet: addresses, ports, checksums, TTL and MACs changed.
//! Drops  nothing: whatever could fail was proven by `parse`.
//! Never  reads a clock, a table or a counter; never recomputes a checksum (a wrong one stays wrong).
//! Next   `tx`.

use crate::addr::FlowKey;

/// What a flow does to a packet in one direction: the key the packet leaves with, and the checksum deltas from the key
/// it came with (RFC 1624, ones-complement sums to add).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Addresses and ports of the packet that leaves.
    pub to: FlowKey,
    /// Delta of the addresses: for the IPv4 header checksum.
    pub l3_delta: u16,
    /// Delta of addresses and ports: for the TCP or UDP checksum.
    pub l4_delta: u16,
}
