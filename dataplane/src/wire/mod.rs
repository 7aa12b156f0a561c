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
//! The error of a constructor is the `DropReason` that it means for a received packet.

/// Ones-complement checksums: whole, and by difference.
pub mod checksum;

/// Ethernet II and one VLAN tag.
pub mod ethernet;
/// ARP for IPv4 over Ethernet.
pub mod arp;
/// IPv4.
pub mod ipv4;
/// TCP.
pub mod tcp;
/// UDP.
pub mod udp;
/// ICMP for IPv4.
pub mod icmp;

#[cfg(test)]
pub(crate) mod samples;

pub use arp::Arp;
pub use ethernet::{EtherType, Ethernet};
pub use icmp::Icmp;
pub use ipv4::Ipv4;
pub use tcp::Tcp;
pub use udp::Udp;

/// The two bytes of `bytes` from `at`, as the number that network byte order writes. The caller's view has checked.
#[inline]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The `N` bytes of `bytes` from `at`. The caller's view has checked.
#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Writes `value` from `at` on. The caller's view has checked.
#[inline]
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}
