//! The program as the kernel runs it, on frames that go nowhere.

use std::os::fd::AsFd as _;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, VlanId, icmpv4, icmpv6};

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
        maps.set_port((node, Protocol::TCP, 30080)).unwrap();
        maps.set_port((external, Protocol::UDP, 53)).unwrap();
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

fn icmp6(src: u8, dst: u8, kind: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6(v6(src), v6(dst), 64);
    builder.icmpv6(kind).write(&mut out, payload).unwrap();
    out
}

/// The frame as a later fragment.
fn later(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20..22].copy_from_slice(&100u16.to_be_bytes());
    frame
}

fn fragment6(mut frame: Vec<u8>, offset: u16) -> Vec<u8> {
    let protocol = std::mem::replace(&mut frame[20], 44);
    let [high, low] = (offset << 3).to_be_bytes();
    frame.splice(54..54, [protocol, 0, high, low, 0, 0, 0, 9]);
    frame
}

fn tagged(dst: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).single_vlan(VlanId::try_new(5).unwrap());
    let builder = builder.ipv4(CLIENT, dst, 64);
    builder.udp(1, 1).write(&mut frame, &[0; 8]).unwrap();
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
    let maps = match SharedMaps::new(64, 64, snat.clone(), None) {
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
    let mut code = program(maps.numbers(sockets.number()), &snat);
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
        ("tagged", tagged(CLUSTER_IP), PASS),
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
        ("its first fragment", fragment6(udp6(7, 80, 53), 0), TAKEN),
        ("another port's", fragment6(udp6(7, 80, 54), 0), PASS),
        ("its later fragment", fragment6(udp6(7, 80, 54), 5), TAKEN),
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
    let maps = match SharedMaps::new(64, 64, Vec::new(), None) {
        Ok(maps) => maps,
        Err(error) => return println!("SKIPPED: bpf(2) is not for us here: {error}"),
    };
    fill(&maps);
    let sockets = Map::<u32>::new(MapKind::Sockets, 1).unwrap();
    let program = maps.load(sockets.number()).unwrap();
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
        sockets: 9,
        until: 10,
        lost: 11,
    };
    let program = written(&program(maps, &[20_000..=20_999]));
    assert_eq!(program, listed(include_str!("../xdp_shared.disasm")));
}
