//! The program: a frame that is Services' goes to the socket of its queue, any other to the kernel. It reads in the order that a
//! frame meets it: tag, addresses, fragments, whose it is, where it goes.

use std::ops::RangeInclusive;

use super::super::bpf::Instruction;
use super::super::bpf::writer::{
    IF_ABOVE, IF_BELOW, IF_BITS, IF_EQ, IF_NE, LOAD_1, LOAD_2, LOAD_4, LOAD_8, Writer,
};
use super::{DRAINING, FROM, OWN, PARTLY, TO};

mod quotes;

/// Places in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Tagged,
    Type,
    V4,
    V6,
    /// An IPv6 header by its place among those of a packet, and what it can be.
    Header(usize),
    Options(usize),
    Fragment(usize),
    Fragments,
    Decide,
    Port,
    Check,
    /// Behind a range of SNAT, by its place.
    NextRange(usize),
    Listed,
    Unlisted,
    Kernels,
    Remember,
    Source,
    Later,
    Unknown,
    Draining,
    Direct,
    Tuple6,
    Ask,
    Unknowing,
    IcmpV4,
    QuoteV4,
    IcmpV6,
    Quoted,
    Steer,
    Pass,
    Done,
}

// Registers. 0 to 5 are lost by a call. 6: the context, then the time; 7: behind the IP header; 8: the frame's end; 9: the protocol,
// and `LATER`.
const LATER: i32 = 256;
/// Stack: two keys of `addresses`, a key of `ports`, what `addresses` says of the destination, what the packet is (below).
const DST: i16 = -24;
const SRC: i16 = -48;
const PORT: i16 = -72;
const DST_FLAGS: i16 = -80;
const KIND: i16 = -88;
/// A key of `fragments` and the value for it; what the kernel is asked for a socket by.
const DATAGRAM: i16 = -128;
const FATE: i16 = -136;
const TUPLE: i16 = -176;

// What a packet is: of IPv6; a fragment; quoted by an ICMP error.
const IPV6: i32 = 1;
const FRAGMENT: i32 = 2;
const QUOTED: i32 = 4;

// Verdicts (linux/bpf.h, enum xdp_action).
const DROP: i32 = 1;
const PASS: i32 = 2;
const PROTOCOLS: [i32; 3] = [6, 17, 132];
/// Of IPv6 headers between the addresses and the ports as many are looked through as workers do (`wire::ipv6`).
const HEADERS: usize = crate::wire::ipv6::MAX_EXTENSIONS;

/// Descriptors of the maps that the program asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) addresses: i32,
    pub(super) ports: i32,
    pub(super) fragments: i32,
    pub(super) sockets: i32,
    pub(super) until: i32,
    pub(super) lost: i32,
}

const fn be(number: u16) -> i32 {
    number.to_be() as i32
}

/// The program for frames of these VLANs, 0 being those without one. A test holds it to `xdp_shared.disasm`.
pub(super) fn program(maps: Maps, snat: &[RangeInclusive<u16>], vlans: &[u16]) -> Vec<Instruction> {
    let mut w = Writer::new();
    tag(&mut w, vlans);
    v4(&mut w);
    v6(&mut w);
    decide(&mut w, maps);
    check(&mut w, maps, snat);
    fragments(&mut w, maps);
    draining(&mut w);
    quotes::v4(&mut w);
    quotes::v6(&mut w);
    ends(&mut w, maps);
    w.finish()
}

/// r2: the frame, as if it had no tag. Those to groups and of other VLANs are the kernel's.
fn tag(w: &mut Writer<Label>, vlans: &[u16]) {
    w.put(0xbf, 6, 1, 0, 0);
    w.load(LOAD_4, 2, 1, 0);
    w.load(LOAD_4, 8, 1, 4);
    w.need(2, 14, Label::Pass);
    w.load(LOAD_1, 4, 2, 0);
    w.jump(IF_BITS, 4, 1, Label::Pass);
    w.put(0x62, 10, 0, DST, 128);
    w.put(0x62, 10, 0, SRC, 128);
    w.load(LOAD_2, 4, 2, 12);
    if vlans != [0] {
        let untagged = if vlans.contains(&0) {
            Label::Type
        } else {
            Label::Pass
        };
        w.jump(IF_NE, 4, be(0x8100), untagged);
        w.need(2, 18, Label::Pass);
        w.load(LOAD_2, 5, 2, 14);
        w.put(0x57, 5, 0, 0, be(0x0fff));
        for vlan in vlans {
            w.jump(IF_EQ, 5, be(*vlan), Label::Tagged);
        }
        w.go(Label::Pass);
        w.place(Label::Tagged);
        w.load(LOAD_2, 4, 2, 16);
        w.put(0x07, 2, 0, 0, 4);
        w.place(Label::Type);
    }
    w.jump(IF_EQ, 4, be(0x0800), Label::V4);
    w.jump(IF_EQ, 4, be(0x86dd), Label::V6);
    w.go(Label::Pass);
}

