//! A tap as a link: behind it is a kernel's own network stack, as a container has it, in a namespace that the tap was moved to.
//!
//! ```text
//! near 192.0.2.9, fd00:2::9 ── uplink0 ── gateway ── tap stack0 ── far 10.244.0.9, fd00:244::9
//! ```

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use sluice_dataplane::counters::PortCounter;

use crate::exchange::{connect, datagram, exchange, finish, serve};
use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::sandbox::{sandboxed, wait_until};

const LIMIT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(20);
const CONFIG: &str = "
node: {addresses: [192.0.2.2, \"fd00:2::2\"]}
ports:
- {name: uplink0, driver: af_packet, interface: uplink0, addresses: [192.0.2.2/24, \"fd00:2::2/64\"]}
- {name: stack0, driver: tap, interface: stack0, addresses: [10.244.0.1/24, \"fd00:244::1/64\"]}
";
const NEAR: [&str; 2] = ["192.0.2.9", "fd00:2::9"];
const FAR: [&str; 2] = ["10.244.0.9", "fd00:244::9"];
/// Cluster IPs of what is far, and of what is near.
const TO_FAR: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];
const TO_NEAR: [&str; 2] = ["10.96.0.20:80", "[fd00:96::20]:80"];
/// Many windows of TCP, so that its segments grow as large as a stack makes them.
const BYTES: usize = 2_000_000;
/// Datagrams, the longest of them a whole frame.
const DATAGRAMS: usize = 20;

/// Both Services, over TCP and UDP, in both families.
fn tables() -> String {
    let mut lines = "put network pods 10.244.0.0/24\nput network pods fd00:244::/64\n".to_owned();
    for (name, frontends, endpoints) in [("far", TO_FAR, FAR), ("near", TO_NEAR, NEAR)] {
        for protocol in ["tcp", "udp"] {
            let service = format!("{name}-{protocol}");
            lines += &format!("put service {service} {protocol}\n");
            for (frontend, endpoint) in frontends.into_iter().zip(endpoints) {
                let endpoint = SocketAddr::new(endpoint.parse().unwrap(), crate::exchange::PORT);
                lines += &format!("put cluster-ip {service} {frontend}\nput backend {service} {endpoint}\n");
            }
        }
    }
    lines
}

/// Much over TCP in both directions, then datagrams.
fn talk(host: Host, frontend: &'static str, pod: u8) {
    host.enter(move || {
        let frontend: SocketAddr = frontend.parse().unwrap();
        let mut stream = connect(frontend).unwrap();
        assert_eq!(
            exchange(&mut stream, 7, BYTES, BYTES).unwrap().pod,
            pod,
            "{frontend}"
        );
        finish(stream).unwrap();
        let any = if frontend.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(frontend).unwrap();
        for number in 0..DATAGRAMS {
            // An answer is 17 bytes longer: with an IPv6 header and UDP's, 1,500.
            let len = 1_435 - 50 * number;
            assert_eq!(
                datagram(&socket, number as u64, len).unwrap().pod,
                pod,
                "{frontend}"
            );
        }
    });
}

#[test]
fn a_kernels_stack_behind_a_tap_is_client_and_endpoint_like_any_other() {
    let name = "tap::a_kernels_stack_behind_a_tap_is_client_and_endpoint_like_any_other";
    sandboxed(name, LIMIT, || {
        let [near, far] = ["near", "far"].map(Host::new);
        let host = Host::silent("gateway");
        Wires::new().cable((near, "eth0"), (host, "uplink0"));
        near.ip("addr add 192.0.2.9/24 dev eth0\naddr add fd00:2::9/64 dev eth0
             route add default via 192.0.2.2\nroute add default via fd00:2::2");
        let mut gateway = Gateway::start(host, CONFIG);
        gateway.publish(&tables());
        host.ip("link set stack0 netns far");
        far.ip(
            "link set stack0 up\naddr add 10.244.0.9/24 dev stack0\naddr add fd00:244::9/64 dev stack0
             route add default via 10.244.0.1\nroute add default via fd00:244::1",
        );
        for (pod, station, addresses) in [(1, far, FAR), (2, near, NEAR)] {
            addresses
                .iter()
                .for_each(|address| serve(station, pod, address.parse().unwrap()));
        }
        for (pod, station, frontends) in [(1, near, TO_FAR), (2, far, TO_NEAR)] {
            frontends
                .into_iter()
                .for_each(|frontend| talk(station, frontend, pod));
        }
        // Each station has sent so much over every connection; the counts are a second old at most.
        let told = |counter| gateway.port_counter("stack0", counter);
        let least = 4 * BYTES as u64;
        wait_until("the driver's counts are told", SOON, || {
            (told(PortCounter::RxBytes) > least && told(PortCounter::TxBytes) > least).then_some(())
        });
        // What its stack left to hardware, segments and checksums, was done before the packets came here.
        for counter in [
            PortCounter::RxErrors,
            PortCounter::RxChecksumsCompleted,
            PortCounter::TxErrors,
        ] {
            assert_eq!(told(counter), 0, "{}", counter.name());
        }
        for station in [near, far] {
            for protocol in ["Tcp:", "Udp:"] {
                assert_eq!(station.counted(protocol, "InCsumErrors"), 0, "{}", station.0);
            }
        }
        eprintln!(
            "tap: {} packets from the stack behind it, {} to it; dropped: {}",
            told(PortCounter::RxPackets),
            told(PortCounter::TxPackets),
            gateway.drops()
        );
    });
}
