//! Completes transport checksums that the sender left to hardware. A veth or tap peer delivers TCP and UDP whose
//! checksum field holds only the folded sum of the pseudo-header (CHECKSUM_PARTIAL, linux/skbuff.h): nobody would
//! ever finish it once the packet leaves by another NIC port. SCTP's checksum is then zero.
//! Takes a frame. Gives whether it completed one. Never reads outside the frame; leaves alone fragments, other
//! protocols, right checksums and wrong ones: what is not exactly the pseudo-header sum is the sender's own.

use super::DriverStats;
use crate::wire::sctp;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q and 802.1ad tags.
const VLAN_TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Two tags (QinQ) are as deep as Ethernet goes in practice.
const MAX_TAGS: usize = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// IPv6 extension headers with options (RFC 8200 §4.3, §4.6), of which the first may be followed by the second.
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;
const MAX_OPTIONS: usize = 2;

/// Completes the checksum of `frame` if it is partial, and counts it.
pub(crate) fn complete(frame: &mut [u8], stats: &mut DriverStats) {
    if complete_checksum(frame) {
        stats.rx_checksums_completed += 1;
    }
}

/// Completes the TCP or UDP checksum of an Ethernet frame if it holds only the pseudo-header's sum. Whether it did.
pub fn complete_checksum(frame: &mut [u8]) -> bool {
    try_complete(frame).is_some()
}

