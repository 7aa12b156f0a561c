#![allow(unsafe_code)]
//! Addresses as packets carry them: addresses, ports and flow keys in network byte order, so that comparing, hashing and
//! rewriting never swap bytes; only printing does.
//!
//! Both families are one code: what is generic over an `Address` is compiled once for `V4` and once for `V6`, so that a
//! packet asks once which it is, in `parse`, and an IPv4 flow pays nothing for IPv6.

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// An IPv4 address (RFC 791 §3.1).
pub type V4 = [u8; 4];

/// An IPv6 address (RFC 8200 §3).
pub type V6 = [u8; 16];

mod sealed {
    /// Only arrays of bytes are addresses: `FlowKey` relies on it.
    pub trait Bytes {}
    impl Bytes for super::V4 {}
    impl Bytes for super::V6 {}
}

/// An IP address as packets carry it: `V4` or `V6`, and nothing else.
pub trait Address:
    sealed::Bytes
    + Copy
    + Default
    + Eq
    + Ord
    + Hash
    + fmt::Debug
    + Pod
    + Into<IpAddr>
    + AsRef<[u8]>
    + Send
    + Sync
    + 'static
{
    /// An address and a port as a person writes them.
    type Socket: Copy + fmt::Display + Into<SocketAddr>;

    /// Bits of an address.
    const BITS: u8;

    /// The protocol number of the family's ICMP (RFC 792, RFC 4443 §2.1).
    const ICMP: Protocol;

    /// `address`, if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;

    /// The two as a person writes them.
    fn socket(self, port: Port) -> Self::Socket;

    /// The two as packets carry them.
    fn parts(socket: Self::Socket) -> (Self, Port);

    /// Its bits as two words, the last in the lower half of the second.
    fn halves(self) -> [u64; 2];

    /// A word whose high bits tell neighbouring addresses apart (Fibonacci hashing). No secret: for caches and filters, not
    /// for tables that somebody could fill.
    #[inline(always)]
    fn spread(self) -> u64 {
        let [high, low] = self.halves();
        (high.rotate_left(32) ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The part of `of` that is this family's.
    fn part<F: Families>(of: &F) -> &F::Part<Self>;
}

/// What has a part for each family, so that code generic over an `Address` finds its own.
pub trait Families {
    /// A family's part.
    type Part<A: Address>;

    /// IPv4's.
    fn v4(&self) -> &Self::Part<V4>;

    /// IPv6's.
    fn v6(&self) -> &Self::Part<V6>;
}

impl Address for V4 {
    type Socket = SocketAddrV4;

    const BITS: u8 = 32;
    const ICMP: Protocol = Protocol::ICMP;

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn socket(self, port: Port) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(self), port.number())
    }

    fn parts(socket: SocketAddrV4) -> (Self, Port) {
        (socket.ip().octets(), Port::new(socket.port()))
    }

    #[inline(always)]
    fn halves(self) -> [u64; 2] {
        [0, u32::from_ne_bytes(self).into()]
    }

    fn part<F: Families>(of: &F) -> &F::Part<Self> {
        of.v4()
    }
}

impl Address for V6 {
    type Socket = SocketAddrV6;

    const BITS: u8 = 128;
    const ICMP: Protocol = Protocol::ICMPV6;

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6.octets()),
        }
    }

    fn socket(self, port: Port) -> SocketAddrV6 {
        SocketAddrV6::new(Ipv6Addr::from(self), port.number(), 0, 0)
    }

    fn parts(socket: SocketAddrV6) -> (Self, Port) {
        (socket.ip().octets(), Port::new(socket.port()))
    }

    #[inline(always)]
    fn halves(self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self;
        [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes(rest),
        ]
    }

    fn part<F: Families>(of: &F) -> &F::Part<Self> {
        of.v6()
    }
}

use bytemuck::{Pod, Zeroable};

/// A transport port in network byte order (RFC 9293 §3.1, RFC 768).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct Port(pub [u8; 2]);

impl Port {
    /// The port written `number`.
    pub const fn new(number: u16) -> Self {
        Self(number.to_be_bytes())
    }

