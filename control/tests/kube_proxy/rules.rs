//! Single rules: what is undefined, refused, restricted to sources, or odd; each row one probe of one cluster.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, Options};
use crate::differences::rules::ON_PURPOSE;
use crate::fate::{Fate, summary};
use crate::ledger::{Ledger, Row, rows};
use crate::probe::{FLOWS, client, fates, fits, opening, recorded, replay};
use crate::shape::{Shape, pair, ready};
use crate::topology::{Family, ip};
use crate::{objects, odd};

const STANDARD: &str = "LoadBalancer service with TCP 80 and UDP 5353, 4 ready endpoints";
/// The node port of SCTP rows, which do not name the one they had.
const SCTP_NODE_PORT: u16 = 30_080;

/// The cluster of most rows. Its Service was made three times: thrice a cluster IP, once the rest.
fn standard() -> Cluster {
    let ports = |tcp, udp| vec![("t", "TCP", 80, 8080, tcp), ("u", "UDP", 5353, 8080, udp)];
    let shapes = [
        Shape {
            name: "first".into(),
            cluster: pair("10.96.19.86", "fd00:10:96::1392"),
            balanced: pair("203.0.113.90", "2001:db8:113::90").into(),
            external: pair("198.18.0.90", "2001:db8:18::90").into(),
            ports: ports(Some(30_611), Some(30_967)),
            ..Shape::default()
        },
        Shape {
            name: "second".into(),
            cluster: pair("10.96.27.123", "fd00:10:96::42d6"),
            ports: ports(None, None),
            ..Shape::default()
        },
        Shape {
            name: "third".into(),
            cluster: pair("10.96.95.141", "fd00:10:96::f3e9"),
            ports: ports(None, None),
            ..Shape::default()
        },
    ];
    let mut cluster = Cluster::new(&Options::default());
    cluster.apply(shapes.iter().flat_map(Shape::objects));
    cluster
}

/// Addresses of a setup's rows: cluster IPs, load balancer IPs, external IPs; one a family where it was asked.
fn addresses(rows: &[Row], setup: &str) -> [Vec<String>; 3] {
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    for row in rows.iter().filter(|row| row.text("setup") == setup) {
        let dst = row.text("dst");
        let starts = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| dst.starts_with(prefix));
        let kind = match dst {
            _ if starts(["10.96.", "fd00:10:96:"]) => 0,
            _ if starts(["203.0.113.", "2001:db8:113:"]) => 1,
            _ if starts(["198.18.", "2001:db8:18:"]) => 2,
            _ => continue,
        };
        if !found[kind].iter().any(|known| known == dst) {
            found[kind].push(dst.to_owned());
        }
    }
    found
}

/// A Service with the addresses that the rows of this setup ask for.
fn shape(rows: &[Row], setup: &str) -> Shape {
    let [cluster, balanced, external] = addresses(rows, setup);
    let mut shape = Shape {
        balanced,
        external,
        ..Shape::default()
    };
    for address in cluster {
        let family = Family::of(ip(&address));
        shape.cluster[family as usize] = address;
    }
    shape
}

/// `LB service, loadBalancerSourceRanges [' 198.51.100.0/28 ', …] (…)`.
fn ranged(rows: &[Row], setup: &str) -> Cluster {
    let list = setup.split(['[', ']']).nth(1).unwrap();
    let node_port = match setup {
        _ if setup.contains("no endpoints") => 32_624,
        _ if setup.contains("172.18.1.0/24") => 31_902,
        _ => 30_586,
    };
    let mut shape = Shape {
        ranges: list
            .split(", ")
            .map(|range| range.trim_matches('\'').to_owned())
            .collect(),
        ports: vec![
            ("t", "TCP", 80, 8080, Some(node_port)),
            ("u", "UDP", 80, 8080, Some(node_port)),
        ],
        ..shape(rows, setup)
    };
    if setup.contains("no endpoints") {
        shape.endpoints.clear();
    }
    let bound = setup.contains("also bound");
    let mut cluster = Cluster::new(&Options {
        extra: if bound {
            shape.balanced.iter().map(|a| ip(a)).collect()
        } else {
            Vec::new()
        },
        ..Options::default()
    });
    cluster.apply(shape.objects());
    cluster
}

