//! Frames read and written the plain way: every length looked at, every checksum computed from nothing.

use std::net::{IpAddr, Ipv4Addr};

/// Bytes of an Ethernet header.
pub const LINK: usize = 14;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Both ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
}

impl Ends {
    pub const fn turned(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First,
    Later,
}

/// An IP packet in its frame.
#[derive(Clone, Debug)]
pub struct Packet {
    pub frame: Vec<u8>,
    pub ends: Ends,
    pub protocol: u8,
    pub ttl: u8,
    pub tcp_flags: u8,
    /// The type of an SCTP packet's first chunk, if there is a whole one.
    pub chunk: Option<u8>,
    pub icmp_type: u8,
    pub fragment: Fragment,
    /// Where the transport header begins.
    pub l4: usize,
    /// Where the IP packet ends; padding comes after.
    pub end: usize,
}

/// What a frame is.
#[derive(Clone, Debug)]
pub enum Read {
    Packet(Packet),
    /// Not for the packet path: the host's, or dropped for this reason.
    Host(&'static str),
    Broken(&'static str),
}

/// Reads a frame that arrived at `station`.
pub fn read(frame: &[u8], station: [u8; 6]) -> Read {
    if frame.len() < LINK {
        return Read::Broken("truncated");
    }
    let to_group = frame[0] & 1 == 1;
    if matches!(word(frame, 12), 0x8100 | 0x88a8) && frame.len() < LINK + 4 {
        return Read::Broken("truncated");
    }
    if frame[..6] != station && !to_group {
        return Read::Broken("not-for-us");
    }
    match word(frame, 12) {
        0x0800 => read_ipv4(frame, to_group),
        _ => Read::Host("unknown-ethertype"),
    }
}

fn read_ipv4(frame: &[u8], to_group: bool) -> Read {
    let ip = &frame[LINK..];
    if ip.len() < 20 {
        return Read::Broken("truncated");
    }
    let (header, total) = (usize::from(ip[0] & 15) * 4, usize::from(word(ip, 2)));
    if ip[0] >> 4 != 4 || header < 20 || total < header || ip.len() < total {
        return Read::Broken("bad-ip-header");
    }
    if sum(&ip[..header]) != 0xffff {
        return Read::Broken("bad-ip-checksum");
    }
    let (src, dst) = (ipv4(ip, 12), ipv4(ip, 16));
    if dst.is_multicast() || dst.is_broadcast() || to_group {
        return Read::Host("multicast");
    }
    if src.is_multicast() || src.is_broadcast() || src.is_loopback() || src.is_unspecified() {
        return Read::Broken("bad-source");
    }
    let mut packet = Packet {
        frame: frame.to_vec(),
        ends: Ends {
            src: src.into(),
            dst: dst.into(),
            src_port: 0,
            dst_port: 0,
        },
        protocol: ip[9],
        ttl: ip[8],
        tcp_flags: 0,
        chunk: None,
        icmp_type: 0,
        fragment: match word(ip, 6) & 0x3fff {
            0 => Fragment::Whole,
            0x2000 => Fragment::First,
            _ => Fragment::Later,
        },
        l4: LINK + header,
        end: LINK + total,
    };
    match packet.read_transport() {
        Err(reason) if packet.fragment == Fragment::Whole => Read::Broken(reason),
        _ => Read::Packet(packet),
    }
}

impl Packet {
    /// The transport header. Of a fragment only what is there, and nothing is wrong with it.
    fn read_transport(&mut self) -> Result<(), &'static str> {
        if self.fragment == Fragment::Later {
            return Ok(());
        }
        let data = &self.frame[self.l4..self.end];
        match self.protocol {
            TCP if data.len() < 20 => return Err("truncated"),
            UDP | ICMP if data.len() < 8 => return Err("truncated"),
            SCTP if data.len() < 12 => return Err("truncated"),
            TCP => {
                let header = usize::from(data[12] >> 4) * 4;
                if header < 20 || self.fragment == Fragment::Whole && header > data.len() {
                    return Err("bad-transport-header");
                }
                self.tcp_flags = data[13];
            }
            UDP => {
                let len = usize::from(word(data, 4));
                if len < 8 || self.fragment == Fragment::Whole && len > data.len() {
                    return Err("bad-transport-header");
                }
            }
            SCTP => {
                let whole = data.len() >= 16 && (4..=data.len() - 12).contains(&usize::from(word(data, 14)));
                self.chunk = whole.then(|| data[12]);
            }
            ICMP => self.icmp_type = data[0],
            _ => {}
        }
        if matches!(self.protocol, TCP | UDP | SCTP) {
            (self.ends.src_port, self.ends.dst_port) = (word(data, 0), word(data, 2));
        }
        Ok(())
    }

    /// Where the transport checksum is, if it covers addresses.
    fn checksum_at(&self) -> Option<usize> {
        let (at, header) = match self.protocol {
            TCP => (16, 20),
            UDP => (6, 8),
            _ => return None,
        };
        (self.fragment != Fragment::Later && self.l4 + header <= self.end).then_some(self.l4 + at)
    }

    /// What the transport checksum should be, were the packet between these ends.
    fn right_checksum(&self, frame: &[u8], at: usize) -> u16 {
        let len = match self.protocol {
            UDP => usize::from(word(frame, self.l4 + 4)),
            _ => self.end - self.l4,
        };
        let mut covered = frame[LINK + 12..LINK + 20].to_vec();
        covered.extend([0, self.protocol]);
        covered.extend((len as u16).to_be_bytes());
        let from = covered.len();
        covered.extend(&frame[self.l4..self.end.min(self.l4 + len)]);
        covered[from + at - self.l4..][..2].fill(0);
        !sum(&covered)
    }

    /// The transport checksum is right, or the sender made none.
    pub fn transport_checksum_ok(&self) -> bool {
        match (self.protocol, self.checksum_at()) {
            (ICMP, _) => sum(&self.frame[self.l4..self.end]) == 0xffff,
            (SCTP, _) => self.frame[self.l4 + 8..self.l4 + 12] == self.crc(&self.frame),
            (_, None) => true,
            (protocol, Some(at)) => {
                let (is, right) = (word(&self.frame, at), self.right_checksum(&self.frame, at));
                protocol == UDP && is == 0 || is % 0xffff == right % 0xffff
            }
        }
    }

    /// SCTP's checksum: CRC32c over the packet with none in it, its lowest byte first (RFC 9260 §6.8, appendix A).
    fn crc(&self, frame: &[u8]) -> [u8; 4] {
        let mut covered = frame[self.l4..self.end].to_vec();
        covered[8..12].fill(0);
        crc32c(&covered).to_le_bytes()
    }

    /// The packet as it goes on between other ends (CSM-1): a wrong checksum stays wrong by the same amount.
    pub fn translated(&self, to: Ends) -> Vec<u8> {
        let mut frame = self.frame.clone();
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (to.src, to.dst) else {
            panic!("families do not mix")
        };
        frame[LINK + 12..LINK + 16].copy_from_slice(&src.octets());
        frame[LINK + 16..LINK + 20].copy_from_slice(&dst.octets());
        if let Some(at) = self.checksum_at() {
            frame[self.l4..self.l4 + 2].copy_from_slice(&to.src_port.to_be_bytes());
            frame[self.l4 + 2..self.l4 + 4].copy_from_slice(&to.dst_port.to_be_bytes());
            let is = word(&self.frame, at);
            // In ones-complement arithmetic 0 and 0xffff are one number.
            let (before, after) = (
                u32::from(self.right_checksum(&self.frame, at)),
                u32::from(self.right_checksum(&frame, at)),
            );
            let changed = (after + 0xffff - before) % 0xffff;
            let shifted = match (self.protocol, (u32::from(is) + changed) % 0xffff) {
                (UDP, _) if is == 0 => 0,
                (UDP, 0) => 0xffff,
                _ if changed == 0 => is,
                (_, shifted) => shifted as u16,
            };
            frame[at..at + 2].copy_from_slice(&shifted.to_be_bytes());
        }
        if self.protocol == SCTP && self.fragment == Fragment::Whole {
            frame[self.l4..self.l4 + 2].copy_from_slice(&to.src_port.to_be_bytes());
            frame[self.l4 + 2..self.l4 + 4].copy_from_slice(&to.dst_port.to_be_bytes());
            // What is wrong with it is the difference in each bit.
            let (before, after) = (self.crc(&self.frame), self.crc(&frame));
            (0..4).for_each(|i| frame[self.l4 + 8 + i] ^= before[i] ^ after[i]);
        }
        fix_header(&mut frame);
        frame
    }

    /// One hop less to live.
    pub fn hop(mut frame: Vec<u8>) -> Vec<u8> {
        frame[LINK + 8] -= 1;
        fix_header(&mut frame);
        frame
    }

    /// The answer to it: an ICMP error from `from` (RJ-1, RJ-2), back to the station that sent it.
    pub fn answer(&self, kind: u8, code: u8, from: IpAddr) -> Vec<u8> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (from, self.ends.src) else {
            panic!("families do not mix")
        };
        let original = &self.frame[LINK..self.end];
        let quote = &original[..original.len().min(548)];
        let mut frame = [&self.frame[6..12], &self.frame[..6], &self.frame[12..14]].concat();
        frame.extend([0x45, 0xc0]);
        frame.extend((28 + quote.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, ICMP, 0, 0]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        fix_header(&mut frame);
        let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
        message.extend(quote);
        let checksum = !sum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(message);
        frame
    }
}

/// Makes the IPv4 header's checksum right, however long it says it is.
pub fn fix_header(frame: &mut [u8]) {
    let len = (usize::from(frame[LINK] & 15) * 4).clamp(20, frame.len() - LINK);
    frame[LINK + 10..LINK + 12].fill(0);
    let checksum = !sum(&frame[LINK..LINK + len]);
    frame[LINK + 10..LINK + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// Makes the transport checksum right, where there is one.
pub fn fix_transport(packet: &mut Packet) {
    if packet.protocol == ICMP {
        packet.frame[packet.l4 + 2..packet.l4 + 4].fill(0);
        let checksum = !sum(&packet.frame[packet.l4..packet.end]);
        packet.frame[packet.l4 + 2..packet.l4 + 4].copy_from_slice(&checksum.to_be_bytes());
    } else if packet.protocol == SCTP {
        let crc = packet.crc(&packet.frame);
        packet.frame[packet.l4 + 8..packet.l4 + 12].copy_from_slice(&crc);
    } else if let Some(at) = packet.checksum_at() {
        let checksum = match packet.right_checksum(&packet.frame, at) {
            0 if packet.protocol == UDP => 0xffff,
            checksum => checksum,
        };
        packet.frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn ipv4(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// A bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// The ones-complement sum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut total: u32 = words.sum();
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}
