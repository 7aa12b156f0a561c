//! Neighbour discovery (RFC 4861): solicitations and advertisements, which are to IPv6 what ARP is to IPv4. Router
//! discovery and redirects are the host's. Options are walked, and only link-layer addresses looked at.

use std::fmt;
use std::net::Ipv6Addr;

use super::{Icmpv6, Ipv6, array, put};
use crate::addr::{Mac, Protocol};
use crate::verdict::DropReason;

/// Neighbour solicitation (ICMPv6 type 135): who has the target address?
pub const SOLICITATION: u8 = 135;
/// Neighbour advertisement (ICMPv6 type 136): the sender has it.
pub const ADVERTISEMENT: u8 = 136;

/// Flag of an advertisement: the sender is a router.
pub const ROUTER: u8 = 0x80;
/// Flag of an advertisement: it answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// Flag of an advertisement: forget another link-layer address.
pub const OVERRIDE: u8 = 0x20;

/// Hop limit of every message: no router has forwarded it (RFC 4861 §7.1).
pub const HOP_LIMIT: u8 = 255;

/// Bytes of a message with the one option that says a link-layer address.
pub const LEN: usize = HEADER_LEN + OPTION_LEN;

/// Options walked through: there is one that means anything here, and few others exist for these messages.
const MAX_OPTIONS: usize = 8;

mod field {
    pub(super) const TYPE: usize = 0;
    pub(super) const CODE: usize = 1;
    pub(super) const FLAGS: usize = 4;
    pub(super) const TARGET: usize = 8;
    pub(super) const OPTIONS: usize = 24;
}

/// Bytes of a message without options.
const HEADER_LEN: usize = field::OPTIONS;

/// Bytes of an option that holds an Ethernet address.
const OPTION_LEN: usize = 8;

/// Option: the link-layer address of the packet's sender.
const SOURCE_LINK_ADDRESS: u8 = 1;
/// Option: the link-layer address of the target.
const TARGET_LINK_ADDRESS: u8 = 2;

/// A solicitation or an advertisement, an ICMPv6 message.
#[derive(Debug)]
pub struct Neighbour<T> {
    bytes: T,
}

impl<'a> Neighbour<&'a [u8]> {
    /// The message that `ip` carries, if it is one and passes the checks of RFC 4861 §7.1. Errors: `Truncated`,
    /// `BadSource` if it may come from beyond the link, `BadTransportHeader` for a wrong checksum and what `new` refuses.
    pub fn received(ip: &'a Ipv6<&'a [u8]>) -> Result<Self, DropReason> {
        if ip.hop_limit() != HOP_LIMIT {
            return Err(DropReason::BadSource);
        }
        let message = ip.payload();
        let (src, dst) = (ip.src(), ip.dst());
        let sound = ip.next_header() == Protocol::ICMPV6
            && Icmpv6::new(message)?.checksum_ok(src.octets(), dst.octets());
        if !sound {
            return Err(DropReason::BadTransportHeader);
        }
        let neighbour = Self::new(message)?;
        let allowed = if neighbour.is_solicitation() {
            // Duplicate address detection has no address to be answered at yet.
            !src.is_unspecified() || (is_solicited_node(dst) && neighbour.link_address().is_none())
        } else {
            !(dst.is_multicast() && neighbour.flags() & SOLICITED != 0)
        };
        if allowed {
            Ok(neighbour)
        } else {
            Err(DropReason::BadTransportHeader)
        }
    }
}

const fn is_solicited_node(address: Ipv6Addr) -> bool {
    matches!(
        address.octets(),
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, _, _, _]
    )
}

impl<T: AsRef<[u8]>> Neighbour<T> {
    /// A received message, all of it, its checksum not looked at (`received` does). Errors: `Truncated`;
    /// `BadTransportHeader` for other messages, a group as target, and options of no length, past the end or too many.
    pub fn new(bytes: T) -> Result<Self, DropReason> {
        if bytes.as_ref().len() < HEADER_LEN {
            return Err(DropReason::Truncated);
        }
        let message = Self { bytes };
        let header = message.bytes.as_ref();
        let sound = matches!(header[field::TYPE], SOLICITATION | ADVERTISEMENT)
            && header[field::CODE] == 0
            && !message.target().is_multicast()
            && message.options().all(|option| option.is_some());
        if sound {
            Ok(message)
        } else {
            Err(DropReason::BadTransportHeader)
        }
    }

    /// It asks; else it tells.
    pub fn is_solicitation(&self) -> bool {
        self.bytes.as_ref()[field::TYPE] == SOLICITATION
    }

