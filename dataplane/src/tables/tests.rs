//! What the tables promise, one promise at a time.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::*;
use crate::channel::record::*;

mod families;
mod oracle;
mod refusals;

fn service_port(index: u32, algorithm: Algorithm) -> Record {
    Record::ServicePort(ServicePortRecord {
        index: ServicePortIndex(index),
        namespace: "default".into(),
        name: format!("service-{index}"),
        port_name: String::new(),
        protocol: Protocol::TCP,
        algorithm,
        affinity_seconds: 0,
        external_local: false,
        internal_local: false,
    })
}

fn frontend(service_port: u32, address: &str, port: u16) -> Record {
    Record::Frontend(FrontendRecord {
        address: address.parse().unwrap(),
        protocol: Protocol::TCP,
        port,
        kind: FrontendKind::ClusterIp,
        service_port: ServicePortIndex(service_port),
    })
}

fn backend(service_port: u32, address: IpAddr, port: u16) -> BackendRecord {
    BackendRecord {
        service_port: ServicePortIndex(service_port),
        address,
        port,
        in_cluster_set: true,
        in_local_set: false,
        usable: true,
        serving: true,
        local: false,
    }
}

fn pod(service_port: u32, number: u32, port: u16) -> Record {
    Record::Backend(backend(
        service_port,
        Ipv4Addr::from_bits(0x0a01_0000 + number).into(),
        port,
    ))
}

fn source_range(service_port: u32, network: &str) -> Record {
    Record::SourceRange(SourceRangeRecord {
        service_port: ServicePortIndex(service_port),
        network: network.parse().unwrap(),
    })
}

fn builder_of(records: &[Record]) -> TablesBuilder {
    let mut builder = TablesBuilder::new(TableLimits::default());
    builder.apply(Generation(1), &[], records).unwrap();
    builder
}

/// One Service with so many endpoints 10.1.0.1, 10.1.0.2, …
fn one_service(algorithm: Algorithm, endpoints: u32) -> TablesBuilder {
    let mut records = vec![service_port(0, algorithm), frontend(0, "10.96.0.1", 80)];
    records.extend((1..=endpoints).map(|number| pod(0, number, 8080)));
    builder_of(&records)
}

fn many_services(count: u32, endpoints: u32) -> TablesBuilder {
    let mut records = Vec::new();
    for index in 0..count {
        records.push(service_port(index, Algorithm::Maglev));
        records.push(frontend(
            index,
            &Ipv4Addr::from_bits(0x0a60_0000 + index).to_string(),
            80,
        ));
        records.extend((0..endpoints).map(|endpoint| pod(index, 1 + index * endpoints + endpoint, 8080)));
    }
    builder_of(&records)
}

const SP: ServicePortIndex = ServicePortIndex(0);

/// The slot of `pod(0, number, 8080)`.
fn slot_of(builder: &TablesBuilder, number: u8) -> Option<BackendIndex> {
    let found = builder
        .tables()
        .find_backend(SP, [10, 1, 0, number], Port::new(8080));
    found.map(|(slot, _)| slot)
}

fn cluster<A: Keyed>(tables: &Tables) -> EndpointSet {
    tables.service_port(SP).unwrap().endpoints::<A>().cluster.clone()
}

#[test]
fn tables_may_be_read_by_every_worker() {
    fn shared<T: Send + Sync>() {}
    shared::<Tables>();
}

#[test]
fn an_endpoint_change_leaves_all_other_shards_shared() {
    const SERVICES: usize = 10_000;
    let mut builder = many_services(SERVICES as u32, 25);
    assert_eq!(builder.used().backends, 250_000);
    let old = Arc::clone(builder.tables());
    let gone = pod(7, 1 + 7 * 25, 8080).key();
    let new = builder
        .apply(Generation(2), &[gone], &[pod(7, 400_000, 8080)])
        .unwrap();
    assert_eq!(new.v4.frontends.unshared(&old.v4.frontends), 0);
    assert_eq!(new.service_ports.unshared(&old.service_ports), 1);
    assert_eq!(new.v4.backends.unshared(&old.v4.backends), 1);
    assert_eq!(new.states.unshared(&old.states), 1);
    assert!(Arc::ptr_eq(&new.v4.networks, &old.v4.networks));
    let changed = |index| !Arc::ptr_eq(row(&old, index), row(&new, index));
    assert_eq!(
        (0..SERVICES).filter(|&index| changed(index)).collect::<Vec<_>>(),
        [7]
    );

    fn row(tables: &Tables, index: usize) -> &Arc<ServicePort> {
        tables.service_ports.get(index).unwrap().as_ref().unwrap()
    }
}

