//! Neighbours change their MAC address under open flows, or are not there at all, and interfaces are deleted and made again:
//! traffic heals by itself, and nobody waits for somebody else's neighbour.

use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::exchange::{connect, datagram, exchange, finish, serve};
use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::sandbox::{now, sandboxed};

/// The longest that a changed neighbour may go unnoticed.
const HEALED: Duration = Duration::from_secs(1);
/// The longest that an interface which is back may not be served, and its neighbours not be known: it is looked for once a
/// second, and twice that for a busy machine.
const REOPENED: Duration = Duration::from_secs(2);
/// Between two datagrams of the flow that is watched.
const PACE: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(60);

const CONFIG: &str = "
node: {addresses: [172.18.0.1, \"fd00:18::1\"]}
ports:
- {name: up0, driver: af_packet, interface: up0, addresses: [172.18.0.1/24, \"fd00:18::1/64\"]}
- {name: pods0, driver: af_packet, interface: pods0, addresses: [10.244.0.1/24, \"fd00:244::1/64\"]}
routes:
- {to: 198.51.100.0/24, via: 172.18.0.2}
- {to: \"2001:db8:c::/64\", via: \"fd00:18::2\"}
";

/// The pod that is there, and one that is not.
const PODS: [&str; 2] = ["10.244.0.11:8080", "[fd00:244::11]:8080"];
const NOBODY: [&str; 2] = ["10.244.0.99:8080", "[fd00:244::99]:8080"];
/// Frontends of the pod: cluster IPs keep the client's address, node ports do not (TP-2).
const FRONTENDS: [&str; 4] = [
    "10.96.0.10:80",
    "172.18.0.1:30080",
    "[fd00:10:96::10]:80",
    "[fd00:18::1]:30080",
];
/// Frontends of nobody.
const DEAD: [&str; 2] = ["10.96.0.99:80", "[fd00:10:96::99]:80"];

struct World {
    far: Host,
    near: Host,
    pods: Host,
    host: Host,
    wires: Wires,
    gateway: Gateway,
}

const POD_ADDRESSES: &str = "addr add 10.244.0.11/24 dev eth0
     addr add fd00:244::11/64 dev eth0
     route add default via 10.244.0.1
     route add default via fd00:244::1";

/// `near` is a client on the gateway's link and the router of `far`, a client behind it.
fn world(config: &str) -> World {
    let (far, near, pods) = (Host::new("far"), Host::new("near"), Host::new("pods"));
    let host = Host::silent("gateway");
    let wires = Wires::new();
    wires.cable((near, "eth0"), (host, "up0"));
    wires.cable((near, "eth1"), (far, "eth0"));
    wires.cable((pods, "eth0"), (host, "pods0"));
    near.set("ipv4/ip_forward", "1");
    near.set("ipv6/conf/all/forwarding", "1");
    near.ip("addr add 172.18.0.2/24 dev eth0
         addr add fd00:18::2/64 dev eth0
         addr add 198.51.100.1/24 dev eth1
         addr add 2001:db8:c::1/64 dev eth1
         route add default via 172.18.0.1
         route add default via fd00:18::1");
    far.ip("addr add 198.51.100.10/24 dev eth0
         addr add 2001:db8:c::10/64 dev eth0
         route add default via 198.51.100.1
         route add default via 2001:db8:c::1");
    pods.ip(POD_ADDRESSES);
    for pod in PODS {
        serve(pods, 0, pod.parse::<SocketAddr>().unwrap().ip());
    }
    let mut gateway = Gateway::start(host, config);
    let mut tables = String::new();
    for (service, protocol) in [("echo", "tcp"), ("dns", "udp")] {
        tables += &format!(
            "put service {service} {protocol}\nput node-port {service} 30080\nput node-port {service} [::]:30080\n"
        );
        tables += &[FRONTENDS[0], FRONTENDS[2]]
            .map(|at| format!("put cluster-ip {service} {at}\n"))
            .concat();
        tables += &PODS.map(|at| format!("put backend {service} {at}\n")).concat();
    }
    tables += "put service dead udp\n";
    tables += &DEAD.map(|at| format!("put cluster-ip dead {at}\n")).concat();
    tables += &NOBODY.map(|at| format!("put backend dead {at}\n")).concat();
    gateway.publish(&tables);
    World {
        far,
        near,
        pods,
        host,
        wires,
        gateway,
    }
}

/// A flow that is watched: when it was last answered, as it happens.
struct Watched {
    answers: Receiver<Instant>,
    thread: thread::JoinHandle<io::Result<()>>,
}

impl Watched {
    fn start(host: Host, exchange: impl FnMut() -> io::Result<()> + Send + 'static) -> Self {
        let (answer, answers) = channel();
        let mut exchange = exchange;
        let thread = host.spawn(move || {
            loop {
                exchange()?;
                if answer.send(now()).is_err() {
                    return Ok(());
                }
                thread::sleep(PACE);
            }
        });
        Self { answers, thread }
    }

    /// How long after `since` the first answer came whose request was sent after it.
    fn first_answer_after(&self, since: Instant) -> Duration {
        // The first may answer a question from before.
        let mut answers = self.answers.iter().filter(|at| *at > since);
        let _before = answers.next().expect("the flow lives");
        answers.next().expect("the flow lives") - since
    }

    fn end(self) {
        drop(self.answers);
        self.thread.join().unwrap().unwrap();
    }
}

fn udp(host: Host, frontend: &str) -> Watched {
    let at: SocketAddr = frontend.parse().unwrap();
    let socket = host.enter(move || any_port(at));
    socket.connect(at).unwrap();
    let mut number = 0;
    Watched::start(host, move || {
        number += 1;
        datagram(&socket, number, 64).map(drop)
    })
}

/// A socket that can talk to `peer`.
fn any_port(peer: SocketAddr) -> UdpSocket {
    UdpSocket::bind(if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap()
}

fn tcp(host: Host, frontend: &str) -> Watched {
    let at: SocketAddr = frontend.parse().unwrap();
    let mut stream: TcpStream = host.enter(move || connect(at).unwrap());
    Watched::start(host, move || exchange(&mut stream, 1, 100, 3000).map(drop))
}

/// Both kinds of flows from both hosts, through a frontend with and one without SNAT, while `change` happens.
fn heals(what: &str, change: impl FnOnce(&World)) {
    healed(&world(CONFIG), what, HEALED, change);
}

fn healed(world: &World, what: &str, limit: Duration, change: impl FnOnce(&World)) {
    let mut flows = Vec::new();
    for (host, name) in [(world.near, "near"), (world.far, "far")] {
        for frontend in FRONTENDS {
            flows.push((format!("{name} udp {frontend}"), udp(host, frontend)));
            flows.push((format!("{name} tcp {frontend}"), tcp(host, frontend)));
        }
    }
    for (_, flow) in &flows {
        flow.answers.recv().unwrap();
    }
    let changed = now();
    change(world);
    let gaps: Vec<(String, Duration)> = flows
        .iter()
        .map(|(name, flow)| (name.clone(), flow.first_answer_after(changed)))
        .collect();
    flows.into_iter().for_each(|(_, flow)| flow.end());
    let worst = gaps.iter().map(|gap| gap.1).max().unwrap();
    eprintln!(
        "heal: {what}: {} flows healed within {worst:?}; dropped: {}",
        gaps.len(),
        world.gateway.drops()
    );
    // A TCP client waits for its own retransmission, which may be twice as late as the road is open again.
    for (flow, gap) in gaps {
        let limit = if flow.contains("tcp") { 2 * limit } else { limit };
        assert!(gap <= limit, "{flow}: {gap:?} after {what}");
    }
}

#[test]
fn a_client_or_router_with_a_new_mac_address_is_found_within_a_second() {
    sandboxed(
        "heal::a_client_or_router_with_a_new_mac_address_is_found_within_a_second",
        LIMIT,
        || {
            heals("a client and router changed its MAC address", |world| {
                world.near.ip("link set eth0 address 02:00:00:00:0a:01");
            });
        },
    );
}

#[test]
fn a_pod_with_a_new_mac_address_is_found_within_a_second() {
    sandboxed(
        "heal::a_pod_with_a_new_mac_address_is_found_within_a_second",
        LIMIT,
        || {
            heals("a pod changed its MAC address", |world| {
                world.pods.ip("link set eth0 address 02:00:00:00:0b:01");
            });
        },
    );
}

/// A pod that a machine took over says so (RFC 5227 §3): nobody waits for anything.
#[test]
fn a_pod_that_announces_its_new_mac_address_is_found_at_once() {
    sandboxed(
        "heal::a_pod_that_announces_its_new_mac_address_is_found_at_once",
        LIMIT,
        || {
            heals("a pod announced its new MAC address", |world| {
                world.pods.set("ipv4/conf/eth0/arp_notify", "1");
                world.pods.set("ipv6/conf/eth0/ndisc_notify", "1");
                world.pods.ip("link set eth0 address 02:00:00:00:0b:01");
            });
        },
    );
}

/// The pods' interface is deleted and made again, twice.
fn serves_again(driver: &str) {
    let world = world(&CONFIG.replace("driver: af_packet", &format!("driver: {driver}")));
    for _ in 0..2 {
        let what = format!("{driver}: an interface was deleted and made again");
        healed(&world, &what, REOPENED, |world| {
            world.pods.ip("link del eth0");
            world.wires.cable((world.pods, "eth0"), (world.host, "pods0"));
            world.pods.ip(POD_ADDRESSES);
        });
    }
    let said = world.gateway.said();
    assert_eq!(said.matches("NIC port pods0: pods0 is back").count(), 2, "{said}");
}

#[test]
fn an_interface_of_af_packet_that_is_deleted_under_load_is_served_again() {
    let name = "heal::an_interface_of_af_packet_that_is_deleted_under_load_is_served_again";
    sandboxed(name, LIMIT, || serves_again("af_packet"));
}

#[test]
fn an_interface_of_af_xdp_that_is_deleted_under_load_is_served_again() {
    let name = "heal::an_interface_of_af_xdp_that_is_deleted_under_load_is_served_again";
    sandboxed(name, LIMIT, || serves_again("af_xdp"));
}

#[test]
fn a_neighbour_that_never_answers_holds_up_nobody_else() {
    let name = "heal::a_neighbour_that_never_answers_holds_up_nobody_else";
    sandboxed(name, LIMIT, || {
        let world = world(CONFIG);
        let flood = world.far.spawn(|| {
            for at in [DEAD; 1_000]
                .as_flattened()
                .iter()
                .map(|at| at.parse::<SocketAddr>().unwrap())
            {
                let socket = any_port(at);
                // What comes back is an error or nothing.
                let _ = socket.connect(at).and_then(|()| socket.send(b"is anybody there"));
            }
        });
        let mut worst = Duration::ZERO;
        let mut rounds = 0;
        while !flood.is_finished() || rounds < 200 {
            let (frontend, start) = (FRONTENDS[2 * (rounds % 2)].parse().unwrap(), now());
            world.near.enter(move || {
                let mut stream = connect(frontend).unwrap();
                exchange(&mut stream, 7, 100, 3000).unwrap();
                finish(stream).unwrap();
            });
            worst = worst.max(start.elapsed());
            rounds += 1;
        }
        flood.join().unwrap();
        eprintln!(
            "heal: {rounds} connections beside a dead neighbour, the slowest took {worst:?}; dropped: {}",
            world.gateway.drops()
        );
        // A single lost packet would cost a second (SYN) or 200 ms.
        assert!(worst < Duration::from_millis(900), "a connection took {worst:?}");
        assert!(
            world.gateway.counter("drop-neighbour-pending")
                + world.gateway.counter("drop-neighbour-unreachable")
                > 0
        );
    });
}
