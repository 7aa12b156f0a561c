//! Sequences of creates, updates and deletes give out, keep and free the same as on a real API server.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sluice_control::manifest::{Key, Kind};
use sluice_control::model::{Model, ServiceName};
use sluice_control::source::Event;

use crate::support::{DUAL, SINGLE, Tally, allocator, folder, is_allocated, parse, records, text};

/// What the symbols of a record stand for, and which of them each Service holds after its last step.
#[derive(Default)]
struct Symbols {
    values: BTreeMap<String, String>,
    held: BTreeMap<String, BTreeSet<String>>,
}

impl Symbols {
    /// Puts what symbols stand for into `text`.
    fn resolve(&self, text: &str) -> String {
        // Longest first: `$np1` is the beginning of `$np10`.
        let mut names: Vec<_> = self.values.iter().collect();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        names.into_iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(name.as_str(), value)
        })
    }

    /// Compares a value with what the record says, learning what a new symbol stands for.
    fn same(&mut self, got: &str, wanted: &str) -> bool {
        if !wanted.starts_with('$') {
            return got == wanted;
        }
        // What was freed may come back under a new symbol: the same Service gets the same again here.
        let known = self.values.entry(wanted.to_owned()).or_insert_with(|| got.into());
        got == known && is_allocated(got, wanted)
    }

    /// Two symbols that are held and stand for the same.
    fn clash(&self) -> Option<String> {
        let held: BTreeSet<&String> = self.held.values().flatten().collect();
        let mut owners = BTreeMap::new();
        held.into_iter().find_map(|symbol| {
            let value = &self.values[symbol];
            let other = owners.insert(value, symbol)?;
            Some(format!("{other} and {symbol} are both {value}"))
        })
    }
}

/// An address or a node port that two Services of the model have.
fn shared(model: &Model) -> Option<String> {
    let mut owners: BTreeMap<String, &ServiceName> = BTreeMap::new();
    for service in model.services() {
        let ips = service.cluster_ips.iter().map(ToString::to_string);
        let ports = service.ports.iter().filter_map(|port| port.node_port);
        let ports = ports.chain(service.health_check_node_port);
        for value in ips.chain(ports.map(|port| port.to_string())) {
            match owners.insert(value.clone(), &service.name) {
                Some(other) if *other != service.name => {
                    return Some(format!("{other} and {} both have {value}", service.name));
                }
                _ => {}
            }
        }
    }
    None
}

fn step(model: &mut Model, step: &Value, symbols: &mut Symbols) -> Result<(), String> {
    let name = ServiceName {
        namespace: "default".into(),
        name: step["name"].as_str().unwrap().into(),
    };
    let key = Key {
        kind: Kind::Service,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    };
    if step["op"] == "delete" {
        symbols.held.remove(&name.name);
        model.apply(vec![Event::Delete(key)]);
        return Ok(());
    }
    let spec = symbols.resolve(step["spec"].as_str().unwrap());
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {}}}\nspec: {spec}\n",
        name.name
    );
    let contents = parse(&text);
    model.apply(
        contents
            .objects
            .into_iter()
            .map(|object| Event::Apply(Box::new(object)))
            .collect(),
    );
    let problems: Vec<_> = model
        .problems()
        .iter()
        .filter(|p| p.object == key.to_string())
        .cloned()
        .collect();
    let mut got: Vec<_> = problems.iter().map(|problem| problem.field.clone()).collect();
    got.sort();
    if !problems.is_empty() {
        // The server goes back to what was: so must ours, and must not try again.
        match step["op"].as_str() {
            Some("create") => model.apply(vec![Event::Delete(key)]),
            _ => model.forget(&key),
        }
    }
    if step["outcome"] == "rejected" {
        let mut wanted: Vec<_> = step["causes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cause| cause["field"].as_str().unwrap().to_owned())
            // The server says a wrong port twice where the targetPort is taken from it; once is clearer.
            .filter(|field| !field.ends_with("targetPort") || spec.contains("targetPort"))
            .collect();
        // A health check's port that is taken is an error of the server's own there; here it is the field's (VAL-10).
        if step["code"] == 500 && spec.contains("healthCheckNodePort") {
            wanted.push("spec.healthCheckNodePort".into());
        }
        wanted.sort();
        return match got.is_empty() {
            true => Err("accepted".into()),
            false if got == wanted => Ok(()),
            false => Err(format!("rejected for {got:?}, not {wanted:?}")),
        };
    }
    if !got.is_empty() {
        return Err(format!("rejected for {got:?}"));
    }
    let service = model.service(&name).ok_or("not in force")?.object.clone();
    let spec = service.spec.clone().unwrap_or_default();
    let ips = spec.cluster_ips.unwrap_or_default();
    let ports = spec
        .ports
        .unwrap_or_default()
        .iter()
        .map(|port| port.node_port.unwrap_or(0).to_string())
        .collect();
    let health: Vec<String> = spec
        .health_check_node_port
        .iter()
        .map(ToString::to_string)
        .collect();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list =
        |name: &str| -> Vec<String> { step[name].as_array().into_iter().flatten().map(text).collect() };
    let health_wanted: Vec<String> = step.get("healthCheckNodePort").into_iter().map(text).collect();
    let mut held = BTreeSet::new();
    for (got, wanted) in [
        (ips, list("clusterIPs")),
        (ports, list("nodePorts")),
        (health, health_wanted),
    ] {
        let same = |(got, wanted): (&String, &String)| symbols.same(got, wanted);
        if got.len() != wanted.len() || !got.iter().zip(&wanted).all(same) {
            return Err(format!("{got:?}, not {wanted:?}"));
        }
        held.extend(wanted.into_iter().filter(|wanted| wanted.starts_with('$')));
    }
    symbols.held.insert(name.name, held);
    symbols.clash().or_else(|| shared(model)).map_or(Ok(()), Err)
}

