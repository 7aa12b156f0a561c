//! Batches of events, and the Services that are in force after them.

use super::*;
use crate::allocate::Ranges;
use crate::manifest;
use crate::problem::SourceText;

/// A Service `default/s` with this spec.
pub(crate) fn service(spec: &str) -> core::Service {
    let text =
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: default}}\nspec: {spec}\n");
    let node = manifest::yaml::read(&text).unwrap().unwrap();
    manifest::decode::decode(&node).unwrap()
}

pub(crate) fn model() -> Model {
    Model::new(Allocator::new(Ranges::default(), BTreeMap::new()))
}

/// The events of a source that holds `text`.
pub(crate) fn reset(text: &str) -> Batch {
    let contents = manifest::read(&Arc::new(SourceText {
        path: "f.yaml".into(),
        text: text.into(),
    }));
    let objects = contents
        .objects
        .into_iter()
        .map(|object| Event::Apply(Box::new(object)));
    let problems = Event::Problems(contents.problems);
    [problems, Event::ResetBegin]
        .into_iter()
        .chain(objects)
        .chain([Event::ResetEnd])
        .collect()
}

fn node_port(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{type: NodePort, ports: [{{port: 80, nodePort: {port}}}]}}\n"
    )
}

fn said(model: &Model) -> Vec<String> {
    model.problems().iter().map(ToString::to_string).collect()
}

fn ports(model: &Model) -> Vec<(String, Option<u16>)> {
    model
        .services()
        .map(|s| (s.name.name.clone(), s.ports[0].node_port))
        .collect()
}

#[test]
fn a_service_that_becomes_wrong_stays_as_it_was_and_says_where() {
    let mut model = model();
    model.apply(reset(&node_port("a", 30_026)));
    model.apply(reset(&node_port("a", 80)));
    assert_eq!(ports(&model), [("a".into(), Some(30_026))]);
    assert_eq!(
        said(&model),
        [
            "f.yaml:5:53: Service default/a: spec.ports[0].nodePort: Invalid value: 80: must be from 30000 to 32767 \
          (what it said before stays in force)"
        ]
    );
    model.apply(reset(&node_port("a", 30_027)));
    assert_eq!(
        (ports(&model), said(&model)),
        (vec![("a".into(), Some(30_027))], vec![])
    );
}

#[test]
fn a_service_waits_for_what_another_holds_and_gets_it_when_it_is_free() {
    let mut model = model();
    model.apply(reset(&node_port("b", 30_026)));
    model.apply(reset(&(node_port("a", 30_026) + &node_port("b", 30_026))));
    assert_eq!(ports(&model), [("b".into(), Some(30_026))]);
    assert!(
        said(&model)[0].contains("is already held by Service default/b"),
        "{:?}",
        said(&model)
    );
    model.apply(reset(&node_port("a", 30_026)));
    assert_eq!(
        (ports(&model), said(&model)),
        (vec![("a".into(), Some(30_026))], vec![])
    );
}

#[test]
fn al_10_an_explicit_request_wins_over_a_dynamic_pick_made_at_the_same_time() {
    let dynamic = "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    let mut first = model();
    first.apply(reset(dynamic));
    let picked = first.services().next().unwrap().cluster_ips[0];
    let explicit = dynamic
        .replace("name: a", "name: z")
        .replace("{ports", &format!("{{clusterIP: {picked}, ports"));
    let mut both = model();
    both.apply(reset(&(dynamic.to_owned() + &explicit)));
    assert!(said(&both).is_empty(), "{:?}", said(&both));
    let ips: Vec<_> = both.services().map(|s| s.cluster_ips[0]).collect();
    assert!(ips[1] == picked && ips[0] != picked);
}

#[test]
fn a_port_out_of_range_is_said_once_not_again_for_the_target_port_taken_from_it() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}\n";
    let mut model = model();
    model.apply(reset(text));
    assert_eq!(
        said(&model),
        ["f.yaml:4:23: Service default/a: spec.ports[0].port: Invalid value: 70000: must be from 1 to 65535"]
    );
    model.apply(reset(&text.replace("70000", "70000, targetPort: 0x11170")));
    assert_eq!(said(&model).len(), 2, "{:?}", said(&model));
}

#[test]
fn val_20_a_cluster_ip_may_not_change_while_the_service_lives() {
    let with = |ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: {ip}, ports: [{{port: 1}}]}}\n"
        )
    };
    let mut model = model();
    model.apply(reset(&with("10.96.0.7")));
    model.apply(reset(&with("10.96.0.8")));
    assert!(
        said(&model)[0].contains("may not change (it is 10.96.0.7)"),
        "{:?}",
        said(&model)
    );
    model.apply(reset(""));
    model.apply(reset(&with("10.96.0.8")));
    assert_eq!(said(&model), Vec::<String>::new());
}
