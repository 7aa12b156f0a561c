//! Which of the packet sockets of an interface gets a packet: that of the worker that owns its flow, where the packet tells.
//!
//! The kernel's own choice is a hash that nobody can know, so with several workers most packets come to one that hands them
//! over. But what is sent to a SNAT port of ours, the answers to translated clients and to the node itself, names its owner;
//! and so does all else, where it is known whether clients or endpoints are beyond the port. A program in classic BPF
//! (linux/filter.h), which needs no privilege beyond the socket's, reads it.
//!
//! Takes  our addresses, the SNAT ports, who is beyond the port.
//! Gives  the program; its result, modulo the number of sockets, is the worker's (`class`, `steering`).
//! Never  decides what a worker does: a packet that comes elsewhere is handed over as ever.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use libc::sock_filter;

use super::open::Faces;
use crate::class::{CLASSES, SHIFTS, V6_MIDDLE};

/// The sockets of an interface's packets, that of worker 0 opened first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fanout {
    /// Its number in the network namespace.
    pub group: u16,
    /// Our own addresses.
    pub own: Vec<IpAddr>,
    /// Ports that are shared out among the workers.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Who is beyond the interface.
    pub faces: Faces,
}

/// linux/filter.h: where the network header is, and what is told beside the packet.
const NETWORK: u32 = libc::SKF_NET_OFF as u32;
const PROTOCOL: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
const RX_HASH: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RXHASH) as u32;
/// linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_WORD_AT_X: u16 = 0x40;
const LOAD_HALF_AT_X: u16 = 0x48;
const LOAD_HEADER_LENGTH_TO_X: u16 = 0xb1;
const LOAD_NUMBER_TO_X: u16 = 0x01;
const LOAD_MEMORY: u16 = 0x60;
const LOAD_MEMORY_TO_X: u16 = 0x61;
const STORE: u16 = 0x02;
const MULTIPLY: u16 = 0x24;
const OR_X: u16 = 0x4c;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const SHIFT_RIGHT: u16 = 0x74;
const XOR_X: u16 = 0xac;
const A_TO_X: u16 = 0x07;
const X_TO_A: u16 = 0x87;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN_A: u16 = 0x16;

/// Protocols whose header begins with both ports.
const WITH_PORTS: [u32; 3] = [6, 17, 132];
/// An odd number without a pattern (2^32 divided by the golden ratio): its product's high bits depend on all of the factor's.
const MIX: u32 = 0x9e37_79b1;

/// A place in the program, known once all before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Next,
    V4,
    V6,
    Other,
    Unknown,
    /// On to `Sum`, which may be farther than a branch reaches.
    ToSum(Family),
    /// Memory 0 is the sum of both addresses.
    Ports(Family),
    Sum,
    WithPorts(usize),
    NotOwn(usize),
    /// It is sent to our own address.
    Own(Family),
    Range(Family, usize),
    /// Its owner is that of its source, of its destination.
    Source(Family),
    Destination(Family),
}

/// Where a family's headers have what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// Loads the length of the header into X.
    const fn header(self) -> (u16, u32) {
        match self {
            Self::V4 => (LOAD_HEADER_LENGTH_TO_X, NETWORK),
            Self::V6 => (LOAD_NUMBER_TO_X, 40),
        }
    }

    /// Where the addresses begin.
    const fn addresses(self) -> [u32; 2] {
        match self {
            Self::V4 => [12, 16],
            Self::V6 => [8, 24],
        }
    }
}

