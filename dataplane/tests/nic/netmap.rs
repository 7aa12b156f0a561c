//! What of netmap is not every driver's: packets that are forwarded without a copy, whose memory it is, a kernel that breaks
//! every rule; and the kernel's own host rings, where there is a module.

use std::io::Write as _;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use sluice_dataplane::nic::netmap::Netmap;
use sluice_dataplane::nic::netmap::abi::DEVICE;
use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::{BURST, Burst, Driver as _, FrameMemory, Link, OpenError};

use crate::conformance::{FRAMES, receive};
use crate::fake_netmap::Module;
use crate::namespace::{User, address_with_neighbour, delete, in_namespace, skipped, veth};
use crate::{AF_PACKET, explains, spec, udp_checksum_completed};

/// Buffers of a module with memory for two workers' frames and some rings.
const BUFFERS: usize = 2 * FRAMES + 1024;

fn open(module: &Module, memory: &mut FrameMemory, name: &str) -> Result<Box<Netmap>, OpenError> {
    Netmap::open_by(&spec(name, DriverSpec::Netmap), memory, &module.devices()).map(Box::new)
}

fn worker() -> FrameMemory {
    FrameMemory::new(FRAMES, 2048).unwrap()
}

fn packet(number: u8) -> Vec<u8> {
    [&[0xff; 12][..], &[0x88, 0xb5], &[number; 86]].concat()
}

#[test]
fn a_packet_is_forwarded_between_rings_of_one_region_where_it_is() {
    let module = Module::new(BUFFERS);
    let (mut memory, mut others) = (worker(), worker());
    let mut left = open(&module, &mut memory, "netmap:l{1").unwrap();
    let mut right = open(&module, &mut memory, "netmap:r{1").unwrap();
    let mut client = open(&module, &mut others, "netmap:l}1").unwrap();
    let mut server = open(&module, &mut others, "netmap:r}1").unwrap();
    for port in [&left, &right, &client, &server] {
        assert!(port.info().mode.starts_with("zero-copy"), "{}", port.info().mode);
    }
    for number in 0..200 {
        let mut frames: Burst = others.copy_in(&packet(number)).into_iter().collect();
        let sent_at = others.bytes(&frames[0]).as_ptr();
        client.tx_burst(&mut others, &mut frames);
        while frames.is_empty() {
            left.rx_burst(&mut memory, &mut frames);
        }
        let through_at = memory.bytes(&frames[0]).as_ptr();
        right.tx_burst(&mut memory, &mut frames);
        assert!(frames.is_empty());
        while frames.is_empty() {
            server.rx_burst(&mut others, &mut frames);
        }
        assert_eq!(others.bytes(&frames[0]), packet(number));
        // The two workers map the memory at different addresses, but the two ends of the way are one worker's.
        assert_eq!(others.bytes(&frames[0]).as_ptr(), sent_at, "the packet moved");
        assert_ne!(through_at, sent_at);
        frames.drain(..).for_each(|frame| others.free(frame));
    }
    // A buffer is all packet.
    let longest = vec![7; 2048];
    let mut frames: Burst = others.copy_in(&longest).into_iter().collect();
    client.tx_burst(&mut others, &mut frames);
    while frames.is_empty() {
        left.rx_burst(&mut memory, &mut frames);
    }
    assert_eq!(memory.bytes(&frames[0]), longest);
    frames.drain(..).for_each(|frame| memory.free(frame));
    left.close(&mut memory);
    right.close(&mut memory);
    client.close(&mut others);
    server.close(&mut others);
    assert_eq!((memory.available(), others.available()), (FRAMES, FRAMES));
    assert_eq!(
        module.free_buffers(),
        BUFFERS - 2,
        "every buffer is the module's again"
    );
}

