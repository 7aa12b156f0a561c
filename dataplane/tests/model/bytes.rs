//! Frames read the plain way: every length looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rewrite::sum;

/// Bytes of an Ethernet header.
pub const LINK: usize = 14;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const FRAGMENT_HEADER: u8 = 44;
pub const ICMPV6: u8 = 58;
pub const DESTINATION_OPTIONS: u8 = 60;
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

/// Which bytes of its datagram an IP packet carries; all of them, usually.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub ident: u32,
    pub start: usize,
    pub end: usize,
    /// More comes after it.
    pub more: bool,
}

impl Piece {
    pub const fn is_whole(self) -> bool {
        self.start == 0 && !self.more
    }

    /// It has the transport header.
    pub const fn is_first(self) -> bool {
        self.start == 0
    }
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
    pub piece: Piece,
    /// Where the transport header begins.
    pub l4: usize,
    /// Where the IP packet ends; padding comes after.
    pub end: usize,
    /// Bytes of the whole datagram from the transport header on, where they are known: SCTP's checksum needs them.
    pub datagram: Option<usize>,
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
        0x0800 | 0x86dd => read_received(frame, to_group).unwrap_or_else(Read::Broken),
        _ => Read::Host("unknown-ethertype"),
    }
}

fn read_received(frame: &[u8], to_group: bool) -> Result<Read, &'static str> {
    let mut packet = read_ip(frame, false)?;
    let (Ends { src, dst, .. }, is_ipv6) = (packet.ends, packet.is_ipv6());
    if !is_ipv6 && sum(&frame[LINK..packet.l4]) != 0xffff {
        return Err("bad-ip-checksum");
    }
    let discovery = || (133..=137).contains(frame.get(packet.l4).unwrap_or(&0));
    if packet.is_icmp() && is_ipv6 && packet.piece.is_whole() && packet.l4 < packet.end && discovery() {
        return Ok(Read::Host("link-local"));
    }
    let broadcast = |address| address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if dst.is_multicast() || broadcast(dst) || to_group {
        return Ok(Read::Host("multicast"));
    }
    let mapped = |address| matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let nobody = |address: IpAddr| address.is_loopback() || address.is_unspecified() || mapped(address);
    if src.is_multicast() || broadcast(src) || nobody(src) {
        return Err("bad-source");
    }
    if nobody(dst) {
        return Err("bad-destination");
    }
    let link_local = |address| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    if link_local(src) || link_local(dst) {
        return Ok(Read::Host("link-local"));
    }
    match packet.read_transport() {
        Err(reason) if packet.piece.is_whole() => Err(reason),
        _ => Ok(Read::Packet(packet)),
    }
}

/// The IP header behind the link's, and the way to the transport's. `cut_off`: the end of the packet may be missing, as of
/// one that an ICMP error quotes.
pub fn read_ip(frame: &[u8], cut_off: bool) -> Result<Packet, &'static str> {
    let is_ipv6 = word(frame, 12) == 0x86dd;
    let ip = &frame[LINK..];
    if ip.len() < if is_ipv6 { 40 } else { 20 } {
        return Err("truncated");
    }
    let (version, header, total) = if is_ipv6 {
        (6, 40, 40 + usize::from(word(ip, 4)))
    } else {
        (4, usize::from(ip[0] & 15) * 4, usize::from(word(ip, 2)))
    };
    let fits = ip.len() >= total || cut_off;
    if ip[0] >> 4 != version || !is_ipv6 && header < 20 || total < header || ip.len() < header || !fits {
        return Err("bad-ip-header");
    }
    let (src, dst) = if is_ipv6 {
        (ipv6(ip, 8), ipv6(ip, 24))
    } else {
        (ipv4(ip, 12), ipv4(ip, 16))
    };
    let mut packet = Packet {
        frame: frame.to_vec(),
        ends: Ends {
            src,
            dst,
            src_port: 0,
            dst_port: 0,
        },
        protocol: ip[if is_ipv6 { 6 } else { 9 }],
        ttl: ip[if is_ipv6 { 7 } else { 8 }],
        tcp_flags: 0,
        chunk: None,
        icmp_type: 0,
        piece: Piece::default(),
        l4: LINK + header,
        end: LINK + total.min(ip.len()),
        datagram: None,
    };
    if is_ipv6 {
        packet.walk()?;
    } else {
        packet.piece = Piece {
            ident: word(ip, 4).into(),
            start: usize::from(word(ip, 6) & 0x1fff) * 8,
            end: usize::from(word(ip, 6) & 0x1fff) * 8 + total - header,
            more: word(ip, 6) & 0x2000 != 0,
        };
    }
    if packet.piece.is_whole() {
        packet.datagram = (LINK + total).checked_sub(packet.l4);
    }
    Ok(packet)
}

impl Packet {
    pub const fn is_ipv6(&self) -> bool {
        self.ends.src.is_ipv6()
    }

    /// Of its own family's ICMP.
    pub const fn is_icmp(&self) -> bool {
        self.protocol == if self.is_ipv6() { ICMPV6 } else { ICMP }
    }

    pub const fn is_echo_request(&self) -> bool {
        self.is_icmp() && self.icmp_type == if self.is_ipv6() { 128 } else { 8 }
    }

