//! Which of the packet sockets of an interface gets a packet: that of the worker that owns its flow, where the packet tells.
//!
//! The kernel's own choice is a hash that nobody can know, so with several workers most packets come to one that hands them
//! over. But what is sent to a SNAT port of ours, the answers to translated clients and to the node itself, names its owner by
//! the port. A program in classic BPF (linux/filter.h), which needs no privilege beyond the socket's, reads it.
//!
//! Takes  our addresses, the SNAT ports and how many workers share them, as `steering` divides them.
//! Gives  the program; its result, modulo the number of sockets, is the worker's.
//! Never  decides what a worker does: a packet that comes elsewhere is handed over as ever.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use libc::sock_filter;

/// The sockets of an interface's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fanout {
    /// Its number in the network namespace.
    pub group: u16,
    /// Sockets in it, that of worker 0 opened first.
    pub workers: u8,
    /// Our own addresses.
    pub own: Vec<IpAddr>,
    /// Ports that are shared out among the workers.
    pub ports: Vec<RangeInclusive<u16>>,
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
const LOAD_MEMORY_TO_X: u16 = 0x61;
const STORE: u16 = 0x02;
const SUBTRACT: u16 = 0x14;
const MULTIPLY: u16 = 0x24;
const DIVIDE: u16 = 0x34;
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
    Unknown,
    /// X is the length of the header before the ports, A our port.
    Port,
    /// Memory 0 is the sum of both addresses; X is as above.
    Ports,
    Sum,
    WithPorts(usize),
    Own(usize),
    Range(usize),
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
        program.branch(IF_EQUAL, 0x86dd, Label::V6, Label::Unknown);
        self.v4(&mut program);
        self.v6(&mut program);
        self.port(&mut program);
        // Others are spread, those of a flow to one worker.
        program.label(Label::Ports);
        program.op(LOAD_WORD_AT_X, NETWORK);
        program.op(LOAD_MEMORY_TO_X, 0);
        program.op(XOR_X, 0);
        program.op(STORE, 0);
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
        program.branch(IF_ANY_BIT, 0x3fff, Label::Sum, Label::Next);
        program.op(LOAD_BYTE, NETWORK + 9);
        program.with_ports();
        program.op(LOAD_HEADER_LENGTH_TO_X, NETWORK);
        program.op(LOAD_WORD, NETWORK + 16);
        for own in self.own.iter().filter_map(|own| match own {
            IpAddr::V4(own) => Some(own.to_bits()),
            IpAddr::V6(_) => None,
        }) {
            program.branch(IF_EQUAL, own, Label::Port, Label::Next);
        }
        program.jump(Label::Ports);
    }

    fn v6(&self, program: &mut Program) {
        program.label(Label::V6);
        program.sum(&[8, 12, 16, 20, 24, 28, 32, 36]);
        program.op(LOAD_BYTE, NETWORK + 6);
        program.with_ports();
        program.op(LOAD_NUMBER_TO_X, 40);
        for (nth, own) in self.own.iter().enumerate() {
            let IpAddr::V6(own) = own else { continue };
            let words = own.octets();
            let (words, _) = words.as_chunks::<4>();
            for (at, word) in (24..).step_by(4).zip(words) {
                let then = if at == 36 { Label::Port } else { Label::Next };
                program.op(LOAD_WORD, NETWORK + at);
                program.branch(IF_EQUAL, u32::from_be_bytes(*word), then, Label::Own(nth));
            }
            program.label(Label::Own(nth));
        }
        program.jump(Label::Ports);
    }

    /// As `Steering::port_owner` has it.
    fn port(&self, program: &mut Program) {
        program.label(Label::Port);
        program.op(LOAD_HALF_AT_X, NETWORK + 2);
        for (nth, range) in self.ports.iter().enumerate() {
            let (first, last) = (u32::from(*range.start()), u32::from(*range.end()));
            program.branch(IF_GREATER_OR_EQUAL, first, Label::Next, Label::Range(nth));
            program.branch(IF_GREATER, last, Label::Range(nth), Label::Next);
            program.op(SUBTRACT, first);
            program.op(MULTIPLY, self.workers.into());
            program.op(DIVIDE, (last + 1).saturating_sub(first).max(1));
            program.op(RETURN_A, 0);
            program.label(Label::Range(nth));
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

    /// Goes on if A is a protocol with ports.
    fn with_ports(&mut self) {
        let [tcp, udp, sctp] = WITH_PORTS;
        let skip = self.code.len();
        self.branch(IF_EQUAL, tcp, Label::WithPorts(skip), Label::Next);
        self.branch(IF_EQUAL, udp, Label::WithPorts(skip), Label::Next);
        self.branch(IF_EQUAL, sctp, Label::Next, Label::Sum);
        self.label(Label::WithPorts(skip));
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
            workers: 2,
            own: (0..count)
                .map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]))
                .collect(),
            ports: vec![1024..=29_999, 32_768..=65_535],
        };
        assert!(fanout(8).program().is_some());
        assert!(fanout(200).program().is_none());
    }
}
