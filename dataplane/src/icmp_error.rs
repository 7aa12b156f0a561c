//! Takes  an ICMP error about a packet of ours.   Gives  the key of the packet it quotes, and the error as the quoted
//!        packet's sender can understand it (ICM-1).
//! Drops  nothing: an error that quotes nothing known is of no flow, which `lookup` decides.
//! Never  trusts a length that a packet says, its own or the quoted one's; never recomputes a checksum (a wrong one stays
//!        wrong).
//! Next   `tx`.
//!
//! What is quoted is a packet that we sent, so it went against the error's direction and carries the addresses that
//! packets of the error's direction *come* with, the other way round: `quoted.key.reversed()` finds the flow, in the
//! direction the error goes. The flow's rewrite of that direction then says everything, since what its sender sent is
//! what replies to it *leave* with, the other way round. A client hears of its packet to the VIP from the VIP, whoever on
//! the way complained (semantics §14); an endpoint hears of its reply from the address that it knows the client by.

use crate::addr::{Address, FlowKey, Port, Protocol, V4};
use crate::nat::{self, Rewrite};
use crate::parse::Packet;
use crate::wire::{Ip, checksum, icmp, icmpv6, tcp, udp};

/// What an ICMP error quotes. Offsets are from the Ethernet header and in bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A: Address = V4> {
    /// The quoted packet's key, as we sent it.
    pub key: FlowKey<A>,
    /// Offset of its IP header.
    l3: u16,
    /// Offset of its transport header.
    l4: u16,
    /// Bytes from the transport header on that it says it had; 0 if it was a fragment.
    transport_len: u16,
}

/// Bytes of the quoted transport header that there must be: what every sender of errors quotes (RFC 792).
const TRANSPORT_MIN: usize = 8;

/// Bytes of the longest transport header up to the end of its checksum.
const TRANSPORT_MAX: usize = tcp::CHECKSUM + 2;

/// What the ICMP error that `parse` proved `packet` of quotes: `None` if it is none, or if that is no TCP, UDP or SCTP
/// packet, a later fragment, or cut off before eight bytes of its transport header.
pub fn quoted<A: Ip>(bytes: &[u8], packet: &Packet<A>) -> Option<Quoted<A>> {
    if !packet.is_icmp_error() {
        return None;
    }
    let l3 = usize::from(packet.l4) + icmp::HEADER_LEN;
    let quote = bytes.get(l3..usize::from(packet.end))?;
    let transport = A::transport(quote)?;
    if !matches!(transport.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP) {
        return None;
    }
    let header = quote.get(transport.at..)?.first_chunk::<TRANSPORT_MIN>()?;
    Some(Quoted {
        key: FlowKey {
            src: transport.src,
            dst: transport.dst,
            src_port: Port([header[0], header[1]]),
            dst_port: Port([header[2], header[3]]),
            protocol: transport.protocol,
            ..FlowKey::default()
        },
        // Both below `end`.
        l3: l3 as u16,
        l4: (l3 + transport.at) as u16,
        transport_len: transport.len,
    })
}

/// Translates the ICMP error, its outer and its quoted addresses, ports and checksums, by what the quoted packet's flow
/// does in the direction the error goes. A checksum that is cut off, or an SCTP fragment's, is left.
pub fn translate<A: Ip>(bytes: &mut [u8], packet: &Packet<A>, quoted: &Quoted<A>, rewrite: &Rewrite<A>) {
    let Some(bytes) = bytes.get_mut(..usize::from(packet.end)) else {
        return;
    };
    let sent = rewrite.to.reversed();
    let (l3, l4) = (usize::from(quoted.l3), usize::from(quoted.l4));
    let end = bytes.len().min(l4 + TRANSPORT_MAX);
    let Some(quote) = bytes.get_mut(l3..end) else {
        return;
    };
    let before = checksum::sum(quote);
    translate_quote(quote, l4 - l3, quoted, &sent, rewrite);
    let mut delta = checksum::difference(before, checksum::sum(quote));

    let Some(outer) = bytes
        .get_mut(usize::from(packet.l3)..)
        .and_then(|ip| ip.get_mut(..A::HEADER_LEN))
    else {
        return;
    };
    let before = checksum::sum(outer);
    nat::put_addresses(outer, &rewrite.to);
    let addresses = checksum::difference(before, checksum::sum(outer));
    match A::CHECKSUM {
        Some(at) => nat::update(outer, at, |checksum| checksum::apply(checksum, addresses)),
        // ICMPv6 covers them itself (RFC 4443 §2.3).
        None => delta = checksum::add(delta, addresses),
    }
    if let Some(message) = bytes
        .get_mut(usize::from(packet.l4)..)
        .and_then(|message| message.get_mut(..icmp::HEADER_LEN))
    {
        const { assert!(icmp::CHECKSUM == icmpv6::CHECKSUM && icmp::HEADER_LEN == icmpv6::HEADER_LEN) };
        nat::update(message, icmp::CHECKSUM, |checksum| {
            checksum::apply(checksum, delta)
        });
    }
}

