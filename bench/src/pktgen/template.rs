//! Frames made once, by etherparse, and patched for each packet: addresses, ports, numbers, stamp and the checksums that
//! change with them.

use etherparse::{PacketBuilder, TcpOptionElement};
use sluice_dataplane::addr::Mac;

use super::rate::MIN_FRAME;
use super::stamp::{self, Stamp};
use super::world::Socket;

/// Where things are in a frame without tags and IP options.
pub mod at {
    /// IPv4 header.
    pub const IP: usize = 14;
    /// Its checksum.
    pub const IP_CHECKSUM: usize = IP + 10;
    /// Source and destination address.
    pub const ADDRESSES: usize = IP + 12;
    /// UDP or TCP header; both begin with source and destination port.
    pub const L4: usize = IP + 20;
    /// UDP's checksum.
    pub const UDP_CHECKSUM: usize = L4 + 6;
    /// UDP's payload.
    pub const UDP_PAYLOAD: usize = L4 + 8;
    /// TCP's sequence and acknowledgement numbers.
    pub const SEQUENCE: usize = L4 + 4;
    /// TCP's flags.
    pub const FLAGS: usize = L4 + 13;
    /// TCP's checksum.
    pub const TCP_CHECKSUM: usize = L4 + 16;
    /// Two bytes of padding, then the time stamp option (RFC 7323 §3.2): kind, length, TSval, TSecr.
    pub const TIMES: usize = L4 + 20 + 4;
    /// TCP's payload behind that option.
    pub const TCP_PAYLOAD: usize = L4 + 32;
}

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

/// Least bytes of a frame, FCS included, that has room for a stamp in a TCP segment with time stamps.
pub const MIN_TCP_FRAME: usize = at::TCP_PAYLOAD + stamp::LEN + 4;
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

/// The IPv4 pseudo-header's words: both addresses from the frame, protocol, length (RFC 9293 §3.1).
#[inline]
pub fn pseudo(frame: &[u8], l4_len: usize) -> u64 {
    words(&frame[at::ADDRESSES..at::L4]) + u64::from(frame[at::IP + 9]) + l4_len as u64
}

/// A frame to be patched.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    /// Sum of the IPv4 header, and of the rest with the pseudo-header, all without what is patched.
    ip: u64,
    l4: u64,
}

impl Template {
    /// A UDP datagram in a frame of `size` bytes with its FCS, 64 to 1,518.
    pub fn udp(from: Mac, to: Mac, size: usize) -> Self {
        let size = size.clamp(MIN_FRAME, MAX_FRAME);
        let payload: Vec<u8> = (0..size - 4 - at::UDP_PAYLOAD)
            .map(|place| {
                if place < stamp::LEN {
                    0
                } else {
                    stamp::filler(place)
                }
            })
            .collect();
        let builder = PacketBuilder::ethernet2(from.0, to.0)
            .ipv4([0; 4], [0; 4], 64)
            .udp(0, 0);
        let mut bytes = Vec::with_capacity(size);
        // Writing to a Vec cannot fail but for a length that does not fit its field: clamped above.
        let _ = builder.write(&mut bytes, &payload);
        Self::of(bytes, at::UDP_CHECKSUM)
    }

    /// A TCP segment with time stamps; `size` as before, if it has data, from `MIN_TCP_FRAME` on.
    pub fn tcp(from: Mac, to: Mac, data: Option<usize>) -> Self {
        let len = data.map_or(0, |size| {
            size.clamp(MIN_TCP_FRAME, MAX_FRAME) - 4 - at::TCP_PAYLOAD
        });
        let payload: Vec<u8> = (0..len)
            .map(|place| {
                if place < stamp::LEN {
                    0
                } else {
                    stamp::filler(place)
                }
            })
            .collect();
        let options = [
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(0, 0),
        ];
        let builder = PacketBuilder::ethernet2(from.0, to.0)
            .ipv4([0; 4], [0; 4], 64)
            .tcp(0, 0, 0, 65_000);
        let mut bytes = Vec::with_capacity(MAX_FRAME);
        if let Ok(builder) = builder.options(&options) {
            let _ = builder.write(&mut bytes, &payload);
        }
        Self::of(bytes, at::TCP_CHECKSUM)
    }

    fn of(mut bytes: Vec<u8>, checksum: usize) -> Self {
        bytes[at::IP_CHECKSUM..at::IP_CHECKSUM + 2].fill(0);
        bytes[checksum..checksum + 2].fill(0);
        let ip = words(&bytes[at::IP..at::L4]);
        let l4 = pseudo(&bytes, bytes.len() - at::L4) + words(&bytes[at::L4..]);
        Self { bytes, ip, l4 }
    }

    /// Bytes of the frame without FCS.
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of data behind the TCP header.
    pub const fn tcp_payload(&self) -> usize {
        self.bytes.len() - at::TCP_PAYLOAD
    }

