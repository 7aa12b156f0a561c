//! IPv6 packets (RFC 8200) and a bounded walk through their extension headers. Jumbograms (RFC 2675) are refused: their
//! length of 0 is believed.

use std::fmt;
use std::net::Ipv6Addr;

use super::{array, be16, put};
use crate::addr::Protocol;
use crate::verdict::DropReason;

mod field {
    pub(super) const VERSION: usize = 0;
    pub(super) const PAYLOAD_LEN: usize = 4;
    pub(super) const NEXT_HEADER: usize = 6;
}

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Where the hop limit lies in the header.
pub const HOP_LIMIT: usize = 7;
/// Where the source address lies in the header.
pub const SRC: usize = 8;
/// Where the destination address lies in the header.
pub const DST: usize = 24;

/// The header before the transport's that fragments carry (RFC 8200 §4.5).
pub const FRAGMENT_HEADER_LEN: usize = 8;

/// Extension headers walked through: RFC 8200 §4.1 recommends each at most once, which makes at most five of those
/// looked into here.
pub const MAX_EXTENSIONS: usize = 6;

/// Bytes of extension headers walked through: more than any host sends, little enough to be searched for every packet.
/// (A host may do the same, RFC 8504 §5.3.)
pub const MAX_EXTENSION_BYTES: usize = 256;

/// The extension headers that a walk passes.
mod extension {
    use crate::addr::Protocol;

    pub(super) const HOP_BY_HOP: Protocol = Protocol(0);
    pub(super) const ROUTING: Protocol = Protocol(43);
    pub(super) const FRAGMENT: Protocol = Protocol(44);
    pub(super) const DESTINATION: Protocol = Protocol(60);
}

/// A packet.
#[derive(Debug)]
pub struct Ipv6<T> {
    bytes: T,
}

/// Where a walk through the extension headers ended: at a transport, or at what is not looked into (AH, ESP, "no next
/// header", a routing header that is not yet at its end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// What is there; of a later fragment, what the fragment header says that the fragments' whole starts with.
    pub protocol: Protocol,
    /// Where it starts in the packet: at its end at most.
    pub at: usize,
    /// The fragment header on the way, if any.
    pub fragment: Option<FragmentHeader>,
}

/// What a fragment header says (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Where this fragment's payload starts in the whole packet's fragmentable part, in bytes.
    pub offset: usize,
    /// Fragments with a higher offset follow.
    pub more: bool,
    /// Equal in all fragments of a packet.
    pub ident: u32,
    /// Where the fragment's payload starts in this packet.
    pub payload: usize,
}

impl<T: AsRef<[u8]>> Ipv6<T> {
    /// A received packet; bytes after its payload length are the frame's padding. Errors: `Truncated`, `BadIpHeader`.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        let packet = Self::partial(bytes)?;
        let fits = packet.total_len() <= packet.bytes.as_ref().len();
        if fits {
            Ok(packet)
        } else {
            Err(DropReason::BadIpHeader)
        }
    }

    /// A packet that may be cut off anywhere after its fixed header, as ICMP errors quote it. Errors: `Truncated`,
    /// `BadIpHeader`.
    #[inline(always)]
    pub fn partial(bytes: T) -> Result<Self, DropReason> {
        let header = bytes.as_ref();
        if header.len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        if header[field::VERSION] >> 4 == 6 {
            Ok(Self { bytes })
        } else {
            Err(DropReason::BadIpHeader)
        }
    }

    /// Differentiated services and congestion bits (RFC 2474, RFC 3168).
    #[inline(always)]
    pub fn traffic_class(&self) -> u8 {
        (be16(self.bytes.as_ref(), field::VERSION) >> 4) as u8
    }

    /// Flow label (20 bits, RFC 6437).
    #[inline(always)]
    pub fn flow_label(&self) -> u32 {
        u32::from_be_bytes(array(self.bytes.as_ref(), field::VERSION)) & 0x000f_ffff
    }

    /// Bytes of the packet after the fixed header.
    #[inline(always)]
    pub fn payload_len(&self) -> u16 {
        be16(self.bytes.as_ref(), field::PAYLOAD_LEN)
    }

    /// Bytes of the packet, header included.
    #[inline(always)]
    pub fn total_len(&self) -> usize {
        HEADER_LEN + usize::from(self.payload_len())
    }

    /// What `payload` starts with: an extension header or the transport.
    #[inline(always)]
    pub fn next_header(&self) -> Protocol {
        Protocol(self.bytes.as_ref()[field::NEXT_HEADER])
    }

    /// Hop limit.
    #[inline(always)]
    pub fn hop_limit(&self) -> u8 {
        self.bytes.as_ref()[HOP_LIMIT]
    }

    /// Source address.
    #[inline(always)]
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes.as_ref(), SRC))
    }

    /// Destination address.
    #[inline(always)]
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes.as_ref(), DST))
    }

    /// What follows the fixed header, without the frame's padding; as much as is there of a packet cut off.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..self.end()]
    }

    /// Walks through the extension headers. Errors: `Truncated` where one is cut off; `BadIpHeader` for hop-by-hop
    /// options that do not come first (RFC 8200 §4.1); `ExtensionHeaders` past `MAX_EXTENSIONS` or
    /// `MAX_EXTENSION_BYTES`.
    #[inline(always)]
    pub fn upper(&self) -> Result<Upper, DropReason> {
        let upper = Upper {
            protocol: self.next_header(),
            at: HEADER_LEN,
            fragment: None,
        };
        match upper.protocol {
            Protocol::TCP | Protocol::UDP | Protocol::ICMPV6 | Protocol::SCTP => Ok(upper),
            _ => walk(&self.bytes.as_ref()[..self.end()], upper),
        }
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.total_len().min(self.bytes.as_ref().len())
    }
}

