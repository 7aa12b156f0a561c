//! Packets between the two ends of a queue, and a peer that writes what it likes.

use super::super::handshake::tests::{shake, terms};
use super::super::handshake::{Queue, Role};
use super::super::queue::{Rx, Tx};
use super::*;

fn rx(queue: &mut Queue) -> &mut RxRing {
    match &mut queue.rx {
        Some(Rx::Copying(rx)) => rx,
        other => panic!("{other:?}"),
    }
}

fn tx(queue: &mut Queue) -> &mut TxRing {
    match &mut queue.tx {
        Some(Tx::Copying(tx)) => tx,
        other => panic!("{other:?}"),
    }
}

/// Descriptors of a test's ring; bytes of its buffers.
const SLOTS: u16 = 8;
const BYTES: usize = 256;

/// The first queue of both ends, and frames for both.
struct Pair {
    server: Queue,
    client: Queue,
    memory: FrameMemory,
}

const FRAMES: usize = 256;

impl Pair {
    fn new() -> Self {
        let (mut server, mut client) = shake(terms(Role::Server), terms(Role::Client)).unwrap();
        let memory = FrameMemory::new(FRAMES, 4096).unwrap();
        Self {
            server: server.queues.swap_remove(0),
            client: client.queues.swap_remove(0),
            memory,
        }
    }

    fn ends(&mut self, role: Role) -> (&mut TxRing, &mut RxRing, &mut FrameMemory) {
        let (from, to) = match role {
            Role::Client => (&mut self.client, &mut self.server),
            Role::Server => (&mut self.server, &mut self.client),
        };
        (tx(from), rx(to), &mut self.memory)
    }
}

fn packet(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ number) as u8).collect()
}

/// How many of the packets were taken.
fn send(tx: &mut TxRing, memory: &mut FrameMemory, packets: &[Vec<u8>]) -> Result<usize, Broken> {
    let mut frames: Burst = packets.iter().map(|p| memory.copy_in(p).unwrap()).collect();
    let mut sent = Sent::default();
    let result = tx.send(memory, &mut frames, &mut sent);
    assert_eq!(sent.packets as usize, packets.len() - frames.len());
    frames.drain(..).for_each(|frame| memory.free(frame));
    result.map(|()| sent.packets as usize)
}

fn receive(rx: &mut RxRing, memory: &mut FrameMemory) -> (Vec<Vec<u8>>, Received) {
    let (mut frames, mut received) = (Burst::new(), Received::default());
    rx.receive(memory, &mut frames, &mut received).unwrap();
    let packets: Vec<_> = frames.iter().map(|frame| memory.bytes(frame).to_vec()).collect();
    frames.drain(..).for_each(|frame| memory.free(frame));
    assert_eq!(received.packets as usize, packets.len());
    assert_eq!(
        received.bytes as usize,
        packets.iter().map(Vec::len).sum::<usize>()
    );
    (packets, received)
}

#[test]
fn packets_of_every_length_cross_in_order_both_ways_and_past_the_wrap_of_the_index() {
    let mut pair = Pair::new();
    for role in [Role::Client, Role::Server] {
        let (tx, rx, memory) = pair.ends(role);
        let mut number = 0;
        // The index has 16 bits.
        while number < 70_000 {
            let some = 1 + number % 3;
            let packets: Vec<_> = (number..number + some)
                .map(|n| packet(n, 14 + n % (2 * BYTES)))
                .collect();
            assert_eq!(send(tx, memory, &packets), Ok(some));
            assert_eq!(receive(rx, memory).0, packets);
            number += some;
        }
    }
    assert_eq!(pair.memory.available(), FRAMES);
}

#[test]
fn a_full_ring_takes_no_part_of_a_packet_and_goes_on_when_there_is_room() {
    let mut pair = Pair::new();
    for role in [Role::Client, Role::Server] {
        let (tx, rx, memory) = pair.ends(role);
        // Three descriptors each: two fit.
        let long: Vec<_> = (0..3).map(|n| packet(n, 2 * BYTES + 1)).collect();
        assert_eq!(send(tx, memory, &long), Ok(2));
        assert_eq!(
            send(tx, memory, &[packet(9, 60), packet(10, 60), packet(11, 60)]),
            Ok(2)
        );
        let (received, _) = receive(rx, memory);
        assert_eq!(
            received,
            [long[0].clone(), long[1].clone(), packet(9, 60), packet(10, 60)]
        );
        // As large as before: a packet that did not fit has left no smaller buffers behind.
        assert_eq!(send(tx, memory, &long[2..]), Ok(1));
        assert_eq!(receive(rx, memory).0, long[2..]);
    }
}

