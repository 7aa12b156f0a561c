//! Flows that live while their Service changes: one UDP flow, one TCP connection, and new flows after the change.
//!
//! Timelines are compared answer by answer, each once, and endpoints by whether they are the flow's first one: which of
//! several takes over is chance there and here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::json;

use crate::cluster::{Cluster, Options};
use crate::differences::updates::ON_PURPOSE;
use crate::fate::{Fate, fate};
use crate::ledger::{Ledger, Row, rows};
use crate::packet::{ACK, Packet};
use crate::probe::{FLOWS, opening};
use crate::stories::{NODE_PORT, Story, story};
use crate::topology::{Family, PRIMARY, ip, named};

/// A flow of the row's client.
struct Flow {
    protocol: &'static str,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    /// Endpoint and port that answered first.
    first: Option<(String, u16)>,
}

impl Flow {
    /// Its next packet, and who answers: `first`, `another`, or how it is turned away.
    fn speak(&mut self, cluster: &mut Cluster) -> String {
        let packet = match (self.protocol, &self.first) {
            ("TCP", Some(_)) => Packet::tcp(self.from, self.to, ACK, b"more"),
            _ => opening(self.protocol, self.from, self.to),
        };
        match fate(&mut cluster.bed, named("client"), &packet) {
            Fate::Endpoint { name, port, .. } => {
                let answered = (name, port);
                if *self.first.get_or_insert_with(|| answered.clone()) == answered {
                    "first"
                } else {
                    "another"
                }
                .into()
            }
            other => turned_away(&other),
        }
    }
}

/// A refusal is one to the client whoever sends it; silence is silence whether the packet went on or not.
fn turned_away(fate: &Fate) -> String {
    match fate {
        Fate::Icmp(_) | Fate::Host => "refused".into(),
        Fate::Silence | Fate::PassedOn(_) => "no answer".into(),
        other => other.to_string(),
    }
}

/// A flow that is answered by the recorded endpoint, if any is recorded; else one that just asks.
fn flow(cluster: &mut Cluster, row: &Row, protocol: &'static str) -> (Flow, String) {
    let family = row.value["family"].as_str().map_or(Family::V4, Family::named);
    let at = |v4: &str, v6: &str| ip(if family == Family::V4 { v4 } else { v6 });
    let to = match row.text("frontend") {
        "clusterIP" => (at("10.96.7.7", "fd00:10:96::707"), 80),
        "lbIP" => (at("203.0.113.77", "2001:db8:113::77"), 80),
        "externalIP" => (at("198.18.0.77", "2001:db8:18::77"), 80),
        "nodePort" => (at(PRIMARY[0], PRIMARY[1]), NODE_PORT),
        other => panic!("no frontend: {other}"),
    };
    let field = if protocol == "UDP" {
        "udp_endpoint"
    } else {
        "tcp_endpoint"
    };
    loop {
        let from = (named("client").address(family), cluster.next_port());
        let mut flow = Flow {
            protocol,
            from,
            to,
            first: None,
        };
        let answer = flow.speak(cluster);
        let wanted = row.text(field);
        let right = flow
            .first
            .as_ref()
            .is_none_or(|(name, _)| wanted.is_empty() || name == wanted);
        if right {
            return (flow, answer);
        }
    }
}

/// What our gateway does, as one line.
fn replay(row: &Row) -> String {
    let Story {
        before,
        first,
        second,
        restart,
    } = story(row);
    let mut cluster = Cluster::new(&Options::default());
    cluster.become_only(before);
    let mut flows: Vec<_> = ["UDP", "TCP"]
        .into_iter()
        .filter(|protocol| !unopened(row, protocol))
        .map(|protocol| flow(&mut cluster, row, protocol))
        .collect();
    if restart {
        cluster.restart_control();
    }
    let mut heard: Vec<Vec<String>> = vec![Vec::new(); flows.len()];
    for objects in first {
        cluster.become_only(objects);
        for ((flow, _), heard) in flows.iter_mut().zip(&mut heard) {
            heard.push(flow.speak(&mut cluster));
        }
    }
    for ((_, line), heard) in flows.iter_mut().zip(heard) {
        *line = phase(line, heard);
    }
    let fresh = if row.value["new_flows_after"].is_null() {
        String::new()
    } else {
        fresh(&mut cluster, row)
    };
    if !second.is_empty() {
        second
            .into_iter()
            .for_each(|objects| cluster.become_only(objects));
        for (flow, line) in &mut flows {
            *line += &format!(", {}", flow.speak(&mut cluster));
        }
    }
    let lines = flows
        .iter()
        .map(|(flow, line)| format!("{} {line}; ", flow.protocol));
    lines.collect::<String>() + &fresh
}

/// What a flow heard before and after each of several events, without what a timeline cannot tell from its neighbour; its
/// last answer is told even if it is the first.
fn phase(before: &str, mut heard: Vec<String>) -> String {
    let last = heard.pop();
    let mut words = vec![before.to_owned()];
    words.extend(heard);
    words.dedup();
    if words.len() > 1 && words.last() == last.as_ref() {
        words.pop();
    }
    words.extend(last);
    words.join(", ")
}

