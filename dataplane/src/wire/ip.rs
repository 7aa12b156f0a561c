//! What the headers of the two IP families differ in, for code that serves both: places in the fixed header, and which
//! addresses can be a flow's.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Ipv4, Ipv6, icmp, icmpv6, ipv4, ipv6};
use crate::addr::{Address, Protocol, V4, V6};

/// An address whose header we know.
pub trait Ip: Address {
    /// Bytes of the fixed header.
    const HEADER_LEN: usize;
    /// Where the time to live (IPv6: hop limit) lies.
    const TTL: usize;
    /// Where the source address lies; the destination follows.
    const SRC: usize;
    /// Where the header's own checksum lies, if it has one.
    const CHECKSUM: Option<usize>;

    /// The ICMP type that asks for an echo.
    const ECHO_REQUEST: u8;

    /// The address can be a sender's.
    fn can_send(self) -> bool;

    /// The address names many receivers.
    fn is_group(self) -> bool;

    /// Where the transport header is in a packet that may be cut off anywhere, as ICMP errors quote it; `None` if that is
    /// no packet of this family, or a later fragment.
    fn transport(packet: &[u8]) -> Option<Transport<Self>>;

    /// An ICMP message of this type is an error that quotes the packet it is about, to be translated with its flow
    /// (ICM-1).
    fn is_translated_error(icmp_type: u8) -> bool;
}

/// A packet's addresses, and what it says of its transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// What the header is.
    pub protocol: Protocol,
    /// Where it starts: at the packet's end at most.
    pub at: usize,
    /// Bytes from there to the end that the packet says it has; 0 for a fragment.
    pub len: u16,
}

impl Ip for V4 {
    const HEADER_LEN: usize = ipv4::HEADER_LEN;
    const TTL: usize = ipv4::TTL;
    const SRC: usize = ipv4::SRC;
    const CHECKSUM: Option<usize> = Some(ipv4::CHECKSUM);
    const ECHO_REQUEST: u8 = icmp::ECHO_REQUEST;

    #[inline(always)]
    fn can_send(self) -> bool {
        ipv4::can_send(Ipv4Addr::from(self))
    }

    #[inline(always)]
    fn is_group(self) -> bool {
        ipv4::is_group(Ipv4Addr::from(self))
    }

    fn transport(packet: &[u8]) -> Option<Transport<Self>> {
        let ip = Ipv4::partial(packet).ok()?;
        let at = ip.header_len();
        (ip.fragment_offset() == 0).then(|| Transport {
            src: ip.src().octets(),
            dst: ip.dst().octets(),
            protocol: ip.protocol(),
            at,
            // At least the header's, as `partial` checked.
            len: if ip.more_fragments() {
                0
            } else {
                ip.total_len() - at as u16
            },
        })
    }

    /// Not source quench nor redirect: the one is obsolete (RFC 6633), the other only for the link it is sent on.
    #[inline(always)]
    fn is_translated_error(icmp_type: u8) -> bool {
        matches!(
            icmp_type,
            icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM
        )
    }
}

impl Ip for V6 {
    const HEADER_LEN: usize = ipv6::HEADER_LEN;
    const TTL: usize = ipv6::HOP_LIMIT;
    const SRC: usize = ipv6::SRC;
    const CHECKSUM: Option<usize> = None;
    const ECHO_REQUEST: u8 = icmpv6::ECHO_REQUEST;

    #[inline(always)]
    fn can_send(self) -> bool {
        ipv6::can_send(Ipv6Addr::from(self))
    }

    #[inline(always)]
    fn is_group(self) -> bool {
        Ipv6Addr::from(self).is_multicast()
    }

    fn transport(packet: &[u8]) -> Option<Transport<Self>> {
        let ip = Ipv6::partial(packet).ok()?;
        let upper = ip.upper().ok()?;
        let (offset, more) = upper
            .fragment
            .map_or((0, false), |header| (header.offset, header.more));
        (offset == 0).then(|| Transport {
            src: ip.src().octets(),
            dst: ip.dst().octets(),
            protocol: upper.protocol,
            at: upper.at,
            // The walk ended within the packet, and its payload is shorter than 65,536 bytes.
            len: if more {
                0
            } else {
                (ip.total_len() - upper.at) as u16
            },
        })
    }

    #[inline(always)]
    fn is_translated_error(icmp_type: u8) -> bool {
        matches!(icmp_type, icmpv6::UNREACHABLE..=icmpv6::PARAMETER_PROBLEM)
    }
}
