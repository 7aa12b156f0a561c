//! UDP datagrams (RFC 768). A zero checksum means that there is none, which only IPv4 allows (RFC 8200 §8.1).

use std::fmt;

use super::{array, be16, checksum, put};
use crate::addr::{Address, Port, Protocol};
use crate::verdict::DropReason;

mod field {
    pub(super) const SRC_PORT: usize = 0;
    pub(super) const DST_PORT: usize = 2;
    pub(super) const LEN: usize = 4;
}

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Where the checksum lies in the header.
pub const CHECKSUM: usize = 6;

/// A datagram: what an IP packet of protocol UDP carries.
#[derive(Debug)]
pub struct Udp<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Udp<T> {
    /// A received datagram, all of it; bytes after its length are nobody's. Errors: `Truncated`; `BadTransportHeader` if
    /// the length is below 8 or past the end.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        let datagram = Self::partial(bytes)?;
        let fits = usize::from(datagram.len()) <= datagram.bytes.as_ref().len();
        if fits {
            Ok(datagram)
        } else {
            Err(DropReason::BadTransportHeader)
        }
    }

    /// A datagram that may be cut off anywhere after its header. Errors: `Truncated`, `BadTransportHeader`.
    #[inline(always)]
    pub fn partial(bytes: T) -> Result<Self, DropReason> {
        if bytes.as_ref().len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let datagram = Self { bytes };
        let sound = usize::from(datagram.len()) >= HEADER_LEN;
        if sound {
            Ok(datagram)
        } else {
            Err(DropReason::BadTransportHeader)
        }
    }

    /// Source port.
    #[inline(always)]
    pub fn src_port(&self) -> Port {
        Port(array(self.bytes.as_ref(), field::SRC_PORT))
    }

    /// Destination port.
    #[inline(always)]
    pub fn dst_port(&self) -> Port {
        Port(array(self.bytes.as_ref(), field::DST_PORT))
    }

    /// Bytes of the datagram, header included: 8 at least.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the header's length field; a datagram is never empty"
    )]
    #[inline(always)]
    pub fn len(&self) -> u16 {
        be16(self.bytes.as_ref(), field::LEN)
    }

    /// The checksum as carried; 0 for none.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes.as_ref(), CHECKSUM)
    }

    /// Data, as much as is there.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..self.end()]
    }

    /// There is no checksum, or that of the whole datagram between these addresses is right.
    pub fn checksum_ok<A: Address>(&self, src: A, dst: A) -> bool {
        self.checksum() == 0 || self.covered_sum(src, dst) == checksum::RIGHT
    }

    fn covered_sum<A: Address>(&self, src: A, dst: A) -> u16 {
        let bytes = &self.bytes.as_ref()[..self.end()];
        checksum::add(
            checksum::pseudo_header(src, dst, Protocol::UDP, self.len()),
            checksum::sum(bytes),
        )
    }

    #[inline(always)]
    fn end(&self) -> usize {
        usize::from(self.len()).min(self.bytes.as_ref().len())
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Udp<T> {
    /// A datagram to build that fills the buffer, everything else zero. Errors: `NoFrame` if the buffer is too short,
    /// `TooBig` if it is longer than a datagram can be.
    #[inline(always)]
    pub fn blank(mut bytes: T) -> Result<Self, DropReason> {
        let len = u16::try_from(bytes.as_ref().len()).map_err(|_| DropReason::TooBig)?;
        let header = bytes
            .as_mut()
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(DropReason::NoFrame)?;
        *header = [0; HEADER_LEN];
        put(header, field::LEN, len.to_be_bytes());
        Ok(Self { bytes })
    }

    /// Sets the source port.
    #[inline(always)]
    pub fn set_src_port(&mut self, port: Port) {
        put(self.bytes.as_mut(), field::SRC_PORT, port.0);
    }

    /// Sets the destination port.
    #[inline(always)]
    pub fn set_dst_port(&mut self, port: Port) {
        put(self.bytes.as_mut(), field::DST_PORT, port.0);
    }

    /// Sets the checksum as given: by difference, when a datagram in flight changes; 0 for none.
    #[inline(always)]
    pub fn set_checksum(&mut self, checksum: u16) {
        put(self.bytes.as_mut(), CHECKSUM, checksum.to_be_bytes());
    }

    /// Computes and sets the checksum, 0xffff for 0 (CSM-1): for a datagram that is built here, never for one in flight.
    pub fn fill_checksum<A: Address>(&mut self, src: A, dst: A) {
        self.set_checksum(0);
        let sum = self.covered_sum(src, dst);
        self.set_checksum(checksum::never_zero(!sum));
    }

    /// Data, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let end = self.end();
        &mut self.bytes.as_mut()[HEADER_LEN..end]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Udp<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "UDP {} > {} len {}",
            self.src_port(),
            self.dst_port(),
            self.payload().len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::V4;

    const SRC: V4 = [10, 0, 0, 1];
    const DST: V4 = [10, 0, 0, 2];
    const BYTES: [u8; 11] = [0xc0, 0x01, 0x00, 0x35, 0x00, 0x0b, 0x67, 0x3c, b'a', b'b', b'c'];

    #[test]
    fn the_bytes_of_a_datagram_read_as_its_fields() {
        let mut padded = BYTES.to_vec();
        padded.push(0xff);
        let udp = Udp::new(&padded).unwrap();
        assert_eq!(
            (udp.src_port(), udp.dst_port(), udp.len()),
            (Port::new(49153), Port::new(53), 11)
        );
        assert_eq!(udp.payload(), b"abc");
        assert!(udp.checksum_ok(SRC, DST) && !udp.checksum_ok(SRC, SRC));
        assert_eq!(udp.to_string(), "UDP 49153 > 53 len 3");
    }

    #[test]
    fn the_fields_of_a_datagram_write_as_its_bytes() {
        let mut bytes = [0x55; 11];
        let mut udp = Udp::blank(&mut bytes).unwrap();
        udp.set_src_port(Port::new(49153));
        udp.set_dst_port(Port::new(53));
        udp.payload_mut().copy_from_slice(b"abc");
        udp.fill_checksum(SRC, DST);
        assert_eq!(bytes, BYTES);
    }

    #[test]
    fn no_checksum_is_a_right_checksum_and_a_computed_zero_is_written_as_ones() {
        // CSM-1.
        let mut bytes = BYTES;
        bytes[6..8].fill(0);
        assert!(Udp::new(&bytes).unwrap().checksum_ok(SRC, DST));
        // A payload that makes the sum of everything else 0xffff.
        let mut bytes = [0; 10];
        Udp::blank(&mut bytes).unwrap().fill_checksum(SRC, DST);
        let payload = Udp::new(&bytes).unwrap().checksum();
        let mut udp = Udp::blank(&mut bytes).unwrap();
        udp.payload_mut().copy_from_slice(&payload.to_be_bytes());
        udp.fill_checksum(SRC, DST);
        assert_eq!(udp.checksum(), 0xffff);
        assert!(udp.checksum_ok(SRC, DST));
    }

    #[test]
    fn a_length_below_the_header_or_past_the_end_is_refused() {
        let with_len = |len: u8| {
            let mut bytes = BYTES;
            bytes[5] = len;
            (
                Udp::new(bytes).map(|_| ()),
                Udp::partial(bytes).map(|udp| udp.payload().len()),
            )
        };
        assert_eq!(
            with_len(7),
            (
                Err(DropReason::BadTransportHeader),
                Err(DropReason::BadTransportHeader)
            )
        );
        assert_eq!(with_len(8), (Ok(()), Ok(0)));
        assert_eq!(with_len(12), (Err(DropReason::BadTransportHeader), Ok(3)));
        assert_eq!(Udp::new(&BYTES[..7]).unwrap_err(), DropReason::Truncated);
        assert_eq!(Udp::blank([0; 7]).unwrap_err(), DropReason::NoFrame);
        assert_eq!(Udp::blank(vec![0; 65_536]).unwrap_err(), DropReason::TooBig);
    }
}
