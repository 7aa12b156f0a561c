//! ARP for IPv4 over Ethernet (RFC 826). Other address kinds are refused: nothing here could answer them.

use std::fmt;
use std::net::Ipv4Addr;

use super::{array, be16, put};
use crate::addr::Mac;
use crate::verdict::DropReason;

/// What an ARP packet wants (RFC 826 "Definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation(pub u16);

impl Operation {
    /// Who has the target address?
    pub const REQUEST: Self = Self(1);
    /// The sender has the sender address.
    pub const REPLY: Self = Self(2);
}

mod field {
    pub(super) const KINDS: usize = 0;
    pub(super) const OPERATION: usize = 6;
    pub(super) const SENDER_MAC: usize = 8;
    pub(super) const SENDER_IP: usize = 14;
    pub(super) const TARGET_MAC: usize = 18;
    pub(super) const TARGET_IP: usize = 24;
}

/// Bytes of a packet.
pub const LEN: usize = 28;

/// Hardware Ethernet, protocol IPv4, address lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// A packet.
#[derive(Debug)]
pub struct Arp<T> {
    bytes: T,
}

impl<T: AsRef<[u8]>> Arp<T> {
    /// A received packet; bytes after it are the frame's padding. Errors: `Truncated`; `UnknownEtherType` for addresses
    /// that are not IPv4 over Ethernet.
    #[inline(always)]
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        if bytes.as_ref().len() < LEN {
            return Err(DropReason::Truncated);
        }
        if !bytes.as_ref().starts_with(&ETHERNET_IPV4) {
            return Err(DropReason::UnknownEtherType);
        }
        Ok(Self { bytes })
    }

    /// What it wants.
    #[inline(always)]
    pub fn operation(&self) -> Operation {
        Operation(be16(self.bytes.as_ref(), field::OPERATION))
    }

    /// MAC address of the sender.
    #[inline(always)]
    pub fn sender_mac(&self) -> Mac {
        Mac(array(self.bytes.as_ref(), field::SENDER_MAC))
    }

    /// IP address of the sender; 0.0.0.0 in a probe (RFC 5227 §1.1).
    #[inline(always)]
    pub fn sender_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes.as_ref(), field::SENDER_IP))
    }

    /// MAC address of the target; means nothing in a request.
    #[inline(always)]
    pub fn target_mac(&self) -> Mac {
        Mac(array(self.bytes.as_ref(), field::TARGET_MAC))
    }

    /// IP address of the target; equal to the sender's in an announcement (RFC 5227 §1.1).
    #[inline(always)]
    pub fn target_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes.as_ref(), field::TARGET_IP))
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Arp<T> {
    /// A packet to build, its addresses zero. Errors: `NoFrame` if the buffer is too short.
    #[inline(always)]
    pub fn blank(mut bytes: T, operation: Operation) -> Result<Self, DropReason> {
        let packet = bytes
            .as_mut()
            .first_chunk_mut::<LEN>()
            .ok_or(DropReason::NoFrame)?;
        *packet = [0; LEN];
        put(packet, field::KINDS, ETHERNET_IPV4);
        put(packet, field::OPERATION, operation.0.to_be_bytes());
        Ok(Self { bytes })
    }

    /// Sets the sender's addresses.
    #[inline(always)]
    pub fn set_sender(&mut self, mac: Mac, ip: Ipv4Addr) {
        put(self.bytes.as_mut(), field::SENDER_MAC, mac.0);
        put(self.bytes.as_mut(), field::SENDER_IP, ip.octets());
    }

    /// Sets the target's addresses; the MAC is zero in a request.
    #[inline(always)]
    pub fn set_target(&mut self, mac: Mac, ip: Ipv4Addr) {
        put(self.bytes.as_mut(), field::TARGET_MAC, mac.0);
        put(self.bytes.as_mut(), field::TARGET_IP, ip.octets());
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Arp<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operation() {
            Operation::REQUEST => {
                write!(
                    f,
                    "ARP who has {}? tell {} at {}",
                    self.target_ip(),
                    self.sender_ip(),
                    self.sender_mac()
                )
            }
            Operation::REPLY => write!(f, "ARP {} is at {}", self.sender_ip(), self.sender_mac()),
            Operation(number) => write!(f, "ARP operation {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: (Mac, Ipv4Addr) = (Mac([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(10, 0, 0, 2));
    const TARGET: (Mac, Ipv4Addr) = (Mac([0; 6]), Ipv4Addr::new(10, 0, 0, 1));
    const REQUEST: [u8; 28] = [
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1,
    ];

    #[test]
    fn the_bytes_of_a_request_read_as_its_fields() {
        let arp = Arp::new(&REQUEST).unwrap();
        assert_eq!(arp.operation(), Operation::REQUEST);
        assert_eq!((arp.sender_mac(), arp.sender_ip()), SENDER);
        assert_eq!((arp.target_mac(), arp.target_ip()), TARGET);
        assert_eq!(
            arp.to_string(),
            "ARP who has 10.0.0.1? tell 10.0.0.2 at 02:00:00:00:00:02"
        );
    }

    #[test]
    fn the_fields_of_a_request_write_as_its_bytes() {
        let mut bytes = [0x55; 28];
        let mut arp = Arp::blank(&mut bytes, Operation::REQUEST).unwrap();
        arp.set_sender(SENDER.0, SENDER.1);
        arp.set_target(TARGET.0, TARGET.1);
        assert_eq!(bytes, REQUEST);
    }

    #[test]
    fn a_reply_says_who_has_the_address() {
        let mut bytes = REQUEST;
        bytes[7] = 2;
        assert_eq!(
            Arp::new(&bytes).unwrap().to_string(),
            "ARP 10.0.0.2 is at 02:00:00:00:00:02"
        );
    }

    #[test]
    fn short_packets_and_other_kinds_of_addresses_are_refused() {
        assert_eq!(Arp::new(&REQUEST[..27]).unwrap_err(), DropReason::Truncated);
        assert_eq!(
            Arp::blank([0; 27], Operation::REPLY).unwrap_err(),
            DropReason::NoFrame
        );
        for kind in 0..6 {
            let mut bytes = REQUEST;
            bytes[kind] ^= 1;
            assert_eq!(
                Arp::new(&bytes).unwrap_err(),
                DropReason::UnknownEtherType,
                "byte {kind}"
            );
        }
    }
}
