//! What a config may say, and how it is refused.

use super::*;
use crate::nic::open::{BusyPoll, Faces, ZeroCopy};

const SMALL: &str = "
node: {addresses: [172.18.0.2]}
ports:
- {name: client0, driver: af_xdp, interface: client0, addresses: [172.18.0.2/24]}
- {name: host0, driver: tap, interface: host0, role: host}
workers: {count: 1, idle: sleep}
flows: {capacity: 1000}
channel: {socket: /run/sluice/dataplane.sock}
";

fn error(text: &str) -> String {
    Config::parse(text, Path::new("gateway.yaml"))
        .unwrap_err()
        .to_string()
}

#[test]
fn a_small_config_gets_the_defaults() {
    let config = Config::parse(SMALL, Path::new("x")).unwrap();
    assert_eq!(config.ports[0].ring_size, 1024);
    assert!(config.flows.midstream_pickup);
}

#[test]
fn letters_have_bounds() {
    for letters in ["0", "65537"] {
        let text = SMALL.replace(
            "workers: {count",
            &format!("workers: {{letters: {letters}, count"),
        );
        assert_eq!(error(&text), "gateway.yaml: workers.letters: must be 1 to 65536");
    }
}

#[test]
fn no_source_port_is_a_node_port_by_default() {
    // TP-7. kube-apiserver's default range (--service-node-port-range).
    let config = Config::parse(SMALL, Path::new("x")).unwrap();
    let ranges = || config.snat.ports.iter().map(|range| &range.0);
    assert!((30_000..=32_767).all(|port| ranges().all(|range| !range.contains(&port))));
    assert!(ranges().map(|range| range.len()).sum::<usize>() > 60_000);
}

#[test]
fn addresses_and_routes_are_of_either_family_and_a_link_local_router_is_on_the_port_it_names() {
    let text = SMALL.replace("[172.18.0.2/24]", "[172.18.0.2/24, \"fd00::2/64\"]")
        + "routes: [{to: \"::/0\", via: \"fe80::1\", port: host0}, {to: \"fd01::/64\", via: \"fd00::1\"}]\n";
    let config = Config::parse(&text, Path::new("x")).unwrap();
    let ports: Vec<_> = config.routes.iter().map(|r| config.port_of(r)).collect();
    assert_eq!(ports, [Some(1), Some(0)]);
}

#[test]
fn errors_name_the_file_the_place_and_what_is_allowed() {
    let unknown = error(&SMALL.replace("workers: {count", "workers: {number"));
    assert!(
        unknown.starts_with("gateway.yaml:6:") && unknown.contains("number"),
        "{unknown}"
    );
    assert!(!unknown.contains('\n'));
    let two = error(&SMALL.replace("{name: client0,", "{name: client0, role: host,"));
    assert_eq!(two, "gateway.yaml: ports: only one NIC port can be the host port");
    let route = error(&(SMALL.to_owned() + "routes: [{to: 0.0.0.0/0, via: 10.0.0.1}]\n"));
    assert_eq!(
        route,
        "gateway.yaml: routes[0].via: 10.0.0.1 is on no NIC port's network"
    );
    let family = error(&(SMALL.to_owned() + "routes: [{to: \"::/0\", via: 172.18.0.1}]\n"));
    assert_eq!(
        family,
        "gateway.yaml: routes[0].via: 172.18.0.1 is not of the family of ::/0"
    );
    let unscoped = error(&(SMALL.to_owned() + "routes: [{to: \"::/0\", via: \"fe80::1\"}]\n"));
    assert_eq!(
        unscoped,
        "gateway.yaml: routes[0].port: say which NIC port fe80::1 is on: it is link-local"
    );
    let node = error(&SMALL.replace("[172.18.0.2]", "[\"::1\"]"));
    assert_eq!(
        node,
        "gateway.yaml: node.addresses: ::1 is no address that others can reach this node at"
    );
    let capacity = error(&(SMALL.to_owned() + "neighbours: {capacity: 18446744073709551615}\n"));
    assert_eq!(
        capacity,
        "gateway.yaml: neighbours.capacity: must be 1 to 67108864"
    );
    for held in ["0", "65537"] {
        let held = error(&(SMALL.to_owned() + &format!("fragments: {{held: {held}}}\n")));
        assert_eq!(held, "gateway.yaml: fragments.held: must be 1 to 65536");
    }
    let range = error(&(SMALL.to_owned() + "snat: {ports: [9-2]}\n"));
    assert!(range.contains("\"9-2\" is not a port range"), "{range}");
}