#[test]
fn packets_wait_in_the_ring_while_there_is_no_free_frame_or_no_place_in_the_burst() {
    let mut pair = Pair::new();
    let (tx, rx, memory) = pair.ends(Role::Client);
    let packets: Vec<_> = (0..4).map(|n| packet(n, 60)).collect();
    assert_eq!(send(tx, memory, &packets), Ok(4));
    let mut held: Vec<_> = (1..FRAMES).map(|_| memory.alloc().unwrap()).collect();
    assert_eq!(receive(rx, memory).0, packets[..1]);
    let mut frames: Burst = held.drain(..BURST - 1).collect();
    rx.receive(memory, &mut frames, &mut Received::default()).unwrap();
    assert_eq!(memory.bytes(&frames[BURST - 1]), packets[1]);
    frames.drain(..).for_each(|frame| memory.free(frame));
    assert_eq!(receive(rx, memory).0, packets[2..]);
}

#[test]
fn an_interrupt_is_asked_for_when_it_is_wanted() {
    let mut pair = Pair::new();
    for role in [Role::Client, Role::Server] {
        let (tx, rx, memory) = pair.ends(role);
        for wanted in [false, true, false] {
            rx.want_interrupt(wanted);
            let mut frames: Burst = memory.copy_in(&packet(0, 60)).into_iter().collect();
            let mut sent = Sent::default();
            tx.send(memory, &mut frames, &mut sent).unwrap();
            assert_eq!((sent.interrupt, rx.ready()), (wanted, Ok(1)));
            receive(rx, memory);
        }
    }
}

/// Toward the server the peer writes descriptors: each of these costs the packet it is in, and no other.
#[test]
fn a_descriptor_that_leads_out_of_its_region_is_dropped_and_counted_and_the_next_packet_arrives() {
    let bad = |descriptor: Descriptor| {
        let mut pair = Pair::new();
        let (tx, rx, memory) = pair.ends(Role::Client);
        let ring = &tx.cursor.ring;
        let good = tx.cursor.own(1).unwrap();
        ring.set_descriptor(0, descriptor);
        ring.set_descriptor(1, Descriptor { length: 60, ..good });
        ring.set_head(2);
        let (packets, received) = receive(rx, memory);
        assert_eq!((packets.len(), ring.tail()), (1, 2), "{descriptor:?}");
        (received.bad_descriptors, received.bad_lengths)
    };
    let fits = Descriptor {
        length: 60,
        ..Descriptor::default()
    };
    assert_eq!(bad(Descriptor { region: 1, ..fits }), (1, 0));
    assert_eq!(
        bad(Descriptor {
            region: u16::MAX,
            ..fits
        }),
        (1, 0)
    );
    assert_eq!(
        bad(Descriptor {
            offset: u32::MAX,
            ..fits
        }),
        (1, 0)
    );
    assert_eq!(
        bad(Descriptor {
            length: u32::MAX,
            ..fits
        }),
        (1, 0)
    );
    assert_eq!(
        bad(Descriptor {
            offset: u32::MAX,
            length: u32::MAX,
            ..fits
        }),
        (1, 0)
    );
    assert_eq!(bad(Descriptor { length: 0, ..fits }), (0, 1));
    // In its region, but longer than a frame.
    assert_eq!(bad(Descriptor { length: 4000, ..fits }), (0, 1));
}

#[test]
fn a_chain_without_an_end_is_dropped_and_the_next_packet_arrives() {
    let mut pair = Pair::new();
    let (tx, rx, memory) = pair.ends(Role::Client);
    let piece = |slot, flags| Descriptor {
        flags,
        length: 60,
        ..tx.cursor.own(slot).unwrap()
    };
    for slot in 0..SLOTS {
        tx.cursor.ring.set_descriptor(slot, piece(slot, NEXT));
    }
    tx.cursor.ring.set_head(SLOTS);
    let (packets, received) = receive(rx, memory);
    assert_eq!((packets.len(), received.bad_descriptors), (0, 1));
    tx.cursor.ring.set_descriptor(SLOTS, piece(0, 0));
    tx.cursor.ring.set_head(SLOTS + 1);
    assert_eq!(receive(rx, memory).0.len(), 1);
}

