//! Fields of a message: written one after the other into a slot, read back with every byte held to be hostile.
//!
//! Integers are little-endian, a name is its length and its bytes, an option is 0 or 1 and the value, an address is 4
//! or 6 and its octets. What comes after the last field is zero, so that a message has exactly one encoding.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::addr::Protocol;

/// Bytes of a slot: the largest message, a service port with three full names, takes 204.
pub const SLOT: usize = 256;

/// One encoded message.
pub type Slot = [u8; SLOT];

/// Why a message cannot be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} is {length} bytes long, but at most {max} fit")]
pub struct EncodeError {
    what: &'static str,
    length: usize,
    max: usize,
}

/// Why bytes are no message. Each sentence names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A byte that should choose among known things chooses none.
    #[error("{value} is no {what}")]
    Unknown {
        /// The field.
        what: &'static str,
        /// Its byte.
        value: u8,
    },
    /// A field begins before the end of the slot and ends after it.
    #[error("the {0} runs past the end of the message")]
    Short(&'static str),
    /// Something follows the last field.
    #[error("byte {0}, after the last field, is not zero")]
    Trailing(usize),
    /// A name longer than names are.
    #[error("the {what} is {length} bytes long, but at most {max} are allowed")]
    TooLong {
        /// The field.
        what: &'static str,
        /// Bytes announced.
        length: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A name that must not be empty.
    #[error("the {0} is empty")]
    Empty(&'static str),
    /// Text that is not UTF-8, or would not print on one line.
    #[error("the {0} is not printable UTF-8 text")]
    Text(&'static str),
    /// Port 0.
    #[error("the {0} is 0, but ports are 1 to 65535")]
    ZeroPort(&'static str),
    /// A number above what it may be.
    #[error("the {what} is {value}, but at most {max} is allowed")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// As found.
        value: u64,
        /// Most.
        max: u64,
    },
    /// A network whose address has bits set beyond its prefix.
    #[error("the network {0} has address bits set beyond its prefix")]
    HostBits(IpNet),
}

/// Writes fields into a slot.
#[derive(Debug)]
pub(super) struct Encoder {
    slot: Slot,
    at: usize,
}

impl Encoder {
    pub(super) const fn new() -> Self {
        Self {
            slot: [0; SLOT],
            at: 0,
        }
    }

    pub(super) const fn finish(self) -> Slot {
        self.slot
    }

    /// The one place that writes. Whatever does not fit would be cut, but the names' limits see to it that all fits
    /// (`the_largest_message_of_each_kind_fits_a_slot`).
    fn bytes(&mut self, bytes: &[u8]) {
        for (to, from) in self.slot.iter_mut().skip(self.at).zip(bytes) {
            *to = *from;
        }
        self.at += bytes.len();
        debug_assert!(self.at <= SLOT);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(super) fn text(&mut self, what: &'static str, text: &str, max: usize) -> Result<(), EncodeError> {
        let too_long = EncodeError {
            what,
            length: text.len(),
            max,
        };
        let length = u8::try_from(text.len())
            .ok()
            .filter(|_| text.len() <= max)
            .ok_or(too_long)?;
        self.u8(length);
        self.bytes(text.as_bytes());
        Ok(())
    }

    pub(super) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(a) => {
                self.u8(4);
                self.bytes(&a.octets());
            }
            IpAddr::V6(a) => {
                self.u8(6);
                self.bytes(&a.octets());
            }
        }
    }

    pub(super) fn network(&mut self, network: IpNet) {
        self.address(network.addr());
        self.u8(network.prefix_len());
    }
}

/// Reads fields out of our own copy of a slot.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    slot: &'a Slot,
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(super) const fn new(slot: &'a Slot) -> Self {
        Self { slot, at: 0 }
    }

    /// The message ends here.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.slot.iter().skip(self.at).position(|&byte| byte != 0) {
            Some(offset) => Err(DecodeError::Trailing(self.at + offset)),
            None => Ok(()),
        }
    }

    fn bytes(&mut self, what: &'static str, length: usize) -> Result<&'a [u8], DecodeError> {
        let rest = self.slot.get(self.at..).unwrap_or_default();
        let bytes = rest.get(..length).ok_or(DecodeError::Short(what))?;
        self.at += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        self.bytes(what, N)?
            .try_into()
            .map_err(|_| DecodeError::Short(what))
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Unknown { what, value }),
        }
    }

    /// One of `all`, by its place.
    pub(super) fn choice<T: Copy>(&mut self, what: &'static str, all: &[T]) -> Result<T, DecodeError> {
        let value = self.u8(what)?;
        all.get(usize::from(value))
            .copied()
            .ok_or(DecodeError::Unknown { what, value })
    }

    /// A port from 1 to 65535.
    pub(super) fn port(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        match self.u16(what)? {
            0 => Err(DecodeError::ZeroPort(what)),
            port => Ok(port),
        }
    }

    /// A protocol that Services carry.
    pub(super) fn protocol(&mut self) -> Result<Protocol, DecodeError> {
        let protocol = Protocol(self.u8("protocol")?);
        match protocol {
            Protocol::TCP | Protocol::UDP | Protocol::SCTP => Ok(protocol),
            Protocol(value) => Err(DecodeError::Unknown {
                what: "protocol of a Service",
                value,
            }),
        }
    }

    /// Text that can be printed into a log line or a terminal as it is; may be empty.
    pub(super) fn text(&mut self, what: &'static str, max: usize) -> Result<String, DecodeError> {
        let length = usize::from(self.u8(what)?);
        if length > max {
            return Err(DecodeError::TooLong { what, length, max });
        }
        let text = std::str::from_utf8(self.bytes(what, length)?).map_err(|_| DecodeError::Text(what))?;
        if text.chars().any(char::is_control) {
            return Err(DecodeError::Text(what));
        }
        Ok(text.to_owned())
    }

    pub(super) fn address(&mut self, what: &'static str) -> Result<IpAddr, DecodeError> {
        match self.u8(what)? {
            4 => Ok(Ipv4Addr::from(self.array::<4>(what)?).into()),
            6 => Ok(Ipv6Addr::from(self.array::<16>(what)?).into()),
            value => Err(DecodeError::Unknown {
                what: "address family (4 or 6)",
                value,
            }),
        }
    }

    /// A network with no bits set beyond its prefix: one network, one key.
    pub(super) fn network(&mut self) -> Result<IpNet, DecodeError> {
        let address = self.address("network")?;
        let prefix = self.u8("prefix length")?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let network = IpNet::new(address, prefix).map_err(|_| DecodeError::TooLarge {
            what: "prefix length",
            value: prefix.into(),
            max,
        })?;
        if network.trunc() != network {
            return Err(DecodeError::HostBits(network));
        }
        Ok(network)
    }
}
