//! Addresses as packets carry them: ports and flow keys in network byte order, so that comparing, hashing and
//! rewriting never swap bytes; only printing does.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

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
            Self::SCTP => f.write_str("SCTP"),
            Self(number) => write!(f, "protocol {number}"),
        }
    }
}

/// What names an IPv4 flow in one direction, as its packets carry it: 16 bytes without padding, so a key's bytes
/// are its identity.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: [u8; 3],
}

impl FlowKey {
    /// The key of a packet from `src` to `dst`.
    pub const fn new(protocol: Protocol, src: SocketAddrV4, dst: SocketAddrV4) -> Self {
        Self {
            src: src.ip().octets(),
            dst: dst.ip().octets(),
            src_port: Port::new(src.port()),
            dst_port: Port::new(dst.port()),
            protocol,
            zero: [0; 3],
        }
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

    /// Source as a person writes it.
    pub fn source(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(self.src), self.src_port.number())
    }

    /// Destination as a person writes it.
    pub fn destination(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(self.dst), self.dst_port.number())
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.protocol, self.source(), self.destination())
    }
}
