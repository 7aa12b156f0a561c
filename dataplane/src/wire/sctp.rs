//! SCTP packets (RFC 9260 §3): the common header, a bounded look at which chunks there are, and the CRC32c by
//! difference.

use std::fmt;

use super::{array, be16, put};
use crate::addr::Port;
use crate::verdict::DropReason;

/// The chunks that open and close an association, as a set of bits.
pub mod chunks {
    /// INIT (1): the association opens.
    pub const INIT: u8 = 1;
    /// INIT ACK (2).
    pub const INIT_ACK: u8 = 2;
    /// ABORT (6): it is gone.
    pub const ABORT: u8 = 4;
    /// SHUTDOWN (7): no more data from the sender.
    pub const SHUTDOWN: u8 = 8;
    /// SHUTDOWN ACK (8).
    pub const SHUTDOWN_ACK: u8 = 16;
    /// SHUTDOWN COMPLETE (14): the association is closed.
    pub const SHUTDOWN_COMPLETE: u8 = 32;
    /// COOKIE ECHO (10).
    pub const COOKIE_ECHO: u8 = 64;
    /// COOKIE ACK (11): the association is established.
    pub const COOKIE_ACK: u8 = 128;

    /// The bit of a chunk type; 0 for those not listed.
    pub(super) const fn bit(chunk_type: u8) -> u8 {
        match chunk_type {
            1 => INIT,
            2 => INIT_ACK,
            6 => ABORT,
            7 => SHUTDOWN,
            8 => SHUTDOWN_ACK,
            14 => SHUTDOWN_COMPLETE,
            10 => COOKIE_ECHO,
            11 => COOKIE_ACK,
            _ => 0,
        }
    }
}

mod field {
    pub(super) const SRC_PORT: usize = 0;
    pub(super) const DST_PORT: usize = 2;
    pub(super) const TAG: usize = 4;
}

/// Bytes of the common header.
pub const HEADER_LEN: usize = 12;

/// Where the CRC32c lies in the header.
pub const CHECKSUM: usize = 8;

/// Chunks looked at. Control chunks come before data (RFC 9260 §6.10), and no sender bundles half as many.
const MAX_CHUNKS: usize = 16;

const DATA: u8 = 0;
const I_DATA: u8 = 64;

