//! The program: a frame that is Services' goes to the socket of its queue, any other to the kernel.

use std::ops::RangeInclusive;

use super::super::bpf::Instruction;
use super::super::bpf::writer::{
    IF_ABOVE, IF_BELOW, IF_BITS, IF_EQ, IF_NE, LOAD_1, LOAD_2, LOAD_4, LOAD_8, Writer,
};
use super::{FROM, OWN, PARTLY, TO};

/// Places in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    V4,
    V6,
    Decide,
    Port,
    Check,
    Later,
    IcmpV4,
    QuoteV4,
    IcmpV6,
    Quoted,
    Unlisted,
    Source,
    Steer,
    Pass,
    Done,
    /// Behind a range of SNAT, by its place.
    NextRange(usize),
}

// Registers. 0 to 5 are lost by a call. 6: the context, then the time; 7: behind the IP header; 8: the frame's end; 9: the protocol, and `LATER`.
const LATER: i32 = 256;
/// Stack: two keys of `addresses`, a key of `ports`, what `addresses` says of the destination.
const DST: i16 = -24;
const SRC: i16 = -48;
const PORT: i16 = -72;
const DST_FLAGS: i16 = -80;

// Verdicts (linux/bpf.h, enum xdp_action).
const DROP: i32 = 1;
const PASS: i32 = 2;
const PROTOCOLS: [i32; 3] = [6, 17, 132];

/// Descriptors of the maps that the program asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) addresses: i32,
    pub(super) ports: i32,
    pub(super) sockets: i32,
    pub(super) until: i32,
    pub(super) lost: i32,
}

