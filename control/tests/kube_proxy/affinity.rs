//! Which endpoint a client's flows go to, without session affinity and with it. Endpoints are drawn by lot there and here:
//! what is compared is how many there are, and when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::cluster::{Cluster, Condition, Options};
use crate::differences::affinity::ON_PURPOSE;
use crate::fate::{Fate, fate};
use crate::ledger::{Ledger, Row, rows};
use crate::probe::opening;
use crate::shape::{ALL, Shape, pair, ready};
use crate::topology::{Family, PRIMARY, ip, named};

const NODE_PORT: u16 = 30_077;

fn shape(affinity: u32) -> Shape {
    Shape {
        balanced: pair("203.0.113.77", "2001:db8:113::77").into(),
        external: pair("198.18.0.77", "2001:db8:18::77").into(),
        ports: vec![
            ("t", "TCP", 80, 8080, Some(NODE_PORT)),
            ("t2", "TCP", 81, 8080, None),
            ("u", "UDP", 80, 8080, Some(NODE_PORT)),
        ],
        affinity,
        ..Shape::default()
    }
}

/// The gateway, and clients of one family.
struct Bench {
    cluster: Cluster,
    family: Family,
}

impl Bench {
    fn new(family: Family, shape: &Shape) -> Self {
        let mut cluster = Cluster::new(&Options::default());
        cluster.apply(shape.objects());
        Self { cluster, family }
    }

    fn at(&self, v4: &str, v6: &str) -> IpAddr {
        ip(if self.family == Family::V4 { v4 } else { v6 })
    }

    fn frontend(&self, name: &str) -> (IpAddr, u16) {
        match name {
            "clusterIP" => (self.at("10.96.7.7", "fd00:10:96::707"), 80),
            "second port" => (self.at("10.96.7.7", "fd00:10:96::707"), 81),
            "lbIP" => (self.at("203.0.113.77", "2001:db8:113::77"), 80),
            "externalIP" => (self.at("198.18.0.77", "2001:db8:18::77"), 80),
            _ => (self.at(PRIMARY[0], PRIMARY[1]), NODE_PORT),
        }
    }

    /// One of many clients behind the recorded one.
    fn client(&self, index: u16) -> IpAddr {
        self.at(&format!("192.0.2.{index}"), &format!("2001:db8:ffff::{index:x}"))
    }

    /// The endpoint of a new flow.
    fn ask(&mut self, source: &str, client: IpAddr, protocol: &str, frontend: &str) -> String {
        let packet = opening(
            protocol,
            (client, self.cluster.next_port()),
            self.frontend(frontend),
        );
        match fate(&mut self.cluster.bed, named(source), &packet) {
            Fate::Endpoint { name, .. } => name,
            other => other.to_string(),
        }
    }

    /// Endpoints of `flows` new flows of the one client.
    fn asked(&mut self, flows: usize) -> BTreeSet<String> {
        let client = named("client").address(self.family);
        (0..flows)
            .map(|_| self.ask("client", client, "TCP", "clusterIP"))
            .collect()
    }
}

/// `one`, or how many.
fn how_many(endpoints: &BTreeSet<String>) -> String {
    if endpoints.len() == 1 {
        "one".into()
    } else {
        format!("{} endpoints", endpoints.len())
    }
}

/// Names in a cell of a record: `{"r2": 10}`, `["r2"]` or `"r2"`.
fn names(cell: &Value) -> BTreeSet<String> {
    match cell {
        Value::Object(counts) => counts.keys().cloned().collect(),
        Value::Array(list) => list.iter().flat_map(names).collect(),
        name => BTreeSet::from([name.as_str().unwrap().to_owned()]),
    }
}

/// VD-8: n flows over k endpoints within 5 σ.
fn spread(counts: &BTreeMap<String, u64>) -> String {
    let flows: u64 = counts.values().sum();
    let mean = flows as f64 / ALL.len() as f64;
    let sigma = (mean * (1.0 - 1.0 / ALL.len() as f64)).sqrt();
    let even = counts
        .values()
        .all(|count| (*count as f64 - mean).abs() < 5.0 * sigma);
    format!("{flows} flows over {} endpoints, evenly: {even}", counts.len())
}

fn distribution(row: &Row, family: Family) -> (String, String) {
    let mut bench = Bench::new(family, &shape(0));
    let client = named("client").address(family);
    let mut ours = BTreeMap::new();
    for _ in 0..2000 {
        *ours
            .entry(bench.ask("client", client, row.text("proto"), "clusterIP"))
            .or_default() += 1;
    }
    let counts = row.value["counts"].as_object().unwrap();
    let recorded = counts
        .iter()
        .map(|(name, count)| (name.clone(), count.as_u64().unwrap()));
    (spread(&recorded.collect()), spread(&ours))
}

