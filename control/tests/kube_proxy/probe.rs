//! Rows that say: this client sent that, and this became of it. Most files consist of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::fate::{Fate, fate};
use crate::ledger::Row;
use crate::packet::{Packet, SYN};
use crate::topology::{self, Family, Nic, having, ip, named};

/// Enough that one of four endpoints is missed by chance in one of 10⁹ rows: 4 × (3/4)⁸⁰.
pub(crate) const FLOWS: usize = 80;
/// Refusals are all alike, and each waits for the limiter.
const REFUSALS: usize = 6;
/// With this many tries in the record, endpoints of one side only were not missed by chance.
const TELLING: u64 = 8;

/// The first packet of a flow, as long as the recorded ones.
pub(crate) fn opening(protocol: &str, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    match protocol {
        "TCP" => Packet::tcp(from, to, SYN, b""),
        "UDP" => Packet::udp(from, to, &[b'x'; 30]),
        "SCTP" | "SCTP INIT" => Packet::sctp(from, to, 1),
        "ICMP-ECHO" => Packet::echo(from.0, to.0, &[b'x'; 17]),
        other => panic!("no protocol: {other}"),
    }
}

/// What becomes of `flows` packets from the row's client.
pub(crate) fn fates(
    cluster: &mut Cluster,
    row: &Row,
    flows: usize,
    packet: impl Fn(u16) -> Packet,
) -> Vec<Fate> {
    let source = named(row.text("source"));
    let mut fates = Vec::new();
    while fates.len() < flows {
        let packet = packet(match source.nic {
            Nic::Host => cluster.next_node_port(),
            _ => cluster.next_port(),
        });
        let fate = fate(&mut cluster.bed, source, &packet);
        let refused = matches!(fate, Fate::Icmp(_));
        fates.push(fate);
        if refused {
            cluster.bed.wait(1); // in the records the limiter was off
            if fates.len() >= REFUSALS {
                break;
            }
        }
    }
    fates
}

/// The row's client: the address it names, or its source's.
pub(crate) fn client(row: &Row) -> IpAddr {
    match row.text("client") {
        "" => named(row.text("source")).address(Family::of(ip(row.text("dst")))),
        address => ip(address),
    }
}

/// The same, for a row that names its client, destination and protocol.
pub(crate) fn replay(cluster: &mut Cluster, row: &Row) -> Vec<Fate> {
    let (client, dst) = (client(row), ip(row.text("dst")));
    let dport = row.value["dport"].as_u64().unwrap_or(0) as u16;
    let flows = if row.text("outcome") == "FORWARD" {
        FLOWS
    } else {
        REFUSALS
    };
    fates(cluster, row, flows, |sport| {
        opening(row.text("proto"), (client, sport), (dst, dport))
    })
}

/// What was recorded, in the words of `Fate`.
pub(crate) fn recorded(row: &Row) -> String {
    match row.text("outcome") {
        "FORWARD" => {
            let all: BTreeSet<_> = endpoints(row).collect();
            all.into_iter().collect::<Vec<_>>().join("; ")
        }
        "DROP" => "silence".into(),
        "RST" | "ECHO-REPLY" => "the node's own".into(),
        "REJECT-ICMP" if !is_refused_by_rules(row) => "the node's own".into(),
        "REJECT-ICMP" | "ICMP-TIME-EXCEEDED" => {
            let all: BTreeSet<_> = errors(row).collect();
            all.into_iter().collect::<Vec<_>>().join("; ")
        }
        "PASSED-ON" => {
            let to = row.value["passed_on_untranslated_to"].as_object().unwrap();
            let to = to.iter().find(|(_, count)| count.as_u64() > Some(0)).unwrap().0;
            let to = if to.starts_with("upstream") { "client" } else { to };
            format!("passed on to {to}")
        }
        other => panic!("{}: no outcome: {other}", row.id),
    }
}

/// Not by the node's own stack, which has no such socket.
fn is_refused_by_rules(row: &Row) -> bool {
    let own = [
        "node address, ",
        "nodePort on ",
        "undefined port of LB IP bound",
        "externalIP equal to a node address: undefined",
    ];
    !own.iter().any(|test| row.text("test").starts_with(test))
}

