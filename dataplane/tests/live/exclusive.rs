//! Interfaces of our own with as many queues as workers: each queue has packets, and of all that are sent in either direction each is
//! received or counted by name.
//!
//! ```text
//! client 192.0.2.10 ── uplink0 ── gateway, a worker for each queue ── pods0 ── pod 10.244.0.9
//! ```

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_dataplane::counters::PortCounter;

use crate::gateway::Gateway;
use crate::host::Host;
use crate::sandbox::{wait_until, within};
use crate::shared::{as_root, cable};

const SOON: Duration = Duration::from_secs(20);
const CONFIG: &str = "
node: {addresses: [192.0.2.2]}
neighbours: {probeMillis: 0}
ports:
- {name: uplink0, driver: af_xdp, interface: uplink0, addresses: [192.0.2.2/24], attach: ATTACH, OPTIONS}
- {name: pods0, driver: af_xdp, interface: pods0, addresses: [10.244.0.1/24], attach: ATTACH, OPTIONS}
";
const TABLES: &str = "
put service echo udp
put cluster-ip echo 10.96.0.10:7
put backend echo 10.244.0.9:7
put network pods 10.244.0.0/24
";
/// Client's sockets: by chance alone every queue has some.
const FLOWS: usize = 64;
/// Datagrams of each flow that are on the way at once: no ring is full. And those that are sent without waiting: some are.
const FEW: u64 = 2;
const MANY: u64 = 1_000;

/// Packets that a station's kernel says it lost.
fn lost_by_kernel(host: Host) -> u64 {
    let devices = ["rx_dropped", "tx_dropped"].map(|name| {
        let count = host.run("cat", &[&format!("/sys/class/net/eth0/statistics/{name}")]);
        count.trim().parse::<u64>().unwrap()
    });
    host.counted("Udp:", "RcvbufErrors") + devices.iter().sum::<u64>()
}

/// Packets that the gateway says it lost.
fn lost_by_gateway(gateway: &Gateway) -> u64 {
    let of = |counter| {
        ["uplink0", "pods0"]
            .map(|port| gateway.port_counter(port, counter))
            .iter()
            .sum::<u64>()
    };
    let drivers = [
        PortCounter::RxMissed,
        PortCounter::RxErrors,
        PortCounter::TxErrors,
    ]
    .map(of);
    gateway.dropped() + drivers.iter().sum::<u64>()
}