    /// Its protocol has ports.
    pub const fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP | SCTP)
    }

    /// Past IPv6's extension headers: hop-by-hop options, routing, fragment, destination options (RFC 8200 §4). Six of
    /// them, 256 bytes, or it is an attack.
    fn walk(&mut self) -> Result<(), &'static str> {
        let mut fragment_headers = 0;
        for _ in 0..=6 {
            if !matches!(self.protocol, 0 | 43 | FRAGMENT_HEADER | DESTINATION_OPTIONS) {
                return Ok(());
            }
            if self.l4 > LINK + 40 + 256 {
                return Err("extension-headers");
            }
            let Some(header) = self.frame[..self.end].get(self.l4..self.l4 + 8) else {
                return Err("truncated");
            };
            let mut len = 8 * (usize::from(header[1]) + 1);
            match self.protocol {
                0 if self.l4 != LINK + 40 => return Err("bad-ip-header"),
                // It stops on the way.
                43 if header[3] != 0 => return Ok(()),
                FRAGMENT_HEADER => {
                    len = 8;
                    fragment_headers += 1;
                    let start = usize::from(word(header, 2) & !7);
                    self.piece = Piece {
                        ident: u32::from(word(header, 4)) << 16 | u32::from(word(header, 6)),
                        start,
                        end: start + 40 + usize::from(word(&self.frame, LINK + 4)) + LINK - (self.l4 + 8),
                        more: word(header, 2) & 1 == 1,
                    };
                }
                _ => {}
            }
            if fragment_headers > 1 {
                return Err("bad-ip-header");
            }
            self.protocol = header[0];
            self.l4 += len;
            if !self.piece.is_first() {
                return Ok(());
            }
            if self.l4 > self.end {
                return Err("truncated");
            }
        }
        Err("extension-headers")
    }

    /// The transport header. Of a fragment only what is there, and nothing is wrong with it.
    pub fn read_transport(&mut self) -> Result<(), &'static str> {
        if !self.piece.is_first() {
            return Ok(());
        }
        let whole = self.piece.is_whole();
        let data = &self.frame[self.l4..self.end];
        match self.protocol {
            TCP if data.len() < 20 => return Err("truncated"),
            UDP if data.len() < 8 => return Err("truncated"),
            SCTP if data.len() < 12 => return Err("truncated"),
            _ if self.is_icmp() && data.len() < 8 => return Err("truncated"),
            TCP => {
                let header = usize::from(data[12] >> 4) * 4;
                if header < 20 || whole && header > data.len() {
                    return Err("bad-transport-header");
                }
                self.tcp_flags = data[13];
            }
            UDP => {
                let len = usize::from(word(data, 4));
                if len < 8 || whole && len > data.len() {
                    return Err("bad-transport-header");
                }
                if whole && self.is_ipv6() && word(data, 6) == 0 {
                    return Err("no-udp-checksum");
                }
            }
            SCTP => {
                let whole = data.len() >= 16 && (4..=data.len() - 12).contains(&usize::from(word(data, 14)));
                self.chunk = whole.then(|| data[12]);
            }
            _ if self.is_icmp() => self.icmp_type = data[0],
            _ => {}
        }
        if self.has_ports() {
            (self.ends.src_port, self.ends.dst_port) = (word(data, 0), word(data, 2));
        }
        Ok(())
    }

    /// The packet that an ICMP error quotes (ICM-1), if that tells which flow it is of: with its addresses and ports.
    pub fn quoted(&self) -> Option<Self> {
        let is_error = if self.is_ipv6() {
            matches!(self.icmp_type, 1..=4)
        } else {
            matches!(self.icmp_type, 3 | 11 | 12)
        };
        if !self.is_icmp() || !is_error || !self.piece.is_whole() {
            return None;
        }
        let frame = [&self.frame[..LINK], &self.frame[self.l4 + 8..self.end]].concat();
        let mut quoted = read_ip(&frame, true).ok()?;
        quoted.end = frame.len();
        let header = frame.get(quoted.l4..quoted.l4 + 8)?;
        (quoted.ends.src_port, quoted.ends.dst_port) = (word(header, 0), word(header, 2));
        (quoted.has_ports() && quoted.piece.is_first()).then_some(quoted)
    }
}

/// By what frames of random worlds are told apart, wherever they are: a number, in IPv4's identification and in IPv6's
/// flow label, and where in its datagram a fragment begins.
pub fn number(ip: &[u8]) -> Option<(u16, u16)> {
    match ip.first()? >> 4 {
        4 if ip.len() >= 8 => Some((word(ip, 4), word(ip, 6) & 0x1fff)),
        6 if ip.len() >= 44 && ip[6] == FRAGMENT_HEADER => Some((word(ip, 2), word(ip, 42) >> 3)),
        6 if ip.len() >= 4 => Some((word(ip, 2), 0)),
        _ => None,
    }
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn ipv4(bytes: &[u8], at: usize) -> IpAddr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]).into()
}

fn ipv6(bytes: &[u8], at: usize) -> IpAddr {
    let words: Vec<u16> = (0..8).map(|i| word(bytes, at + 2 * i)).collect();
    match words[..] {
        [a, b, c, d, e, f, g, h] => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
        _ => panic!("eight words"),
    }
}
