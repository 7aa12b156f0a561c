//! Frames to test with, built by etherparse: somebody else's idea of what a right packet is.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice,
};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Sctp, checksum, ipv4, ipv6};
use crate::addr::{FlowKey, Mac, Port, Protocol, V4, V6};
use crate::parse::{Packet, Parsed, parse};

/// The station that frames are for.
pub(crate) const STATION: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// The station that sends them.
pub(crate) const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// What a frame is to carry.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) protocol: Protocol,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) ttl: u8,
    /// 32-bit words of IP options, at most 10; in IPv6 a header of destination options for any.
    pub(crate) ip_options: usize,
    /// 32-bit words of TCP options, at most 10.
    pub(crate) tcp_options: usize,
    pub(crate) payload: Vec<u8>,
}

impl Sample {
    /// A client's packet to a cluster IP.
    pub(crate) fn of(protocol: Protocol) -> Self {
        Self {
            protocol,
            src: "10.1.0.7:40000".parse().unwrap(),
            dst: "10.96.0.10:53".parse().unwrap(),
            ttl: 64,
            ip_options: 0,
            tcp_options: 0,
            payload: b"sluice".to_vec(),
        }
    }

    /// The same over IPv6.
    pub(crate) fn of_v6(protocol: Protocol) -> Self {
        Self {
            src: "[fd01::7]:40000".parse().unwrap(),
            dst: "[fd96::10]:53".parse().unwrap(),
            ..Self::of(protocol)
        }
    }

    fn ip(&self) -> IpHeaders {
        // Option kind 1 is "no operation" in IPv4, padding of one byte of content in IPv6.
        match (self.src, self.dst) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                let ip = Ipv4Header {
                    time_to_live: self.ttl,
                    source: src.ip().octets(),
                    destination: dst.ip().octets(),
                    options: Ipv4Options::try_from(&[1; 40][..4 * self.ip_options]).unwrap(),
                    ..Ipv4Header::default()
                };
                IpHeaders::Ipv4(ip, Default::default())
            }
            (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
                let ip = Ipv6Header {
                    hop_limit: self.ttl,
                    source: src.ip().octets(),
                    destination: dst.ip().octets(),
                    ..Ipv6Header::default()
                };
                let options = (self.ip_options > 0)
                    .then(|| Ipv6RawExtHeader::new_raw(IpNumber(0), &[1, 4, 0, 0, 0, 0]).unwrap());
                let extensions = Ipv6Extensions {
                    destination_options: options,
                    ..Ipv6Extensions::default()
                };
                IpHeaders::Ipv6(ip, extensions)
            }
            mixed => panic!("two families: {mixed:?}"),
        }
    }

    /// The frame: checksums right, ICMP an echo request, TCP a SYN, SCTP an INIT.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let options = [1; 40];
        let builder = PacketBuilder::ethernet2(PEER.0, STATION.0).ip(self.ip());
        let mut frame = Vec::new();
        let (src, dst) = (self.src.port(), self.dst.port());
        match self.protocol {
            Protocol::TCP => builder
                .tcp(src, dst, 7, 1024)
                .syn()
                .options_raw(&options[..4 * self.tcp_options])
                .unwrap()
                .write(&mut frame, &self.payload),
            Protocol::UDP => builder.udp(src, dst).write(&mut frame, &self.payload),
            Protocol::ICMP => builder
                .icmpv4_echo_request(src, dst)
                .write(&mut frame, &self.payload),
            Protocol::ICMPV6 => builder
                .icmpv6_echo_request(src, dst)
                .write(&mut frame, &self.payload),
            Protocol::SCTP => {
                let mut packet = vec![0; 12];
                packet.extend([1, 0, 0, 4]);
                packet.extend(&self.payload);
                let mut sctp = Sctp::new(&mut packet).unwrap();
                sctp.set_src_port(Port::new(src));
                sctp.set_dst_port(Port::new(dst));
                sctp.fill_checksum();
                builder.write(&mut frame, IpNumber(132), &packet)
            }
            other => builder.write(&mut frame, IpNumber(other.0), &self.payload),
        }
        .unwrap();
        frame
    }
}

/// A family that samples are made of.
pub(crate) trait Sampled: super::Ip {
    /// What `parse` proved about a frame of this family.
    fn packet(frame: &[u8]) -> Packet<Self>;

    /// An address from 16 random bytes that can send.
    fn host(random: u128) -> Self;

    /// An ICMP error "unreachable" that quotes these bytes.
    fn error(src: Self, dst: Self, quote: &[u8]) -> Vec<u8>;
}

