//! The XDP program of an interface that the kernel uses, too, and the maps it asks: frames that are Services' go to the socket of
//! the queue they arrived on, all others to the kernel as if there were no program. What is in the maps is `crate::shared`'s.
//!
//! A frame is Services' if it goes to an address with `TO`; to an address with `PARTLY` or `OWN` and a port that is in `ports`, or
//! for `OWN` in the ranges of SNAT; or comes from an address with `FROM` and does not go to one with `OWN`. An ICMP error is if
//! the packet it quotes came from such a port, or went to an address with `FROM`. A later fragment has no ports: it is if it goes
//! to an address with `PARTLY`, or comes from one with `FROM`. Never Services': frames to groups, tagged frames, ARP, neighbour
//! discovery.
//!
//! Written as instructions with names for the places that jumps lead to, which need no compiler.

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use bytemuck::{Pod, Zeroable};

use super::bpf::{self, Instruction, Map, MapKind, instruction};
use crate::addr::Protocol;

/// All packets to it.
pub const TO: u32 = 1;
/// All packets from it.
pub const FROM: u32 = 2;
/// Packets to those of its ports that are listed, and fragments to it.
pub const PARTLY: u32 = 4;
/// One of the node's own: packets to those of its ports that are listed or SNAT's.
pub const OWN: u32 = 8;

/// A prefix, an IPv4 one mapped into IPv6 (RFC 4291 §2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Prefix {
    length: u32,
    address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Port {
    address: [u8; 16],
    /// Of this machine's byte order.
    protocol: u16,
    /// Of the network's.
    port: [u8; 2],
}

/// The maps that all shared interfaces of a process ask, and the ports of SNAT.
#[derive(Debug)]
pub struct SharedMaps {
    addresses: Map<Prefix>,
    ports: Map<Port>,
    limits: [u32; 2],
    snat: Vec<RangeInclusive<u16>>,
}

/// The same maps, whatever is in them.
impl PartialEq for SharedMaps {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for SharedMaps {}

impl SharedMaps {
    /// Empty maps with room for so many prefixes and ports. Errors: EPERM without CAP_BPF and CAP_NET_ADMIN.
    pub fn new(addresses: u32, ports: u32, snat: Vec<RangeInclusive<u16>>) -> io::Result<Self> {
        Ok(Self {
            addresses: Map::new(MapKind::LongestPrefix, addresses)?,
            ports: Map::new(MapKind::Hash, ports)?,
            limits: [addresses, ports],
            snat,
        })
    }

    /// Most prefixes and ports.
    pub const fn limits(&self) -> [u32; 2] {
        self.limits
    }

    /// What the longest prefix of an address says holds alone: `flags` are those of all wider prefixes, too. Errors: ENOSPC.
    pub fn set_prefix(&self, (address, length): (IpAddr, u8), flags: u32) -> io::Result<()> {
        self.addresses.set(prefix(address, length), flags)
    }

    /// Takes a prefix out.
    pub fn remove_prefix(&self, (address, length): (IpAddr, u8)) -> io::Result<()> {
        self.addresses.remove(prefix(address, length))
    }

    /// Lists a port of an address. Errors: E2BIG.
    pub fn set_port(&self, key: (IpAddr, Protocol, u16)) -> io::Result<()> {
        self.ports.set(port(key), 1)
    }

    /// Takes a port out.
    pub fn remove_port(&self, key: (IpAddr, Protocol, u16)) -> io::Result<()> {
        self.ports.remove(port(key))
    }

    /// Loads the program for an interface whose sockets are in the map with this descriptor.
    pub(crate) fn load(&self, sockets: i32) -> io::Result<OwnedFd> {
        let maps = [self.addresses.number(), self.ports.number(), sockets];
        bpf::load("sluice_shared", &program(maps, &self.snat))
    }
}

fn prefix(address: IpAddr, length: u8) -> Prefix {
    let mapped = if address.is_ipv4() { 96 } else { 0 };
    Prefix {
        length: u32::from(length) + mapped,
        address: mapped_to_v6(address),
    }
}

const fn port((address, protocol, port): (IpAddr, Protocol, u16)) -> Port {
    Port {
        address: mapped_to_v6(address),
        protocol: protocol.0 as u16,
        port: port.to_be_bytes(),
    }
}

const fn mapped_to_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

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
    /// Behind a range of SNAT, by its place.
    NextRange(usize),
}

/// Instructions, and where their jumps lead.
#[derive(Default)]
struct Writer {
    code: Vec<Instruction>,
    places: Vec<(Label, usize)>,
    jumps: Vec<(usize, Label)>,
}

