//! IPv4 packets (RFC 791): options are skipped, fragments recognised.

use std::fmt;
use std::net::Ipv4Addr;

use super::{array, be16, checksum, put};
use crate::addr::Protocol;
use crate::verdict::DropReason;

pub(super) mod field {
    pub(in crate::wire) const VERSION_IHL: usize = 0;
    pub(in crate::wire) const TRAFFIC_CLASS: usize = 1;
    pub(in crate::wire) const TOTAL_LEN: usize = 2;
    pub(in crate::wire) const IDENT: usize = 4;
    pub(in crate::wire) const FRAGMENT: usize = 6;
    pub(in crate::wire) const PROTOCOL: usize = 9;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

/// Where the time to live lies in the header.
pub const TTL: usize = 8;
/// Where the checksum lies in the header.
pub const CHECKSUM: usize = 10;
/// Where the source address lies in the header.
pub const SRC: usize = 12;
/// Where the destination address lies in the header.
pub const DST: usize = 16;

/// Parts of the word at `field::FRAGMENT`.
pub(super) mod flag {
    pub(in crate::wire) const DONT_FRAGMENT: u16 = 0x4000;
    pub(in crate::wire) const MORE: u16 = 0x2000;
    pub(in crate::wire) const OFFSET: u16 = 0x1fff;
}

/// A packet.
#[derive(Debug)]
pub struct Ipv4<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Ipv4<T> {
    /// A received packet; bytes after its total length are the frame's padding. Errors: `Truncated`, `BadIpHeader`.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        let packet = Self::partial(bytes)?;
        let fits = usize::from(packet.total_len()) <= packet.bytes.as_ref().len();
        if fits {
            Ok(packet)
        } else {
            Err(DropReason::BadIpHeader)
        }
    }

    /// A packet that may be cut off anywhere after its header, as ICMP errors quote it. Errors: `Truncated`,
    /// `BadIpHeader`.
    #[inline(always)]
    pub fn partial(bytes: T) -> Result<Self, DropReason> {
        let len = bytes.as_ref().len();
        if len < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let packet = Self { bytes };
        let header = packet.header_len();
        let sound = packet.bytes.as_ref()[field::VERSION_IHL] >> 4 == 4
            && header >= HEADER_LEN
            && header <= len
            && header <= usize::from(packet.total_len());
        if sound {
            Ok(packet)
        } else {
            Err(DropReason::BadIpHeader)
        }
    }