impl Sampled for V4 {
    fn packet(frame: &[u8]) -> Packet<Self> {
        match parse(frame, STATION) {
            Parsed::Ipv4(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    fn host(random: u128) -> Self {
        let ip = Ipv4Addr::from(random as u32);
        if ipv4::can_send(ip) {
            ip.octets()
        } else {
            [10, 0, 0, 1]
        }
    }

    fn error(src: Self, dst: Self, quote: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(PEER.0, STATION.0).ipv4(src, dst, 64);
        let mut frame = Vec::new();
        builder.icmpv4_raw(3, 1, [0; 4]).write(&mut frame, quote).unwrap();
        frame
    }
}

impl Sampled for V6 {
    fn packet(frame: &[u8]) -> Packet<Self> {
        match parse(frame, STATION) {
            Parsed::Ipv6(packet) => packet,
            other => panic!("{other:?}"),
        }
    }

    fn host(random: u128) -> Self {
        let ip = Ipv6Addr::from(random);
        if ipv6::can_send(ip) && !ip.is_unicast_link_local() {
            ip.octets()
        } else {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets()
        }
    }

    fn error(src: Self, dst: Self, quote: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(PEER.0, STATION.0).ipv6(src, dst, 64);
        let mut frame = Vec::new();
        builder.icmpv6_raw(1, 0, [0; 4]).write(&mut frame, quote).unwrap();
        frame
    }
}

/// Any address that can send.
pub(crate) fn any_host<A: Sampled>() -> impl Strategy<Value = A> {
    any::<u128>().prop_map(A::host)
}

/// Any key of this protocol between hosts; ports zero where it has none.
pub(crate) fn any_key<A: Sampled>(protocol: Protocol) -> impl Strategy<Value = FlowKey<A>> {
    (any_host::<A>(), any_host::<A>(), any::<(u16, u16)>()).prop_map(move |(src, dst, ports)| {
        let ports = if protocol == A::ICMP { (0, 0) } else { ports };
        FlowKey::new(
            protocol,
            src.socket(Port::new(ports.0)),
            dst.socket(Port::new(ports.1)),
        )
    })
}

/// Any packet between addresses that can be a flow's.
pub(crate) fn any_sample_of<A: Sampled>() -> impl Strategy<Value = Sample> {
    let protocol = prop_oneof![
        Just(Protocol::TCP),
        Just(Protocol::UDP),
        Just(Protocol::SCTP),
        Just(A::ICMP)
    ];
    let options = (prop_oneof![4 => Just(0), 1 => 0usize..=10], 0usize..=10);
    let rest = (any::<u8>(), options, vec(any::<u8>(), 0..70));
    (protocol, any_key::<A>(Protocol::UDP), rest).prop_map(
        |(protocol, key, (ttl, (ip_options, tcp_options), payload))| Sample {
            protocol,
            src: key.source().into(),
            dst: key.destination().into(),
            ttl,
            ip_options,
            tcp_options,
            payload,
        },
    )
}

/// Any packet of either family.
pub(crate) fn any_sample() -> impl Strategy<Value = Sample> {
    prop_oneof![any_sample_of::<V4>(), any_sample_of::<V6>()]
}

prop_compose! {
    /// A packet with a few bytes changed, cut off anywhere, its IPv4 checksum right again: nearly every change of the
    /// header would end there otherwise.
    pub(crate) fn any_mutated_frame()(
        sample in any_sample(), edits in vec((0usize..120, any::<u8>()), 0..4), cut in 14usize..200,
        version in prop_oneof![9 => Just(None), 1 => any::<u8>().prop_map(Some)],
    ) -> Vec<u8> {
        let mut frame = sample.frame();
        for (at, value) in edits {
            let at = at % frame.len();
            frame[at] = value;
        }
        // The next header, now and then one that is walked through.
        if let (true, Some(kind)) = (sample.src.is_ipv6(), version) {
            frame[20] = [0, 43, 44, 60, kind][usize::from(kind % 5)];
        }
        if sample.src.is_ipv4() && 14 + usize::from(frame[14] & 0x0f) * 4 <= frame.len() {
            fix_ip_checksum(&mut frame);
        }
        frame.truncate(cut);
        frame
    }
}

/// Writes the IPv4 header checksum of an untagged frame anew, after a test changed the header.
pub(crate) fn fix_ip_checksum(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 0x0f) * 4;
    frame[24..26].fill(0);
    let right = !checksum::sum(&frame[14..end]);
    frame[24..26].copy_from_slice(&right.to_be_bytes());
}

/// Panics unless etherparse takes the frame and finds IP and transport checksums right.
pub(crate) fn assert_checksums_right(frame: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 header"
            );
            let (src, dst) = (header.source, header.destination);
            match sliced.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(src, dst).unwrap());
                }
                Some(TransportSlice::Udp(udp)) => {
                    let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
                    assert_eq!(udp.checksum(), right.unwrap());
                }
                Some(TransportSlice::Icmpv4(icmp)) => {
                    let right = icmp.icmp_type().calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), right);
                }
                _ => assert_sctp_right(ip.payload().ip_number, ip.payload().payload),
            }
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            let (src, dst) = (header.source, header.destination);
            match sliced.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).unwrap());
                }
                Some(TransportSlice::Udp(udp)) => {
                    let right = udp.to_header().calc_checksum_ipv6(&header, udp.payload());
                    assert_eq!(udp.checksum(), right.unwrap());
                }
                Some(TransportSlice::Icmpv6(icmp)) => assert!(icmp.is_checksum_valid(src, dst)),
                _ => assert_sctp_right(ip.payload().ip_number, ip.payload().payload),
            }
        }
        _ => panic!("no IP in {frame:02x?}"),
    }
}

/// etherparse leaves SCTP closed; the CRC is another crate's.
fn assert_sctp_right(protocol: IpNumber, packet: &[u8]) {
    assert_eq!(protocol, IpNumber(132), "unexpected transport");
    assert!(Sctp::new(packet).unwrap().checksum_ok(), "SCTP");
}
