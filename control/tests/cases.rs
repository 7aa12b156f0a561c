//! Folders of manifests and the records they become. `UPDATE=1 cargo test` writes what is, to be read before it is kept.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use sluice_control::compile::{Numbers, Settings, compile};
use sluice_control::endpoints::{self, sets::Here};
use sluice_control::model::Model;
use sluice_control::source::files::Folders;
use sluice_dataplane::channel::record::{Algorithm, BackendRecord, Record};

use crate::support::{DUAL, allocator, folder, text};

fn settings() -> Settings {
    Settings {
        here: Here {
            node: "node-a".into(),
            zone: "z1".into(),
            as_local: Vec::new(),
        },
        node_addresses: vec!["192.0.2.1".parse().unwrap()],
        pod_ranges: ["10.244.0.0/16", "fd00:244::/64"]
            .map(|range| range.parse().unwrap())
            .to_vec(),
        service_ranges: DUAL.iter().map(|range| range.parse().unwrap()).collect(),
        algorithm: Algorithm::Maglev,
        ..Settings::default()
    }
}

/// Records and problems, a line each.
fn describe(model: &Model) -> String {
    let compiled = compile(model, &endpoints::slices(model), &settings(), &Numbers::default());
    let mut out = String::new();
    for record in &compiled.records {
        let _ = match record {
            Record::ServicePort(r) => writeln!(
                out,
                "service port {}: {}/{} {:?} {} {:?} affinity {} external-local {} internal-local {}",
                r.index.0,
                r.namespace,
                r.name,
                r.port_name,
                r.protocol,
                r.algorithm,
                r.affinity_seconds,
                r.external_local,
                r.internal_local
            ),
            Record::Frontend(r) => {
                let address = match r.address {
                    every if every.is_unspecified() => match every {
                        IpAddr::V4(_) => "*".to_owned(),
                        IpAddr::V6(_) => "[*]".to_owned(),
                    },
                    address => address.to_string(),
                };
                writeln!(
                    out,
                    "frontend {:?} {address} {}/{} -> {}",
                    r.kind, r.port, r.protocol, r.service_port.0
                )
            }
            Record::Backend(r) => {
                writeln!(
                    out,
                    "backend of {}: {} {}",
                    r.service_port.0,
                    SocketAddr::new(r.address, r.port),
                    flags(r)
                )
            }
            Record::SourceRange(r) => writeln!(out, "sources of {}: {}", r.service_port.0, r.network),
            Record::Network(_) | Record::Settings(_) => Ok(()),
        };
    }
    for (service, frontend) in &compiled.conflicts {
        let _ = writeln!(out, "conflict {service} {frontend}");
    }
    for problem in model.problems() {
        let text = problem.to_string();
        let file = text
            .rsplit_once("tests/cases/")
            .map_or(text.as_str(), |(_, rest)| rest);
        let _ = writeln!(out, "problem {file}");
    }
    out
}

fn flags(r: &BackendRecord) -> String {
    let all = [
        (r.in_cluster_set, "cluster-set"),
        (r.in_local_set, "local-set"),
        (r.usable, "usable"),
        (r.serving, "serving"),
        (r.local, "local"),
    ];
    all.iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_case_becomes_the_records_it_must() {
    let mut wrong = Vec::new();
    let mut cases: Vec<_> = fs::read_dir(folder("cases"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 8, "cases are missing");
    for case in cases {
        let mut model = Model::new(allocator(DUAL));
        model.apply(Folders::new(std::slice::from_ref(&case)).scan());
        let got = describe(&model);
        let path = case.join("records.txt");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &got).unwrap();
        }
        let wanted = text(&path);
        if got != wanted {
            wrong.push(format!("{}:\n--- is\n{got}--- must be\n{wanted}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn numbers_of_service_ports_stay_when_others_come_and_go() {
    let service = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    };
    let numbers = |text: &str, before: &Numbers| {
        let model = crate::support::model(text);
        compile(&model, &endpoints::slices(&model), &settings(), before)
    };
    let by_name = |records: &[Record]| -> Vec<(String, u32)> {
        let number = |record: &Record| match record {
            Record::ServicePort(r) => Some((r.name.clone(), r.index.0)),
            _ => None,
        };
        records.iter().filter_map(number).collect()
    };
    let pairs = |list: &[(&str, u32)]| {
        list.iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect::<Vec<_>>()
    };
    let first = numbers(&[service("m"), service("z")].concat(), &Numbers::default());
    assert_eq!(by_name(&first.records), pairs(&[("m", 0), ("z", 1)]));
    // A restarted control learns them from the dataplane's inventory.
    let learnt = Numbers::learn(&first.records);
    assert_eq!(learnt, first.numbers);
    let second = numbers(&[service("a"), service("z")].concat(), &learnt);
    assert_eq!(
        by_name(&second.records),
        pairs(&[("z", 1), ("a", 2)]),
        "0 was in use until now"
    );
    let third = numbers(
        &[service("a"), service("b"), service("z")].concat(),
        &second.numbers,
    );
    assert_eq!(by_name(&third.records), pairs(&[("b", 0), ("z", 1), ("a", 2)]));
}

#[test]
fn the_same_manifests_give_the_same_records_in_the_same_order() {
    let text: String = (0..50)
        .map(|i| format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\nspec: {{ports: [{{port: 80}}]}}\n"))
        .collect();
    let once = |text: &str| {
        let model = crate::support::model(text);
        compile(
            &model,
            &endpoints::slices(&model),
            &settings(),
            &Numbers::default(),
        )
        .records
    };
    let reversed: String = text
        .split("---\n")
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .map(|one| format!("---\n{one}"))
        .collect();
    assert_eq!(once(&text), once(&reversed));
}

#[test]
fn every_manifest_a_person_may_copy_is_sound() {
    let labs = folder("../../configs/lab");
    let labs: Vec<_> = fs::read_dir(labs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(labs.len() >= 2);
    for lab in labs {
        let mut model = Model::new(allocator(DUAL));
        model.apply(Folders::new(std::slice::from_ref(&lab)).scan());
        assert!(
            model.problems().is_empty(),
            "{}: {:?}",
            lab.display(),
            model.problems()
        );
        assert!(model.services().count() > 0, "{}: no Service", lab.display());
    }
}