    /// The address it is about.
    pub fn target(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes.as_ref(), field::TARGET))
    }

    /// `ROUTER`, `SOLICITED`, `OVERRIDE`; mean nothing in a solicitation.
    pub fn flags(&self) -> u8 {
        self.bytes.as_ref()[field::FLAGS]
    }

    /// The Ethernet address of a solicitation's sender or of an advertisement's target, if it says one that is a
    /// station's.
    pub fn link_address(&self) -> Option<Mac> {
        let wanted = link_option(self.bytes.as_ref()[field::TYPE]);
        let address = |option: &[u8]| match option {
            [kind, 1, a, b, c, d, e, f] if *kind == wanted => Some(Mac([*a, *b, *c, *d, *e, *f])),
            _ => None,
        };
        self.options()
            .flatten()
            .find_map(address)
            .filter(|mac| !mac.is_group())
    }

    /// Every option, and at last `None` if the rest is none or too many.
    fn options(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest = Some(&self.bytes.as_ref()[field::OPTIONS..]);
        let mut left = MAX_OPTIONS;
        std::iter::from_fn(move || {
            let here = rest.take().filter(|rest| !rest.is_empty())?;
            let len = here.get(1).map_or(0, |words| usize::from(*words) * 8);
            let option = here
                .split_at_checked(len)
                .filter(|(option, _)| !option.is_empty() && left > 0);
            left = left.saturating_sub(1);
            rest = option.map(|(_, rest)| rest);
            Some(option.map(|(option, _)| option))
        })
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Neighbour<T> {
    /// A message to build of exactly `LEN` bytes, its link-layer address and everything else zero; the checksum is filled
    /// by `Icmpv6`. Errors: `NoFrame` if the buffer has another size.
    pub fn blank(mut bytes: T, kind: u8) -> Result<Self, DropReason> {
        let message: &mut [u8; LEN] = bytes.as_mut().try_into().map_err(|_| DropReason::NoFrame)?;
        *message = [0; LEN];
        message[field::TYPE] = if kind == SOLICITATION {
            SOLICITATION
        } else {
            ADVERTISEMENT
        };
        message[field::OPTIONS] = link_option(kind);
        message[field::OPTIONS + 1] = 1;
        Ok(Self { bytes })
    }

    /// Sets the address it is about.
    pub fn set_target(&mut self, target: Ipv6Addr) {
        put(self.bytes.as_mut(), field::TARGET, target.octets());
    }

    /// Sets an advertisement's flags.
    pub fn set_flags(&mut self, flags: u8) {
        self.bytes.as_mut()[field::FLAGS] = flags;
    }

    /// Sets the Ethernet address, of a message that `blank` began.
    pub fn set_link_address(&mut self, mac: Mac) {
        if let Some(option) = self.bytes.as_mut().get_mut(field::OPTIONS..LEN) {
            option[2..].copy_from_slice(&mac.0);
        }
    }
}

/// Which option says the link-layer address in a message of this type.
const fn link_option(kind: u8) -> u8 {
    if kind == SOLICITATION {
        SOURCE_LINK_ADDRESS
    } else {
        TARGET_LINK_ADDRESS
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Neighbour<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, mac) = (self.target(), self.link_address());
        match (self.is_solicitation(), mac) {
            (true, Some(mac)) => write!(f, "ND who has {target}? tell {mac}"),
            (true, None) => write!(f, "ND who has {target}?"),
            (false, Some(mac)) => write!(f, "ND {target} is at {mac}"),
            (false, None) => write!(f, "ND {target} is there"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const ASKER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const BYTES: [u8; 32] = [
        135, 0, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 0, 0, 0, 0, 2,
    ];

    /// `message` in a packet between these, its checksum right.
    fn packet(message: &[u8], src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let mut bytes = vec![0; 40 + message.len()];
        let mut ip = Ipv6::blank(&mut bytes, Protocol::ICMPV6).unwrap();
        ip.set_hop_limit(255);
        ip.set_src(src);
        ip.set_dst(dst);
        ip.payload_mut().copy_from_slice(message);
        Icmpv6::new(ip.payload_mut())
            .unwrap()
            .fill_checksum(src.octets(), dst.octets());
        bytes
    }

    fn received(packet: &[u8]) -> Result<Option<Mac>, DropReason> {
        Neighbour::received(&Ipv6::new(packet).unwrap()).map(|neighbour| neighbour.link_address())
    }

    #[test]
    fn the_bytes_of_a_solicitation_read_as_its_fields() {
        let neighbour = Neighbour::new(&BYTES).unwrap();
        assert!(neighbour.is_solicitation());
        assert_eq!(
            (neighbour.target(), neighbour.link_address()),
            (TARGET, Some(MAC))
        );
        assert_eq!(
            neighbour.to_string(),
            "ND who has fd00::1? tell 02:00:00:00:00:02"
        );
    }

    #[test]
    fn the_fields_of_messages_write_as_their_bytes() {
        let mut bytes = [0x55; 32];
        let mut neighbour = Neighbour::blank(&mut bytes, SOLICITATION).unwrap();
        neighbour.set_target(TARGET);
        neighbour.set_link_address(MAC);
        assert_eq!(bytes, BYTES);
        let mut neighbour = Neighbour::blank(&mut bytes, ADVERTISEMENT).unwrap();
        neighbour.set_target(TARGET);
        neighbour.set_link_address(MAC);
        neighbour.set_flags(SOLICITED | OVERRIDE);
        assert_eq!(neighbour.to_string(), "ND fd00::1 is at 02:00:00:00:00:02");
        assert_eq!((bytes[0], bytes[4], bytes[24]), (136, 0x60, 2));
        assert_eq!(
            Neighbour::blank([0; 31], SOLICITATION).unwrap_err(),
            DropReason::NoFrame
        );
    }

    #[test]
    fn a_message_that_may_come_from_beyond_the_link_or_has_a_wrong_checksum_is_refused() {
        // RFC 4861 §7.1.
        let right = packet(&BYTES, ASKER, TARGET);
        assert_eq!(received(&right), Ok(Some(MAC)));
        let mut routed = right.clone();
        routed[7] = 254;
        assert_eq!(received(&routed), Err(DropReason::BadSource));
        let mut wrong = right;
        wrong[71] ^= 1;
        assert_eq!(received(&wrong), Err(DropReason::BadTransportHeader));
    }

    #[test]
    fn an_address_probe_goes_to_the_targets_group_and_says_no_link_address() {
        let nobody = Ipv6Addr::UNSPECIFIED;
        let group = super::super::ipv6::solicited_node(TARGET);
        assert_eq!(received(&packet(&BYTES[..24], nobody, group)), Ok(None));
        for (message, dst) in [(&BYTES[..], group), (&BYTES[..24], TARGET)] {
            assert_eq!(
                received(&packet(message, nobody, dst)),
                Err(DropReason::BadTransportHeader)
            );
        }
    }

    #[test]
    fn an_advertisement_to_everybody_answers_nobody() {
        let mut message = BYTES;
        message[0] = ADVERTISEMENT;
        message[24] = 2;
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        assert_eq!(received(&packet(&message, ASKER, all)), Ok(Some(MAC)));
        message[4] = SOLICITED;
        assert_eq!(
            received(&packet(&message, ASKER, all)),
            Err(DropReason::BadTransportHeader)
        );
    }

    #[test]
    fn options_are_walked_within_bounds() {
        let with = |options: &[u8]| {
            let mut bytes = BYTES[..24].to_vec();
            bytes.extend(options);
            Neighbour::new(bytes).map(|neighbour| neighbour.link_address())
        };
        let nonce = [14, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(with(&[&nonce[..], &BYTES[24..]].concat()), Ok(Some(MAC)));
        assert_eq!(with(&nonce), Ok(None));
        assert_eq!(with(&[1, 1, 1, 0, 0, 0, 0, 2]), Ok(None), "a group is no station");
        assert_eq!(with(&nonce.repeat(8)), Ok(None));
        let bad = Err(DropReason::BadTransportHeader);
        assert_eq!(with(&nonce.repeat(9)), bad, "too many");
        assert_eq!(with(&[14, 0, 0, 0, 0, 0, 0, 0]), bad, "of no length");
        assert_eq!(with(&[14, 2, 0, 0, 0, 0, 0, 0]), bad, "past the end");
        assert_eq!(with(&[14]), bad, "cut off");
        assert_eq!(Neighbour::new(&BYTES[..23]).unwrap_err(), DropReason::Truncated);
    }

    #[test]
    fn other_messages_and_groups_as_targets_are_refused() {
        for (at, value) in [(0, 134), (0, 128), (1, 1), (8, 0xff)] {
            let mut bytes = BYTES;
            bytes[at] = value;
            assert_eq!(Neighbour::new(bytes).unwrap_err(), DropReason::BadTransportHeader);
        }
    }
}
