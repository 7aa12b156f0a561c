//! Random frames: packets as senders make them, mostly, of both families; in pieces; as routers complain of them; broken.

use std::net::IpAddr;

use super::bytes::{
    ACK, DESTINATION_OPTIONS, Ends, FIN, FRAGMENT_HEADER, ICMP, ICMPV6, LINK, RST, Read, SCTP, SYN, TCP, UDP,
    read, word,
};
use super::chance::Chance;
use super::rewrite::{fix_header, fix_transport};
use crate::support::station::{KERNEL, Port};

/// An IP packet in its frame, without checksums but IPv4's. Its number is 0.
fn ip_frame(port: Port, ends: Ends, ttl: u8, options: usize, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let from = if port == Port::Host {
        KERNEL
    } else {
        port.next_station(ends.src)
    };
    let mut frame = [&port.mac()[..], &from].concat();
    match (ends.src, ends.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = 20 + 4 * options + l4.len();
            frame.extend([8, 0, 0x45 + options as u8, 0]);
            frame.extend((total as u16).to_be_bytes());
            frame.extend([0, 0, 0, 0, ttl, protocol, 0, 0]);
            frame.extend([src.octets(), dst.octets()].concat());
            frame.extend(vec![1; 4 * options]);
            fix_header(&mut frame);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((l4.len() as u16).to_be_bytes());
            frame.extend([protocol, ttl]);
            frame.extend([src.octets(), dst.octets()].concat());
        }
        _ => panic!("families do not mix"),
    }
    frame.extend(l4);
    frame
}

fn is_ipv6(frame: &[u8]) -> bool {
    word(frame, 12) == 0x86dd
}

/// Where the header ends that every fragment has.
fn header_end(frame: &[u8]) -> usize {
    LINK + if is_ipv6(frame) {
        40
    } else {
        usize::from(frame[LINK] & 15) * 4
    }
}

fn protocol(frame: &[u8]) -> u8 {
    frame[LINK + if is_ipv6(frame) { 6 } else { 9 }]
}

pub fn is_fragment(frame: &[u8]) -> bool {
    if frame.len() < LINK + 20 {
        false
    } else if is_ipv6(frame) {
        protocol(frame) == FRAGMENT_HEADER
    } else {
        word(frame, LINK + 6) & 0x3fff != 0
    }
}

/// The first fragment of an SCTP packet: it waits, and of two that go on together, which opened the flow cannot be told.
pub fn is_unrepeatable(frame: &[u8], port: Port) -> bool {
    matches!(read(frame, port.mac()), Read::Packet(packet)
        if packet.protocol == SCTP && packet.piece.is_first() && !packet.piece.is_whole())
}

/// A first fragment with another source port.
pub fn from_other_port(mut frame: Vec<u8>) -> Vec<u8> {
    let at = header_end(&frame) + if is_ipv6(&frame) { 8 } else { 0 };
    frame[at + 1] ^= 1;
    frame
}

/// A message between neighbours, by accident: the steward's, not ours.
pub fn is_discovery(frame: &[u8], port: Port) -> bool {
    matches!(read(frame, port.mac()), Read::Host("link-local"))
}