/// The one client of a row, at every frontend; the node speaks to its node port from another address.
fn everywhere(row: &Row, family: Family) -> (String, String) {
    let mut bench = Bench::new(family, &shape(10_800));
    let source = row.text("source");
    let node = source == "node";
    let mut ours = BTreeMap::new();
    for frontend in ["clusterIP", "lbIP", "externalIP", "nodePort"] {
        let client = match frontend {
            "nodePort" if node => bench.at(PRIMARY[0], PRIMARY[1]),
            _ => named(source).address(family),
        };
        let asked = (0..10)
            .map(|_| bench.ask(source, client, row.text("proto"), frontend))
            .collect();
        ours.insert(frontend, asked);
    }
    let recorded = ours
        .keys()
        .map(|frontend| (*frontend, names(&row.value[*frontend])))
        .collect();
    let line = |all: &BTreeMap<&str, BTreeSet<String>>| {
        let (own, shared): (Vec<_>, Vec<_>) = all.iter().partition(|(name, _)| node && **name == "nodePort");
        let together: BTreeSet<_> = shared.into_iter().flat_map(|(_, set)| set.clone()).collect();
        let own = own.first().map_or_else(String::new, |(_, set)| {
            format!(", {} at the node port", how_many(set))
        });
        how_many(&together) + &own
    };
    (line(&recorded), line(&ours))
}

/// AFF-3: ports of one Service remember apart from each other.
fn ports_apart(row: &Row, family: Family) -> (String, String) {
    let mut bench = Bench::new(family, &shape(10_800));
    let ours = (1..=40).map(|index| {
        let client = bench.client(index);
        [("TCP", "clusterIP"), ("TCP", "second port"), ("UDP", "clusterIP")].map(|(protocol, frontend)| {
            (0..5)
                .map(|_| bench.ask("client", client, protocol, frontend))
                .collect::<BTreeSet<_>>()
        })
    });
    let ours: Vec<_> = ours.map(|cells| cells.to_vec()).collect();
    let recorded = row.value["table"].as_array().unwrap().iter();
    let recorded: Vec<_> = recorded
        .map(|cells| cells.as_array().unwrap().iter().map(names).collect())
        .collect();
    let line = |table: &[Vec<BTreeSet<String>>]| {
        let firm = table.iter().flatten().all(|cell| cell.len() == 1);
        // By chance, one of four agrees.
        let together = table.iter().filter(|cells| cells[0] == cells[1]).count();
        format!("one each: {firm}; apart: {}", together < table.len())
    };
    (line(&recorded), line(&ours))
}

/// AFF-4: clients alternate between all endpoints and local ones.
fn alternating(row: &Row, family: Family) -> (String, String) {
    let local = Shape {
        external_policy: "Local",
        ..shape(10_800)
    };
    let mut bench = Bench::new(family, &local);
    let ours: Vec<_> = (1..=40)
        .map(|index| {
            let client = bench.client(index);
            ["clusterIP", "lbIP", "clusterIP", "lbIP"]
                .map(|frontend| bench.ask("client", client, "TCP", frontend))
        })
        .collect();
    let cell = |entry: &Value, field: &str| names(&entry[field]).into_iter().collect::<String>();
    let fields = ["1_clusterIP", "2_lbIP", "3_clusterIP", "4_lbIP"];
    let recorded = row.value["table"].as_array().unwrap().iter();
    let recorded: Vec<_> = recorded
        .map(|entry| fields.map(|field| cell(entry, field)))
        .collect();
    let line = |table: &[[String; 4]]| {
        let all = |holds: fn(&[String; 4]) -> bool| table.iter().all(holds);
        format!(
            "LB flows stay local: {}, with one endpoint: {}; cluster flows keep theirs: {}",
            all(|c| c[1].starts_with('l') && c[3].starts_with('l')),
            all(|c| c[1] == c[3]),
            all(|c| c[0] == c[2])
        )
    };
    (line(&recorded), line(&ours))
}

/// AFF-1: each new flow starts the timeout anew.
fn refreshed(row: &Row, family: Family) -> (String, String) {
    let mut bench = Bench::new(family, &shape(3));
    let mut ours = BTreeSet::new();
    for _ in 0..8 {
        ours.extend(bench.asked(1));
        bench.cluster.bed.wait(2);
    }
    let sequence = row.value["sequence"].as_array().unwrap();
    let recorded: BTreeSet<_> = sequence.iter().flat_map(|entry| names(&entry[1])).collect();
    (how_many(&recorded), how_many(&ours))
}

fn expired(row: &Row, family: Family) -> (String, String) {
    let mut bench = Bench::new(family, &shape(3));
    let pairs: Vec<_> = (0..24)
        .map(|_| {
            let first = bench.asked(1);
            bench.cluster.bed.wait(4);
            (first, bench.asked(1))
        })
        .collect();
    let recorded = row.value["pairs"].as_array().unwrap().iter();
    let recorded: Vec<_> = recorded.map(|pair| (names(&pair[0]), names(&pair[1]))).collect();
    let line = |pairs: &[(BTreeSet<String>, BTreeSet<String>)]| {
        format!(
            "chosen afresh: {}",
            pairs.iter().any(|(first, second)| first != second)
        )
    };
    (line(&recorded), line(&pairs))
}

