//! Takes  a frame's bytes.                  Gives  a `Packet`: offsets proven in bounds, and the flow key.
//! Drops  Truncated, BadIpHeader, BadIpChecksum, ExtensionHeaders, BadTransportHeader, NoUdpChecksum, BadSource, BadDestination, …
//! Never  reads a clock, a table or a counter; never allocates; never trusts a length field.
//! Next   `lookup`.

use crate::addr::{Address, FlowKey, Mac, Port, Protocol, V4, V6};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{
    EtherType, Ethernet, Icmp, Ip, Ipv4, Ipv6, Sctp, Tcp, Udp, ethernet, icmpv6, ipv4, ipv6, nd,
};

/// What `parse` proved about a frame. All offsets are from the Ethernet header and in bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet<A: Address = V4> {
    /// The packet's key; ports are zero where the protocol has none or a fragment hides them.
    pub key: FlowKey<A>,
    /// What all fragments of a packet share, 0 for a whole one. A key to fragments in IPv6 without the protocol: that of
    /// a later one may be an extension header's (RFC 8200 §4.5).
    pub fragment_ident: u32,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header: past IPv4 options and IPv6 extension headers.
    pub l4: u16,
    /// Offset just past the IP packet (its total length; padding of the frame comes after).
    pub end: u16,
    /// Bytes from the transport header to the end of the whole datagram: SCTP's checksum needs them. 0 for fragments,
    /// of which whoever puts them together may know.
    pub transport_len: u16,
    /// VLAN identifier of the 802.1Q tag; 0 for a frame without, or with one that only says a priority.
    pub vlan: u16,
    /// Time to live (IPv6: hop limit) as received.
    pub ttl: u8,
    /// What the packet does to its flow's state: TCP flags (RFC 9293 §3.1), a set of `sctp::chunks`, else 0.
    pub signals: u8,
    /// ICMP or ICMPv6 type, 0 for other protocols.
    pub icmp_type: u8,
    /// Set for every fragment, first or later.
    pub fragment: Fragment,
}

/// Whether the IP packet is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented, or in one fragment (RFC 6946).
    #[default]
    Whole,
    /// The first fragment: has the ports, unless it is too short for the transport header.
    First,
    /// A later one: has none.
    Later,
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IPv4 packet for this station.
    Ipv4(Packet<V4>),
    /// An IPv6 packet for this station.
    Ipv6(Packet<V6>),
    /// ARP, or a neighbour solicitation or advertisement from this link: the steward's.
    Neighbour,
    /// Not IP for this station (multicast, link-local, unknown EtherType): the host's, where there is a host port.
    Other(DropReason),
    /// Broken.
    Drop(DropReason),
    /// Decided on before lookup: a fragment that goes no further.
    Settled(Verdict),
}

/// What `frame` is, received in exclusive mode by the NIC port whose address is `station`. ICMP and protocols other than
/// TCP, UDP and SCTP have zero ports.
pub fn parse(frame: &[u8], station: Mac) -> Parsed {
    let mut parsed = Parsed::Neighbour;
    parse_into(&mut parsed, frame, station);
    parsed
}

/// `parse` of one packet of many, and whether it is plain: what is found is written once and where it stays. Moving it would
/// cost more than finding it, since a processor makes a wide load wait for the narrow stores before it.
#[inline(always)]
pub fn parse_into(place: &mut Parsed, frame: &[u8], station: Mac) -> bool {
    if plain::inspect(place, frame, station) {
        return true;
    }
    if let Err(reason) = inspect(place, frame, station) {
        *place = Parsed::Drop(reason);
    }
    false
}

#[inline(never)]
fn inspect(place: &mut Parsed, frame: &[u8], station: Mac) -> Result<(), DropReason> {
    let ethernet = Ethernet::new(frame)?;
    let dst = ethernet.dst();
    if dst != station && !dst.is_group() {
        return Err(DropReason::NotForUs);
    }
    match ethernet.ether_type() {
        EtherType::IPV4 => return inspect_ipv4(place, &ethernet),
        EtherType::IPV6 => return inspect_ipv6(place, &ethernet),
        EtherType::ARP => *place = Parsed::Neighbour,
        // Also a second tag: a network inside of a network is not ours to look into.
        _ => *place = Parsed::Other(DropReason::UnknownEtherType),
    }
    Ok(())
}