#[test]
fn where_frames_cannot_be_in_netmaps_memory_the_mode_says_why_and_packets_are_copied() {
    let module = Module::new(BUFFERS);
    let mut small = FrameMemory::new(64, 4096).unwrap();
    let mut busy = worker();
    let mut greedy = FrameMemory::new(2 * BUFFERS, 2048).unwrap();
    let held = busy.alloc().unwrap();
    for (memory, why) in [
        (&mut small, "buffers of 2048 bytes, frames of 4096"),
        (&mut busy, "another port uses the frames"),
        (&mut greedy, "buffers of 18432 are left"),
    ] {
        let mut port = open(&module, memory, "vale0:a@1").unwrap();
        let mut peer = open(&module, memory, "vale0:b@1").unwrap();
        let mode = port.info().mode.clone();
        assert!(mode.starts_with("copy (") && mode.contains(why), "{mode}");
        let mut frames: Burst = memory.copy_in(&packet(1)).into_iter().collect();
        port.tx_burst(memory, &mut frames);
        while frames.is_empty() {
            peer.rx_burst(memory, &mut frames);
        }
        assert_eq!(memory.bytes(&frames[0]), packet(1));
        frames.drain(..).for_each(|frame| memory.free(frame));
        port.close(memory);
        peer.close(memory);
    }
    busy.free(held);
    assert_eq!(module.free_buffers(), BUFFERS - 2);
}

#[test]
fn what_is_longer_than_a_slots_buffer_is_counted_and_takes_no_slot() {
    let module = Module::new(BUFFERS);
    let (mut memory, mut others) = (FrameMemory::new(64, 4096).unwrap(), worker());
    let mut port = open(&module, &mut memory, "vale0:a@1").unwrap();
    let mut peer = open(&module, &mut others, "vale0:b@1").unwrap();
    let packets = [packet(1), vec![2; 3000], packet(3)];
    let mut frames: Burst = packets.iter().filter_map(|bytes| memory.copy_in(bytes)).collect();
    port.tx_burst(&mut memory, &mut frames);
    assert_eq!((port.stats().tx_packets, port.stats().tx_errors), (2, 1));
    while frames.len() < 2 {
        peer.rx_burst(&mut others, &mut frames);
    }
    let arrived: Vec<_> = frames.iter().map(|frame| others.bytes(frame)).collect();
    assert_eq!(arrived, [packet(1), packet(3)]);
    frames.drain(..).for_each(|frame| others.free(frame));
    port.close(&mut memory);
    peer.close(&mut others);
}

/// The module keeps what is removed until nobody has it open, and who removes it waits.
#[test]
fn what_is_gone_is_let_go_and_served_again_when_it_is_back() {
    let module = Module::new(BUFFERS);
    let (mut memory, mut others) = (worker(), worker());
    let mut near = open(&module, &mut memory, "netmap:p{1").unwrap();
    let mut far = open(&module, &mut others, "netmap:p}1").unwrap();
    let mut sent = 0;
    for _ in 0..3 {
        for number in 0..100 {
            let mut frames: Burst = others.copy_in(&packet(number)).into_iter().collect();
            far.tx_burst(&mut others, &mut frames);
            while frames.is_empty() {
                near.rx_burst(&mut memory, &mut frames);
            }
            assert_eq!(memory.bytes(&frames[0]), packet(number));
            near.tx_burst(&mut memory, &mut frames);
            while frames.is_empty() {
                far.rx_burst(&mut others, &mut frames);
            }
            frames.drain(..).for_each(|frame| others.free(frame));
            sent += 1;
        }
        module.remove(true);
        // Under load: what is offered meanwhile is counted.
        let mut frames: Burst = memory.copy_in(&packet(0)).into_iter().collect();
        near.rx_burst(&mut memory, &mut frames);
        for _ in 0..2 {
            near.tend(&mut memory);
            far.tend(&mut others);
            assert_eq!((near.link(), far.link()), (Link::Gone, Link::Gone));
            assert_eq!(module.holders(), 0, "who removes it waits for ever");
        }
        near.tx_burst(&mut memory, &mut frames);
        assert!(frames.is_empty() && near.wait_fd().is_none());
        near.rx_burst(&mut memory, &mut frames);
        assert!(!near.owes() && frames.is_empty());
        module.remove(false);
        near.tend(&mut memory);
        far.tend(&mut others);
        assert_eq!((near.link(), far.link()), (Link::Up, Link::Up));
        assert!(near.info().mode.starts_with("zero-copy"), "{}", near.info().mode);
    }
    let stats = near.stats();
    assert_eq!(
        (stats.rx_packets, stats.tx_packets, stats.tx_errors),
        (sent, sent, 3)
    );
    near.close(&mut memory);
    far.close(&mut others);
    assert_eq!((memory.available(), others.available()), (FRAMES, FRAMES));
    assert_eq!(module.free_buffers(), BUFFERS - 2);
}