/// Kept out of the main way: few packets have extension headers.
#[cold]
fn walk(packet: &[u8], mut upper: Upper) -> Result<Upper, DropReason> {
    for _ in 0..=MAX_EXTENSIONS {
        let passed = matches!(
            upper.protocol,
            extension::HOP_BY_HOP | extension::ROUTING | extension::FRAGMENT | extension::DESTINATION
        );
        if !passed {
            return Ok(upper);
        }
        if upper.at > HEADER_LEN + MAX_EXTENSION_BYTES {
            return Err(DropReason::ExtensionHeaders);
        }
        // Of all four the first byte is the next header.
        let rest = packet.get(upper.at..).ok_or(DropReason::Truncated)?;
        let header = rest
            .first_chunk::<FRAGMENT_HEADER_LEN>()
            .ok_or(DropReason::Truncated)?;
        let mut len = FRAGMENT_HEADER_LEN;
        match upper.protocol {
            extension::FRAGMENT => {
                let position = be16(header, 2);
                let fragment = FragmentHeader {
                    offset: usize::from(position & !7),
                    more: position & 1 != 0,
                    ident: u32::from_be_bytes(array(header, 4)),
                    payload: upper.at + len,
                };
                let later = fragment.offset != 0;
                // A second one would make a fragment of a fragment, which no sender may build (RFC 8200 §4.5).
                if upper.fragment.replace(fragment).is_some() {
                    return Err(DropReason::BadIpHeader);
                }
                if later {
                    return Ok(Upper {
                        protocol: Protocol(header[0]),
                        at: upper.at + len,
                        ..upper
                    });
                }
            }
            // The destination address is a stop on the way, and what follows belongs to the last one.
            extension::ROUTING if header[3] != 0 => return Ok(upper),
            extension::HOP_BY_HOP if upper.at != HEADER_LEN => return Err(DropReason::BadIpHeader),
            _ => len = (usize::from(header[1]) + 1) * 8,
        }
        upper.protocol = Protocol(header[0]);
        upper.at += len;
        if upper.at > packet.len() {
            return Err(DropReason::Truncated);
        }
    }
    Err(DropReason::ExtensionHeaders)
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv6<T> {
    /// A packet to build that fills the buffer: no extension headers, everything else zero. Errors: `NoFrame` if the
    /// buffer is too short, `TooBig` if it is longer than a packet can be.
    #[inline(always)]
    pub fn blank(mut bytes: T, next_header: Protocol) -> Result<Self, DropReason> {
        let len = bytes.as_ref().len();
        let header = bytes
            .as_mut()
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(DropReason::NoFrame)?;
        let payload_len = u16::try_from(len - HEADER_LEN).map_err(|_| DropReason::TooBig)?;
        *header = [0; HEADER_LEN];
        header[field::VERSION] = 0x60;
        header[field::NEXT_HEADER] = next_header.0;
        put(header, field::PAYLOAD_LEN, payload_len.to_be_bytes());
        Ok(Self { bytes })
    }

    /// Sets differentiated services and congestion bits.
    #[inline(always)]
    pub fn set_traffic_class(&mut self, class: u8) {
        let word = be16(self.bytes.as_ref(), field::VERSION) & 0xf00f | u16::from(class) << 4;
        put(self.bytes.as_mut(), field::VERSION, word.to_be_bytes());
    }

    /// Sets the hop limit.
    #[inline(always)]
    pub fn set_hop_limit(&mut self, limit: u8) {
        self.bytes.as_mut()[HOP_LIMIT] = limit;
    }

    /// Sets the source address.
    #[inline(always)]
    pub fn set_src(&mut self, src: Ipv6Addr) {
        put(self.bytes.as_mut(), SRC, src.octets());
    }

    /// Sets the destination address.
    #[inline(always)]
    pub fn set_dst(&mut self, dst: Ipv6Addr) {
        put(self.bytes.as_mut(), DST, dst.octets());
    }

    /// What follows the fixed header, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let end = self.end();
        &mut self.bytes.as_mut()[HEADER_LEN..end]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Ipv6<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}", self.src(), self.dst())?;
        match self.upper() {
            Ok(upper) => {
                write!(f, " {}", upper.protocol)?;
                if let Some(fragment) = upper.fragment {
                    write!(f, " fragment {} at {}", fragment.ident, fragment.offset)?;
                }
            }
            Err(_) => write!(f, " {}", self.next_header())?,
        }
        write!(f, " hop limit {} len {}", self.hop_limit(), self.total_len())
    }
}

/// The address can be a sender's (RFC 4291 §2.5, §2.7): not multicast, unspecified, loopback or an IPv4 address in
/// disguise, which means IPv4 to a host's sockets and nothing on a wire.
#[inline(always)]
pub const fn can_send(address: Ipv6Addr) -> bool {
    !(address.is_multicast()
        || address.is_unspecified()
        || address.is_loopback()
        || address.to_ipv4_mapped().is_some())
}

/// The group on whose address a station listens for questions about `address` (RFC 4291 §2.7.1).
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

#[cfg(test)]
mod tests;
