//! ICMP errors are of whom the packet is that they quote.

use super::super::super::bpf::writer::{IF_ABOVE, IF_BELOW, IF_BITS, IF_EQ, IF_NE, LOAD_1, LOAD_2, Writer};
use super::super::TO;
use super::{IPV6, KIND, Label, PROTOCOLS, QUOTED, SRC};

/// Destination unreachable, time exceeded, parameter problem (RFC 792).
pub(super) fn v4(w: &mut Writer<Label>) {
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
    w.put(0x7a, 10, 0, KIND, QUOTED);
    w.go(Label::Quoted);
}

/// Never neighbour discovery (RFC 4861 §4: types 133 to 137), whatever the address.
pub(super) fn v6(w: &mut Writer<Label>) {
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
    w.put(0x7a, 10, 0, KIND, IPV6 | QUOTED);
    // A first fragment: of later ones nobody tells.
    w.jump(IF_NE, 9, 44, Label::Quoted);
    w.need(7, 8, Label::Unlisted);
    w.load(LOAD_1, 9, 7, 0);
    w.put(0x07, 7, 0, 0, 8);

    // r4: the port it came from. The endpoint it went to is in the place of the source.
    w.place(Label::Quoted);
    w.need(7, 4, Label::Unlisted);
    w.load(LOAD_2, 4, 7, 0);
    for protocol in PROTOCOLS {
        w.jump(IF_EQ, 9, protocol, Label::Check);
    }
    w.go(Label::Unlisted);
}