fn v4(w: &mut Writer<Label>) {
    w.place(Label::V4);
    w.need(2, 34, Label::Pass);
    w.put(0x7a, 10, 0, KIND, 0);
    w.map_v4(SRC + 4);
    w.copy(2, 26, SRC + 16, 1);
    w.map_v4(DST + 4);
    w.copy(2, 30, DST + 16, 1);
    w.load(LOAD_1, 9, 2, 23);
    // The header's length.
    w.load(LOAD_1, 4, 2, 14);
    w.put(0x57, 4, 0, 0, 15);
    w.jump(IF_BELOW, 4, 5, Label::Pass);
    w.put(0x67, 4, 0, 0, 2);
    w.put(0xbf, 7, 2, 0, 0);
    w.put(0x07, 7, 0, 0, 14);
    w.put(0x0f, 7, 4, 0, 0);
    // More fragments, or an offset.
    w.load(LOAD_2, 4, 2, 20);
    w.put(0x57, 4, 0, 0, be(0x3fff));
    w.jump(IF_EQ, 4, 0, Label::Decide);
    w.load(LOAD_2, 5, 2, 18);
    w.put(0x7a, 10, 0, KIND, FRAGMENT);
    w.put(0x57, 4, 0, 0, be(0x1fff));
    w.go(Label::Fragments);
}

fn v6(w: &mut Writer<Label>) {
    w.place(Label::V6);
    w.need(2, 54, Label::Pass);
    w.put(0x7a, 10, 0, KIND, IPV6);
    w.copy(2, 22, SRC + 4, 4);
    w.copy(2, 38, DST + 4, 4);
    w.load(LOAD_1, 9, 2, 20);
    w.put(0xbf, 7, 2, 0, 0);
    w.put(0x07, 7, 0, 0, 54);
    for nth in 0..HEADERS {
        w.place(Label::Header(nth));
        w.jump(IF_EQ, 9, 44, Label::Fragment(nth));
        // Hop-by-hop and destination options, a route.
        for options in [0, 43, 60] {
            w.jump(IF_EQ, 9, options, Label::Options(nth));
        }
        w.go(Label::Decide);
        w.place(Label::Options(nth));
        w.need(7, 8, Label::Pass);
        w.load(LOAD_1, 9, 7, 0);
        w.load(LOAD_1, 4, 7, 1);
        // Its length: units of 8 bytes, without the first.
        w.put(0x67, 4, 0, 0, 3);
        w.put(0x07, 4, 0, 0, 8);
        w.put(0x0f, 7, 4, 0, 0);
        w.go(Label::Header(nth + 1));
        // What follows in the first fragment is in the next ones' past.
        w.place(Label::Fragment(nth));
        w.need(7, 8, Label::Pass);
        w.load(LOAD_1, 9, 7, 0);
        w.load(LOAD_2, 4, 7, 2);
        w.load(LOAD_4, 5, 7, 4);
        w.put(0x07, 7, 0, 0, 8);
        w.put(0x7a, 10, 0, KIND, IPV6 | FRAGMENT);
        w.put(0x57, 4, 0, 0, be(0xfff8));
        w.go(Label::Fragments);
    }
    w.place(Label::Header(HEADERS));
    w.go(Label::Decide);
}

