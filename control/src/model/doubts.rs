//! What is taken as written, but hardly does what is meant: Services that lead nowhere among the pods beside them. Takes
//! a model, gives warnings. Only for a set of manifests that is meant to be whole (`sluice check`): where pods come and
//! go by themselves, a Service without one is nothing to warn of.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};

use super::{Model, Service, Target, protocol, service_key};
use crate::manifest::{Body, Kind};
use crate::problem::{Problem, Severity};

/// A pod, or one that a set would make.
struct Candidate<'m> {
    namespace: &'m str,
    labels: Option<&'m BTreeMap<String, String>>,
    spec: Option<&'m PodSpec>,
}

/// Warnings about the Services of `model` that select no pod, or name a port that none of their pods has. Nothing where
/// a namespace has no pods at all: they are elsewhere then.
pub fn doubts(model: &Model) -> Vec<Problem> {
    let candidates = candidates(model);
    let mut found = Vec::new();
    for service in model.services() {
        let Some(selector) = service.selector() else {
            continue;
        };
        let beside: Vec<_> = candidates
            .iter()
            .filter(|pod| pod.namespace == service.name.namespace)
            .collect();
        let has = |pod: &&&Candidate<'_>| {
            let value = |key| pod.labels.and_then(|labels| labels.get(key));
            selector.iter().all(|(key, wanted)| value(key) == Some(wanted))
        };
        let selected: Vec<_> = beside.iter().filter(has).collect();
        if beside.is_empty() {
            continue;
        }
        if selected.is_empty() {
            let wanted: Vec<_> = selector
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let message = format!(
                "no pod in namespace {} has {}; their labels: {}",
                service.name.namespace,
                wanted.join(","),
                few(beside.iter().map(|pod| labels(pod)))
            );
            found.push(warning(model, service, "spec.selector", message));
            continue;
        }
        for (index, port) in service.ports.iter().enumerate() {
            let Target::Name(name) = &port.target else {
                continue;
            };
            let mut ports = selected.iter().flat_map(|pod| named_ports(pod));
            if !ports.any(|(had, its)| had == name && protocol(its) == Some(port.protocol)) {
                let message = format!(
                    "none of the selected pods has a container port named {name} for {}; the named ones: {}",
                    port.protocol,
                    few(selected
                        .iter()
                        .flat_map(|pod| named_ports(pod))
                        .map(|(name, its)| { format!("{name}/{}", its.unwrap_or("TCP")) }))
                );
                found.push(warning(
                    model,
                    service,
                    &format!("spec.ports[{index}].targetPort"),
                    message,
                ));
            }
        }
    }
    found
}

fn candidates(model: &Model) -> Vec<Candidate<'_>> {
    let kinds = [
        Kind::Pod,
        Kind::ReplicaSet,
        Kind::Deployment,
        Kind::StatefulSet,
        Kind::DaemonSet,
    ];
    let bodies = kinds.into_iter().flat_map(|kind| model.bodies(kind));
    bodies.filter_map(candidate).collect()
}

fn candidate(body: &Body) -> Option<Candidate<'_>> {
    let (labels, spec) = match body {
        Body::Pod(pod) => (pod.metadata.labels.as_ref(), pod.spec.as_ref()),
        Body::ReplicaSet(set) => of_template(set.spec.as_ref()?.template.as_ref()?),
        Body::Deployment(deployment) => of_template(&deployment.spec.as_ref()?.template),
        Body::StatefulSet(set) => of_template(&set.spec.as_ref()?.template),
        Body::DaemonSet(set) => of_template(&set.spec.as_ref()?.template),
        _ => return None,
    };
    Some(Candidate {
        namespace: body.metadata().namespace.as_deref()?,
        labels,
        spec,
    })
}

fn of_template(template: &PodTemplateSpec) -> (Option<&BTreeMap<String, String>>, Option<&PodSpec>) {
    let metadata = template.metadata.as_ref();
    let labels = metadata.and_then(|metadata| metadata.labels.as_ref());
    (labels, template.spec.as_ref())
}

fn named_ports<'m>(pod: &Candidate<'m>) -> Vec<(&'m String, Option<&'m str>)> {
    let containers = pod.spec.into_iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| Some((port.name.as_ref()?, port.protocol.as_deref())))
        .collect()
}

fn labels(pod: &Candidate<'_>) -> String {
    let labels = pod.labels.into_iter().flatten();
    labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// Some of them, each once: a list of thousands tells nobody anything.
fn few(texts: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    let all: BTreeSet<String> = texts.filter(|text| !text.is_empty()).collect();
    let more = if all.len() > SHOWN { " …" } else { "" };
    match all.is_empty() {
        true => "none".into(),
        false => all.into_iter().take(SHOWN).collect::<Vec<_>>().join("  ") + more,
    }
}

fn warning(model: &Model, service: &Service, field: &str, message: String) -> Problem {
    let key = service_key(&service.name);
    let place = model.objects.get(&key).and_then(|object| object.place.as_ref());
    Problem::of_field(Severity::Warning, place, &key.to_string(), field, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{model, reset};

    fn said(service: &str, pod: &str) -> Vec<String> {
        let mut model = model();
        model.apply(reset(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {service}\n---\n{pod}"
        )));
        assert!(model.problems().is_empty(), "{:?}", model.problems());
        doubts(&model).iter().map(ToString::to_string).collect()
    }

    const PODS: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {app: web}}\n  \
                        template:\n    metadata: {labels: {app: web}}\n    spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\n";

    #[test]
    fn a_service_that_selects_none_of_the_pods_beside_it_is_told_their_labels() {
        assert_eq!(
            said("{selector: {app: wbe}, ports: [{port: 80}]}", PODS),
            [
                "f.yaml:4:8: warning: Service default/a: spec.selector: no pod in namespace default has app=wbe; their \
                 labels: app=web"
            ]
        );
        let none: Vec<String> = Vec::new();
        assert_eq!(
            said("{selector: {app: wbe}, ports: [{port: 80}]}", ""),
            none,
            "pods are elsewhere"
        );
        assert_eq!(said("{selector: {app: web}, ports: [{port: 80}]}", PODS), none);
    }

    #[test]
    fn a_target_port_that_no_selected_pod_has_is_told_those_they_have() {
        let service = "{selector: {app: web}, ports: [{port: 80, targetPort: http}]}";
        assert_eq!(
            said(service, PODS),
            [
                "f.yaml:4:61: warning: Service default/a: spec.ports[0].targetPort: none of the selected pods has a \
                 container port named http for TCP; the named ones: web/TCP"
            ]
        );
        assert!(said(&service.replace("http", "web"), PODS).is_empty());
        assert_eq!(
            said(&service.replace("http", "web, protocol: UDP"), PODS).len(),
            1
        );
    }
}