fn sctp(rows: &[Row], setup: &str) -> Cluster {
    let mut shape = Shape {
        ports: vec![("s", "SCTP", 80, 8080, Some(SCTP_NODE_PORT))],
        ..shape(rows, setup)
    };
    if setup.contains("eTP Local") {
        shape.external_policy = "Local";
    }
    match setup {
        _ if setup.contains("endpoints none") => shape.endpoints.clear(),
        _ if setup.contains("remote only, iTP Local") => {
            shape.internal_policy = "Local";
            shape.endpoints = ready(&["r1", "r2"]);
        }
        "single remote endpoint" => shape.endpoints = ready(&["r1"]),
        _ => {}
    }
    // Each Service had all four frontends.
    shape.balanced = pair("203.0.113.40", "2001:db8:113::40").into();
    shape.external = pair("198.18.0.40", "2001:db8:18::40").into();
    let mut cluster = Cluster::new(&Options::default());
    cluster.apply(shape.objects());
    cluster
}

/// The cluster of a setup, if rows with it share one.
fn shared(rows: &[Row], setup: &str) -> Option<Cluster> {
    match setup {
        _ if setup.starts_with(STANDARD) => Some(standard()),
        _ if setup.starts_with("LB service, ") => Some(ranged(rows, setup)),
        _ if setup.starts_with("SCTP") || setup == "single remote endpoint" => Some(sctp(rows, setup)),
        _ => None,
    }
}

/// One row, probed.
fn probe(cluster: &mut Cluster, row: &Row) -> (Vec<Fate>, usize) {
    if odd::packet(row, 1).is_some() {
        let one = row.text("test").contains("port 0 source");
        let flows = if row.text("outcome") == "FORWARD" && !one {
            FLOWS
        } else {
            1
        };
        return (
            fates(cluster, row, flows, |sport| odd::packet(row, sport).unwrap()),
            flows,
        );
    }
    if row.text("proto").starts_with("SCTP") {
        let node = row.text("dst").starts_with("172.18.") || row.text("dst").starts_with("fd00:18:");
        let port = if node { SCTP_NODE_PORT } else { 80 };
        let (client, dst) = (client(row), ip(row.text("dst")));
        let flows = if row.text("outcome") == "FORWARD" {
            FLOWS
        } else {
            3
        };
        let open = |sport| opening("SCTP", (client, sport), (dst, port));
        return (fates(cluster, row, flows, open), flows);
    }
    (replay(cluster, row), FLOWS)
}

#[test]
fn single_rules_are_kube_proxys_but_for_differences_on_purpose() {
    let rows = rows("rules");
    let mut ledger = Ledger::new("rules", ON_PURPOSE);
    let mut clusters: BTreeMap<String, Cluster> = BTreeMap::new();
    for row in &rows {
        let setup = row.text("setup");
        if objects::replay_row(&mut ledger, row) {
            continue;
        }
        let wanted = recorded(row);
        if row.text("client").starts_with("127.")
            || row.text("client") == "::1"
            || is_within_node(row, &wanted)
        {
            ledger.not_ours(row, "the node talks to itself within its own stack");
            continue;
        }
        let key = if setup.starts_with(STANDARD) {
            STANDARD
        } else {
            setup
        };
        if !clusters.contains_key(key) {
            let cluster = shared(&rows, setup).unwrap_or_else(|| panic!("{row}: no such cluster"));
            clusters.insert(key.to_owned(), cluster);
        }
        let Some(cluster) = clusters.get_mut(key) else {
            continue;
        };
        let (fates, flows) = probe(cluster, row);
        ledger.compare_by(row, &wanted, &summary(&fates), |wanted, ours| {
            fits(row, wanted, ours, flows)
        });
    }
    ledger.close(724);
}

fn is_within_node(row: &Row, wanted: &str) -> bool {
    row.text("source") == "node" && wanted == "the node's own"
}
