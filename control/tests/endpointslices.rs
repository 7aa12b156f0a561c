//! The same Services and pods give the same EndpointSlices as a real controller made.

use std::fs;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use sluice_control::endpoints::{self, legacy};
use sluice_control::model::Model;
use sluice_control::source::{Batch, Event};

use crate::support::{Tally, folder, model, parse, text};

/// One slice as the record has it: without what the server adds, lists sorted.
fn normal(mut slice: Value) -> Value {
    for field in ["apiVersion", "kind"] {
        slice.as_object_mut().unwrap().remove(field);
    }
    let metadata = slice["metadata"].as_object_mut().unwrap();
    for field in ["creationTimestamp", "namespace", "ownerReferences"] {
        metadata.remove(field);
    }
    // Names of generated slices are random there and ours here.
    if metadata.contains_key("generateName") {
        metadata.remove("name");
    }
    for field in ["ports", "endpoints"] {
        if slice[field].is_null() || slice[field] == json!([]) {
            slice[field] = Value::Null;
        }
        if let Some(list) = slice[field].as_array_mut() {
            list.sort_by_key(|item| {
                (
                    item["addresses"].to_string(),
                    item["targetRef"].to_string(),
                    item.to_string(),
                )
            });
        }
    }
    slice
}

fn lines(slices: impl Iterator<Item = Value>) -> String {
    let mut lines: Vec<String> = slices.map(|slice| normal(slice).to_string()).collect();
    lines.sort();
    lines.join("\n")
}

const STALE: &str = "the controller forgets slices that it made for a selector; ours follow the Service";

/// What differs on purpose, why, and what ours is.
const DIFFERENT: &[(&str, &str, &str)] = &[
    ("selector-removed, then", STALE, ""),
    ("selector-removed, then, as Endpoints", STALE, ""),
    ("to-external-name, then", STALE, ""),
    ("to-external-name, then, as Endpoints", STALE, ""),
    (
        "node-missing, as Endpoints",
        "a pod whose node is not there is in no slice, and so in no Endpoints object",
        r#""s" addresses "10.244.1.1" null "node-a" "p1" {"port":80,"protocol":"TCP"}"#,
    ),
    (
        "mirror-service-deleted, then, as Endpoints",
        "the server deletes a user's object with its Service; a file says what it says",
        r#""s" addresses "192.0.2.1" null null null {"port":8080,"protocol":"TCP"}; addresses "192.0.2.2" null null null {"port":8080,"protocol":"TCP"}"#,
    ),
];

/// The events of a second step: objects that are new, or gone.
fn changes(then: &str) -> Batch {
    let gone = then.contains("$delete: true");
    let objects = parse(&then.replace("$delete: true\n", "")).objects.into_iter();
    objects
        .map(|object| match gone {
            true => Event::Delete(object.key),
            false => Event::Apply(Box::new(object)),
        })
        .collect()
}

/// An Endpoints object as the record has it: lists sorted, and what is empty as what is not there.
fn subsets(name: &Value, subsets: &Value) -> String {
    let mut lines: Vec<String> = Vec::new();
    for subset in subsets.as_array().into_iter().flatten() {
        for list in ["addresses", "notReadyAddresses"] {
            for address in subset[list].as_array().into_iter().flatten() {
                let ports = subset["ports"].as_array().cloned().unwrap_or_default();
                let ports = sorted(ports.iter().map(Value::to_string)).replace('\n', ",");
                let (ip, node, pod) = (
                    &address["ip"],
                    &address["nodeName"],
                    &address["targetRef"]["name"],
                );
                let hostname = &address["hostname"];
                lines.push(format!("{list} {ip} {hostname} {node} {pod} {ports}"));
            }
        }
    }
    format!("{name} {}", sorted(lines.into_iter()).replace('\n', "; "))
}

fn sorted(lines: impl Iterator<Item = String>) -> String {
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines.join("\n")
}

/// Compares with the record, or with what ours is where that differs on purpose.
fn judge(tally: &mut Tally, id: &str, got: &str, wanted: &str) {
    match DIFFERENT.iter().find(|(different, ..)| *different == id) {
        Some((_, reason, ours)) => tally.differ(id, reason, got, wanted, ours),
        None => tally.compare(id, got, wanted),
    }
}

