//! Packets written the plain way: every checksum computed over all that it covers.

use std::net::IpAddr;

use super::bytes::{Ends, ICMP, ICMPV6, LINK, Packet, SCTP, TCP, UDP, read_ip, word};

impl Packet {
    /// Where the transport checksum is, if there is one and it is there.
    fn checksum_at(&self) -> Option<usize> {
        let at = self.l4
            + match self.protocol {
                TCP => 16,
                UDP => 6,
                _ if self.is_icmp() => 2,
                _ => return None,
            };
        (self.piece.is_first() && at + 2 <= self.end).then_some(at)
    }

    /// What a transport checksum covers besides the packet's own bytes (RFC 8200 §8.1); not IPv4's ICMP's.
    fn pseudo_header(&self, frame: &[u8], len: usize) -> Vec<u8> {
        if self.protocol == ICMP {
            return Vec::new();
        }
        let addresses = if self.is_ipv6() { 8..40 } else { 12..20 };
        let mut covered = frame[LINK..][addresses].to_vec();
        covered.extend([0, self.protocol]);
        covered.extend((len as u16).to_be_bytes());
        covered
    }

    /// All that the checksum of a whole packet covers, with it.
    fn covered(&self) -> Vec<u8> {
        let len = match self.protocol {
            UDP => usize::from(word(&self.frame, self.l4 + 4)),
            _ => self.end - self.l4,
        };
        let bytes = &self.frame[self.l4..self.end.min(self.l4 + len)];
        [&self.pseudo_header(&self.frame, len), bytes].concat()
    }

    /// The transport checksum is right, or the sender made none.
    pub fn transport_checksum_ok(&self) -> bool {
        match (self.protocol, self.checksum_at()) {
            (SCTP, _) => self.frame[self.l4 + 8..self.l4 + 12] == crc(&self.frame[self.l4..self.end]),
            (_, None) => true,
            (UDP, Some(at)) if word(&self.frame, at) == 0 => true,
            _ => sum(&self.covered()) == 0xffff,
        }
    }

    /// The packet as it goes on between other ends (CSM-1).
    pub fn translated(&self, to: Ends) -> Vec<u8> {
        let mut frame = self.with_addresses(to);
        if !self.piece.is_first() {
            return frame;
        }
        frame[self.l4..self.l4 + 2].copy_from_slice(&to.src_port.to_be_bytes());
        frame[self.l4 + 2..self.l4 + 4].copy_from_slice(&to.dst_port.to_be_bytes());
        if self.protocol == SCTP {
            self.fix_crc(&mut frame);
        } else {
            self.fix_checksum(&mut frame);
        }
        frame
    }

    /// The ICMP error as it goes on between other ends, and what it quotes as its sender sent it.
    pub fn error_translated(&self, quoted: &Self, to: Ends) -> Vec<u8> {
        let mut frame = self.with_addresses(to);
        let quote = quoted.translated(to.turned());
        frame[self.l4 + 8..self.end].copy_from_slice(&quote[LINK..]);
        self.fix_checksum(&mut frame);
        frame
    }

    fn with_addresses(&self, to: Ends) -> Vec<u8> {
        let mut frame = self.frame.clone();
        let addresses = match (to.src, to.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => panic!("families do not mix"),
        };
        let at = LINK + if self.is_ipv6() { 8 } else { 12 };
        frame[at..at + addresses.len()].copy_from_slice(&addresses);
        if !self.is_ipv6() {
            let header = LINK..LINK + usize::from(frame[LINK] & 15) * 4;
            let right = shifted(
                word(&frame, LINK + 10),
                &self.frame[header.clone()],
                &frame[header],
            );
            frame[LINK + 10..LINK + 12].copy_from_slice(&right.to_be_bytes());
        }
        frame
    }

