//! What a real API server said to Services, ours says too: accepted with the same defaults, or rejected for the same
//! fields and reasons.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use sluice_control::allocate::Wanted;
use sluice_control::manifest::Body;
use sluice_control::model::{ServiceName, defaults, validate};

use crate::support::{Tally, allocator, folder, parse, records};

const BEFORE: &str =
    "the server allocates before it validates, so one mistake hides the others; ours says all";
const ONCE: &str = "the server says one mistake in clusterIPs several times";
const FINALIZERS: &str = "finalizers mean nothing in a folder";

/// What differs on purpose, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("name-empty", BEFORE),
    ("name-missing", BEFORE),
    ("name-percent", BEFORE),
    ("multi-5", BEFORE),
    ("nodeport-share-same-proto", BEFORE),
    ("port-many-300", "the record does not hold the object"),
    ("meta-finalizer-bad", FINALIZERS),
    ("meta-finalizer-unqualified", FINALIZERS),
    (
        "ds-ip-taken-kubernetes",
        "a folder has no Service `kubernetes` of its own",
    ),
    ("ds-ips-order-mismatch", ONCE),
    ("ds-both-order-mismatch", ONCE),
    ("ds-ips-second-empty", ONCE),
    ("ds-ips-empty-string", ONCE),
    (
        "decode-no-kind",
        "the server knows the kind by the URL, a file has only the text",
    ),
];

fn out_of_scope(file: &str, record: &Value) -> Option<&'static str> {
    let text = record["manifest"].as_str().unwrap();
    let expect = &record["expect"];
    let six = |text: &str| text.contains("IPv6") || text.contains("fd00:") || text.contains("DualStack");
    if record.get("given").is_some() && expect["code"] == 409 || expect["code"] == 404 {
        Some("a folder has no create that could fail because the object, or not the namespace, exists")
    } else if record.to_string().contains("healthCheckNodePort")
        || expect["code"] == 500 && !text.contains("resourceVersion")
    {
        Some("health check node ports are not allocated yet")
    } else if file != "single-stack" && (six(text) || six(&expect["object"].to_string())) {
        Some("dual stack: the same manifests are compared in single-stack.jsonl")
    } else if text.contains("generateName")
        || text.contains("resourceVersion")
        || text.contains("ownerReferences")
    {
        Some("metadata that only an API server makes or reads")
    } else if text.matches("---").count() > 0 {
        Some("the server takes one document, a file several")
    } else {
        None
    }
}

/// `field Reason`, sorted, each once.
fn causes(text: &str, given: &[String]) -> Result<Value, Vec<String>> {
    let contents = parse(text);
    if !contents.problems.is_empty() || contents.objects.is_empty() {
        return Err(contents
            .problems
            .iter()
            .map(|problem| format!("{} 400", problem.field))
            .collect());
    }
    let Body::Service(service) = &contents.objects[0].body else {
        panic!("not a Service: {text}")
    };
    let mut allocator = allocator();
    for (index, other) in given.iter().enumerate() {
        let contents = parse(other);
        let Body::Service(other) = &contents.objects[0].body else {
            panic!("not a Service: {other}")
        };
        let mut other = (**other).clone();
        defaults::apply(&mut other);
        let name = ServiceName {
            namespace: "default".into(),
            name: format!("given-{index}"),
        };
        allocator
            .allocate(&name, other.spec.as_mut().unwrap(), &Wanted::default())
            .unwrap();
    }
    let mut service: Service = (**service).clone();
    defaults::apply(&mut service);
    let mut errors = validate::service(&service);
    let name = ServiceName {
        namespace: "default".into(),
        name: "s".into(),
    };
    if errors.is_empty()
        && let Err(taken) = allocator.allocate(&name, service.spec.as_mut().unwrap(), &Wanted::default())
    {
        errors.extend(taken);
    }
    if errors.is_empty() {
        return Ok(serde_json::to_value(service.spec.unwrap()).unwrap());
    }
    let errors: BTreeSet<String> = errors
        .iter()
        .map(|error| format!("{} {:?}", error.field, error.reason))
        .collect();
    Err(errors.into_iter().collect())
}

/// Puts the record's symbols in place of what was allocated.
fn normalise(mut spec: Value, wanted: &Value) -> Value {
    for field in ["clusterIP", "clusterIPs"] {
        let symbol = &wanted[field];
        if symbol.to_string().contains("<allocated") {
            spec[field] = symbol.clone();
        }
    }
    let mut symbols: BTreeMap<i64, String> = BTreeMap::new();
    for (index, port) in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let Some(number) = port["nodePort"].as_i64() else {
            continue;
        };
        if wanted["ports"][index]["nodePort"].is_string() {
            let next = format!("<allocated-{}>", symbols.len() + 1);
            port["nodePort"] = json!(symbols.entry(number).or_insert(next));
        }
    }
    spec
}

fn replay(files: &[&str], at_least: usize) {
    let mut tally = Tally::default();
    for file in files {
        for record in records(&folder(&format!("oracle/validation/{file}.jsonl"))) {
            let id = record["id"].as_str().unwrap();
            if let Some(reason) = out_of_scope(file, &record) {
                tally.leave_out(id, reason);
                continue;
            }
            if let Some((_, reason)) = DIFFERENT.iter().find(|(different, _)| *different == id) {
                tally.leave_out(id, reason);
                continue;
            }
            let text = record["manifest"].as_str().unwrap();
            let given: Vec<String> = record["given"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|given| given.as_str().unwrap().to_owned())
                .collect();
            let expect = &record["expect"];
            let wanted = if expect["outcome"] == "accepted" {
                expect["object"]["spec"].to_string()
            } else if expect["code"] == 400 {
                // The server's decoder names bare keys and types; that ours refuses the document is what counts.
                "refused".into()
            } else {
                let causes = expect["causes"].as_array().unwrap().iter().map(|cause| {
                    let reason = cause["reason"].as_str().unwrap().trim_start_matches("FieldValue");
                    format!("{} {reason}", cause["field"].as_str().unwrap())
                });
                causes
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let got = match causes(text, &given) {
                Ok(spec) => normalise(spec, &expect["object"]["spec"]).to_string(),
                Err(causes) if expect["code"] == 400 && causes.iter().all(|cause| cause.ends_with("400")) => {
                    "refused".into()
                }
                Err(causes) => causes.join(", "),
            };
            tally.compare(id, &got, &wanted);
        }
    }
    tally.finish(at_least);
}

#[test]
fn ports_and_names_are_judged_as_by_the_api_server() {
    replay(
        &[
            "names",
            "ports",
            "protocol",
            "target-port",
            "app-protocol",
            "metadata",
            "selector",
            "several",
        ],
        100,
    );
}

#[test]
fn types_and_policies_are_judged_as_by_the_api_server() {
    let files = [
        "type",
        "affinity",
        "traffic-policy",
        "node-port",
        "headless",
        "external-name",
        "external-ips",
    ];
    replay(&files, 100);
    replay(&["load-balancer", "traffic-distribution", "decode"], 40);
}

#[test]
fn families_are_judged_as_by_an_api_server_of_ipv4_only() {
    replay(&["single-stack"], 40);
}
