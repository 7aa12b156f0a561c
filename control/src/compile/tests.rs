//! The rules that need no packet, each in a table of Services, endpoints and what they must become. `C1` to `C21` are
//! upstream's cases of TestCategorizeEndpoints.

use std::fmt::Write;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use sluice_dataplane::channel::record::BackendRecord;

use super::*;
use crate::endpoints::sets::Here;
use crate::model::ServiceName;

mod rules;
mod slices;

/// A Service `default/web` of this spec and load-balancer status, port 80 if it says no other.
fn service(mut spec: Value, ingress: &Value) -> Service {
    let defaults = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "protocol": "TCP"}]});
    for (field, value) in defaults.as_object().unwrap() {
        if spec.get(field).is_none() {
            spec[field] = value.clone();
        }
    }
    let object = json!({"metadata": {}, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
    let name = ServiceName {
        namespace: "default".into(),
        name: "web".into(),
    };
    Service::new(name, serde_json::from_value(object).unwrap()).unwrap()
}

/// An endpoint of port 8080: its address and what is not as usual about it.
fn endpoint(text: &str) -> (bool, Value) {
    let mut words = text.split_whitespace();
    let address = words.next().unwrap();
    let (mut conditions, mut hints, mut node) = (json!({"ready": true}), json!({}), None);
    for word in words {
        match word.split_once('=') {
            None if word == "unready" => conditions = json!({"ready": false, "serving": false}),
            None if word == "serving" => conditions = json!({"ready": false, "serving": true}),
            None if word == "terminating" => {
                conditions = json!({"ready": false, "serving": true, "terminating": true});
            }
            None if word == "dying" => {
                conditions = json!({"ready": false, "serving": false, "terminating": true});
            }
            Some(("on", name)) => node = Some(name),
            Some(("zones", names)) => {
                hints["forZones"] = names.split(',').map(|name| json!({"name": name})).collect();
            }
            Some(("nodes", names)) => {
                hints["forNodes"] = names.split(',').map(|name| json!({"name": name})).collect();
            }
            _ => panic!("{word}"),
        }
    }
    let endpoint =
        json!({"addresses": [address], "conditions": conditions, "hints": hints, "nodeName": node});
    (address.contains(':'), endpoint)
}

/// A slice of a family with those of the endpoints that are of it, on this port.
fn slice(ipv6: bool, port: u16, endpoints: &[&str]) -> Arc<EndpointSlice> {
    let endpoints = endpoints
        .iter()
        .map(|text| endpoint(text))
        .filter(|(of_v6, _)| *of_v6 == ipv6);
    let slice = json!({
        "metadata": {}, "addressType": if ipv6 { "IPv6" } else { "IPv4" },
        "endpoints": endpoints.map(|(_, endpoint)| endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "", "protocol": "TCP", "port": port}],
    });
    Arc::new(serde_json::from_value(slice).unwrap())
}

fn compiled(service: &Service, endpoints: &[&str], settings: &Settings) -> Compiled {
    let slices = [false, true].map(|ipv6| slice(ipv6, 8080, endpoints));
    compiled_of(service, slices.into(), settings)
}

fn compiled_of(service: &Service, slices: Vec<Arc<EndpointSlice>>, settings: &Settings) -> Compiled {
    let slices = [(service.name.clone(), slices)].into_iter().collect();
    compile_services(
        &Services::from([(service.name.clone(), Arc::new(service.clone()))]),
        &slices,
        settings,
        &Numbers::default(),
    )
}

/// `cluster: … local: … any`, by the last digit of each address; `any` where something counts as an endpoint (CAT-7).
fn sets_of(compiled: &Compiled, ipv6: bool) -> String {
    let backends = || {
        compiled.records.iter().filter_map(|record| match record {
            Record::Backend(backend) if backend.address.is_ipv6() == ipv6 => Some(backend),
            _ => None,
        })
    };
    let digits = |member: fn(&BackendRecord) -> bool| -> String {
        let last = |backend: &BackendRecord| backend.address.to_string().pop();
        backends()
            .filter(|backend| member(backend))
            .filter_map(last)
            .collect()
    };
    let (cluster, local) = (digits(|b| b.in_cluster_set), digits(|b| b.in_local_set));
    let any = if backends().any(|backend| backend.usable) {
        " any"
    } else {
        ""
    };
    format!("cluster:{cluster} local:{local}{any}")
}

/// Frontends and source ranges, a line each.
fn addresses(compiled: &Compiled) -> String {
    let mut out = String::new();
    for record in &compiled.records {
        match record {
            Record::Frontend(f) => writeln!(out, "{:?} {} {}", f.kind, f.address, f.port).unwrap(),
            Record::SourceRange(r) => writeln!(out, "from {}", r.network).unwrap(),
            _ => {}
        }
    }
    out
}

fn here(zone: &str) -> Settings {
    let here = Here {
        node: "here".into(),
        zone: zone.into(),
        ..Here::default()
    };
    Settings {
        here,
        ..Settings::default()
    }
}