#[test]
fn a_chain_longer_than_any_packet_is_dropped_as_one() {
    let long = |role| super::super::handshake::Terms {
        log2_ring: 8,
        ..terms(role)
    };
    let (server, client) = shake(long(Role::Server), long(Role::Client)).unwrap();
    let (mut server, mut client) = (server.queues, client.queues);
    let (rx, tx) = (rx(&mut server[0]), tx(&mut client[0]));
    let mut memory = FrameMemory::new(FRAMES, 4096).unwrap();
    let chain = 200;
    for slot in 0..=chain {
        let flags = if slot < chain - 1 { NEXT } else { 0 };
        let piece = Descriptor {
            flags,
            length: 1,
            ..tx.cursor.own(slot).unwrap()
        };
        tx.cursor.ring.set_descriptor(slot, piece);
    }
    tx.cursor.ring.set_head(chain + 1);
    let (mut bad, mut good) = (0, 0);
    while rx.ready() != Ok(0) {
        let (packets, received) = receive(rx, &mut memory);
        bad += received.bad_descriptors;
        good += packets.len();
    }
    assert_eq!((bad, good), (1, 1));
    // A long chain that begins late in one look and is none in the next look: a whole packet of many pieces.
    let pieces = MAX_PIECES as u16 - 4;
    for slot in 0..20 + pieces {
        let flags = if slot < 20 || slot == 19 + pieces { 0 } else { NEXT };
        let at = chain + 1 + slot;
        let piece = Descriptor {
            flags,
            length: 1,
            ..tx.cursor.own(at).unwrap()
        };
        tx.cursor.ring.set_descriptor(at, piece);
    }
    tx.cursor.ring.set_head(chain + 1 + 20 + pieces);
    assert_eq!(receive(rx, &mut memory).0.len(), 20);
    assert_eq!(receive(rx, &mut memory).0, [vec![0; usize::from(pieces)]]);
}

#[test]
fn an_index_that_claims_more_than_the_ring_breaks_the_link() {
    let mut pair = Pair::new();
    let (tx, rx, memory) = pair.ends(Role::Client);
    tx.cursor.ring.set_head(SLOTS + 1);
    let result = rx.receive(memory, &mut Burst::new(), &mut Received::default());
    assert_eq!(result, Err(Broken::Index));
    rx.cursor.ring.set_tail(1);
    assert_eq!(send(tx, memory, &[packet(0, 60)]), Err(Broken::Index));

    let mut pair = Pair::new();
    let (tx, rx, memory) = pair.ends(Role::Server);
    rx.cursor.ring.set_head(SLOTS + 1);
    assert_eq!(send(tx, memory, &[packet(0, 60)]), Err(Broken::Index));
    tx.cursor.ring.set_tail(SLOTS + 1);
    let result = rx.receive(memory, &mut Burst::new(), &mut Received::default());
    assert_eq!(result, Err(Broken::Index));
    assert_eq!(pair.memory.available(), FRAMES);
}

#[test]
fn an_offer_of_no_buffer_breaks_the_link_and_loses_no_frame() {
    for length in [0, u32::MAX] {
        let mut pair = Pair::new();
        let (tx, rx, memory) = pair.ends(Role::Server);
        let good = rx.cursor.own(1).unwrap();
        rx.cursor.ring.set_descriptor(1, Descriptor { length, ..good });
        assert_eq!(
            send(tx, memory, &[packet(0, 60), packet(1, 60)]),
            Err(Broken::Buffer)
        );
        assert_eq!(receive(rx, memory).0, [packet(0, 60)]);
        assert_eq!(memory.available(), FRAMES);
    }
    let long = |role| super::super::handshake::Terms {
        log2_ring: 8,
        ..terms(role)
    };
    let (mut server, mut client) = shake(long(Role::Server), long(Role::Client)).unwrap();
    let (tx, rx) = (tx(&mut server.queues[0]), rx(&mut client.queues[0]));
    for slot in 0..256 {
        let good = rx.cursor.own(slot).unwrap();
        rx.cursor
            .ring
            .set_descriptor(slot, Descriptor { length: 1, ..good });
    }
    let mut memory = FrameMemory::new(FRAMES, 4096).unwrap();
    assert_eq!(
        send(tx, &mut memory, &[packet(0, 65)]),
        Err(Broken::Buffer),
        "a byte a buffer"
    );
}

/// Toward the client the memory is ours: where a server says that its packet is, is not where we look.
#[test]
fn a_server_cannot_move_the_clients_buffers_nor_write_a_packet_longer_than_one() {
    let mut pair = Pair::new();
    let (tx, rx, memory) = pair.ends(Role::Server);
    assert_eq!(
        send(tx, memory, &[packet(0, 60), packet(1, 60), packet(2, 60)]),
        Ok(3)
    );
    let ring = &tx.cursor.ring;
    let said = ring.descriptor(0);
    ring.set_descriptor(
        0,
        Descriptor {
            region: 9,
            offset: u32::MAX - 60,
            ..said
        },
    );
    let said = ring.descriptor(1);
    ring.set_descriptor(
        1,
        Descriptor {
            length: BYTES as u32 + 1,
            ..said
        },
    );
    let (packets, received) = receive(rx, memory);
    assert_eq!(
        (packets, received.bad_descriptors),
        (vec![packet(0, 60), packet(2, 60)], 1)
    );
    assert_eq!(
        ring.descriptor(0),
        rx.cursor.own(0).unwrap(),
        "offered anew, as it was"
    );
}
