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

use crate::support::{DUAL, SINGLE, Tally, allocator, folder, is_allocated, model, parse, records};

/// What differs, and what no folder can do.
mod differences;
/// What becomes of one that was there before.
mod updates;

use differences::{ACCEPTED, DIFFERENT, UPDATES, out_of_scope};
use updates::{kept, updated};

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
    let Some(causes) = expect["causes"].as_array() else {
        return expect["reason"].to_string();
    };
    let causes = causes.iter().map(|cause| {
        let reason = cause["reason"].as_str().unwrap().trim_start_matches("FieldValue");
        format!("{} {reason}", cause["field"].as_str().unwrap())
    });
    let causes: BTreeSet<_> = causes.collect();
    causes.into_iter().collect::<Vec<_>>().join(", ")
}

/// Puts the record's symbols in place of what was allocated, where that is of the symbol's kind.
fn normalise(mut spec: Value, wanted: &Value) -> Value {
    let symbol = |got: &mut Value, wanted: &Value| {
        let texts = got.as_str().zip(wanted.as_str());
        if texts.is_some_and(|(got, wanted)| wanted.starts_with("<allocated") && is_allocated(got, wanted)) {
            *got = wanted.clone();
        }
    };
    // The single field is the first of the list: to be seen before symbols hide it.
    let first = spec["clusterIPs"][0].clone();
    if let Some(single) = spec.get_mut("clusterIP").filter(|single| **single == first) {
        symbol(single, &wanted["clusterIP"]);
    }
    for (index, got) in spec
        .get_mut("clusterIPs")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .enumerate()
    {
        symbol(got, &wanted["clusterIPs"][index]);
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
        if wanted["ports"][index]["nodePort"].is_string() && is_allocated(&number.to_string(), "nodePort") {
            let next = format!("<allocated-{}>", symbols.len() + 1);
            port["nodePort"] = json!(symbols.entry(number).or_insert(next));
        }
    }
    if let Some(number) = spec["healthCheckNodePort"].as_i64()
        && wanted["healthCheckNodePort"].is_string()
        && is_allocated(&number.to_string(), "healthCheckNodePort")
    {
        let next = format!("<allocated-{}>", symbols.len() + 1);
        spec["healthCheckNodePort"] = json!(symbols.entry(number).or_insert(next));
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
            if id == "port-many-300" {
                tally.leave_out(id, "the record does not hold the object");
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
            let in_file = format!("{file}/{id}");
            match DIFFERENT.iter().find(|(different, ..)| *different == in_file) {
                Some((_, reason, ours)) => {
                    let got = if got.starts_with('{') { ACCEPTED } else { &got };
                    tally.differ(&in_file, reason, got, &wanted, ours);
                }
                None => tally.compare(id, &got, &wanted),
            }
        }
    }
    let of_files = DIFFERENT.iter().map(|(id, ..)| *id);
    tally.all_differed(of_files.filter(|id| files.contains(&id.split_once('/').unwrap().0)));
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
            let Some(found) = found.pop() else {
                tally.compare(id, "not found", "found");
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

#[test]
fn updates_are_judged_and_keep_what_they_leave_out_as_by_the_api_server() {
    let mut tally = Tally::default();
    for record in records(&folder("oracle/validation/update.jsonl")) {
        let id = record["id"].as_str().unwrap();
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
        match UPDATES.iter().find(|(different, ..)| *different == id) {
            Some((_, reason, ours)) => {
                let got = if got.starts_with('{') { ACCEPTED } else { &got };
                tally.differ(id, reason, got, &wanted, ours);
            }
            None => tally.compare(id, &got, &wanted),
        }
    }
    tally.all_differed(UPDATES.iter().map(|(id, ..)| *id));
    tally.finish(65);
}
