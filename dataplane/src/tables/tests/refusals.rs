//! Transactions that must be refused, and must change nothing.

use super::*;

/// Applies to a table of two Services and tells why it was refused, having seen that nothing changed.
fn refused(limits: TableLimits, deletes: &[Key], puts: &[Record]) -> Refusal {
    let mut builder = TablesBuilder::new(limits);
    let records = [
        service_port(0, Algorithm::Maglev),
        service_port(1, Algorithm::Random),
        frontend(0, "10.96.0.1", 80),
        pod(0, 1, 8080),
        pod(0, 2, 8080),
    ];
    builder.apply(Generation(1), &[], &records).unwrap();
    let (tables, records): (_, Vec<_>) = (Arc::clone(builder.tables()), builder.records().collect());
    let used = builder.used();
    let refusal = builder.apply(Generation(2), deletes, puts).unwrap_err();
    assert!(Arc::ptr_eq(&tables, builder.tables()));
    assert_eq!((records, used), (builder.records().collect(), builder.used()));
    refusal
}

fn refused_by_default(deletes: &[Key], puts: &[Record]) -> Refusal {
    refused(TableLimits::default(), deletes, puts)
}

#[test]
fn a_generation_that_is_not_later_is_refused() {
    let mut builder = builder_of(&[]);
    for offered in [0, 1] {
        let refusal = builder.apply(Generation(offered), &[], &[]).unwrap_err();
        assert_eq!(refusal, Refusal::OldGeneration { current: 1, offered });
    }
    assert!(builder.apply(Generation(7), &[], &[]).is_ok());
}

#[test]
fn deleting_what_is_not_there_is_refused_even_the_second_time_in_one_transaction() {
    let unknown = pod(0, 9, 8080).key();
    assert_eq!(
        refused_by_default(std::slice::from_ref(&unknown), &[]),
        Refusal::UnknownKey(unknown)
    );
    let known = pod(0, 1, 8080).key();
    assert_eq!(
        refused_by_default(&[known.clone(), known.clone()], &[]),
        Refusal::UnknownKey(known)
    );
}

#[test]
fn a_row_of_a_service_port_that_does_not_exist_is_refused() {
    for record in [
        pod(5, 1, 8080),
        frontend(5, "10.96.0.2", 80),
        source_range(5, "10.0.0.0/8"),
    ] {
        let refusal = refused_by_default(&[], std::slice::from_ref(&record));
        let service_port = ServicePortIndex(5);
        assert_eq!(
            refusal,
            Refusal::NoSuchServicePort {
                key: record.key(),
                service_port
            }
        );
    }
    // Nor may one refer to what the same transaction deletes.
    let refusal = refused_by_default(&[service_port(1, Algorithm::Random).key()], &[pod(1, 1, 8080)]);
    assert!(matches!(refusal, Refusal::NoSuchServicePort { .. }), "{refusal}");
}

#[test]
fn deleting_a_service_port_is_refused_until_nothing_refers_to_it() {
    let sp = service_port(0, Algorithm::Maglev).key();
    let (front, one, two) = (
        frontend(0, "10.96.0.1", 80).key(),
        pod(0, 1, 8080).key(),
        pod(0, 2, 8080).key(),
    );
    let by = |refusal| match refusal {
        Refusal::StillReferred { by, .. } => by,
        other => panic!("{other}"),
    };
    assert_eq!(
        by(refused_by_default(&[sp.clone(), one.clone(), two.clone()], &[])),
        front
    );
    assert_eq!(by(refused_by_default(&[sp.clone(), one, front], &[])), two);
    let mut builder = builder_of(&[service_port(3, Algorithm::Random), source_range(3, "::/1")]);
    let only = [service_port(3, Algorithm::Random).key()];
    let refusal = builder.apply(Generation(2), &only, &[]).unwrap_err();
    assert_eq!(by(refusal), source_range(3, "::/1").key());
    // A frontend that moves to another service port refers no more.
    let moved = refused_by_default(&[sp, two], &[frontend(1, "10.96.0.1", 80)]);
    assert_eq!(by(moved), pod(0, 1, 8080).key());
}