    /// Bytes of the header, options included: 20 to 60.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes.as_ref()[field::VERSION_IHL] & 0x0f) * 4
    }

    /// Differentiated services and congestion bits (RFC 2474, RFC 3168).
    #[inline(always)]
    pub fn traffic_class(&self) -> u8 {
        self.bytes.as_ref()[field::TRAFFIC_CLASS]
    }

    /// Bytes of the packet, header included.
    #[inline(always)]
    pub fn total_len(&self) -> u16 {
        be16(self.bytes.as_ref(), field::TOTAL_LEN)
    }

    /// Identification: equal in all fragments of a packet.
    #[inline(always)]
    pub fn ident(&self) -> u16 {
        be16(self.bytes.as_ref(), field::IDENT)
    }

    /// May not be fragmented.
    #[inline(always)]
    pub fn dont_fragment(&self) -> bool {
        be16(self.bytes.as_ref(), field::FRAGMENT) & flag::DONT_FRAGMENT != 0
    }

    /// Fragments with a higher offset follow.
    #[inline(always)]
    pub fn more_fragments(&self) -> bool {
        be16(self.bytes.as_ref(), field::FRAGMENT) & flag::MORE != 0
    }

    /// Where this fragment's payload starts in the whole packet's, in bytes.
    #[inline(always)]
    pub fn fragment_offset(&self) -> usize {
        usize::from(be16(self.bytes.as_ref(), field::FRAGMENT) & flag::OFFSET) * 8
    }

    /// Time to live.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        self.bytes.as_ref()[TTL]
    }

    /// What `payload` is.
    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        Protocol(self.bytes.as_ref()[field::PROTOCOL])
    }

    /// The header checksum as carried.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes.as_ref(), CHECKSUM)
    }

    /// Source address.
    #[inline(always)]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes.as_ref(), SRC))
    }

    /// Destination address.
    #[inline(always)]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes.as_ref(), DST))
    }

    /// Options with their padding; usually empty.
    #[inline(always)]
    pub fn options(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..self.header_len()]
    }

    /// What the packet carries, without the frame's padding; as much as is there of a packet cut off.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[self.header_len()..self.end()]
    }

    /// The header checksum is right.
    #[inline(always)]
    pub fn checksum_ok(&self) -> bool {
        let bytes = self.bytes.as_ref();
        // Nearly every header has no options, and a known length.
        let sum = match bytes.first_chunk::<HEADER_LEN>() {
            Some(header) if self.header_len() == HEADER_LEN => checksum::sum(header),
            _ => sum_with_options(&bytes[..self.header_len()]),
        };
        sum == checksum::RIGHT
    }

    #[inline(always)]
    fn end(&self) -> usize {
        usize::from(self.total_len()).min(self.bytes.as_ref().len())
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv4<T> {
    /// A packet to build that fills the buffer: no options, not to be fragmented, everything else zero. Errors: `NoFrame`
    /// if the buffer is too short, `TooBig` if it is longer than a packet can be.
    #[inline(always)]
    pub fn blank(mut bytes: T, protocol: Protocol) -> Result<Self, DropReason> {
        let total_len = u16::try_from(bytes.as_ref().len()).map_err(|_| DropReason::TooBig)?;
        let header = bytes
            .as_mut()
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(DropReason::NoFrame)?;
        *header = [0; HEADER_LEN];
        header[field::VERSION_IHL] = 0x45;
        header[field::PROTOCOL] = protocol.0;
        put(header, field::TOTAL_LEN, total_len.to_be_bytes());
        put(header, field::FRAGMENT, flag::DONT_FRAGMENT.to_be_bytes());
        Ok(Self { bytes })
    }

    /// Sets differentiated services and congestion bits.
    #[inline(always)]
    pub fn set_traffic_class(&mut self, class: u8) {
        self.bytes.as_mut()[field::TRAFFIC_CLASS] = class;
    }

    /// Sets the time to live.
    #[inline(always)]
    pub fn set_ttl(&mut self, ttl: u8) {
        self.bytes.as_mut()[TTL] = ttl;
    }

    /// Sets the source address.
    #[inline(always)]
    pub fn set_src(&mut self, src: Ipv4Addr) {
        put(self.bytes.as_mut(), SRC, src.octets());
    }

    /// Sets the destination address.
    #[inline(always)]
    pub fn set_dst(&mut self, dst: Ipv4Addr) {
        put(self.bytes.as_mut(), DST, dst.octets());
    }

    /// Sets the checksum as given: by difference, when a header in flight changes.
    #[inline(always)]
    pub fn set_checksum(&mut self, checksum: u16) {
        put(self.bytes.as_mut(), CHECKSUM, checksum.to_be_bytes());
    }

    /// Computes and sets the checksum: for a packet that is built here, never for one in flight.
    #[inline(always)]
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let sum = checksum::sum(&self.bytes.as_ref()[..self.header_len()]);
        self.set_checksum(!sum);
    }

    /// What the packet carries, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.header_len(), self.end());
        &mut self.bytes.as_mut()[start..end]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Ipv4<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} > {} {} ttl {}",
            self.src(),
            self.dst(),
            self.protocol(),
            self.ttl()
        )?;
        if self.more_fragments() || self.fragment_offset() != 0 {
            write!(f, " fragment {} at {}", self.ident(), self.fragment_offset())?;
        }
        write!(f, " len {}", self.total_len())
    }
}

/// Kept out of the main way.
#[cold]
fn sum_with_options(header: &[u8]) -> u16 {
    checksum::sum(header)
}

/// The address can be a sender's (RFC 1122 §3.2.1.3): not multicast, limited broadcast, loopback or unspecified.
#[inline(always)]
pub const fn can_send(address: Ipv4Addr) -> bool {
    !(is_group(address) || address.is_loopback() || address.is_unspecified())
}

