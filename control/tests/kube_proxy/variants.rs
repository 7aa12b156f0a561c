//! Options of the proxy: masquerading everything, other ways to tell pods, other node port addresses.

use serde_json::{Value, json};

use crate::cluster::{Cluster, Options};
use crate::differences::variants::ON_PURPOSE;
use crate::fate::summary;
use crate::ledger::{Ledger, Row, rows};
use crate::probe::{FLOWS, fits, recorded, replay};
use crate::shape::{ALL, Shape, ready};
use crate::topology::{Family, ip};

/// The options of a `setup`.
fn options(setup: &str) -> Options {
    // Bound to the node's loopback interface in the records: a node address beside those of its NIC ports.
    let default = Options {
        extra: vec![ip("203.0.113.222"), ip("2001:db8:113::222")],
        ..Options::default()
    };
    let pods = |pods: &[&'static str]| Options {
        pods: pods.to_vec(),
        ..default.clone()
    };
    match setup {
        "masqueradeAll: true" => Options {
            masquerade_all: true,
            ..default
        },
        "no clusterCIDR, detectLocalMode unset" => pods(&[]),
        // Which sources come from the node's own pods is said by networks here, by interfaces there.
        "detectLocalMode: NodeCIDR" | "detectLocalMode: InterfaceNamePrefix v" => {
            pods(&["10.244.1.0/24", "fd00:244:1::/64"])
        }
        "detectLocalMode: BridgeInterface (interface of pod lc)" => {
            pods(&["10.244.1.13/32", "fd00:244:1::13/128"])
        }
        "clusterCIDR of one family only (v4)" => pods(&["10.244.0.0/16"]),
        _ => {
            let list = setup
                .strip_prefix("nodePortAddresses ")
                .unwrap_or_else(|| panic!("no setup: {setup}"));
            Options {
                node_ports: node_port_addresses(list),
                ..default
            }
        }
    }
}

/// `["198.51.100.0/24"] (v4 only)`, `unset`, `["primary"]`.
fn node_port_addresses(list: &str) -> Vec<String> {
    let list = list.rsplit_once(']').map_or("[", |(list, _)| list);
    let list: Vec<String> = serde_json::from_str(&format!("{list}]")).unwrap();
    list.into_iter().filter(|entry| entry != "primary").collect()
}

/// The three Services of the records.
fn services() -> Vec<Value> {
    let shape = |(name, policy, endpoints, index): (&str, &'static str, &[&'static str], u16)| Shape {
        name: name.into(),
        cluster: [
            format!("10.96.221.{}", 37 + index),
            format!("fd00:10:96::{}", 221 + index),
        ],
        balanced: vec![
            format!("203.0.113.{}", 30 + index),
            format!("2001:db8:113::{}", 30 + index),
        ],
        external: vec![
            format!("198.18.0.{}", 30 + index),
            format!("2001:db8:18::{}", 30 + index),
        ],
        ports: vec![("t", "TCP", 80, 8080, Some(30_588 + index))],
        external_policy: policy,
        endpoints: ready(endpoints),
        ..Shape::default()
    };
    let all = [
        ("cluster", "Cluster", &ALL[..], 0),
        ("local", "Local", &ALL[..], 1),
        ("remote", "Local", &ALL[2..], 2),
    ];
    all.into_iter()
        .flat_map(|service| shape(service).objects())
        .collect()
}

/// The row with the addresses of our Services: cluster IPs and node ports were drawn by lot in the records.
fn addressed(row: &Row) -> Row {
    let mut row = row.clone();
    let family = Family::of(ip(row.text("dst")));
    let service = match (row.text("etp"), row.text("situation")) {
        ("Local", "remote-ready-only") => 2,
        ("Local", _) => 1,
        _ => 0,
    };
    match row.text("frontend") {
        "clusterIP" => {
            let v4 = format!("10.96.221.{}", 37 + service);
            let v6 = format!("fd00:10:96::{}", 221 + service);
            row.value["dst"] = json!(if family == Family::V4 { v4 } else { v6 });
        }
        "nodePort" => row.value["dport"] = json!(30_588 + service),
        _ => {}
    }
    row
}

#[test]
fn options_change_what_they_change_in_kube_proxy() {
    let rows = rows("variants");
    let mut ledger = Ledger::new("variants", ON_PURPOSE);
    let mut current: Option<(String, Cluster)> = None;
    for row in &rows {
        if row.text("outcome").is_empty() {
            ledger.not_ours(row, "kube-proxy's own nftables rules");
            continue;
        }
        let client = ip(row.text("client"));
        let wanted = recorded(row);
        if client.is_loopback() || row.text("source") == "node" && wanted == "the node's own" {
            ledger.not_ours(row, "the node talks to itself within its own stack");
            continue;
        }
        let setup = row.text("setup");
        if current.as_ref().is_none_or(|(of, _)| of != setup) {
            let mut cluster = Cluster::new(&options(setup));
            cluster.apply(services());
            current = Some((setup.to_owned(), cluster));
        }
        let Some((_, cluster)) = &mut current else {
            continue;
        };
        let fates = replay(cluster, &addressed(row));
        let fit = |wanted: &str, ours: &str| fits(row, wanted, ours, FLOWS);
        ledger.compare_by(row, &wanted, &summary(&fates), fit);
    }
    ledger.close(652);
}