/// Steps that differ on purpose, why, and what they come to; the others of their sequence are compared.
const DIFFERENT: &[(&str, &str, &str)] = &[
    (
        "dual-up-down step 3",
        "the server gave an address that one Service holds to another as well",
        "rejected for [\"spec.clusterIPs\"]",
    ),
    (
        "dual-up-down step 5",
        "the Service is there already; here it was refused, and the address is free by now",
        "accepted",
    ),
    (
        "partial-failure-frees-first-ip step 2",
        "the step before left the first address reserved; ours leaks nothing",
        "accepted",
    ),
];

#[test]
fn sequences_give_out_keep_and_free_what_the_api_server_did() {
    let mut tally = Tally::default();
    for record in records(&folder("oracle/allocation/sequences.jsonl")) {
        let id = record["id"].as_str().unwrap();
        let text = record.to_string();
        if text.contains("dryRun") {
            tally.leave_out(id, "a folder has no dry run");
            continue;
        }
        let (mut model, mut symbols) = (Model::new(allocator(DUAL)), Symbols::default());
        let mut said = String::from("all steps");
        for (index, one) in record["steps"].as_array().unwrap().iter().enumerate() {
            let of = format!("{id} step {index}");
            let got = step(&mut model, one, &mut symbols);
            if let Some((_, reason, ours)) = DIFFERENT.iter().find(|(different, ..)| *different == of) {
                let got = got.err().unwrap_or_else(|| "as recorded".into());
                tally.differ(&of, reason, &got, "as recorded", ours);
            } else if let Err(wrong) = got {
                said = format!("step {index} {one}: {wrong}");
                break;
            }
        }
        tally.compare(id, &said, "all steps");
    }
    tally.all_differed(DIFFERENT.iter().map(|(of, ..)| *of));
    tally.finish(24);
}

/// Takes a Service of this spec; whether it came into force. One that did not is taken back.
fn create(model: &mut Model, name: &str, spec: &str) -> bool {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    let object = parse(&text).objects.remove(0);
    let (key, service) = (
        object.key.clone(),
        ServiceName {
            namespace: "default".into(),
            name: name.into(),
        },
    );
    model.apply(vec![Event::Apply(Box::new(object))]);
    let is_there = model.service(&service).is_some();
    if !is_there {
        model.apply(vec![Event::Delete(key)]);
    }
    is_there
}

/// All node ports that are given out.
fn node_ports(model: &Model) -> Vec<i32> {
    let specs = model
        .services()
        .filter_map(|service| service.object.spec.as_ref());
    let ports = specs.flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(|port| port.node_port).collect()
}

