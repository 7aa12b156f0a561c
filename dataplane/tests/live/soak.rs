//! Traffic of every kind over bad links, while endpoints come and go: whatever is lost, swapped or repeated on the way,
//! every connection ends well, and nobody ever hears from an address that is not the one they asked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::exchange::{PORT, STUCK, patient, serve};
use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::load::{Frontend, Load, Way};
use crate::random::Random;
use crate::relay::{Faults, Relay};
use crate::sandbox::{now, sandboxed, wait_until};

/// How long, in seconds.
const SECONDS: &str = "SLUICE_SOAK_SECONDS";
/// Enough to be sure that nothing is fundamentally wrong; the long run is by hand.
const USUAL: u64 = 25;
/// The longest that a pod goes on to speak on a connection that is over (`patient`), that its flow then stays known
/// (`gateway`), and the sweep's time to find it.
const DRAINED: Duration = Duration::from_secs(45);
/// Pods: those that stay, and those that come and go.
const PODS: u8 = 6;
const STEADY: u8 = 2;
const FAULTS: Faults = Faults {
    lost: 50,
    repeated: 20,
    late: 0,
    held: 30,
};
/// Behind the gateway: longer than many a connection lives, so that old SYNs come to endpoints that are through with theirs. Not
/// before it: there an old SYN may end a connection of which the client has not heard the end, as with Linux (CT-16).
const POD_FAULTS: Faults = Faults {
    late: 30_000,
    ..FAULTS
};
const SEED: u64 = 20_261_121;