    /// Moves the transport checksum of a changed packet by as much as what it covers has changed.
    fn fix_checksum(&self, frame: &mut [u8]) {
        let Some(at) = self.checksum_at() else { return };
        let covered = |frame: &[u8]| {
            [
                &self.pseudo_header(frame, self.end - self.l4),
                &frame[self.l4..self.end],
            ]
            .concat()
        };
        let is = word(&self.frame, at);
        let checksum = match (self.protocol, shifted(is, &covered(&self.frame), &covered(frame))) {
            (UDP, _) if is == 0 => 0,
            (UDP, 0) => 0xffff,
            (_, checksum) => checksum,
        };
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Likewise SCTP's: what is wrong with it is the difference in each bit. How the datagram goes on after this packet
    /// does not matter to the difference (a CRC is linear), only how long it is.
    fn fix_crc(&self, frame: &mut [u8]) {
        let Some(len) = self.datagram else { return };
        let whole = |frame: &[u8]| {
            let mut bytes = frame[self.l4..self.end].to_vec();
            bytes.resize(len.max(12), 0);
            crc(&bytes)
        };
        let (before, after) = (whole(&self.frame), whole(frame));
        for i in 0..4 {
            if let Some(byte) = frame[..self.end].get_mut(self.l4 + 8 + i) {
                *byte ^= before[i] ^ after[i];
            }
        }
    }

    /// One hop less to live.
    pub fn hop(mut frame: Vec<u8>) -> Vec<u8> {
        if word(&frame, 12) == 0x86dd {
            frame[LINK + 7] -= 1;
        } else {
            frame[LINK + 8] -= 1;
            fix_header(&mut frame);
        }
        frame
    }

    /// The answer to it: an ICMP error from `from` (RJ-1, RJ-2), back to the station that sent it.
    pub fn answer(&self, kind: u8, code: u8, from: IpAddr) -> Vec<u8> {
        let original = &self.frame[LINK..self.end];
        let quote = &original[..original.len().min(if self.is_ipv6() { 1232 } else { 548 })];
        let mut frame = [&self.frame[6..12], &self.frame[..6], &self.frame[12..14]].concat();
        let len = 8 + quote.len() as u16;
        match (from, self.ends.src) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x45, 0xc0]);
                frame.extend((20 + len).to_be_bytes());
                frame.extend([0, 0, 0x40, 0, 64, ICMP, 0, 0]);
                frame.extend([from.octets(), to.octets()].concat());
                fix_header(&mut frame);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(len.to_be_bytes());
                frame.extend([ICMPV6, 64]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            _ => panic!("families do not mix"),
        }
        frame.extend([kind, code, 0, 0, 0, 0, 0, 0]);
        frame.extend(quote);
        fix_transport(frame)
    }
}

/// Makes the IPv4 header's checksum right, however long it says it is.
pub fn fix_header(frame: &mut [u8]) {
    let len = (usize::from(frame[LINK] & 15) * 4).clamp(20, frame.len() - LINK);
    frame[LINK + 10..LINK + 12].fill(0);
    let checksum = !sum(&frame[LINK..LINK + len]);
    frame[LINK + 10..LINK + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// Makes the transport checksum of a whole packet right, where there is one.
pub fn fix_transport(frame: Vec<u8>) -> Vec<u8> {
    let Ok(mut packet) = read_ip(&frame, false) else {
        return frame;
    };
    if packet.protocol == SCTP {
        let crc = crc(&packet.frame[packet.l4..packet.end]);
        packet.frame[packet.l4 + 8..packet.l4 + 12].copy_from_slice(&crc);
    } else if let Some(at) = packet.checksum_at() {
        packet.frame[at..at + 2].fill(0);
        let checksum = match !sum(&packet.covered()) {
            0 if packet.protocol == UDP => 0xffff,
            checksum => checksum,
        };
        packet.frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    packet.frame
}

/// SCTP's checksum: CRC32c over the packet with none in it, its lowest byte first (RFC 9260 §6.8, appendix A).
fn crc(packet: &[u8]) -> [u8; 4] {
    let mut covered = packet.to_vec();
    covered[8..12].fill(0);
    crc32c(&covered).to_le_bytes()
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
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut total: u32 = words.sum();
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

/// A checksum after what it covers has changed: a wrong one stays wrong by the same amount.
fn shifted(is: u16, before: &[u8], after: &[u8]) -> u16 {
    // In ones-complement arithmetic 0 and 0xffff are one number.
    match (u32::from(sum(before)) + 0xffff - u32::from(sum(after))) % 0xffff {
        0 => is,
        changed => ((u32::from(is) + changed) % 0xffff) as u16,
    }
}
