//! Takes  a frame's bytes.                  Gives  a `Packet`: offsets proven in bounds, and the flow key.
//! Drops  Truncated, BadIpHeader, BadIpChecksum, BadTransportHeader, BadSource, …
//! Never  reads a clock, a table or a counter; never allocates; never trusts a length field.
//! Next   `lookup`.

use crate::addr::{FlowKey, Mac, Protocol};
use crate::verdict::DropReason;
use crate::wire::{EtherType, Ethernet, Icmp, Ipv4, Tcp, Udp, ipv4};

/// What `parse` proved about a frame. All offsets are from the Ethernet header and in bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The packet's key; ports are zero where the protocol has none or a fragment hides them.
    pub key: FlowKey,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset just past the IP packet (its total length; padding of the frame comes after).
    pub end: u16,
    /// Time to live as received.
    pub ttl: u8,
    /// TCP flags byte (RFC 9293 §3.1), 0 for other protocols.
    pub tcp_flags: u8,
    /// ICMP type, 0 for other protocols.
    pub icmp_type: u8,
    /// Set for every fragment, first or later.
    pub fragment: Fragment,
}

/// Whether the IP packet is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
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
    Ipv4(Packet),
    /// ARP: the steward's.
    Arp,
    /// Not IPv4 for this station (IPv6, multicast, unknown EtherType): the host's, where there is a host port.
    Other(DropReason),
    /// Broken.
    Drop(DropReason),
}

/// What `frame` is, received in exclusive mode by the NIC port whose address is `station`. ICMP and protocols other than
/// TCP and UDP have zero ports.
#[inline]
pub fn parse(frame: &[u8], station: Mac) -> Parsed {
    inspect(frame, station).unwrap_or_else(Parsed::Drop)
}

#[inline(always)]
fn inspect(frame: &[u8], station: Mac) -> Result<Parsed, DropReason> {
    let ethernet = Ethernet::new(frame)?;
    let dst = ethernet.dst();
    if dst != station && !dst.is_group() {
        return Err(DropReason::NotForUs);
    }
    // No VLANs on a NIC port yet: what is tagged belongs to another network than the port's own.
    if ethernet.vlan().is_some() {
        return Ok(Parsed::Other(DropReason::UnknownEtherType));
    }
    match ethernet.ether_type() {
        EtherType::IPV4 => inspect_ipv4(&ethernet),
        EtherType::ARP => Ok(Parsed::Arp),
        _ => Ok(Parsed::Other(DropReason::UnknownEtherType)),
    }
}

#[inline(always)]
fn inspect_ipv4(ethernet: &Ethernet<&[u8]>) -> Result<Parsed, DropReason> {
    let ip = Ipv4::new(ethernet.payload())?;
    if !ip.checksum_ok() {
        return Err(DropReason::BadIpChecksum);
    }
    // Before the source: DHCP and IGMP come from 0.0.0.0, and are the host's to judge. A unicast packet in a group
    // frame reached every gateway of the segment and must not be forwarded by each (RFC 1812 §5.3.4).
    if ipv4::is_group(ip.dst()) || ethernet.dst().is_group() {
        return Ok(Parsed::Other(DropReason::Multicast));
    }
    if !ipv4::can_send(ip.src()) {
        return Err(DropReason::BadSource);
    }
    let l3 = ethernet.header_len();
    // No frame memory holds so long a frame; a test's slice may.
    let end = u16::try_from(l3 + usize::from(ip.total_len())).map_err(|_| DropReason::TooBig)?;
    let mut packet = Packet {
        key: FlowKey {
            src: ip.src().octets(),
            dst: ip.dst().octets(),
            protocol: ip.protocol(),
            ..FlowKey::default()
        },
        // At most 18 and 78.
        l3: l3 as u16,
        l4: (l3 + ip.header_len()) as u16,
        end,
        ttl: ip.ttl(),
        fragment: match (ip.fragment_offset(), ip.more_fragments()) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        },
        ..Packet::default()
    };
    match packet.fragment {
        Fragment::Whole => inspect_whole(ip.payload(), &mut packet)?,
        Fragment::First => inspect_first(ip.payload(), &mut packet),
        Fragment::Later => {}
    }
    Ok(Parsed::Ipv4(packet))
}

/// The transport header of a whole packet, its lengths checked.
#[inline(always)]
fn inspect_whole(payload: &[u8], packet: &mut Packet) -> Result<(), DropReason> {
    match packet.key.protocol {
        Protocol::TCP => packet.learn_tcp(&Tcp::new(payload)?),
        Protocol::UDP => packet.learn_udp(&Udp::new(payload)?),
        Protocol::ICMP => packet.icmp_type = Icmp::new(payload)?.icmp_type(),
        _ => {}
    }
    Ok(())
}