/// r4: not 0 for a later fragment; r5: the datagram's identification. The key of `fragments`, then the flags of the destination.
fn decide(w: &mut Writer<Label>, maps: Maps) {
    w.place(Label::Fragments);
    w.put(0x63, 10, 5, DATAGRAM + 32, 0);
    w.put(0x63, 10, 9, DATAGRAM + 36, 0);
    w.put(0x15, 4, 0, 1, 0);
    w.put(0x47, 9, 0, 0, LATER);
    w.move_words(SRC + 4, DATAGRAM, 4);
    w.move_words(DST + 4, DATAGRAM + 16, 4);

    w.place(Label::Decide);
    w.look_up(maps.addresses, DST);
    // r1: its flags, or 0.
    w.put(0xb7, 1, 0, 0, 0);
    w.put(0x15, 0, 0, 1, 0);
    w.load(LOAD_4, 1, 0, 0);
    w.put(0x7b, 10, 1, DST_FLAGS, 0);
    w.jump(IF_EQ, 9, 58, Label::IcmpV6);
    w.jump(IF_BITS, 1, TO as i32, Label::Steer);
    w.jump(IF_BITS, 9, LATER, Label::Later);
    for protocol in PROTOCOLS {
        w.jump(IF_EQ, 9, protocol, Label::Port);
    }
    w.jump(IF_EQ, 9, 1, Label::IcmpV4);
    w.go(Label::Unlisted);
}

/// Whether the destination's port is Services'; where it has no say, the source.
fn check(w: &mut Writer<Label>, maps: Maps, snat: &[RangeInclusive<u16>]) {
    // r4: the destination port.
    w.place(Label::Port);
    w.need(7, 4, Label::Pass);
    w.load(LOAD_2, 4, 7, 2);

    w.place(Label::Check);
    w.recall(1, DST_FLAGS);
    w.put(0x57, 1, 0, 0, (PARTLY | OWN) as i32);
    w.jump(IF_EQ, 1, 0, Label::Source);
    w.put(0x6b, 10, 9, PORT + 16, 0);
    w.put(0x6b, 10, 4, PORT + 18, 0);
    w.move_words(DST + 4, PORT, 4);
    // SNAT's ports are the node's own addresses'; in this machine's byte order.
    w.put(0x57, 1, 0, 0, OWN as i32);
    w.put(0x15, 1, 0, snat_length(snat), 0);
    w.put(0xdc, 4, 0, 0, 16);
    for (nth, range) in snat.iter().enumerate() {
        w.jump(IF_BELOW, 4, i32::from(*range.start()), Label::NextRange(nth));
        w.jump(IF_ABOVE, 4, i32::from(*range.end()), Label::NextRange(nth));
        w.go(Label::Listed);
        w.place(Label::NextRange(nth));
    }
    w.look_up(maps.ports, PORT);
    w.jump(IF_EQ, 0, 0, Label::Unlisted);
    w.load(LOAD_4, 1, 0, 0);
    w.jump(IF_EQ, 1, DRAINING as i32, Label::Draining);

    w.place(Label::Listed);
    w.recall(1, KIND);
    w.put(0x62, 10, 0, FATE, 1);
    w.jump(IF_BITS, 1, FRAGMENT, Label::Remember);
    w.go(Label::Steer);

    w.place(Label::Unlisted);
    w.recall(1, DST_FLAGS);
    w.jump(IF_BITS, 1, OWN as i32, Label::Kernels);

    w.place(Label::Source);
    w.look_up(maps.addresses, SRC);
    w.jump(IF_EQ, 0, 0, Label::Pass);
    w.load(LOAD_4, 1, 0, 0);
    w.jump(IF_BITS, 1, FROM as i32, Label::Steer);
    w.go(Label::Pass);
}

/// Later fragments go where the first of their datagram went, if that is known.
fn fragments(w: &mut Writer<Label>, maps: Maps) {
    w.place(Label::Kernels);
    w.recall(1, KIND);
    w.put(0x62, 10, 0, FATE, 0);
    w.put(0x57, 1, 0, 0, FRAGMENT);
    w.jump(IF_EQ, 1, 0, Label::Pass);

    w.place(Label::Remember);
    w.map(maps.fragments);
    w.put(0xbf, 2, 10, 0, 0);
    w.put(0x07, 2, 0, 0, i32::from(DATAGRAM));
    w.put(0xbf, 3, 10, 0, 0);
    w.put(0x07, 3, 0, 0, i32::from(FATE));
    w.put(0xb7, 4, 0, 0, 0);
    w.call(2);
    w.load(LOAD_4, 1, 10, FATE);
    w.jump(IF_NE, 1, 0, Label::Steer);
    w.go(Label::Pass);

    // Before the first: those from endpoints are taken for replies, as all to an address that is not the node's own are for Services'.
    w.place(Label::Later);
    w.look_up(maps.fragments, DATAGRAM);
    w.jump(IF_EQ, 0, 0, Label::Unknown);
    w.load(LOAD_4, 1, 0, 0);
    w.jump(IF_NE, 1, 0, Label::Steer);
    w.go(Label::Pass);
    w.place(Label::Unknown);
    w.recall(1, DST_FLAGS);
    w.jump(IF_BITS, 1, PARTLY as i32, Label::Steer);
    w.go(Label::Source);
}

