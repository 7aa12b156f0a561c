//! ICMP messages for IPv6 (RFC 4443): echo, and errors that quote the packet they are about. Neighbour discovery is
//! `nd`.

use std::fmt;

use super::{array, be16, checksum, put};
use crate::addr::{Protocol, V6};
use crate::verdict::DropReason;

/// Destination unreachable (type 1).
pub const UNREACHABLE: u8 = 1;
/// Packet too big (type 2).
pub const PACKET_TOO_BIG: u8 = 2;
/// Time exceeded (type 3).
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem (type 4).
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request (type 128).
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply (type 129).
pub const ECHO_REPLY: u8 = 129;

/// Code of `UNREACHABLE`: nobody listens on the port.
pub const PORT_UNREACHABLE: u8 = 4;
/// Code of `TIME_EXCEEDED`: the hop limit ran out on the way.
pub const HOP_LIMIT_EXCEEDED: u8 = 0;

/// Where the checksum lies in the header.
pub const CHECKSUM: usize = 2;

mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const ECHO_IDENT: usize = 4;
    pub(super) const ECHO_SEQUENCE: usize = 6;
    pub(super) const MTU: usize = 4;
}

/// Bytes of the header, the same for all types handled here.
pub const HEADER_LEN: usize = 8;

/// A message of this type is an error, assigned or not (RFC 4443 §2.1).
#[inline(always)]
pub const fn is_error(icmp_type: u8) -> bool {
    icmp_type < 128
}

/// A message of this type is the link's own: neighbour and router discovery, redirects (RFC 4861 §4).
#[inline(always)]
pub const fn is_discovery(icmp_type: u8) -> bool {
    matches!(icmp_type, 133..=137)
}