const CLUSTER: &str = "Cluster";
const LOCAL: &str = "Local";

/// Policies, a node port or none, our zone, endpoints, and the sets they must become, in either family.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    Option<u16>,
    &'static str,
    &'static [&'static str],
    &'static str,
);

const FOUR_ZONES: &[&str] = &["1 zones=a", "2 zones=b", "3 zones=c", "4 zones=a"];
const NP: Option<u16> = Some(30_080);

#[rustfmt::skip]
const CASES: &[Case] = &[
    // name, internal, external, node port, zone, endpoints, sets
    ("C1, TOP-3: all hinted, our zone only", CLUSTER, CLUSTER, None, "a", FOUR_ZONES, "cluster:14 local: any"),
    ("C2: the local set knows no topology, the cluster set obeys it", CLUSTER, LOCAL, NP, "a",
        &["1 zones=a on=here", "2 zones=b on=here", "3 zones=a on=far"], "cluster:13 local:12 any"),
    ("C3: the same with internal Local", LOCAL, CLUSTER, NP, "a",
        &["1 zones=a on=here", "2 zones=b on=here", "3 zones=a on=far"], "cluster:13 local:12 any"),
    ("C4, TOP-4: our node has no zone", CLUSTER, CLUSTER, None, "", FOUR_ZONES, "cluster:1234 local: any"),
    ("C4, TOP-4: no endpoint for our zone", CLUSTER, CLUSTER, None, "d", FOUR_ZONES, "cluster:1234 local: any"),
    ("C5, TOP-5: an unready endpoint needs no hint", CLUSTER, CLUSTER, None, "a",
        &["1 zones=a", "2 zones=b", "3 unready", "4 zones=a unready"], "cluster:1 local: any"),
    ("C6, TOP-5: only unready ones in our zone", CLUSTER, CLUSTER, None, "a",
        &["1 zones=a unready", "2 zones=b", "3 zones=c"], "cluster:23 local: any"),
    ("TOP-4: one endpoint lacks a hint", CLUSTER, CLUSTER, None, "a",
        &["1 zones=a", "2"], "cluster:12 local: any"),
    ("C8: several zones in one hint", CLUSTER, CLUSTER, None, "c",
        &["1 zones=a,b,c", "2 zones=b,c", "3 zones=b,d", "4 zones=c"], "cluster:124 local: any"),
    ("C9, TOP-2: a hint for our node", CLUSTER, CLUSTER, None, "a",
        &["1 nodes=here zones=a", "2 nodes=far zones=a"], "cluster:1 local: any"),
    ("C10: one endpoint without a node hint", CLUSTER, CLUSTER, None, "",
        &["1 nodes=here", "2"], "cluster:12 local: any"),
    ("TOP-2, TOP-3: no node hint for ours, so zones decide", CLUSTER, CLUSTER, None, "a",
        &["1 nodes=far zones=a", "2 nodes=far zones=b"], "cluster:1 local: any"),
    ("C14: internal Local without endpoints", LOCAL, CLUSTER, None, "", &[], "cluster: local:"),
    ("C14, CAT-7: all remote counts as having some", LOCAL, CLUSTER, None, "",
        &["1 on=far", "2 on=far"], "cluster: local: any"),
    ("C14: all local", LOCAL, CLUSTER, None, "", &["1 on=here", "2 on=here"], "cluster: local:12 any"),
    ("C14: some local", LOCAL, CLUSTER, None, "", &["1 on=here", "2 on=far"], "cluster: local:1 any"),
    ("C15, CAT-1: none ready", CLUSTER, CLUSTER, None, "", &["1 unready", "2 unready"], "cluster: local:"),
    ("C15, CAT-1: some ready", CLUSTER, CLUSTER, None, "", &["1", "2 unready", "3 terminating"],
        "cluster:1 local: any"),
    ("C15, CAT-1: all terminating, hints or not", CLUSTER, CLUSTER, None, "a",
        &["1 terminating zones=b", "2 terminating", "3 dying"], "cluster:12 local: any"),
    ("C16: internal Local, external Cluster", LOCAL, CLUSTER, NP, "", &["1 on=here", "2 on=far"],
        "cluster:12 local:1 any"),
    ("C16: internal Cluster, external Local", CLUSTER, LOCAL, NP, "", &["1 on=here", "2 on=far"],
        "cluster:12 local:1 any"),
    ("C16: both Local", LOCAL, LOCAL, NP, "", &["1 on=here", "2 on=far"], "cluster:12 local:1 any"),
    ("C17: both Local, all remote", LOCAL, LOCAL, NP, "", &["1 on=far", "2 on=far"], "cluster:12 local: any"),
    ("C17: all remote and terminating", LOCAL, LOCAL, NP, "", &["1 on=far terminating", "2 on=far terminating"],
        "cluster:12 local: any"),
    ("C19, CAT-6: external Local without an external frontend", CLUSTER, LOCAL, None, "",
        &["1 on=here", "2 on=far"], "cluster:12 local: any"),
    ("C20, CAT-5: internal only and Local has no cluster set", LOCAL, LOCAL, None, "",
        &["1 on=here", "2 on=far"], "cluster: local:1 any"),
    ("C21, CAT-4: neither ready, serving nor terminating", CLUSTER, CLUSTER, None, "", &["1 unready"],
        "cluster: local:"),
    ("CAT-4: serving, but neither ready nor terminating", CLUSTER, CLUSTER, None, "", &["1 serving"],
        "cluster: local:"),
    ("CAT-2: no local one is ready, a local one terminates", CLUSTER, LOCAL, NP, "",
        &["1 on=here terminating", "2 on=here unready", "3 on=far"], "cluster:3 local:1 any"),
    ("CAT-2: one local is ready, so the terminating one rests", CLUSTER, LOCAL, NP, "",
        &["1 on=here terminating", "2 on=here", "3 on=far"], "cluster:23 local:2 any"),
    ("CAT-3: the fallbacks are independent", LOCAL, LOCAL, NP, "",
        &["1 on=here terminating", "2 on=far"], "cluster:2 local:1 any"),
    ("no node name is nobody's", LOCAL, CLUSTER, None, "", &["1"], "cluster: local: any"),
];