#[inline(always)]
fn inspect_ipv4(place: &mut Parsed, ethernet: &Ethernet<&[u8]>) -> Result<(), DropReason> {
    let ip = Ipv4::new(ethernet.payload())?;
    if !ip.checksum_ok() {
        return Err(DropReason::BadIpChecksum);
    }
    // Before the source: DHCP and IGMP come from 0.0.0.0, and are the host's to judge. A unicast packet in a group
    // frame reached every gateway of the segment and must not be forwarded by each (RFC 1812 §5.3.4).
    if ipv4::is_group(ip.dst()) || ethernet.dst().is_group() {
        *place = Parsed::Other(DropReason::Multicast);
        return Ok(());
    }
    if !ipv4::can_send(ip.src()) {
        return Err(DropReason::BadSource);
    }
    // What cannot be a source is no host to send to either (RFC 1812 §5.3.7).
    if !ipv4::can_send(ip.dst()) {
        return Err(DropReason::BadDestination);
    }
    let fragment = match (ip.fragment_offset(), ip.more_fragments()) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    let l3 = ethernet.header_len();
    // No frame memory holds so long a frame; a test's slice may.
    let end = u16::try_from(l3 + usize::from(ip.total_len())).map_err(|_| DropReason::TooBig)?;
    // At most 78.
    let l4 = (l3 + ip.header_len()) as u16;
    let transport = transport::<V4>(ip.payload(), ip.protocol(), fragment)?;
    *place = Parsed::Ipv4(Packet {
        key: transport.key(ip.src().octets(), ip.dst().octets(), ip.protocol()),
        fragment_ident: if fragment == Fragment::Whole {
            0
        } else {
            ip.ident().into()
        },
        // At most 18.
        l3: l3 as u16,
        l4,
        end,
        transport_len: if fragment == Fragment::Whole { end - l4 } else { 0 },
        vlan: vlan(ethernet),
        ttl: ip.ttl(),
        signals: transport.signals,
        icmp_type: transport.icmp_type,
        fragment,
    });
    Ok(())
}

#[inline(always)]
fn inspect_ipv6(place: &mut Parsed, ethernet: &Ethernet<&[u8]>) -> Result<(), DropReason> {
    let ip = Ipv6::new(ethernet.payload())?;
    let upper = ip.upper()?;
    let payload = &ip.payload()[upper.at - ipv6::HEADER_LEN..];
    let fragment = match upper.fragment {
        Some(header) if header.offset != 0 => Fragment::Later,
        Some(header) if header.more => Fragment::First,
        _ => Fragment::Whole,
    };
    let (src, dst) = (ip.src(), ip.dst());
    if upper.protocol == Protocol::ICMPV6
        && fragment == Fragment::Whole
        && let Some(&icmp_type) = payload.first()
        && icmpv6::is_discovery(icmp_type)
    {
        // No router forwarded it, and no extension header hides it (RFC 4861 §7.1, RFC 6980 §5).
        let neighbour = matches!(icmp_type, nd::SOLICITATION | nd::ADVERTISEMENT)
            && ip.next_header() == Protocol::ICMPV6
            && ip.hop_limit() == nd::HOP_LIMIT;
        *place = if neighbour {
            Parsed::Neighbour
        } else {
            Parsed::Other(DropReason::LinkLocal)
        };
        return Ok(());
    }
    // Before the source, as in IPv4: an address that is being probed reports its groups from "::" (RFC 3590).
    if dst.is_multicast() || ethernet.dst().is_group() {
        *place = Parsed::Other(DropReason::Multicast);
        return Ok(());
    }
    if !ipv6::can_send(src) {
        return Err(DropReason::BadSource);
    }
    if !ipv6::can_send(dst) {
        return Err(DropReason::BadDestination);
    }
    // Never beyond the link (RFC 4291 §2.5.6).
    if src.is_unicast_link_local() || dst.is_unicast_link_local() {
        *place = Parsed::Other(DropReason::LinkLocal);
        return Ok(());
    }
    let l3 = ethernet.header_len();
    // No frame memory holds so long a frame; a test's slice may.
    let end = u16::try_from(l3 + ip.total_len()).map_err(|_| DropReason::TooBig)?;
    // At most `end`.
    let l4 = (l3 + upper.at) as u16;
    let transport = transport::<V6>(payload, upper.protocol, fragment)?;
    *place = Parsed::Ipv6(Packet {
        key: transport.key(src.octets(), dst.octets(), upper.protocol),
        fragment_ident: match upper.fragment {
            Some(header) if fragment != Fragment::Whole => header.ident,
            _ => 0,
        },
        l3: l3 as u16,
        l4,
        end,
        transport_len: if fragment == Fragment::Whole { end - l4 } else { 0 },
        vlan: vlan(ethernet),
        ttl: ip.hop_limit(),
        signals: transport.signals,
        icmp_type: transport.icmp_type,
        fragment,
    });
    Ok(())
}