/// A message: what an IP packet of protocol ICMPv6 carries.
#[derive(Debug)]
pub struct Icmpv6<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Icmpv6<T> {
    /// A received message, all of it. Errors: `Truncated`.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        if bytes.as_ref().len() < HEADER_LEN {
            Err(DropReason::Truncated)
        } else {
            Ok(Self { bytes })
        }
    }

    /// A message that may be cut off anywhere after its header: the header has no length, so this is `new`.
    #[inline(always)]
    pub fn partial(bytes: T) -> Result<Self, DropReason> {
        Self::new(bytes)
    }

    /// Type.
    #[inline(always)]
    pub fn icmp_type(&self) -> u8 {
        self.bytes.as_ref()[field::TYPE]
    }

    /// Code: what it says depends on the type.
    #[inline(always)]
    pub fn code(&self) -> u8 {
        self.bytes.as_ref()[field::CODE]
    }

    /// The checksum as carried.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes.as_ref(), CHECKSUM)
    }

    /// Identifier and sequence number of an echo request or reply.
    #[inline(always)]
    pub fn echo(&self) -> Option<(u16, u16)> {
        let bytes = self.bytes.as_ref();
        matches!(self.icmp_type(), ECHO_REQUEST | ECHO_REPLY)
            .then(|| (be16(bytes, field::ECHO_IDENT), be16(bytes, field::ECHO_SEQUENCE)))
    }

    /// What the next link can carry, of "packet too big".
    #[inline(always)]
    pub fn mtu(&self) -> Option<u32> {
        (self.icmp_type() == PACKET_TOO_BIG)
            .then(|| u32::from_be_bytes(array(self.bytes.as_ref(), field::MTU)))
    }

    /// The packet an error is about, from its IP header on, cut off anywhere: for `Ipv6::partial`.
    #[inline(always)]
    pub fn quoted(&self) -> Option<&[u8]> {
        is_error(self.icmp_type()).then(|| self.payload())
    }

    /// What follows the header.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..]
    }

    /// The checksum of the whole message between these addresses is right.
    pub fn checksum_ok(&self, src: V6, dst: V6) -> bool {
        self.covered_sum(src, dst) == checksum::RIGHT
    }

    fn covered_sum(&self, src: V6, dst: V6) -> u16 {
        // An IP packet carries fewer than 65,536 bytes.
        let bytes = self.bytes.as_ref();
        checksum::add(
            checksum::pseudo_header(src, dst, Protocol::ICMPV6, bytes.len() as u16),
            checksum::sum(bytes),
        )
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Icmpv6<T> {
    /// A message to build that fills the buffer, the rest of its header zero. Errors: `NoFrame` if the buffer is too
    /// short.
    #[inline(always)]
    pub fn blank(mut bytes: T, icmp_type: u8, code: u8) -> Result<Self, DropReason> {
        let header = bytes
            .as_mut()
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(DropReason::NoFrame)?;
        *header = [icmp_type, code, 0, 0, 0, 0, 0, 0];
        Ok(Self { bytes })
    }

    /// Sets identifier and sequence number: of an echo.
    #[inline(always)]
    pub fn set_echo(&mut self, ident: u16, sequence: u16) {
        put(self.bytes.as_mut(), field::ECHO_IDENT, ident.to_be_bytes());
        put(self.bytes.as_mut(), field::ECHO_SEQUENCE, sequence.to_be_bytes());
    }

    /// Sets what the next link can carry: of "packet too big".
    #[inline(always)]
    pub fn set_mtu(&mut self, mtu: u32) {
        put(self.bytes.as_mut(), field::MTU, mtu.to_be_bytes());
    }

    /// Computes and sets the checksum: for a message that is built here, never for one in flight.
    pub fn fill_checksum(&mut self, src: V6, dst: V6) {
        put(self.bytes.as_mut(), CHECKSUM, [0; 2]);
        let sum = self.covered_sum(src, dst);
        put(self.bytes.as_mut(), CHECKSUM, (!sum).to_be_bytes());
    }

    /// What follows the header, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Icmpv6<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.icmp_type(), self.echo(), self.mtu()) {
            (ECHO_REQUEST, Some((ident, sequence)), _) => {
                write!(f, "ICMPv6 echo request {ident} seq {sequence}")
            }
            (_, Some((ident, sequence)), _) => write!(f, "ICMPv6 echo reply {ident} seq {sequence}"),
            (_, _, Some(mtu)) => write!(f, "ICMPv6 packet too big, MTU {mtu}"),
            (icmp_type, _, _) => write!(f, "ICMPv6 type {icmp_type} code {}", self.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: V6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const DST: V6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    /// Sum by hand: fd00 + 1 + fd00 + 2 + 58 + 11, then 8000 + 1234 + 1 + 6162 + 6300.
    const ECHO: [u8; 11] = [128, 0, 0xaf, 0x1d, 0x12, 0x34, 0x00, 0x01, b'a', b'b', b'c'];

    #[test]
    fn the_bytes_of_an_echo_request_read_as_its_fields() {
        let icmp = Icmpv6::new(&ECHO).unwrap();
        assert_eq!(
            (icmp.icmp_type(), icmp.code(), icmp.echo()),
            (ECHO_REQUEST, 0, Some((0x1234, 1)))
        );
        assert_eq!(
            (icmp.payload(), icmp.quoted(), icmp.mtu()),
            (&b"abc"[..], None, None)
        );
        assert!(icmp.checksum_ok(SRC, DST) && !icmp.checksum_ok(SRC, SRC));
        assert_eq!(icmp.to_string(), "ICMPv6 echo request 4660 seq 1");
    }

    #[test]
    fn the_fields_of_an_echo_request_write_as_its_bytes() {
        let mut bytes = [0x55; 11];
        let mut icmp = Icmpv6::blank(&mut bytes, ECHO_REQUEST, 0).unwrap();
        icmp.set_echo(0x1234, 1);
        icmp.payload_mut().copy_from_slice(b"abc");
        icmp.fill_checksum(SRC, DST);
        assert_eq!(bytes, ECHO);
    }

    #[test]
    fn an_error_gives_the_packet_it_quotes_and_the_mtu_it_names() {
        let mut bytes = [0x55; 10];
        let mut icmp = Icmpv6::blank(&mut bytes, PACKET_TOO_BIG, 0).unwrap();
        icmp.set_mtu(1400);
        icmp.payload_mut().copy_from_slice(&[0x60, 0x00]);
        icmp.fill_checksum(SRC, DST);
        let icmp = Icmpv6::new(&bytes).unwrap();
        assert_eq!(
            (icmp.mtu(), icmp.quoted(), icmp.echo()),
            (Some(1400), Some(&[0x60, 0][..]), None)
        );
        assert!(icmp.checksum_ok(SRC, DST));
        assert_eq!(icmp.to_string(), "ICMPv6 packet too big, MTU 1400");
    }

    #[test]
    fn a_message_that_ends_in_its_header_is_refused() {
        assert_eq!(Icmpv6::new(&ECHO[..7]).unwrap_err(), DropReason::Truncated);
        assert_eq!(
            Icmpv6::blank([0; 7], ECHO_REPLY, 0).unwrap_err(),
            DropReason::NoFrame
        );
    }
}
