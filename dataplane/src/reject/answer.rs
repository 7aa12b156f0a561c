//! What the two families' answers differ in: types and codes, how much is quoted, and how a packet is sealed.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::addr::{Protocol, V4, V6};
use crate::verdict::{DropReason, Rejection};
use crate::wire::{Icmp, Icmpv6, Ip, Ipv4, Ipv6, icmp, icmpv6, ipv4, ipv6};

/// Linux's default for packets of its own (IPDEFTTL, RFC 1700; RFC 4861 §6.3.2).
const TTL: u8 = 64;

/// A family whose packets can be answered.
pub trait Answer: Ip {
    /// Most bytes of the original IP packet that an answer quotes (RJ-2), as Linux does: so that the answer has no more
    /// than every host must be able to take, 576 (RFC 1812 §4.3.2.3) or 1,280 bytes (RFC 4443 §2.4 (c)).
    const QUOTE_MAX: usize;

    /// The traffic class of errors.
    const ERROR_CLASS: u8;

    /// The ICMP type of an echo reply.
    const ECHO_REPLY: u8;

    /// The ICMP header of the error, its checksum 0.
    fn error(rejection: Rejection) -> [u8; icmp::HEADER_LEN];

    /// A message of this type is certainly no error, nor a redirect (RJ-4).
    fn may_be_answered(icmp_type: u8) -> bool;

    /// The traffic class of a packet with a whole header.
    fn traffic_class(packet: &[u8]) -> u8;

    /// The checksum of a whole ICMP message between these addresses is right.
    fn icmp_checksum_ok(message: &[u8], src: Self, dst: Self) -> bool;

    /// Writes the IP header before the ICMP message that `packet` ends with, and the checksums of both. Errors: `NoFrame`
    /// and `TooBig` for sizes that no packet has.
    fn seal(packet: &mut [u8], src: Self, dst: Self, class: u8) -> Result<(), DropReason>;
}

impl Answer for V4 {
    const QUOTE_MAX: usize = 576 - ipv4::HEADER_LEN - icmp::HEADER_LEN;

    /// Precedence "internetwork control", which ICMP errors should have (RFC 1812 §4.3.2.5).
    const ERROR_CLASS: u8 = 0xc0;

    const ECHO_REPLY: u8 = icmp::ECHO_REPLY;

    fn error(rejection: Rejection) -> [u8; icmp::HEADER_LEN] {
        let (icmp_type, code, mtu) = match rejection {
            Rejection::PortUnreachable => (icmp::UNREACHABLE, icmp::PORT_UNREACHABLE, 0),
            Rejection::TimeExceeded => (icmp::TIME_EXCEEDED, icmp::TTL_EXCEEDED, 0),
            Rejection::TooBig { mtu } => (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, mtu),
        };
        let [high, low] = mtu.to_be_bytes();
        [icmp_type, code, 0, 0, 0, 0, high, low]
    }

    fn may_be_answered(icmp_type: u8) -> bool {
        icmp::is_query(icmp_type)
    }

    fn traffic_class(packet: &[u8]) -> u8 {
        Ipv4::partial(packet).map_or(0, |ip| ip.traffic_class())
    }

    fn icmp_checksum_ok(message: &[u8], _: Self, _: Self) -> bool {
        Icmp::new(message).is_ok_and(|message| message.checksum_ok())
    }

    fn seal(packet: &mut [u8], src: Self, dst: Self, class: u8) -> Result<(), DropReason> {
        let mut ip = Ipv4::blank(packet, Protocol::ICMP)?;
        ip.set_traffic_class(class);
        ip.set_ttl(TTL);
        ip.set_src(Ipv4Addr::from(src));
        ip.set_dst(Ipv4Addr::from(dst));
        ip.fill_checksum();
        Icmp::new(ip.payload_mut())?.fill_checksum();
        Ok(())
    }
}

impl Answer for V6 {
    const QUOTE_MAX: usize = 1280 - ipv6::HEADER_LEN - icmpv6::HEADER_LEN;

    /// As Linux, and unlike IPv4: nothing asks for precedence.
    const ERROR_CLASS: u8 = 0;

    const ECHO_REPLY: u8 = icmpv6::ECHO_REPLY;

    fn error(rejection: Rejection) -> [u8; icmp::HEADER_LEN] {
        let (icmp_type, code, mtu) = match rejection {
            Rejection::PortUnreachable => (icmpv6::UNREACHABLE, icmpv6::PORT_UNREACHABLE, 0),
            Rejection::TimeExceeded => (icmpv6::TIME_EXCEEDED, icmpv6::HOP_LIMIT_EXCEEDED, 0),
            Rejection::TooBig { mtu } => (icmpv6::PACKET_TOO_BIG, 0, mtu),
        };
        let [high, low] = mtu.to_be_bytes();
        [icmp_type, code, 0, 0, 0, 0, high, low]
    }

    fn may_be_answered(icmp_type: u8) -> bool {
        !icmpv6::is_error(icmp_type) && !icmpv6::is_discovery(icmp_type)
    }

    fn traffic_class(packet: &[u8]) -> u8 {
        Ipv6::partial(packet).map_or(0, |ip| ip.traffic_class())
    }

    fn icmp_checksum_ok(message: &[u8], src: Self, dst: Self) -> bool {
        Icmpv6::new(message).is_ok_and(|message| message.checksum_ok(src, dst))
    }

    fn seal(packet: &mut [u8], src: Self, dst: Self, class: u8) -> Result<(), DropReason> {
        let mut ip = Ipv6::blank(packet, Protocol::ICMPV6)?;
        ip.set_traffic_class(class);
        ip.set_hop_limit(TTL);
        ip.set_src(Ipv6Addr::from(src));
        ip.set_dst(Ipv6Addr::from(dst));
        Icmpv6::new(ip.payload_mut())?.fill_checksum(src, dst);
        Ok(())
    }
}
