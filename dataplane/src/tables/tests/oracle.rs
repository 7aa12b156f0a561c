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

fn record() -> impl Strategy<Value = Record> {
    let index = || (0..SERVICE_PORTS).prop_map(ServicePortIndex);
    let protocol = || prop::sample::select(&PROTOCOLS[..]);
    let service_ports = (index(), protocol(), prop::sample::select(&ALGORITHMS[..])).prop_map(
        |(index, protocol, algorithm)| {
            let Record::ServicePort(record) = service_port(index.0, algorithm) else {
                unreachable!()
            };
            Record::ServicePort(ServicePortRecord { protocol, ..record })
        },
    );
    let frontends = (
        index(),
        protocol(),
        0..5u8,
        1..4u16,
        prop::sample::select(&KINDS[..]),
    )
        .prop_map(|(service_port, protocol, host, port, kind)| {
            let address = (host > 0).then(|| IpAddr::from([10, 96, 0, host]));
            let kind = if host > 0 { kind } else { FrontendKind::NodePort };
            Record::Frontend(FrontendRecord {
                address,
                protocol,
                port,
                kind,
                service_port,
            })
        });
    let backends = (index(), 1..6u8, 1..3u16, any::<[bool; 5]>()).prop_map(|(index, host, port, flags)| {
        let address = if host == 5 {
            "fd00::5".parse().unwrap()
        } else {
            IpAddr::from([10, 1, 0, host])
        };
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
        prop::sample::select(vec!["10.96.0.0/30", "10.1.0.0/31", "10.0.0.0/8"]),
    )
        .prop_map(|(kind, network)| {
            let kind = [NetworkKind::PodRange, NetworkKind::ServiceRange][kind];
            Record::Network(NetworkRecord {
                kind,
                network: network.parse().unwrap(),
            })
        });
    let settings =
        any::<bool>().prop_map(|masquerade_all| Record::Settings(SettingsRecord { masquerade_all }));
    prop_oneof![3 => service_ports, 4 => frontends, 8 => backends, 1 => networks, 1 => settings]
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
        _ => true,
    });
    sound.then_some(after)
}

fn frontends(model: &Model) -> impl Iterator<Item = &FrontendRecord> {
    model.values().filter_map(|record| match record {
        Record::Frontend(record) => Some(record),
        _ => None,
    })
}

fn in_range(model: &Model, kind: NetworkKind, address: [u8; 4]) -> bool {
    model
        .keys()
        .any(|key| matches!(key, Key::Network(k, net) if *k == kind && net.contains(&IpAddr::from(address))))
}

fn expect_equal(tables: &Tables, model: &Model) {
    for host in 0..6u8 {
        let address = [10, 96, 0, host];
        let kinds: Vec<_> = frontends(model)
            .filter(|f| f.address == Some(address.into()))
            .map(|f| f.kind)
            .collect();
        let expected = if kinds.contains(&FrontendKind::ClusterIp) {
            AddressKind::ClusterIp
        } else if !kinds.is_empty() {
            AddressKind::External
        } else if in_range(model, NetworkKind::ServiceRange, address) {
            AddressKind::Unallocated
        } else {
            AddressKind::Other
        };
        assert_eq!(tables.address(address), expected, "{address:?}");
        for (protocol, port) in PROTOCOLS
            .into_iter()
            .flat_map(|protocol| (0..5).map(move |port| (protocol, port)))
        {
            let expected = |address| match model.get(&Key::Frontend(address, protocol, port)) {
                Some(Record::Frontend(f)) => Some(Frontend {
                    service_port: f.service_port,
                    kind: f.kind,
                }),
                _ => None,
            };
            let (exact, node_port) = (expected(Some(address.into())), expected(None));
            assert_eq!(
                tables.frontend(address, protocol, Port::new(port)),
                exact.as_ref()
            );
            assert_eq!(tables.node_port(protocol, Port::new(port)), node_port.as_ref());
            tables.prefetch(address, protocol, Port::new(port));
        }
        let pod = [10, 1, 0, host];
        assert_eq!(tables.is_pod(pod), in_range(model, NetworkKind::PodRange, pod));
    }
    let masquerade_all =
        matches!(model.get(&Key::Settings), Some(Record::Settings(settings)) if settings.masquerade_all);
    assert_eq!(tables.settings().masquerade_all, masquerade_all);
    (0..SERVICE_PORTS + 1)
        .for_each(|index| expect_equal_service_port(tables, model, ServicePortIndex(index)));
}

fn expect_equal_service_port(tables: &Tables, model: &Model, index: ServicePortIndex) {
    let record = match model.get(&Key::ServicePort(index)) {
        Some(Record::ServicePort(record)) => Some(record),
        _ => None,
    };
    let row = tables.service_port(index);
    assert_eq!(row.map(|row| &row.record), record);
    let backends: Vec<_> = model
        .values()
        .filter_map(|record| match record {
            Record::Backend(b) if b.service_port == index && b.address.is_ipv4() => Some(b),
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
            .map(|b| (b.address, b.port, b.local, b.serving))
            .collect();
        let seen = |slot: BackendIndex| {
            let backend = tables.backend(slot).unwrap();
            assert_eq!(backend.service_port, index);
            let serving = match tables.backend_state(slot, backend.generation) {
                BackendState::Serving => true,
                BackendState::NotServing => false,
                BackendState::Gone => panic!("a backend of a set is gone"),
            };
            (
                IpAddr::from(backend.address),
                backend.port.number(),
                backend.local,
                serving,
            )
        };
        let slots = row.map_or(&[][..], |row| row.set(kind).backends());
        assert_eq!(slots.iter().map(|&slot| seen(slot)).collect::<Vec<_>>(), expected);
        // Forty choices: of the right endpoints, and none only where there is none.
        for client in 0..40u64 {
            let chosen = tables.choose(index, kind, client, &mut pick);
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
fn same_tables(left: &Tables, right: &Tables) {
    for index in 0..SERVICE_PORTS {
        for kind in [EndpointSetKind::Cluster, EndpointSetKind::Local] {
            let seen = |tables: &Tables| {
                let set = tables.service_port(ServicePortIndex(index))?.set(kind).clone();
                let address = |&slot| tables.backend(slot).map(|b| (b.address, b.port));
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
            expect_equal(builder.tables(), &model);
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
        expect_equal(afresh.tables(), &model);
        same_tables(builder.tables(), afresh.tables());
        prop_assert_eq!(afresh.used(), builder.used());
    }
}

fn occupants(builder: &TablesBuilder, model: &Model) -> Vec<(BackendIndex, u32, Key)> {
    let find = |key: &Key| match *key {
        Key::Backend(index, IpAddr::V4(address), port) => {
            let slot = builder
                .backend_slot(index, address.octets(), Port::new(port))
                .unwrap();
            Some((
                slot,
                builder.tables().backend(slot).unwrap().generation,
                key.clone(),
            ))
        }
        _ => None,
    };
    model.keys().filter_map(find).collect()
}