#[test]
fn a_frontend_change_rebuilds_its_own_shards_and_nothing_else() {
    let mut builder = many_services(500, 1);
    let old = Arc::clone(builder.tables());
    let new = builder
        .apply(Generation(2), &[], &[frontend(3, "192.0.2.1", 443)])
        .unwrap();
    // One for the frontend, one for its address.
    assert!((1..=2).contains(&new.v4.frontends.unshared(&old.v4.frontends)));
    assert_eq!(new.service_ports.unshared(&old.service_ports), 0);
    assert_eq!(new.states.unshared(&old.states), 0);
}

#[test]
fn a_removed_backend_is_gone_and_the_same_endpoint_back_is_another() {
    let mut builder = one_service(Algorithm::Random, 2);
    let find = |builder: &TablesBuilder| slot_of(builder, 1);
    let slot = find(&builder).unwrap();
    let old = *builder.tables().backend::<V4>(slot).unwrap();
    assert_eq!(
        builder.tables().backend_state(slot, old.generation),
        BackendState::Serving
    );

    let without = builder
        .apply(Generation(2), &[pod(0, 1, 8080).key()], &[])
        .unwrap();
    assert_eq!(without.backend_state(slot, old.generation), BackendState::Gone);
    assert_eq!((without.backend::<V4>(slot), find(&builder)), (None, None));

    let back = builder.apply(Generation(3), &[], &[pod(0, 1, 8080)]).unwrap();
    let slot_now = find(&builder).unwrap();
    let now = *back.backend::<V4>(slot_now).unwrap();
    assert!(slot_now != slot || now.generation != old.generation);
    assert_eq!(back.backend_state(slot, old.generation), BackendState::Gone);
    assert_eq!(
        back.backend_state(slot_now, now.generation),
        BackendState::Serving
    );
}

#[test]
fn a_backend_deleted_and_put_in_one_transaction_is_another() {
    let mut builder = one_service(Algorithm::Maglev, 2);
    let slot = slot_of(&builder, 1).unwrap();
    let old = *builder.tables().backend::<V4>(slot).unwrap();
    let tables = builder
        .apply(Generation(2), &[pod(0, 1, 8080).key()], &[pod(0, 1, 8080)])
        .unwrap();
    assert_eq!(tables.backend_state(slot, old.generation), BackendState::Gone);
    assert_eq!(cluster::<V4>(&tables).backends().len(), 2);
}

#[test]
fn a_backend_that_is_put_again_keeps_its_flows() {
    // CT-5: leaving all sets, or no longer serving, removes nobody.
    let mut builder = one_service(Algorithm::Maglev, 2);
    let slot = slot_of(&builder, 1).unwrap();
    let generation = builder.tables().backend::<V4>(slot).unwrap().generation;
    let mut record = backend(0, [10, 1, 0, 1].into(), 8080);
    (record.in_cluster_set, record.usable) = (false, false);
    let tables = builder
        .apply(Generation(2), &[], &[Record::Backend(record.clone())])
        .unwrap();
    assert_eq!(tables.backend_state(slot, generation), BackendState::Serving);
    assert!(!cluster::<V4>(&tables).backends().contains(&slot));
    record.serving = false;
    let tables = builder
        .apply(Generation(3), &[], &[Record::Backend(record)])
        .unwrap();
    assert_eq!(tables.backend_state(slot, generation), BackendState::NotServing);
}

#[test]
fn a_zeroed_flow_entry_matches_no_backend() {
    let builder = one_service(Algorithm::Random, 1);
    assert_eq!(
        builder.tables().backend_state(BackendIndex(0), 0),
        BackendState::Gone
    );
    assert_eq!(
        builder.tables().backend_state(BackendIndex(u32::MAX), 1),
        BackendState::Gone
    );
}