#[test]
fn ports_of_one_direction_only_receive_or_only_send() {
    let module = Module::new(BUFFERS);
    let mut memory = worker();
    let mut sender = open(&module, &mut memory, "vale0:a/T@1").unwrap();
    let mut receiver = open(&module, &mut memory, "vale0:b/R@1").unwrap();
    let mut frames: Burst = memory.copy_in(&packet(1)).into_iter().collect();
    sender.tx_burst(&mut memory, &mut frames);
    sender.rx_burst(&mut memory, &mut frames);
    assert!(frames.is_empty());
    while frames.is_empty() {
        receiver.rx_burst(&mut memory, &mut frames);
    }
    receiver.tx_burst(&mut memory, &mut frames);
    assert_eq!((frames.len(), receiver.stats().tx_errors), (0, 1));
    sender.close(&mut memory);
    receiver.close(&mut memory);
    assert_eq!(memory.available(), FRAMES);
}

/// Whatever the kernel, or who shares the memory with it, writes into descriptions, rings and slots: no panic, no access
/// outside, no frame that is in two places, none lost but to the slots that lie.
#[test]
fn a_kernel_that_writes_anything_anywhere_makes_errors_and_nothing_else() {
    let (mut received, mut errors) = (0, 0);
    for seed in 0..60u32 {
        let module = Module::new(BUFFERS);
        let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut number = || {
            // xorshift32.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let mut ports: Vec<_> = ["netmap:p{1", "netmap:p}1", "vale0:a@1", "vale0:b@1"]
            .into_iter()
            .map(|name| open(&module, &mut memory, name).unwrap())
            .collect();
        for _ in 0..200 {
            module.scribble(&mut number, 500);
            for port in &mut ports {
                let copies = (0..number() as usize % BURST).map_while(|n| memory.copy_in(&packet(n as u8)));
                let mut frames: Burst = copies.collect();
                // Packets of every length there can be.
                for frame in &mut frames {
                    let _ = memory.set_len(frame, number() as usize % 2100);
                }
                port.tx_burst(&mut memory, &mut frames);
                frames.drain(..).for_each(|frame| memory.free(frame));
                port.rx_burst(&mut memory, &mut frames);
                for frame in &mut frames {
                    memory.bytes_mut(frame).fill(1);
                }
                frames.drain(..).for_each(|frame| memory.free(frame));
                port.owes();
                port.link();
            }
        }
        assert_eq!(memory.available(), FRAMES, "a frame for a frame, seed {seed}");
        let all: Vec<_> = std::iter::from_fn(|| memory.alloc()).collect();
        let places: std::collections::BTreeSet<_> = all
            .iter()
            .map(|frame| memory.bytes(frame).as_ptr().addr() / 2048)
            .collect();
        assert_eq!(places.len(), FRAMES, "two frames are one, seed {seed}");
        all.into_iter().for_each(|frame| memory.free(frame));
        for stats in ports.iter().map(|port| port.stats()) {
            received += stats.rx_packets;
            errors += stats.rx_errors + stats.tx_errors;
        }
        ports.into_iter().for_each(|port| port.close(&mut memory));
        assert_eq!(memory.available(), FRAMES);
    }
    assert!(
        received > 1000 && errors > 1000,
        "{received} received, {errors} errors"
    );
}

/// The same at open: a port opens or says why not, and never by believing.
#[test]
fn a_kernel_that_lies_at_open_is_refused_or_harmless() {
    let mut refused = 0;
    for seed in 0..200u32 {
        let module = Module::new(1024);
        let mut memory = FrameMemory::new(256, 2048).unwrap();
        let _first = open(&module, &mut memory, "vale0:a@1").unwrap();
        let mut state = seed.wrapping_mul(2_246_822_519) | 1;
        let mut number = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        module.scribble(&mut number, 20_000);
        let mut others = FrameMemory::new(256, 2048).unwrap();
        match open(&module, &mut others, "vale0:a@1") {
            Ok(mut port) => {
                let mut frames: Burst = others.copy_in(&packet(1)).into_iter().collect();
                port.tx_burst(&mut others, &mut frames);
                port.rx_burst(&mut others, &mut frames);
                frames.drain(..).for_each(|frame| others.free(frame));
                port.close(&mut others);
            }
            Err(error) => {
                refused += 1;
                explains(&error, "netmap", "");
            }
        }
        assert_eq!(others.available(), others.capacity());
    }
    assert!(refused > 0, "not one lie was noticed");
}

#[test]
fn every_failure_to_open_a_netmap_port_says_what_to_do() {
    let module = Module::new(64);
    let mut memory = worker();
    let failure = |name, memory: &mut FrameMemory| open(&module, memory, name).expect_err("must not open");
    explains(&failure("netmap:", &mut memory), "names no port", "netmap:IF");
    explains(
        &failure("netmap:none0", &mut memory),
        "no such interface",
        "ip link",
    );
    explains(&failure("vale0:a", &mut memory), "refuses", "buf_num");
    explains(&failure("vale0:a@7", &mut memory), "refuses", "API 14");
    explains(&failure("vale0:a/RT", &mut memory), "refuses", "buf_num");
    let module = Module::new(BUFFERS);
    let mut others = worker();
    let first = open(&module, &mut others, "vale0:a@1").unwrap();
    let second = open(&module, &mut memory, "vale0:a@1").expect_err("a ring is one program's");
    explains(
        &second,
        "refuses ring pair 0 of vale0:a",
        "another program uses it",
    );
    first.close(&mut others);
    assert_eq!(module.free_buffers(), BUFFERS - 2);
    if !Path::new(DEVICE).exists() {
        let spec = spec("vale0:a", DriverSpec::Netmap);
        let error = sluice_dataplane::nic::open::open(&spec, &mut memory, &mut None);
        explains(
            &error.err().expect("there is no module"),
            DEVICE,
            "modprobe netmap",
        );
    }
    assert_eq!(memory.available(), FRAMES);
}

#[test]
fn without_the_kernels_own_module_its_cases_are_counted() {
    use crate::conformance as drivers;
    let cases = [
        drivers::netmap_kernel_pipe::cases(),
        drivers::netmap_kernel_switch::cases(),
        drivers::netmap_kernel_switch_zero_copy::cases(),
        drivers::netmap_kernel_veth::cases(),
    ];
    assert!(cases.iter().all(|&cases| cases > 5), "{cases:?}");
    if !Path::new(DEVICE).exists() {
        // And the host rings, and the interface that is deleted.
        let count = cases.iter().sum::<usize>() + 2;
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {count} cases of netmap on the kernel's own module: {DEVICE} is not there"
        );
    }
}