fn counted(queues: u8, attach: &str, options: &str) {
    let [client, pod] = ["client", "pod"].map(Host::new);
    let host = Host::silent("gateway");
    for station in [client, pod] {
        // Nobody but us says anything.
        station.set("ipv6/conf/default/disable_ipv6", "1");
    }
    cable(queues, (host, "uplink0"), (client, "eth0"), "192.0.2.10/24");
    cable(queues, (host, "pods0"), (pod, "eth0"), "10.244.0.9/24");
    client.ip("route add 10.96.0.0/16 via 192.0.2.2");
    // Nor asks for neighbours, nor does the gateway (probeMillis): such a question may be lost, too, and is none of those that were sent.
    for (station, gateway, port) in [(client, "192.0.2.2", "uplink0"), (pod, "10.244.0.1", "pods0")] {
        let mac = host.run("cat", &[&format!("/sys/class/net/{port}/address")]);
        station.ip(&format!("neigh add {gateway} lladdr {} dev eth0", mac.trim()));
    }
    let config = CONFIG.replace("ATTACH", attach).replace("OPTIONS", options);
    let mut gateway = Gateway::start_with(host, &config, queues, None);
    gateway.publish(TABLES);

    let heard = Arc::new(AtomicU64::new(0));
    let (count, socket) = (
        Arc::clone(&heard),
        pod.enter(|| UdpSocket::bind("10.244.0.9:7").unwrap()),
    );
    pod.spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut datagram) {
            count.fetch_add(1, Ordering::Relaxed);
            while socket.send_to(&datagram[..length], peer).is_err() {}
        }
    });
    let sockets = client.enter(|| {
        let sockets: Vec<_> = (0..FLOWS)
            .map(|_| UdpSocket::bind("192.0.2.10:0").unwrap())
            .collect();
        for socket in &sockets {
            socket.connect("10.96.0.10:7").unwrap();
            socket.set_nonblocking(true).unwrap();
        }
        sockets
    });
    let mut back = 0;
    let mut collect = || {
        let mut datagram = [0; 64];
        for socket in &sockets {
            while socket.recv(&mut datagram).is_ok() {
                back += 1;
            }
        }
        back
    };
    let lost = |gateway: &Gateway| lost_by_gateway(gateway) + lost_by_kernel(client) + lost_by_kernel(pod);
    // Addresses are resolved.
    wait_until("the first comes back", SOON, || {
        let _ = sockets[0].send(b"hello");
        (collect() > 0).then_some(())
    });
    let mut sent = 0;
    let (before, first) = (
        lost(&gateway),
        wait_until("all that were sent at first are back", SOON, || {
            let (there, here) = (heard.load(Ordering::Relaxed), collect());
            (there == here).then_some(here)
        }),
    );

    // With few on the way none is lost.
    for _ in 0..20 {
        for socket in &sockets {
            (0..FEW).for_each(|_| sent += u64::from(socket.send(b"hello").is_ok()));
        }
        wait_until("all are back", SOON, || (collect() == first + sent).then_some(()));
    }
    assert_eq!(lost(&gateway), before, "{}", gateway.drops());
    for port in ["uplink0", "pods0"] {
        let by_queue = wait_until("the drivers' counts are told", SOON, || {
            let queues = gateway.queues(port, PortCounter::RxPackets);
            (queues.iter().sum::<u64>() >= sent).then_some(queues)
        });
        eprintln!("exclusive: {queues} queues, {attach}: {port} received by queue {by_queue:?}");
        assert_eq!(by_queue.len(), usize::from(queues));
        // By its generic path a veth leads all to the first.
        let idle = by_queue.iter().filter(|&&packets| packets == 0).count();
        assert!(attach == "generic" || idle == 0, "{port}: a queue had none");
    }

    // With too many each is back or counted.
    for _ in 0..MANY {
        for socket in &sockets {
            sent += u64::from(socket.send(b"hello").is_ok());
        }
        collect();
    }
    let mut told = (0, 0);
    let all = within(SOON, || {
        let (back, lost) = (collect() - first, lost(&gateway) - before);
        if told != (back, lost) {
            told = (back, lost);
            return None;
        }
        (back + lost == sent).then_some(())
    });
    eprintln!(
        "exclusive: {queues} queues, {attach}, {options}: {sent} sent, {} back, {} lost by name: {}",
        told.0,
        told.1,
        gateway.drops()
    );
    assert!(all.is_some(), "each is back or counted");
}

#[test]
fn each_packet_is_received_or_counted_on_one_queue() {
    let name = "exclusive::each_packet_is_received_or_counted_on_one_queue";
    as_root(name, || counted(1, "native", "zeroCopy: auto"));
}

#[test]
fn each_packet_is_received_or_counted_on_two_queues() {
    let name = "exclusive::each_packet_is_received_or_counted_on_two_queues";
    as_root(name, || counted(2, "native", "zeroCopy: off"));
}

#[test]
fn each_packet_is_received_or_counted_on_four_queues() {
    let name = "exclusive::each_packet_is_received_or_counted_on_four_queues";
    as_root(name, || counted(4, "native", "zeroCopy: auto"));
}

#[test]
fn each_packet_is_received_or_counted_by_the_generic_path() {
    let name = "exclusive::each_packet_is_received_or_counted_by_the_generic_path";
    as_root(name, || counted(2, "generic", "zeroCopy: off"));
}

#[test]
fn each_packet_is_received_or_counted_by_workers_that_poll_busily() {
    let name = "exclusive::each_packet_is_received_or_counted_by_workers_that_poll_busily";
    as_root(name, || counted(2, "native", "busyPoll: {budget: 32}"));
}