fn try_complete(frame: &mut [u8]) -> Option<()> {
    let segment = find_segment(frame)?;
    let field = match segment.protocol {
        TCP => segment.start + 16,
        UDP => segment.start + 6,
        _ => return complete_sctp(frame.get_mut(segment.start..segment.end)?),
    };
    let pseudo = fold(segment.pseudo_sum);
    if field + 2 > segment.end || u16_at(frame, field)? != pseudo {
        return None;
    }
    // Every byte, with the field as it is: all ones means the checksum was right and only looked partial.
    let whole = fold(segment.pseudo_sum + sum(frame.get(segment.start..segment.end)?));
    if whole == 0xffff {
        return None;
    }
    // The field already holds what the pseudo-header adds, so the segment's own sum is the whole.
    let checksum = !fold(sum(frame.get(segment.start..segment.end)?));
    // A UDP checksum of zero would mean "none" (RFC 768): its other form is sent.
    let checksum = if checksum == 0 && segment.protocol == UDP {
        0xffff
    } else {
        checksum
    };
    frame
        .get_mut(field..field + 2)?
        .copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

/// SCTP's CRC32c has no pseudo-header: one that is left to hardware is zero (net/sctp/output.c).
fn complete_sctp(packet: &mut [u8]) -> Option<()> {
    let field = sctp::CHECKSUM..sctp::HEADER_LEN;
    if packet.get(field.clone())? != [0; 4] {
        return None;
    }
    // Little-endian on the wire (RFC 9260 Appendix A).
    let checksum = crc32c::crc32c(packet);
    packet.get_mut(field)?.copy_from_slice(&checksum.to_le_bytes());
    (checksum != 0).then_some(())
}

/// An unfragmented transport segment: `start..end` lies in the frame.
struct Segment {
    start: usize,
    end: usize,
    protocol: u8,
    pseudo_sum: u64,
}

fn find_segment(frame: &[u8]) -> Option<Segment> {
    let mut ethertype = u16_at(frame, 12)?;
    let mut l3 = 14;
    for _ in 0..MAX_TAGS {
        if VLAN_TAGS.contains(&ethertype) {
            ethertype = u16_at(frame, l3 + 2)?;
            l3 += 4;
        }
    }
    let (start, end, protocol, addresses) = match ethertype {
        ETHERTYPE_IPV4 => {
            let header = frame.get(l3..l3 + 20)?;
            let header_len = usize::from(header[0] & 0x0f) * 4;
            let total = usize::from(u16_at(header, 2)?);
            // More fragments, or an offset (RFC 791 §3.1): the checksum covers bytes that are elsewhere.
            let fragment = u16_at(header, 6)? & 0x3fff != 0;
            if header[0] >> 4 != 4 || header_len < 20 || total < header_len || fragment {
                return None;
            }
            (l3 + header_len, l3 + total, header[9], &header[12..20])
        }
        ETHERTYPE_IPV6 => {
            let header = frame.get(l3..l3 + 40)?;
            let end = l3 + 40 + usize::from(u16_at(header, 4)?);
            let (mut start, mut next) = (l3 + 40, header[6]);
            // Options do not enter the pseudo-header. A routing header changes it and a fragment has no checksum of its
            // own: senders finish those themselves.
            for _ in 0..MAX_OPTIONS {
                if next == HOP_BY_HOP || next == DESTINATION {
                    let extension = frame.get(start..start + 2)?;
                    next = extension[0];
                    start += 8 + usize::from(extension[1]) * 8;
                }
            }
            (start, end, next, &header[8..40])
        }
        _ => return None,
    };
    if end > frame.len() || start > end || !matches!(protocol, TCP | UDP | SCTP) {
        return None;
    }
    let pseudo_sum = sum(addresses) + u64::from(protocol) + (end - start) as u64;
    Some(Segment {
        start,
        end,
        protocol,
        pseudo_sum,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// Ones-complement sum of big-endian words, unfolded (RFC 1071); an odd last byte is the high half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let words: u64 = words.iter().map(|&w| u64::from(u16::from_be_bytes(w))).sum();
    words + rest.first().map_or(0, |&last| u64::from(last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    use super::*;

    /// A whole packet with its right checksum, and the offset of the field.
    fn packet(
        tcp: bool,
        vlan: bool,
        v6: bool,
        hosts: (u8, u8),
        ports: (u16, u16),
        payload: &[u8],
    ) -> (Vec<u8>, usize) {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let address = |host| [10, 0, 0, host];
        let address6 = |host| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
        let ip = match (vlan, v6) {
            (false, false) => link.ipv4(address(hosts.0), address(hosts.1), 64),
            (true, false) => {
                link.single_vlan(7.try_into().unwrap())
                    .ipv4(address(hosts.0), address(hosts.1), 64)
            }
            (false, true) => link.ipv6(address6(hosts.0), address6(hosts.1), 64),
            (true, true) => {
                link.single_vlan(7.try_into().unwrap())
                    .ipv6(address6(hosts.0), address6(hosts.1), 64)
            }
        };
        let mut bytes = Vec::new();
        let l4 = 14 + if vlan { 4 } else { 0 } + if v6 { 40 } else { 20 };
        if tcp {
            ip.tcp(ports.0, ports.1, 1, 1024)
                .write(&mut bytes, payload)
                .unwrap();
            (bytes, l4 + 16)
        } else {
            ip.udp(ports.0, ports.1).write(&mut bytes, payload).unwrap();
            (bytes, l4 + 6)
        }
    }

    /// What a sender that leaves the checksum to hardware would have written.
    fn make_partial(bytes: &mut [u8], field: usize) {
        let pseudo = fold(find_segment(bytes).unwrap().pseudo_sum);
        bytes[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    }

    #[test]
    fn the_checksum_written_is_the_one_etherparse_computes() {
        let (right, field) = packet(true, false, false, (1, 2), (4000, 80), b"hello");
        let mut partial = right.clone();
        make_partial(&mut partial, field);
        assert!(complete_checksum(&mut partial));
        let headers = PacketHeaders::from_ethernet_slice(&partial).unwrap();
        let (Some(TransportHeader::Tcp(tcp)), Some(etherparse::NetHeaders::Ipv4(ip, _))) =
            (headers.transport, headers.net)
        else {
            panic!("not TCP over IPv4")
        };
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, b"hello").unwrap());
        assert_eq!(partial, right);
    }

    /// An SCTP packet (RFC 9260 §3) whose CRC32c is left to hardware, over IPv6 with a destination options header.
    fn sctp_over_options() -> Vec<u8> {
        let (udp, _) = packet(false, false, true, (1, 2), (0, 0), &[]);
        let mut bytes = udp[..54].to_vec();
        bytes[18..20].copy_from_slice(&24u16.to_be_bytes());
        bytes[20] = DESTINATION;
        bytes.extend([SCTP, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend([0x0f, 0xa0, 0x00, 0x50, 1, 2, 3, 4, 0, 0, 0, 0, 11, 0, 0, 4]);
        bytes
    }

    #[test]
    fn sctp_left_to_hardware_gets_its_crc_and_another_stays() {
        let mut bytes = sctp_over_options();
        assert!(complete_checksum(&mut bytes));
        let packet = sctp::Sctp::new(&bytes[62..]).unwrap();
        assert!(packet.checksum_ok());
        assert!(!complete_checksum(&mut bytes), "a right one stays");
        bytes[70] ^= 1;
        let before = bytes.clone();
        assert!(!complete_checksum(&mut bytes));
        assert_eq!(bytes, before, "a wrong one stays wrong");
    }

    #[test]
    fn tcp_behind_ipv6_options_is_completed_and_behind_a_routing_header_left_alone() {
        for (next, completes) in [(DESTINATION, true), (HOP_BY_HOP, true), (43, false), (44, false)] {
            let (right, _) = packet(true, false, true, (1, 2), (4000, 80), b"hello");
            let mut bytes = right.clone();
            bytes.splice(54..54, [TCP, 0, 1, 4, 0, 0, 0, 0]);
            let len = u16_at(&bytes, 18).unwrap() + 8;
            bytes[18..20].copy_from_slice(&len.to_be_bytes());
            bytes[20] = next;
            let expected = bytes.clone();
            let pseudo = fold(find_segment(&right).unwrap().pseudo_sum);
            bytes[78..80].copy_from_slice(&pseudo.to_be_bytes());
            assert_eq!(complete_checksum(&mut bytes), completes, "next header {next}");
            assert_eq!(bytes == expected, completes);
        }
    }

    #[test]
    fn fragments_are_left_alone() {
        for flags in [0x2000u16, 0x0001, 0x3fff] {
            let (mut bytes, field) = packet(false, false, false, (1, 2), (53, 53), b"part");
            make_partial(&mut bytes, field);
            bytes[20..22].copy_from_slice(&flags.to_be_bytes());
            let before = bytes.clone();
            assert!(!complete_checksum(&mut bytes));
            assert_eq!(bytes, before);
        }
    }

    #[test]
    fn a_udp_packet_without_checksum_stays_without() {
        let (mut bytes, field) = packet(false, false, false, (1, 2), (53, 53), b"none");
        bytes[field..field + 2].fill(0);
        assert!(!complete_checksum(&mut bytes));
    }

    #[test]
    fn padding_after_the_ip_packet_is_not_summed() {
        let (right, field) = packet(false, false, false, (1, 2), (53, 53), b"x");
        let mut padded = right.clone();
        make_partial(&mut padded, field);
        padded.resize(60, 0xee);
        assert!(complete_checksum(&mut padded));
        assert_eq!(padded[..right.len()], right);
    }

    #[test]
    fn each_completed_checksum_is_counted_once() {
        let (mut bytes, field) = packet(true, false, false, (1, 2), (1, 2), b"");
        make_partial(&mut bytes, field);
        let mut stats = DriverStats::default();
        complete(&mut bytes, &mut stats);
        complete(&mut bytes, &mut stats);
        assert_eq!(stats.rx_checksums_completed, 1);
    }

    proptest! {
        #[test]
        fn a_partial_checksum_becomes_the_right_one_and_a_right_one_stays(
            tcp: bool, vlan: bool, v6: bool, hosts: (u8, u8), ports: (u16, u16),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let (right, field) = packet(tcp, vlan, v6, hosts, ports, &payload);
            let mut bytes = right.clone();
            prop_assert!(!complete_checksum(&mut bytes));
            prop_assert_eq!(&bytes, &right);
            make_partial(&mut bytes, field);
            // One in 65536 packets is right by its pseudo-header sum alone: nothing to do there.
            let partial = bytes != right;
            prop_assert_eq!(complete_checksum(&mut bytes), partial);
            prop_assert_eq!(bytes, right);
        }

        #[test]
        fn a_checksum_that_is_neither_partial_nor_right_stays_wrong(
            tcp: bool, hosts: (u8, u8), wrong: u16, payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let (mut bytes, field) = packet(tcp, false, false, hosts, (1, 2), &payload);
            let pseudo = fold(find_segment(&bytes).unwrap().pseudo_sum);
            prop_assume!(wrong != pseudo);
            bytes[field..field + 2].copy_from_slice(&wrong.to_be_bytes());
            let before = bytes.clone();
            prop_assert!(!complete_checksum(&mut bytes));
            prop_assert_eq!(bytes, before);
        }

        #[test]
        fn no_bytes_and_no_truncation_make_it_read_outside(
            noise in proptest::collection::vec(any::<u8>(), 0..80), cut in 0usize..80, tcp: bool, vlan: bool,
        ) {
            complete_checksum(&mut noise.clone());
            let (mut bytes, field) = packet(tcp, vlan, false, (1, 2), (3, 4), &[7; 30]);
            make_partial(&mut bytes, field);
            bytes.truncate(cut);
            let before = bytes.clone();
            if bytes.len() < 14 + 20 + 8 + 30 {
                prop_assert!(!complete_checksum(&mut bytes));
                prop_assert_eq!(bytes, before);
            }
        }
    }
}
