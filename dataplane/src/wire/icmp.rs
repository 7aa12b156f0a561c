//! ICMP messages for IPv4 (RFC 792): echo, and errors that quote the packet they are about.

use std::fmt;

use super::{be16, checksum, put};
use crate::verdict::DropReason;

/// Echo reply (type 0).
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable (type 3).
pub const UNREACHABLE: u8 = 3;
/// Source quench (type 4), obsolete (RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect (type 5).
pub const REDIRECT: u8 = 5;
/// Echo request (type 8).
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded (type 11).
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem (type 12).
pub const PARAMETER_PROBLEM: u8 = 12;

/// Code of `UNREACHABLE`: nobody listens on the port.
pub const PORT_UNREACHABLE: u8 = 3;
/// Code of `UNREACHABLE`: too big for the next link and not to be fragmented (RFC 1191).
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of `TIME_EXCEEDED`: the time to live ran out on the way.
pub const TTL_EXCEEDED: u8 = 0;

/// Where the checksum lies in the header.
pub const CHECKSUM: usize = 2;

mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const ECHO_IDENT: usize = 4;
    pub(super) const ECHO_SEQUENCE: usize = 6;
    pub(super) const NEXT_HOP_MTU: usize = 6;
}

/// Bytes of the header, the same for all types handled here.
pub const HEADER_LEN: usize = 8;

/// A message of this type is an error about the packet it quotes (RFC 792; RFC 1122 §3.2.2).
#[inline(always)]
pub const fn is_error(icmp_type: u8) -> bool {
    matches!(
        icmp_type,
        UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
    )
}

/// A message of this type is certainly no error: echo, router discovery, timestamp, information, address mask (RFC 1122
/// §3.2.2). A type nobody assigned is neither this nor `is_error`, and may not be answered by an error.
#[inline(always)]
pub const fn is_query(icmp_type: u8) -> bool {
    matches!(icmp_type, ECHO_REPLY | 8..=10 | 13..=18)
}

/// A message: what an IP packet of protocol ICMP carries.
#[derive(Debug)]
pub struct Icmp<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Icmp<T> {
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

    /// What the next link can carry, of "fragmentation needed" (RFC 1191 §4); 0 from routers older than that.
    #[inline(always)]
    pub fn next_hop_mtu(&self) -> Option<u16> {
        ((self.icmp_type(), self.code()) == (UNREACHABLE, FRAGMENTATION_NEEDED))
            .then(|| be16(self.bytes.as_ref(), field::NEXT_HOP_MTU))
    }

    /// The packet an error is about, from its IP header on, cut off anywhere: for `Ipv4::partial`.
    #[inline(always)]
    pub fn quoted(&self) -> Option<&[u8]> {
        is_error(self.icmp_type()).then(|| self.payload())
    }

    /// What follows the header.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..]
    }

    /// The checksum of the whole message is right.
    pub fn checksum_ok(&self) -> bool {
        checksum::sum(self.bytes.as_ref()) == checksum::RIGHT
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Icmp<T> {
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

    /// Sets what the next link can carry: of "fragmentation needed".
    #[inline(always)]
    pub fn set_next_hop_mtu(&mut self, mtu: u16) {
        put(self.bytes.as_mut(), field::NEXT_HOP_MTU, mtu.to_be_bytes());
    }

    /// Sets the checksum as given: by difference, when a message in flight changes.
    #[inline(always)]
    pub fn set_checksum(&mut self, checksum: u16) {
        put(self.bytes.as_mut(), CHECKSUM, checksum.to_be_bytes());
    }

    /// Computes and sets the checksum: for a message that is built here, never for one in flight.
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let sum = checksum::sum(self.bytes.as_ref());
        self.set_checksum(!sum);
    }

    /// What follows the header, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Icmp<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.icmp_type(), self.echo(), self.next_hop_mtu()) {
            (ECHO_REQUEST, Some((ident, sequence)), _) => {
                write!(f, "ICMP echo request {ident} seq {sequence}")
            }
            (_, Some((ident, sequence)), _) => write!(f, "ICMP echo reply {ident} seq {sequence}"),
            (_, _, Some(mtu)) => write!(f, "ICMP fragmentation needed, MTU {mtu}"),
            (icmp_type, _, _) => write!(f, "ICMP type {icmp_type} code {}", self.code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: [u8; 11] = [8, 0, 0x21, 0x68, 0x12, 0x34, 0x00, 0x01, b'a', b'b', b'c'];

    #[test]
    fn the_bytes_of_an_echo_request_read_as_its_fields() {
        let icmp = Icmp::new(&ECHO).unwrap();
        assert_eq!(
            (icmp.icmp_type(), icmp.code(), icmp.echo()),
            (ECHO_REQUEST, 0, Some((0x1234, 1)))
        );
        assert_eq!(
            (icmp.payload(), icmp.quoted(), icmp.next_hop_mtu()),
            (&b"abc"[..], None, None)
        );
        assert!(icmp.checksum_ok());
        assert_eq!(icmp.to_string(), "ICMP echo request 4660 seq 1");
    }

    #[test]
    fn the_fields_of_an_echo_request_write_as_its_bytes() {
        let mut bytes = [0x55; 11];
        let mut icmp = Icmp::blank(&mut bytes, ECHO_REQUEST, 0).unwrap();
        icmp.set_echo(0x1234, 1);
        icmp.payload_mut().copy_from_slice(b"abc");
        icmp.fill_checksum();
        assert_eq!(bytes, ECHO);
    }

    #[test]
    fn an_error_gives_the_packet_it_quotes_and_the_mtu_it_names() {
        let mut bytes = [0x55; 10];
        let mut icmp = Icmp::blank(&mut bytes, UNREACHABLE, FRAGMENTATION_NEEDED).unwrap();
        icmp.set_next_hop_mtu(1400);
        icmp.payload_mut().copy_from_slice(&[0x45, 0x00]);
        icmp.fill_checksum();
        assert_eq!(bytes, [3, 4, 0xb2, 0x83, 0, 0, 0x05, 0x78, 0x45, 0x00]);
        let icmp = Icmp::new(&bytes).unwrap();
        assert_eq!(
            (icmp.next_hop_mtu(), icmp.quoted(), icmp.echo()),
            (Some(1400), Some(&[0x45, 0][..]), None)
        );
        assert_eq!(icmp.to_string(), "ICMP fragmentation needed, MTU 1400");
    }

    #[test]
    fn no_type_is_both_an_error_and_a_query() {
        assert!((0..=255).all(|icmp_type| !(is_error(icmp_type) && is_query(icmp_type))));
        assert!(is_query(ECHO_REQUEST) && is_error(UNREACHABLE));
    }

    #[test]
    fn a_message_that_ends_in_its_header_is_refused() {
        assert_eq!(Icmp::new(&ECHO[..7]).unwrap_err(), DropReason::Truncated);
        assert_eq!(
            Icmp::blank([0; 7], ECHO_REPLY, 0).unwrap_err(),
            DropReason::NoFrame
        );
    }
}
