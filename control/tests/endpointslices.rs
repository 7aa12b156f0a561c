//! The same Services and pods give the same EndpointSlices as a real controller made.

use std::fs;

use serde_json::{Value, json};
use sluice_control::endpoints;

use crate::support::{Tally, folder, model, text};

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
        let (given, out) = (text(&case.join("in.yaml")), text(&case.join("out.json")));
        // A bare `n` or `y` is a boolean to the API server; the recorder's own YAML took it for text.
        let given = given
            .replace("{note: n}", "{note: \"n\"}")
            .replace("x: y}", "x: \"y\"}");
        let wanted: Value = serde_json::from_str(&out).unwrap();
        if given.contains("IPv6") || given.contains("DualStack") || out.contains("IPv6") {
            tally.leave_out(&id, "IPv6");
            continue;
        }
        if id.starts_with("topology-") {
            tally.leave_out(&id, "topology-mode Auto's proportional hints");
            continue;
        }
        let model = model(&format!("{given}---\n{nodes}"));
        assert!(model.problems().is_empty(), "{id}: {:?}", model.problems());
        let slices = endpoints::slices(&model);
        let got = lines(
            slices
                .values()
                .flatten()
                .map(|slice| serde_json::to_value(slice).unwrap()),
        );
        tally.compare(
            &id,
            &got,
            &lines(wanted["endpointSlices"].as_array().unwrap().iter().cloned()),
        );
    }
    tally.finish(60);
}
