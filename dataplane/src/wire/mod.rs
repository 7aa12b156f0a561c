//! Protocol headers as bytes: one file per protocol, all built alike (field ranges, checked constructors, getters,
//! setters, `Display`, tests with literal bytes both ways).
//!
//! A view wraps anything that is bytes (`AsRef<[u8]>`, for the setters `AsMut<[u8]>`) and copies nothing.
//!
//! **The contract of a view.** Its constructor checks once that the fixed header is there and that the lengths written
//! in it fit the bytes; from then on no getter, setter or `Display` can panic. Three constructors make that promise:
//! * `new`: a whole packet as received; every length field must hold.
//! * `partial`: a packet that may be cut off (quoted in an ICMP error, or a first fragment): only the fixed header must
//!   be there, and what is cut off reads as absent.
//! * `blank`: for building; writes a sound empty header over whatever the buffer held and sizes it to the buffer. Old
//!   bytes of a reused buffer are never checked, because they mean nothing.
//!
//! **What voids the check**: shortening the bytes behind the view's back (an `AsRef` that answers differently the second
//! time). Setters do not: none of them touches a length field, which only `blank` writes, nor a field that says where
//! the payload starts. A view checks form, not truth: checksums have their own questions (`checksum_ok`).
//!
//! Everything short is `inline(always)`: behind a header's many early returns the compiler takes the packet's main way for
//! cold, and would call a function for every two bytes.
//!
//! The error of a constructor is the `DropReason` that it means for a received packet.

/// Ones-complement checksums: whole, and by difference.
pub mod checksum;

/// Ethernet II and one VLAN tag.
pub mod ethernet;
/// ARP for IPv4 over Ethernet.
pub mod arp;
/// IPv4.
pub mod ipv4;
/// IPv4 packets in pieces.
pub mod fragments_out;
/// IPv6 and its extension headers.
pub mod ipv6;
/// TCP.
pub mod tcp;
/// UDP.
pub mod udp;
/// SCTP.
pub mod sctp;
/// ICMP for IPv4.
pub mod icmp;
/// ICMP for IPv6.
pub mod icmpv6;
/// Neighbour discovery.
pub mod nd;

/// What the two IP headers differ in.
pub mod ip;

#[cfg(test)]
pub(crate) mod samples;

pub use arp::Arp;
pub use ethernet::{EtherType, Ethernet};
pub use fragments_out::Fragments;
pub use icmp::Icmp;
pub use icmpv6::Icmpv6;
pub use ip::Ip;
pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
pub use sctp::Sctp;
pub use tcp::Tcp;
pub use udp::Udp;