/// The identifier of the frame's tag, 0 without one.
#[inline(always)]
fn vlan(ethernet: &Ethernet<&[u8]>) -> u16 {
    #[cold]
    fn tagged(ethernet: &Ethernet<&[u8]>) -> u16 {
        ethernet.vlan().unwrap_or_default()
    }
    if ethernet.header_len() == ethernet::HEADER_LEN {
        0
    } else {
        tagged(ethernet)
    }
}

/// What a transport header tells.
#[derive(Clone, Copy, Default)]
struct Transport {
    ports: [Port; 2],
    signals: u8,
    icmp_type: u8,
}

impl Transport {
    const fn key<A: Address>(self, src: A, dst: A, protocol: Protocol) -> FlowKey<A> {
        FlowKey {
            src,
            dst,
            src_port: self.ports[0],
            dst_port: self.ports[1],
            protocol,
            zero: [0; 3],
        }
    }
}

/// The transport header that is there: of a whole packet, its lengths checked.
#[inline(always)]
fn transport<A: Ip>(payload: &[u8], protocol: Protocol, fragment: Fragment) -> Result<Transport, DropReason> {
    if fragment != Fragment::Whole {
        return Ok(fragment_transport::<A>(payload, protocol, fragment));
    }
    Ok(match protocol {
        Protocol::TCP => Tcp::new(payload)?.into(),
        Protocol::UDP => {
            let udp = Udp::new(payload)?;
            // CSM-1; RFC 8200 §8.1.
            if A::CHECKSUM.is_none() && udp.checksum() == 0 {
                return Err(DropReason::NoUdpChecksum);
            }
            udp.into()
        }
        Protocol::SCTP => Sctp::new(payload)?.into(),
        protocol if protocol == A::ICMP => Icmp::new(payload)?.into(),
        _ => Transport::default(),
    })
}

/// What a fragment tells: the first its transport header, if all of it is there. A header split over fragments is legal,
/// and the usual way to hide ports (RFC 1858): such a fragment has none.
#[cold]
fn fragment_transport<A: Ip>(payload: &[u8], protocol: Protocol, fragment: Fragment) -> Transport {
    if fragment == Fragment::Later {
        return Transport::default();
    }
    let learned = match protocol {
        Protocol::TCP => Tcp::partial(payload).map(Transport::from),
        Protocol::UDP => Udp::partial(payload).map(Transport::from),
        Protocol::SCTP => Sctp::partial(payload).map(Transport::from),
        protocol if protocol == A::ICMP => Icmp::partial(payload).map(Transport::from),
        _ => return Transport::default(),
    };
    // Nothing learned is all that its error means.
    learned.unwrap_or_default()
}

impl From<Tcp<&[u8]>> for Transport {
    #[inline(always)]
    fn from(tcp: Tcp<&[u8]>) -> Self {
        Self {
            ports: [tcp.src_port(), tcp.dst_port()],
            signals: tcp.flags(),
            ..Self::default()
        }
    }
}

impl From<Udp<&[u8]>> for Transport {
    #[inline(always)]
    fn from(udp: Udp<&[u8]>) -> Self {
        Self {
            ports: [udp.src_port(), udp.dst_port()],
            ..Self::default()
        }
    }
}

impl From<Sctp<&[u8]>> for Transport {
    #[inline(always)]
    fn from(sctp: Sctp<&[u8]>) -> Self {
        Self {
            ports: [sctp.src_port(), sctp.dst_port()],
            signals: sctp.chunks(),
            ..Self::default()
        }
    }
}

impl From<Icmp<&[u8]>> for Transport {
    #[inline(always)]
    fn from(icmp: Icmp<&[u8]>) -> Self {
        Self {
            icmp_type: icmp.icmp_type(),
            ..Self::default()
        }
    }
}

impl<A: Ip> Packet<A> {
    /// An ICMP error that follows the flow of the packet it quotes (ICM-1): `icmp_error::quoted` tells which. One in
    /// fragments is longer than any that is sent.
    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        // The type is 0 for other protocols, and 0 is no error.
        A::is_translated_error(self.icmp_type) && self.fragment == Fragment::Whole
    }

    /// An ICMP echo request (PING-1).
    #[inline(always)]
    pub fn is_echo_request(&self) -> bool {
        self.icmp_type == A::ECHO_REQUEST
    }
}

mod plain;

#[cfg(test)]
mod tests;
