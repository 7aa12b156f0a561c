//! Packet sockets that share an interface: each frame to one of them, and what is sent to a SNAT port of ours to its owner's.

use std::net::IpAddr;
use std::time::Duration;

use sluice_dataplane::addr::Port;
use sluice_dataplane::nic::fanout::Fanout;
use sluice_dataplane::nic::open::{DriverSpec, Faces, PortSpec, open};
use sluice_dataplane::nic::{Burst, FrameMemory, Link};
use sluice_dataplane::steering::Steering;

use crate::conformance::{self, FRAMES, receive};
use crate::namespace::{User, in_namespace, veth};
use crate::{AF_PACKET, port, spec};

const WORKERS: u8 = 3;
const OURS: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const OTHERS: [&str; 2] = ["198.51.100.9", "2001:db8:1::9"];

fn fanout(own: Vec<IpAddr>, faces: Faces) -> Fanout {
    Fanout {
        group: 7,
        own,
        ports: vec![1_024..=29_999, 32_768..=65_535],
        faces,
    }
}

/// The worker that owns flows of this client.
fn owner(steering: &Steering, (address, port): (IpAddr, u16)) -> usize {
    let owner = match address {
        IpAddr::V4(address) => steering.client_owner(address.octets(), Port::new(port)),
        IpAddr::V6(address) => steering.client_owner(address.octets(), Port::new(port)),
    };
    owner.get()
}

/// Clients that differ in all that counts, of both families.
fn clients() -> impl Iterator<Item = (IpAddr, u16)> {
    (0..40u16).flat_map(|n| {
        let mixed = n.wrapping_mul(40_503);
        let [high, low] = mixed.to_be_bytes();
        let four = IpAddr::from([198, 18 + high % 2, low, high]);
        let six = IpAddr::from([0x2001, 0xdb8, mixed, n, mixed, n, n, mixed]);
        [(four, 1_024 + n), (six, mixed)]
    })
}

/// A frame of UDP.
fn datagram(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let (ethernet, mut bytes) = (
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]),
        Vec::new(),
    );
    let ip = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("of two families"),
    };
    ip.udp(from.1, to.1).write(&mut bytes, b"payload").unwrap();
    bytes
}

/// The interfaces' ends: one to send by, and the sockets of the group at the other.
struct Group {
    memory: FrameMemory,
    sender: conformance::Port,
    members: Vec<conformance::Port>,
}

impl Group {
    fn new(fanout: &Fanout) -> Self {
        veth("va", "vb");
        let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
        let sender = port(&mut memory, &mut None, "va", AF_PACKET);
        let driver = DriverSpec::AfPacket {
            fanout: Some(fanout.clone()),
        };
        let members = (0..WORKERS).map(|worker| {
            let spec = PortSpec {
                queue: worker.into(),
                ..spec("vb", driver.clone())
            };
            open(&spec, &mut memory, &mut None).unwrap()
        });
        let members = members.collect();
        Self {
            memory,
            sender,
            members,
        }
    }

    /// The member that a frame comes to, alone.
    fn cross(&mut self, frame: &[u8]) -> usize {
        // A veth may lose what is sent right after it came up: what does not arrive is sent again.
        loop {
            let mut frames: Burst = self.memory.copy_in(frame).into_iter().collect();
            self.sender.tx_burst(&mut self.memory, &mut frames);
            let mut by = Vec::new();
            for (nth, member) in self.members.iter_mut().enumerate() {
                let got = receive(&mut self.memory, member, Duration::from_millis(1));
                by.extend(got.iter().filter(|got| *got == frame).map(|_| nth));
            }
            match by.as_slice() {
                [] => {}
                [one] => return *one,
                many => panic!("came {} times: {many:?}", many.len()),
            }
        }
    }
}

fn addresses(of: [&str; 2]) -> [IpAddr; 2] {
    of.map(|address| address.parse().unwrap())
}

#[test]
fn what_is_sent_to_a_snat_port_comes_to_the_worker_that_has_it() {
    let name = "fanout::what_is_sent_to_a_snat_port_comes_to_the_worker_that_has_it";
    in_namespace(name, User::Namespaced, || {
        let own = [addresses(OURS), addresses(["192.0.2.3", "2001:db8::3"])].concat();
        let fanout = fanout(own, Faces::Both);
        let steering = Steering::new(WORKERS, fanout.ports.clone());
        let mut group = Group::new(&fanout);
        assert!(
            group.members[0].info().mode.contains("by owner"),
            "{}",
            group.members[0].info().mode
        );
        // Those of all classes, and both ends of the ranges.
        let classes = (0..128).map(|n| 40_000 + 131 * n);
        let ports: Vec<u16> = classes.chain([1_024, 29_999, 32_768, 65_535]).collect();
        for (ours, other) in fanout.own.iter().zip(addresses(OTHERS).iter().cycle()) {
            for &port in &ports {
                let by = group.cross(&datagram((*other, 53), (*ours, port)));
                assert_eq!(by, owner(&steering, (*ours, port)), "{ours} port {port}");
            }
        }
    });
}