#[test]
fn g31_node_ports_run_out_as_on_the_api_server() {
    /// First of the node ports that are given out first (AL-5).
    const DYNAMIC: i32 = 30_086;
    let mut model = Model::new(allocator(SINGLE));
    let of = |ports: usize| {
        let ports = (0..ports).map(|i| format!("{{name: p{i}, port: {}}}", i + 1));
        format!(
            "{{type: NodePort, ports: [{}]}}",
            ports.collect::<Vec<_>>().join(", ")
        )
    };
    let mut seen = 0;
    for record in records(&folder("oracle/allocation/nodeport-exhaustion.jsonl")) {
        let number = |field: &str| {
            record[field]
                .as_u64()
                .map(|number| usize::try_from(number).unwrap())
        };
        if let Some(after) = number("afterServices") {
            assert!(create(&mut model, &format!("s{after}"), &of(100)));
        }
        // All there are: what is left goes one by one.
        while number("services").is_none()
            && number("portsHeld").is_some_and(|held| node_ports(&model).len() < held)
        {
            let name = format!("one-{}", node_ports(&model).len());
            assert!(create(&mut model, &name, &of(1)), "{record}");
        }
        let held = node_ports(&model);
        if let Some(wanted) = number("portsHeld") {
            assert_eq!(held.len(), wanted, "{record}");
        }
        if let Some(wanted) = number("inStaticBand") {
            assert_eq!(
                held.iter().filter(|port| **port < DYNAMIC).count(),
                wanted,
                "{record}"
            );
        }
        let health = "{type: LoadBalancer, allocateLoadBalancerNodePorts: false, externalTrafficPolicy: Local, ports: [{port: 80}]}";
        for (field, spec) in [
            ("nextCreateOf100Ports", of(100)),
            ("nextCreateOf1Port", of(1)),
            ("createLbNeedingOnlyHealthCheckNodePort", health.into()),
        ] {
            if record[field]["outcome"] == "rejected" {
                assert!(!create(&mut model, "too-much", &spec), "{record}");
                assert_eq!(node_ports(&model), held, "nothing is taken by who gets nothing");
                seen += 1;
            }
        }
        if record["afterDeletingOne"] == "accepted" {
            let gone = Key {
                kind: Kind::Service,
                namespace: "default".into(),
                name: "s1".into(),
            };
            model.apply(vec![Event::Delete(gone)]);
            assert!(create(&mut model, "again", &of(100)));
            seen += 1;
        }
    }
    assert_eq!((seen, node_ports(&model).len()), (4, 2768));
}

#[test]
fn picks_are_spread_over_their_ranges_as_on_the_api_server() {
    let recorded: Value = serde_json::from_str(&text(&folder("oracle/allocation/statistics.json"))).unwrap();
    let recorded = &recorded["runs"][0];
    let mut model = Model::new(allocator(DUAL));
    let (mut v4, mut v6, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..200 {
        let name = format!("s{index}");
        assert!(create(
            &mut model,
            &name,
            "{type: NodePort, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}"
        ));
        let name = ServiceName {
            namespace: "default".into(),
            name,
        };
        let service = model.service(&name).unwrap();
        let last = |ip: &std::net::IpAddr| match ip {
            std::net::IpAddr::V4(ip) => u32::from(*ip) & 0xffff,
            std::net::IpAddr::V6(ip) => u32::from(ip.segments()[7]),
        };
        v4.push(last(&service.cluster_ips[0]));
        v6.push(last(&service.cluster_ips[1]));
        ports.push(u32::from(service.ports[0].node_port.unwrap()) - 30_000);
    }
    for (kind, picks, size, band) in [
        ("clusterIPv4", v4, 0x1_0000, 257),
        ("clusterIPv6", v6, 0x1_0000, 257),
        ("nodePort", ports, 2768, 86),
    ] {
        let distinct: BTreeSet<_> = picks.iter().collect();
        let wanted = &recorded[kind];
        assert_eq!(wanted["distinct"], distinct.len(), "{kind}");
        let in_band = picks.iter().filter(|pick| **pick < band).count();
        assert_eq!(wanted["inStaticBand"], in_band, "{kind}");
        assert_eq!(wanted["ascending"], picks.is_sorted(), "{kind}");
        for quarter in 0..4 {
            let count = picks.iter().filter(|pick| **pick * 4 / size == quarter).count();
            // Five sigma around 50; those of the record are from 41 to 61.
            assert!((20..=80).contains(&count), "{kind}, quarter {quarter}: {count}");
        }
    }
}
