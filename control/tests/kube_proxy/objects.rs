//! The rows of `rules.jsonl` that are about objects rather than packets, and those that take more than one packet. Each
//! has a cluster of its own, made in steps, and is probed after the last.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use sluice_dataplane::counters::CounterId;

use crate::cluster::{Cluster, Options};
use crate::fate::{Fate, fate, summary};
use crate::ledger::{Ledger, Row};
use crate::packet::{ACK, Packet};
use crate::probe::{FLOWS, fits, opening, recorded, replay};
use crate::shape::{Shape, pair, ready};
use crate::topology::{Family, having, ip, kind, named};

fn shape() -> Shape {
    Shape::default()
}

/// Writes a label into each object of a kind.
fn labelled(mut objects: Vec<Value>, kind: &str, label: &str, value: &str) -> Vec<Value> {
    for object in objects.iter_mut().filter(|object| object["kind"] == kind) {
        object["metadata"]["labels"][label] = json!(value);
    }
    objects
}

/// The objects of this row, a list an update; `None` if it is not one of these rows.
fn steps(row: &Row) -> Option<Vec<Vec<Value>>> {
    let (test, setup) = (row.text("test"), row.text("setup"));
    let dst = row.text("dst");
    let at = |shape: Shape| Shape {
        cluster: pair(dst, "fd00:10:96::abcd"),
        ..shape
    };
    let headless = "service.kubernetes.io/headless";
    let proxy = "service.kubernetes.io/service-proxy-name";
    let plain = || at(shape()).objects();
    let balanced = |node_port| Shape {
        cluster: pair("10.96.185.53", "fd00:10:96::55c"),
        balanced: pair("203.0.113.50", "2001:db8:113::50").into(),
        ports: vec![("t", "TCP", 80, 8080, node_port)],
        ..shape()
    };
    let ingress = |value: Value| {
        let mut objects = balanced(Some(31_295)).objects();
        objects[0]["status"]["loadBalancer"]["ingress"] = value;
        objects
    };
    let both = |mode: &str| json!([{"ip": "203.0.113.50", "ipMode": mode}, {"ip": "2001:db8:113::50", "ipMode": mode}]);
    Some(match test {
        _ if setup == "ipMode Proxy" => vec![ingress(both("Proxy"))],
        "LB ingress ip written without ipMode" => vec![ingress(json!([{"ip": "203.0.113.50"}]))],
        "LB ingress hostname only" => vec![ingress(json!([{"hostname": "lb.example"}]))],
        "loadBalancerSourceRanges removed" => {
            let open = Shape {
                balanced: pair(dst, "2001:db8:113::61").into(),
                ..shape()
            };
            let closed = Shape {
                ranges: vec!["198.51.100.10/32".into()],
                ..open.clone()
            };
            vec![closed.objects(), open.objects()]
        }
        "service-proxy-name label" | "service-proxy-name label, ICMP echo" => {
            vec![labelled(plain(), "Service", proxy, "other")]
        }
        "service-proxy-name label removed at run time" => {
            vec![labelled(plain(), "Service", proxy, "other"), plain()]
        }
        "headless label on the EndpointSlices" => vec![labelled(plain(), "EndpointSlice", headless, "")],
        "headless label removed from the EndpointSlices" => {
            vec![labelled(plain(), "EndpointSlice", headless, ""), plain()]
        }
        "headless label added at run time" => vec![plain(), labelled(plain(), "EndpointSlice", headless, "")],
        "slice port without name, service port named" => vec![sliced(plain(), |slice| {
            slice["ports"] = json!([{"protocol": "TCP", "port": 8080}]);
        })],
        "endpoint without conditions and without nodeName" => {
            let two = at(Shape {
                endpoints: ready(&["l1", "r1"]),
                ..shape()
            });
            vec![sliced(two.objects(), |slice| {
                for endpoint in slice["endpoints"].as_array_mut().unwrap() {
                    *endpoint = json!({"addresses": endpoint["addresses"]});
                }
            })]
        }
        "endpoint with two addresses" => {
            let one = at(Shape {
                endpoints: ready(&["l1"]),
                ..shape()
            });
            vec![sliced(one.objects(), |slice| {
                let more = if slice["addressType"] == "IPv4" {
                    "10.244.1.12"
                } else {
                    "fd00:244:1::12"
                };
                slice["endpoints"][0]["addresses"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!(more));
            })]
        }
        "unnamed service port, slice port name \"\"" => vec![
            at(Shape {
                ports: vec![("", "TCP", 80, 8080, None)],
                ..shape()
            })
            .objects(),
        ],
        "port 53 TCP and UDP with different target ports" => vec![
            at(Shape {
                ports: vec![("t", "TCP", 53, 8080, None), ("u", "UDP", 53, 8081, None)],
                ..shape()
            })
            .objects(),
        ],
        _ if test.starts_with("externalIP equal to a node address") => {
            let mut shape = Shape {
                external: vec!["172.18.1.1".into(), "198.51.100.1".into()],
                ports: vec![("t", "TCP", 80, 8080, None)],
                ..shape()
            };
            if test.ends_with("no endpoints") {
                shape.endpoints.clear();
            }
            vec![shape.objects()]
        }
        "nodePort, no endpoints, asked on an address that is not a nodePort address" => vec![
            Shape {
                ports: vec![("t", "TCP", 80, 8080, Some(32_581))],
                endpoints: Vec::new(),
                ..shape()
            }
            .objects(),
        ],
        _ if test.starts_with("ClusterIP type with externalIP and eTP Local") => vec![
            Shape {
                cluster: pair("10.96.126.218", "fd00:10:96::7eda"),
                external: pair("198.18.0.201", "2001:db8:18::c9").into(),
                external_policy: "Local",
                endpoints: ready(&["r1"]),
                ..shape()
            }
            .objects(),
        ],
        "hairpin, local endpoint" => vec![
            Shape {
                cluster: pair("10.96.44.146", "fd00:10:96::25cc"),
                endpoints: ready(&["l1"]),
                ..shape()
            }
            .objects(),
        ],
        _ => return None,
    })
}