    /// The number a person writes.
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// An Ethernet address (IEEE 802.3).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Its bytes as the low 48 bits of a word, the first one lowest.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// From the low 48 bits of a word.
    #[inline(always)]
    pub const fn of_bits(bits: u64) -> Self {
        let [a, b, c, d, e, f, ..] = bits.to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    /// Group bit set: broadcast or multicast, never a unicast station.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A transport protocol by its IP protocol number (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP (1).
    pub const ICMP: Self = Self(1);
    /// TCP (6).
    pub const TCP: Self = Self(6);
    /// UDP (17).
    pub const UDP: Self = Self(17);
    /// ICMPv6 (58).
    pub const ICMPV6: Self = Self(58);
    /// SCTP (132).
    pub const SCTP: Self = Self(132);
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("ICMP"),
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::ICMPV6 => f.write_str("ICMPv6"),
            Self::SCTP => f.write_str("SCTP"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

/// What names a flow in one direction, as its packets carry it: without padding (16 bytes for IPv4, 40 for IPv6), so a
/// key's bytes are its identity.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey<A: Address = V4> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey<V4>>() == 16 && size_of::<FlowKey<V6>>() == 40);

// SAFETY: every field is Zeroable.
unsafe impl<A: Address> Zeroable for FlowKey<A> {}
// SAFETY: repr(C), every field is Pod, and there is no padding: an address is an array of bytes (the trait is
// sealed), as is every other field, so nothing has an alignment to be padded to.
unsafe impl<A: Address> Pod for FlowKey<A> {}

impl<A: Address> FlowKey<A> {
    /// The key of a packet from `src` to `dst`.
    pub fn new(protocol: Protocol, src: A::Socket, dst: A::Socket) -> Self {
        let ((src, src_port), (dst, dst_port)) = (A::parts(src), A::parts(dst));
        Self {
            src,
            dst,
            src_port,
            dst_port,
            protocol,
            zero: [0; 3],
        }
    }

    /// The key of a packet whose headers say this: source and destination address, then port, as they stand there. Made of
    /// whole words, so that whoever hashes it next need not wait for its bytes.
    #[inline(always)]
    pub(crate) fn of_words<const N: usize>(addresses: &[u8; N], ports: [u8; 4], protocol: Protocol) -> Self {
        const { assert!(N == 2 * size_of::<A>()) };
        let mut key = Self::zeroed();
        let (front, back) = bytemuck::bytes_of_mut(&mut key).split_at_mut(N);
        front.copy_from_slice(addresses);
        let ports = u64::from(u32::from_le_bytes(ports));
        back.copy_from_slice(&(ports | u64::from(protocol.0) << 32).to_le_bytes());
        key
    }

    /// The key of packets going the other way.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            ..self
        }
    }

    /// Both ports in one word.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        let (Port([a, b]), Port([c, d])) = (self.src_port, self.dst_port);
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Source as a person writes it.
    pub fn source(&self) -> A::Socket {
        self.src.socket(self.src_port)
    }

    /// Destination as a person writes it.
    pub fn destination(&self) -> A::Socket {
        self.dst.socket(self.dst_port)
    }
}

impl<A: Address> fmt::Debug for FlowKey<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.protocol, self.source(), self.destination())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_either_family_reads_as_a_person_writes_it() {
        let v4 = FlowKey::<V4>::new(
            Protocol::UDP,
            "10.0.0.1:1".parse().unwrap(),
            "10.0.0.2:53".parse().unwrap(),
        );
        assert_eq!(format!("{v4:?}"), "UDP 10.0.0.1:1 > 10.0.0.2:53");
        let v6 = FlowKey::<V6>::new(
            Protocol::TCP,
            "[fd00::1]:1".parse().unwrap(),
            "[fd00::2]:80".parse().unwrap(),
        );
        assert_eq!(format!("{:?}", v6.reversed()), "TCP [fd00::2]:80 > [fd00::1]:1");
    }

    #[test]
    fn an_address_is_of_one_family() {
        assert_eq!(V4::of(IpAddr::from([10, 0, 0, 1])), Some([10, 0, 0, 1]));
        assert_eq!(V6::of(IpAddr::from([10, 0, 0, 1])), None);
        assert_eq!(
            V6::of(Ipv6Addr::LOCALHOST.into()).map(IpAddr::from),
            Some(Ipv6Addr::LOCALHOST.into())
        );
    }
}
