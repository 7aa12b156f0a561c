//! A frame of any bytes: what `parse` accepts can be rewritten, back again, and lose a hop, and nothing outside its
//! headers changes; an ICMP error can be translated within its own bytes, and back again.

use sluice_dataplane::addr::{FlowKey, Mac, Port};
use sluice_dataplane::icmp_error;
use sluice_dataplane::nat::{self, Rewrite};
use sluice_dataplane::parse::{Fragment, Packet, Parsed, parse};
use sluice_dataplane::wire::{Ip, checksum};

use crate::bytes::Bytes;

/// The station that frames are for.
pub(crate) const STATION: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// What translation may touch of a transport header: TCP's, the longest, up to its checksum and no further.
const TRANSPORT: usize = 20;

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let new = (bytes.take(8), bytes.word(), bytes.word());
    let frame = addressed(bytes.0);
    match parse(&frame, STATION) {
        Parsed::Ipv4(packet) => accepted(&frame, &packet, new),
        Parsed::Ipv6(packet) => accepted(&frame, &packet, new),
        Parsed::Neighbour | Parsed::Other(_) | Parsed::Drop(_) | Parsed::Settled(_) => {}
    }
}

/// The frame with our address on it, or nearly no input would pass its first test.
pub(crate) fn addressed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(dst) = frame.first_chunk_mut::<6>()
        && dst[0] & 0xf0 != 0xf0
    {
        *dst = STATION.0;
    }
    frame
}

fn accepted<A: Ip>(frame: &[u8], packet: &Packet<A>, (addresses, src_port, dst_port): (&[u8], u16, u16)) {
    let from = packet.key;
    let mut to = from;
    if from.src_port.number() | from.dst_port.number() != 0 {
        (to.src_port, to.dst_port) = (Port::new(src_port), Port::new(dst_port));
    }
    // Other addresses, of this one's family: turned around, or the same with the last bytes of the input's.
    if addresses.first().is_some_and(|byte| byte & 1 == 1) {
        (to.src, to.dst) = (from.dst, from.src);
    }
    let (l3_delta, l4_delta) = nat::deltas(&from, &to);
    let there = Rewrite {
        to,
        l3_delta,
        l4_delta,
    };
    let back = Rewrite {
        to: from,
        l3_delta: checksum::negate(l3_delta),
        l4_delta: checksum::negate(l4_delta),
    };
    let (l3, l4, end) = (
        usize::from(packet.l3),
        usize::from(packet.l4),
        usize::from(packet.end),
    );
    assert!(
        l3 <= l4 && l4 <= end && end <= frame.len(),
        "offsets are in order and in the frame"
    );
    let mut changed = frame.to_vec();
    nat::rewrite(&mut changed, packet, &there);
    assert_eq!(changed[..l3], frame[..l3], "the link's header stays");
    let headers_end = (l4 + TRANSPORT).min(end);
    assert_eq!(
        changed[headers_end..],
        frame[headers_end..],
        "what is carried stays, and so does padding"
    );
    nat::rewrite(&mut changed, packet, &back);
    // 0xffff, which no sender computes, may come back as the other zero.
    same_but_zeroes(&changed, frame);
    if packet.fragment == Fragment::Whole
        && A::is_translated_error(packet.icmp_type)
        && let Some(quoted) = icmp_error::quoted(frame, packet)
    {
        error(frame, packet, &quoted, src_port);
    }
    nat::decrement_ttl(&mut changed, packet);
}

fn error<A: Ip>(frame: &[u8], packet: &Packet<A>, quoted: &icmp_error::Quoted<A>, port: u16) {
    // What the quoted packet's sender knows its flow by, the other way round.
    let comes = quoted.key.reversed();
    let leaves = FlowKey {
        src: comes.dst,
        dst_port: Port::new(port),
        ..comes
    };
    let (l3_delta, l4_delta) = nat::deltas(&comes, &leaves);
    let mut changed = frame.to_vec();
    icmp_error::translate(
        &mut changed,
        packet,
        quoted,
        &Rewrite {
            to: leaves,
            l3_delta,
            l4_delta,
        },
    );
    let (l3, end) = (usize::from(packet.l3), usize::from(packet.end));
    assert_eq!(
        (&changed[..l3], &changed[end..]),
        (&frame[..l3], &frame[end..]),
        "link and padding stay"
    );
    let again = icmp_error::quoted(&changed, packet).expect("it still quotes a packet");
    assert_eq!(again.key, leaves.reversed(), "the quote is what its sender sent");
}

fn same_but_zeroes(changed: &[u8], frame: &[u8]) {
    let differ = |at: &usize| changed[*at] != frame[*at];
    let places: Vec<usize> = (0..frame.len()).filter(differ).collect();
    let zero = |at: usize| frame[at] == 0xff && changed[at] == 0 || frame[at] == 0 && changed[at] == 0xff;
    assert!(
        places.len() <= 4 && places.iter().all(|&at| zero(at)),
        "there and back changes {places:?}"
    );
}
