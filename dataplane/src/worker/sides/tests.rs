//! What a side takes over from the process before.

use super::*;
use crate::addr::{FlowKey, Mac, Protocol};
use crate::conntrack::ports::{Rest, SourcePorts};
use crate::conntrack::{Admission, HashKey, NewFlow, State, Timeouts};
use crate::index::{BackendIndex, NextHopIndex, ServicePortIndex};
use crate::nat;
use crate::network::Interface;

fn config() -> SideConfig {
    SideConfig {
        flows: FlowConfig {
            capacity: 64,
            timeouts: Timeouts::default(),
            admission: Admission::default(),
            hash_key: HashKey::from([1; 4]),
        },
        snat_ports: PortPoolConfig {
            ports: SourcePorts::all(vec![1024..=65_535]),
            destinations: 8,
            blocks: 8,
            rest: Rest::default(),
            hash_key: HashKey::from([2; 4]),
        },
        fragments: FragmentConfig::default(),
    }
}

fn network(address: &str) -> Network {
    let interface = Interface {
        name: "pods".into(),
        mac: Mac([2; 6]),
        mtu: 1500,
        addresses: vec![address.parse().unwrap()],
        peer_mac: None,
    };
    Network::new(vec![interface], vec![], vec![], None, 8)
}

/// Opens a flow as `open` does: to the endpoint 10.244.0.11:8080, translated to `source` where there is one.
fn open(side: &mut Side<V4>, client: &str, frontend: &str, source: Option<&str>) {
    let original = FlowKey::new(Protocol::TCP, client.parse().unwrap(), frontend.parse().unwrap());
    let mut forwarded = FlowKey::new(
        Protocol::TCP,
        client.parse().unwrap(),
        "10.244.0.11:8080".parse().unwrap(),
    );
    if let Some(source) = source {
        forwarded.src = source.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let destination = Destination::of_reply(&forwarded.reversed());
        forwarded.src_port = side.tracked.snat_ports.take(destination, 7).unwrap();
    }
    let (l3_delta, l4_delta) = nat::deltas(&original, &forwarded);
    let new = NewFlow {
        original,
        reply: forwarded.reversed(),
        state: State::SynSent,
        backend: BackendIndex(0),
        backend_generation: 1,
        service_port: ServicePortIndex(0),
        next_hops: [NextHopIndex::UNKNOWN; 2],
        l3_delta,
        l4_delta,
        flags: source.map_or_else(FlowFlags::default, |_| FlowFlags::SNAT),
    };
    side.tracked.flows.open(&new, Tick(1), &mut |_| ()).unwrap();
}

/// What is kept and discarded of a flow with SNAT to 10.244.0.1 and one without, by a process with this network.
fn adopted_by(network: &Network) -> (Sides, Adopted) {
    let folder = tempfile::tempdir().unwrap();
    let files = FlowFiles {
        folder: folder.path(),
        worker: WorkerIndex(0),
        workers: 1,
        boot: BootId::from([7; 36]),
    };
    let before = self::network("10.244.0.1/24");
    let (mut sides, _) = Sides::adopt(&config(), &files, &before, Tick(1)).unwrap();
    open(
        &mut sides.v4,
        "198.51.100.10:40000",
        "10.96.0.10:80",
        Some("10.244.0.1"),
    );
    open(&mut sides.v4, "198.51.100.11:40000", "203.0.113.10:80", None);
    drop(sides);
    let (sides, [adopted, _]) = Sides::adopt(&config(), &files, network, Tick(2)).unwrap();
    (sides, adopted)
}

#[test]
fn a_translated_flow_is_taken_over_only_with_an_address_of_ours() {
    let network = network("10.244.0.1/24");
    let (sides, adopted) = adopted_by(&network);
    assert_eq!((adopted.kept, adopted.discarded), (2, 0));
    assert_eq!(sides.v4.tracked.snat_ports.taken(), 1);

    let network = self::network("10.244.0.2/24");
    let (sides, adopted) = adopted_by(&network);
    assert_eq!((adopted.kept, adopted.discarded), (1, 1));
    assert_eq!(sides.v4.tracked.snat_ports.taken(), 0, "its port is free, too");
}

#[test]
fn clients_speak_to_the_frontends_of_their_flows_and_not_to_us() {
    let network = network("10.96.0.10/24");
    let (sides, _) = adopted_by(&network);
    let addressed: Vec<IpAddr> = sides.addressed(&network).collect();
    assert_eq!(addressed, ["203.0.113.10".parse::<IpAddr>().unwrap()]);
}