/// A port that was a frontend's: connections of then go on. The kernel has those that it has a socket for (bpf_skc_lookup_tcp), and
/// what opens one.
fn draining(w: &mut Writer<Label>) {
    w.place(Label::Draining);
    w.recall(1, KIND);
    // r5: the other port. A quoted packet goes the other way.
    w.load(LOAD_2, 5, 7, 0);
    w.put(0xbf, 2, 1, 0, 0);
    w.put(0x57, 2, 0, 0, QUOTED);
    w.jump(IF_EQ, 2, 0, Label::Direct);
    w.load(LOAD_2, 5, 7, 2);
    w.place(Label::Direct);
    w.load(LOAD_2, 4, 10, PORT + 18);
    w.jump(IF_BITS, 1, IPV6, Label::Tuple6);
    w.put(0x6b, 10, 5, TUPLE + 8, 0);
    w.put(0x6b, 10, 4, TUPLE + 10, 0);
    w.move_words(SRC + 16, TUPLE, 1);
    w.move_words(DST + 16, TUPLE + 4, 1);
    w.put(0xb7, 3, 0, 0, 12);
    w.go(Label::Ask);
    w.place(Label::Tuple6);
    w.put(0x6b, 10, 5, TUPLE + 32, 0);
    w.put(0x6b, 10, 4, TUPLE + 34, 0);
    w.move_words(SRC + 4, TUPLE, 4);
    w.move_words(DST + 4, TUPLE + 16, 4);
    w.put(0xb7, 3, 0, 0, 36);
    w.place(Label::Ask);
    w.put(0xbf, 1, 6, 0, 0);
    w.put(0xbf, 2, 10, 0, 0);
    w.put(0x07, 2, 0, 0, i32::from(TUPLE));
    // This network namespace's.
    w.put(0xb7, 4, 0, 0, -1);
    w.put(0xb7, 5, 0, 0, 0);
    w.call(99);
    w.jump(IF_EQ, 0, 0, Label::Unknowing);
    // Its state, and it is let go.
    w.load(LOAD_4, 9, 0, 72);
    w.put(0xbf, 1, 0, 0, 0);
    w.call(86);
    w.jump(IF_NE, 9, TCP_LISTEN, Label::Kernels);
    w.place(Label::Unknowing);
    w.recall(1, KIND);
    w.jump(IF_BITS, 1, QUOTED, Label::Steer);
    w.need(7, 14, Label::Kernels);
    // SYN without ACK.
    w.load(LOAD_1, 4, 7, 13);
    w.put(0x57, 4, 0, 0, 0x12);
    w.jump(IF_EQ, 4, 0x02, Label::Kernels);
    w.go(Label::Listed);
}

/// net/tcp_states.h.
const TCP_LISTEN: i32 = 10;

fn ends(w: &mut Writer<Label>, maps: Maps) {
    w.place(Label::Pass);
    w.put(0xb7, 0, 0, 0, PASS);
    w.put(0x95, 0, 0, 0, 0);

    w.place(Label::Steer);
    w.load(LOAD_4, 2, 6, 16);
    w.map(maps.sockets);
    w.put(0xb7, 3, 0, 0, PASS);
    w.call(51);
    w.jump(IF_NE, 0, PASS, Label::Done);
    // No socket: withheld from the kernel, and counted, until the time that a process has set.
    w.call(5);
    w.put(0xbf, 6, 0, 0, 0);
    w.put(0xb7, 0, 0, 0, PASS);
    w.address(1, maps.until);
    w.load(LOAD_8, 1, 1, 0);
    w.jump_above(6, 1, Label::Done);
    w.address(1, maps.lost);
    w.put(0xb7, 2, 0, 0, 1);
    // Atomic addition, of eight bytes.
    w.put(0xdb, 1, 2, 0, 0);
    w.put(0xb7, 0, 0, 0, DROP);
    w.place(Label::Done);
    w.put(0x95, 0, 0, 0, 0);
}

/// Instructions that the ranges and the turn of the port take.
const fn snat_length(snat: &[RangeInclusive<u16>]) -> i16 {
    1 + 3 * snat.len() as i16
}
