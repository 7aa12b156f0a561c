//! Flows that live while their Service changes: one UDP flow, one TCP connection, and new flows after the change.
//!
//! Timelines are compared by where they begin and end, and endpoints by whether they are the flow's first one: which of
//! several takes over is chance there and here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cluster::{Cluster, Condition, FAMILIES, Options};
use crate::differences::updates::{AWAITED, ON_PURPOSE};
use crate::fate::{Fate, fate};
use crate::ledger::{Ledger, Row, rows};
use crate::packet::{ACK, Packet};
use crate::probe::{FLOWS, opening};
use crate::shape::{Shape, pair, ready};
use crate::topology::{Family, PRIMARY, ip, named};

const NODE_PORT: u16 = 30_077;

/// What happens in a row: the objects before, and after each event. The flows speak after all of the first list, and
/// again after all of the second.
struct Story {
    before: Vec<Value>,
    first: Vec<Vec<Value>>,
    second: Vec<Vec<Value>>,
    /// Control is restarted before the first event.
    restart: bool,
}

fn shape(endpoints: &[(&'static str, Condition)]) -> Shape {
    Shape {
        balanced: pair("203.0.113.77", "2001:db8:113::77").into(),
        external: pair("198.18.0.77", "2001:db8:18::77").into(),
        ports: vec![
            ("t", "TCP", 80, 8080, Some(NODE_PORT)),
            ("u", "UDP", 80, 8080, Some(NODE_PORT)),
        ],
        endpoints: endpoints.to_vec(),
        ..Shape::default()
    }
}

/// Endpoints before, as the record has them; `R` ready, `N` not.
fn before(row: &Row) -> Vec<(&'static str, Condition)> {
    let list = row.value["endpoints_before"].as_array().into_iter().flatten();
    let condition = |letter: &Value| {
        if letter == "R" {
            Condition::READY
        } else {
            Condition::NOT_READY
        }
    };
    list.map(|pair| (named(pair[0].as_str().unwrap()).name, condition(&pair[1])))
        .collect()
}

fn story(row: &Row) -> Story {
    let was = before(row);
    let plain = shape(&was);
    let flow = row.text("udp_endpoint");
    // The endpoint of the flow in another condition, or gone.
    let with = |condition: Option<Condition>| {
        let others = was.iter().copied().filter(|(name, _)| *name != flow);
        let changed = condition.map(|condition| (named(flow).name, condition));
        shape(&others.chain(changed).collect::<Vec<_>>()).objects()
    };
    let kept = |change: &dyn Fn(&mut Shape)| {
        let mut shape = plain.clone();
        change(&mut shape);
        shape.objects()
    };
    let just = |first: Vec<Value>| (vec![first], Vec::new());
    let then = |first: Vec<Value>, second: Vec<Value>| (vec![first], vec![second]);
    let all = || plain.objects();
    let slices_only = || all().split_off(1);
    let none = || shape(&[]).objects();
    let case = row
        .text("case")
        .trim_start_matches("kube-proxy stopped, ")
        .trim_end_matches(", kube-proxy started");
    let (first, second) = match case {
        "Service deleted (slices kept), then nothing" | "Service deleted" => just(slices_only()),
        "Service deleted with its slices" => just(Vec::new()),
        "Service deleted and recreated with the same clusterIP and other endpoints" => (
            vec![Vec::new(), shape(&ready(&["l2", "r2"])).objects()],
            Vec::new(),
        ),
        "all endpoints removed (scaled to zero), then back" => then(none(), all()),
        "endpoint becomes not ready (not serving)" | "single endpoint becomes not ready" => {
            then(with(Some(Condition::NOT_READY)), all())
        }
        "endpoint becomes terminating and not serving" => {
            just(with(Some(Condition::TERMINATING_NOT_SERVING)))
        }
        "endpoint becomes not ready but still serving, not terminating" => {
            then(with(Some(Condition::SERVING_NOT_READY)), all())
        }
        "endpoint becomes terminating and serving" | "single endpoint becomes terminating and serving" => {
            then(with(Some(Condition::TERMINATING)), with(None))
        }
        "another endpoint added" => just(shape(&ready(&["l1", "r1", "l2", "r2"])).objects()),
        "another endpoint removed" => just(shape(&ready(&["l1", "r1"])).objects()),
        "internalTrafficPolicy set to Local while the flow goes to a remote endpoint" => {
            // An endpoint elsewhere is what makes it DROP.
            just(kept(&|shape| shape.internal_policy = "Local"))
        }
        "externalTrafficPolicy set to Local while the flow goes to a remote endpoint" => {
            just(kept(&|shape| shape.external_policy = "Local"))
        }
        "type LoadBalancer -> ClusterIP while a flow uses the nodePort" => just(kept(&|shape| {
            shape.balanced.clear();
            shape.ports.iter_mut().for_each(|port| port.4 = None);
        })),
        "LB status removed while a flow uses the LB IP" => {
            let mut objects = all();
            objects[0]["status"] = json!({});
            just(objects)
        }
        "target port changes 8080 -> 8081 (same addresses)" => just(kept(&|shape| {
            shape.ports.iter_mut().for_each(|port| port.3 = 8081)
        })),
        "an unrelated Service of the same endpoints is deleted" => just(all()),
        "all endpoints become not ready, a replacement appears 1.5 s later" => {
            let gone = was.iter().map(|(name, _)| (*name, Condition::NOT_READY));
            let replaced = gone.clone().chain([("l2", Condition::READY)]);
            let (gone, replaced): (Vec<_>, Vec<_>) = (gone.collect(), replaced.collect());
            (
                vec![shape(&gone).objects(), shape(&replaced).objects()],
                Vec::new(),
            )
        }
        "externalIPs of the Service changed while a flow uses the clusterIP" => just(kept(&|shape| {
            shape.external = pair("198.18.0.78", "2001:db8:18::78").into()
        })),
        "sessionAffinity switched on while a flow is open" => just(kept(&|shape| shape.affinity = 10_800)),
        "client sends UDP from a fixed port before the Service exists, and keeps sending" => {
            (vec![none(), shape(&ready(&["l1", "r1"])).objects()], Vec::new())
        }
        "Service starts without endpoints (REJECT), then gets them" => {
            just(shape(&ready(&["l1", "r1"])).objects())
        }
        "Service starts with only remote endpoints and iTP Local (DROP), then gets a local one" => {
            just(kept(&|shape| {
                shape.internal_policy = "Local";
                shape.endpoints = ready(&["l1", "r1"]);
            }))
        }
        "kube-proxy restarted, endpoints unchanged" => just(all()),
        _ if case.starts_with("endpoint of the UDP flow removed") => then(with(None), all()),
        other => panic!("{row}: no case: {other}"),
    };
    let unrelated = Shape {
        name: "unrelated".into(),
        cluster: pair("10.96.7.8", "fd00:10:96::708"),
        endpoints: was.clone(),
        ..Shape::default()
    };
    let mut before = match case {
        _ if case.starts_with("client sends UDP") => Vec::new(),
        _ if case.contains("iTP Local (DROP)") => kept(&|shape| shape.internal_policy = "Local"),
        _ => all(),
    };
    if case.starts_with("an unrelated Service") {
        before.extend(unrelated.objects());
    }
    Story {
        before,
        first,
        second: if row.value["timeline_udp_second_event"].is_null() {
            Vec::new()
        } else {
            second
        },
        restart: row.text("case").starts_with("kube-proxy"),
    }
}

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
    for objects in first {
        cluster.become_only(objects);
    }
    for (flow, line) in &mut flows {
        *line += &format!(", {}", flow.speak(&mut cluster));
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

/// New flows of both protocols: which endpoints, or how they are turned away.
fn fresh(cluster: &mut Cluster, row: &Row) -> String {
    let mut served = BTreeSet::new();
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
            ) => drop(served.insert(name)),
            (_, answer) => drop(turned.insert(answer)),
        }
        // Refusals are alike, and limited in time; the flows of the row must not expire meanwhile.
        if !turned.is_empty() {
            cluster.bed.wait(1);
            break;
        }
    }
    format!(
        "new: {}",
        served.into_iter().chain(turned).collect::<Vec<_>>().join(" ")
    )
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
        let mut words: Vec<_> = [first.first(), first.last(), second.last()]
            .into_iter()
            .flatten()
            .map(word)
            .collect();
        // The second event of these is not recorded: a timeline that says nothing new.
        words.truncate(if second.is_empty() { 2 } else { 3 });
        line += &format!("{protocol} {}; ", words.join(", "));
    }
    let mut new = BTreeSet::new();
    for protocol in ["udp", "tcp"] {
        let outcome = &row.value["new_flows_after"][protocol];
        match outcome[0].as_str() {
            Some("FORWARD") => new.extend(outcome[1].as_object().unwrap().keys().cloned()),
            Some("REJECT-ICMP" | "RST") => drop(new.insert("refused".into())),
            Some("DROP" | "PASSED-ON") => drop(new.insert("no answer".into())),
            _ => return line,
        }
    }
    line + &format!("new: {}", new.into_iter().collect::<Vec<_>>().join(" "))
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
    let mut ledger = Ledger::new("updates", ON_PURPOSE, AWAITED);
    for row in &rows {
        if !FAMILIES.contains(&row.value["family"].as_str().map_or(Family::V4, Family::named)) {
            ledger.wait_for(row, "IPv6");
            continue;
        }
        ledger.compare_by(row, &recorded(row), &replay(row), fits);
    }
    ledger.close(rows.len());
}
