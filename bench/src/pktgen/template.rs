//! Frames made once, by etherparse, and patched for each packet: addresses, ports, numbers, stamp and the checksums that
//! change with them.

use std::net::IpAddr;

use etherparse::{PacketBuilder, PacketBuilderStep, TcpOptionElement};
use sluice_dataplane::addr::Mac;

use super::layout::{Family, IP, IP_CHECKSUM, l4};
use super::stamp::{self, Stamp};
use super::world::Socket;

/// TCP's flags (RFC 9293 §3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// The sender's first number.
    pub const SYN: u8 = 2;
    /// The connection is no more.
    pub const RST: u8 = 4;
    /// To be handed up now.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// Longest frame of a link with an MTU of 1,500, FCS included.
pub const MAX_FRAME: usize = 1_518;

/// Sums 16-bit words, without folding (RFC 1071 §2): enough bits for any frame.
#[inline]
pub fn words(bytes: &[u8]) -> u64 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let sum: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    sum + last.first().map_or(0, |byte| u64::from(*byte) << 8)
}

/// The one's complement sum of what `words` gave, 0xffff for a range whose checksum is right.
#[inline]
pub const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The pseudo-header's words: both addresses from the frame, protocol, length (RFC 9293 §3.1, RFC 8200 §8.1).
#[inline]
pub fn pseudo(family: Family, frame: &[u8], l4_len: usize) -> u64 {
    words(&frame[family.addresses()]) + u64::from(frame[family.protocol()]) + l4_len as u64
}

/// A frame to be patched.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    family: Family,
    /// Sum of the IPv4 header, and of the rest with the pseudo-header, all without what is patched.
    ip: u64,
    l4: u64,
}

impl Template {
    /// A UDP datagram in a frame of `size` bytes with its FCS, `min_udp_frame` to 1,518.
    pub fn udp(family: Family, from: Mac, to: Mac, size: usize) -> Self {
        let size = size.clamp(family.min_udp_frame(), MAX_FRAME);
        let payload = payload(size - 4 - family.l4() - l4::UDP_PAYLOAD);
        let mut bytes = Vec::with_capacity(size);
        // Writing to a Vec cannot fail but for a length that does not fit its field: clamped above.
        let _ = ip(family, from, to).udp(0, 0).write(&mut bytes, &payload);
        Self::of(family, bytes, l4::UDP_CHECKSUM)
    }

    /// A TCP segment with time stamps; `size` as before, if it has data, from `min_tcp_frame` on.
    pub fn tcp(family: Family, from: Mac, to: Mac, data: Option<usize>) -> Self {
        let payload = payload(data.map_or(0, |size| {
            size.clamp(family.min_tcp_frame(), MAX_FRAME) - 4 - family.l4() - l4::TCP_PAYLOAD
        }));
        let options = [
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(0, 0),
        ];
        let mut bytes = Vec::with_capacity(MAX_FRAME);
        if let Ok(builder) = ip(family, from, to).tcp(0, 0, 0, 65_000).options(&options) {
            let _ = builder.write(&mut bytes, &payload);
        }
        Self::of(family, bytes, l4::TCP_CHECKSUM)
    }

    fn of(family: Family, mut bytes: Vec<u8>, checksum: usize) -> Self {
        let at = family.l4();
        if family == Family::V4 {
            bytes[IP_CHECKSUM..IP_CHECKSUM + 2].fill(0);
        }
        bytes[at + checksum..at + checksum + 2].fill(0);
        let ip = words(&bytes[IP..at]);
        let l4 = pseudo(family, &bytes, bytes.len() - at) + words(&bytes[at..]);
        Self {
            bytes,
            family,
            ip,
            l4,
        }
    }

    /// Bytes of the frame without FCS.
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of data behind the TCP header.
    pub const fn tcp_payload(&self) -> usize {
        self.bytes.len() - self.family.l4() - l4::TCP_PAYLOAD
    }