fn sliced(mut objects: Vec<Value>, change: impl Fn(&mut Value)) -> Vec<Value> {
    objects
        .iter_mut()
        .filter(|object| object["kind"] == "EndpointSlice")
        .for_each(change);
    objects
}

fn made(steps: Vec<Vec<Value>>) -> Cluster {
    let mut cluster = Cluster::new(&Options::default());
    steps.into_iter().for_each(|objects| cluster.apply(objects));
    cluster
}

/// Accounts for the row if it is one of these.
pub(crate) fn replay_row(ledger: &mut Ledger, row: &Row) -> bool {
    if let Some(steps) = steps(row) {
        let fates = replay(&mut made(steps), row);
        let wanted = recorded(row);
        ledger.compare_by(row, &wanted, &summary(&fates), |wanted, ours| {
            fits(row, wanted, ours, FLOWS)
        });
        return true;
    }
    let (wanted, ours) = match row.text("test") {
        "hairpin, remote endpoint through this node" => met_itself(row),
        "loadBalancerSourceRanges tightened while a TCP connection is open" => tightened(row),
        "service-proxy-name label added at run time with empty value" => disowned(row),
        "conntrack entries left by rejected/dropped packets" => untracked(row),
        "REJECT rate limit: 100 probes at once from one client" => limited(row),
        "REJECT rate limit: one probe every 0.5-0.6 s" => paced(row),
        _ => return false,
    };
    ledger.compare(row, &wanted, &ours);
    true
}

