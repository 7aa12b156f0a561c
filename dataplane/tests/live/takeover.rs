//! A process on interfaces that the kernel uses, too, is replaced: connections of both live on, and at no moment does the kernel
//! answer what is Services'. Without a successor, the interfaces become the kernel's.
//!
//! The network is that of `shared`.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;

use crate::gateway::Gateway;
use crate::host::Host;
use crate::sandbox::{run, wait_until};
use crate::shared::{CONFIG, SOON, TABLES, Talk, as_root, cable, exchange, has_program, serve};

/// Far more than a start takes on a busy machine.
const HOLD: &str = "60s";
const KEPT: &str = "shared: {folder: /run/bpf/sluice, hold: HOLD}\n";
/// Long enough for a connection to be opened here, and for the kernel to refuse one.
const MOMENT: Duration = Duration::from_millis(500);

/// Resets and unreachables that a kernel has sent.
fn answers(host: Host) -> Vec<u64> {
    vec![
        host.counted("Tcp:", "OutRsts"),
        host.counted("Icmp:", "OutDestUnreachs"),
    ]
}

/// What becomes of a connection within a moment.
fn attempt(client: Host, address: &'static str) -> Result<(), std::io::ErrorKind> {
    let attempt = move || TcpStream::connect_timeout(&address.parse().unwrap(), MOMENT);
    client.enter(attempt).map(drop).map_err(|error| error.kind())
}

struct Place {
    client: Host,
    host: Host,
}

/// Kernel and pod serve; there is a BPF file system.
fn place(queues: u8) -> Place {
    let [client, host, pod] = ["client", "gateway", "pod"].map(Host::new);
    cable(queues, (host, "uplink0"), (client, "eth0"), "192.0.2.10/24");
    cable(queues, (host, "pods0"), (pod, "eth0"), "10.244.0.9/24");
    host.ip("addr add 192.0.2.2/24 dev uplink0\naddr add 10.244.0.1/24 dev pods0");
    client.ip("route add 10.96.0.0/16 via 192.0.2.2");
    host.set("ipv4/ip_local_port_range", "30100 32767");
    serve(pod, "10.244.0.9:7", b'p');
    serve(host, "192.0.2.2:22", b's');
    fs::create_dir("/run/bpf").unwrap();
    run("mount", &["-t", "bpf", "bpf", "/run/bpf"]);
    Place { client, host }
}

fn start(host: Host, queues: u8, attach: &str, hold: &str) -> Gateway {
    let config = CONFIG.replace("ATTACH", attach) + &KEPT.replace("HOLD", hold);
    Gateway::start_with(host, &config, queues, Some("/run/flows"))
}

fn replaced(queues: u8, attach: &str) {
    let Place { client, host } = place(queues);
    let mut gateway = start(host, queues, attach, HOLD);
    gateway.publish(TABLES);
    let talks = [
        Talk::new(client, "192.0.2.2:22", b's'),
        Talk::new(client, "10.96.0.10:7", b'p'),
        Talk::new(client, "192.0.2.2:30080", b'p'),
    ];
    let go_on = |what: &str| talks.iter().for_each(|talk| talk.goes_on(what));
    go_on("at first");
    let before = answers(host);

    let error = gateway.refused_beside();
    assert!(error.contains("another socket has this queue"), "{error}");
    go_on("beside a process that was refused");

    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        gateway.end(signal);
        assert!(has_program(host, "uplink0") && has_program(host, "pods0"));
        talks[0].goes_on("while there is no process");
        assert_eq!(
            attempt(client, "192.0.2.2:30080"),
            Err(std::io::ErrorKind::TimedOut),
            "the kernel answered for a Service"
        );
        gateway.start_again();
        go_on("before control has spoken to the next process");
        let lost = wait_until("withheld packets are counted", SOON, || {
            Some(gateway.counter("drop-no-process")).filter(|&lost| lost > 0)
        });
        eprintln!("takeover: {queues} queues, {attach}, {signal:?}: {lost} packets withheld until now");
        gateway.publish(TABLES);
        exchange(client, "192.0.2.2:30080", b'p');
        go_on("after another process has come");
    }

    assert_eq!(answers(host), before, "the kernel answered for a Service");

    // What one process took, the next gives back, but for connections that are open.
    gateway.end(Signal::KILL);
    gateway.start_again();
    gateway.publish(&TABLES.replace("put node-port echo 30080\n", ""));
    serve(host, "192.0.2.2:30080", b'k');
    exchange(client, "10.96.0.10:7", b'p');
    exchange(client, "192.0.2.2:30080", b'k');
    go_on("though its frontend is gone");
    talks.into_iter().for_each(Talk::end);
}

#[test]
fn a_process_is_replaced_without_a_gap_on_interfaces_of_one_queue() {
    let name = "takeover::a_process_is_replaced_without_a_gap_on_interfaces_of_one_queue";
    as_root(name, || replaced(1, "native"));
}

#[test]
fn a_process_is_replaced_without_a_gap_on_interfaces_of_two_queues() {
    let name = "takeover::a_process_is_replaced_without_a_gap_on_interfaces_of_two_queues";
    as_root(name, || replaced(2, "native"));
}

#[test]
fn a_process_is_replaced_without_a_gap_by_the_generic_path() {
    let name = "takeover::a_process_is_replaced_without_a_gap_by_the_generic_path";
    as_root(name, || replaced(1, "generic"));
}

#[test]
fn without_a_successor_an_interface_becomes_the_kernels() {
    let name = "takeover::without_a_successor_an_interface_becomes_the_kernels";
    as_root(name, || {
        let Place { client, host } = place(1);
        let mut gateway = start(host, 1, "native", "1s");
        gateway.publish(TABLES);
        exchange(client, "192.0.2.2:30080", b'p');
        serve(host, "192.0.2.2:30080", b'k');
        exchange(client, "192.0.2.2:30080", b'p');
        gateway.end(Signal::TERM);
        // The first SYN may be withheld; TCP repeats it.
        exchange(client, "192.0.2.2:30080", b'k');
        assert!(has_program(host, "uplink0"), "it has everything pass");

        // Another way to attach, and an interface that is another: what is kept is of no use, and not in the way.
        gateway.reconfigure("native", "generic");
        cable(1, (host, "new0"), (client, "eth1"), "198.51.100.10/24");
        host.ip("link del pods0");
        let pod = Host::new("pod2");
        cable(1, (host, "pods0"), (pod, "eth0"), "10.244.0.9/24");
        host.ip("addr add 10.244.0.1/24 dev pods0");
        serve(pod, "10.244.0.9:7", b'q');
        gateway.start_again();
        gateway.publish(TABLES);
        exchange(client, "192.0.2.2:30080", b'q');

        // The names are what keeps it.
        gateway.end(Signal::KILL);
        for file in fs::read_dir("/run/bpf/sluice").unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        wait_until("the programs are gone", SOON, || {
            (!has_program(host, "uplink0") && !has_program(host, "pods0")).then_some(())
        });
        exchange(client, "192.0.2.2:30080", b'k');
    });
}

#[test]
fn a_folder_that_is_in_no_bpf_file_system_is_refused_with_what_to_do() {
    let name = "takeover::a_folder_that_is_in_no_bpf_file_system_is_refused_with_what_to_do";
    as_root(name, || {
        let Place { host, .. } = place(1);
        let gateway = start(host, 1, "native", HOLD);
        gateway.reconfigure("/run/bpf/sluice", "/run/elsewhere");
        let error = gateway.refused_beside();
        assert!(
            error.contains("/run/elsewhere") && error.contains("mount -t bpf bpf"),
            "{error}"
        );
    });
}
