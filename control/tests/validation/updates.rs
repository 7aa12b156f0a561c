//! Updates of Services: what is in force after one, and what it kept.

use serde_json::{Value, json};
use sluice_control::model::{Model, ServiceName};
use sluice_control::source::Event;

use super::problems_of;
use crate::support::{model, parse};

/// The spec in force after `old` and then `new`, or what is wrong with `new`; then the spec before.
pub(super) fn updated(record: &Value) -> (Result<Value, String>, Value) {
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
pub(super) fn kept(before_spec: &Value, after_spec: &Value) -> String {
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
