//! Packets between a server and a client that lends it its frames, and a server that writes what it likes.

use super::super::handshake::tests::{shake_lending, terms};
use super::super::handshake::{Frames, Queue, Role, Terms};
use super::super::queue::{Rx, Tx};
use super::*;

/// Descriptors of a test's ring.
const SLOTS: u16 = 8;
const FRAMES: usize = 64;

/// Both ends of one queue, each with frames of its own.
struct Pair {
    server: Queue,
    client: Queue,
    servers: FrameMemory,
    clients: FrameMemory,
}

impl Pair {
    fn new() -> Self {
        let one = |role, lends| Terms {
            queues: 1,
            lends,
            ..terms(role)
        };
        let mut clients = FrameMemory::shared(FRAMES, 2048).unwrap();
        let file = clients.region().and_then(|region| region.memfd()).unwrap();
        let frames = Frames {
            file: file.try_clone_to_owned().unwrap(),
            bytes: (FRAMES * 2048) as u64,
        };
        let (mut server, mut client) =
            shake_lending(one(Role::Server, false), one(Role::Client, true), vec![frames]).unwrap();
        let mut client = client.queues.swap_remove(0);
        client.rx.as_mut().unwrap().begin(&mut clients);
        Self {
            server: server.queues.swap_remove(0),
            client,
            servers: FrameMemory::new(FRAMES, 2048).unwrap(),
            clients,
        }
    }

    fn rx(&mut self) -> &mut LentRx {
        match &mut self.client.rx {
            Some(Rx::Lending(rx)) => rx,
            other => panic!("{other:?}"),
        }
    }

    fn tx(&mut self) -> &mut LentTx {
        match &mut self.client.tx {
            Some(Tx::Lending(tx)) => tx,
            other => panic!("{other:?}"),
        }
    }

    /// What the server writes into descriptors and the tail, instead of packets.
    fn serve(&mut self, descriptors: &[(u32, u16)]) {
        let ring = &self.rx().lent.ring;
        for &(length, flags) in descriptors {
            let tail = ring.tail();
            let said = ring.descriptor(tail);
            ring.set_descriptor(
                tail,
                Descriptor {
                    length,
                    flags,
                    ..said
                },
            );
            ring.set_tail(tail.wrapping_add(1));
        }
    }

    fn receive(&mut self) -> (Vec<usize>, Received) {
        let (mut frames, mut received) = (Burst::new(), Received::default());
        let rx = self.client.rx.as_mut().unwrap();
        rx.receive(&mut self.clients, &mut frames, &mut received).unwrap();
        let lengths = frames.iter().map(Frame::len).collect();
        self.clients.free_all(frames.drain(..));
        (lengths, received)
    }

    /// Ends the client's side; no frame is missing.
    fn end(mut self) {
        self.client.rx.as_mut().unwrap().end(&mut self.clients);
        self.client.tx.as_mut().unwrap().end(&mut self.clients);
        assert_eq!(self.clients.available(), FRAMES);
    }
}

fn packet(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ number) as u8).collect()
}

/// Sends by one end and receives by the other.
fn cross(
    packets: &[Vec<u8>],
    (tx, from): (&mut Tx, &mut FrameMemory),
    (rx, to): (&mut Rx, &mut FrameMemory),
) -> Vec<Vec<u8>> {
    let mut frames: Burst = packets.iter().map(|p| from.copy_in(p).unwrap()).collect();
    tx.send(from, &mut frames, &mut Sent::default()).unwrap();
    assert!(frames.is_empty(), "there was room");
    rx.receive(to, &mut frames, &mut Received::default()).unwrap();
    let received = frames.iter().map(|frame| to.bytes(frame).to_vec()).collect();
    to.free_all(frames.drain(..));
    received
}