#[derive(Debug, Default)]
struct Program {
    code: Vec<(sock_filter, Label, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Fanout {
    /// The program; `None` if there are more addresses or ranges than its jumps reach over, a dozen or two.
    pub(crate) fn program(&self) -> Option<Vec<sock_filter>> {
        let mut program = Program::default();
        program.op(LOAD_HALF, PROTOCOL);
        program.branch(IF_EQUAL, 0x0800, Label::V4, Label::Next);
        program.branch(IF_EQUAL, 0x86dd, Label::Next, Label::Other);
        program.jump(Label::V6);
        program.label(Label::Other);
        program.jump(Label::Unknown);
        self.v4(&mut program);
        self.v6(&mut program);
        // Others are spread, those of a flow to one worker.
        for family in [Family::V6, Family::V4] {
            program.label(Label::Ports(family));
            let (code, k) = family.header();
            program.op(code, k);
            program.op(LOAD_WORD_AT_X, NETWORK);
            program.op(LOAD_MEMORY_TO_X, 0);
            program.op(XOR_X, 0);
            program.op(STORE, 0);
            program.jump(Label::Sum);
        }
        program.label(Label::Sum);
        program.op(LOAD_MEMORY_TO_X, 0);
        program.op(X_TO_A, 0);
        program.op(MULTIPLY, MIX);
        program.op(SHIFT_RIGHT, 16);
        program.op(RETURN_A, 0);
        program.label(Label::Unknown);
        program.op(LOAD_WORD, RX_HASH);
        program.op(RETURN_A, 0);
        program.resolve()
    }

    fn v4(&self, program: &mut Program) {
        program.label(Label::V4);
        program.sum(&[12, 16]);
        // More fragments, or an offset: owned by what all pieces have in common.
        program.op(LOAD_HALF, NETWORK + 6);
        program.branch(IF_ANY_BIT, 0x3fff, Label::ToSum(Family::V4), Label::Next);
        program.op(LOAD_BYTE, NETWORK + 9);
        program.with_ports(Label::ToSum(Family::V4));
        program.op(LOAD_WORD, NETWORK + 16);
        for own in self.own.iter().filter_map(|own| match own {
            IpAddr::V4(own) => Some(own.to_bits()),
            IpAddr::V6(_) => None,
        }) {
            program.branch(IF_EQUAL, own, Label::Own(Family::V4), Label::Next);
        }
        self.owner(program, Family::V4);
    }

    fn v6(&self, program: &mut Program) {
        program.label(Label::V6);
        program.sum(&[8, 12, 16, 20, 24, 28, 32, 36]);
        program.op(LOAD_BYTE, NETWORK + 6);
        program.with_ports(Label::ToSum(Family::V6));
        for (nth, own) in self.own.iter().enumerate() {
            let IpAddr::V6(own) = own else { continue };
            let words = own.octets();
            let (words, _) = words.as_chunks::<4>();
            for (at, word) in (24..).step_by(4).zip(words) {
                let then = if at == 36 {
                    Label::Own(Family::V6)
                } else {
                    Label::Next
                };
                program.op(LOAD_WORD, NETWORK + at);
                program.branch(IF_EQUAL, u32::from_be_bytes(*word), then, Label::NotOwn(nth));
            }
            program.label(Label::NotOwn(nth));
        }
        self.owner(program, Family::V6);
    }

    /// As `Steering::owner` has it, as far as it can be known. It is not sent to us, or else to `Label::Own`.
    fn owner(&self, program: &mut Program, family: Family) {
        program.jump(match self.faces {
            Faces::Clients => Label::Source(family),
            Faces::Endpoints => Label::Destination(family),
            Faces::Both => Label::Ports(family),
        });
        program.label(Label::Own(family));
        let (code, k) = family.header();
        program.op(code, k);
        program.op(LOAD_HALF_AT_X, NETWORK + 2);
        for (nth, range) in self.ports.iter().enumerate() {
            let (first, last) = (u32::from(*range.start()), u32::from(*range.end()));
            program.branch(IF_GREATER_OR_EQUAL, first, Label::Next, Label::Range(family, nth));
            program.branch(
                IF_GREATER,
                last,
                Label::Range(family, nth),
                Label::Destination(family),
            );
            program.label(Label::Range(family, nth));
        }
        let [source, destination] = family.addresses();
        for (label, address, port) in [
            (Label::Source(family), source, 0),
            (Label::Destination(family), destination, 2),
        ] {
            program.label(label);
            program.class(family, address, port);
        }
    }
}

impl Program {
    fn op(&mut self, code: u16, k: u32) {
        let op = sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        };
        self.code.push((op, Label::Next, Label::Next));
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) {
        self.code.push((
            sock_filter {
                code,
                jt: 0,
                jf: 0,
                k,
            },
            yes,
            no,
        ));
    }

    fn jump(&mut self, to: Label) {
        self.branch(JUMP, 0, to, Label::Next);
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    /// The sum of these words of the header, kept in memory 0.
    fn sum(&mut self, words: &[u32]) {
        self.op(LOAD_NUMBER_TO_X, 0);
        for at in words {
            self.op(LOAD_WORD, NETWORK + at);
            self.op(XOR_X, 0);
            self.op(A_TO_X, 0);
        }
        self.op(STORE, 0);
    }

    /// Goes on if A is a protocol with ports; if not, `sum` is right here.
    fn with_ports(&mut self, sum: Label) {
        let [tcp, udp, sctp] = WITH_PORTS;
        let skip = self.code.len();
        self.branch(IF_EQUAL, tcp, Label::WithPorts(skip), Label::Next);
        self.branch(IF_EQUAL, udp, Label::WithPorts(skip), Label::Next);
        self.branch(IF_EQUAL, sctp, Label::WithPorts(skip), Label::Next);
        self.label(sum);
        self.jump(Label::Sum);
        self.label(Label::WithPorts(skip));
    }

    /// Returns the turn of the class of this end (`class`).
    fn class(&mut self, family: Family, address: u32, port: u32) {
        let words = match family {
            Family::V4 => vec![address],
            Family::V6 => {
                // From the address's end; the words that are not folded are looked at for their low bits.
                let middle = address + 12 - V6_MIDDLE / 32 * 4;
                self.op(LOAD_WORD, NETWORK + middle);
                self.op(SHIFT_RIGHT, V6_MIDDLE % 32);
                self.op(STORE, 1);
                vec![address, address + 12]
            }
        };
        for (nth, at) in words.iter().enumerate() {
            self.op(LOAD_WORD, NETWORK + at);
            for shift in SHIFTS {
                self.op(A_TO_X, 0);
                self.op(SHIFT_RIGHT, shift);
                self.op(XOR_X, 0);
            }
            if nth > 0 || family == Family::V6 {
                self.op(LOAD_MEMORY_TO_X, 1);
                self.op(XOR_X, 0);
            }
            self.op(STORE, 1);
        }
        let (code, k) = family.header();
        self.op(code, k);
        self.op(LOAD_HALF_AT_X, NETWORK + port);
        self.op(LOAD_MEMORY_TO_X, 1);
        self.op(XOR_X, 0);
        self.op(AND, CLASSES as u32 - 1);
        self.op(STORE, 1);
        // `class::turn`.
        self.op(AND, 1);
        self.op(SHIFT_LEFT, 6);
        self.op(A_TO_X, 0);
        self.op(LOAD_MEMORY, 1);
        self.op(SHIFT_RIGHT, 1);
        self.op(OR_X, 0);
        self.op(RETURN_A, 0);
    }

    /// Jumps are forward, and those with a condition over at most 255 instructions.
    fn resolve(self) -> Option<Vec<sock_filter>> {
        let Self { code, labels } = self;
        let distance = |at: usize, to: Label| match to {
            Label::Next => Some(0),
            to => labels
                .iter()
                .find(|(label, _)| *label == to)?
                .1
                .checked_sub(at + 1),
        };
        let resolved = code.iter().enumerate().map(|(at, &(op, yes, no))| {
            let (yes, no) = (distance(at, yes)?, distance(at, no)?);
            Some(match op.code {
                JUMP => sock_filter { k: yes as u32, ..op },
                _ => sock_filter {
                    jt: u8::try_from(yes).ok()?,
                    jf: u8::try_from(no).ok()?,
                    ..op
                },
            })
        });
        resolved.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_addresses_than_jumps_reach_over_have_no_program() {
        let fanout = |count: u16| Fanout {
            group: 1,
            faces: Faces::Clients,
            own: (0..count)
                .map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]))
                .collect(),
            ports: vec![1024..=29_999, 32_768..=65_535],
        };
        assert!(fanout(8).program().is_some());
        assert!(fanout(200).program().is_none());
    }
}
