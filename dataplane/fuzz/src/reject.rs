//! An answer to any packet that `parse` accepts: built or refused, never too long, with right checksums, and itself a
//! packet.

use sluice_dataplane::parse::{Packet, Parsed, parse};
use sluice_dataplane::reject::{ANSWER_FRAME_MAX, Answer, echo_reply, icmp_error};
use sluice_dataplane::verdict::{DropReason, Rejection};

use crate::bytes::Bytes;
use crate::parse::{STATION, addressed};

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let rejection = bytes.one_of(&[Rejection::PortUnreachable, Rejection::TimeExceeded]);
    let host = bytes.byte();
    let frame = addressed(bytes.0);
    match parse(&frame, STATION) {
        Parsed::Ipv4(packet) => answer(&frame, &packet, rejection, [192, 0, 2, host]),
        Parsed::Ipv6(packet) => {
            let mut from = [0; 16];
            (from[0], from[15]) = (0xfd, host);
            answer(&frame, &packet, rejection, from);
        }
        Parsed::Neighbour | Parsed::Other(_) | Parsed::Drop(_) | Parsed::Settled(_) => {}
    }
}

fn answer<A: Answer>(frame: &[u8], packet: &Packet<A>, rejection: Rejection, from: A) {
    let mut out = vec![0x55; ANSWER_FRAME_MAX.max(frame.len())];
    match icmp_error(frame, packet, rejection, from, &mut out) {
        Ok(len) => {
            let max = if A::BITS == 32 { 576 } else { 1280 };
            assert!(len - usize::from(packet.l3) <= max, "{len} bytes");
            let l3 = usize::from(packet.l3);
            let quote = &out[l3 + A::HEADER_LEN + 8..len];
            assert!(
                !quote.is_empty() && frame[l3..].starts_with(quote),
                "the packet as it came is quoted"
            );
            is_sound(&out[..len]);
        }
        Err(reason) => assert_eq!(reason, DropReason::RejectForbidden),
    }
    match echo_reply(frame, packet, &mut out) {
        Ok(len) => is_sound(&out[..len]),
        Err(reason) => assert_eq!(reason, DropReason::RejectForbidden),
    }
}

/// Whoever asked accepts the answer, by the same rules.
fn is_sound(answer: &[u8]) {
    let station = sluice_dataplane::addr::Mac(*answer.first_chunk().unwrap());
    let is_packet = matches!(parse(answer, station), Parsed::Ipv4(_) | Parsed::Ipv6(_));
    assert!(is_packet, "{:?}: {answer:02x?}", parse(answer, station));
}