#[test]
fn endpoints_are_sorted_into_sets_as_upstream_does_in_either_family() {
    for ipv6 in [false, true] {
        for &(name, internal, external, node_port, zone, endpoints, expected) in CASES {
            let (cluster_ip, pods) = if ipv6 {
                ("fd00:96::1", "fd00:1::")
            } else {
                ("10.96.0.1", "10.1.0.")
            };
            let service = service(
                json!({
                    "type": if node_port.is_some() { "NodePort" } else { "ClusterIP" },
                    "clusterIPs": [cluster_ip],
                    "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                    "ports": [{"port": 80, "protocol": "TCP", "nodePort": node_port}],
                }),
                &json!([]),
            );
            let endpoints: Vec<String> = endpoints.iter().map(|text| format!("{pods}{text}")).collect();
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            let compiled = compiled(&service, &endpoints, &here(zone));
            assert_eq!(sets_of(&compiled, ipv6), expected, "{name} (IPv6: {ipv6})");
        }
    }
}

#[test]
fn what_is_remembered_gives_what_would_be_made_anew() {
    use crate::endpoints::Endpoints;
    use crate::model::tests::{model, reset};

    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, {spec}}}\n"
        )
    };
    let pod = |name: &str, app: &str, ip: &str, ready: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\nspec: {{nodeName: n1, containers: []}}\n\
             status: {{podIP: {ip}, conditions: [{{type: Ready, status: \"{ready}\"}}]}}\n"
        )
    };
    let node = |zone: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    let hinted = "trafficDistribution: PreferSameZone, ports: [{port: 80}]";
    let taken = "externalIPs: [192.0.2.1], ports: [{port: 80}]";
    let (a, b) = (service("a", hinted), service("b", taken));
    let pods = pod("p", "a", "10.244.0.1", "True") + &pod("q", "b", "10.244.0.2", "True");
    let texts = [
        a.clone() + &b + &pods + &node("z"),
        // A pod that turns not ready, one that comes, a node that moves.
        a.clone() + &b + &pods.replacen("True", "False", 1) + &node("z"),
        a.clone() + &b + &pods + &pod("r", "b", "10.244.0.3", "True") + &node("z2"),
        // A frontend that two want, and that is free again.
        a.replace(hinted, taken) + &b + &pods + &node("z2"),
        a.replace(hinted, taken) + &pods + &node("z2"),
        // Another port, another name for it, the Service made anew.
        a.replace("port: 80", "port: 81") + &b + &pods,
        a.replace("port: 80", "name: x, port: 81") + &b + &pods,
        b.clone() + &pods,
        a.clone() + &b + &pods + &node("z"),
    ];
    let (mut model, mut endpoints, mut compiler) = (model(), Endpoints::default(), Compiler::new(here("")));
    for (step, text) in texts.iter().enumerate() {
        model.apply(reset(text));
        assert!(model.problems().is_empty(), "{:?}", model.problems());
        compiler.set_zone(if step % 2 == 0 { "z".into() } else { "z2".into() });
        let before = compiler.numbers.clone();
        let touched = model.take_touched();
        let changed = endpoints.update(&model, &touched);
        let slices = endpoints.slices();
        assert_eq!(*slices, crate::endpoints::slices(&model), "{step}");
        compiler.compile(model.services_by_name(), slices, &changed);
        let anew = compile(&model, slices, compiler.settings(), &before);
        let conflicts = compiler.conflicts();
        assert_eq!(
            (compiler.desired().records(), &compiler.numbers),
            (anew.records, &anew.numbers),
            "{step}"
        );
        assert_eq!(conflicts, anew.conflicts);
        assert_eq!(conflicts.len(), usize::from(step == 3), "{step}");
    }
}
