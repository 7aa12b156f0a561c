//! Taps with several queues, and taps that others have made.

use std::net::UdpSocket;
use std::time::Duration;

use sluice_dataplane::nic::open::{DriverSpec, PortSpec, open};
use sluice_dataplane::nic::{Burst, FrameMemory, Link};

use crate::conformance::{FRAMES, Port, receive};
use crate::namespace::{User, address_with_neighbour, delete, in_namespace, persistent_tap};
use crate::{TAP, explains, failure, may_use, spec};

const SEVERAL: DriverSpec = DriverSpec::Tap {
    mtu: 1500,
    queues: true,
};

fn queue(queue: u32) -> PortSpec {
    PortSpec {
        queue,
        ..spec("tap0", SEVERAL)
    }
}

/// A datagram to the host's own 10.9.0.1, from port `from` of its neighbour 10.9.0.2.
fn datagram(port: &Port, from: u16, to: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], port.info().peer_mac.unwrap().0)
        .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
        .udp(from, to)
        .write(&mut bytes, b"ask")
        .unwrap();
    bytes
}

/// The UDP packets from the host that have come by a port.
fn datagrams(memory: &mut FrameMemory, port: &mut Port) -> Vec<Vec<u8>> {
    // Nothing is waited for: what the host sends to a tap is in its queue when it has been sent. A port that was silent rests
    // for some turns before it looks again.
    let frames = (0..40).flat_map(|_| receive(memory, port, Duration::ZERO));
    let udp = |frame: &Vec<u8>| frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 17;
    frames.filter(udp).collect()
}

#[test]
fn an_answer_comes_by_the_queue_that_the_question_was_sent_by() {
    let name = "tap::an_answer_comes_by_the_queue_that_the_question_was_sent_by";
    in_namespace(name, User::Same, || {
        if !may_use(&TAP, name) {
            return;
        }
        let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
        let mut queues = [0, 1, 2].map(|nth| open(&queue(nth), &mut memory, &mut None).unwrap());
        address_with_neighbour("tap0");
        let host = UdpSocket::bind("10.9.0.1:7").unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // Each port of the neighbour's by each queue: where an answer comes is not chance.
        for round in 0..30 {
            let (by, from) = (round % 3, 4_000 + round as u16 / 3);
            let mut frames = Burst::new();
            frames.push(memory.copy_in(&datagram(&queues[by], from, 7)).unwrap());
            queues[by].tx_burst(&mut memory, &mut frames);
            assert!(frames.is_empty());
            let (read, asker) = host.recv_from(&mut [0; 16]).unwrap();
            assert_eq!((read, asker.port()), (3, from));
            host.send_to(b"answer", asker).unwrap();
            for (nth, queue) in queues.iter_mut().enumerate() {
                let got = datagrams(&mut memory, queue);
                assert_eq!(got.len(), usize::from(nth == by), "round {round}: by queue {nth}");
                assert!(got.iter().all(|packet| packet[42..48] == *b"answer"));
            }
        }
        // What the interface dropped is told once; it is there until the last queue is closed.
        let [first, second, third] = queues;
        first.close(&mut memory);
        assert_eq!(second.link(), Link::Up);
        second.close(&mut memory);
        third.close(&mut memory);
        let error = failure(&mut memory, &spec("tap0", crate::AF_PACKET));
        explains(&error, "no such interface", "ip link");
    });
}

#[test]
fn taps_that_others_made_are_used_as_they_are_or_refused_with_what_to_do() {
    let name = "tap::taps_that_others_made_are_used_as_they_are_or_refused_with_what_to_do";
    in_namespace(name, User::Same, || {
        if !may_use(&TAP, name) {
            return;
        }
        let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
        // QEMU's header has two bytes more than ours.
        for (header, several, spec) in [
            (12, false, spec("tap0", TAP)),
            (10, true, spec("tap0", TAP)),
            (12, true, queue(0)),
        ] {
            persistent_tap("tap0", header, several);
            let mut port = open(&spec, &mut memory, &mut None).unwrap();
            address_with_neighbour("tap0");
            let host = UdpSocket::bind("10.9.0.1:7").unwrap();
            host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut frames = Burst::new();
            frames.push(memory.copy_in(&datagram(&port, 4_000, 7)).unwrap());
            port.tx_burst(&mut memory, &mut frames);
            let (_, asker) = host
                .recv_from(&mut [0; 16])
                .expect("the host reads what was sent");
            host.send_to(b"answer", asker).unwrap();
            let got = datagrams(&mut memory, &mut port);
            assert_eq!(got.len(), 1, "header of {header} bytes");
            assert_eq!(got[0][42..48], *b"answer");
            port.close(&mut memory);
            delete("tap0");
        }
        persistent_tap("tap0", 10, false);
        let error = failure(&mut memory, &queue(0));
        explains(&error, "cannot create the tap", "multi_queue");
    });
}
