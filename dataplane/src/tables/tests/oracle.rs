//! The tables against a model that is slow and obvious: a map of records, searched from end to end for every answer.
//! Transactions are random, from so small a world that most of them meet rows of earlier ones, and many are refused.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

type Model = BTreeMap<Key, Record>;

const SERVICE_PORTS: u32 = 4;
const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];
const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Random,
    Algorithm::Maglev,
    Algorithm::RoundRobin,
    Algorithm::LeastConnections,
];
const KINDS: [FrontendKind; 3] = [
    FrontendKind::ClusterIp,
    FrontendKind::ExternalIp,
    FrontendKind::LoadBalancerIp,
];

/// 0.0.0.0, 10.96.0.1 to 4; ::, fd00:96::1 to 4.
fn service_address(host: u8) -> IpAddr {
    match (host / 5, host % 5) {
        (0, 0) => IpAddr::from([0; 4]),
        (0, host) => IpAddr::from([10, 96, 0, host]),
        (_, 0) => IpAddr::from([0; 16]),
        (_, host) => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, host.into()]),
    }
}

/// 10.1.0.1 to 4, fd00:1::5 to 8.
fn pod_address(host: u8) -> IpAddr {
    match host {
        0..5 => IpAddr::from([10, 1, 0, host]),
        _ => IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, host.into()]),
    }
}

fn record() -> impl Strategy<Value = Record> {
    let index = || (0..SERVICE_PORTS).prop_map(ServicePortIndex);
    let protocol = || prop::sample::select(&PROTOCOLS[..]);
    let service_ports = (
        index(),
        protocol(),
        prop::sample::select(&ALGORITHMS[..]),
        any::<[bool; 2]>(),
    )
        .prop_map(|(index, protocol, algorithm, [internal_local, external_local])| {
            let Record::ServicePort(record) = service_port(index.0, algorithm) else {
                unreachable!()
            };
            Record::ServicePort(ServicePortRecord {
                protocol,
                internal_local,
                external_local,
                ..record
            })
        });
    let frontends = (
        index(),
        protocol(),
        0..10u8,
        1..4u16,
        prop::sample::select(&KINDS[..]),
    )
        .prop_map(|(service_port, protocol, host, port, kind)| {
            let kind = if host % 5 > 0 {
                kind
            } else {
                FrontendKind::NodePort
            };
            let address = service_address(host);
            Record::Frontend(FrontendRecord {
                address,
                protocol,
                port,
                kind,
                service_port,
            })
        });
    let backends = (index(), 1..9u8, 1..3u16, any::<[bool; 5]>()).prop_map(|(index, host, port, flags)| {
        let address = pod_address(host);
        let [in_cluster_set, in_local_set, usable, serving, local] = flags;
        let record = backend(index.0, address, port);
        Record::Backend(BackendRecord {
            in_cluster_set,
            in_local_set,
            usable,
            serving,
            local,
            ..record
        })
    });
    let networks = (
        0..2usize,
        prop::sample::select(vec![
            "10.96.0.0/30",
            "10.1.0.0/31",
            "10.0.0.0/8",
            "fd00:96::/126",
            "fd00:1::4/127",
            "::/0",
        ]),
    )
        .prop_map(|(kind, network)| {
            let kind = [NetworkKind::PodRange, NetworkKind::ServiceRange][kind];
            Record::Network(NetworkRecord {
                kind,
                network: network.parse().unwrap(),
            })
        });
    let source_ranges = (
        index(),
        prop::sample::select(vec!["10.1.0.0/31", "10.1.0.3/32", "fd00:1::4/127"]),
    )
        .prop_map(|(service_port, network)| {
            let network = network.parse().unwrap();
            Record::SourceRange(SourceRangeRecord {
                service_port,
                network,
            })
        });
    let settings = any::<[bool; 2]>().prop_map(|[masquerade_all, ping_replies]| {
        Record::Settings(SettingsRecord {
            masquerade_all,
            ping_replies,
            ..SettingsRecord::default()
        })
    });
    prop_oneof![3 => service_ports, 4 => frontends, 8 => backends, 2 => source_ranges, 1 => networks, 1 => settings]
}