#[test]
fn a_set_that_did_not_change_keeps_its_maglev_table() {
    let mut builder = one_service(Algorithm::Maglev, 10);
    let old = Arc::clone(builder.tables());
    let mut record = backend(0, [10, 1, 0, 1].into(), 8080);
    record.serving = false;
    let new = builder
        .apply(Generation(2), &[], &[Record::Backend(record)])
        .unwrap();
    let table = |tables: &Tables| cluster::<V4>(tables).maglev().as_ptr();
    assert_eq!(table(&old), table(&new));
}

#[test]
fn another_endpoint_in_the_same_slot_gets_its_own_maglev_table() {
    let mut builder = one_service(Algorithm::Maglev, 2);
    // 10.1.0.3 takes the slot of 10.1.0.2 and its place in the order: only the address tells them apart.
    let tables = builder
        .apply(Generation(2), &[pod(0, 2, 8080).key()], &[pod(0, 3, 8080)])
        .unwrap();
    let records = [
        service_port(0, Algorithm::Maglev),
        pod(0, 1, 8080),
        pod(0, 3, 8080),
    ];
    let afresh = builder_of(&records);
    let set = |tables: &Tables| cluster::<V4>(tables);
    assert_eq!(set(&tables).maglev(), set(afresh.tables()).maglev());
}

#[test]
fn maglev_picks_the_same_endpoint_whatever_slots_the_endpoints_have() {
    let one = one_service(Algorithm::Maglev, 30);
    let mut other = TablesBuilder::new(TableLimits::default());
    other
        .apply(Generation(5), &[], &[service_port(0, Algorithm::Maglev)])
        .unwrap();
    for number in (1..=30).rev() {
        let generation = Generation(100 - u64::from(number));
        other.apply(generation, &[], &[pod(0, number, 8080)]).unwrap();
    }
    let limits = TableLimits::default();
    let (mut a, mut b) = (Picker::new(1, &limits), Picker::new(2, &limits));
    let mut slots_differ = false;
    for port in 1..2_000 {
        let client = client_hash([192, 0, 2, 1], Port::new(port));
        let of = |builder: &TablesBuilder, pick: &mut Picker| {
            let slot = builder
                .tables()
                .choose::<V4>(SP, EndpointSetKind::Cluster, client, pick)
                .unwrap();
            (slot, builder.tables().backend::<V4>(slot).unwrap().address)
        };
        let (left, right) = (of(&one, &mut a), of(&other, &mut b));
        assert_eq!(left.1, right.1);
        slots_differ |= left.0 != right.0;
    }
    assert!(
        slots_differ,
        "the two builders must not number slots alike for this to prove anything"
    );
}

/// How often each of the endpoints is chosen for so many clients.
fn shares(algorithm: Algorithm, endpoints: u32, flows: u32) -> Vec<u32> {
    let builder = one_service(algorithm, endpoints);
    let mut pick = Picker::new(7, &TableLimits::default());
    let mut shares = vec![0; endpoints as usize];
    for flow in 0..flows {
        let client = client_hash(
            (0xc000_0200 + (flow >> 8)).to_be_bytes(),
            Port::new(1_024 + (flow & 255) as u16),
        );
        let slot = builder
            .tables()
            .choose::<V4>(SP, EndpointSetKind::Cluster, client, &mut pick)
            .unwrap();
        let generation = builder.tables().backend::<V4>(slot).unwrap().generation;
        pick.opened(slot, generation);
        shares[slot.get()] += 1;
    }
    shares
}

#[test]
fn random_and_maglev_share_flows_within_five_sigma() {
    // VD-8; the variance is that of the binomial distribution, for Maglev over clients.
    for algorithm in [Algorithm::Random, Algorithm::Maglev] {
        let (endpoints, flows) = (8, 40_000);
        let p = 1.0 / f64::from(endpoints);
        let (mean, sigma) = (f64::from(flows) * p, (f64::from(flows) * p * (1.0 - p)).sqrt());
        for share in shares(algorithm, endpoints, flows) {
            // A Maglev slot more or less in a thousand shifts the mean by under 1 %.
            assert!(
                (f64::from(share) - mean).abs() < 5.0 * sigma + 0.01 * mean,
                "{algorithm:?}: {share}"
            );
        }
    }
}

