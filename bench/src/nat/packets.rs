//! Packets of flows, made by patching a template: which flow, which way, which TCP flags. Checksums are right, and made
//! here from scratch, so that a gateway that gets them wrong is not forgiven by its own arithmetic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_dataplane::addr::{Mac, Protocol};

use crate::gateway::{PORT, Setup};

/// Station address of whoever sends to the gateway.
const SENDER: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// TCP flags (RFC 9293 §3.1).
pub(super) mod flags {
    pub(in crate::nat) const FIN: u8 = 1;
    pub(in crate::nat) const SYN: u8 = 2;
    pub(in crate::nat) const ACK: u8 = 16;
}

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) src: (IpAddr, u16),
    pub(super) dst: (IpAddr, u16),
}

impl Tuple {
    pub(super) const fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
        }
    }
}

/// The tuple of a flow's client and Service: 60,000 ports per client address, the Services in turn.
pub(super) fn tuple(setup: &Setup, flow: usize) -> Tuple {
    let (host, port) = ((flow / 60_000) as u32, 2_000 + (flow % 60_000) as u16);
    let client: IpAddr = if setup.v6 {
        Ipv6Addr::from((0xfd18 << 112) + u128::from(host) + 1).into()
    } else {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + host).into()
    };
    Tuple {
        src: (client, port),
        dst: (setup.frontend((flow % setup.services as usize) as u32), PORT),
    }
}

/// Least length of a frame for a Service's packets, without the FCS that no ring carries.
pub(super) const fn least(setup: &Setup) -> usize {
    match (setup.v6, setup.protocol) {
        (true, Protocol::TCP) => 14 + 40 + 20 + 4,
        (true, _) => 14 + 40 + 8 + 4,
        // A 64-byte frame of the wire.
        (false, _) => 60,
    }
}

/// Writes a packet of `tuple`, of a protocol to a station, over all of `frame`, the mark into its last bytes: packets of new flows may be
/// overtaken by others.
pub(super) fn write(
    frame: &mut [u8],
    (station, protocol): (Mac, Protocol),
    tuple: Tuple,
    tcp_flags: u8,
    mark: u32,
) {
    let (ip, len) = (14, frame.len() - 14);
    if let Some(last) = frame.last_chunk_mut() {
        *last = mark.to_be_bytes();
    }
    frame[..6].copy_from_slice(&station.0);
    frame[6..12].copy_from_slice(&SENDER.0);
    let l4 = match (tuple.src.0, tuple.dst.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            frame[ip] = 0x45;
            frame[ip + 2..ip + 4].copy_from_slice(&(len as u16).to_be_bytes());
            frame[ip + 8] = 64;
            frame[ip + 9] = protocol.0;
            frame[ip + 12..ip + 16].copy_from_slice(&src.octets());
            frame[ip + 16..ip + 20].copy_from_slice(&dst.octets());
            let sum = fold(sum(&frame[ip..ip + 20]));
            frame[ip + 10..ip + 12].copy_from_slice(&(!sum).to_be_bytes());
            ip + 20
        }
        (src, dst) => {
            let octets = |address| match address {
                IpAddr::V6(v6) => v6.octets(),
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            };
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[ip] = 0x60;
            frame[ip + 4..ip + 6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
            frame[ip + 6] = protocol.0;
            frame[ip + 7] = 64;
            frame[ip + 8..ip + 24].copy_from_slice(&octets(src));
            frame[ip + 24..ip + 40].copy_from_slice(&octets(dst));
            ip + 40
        }
    };
    frame[l4..l4 + 2].copy_from_slice(&tuple.src.1.to_be_bytes());
    frame[l4 + 2..l4 + 4].copy_from_slice(&tuple.dst.1.to_be_bytes());
    let segment = (frame.len() - l4) as u16;
    let checksum_at = if protocol == Protocol::TCP {
        frame[l4 + 12] = 5 << 4;
        frame[l4 + 13] = tcp_flags;
        l4 + 16
    } else {
        frame[l4 + 4..l4 + 6].copy_from_slice(&segment.to_be_bytes());
        l4 + 6
    };
    let addresses = if l4 == ip + 20 {
        ip + 12..ip + 20
    } else {
        ip + 8..ip + 40
    };
    let pseudo = sum(&frame[addresses]) + u32::from(protocol.0) + u32::from(segment);
    let checksum = !fold(pseudo + sum(&frame[l4..]));
    // A computed zero is sent as all ones (RFC 768).
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    frame[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// RFC 1071, two bytes at a time; frames are short enough for 32 bits.
fn sum(bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let whole: u32 = pairs
        .iter()
        .map(|&pair| u32::from(u16::from_be_bytes(pair)))
        .sum();
    whole + rest.first().map_or(0, |&last| u32::from(last) << 8)
}

const fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The mark of a packet.
pub(super) fn mark(frame: &[u8]) -> usize {
    frame.last_chunk().map_or(0, |&last| u32::from_be_bytes(last)) as usize
}