const CONFIG: &str = "
node: {addresses: [198.51.100.1, \"2001:db8:c::1\"]}
ports:
- {name: up0, driver: af_packet, interface: up0, addresses: [198.51.100.1/24, \"2001:db8:c::1/64\"]}
- {name: pods0, driver: af_packet, interface: pods0, addresses: [10.244.0.1/24, \"fd00:244::1/64\"]}
";

/// Pod sources are nobody (TP-2), so that a cluster IP keeps the client's address; a node port never does.
const FRONTENDS: [(&str, &str); 4] = [
    ("10.96.0.10:80", "198.51.100.10"),
    ("198.51.100.1:30080", "10.244.0.1"),
    ("[fd00:10:96::10]:80", "2001:db8:c::10"),
    ("[2001:db8:c::1]:30080", "fd00:244::1"),
];

#[test]
fn every_connection_ends_well_and_no_backend_is_ever_seen_while_links_lose_swap_and_repeat() {
    let seconds = std::env::var(SECONDS).map_or(USUAL, |text| text.parse().unwrap());
    let limit = Duration::from_secs(seconds) + 4 * STUCK + DRAINED;
    let name =
        "soak::every_connection_ends_well_and_no_backend_is_ever_seen_while_links_lose_swap_and_repeat";
    sandboxed(name, limit, || soak(1, Duration::from_secs(seconds)));
}

#[test]
fn several_workers_neither_lose_a_connection_nor_stand_still_while_links_lose_swap_and_repeat() {
    let name =
        "soak::several_workers_neither_lose_a_connection_nor_stand_still_while_links_lose_swap_and_repeat";
    let limit = Duration::from_secs(USUAL) + 4 * STUCK + DRAINED;
    sandboxed(name, limit, || soak(3, Duration::from_secs(USUAL)));
}

/// Hosts, and the cables between them that are looked at.
pub(crate) struct Place {
    pub(crate) client: Host,
    pub(crate) gateway: Host,
    pub(crate) relays: [Relay; 2],
}

impl Place {
    /// A client, pods that answer, and a host for the gateway between them; what befalls frames on either side of it.
    pub(crate) fn new(faults: [Faults; 2]) -> Self {
        let (client, gateway, pods) = (Host::new("client"), Host::silent("gateway"), Host::new("pods"));
        let wires = Wires::new();
        wires.plug("client-wire", (client, "eth0"));
        wires.plug("up-wire", (gateway, "up0"));
        wires.plug("pods-wire", (pods, "eth0"));
        wires.plug("down-wire", (gateway, "pods0"));
        client.ip("addr add 198.51.100.10/24 dev eth0
             addr add 2001:db8:c::10/64 dev eth0
             route add default via 198.51.100.1
             route add default via 2001:db8:c::1");
        pods.ip("route add default via 10.244.0.1 dev eth0 onlink
             route add default via fd00:244::1 dev eth0 onlink");
        // A wire of copper has no checksums that somebody else is to finish.
        for host in [client, pods] {
            host.run("ethtool", &["-K", "eth0", "tx", "off"]);
            patient(host);
        }
        // Ports come again while their last connections are still remembered, and ended on one side only.
        client.set("ipv4/ip_local_port_range", "40000 40199");
        client.set("ipv4/tcp_tw_reuse", "1");
        for pod in 0..PODS {
            for address in pod_addresses(pod) {
                let length = if address.is_ipv4() { 24 } else { 64 };
                pods.ip(&format!("addr add {address}/{length} dev eth0"));
                serve(pods, pod, address);
            }
        }
        let ends = |a, b| [a, b];
        let relays = [
            Relay::start(
                "client link",
                ends("client-wire", "up-wire"),
                faults[0],
                SEED,
                toward_client,
            ),
            Relay::start(
                "pod link",
                ends("down-wire", "pods-wire"),
                faults[1],
                !SEED,
                toward_pods,
            ),
        ];
        Self {
            client,
            gateway,
            relays,
        }
    }

    /// Clients of every frontend in every way, and `more` in short connections; each says when it has come to its end.
    pub(crate) fn clients(&self, load: &Arc<Load>, more: usize) -> (usize, mpsc::Receiver<()>) {
        let (done, finished) = mpsc::channel();
        let mut clients = 0;
        for (at, seen_as) in FRONTENDS {
            let frontend = Frontend {
                at: at.parse().unwrap(),
                seen_as: seen_as.parse().unwrap(),
            };
            for way in Way::ALL.into_iter().chain(vec![Way::Short; more]) {
                clients += 1;
                let (load, done, seed) = (Arc::clone(load), done.clone(), SEED ^ clients as u64);
                self.client.spawn(move || {
                    load.run(way, frontend, seed);
                    done.send(()).unwrap();
                });
            }
        }
        (clients, finished)
    }

    /// Ends the load: every client must come to its end, all that it did must have gone well, and nothing may have been on a
    /// cable that must never be.
    pub(crate) fn end(&self, load: &Load, (clients, finished): (usize, mpsc::Receiver<()>)) {
        load.stop.store(true, Relaxed);
        let ended = (0..clients)
            .filter(|_| finished.recv_timeout(3 * STUCK).is_ok())
            .count();
        let mut complaints = load.failures();
        complaints.extend(self.relays.iter().flat_map(Relay::complaints));
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
        assert_eq!(ended, clients, "clients that came to an end");
        for (way, count) in load.done() {
            assert!(count > 0, "no {way:?} ever ended well");
        }
    }
}

fn soak(workers: u8, duration: Duration) {
    let place = Place::new([FAULTS, POD_FAULTS]);
    let mut gateway = Gateway::start_with(place.gateway, CONFIG, workers, None);
    gateway.publish(&tables());
    let load = Arc::new(Load::default());
    let clients = place.clients(&load, 12);
    let updates = churn(&mut gateway, &load, duration);
    place.end(&load, clients);

    let (open, handed_over) = (gateway.counter("flows-used"), gateway.counter("handed-over"));
    assert_eq!(handed_over > 0, workers > 1, "{handed_over} packets handed over");
    eprintln!("soak: {workers} workers, {duration:?}, seed {SEED}: {load}; {updates} table updates");
    place
        .relays
        .iter()
        .for_each(|relay| eprintln!("soak: {}", relay.report()));
    eprintln!(
        "soak: the dataplane opened {} flows and dropped: {}",
        gateway.counter("flows-opened"),
        gateway.drops()
    );
    wait_until("every flow has expired", DRAINED, || {
        (gateway.counter("flows-used") == 0).then_some(())
    });
    eprintln!("soak: all {open} flows that were open at the end have expired");
}

/// Endpoints come and go, a change every now and then, until the time is over. How many changes.
fn churn(gateway: &mut Gateway, load: &Load, duration: Duration) -> usize {
    let mut random = Random(SEED);
    let (start, mut updates) = (now(), 0);
    while start.elapsed() < duration {
        thread::sleep(Duration::from_millis(50 + random.next() % 200));
        let pod = STEADY + random.below(usize::from(PODS - STEADY)) as u8;
        match random.below(4) {
            // CT-5: its flows stay.
            0 => gateway.publish(&everywhere("put", pod, "terminating")),
            1 => load.taken_away(pod, || gateway.publish(&everywhere("put", pod, "not-serving"))),
            2 => load.taken_away(pod, || {
                gateway.publish(&everywhere("put", pod, ""));
                gateway.publish(&everywhere("delete", pod, ""));
                gateway.publish(&everywhere("put", pod, ""));
            }),
            _ => gateway.publish(&everywhere("put", pod, "")),
        }
        updates += 1;
    }
    updates
}

/// Both Services with all their frontends and pods.
pub(crate) fn tables() -> String {
    let mut lines = "put network services 10.96.0.0/16\nput network services fd00:10:96::/112\n".to_owned();
    for protocol in ["tcp", "udp"] {
        lines += &format!(
            "put service {protocol} {protocol} random\nput node-port {protocol} 30080\nput node-port {protocol} [::]:30080\n"
        );
        lines += &format!(
            "put cluster-ip {protocol} 10.96.0.10:80\nput cluster-ip {protocol} [fd00:10:96::10]:80\n"
        );
    }
    lines
        + &(0..PODS)
            .map(|pod| everywhere("put", pod, ""))
            .collect::<String>()
}

/// A change of a pod behind either service, with both its addresses.
fn everywhere(verb: &str, pod: u8, flags: &str) -> String {
    let line = |service: &str, at: SocketAddr| format!("{verb} backend {service} {at} {flags}\n");
    let both = |address: IpAddr| {
        ["tcp", "udp"]
            .map(|service| line(service, SocketAddr::new(address, PORT)))
            .concat()
    };
    pod_addresses(pod).map(both).concat()
}

fn pod_addresses(pod: u8) -> [IpAddr; 2] {
    let last = 11 + pod;
    [
        [10, 244, 0, last].into(),
        [0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(last)].into(),
    ]
}

const CLIENT_V4: [u8; 4] = [198, 51, 100, 10];
const CLIENT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0xc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
/// Where the pods' addresses begin.
const POD_V4: [u8; 3] = [10, 244, 0];
const POD_V6: [u8; 4] = [0xfd, 0x00, 0x02, 0x44];

/// Nothing that comes to the client is for anybody else; no packet toward the client has a pod's address, nor has one that an error quotes.
fn toward_client(end: usize, frame: &[u8]) -> Option<String> {
    let at = |place: usize, begin: &[u8]| frame.get(place..place + begin.len()) == Some(begin);
    let (v4, v6) = (|place| at(place, &POD_V4), |place| at(place, &POD_V6));
    // The source; in what an ICMP error quotes, both.
    let seen = match family(frame) {
        4 => v4(26) || (at(23, &[1]) && (v4(54) || v4(58))),
        6 => v6(22) || (at(20, &[58]) && frame.get(54).is_some_and(|kind| *kind < 128) && (v6(70) || v6(86))),
        _ => false,
    };
    let for_another = match family(frame) {
        4 => frame[30..34] != CLIENT_V4,
        6 => frame[38..54] != CLIENT_V6 && frame[38] != 0xff && frame[38] != 0xfe,
        _ => false,
    };
    (end == 1 && (seen || for_another))
        .then(|| format!("toward the client: {:02x?}", &frame[..frame.len().min(118)]))
}

/// No packet toward pods is for anybody but pods; multicast is for all.
fn toward_pods(end: usize, frame: &[u8]) -> Option<String> {
    let astray = match family(frame) {
        4 => frame[30..33] != POD_V4,
        6 => frame[38..42] != POD_V6 && frame[38] != 0xff && frame[38] != 0xfe,
        _ => false,
    };
    (end == 0 && astray).then(|| format!("toward the pods: {:02x?}", &frame[..frame.len().min(118)]))
}

fn family(frame: &[u8]) -> u8 {
    match frame[12..14] {
        [0x08, 0x00] => 4,
        [0x86, 0xdd] => 6,
        _ => 0,
    }
}