    /// Writes the addresses into a frame that holds the template, and gives their words.
    #[inline]
    fn address(&self, frame: &mut [u8], from: Socket, to: Socket) -> u64 {
        frame.copy_from_slice(&self.bytes);
        frame[at::ADDRESSES..at::ADDRESSES + 4].copy_from_slice(&from.0.octets());
        frame[at::ADDRESSES + 4..at::L4].copy_from_slice(&to.0.octets());
        frame[at::L4..at::L4 + 2].copy_from_slice(&from.1.to_be_bytes());
        frame[at::L4 + 2..at::L4 + 4].copy_from_slice(&to.1.to_be_bytes());
        let addresses = words(&frame[at::ADDRESSES..at::L4]);
        let checksum = !fold(self.ip + addresses);
        frame[at::IP_CHECKSUM..at::IP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
        addresses + u64::from(from.1) + u64::from(to.1)
    }

    /// A datagram; `frame` has the template's length.
    #[inline]
    pub fn write_udp(&self, frame: &mut [u8], from: Socket, to: Socket, stamp: Stamp) {
        let sum = self.address(frame, from, to);
        let stamp = stamp.write();
        frame[at::UDP_PAYLOAD..at::UDP_PAYLOAD + stamp::LEN].copy_from_slice(&stamp);
        let checksum = match !fold(self.l4 + sum + words(&stamp)) {
            // Zero would say that there is none (RFC 768).
            0 => 0xffff,
            checksum => checksum,
        };
        frame[at::UDP_CHECKSUM..at::UDP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// A segment; `frame` has the template's length. The stamp is for one with data.
    #[inline]
    pub fn write_tcp(&self, frame: &mut [u8], from: Socket, to: Socket, segment: Segment, stamp: Stamp) {
        self.address(frame, from, to);
        segment.put(frame);
        if frame.len() > at::TCP_PAYLOAD {
            frame[at::TCP_PAYLOAD..at::TCP_PAYLOAD + stamp::LEN].copy_from_slice(&stamp.write());
        }
        seal_tcp(frame, frame.len() - at::L4);
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
    /// From a frame with time stamps; `None` if it has none where ours have them.
    #[inline]
    pub fn get(frame: &[u8]) -> Option<Self> {
        let header = frame.get(at::L4..at::TCP_PAYLOAD)?;
        // 32 bytes of header; two no-operations, kind 8, length 10 (RFC 7323 appendix A).
        if header[12] >> 4 != 8 || header[20..24] != [1, 1, 8, 10] {
            return None;
        }
        let word = |place: usize| {
            u32::from_be_bytes([frame[place], frame[place + 1], frame[place + 2], frame[place + 3]])
        };
        Some(Self {
            sequence: word(at::SEQUENCE),
            acknowledges: word(at::SEQUENCE + 4),
            flags: frame[at::FLAGS],
            times: [word(at::TIMES), word(at::TIMES + 4)],
        })
    }

    /// Into a frame with time stamps; its checksum is to be made after.
    #[inline]
    pub fn put(self, frame: &mut [u8]) {
        frame[at::SEQUENCE..at::SEQUENCE + 4].copy_from_slice(&self.sequence.to_be_bytes());
        frame[at::SEQUENCE + 4..at::SEQUENCE + 8].copy_from_slice(&self.acknowledges.to_be_bytes());
        frame[at::FLAGS] = self.flags;
        frame[at::TIMES..at::TIMES + 4].copy_from_slice(&self.times[0].to_be_bytes());
        frame[at::TIMES + 4..at::TIMES + 8].copy_from_slice(&self.times[1].to_be_bytes());
    }
}

/// Makes the checksum of a TCP segment of `len` bytes in a frame.
#[inline]
pub fn seal_tcp(frame: &mut [u8], len: usize) {
    frame[at::TCP_CHECKSUM..at::TCP_CHECKSUM + 2].fill(0);
    let checksum = !fold(pseudo(frame, len) + words(&frame[at::L4..at::L4 + len]));
    frame[at::TCP_CHECKSUM..at::TCP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const FROM: Socket = (Ipv4Addr::new(198, 18, 0, 1), 2_000);
    const TO: Socket = (Ipv4Addr::new(10, 96, 0, 10), 80);
    const STAMP: Stamp = Stamp {
        trial: 3,
        flow: 77,
        sequence: 5,
        due: 0x0123_4567_89ab_cdef,
    };

    #[test]
    fn patched_datagrams_of_every_size_are_what_etherparse_says_they_should_be() {
        for size in (64..=1518).step_by(7).chain([1518]) {
            let template = Template::udp(Mac([2; 6]), Mac([4; 6]), size);
            let mut frame = vec![0; template.len()];
            template.write_udp(&mut frame, FROM, TO, STAMP);
            assert_eq!(frame.len() + 4, size);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (sliced.net, sliced.transport)
            else {
                panic!()
            };
            let ip = ip.header().to_header();
            assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            assert_eq!(
                udp.to_header().calc_checksum_ipv4(&ip, udp.payload()).unwrap(),
                udp.checksum()
            );
            assert_eq!((ip.source, udp.source_port()), (FROM.0.octets(), FROM.1));
            assert_eq!(Stamp::read(udp.payload()), Some(STAMP));
            assert!(stamp::filled(udp.payload()));
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
        for data in [None, Some(88), Some(1518)] {
            let template = Template::tcp(Mac([2; 6]), Mac([4; 6]), data);
            let mut frame = vec![0; template.len()];
            template.write_tcp(&mut frame, FROM, TO, segment, STAMP);
            assert_eq!(data.unwrap_or(70), frame.len() + 4);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport)
            else {
                panic!()
            };
            let header = ip.header().to_header();
            assert_eq!(
                tcp.calc_checksum_ipv4(header.source, header.destination).unwrap(),
                tcp.checksum(),
                "{header:?}"
            );
            assert_eq!(tcp.sequence_number(), segment.sequence);
            assert_eq!(Segment::get(&frame), Some(segment));
        }
    }
}