/// The way to the node's own stack and from it, on the kernel's own module.
#[test]
fn the_node_speaks_through_netmaps_host_rings() {
    let name = "netmap::the_node_speaks_through_netmaps_host_rings";
    in_namespace(name, User::Same, || {
        if !Path::new(DEVICE).exists() {
            return skipped(name, &format!("{DEVICE} is not there"));
        }
        veth("va", "vb");
        address_with_neighbour("va");
        // While nobody has the NIC's own rings, the node speaks past the host rings.
        let mut memory = worker();
        let wire = spec("netmap:va", DriverSpec::Netmap);
        let wire = sluice_dataplane::nic::open::open(&wire, &mut memory, &mut None).unwrap();
        assert!(!udp_checksum_completed("netmap:va^", DriverSpec::Netmap));
        // A punted packet: to the kernel's station and address.
        let host = spec("netmap:va^", DriverSpec::Netmap);
        let mut port = sluice_dataplane::nic::open::open(&host, &mut memory, &mut None).unwrap();
        let socket = UdpSocket::bind("10.9.0.1:53").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (ours, theirs) = (port.info().mac.0, port.info().peer_mac.unwrap().0);
        let mut punted = Vec::new();
        etherparse::PacketBuilder::ethernet2(ours, theirs)
            .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
            .udp(1000, 53)
            .write(&mut punted, b"punted")
            .unwrap();
        let mut frames: Burst = memory.copy_in(&punted).into_iter().collect();
        port.tx_burst(&mut memory, &mut frames);
        let mut read = [0; 16];
        let (len, from) = socket.recv_from(&mut read).unwrap();
        assert_eq!(
            (&read[..len], from.to_string().as_str()),
            (&b"punted"[..], "10.9.0.2:1000")
        );
        port.close(&mut memory);
        wire.close(&mut memory);
        delete("va");
    });
}