    /// Writes the addresses into a frame that holds the template, and gives their words. The addresses' family is the
    /// template's.
    #[inline]
    fn address(&self, frame: &mut [u8], from: Socket, to: Socket) -> u64 {
        frame.copy_from_slice(&self.bytes);
        let addresses = self.family.addresses();
        let (source, destination) = frame[addresses.clone()].split_at_mut(addresses.len() / 2);
        put_address(source, from.0);
        put_address(destination, to.0);
        let at = self.family.l4();
        frame[at..at + 2].copy_from_slice(&from.1.to_be_bytes());
        frame[at + 2..at + 4].copy_from_slice(&to.1.to_be_bytes());
        let addresses = words(&frame[addresses]);
        if self.family == Family::V4 {
            let checksum = !fold(self.ip + addresses);
            frame[IP_CHECKSUM..IP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        addresses + u64::from(from.1) + u64::from(to.1)
    }

    /// A datagram; `frame` has the template's length.
    #[inline]
    pub fn write_udp(&self, frame: &mut [u8], from: Socket, to: Socket, stamp: Stamp) {
        let sum = self.address(frame, from, to);
        let stamp = stamp.write();
        let datagram = &mut frame[self.family.l4()..];
        datagram[l4::UDP_PAYLOAD..l4::UDP_PAYLOAD + stamp::LEN].copy_from_slice(&stamp);
        let checksum = match !fold(self.l4 + sum + words(&stamp)) {
            // Zero would say that there is none (RFC 768).
            0 => 0xffff,
            checksum => checksum,
        };
        datagram[l4::UDP_CHECKSUM..l4::UDP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// A segment; `frame` has the template's length. The stamp is for one with data.
    #[inline]
    pub fn write_tcp(&self, frame: &mut [u8], from: Socket, to: Socket, segment: Segment, stamp: Stamp) {
        self.address(frame, from, to);
        let end = frame.len();
        let (_, header) = frame.split_at_mut(self.family.l4());
        segment.put(header);
        if let Some(payload) = header.get_mut(l4::TCP_PAYLOAD..l4::TCP_PAYLOAD + stamp::LEN) {
            payload.copy_from_slice(&stamp.write());
        }
        seal_tcp(self.family, frame, end);
    }
}

fn ip(family: Family, from: Mac, to: Mac) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(from.0, to.0);
    match family {
        Family::V4 => ethernet.ipv4([0; 4], [0; 4], 64),
        Family::V6 => ethernet.ipv6([0; 16], [0; 16], 64),
    }
}

/// Room for a stamp, and what is known behind it.
fn payload(len: usize) -> Vec<u8> {
    let byte = |place| {
        if place < stamp::LEN {
            0
        } else {
            stamp::filler(place)
        }
    };
    (0..len).map(byte).collect()
}

#[inline]
fn put_address(place: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(v4) => place.copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => place.copy_from_slice(&v6.octets()),
    }
}

/// The part of a TCP header that a connection's state is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledges: u32,
    /// See `flag`.
    pub flags: u8,
    /// TSval and TSecr.
    pub times: [u32; 2],
}

impl Segment {
    /// From a TCP segment with time stamps; `None` if it has none where ours have them.
    #[inline]
    pub fn get(segment: &[u8]) -> Option<Self> {
        let header = segment.get(..l4::TCP_PAYLOAD)?;
        // 32 bytes of header; two no-operations, kind 8, length 10 (RFC 7323 appendix A).
        if header[12] >> 4 != 8 || header[20..24] != [1, 1, 8, 10] {
            return None;
        }
        let word = |place: usize| {
            u32::from_be_bytes([
                header[place],
                header[place + 1],
                header[place + 2],
                header[place + 3],
            ])
        };
        Some(Self {
            sequence: word(l4::SEQUENCE),
            acknowledges: word(l4::SEQUENCE + 4),
            flags: header[l4::FLAGS],
            times: [word(l4::TIMES), word(l4::TIMES + 4)],
        })
    }

