//! What flows are made of: source ports, collisions, reuse, lifetimes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::bench::{ANY, BALANCED, LOCAL, NODE_PORT, REMOTE, Talk, bench, client, family};
use crate::cluster::Cluster;
use crate::differences::flows::ON_PURPOSE;
use crate::ledger::{Ledger, Row, rows};
use crate::packet::{ACK, FIN, RST, SYN};
use crate::topology::{self, Family, PRIMARY, having, ip, named};
use crate::{errors, pieces};

/// TP-6: many client ports to one endpoint.
fn source_ports(row: &Row) -> (String, String) {
    let mut cluster = bench();
    let family = family(row);
    let client = named("client");
    let range = row.value["client_ports"].as_array();
    let ends = range.map_or([21_000, 21_299], |range| {
        [0, 1].map(|end| range[end].as_u64().unwrap() as u16)
    });
    let to = (ip(REMOTE[family as usize]), 80);
    let talks: Vec<_> = (ends[0]..=ends[1])
        .filter_map(|port| {
            let from = (client.address(family), port);
            let talk = Talk::open(&mut cluster, client, row.text("proto"), from, to)?;
            talk.answer(&mut cluster, SYN | ACK).then_some(talk)
        })
        .collect();
    let ports: BTreeSet<_> = talks.iter().map(|talk| talk.got.sport()).collect();
    let line = |answered: usize, distinct: usize, lowest: u64| {
        let class = if lowest < 1024 {
            "a low port for a low port"
        } else {
            "no low port"
        };
        format!("{answered} flows, {distinct} ports, {class}")
    };
    let replies = row.value["replies"].as_u64().unwrap() as usize;
    let recorded = row.value["distinct"]
        .as_u64()
        .map_or(replies, |distinct| distinct as usize);
    let lowest = ports.first().map_or(0, |port| u64::from(*port));
    let recorded = line(replies, recorded, row.value["min"].as_u64().unwrap());
    (recorded, line(talks.len(), ports.len(), lowest))
}

/// Who sees whom in several flows: flows that look alike to the endpoint have one number.
fn sights(flows: &[(String, String, u16)]) -> String {
    let mut known = Vec::new();
    let mut lines = Vec::new();
    for (endpoint, kind, port) in flows {
        let sight = (endpoint, kind, port);
        let number = known.iter().position(|known| *known == sight).unwrap_or_else(|| {
            known.push(sight);
            known.len() - 1
        });
        lines.push(format!("{kind} #{number}"));
    }
    lines.join(", ")
}

/// What an endpoint of the record saw: name, kind of address, port.
fn seen(cell: &Value, client: &str) -> (String, String, u16) {
    let text = |index: usize| cell[index].as_str().unwrap_or_default();
    let port = cell[2]
        .as_u64()
        .map_or_else(|| text(2).parse().unwrap_or(0), |port| port as u16);
    let kind = if text(1) == client {
        Some("client-kept")
    } else {
        topology::kind(ip(text(1)))
    };
    (text(0).into(), kind.unwrap_or("a stranger").into(), port)
}

fn sight(talk: &Talk) -> (String, String, u16) {
    let (endpoint, kind) = talk.ends();
    (endpoint.into(), kind.into(), talk.got.sport())
}

/// Two clients with one source port; by the load balancer, each keeps it.
fn two_clients(row: &Row) -> (String, String) {
    let mut cluster = bench();
    let to = if row.text("frontend").starts_with("LB") {
        BALANCED
    } else {
        REMOTE
    };
    let (mut recorded, mut ours) = (Vec::new(), Vec::new());
    for flow in row.value["flows"].as_array().unwrap() {
        let (name, port) = (flow[0].as_str().unwrap(), flow[1].as_u64().unwrap() as u16);
        let (client, address) = (named(name), named(name).address(Family::V4));
        recorded.push(seen(&flow[2], &address.to_string()));
        let talk = Talk::open(
            &mut cluster,
            client,
            row.text("proto"),
            (address, port),
            (ip(to[0]), 80),
        );
        ours.extend(
            talk.filter(|talk| talk.answer(&mut cluster, SYN | ACK))
                .map(|talk| sight(&talk)),
        );
    }
    // Two clients never look alike: their endpoints by the load balancer are drawn by lot.
    let line = |flows: &[(String, String, u16)]| {
        let kinds: Vec<_> = flows.iter().map(|(_, kind, _)| kind.as_str()).collect();
        let ports: BTreeSet<_> = flows.iter().map(|(_, _, port)| port).collect();
        format!("{}; {} ports", kinds.join(", "), ports.len())
    };
    (line(&recorded), line(&ours))
}

/// One client port to several addresses that lead to one endpoint.
fn one_port(row: &Row) -> (String, String) {
    let mut cluster = bench();
    let (client, address) = client(row);
    let (mut recorded, mut ours) = (Vec::new(), Vec::new());
    let mut open: BTreeMap<IpAddr, Talk> = BTreeMap::new();
    for flow in row.value["flows"].as_array().unwrap() {
        recorded.push(seen(&flow["seen_by_endpoint"], &address.to_string()));
        let to = flow["vip"].as_str().or_else(|| flow["dst"].as_str()).unwrap();
        let port = if having(ip(to)).is_some() { 8080 } else { 80 };
        let (from, to) = ((address, 25_500), (ip(to), port));
        let talk = Talk::open(&mut cluster, client, row.text("proto"), from, to);
        let Some(talk) = talk.filter(|talk| talk.answer(&mut cluster, SYN | ACK)) else {
            continue;
        };
        ours.push(sight(&talk));
        open.insert(to.0, talk);
    }
    let mixed = open.values().any(|talk| !talk.answer(&mut cluster, ACK));
    let line = |flows: &[(String, String, u16)], mixed| sights(flows) + if mixed { ", mixed up" } else { "" };
    (line(&recorded, false), line(&ours, mixed))
}

