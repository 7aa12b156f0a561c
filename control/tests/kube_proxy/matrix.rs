//! Source × frontend × policies × endpoint situation: which endpoints, seen as whom, or how it is refused.

use crate::cluster::{Cluster, Condition, Options};
use crate::differences::matrix::ON_PURPOSE;
use crate::fate::summary;
use crate::ledger::{Ledger, Row, rows};
use crate::probe::{FLOWS, fates, opening, recorded};
use crate::shape::Shape;
use crate::topology::{Family, PRIMARY, Station, ip, named};

const CLUSTER_IPS: [&str; 2] = ["10.96.7.7", "fd00:10:96::707"];
const LB_IPS: [&str; 2] = ["203.0.113.77", "2001:db8:113::77"];
const EXTERNAL_IPS: [&str; 2] = ["198.18.0.77", "2001:db8:18::77"];
const NODE_PORT: u16 = 30_077;

/// The endpoints of a situation.
fn endpoints(situation: &str) -> Vec<(&'static str, Condition)> {
    let all = |l: Option<Condition>, r: Option<Condition>| {
        let of =
            |names: [&'static str; 2], c: Option<Condition>| names.into_iter().zip(c.into_iter().cycle());
        of(["l1", "l2"], l).chain(of(["r1", "r2"], r)).collect()
    };
    let one = |condition| all(Some(condition), Some(condition));
    match situation {
        "all-ready" => one(Condition::READY),
        "remote-ready-only" => all(None, Some(Condition::READY)),
        "local-ready-only" => all(Some(Condition::READY), None),
        "none" => Vec::new(),
        "local-terminating+remote-ready" => all(Some(Condition::TERMINATING), Some(Condition::READY)),
        "remote-terminating-only" => all(None, Some(Condition::TERMINATING)),
        "local-terminating-only" => all(Some(Condition::TERMINATING), None),
        "all-not-ready" => one(Condition::NOT_READY),
        "serving-not-ready-not-terminating" => one(Condition::SERVING_NOT_READY),
        "terminating-not-serving" => one(Condition::TERMINATING_NOT_SERVING),
        other => panic!("no situation: {other}"),
    }
}

/// A cluster with one Service of these policies.
fn cluster(external: &'static str, internal: &'static str, situation: &str) -> Cluster {
    let texts = |addresses: [&str; 2]| addresses.map(str::to_owned);
    let shape = Shape {
        cluster: texts(CLUSTER_IPS),
        balanced: texts(LB_IPS).into(),
        external: texts(EXTERNAL_IPS).into(),
        ports: vec![
            ("t", "TCP", 80, 8080, Some(NODE_PORT)),
            ("u", "UDP", 80, 8080, Some(NODE_PORT)),
        ],
        external_policy: external,
        internal_policy: internal,
        endpoints: endpoints(situation),
        ..Shape::default()
    };
    let mut cluster = Cluster::new(&Options::default());
    cluster.apply(shape.objects());
    cluster
}

/// A policy, for as long as it takes.
fn policy(row: &Row, field: &str) -> &'static str {
    if row.text(field) == "Local" {
        "Local"
    } else {
        "Cluster"
    }
}

/// What the row's packets come to.
fn replay(cluster: &mut Cluster, row: &Row) -> String {
    let family = Family::named(row.text("family"));
    let at = |addresses: [&str; 2]| ip(addresses[family as usize]);
    let to = match row.text("frontend") {
        "clusterIP" => (at(CLUSTER_IPS), 80),
        "lbIP" => (at(LB_IPS), 80),
        "externalIP" => (at(EXTERNAL_IPS), 80),
        "nodePort" => (at(PRIMARY), NODE_PORT),
        other => panic!("no frontend: {other}"),
    };
    let source: &Station = named(row.text("source"));
    // The node speaks to its own address from that address.
    let client = match (source.name, row.text("frontend")) {
        ("node", "nodePort") => at(PRIMARY),
        _ => source.address(family),
    };
    let opening = |port| opening(row.text("proto"), (client, port), to);
    summary(&fates(cluster, row, FLOWS, opening))
}

#[test]
fn the_matrix_of_policies_is_kube_proxys_but_for_differences_on_purpose() {
    let rows = rows("matrix");
    let mut ledger = Ledger::new("matrix", ON_PURPOSE);
    let mut clusters: Vec<((&str, &str, &str), Cluster)> = Vec::new();
    for row in &rows {
        let key = (policy(row, "eTP"), policy(row, "iTP"), row.text("situation"));
        let known = clusters.iter().position(|(k, _)| *k == key);
        let index = known.unwrap_or_else(|| {
            clusters.push((key, cluster(key.0, key.1, key.2)));
            clusters.len() - 1
        });
        let ours = replay(&mut clusters[index].1, row);
        ledger.compare(row, &recorded(row), &ours);
    }
    ledger.close(3_072);
}
