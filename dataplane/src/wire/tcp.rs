//! TCP segments (RFC 9293 §3.1).

use std::fmt;

use super::{array, be16, checksum, put};
use crate::addr::{Address, Port, Protocol};
use crate::verdict::DropReason;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers: the flow opens.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push function.
pub const PSH: u8 = 0x08;
/// The acknowledgement number means something.
pub const ACK: u8 = 0x10;
/// The urgent pointer means something.
pub const URG: u8 = 0x20;

mod field {
    pub(super) const SRC_PORT: usize = 0;
    pub(super) const DST_PORT: usize = 2;
    pub(super) const SEQUENCE: usize = 4;
    pub(super) const ACKNOWLEDGEMENT: usize = 8;
    pub(super) const DATA_OFFSET: usize = 12;
    pub(super) const FLAGS: usize = 13;
    pub(super) const WINDOW: usize = 14;
}

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

/// Where the checksum lies in the header.
pub const CHECKSUM: usize = 16;

/// A segment: what an IP packet of protocol TCP carries.
#[derive(Debug)]
pub struct Tcp<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Tcp<T> {
    /// A received segment, all of it. Errors: `Truncated`; `BadTransportHeader` if the data offset is below 5 or past the
    /// end.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        let segment = Self::partial(bytes)?;
        let fits = segment.header_len() <= segment.bytes.as_ref().len();
        if fits {
            Ok(segment)
        } else {
            Err(DropReason::BadTransportHeader)
        }
    }

    /// A segment that may be cut off anywhere after its fixed header. Errors: `Truncated`, `BadTransportHeader`.
    #[inline(always)]
    pub fn partial(bytes: T) -> Result<Self, DropReason> {
        if bytes.as_ref().len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let segment = Self { bytes };
        if segment.header_len() < HEADER_LEN {
            Err(DropReason::BadTransportHeader)
        } else {
            Ok(segment)
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

    /// Sequence number.
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes(array(self.bytes.as_ref(), field::SEQUENCE))
    }

    /// Acknowledgement number; means nothing without `ACK`.
    #[inline(always)]
    pub fn acknowledgement(&self) -> u32 {
        u32::from_be_bytes(array(self.bytes.as_ref(), field::ACKNOWLEDGEMENT))
    }

    /// Bytes of the header, options included: 20 to 60.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes.as_ref()[field::DATA_OFFSET] >> 4) * 4
    }

    /// The flags byte: `FIN` to `URG`, and the two congestion flags above them.
    #[inline(always)]
    pub fn flags(&self) -> u8 {
        self.bytes.as_ref()[field::FLAGS]
    }

    /// Window, unscaled.
    #[inline(always)]
    pub fn window(&self) -> u16 {
        be16(self.bytes.as_ref(), field::WINDOW)
    }

    /// The checksum as carried.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes.as_ref(), CHECKSUM)
    }

    /// Options with their padding, as much as is there.
    #[inline(always)]
    pub fn options(&self) -> &[u8] {
        &self.bytes.as_ref()[HEADER_LEN..self.payload_start()]
    }

    /// Data, as much as is there.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[self.payload_start()..]
    }

    /// The checksum of the whole segment between these addresses is right.
    pub fn checksum_ok<A: Address>(&self, src: A, dst: A) -> bool {
        self.covered_sum(src, dst) == checksum::RIGHT
    }

    fn covered_sum<A: Address>(&self, src: A, dst: A) -> u16 {
        // An IP packet carries fewer than 65,536 bytes.
        let bytes = self.bytes.as_ref();
        checksum::add(
            checksum::pseudo_header(src, dst, Protocol::TCP, bytes.len() as u16),
            checksum::sum(bytes),
        )
    }

    #[inline(always)]
    fn payload_start(&self) -> usize {
        self.header_len().min(self.bytes.as_ref().len())
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Tcp<T> {
    /// A segment to build that fills the buffer: no options, everything zero. Errors: `NoFrame` if the buffer is too short.
    #[inline(always)]
    pub fn blank(mut bytes: T) -> Result<Self, DropReason> {
        let header = bytes
            .as_mut()
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(DropReason::NoFrame)?;
        *header = [0; HEADER_LEN];
        header[field::DATA_OFFSET] = 0x50;
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

    /// Sets the sequence number.
    #[inline(always)]
    pub fn set_sequence(&mut self, number: u32) {
        put(self.bytes.as_mut(), field::SEQUENCE, number.to_be_bytes());
    }

    /// Sets the acknowledgement number.
    #[inline(always)]
    pub fn set_acknowledgement(&mut self, number: u32) {
        put(self.bytes.as_mut(), field::ACKNOWLEDGEMENT, number.to_be_bytes());
    }

    /// Sets the flags byte.
    #[inline(always)]
    pub fn set_flags(&mut self, flags: u8) {
        self.bytes.as_mut()[field::FLAGS] = flags;
    }

    /// Sets the window.
    #[inline(always)]
    pub fn set_window(&mut self, window: u16) {
        put(self.bytes.as_mut(), field::WINDOW, window.to_be_bytes());
    }

    /// Sets the checksum as given: by difference, when a segment in flight changes.
    #[inline(always)]
    pub fn set_checksum(&mut self, checksum: u16) {
        put(self.bytes.as_mut(), CHECKSUM, checksum.to_be_bytes());
    }

    /// Computes and sets the checksum: for a segment that is built here, never for one in flight.
    pub fn fill_checksum<A: Address>(&mut self, src: A, dst: A) {
        self.set_checksum(0);
        let sum = self.covered_sum(src, dst);
        self.set_checksum(!sum);
    }

    /// Data, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let start = self.payload_start();
        &mut self.bytes.as_mut()[start..]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Tcp<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TCP {} > {}", self.src_port(), self.dst_port())?;
        let names = [
            (SYN, "SYN"),
            (FIN, "FIN"),
            (RST, "RST"),
            (PSH, "PSH"),
            (ACK, "ACK"),
            (URG, "URG"),
        ];
        for (_, name) in names.iter().filter(|(flag, _)| self.flags() & flag != 0) {
            write!(f, " {name}")?;
        }
        write!(f, " seq {} ack {}", self.sequence(), self.acknowledgement())?;
        write!(f, " window {} len {}", self.window(), self.payload().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::V4;

    const SRC: V4 = [10, 0, 0, 1];
    const DST: V4 = [10, 0, 0, 2];
    const BYTES: [u8; 23] = [
        0xc0, 0x01, 0x00, 0x50, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, 0x09, 0x50, 0x18, 0x01, 0x00, 0x16,
        0x03, 0x00, 0x00, b'a', b'b', b'c',
    ];

    #[test]
    fn the_bytes_of_a_segment_read_as_its_fields() {
        let tcp = Tcp::new(&BYTES).unwrap();
        assert_eq!(
            (tcp.src_port(), tcp.dst_port()),
            (Port::new(49153), Port::new(80))
        );
        assert_eq!((tcp.sequence(), tcp.acknowledgement(), tcp.window()), (7, 9, 256));
        assert_eq!(
            (tcp.flags(), tcp.header_len(), tcp.payload()),
            (PSH | ACK, 20, &b"abc"[..])
        );
        assert!(tcp.options().is_empty() && tcp.checksum_ok(SRC, DST) && !tcp.checksum_ok(SRC, SRC));
        assert_eq!(
            tcp.to_string(),
            "TCP 49153 > 80 PSH ACK seq 7 ack 9 window 256 len 3"
        );
    }

    #[test]
    fn the_fields_of_a_segment_write_as_its_bytes() {
        let mut bytes = [0x55; 23];
        let mut tcp = Tcp::blank(&mut bytes).unwrap();
        tcp.set_src_port(Port::new(49153));
        tcp.set_dst_port(Port::new(80));
        tcp.set_sequence(7);
        tcp.set_acknowledgement(9);
        tcp.set_flags(PSH | ACK);
        tcp.set_window(256);
        tcp.payload_mut().copy_from_slice(b"abc");
        tcp.fill_checksum(SRC, DST);
        assert_eq!(bytes, BYTES);
    }

    #[test]
    fn a_data_offset_below_the_header_or_past_the_end_is_refused() {
        let with_offset = |words: u8| {
            let mut bytes = BYTES;
            bytes[12] = words << 4;
            (
                Tcp::new(bytes).map(|_| ()),
                Tcp::partial(bytes).map(|tcp| tcp.payload().len()),
            )
        };
        assert_eq!(
            with_offset(4),
            (
                Err(DropReason::BadTransportHeader),
                Err(DropReason::BadTransportHeader)
            )
        );
        assert_eq!(with_offset(6), (Err(DropReason::BadTransportHeader), Ok(0)));
        assert_eq!(Tcp::new(&BYTES[..19]).unwrap_err(), DropReason::Truncated);
        assert_eq!(Tcp::blank([0; 19]).unwrap_err(), DropReason::NoFrame);
    }
}
