//! Sequences of creates, updates and deletes give out, keep and free the same as on a real API server.

use std::collections::BTreeMap;

use serde_json::Value;
use sluice_control::manifest::{Key, Kind};
use sluice_control::model::{Model, ServiceName};
use sluice_control::source::Event;

use crate::support::{DUAL, Tally, allocator, folder, parse, records};

/// Puts what symbols stand for into `text`.
fn resolve(text: &str, symbols: &BTreeMap<String, String>) -> String {
    // Longest first: `$np1` is the beginning of `$np10`.
    let mut names: Vec<_> = symbols.iter().collect();
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    names.into_iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(name.as_str(), value)
    })
}

/// Compares a value with what the record says, learning what a new symbol stands for.
fn same(got: &str, wanted: &Value, symbols: &mut BTreeMap<String, String>) -> bool {
    let wanted = wanted.as_str().map_or_else(|| wanted.to_string(), str::to_owned);
    if !wanted.starts_with('$') {
        return got == wanted;
    }
    if let Some(known) = symbols.get(&wanted) {
        return got == known;
    }
    // What was freed may come back under a new symbol: the same Service gets the same again here.
    symbols.insert(wanted, got.into());
    got != "0"
}

fn step(model: &mut Model, step: &Value, symbols: &mut BTreeMap<String, String>) -> Result<(), String> {
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
        model.apply(vec![Event::Delete(key)]);
        return Ok(());
    }
    let spec = resolve(step["spec"].as_str().unwrap(), symbols);
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
    if step["outcome"] == "rejected" {
        let mut got: Vec<_> = problems.iter().map(|problem| problem.field.clone()).collect();
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
        got.sort();
        wanted.sort();
        // The server goes back to what was: so must ours, and must not try again.
        match step["op"].as_str() {
            Some("create") => model.apply(vec![Event::Delete(key)]),
            _ => model.forget(&key),
        }
        return if got == wanted {
            Ok(())
        } else {
            Err(format!("rejected for {got:?}, not {wanted:?}"))
        };
    }
    if !problems.is_empty() {
        return Err(format!("rejected: {problems:?}"));
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
    let list = |name: &str| step[name].as_array().cloned().unwrap_or_default();
    let health_wanted = step.get("healthCheckNodePort").into_iter().cloned().collect();
    for (got, wanted) in [
        (ips, list("clusterIPs")),
        (ports, list("nodePorts")),
        (health, health_wanted),
    ] {
        if got.len() != wanted.len()
            || !got
                .iter()
                .zip(&wanted)
                .all(|(got, wanted)| same(got, wanted, symbols))
        {
            return Err(format!("{got:?}, not {wanted:?}"));
        }
    }
    Ok(())
}

/// Steps that differ on purpose, and why; the others of their sequence are compared.
const DIFFERENT: &[(&str, usize, &str)] = &[
    (
        "dual-up-down",
        3,
        "the server gave an address that one Service holds to another as well",
    ),
    ("dual-up-down", 5, "the same Service again, which here never was"),
    (
        "partial-failure-frees-first-ip",
        2,
        "the step before left the first address reserved; ours leaks nothing",
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
        let (mut model, mut symbols) = (Model::new(allocator(DUAL)), BTreeMap::new());
        let mut said = String::from("all steps");
        for (index, one) in record["steps"].as_array().unwrap().iter().enumerate() {
            let differs = |(of, step, _): &&(&str, usize, &str)| *of == id && *step == index;
            if let Some((.., reason)) = DIFFERENT.iter().find(differs) {
                tally.leave_out(&format!("{id} step {index}"), reason);
                continue;
            }
            if let Err(wrong) = step(&mut model, one, &mut symbols) {
                said = format!("step {index} {one}: {wrong}");
                break;
            }
        }
        tally.compare(id, &said, "all steps");
    }
    tally.finish(24);
}
