//! Interfaces that the kernel uses, too: its own connections live on beside Services', through updates, a crash and another
//! process; what is no frontend any more is the kernel's again, and so is everything at the end. Interfaces that are deleted and
//! made again are shared again.
//!
//! ```text
//! client 192.0.2.10 ── uplink0 ── gateway, a worker for each queue ── pods0 ── pod 10.244.0.9
//!                                 its kernel: 192.0.2.2, 10.244.0.1
//! ```

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;

use crate::gateway::Gateway;
use crate::host::Host;
use crate::sandbox::{run, sandboxed, wait_until};

const LIMIT: Duration = Duration::from_secs(180);
pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const CONFIG: &str = "
node: {addresses: [192.0.2.2]}
ports:
- {name: uplink0, driver: af_xdp, mode: shared, interface: uplink0, addresses: [192.0.2.2/24], attach: ATTACH}
- {name: pods0, driver: af_xdp, mode: shared, interface: pods0, addresses: [10.244.0.1/24], attach: ATTACH}
";
pub(crate) const TABLES: &str = "
put service echo tcp
put cluster-ip echo 10.96.0.10:7
put node-port echo 30080
put backend echo 10.244.0.9:7
put network pods 10.244.0.0/24
";
/// Connections made after each event, enough for every queue to have some.
const CONNECTIONS: usize = 24;
/// What each says, and hears again.
const BYTES: usize = 100_000;

/// A cable of so many queues each way.
pub(crate) fn cable(queues: u8, (a, a_name): (Host, &str), (b, b_name): (Host, &str), b_address: &str) {
    let n = queues.to_string();
    let queues = ["numrxqueues", &n, "numtxqueues", &n];
    let here = ["link", "add", a_name, "netns", a.0];
    let there = ["type", "veth", "peer", "name", b_name, "netns", b.0];
    run("ip", &[&here[..], &queues, &there, &queues].concat());
    for (host, name) in [(a, a_name), (b, b_name)] {
        host.ip(&format!("link set {name} gso_max_segs 1 up"));
    }
    b.ip(&format!("addr add {b_address} dev {b_name}"));
}

pub(crate) fn serve(host: Host, address: &str, answer: u8) {
    let address: SocketAddr = address.parse().unwrap();
    // The kernel takes an IPv6 address into use a while after it was added, and tells nobody.
    let listener = host.enter(move || {
        wait_until(&format!("{address} is there"), SOON, || {
            TcpListener::bind(address).ok()
        })
    });
    host.spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || echo(stream.unwrap(), answer));
        }
    });
}

/// Says who it is, then everything again.
fn echo(mut stream: TcpStream, who: u8) {
    let mut buffer = [0; 4096];
    let mut said = stream.write_all(&[who]).is_ok();
    while said && let Ok(length @ 1..) = stream.read(&mut buffer) {
        said = stream.write_all(&buffer[..length]).is_ok();
    }
}

/// A connection, and who is at the other side.
pub(crate) fn connect(address: &str) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), SOON)
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut who = [0];
    stream.read_exact(&mut who).unwrap();
    (stream, who[0])
}

/// `CONNECTIONS`, each a whole exchange with the one who should answer.
pub(crate) fn exchange(client: Host, address: &'static str, answer: u8) {
    client.enter(move || {
        for _ in 0..CONNECTIONS {
            let (mut stream, who) = connect(address);
            assert_eq!(who, answer, "{address}");
            let mut writer = stream.try_clone().unwrap();
            let writing = std::thread::spawn(move || writer.write_all(&[7; BYTES]).unwrap());
            let mut heard = vec![0; BYTES];
            stream.read_exact(&mut heard).unwrap();
            writing.join().unwrap();
        }
    });
}