/// CT-16: a port is used again as soon as its connection is closed or reset.
fn reused(row: &Row) -> (String, String) {
    let mut cluster = bench();
    let (client, address) = client(row);
    let sequence = row.value["sequence"].as_array().unwrap();
    let reset = row.text("test").contains("reset");
    let mut ours = Vec::new();
    for _ in 0..sequence.len() {
        let talk = Talk::open(&mut cluster, client, "TCP", (address, 26_000), (ip(ANY[0]), 80));
        let Some(talk) = talk.filter(|talk| talk.answer(&mut cluster, SYN | ACK)) else {
            continue;
        };
        talk.say(&mut cluster, ACK);
        if reset {
            talk.say(&mut cluster, RST | ACK);
        } else {
            close(&talk, &mut cluster);
        }
        ours.push(sight(&talk));
    }
    let recorded: Vec<_> = sequence
        .iter()
        .map(|entry| seen(&entry[0], &address.to_string()))
        .collect();
    // One that stuck to its flow would have met one endpoint of four.
    let line = |flows: &[(String, String, u16)]| {
        let endpoints: BTreeSet<_> = flows.iter().map(|(endpoint, ..)| endpoint).collect();
        let kept = flows.iter().all(|(_, kind, _)| kind == "client-kept");
        format!(
            "{} connections, client kept: {kept}, one endpoint: {}",
            flows.len(),
            endpoints.len() == 1
        )
    };
    (line(&recorded), line(&ours))
}

fn close(talk: &Talk, cluster: &mut Cluster) {
    talk.say(cluster, FIN | ACK);
    talk.answer(cluster, FIN | ACK);
    talk.say(cluster, ACK);
}

/// How long flows live, in the states that the record shows.
fn lifetimes(row: &Row) -> (String, String) {
    let (client, address) = client(row);
    let family = family(row);
    let to = match row.text("title") {
        "external -> nodePort" => (ip(PRIMARY[family as usize]), NODE_PORT),
        "hairpin local pod -> clusterIP" => (ip(LOCAL[family as usize]), 80),
        "external -> LB IP eTP=Local (no SNAT)" => (ip(BALANCED[family as usize]), 80),
        _ => (ip(REMOTE[family as usize]), 80),
    };
    // What the record shows 1 s late at most, rounded up.
    let seconds = |field: &str| {
        let words = row.value[field][0].as_str()?.split(' ').nth(2)?;
        Some(words.parse::<u32>().ok()?.next_multiple_of(10))
    };
    let states = [
        "established",
        "after_close",
        "after_first_packet",
        "after_reply",
        "after_2s_more_traffic",
    ];
    let (mut recorded, mut ours) = (Vec::new(), Vec::new());
    for (state, lifetime) in states
        .into_iter()
        .filter_map(|state| Some((state, seconds(state)?)))
    {
        let alive = |after: u32| {
            let mut cluster = bench();
            let talk = Talk::open(&mut cluster, client, row.text("proto"), (address, 27_000), to);
            talk.is_some_and(|talk| {
                lead_to(state, &talk, &mut cluster);
                cluster.bed.wait(after);
                talk.answer(&mut cluster, ACK)
            })
        };
        recorded.push(format!("{state}: {lifetime} s"));
        let lives = (alive(lifetime - 2), alive(lifetime + 3));
        let right = lives == (true, false);
        ours.push(if right {
            format!("{state}: {lifetime} s")
        } else {
            format!("{state}: {lives:?}")
        });
    }
    (recorded.join(", "), ours.join(", "))
}

/// Brings a flow into a state that the record names.
fn lead_to(state: &str, talk: &Talk, cluster: &mut Cluster) {
    match state {
        "after_first_packet" => {}
        "established" | "after_close" => {
            talk.answer(cluster, SYN | ACK);
            talk.say(cluster, ACK);
            if state == "after_close" {
                close(talk, cluster);
            }
        }
        "after_reply" => {
            talk.answer(cluster, ACK);
        }
        _ => {
            for _ in 0..4 {
                talk.answer(cluster, ACK);
                cluster.bed.wait(1);
                talk.say(cluster, ACK);
            }
        }
    }
}

#[test]
fn flows_errors_and_fragments_are_treated_as_by_kube_proxy_but_for_differences_on_purpose() {
    let rows = rows("flows");
    let mut ledger = Ledger::new("flows", ON_PURPOSE);
    for row in &rows {
        let (recorded, ours) = match row.text("test") {
            test if test.starts_with("SNAT source port") => source_ports(row),
            "two clients with the same source port" => two_clients(row),
            test if test.starts_with("one client port used") => one_port(row),
            test if test.starts_with("TCP source port reused") => reused(row),
            "conntrack entry" => lifetimes(row),
            test if test.starts_with("packet too big") => errors::from_a_router(row),
            "ICMP port unreachable from the endpoint" => errors::from_the_endpoint(row),
            test if test.starts_with("hop limit") => errors::hop_limit(row),
            "8000-byte UDP datagram in fragments" => pieces::long_datagram(row),
            test if test.starts_with("hand-made fragments") => pieces::hand_made(row),
            test if test.starts_with("UDP checksum") => pieces::checksum(row),
            _ => {
                ledger.not_ours(row, "settings of the node's kernel");
                continue;
            }
        };
        ledger.compare(row, &recorded, &ours);
    }
    ledger.close(110);
}
