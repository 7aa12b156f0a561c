//! Packets as the records speak of them, to frames and back, by etherparse. Nothing of the code under test is used, and
//! every checksum is made and proved here.

use std::net::IpAddr;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use sluice_dataplane::addr::Mac;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
/// IPv6's fragment header.
const FRAGMENT: u8 = 44;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// TTL or hop limit.
    pub(crate) hops: u8,
    pub(crate) protocol: u8,
    /// Which part of a datagram it is, if not all of it.
    pub(crate) piece: Option<Piece>,
    /// Everything after the IP header.
    pub(crate) transport: Vec<u8>,
}

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    /// In units of eight bytes.
    pub(crate) offset: u16,
    /// Others come after it.
    pub(crate) more: bool,
}

impl Packet {
    /// Of any protocol; a checksum that belongs to `transport` is made.
    pub(crate) fn new(src: IpAddr, dst: IpAddr, protocol: u8, transport: Vec<u8>) -> Self {
        let mut packet = Self {
            src,
            dst,
            hops: 64,
            protocol,
            piece: None,
            transport,
        };
        packet.seal();
        packet
    }

    /// A segment with the 20 bytes of options that Linux puts into a SYN, so that lengths are the recorded ones.
    pub(crate) fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8, payload: &[u8]) -> Self {
        const OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        let mut header = TcpHeader::new(from.1, to.1, 1000, 64_240);
        header.set_options_raw(&OPTIONS).unwrap();
        let mut transport = header.to_bytes().to_vec();
        transport[13] = flags;
        transport.extend_from_slice(payload);
        Self::new(from.0, to.0, TCP, transport)
    }

    pub(crate) fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Self {
        let header = UdpHeader {
            source_port: from.1,
            destination_port: to.1,
            length: (UdpHeader::LEN + payload.len()) as u16,
            checksum: 0,
        };
        Self::new(from.0, to.0, UDP, [&header.to_bytes()[..], payload].concat())
    }

    /// An SCTP packet with one chunk of this type (RFC 9260 §3.2).
    pub(crate) fn sctp(from: (IpAddr, u16), to: (IpAddr, u16), chunk: u8) -> Self {
        let ports = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        let init = [chunk, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9];
        Self::new(from.0, to.0, SCTP, [&ports[..], &[0; 8], &init].concat())
    }

    pub(crate) fn echo(src: IpAddr, dst: IpAddr, payload: &[u8]) -> Self {
        let (protocol, kind) = if src.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
        Self::new(
            src,
            dst,
            protocol,
            [&[kind, 0, 0, 0, 0, 7, 0, 1], payload].concat(),
        )
    }

    pub(crate) fn len(&self) -> usize {
        self.transport.len() + if self.src.is_ipv4() { 20 } else { 40 }
    }

    pub(crate) fn sport(&self) -> u16 {
        self.number(0)
    }

    pub(crate) fn dport(&self) -> u16 {
        self.number(2)
    }

    /// The 16-bit number at this offset of the transport header.
    pub(crate) fn number(&self, at: usize) -> u16 {
        let bytes = self.transport.get(at..at + 2);
        bytes.map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn is_icmp(&self) -> bool {
        matches!(self.protocol, ICMP | ICMPV6)
    }

    /// What the receiver's stack answers: the same flow, backwards.
    pub(crate) fn answer(&self) -> Self {
        let (from, to) = ((self.dst, self.dport()), (self.src, self.sport()));
        match self.protocol {
            TCP => Self::tcp(from, to, ACK | self.transport[13] & SYN, b""),
            UDP => Self::udp(from, to, b"answer"),
            SCTP => Self::sctp(from, to, 2),
            other => panic!("nobody answers protocol {other}"),
        }
    }

    /// Where the checksum is, if the protocol has one.
    pub(crate) fn checksum_at(&self) -> Option<usize> {
        let at = match self.protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMPV6 => 2,
            _ => return None,
        };
        (self.transport.len() >= at + 2).then_some(at)
    }

    fn seal(&mut self) {
        if self.protocol == SCTP {
            self.transport[8..12].fill(0);
            let crc = crc32c(&self.transport);
            self.transport[8..12].copy_from_slice(&crc.to_le_bytes());
        } else if let Some(at) = self.checksum_at() {
            self.transport[at..at + 2].fill(0);
            let sum = match !self.sum() {
                0 if self.protocol == UDP => 0xffff,
                sum => sum,
            };
            self.transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Whether the checksum is right, or there is none.
    pub(crate) fn is_sound(&self) -> bool {
        if self.protocol == SCTP {
            let mut copy = self.clone();
            copy.seal();
            return copy.transport == self.transport;
        }
        let none = self.protocol == UDP && self.src.is_ipv4() && self.number(6) == 0;
        none || self.checksum_at().is_none() || self.sum() == 0xffff
    }

    /// The Internet checksum's sum over pseudo-header and transport (RFC 1071, RFC 8200 §8.1).
    fn sum(&self) -> u16 {
        let mut bytes = Vec::new();
        if self.protocol != ICMP {
            let push = |bytes: &mut Vec<u8>, address| match address {
                IpAddr::V4(a) => bytes.extend(a.octets()),
                IpAddr::V6(a) => bytes.extend(a.octets()),
            };
            push(&mut bytes, self.src);
            push(&mut bytes, self.dst);
            bytes.extend((self.transport.len() as u32).to_be_bytes());
            bytes.extend([0, 0, 0, self.protocol]);
        }
        bytes.extend(&self.transport);
        let words = bytes.chunks(2).map(|pair| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [high] => u64::from(high) << 8,
            _ => 0,
        });
        let mut sum: u64 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// As bytes from the IP header on.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let protocol = IpNumber(self.protocol);
                let length = self.transport.len() as u16;
                let mut header =
                    Ipv4Header::new(length, self.hops, protocol, src.octets(), dst.octets()).unwrap();
                if let Some(piece) = self.piece {
                    header.identification = piece.id as u16;
                    header.more_fragments = piece.more;
                    header.dont_fragment = false;
                    header.fragment_offset = piece.offset.try_into().unwrap();
                }
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let fragment = self.piece.map(|piece| {
                    let field = piece.offset << 3 | u16::from(piece.more);
                    let [high, low] = field.to_be_bytes();
                    [&[self.protocol, 0, high, low][..], &piece.id.to_be_bytes()].concat()
                });
                let extension = fragment.unwrap_or_default();
                let next = if extension.is_empty() {
                    self.protocol
                } else {
                    FRAGMENT
                };
                let header = Ipv6Header {
                    payload_length: (self.transport.len() + extension.len()) as u16,
                    next_header: IpNumber(next),
                    hop_limit: self.hops,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                [&header.to_bytes()[..], &extension].concat()
            }
            _ => panic!("two families in one packet"),
        };
        out.extend(&self.transport);
        out
    }

    /// As a frame.
    pub(crate) fn frame(&self, from: Mac, to: Mac) -> Vec<u8> {
        let ether_type = if self.src.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        let header = Ethernet2Header {
            source: from.0,
            destination: to.0,
            ether_type,
        };
        [&header.to_bytes()[..], &self.bytes()].concat()
    }

    /// A whole packet from its IP header on, or the beginning of one as an ICMP error quotes it.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.first()? >> 4 == 4 {
            let (header, rest) = Ipv4Header::from_slice(bytes).ok()?;
            let length = usize::from(header.total_len).checked_sub(header.header_len())?;
            let (offset, more) = (header.fragment_offset.value(), header.more_fragments);
            let id = u32::from(header.identification);
            (header.calc_header_checksum() == header.header_checksum).then_some(Self {
                src: IpAddr::from(header.source),
                dst: IpAddr::from(header.destination),
                hops: header.time_to_live,
                protocol: header.protocol.0,
                piece: (offset > 0 || more).then_some(Piece { id, offset, more }),
                transport: rest[..length.min(rest.len())].to_vec(),
            })
        } else {
            let (header, rest) = Ipv6Header::from_slice(bytes).ok()?;
            let rest = &rest[..usize::from(header.payload_length).min(rest.len())];
            let (mut protocol, mut transport, mut piece) = (header.next_header.0, rest, None);
            if protocol == FRAGMENT {
                let (fragment, after) = rest.split_at_checked(8)?;
                let field = u16::from_be_bytes([fragment[2], fragment[3]]);
                let id = u32::from_be_bytes([fragment[4], fragment[5], fragment[6], fragment[7]]);
                piece = Some(Piece {
                    id,
                    offset: field >> 3,
                    more: field & 1 == 1,
                });
                (protocol, transport) = (fragment[0], after);
            }
            Some(Self {
                src: IpAddr::from(header.source),
                dst: IpAddr::from(header.destination),
                hops: header.hop_limit,
                protocol,
                piece,
                transport: transport.to_vec(),
            })
        }
    }

    /// Cut into fragments of at most `size` bytes of payload, a multiple of eight.
    pub(crate) fn cut(&self, id: u32, size: usize) -> Vec<Self> {
        let parts: Vec<_> = self.transport.chunks(size).collect();
        let part = |(index, part): (usize, &&[u8])| Self {
            piece: Some(Piece {
                id,
                offset: (index * size / 8) as u16,
                more: index + 1 < parts.len(),
            }),
            transport: part.to_vec(),
            ..self.clone()
        };
        parts.iter().enumerate().map(part).collect()
    }

    /// The whole of which these are all fragments, in whatever order and however often each; `None` if one is missing.
    pub(crate) fn joined(pieces: &[Self]) -> Option<Self> {
        let mut whole = Self {
            piece: None,
            transport: Vec::new(),
            ..pieces.first()?.clone()
        };
        loop {
            let next = |packet: &&Self| {
                packet
                    .piece
                    .is_some_and(|piece| usize::from(piece.offset) * 8 == whole.transport.len())
            };
            let next = pieces.iter().find(next)?;
            whole.transport.extend(&next.transport);
            if !next.piece?.more {
                return Some(whole);
            }
        }
    }
}

/// SCTP's checksum (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[test]
fn the_checksums_of_this_bed_are_the_published_ones() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283); // RFC 3720 §B.4 names the polynomial; the check value of CRC-32C
    let v4 = |last| IpAddr::from([192, 0, 2, last]);
    let packet = Packet::udp((v4(1), 7), (v4(2), 8), b"odd");
    assert!(packet.is_sound() && Packet::parse(&packet.bytes()).as_ref() == Some(&packet));
    let pieces = packet.cut(7, 8);
    assert_eq!(
        pieces
            .iter()
            .filter_map(|piece| Packet::parse(&piece.bytes()))
            .collect::<Vec<_>>(),
        pieces
    );
    assert_eq!(Packet::joined(&pieces), Some(packet.clone()));
    let mut broken = packet;
    broken.transport[8] ^= 1;
    assert!(!broken.is_sound());
}