#[test]
fn packets_of_every_length_cross_in_order_both_ways_and_past_the_wrap_of_the_index() {
    let mut pair = Pair::new();
    let longest = pair.clients.max_packet();
    for role in [Role::Client, Role::Server] {
        let mut number = 0;
        while number < 70_000 {
            let some = 1 + number % 3;
            let packets: Vec<_> = (number..number + some)
                .map(|n| packet(n, 14 + n % (longest - 13)))
                .collect();
            let Pair {
                server,
                client,
                servers,
                clients,
            } = &mut pair;
            let (from, to) = match role {
                Role::Client => ((client, clients), (server, servers)),
                Role::Server => ((server, servers), (client, clients)),
            };
            let from = (from.0.tx.as_mut().unwrap(), from.1);
            let to = (to.0.rx.as_mut().unwrap(), to.1);
            assert_eq!(cross(&packets, from, to), packets);
            number += some;
        }
    }
    assert_eq!(pair.servers.available(), FRAMES);
    pair.end();
}

#[test]
fn a_packet_in_several_frames_is_one_and_what_is_none_costs_only_itself() {
    let mut pair = Pair::new();
    let most = pair.clients.max_packet() as u32;
    for (pieces, lengths, bad) in [
        (&[(60, NEXT), (40, NEXT), (1, 0), (70, 0)][..], &[101, 70][..], 0),
        (&[(most, NEXT), (1, 0), (70, 0)], &[70], 1),
        (&[(0, 0), (70, 0)], &[70], 1),
        (&[(60, NEXT), (0, NEXT), (60, 0), (70, 0)], &[70], 1),
        (&[(most + 1, 0), (70, 0)], &[70], 1),
        (&[(u32::MAX, NEXT), (70, 0), (70, 0)], &[70], 1),
    ] {
        // All at once, or each piece for itself.
        for step in [pieces.len(), 1] {
            let (mut found, mut counted) = (Vec::new(), 0);
            for some in pieces.chunks(step) {
                pair.serve(some);
                let (received, counts) = pair.receive();
                found.extend(received);
                counted += counts.bad_lengths;
            }
            assert_eq!((&found[..], counted), (lengths, bad), "{pieces:?}");
        }
    }
    // One that never ends is given back with the others.
    pair.serve(&[(60, NEXT)]);
    assert!(pair.receive().0.is_empty());
    pair.end();
}

#[test]
fn where_a_server_says_that_its_packet_is_is_not_where_we_look() {
    let mut pair = Pair::new();
    let ring = &pair.rx().lent.ring;
    let said = ring.descriptor(0);
    ring.set_descriptor(
        0,
        Descriptor {
            region: 9,
            offset: said.offset + 2048,
            length: 60,
            ..said
        },
    );
    ring.set_tail(1);
    assert_eq!(pair.receive().0, [60]);
    pair.end();
}

#[test]
fn an_index_that_claims_more_than_was_lent_breaks_the_link_and_loses_no_frame() {
    let mut pair = Pair::new();
    for tail in [SLOTS + 1, u16::MAX] {
        pair.rx().lent.ring.set_tail(tail);
        let (rx, clients) = (pair.client.rx.as_mut().unwrap(), &mut pair.clients);
        let result = rx.receive(clients, &mut Burst::new(), &mut Received::default());
        assert_eq!(result, Err(Broken::Index));
        // Of those to be sent there are none.
        pair.tx().lent.ring.set_tail(1);
        let (tx, clients) = (pair.client.tx.as_mut().unwrap(), &mut pair.clients);
        assert_eq!(tx.reclaim(clients), Err(Broken::Index));
    }
    pair.end();
}

#[test]
fn without_free_frames_nothing_is_lent_until_there_are_some() {
    let mut pair = Pair::new();
    let mut held: Vec<_> = std::iter::from_fn(|| pair.clients.alloc()).collect();
    assert_eq!(held.len(), FRAMES - usize::from(SLOTS));
    let mut frames = Burst::new();
    pair.serve(&[(60, 0); SLOTS as usize]);
    let rx = pair.client.rx.as_mut().unwrap();
    rx.receive(&mut pair.clients, &mut frames, &mut Received::default())
        .unwrap();
    assert_eq!(frames.len(), usize::from(SLOTS));
    assert_eq!(pair.rx().lent.room(), SLOTS, "none left to lend");
    pair.clients.free_all(held.drain(..2));
    assert!(pair.receive().0.is_empty());
    assert_eq!(pair.rx().lent.room(), SLOTS - 2);
    pair.clients.free_all(held.into_iter().chain(frames));
    pair.end();
}
