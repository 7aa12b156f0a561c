//! Where things are in a frame without tags, IP options and extension headers, of either family.

use std::net::IpAddr;
use std::ops::Range;

use super::rate::MIN_FRAME;
use super::stamp;

/// IP header.
pub const IP: usize = 14;
/// IPv4's checksum.
pub const IP_CHECKSUM: usize = IP + 10;

/// From the begin of a UDP or TCP header; both begin with source and destination port.
pub mod l4 {
    /// Both ports.
    pub const PORTS: usize = 4;
    /// UDP's checksum.
    pub const UDP_CHECKSUM: usize = 6;
    /// UDP's payload.
    pub const UDP_PAYLOAD: usize = 8;
    /// TCP's sequence and acknowledgement numbers.
    pub const SEQUENCE: usize = 4;
    /// TCP's flags.
    pub const FLAGS: usize = 13;
    /// TCP's checksum.
    pub const TCP_CHECKSUM: usize = 16;
    /// Two bytes of padding, then the time stamp option (RFC 7323 §3.2): kind, length, TSval, TSecr.
    pub const TIMES: usize = 20 + 4;
    /// TCP's payload behind that option.
    pub const TCP_PAYLOAD: usize = 32;
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

impl Family {
    /// An address's.
    #[inline]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// A frame's, by its EtherType.
    #[inline]
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        match frame.get(IP - 2..IP)? {
            [0x08, 0x00] => Some(Self::V4),
            [0x86, 0xdd] => Some(Self::V6),
            _ => None,
        }
    }

    /// Source and destination address.
    #[inline]
    pub const fn addresses(self) -> Range<usize> {
        match self {
            Self::V4 => IP + 12..IP + 20,
            Self::V6 => IP + 8..IP + 40,
        }
    }

    /// TTL or hop limit.
    #[inline]
    pub const fn hops(self) -> usize {
        match self {
            Self::V4 => IP + 8,
            Self::V6 => IP + 7,
        }
    }

    /// Protocol or next header.
    #[inline]
    pub const fn protocol(self) -> usize {
        match self {
            Self::V4 => IP + 9,
            Self::V6 => IP + 6,
        }
    }

    /// UDP or TCP header.
    #[inline]
    pub const fn l4(self) -> usize {
        match self {
            Self::V4 => IP + 20,
            Self::V6 => IP + 40,
        }
    }

    /// End of the packet, as its header says; `frame` has one.
    #[inline]
    pub fn end(self, frame: &[u8]) -> usize {
        let length = |place| usize::from(u16::from_be_bytes([frame[place], frame[place + 1]]));
        match self {
            Self::V4 => IP + length(IP + 2),
            Self::V6 => IP + 40 + length(IP + 4),
        }
    }

    /// Least bytes of a datagram's frame, FCS included, that has room for a stamp.
    pub const fn min_udp_frame(self) -> usize {
        let least = self.l4() + l4::UDP_PAYLOAD + stamp::LEN + 4;
        if least < MIN_FRAME { MIN_FRAME } else { least }
    }

    /// The same of a TCP segment with time stamps.
    pub const fn min_tcp_frame(self) -> usize {
        self.l4() + l4::TCP_PAYLOAD + stamp::LEN + 4
    }
}