/// The transport header of a first fragment, if all of it is there. A header split over fragments is legal, and the
/// usual way to hide ports (RFC 1858): such a fragment has none.
#[cold]
fn inspect_first(payload: &[u8], packet: &mut Packet) {
    match packet.key.protocol {
        Protocol::TCP => drop(Tcp::partial(payload).map(|tcp| packet.learn_tcp(&tcp))),
        Protocol::UDP => drop(Udp::partial(payload).map(|udp| packet.learn_udp(&udp))),
        Protocol::ICMP => drop(Icmp::partial(payload).map(|icmp| packet.icmp_type = icmp.icmp_type())),
        _ => {}
    }
}

impl Packet {
    #[inline(always)]
    fn learn_tcp(&mut self, tcp: &Tcp<&[u8]>) {
        self.key.src_port = tcp.src_port();
        self.key.dst_port = tcp.dst_port();
        self.tcp_flags = tcp.flags();
    }

    #[inline(always)]
    fn learn_udp(&mut self, udp: &Udp<&[u8]>) {
        self.key.src_port = udp.src_port();
        self.key.dst_port = udp.dst_port();
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::addr::Port;
    use crate::wire::samples::{STATION, Sample, any_mutated_frame, any_sample, fix_ip_checksum};

    /// A UDP frame with one byte of its IP header changed and the header's checksum made right again.
    fn udp_with(at: usize, value: u8) -> Vec<u8> {
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[at] = value;
        fix_ip_checksum(&mut frame);
        frame
    }

    fn packet(frame: &[u8]) -> Packet {
        match parse(frame, STATION) {
            Parsed::Ipv4(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    /// Every field that both find must be equal; etherparse looks into no MAC address, checksum or address kind, so it
    /// accepts more, and it stops at lengths where `parse` must have stopped, too.
    fn assert_agrees_with_etherparse(frame: &[u8]) {
        let Parsed::Ipv4(packet) = parse(frame, STATION) else {
            return;
        };
        let offset = |part: &[u8]| (part.as_ptr().addr() - frame.as_ptr().addr()) as u16;
        let Ok(theirs) = SlicedPacket::from_ethernet(frame) else {
            // It looks into what `parse` leaves closed: AH, IGMP, the length of ICMP timestamps (types 13 and 14).
            let looked_into = match packet.key.protocol {
                Protocol::TCP | Protocol::UDP => true,
                Protocol::ICMP => !matches!(packet.icmp_type, 13 | 14),
                _ => false,
            };
            assert!(!looked_into, "only we accept {packet:?}");
            return;
        };
        let Some(NetSlice::Ipv4(ip)) = theirs.net else {
            panic!("not IPv4: {packet:?}")
        };
        let header = ip.header();
        assert_eq!(
            (packet.key.src, packet.key.dst),
            (header.source(), header.destination())
        );
        assert_eq!(
            (packet.key.protocol.0, packet.ttl),
            (header.protocol().0, header.ttl())
        );
        assert_eq!(packet.l3, offset(header.slice()));
        assert_eq!(packet.l4, packet.l3 + header.slice().len() as u16);
        assert_eq!(packet.end, packet.l3 + header.total_len());
        assert_eq!(
            packet.fragment != Fragment::Whole,
            header.is_fragmenting_payload()
        );
        let ports = (packet.key.src_port.number(), packet.key.dst_port.number());
        match theirs.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
                assert_eq!(packet.tcp_flags, tcp.slice()[13]);
                assert_eq!(packet.l4, offset(tcp.slice()));
            }
            Some(TransportSlice::Udp(udp)) => {
                assert_eq!(ports, (udp.source_port(), udp.destination_port()));
                assert_eq!(packet.l4, offset(udp.slice()));
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                assert_eq!((ports, packet.icmp_type), ((0, 0), icmp.type_u8()));
                assert_eq!(packet.l4, offset(icmp.slice()));
            }
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn every_valid_packet_is_accepted_and_read_as_etherparse_reads_it(
            sample in any_sample(), padding in vec(any::<u8>(), 0..20),
        ) {
            let mut frame = sample.frame();
            let end = frame.len();
            frame.extend(padding);
            prop_assert_eq!(usize::from(packet(&frame).end), end);
            assert_agrees_with_etherparse(&frame);
        }

        #[test]
        fn no_mutation_of_a_packet_panics_or_reads_otherwise_than_by_etherparse(frame in any_mutated_frame()) {
            assert_agrees_with_etherparse(&frame);
        }

        #[test]
        fn no_bytes_at_all_panic(bytes in vec(any::<u8>(), 0..100), ipv4_for_us in any::<bool>()) {
            let mut frame = bytes;
            if ipv4_for_us && frame.len() > 14 {
                frame[..6].copy_from_slice(&STATION.0);
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            }
            assert_agrees_with_etherparse(&frame);
        }
    }

    #[test]
    fn frames_for_other_stations_are_dropped_and_what_is_not_ipv4_is_the_hosts() {
        let frame = Sample::of(Protocol::UDP).frame();
        assert_eq!(
            parse(&frame, Mac([2, 0, 0, 0, 0, 9])),
            Parsed::Drop(DropReason::NotForUs)
        );
        assert_eq!(parse(&frame[..13], STATION), Parsed::Drop(DropReason::Truncated));
        let with_type = |ether_type: [u8; 2]| {
            let mut frame = frame.clone();
            frame[12..14].copy_from_slice(&ether_type);
            parse(&frame, STATION)
        };
        assert_eq!(with_type([8, 6]), Parsed::Arp);
        assert_eq!(
            with_type([0x86, 0xdd]),
            Parsed::Other(DropReason::UnknownEtherType)
        );
        assert_eq!(with_type([0x81, 0]), Parsed::Other(DropReason::UnknownEtherType));
    }

    #[test]
    fn a_broken_ip_header_is_dropped_by_its_own_name() {
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[24] ^= 1;
        assert_eq!(parse(&frame, STATION), Parsed::Drop(DropReason::BadIpChecksum));
        for (at, value) in [(14, 0x55), (14, 0x44), (14, 0x4f), (17, 19), (17, 200)] {
            let mut frame = Sample::of(Protocol::UDP).frame();
            frame[at] = value;
            assert_eq!(
                parse(&frame, STATION),
                Parsed::Drop(DropReason::BadIpHeader),
                "byte {at} is {value}"
            );
        }
        assert_eq!(parse(&frame[..33], STATION), Parsed::Drop(DropReason::Truncated));
    }

    #[test]
    fn addresses_that_cannot_send_or_name_many_receivers_are_told_apart() {
        let between = |src: [u8; 4], dst: [u8; 4]| {
            let mut frame = Sample::of(Protocol::UDP).frame();
            frame[26..30].copy_from_slice(&src);
            frame[30..34].copy_from_slice(&dst);
            fix_ip_checksum(&mut frame);
            parse(&frame, STATION)
        };
        for src in [
            [224, 0, 0, 1],
            [239, 1, 1, 1],
            [255, 255, 255, 255],
            [127, 0, 0, 1],
            [0, 0, 0, 0],
        ] {
            assert_eq!(
                between(src, [10, 0, 0, 1]),
                Parsed::Drop(DropReason::BadSource),
                "{src:?}"
            );
        }
        for dst in [[224, 0, 0, 1], [239, 1, 1, 1], [255, 255, 255, 255]] {
            assert_eq!(
                between([10, 0, 0, 1], dst),
                Parsed::Other(DropReason::Multicast),
                "{dst:?}"
            );
        }
        // DHCP's first message is the host's.
        assert_eq!(between([0; 4], [255; 4]), Parsed::Other(DropReason::Multicast));
    }

    #[test]
    fn a_unicast_packet_in_a_broadcast_frame_is_not_forwarded() {
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[..6].copy_from_slice(&Mac::BROADCAST.0);
        assert_eq!(parse(&frame, STATION), Parsed::Other(DropReason::Multicast));
    }

    #[test]
    fn transport_lengths_past_the_packet_are_dropped_even_where_padding_would_cover_them() {
        let mut udp = Sample::of(Protocol::UDP).frame();
        udp.extend([0; 20]);
        for (len, sound) in [(7, false), (8, true), (14, true), (15, false)] {
            udp[39] = len;
            let parsed = parse(&udp, STATION);
            assert_eq!(matches!(parsed, Parsed::Ipv4(_)), sound, "UDP length {len}");
            assert!(sound || parsed == Parsed::Drop(DropReason::BadTransportHeader));
        }
        let mut tcp = Sample::of(Protocol::TCP).frame();
        tcp.extend([0; 20]);
        for (words, sound) in [(4, false), (5, true), (6, true), (7, false)] {
            tcp[46] = words << 4;
            let parsed = parse(&tcp, STATION);
            assert_eq!(matches!(parsed, Parsed::Ipv4(_)), sound, "TCP offset {words}");
            assert!(sound || parsed == Parsed::Drop(DropReason::BadTransportHeader));
        }
    }

    #[test]
    fn a_first_fragment_has_ports_if_its_header_is_whole_and_later_ones_have_none() {
        // FRG-1. Flags and offset are bytes 20 and 21.
        let first = packet(&udp_with(20, 0x20));
        assert_eq!(
            (first.fragment, first.key.dst_port),
            (Fragment::First, Port::new(53))
        );
        let later = packet(&udp_with(21, 1));
        assert_eq!(
            (later.fragment, later.key.dst_port),
            (Fragment::Later, Port::new(0))
        );

        let mut tcp = Sample::of(Protocol::TCP).frame();
        tcp[20] = 0x20;
        fix_ip_checksum(&mut tcp);
        assert_eq!(packet(&tcp).tcp_flags, crate::wire::tcp::SYN);
        // Cut to 8 bytes of TCP header (RFC 1858).
        tcp[17] = 28;
        fix_ip_checksum(&mut tcp);
        let tiny = packet(&tcp);
        assert_eq!(
            (tiny.fragment, tiny.key.dst_port, tiny.tcp_flags),
            (Fragment::First, Port::new(0), 0)
        );
    }

    #[test]
    fn a_first_fragment_may_announce_more_than_it_has() {
        let mut frame = udp_with(20, 0x20);
        frame[38..40].copy_from_slice(&3000u16.to_be_bytes());
        assert_eq!(packet(&frame).key.src_port, Port::new(40_000));
    }
}