#[test]
fn a_pcap_port_has_files_and_no_other_port_has() {
    let config = |driver: &str, pcap: &str| {
        format!(
            "
node: {{addresses: [172.18.0.2]}}
ports:
- {{name: up0, driver: {driver}, interface: up0{pcap}}}
channel: {{socket: /run/sluice/dataplane.sock}}
"
        )
    };
    for (driver, pcap, problem) in [
        ("pcap", "", "pcap: say which files"),
        ("pcap", ", pcap: {pace: recorded}", "pcap: give a file to read"),
        (
            "pcap",
            ", pcap: {read: a.pcap, write: a.pcap}",
            "pcap.write: would empty",
        ),
        (
            "af_packet",
            ", pcap: {read: a.pcap}",
            "pcap: is for driver pcap only",
        ),
    ] {
        let told = error(&config(driver, pcap));
        assert!(
            told.starts_with(&format!("gateway.yaml: ports[0].{problem}")),
            "{told}"
        );
    }
    Config::parse(
        &config("pcap", ", pcap: {read: a.pcap}"),
        Path::new("gateway.yaml"),
    )
    .unwrap();
}

#[test]
fn a_netmap_port_has_a_name_of_netmap_and_host_rings_are_the_host_port() {
    let config = |interface: &str, role: &str| {
        format!(
            "
node: {{addresses: [172.18.0.2]}}
ports:
- {{name: up0, driver: netmap, interface: \"{interface}\", role: {role}}}
channel: {{socket: /run/sluice/dataplane.sock}}
"
        )
    };
    for (interface, role) in [
        ("eth0", "link"),
        ("netmap:a_long_named_if-3/x", "link"),
        ("vale0:p@1", "link"),
        ("netmap:eth0^", "host"),
    ] {
        Config::parse(&config(interface, role), Path::new("gateway.yaml")).unwrap();
    }
    assert_eq!(
        error(&config("bridge0:p", "link")),
        "gateway.yaml: ports[0].interface: the name of a netmap port, \"bridge0:p\", has a prefix that is neither \
         \"netmap:\" nor \"vale…:\""
    );
    for (interface, role) in [("eth0", "host"), ("netmap:eth0^", "link")] {
        let problem = error(&config(interface, role));
        assert!(
            problem.starts_with("gateway.yaml: ports[0].role: netmap's host rings"),
            "{problem}"
        );
    }
}

#[test]
fn options_of_af_xdp_are_read_and_are_no_other_drivers() {
    let with =
        |options: &str| SMALL.replace("interface: client0,", &format!("interface: client0, {options},"));
    let port = |options: &str| Config::parse(&with(options), Path::new("x")).unwrap().ports[0].clone();
    for (text, means) in [
        ("on", ZeroCopy::On),
        ("off", ZeroCopy::Off),
        ("auto", ZeroCopy::Auto),
    ] {
        assert_eq!(port(&format!("zeroCopy: {text}")).zero_copy, means);
    }
    assert_eq!(port("attach: auto").busy_poll, None);
    assert_eq!(port("busyPoll: {}").busy_poll, Some(BusyPoll::default()));
    let few = BusyPoll {
        budget: 8,
        ..BusyPoll::default()
    };
    assert_eq!(port("busyPoll: {budget: 8}").busy_poll, Some(few));
    for (options, problem) in [
        ("busyPoll: {budget: 0}", "busyPoll.budget: must be 1 to 65535"),
        ("busyPoll: {micros: 0}", "busyPoll.micros: must be 1 to 1000000"),
    ] {
        assert_eq!(error(&with(options)), format!("gateway.yaml: ports[0].{problem}"));
    }
    for (options, field) in [("zeroCopy: off", "zeroCopy"), ("busyPoll: {}", "busyPoll")] {
        let other = with(options).replace("af_xdp", "af_packet");
        assert_eq!(
            error(&other),
            format!("gateway.yaml: ports[0].{field}: is for driver af_xdp only")
        );
    }
}

#[test]
fn every_worker_needs_a_source_port_on_every_address() {
    let with = |workers: u8, ports: &str| {
        let text = SMALL.replace("count: 1", &format!("count: {workers}"))
            + &format!("snat: {{ports: [{ports}]}}\n");
        Config::parse(&text, Path::new("gateway.yaml")).map_err(|error| error.to_string())
    };
    assert!(with(1, "40000-40003").is_ok());
    assert!(with(8, "40000-40255").is_ok());
    for (workers, ports, problem) in [
        (8, "40000-40003", "too few source ports to give every worker one"),
        (1, "40000-40003, 40003-40009", "overlap"),
    ] {
        let told = with(workers, ports).unwrap_err();
        assert!(
            told.starts_with("gateway.yaml: snat.ports: ") && told.contains(problem),
            "{told}"
        );
    }
}

#[test]
fn only_links_whose_packets_are_shared_out_here_face_somebody() {
    let with = |port: &str| SMALL.replacen("ports:\n", &format!("ports:\n- {port}\n"), 1);
    let pods = "name: pods9, interface: pods9, faces: endpoints";
    for driver in ["af_xdp", "af_packet", "netmap"] {
        let text = with(&format!("{{{pods}, driver: {driver}}}"));
        let config = Config::parse(&text, Path::new("gateway.yaml")).unwrap();
        assert_eq!(config.ports[0].faces, Faces::Endpoints);
    }
    let pipe = with("{name: pods9, driver: netmap, interface: \"netmap:x{1\", faces: endpoints}");
    assert!(error(&pipe).contains("that have a queue for each worker"));
    for other in [
        "driver: tap",
        "driver: tap, role: host",
        "driver: af_packet, role: host",
    ] {
        let told = error(&with(&format!("{{{pods}, {other}}}")));
        let expected = "gateway.yaml: ports[0].faces: is for links of af_xdp, af_packet and netmap that have a queue for each worker";
        assert_eq!(told, expected);
    }
}

#[test]
fn ports_of_one_interface_each_have_a_vlan_of_their_own() {
    let trunk = |more: &str| {
        SMALL.replace(
            "- {name: host0",
            &format!("- {{name: v100, driver: af_xdp, interface: client0, {more}}}\n- {{name: host0"),
        )
    };
    let config = Config::parse(&trunk("vlan: 100"), Path::new("x")).unwrap();
    assert_eq!(config.ports[1].vlan, Some(100));
    for (more, problem) in [
        (
            "role: link",
            "vlan: ports of one interface must each have a VLAN of their own, one may have none",
        ),
        ("vlan: 4095", "vlan: must be 1 to 4094"),
        (
            "vlan: 100, ringSize: 64",
            "interface: shares client0 with client0: driver, its options, mode, attach, zeroCopy, busyPoll, ringSize, completeChecksums, offloads and faces must be alike",
        ),
    ] {
        assert_eq!(error(&trunk(more)), format!("gateway.yaml: ports[1].{problem}"));
    }
}

#[test]
fn a_memif_port_says_whom_it_meets_and_two_never_meet_at_one_place() {
    let with = |memif: &str| {
        SMALL.replace(
            "driver: af_xdp, interface: client0",
            &format!("driver: memif, interface: client0{memif}"),
        )
    };
    let config = Config::parse(
        &with(", memif: {socket: /run/a.sock, role: master}"),
        Path::new("x"),
    )
    .unwrap();
    let memif = config.ports[0].memif.as_ref().unwrap();
    assert_eq!(
        (memif.role, memif.mode, memif.buffer_size, memif.mtu),
        (MemifRole::Server, MemifMode::Interrupt, 2048, 1500)
    );
    for (memif, problem) in [
        (
            "",
            "memif: say where the peer is: {socket: PATH, role: server or client}",
        ),
        (
            ", memif: {socket: \"\", role: server}",
            "memif.socket: \"\" is no socket: a path of 1 to 107 bytes, or @ and a name",
        ),
        (
            ", memif: {socket: /a, role: client, bufferSize: 100}",
            "memif.bufferSize: must be a multiple of 64, 256 to 65536",
        ),
        (
            ", memif: {socket: /a, role: server, zeroCopy: true}",
            "memif.zeroCopy: is the client's to choose, whose memory it is: leave it out here",
        ),
        (
            ", memif: {socket: /a, role: client, secret: twenty-four-bytes-are-one}",
            "memif.secret: must have at most 23 bytes, none of them zero",
        ),
    ] {
        assert_eq!(error(&with(memif)), format!("gateway.yaml: ports[0].{problem}"));
    }
    assert_eq!(
        error(&SMALL.replace(
            "interface: client0",
            "interface: client0, memif: {socket: /a, role: client}"
        )),
        "gateway.yaml: ports[0].memif: is for driver memif only"
    );
    for mac in ["2:0:0:0:0", "03:00:00:00:00:01", "02:00:00:00:00:0g"] {
        let refused = error(&with(&format!(
            ", memif: {{socket: /a, role: client, peerMac: \"{mac}\"}}"
        )));
        assert!(refused.contains("is no station's address"), "{refused}");
    }
    let two = |role: &str, id: u8| {
        let second = format!(
            "- {{name: b, driver: memif, interface: b, memif: {{socket: /run/a.sock, role: {role}, id: {id}}}}}\n- {{name: host0"
        );
        with(", memif: {socket: /run/a.sock, role: client}").replace("- {name: host0", &second)
    };
    Config::parse(&two("client", 1), Path::new("x")).unwrap();
    Config::parse(&two("server", 0), Path::new("x")).unwrap();
    let problem = "two servers cannot listen at one socket, nor two clients be one interface there";
    assert_eq!(
        error(&two("client", 0)),
        format!("gateway.yaml: ports[1].memif.socket: {problem}")
    );
}

#[test]
fn only_links_of_af_xdp_are_shared_with_the_kernel() {
    let shared = SMALL.replace("interface: client0,", "interface: client0, mode: shared,");
    let config = Config::parse(&shared, Path::new("x")).unwrap();
    assert_eq!(
        (config.ports[0].mode, config.ports[1].mode),
        (Mode::Shared, Mode::Exclusive)
    );
    let other = error(&shared.replace("af_xdp", "af_packet"));
    assert_eq!(
        other,
        "gateway.yaml: ports[0].mode: only a link of driver af_xdp can be shared with the kernel"
    );
    let trunk = shared.replace(
        "ports:\n",
        "ports:\n- {name: v5, driver: af_xdp, interface: client0, vlan: 5, addresses: [203.0.113.1/24]}\n",
    );
    assert!(
        error(&trunk).contains("must be alike"),
        "an interface has one program"
    );
    let both = trunk.replace(
        "interface: client0, vlan: 5,",
        "interface: client0, mode: shared, vlan: 5,",
    );
    assert_eq!(
        Config::parse(&both, Path::new("x")).unwrap().ports[0].vlan,
        Some(5)
    );
}