/// New flows of both protocols: which endpoints, or how they are turned away.
fn fresh(cluster: &mut Cluster, row: &Row) -> String {
    let mut served = [BTreeSet::new(), BTreeSet::new()];
    let mut turned = BTreeSet::new();
    let mut asked = row.clone();
    asked.value["udp_endpoint"] = json!("");
    asked.value["tcp_endpoint"] = json!("");
    for protocol in ["UDP", "TCP"].into_iter().cycle().take(2 * FLOWS) {
        match flow(cluster, &asked, protocol) {
            (
                Flow {
                    first: Some((name, _)),
                    ..
                },
                _,
            ) => drop(served[usize::from(protocol == "TCP")].insert(name)),
            (_, answer) => drop(turned.insert(answer)),
        }
        // Refusals are alike, and limited in time; the flows of the row must not expire meanwhile.
        if !turned.is_empty() {
            cluster.bed.wait(1);
            break;
        }
    }
    met(row, served, turned)
}

/// A connection that could not be opened is no longer tried: the client's doing.
fn unopened(row: &Row, protocol: &str) -> bool {
    let timeline = if protocol == "UDP" {
        "timeline_udp"
    } else {
        "timeline_tcp"
    };
    row.value[timeline].is_null() || row.value[timeline][0][1] == "closed"
}

/// What was recorded, as the same line.
fn recorded(row: &Row) -> String {
    let mut line = String::new();
    for (protocol, timeline) in [("UDP", "timeline_udp"), ("TCP", "timeline_tcp")] {
        if unopened(row, protocol) {
            continue;
        }
        let answers = |field: &str| -> Vec<String> {
            let list = row.value[field].as_array().into_iter().flatten();
            list.map(|entry| entry[1].as_str().unwrap().to_owned()).collect()
        };
        let (first, second) = (answers(timeline), answers(&format!("{timeline}_second_event")));
        let endpoint = first.iter().find(|answer| answer.starts_with(['l', 'r']));
        let word = |answer: &String| match answer.as_str() {
            "ECONNREFUSED" => "refused",
            "no-reply" => "no answer",
            _ if Some(answer) == endpoint => "first",
            _ => "another",
        };
        let mut words: Vec<_> = first.iter().map(word).collect();
        if words.len() == 1 {
            words.push(words[0]);
        }
        // The second event's timeline begins with what was last heard before it. Some rows do not have one.
        let mut later = second.iter().map(word).peekable();
        if second.len() > 1 {
            later.next_if_eq(&words[words.len() - 1]);
        }
        words.extend(later);
        line += &format!("{protocol} {}; ", words.join(", "));
    }
    let mut served = [BTreeSet::new(), BTreeSet::new()];
    let mut turned = BTreeSet::new();
    for (protocol, served) in ["udp", "tcp"].into_iter().zip(&mut served) {
        let outcome = &row.value["new_flows_after"][protocol];
        match outcome[0].as_str() {
            Some("FORWARD") => served.extend(outcome[1].as_object().unwrap().keys().cloned()),
            Some("REJECT-ICMP" | "RST") => drop(turned.insert("refused".into())),
            Some("DROP" | "PASSED-ON") => drop(turned.insert("no answer".into())),
            _ => return line,
        }
    }
    line + &met(row, served, turned)
}

/// What new flows met: the endpoints of both protocols, or how they were turned away. With session affinity each of the
/// two has one of its own.
fn met(row: &Row, served: [BTreeSet<String>; 2], turned: BTreeSet<String>) -> String {
    if row.text("case").starts_with("sessionAffinity") {
        return format!("new: one each: {}", served.iter().all(|set| set.len() == 1));
    }
    let all: BTreeSet<_> = served.into_iter().flatten().chain(turned).collect();
    format!("new: {}", all.into_iter().collect::<Vec<_>>().join(" "))
}

/// `served` is whichever endpoint; twelve new flows over four endpoints may have missed one.
fn fits(wanted: &str, ours: &str) -> bool {
    let split = |text: &str| -> (Vec<String>, BTreeSet<String>) {
        let (flows, new) = text.split_once("new: ").unwrap_or((text, ""));
        let words = flows.split([',', ';']).map(|word| word.trim().to_owned());
        (words.collect(), new.split(' ').map(str::to_owned).collect())
    };
    let ((flows, new), (our_flows, our_new)) = (split(wanted), split(ours));
    let same = |(word, our): (&String, &String)| {
        word == our || word.ends_with("served") && (our.ends_with("first") || our.ends_with("another"))
    };
    let missed = our_new.len() == 4 && new.len() == 3 && new.is_subset(&our_new);
    flows.len() == our_flows.len() && flows.iter().zip(&our_flows).all(same) && (new == our_new || missed)
}

#[test]
fn flows_live_and_die_with_updates_as_in_kube_proxy_but_for_the_stale_flow_contract() {
    let rows = rows("updates");
    let mut ledger = Ledger::new("updates", ON_PURPOSE);
    for row in &rows {
        ledger.compare_by(row, &recorded(row), &replay(row), fits);
    }
    ledger.close(41);
}
