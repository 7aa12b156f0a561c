//! Judges packets that left, with etherparse: every header whole, every checksum right, every address and port as it must
//! be.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::packets::{self, Tuple};
use crate::treadmill::Packets;

type Wrong = Box<dyn std::error::Error>;

/// Packets by their marks, from 0 on: each once, or it was lost or doubled.
pub(super) fn in_order(sent: &Packets) -> Result<Vec<&[u8]>, Wrong> {
    let mut sorted: Vec<&[u8]> = sent.iter().collect();
    sorted.sort_by_key(|packet| packets::mark(packet));
    match sorted
        .iter()
        .enumerate()
        .find(|(i, packet)| packets::mark(packet) != *i)
    {
        Some((i, _)) => Err(format!("packet {i} of a round did not come out, or twice").into()),
        None => Ok(sorted),
    }
}

/// The tuple of a packet whose checksums are right. Errors: what is wrong with it.
pub(super) fn tuple(frame: &[u8]) -> Result<Tuple, Wrong> {
    let sliced = SlicedPacket::from_ethernet(frame)?;
    let (src, dst, ip_ok): (IpAddr, IpAddr, bool) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            let right = header.calc_header_checksum() == header.header_checksum && header.time_to_live == 63;
            (header.source.into(), header.destination.into(), right)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let addresses = (header.source_addr().into(), header.destination_addr().into());
            (addresses.0, addresses.1, header.hop_limit() == 63)
        }
        _ => return Err("not IP".into()),
    };
    let (ports, right) = match (&sliced.transport, src, dst) {
        (Some(TransportSlice::Udp(udp)), _, _) => {
            let header = udp.to_header();
            let payload = udp.payload();
            let sum = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)?
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)?
                }
                _ => return Err("two families".into()),
            };
            (
                (header.source_port, header.destination_port),
                sum == header.checksum,
            )
        }
        (Some(TransportSlice::Tcp(tcp)), _, _) => {
            let sum = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => tcp.calc_checksum_ipv4(src.octets(), dst.octets())?,
                (IpAddr::V6(src), IpAddr::V6(dst)) => tcp.calc_checksum_ipv6(src.octets(), dst.octets())?,
                _ => return Err("two families".into()),
            };
            ((tcp.source_port(), tcp.destination_port()), sum == tcp.checksum())
        }
        _ => return Err("neither UDP nor TCP".into()),
    };
    if !(ip_ok && right) {
        return Err("a wrong checksum, or not one hop less".into());
    }
    Ok(Tuple {
        src: (src, ports.0),
        dst: (dst, ports.1),
    })
}

/// That a packet of `before` left toward an endpoint of its Service, its source kept or ours.
pub(super) fn toward_endpoint(
    before: Tuple,
    after: Tuple,
    endpoints: impl Fn(IpAddr) -> bool,
    keep_source: bool,
) -> Result<(), Wrong> {
    if (before.src == after.src) != keep_source {
        return Err("source translated although it must be kept, or the reverse".into());
    }
    if !endpoints(after.dst.0) || after.dst.1 != before.dst.1 {
        return Err(format!("{:?} is no endpoint of {:?}", after.dst, before.dst).into());
    }
    Ok(())
}