    /// Into a segment with time stamps; its checksum is to be made after.
    #[inline]
    pub fn put(self, segment: &mut [u8]) {
        segment[l4::SEQUENCE..l4::SEQUENCE + 4].copy_from_slice(&self.sequence.to_be_bytes());
        segment[l4::SEQUENCE + 4..l4::SEQUENCE + 8].copy_from_slice(&self.acknowledges.to_be_bytes());
        segment[l4::FLAGS] = self.flags;
        segment[l4::TIMES..l4::TIMES + 4].copy_from_slice(&self.times[0].to_be_bytes());
        segment[l4::TIMES + 4..l4::TIMES + 8].copy_from_slice(&self.times[1].to_be_bytes());
    }
}

/// Makes the checksum of a TCP segment that goes to `end` in a frame.
#[inline]
pub fn seal_tcp(family: Family, frame: &mut [u8], end: usize) {
    let at = family.l4();
    frame[at + l4::TCP_CHECKSUM..at + l4::TCP_CHECKSUM + 2].fill(0);
    let checksum = !fold(pseudo(family, frame, end - at) + words(&frame[at..end]));
    frame[at + l4::TCP_CHECKSUM..at + l4::TCP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn sockets(family: Family) -> (Socket, Socket) {
        let (from, to) = match family {
            Family::V4 => ("198.18.0.1", "10.96.0.10"),
            Family::V6 => ("2001:2::1", "fd96::10"),
        };
        ((from.parse().unwrap(), 2_000), (to.parse().unwrap(), 80))
    }

    const STAMP: Stamp = Stamp {
        trial: 3,
        flow: 77,
        sequence: 5,
        due: 0x0123_4567_89ab_cdef,
    };

    /// What etherparse says of a frame's addresses and of its checksums, which it works out itself.
    fn read(frame: &[u8]) -> (IpAddr, IpAddr, TransportSlice<'_>) {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let (net, transport) = (sliced.net.unwrap(), sliced.transport.unwrap());
        let (from, to): (IpAddr, IpAddr) = match &net {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                )
            }
            NetSlice::Ipv6(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            NetSlice::Arp(_) => panic!(),
        };
        let (written, right) = match (&transport, from, to) {
            (TransportSlice::Udp(udp), IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = udp.to_header();
                let sum = header.calc_checksum_ipv4_raw(from.octets(), to.octets(), udp.payload());
                (udp.checksum(), sum.unwrap())
            }
            (TransportSlice::Udp(udp), IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = udp.to_header();
                let sum = header.calc_checksum_ipv6_raw(from.octets(), to.octets(), udp.payload());
                (udp.checksum(), sum.unwrap())
            }
            (TransportSlice::Tcp(tcp), IpAddr::V4(from), IpAddr::V4(to)) => (
                tcp.checksum(),
                tcp.calc_checksum_ipv4(from.octets(), to.octets()).unwrap(),
            ),
            (TransportSlice::Tcp(tcp), IpAddr::V6(from), IpAddr::V6(to)) => (
                tcp.checksum(),
                tcp.calc_checksum_ipv6(from.octets(), to.octets()).unwrap(),
            ),
            other => panic!("{other:?}"),
        };
        assert_eq!(written, right);
        (from, to, transport)
    }

    #[test]
    fn patched_datagrams_of_every_size_are_what_etherparse_says_they_should_be() {
        for family in [Family::V4, Family::V6] {
            let (from, to) = sockets(family);
            for size in (family.min_udp_frame()..=1518).step_by(7).chain([1518]) {
                let template = Template::udp(family, Mac([2; 6]), Mac([4; 6]), size);
                let mut frame = vec![0; template.len()];
                template.write_udp(&mut frame, from, to, STAMP);
                assert_eq!(frame.len() + 4, size);
                assert_eq!(
                    (family.end(&frame), Family::of_frame(&frame)),
                    (frame.len(), Some(family))
                );
                let (source, destination, TransportSlice::Udp(udp)) = read(&frame) else {
                    panic!()
                };
                assert_eq!((source, udp.source_port()), from);
                assert_eq!((destination, udp.destination_port()), to);
                assert_eq!(Stamp::read(udp.payload()), Some(STAMP));
                assert!(stamp::filled(udp.payload()));
            }
        }
    }

    #[test]
    fn patched_segments_are_what_etherparse_says_they_should_be() {
        let segment = Segment {
            sequence: 0xdead_beef,
            acknowledges: 0x1234_5678,
            flags: flag::ACK | flag::PSH,
            times: [7, 0xffff_ffff],
        };
        for family in [Family::V4, Family::V6] {
            let (from, to) = sockets(family);
            for data in [None, Some(family.min_tcp_frame()), Some(1518)] {
                let template = Template::tcp(family, Mac([2; 6]), Mac([4; 6]), data);
                let mut frame = vec![0; template.len()];
                template.write_tcp(&mut frame, from, to, segment, STAMP);
                let empty = family.l4() + l4::TCP_PAYLOAD + 4;
                assert_eq!(data.unwrap_or(empty), frame.len() + 4);
                let (source, destination, TransportSlice::Tcp(tcp)) = read(&frame) else {
                    panic!()
                };
                assert_eq!((source, tcp.source_port()), from);
                assert_eq!((destination, tcp.destination_port()), to);
                assert_eq!(tcp.sequence_number(), segment.sequence);
                assert_eq!(Segment::get(tcp.slice()), Some(segment));
                assert_eq!(data.and(Some(STAMP)), Stamp::read(tcp.payload()));
            }
        }
    }
}