/// The two bytes of `bytes` from `at`, as the number that network byte order writes. The caller's view has checked.
#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The `N` bytes of `bytes` from `at`. The caller's view has checked.
#[inline(always)]
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Writes `value` from `at` on. The caller's view has checked.
#[inline(always)]
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::addr::{Mac, Port};

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

    proptest! {
        /// The contract: every question that some bytes could answer only by a panic, and every setter, which must leave
        /// the view as sound as it was.
        #[test]
        fn no_accessor_of_a_checked_view_panics_whatever_its_bytes(
            mut bytes in vec(any::<u8>(), 0..90), sound in any::<bool>(),
        ) {
            if let Ok(mut view) = Ethernet::new(&mut bytes) {
                view.set_dst(Mac::BROADCAST);
                view.set_src(Mac::BROADCAST);
                prop_assert_eq!(view.payload_mut().len(), view.payload().len());
                prop_assert!(!view.to_string().is_empty());
            }
            if sound && bytes.len() > 6 {
                bytes[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
            }
            if let Ok(mut view) = Arp::new(&mut bytes) {
                view.set_sender(Mac::BROADCAST, IP);
                view.set_target(Mac::BROADCAST, IP);
                prop_assert!(!view.to_string().is_empty());
            }
            if sound && bytes.len() > 2 {
                bytes[0] = 0x40 | (bytes[0] % 8);
                bytes[2] = 0;
            }
            for check in [Ipv4::new, Ipv4::partial] {
                if let Ok(mut view) = check(bytes.clone()) {
                    view.set_ttl(255);
                    view.set_traffic_class(255);
                    view.set_src(IP);
                    view.set_dst(IP);
                    view.fill_checksum();
                    prop_assert!(view.checksum_ok());
                    prop_assert_eq!(view.payload_mut().len(), view.payload().len());
                    prop_assert!(view.options().len() <= 40 && !view.to_string().is_empty());
                }
            }
            if sound && bytes.len() > 6 {
                bytes[0] |= 0x60;
                bytes[4] = 0;
                bytes[6] = [0, 43, 44, 60, 6][usize::from(bytes[6] % 5)];
            }
            for check in [Ipv6::new, Ipv6::partial] {
                if let Ok(mut view) = check(bytes.clone()) {
                    view.set_hop_limit(255);
                    view.set_traffic_class(255);
                    view.set_src(IPV6);
                    view.set_dst(IPV6);
                    prop_assert_eq!(view.traffic_class(), 255);
                    prop_assert_eq!(view.payload_mut().len(), view.payload().len());
                    prop_assert!(view.upper().is_err() || view.upper().unwrap().at <= bytes.len());
                    prop_assert!(!view.to_string().is_empty());
                }
            }
            for check in [Sctp::new, Sctp::partial] {
                if let Ok(mut view) = check(bytes.clone()) {
                    view.set_src_port(Port::new(1));
                    view.set_dst_port(Port::new(2));
                    view.set_tag(3);
                    view.fill_checksum();
                    prop_assert!(view.checksum_ok());
                    prop_assert_eq!(view.payload_mut().len() + 12, bytes.len());
                    prop_assert!(!view.to_string().is_empty());
                }
            }
            if let Ok(mut view) = Icmpv6::new(&mut bytes) {
                prop_assert!(view.quoted().is_none() || view.echo().is_none());
                view.set_echo(1, 2);
                view.set_mtu(3);
                view.fill_checksum(IPV6.octets(), IPV6.octets());
                prop_assert!(view.checksum_ok(IPV6.octets(), IPV6.octets()));
                prop_assert_eq!(view.payload_mut().len(), view.payload().len());
                prop_assert!(!view.to_string().is_empty());
            }
            if sound && bytes.len() > 25 {
                let kind = 135 + bytes[3] % 2;
                bytes[..2].copy_from_slice(&[kind, 0]);
                bytes[25] %= 4;
            }
            if let Ok(mut view) = nd::Neighbour::new(&mut bytes) {
                view.set_target(IPV6);
                view.set_flags(0xff);
                view.set_link_address(Mac::BROADCAST);
                prop_assert!(!view.to_string().is_empty());
            }
            for check in [Tcp::new, Tcp::partial] {
                if let Ok(mut view) = check(bytes.clone()) {
                    view.set_src_port(Port::new(1));
                    view.set_dst_port(Port::new(2));
                    view.set_sequence(3);
                    view.set_acknowledgement(4);
                    view.set_flags(0xff);
                    view.set_window(5);
                    view.fill_checksum(IP.octets(), IP.octets());
                    prop_assert!(view.checksum_ok(IP.octets(), IP.octets()));
                    prop_assert_eq!(view.payload_mut().len(), view.payload().len());
                    prop_assert!(view.options().len() <= 40 && !view.to_string().is_empty());
                }
            }
            for check in [Udp::new, Udp::partial] {
                if let Ok(mut view) = check(bytes.clone()) {
                    view.set_src_port(Port::new(1));
                    view.set_dst_port(Port::new(2));
                    view.fill_checksum(IP.octets(), IP.octets());
                    prop_assert!(view.checksum_ok(IP.octets(), IP.octets()));
                    prop_assert_eq!(view.payload_mut().len(), view.payload().len());
                    prop_assert!(!view.to_string().is_empty());
                }
            }
            if let Ok(mut view) = Icmp::new(&mut bytes) {
                prop_assert!(view.quoted().is_none() || view.echo().is_none());
                view.set_echo(1, 2);
                view.set_next_hop_mtu(3);
                view.fill_checksum();
                prop_assert!(view.checksum_ok());
                prop_assert_eq!(view.payload_mut().len(), view.payload().len());
                prop_assert!(!view.to_string().is_empty());
            }
        }
    }
}