/// The program. A test holds it to `xdp_shared.disasm`.
pub(super) fn program(maps: Maps, snat: &[RangeInclusive<u16>]) -> Vec<Instruction> {
    let mut w = Writer::new();
    let be = |number: u16| i32::from(number.to_be());
    // The frame, its end, its destination and type.
    w.put(0xbf, 6, 1, 0, 0);
    w.load(LOAD_4, 2, 1, 0);
    w.load(LOAD_4, 8, 1, 4);
    w.need(2, 14, Label::Pass);
    w.load(LOAD_1, 4, 2, 0);
    w.jump(IF_BITS, 4, 1, Label::Pass);
    w.put(0x62, 10, 0, DST, 128);
    w.put(0x62, 10, 0, SRC, 128);
    w.load(LOAD_2, 4, 2, 12);
    w.jump(IF_EQ, 4, be(0x0800), Label::V4);
    w.jump(IF_EQ, 4, be(0x86dd), Label::V6);
    w.go(Label::Pass);

    w.place(Label::V4);
    w.need(2, 34, Label::Pass);
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
    // A later fragment: its offset is not 0.
    w.load(LOAD_2, 4, 2, 20);
    w.put(0x57, 4, 0, 0, be(0x1fff));
    w.jump(IF_EQ, 4, 0, Label::Decide);
    w.put(0x47, 9, 0, 0, LATER);
    w.go(Label::Decide);

    w.place(Label::V6);
    w.need(2, 54, Label::Pass);
    w.copy(2, 22, SRC + 4, 4);
    w.copy(2, 38, DST + 4, 4);
    w.load(LOAD_1, 9, 2, 20);
    w.put(0xbf, 7, 2, 0, 0);
    w.put(0x07, 7, 0, 0, 54);
    // A fragment header, of which only one that comes first is looked at.
    w.jump(IF_NE, 9, 44, Label::Decide);
    w.need(2, 62, Label::Pass);
    w.load(LOAD_1, 9, 2, 54);
    w.put(0x07, 7, 0, 0, 8);
    w.load(LOAD_2, 4, 2, 56);
    w.put(0x57, 4, 0, 0, be(0xfff8));
    w.jump(IF_EQ, 4, 0, Label::Decide);
    w.put(0x47, 9, 0, 0, LATER);

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
    for word in 0..4 {
        w.load(LOAD_4, 5, 10, DST + 4 + 4 * word);
        w.put(0x63, 10, 5, PORT + 4 * word, 0);
    }
    // SNAT's ports are the node's own addresses'; in this machine's byte order.
    w.put(0x57, 1, 0, 0, OWN as i32);
    w.put(0x15, 1, 0, snat_length(snat), 0);
    w.put(0xdc, 4, 0, 0, 16);
    for (nth, range) in snat.iter().enumerate() {
        w.jump(IF_BELOW, 4, i32::from(*range.start()), Label::NextRange(nth));
        w.jump(IF_ABOVE, 4, i32::from(*range.end()), Label::NextRange(nth));
        w.go(Label::Steer);
        w.place(Label::NextRange(nth));
    }
    w.look_up(maps.ports, PORT);
    w.jump(IF_NE, 0, 0, Label::Steer);

    w.place(Label::Unlisted);
    w.recall(1, DST_FLAGS);
    w.jump(IF_BITS, 1, OWN as i32, Label::Pass);

    w.place(Label::Source);
    w.look_up(maps.addresses, SRC);
    w.jump(IF_EQ, 0, 0, Label::Pass);
    w.load(LOAD_4, 1, 0, 0);
    w.jump(IF_BITS, 1, FROM as i32, Label::Steer);

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

    // A node's own address has later fragments of both: those from endpoints are taken for Services'.
    w.place(Label::Later);
    w.jump(IF_BITS, 1, PARTLY as i32, Label::Steer);
    w.go(Label::Source);

    // Destination unreachable, time exceeded, parameter problem (RFC 792).
    w.place(Label::IcmpV4);
    w.need(7, 8 + 20, Label::Unlisted);
    w.load(LOAD_1, 4, 7, 0);
    w.jump(IF_EQ, 4, 3, Label::QuoteV4);
    w.jump(IF_EQ, 4, 11, Label::QuoteV4);
    w.jump(IF_NE, 4, 12, Label::Unlisted);
    w.place(Label::QuoteV4);
    w.copy(7, 8 + 16, SRC + 16, 1);
    w.load(LOAD_1, 9, 7, 8 + 9);
    w.load(LOAD_1, 4, 7, 8);
    w.put(0x57, 4, 0, 0, 15);
    w.put(0x67, 4, 0, 0, 2);
    w.put(0x07, 7, 0, 0, 8);
    w.put(0x0f, 7, 4, 0, 0);
    w.go(Label::Quoted);

    // Never neighbour discovery (RFC 4861 §4: types 133 to 137), whatever the address.
    w.place(Label::IcmpV6);
    w.need(7, 1, Label::Pass);
    w.load(LOAD_1, 4, 7, 0);
    w.put(0xbf, 5, 4, 0, 0);
    w.put(0x17, 5, 0, 0, 133);
    w.jump(IF_BELOW, 5, 5, Label::Pass);
    w.jump(IF_BITS, 1, TO as i32, Label::Steer);
    // Errors (RFC 4443 §2.1: those that exist are types 1 to 4).
    w.put(0x17, 4, 0, 0, 1);
    w.jump(IF_ABOVE, 4, 3, Label::Unlisted);
    w.need(7, 8 + 40, Label::Unlisted);
    w.copy(7, 8 + 24, SRC + 4, 4);
    w.load(LOAD_1, 9, 7, 8 + 6);
    w.put(0x07, 7, 0, 0, 8 + 40);

    // r4: the port it came from. The endpoint it went to is in the place of the source.
    w.place(Label::Quoted);
    w.need(7, 4, Label::Unlisted);
    w.load(LOAD_2, 4, 7, 0);
    for protocol in PROTOCOLS {
        w.jump(IF_EQ, 9, protocol, Label::Check);
    }
    w.go(Label::Unlisted);
    w.finish()
}

/// Instructions that the ranges and the turn of the port take.
const fn snat_length(snat: &[RangeInclusive<u16>]) -> i16 {
    1 + 3 * snat.len() as i16
}
