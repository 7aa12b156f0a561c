//! The node's own connections to a Service, through a tap with a queue for each worker: nothing is handed over.
//!
//! ```text
//! near 192.0.2.9 ── uplink0 ── gateway, 3 workers ── host0 ── the gateway's own kernel, 192.0.2.2
//! ```

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use sluice_dataplane::addr::Port;
use sluice_dataplane::counters::PortCounter;
use sluice_dataplane::steering::Steering;

use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::sandbox::{sandboxed, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(10);
const CONFIG: &str = "
node: {addresses: [192.0.2.2]}
ports:
- {name: uplink0, driver: af_packet, interface: uplink0, addresses: [192.0.2.2/24]}
- {name: host0, driver: tap, interface: host0, role: host}
";
const TABLES: &str = "
put service echo tcp
put cluster-ip echo 10.96.0.10:7
put backend echo 192.0.2.9:7
";
const WORKERS: u8 = 3;
const CONNECTIONS: usize = 10;
/// Many packets each way.
const BYTES: usize = 1 << 20;

#[test]
fn packets_of_the_node_come_to_the_workers_that_own_their_flows() {
    let name = "node::packets_of_the_node_come_to_the_workers_that_own_their_flows";
    sandboxed(name, LIMIT, || {
        let (near, host) = (Host::new("near"), Host::silent("gateway"));
        Wires::new().cable((near, "eth0"), (host, "uplink0"));
        near.ip("addr add 192.0.2.9/24 dev eth0");
        let mut gateway = Gateway::start_with(host, CONFIG, WORKERS, None);
        gateway.publish(TABLES);
        host.ip("addr add 192.0.2.2/32 dev host0\nroute add default dev host0 src 192.0.2.2");
        let listener = near.enter(|| TcpListener::bind("192.0.2.9:7").unwrap());
        near.spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut all) = (stream.unwrap(), Vec::new());
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
            }
        });
        let mut before = gateway.queues("host0", PortCounter::RxPackets);
        let steering = Steering::new(WORKERS, vec![32_768..=65_535]);
        for owner in 0..usize::from(WORKERS) {
            // Ports of the worker's, of the default `snat.ports`.
            let is_its = |port: &u16| steering.client_owner([192, 0, 2, 2], Port::new(*port)).get() == owner;
            let ports: Vec<u16> = (33_000..60_000).filter(is_its).take(CONNECTIONS).collect();
            host.enter(|| ports.into_iter().for_each(echo));
            // As many packets as one way of all connections has at least; the kernel's segments are of the MTU.
            let least = (CONNECTIONS * BYTES / 1_500) as u64;
            let after = wait_until("the drivers' counts are told", SOON, || {
                let now = gateway.queues("host0", PortCounter::RxPackets);
                let came: u64 = now.iter().sum::<u64>() - before.iter().sum::<u64>();
                (came > least).then_some(now)
            });
            assert_eq!(after.len(), usize::from(WORKERS), "a queue for each worker");
            let came: Vec<u64> = after
                .iter()
                .zip(&before)
                .map(|(after, before)| after - before)
                .collect();
            eprintln!("node: worker {owner} owns the flows, packets from the host by queue: {came:?}");
            for (queue, came) in came.into_iter().enumerate() {
                // By another queue come first packets only: those of a connection until one has been sent to the host.
                let right = if queue == owner {
                    came > least * 9 / 10
                } else {
                    came < least / 10
                };
                assert!(right, "queue {queue}: {came}");
            }
            before = after;
        }
        let handed_over = gateway.counter("handed-over");
        let came = gateway.port_counter("uplink0", PortCounter::RxPackets);
        eprintln!("node: {handed_over} packets were handed over, {came} came by the uplink");
        // Both the uplink's sockets and the tap's queues lead to owners, but for a connection's first packets from the node.
        assert!(handed_over <= 4 * (CONNECTIONS as u64) * u64::from(WORKERS));
        assert_eq!(gateway.port_counter("host0", PortCounter::RxMissed), 0);
        gateway.while_it_stands_still(|| host.enter(shout));
        wait_until("what the host port missed is told", SOON, || {
            (gateway.port_counter("host0", PortCounter::RxMissed) > 0).then_some(())
        });
    });
}

/// Sends more than a queue of a tap holds, 1,000 packets (drivers/net/tun.c).
fn shout() {
    let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
    for _ in 0..2_500 {
        // A neighbour that the kernel knows already.
        socket.send_to(&[0; 64], "10.96.0.10:9").unwrap();
    }
}

/// Sends from a port, and has it sent back.
fn echo(port: u16) {
    let sent: Vec<u8> = (0..BYTES).map(|n| (n * 31 / 7) as u8).collect();
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    let address = |text: &str| text.parse::<SocketAddrV4>().unwrap();
    bind(&socket, &address(&format!("192.0.2.2:{port}"))).unwrap();
    connect(&socket, &address("10.96.0.10:7")).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).unwrap();
    assert!(echoed == sent, "{} of {BYTES} bytes came back", echoed.len());
}
