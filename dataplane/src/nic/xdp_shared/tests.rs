//! The program as the kernel runs it, on frames that go nowhere.

use std::os::fd::AsFd as _;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};

use super::super::bpf::{instruction, test_run};
use super::super::xdp_program::{listed, written};
use super::program::program;
use super::*;

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
const CLIENT: [u8; 4] = [203, 0, 113, 7];
const NODE: [u8; 4] = [192, 0, 2, 2];
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const EXTERNAL: [u8; 4] = [198, 51, 100, 80];
const POD: [u8; 4] = [10, 244, 0, 5];
/// The kernel's own path; the program's other verdict, which tests have it say instead of giving a frame to a socket.
const PASS: u32 = 2;
const TAKEN: u32 = 1;
const DROP: u32 = 1;

fn v6(last: u8) -> [u8; 16] {
    let mut address = [0; 16];
    (address[0], address[1], address[15]) = (0xfd, last, last);
    address
}

/// Node, cluster IP, external IP and pod of both families.
fn fill(maps: &SharedMaps) {
    let worlds: [[IpAddr; 4]; 2] = [
        [NODE, CLUSTER_IP, EXTERNAL, POD].map(IpAddr::from),
        [2, 10, 80, 5].map(|last| IpAddr::from(v6(last))),
    ];
    for [node, cluster_ip, external, pod] in worlds {
        let bits = if node.is_ipv4() { 32 } else { 128 };
        for (address, length, flags) in [
            (node, bits, OWN),
            (cluster_ip, bits - 8, TO),
            (external, bits, PARTLY),
            (pod, bits - 8, FROM),
        ] {
            maps.set_prefix((address, length), flags).unwrap();
        }
        maps.set_port((node, Protocol::TCP, 30080), SERVED).unwrap();
        maps.set_port((node, Protocol::UDP, 30053), SERVED).unwrap();
        maps.set_port((node, Protocol::TCP, 30090), DRAINING).unwrap();
        maps.set_port((external, Protocol::UDP, 53), SERVED).unwrap();
    }
}

fn udp(src: [u8; 4], dst: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(src, dst, 64);
    builder.udp(ports.0, ports.1).write(&mut frame, &[0; 8]).unwrap();
    frame
}

fn tcp(src: [u8; 4], dst: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(src, dst, 64);
    builder
        .tcp(ports.0, ports.1, 1, 1)
        .write(&mut frame, &[0; 8])
        .unwrap();
    frame
}

fn udp6(src: u8, dst: u8, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6(v6(src), v6(dst), 64);
    builder.udp(4000, port).write(&mut frame, &[0; 8]).unwrap();
    frame
}

/// What an ICMP error about `frame` quotes: its packet.
fn error(dst: [u8; 4], frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4([203, 0, 113, 1], dst, 64);
    builder.icmpv4(kind).write(&mut out, &frame[14..]).unwrap();
    out
}

fn from_node_port6() -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6(v6(2), v6(7), 64);
    builder.udp(30053, 4000).write(&mut frame, &[0; 8]).unwrap();
    frame
}

fn icmp6(src: u8, dst: u8, kind: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6(v6(src), v6(dst), 64);
    builder.icmpv6(kind).write(&mut out, payload).unwrap();
    out
}

/// The frame as a later fragment.
fn later(frame: Vec<u8>) -> Vec<u8> {
    fragment(frame, 9, 100)
}

/// As a fragment of a datagram, the first or, at an offset in units of 8 bytes, a later one.
fn fragment(mut frame: Vec<u8>, datagram: u16, offset: u16) -> Vec<u8> {
    let flags = if offset == 0 { 0x2000 } else { offset };
    frame[18..20].copy_from_slice(&datagram.to_be_bytes());
    frame[20..22].copy_from_slice(&flags.to_be_bytes());
    frame
}

fn fragment6(mut frame: Vec<u8>, datagram: u8, offset: u16) -> Vec<u8> {
    let protocol = std::mem::replace(&mut frame[20], 44);
    let [high, low] = (offset << 3 | u16::from(offset == 0)).to_be_bytes();
    frame.splice(54..54, [protocol, 0, high, low, 0, 0, 0, datagram]);
    frame
}

/// With so many destination options between.
fn options6(mut frame: Vec<u8>, headers: usize) -> Vec<u8> {
    for nth in 0..headers {
        let next = std::mem::replace(&mut frame[20], 60);
        // Every other one is of 16 bytes.
        let length = nth % 2;
        frame.splice(54..54, [next, length as u8, 1, 4, 0, 0, 0, 0]);
        frame.splice(62..62, std::iter::repeat_n(0, 8 * length));
    }
    frame
}

fn syn(dst: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(CLIENT, dst, 64);
    builder
        .tcp(4000, port, 1, 1)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

fn tagged(vlan: u16, mut frame: Vec<u8>) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [0x81, 0, high, low]);
    frame
}

fn with_options(mut frame: Vec<u8>) -> Vec<u8> {
    frame[14] = 0x46;
    frame.splice(34..34, [1; 4]);
    frame
}

fn to_group(mut frame: Vec<u8>) -> Vec<u8> {
    frame[0] |= 1;
    frame
}