/// The one endpoint, behind another node, asks the Service whose endpoint it is.
fn met_itself(row: &Row) -> (String, String) {
    let only = Shape {
        endpoints: ready(&["r1"]),
        ..shape()
    };
    let mut cluster = made(vec![only.objects()]);
    let r1 = named("r1");
    let packet = opening("UDP", (ip("10.244.2.11"), 4000), (ip("10.96.7.7"), 80));
    let arrived = |packet: &Value| {
        let (src, dst) = (packet["src"].as_str().unwrap(), packet["dst"].as_str().unwrap());
        let name = having(ip(dst)).map_or("a stranger", |station| station.name);
        let kind = match kind(ip(src)) {
            _ if src == dst && row.value["replies"] == 0 => "client-kept-no-reply-possible",
            _ if ip(src) == r1.address(Family::V4) => "client-kept",
            kind => kind.unwrap_or("a stranger"),
        };
        format!("{name}:{} as {kind}", packet["dport"])
    };
    let recorded = row.value["arrived_at_r1"].as_array().unwrap().iter();
    let recorded: BTreeSet<String> = recorded.map(arrived).collect();
    (
        recorded.into_iter().collect::<Vec<_>>().join("; "),
        fate(&mut cluster.bed, r1, &packet).to_string(),
    )
}

/// The endpoint in a line of the recorded clients: what the server told them comes first.
fn answered(line: &Value) -> String {
    let words = line.as_str().and_then(|line| line.split(' ').next());
    words.unwrap_or("silence").to_owned()
}

/// Which endpoint a flow met, first and later, and what became of a new one.
fn lived(first: &str, later: &str, new: &str) -> String {
    let served = first.starts_with(['l', 'r']);
    let later = if served && first == later {
        "goes on"
    } else {
        later
    };
    format!("the flow {later}; new: {new}")
}

/// LBR-2 is for new flows: an open one goes on.
fn tightened(row: &Row) -> (String, String) {
    let open = Shape {
        balanced: pair("203.0.113.97", "2001:db8:113::61").into(),
        ranges: vec!["198.51.100.20/32".into()],
        ..shape()
    };
    let closed = Shape {
        ranges: vec!["198.51.100.10/32".into()],
        ..open.clone()
    };
    let mut cluster = made(vec![open.objects()]);
    let (from, to) = (ip("198.51.100.20"), (ip("203.0.113.97"), 80));
    let ask = |cluster: &mut Cluster, packet: &Packet| met(cluster, "client2", packet);
    let before = ask(&mut cluster, &opening("TCP", (from, 4000), to));
    cluster.apply(closed.objects());
    let after = ask(&mut cluster, &Packet::tcp((from, 4000), to, ACK, b"still-there"));
    let new = ask(&mut cluster, &opening("TCP", (from, 4001), to));
    let value = &row.value;
    let new_then = match value["new_connection_after"]["err"].as_str() {
        Some("timed out") => "silence".to_owned(),
        other => format!("{other:?}"),
    };
    let (opened, data) = (&value["open_before"]["g"], &value["data_after"]["r"]);
    (
        lived(&answered(opened), &answered(data), &new_then),
        lived(&before, &after, &new),
    )
}

/// Which endpoint a packet met, or what else became of it.
fn met(cluster: &mut Cluster, client: &str, packet: &Packet) -> String {
    match fate(&mut cluster.bed, named(client), packet) {
        Fate::Endpoint { name, .. } => name,
        other => other.to_string(),
    }
}

/// A Service that another proxy takes over: its UDP flow goes on (as recorded), new flows are dropped.
fn disowned(row: &Row) -> (String, String) {
    let dst = ip(row.text("dst"));
    let plain = Shape {
        cluster: pair(row.text("dst"), "fd00:10:96::abcd"),
        ..shape()
    };
    let mut cluster = made(vec![plain.objects()]);
    let ask = |cluster: &mut Cluster, protocol, port| {
        let packet = opening(protocol, (ip("198.51.100.10"), port), (dst, 80));
        met(cluster, "client", &packet)
    };
    let before = ask(&mut cluster, "UDP", 4000);
    cluster.apply(labelled(
        plain.objects(),
        "Service",
        "service.kubernetes.io/service-proxy-name",
        "",
    ));
    let after = ask(&mut cluster, "UDP", 4000);
    let new = ask(&mut cluster, "TCP", 4001);
    let flow = |index: usize| answered(&row.value["existing_udp_flow"][index]["r"]);
    (
        lived(&flow(0), &flow(1), &recorded(row)),
        lived(&before, &after, &new),
    )
}