/// The kernel's own module: an interface is deleted under a port, which `ip link` waits for, and made again.
#[test]
fn a_deleted_interface_is_let_go_and_served_again_when_it_is_back() {
    let name = "netmap::a_deleted_interface_is_let_go_and_served_again_when_it_is_back";
    in_namespace(name, User::Same, || {
        if !Path::new(DEVICE).exists() {
            return skipped(name, &format!("{DEVICE} is not there"));
        }
        let (mut memory, mut others) = (worker(), worker());
        let open = |name, driver, memory: &mut FrameMemory| {
            sluice_dataplane::nic::open::open(&spec(name, driver), memory, &mut None).unwrap()
        };
        veth("va", "vb");
        let mut ports = ["netmap:va", "netmap:va^"].map(|name| open(name, DriverSpec::Netmap, &mut memory));
        for round in 0..3 {
            let mut peer = open("vb", AF_PACKET, &mut others);
            let mut arrived = Vec::new();
            while arrived.is_empty() {
                let mut frames: Burst = memory.copy_in(&packet(round)).into_iter().collect();
                ports[0].tx_burst(&mut memory, &mut frames);
                frames.drain(..).for_each(|frame| memory.free(frame));
                arrived = receive(&mut others, &mut peer, Duration::from_millis(20));
            }
            assert_eq!(arrived[0], packet(round));
            peer.close(&mut others);
            let removal = std::thread::spawn(|| delete("va"));
            while ports.iter().any(|port| port.link() != Link::Gone) {
                std::thread::yield_now();
            }
            ports.iter_mut().for_each(|port| port.tend(&mut memory));
            removal.join().unwrap();
            veth("va", "vb");
            ports.iter_mut().for_each(|port| port.tend(&mut memory));
            assert!(ports.iter().all(|port| port.link() == Link::Up));
        }
        let station = ports[0].info().mac;
        ports.into_iter().for_each(|port| port.close(&mut memory));
        assert_eq!(memory.available(), FRAMES);
        let port = open("netmap:va", DriverSpec::Netmap, &mut memory);
        assert_eq!(port.info().mac, station, "the new interface is the old station");
        port.close(&mut memory);
        delete("va");
    });
}