/// AFF-4, AFF-8: the remembered endpoint goes, and comes back.
fn away(row: &Row, family: Family) -> (String, String) {
    let condition = match row.text("test") {
        test if test.contains("removed") => None,
        test if test.contains("not ready") => Some(Condition::NOT_READY),
        _ => Some(Condition::TERMINATING),
    };
    let mut bench = Bench::new(family, &shape(10_800));
    let first = bench.asked(10);
    let gone = |name: &&&str| first.contains(**name);
    let mut endpoints = ready(&ALL);
    let place = ALL.iter().position(|name| gone(&name));
    match (place, condition) {
        (Some(place), Some(condition)) => endpoints[place].1 = condition,
        (Some(place), None) => drop(endpoints.remove(place)),
        (None, _) => {}
    }
    bench.cluster.become_only(
        Shape {
            endpoints,
            ..shape(10_800)
        }
        .objects(),
    );
    let meanwhile = bench.asked(10);
    bench.cluster.become_only(shape(10_800).objects());
    let after = bench.asked(10);
    let line = |first: &BTreeSet<String>, meanwhile: &BTreeSet<String>, after: &BTreeSet<String>| {
        let other = if first.is_disjoint(meanwhile) {
            "another"
        } else {
            "the same"
        };
        let last = match () {
            () if after == meanwhile => "stays there",
            () if after == first => "returns",
            () => "neither",
        };
        format!(
            "{}, then {} {other}, then {last}",
            how_many(first),
            how_many(meanwhile)
        )
    };
    let [was, then, later] = ["first", "while_away", "after_return"].map(|field| names(&row.value[field]));
    (line(&was, &then, &later), line(&first, &meanwhile, &after))
}

/// AFF-6.
fn switched(row: &Row, family: Family) -> (String, String) {
    let mut bench = Bench::new(family, &shape(10_800));
    let before = bench.asked(3);
    bench.cluster.become_only(shape(0).objects());
    let off = bench.asked(80);
    bench.cluster.become_only(shape(10_800).objects());
    let on = bench.asked(10);
    let line = |[before, off, on]: [BTreeSet<String>; 3]| [&before, &off, &on].map(how_many).join(", then ");
    (
        line(["before", "off", "on_again"].map(|field| names(&row.value[field]))),
        line([before, off, on]),
    )
}

/// AFF-6: a shorter timeout holds at the next check. Many clients, since a fresh choice may be the old one.
fn shortened(row: &Row, family: Family) -> (String, String) {
    let mut bench = Bench::new(family, &shape(10_800));
    let ask = |bench: &mut Bench| -> Vec<String> {
        (1..=40)
            .map(|index| {
                (
                    bench.client(index),
                    bench.ask("client", bench.client(index), "TCP", "clusterIP"),
                )
                    .1
            })
            .collect()
    };
    let before = ask(&mut bench);
    bench.cluster.become_only(shape(5).objects());
    bench.cluster.bed.wait(3);
    let soon = ask(&mut bench);
    bench.cluster.bed.wait(6);
    let late = ask(&mut bench);
    let line =
        |kept: bool, changed: bool| format!("kept after 3 s: {kept}; expired after 6 s more: {changed}");
    let [was, then, later] = ["before", "after_3s", "after_further_6s"].map(|field| names(&row.value[field]));
    (
        line(was == then, then != later),
        line(before == soon, soon != late),
    )
}

#[test]
fn endpoints_are_chosen_and_remembered_as_in_kube_proxy_but_for_differences_on_purpose() {
    let rows = rows("affinity");
    let mut ledger = Ledger::new("affinity", ON_PURPOSE);
    // Some rows name no address: theirs is that of the rows around them.
    let mut family = Family::V4;
    for row in &rows {
        if let Some(dst) = row.value["dst"].as_str() {
            family = Family::of(ip(dst));
        } else if !row.text("test").starts_with("same client") {
            family = Family::V4;
        }
        let (recorded, ours) = match row.text("test") {
            "distribution without affinity" => distribution(row, family),
            "40 new flows, one client" => {
                let mut bench = Bench::new(family, &shape(10_800));
                let (source, protocol) = (row.text("source"), row.text("proto"));
                let client = named(source).address(family);
                let ours = (0..40)
                    .map(|_| bench.ask(source, client, protocol, "clusterIP"))
                    .collect();
                (how_many(&names(&row.value["counts"])), how_many(&ours))
            }
            "same client, other frontends of the same port" => everywhere(row, family),
            test if test.starts_with("40 client addresses") => ports_apart(row, family),
            test if test.starts_with("external clients alternate") => alternating(row, family),
            test if test.starts_with("timeout 3 s, a new flow") => refreshed(row, family),
            test if test.starts_with("timeout 3 s, pairs") => expired(row, family),
            test if test.starts_with("remembered endpoint") => away(row, family),
            "affinity switched off and on again" => switched(row, family),
            test if test.starts_with("timeout changed") => shortened(row, family),
            _ => {
                ledger.not_ours(row, "kube-proxy's own nftables sets");
                continue;
            }
        };
        ledger.compare(row, &recorded, &ours);
    }
    ledger.close(60);
}