/// A record of many endpoints has only how many are in each slice, and all addresses.
fn compare_sizes(tally: &mut Tally, id: &str, slices: &endpoints::Slices, wanted: &Value) {
    let slices = || slices.values().flatten();
    let endpoints = |slice: &Arc<EndpointSlice>| slice.endpoints.clone().unwrap_or_default();
    let mut sizes: Vec<_> = slices().map(|slice| endpoints(slice).len()).collect();
    sizes.sort_by_key(|size| std::cmp::Reverse(*size));
    let mut addresses: Vec<_> = slices()
        .flat_map(endpoints)
        .flat_map(|endpoint| endpoint.addresses)
        .collect();
    addresses.sort();
    let template = slices()
        .next()
        .map(|slice| without_endpoints(&serde_json::to_value(&**slice).unwrap()));
    let got = json!([sizes, addresses, template]);
    let wanted = json!([
        wanted["sliceSizes"],
        wanted["addressesOfAllSlices"],
        without_endpoints(&wanted["templateWithoutEndpoints"])
    ]);
    tally.compare(id, &got.to_string(), &wanted.to_string());
}

fn without_endpoints(slice: &Value) -> Value {
    let mut slice = normal(slice.clone());
    slice.as_object_mut().unwrap().remove("endpoints");
    slice
}

fn compare(tally: &mut Tally, id: &str, model: &Model, out: &str) {
    assert!(model.problems().is_empty(), "{id}: {:?}", model.problems());
    let wanted: Value = serde_json::from_str(out).unwrap();
    let slices = endpoints::slices(model);
    if wanted.get("sliceSizes").is_some() {
        return compare_sizes(tally, id, &slices, &wanted);
    }
    let services: Vec<_> = model.services().cloned().collect();
    let users: Vec<_> = model.endpoints().cloned().collect();
    let older = legacy::endpoints(&services, &users, &slices);
    let older = older
        .iter()
        .map(|endpoints| serde_json::to_value(endpoints).unwrap());
    let older = older.map(|endpoints| subsets(&endpoints["metadata"]["name"], &endpoints["subsets"]));
    let wanted_older = wanted["endpoints"].as_array().unwrap().iter();
    let wanted_older = wanted_older.map(|endpoints| subsets(&endpoints["name"], &endpoints["subsets"]));
    let id_older = format!("{id}, as Endpoints");
    judge(tally, &id_older, &sorted(older), &sorted(wanted_older));
    let slices = slices
        .values()
        .flatten()
        .map(|slice| serde_json::to_value(&**slice).unwrap());
    let wanted = wanted["endpointSlices"].as_array().unwrap().iter().cloned();
    judge(tally, id, &lines(slices), &lines(wanted));
}

#[test]
fn selectors_and_mirrored_endpoints_give_the_slices_the_controllers_made() {
    let mut tally = Tally::default();
    let root = folder("oracle/endpointslices");
    let nodes = text(&root.join("nodes.yaml"));
    let mut cases: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    for case in cases.into_iter().filter(|path| path.is_dir()) {
        let id = case.file_name().unwrap().to_string_lossy().into_owned();
        // A bare `n` or `y` is a boolean to the API server; the recorder's own YAML took it for text.
        let given = text(&case.join("in.yaml"))
            .replace("{note: n}", "{note: \"n\"}")
            .replace("x: y}", "x: \"y\"}");
        let mut model = model(&format!("{given}---\n{nodes}"));
        compare(&mut tally, &id, &model, &text(&case.join("out.json")));
        if let Ok(then) = fs::read_to_string(case.join("then.yaml")) {
            let id = format!("{id}, then");
            model.apply(changes(&then.replace("team: y}", "team: \"y\"}")));
            compare(&mut tally, &id, &model, &text(&case.join("then-out.json")));
        }
    }
    tally.all_differed(DIFFERENT.iter().map(|(id, ..)| *id));
    tally.finish(200);
}
