//! Frames to test with, built by etherparse: somebody else's idea of what a right packet is.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{IpHeaders, Ipv4Header, Ipv4Options, PacketBuilder, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{checksum, ipv4};
use crate::addr::{Mac, Protocol};

/// The station that frames are for.
pub(crate) const STATION: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// The station that sends them.
pub(crate) const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// What a frame is to carry.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) protocol: Protocol,
    pub(crate) src: SocketAddrV4,
    pub(crate) dst: SocketAddrV4,
    pub(crate) ttl: u8,
    /// 32-bit words of IP options, at most 10.
    pub(crate) ip_options: usize,
    /// 32-bit words of TCP options, at most 10.
    pub(crate) tcp_options: usize,
    pub(crate) payload: Vec<u8>,
}

impl Sample {
    /// A client's packet to a cluster IP.
    pub(crate) fn of(protocol: Protocol) -> Self {
        let src = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 7), 40_000);
        let dst = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 53);
        Self {
            protocol,
            src,
            dst,
            ttl: 64,
            ip_options: 0,
            tcp_options: 0,
            payload: b"sluice".to_vec(),
        }
    }

    /// The frame: checksums right, ICMP an echo request, TCP a SYN.
    pub(crate) fn frame(&self) -> Vec<u8> {
        // Option kind 1 is "no operation" in both IP and TCP.
        let options = [1; 40];
        let ip = Ipv4Header {
            time_to_live: self.ttl,
            source: self.src.ip().octets(),
            destination: self.dst.ip().octets(),
            options: Ipv4Options::try_from(&options[..4 * self.ip_options]).unwrap(),
            ..Ipv4Header::default()
        };
        let builder = PacketBuilder::ethernet2(PEER.0, STATION.0).ip(IpHeaders::Ipv4(ip, Default::default()));
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
            other => builder.write(&mut frame, etherparse::IpNumber(other.0), &self.payload),
        }
        .unwrap();
        frame
    }
}

prop_compose! {
    /// Any packet between addresses that can be a flow's.
    pub(crate) fn any_sample()(
        protocol in prop_oneof![Just(Protocol::TCP), Just(Protocol::UDP), Just(Protocol::ICMP)],
        src in any_host(), dst in any_host(), ports in any::<(u16, u16)>(), ttl in any::<u8>(),
        ip_options in prop_oneof![4 => Just(0), 1 => 0usize..=10], tcp_options in 0usize..=10,
        payload in vec(any::<u8>(), 0..70),
    ) -> Sample {
        let (src, dst) = (SocketAddrV4::new(src, ports.0), SocketAddrV4::new(dst, ports.1));
        Sample { protocol, src, dst, ttl, ip_options, tcp_options, payload }
    }
}

prop_compose! {
    /// A packet with a few bytes changed, cut off anywhere, its IPv4 checksum right again: nearly every change of the
    /// header would end there otherwise.
    pub(crate) fn any_mutated_frame()(
        sample in any_sample(), edits in vec((0usize..80, any::<u8>()), 0..4), cut in 14usize..200,
    ) -> Vec<u8> {
        let mut frame = sample.frame();
        for (at, value) in edits {
            let at = at % frame.len();
            frame[at] = value;
        }
        if 14 + usize::from(frame[14] & 0x0f) * 4 <= frame.len() {
            fix_ip_checksum(&mut frame);
        }
        frame.truncate(cut);
        frame
    }
}

/// Any address that can send.
pub(crate) fn any_host() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>()
        .prop_map(Ipv4Addr::from)
        .prop_filter("a host's", |ip| ipv4::can_send(*ip))
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
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else {
        panic!("no IPv4 in {frame:02x?}")
    };
    let header = ip.header().to_header();
    assert_eq!(
        header.header_checksum,
        header.calc_header_checksum(),
        "IPv4 header"
    );
    match sliced.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let right = tcp.calc_checksum_ipv4(header.source, header.destination).unwrap();
            assert_eq!(tcp.checksum(), right, "TCP");
        }
        TransportSlice::Udp(udp) => {
            let right = udp
                .to_header()
                .calc_checksum_ipv4(&header, udp.payload())
                .unwrap();
            assert_eq!(udp.checksum(), right, "UDP");
        }
        TransportSlice::Icmpv4(icmp) => {
            assert_eq!(
                icmp.checksum(),
                icmp.icmp_type().calc_checksum(icmp.payload()),
                "ICMP"
            );
        }
        other => panic!("unexpected transport {other:?}"),
    }
}