/// Deletes by number of a present row, and puts.
type Transaction = (Vec<prop::sample::Index>, Vec<Record>);

fn transactions() -> impl Strategy<Value = Vec<Transaction>> {
    let deletes = prop::collection::vec(any::<prop::sample::Index>(), 0..3);
    prop::collection::vec((deletes, prop::collection::vec(record(), 0..6)), 1..25)
}

/// The model after the transaction, or `None` if a reference would dangle.
fn model_after(model: &Model, deletes: &[Key], puts: &[Record]) -> Option<Model> {
    let mut after = model.clone();
    deletes.iter().for_each(|key| drop(after.remove(key)));
    after.extend(puts.iter().map(|record| (record.key(), record.clone())));
    let protocol = |index| match after.get(&Key::ServicePort(index)) {
        Some(Record::ServicePort(record)) => Some(record.protocol),
        _ => None,
    };
    let sound = after.values().all(|record| match record {
        Record::Frontend(record) => protocol(record.service_port) == Some(record.protocol),
        Record::Backend(record) => protocol(record.service_port).is_some(),
        Record::SourceRange(record) => protocol(record.service_port).is_some(),
        _ => true,
    });
    sound.then_some(after)
}

/// Service ports with endpoints, but none here, by policy; each counts in each of its families (D33).
fn without_local(model: &Model) -> WithoutLocal {
    let mut without = WithoutLocal::default();
    for record in model.values() {
        let Record::ServicePort(row) = record else {
            continue;
        };
        for ipv6 in [false, true] {
            let backends = || {
                model.values().filter_map(|record| match record {
                    Record::Backend(b) if b.service_port == row.index && b.address.is_ipv6() == ipv6 => {
                        Some(b)
                    }
                    _ => None,
                })
            };
            if backends().any(|b| b.usable) && !backends().any(|b| b.in_local_set) {
                without.internal += i32::from(row.internal_local);
                without.external += i32::from(row.external_local);
            }
        }
    }
    without
}

fn frontends(model: &Model) -> impl Iterator<Item = &FrontendRecord> {
    model.values().filter_map(|record| match record {
        Record::Frontend(record) => Some(record),
        _ => None,
    })
}

fn in_range<A: Keyed>(model: &Model, kind: NetworkKind, address: A) -> bool {
    model
        .keys()
        .any(|key| matches!(key, Key::Network(k, net) if *k == kind && net.contains(&address.into())))
}

/// `once`: addresses that have or had a frontend.
fn expect_equal(tables: &Tables, model: &Model, once: &BTreeSet<IpAddr>) {
    expect_equal_addresses::<V4>(tables, model, once);
    expect_equal_addresses::<V6>(tables, model, once);
    let settings = match model.get(&Key::Settings) {
        Some(Record::Settings(settings)) => *settings,
        _ => SettingsRecord::default(),
    };
    assert_eq!(*tables.settings(), settings);
    for index in (0..SERVICE_PORTS + 1).map(ServicePortIndex) {
        let record = match model.get(&Key::ServicePort(index)) {
            Some(Record::ServicePort(record)) => Some(record),
            _ => None,
        };
        assert_eq!(tables.service_port(index).map(|row| &row.record), record);
        expect_equal_endpoints::<V4>(tables, model, index);
        expect_equal_endpoints::<V6>(tables, model, index);
    }
}