#[test]
#[cfg_attr(miri, ignore = "asks the kernel")]
fn services_frames_are_taken_and_all_others_are_the_kernels() {
    let snat = vec![20_000..=20_999, 61_000..=61_999];
    let maps = match SharedMaps::new([64, 64, 1024], snat.clone(), None) {
        Ok(maps) => maps,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            use std::io::Write as _;
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED the program of shared interfaces: no CAP_BPF"
            );
            return;
        }
        Err(error) => panic!("{error}"),
    };
    fill(&maps);
    let sockets = Map::<u32>::new(MapKind::Sockets, 1).unwrap();
    let mut code = program(maps.numbers(sockets.number()), &snat, &[0, 5]);
    // A map without sockets gives the verdict that the program asks it to: so one that is seen.
    for at in 1..code.len() {
        if code[at] == instruction(0x85, 0, 0, 0, 51) {
            code[at - 1].immediate = TAKEN as i32;
        }
    }
    let program = bpf::load("test", &code).unwrap();
    let unreachable = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
    let cases: &[(&str, Vec<u8>, u32)] = &[
        ("to a cluster IP", udp(CLIENT, CLUSTER_IP, (4000, 9)), TAKEN),
        ("the same in IPv6", udp6(7, 10, 9), TAKEN),
        ("to SSH", tcp(CLIENT, NODE, (4000, 22)), PASS),
        ("to a node port", tcp(CLIENT, NODE, (4000, 30080)), TAKEN),
        (
            "to it with options",
            with_options(tcp(CLIENT, NODE, (4000, 30080))),
            TAKEN,
        ),
        (
            "to SSH with options",
            with_options(tcp(CLIENT, NODE, (30080, 22))),
            PASS,
        ),
        (
            "to its number of another protocol",
            udp(CLIENT, NODE, (4000, 30080)),
            PASS,
        ),
        ("below SNAT's ports", udp(POD, NODE, (9, 19_999)), PASS),
        ("SNAT's first port", udp(POD, NODE, (9, 20_000)), TAKEN),
        ("SNAT's last port", tcp(POD, NODE, (9, 61_999)), TAKEN),
        ("between SNAT's ports", tcp(POD, NODE, (9, 21_000)), PASS),
        ("from a pod to the node", tcp(POD, NODE, (9, 10250)), PASS),
        ("from a pod to a client", tcp(POD, CLIENT, (9, 4000)), TAKEN),
        (
            "to an external IP's port",
            udp(CLIENT, EXTERNAL, (4000, 53)),
            TAKEN,
        ),
        ("to another of its ports", udp(CLIENT, EXTERNAL, (4000, 54)), PASS),
        (
            "a later fragment to it",
            later(udp(CLIENT, EXTERNAL, (0, 0))),
            TAKEN,
        ),
        (
            "a later fragment to the node",
            later(udp(CLIENT, NODE, (0, 30080))),
            PASS,
        ),
        (
            "a later fragment of a reply",
            later(udp(POD, NODE, (0, 0))),
            TAKEN,
        ),
        ("to somebody else", udp(CLIENT, [203, 0, 113, 9], (1, 53)), PASS),
        (
            "of a VLAN that a port has",
            tagged(5 | 0x6000, udp(CLIENT, CLUSTER_IP, (1, 1))),
            TAKEN,
        ),
        (
            "the kernel's in it",
            tagged(5, tcp(CLIENT, NODE, (4000, 22))),
            PASS,
        ),
        ("IPv6 in it", tagged(5, udp6(7, 80, 53)), TAKEN),
        (
            "of another VLAN",
            tagged(6, udp(CLIENT, CLUSTER_IP, (1, 1))),
            PASS,
        ),
        (
            "with only a priority",
            tagged(0x2000, udp(CLIENT, CLUSTER_IP, (1, 1))),
            TAKEN,
        ),
        (
            "the first fragment to a node port",
            fragment(udp(CLIENT, NODE, (4000, 30053)), 1, 0),
            TAKEN,
        ),
        (
            "its later fragment",
            fragment(udp(CLIENT, NODE, (0, 0)), 1, 100),
            TAKEN,
        ),
        (
            "another datagram's",
            fragment(udp(CLIENT, NODE, (0, 0)), 2, 100),
            PASS,
        ),
        (
            "a pod's first fragment to the node",
            fragment(udp(POD, NODE, (9, 10250)), 3, 0),
            PASS,
        ),
        (
            "its later fragment is the kernel's, too",
            fragment(udp(POD, NODE, (0, 0)), 3, 100),
            PASS,
        ),
        (
            "the first fragment of an answer",
            fragment(udp(POD, NODE, (9, 20_000)), 4, 0),
            TAKEN,
        ),
        (
            "its later fragment is the answer's",
            fragment(udp(POD, NODE, (0, 0)), 4, 100),
            TAKEN,
        ),
        (
            "a connection to a port that drains",
            tcp(CLIENT, NODE, (4000, 30090)),
            TAKEN,
        ),
        ("a new connection to it", syn(NODE, 30090), PASS),
        (
            "an error about an answer of it",
            error(NODE, &tcp(NODE, CLIENT, (30090, 4000))),
            TAKEN,
        ),
        ("to a group", to_group(udp(CLIENT, CLUSTER_IP, (1, 1))), PASS),
        ("cut", udp(CLIENT, CLUSTER_IP, (1, 1))[..30].to_vec(), PASS),
        (
            "an error about a translated packet",
            error(NODE, &udp(NODE, POD, (20_500, 9))),
            TAKEN,
        ),
        (
            "an error about the node's own",
            error(NODE, &udp(NODE, POD, (33_000, 9))),
            PASS,
        ),
        (
            "an error about a node port's reply",
            error(NODE, &tcp(NODE, CLIENT, (30080, 4000))),
            TAKEN,
        ),
        (
            "an error on the way to an endpoint",
            error(CLIENT, &udp(CLIENT, POD, (4000, 9))),
            TAKEN,
        ),
        ("IPv6 to SSH's port", udp6(7, 2, 22), PASS),
        ("IPv6 from SNAT", udp6(5, 2, 20_000), TAKEN),
        ("IPv6 to an external IP", udp6(7, 80, 53), TAKEN),
        ("its first fragment", fragment6(udp6(7, 80, 53), 1, 0), TAKEN),
        ("another port's", fragment6(udp6(7, 80, 54), 2, 0), PASS),
        (
            "a later fragment of whatever",
            fragment6(udp6(7, 80, 54), 3, 5),
            TAKEN,
        ),
        (
            "IPv6, a first fragment to a node port",
            fragment6(udp6(7, 2, 30053), 4, 0),
            TAKEN,
        ),
        ("IPv6, its later one", fragment6(udp6(7, 2, 1), 4, 5), TAKEN),
        ("IPv6, another's", fragment6(udp6(7, 2, 1), 5, 5), PASS),
        (
            "IPv6 with as many headers as are looked through",
            options6(udp6(7, 80, 53), 6),
            TAKEN,
        ),
        ("and the kernel's", options6(udp6(7, 80, 54), 6), PASS),
        ("with one more", options6(udp6(7, 80, 53), 7), PASS),
        (
            "a fragment behind options",
            options6(fragment6(udp6(7, 2, 30053), 6, 0), 1),
            TAKEN,
        ),
        (
            "an IPv6 error about a fragment of a node port's answer",
            icmp6(7, 2, unreachable, &fragment6(from_node_port6(), 7, 0)[14..]),
            TAKEN,
        ),
        (
            "neighbour discovery about a cluster IP",
            icmp6(
                7,
                10,
                Icmpv6Type::Unknown {
                    type_u8: 135,
                    code_u8: 0,
                    bytes5to8: [0; 4],
                },
                &v6(10),
            ),
            PASS,
        ),
        (
            "an IPv6 error about the node's own",
            icmp6(7, 2, unreachable, &udp6(2, 5, 9)[14..]),
            PASS,
        ),
        (
            "an IPv6 error on the way to an endpoint",
            icmp6(7, 8, unreachable, &udp6(8, 5, 9)[14..]),
            TAKEN,
        ),
    ];
    for (what, frame, verdict) in cases {
        assert_eq!(test_run(program.as_fd(), frame).unwrap(), *verdict, "{what}");
    }
}