/// A packet: what an IP packet of protocol SCTP carries.
#[derive(Debug)]
pub struct Sctp<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Sctp<T> {
    /// A received packet, all of it. Errors: `Truncated`. Its chunks are not looked at: one that contradicts the length
    /// is the endpoint's to refuse.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        if bytes.as_ref().len() < HEADER_LEN {
            Err(DropReason::Truncated)
        } else {
            Ok(Self { bytes })
        }
    }

    /// A packet that may be cut off anywhere after its common header: that has no length, so this is `new`.
    #[inline(always)]
    pub fn partial(bytes: T) -> Result<Self, DropReason> {
        Self::new(bytes)
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

    /// Verification tag.
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        u32::from_be_bytes(array(self.bytes.as_ref(), field::TAG))
    }

    /// The CRC32c as carried (RFC 9260 Appendix A: its low byte first).
    #[inline(always)]
    pub fn checksum(&self) -> u32 {
        u32::from_le_bytes(array(self.bytes.as_ref(), CHECKSUM))
    }

    /// Which of the `chunks` there are, before data and what is broken or too much.
    pub fn chunks(&self) -> u8 {
        let mut rest = &self.bytes.as_ref()[HEADER_LEN..];
        let mut found = 0;
        for _ in 0..MAX_CHUNKS {
            let Some(head) = rest.first_chunk::<4>() else {
                break;
            };
            let len = usize::from(be16(head, 2));
            if matches!(head[0], DATA | I_DATA) || len < 4 || len > rest.len() {
                break;
            }
            found |= chunks::bit(head[0]);
            // The last one's padding may be missing.
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        found
    }

    /// The CRC32c of the whole packet is right.
    pub fn checksum_ok(&self) -> bool {
        self.checksum() == self.computed()
    }

    fn computed(&self) -> u32 {
        let bytes = self.bytes.as_ref();
        let head = crc32c::crc32c(&bytes[..CHECKSUM]);
        let head = crc32c::crc32c_append(head, &[0; 4]);
        crc32c::crc32c_append(head, &bytes[HEADER_LEN..])
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Sctp<T> {
    /// A packet to build, its common header zero, its chunks whatever the buffer holds. Errors: `NoFrame` if the buffer
    /// is too short.
    #[inline(always)]
    pub fn blank(mut bytes: T) -> Result<Self, DropReason> {
        let header = bytes
            .as_mut()
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(DropReason::NoFrame)?;
        *header = [0; HEADER_LEN];
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

    /// Sets the verification tag.
    #[inline(always)]
    pub fn set_tag(&mut self, tag: u32) {
        put(self.bytes.as_mut(), field::TAG, tag.to_be_bytes());
    }

    /// Computes and sets the CRC32c: for a packet that is built here, never for one in flight.
    pub fn fill_checksum(&mut self) {
        let crc = self.computed();
        put(self.bytes.as_mut(), CHECKSUM, crc.to_le_bytes());
    }

    /// What follows the common header, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Sctp<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SCTP {} > {}", self.src_port(), self.dst_port())?;
        let names = [
            "INIT",
            "INIT-ACK",
            "ABORT",
            "SHUTDOWN",
            "SHUTDOWN-ACK",
            "SHUTDOWN-COMPLETE",
            "COOKIE-ECHO",
            "COOKIE-ACK",
        ];
        let chunks = self.chunks();
        for (bit, name) in names.iter().enumerate() {
            if chunks & (1 << bit) != 0 {
                write!(f, " {name}")?;
            }
        }
        write!(f, " len {}", self.bytes.as_ref().len())
    }
}

/// What to add (exclusive or) to the CRC32c when the first four bytes of a packet of `len` bytes become others. The CRC
/// is linear: the difference of two depends on the difference of the packets only, so that a wrong one stays wrong by
/// the same amount (CSM-1), and nothing after the header is read.
#[inline]
pub fn crc_delta(old: [u8; 4], new: [u8; 4], len: u16) -> u32 {
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // As polynomials over two elements: the difference, moved up by the bits of the packet.
    let mut delta = difference;
    for (place, powers) in POWERS.iter().enumerate() {
        let digit = usize::from(len) >> (4 * place) & 15;
        if digit != 0 {
            delta = multiply(delta, powers[digit]);
        }
    }
    delta
}

/// The CRC's polynomial (RFC 3720 §12.1), lowest coefficient in the highest bit as everywhere here.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x to the power of 8 × d × 16^p, by p and d: a shift by any number of bytes in four multiplications.
static POWERS: [[u32; 16]; 4] = powers();

const fn powers() -> [[u32; 16]; 4] {
    let mut table = [[1 << 31; 16]; 4];
    let mut base = 1 << 23; // x^8
    let mut place = 0;
    while place < 4 {
        let mut digit = 1;
        while digit < 16 {
            table[place][digit] = multiply(table[place][digit - 1], base);
            digit += 1;
        }
        base = multiply(table[place][15], base);
        place += 1;
    }
    table
}

/// The product of two polynomials, modulo the CRC's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        product ^= b & (a >> bit & 1).wrapping_neg();
        b = b >> 1 ^ POLYNOMIAL & (b & 1).wrapping_neg();
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// An INIT chunk's head in a packet from 49153 to 80; the CRC as another program computed it (see the test).
    const BYTES: [u8; 16] = [
        0xc0, 0x01, 0x00, 0x50, 0x01, 0x02, 0x03, 0x04, 0, 0, 0, 0, 1, 0, 0, 4,
    ];

    /// RFC 3720 §B.4's register, a bit at a time: slow and obvious.
    fn slow_crc(bytes: &[u8]) -> u32 {
        let mut crc = !0;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            }
        }
        !crc
    }

    #[test]
    fn the_crc_of_the_standards_example_is_the_standards() {
        // RFC 3720 §B.4: 32 bytes of zeros.
        assert_eq!(slow_crc(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    #[test]
    fn the_bytes_of_a_packet_read_as_its_fields_and_are_written_by_them() {
        let mut bytes = BYTES;
        bytes[8..12].copy_from_slice(&slow_crc(&BYTES).to_le_bytes());
        let sctp = Sctp::new(&bytes).unwrap();
        assert_eq!(
            (sctp.src_port(), sctp.dst_port(), sctp.tag()),
            (Port::new(49153), Port::new(80), 0x0102_0304)
        );
        assert!(sctp.checksum_ok());
        assert_eq!(sctp.to_string(), "SCTP 49153 > 80 INIT len 16");
        let mut built = [0x55; 16];
        let mut sctp = Sctp::blank(&mut built).unwrap();
        sctp.set_src_port(Port::new(49153));
        sctp.set_dst_port(Port::new(80));
        sctp.set_tag(0x0102_0304);
        sctp.payload_mut().copy_from_slice(&[1, 0, 0, 4]);
        sctp.fill_checksum();
        assert_eq!(built, bytes);
        assert_eq!(Sctp::new(&bytes[..11]).unwrap_err(), DropReason::Truncated);
        assert_eq!(Sctp::blank([0; 11]).unwrap_err(), DropReason::NoFrame);
    }

    #[test]
    fn chunks_are_found_up_to_data_and_what_is_broken() {
        use chunks::*;
        let with = |chunks: &[u8]| {
            let mut bytes = BYTES[..12].to_vec();
            bytes.extend(chunks);
            Sctp::new(bytes).unwrap().chunks()
        };
        for (kind, bit) in [
            (1, INIT),
            (2, INIT_ACK),
            (6, ABORT),
            (7, SHUTDOWN),
            (8, SHUTDOWN_ACK),
            (14, SHUTDOWN_COMPLETE),
            (10, COOKIE_ECHO),
            (11, COOKIE_ACK),
            (3, 0),
            (255, 0),
        ] {
            assert_eq!(with(&[kind, 0, 0, 4]), bit, "type {kind}");
        }
        assert_eq!(
            with(&[10, 0, 0, 5, 9, 0, 0, 0, 11, 0, 0, 4]),
            COOKIE_ECHO | COOKIE_ACK,
            "padded"
        );
        assert_eq!(
            with(&[10, 0, 0, 5, 9]),
            COOKIE_ECHO,
            "the last one's padding is missing"
        );
        assert_eq!(with(&[3, 0, 0, 4, 0, 0, 0, 4, 6, 0, 0, 4]), 0, "behind data");
        assert_eq!(with(&[6, 0, 0, 3, 6, 0, 0, 4]), 0, "shorter than its head");
        assert_eq!(with(&[6, 0, 0, 9, 0, 0, 0, 0]), 0, "longer than the packet");
        let many = |count: usize| [[3, 0, 0, 4].repeat(count), vec![6, 0, 0, 4]].concat();
        assert_eq!((with(&many(15)), with(&many(16))), (ABORT, 0));
    }

    proptest! {
        #[test]
        fn the_crc_by_difference_equals_the_recomputed_one(
            mut bytes in vec(any::<u8>(), 12..300), long in 0usize..65_000, new in any::<[u8; 4]>(),
        ) {
            // Few, but of every length: to recompute is slow here.
            if long % 8 == 0 {
                bytes.resize(bytes.len() + long, 0xa5);
            }
            bytes[8..12].fill(0);
            let before = slow_crc(&bytes);
            prop_assert_eq!(Sctp::new(&bytes).unwrap().computed(), before);
            let old = *bytes.first_chunk().unwrap();
            bytes[..4].copy_from_slice(&new);
            prop_assert_eq!(before ^ crc_delta(old, new, bytes.len() as u16), slow_crc(&bytes));
        }
    }
}
