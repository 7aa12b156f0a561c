//! Fragments of both families in any order, overlapping, of numbers that come round, as time moves: memory is bounded, a
//! fragment goes on with the ports of its datagram's first or not at all, and what is held is released as it came, once,
//! or counted as lost.

use sluice_dataplane::addr::{Address, Port, Protocol, V4, V6};
use sluice_dataplane::fragments::{FragmentConfig, Fragmented, Fragments, Passage, Transport};
use sluice_dataplane::index::NicPortIndex;
use sluice_dataplane::lookup::Family;
use sluice_dataplane::parse::{Fragment, Packet, parse};
use sluice_dataplane::tick::{TICKS_PER_SECOND, Tick};
use sluice_dataplane::verdict::DropReason;

use crate::bytes::{Bytes, fix_ip_checksum};
use crate::parse::STATION;

/// As few as make room for each other.
const CONFIG: FragmentConfig = FragmentConfig {
    datagrams: 3,
    held: 5,
    frame_size: 2048,
};
const IDENTS: usize = 5;
/// A worker lets go of what may go after each burst.
const BURST: usize = 16;

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (mut v4, mut v6) = (Life::<V4>::new(), Life::<V6>::new());
    while !bytes.is_empty() {
        match bytes.below(16) {
            0..=5 => v4.fragment(&ipv4(&mut bytes), bytes.byte()),
            6..=11 => v6.fragment(&ipv6(&mut bytes), bytes.byte()),
            12 | 13 => (v4.release(), v6.release()).0,
            14 => {
                let ticks = u32::from(bytes.byte());
                v4.wait(ticks);
                v6.wait(ticks);
            }
            // Any bytes in the place of a frame, of either family.
            _ => {
                let len = bytes.below(128);
                let frame = crate::parse::addressed(bytes.take(len));
                v4.fragment(&frame, 0);
                v6.fragment(&frame, 0);
            }
        }
    }
    v4.end(&|start| frame_v4(17, 99, start, true, &[0; 8]));
    v6.end(&|start| frame_v6(17, 99, start, true, &[0; 8]));
}

/// What the fragments of a datagram have in common.
#[derive(Clone, Copy, PartialEq)]
struct Name<A> {
    ends: (A, A),
    /// 0 in IPv6, where later fragments need not say it (RFC 8200 §4.5).
    protocol: Protocol,
    ident: u32,
}

/// One family's fragments, and what is known of them.
struct Life<A: Address> {
    fragments: Fragments<A>,
    bytes: usize,
    now: Tick,
    /// Each datagram's last first fragment, and when it came.
    firsts: Vec<(Name<A>, Protocol, [Port; 2], Tick)>,
    /// What was held and has not been released: at most so many of it are lost.
    held: Vec<(NicPortIndex, Vec<u8>)>,
    lost: usize,
    since_release: usize,
}

impl<A: Family> Life<A> {
    fn new() -> Self {
        let fragments = Fragments::new(CONFIG).unwrap();
        Self {
            bytes: fragments.bytes(),
            fragments,
            now: Tick(u32::MAX - 500), // the clock's wrap is within reach
            firsts: Vec::new(),
            held: Vec::new(),
            lost: 0,
            since_release: 0,
        }
    }

    fn fragment(&mut self, frame: &[u8], port: u8) {
        let parsed = parse(frame, STATION);
        let Some(packet) = A::packet(&parsed).filter(|packet| packet.fragment != Fragment::Whole) else {
            return;
        };
        let port = NicPortIndex(port % 4);
        let passage = self.fragments.pass(packet, frame, port, self.now);
        let refused = passage == Passage::Drop(DropReason::BadFragment);
        if packet.fragment == Fragment::First && !refused {
            let name = name(packet);
            self.firsts.retain(|(of, ..)| *of != name);
            let ports = [packet.key.src_port, packet.key.dst_port];
            self.firsts.push((name, packet.key.protocol, ports, self.now));
        }
        match passage {
            Passage::Known(transport) => self.translates_alike(packet, transport),
            Passage::Held => self.held.push((port, frame.to_vec())),
            Passage::Drop(reason) => assert!(
                matches!(reason, DropReason::BadFragment | DropReason::FragmentsFull),
                "{reason:?}"
            ),
        }
        self.is_bounded();
        self.since_release += 1;
        if self.since_release == BURST {
            self.release();
        }
    }

    /// FRG-1.
    fn translates_alike(&self, packet: &Packet<A>, given: Transport) {
        let ports = [given.src_port, given.dst_port];
        let has_ports = matches!(
            packet.key.protocol,
            Protocol::TCP | Protocol::UDP | Protocol::SCTP
        );
        if A::BITS == V4::BITS && !has_ports {
            assert_eq!(
                (given.protocol, ports),
                (packet.key.protocol, [Port::default(); 2])
            );
            return;
        }
        let of = name(packet);
        let first = self.firsts.iter().find(|(name, ..)| *name == of);
        let (_, protocol, first, since) = first.expect("ports without a first fragment");
        assert_eq!((given.protocol, ports), (*protocol, *first), "another's ports");
        let age = self.now.since(*since);
        assert!(
            age < A::TIMEOUT * TICKS_PER_SECOND,
            "of a datagram of {age} ticks ago"
        );
        assert!(
            given.protocol != Protocol::SCTP || given.length > 0,
            "SCTP's checksum needs the length"
        );
    }

