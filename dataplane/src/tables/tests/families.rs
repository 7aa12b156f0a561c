//! IPv4 and IPv6 side by side: neither sees the other, and what both promise.

use super::*;
use std::net::Ipv6Addr;

fn v6(text: &str) -> V6 {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn backend_at(service_port: u32, address: &str) -> Record {
    Record::Backend(backend(service_port, address.parse().unwrap(), 8080))
}

fn node_port(service_port: u32, family: &str, port: u16) -> Record {
    let Record::Frontend(record) = frontend(service_port, family, port) else {
        unreachable!()
    };
    let kind = FrontendKind::NodePort;
    Record::Frontend(FrontendRecord { kind, ..record })
}

const TCP: Protocol = Protocol::TCP;

#[test]
fn a_service_is_handled_per_family_svc_2() {
    let builder = builder_of(&[
        service_port(0, Algorithm::Maglev),
        frontend(0, "10.96.0.1", 80),
        frontend(0, "fd00:96::1", 80),
        node_port(0, "::", 30_080),
        backend_at(0, "fd00:1::2"),
        backend_at(0, "fd00:1::1"),
    ]);
    let tables = builder.tables();
    let port = Port::new(80);
    assert!(tables.frontend([10, 96, 0, 1], TCP, port).is_some());
    assert!(tables.frontend(v6("fd00:96::1"), TCP, port).is_some());
    assert_eq!(tables.frontend(v6("fd00:96::2"), TCP, port), None);
    // No endpoint in one family is no endpoint (VD-1), whatever the other has.
    let row = tables.service_port(SP).unwrap();
    assert!(!row.endpoints::<V4>().has_any && row.endpoints::<V6>().has_any);
    assert!(row.endpoints::<V4>().cluster.is_empty());
    let addresses: Vec<_> = cluster::<V6>(tables)
        .backends()
        .iter()
        .map(|&slot| tables.backend::<V6>(slot).unwrap().address)
        .collect();
    assert_eq!(addresses, [v6("fd00:1::1"), v6("fd00:1::2")]);
    // A node port is on the addresses of its own family only.
    let port = Port::new(30_080);
    assert_eq!(
        tables.node_port::<V6>(TCP, port).map(|f| f.kind),
        Some(FrontendKind::NodePort)
    );
    assert_eq!(tables.node_port::<V4>(TCP, port), None);
    let mut pick = Picker::new(1, &TableLimits::default());
    let mut choose = |client| {
        let v4 = tables.choose::<V4>(SP, EndpointSetKind::Cluster, client, &mut pick);
        let v6 = tables.choose::<V6>(SP, EndpointSetKind::Cluster, client, &mut pick);
        (v4, v6.is_some())
    };
    assert_eq!(choose(client_hash(v6("2001:db8::1"), port)), (None, true));
}

#[test]
fn no_question_is_answered_by_the_row_of_another() {
    let builder = builder_of(&[
        service_port(0, Algorithm::Random),
        frontend(0, "10.96.0.1", 80),
        frontend(0, "fd00:96::1", 80),
        node_port(0, "0.0.0.0", 30_080),
        node_port(0, "::", 30_080),
    ]);
    let tables = builder.tables();
    // A packet to the unspecified address is to nobody's node port.
    assert_eq!(tables.frontend([0; 4], TCP, Port::new(30_080)), None);
    assert_eq!(tables.frontend([0; 16], TCP, Port::new(30_080)), None);
    // Protocol 0 exists (RFC 8200 §4.3), and has no ports: not the address's own row, nor a free slot.
    assert_eq!(tables.frontend([10, 96, 0, 1], Protocol(0), Port::new(0)), None);
    assert_eq!(tables.frontend(v6("fd00:96::1"), Protocol(0), Port::new(0)), None);
    for word in 0..5_000u32 {
        let address = word.to_be_bytes();
        assert_eq!(tables.frontend(address, Protocol(0), Port::new(0)), None);
        assert_eq!(tables.address(address), AddressKind::Other);
    }
}

#[test]
fn a_slot_passes_from_one_family_to_the_other_with_another_generation() {
    let mut builder = builder_of(&[service_port(0, Algorithm::Random), backend_at(0, "10.1.0.1")]);
    let (slot, generation) = builder
        .tables()
        .find_backend(SP, [10, 1, 0, 1], Port::new(8080))
        .unwrap();
    let gone = backend_at(0, "10.1.0.1").key();
    let tables = builder
        .apply(Generation(2), &[gone], &[backend_at(0, "fd00:1::1")])
        .unwrap();
    let found = tables.find_backend(SP, v6("fd00:1::1"), Port::new(8080)).unwrap();
    assert_eq!(
        found.0, slot,
        "the two must share the slot for this to prove anything"
    );
    assert_eq!(tables.backend_state(slot, generation), BackendState::Gone);
    assert_eq!(tables.backend_state(slot, found.1), BackendState::Serving);
    assert!(tables.backend::<V4>(slot).is_none() && tables.backend::<V6>(slot).is_some());
}

#[test]
fn every_backend_is_found_by_address_and_port_also_those_in_no_set_ct_12() {
    let mut records = vec![
        service_port(0, Algorithm::Maglev),
        service_port(1, Algorithm::Random),
    ];
    let ready = backend(0, [10, 1, 0, 2].into(), 8080);
    let in_no_set = BackendRecord {
        in_cluster_set: false,
        usable: false,
        address: [10, 1, 0, 1].into(),
        ..ready.clone()
    };
    records.extend([ready, in_no_set].map(Record::Backend));
    records.push(backend_at(0, "fd00:1::1"));
    let builder = builder_of(&records);
    let tables = builder.tables();
    let find = |service, address, port| {
        tables.find_backend::<V4>(ServicePortIndex(service), address, Port::new(port))
    };
    for host in [1, 2] {
        let (slot, generation) = find(0, [10, 1, 0, host], 8080).unwrap();
        let backend = tables.backend::<V4>(slot).unwrap();
        assert_eq!(
            (backend.address, backend.generation),
            ([10, 1, 0, host], generation)
        );
    }
    assert!(
        tables
            .find_backend(SP, v6("fd00:1::1"), Port::new(8080))
            .is_some()
    );
    for (service, address, port) in [
        (0, [10, 1, 0, 1], 8081),
        (0, [10, 1, 0, 3], 8080),
        (0, [0, 0, 0, 0], 8080),
        (1, [10, 1, 0, 1], 8080),
        (9, [10, 1, 0, 1], 8080),
    ] {
        assert_eq!(find(service, address, port), None, "{service} {address:?} {port}");
    }
}

#[test]
fn an_address_whose_last_frontend_is_gone_is_remembered_until_newer_ones_push_it_out() {
    let limits = TableLimits {
        former_addresses: 2,
        ..TableLimits::default()
    };
    let mut builder = TablesBuilder::new(limits);
    let addresses = ["192.0.2.1", "2001:db8::1", "192.0.2.3", "10.96.0.4"];
    let mut records = vec![service_port(0, Algorithm::Random)];
    records.extend(addresses.map(|address| frontend(0, address, 80)));
    records.push(Record::Network(NetworkRecord {
        kind: NetworkKind::ServiceRange,
        network: "10.96.0.0/16".parse().unwrap(),
    }));
    builder.apply(Generation(1), &[], &records).unwrap();
    let kinds = |tables: &Tables| {
        [
            tables.address([192, 0, 2, 1]),
            tables.address(v6("2001:db8::1")),
            tables.address([192, 0, 2, 3]),
            tables.address([10, 96, 0, 4]),
        ]
    };
    use AddressKind::{ClusterIp, Former, Other, Unallocated};
    let mut generation = 1;
    let mut step = |delete: Option<&str>, put: Option<&str>| {
        generation += 1;
        let key = delete.map(|address| frontend(0, address, 80).key());
        let put = put.map(|address| frontend(0, address, 80));
        let tables = builder.apply(Generation(generation), key.as_slice(), put.as_slice());
        kinds(&tables.unwrap())
    };
    assert_eq!(step(None, None), [ClusterIp; 4]);
    // One that comes back in the same transaction never left.
    assert_eq!(step(Some("192.0.2.1"), Some("192.0.2.1")), [ClusterIp; 4]);
    assert_eq!(
        step(Some("192.0.2.1"), None),
        [Former, ClusterIp, ClusterIp, ClusterIp]
    );
    assert_eq!(
        step(Some("2001:db8::1"), None),
        [Former, Former, ClusterIp, ClusterIp]
    );
    // Back in use, it is forgotten as former: only then is there room for the third.
    assert_eq!(
        step(None, Some("192.0.2.1")),
        [ClusterIp, Former, ClusterIp, ClusterIp]
    );
    assert_eq!(
        step(Some("192.0.2.3"), None),
        [ClusterIp, Former, Former, ClusterIp]
    );
    // In a Service range it is what every address there is (VD-5); the oldest is forgotten.
    assert_eq!(
        step(Some("10.96.0.4"), None),
        [ClusterIp, Other, Former, Unallocated]
    );
    assert_eq!(step(Some("192.0.2.1"), None), [Former, Other, Other, Unallocated]);
}

#[test]
fn source_ranges_restrict_their_own_family_and_service_port_only_lbr_4() {
    let mut builder = builder_of(&[
        service_port(0, Algorithm::Random),
        service_port(1, Algorithm::Random),
        source_range(0, "198.51.100.0/24"),
        source_range(0, "203.0.113.7/32"),
    ]);
    let allowed = |tables: &Tables, index, src: V4| {
        tables
            .service_port(ServicePortIndex(index))
            .unwrap()
            .source_allowed(src)
    };
    let tables = Arc::clone(builder.tables());
    for (src, expected) in [
        ([198, 51, 100, 255], true),
        ([203, 0, 113, 7], true),
        ([203, 0, 113, 8], false),
        ([10, 244, 0, 1], false),
    ] {
        assert_eq!(allowed(&tables, 0, src), expected, "{src:?}");
        assert!(allowed(&tables, 1, src));
    }
    let row = tables.service_port(SP).unwrap();
    assert!(row.source_allowed(v6("2001:db8::1")));
    let keys = ["198.51.100.0/24", "203.0.113.7/32"].map(|network| source_range(0, network).key());
    let tables = builder.apply(Generation(2), &keys, &[]).unwrap();
    assert!(allowed(&tables, 0, [10, 244, 0, 1]));
}