/// The quoted packet, as it was when its sender sent it. Which way round does not matter to a sum, so the deltas of what
/// leaves are those of what is quoted.
fn translate_quote<A: Ip>(
    quote: &mut [u8],
    l4: usize,
    quoted: &Quoted<A>,
    sent: &FlowKey<A>,
    rewrite: &Rewrite<A>,
) {
    let Some((header, transport)) = quote.split_at_mut_checked(l4) else {
        return;
    };
    let Some(header) = header.get_mut(..A::HEADER_LEN) else {
        return;
    };
    nat::put_addresses(header, sent);
    if let Some(at) = A::CHECKSUM {
        nat::update(header, at, |checksum| checksum::apply(checksum, rewrite.l3_delta));
    }
    if transport.len() < TRANSPORT_MIN {
        return;
    }
    let whole = |at: usize| transport.len() >= at + 2;
    match quoted.key.protocol {
        Protocol::TCP if whole(tcp::CHECKSUM) => nat::update(transport, tcp::CHECKSUM, |checksum| {
            checksum::apply(checksum, rewrite.l4_delta)
        }),
        Protocol::UDP => nat::update(transport, udp::CHECKSUM, |checksum| {
            checksum::apply_udp(checksum, rewrite.l4_delta)
        }),
        Protocol::SCTP => return nat::rewrite_sctp_header(transport, sent, quoted.transport_len),
        _ => {}
    }
    nat::put_ports(transport, sent);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::V6;
    use crate::nat::{deltas, negate};
    use crate::wire::samples::{
        Sample, Sampled, any_host, any_key, any_mutated_frame, any_sample_of, assert_checksums_right,
    };

    /// Where the IP packet of a frame starts.
    const L3: usize = 14;

    /// What a flow does to the replies to `from`, which it sends on as `to`.
    fn back<A: Address>(from: FlowKey<A>, to: FlowKey<A>) -> Rewrite<A> {
        let (l3_delta, l4_delta) = deltas(&from, &to);
        Rewrite {
            to: from.reversed(),
            l3_delta: negate(l3_delta),
            l4_delta: negate(l4_delta),
        }
    }

    /// The frame as it leaves for `to`.
    fn forwarded<A: Sampled>(frame: &[u8], to: FlowKey<A>) -> Vec<u8> {
        let packet = A::packet(frame);
        let (l3_delta, l4_delta) = deltas(&packet.key, &to);
        let mut frame = frame.to_vec();
        nat::rewrite(
            &mut frame,
            &packet,
            &Rewrite {
                to,
                l3_delta,
                l4_delta,
            },
        );
        frame
    }

    fn translated<A: Sampled>(error: &[u8], flow: &Rewrite<A>) -> Option<(FlowKey<A>, Vec<u8>)> {
        let packet = A::packet(error);
        let quoted = quoted(error, &packet)?;
        let mut error = error.to_vec();
        translate(&mut error, &packet, &quoted, flow);
        Some((quoted.key, error))
    }

    /// The sender of `frame`, which left for `to`, gets to know its packet again, from whom it had sent it to.
    fn assert_recognised<A: Sampled>(frame: Vec<u8>, mut to: FlowKey<A>, router: A, cut: usize, wrong: u16) {
        let sent = A::packet(&frame);
        to.protocol = sent.key.protocol;
        let there = forwarded(&frame, to);
        // Half of a ones-complement checksum cannot be kept.
        let half = sent.key.protocol == Protocol::TCP && cut == 17;
        let cut = (usize::from(sent.l4) + cut - usize::from(half)).min(frame.len());
        let mut error = A::error(router, to.src, &there[L3..cut]);
        let flow = back(sent.key, to);
        let (key, right) = translated(&error, &flow).unwrap();
        assert_eq!(key, to, "found by the reply's key, the other way round");
        let outer = A::packet(&right);
        assert_eq!((outer.key.src, outer.key.dst), (sent.key.dst, sent.key.src));
        let quote = usize::from(outer.l4) + 8;
        assert_eq!(right[quote..], frame[L3..cut]);
        assert_checksums_right(&right);

        let at = usize::from(outer.l4) + 2;
        let checksum = checksum::add(u16::from_be_bytes([error[at], error[at + 1]]), wrong);
        error[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        let (_, still) = translated(&error, &flow).unwrap();
        assert_eq!(checksum::delta(&right[at..at + 2], &still[at..at + 2]), wrong);
    }

    fn assert_only_headers_change<A: Sampled>(frame: &[u8], packet: &Packet<A>, to: FlowKey<A>) {
        let Some(quoted) = quoted(frame, packet) else {
            return;
        };
        let mut changed = frame.to_vec();
        translate(&mut changed, packet, &quoted, &back(quoted.key, to));
        let (l3, after) = (usize::from(packet.l3), usize::from(quoted.l4) + TRANSPORT_MAX);
        assert_eq!(changed[..l3], frame[..l3]);
        assert_eq!(changed.get(after..), frame.get(after..));
        let end = usize::from(packet.end);
        assert_eq!(changed.get(end..), frame.get(end..));
    }

    proptest! {
        #[test]
        fn the_sender_of_a_quoted_packet_knows_it_again_byte_for_byte(
            (v4, to4, router4) in (any_sample_of::<V4>(), any_key::<V4>(Protocol::TCP), any_host()),
            (v6, to6, router6) in (any_sample_of::<V6>(), any_key::<V6>(Protocol::TCP), any_host()),
            size in 0usize..1300, cut in prop_oneof![8usize..40, 8usize..1232], wrong in 1u16..0xffff,
        ) {
            // ICM-1, in either direction: the flow's two ends are alike to it.
            for (mut sample, v4_side) in [(v4, true), (v6, false)] {
                if matches!(sample.protocol, Protocol::ICMP | Protocol::ICMPV6) {
                    sample.protocol = Protocol::UDP;
                }
                sample.payload.resize(size, 0x5a);
                if v4_side {
                    assert_recognised(sample.frame(), to4, router4, cut.min(540), wrong);
                } else {
                    assert_recognised(sample.frame(), to6, router6, cut, wrong);
                }
            }
        }

        #[test]
        fn whatever_is_quoted_nothing_panics_or_changes_outside_the_headers(
            frame in any_mutated_frame(), v4 in any_key::<V4>(Protocol::TCP), v6 in any_key::<V6>(Protocol::TCP),
        ) {
            if frame.len() <= L3 {
                return Ok(());
            }
            let (four, six) = (V4::error(v4.src, v4.dst, &frame[L3..]), V6::error(v6.src, v6.dst, &frame[L3..]));
            assert_only_headers_change(&four, &V4::packet(&four), v4);
            assert_only_headers_change(&six, &V6::packet(&six), v6);
        }
    }

    /// The key of what an error that quotes these bytes is about.
    fn key_of(quote: &[u8]) -> Option<FlowKey> {
        let error = V4::error([192, 0, 2, 1], [10, 1, 0, 7], quote);
        quoted(&error, &V4::packet(&error)).map(|quoted| quoted.key)
    }

    #[test]
    fn eight_bytes_of_the_transport_header_are_enough_and_seven_are_not() {
        let packet = &Sample::of(Protocol::TCP).frame()[L3..];
        let expected = FlowKey::new(
            Protocol::TCP,
            "10.1.0.7:40000".parse().unwrap(),
            "10.96.0.10:53".parse().unwrap(),
        );
        assert_eq!(key_of(&packet[..28]), Some(expected));
        assert_eq!(key_of(&packet[..27]), None);
    }

    #[test]
    fn later_fragments_errors_and_broken_packets_are_quoted_in_vain() {
        let edited = |protocol: Protocol, at: usize, value: u8| {
            let mut packet = Sample::of(protocol).frame()[L3..].to_vec();
            packet[at] = value;
            key_of(&packet).is_some()
        };
        assert!(edited(Protocol::UDP, 6, 0x20), "a first fragment");
        assert!(!edited(Protocol::UDP, 7, 1), "a later one");
        assert!(!edited(Protocol::UDP, 0, 0x4f), "options past the end");
        assert!(!edited(Protocol::UDP, 0, 0x65), "another family");
        assert!(!edited(Protocol::ICMP, 8, 64), "an error has no flow");
        assert!(!edited(Protocol::UDP, 3, 19), "shorter than its own header");
    }

    #[test]
    fn udp_without_a_checksum_is_quoted_without_one() {
        // CSM-1.
        let mut frame = Sample::of(Protocol::UDP).frame();
        frame[40..42].fill(0);
        let to = FlowKey::new(
            Protocol::UDP,
            "10.0.0.1:1024".parse().unwrap(),
            "10.2.0.5:8080".parse().unwrap(),
        );
        assert_recognised::<V4>(frame, to, [192, 0, 2, 1], 8, 1);
    }
}