/// RJ-5: flows after packets that are refused, and after packets to an address that nobody has.
fn untracked(row: &Row) -> (String, String) {
    let none = Shape {
        endpoints: Vec::new(),
        ..shape()
    };
    let mut cluster = made(vec![none.objects()]);
    let mut opened = |port, dst| {
        for protocol in ["TCP", "UDP"] {
            let packet = opening(protocol, (ip("198.51.100.10"), port), (ip(dst), 80));
            cluster.bed.send(named("client"), &packet);
        }
        cluster.bed.count(CounterId::FLOWS_OPENED)
    };
    let (refused, dropped) = (opened(4000, "10.96.7.7"), opened(4001, "10.96.255.200"));
    let flows = |field: &str| row.value[field].as_array().unwrap().len();
    let (refused_there, dropped_there) = (flows("after_udp_and_tcp_reject"), flows("after_unallocated_drop"));
    (
        format!("{refused_there} flows, then {dropped_there}"),
        format!("{refused} flows, then {dropped}"),
    )
}

fn without_endpoints(row: &Row) -> (Cluster, IpAddr) {
    let none = Shape {
        cluster: pair("10.96.29.179", "fd00:10:96::83c5"),
        endpoints: Vec::new(),
        ..shape()
    };
    (made(vec![none.objects()]), ip(row.text("dst")))
}

/// RJ-3: of a hundred probes at once, how many are answered.
fn limited(row: &Row) -> (String, String) {
    let (mut cluster, dst) = without_endpoints(row);
    let (source, client) = (named(row.text("source")), ip(row.text("client")));
    let answered = (0..100).filter(|probe| {
        let packet = opening(row.text("proto"), (client, 4000 + probe), (dst, 80));
        matches!(fate(&mut cluster.bed, source, &packet), Fate::Icmp(_))
    });
    // What the client's socket was told, where that was watched: one error to the node was not seen on its way.
    let told = &row.value["errno"]["ECONNREFUSED"];
    let recorded = told
        .as_u64()
        .or_else(|| row.value["icmp"][0]["count"].as_u64())
        .unwrap();
    (
        format!("{recorded} answered"),
        format!("{} answered", answered.count()),
    )
}

/// RJ-3: a probe every half second; each answered or not. The probes of the row before had emptied the bucket, and four
/// seconds had filled it again as far as the record shows.
fn paced(row: &Row) -> (String, String) {
    let (mut cluster, dst) = without_endpoints(row);
    let source = named("client");
    let client = source.address(Family::of(dst));
    let probe = |cluster: &mut Cluster, port| {
        let packet = opening("UDP", (client, port), (dst, 80));
        match fate(&mut cluster.bed, source, &packet) {
            Fate::Icmp(_) => "REJECT-ICMP".to_owned(),
            Fate::Silence => "DROP".to_owned(),
            other => other.to_string(),
        }
    };
    for port in 0..100 {
        probe(&mut cluster, 4000 + port);
    }
    cluster.bed.wait(4);
    let recorded = row.value["sequence"].as_array().unwrap();
    let ours: Vec<_> = (0..recorded.len() as u16)
        .map(|port| {
            let outcome = probe(&mut cluster, 5000 + port);
            cluster.bed.wait_half();
            outcome
        })
        .collect();
    (json!(recorded).to_string(), json!(ours).to_string())
}
