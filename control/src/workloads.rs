//! What a controller would say of the sets that keep pods: their status, counted from the pods that their selectors find. Takes
//! objects as users wrote them and the pods there are, gives the objects with status. It makes and ends no pod: that is the lab's.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSetStatus, DeploymentStatus, ReplicaSetStatus, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::manifest::Body;

/// How many pods a set has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// That are neither over nor ending.
    all: i32,
    ready: i32,
}

/// `body` with its status, if it is a set; `nodes` is how many there are.
pub(crate) fn with_status(body: &Body, pods: &[Arc<Pod>], nodes: usize) -> Body {
    let namespace = body.metadata().namespace.as_ref();
    let count = |selector: Option<&LabelSelector>| {
        let counted = selector.map(|selector| count(pods, namespace, selector));
        counted.unwrap_or_default()
    };
    let mut body = body.clone();
    match &mut body {
        Body::Deployment(set) => {
            let set = Arc::make_mut(set);
            let Count { all, ready } = count(set.spec.as_ref().map(|spec| &spec.selector));
            set.status = Some(DeploymentStatus {
                replicas: Some(all),
                updated_replicas: Some(all),
                ready_replicas: Some(ready),
                available_replicas: Some(ready),
                ..DeploymentStatus::default()
            });
        }
        Body::ReplicaSet(set) => {
            let set = Arc::make_mut(set);
            let Count { all, ready } = count(set.spec.as_ref().map(|spec| &spec.selector));
            set.status = Some(ReplicaSetStatus {
                replicas: all,
                ready_replicas: Some(ready),
                available_replicas: Some(ready),
                ..ReplicaSetStatus::default()
            });
        }
        Body::StatefulSet(set) => {
            let set = Arc::make_mut(set);
            let Count { all, ready } = count(set.spec.as_ref().map(|spec| &spec.selector));
            set.status = Some(StatefulSetStatus {
                replicas: all,
                ready_replicas: Some(ready),
                available_replicas: Some(ready),
                ..StatefulSetStatus::default()
            });
        }
        Body::DaemonSet(set) => {
            let set = Arc::make_mut(set);
            let Count { all, ready } = count(set.spec.as_ref().map(|spec| &spec.selector));
            set.status = Some(DaemonSetStatus {
                desired_number_scheduled: i32::try_from(nodes).unwrap_or(i32::MAX),
                current_number_scheduled: all,
                number_ready: ready,
                updated_number_scheduled: Some(all),
                number_available: Some(ready),
                ..DaemonSetStatus::default()
            });
        }
        _ => {}
    }
    body
}

fn count(pods: &[Arc<Pod>], namespace: Option<&String>, selector: &LabelSelector) -> Count {
    let mut count = Count::default();
    for pod in pods {
        let Some(status) = pod.status.as_ref() else {
            continue;
        };
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let other = pod.metadata.namespace.as_ref() != namespace;
        if over || other || pod.metadata.deletion_timestamp.is_some() || !selects(selector, pod) {
            continue;
        }
        let mut conditions = status.conditions.iter().flatten();
        let ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
        count.all += 1;
        count.ready += i32::from(ready);
    }
    count
}

/// A selector that says nothing selects nothing here: the API takes no such set.
fn selects(selector: &LabelSelector, pod: &Pod) -> bool {
    let value = |key: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let pairs: Vec<_> = selector.match_labels.iter().flatten().collect();
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    let says_something = !expressions.is_empty() || !pairs.is_empty();
    says_something
        && pairs.iter().all(|(key, wanted)| value(key) == Some(wanted))
        && expressions.iter().all(|expression| {
            let (has, values) = (
                value(&expression.key),
                expression.values.as_deref().unwrap_or_default(),
            );
            match expression.operator.as_str() {
                "In" => has.is_some_and(|has| values.contains(has)),
                "NotIn" => has.is_none_or(|has| !values.contains(has)),
                "Exists" => has.is_some(),
                "DoesNotExist" => has.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::tests::{model, reset};

    #[test]
    fn a_sets_status_counts_the_pods_that_it_selects() {
        let mut model = model();
        let pod = |name: &str, labels: &str, rest: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
                 spec: {{containers: [{{name: c, image: i}}]}}\nstatus: {{{rest}}}\n---\n"
            )
        };
        let ready = "phase: Running, conditions: [{type: Ready, status: \"True\"}]";
        let pods = [
            pod("a", "app: web, tier: front", ready),
            pod(
                "b",
                "app: web",
                "phase: Running, conditions: [{type: Ready, status: \"False\"}]",
            ),
            pod("c", "app: web", "phase: Succeeded"),
            pod("d", "app: other", ready),
            pod("e", "app: web", ready).replace("{name: e", "{namespace: elsewhere, name: e"),
            pod("f", "app: web", ready).replace(
                "{name: f",
                "{deletionTimestamp: \"2026-01-01T00:00:00Z\", name: f",
            ),
        ];
        let set = |kind: &str, selector: &str| {
            format!(
                "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: web}}\nspec: {{selector: {selector}, template: {{}}}}\n---\n"
            )
        };
        let by_label = "{matchLabels: {app: web}}";
        let sets = [
            set("Deployment", by_label),
            set(
                "ReplicaSet",
                "{matchExpressions: [{key: app, operator: In, values: [web]}, {key: tier, operator: DoesNotExist}]}",
            ),
            set("DaemonSet", by_label).replace("template", "updateStrategy: {}, template"),
            set("StatefulSet", "{}").replace("template", "serviceName: web, template"),
        ];
        model.apply(reset(&[pods.concat(), sets.concat()].concat()));
        assert!(model.problems().is_empty(), "{:?}", model.problems());
        let pods: Vec<_> = model.pods().cloned().collect();
        let status = |kind| -> Vec<Value> {
            let bodies = model.bodies(kind);
            bodies
                .map(|body| with_status(body, &pods, 1).value().unwrap()["status"].take())
                .collect()
        };
        use crate::manifest::Kind;
        assert_eq!(
            status(Kind::Deployment),
            [json!({"availableReplicas": 1, "readyReplicas": 1, "replicas": 2, "updatedReplicas": 2})]
        );
        assert_eq!(
            status(Kind::ReplicaSet),
            [json!({"availableReplicas": 0, "readyReplicas": 0, "replicas": 1})]
        );
        let daemon = &status(Kind::DaemonSet)[0];
        let numbers = ["desiredNumberScheduled", "currentNumberScheduled", "numberReady"]
            .map(|field| daemon[field].clone());
        assert_eq!(numbers, [json!(1), json!(2), json!(1)]);
        assert_eq!(status(Kind::StatefulSet)[0]["replicas"], 0);
    }
}