impl Chance {
    /// A packet as a sender would make it, mostly, with at least so many bytes of data.
    pub fn packet(&mut self, port: Port, protocol: u8, ends: Ends, least: usize) -> Vec<u8> {
        let len = least
            + if self.one_in(20) {
                self.below(1200 - least)
            } else {
                self.below(20)
            };
        let data: Vec<u8> = (0..len).map(|_| self.byte()).collect();
        let flags = self.of(&[
            SYN,
            SYN,
            SYN | ACK,
            ACK,
            ACK,
            FIN | ACK,
            RST,
            RST | ACK,
            SYN | FIN,
            0,
            ACK | 8,
        ]);
        let ports = [ends.src_port.to_be_bytes(), ends.dst_port.to_be_bytes()].concat();
        let header = match protocol {
            TCP => [
                &ports[..],
                &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 4, 0, 0, 0, 0, 0],
            ]
            .concat(),
            UDP => [&ports[..], &(8 + len as u16).to_be_bytes(), &[0, 0]].concat(),
            SCTP => {
                let chunk = self.of(&[1, 1, 10, 11, 0, 0, 3, 2, 6, 7, 8, 14]);
                let chunk = [&[chunk, 0][..], &(4 + len as u16).to_be_bytes()].concat();
                [&ports[..], &[0, 0, 0, 9, 0, 0, 0, 0], &chunk].concat()
            }
            ICMP => vec![self.of(&[8, 8, 0, 3, 11, 13]), 0, 0, 0, 0, 1, 0, 2],
            ICMPV6 => vec![self.of(&[128, 128, 129, 1, 3, 200]), 0, 0, 0, 0, 1, 0, 2],
            _ => vec![0; 4],
        };
        let mut l4 = [header, data].concat();
        let mut protocol = protocol;
        let mut options = 0;
        if self.one_in(20) {
            if ends.src.is_ipv4() {
                options = 1 + self.below(10);
            } else {
                (protocol, l4) = self.extended(protocol, l4);
            }
        }
        let ttl = if self.one_in(8) {
            self.of(&[0, 1, 2, 255])
        } else {
            64
        };
        let mut frame = ip_frame(port, ends, ttl, options, protocol, &l4);
        if ends.src.is_ipv4() {
            frame[LINK + 1] = self.byte();
            frame[LINK + 6] = self.of(&[0, 0x40]);
            fix_header(&mut frame);
        } else {
            frame[LINK + 1] = self.byte() & 0xf0;
        }
        let mut frame = self.renumbered(frame);
        if self.one_in(6) {
            frame.resize(frame.len() + self.below(20), 0xee);
        }
        if self.one_in(10) {
            return frame; // without a checksum, which is a wrong one but for IPv4's UDP
        }
        frame = fix_transport(frame);
        if self.one_in(12) {
            let mut wrong = frame.clone();
            let at = self.within(&frame);
            wrong[at] ^= 1 << self.below(8);
            if !is_discovery(&wrong, port) {
                return wrong;
            }
        }
        frame
    }

    /// Behind extension headers.
    fn extended(&mut self, mut protocol: u8, mut l4: Vec<u8>) -> (u8, Vec<u8>) {
        let headers = if self.one_in(10) { 7 } else { 1 + self.below(2) };
        for _ in 0..headers {
            let words = self.below(3);
            let mut header = vec![protocol, words as u8, 1, 4 + 8 * words as u8];
            header.resize(8 * (words + 1), 0);
            protocol = self.of(&[DESTINATION_OPTIONS, DESTINATION_OPTIONS, 43, 0]);
            if protocol == 43 {
                header[3] = u8::from(self.one_in(4)); // a stop that is left
            }
            l4.splice(0..0, header);
        }
        (protocol, l4)
    }

    /// A packet in pieces, in order; sometimes with one that overlaps another, lies about its end, or comes twice.
    pub fn pieces(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let header = header_end(frame);
        let total = if is_ipv6(frame) {
            40 + word(frame, LINK + 4)
        } else {
            word(frame, LINK + 2)
        };
        let payload = &frame[header..(LINK + usize::from(total)).min(frame.len())];
        let len = payload.len();
        let mut places = Vec::new();
        let mut start = 0;
        while start < len {
            let end = (start + 8 * (1 + self.below(len.div_ceil(16)))).max(if start == 0 { 24 } else { 0 });
            places.push((start, end.min(len), end < len));
            start = end;
        }
        if self.one_in(6) {
            let mut odd = self.of(&places);
            match self.below(4) {
                0 => odd.0 = odd.0.saturating_sub(8),
                1 => odd.1 = (odd.1 + 8).min(len),
                2 => odd.2 = !odd.2,
                _ => {}
            }
            places.push(odd);
        }
        let piece = |(start, end, more): (usize, usize, bool)| {
            let mut piece = frame[..header].to_vec();
            let position = start as u16 / 8;
            if is_ipv6(frame) {
                let number = word(frame, LINK + 2).to_be_bytes();
                piece[LINK + 4..LINK + 6].copy_from_slice(&(8 + (end - start) as u16).to_be_bytes());
                piece[LINK + 6] = FRAGMENT_HEADER;
                piece.extend([protocol(frame), 0]);
                piece.extend((8 * position + u16::from(more)).to_be_bytes());
                piece.extend([0, 0, number[0], number[1]]);
            } else {
                let total = (header - LINK + end - start) as u16;
                piece[LINK + 2..LINK + 4].copy_from_slice(&total.to_be_bytes());
                let position = position + if more { 0x2000 } else { 0 } + (word(frame, LINK + 6) & 0x4000);
                piece[LINK + 6..LINK + 8].copy_from_slice(&position.to_be_bytes());
                fix_header(&mut piece);
            }
            piece.extend(&payload[start..end]);
            piece
        };
        places.into_iter().map(piece).collect()
    }

    /// An ICMP error of `from` about a packet that left with these ends, for who sent it.
    pub fn error(&mut self, port: Port, from: IpAddr, protocol: u8, about: Ends) -> Vec<u8> {
        let is_ipv6 = from.is_ipv6();
        let mut quoted = self.packet(Port::Client, protocol, about, 0);
        let numbered = LINK + if is_ipv6 { 2 } else { 4 };
        quoted[numbered..numbered + 2].fill(0);
        if !is_ipv6 && !self.one_in(10) {
            fix_header(&mut quoted);
        }
        let quote = &quoted[LINK..];
        let header = header_end(&quoted) - LINK;
        let len = match self.below(10) {
            0 => self.below(quote.len()),
            1..=3 => header + 8,
            4 | 5 => header + 8 + self.below(16),
            _ => quote.len(),
        };
        // As much as anybody quotes.
        let most = if is_ipv6 { 1232 } else { 548 };
        let quote = &quote[..len.min(quote.len()).min(most)];
        let kind = if is_ipv6 {
            self.of(&[1, 2, 3, 4])
        } else {
            self.of(&[3, 3, 11, 12])
        };
        let head = [kind, self.byte() % 8, 0, 0, 0, 0, self.byte(), self.byte()];
        let to = if self.one_in(10) { about.dst } else { about.src };
        let ends = Ends {
            src: from,
            dst: to,
            ..about
        };
        let ttl = if self.one_in(12) { self.of(&[0, 1]) } else { 64 };
        let icmp = if is_ipv6 { ICMPV6 } else { ICMP };
        let frame = ip_frame(port, ends, ttl, 0, icmp, &[&head[..], quote].concat());
        let frame = self.renumbered(frame);
        if self.one_in(10) {
            return frame;
        }
        fix_transport(frame)
    }

    /// Anywhere in the transport header or the data.
    fn within(&mut self, frame: &[u8]) -> usize {
        let from = header_end(frame);
        let room = match protocol(frame) {
            // One chunk a packet: what several do together is `conntrack`'s own test.
            SCTP => 12,
            ICMP | ICMPV6 => 8,
            _ => frame.len().saturating_sub(from).max(1),
        };
        (from + self.below(room)).min(frame.len() - 1)
    }

    /// With a number that no other packet of the world has.
    pub fn renumbered(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        if frame.len() < LINK + 20 {
            return frame;
        }
        let number = self.next_number().to_be_bytes();
        if is_ipv6(&frame) {
            frame[LINK + 2..LINK + 4].copy_from_slice(&number);
        } else {
            frame[LINK + 4..LINK + 6].copy_from_slice(&number);
            fix_header(&mut frame);
        }
        frame
    }

    /// A frame that something is wrong with, from the link's header on. Its number stays.
    pub fn broken(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        match self.below(6) {
            0 => {
                let len = self.below(frame.len());
                // Short of a number it could not be told from others.
                frame.truncate(len);
            }
            1 => {
                let at = self.below(6);
                frame[at] ^= 1 << self.below(8);
            }
            2 => frame[12..14].copy_from_slice(&self.of(&[[0x88, 0xcc], [0, 46], [0x90, 0]])),
            3 if is_ipv6(&frame) => {
                let at = LINK + self.of(&[0, 4, 5, 6, 7, 8, 24, 25, 27]);
                frame[at] = self.byte();
            }
            3 => {
                let at = LINK + self.of(&[0, 2, 3, 8, 9, 10, 11, 12, 16, 17, 18]);
                frame[at] = self.byte();
                if self.one_in(2) {
                    fix_header(&mut frame);
                }
            }
            4 => {
                let at = self.within(&frame);
                frame[at] = self.byte();
            }
            // As it came from a station that is none.
            _ => frame[6] |= 1,
        }
        frame
    }
}