fn expect_equal_addresses<A: Keyed>(tables: &Tables, model: &Model, once: &BTreeSet<IpAddr>) {
    for ip in (0..10).map(service_address) {
        let Some(address) = A::of(ip) else { continue };
        let unspecified = address == A::default();
        let kinds: Vec<_> = frontends(model)
            .filter(|f| f.address == ip && !unspecified)
            .map(|f| f.kind)
            .collect();
        let expected = if kinds.contains(&FrontendKind::ClusterIp) {
            AddressKind::ClusterIp
        } else if !kinds.is_empty() {
            AddressKind::External
        } else if in_range(model, NetworkKind::ServiceRange, address) {
            AddressKind::Unallocated
        } else if once.contains(&ip) && !unspecified {
            AddressKind::Former
        } else {
            AddressKind::Other
        };
        assert_eq!(tables.address(address), expected, "{address:?}");
        for (protocol, port) in PROTOCOLS
            .into_iter()
            .flat_map(|protocol| (0..5).map(move |port| (protocol, port)))
        {
            let found = match model.get(&Key::Frontend(ip, protocol, port)) {
                Some(Record::Frontend(f)) => Some(Frontend {
                    service_port: f.service_port,
                    kind: f.kind,
                }),
                _ => None,
            };
            let port = Port::new(port);
            let exact = tables.frontend(address, protocol, port).copied();
            assert_eq!(exact, found.filter(|_| !unspecified));
            if unspecified {
                assert_eq!(tables.node_port::<A>(protocol, port).copied(), found);
            }
            tables.prefetch(address, protocol, port);
        }
    }
    for pod in (1..9).filter_map(|host| A::of(pod_address(host))) {
        assert_eq!(tables.is_pod(pod), in_range(model, NetworkKind::PodRange, pod));
    }
}

fn expect_equal_endpoints<A: Keyed>(tables: &Tables, model: &Model, index: ServicePortIndex) {
    let ranges: Vec<_> = model
        .keys()
        .filter_map(|key| match key {
            Key::SourceRange(of, network) if *of == index => Some(network),
            _ => None,
        })
        .collect();
    for pod in (1..9).map(pod_address) {
        let Some(address) = A::of(pod) else { continue };
        let unrestricted = ranges.iter().all(|range| A::of(range.addr()).is_none());
        let allowed = unrestricted || ranges.iter().any(|range| range.contains(&pod));
        let seen = tables
            .service_port(index)
            .is_none_or(|row| row.source_allowed(address));
        assert_eq!(seen, allowed || tables.service_port(index).is_none());
    }
    let row = tables.service_port(index).map(ServicePort::endpoints::<A>);
    let backends: Vec<_> = model
        .values()
        .filter_map(|record| match record {
            Record::Backend(b) if b.service_port == index && A::of(b.address).is_some() => Some(b),
            _ => None,
        })
        .collect();
    let mut pick = Picker::new(
        1,
        &TableLimits {
            backends: 64,
            ..TableLimits::default()
        },
    );
    for kind in [EndpointSetKind::Cluster, EndpointSetKind::Local] {
        let member = |b: &&&BackendRecord| match kind {
            EndpointSetKind::Cluster => b.in_cluster_set,
            EndpointSetKind::Local => b.in_local_set,
        };
        let expected: Vec<_> = backends
            .iter()
            .filter(member)
            // Whoever is chosen keeps its flows.
            .map(|b| (b.address, b.port, b.local, true))
            .collect();
        let seen = |slot: BackendIndex| {
            let backend = tables.backend::<A>(slot).unwrap();
            assert_eq!(backend.service_port, index);
            let serving = match tables.backend_state(slot, backend.generation) {
                BackendState::Serving => true,
                BackendState::NotServing => false,
                BackendState::Gone => panic!("a backend of a set is gone"),
            };
            (
                backend.address.into(),
                backend.port.number(),
                backend.local,
                serving,
            )
        };
        let slots = row.map_or(&[][..], |row| row.set(kind).backends());
        assert_eq!(slots.iter().map(|&slot| seen(slot)).collect::<Vec<_>>(), expected);
        // Forty choices: of the right endpoints, and none only where there is none.
        for client in 0..40u64 {
            let chosen = tables.choose::<A>(index, kind, client, &mut pick);
            assert_eq!(chosen.is_none(), expected.is_empty());
            assert!(chosen.is_none_or(|slot| slots.contains(&slot)));
        }
    }
    assert_eq!(
        row.is_some_and(|row| row.has_any),
        backends.iter().any(|b| b.usable)
    );
}