/// The address names many receivers: multicast or limited broadcast. A directed broadcast cannot be told without the
/// network's prefix.
#[inline(always)]
pub const fn is_group(address: Ipv4Addr) -> bool {
    address.is_multicast() || address.is_broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 24] = [
        0x45, 0x00, 0x00, 0x18, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0xbc, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
        0xa8, 0x00, 0xc7, 0xde, 0xad, 0xbe, 0xef,
    ];

    #[test]
    fn the_bytes_of_a_packet_read_as_its_fields() {
        let mut padded = BYTES.to_vec();
        padded.extend([0; 22]);
        let ip = Ipv4::new(&padded).unwrap();
        assert_eq!(
            (ip.src(), ip.dst()),
            (Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(192, 168, 0, 199))
        );
        assert_eq!(
            (ip.protocol(), ip.ttl(), ip.ident(), ip.traffic_class()),
            (Protocol::UDP, 64, 0, 0)
        );
        assert!(ip.dont_fragment() && !ip.more_fragments() && ip.fragment_offset() == 0);
        assert!(ip.checksum_ok() && ip.options().is_empty());
        assert_eq!(ip.payload(), [0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(ip.to_string(), "192.168.0.1 > 192.168.0.199 UDP ttl 64 len 24");
    }

    #[test]
    fn the_fields_of_a_packet_write_as_its_bytes() {
        let mut bytes = [0x55; 24];
        let mut ip = Ipv4::blank(&mut bytes, Protocol::UDP).unwrap();
        ip.set_ttl(64);
        ip.set_src(Ipv4Addr::new(192, 168, 0, 1));
        ip.set_dst(Ipv4Addr::new(192, 168, 0, 199));
        ip.payload_mut().copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        ip.fill_checksum();
        assert_eq!(bytes, BYTES);
    }

    #[test]
    fn lengths_that_contradict_each_other_or_the_bytes_are_refused() {
        let with = |at: usize, value: u8| {
            let mut bytes = BYTES;
            bytes[at] = value;
            Ipv4::new(bytes).map(|_| ())
        };
        assert_eq!(with(0, 0x65), Err(DropReason::BadIpHeader), "version 6");
        assert_eq!(
            with(0, 0x44),
            Err(DropReason::BadIpHeader),
            "header shorter than 20"
        );
        assert_eq!(
            with(0, 0x47),
            Err(DropReason::BadIpHeader),
            "header longer than the packet"
        );
        assert_eq!(
            with(3, 19),
            Err(DropReason::BadIpHeader),
            "total shorter than the header"
        );
        assert_eq!(
            with(3, 25),
            Err(DropReason::BadIpHeader),
            "total longer than the bytes"
        );
        assert_eq!(with(0, 0x46), Ok(()), "four bytes of options, no payload");
        assert_eq!(Ipv4::new(&BYTES[..19]).unwrap_err(), DropReason::Truncated);
        assert_eq!(
            Ipv4::blank([0; 19], Protocol::UDP).unwrap_err(),
            DropReason::NoFrame
        );
        assert_eq!(
            Ipv4::blank(vec![0; 65_536], Protocol::UDP).unwrap_err(),
            DropReason::TooBig
        );
    }

    #[test]
    fn a_quoted_packet_may_end_early_and_gives_what_is_there() {
        assert_eq!(Ipv4::partial(&BYTES[..22]).unwrap().payload(), [0xde, 0xad]);
        assert!(Ipv4::partial(&BYTES[..20]).unwrap().payload().is_empty());
        let mut with_options = BYTES;
        with_options[0] = 0x46;
        assert_eq!(
            Ipv4::partial(&with_options[..23]).unwrap_err(),
            DropReason::BadIpHeader,
            "options are cut off"
        );
    }

    #[test]
    fn one_flipped_bit_is_a_wrong_checksum() {
        for bit in 0..160 {
            let mut bytes = BYTES;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Ipv4::new(&bytes).is_err() || !Ipv4::new(&bytes).unwrap().checksum_ok(),
                "bit {bit}"
            );
        }
    }
}