/// A map with no socket in it, and who gets a frame for one.
#[test]
#[cfg_attr(miri, ignore = "asks the kernel")]
fn frames_without_a_socket_are_withheld_from_the_kernel_and_counted_for_as_long_as_was_said() {
    let maps = match SharedMaps::new([64, 64, 1024], Vec::new(), None) {
        Ok(maps) => maps,
        Err(error) => return println!("SKIPPED: bpf(2) is not for us here: {error}"),
    };
    fill(&maps);
    let sockets = Map::<u32>::new(MapKind::Sockets, 1).unwrap();
    let code = program(maps.numbers(sockets.number()), &[], &[0]);
    let program = bpf::load("test", &code).unwrap();
    let run = |frame: &[u8]| test_run(program.as_fd(), frame).unwrap();
    let (services, kernels) = (tcp(CLIENT, NODE, (4000, 30080)), tcp(CLIENT, NODE, (4000, 22)));
    assert_eq!((run(&services), run(&kernels)), (PASS, PASS), "nothing was said");
    maps.until.set(0, u64::MAX).unwrap();
    assert_eq!((run(&services), run(&kernels)), (DROP, PASS));
    assert_eq!(maps.lost().unwrap(), 1);
    maps.until.set(0, 1).unwrap();
    assert_eq!((run(&services), run(&kernels)), (PASS, PASS), "long ago");
    assert_eq!(maps.lost().unwrap(), 1);
}

#[test]
fn the_instructions_are_those_of_the_listing() {
    // The program with these map descriptors and one range, as llvm-mc prints its bytes.
    let maps = program::Maps {
        addresses: 7,
        ports: 8,
        fragments: 9,
        sockets: 10,
        until: 11,
        lost: 12,
    };
    let program = written(&program(maps, &[20_000..=20_999], &[0, 100]));
    assert_eq!(program, listed(include_str!("../xdp_shared.disasm")));
}