/// Endpoints that were reached, and whom they saw.
fn endpoints(row: &Row) -> impl Iterator<Item = String> {
    let port = row.value["target_ports"][0].as_u64().unwrap_or(8080);
    let mut all = Vec::new();
    for (name, kinds) in row.value["source_seen"].as_object().into_iter().flatten() {
        match kinds {
            Value::String(kind) => all.push((name.clone(), port, kind.clone())),
            kinds => {
                let kinds = kinds.as_object().unwrap().keys();
                all.extend(kinds.map(|kind| (name.clone(), port, kind.clone())));
            }
        }
    }
    // A try without an answer is a remote endpoint that met itself (README of the records).
    if row.value["no_reply"].as_u64() > Some(0) && row.text("source") == "hairpin-remote" {
        let met = "client-kept-no-reply-possible";
        if !all.iter().any(|(_, _, kind)| kind == met) {
            all.push(("r1".into(), port, met.into()));
        }
    }
    for got in row.value["endpoint_got"].as_array().into_iter().flatten() {
        let src = got["src"].as_str().unwrap();
        let kind = if src == row.text("client") {
            Some("client-kept")
        } else {
            topology::kind(ip(src))
        };
        let name = got["endpoint"].as_str().unwrap();
        all.push((name.into(), got["dport"].as_u64().unwrap(), kind.unwrap().into()));
    }
    all.into_iter()
        .map(|(name, port, kind)| format!("{name}:{port} as {kind}"))
}

/// ICMP errors that came back.
fn errors(row: &Row) -> impl Iterator<Item = String> {
    let listed = |value: &Value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let field = if row.value["icmp"].is_null() {
        "returned"
    } else {
        "icmp"
    };
    listed(&row.value[field]).into_iter().map(|error| {
        let (kind, code) = match error["icmp"].as_array() {
            Some(pair) => (pair[0].clone(), pair[1].clone()),
            None => (error["type"].clone(), error["code"].clone()),
        };
        let from = error["from"].as_str().unwrap();
        format!(
            "ICMP {kind}/{code} from {from}, {} bytes, {} quoted",
            error["ip_len"], error["quoted_len"]
        )
    })
}

/// Whether a record of so many tries is likely to have missed all but `reached` of `all` endpoints: once in ten thousand.
fn missed(reached: usize, all: usize, tries: u64) -> bool {
    all <= reached || (reached as f64 / all as f64).powi(tries as i32) > 1e-4
}

/// Whether what became of `flows` packets fits a record of fewer: every endpoint of the record is reached, seen as
/// recorded, and beyond those only endpoints on a side that the record reached, seen as those are, and no more than it can
/// have missed by chance.
pub(crate) fn fits(row: &Row, wanted: &str, ours: &str, flows: usize) -> bool {
    if wanted == ours {
        return true;
    }
    let split = |text: &str| -> Vec<(String, String)> {
        let pair = |part: &str| {
            part.split_once(':')
                .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        };
        text.split("; ").filter_map(pair).collect()
    };
    let (wanted_parts, ours_parts) = (split(wanted), split(ours));
    if row.text("outcome") != "FORWARD" || ours_parts.len() != ours.split("; ").count() {
        return false;
    }
    let tries = row.value["tries"].as_u64().unwrap_or(1);
    let client = row.value["client"].as_str().and_then(|client| having(ip(client)));
    let side = |name: &str| name.starts_with('l');
    let reached = flows < FLOWS || wanted_parts.iter().all(|part| ours_parts.contains(part));
    let explained = |(name, rest): &(String, String)| {
        let mut near = wanted_parts
            .iter()
            .filter(|(other, _)| side(other) == side(name))
            .peekable();
        if near.peek().is_none() {
            let kept = |rest: &str| rest.ends_with("client-kept");
            return tries < TELLING && wanted_parts.iter().all(|(_, other)| kept(other) == kept(rest));
        }
        let hairpin = client.is_some_and(|client| client.name == name && !rest.ends_with("client-kept"));
        hairpin || near.any(|(_, other)| other == rest)
    };
    let names = |parts: &[(String, String)]| {
        parts
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<BTreeSet<_>>()
            .len()
    };
    let chance = missed(names(&wanted_parts), names(&ours_parts), tries);
    reached && chance && !ours_parts.is_empty() && ours_parts.iter().all(explained)
}