/// Everything workers can see, with endpoints in place of slots.
fn same_tables<A: Keyed>(left: &Tables, right: &Tables) {
    for index in 0..SERVICE_PORTS {
        for kind in [EndpointSetKind::Cluster, EndpointSetKind::Local] {
            let seen = |tables: &Tables| {
                let row = tables.service_port(ServicePortIndex(index))?;
                let set = row.endpoints::<A>().set(kind);
                let address = |&slot| tables.backend::<A>(slot).map(|b| (b.address, b.port));
                Some((
                    set.backends().iter().map(address).collect::<Vec<_>>(),
                    set.maglev().to_vec(),
                ))
            };
            assert_eq!(seen(left), seen(right));
        }
    }
}

proptest! {
    #[test]
    fn tables_answer_as_the_records_say_after_any_transactions(transactions in transactions()) {
        let mut builder = TablesBuilder::new(TableLimits::default());
        let mut model = Model::new();
        // Every (slot, generation) an endpoint has, and those whose endpoint was removed.
        let mut given = BTreeMap::<(BackendIndex, u32), Key>::new();
        let mut dead = BTreeSet::new();
        let mut once = BTreeSet::new();
        for (number, (deletes, puts)) in transactions.iter().enumerate() {
            let present: Vec<_> = model.keys().cloned().collect();
            let deletes: BTreeSet<_> =
                deletes.iter().filter(|_| !present.is_empty()).map(|i| i.get(&present).clone()).collect();
            let deletes: Vec<_> = deletes.into_iter().collect();
            let before = Arc::clone(builder.tables());
            let built = builder.apply(Generation(number as u64 + 1), &deletes, puts);
            match model_after(&model, &deletes, puts) {
                None => {
                    prop_assert!(built.is_err());
                    prop_assert!(Arc::ptr_eq(&before, builder.tables()));
                }
                Some(after) => {
                    prop_assert_eq!(built.map(|tables| tables.generation), Ok(Generation(number as u64 + 1)));
                    given.retain(|&pair, owner| {
                        if deletes.contains(owner) {
                            dead.insert(pair);
                        }
                        !deletes.contains(owner)
                    });
                    model = after;
                }
            }
            once.extend(frontends(&model).map(|f| f.address));
            expect_equal(builder.tables(), &model, &once);
            prop_assert_eq!(builder.tables().without_local(), without_local(&model));
            let records: Model = builder.records().map(|record| (record.key(), record)).collect();
            prop_assert_eq!(&records, &model);
            for (slot, generation, key) in occupants(&builder, &model) {
                prop_assert!(!dead.contains(&(slot, generation)), "given twice");
                let owner = given.entry((slot, generation)).or_insert_with(|| key.clone());
                prop_assert_eq!(&*owner, &key, "a flow could mistake one endpoint for another");
            }
            for &(slot, generation) in &dead {
                prop_assert_eq!(builder.tables().backend_state(slot, generation), BackendState::Gone);
            }
        }
        // D31: what grew step by step equals what is built at once, and what is built of its own dump.
        let records: Vec<_> = builder.records().collect();
        let afresh = builder_of(&records);
        let now = frontends(&model).map(|f| f.address).collect();
        expect_equal(afresh.tables(), &model, &now);
        same_tables::<V4>(builder.tables(), afresh.tables());
        same_tables::<V6>(builder.tables(), afresh.tables());
        prop_assert_eq!(afresh.used(), builder.used());
    }
}

fn occupants(builder: &TablesBuilder, model: &Model) -> Vec<(BackendIndex, u32, Key)> {
    fn find<A: Keyed>(builder: &TablesBuilder, key: &Key) -> Option<(BackendIndex, u32, Key)> {
        let &Key::Backend(index, address, port) = key else {
            return None;
        };
        let address = A::of(address)?;
        let found = builder.tables().find_backend(index, address, Port::new(port));
        let (slot, generation) = found.expect("every backend is found");
        Some((slot, generation, key.clone()))
    }
    let either = |key| find::<V4>(builder, key).or_else(|| find::<V6>(builder, key));
    model.keys().filter_map(either).collect()
}