#[test]
fn a_frontend_has_the_protocol_of_its_service_port_before_and_after() {
    let Record::Frontend(record) = frontend(0, "10.96.0.9", 80) else {
        unreachable!()
    };
    let udp = Record::Frontend(FrontendRecord {
        protocol: Protocol::UDP,
        ..record
    });
    let refusal = refused_by_default(&[], &[udp]);
    assert!(
        matches!(
            refusal,
            Refusal::ProtocolMismatch {
                expected: Protocol::TCP,
                ..
            }
        ),
        "{refusal}"
    );

    let Record::ServicePort(record) = service_port(0, Algorithm::Maglev) else {
        unreachable!()
    };
    let udp = Record::ServicePort(ServicePortRecord {
        protocol: Protocol::UDP,
        ..record
    });
    let refusal = refused_by_default(&[], &[udp]);
    assert!(
        matches!(
            refusal,
            Refusal::ProtocolMismatch {
                expected: Protocol::UDP,
                ..
            }
        ),
        "{refusal}"
    );
}

#[test]
fn every_limit_is_held_and_named() {
    let full = TableLimits {
        service_ports: 2,
        frontends: 1,
        backends: 2,
        backends_per_service_port: 2,
        networks: 0,
        source_ranges: 0,
        ..TableLimits::default()
    };
    let range = NetworkRecord {
        kind: NetworkKind::PodRange,
        network: "10.1.0.0/16".parse().unwrap(),
    };
    let what = |limits, record: Record| match refused(limits, &[], &[record]) {
        Refusal::LimitExceeded { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(what(full, frontend(0, "10.96.0.2", 80)), "frontends");
    assert_eq!(what(full, pod(1, 3, 8080)), "backends");
    assert_eq!(
        what(TableLimits { backends: 9, ..full }, pod(0, 3, 8080)),
        "backends of one service port"
    );
    assert_eq!(what(full, Record::Network(range)), "networks");
    assert_eq!(what(full, source_range(0, "10.0.0.0/8")), "source ranges");
    let refusal = refused(full, &[], &[service_port(2, Algorithm::Random)]);
    assert_eq!(refusal, Refusal::IndexOutOfRange { index: 2, limit: 2 });
}

#[test]
fn a_full_table_takes_one_in_for_one_out() {
    let limits = TableLimits {
        backends: 2,
        ..TableLimits::default()
    };
    let mut builder = TablesBuilder::new(limits);
    builder
        .apply(
            Generation(1),
            &[],
            &[service_port(0, Algorithm::Random), pod(0, 1, 1), pod(0, 2, 1)],
        )
        .unwrap();
    builder
        .apply(Generation(2), &[pod(0, 1, 1).key()], &[pod(0, 3, 1)])
        .unwrap();
    assert_eq!(builder.used().backends, 2);
}

#[test]
fn addresses_that_cannot_be_endpoints_are_refused() {
    // EPM-3, and what no host may have.
    for address in [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:10.1.0.1",
    ] {
        let record = Record::Backend(backend(0, address.parse().unwrap(), 8080));
        let refusal = refused_by_default(&[], &[record]);
        assert!(
            matches!(refusal, Refusal::BadField { .. }),
            "{address}: {refusal}"
        );
    }
}

#[test]
fn fields_out_of_bounds_are_refused() {
    let Record::Frontend(front) = frontend(0, "10.96.0.9", 80) else {
        unreachable!()
    };
    let Record::ServicePort(sp) = service_port(1, Algorithm::Random) else {
        unreachable!()
    };
    for record in [
        frontend(0, "10.96.0.9", 0),
        frontend(0, "127.0.0.1", 80),
        frontend(0, "0.0.0.0", 80),
        pod(0, 3, 0),
        frontend(0, "::", 80),
        Record::Frontend(FrontendRecord {
            kind: FrontendKind::NodePort,
            ..front
        }),
        Record::ServicePort(ServicePortRecord {
            namespace: "n".repeat(64),
            ..sp.clone()
        }),
        Record::ServicePort(ServicePortRecord {
            port_name: "p".repeat(64),
            ..sp.clone()
        }),
        Record::ServicePort(ServicePortRecord {
            protocol: Protocol::ICMP,
            ..sp.clone()
        }),
        Record::ServicePort(ServicePortRecord {
            affinity_seconds: 86_401,
            ..sp
        }),
    ] {
        let refusal = refused_by_default(&[], std::slice::from_ref(&record));
        assert!(
            matches!(refusal, Refusal::BadField { .. }),
            "{record:?}: {refusal}"
        );
    }
}

#[test]
fn a_refusal_names_the_row_and_what_to_do() {
    let refusal = refused_by_default(&[], &[pod(5, 1, 8080)]);
    assert_eq!(
        refusal.to_string(),
        "backend 10.1.0.1 port 8080 of service port 5 refers to service port 5, which does not exist; \
         put it in the same transaction"
    );
}