    fn release(&mut self) {
        self.since_release = 0;
        loop {
            let released = self
                .fragments
                .release(|port, frame, transport| (port, frame.to_vec(), transport));
            let Some((port, frame, transport)) = released else {
                break;
            };
            let held = self
                .held
                .iter()
                .position(|held| (held.0, &held.1) == (port, &frame));
            self.held
                .swap_remove(held.expect("released without having been held, or twice"));
            let parsed = parse(&frame, STATION);
            self.translates_alike(A::packet(&parsed).expect("as it came"), transport);
        }
        self.is_bounded();
    }

    fn wait(&mut self, ticks: u32) {
        self.release();
        self.now = Tick(self.now.0.wrapping_add(ticks));
        self.lost += self.fragments.expire(self.now);
        self.is_bounded();
    }

    fn is_bounded(&self) {
        let (used, limit) = self.fragments.usage();
        assert!(used <= limit && limit == CONFIG.datagrams);
        assert_eq!(self.fragments.bytes(), self.bytes);
        assert!(
            self.lost <= self.held.len(),
            "more are lost than were held and not released"
        );
    }

    /// All time is up: nothing waits any more, and there is room again for as much as before.
    fn end(mut self, later: &dyn Fn(u16) -> Vec<u8>) {
        self.wait(A::TIMEOUT * TICKS_PER_SECOND);
        assert_eq!(self.fragments.usage().0, 0, "every datagram ends");
        assert_eq!(self.lost, self.held.len(), "held, neither released nor counted");
        for number in 0..=CONFIG.held as u16 {
            let frame = later(8 + 16 * number);
            let parsed = parse(&frame, STATION);
            let packet = A::packet(&parsed).expect("a fragment");
            let passage = self.fragments.pass(packet, &frame, NicPortIndex(0), self.now);
            let fits = usize::from(number) < CONFIG.held;
            let expected = if fits {
                Passage::Held
            } else {
                Passage::Drop(DropReason::FragmentsFull)
            };
            assert_eq!(
                passage, expected,
                "memory that never came back, or too much of it"
            );
        }
    }
}

fn name<A: Fragmented>(packet: &Packet<A>) -> Name<A> {
    Name {
        ends: (packet.key.src, packet.key.dst),
        protocol: if A::BITS == V4::BITS {
            packet.key.protocol
        } else {
            Protocol(0)
        },
        ident: packet.fragment_ident,
    }
}

/// A fragment of one of a few datagrams.
fn ipv4(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let (protocol, ident, start, more, payload) = piece(bytes);
    frame_v4(protocol, ident, start, more, &payload)
}

fn ipv6(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let (protocol, ident, start, more, mut payload) = piece(bytes);
    let options = bytes.below(8) == 0;
    if options && start == 0 {
        payload.splice(0..0, [protocol, 0, 1, 4, 0, 0, 0, 0]);
    }
    frame_v6(if options { 60 } else { protocol }, ident, start, more, &payload)
}

/// Protocol, datagram, place in it, whether more comes, and what it carries: a transport header in front.
fn piece(bytes: &mut Bytes<'_>) -> (u8, u16, u16, bool, Vec<u8>) {
    let protocol = bytes.one_of(&[17, 6, 132, 17, 1, 58, 47]);
    let ident = bytes.below(IDENTS) as u16;
    let place = bytes.byte();
    let start = u16::from(place % 16) * 8;
    let len = usize::from(bytes.byte() % 40) + usize::from(place / 16 % 4) * 8;
    let mut payload = vec![bytes.byte(); len];
    if start == 0 {
        let ports = [0, bytes.byte() % 2, 0, 53];
        let header = [0, 8 + len as u8, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];
        for (to, from) in payload.iter_mut().zip(ports.into_iter().chain(header)) {
            *to = from;
        }
    }
    let more = place < 192;
    if more && bytes.below(8) != 0 {
        payload.truncate(len & !7);
    }
    (protocol, ident, start, more, payload)
}

fn frame_v4(protocol: u8, ident: u16, start: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = link([8, 0]);
    frame.extend([0x45, 0]);
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend(ident.to_be_bytes());
    frame.extend(((start / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
    frame.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    fix_ip_checksum(&mut frame);
    frame.extend(payload);
    frame
}

fn frame_v6(next_header: u8, ident: u16, start: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = link([0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    frame.extend([44, 64]);
    for host in [1, 2] {
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    frame.extend([next_header, 0]);
    frame.extend((start | u16::from(more)).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(ident.to_be_bytes());
    frame.extend(payload);
    frame
}

fn link(ether_type: [u8; 2]) -> Vec<u8> {
    [&STATION.0[..], &[2, 0, 0, 0, 0, 2], &ether_type].concat()
}