/// A connection on which something is said all the time.
pub(crate) struct Talk {
    address: &'static str,
    turns: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Talk {
    pub(crate) fn new(client: Host, address: &'static str, answer: u8) -> Self {
        let (end, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, turn) = (Arc::clone(&end), Arc::clone(&turns));
        let thread = client.spawn(move || {
            let (mut stream, who) = connect(address);
            assert_eq!(who, answer, "{address}");
            let mut heard = [0; 5];
            while !ended.load(Ordering::Relaxed) {
                stream.write_all(b"hello").unwrap();
                stream.read_exact(&mut heard).unwrap();
                turn.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            address,
            turns,
            end,
            thread,
        }
    }

    pub(crate) fn goes_on(&self, what: &str) {
        let before = self.turns.load(Ordering::Relaxed);
        wait_until(&format!("{}: goes on {what}", self.address), SOON, || {
            assert!(!self.thread.is_finished(), "{}: broken {what}", self.address);
            (self.turns.load(Ordering::Relaxed) > before + 10).then_some(())
        });
    }

    pub(crate) fn end(self) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

pub(crate) fn has_program(gateway: Host, name: &str) -> bool {
    run("ip", &["-n", gateway.0, "link", "show", name]).contains("xdp")
}

fn beside_the_kernel(queues: u8, attach: &str) {
    let [client, host, pod] = ["client", "gateway", "pod"].map(Host::new);
    cable(queues, (host, "uplink0"), (client, "eth0"), "192.0.2.10/24");
    cable(queues, (host, "pods0"), (pod, "eth0"), "10.244.0.9/24");
    host.ip("addr add 192.0.2.2/24 dev uplink0\naddr add 10.244.0.1/24 dev pods0");
    client.ip("route add 10.96.0.0/16 via 192.0.2.2");
    host.set("ipv4/ip_local_port_range", "30100 32767");
    serve(pod, "10.244.0.9:7", b'p');
    serve(host, "192.0.2.2:22", b's');
    let mut gateway = Gateway::start_with(host, &CONFIG.replace("ATTACH", attach), queues, None);
    assert!(has_program(host, "uplink0") && has_program(host, "pods0"));

    // One connection to the kernel that lives through all.
    let shell = Talk::new(client, "192.0.2.2:22", b's');
    gateway.publish(TABLES);
    exchange(client, "10.96.0.10:7", b'p');
    exchange(client, "192.0.2.2:30080", b'p');
    shell.goes_on("beside Services");

    // A frontend is served during updates that add and delete others.
    let changing = client.spawn(move || exchange(client, "10.96.0.10:7", b'p'));
    for _ in 0..CONNECTIONS {
        gateway.publish("put external-ip echo 198.51.100.80:7");
        gateway.publish("delete external-ip echo 198.51.100.80:7");
    }
    changing.join().unwrap();
    shell.goes_on("through updates");

    // What is no frontend any more is the kernel's.
    gateway.publish("delete node-port echo 30080");
    serve(host, "192.0.2.2:30080", b'k');
    exchange(client, "192.0.2.2:30080", b'k');

    gateway.replace(Signal::KILL);
    shell.goes_on("through a crash and another process");
    gateway.publish(TABLES);
    exchange(client, "10.96.0.10:7", b'p');
    exchange(client, "192.0.2.2:30080", b'p');

    // Ended by SIGKILL.
    drop(gateway);
    wait_until("the programs are gone", SOON, || {
        (!has_program(host, "uplink0") && !has_program(host, "pods0")).then_some(())
    });
    exchange(client, "192.0.2.2:30080", b'k');
    shell.goes_on("without the dataplane");
    shell.end();
}

/// `kept`: the programs' names outlive the process, and an interface.
fn made_again(kept: bool) {
    const QUEUES: u8 = 2;
    let [client, host, pod] = ["client", "gateway", "pod"].map(Host::new);
    let uplink = || {
        cable(QUEUES, (host, "uplink0"), (client, "eth0"), "192.0.2.10/24");
        host.ip("addr add 192.0.2.2/24 dev uplink0");
        client.ip("route add 10.96.0.0/16 via 192.0.2.2");
    };
    let pods = || {
        cable(QUEUES, (host, "pods0"), (pod, "eth0"), "10.244.0.9/24");
        host.ip("addr add 10.244.0.1/24 dev pods0");
    };
    uplink();
    pods();
    host.set("ipv4/ip_local_port_range", "30100 32767");
    serve(pod, "10.244.0.9:7", b'p');
    serve(host, "192.0.2.2:22", b's');
    let mut config = CONFIG.replace("ATTACH", "auto");
    if kept {
        std::fs::create_dir("/run/bpf").unwrap();
        run("mount", &["-t", "bpf", "bpf", "/run/bpf"]);
        config += "shared: {folder: /run/bpf/sluice, hold: 10s}\n";
    }
    let mut gateway = Gateway::start_with(host, &config, QUEUES, None);
    gateway.publish(TABLES);
    let shell = Talk::new(client, "192.0.2.2:22", b's');
    exchange(client, "10.96.0.10:7", b'p');
    for (interface, again) in [("pods0", &pods as &dyn Fn()), ("uplink0", &uplink)].repeat(2) {
        let back = |said: &str| {
            said.matches(&format!("NIC port {interface}: {interface} is back"))
                .count()
        };
        let before = back(&gateway.said());
        host.ip(&format!("link del {interface}"));
        again();
        wait_until("every worker has it again", SOON, || {
            (back(&gateway.said()) == before + usize::from(QUEUES)).then_some(())
        });
        assert!(has_program(host, interface));
        exchange(client, "10.96.0.10:7", b'p');
        exchange(client, "192.0.2.2:30080", b'p');
        shell.goes_on("on interfaces that were made again");
    }
    // What is served after it is steered there, too.
    gateway.publish("put cluster-ip echo 10.96.0.11:7");
    exchange(client, "10.96.0.11:7", b'p');
    shell.end();
}

/// As another user than root there is no bpf(2).
pub(crate) fn as_root(name: &str, body: impl FnOnce()) {
    if rustix::process::geteuid().is_root() {
        sandboxed(name, LIMIT, body);
    } else {
        eprintln!("SKIPPED {name}: not root, and a user namespace has no bpf(2)");
    }
}

#[test]
fn the_kernel_and_services_share_interfaces_of_one_queue() {
    let name = "shared::the_kernel_and_services_share_interfaces_of_one_queue";
    as_root(name, || beside_the_kernel(1, "native"));
}

#[test]
fn the_kernel_and_services_share_interfaces_of_one_queue_by_the_generic_path() {
    let name = "shared::the_kernel_and_services_share_interfaces_of_one_queue_by_the_generic_path";
    as_root(name, || beside_the_kernel(1, "generic"));
}

#[test]
fn the_kernel_and_services_share_interfaces_of_two_queues() {
    let name = "shared::the_kernel_and_services_share_interfaces_of_two_queues";
    as_root(name, || beside_the_kernel(2, "native"));
}

#[test]
fn the_kernel_and_services_share_interfaces_of_four_queues() {
    let name = "shared::the_kernel_and_services_share_interfaces_of_four_queues";
    as_root(name, || beside_the_kernel(4, "native"));
}

#[test]
fn shared_interfaces_that_are_deleted_and_made_again_are_shared_again() {
    let name = "shared::shared_interfaces_that_are_deleted_and_made_again_are_shared_again";
    as_root(name, || made_again(false));
}

#[test]
fn interfaces_with_kept_programs_that_are_deleted_and_made_again_are_shared_again() {
    let name = "shared::interfaces_with_kept_programs_that_are_deleted_and_made_again_are_shared_again";
    as_root(name, || made_again(true));
}
