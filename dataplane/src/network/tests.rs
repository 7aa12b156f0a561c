use super::*;

const WAN: NicPortIndex = NicPortIndex(0);
const PODS: NicPortIndex = NicPortIndex(1);
const HOST: NicPortIndex = NicPortIndex(2);

fn v6(text: &str) -> V6 {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn network() -> Network {
    let interface = |name: &str, last: u8, addresses: &[&str]| Interface {
        name: name.into(),
        mac: Mac([2, 0, 0, 0, 0, last]),
        mtu: 1500,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        peer_mac: None,
    };
    let route = |to: &str, via: &str, port| Route {
        to: to.parse().unwrap(),
        via: Some(via.parse().unwrap()),
        port,
    };
    let node = ["192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3"];
    Network::new(
        vec![
            interface("wan", 1, &["192.0.2.2/24", "fe80::2/64", "2001:db8::2/64"]),
            interface("pods", 2, &["10.244.0.1/24", "fd00:10:244::1/64"]),
            interface("host", 3, &[]),
        ],
        vec![
            route("0.0.0.0/0", "192.0.2.1", WAN),
            route("::/0", "fe80::1", WAN),
        ],
        node.map(|a| a.parse().unwrap()).to_vec(),
        Some(HOST),
        64,
    )
}

#[test]
fn the_longest_prefix_wins_and_the_rest_goes_to_the_router() {
    let network = network();
    for (to, port, neighbour) in [
        ([10, 244, 0, 9], PODS, [10, 244, 0, 9]),
        ([192, 0, 2, 77], WAN, [192, 0, 2, 77]),
        ([8, 8, 8, 8], WAN, [192, 0, 2, 1]),
    ] {
        assert_eq!(network.route(to), Some((port, neighbour)));
    }
    for (to, port, neighbour) in [
        ("fd00:10:244::9", PODS, "fd00:10:244::9"),
        ("2001:db8::77", WAN, "2001:db8::77"),
        ("2600::1", WAN, "fe80::1"),
    ] {
        assert_eq!(network.route(v6(to)), Some((port, v6(neighbour))));
    }
}

#[test]
fn our_own_addresses_are_the_hosts() {
    let network = network();
    assert_eq!(network.route([10, 244, 0, 1]), Some((HOST, [192, 0, 2, 2])));
    assert_eq!(network.route(v6("fe80::2")), Some((HOST, v6("2001:db8::2"))));
    assert!(network.is_own([192, 0, 2, 3]) && !network.is_own([192, 0, 2, 4]));
    assert!(network.is_own(v6("2001:db8::3")) && !network.is_own(v6("2001:db8::4")));
}

#[test]
fn every_nic_port_has_one_link_local_address_and_nothing_is_routed_to_others() {
    let network = network();
    let found: Vec<_> = network
        .interfaces()
        .iter()
        .map(|i| i.link_local().unwrap())
        .collect();
    let wanted = ["fe80::2", "fe80::ff:fe00:2", "fe80::ff:fe00:3"];
    assert_eq!(found, wanted.map(|a| a.parse::<Ipv6Addr>().unwrap()));
    assert!(wanted.iter().all(|a| network.is_own(v6(a))));
    assert_eq!(network.hop(v6("fe80::77")), Hop::NoRoute);
}

#[test]
fn tp_6_we_send_from_the_ports_address_then_the_nodes_and_from_a_link_local_one_last() {
    let network = network();
    assert_eq!(network.source_address(WAN), Some([192, 0, 2, 2]));
    assert_eq!(network.source_address(WAN), Some(v6("2001:db8::2")));
    assert_eq!(network.source_address(PODS), Some(v6("fd00:10:244::1")));
    assert_eq!(network.source_address(HOST), Some([192, 0, 2, 2]));
    assert_eq!(network.source_address(HOST), Some(v6("2001:db8::2")));
    let lone = Interface {
        addresses: vec![],
        ..network.interfaces()[1].clone()
    };
    let lone = Network::new(vec![lone], vec![], vec![], None, 64);
    assert_eq!(lone.source_address(NicPortIndex(0)), Some(v6("fe80::ff:fe00:2")));
    assert_eq!(lone.source_address::<V4>(NicPortIndex(0)), None);
}

fn is_unknown_until_it_has_answered<A: Address>(address: A) {
    let network = network();
    let unknown = Hop::Unknown(PODS, address.into());
    assert_eq!(network.hop(address), unknown);
    let index = network.next_hops().insert(PODS, address).unwrap();
    assert_eq!(network.hop(address), unknown);
    network
        .next_hops()
        .set(index, Reachability::Reachable(Mac([2; 6])));
    assert_eq!(network.hop(address), Hop::Neighbour(index));
    network.next_hops().set(index, Reachability::Unreachable);
    assert_eq!(network.hop(address), Hop::Unreachable);
}

#[test]
fn a_neighbour_is_unknown_until_it_has_answered() {
    is_unknown_until_it_has_answered([10, 244, 0, 9]);
    is_unknown_until_it_has_answered(v6("fd00:10:244::9"));
}

fn a_router_is_found_as_long_as_it_answers<A: Address>(destination: A, router: A) {
    let network = network();
    let unknown = Hop::Unknown(WAN, router.into());
    assert_eq!(network.hop(destination), unknown);
    let index = network.next_hops().insert(WAN, router).unwrap();
    let reachable = Reachability::Reachable(Mac([2; 6]));
    network.next_hops().set(index, reachable);
    // Looked for, then remembered by the route: though nobody has sent to it.
    assert_eq!(
        [(); 2].map(|()| network.hop(destination)),
        [Hop::Router(index); 2]
    );
    assert!(!network.next_hops().take_used(index));
    network.next_hops().set(index, Reachability::Unreachable);
    assert_eq!(network.hop(destination), Hop::Unreachable);
}

#[test]
fn a_router_is_found_whether_or_not_anything_was_sent_to_it() {
    a_router_is_found_as_long_as_it_answers([8, 8, 8, 8], [192, 0, 2, 1]);
    a_router_is_found_as_long_as_it_answers(v6("2600::1"), v6("fe80::1"));
}

#[test]
fn a_packet_from_another_station_than_its_neighbours_is_noticed_on_the_neighbours_port_only() {
    let network = network();
    let (known, other) = (Mac([2; 6]), Mac([4; 6]));
    let hops = network.next_hops();
    for (port, address) in [(PODS, "fd00:10:244::9"), (WAN, "192.0.2.1")] {
        let index = hops.insert(port, address.parse::<IpAddr>().unwrap()).unwrap();
        hops.set(index, Reachability::Reachable(known));
    }
    let pod = v6("fd00:10:244::9");
    assert_eq!(network.moved(PODS, pod, other), Some(pod.into()));
    assert_eq!(network.moved(PODS, pod, known), None);
    assert_eq!(
        network.moved(WAN, pod, other),
        None,
        "asymmetric routes are no sign"
    );
    assert_eq!(
        network.moved(PODS, v6("fd00:10:244::8"), other),
        None,
        "nor is a stranger"
    );
    let router = IpAddr::from([192, 0, 2, 1]);
    assert_eq!(
        network.moved(WAN, [8, 8, 8, 8], other),
        Some(router),
        "whoever is behind it"
    );
}

#[test]
fn np_2_node_ports_answer_on_the_primary_address_of_each_family_or_on_those_listed() {
    let network = network();
    assert!(network.is_node_port_address([192, 0, 2, 2], &[]));
    assert!(!network.is_node_port_address([192, 0, 2, 3], &[]));
    assert!(network.is_node_port_address(v6("2001:db8::2"), &[]));
    assert!(!network.is_node_port_address(v6("2001:db8::3"), &[]));
    let listed = ["192.0.2.3/32".parse().unwrap()];
    assert!(network.is_node_port_address([192, 0, 2, 3], &listed));
    assert!(!network.is_node_port_address([192, 0, 2, 2], &listed));
    assert!(
        network.is_node_port_address(v6("2001:db8::3"), &listed),
        "the other family is at all"
    );
    let all = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    assert!(network.is_node_port_address([10, 244, 0, 1], &all));
    assert!(!network.is_node_port_address([10, 244, 0, 7], &all));
}

#[test]
fn np_3_node_ports_answer_on_no_loopback_and_no_link_local_address() {
    let node = ["127.0.0.1", "::1", "fe80::2"].map(|a| a.parse().unwrap());
    let network = Network::new(vec![], vec![], node.to_vec(), None, 64);
    let all = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    assert!(!network.is_node_port_address([127, 0, 0, 1], &all));
    assert!(!network.is_node_port_address(v6("::1"), &all));
    assert!(!network.is_node_port_address(v6("fe80::2"), &all));
}