// Registers. 0 to 5 are lost by a call. 6: the context; 7: behind the IP header; 8: the frame's end; 9: the protocol, and `LATER`.
const LATER: i32 = 256;
/// Stack: two keys of `addresses`, a key of `ports`, what `addresses` says of the destination.
const DST: i16 = -24;
const SRC: i16 = -48;
const PORT: i16 = -72;
const DST_FLAGS: i16 = -80;
// Loads of 1, 2 and 4 bytes (BPF_LDX | BPF_MEM).
const LOAD_1: u8 = 0x71;
const LOAD_2: u8 = 0x69;
const LOAD_4: u8 = 0x61;
// Jumps (BPF_JMP): if equal to, not equal to, with a bit of, above an immediate; if above a register; below an immediate.
const IF_EQ: u8 = 0x15;
const IF_NE: u8 = 0x55;
const IF_BITS: u8 = 0x45;
const IF_ABOVE: u8 = 0x25;
const IF_BELOW: u8 = 0xa5;

impl Writer {
    fn put(&mut self, opcode: u8, dst: u8, src: u8, offset: i16, immediate: i32) {
        self.code.push(instruction(opcode, dst, src, offset, immediate));
    }

    fn place(&mut self, label: Label) {
        self.places.push((label, self.code.len()));
    }

    fn jump(&mut self, opcode: u8, register: u8, immediate: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(opcode, register, 0, 0, immediate);
    }

    fn go(&mut self, to: Label) {
        self.jump(0x05, 0, 0, to);
    }

    fn load(&mut self, opcode: u8, dst: u8, src: u8, offset: i16) {
        self.put(opcode, dst, src, offset, 0);
    }

    /// To a register what is on the stack, 8 bytes.
    fn recall(&mut self, register: u8, offset: i16) {
        self.put(0x79, register, 10, offset, 0);
    }

    /// Leads elsewhere unless the frame has so many bytes from the one that `register` points at.
    fn need(&mut self, register: u8, bytes: i32, or: Label) {
        self.put(0xbf, 3, register, 0, 0);
        self.put(0x07, 3, 0, 0, bytes);
        self.jumps.push((self.code.len(), or));
        self.put(0x2d, 3, 8, 0, 0);
    }

    /// Copies words of the frame, from `register` and `offset`, to the stack.
    fn copy(&mut self, register: u8, offset: i16, to: i16, words: i16) {
        for word in 0..words {
            self.load(LOAD_4, 4, register, offset + 4 * word);
            self.put(0x63, 10, 4, to + 4 * word, 0);
        }
    }

    /// On the stack: the first 96 bits of a mapped address.
    fn map_v4(&mut self, to: i16) {
        self.put(0x62, 10, 0, to, 0);
        self.put(0x62, 10, 0, to + 4, 0);
        // The bytes 0, 0, 255, 255.
        self.put(0x62, 10, 0, to + 8, -65_536);
    }

    /// r0: where the value of a key on the stack is, or null.
    fn look_up(&mut self, map: i32, key: i16) {
        self.put(0x18, 1, 1, 0, map);
        self.put(0x00, 0, 0, 0, 0);
        self.put(0xbf, 2, 10, 0, 0);
        self.put(0x07, 2, 0, 0, i32::from(key));
        self.put(0x85, 0, 0, 0, 1);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let place = self.places.iter().find(|(l, _)| *l == label);
            // Every label has a place, and the program far fewer than 32,768 instructions: the kernel refuses another one.
            let to = place.map_or(self.code.len(), |(_, to)| *to);
            self.code[at].offset = (to as isize - at as isize - 1) as i16;
        }
        self.code
    }
}

const PROTOCOLS: [i32; 3] = [6, 17, 132];

/// The program. A test holds it to `xdp_shared.disasm`.
fn program([addresses, ports, sockets]: [i32; 3], snat: &[RangeInclusive<u16>]) -> Vec<Instruction> {
    let mut w = Writer::default();
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
    w.look_up(addresses, DST);
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
    w.look_up(ports, PORT);
    w.jump(IF_NE, 0, 0, Label::Steer);

    w.place(Label::Unlisted);
    w.recall(1, DST_FLAGS);
    w.jump(IF_BITS, 1, OWN as i32, Label::Pass);

    w.place(Label::Source);
    w.look_up(addresses, SRC);
    w.jump(IF_EQ, 0, 0, Label::Pass);
    w.load(LOAD_4, 1, 0, 0);
    w.jump(IF_BITS, 1, FROM as i32, Label::Steer);

    w.place(Label::Pass);
    w.put(0xb7, 0, 0, 0, 2);
    w.put(0x95, 0, 0, 0, 0);

    w.place(Label::Steer);
    w.load(LOAD_4, 2, 6, 16);
    w.put(0x18, 1, 1, 0, sockets);
    w.put(0x00, 0, 0, 0, 0);
    w.put(0xb7, 3, 0, 0, 2);
    w.put(0x85, 0, 0, 0, 51);
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

#[cfg(test)]
#[path = "xdp_shared/tests.rs"]
mod tests;
