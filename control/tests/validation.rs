//! What a real API server said to Services, ours says too: accepted with the same defaults, or rejected for the same
//! fields and reasons.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use sluice_control::allocate::{Allocator, Wanted};
use sluice_control::endpoints;
use sluice_control::manifest::Body;
use sluice_control::model::{Model, ServiceName, defaults, validate};
use sluice_control::problem::Problem;
use sluice_control::source::Event;

use crate::support::{DUAL, SINGLE, Tally, allocator, folder, model, parse, records};

const BEFORE: &str =
    "the server allocates before it validates, so one mistake hides the others; ours says all";
const LEAKED: &str = "the record before left the first address reserved; ours leaks nothing";
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
    ("dual-stack/ds-families-one-ips-two", LEAKED),
    (
        "decode-no-kind",
        "the server knows the kind by the URL, a file has only the text",
    ),
];

fn out_of_scope(record: &Value) -> Option<&'static str> {
    let text = record["manifest"].as_str().unwrap();
    let expect = &record["expect"];
    if record.get("given").is_some() && expect["code"] == 409 || expect["code"] == 404 {
        Some("a folder has no create that could fail because the object, or not the namespace, exists")
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
fn causes(text: &str, given: &[String], mut allocator: Allocator) -> Result<Value, Vec<String>> {
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
    let cluster = allocator.families();
    for (index, other) in given.iter().enumerate() {
        let contents = parse(other);
        let Body::Service(other) = &contents.objects[0].body else {
            panic!("not a Service: {other}")
        };
        let mut other = (**other).clone();
        defaults::apply(&mut other, cluster, None);
        let name = ServiceName {
            namespace: "default".into(),
            name: format!("given-{index}"),
        };
        allocator
            .allocate(&name, other.spec.as_mut().unwrap(), &Wanted::default())
            .unwrap();
    }
    let mut service: Service = (**service).clone();
    defaults::apply(&mut service, cluster, None);
    let mut errors = validate::service(&service, cluster);
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

/// What the record says: the spec, or `field Reason`, sorted, each once.
fn wanted(expect: &Value) -> String {
    if expect["outcome"] == "accepted" {
        return expect["object"]["spec"].to_string();
    } else if expect["code"] == 400 {
        // The server's decoder names bare keys and types; that ours refuses the document is what counts.
        return "refused".into();
    } else if expect["code"] == 500 {
        // The server calls it an error of its own; ours is about the field (VAL-10).
        return "spec.healthCheckNodePort Invalid".into();
    }
    let causes = expect["causes"].as_array().unwrap().iter().map(|cause| {
        let reason = cause["reason"].as_str().unwrap().trim_start_matches("FieldValue");
        format!("{} {reason}", cause["field"].as_str().unwrap())
    });
    let causes: BTreeSet<_> = causes.collect();
    causes.into_iter().collect::<Vec<_>>().join(", ")
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
    if wanted["healthCheckNodePort"].is_string() && spec["healthCheckNodePort"].is_i64() {
        spec["healthCheckNodePort"] = json!(format!("<allocated-{}>", symbols.len() + 1));
    }
    spec
}

fn replay(files: &[&str], services: &[&str], at_least: usize) {
    let mut tally = Tally::default();
    for file in files {
        for record in records(&folder(&format!("oracle/validation/{file}.jsonl"))) {
            let id = record["id"].as_str().unwrap();
            if let Some(reason) = out_of_scope(&record) {
                tally.leave_out(id, reason);
                continue;
            }
            let in_file = format!("{file}/{id}");
            let differs = |(different, _): &&(&str, &str)| *different == id || *different == in_file;
            if let Some((_, reason)) = DIFFERENT.iter().find(differs) {
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
            let wanted = wanted(expect);
            let got = match causes(text, &given, allocator(services)) {
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
        DUAL,
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
    replay(&files, DUAL, 100);
    replay(&["load-balancer", "traffic-distribution", "decode"], DUAL, 40);
}

#[test]
fn families_are_judged_as_by_an_api_server_of_ipv4_only() {
    replay(&["single-stack"], SINGLE, 59);
}

#[test]
fn families_are_judged_as_by_an_api_server_of_both() {
    replay(&["dual-stack"], DUAL, 50);
}

/// The causes of a model's problems, as records have them, sorted, each once.
fn problems_of(model: &Model) -> String {
    let causes: BTreeSet<_> = model.problems().iter().map(cause).collect();
    causes.into_iter().collect::<Vec<_>>().join(", ")
}

fn cause(problem: &Problem) -> String {
    let class = problem.message.split(':').next().unwrap();
    let reason = match class {
        "Required value" => "Required",
        "Invalid value" => "Invalid",
        "Unsupported value" => "NotSupported",
        "Duplicate value" => "Duplicate",
        "Too many" => "TooMany",
        other => other,
    };
    format!("{} {reason}", problem.field)
}

#[test]
fn endpoints_that_users_write_are_judged_and_completed_as_by_the_api_server() {
    let mut tally = Tally::default();
    for file in ["endpointslice", "endpoints"] {
        for record in records(&folder(&format!("oracle/validation/{file}.jsonl"))) {
            let (id, text) = (
                record["id"].as_str().unwrap(),
                record["manifest"].as_str().unwrap(),
            );
            let expect = &record["expect"];
            // Slices are shown by the Service they are of.
            let model = match text.contains("labels:") || file == "endpoints" {
                true => model(text),
                false => {
                    model(&text.replace("{name: s,", "{name: s, labels: {kubernetes.io/service-name: s},"))
                }
            };
            if expect["code"] == 400 {
                let refused = model
                    .problems()
                    .iter()
                    .all(|problem| !problem.message.contains("value:"));
                tally.compare(
                    id,
                    if refused && !model.problems().is_empty() {
                        "refused"
                    } else {
                        ""
                    },
                    "refused",
                );
                continue;
            }
            let got = problems_of(&model);
            if expect["outcome"] != "accepted" {
                tally.compare(id, &got, &wanted(expect));
                continue;
            }
            let slices = endpoints::slices(&model);
            let mut found = match file {
                "endpointslice" => slices
                    .values()
                    .flatten()
                    .map(|slice| json!(**slice))
                    .collect::<Vec<_>>(),
                _ => {
                    let users: Vec<_> = model.endpoints().cloned().collect();
                    let all = endpoints::legacy::endpoints(&[], &users, &slices);
                    all.into_iter().map(|one| json!(one)).collect()
                }
            };
            // A slice that names no Service is nobody's.
            let Some(found) = found.pop() else {
                tally.compare(id, &got, "");
                continue;
            };
            let shape = |object: &Value| {
                let field = |name: &str| object[name].clone();
                json!([
                    field("addressType"),
                    field("endpoints"),
                    field("ports"),
                    field("subsets")
                ])
            };
            let got = got + &shape(&found).to_string();
            tally.compare(id, &got, &shape(&expect["object"]).to_string());
        }
    }
    tally.finish(86);
}

#[test]
fn what_a_manifest_says_of_a_load_balancers_addresses_is_judged_as_its_status_by_the_api_server() {
    let mut tally = Tally::default();
    for record in records(&folder("oracle/validation/service-status.jsonl")) {
        let id = record["id"].as_str().unwrap();
        if record["type"] != "LoadBalancer" {
            tally.leave_out(
                id,
                "the status of another type is an old printout, which nobody reads",
            );
            continue;
        }
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{type: LoadBalancer, ports: [{{port: 80}}]}}\n\
             status: {{loadBalancer: {{ingress: {}}}}}\n",
            record["ingress"]
        );
        let expect = &record["expect"];
        let wanted = if expect["outcome"] == "accepted" {
            String::new()
        } else {
            wanted(expect)
        };
        tally.compare(id, &problems_of(&model(&text)), &wanted);
    }
    tally.finish(13);
}

const AGAIN: &str =
    "a file is read anew after a restart, with no Service before it: what is wrong in itself stays wrong";
const VERSIONS: &str = "a folder has no uids and no resource versions";

/// Updates that differ on purpose, and why.
const UPDATES: &[(&str, &str)] = &[
    ("ds-downgrade-families-still-two", AGAIN),
    ("nodeport-to-clusterip-keep-nodeport", AGAIN),
    ("lb-class-to-nodeport-kept", AGAIN),
    ("etp-extip-removed", AGAIN),
    ("to-externalname-ip-kept", AGAIN),
    ("name-mismatch-uid", VERSIONS),
    ("stale-resourceversion", VERSIONS),
];

/// The spec in force after `old` and then `new`, or what is wrong with `new`; then the spec before.
fn updated(record: &Value) -> (Result<Value, String>, Value) {
    let given = record["given"].as_array().into_iter().flatten();
    let given: Vec<_> = given.map(|given| given.as_str().unwrap().to_owned()).collect();
    let old = record["old"].as_str().unwrap().to_owned();
    let mut model = model(&[vec![old], given].concat().join("\n---\n"));
    assert!(
        model.problems().is_empty(),
        "{}: {:?}",
        record["id"],
        model.problems()
    );
    let object = parse(record["new"].as_str().unwrap()).objects.remove(0);
    let key = object.key.clone();
    let name = ServiceName {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    };
    let spec = |model: &Model| {
        let service = model.service(&name).unwrap();
        serde_json::to_value(service.object.spec.as_ref().unwrap()).unwrap()
    };
    let before = spec(&model);
    model.apply(vec![Event::Apply(Box::new(object))]);
    let causes = problems_of(&model);
    let got = match causes.is_empty() {
        true => Ok(spec(&model)),
        false => Err(causes),
    };
    (got, before)
}

/// Which cluster IPs and node ports are `same` as before, `new`, or none: as the records have it.
fn kept(before_spec: &Value, after_spec: &Value) -> String {
    let ips = |spec: &Value| spec["clusterIPs"].as_array().cloned().unwrap_or_default();
    let ports = |spec: &Value| -> Vec<Value> {
        let ports = spec["ports"].as_array().cloned().unwrap_or_default();
        ports.iter().map(|port| port["nodePort"].clone()).collect()
    };
    let compare = |before: &[Value], after: &[Value]| -> Vec<Value> {
        let one = |value: &Value| match value {
            Value::Null => Value::Null,
            value if before.contains(value) => json!("same"),
            _ => json!("new"),
        };
        after.iter().map(one).collect()
    };
    let mut kept = json!({"clusterIPs": compare(&ips(before_spec), &ips(after_spec))});
    let (before, after) = (ports(before_spec), ports(after_spec));
    if before.iter().chain(&after).any(|port| !port.is_null()) {
        kept["nodePorts"] = compare(&before, &after).into();
    }
    let health = |spec: &Value| spec["healthCheckNodePort"].clone();
    kept["healthCheckNodePort"] = match (health(before_spec), health(after_spec)) {
        (Value::Null, Value::Null) => return kept.to_string(),
        (_, Value::Null) => json!("none"),
        (before, after) if before == after => json!("same"),
        _ => json!("new"),
    };
    kept.to_string()
}

#[test]
fn updates_are_judged_and_keep_what_they_leave_out_as_by_the_api_server() {
    let mut tally = Tally::default();
    for record in records(&folder("oracle/validation/update.jsonl")) {
        let id = record["id"].as_str().unwrap();
        if let Some((_, reason)) = UPDATES.iter().find(|(different, _)| *different == id) {
            tally.leave_out(id, reason);
            continue;
        }
        // A file is what server-side apply is sent; the record has it only where a replacing update is judged otherwise.
        let expect = record.get("expectApply").unwrap_or_else(|| &record["expect"]);
        let (got, before) = updated(&record);
        let spec = &expect["object"]["spec"];
        let mut wanted = wanted(expect);
        let got = match got {
            Ok(got) => {
                let kept_there = &expect["kept"].clone();
                if kept_there.is_object() {
                    wanted += &kept_there.to_string();
                } else {
                    wanted += &json!({"clusterIPs": []}).to_string();
                }
                let kept = kept(&before, &got);
                normalise(got, spec).to_string() + &kept
            }
            Err(causes) => causes,
        };
        tally.compare(id, &got, &wanted);
    }
    tally.finish(65);
}