#[test]
fn round_robin_and_least_connections_share_flows_equally() {
    assert_eq!(shares(Algorithm::RoundRobin, 7, 700), [100; 7]);
    assert_eq!(shares(Algorithm::LeastConnections, 7, 700), [100; 7]);
}

#[test]
fn least_connections_prefers_whoever_lost_flows_and_forgets_former_occupants() {
    let mut builder = one_service(Algorithm::LeastConnections, 3);
    let mut pick = Picker::new(1, &TableLimits::default());
    let slots = [0, 1, 2].map(BackendIndex);
    slots
        .iter()
        .for_each(|&slot| (0..5).for_each(|_| pick.opened(slot, 1)));
    pick.closed(slots[1], 1);
    // Another generation's flow is not counted here.
    pick.closed(slots[2], 9);
    pick.closed(slots[2], 9);
    let choose = |builder: &TablesBuilder, pick: &mut Picker| {
        builder
            .tables()
            .choose::<V4>(SP, EndpointSetKind::Cluster, 0, pick)
            .unwrap()
    };
    assert!((0..50).all(|_| choose(&builder, &mut pick) == slots[1]));
    // 10.1.0.3 is replaced: its successor in the slot has no flows.
    builder
        .apply(Generation(2), &[pod(0, 3, 8080).key()], &[pod(0, 4, 8080)])
        .unwrap();
    let successor = slot_of(&builder, 4).unwrap();
    assert_eq!(successor, slots[2]);
    assert!((0..50).all(|_| choose(&builder, &mut pick) == successor));
}

#[test]
fn an_address_is_what_its_frontends_and_ranges_say() {
    let external = |kind, address: &str| {
        let Record::Frontend(record) = frontend(0, address, 80) else {
            unreachable!()
        };
        Record::Frontend(FrontendRecord { kind, ..record })
    };
    let range = |kind, network: &str| {
        Record::Network(NetworkRecord {
            kind,
            network: network.parse().unwrap(),
        })
    };
    let mut builder = builder_of(&[
        service_port(0, Algorithm::Random),
        frontend(0, "10.96.0.1", 80),
        frontend(0, "10.96.0.1", 443),
        external(FrontendKind::ExternalIp, "192.0.2.1"),
        external(FrontendKind::LoadBalancerIp, "10.96.255.1"),
        range(NetworkKind::ServiceRange, "10.96.0.0/16"),
        range(NetworkKind::PodRange, "10.1.0.0/16"),
        range(NetworkKind::NodePortAddresses, "172.16.0.0/12"),
    ]);
    let tables = builder.tables();
    assert_eq!(tables.address([10, 96, 0, 1]), AddressKind::ClusterIp);
    assert_eq!(tables.address([192, 0, 2, 1]), AddressKind::External);
    assert_eq!(tables.address([10, 96, 255, 1]), AddressKind::External);
    assert_eq!(tables.address([10, 96, 0, 2]), AddressKind::Unallocated);
    assert_eq!(tables.address([10, 97, 0, 1]), AddressKind::Other);
    assert_eq!(tables.address([0, 0, 0, 0]), AddressKind::Other);
    assert!(tables.is_pod([10, 1, 2, 3]) && !tables.is_pod([10, 2, 0, 1]) && tables.has_pod_ranges::<V4>());
    assert_eq!(tables.node_port_addresses().len(), 1);
    // The last frontend of an address takes the address with it.
    let tables = builder
        .apply(Generation(2), &[frontend(0, "10.96.0.1", 80).key()], &[])
        .unwrap();
    assert_eq!(tables.address([10, 96, 0, 1]), AddressKind::ClusterIp);
    let tables = builder
        .apply(Generation(3), &[frontend(0, "10.96.0.1", 443).key()], &[])
        .unwrap();
    assert_eq!(tables.address([10, 96, 0, 1]), AddressKind::Unallocated);
}

#[test]
fn ten_thousand_services_of_ten_endpoints_fit_into_64_mib() {
    let builder = many_services(10_000, 10);
    assert_eq!(builder.used().backends, 100_000);
    let bytes = builder.tables().bytes();
    assert!(bytes <= 64 << 20, "{bytes} bytes");
    println!("10,000 services of 10 endpoints: {} KiB", bytes >> 10);
}