#[test]
fn where_it_is_known_who_is_beyond_an_interface_every_packet_comes_to_its_owner() {
    let name = "fanout::where_it_is_known_who_is_beyond_an_interface_every_packet_comes_to_its_owner";
    in_namespace(name, User::Namespaced, || {
        let frontends = addresses(["10.96.0.10", "fd00:10:96::a"]);
        for faces in [Faces::Clients, Faces::Endpoints] {
            let fanout = fanout(addresses(OURS).to_vec(), faces);
            let steering = Steering::new(WORKERS, fanout.ports.clone());
            let mut group = Group::new(&fanout);
            for client in clients() {
                let family = usize::from(client.0.is_ipv6());
                let (other, ours) = ((frontends[family], 80), addresses(OURS)[family]);
                let frame = match faces {
                    Faces::Clients => datagram(client, other),
                    _ => datagram(other, client),
                };
                assert_eq!(
                    group.cross(&frame),
                    owner(&steering, client),
                    "{faces:?} {client:?}"
                );
                // To our own addresses, whoever is there: a port of SNAT's is a client, another is a frontend's.
                let translated = (ours, 40_000 + client.1 % 1_000);
                let by = group.cross(&datagram(client, translated));
                assert_eq!(by, owner(&steering, translated), "{faces:?} {translated:?}");
                let by = group.cross(&datagram(client, (ours, 30_000)));
                assert_eq!(
                    by,
                    owner(&steering, client),
                    "{faces:?} {client:?} to a node port"
                );
            }
            group.members.clear();
            crate::delete("va");
        }
    });
}

#[test]
fn sockets_of_an_interface_that_is_back_are_opened_in_the_order_of_their_workers() {
    let name = "fanout::sockets_of_an_interface_that_is_back_are_opened_in_the_order_of_their_workers";
    in_namespace(name, User::Namespaced, || {
        let fanout = fanout(addresses(OURS).to_vec(), Faces::Clients);
        let steering = Steering::new(WORKERS, fanout.ports.clone());
        let mut group = Group::new(&fanout);
        crate::delete("va");
        let Group { memory, members, .. } = &mut group;
        members.iter_mut().for_each(|member| member.tend(memory));
        veth("va", "vb");
        // The last comes first, again and again: one more is open each time.
        for opened in 1..=members.len() {
            members.iter_mut().rev().for_each(|member| member.tend(memory));
            let is_open = |member: &&conformance::Port| member.link() != Link::Gone;
            assert_eq!(members.iter().filter(is_open).count(), opened);
        }
        group.sender = port(&mut group.memory, &mut None, "va", AF_PACKET);
        for client in clients().take(20) {
            let to = (
                addresses(["10.96.0.10", "fd00:10:96::a"])[usize::from(client.0.is_ipv6())],
                80,
            );
            assert_eq!(
                group.cross(&datagram(client, to)),
                owner(&steering, client),
                "{client:?}"
            );
        }
    });
}

#[test]
fn other_packets_are_spread_those_of_a_flow_to_one_socket_and_none_comes_twice() {
    let name = "fanout::other_packets_are_spread_those_of_a_flow_to_one_socket_and_none_comes_twice";
    in_namespace(name, User::Namespaced, || {
        let many = (0..300u16)
            .map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]))
            .collect();
        for (fanout, by) in [
            (fanout(addresses(OURS).to_vec(), Faces::Both), "by owner"),
            (fanout(many, Faces::Both), "by hash"),
        ] {
            let mut group = Group::new(&fanout);
            assert!(
                group.members[0].info().mode.contains(by),
                "{}",
                group.members[0].info().mode
            );
            for (other, to) in addresses(OTHERS)
                .into_iter()
                .zip(addresses(["10.96.0.10", "fd00:10:96::a"]))
            {
                let mut counts = [0; WORKERS as usize];
                for flow in 0..60u16 {
                    // A frontend; 60 flows miss one of three members once in 10^10 runs.
                    let frame = datagram((other, 1_000 + flow), (to, 53));
                    let member = group.cross(&frame);
                    counts[member] += 1;
                    assert_eq!(group.cross(&frame), member, "a flow stays");
                }
                assert!(counts.iter().all(|count| *count > 0), "{by}: {counts:?}");
            }
            // What has no ports, or is cut short, is one socket's like all else.
            let mut fragment = datagram((addresses(OTHERS)[0], 1), (addresses(OURS)[0], 40_000));
            fragment[20] |= 0x20; // more fragments
            let first = group.cross(&fragment);
            fragment[21] = 9; // a later one, which has no ports
            fragment[34..].fill(0xee);
            assert_eq!(group.cross(&fragment), first, "fragments come together");
            let mut arp = [0xff; 60];
            (arp[12], arp[13]) = (8, 6);
            group.cross(&arp);
            let mut cut = [0xff; 14 + 10];
            (cut[12], cut[13]) = (8, 0);
            group.cross(&cut);
            group.members.clear();
            crate::delete("va");
        }
    });
}
