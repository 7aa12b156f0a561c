//! Every driver against the kernel's own interfaces, each test in a network namespace that ends with it. Runs without
//! root; what then cannot run (AF_XDP needs bpf(2)) says SKIPPED.
#![allow(
    clippy::unwrap_used,
    reason = "tests, and their helpers outside of test functions"
)]

#[path = "nic/conformance/mod.rs"]
mod conformance;
#[path = "nic/fake_netmap.rs"]
mod fake_netmap;
#[path = "nic/forwarding.rs"]
mod forwarding;
#[path = "nic/fanout.rs"]
mod fanout;
#[path = "nic/memif.rs"]
mod memif;
#[path = "nic/namespace.rs"]
mod namespace;
#[path = "nic/netmap.rs"]
mod netmap;
#[path = "nic/pcap.rs"]
mod pcap;
#[path = "nic/probe.rs"]
mod probe;
#[path = "nic/refusals.rs"]
mod refusals;
#[path = "nic/tap.rs"]
mod tap;

use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::time::Duration;

use conformance::{FRAMES, Port, receive};
use namespace::{
    User, address_with_neighbour, delete, enter_new_namespace, ethtool, hand_over_segments, in_namespace,
    move_to, skipped, veth,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_dataplane::nic::open::{Attach, BusyPoll, DriverSpec, Offloads, PortSpec, ZeroCopy, open};
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{Burst, FrameMemory, Link, OpenError, oversize, vlan};

const AF_PACKET: DriverSpec = DriverSpec::AfPacket { fanout: None };
const TAP: DriverSpec = DriverSpec::Tap {
    mtu: 1500,
    queues: false,
};
const NATIVE: DriverSpec = DriverSpec::AfXdp {
    attach: Attach::Native,
    zero_copy: ZeroCopy::Auto,
    busy_poll: None,
    shared: None,
};
/// The worker's calls do the kernel's part.
const POLLING: DriverSpec = DriverSpec::AfXdp {
    attach: Attach::Native,
    zero_copy: ZeroCopy::Off,
    busy_poll: Some(BusyPoll {
        micros: 20,
        budget: 64,
        prefer: true,
    }),
    shared: None,
};
const GENERIC: DriverSpec = DriverSpec::AfXdp {
    attach: Attach::Generic,
    zero_copy: ZeroCopy::Off,
    busy_poll: None,
    shared: None,
};

fn spec(interface: &str, driver: DriverSpec) -> PortSpec {
    PortSpec {
        ring_size: 64,
        ..PortSpec::new("test", interface, driver)
    }
}

fn port(memory: &mut FrameMemory, umem: &mut Option<Umem>, interface: &str, driver: DriverSpec) -> Port {
    open(&spec(interface, driver), memory, umem).unwrap()
}

fn failure(memory: &mut FrameMemory, spec: &PortSpec) -> OpenError {
    let before = memory.available();
    let error = open(spec, memory, &mut None).err().expect("must not open");
    assert_eq!(
        memory.available(),
        before,
        "a port that did not open keeps no frame"
    );
    error
}

/// Why this process may not load XDP programs, or make taps; `None` if it may, or if something else is wrong.
fn unavailable(driver: &DriverSpec) -> Option<String> {
    let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
    if *driver != TAP {
        veth("probe0", "probe1");
    }
    let result = open(&spec("probe0", driver.clone()), &mut memory, &mut None);
    let refusals = [libc::EPERM, libc::EACCES, libc::ENOENT].map(Some);
    let refused =
        |error: &OpenError| refusals.contains(&error.source.as_ref().and_then(|e| e.raw_os_error()));
    let why = result.err().filter(refused).map(|error| error.to_string());
    if *driver != TAP {
        delete("probe0");
    }
    why
}

/// Whether this process may use the driver; says so if not.
fn may_use(driver: &DriverSpec, what: &str) -> bool {
    let why = unavailable(driver);
    if let Some(why) = &why {
        skipped(what, why);
    }
    why.is_none()
}

#[test]
fn ports_of_one_worker_share_a_umem_and_forward_the_same_frame() {
    in_namespace(
        "ports_of_one_worker_share_a_umem_and_forward_the_same_frame",
        User::Same,
        || {
            if !may_use(&NATIVE, "shared UMEM") {
                return;
            }
            veth("va", "wa");
            veth("vb", "wb");
            let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
            let mut umem = None;
            let mut left = port(&mut memory, &mut umem, "va", NATIVE);
            let mut right = port(&mut memory, &mut umem, "vb", NATIVE);
            assert!(left.info().mode.contains("own umem"), "{}", left.info().mode);
            assert!(right.info().mode.contains("shared umem"), "{}", right.info().mode);
            let mut other = FrameMemory::new(FRAMES, 2048).unwrap();
            let mut client = port(&mut other, &mut None, "wa", AF_PACKET);
            let mut server = port(&mut other, &mut None, "wb", AF_PACKET);
            let sent = [&[0xff; 12][..], &[0x88, 0xb5], &[7; 86]].concat();
            let mut frames = Burst::new();
            frames.push(other.copy_in(&sent).unwrap());
            client.tx_burst(&mut other, &mut frames);
            while frames.is_empty() {
                left.rx_burst(&mut memory, &mut frames);
            }
            right.tx_burst(&mut memory, &mut frames);
            assert!(frames.is_empty());
            let mut received = Vec::new();
            while received.is_empty() {
                received = receive(&mut other, &mut server, Duration::from_millis(100));
            }
            assert_eq!(received, [sent]);
            left.close(&mut memory);
            right.close(&mut memory);
            assert_eq!(memory.available(), FRAMES);
        },
    );
}

#[test]
fn tcp_flows_between_two_hosts_through_two_af_packet_ports() {
    in_namespace(
        "tcp_flows_between_two_hosts_through_two_af_packet_ports",
        User::Namespaced,
        || {
            forwarding::tcp_echo_through(&AF_PACKET);
        },
    );
}

#[test]
fn tcp_flows_between_two_hosts_through_two_native_af_xdp_ports() {
    in_namespace(
        "tcp_flows_between_two_hosts_through_two_native_af_xdp_ports",
        User::Same,
        || {
            if may_use(&NATIVE, "TCP over AF_XDP") {
                forwarding::tcp_echo_through(&NATIVE);
            }
        },
    );
}

#[test]
fn tcp_flows_between_two_hosts_through_two_generic_af_xdp_ports() {
    in_namespace(
        "tcp_flows_between_two_hosts_through_two_generic_af_xdp_ports",
        User::Same,
        || {
            if may_use(&GENERIC, "TCP over AF_XDP") {
                forwarding::tcp_echo_through(&GENERIC);
            }
        },
    );
}

#[test]
fn tcp_flows_between_two_hosts_through_two_af_xdp_ports_that_poll_busily() {
    in_namespace(
        "tcp_flows_between_two_hosts_through_two_af_xdp_ports_that_poll_busily",
        User::Same,
        || {
            if may_use(&POLLING, "TCP over AF_XDP") {
                forwarding::tcp_echo_through(&POLLING);
            }
        },
    );
}

#[test]
fn frame_memory_is_shared_with_the_hardware_as_it_is_told() {
    in_namespace(
        "frame_memory_is_shared_with_the_hardware_as_it_is_told",
        User::Same,
        || {
            if !may_use(&NATIVE, "zero-copy") {
                return;
            }
            veth("va", "vb");
            let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
            let with = |zero_copy| {
                let driver = DriverSpec::AfXdp {
                    attach: Attach::Native,
                    zero_copy,
                    busy_poll: None,
                    shared: None,
                };
                spec("va", driver)
            };
            // A veth has no hardware.
            explains(
                &failure(&mut memory, &with(ZeroCopy::On)),
                "cannot bind",
                "zeroCopy",
            );
            for zero_copy in [ZeroCopy::Auto, ZeroCopy::Off] {
                let port = open(&with(zero_copy), &mut memory, &mut None).unwrap();
                assert!(port.info().mode.contains("native, copy,"), "{}", port.info().mode);
                port.close(&mut memory);
            }
            let port = port(&mut memory, &mut None, "va", POLLING);
            assert!(port.info().mode.contains("busy polling"), "{}", port.info().mode);
            port.close(&mut memory);
        },
    );
}

#[test]
fn checksums_that_the_kernel_left_to_hardware_are_completed() {
    in_namespace(
        "checksums_that_the_kernel_left_to_hardware_are_completed",
        User::Same,
        || {
            let mut drivers = vec![AF_PACKET];
            if may_use(&NATIVE, "checksums over AF_XDP") {
                drivers.extend([NATIVE, GENERIC]);
            }
            for driver in drivers {
                veth("va", "vb");
                address_with_neighbour("va");
                assert!(udp_checksum_completed("vb", driver));
                delete("va");
            }
        },
    );
}

#[test]
fn a_peer_that_may_hand_over_unsegmented_packets_is_told_with_the_command_that_stops_it() {
    in_namespace(
        "a_peer_that_may_hand_over_unsegmented_packets_is_told_with_the_command_that_stops_it",
        User::Same,
        || {
            veth("va", "vb");
            assert_eq!(oversize::doubt("va"), None);
            hand_over_segments("vb", 64);
            let told = oversize::doubt("va").expect("its peer may send 64 segments in one packet");
            assert!(told.contains("ip link set vb gso_max_segs 1"), "{told}");
            assert_eq!(
                oversize::doubt("vb"),
                None,
                "the other way there is nothing to fear"
            );
            // A container's end of the pair is in the container.
            let (mine, other) = (
                std::fs::File::open("/proc/thread-self/ns/net").unwrap(),
                enter_new_namespace(),
            );
            move_into_link_name_space(mine.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            move_to("vb", other.as_fd());
            assert_eq!(oversize::doubt("va"), Some(told));
            assert_eq!(oversize::doubt("no-such-if0"), None);
        },
    );
}

#[test]
fn offloads_in_the_way_are_switched_off_while_a_port_is_open_or_refused_or_left_alone() {
    let name = "offloads_in_the_way_are_switched_off_while_a_port_is_open_or_refused_or_left_alone";
    in_namespace(name, User::Same, || {
        veth("va", "vb");
        let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
        let with = |offloads| PortSpec {
            offloads,
            ..spec("va", AF_PACKET)
        };
        merge(true);
        assert!(merges(), "the kernel can merge what a veth receives");
        let error = failure(&mut memory, &with(Offloads::Refuse));
        explains(&error, "rx-gro", "ethtool -K va rx-gro off");
        assert!(merges(), "a port that does not open changes nothing");

        let ignoring = open(&with(Offloads::Ignore), &mut memory, &mut None).unwrap();
        assert!(merges());
        assert!(
            ignoring.info().mode.contains("in the way: rx-gro"),
            "{}",
            ignoring.info().mode
        );
        let doubt = oversize::doubt("va").expect("a port that merges loses packets");
        assert!(doubt.contains("ethtool -K va rx-gro off"), "{doubt}");
        ignoring.close(&mut memory);

        // Two queues of an interface: the last to close puts back.
        let first = open(&with(Offloads::Fix), &mut memory, &mut None).unwrap();
        let second = open(&with(Offloads::Fix), &mut memory, &mut None).unwrap();
        assert!(!merges());
        assert!(
            second.info().mode.contains("switched off: rx-gro"),
            "{}",
            second.info().mode
        );
        first.close(&mut memory);
        assert!(!merges(), "the other queue is still open");
        second.close(&mut memory);
        assert!(merges(), "as it was");

        // What was off stays off; an interface that is gone needs nothing.
        merge(false);
        open(&with(Offloads::Fix), &mut memory, &mut None)
            .unwrap()
            .close(&mut memory);
        assert!(!merges());
        merge(true);
        let orphan = open(&with(Offloads::Fix), &mut memory, &mut None).unwrap();
        delete("va");
        orphan.close(&mut memory);
    });
}

/// Whether `va` merges what it receives, as ethtool(8) would tell it.
fn merges() -> bool {
    ethtool("va", 0x2b, 0) != 0 // ETHTOOL_GGRO
}

fn merge(on: bool) {
    ethtool("va", 0x2c, u32::from(on)); // ETHTOOL_SGRO
}

#[test]
fn the_kernel_finishes_checksums_before_a_tap_hands_them_over() {
    in_namespace(
        "the_kernel_finishes_checksums_before_a_tap_hands_them_over",
        User::Same,
        || {
            if may_use(&TAP, "checksums over a tap") {
                assert!(!udp_checksum_completed("tap0", TAP));
            }
        },
    );
}

#[test]
fn ports_of_one_interface_have_a_vlan_each() {
    in_namespace("ports_of_one_interface_have_a_vlan_each", User::Same, || {
        let mut drivers = vec![AF_PACKET];
        if may_use(&NATIVE, "VLANs over AF_XDP") {
            drivers.extend([NATIVE, GENERIC]);
        }
        for driver in drivers {
            veth("va", "vb");
            tagged_frames_cross("va", "vb", driver);
            delete("va");
        }
    });
}

/// Sends frames with and without a tag to the interface, and from each of its ports.
fn tagged_frames_cross(from: &str, to: &str, driver: DriverSpec) {
    let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
    let mut peer = port(&mut memory, &mut None, from, AF_PACKET);
    let trunk = port(&mut memory, &mut None, to, driver);
    let mut ports = vlan::share(trunk, &[0, 100]).unwrap();
    let plain = |n: u8| {
        let mut frame = vec![n; 100];
        // A broadcast of an experimental type (RFC 9542 §3).
        frame[..6].fill(0xff);
        frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        frame
    };
    let tagged = |n: u8| {
        let mut frame = plain(n);
        frame.splice(12..12, [0x81, 0, 0, 100]);
        frame
    };
    let ours = |frames: Vec<Vec<u8>>| {
        let ours = |frame: &Vec<u8>| frame.len() >= 100 && frame[6..12] == [2, 0, 0, 0, 0, 9];
        frames.into_iter().filter(ours).collect::<Vec<_>>()
    };
    // A veth may lose what is sent right after it came up: what does not arrive is sent again.
    let cross = |memory: &mut FrameMemory, from: &mut Port, to: &mut Port, frame: &[u8]| loop {
        let mut burst: Burst = memory.copy_in(frame).into_iter().collect();
        from.tx_burst(memory, &mut burst);
        let got = ours(receive(memory, to, Duration::from_millis(100)));
        if let Some(first) = got.into_iter().next() {
            return first;
        }
    };
    for (place, on_the_wire) in [plain(1), tagged(2)].into_iter().enumerate() {
        let inside = plain(on_the_wire[20]);
        let port = &mut ports[place];
        assert_eq!(cross(&mut memory, &mut peer, port, &on_the_wire), inside);
        assert_eq!(cross(&mut memory, port, &mut peer, &inside), on_the_wire);
    }
    peer.close(&mut memory);
    ports.into_iter().for_each(|port| port.close(&mut memory));
}

/// Has the kernel send a datagram to the port, checks its checksum, and gives whether the driver completed it.
fn udp_checksum_completed(interface: &str, driver: DriverSpec) -> bool {
    let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
    let mut port = port(&mut memory, &mut None, interface, driver);
    if interface.starts_with("tap") {
        address_with_neighbour(interface);
    }
    let sender = UdpSocket::bind("10.9.0.1:0").unwrap();
    let udp = loop {
        // Again and again: the sending veth sometimes drops the first datagram (its own tx_dropped counts it, our
        // end sees nothing). Why is not known.
        sender.send_to(b"odd", "10.9.0.2:53").unwrap();
        let frames = receive(&mut memory, &mut port, Duration::from_millis(10));
        let mut udp: Vec<_> = frames
            .into_iter()
            .filter(|frame| frame[12..14] == [8, 0] && frame[23] == 17)
            .collect();
        if let Some(last) = udp.pop() {
            let completed = port.stats().rx_checksums_completed;
            // All of a burst or none: a tap's kernel end finishes its checksums itself.
            assert!(completed == 0 || completed == udp.len() as u64 + 1, "{completed}");
            break last;
        }
    };
    let packet = etherparse::SlicedPacket::from_ethernet(&udp).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
        (packet.net, packet.transport)
    else {
        panic!("not UDP over IPv4")
    };
    let right = udp
        .to_header()
        .calc_checksum_ipv4(&ip.header().to_header(), b"odd")
        .unwrap();
    assert_eq!(udp.checksum(), right);
    let completed = port.stats().rx_checksums_completed > 0;
    port.close(&mut memory);
    completed
}

#[test]
fn a_tap_tells_both_stations_and_disappears_when_closed() {
    let name = "a_tap_tells_both_stations_and_disappears_when_closed";
    in_namespace(name, User::Same, || {
        if !may_use(&TAP, name) {
            return;
        }
        let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
        let tap = port(&mut memory, &mut None, "tap0", TAP);
        assert_eq!(tap.link(), Link::Up);
        assert_ne!(Some(tap.info().mac), tap.info().peer_mac);
        assert!(tap.info().peer_mac.is_some());
        tap.close(&mut memory);
        let error = failure(&mut memory, &spec("tap0", AF_PACKET));
        explains(&error, "no such interface", "ip link");
    });
}

/// The error says this and advises that, in one line.
fn explains(error: &OpenError, what: &str, advice: &str) {
    let text = error.to_string();
    assert!(
        error.what.contains(what) && error.advice.contains(advice) && !text.contains('\n'),
        "{text}"
    );
}
