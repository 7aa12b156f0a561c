//! What is told apart on interfaces that the kernel uses, too, and not by ports alone: fragments, ICMP errors, connections of
//! frontends that are deleted; in both families, with and without VLAN.
//!
//! ```text
//! client 198.51.100.10 ── router ── uplink0, VLAN 100 or none ── gateway ── pods0 ── pod 10.244.0.9
//!          2001:db8:c::10   .9        192.0.2.2, fd00:18::2                            fd00:244::9
//! ```
//! Toward the client the router sends no packets longer than `SMALL`.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::relay::{Relay, UNHARMED};
use crate::sandbox::wait_until;
use crate::shared::{SOON, Talk, as_root, cable, exchange, serve};

const CONFIG: &str = "
node: {addresses: [192.0.2.2, \"fd00:18::2\"]}
ports:
- {name: uplink0, driver: af_xdp, mode: shared, interface: uplink0, VLAN addresses: [192.0.2.2/24, \"fd00:18::2/64\"], attach: ATTACH}
- {name: pods0, driver: af_xdp, mode: shared, interface: pods0, addresses: [10.244.0.1/24, \"fd00:244::1/64\"], attach: ATTACH}
routes:
- {to: 198.51.100.0/24, via: 192.0.2.9}
- {to: \"2001:db8:c::/64\", via: \"fd00:18::9\"}
";
const TABLES: &str = "
put service echo tcp
put node-port echo 30080
put node-port echo [::]:30080
put backend echo 10.244.0.9:7
put backend echo [fd00:244::9]:7
put service datagrams udp
put node-port datagrams 30053
put node-port datagrams [::]:30053
put backend datagrams 10.244.0.9:53
put backend datagrams [fd00:244::9]:53
put network pods 10.244.0.0/24
put network pods fd00:244::/64
";
const DELETED: &str = "
delete node-port echo 30080
delete node-port echo [::]:30080
delete backend echo 10.244.0.9:7
delete backend echo [fd00:244::9]:7
delete service echo
";
const NODE_PORTS: [&str; 2] = ["192.0.2.2:30080", "[fd00:18::2]:30080"];
const DATAGRAM_PORTS: [&str; 2] = ["192.0.2.2:30053", "[fd00:18::2]:30053"];
/// The kernel's own.
const SHELLS: [&str; 2] = ["192.0.2.2:22", "[fd00:18::2]:22"];
const LOGS: [&str; 2] = ["192.0.2.2:30500", "[fd00:18::2]:30500"];
/// What the router sends to the client at once.
const SMALL: u32 = 1_300;
/// Of a datagram: several fragments, the last of them short.
const BYTES: usize = 4_000;
const DATAGRAMS: u8 = 20;
/// Until a datagram is sent again.
const AGAIN: Duration = Duration::from_millis(300);

struct Place {
    client: Host,
    router: Host,
    host: Host,
}

/// All but what is between router and gateway.
fn place(queues: u8) -> Place {
    let [client, router, host, pod] = ["client", "router", "gateway", "pod"].map(Host::new);
    cable(1, (router, "eth1"), (client, "eth0"), "198.51.100.10/24");
    cable(queues, (host, "pods0"), (pod, "eth0"), "10.244.0.9/24");
    host.ip("addr add 10.244.0.1/24 dev pods0\naddr add fd00:244::1/64 dev pods0");
    router.set("ipv4/ip_forward", "1");
    router.set("ipv6/conf/all/forwarding", "1");
    router.ip(&format!(
        "addr add 198.51.100.9/24 dev eth1
        addr add 2001:db8:c::9/64 dev eth1
        route add 198.51.100.10/32 dev eth1 mtu lock {SMALL}
        route add 2001:db8:c::10/128 dev eth1 mtu lock {SMALL}"
    ));
    client.ip("addr add 2001:db8:c::10/64 dev eth0
        route add default via 198.51.100.9
        route add default via 2001:db8:c::9");
    pod.ip("addr add fd00:244::9/64 dev eth0");
    host.set("ipv4/ip_local_port_range", "30100 32767");
    for address in ["10.244.0.9:7", "[fd00:244::9]:7"] {
        serve(pod, address, b'p');
    }
    for address in ["10.244.0.9:53", "[fd00:244::9]:53"] {
        repeat(pod, address, b'p');
    }
    Place { client, router, host }
}

/// Sends datagrams back, the first byte being who it is.
fn repeat(host: Host, address: &'static str, who: u8) {
    let socket = host.enter(move || UdpSocket::bind(address).unwrap());
    host.spawn(move || {
        let mut datagram = [0; BYTES + 1];
        loop {
            // An ICMP error about what was sent before is an error here.
            if let Ok((length, peer)) = socket.recv_from(&mut datagram) {
                datagram[0] = who;
                let _ = socket.send_to(&datagram[..length], peer);
            }
        }
    });
}

/// Datagrams in fragments there and back.
fn datagrams(client: Host, address: &'static str, who: u8) {
    client.enter(move || {
        let peer: SocketAddr = address.parse().unwrap();
        let socket = UdpSocket::bind(if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(peer).unwrap();
        socket.set_read_timeout(Some(AGAIN)).unwrap();
        for number in 0..DATAGRAMS {
            let (mut sent, mut heard) = (vec![number; BYTES], vec![0; BYTES + 1]);
            // The first may be lost until everybody knows what fits the path.
            wait_until(&format!("{address}: datagram {number} comes back"), SOON, || {
                let _ = socket.send(&sent);
                (socket.recv(&mut heard).ok()? == BYTES && heard[1] == number).then_some(())
            });
            sent[0] = who;
            assert!(heard[..BYTES] == sent, "{address}: another datagram");
        }
    });
}

/// Who answers must hear, by errors of the router, that less fits.
fn all_arrives(client: Host, tcp: [&'static str; 2], udp: [&'static str; 2], who: u8) {
    tcp.into_iter().for_each(|address| exchange(client, address, who));
    udp.into_iter()
        .for_each(|address| datagrams(client, address, who));
}

fn told_apart(queues: u8, attach: &str) {
    let Place { client, router, host } = place(queues);
    cable(queues, (host, "uplink0"), (router, "eth0"), "192.0.2.9/24");
    router.ip("addr add fd00:18::9/64 dev eth0");
    host.ip("addr add 192.0.2.2/24 dev uplink0
        addr add fd00:18::2/64 dev uplink0
        route add 198.51.100.0/24 via 192.0.2.9
        route add 2001:db8:c::/64 via fd00:18::9");
    SHELLS.into_iter().for_each(|address| serve(host, address, b's'));
    LOGS.into_iter().for_each(|address| repeat(host, address, b's'));
    let config = CONFIG.replace("ATTACH", attach).replace("VLAN", "");
    let mut gateway = Gateway::start_with(host, &config, queues, None);
    gateway.publish(TABLES);

    all_arrives(client, NODE_PORTS, DATAGRAM_PORTS, b'p');
    all_arrives(client, SHELLS, LOGS, b's');

    // What is open goes on, and what is new is the kernel's.
    let talks = NODE_PORTS.map(|address| Talk::new(client, address, b'p'));
    talks.iter().for_each(|talk| talk.goes_on("at first"));
    gateway.publish(DELETED);
    for address in NODE_PORTS {
        serve(host, address, b'k');
        exchange(client, address, b'k');
    }
    talks
        .iter()
        .for_each(|talk| talk.goes_on("though its frontend is gone"));
    talks.into_iter().for_each(Talk::end);
}

/// Kernels without VLAN interfaces are not rare, so the gateway's has none: it is no station of this one, nor answers for it.
fn in_a_vlan(attach: &str) {
    let Place { client, router, host } = place(1);
    let wires = Wires::new();
    wires.plug("wire0", (router, "eth0"));
    wires.plug("wire1", (host, "uplink0"));
    let cable = Relay::start("trunk", ["wire0", "wire1.100"], UNHARMED, 1, |_, _| None);
    let mac = host.run("cat", &["/sys/class/net/uplink0/address"]);
    router.ip(&format!(
        "addr add 192.0.2.9/24 dev eth0
        addr add fd00:18::9/64 dev eth0
        neigh add 192.0.2.2 lladdr {0} dev eth0
        neigh add fd00:18::2 lladdr {0} dev eth0",
        mac.trim()
    ));
    let config = CONFIG.replace("ATTACH", attach).replace("VLAN", "vlan: 100,");
    let mut gateway = Gateway::start_with(host, &config, 1, None);
    gateway.publish(TABLES);
    all_arrives(client, NODE_PORTS, DATAGRAM_PORTS, b'p');
    let talks = NODE_PORTS.map(|address| Talk::new(client, address, b'p'));
    talks.iter().for_each(|talk| talk.goes_on("at first"));
    gateway.publish(DELETED);
    talks
        .iter()
        .for_each(|talk| talk.goes_on("though its frontend is gone"));
    talks.into_iter().for_each(Talk::end);
    eprintln!("steered: {}", cable.report());
}

#[test]
fn fragments_errors_and_open_connections_are_told_apart() {
    let name = "steered::fragments_errors_and_open_connections_are_told_apart";
    as_root(name, || told_apart(1, "native"));
}

#[test]
fn fragments_errors_and_open_connections_are_told_apart_by_the_generic_path() {
    let name = "steered::fragments_errors_and_open_connections_are_told_apart_by_the_generic_path";
    as_root(name, || told_apart(1, "generic"));
}

#[test]
fn fragments_errors_and_open_connections_are_told_apart_on_two_queues() {
    let name = "steered::fragments_errors_and_open_connections_are_told_apart_on_two_queues";
    as_root(name, || told_apart(2, "native"));
}

#[test]
fn fragments_errors_and_open_connections_are_told_apart_in_a_vlan() {
    let name = "steered::fragments_errors_and_open_connections_are_told_apart_in_a_vlan";
    as_root(name, || in_a_vlan("native"));
}

#[test]
fn fragments_errors_and_open_connections_are_told_apart_in_a_vlan_by_the_generic_path() {
    let name = "steered::fragments_errors_and_open_connections_are_told_apart_in_a_vlan_by_the_generic_path";
    as_root(name, || in_a_vlan("generic"));
}
