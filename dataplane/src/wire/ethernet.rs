//! Ethernet II frames (IEEE 802.3) and one VLAN tag (IEEE 802.1Q). The frame check sequence is the NIC's and never
//! here.

use std::fmt;

use super::{array, be16, put};
use crate::addr::Mac;
use crate::verdict::DropReason;

/// What an Ethernet payload is (IANA "IEEE 802 Numbers").
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
    /// A customer VLAN tag follows (802.1Q).
    pub const VLAN: Self = Self(0x8100);
    /// A service VLAN tag follows (802.1ad).
    pub const SERVICE_VLAN: Self = Self(0x88a8);

    /// A tag, not yet the payload, follows.
    #[inline(always)]
    pub const fn is_tag(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN)
    }
}

impl fmt::Debug for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IPV4 => f.write_str("IPv4"),
            Self::ARP => f.write_str("ARP"),
            Self::IPV6 => f.write_str("IPv6"),
            Self(number) => write!(f, "EtherType {number:#06x}"),
        }
    }
}

mod field {
    pub(super) const DST: usize = 0;
    pub(super) const SRC: usize = 6;
    pub(super) const TYPE: usize = 12;
    /// Only where `TYPE` is a tag's.
    pub(super) const TAG_CONTROL: usize = 14;
    pub(super) const TAGGED_TYPE: usize = 16;
}

/// Bytes of an untagged header.
pub const HEADER_LEN: usize = 14;

/// Bytes a VLAN tag adds.
pub const TAG_LEN: usize = 4;

/// A frame.
#[derive(Debug)]
pub struct Ethernet<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Ethernet<T> {
    /// A received frame. Errors: `Truncated`.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        let len = bytes.as_ref().len();
        if len < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let frame = Self { bytes };
        if len < frame.header_len() {
            Err(DropReason::Truncated)
        } else {
            Ok(frame)
        }
    }

    /// Station the frame is for.
    #[inline(always)]
    pub fn dst(&self) -> Mac {
        Mac(array(self.bytes.as_ref(), field::DST))
    }

    /// Station that sent it.
    #[inline(always)]
    pub fn src(&self) -> Mac {
        Mac(array(self.bytes.as_ref(), field::SRC))
    }

    /// VLAN identifier (12 bits) of the 802.1Q tag, if that is what comes first.
    #[inline(always)]
    pub fn vlan(&self) -> Option<u16> {
        self.is_tagged()
            .then(|| be16(self.bytes.as_ref(), field::TAG_CONTROL) & 0x0fff)
    }

    /// What `payload` is. After a first tag this may be a second tag's type: only one is looked into.
    #[inline(always)]
    pub fn ether_type(&self) -> EtherType {
        let at = if self.is_tagged() {
            field::TAGGED_TYPE
        } else {
            field::TYPE
        };
        EtherType(be16(self.bytes.as_ref(), at))
    }

    /// Bytes before `payload`.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        if self.is_tagged() {
            HEADER_LEN + TAG_LEN
        } else {
            HEADER_LEN
        }
    }

    /// What the frame carries, with padding, if any.
    #[inline(always)]
    pub fn payload(&self) -> &[u8] {
        &self.bytes.as_ref()[self.header_len()..]
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // A service tag (802.1ad) stays closed: what is in it is another network's.
        EtherType(be16(self.bytes.as_ref(), field::TYPE)) == EtherType::VLAN
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ethernet<T> {
    /// An untagged frame to build, its header zero but for `ether_type` (not a tag's; a tag's reads as 0). Errors:
    /// `NoFrame` if the buffer is too short.
    #[inline(always)]
    pub fn blank(mut bytes: T, ether_type: EtherType) -> Result<Self, DropReason> {
        let header = bytes
            .as_mut()
            .first_chunk_mut::<HEADER_LEN>()
            .ok_or(DropReason::NoFrame)?;
        *header = [0; HEADER_LEN];
        if !ether_type.is_tag() {
            put(header, field::TYPE, ether_type.0.to_be_bytes());
        }
        Ok(Self { bytes })
    }

    /// Sets the station the frame is for.
    #[inline(always)]
    pub fn set_dst(&mut self, dst: Mac) {
        put(self.bytes.as_mut(), field::DST, dst.0);
    }

    /// Sets the station that sends it.
    #[inline(always)]
    pub fn set_src(&mut self, src: Mac) {
        put(self.bytes.as_mut(), field::SRC, src.0);
    }

    /// What the frame carries, to be written.
    #[inline(always)]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let at = self.header_len();
        &mut self.bytes.as_mut()[at..]
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Ethernet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} ", self.src(), self.dst())?;
        if let Some(vlan) = self.vlan() {
            write!(f, "VLAN {vlan} ")?;
        }
        write!(f, "{}", self.ether_type())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DST: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const SRC: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const UNTAGGED: [u8; 16] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, 0xaa, 0xbb];
    const TAGGED: [u8; 20] = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0x00, 0x60, 0x64, 0x08, 0x06, 0xaa, 0xbb,
    ];

    #[test]
    fn the_bytes_of_a_frame_read_as_its_fields() {
        let frame = Ethernet::new(&UNTAGGED).unwrap();
        assert_eq!((frame.dst(), frame.src()), (DST, SRC));
        assert_eq!((frame.ether_type(), frame.vlan()), (EtherType::IPV4, None));
        assert_eq!(frame.payload(), [0xaa, 0xbb]);
        assert_eq!(frame.to_string(), "02:00:00:00:00:02 > 02:00:00:00:00:01 IPv4");
    }

    #[test]
    fn a_vlan_tag_is_recognised_and_skipped() {
        let frame = Ethernet::new(&TAGGED).unwrap();
        assert_eq!((frame.ether_type(), frame.vlan()), (EtherType::ARP, Some(100)));
        assert_eq!(frame.payload(), [0xaa, 0xbb]);
        assert_eq!(
            frame.to_string(),
            "02:00:00:00:00:02 > 02:00:00:00:00:01 VLAN 100 ARP"
        );
    }

    #[test]
    fn the_fields_of_a_frame_write_as_its_bytes() {
        let mut bytes = [0x55; 16];
        let mut frame = Ethernet::blank(&mut bytes, EtherType::IPV4).unwrap();
        frame.set_dst(DST);
        frame.set_src(SRC);
        frame.payload_mut().copy_from_slice(&[0xaa, 0xbb]);
        assert_eq!(bytes, UNTAGGED);
    }

    #[test]
    fn a_frame_that_ends_in_its_header_is_refused() {
        assert_eq!(Ethernet::new(&UNTAGGED[..13]).unwrap_err(), DropReason::Truncated);
        assert_eq!(Ethernet::new(&TAGGED[..17]).unwrap_err(), DropReason::Truncated);
        assert_eq!(
            Ethernet::blank([0; 13], EtherType::IPV4).unwrap_err(),
            DropReason::NoFrame
        );
        assert!(Ethernet::new(&TAGGED[..18]).unwrap().payload().is_empty());
    }
}
