//! What happens in each case of `updates.jsonl`, as objects: before, and after each event.

use serde_json::{Value, json};

use crate::cluster::Condition;
use crate::ledger::Row;
use crate::shape::{Shape, pair, ready};
use crate::topology::named;

/// The node port of both ports.
pub(crate) const NODE_PORT: u16 = 30_077;

/// What happens in a row: the objects before, and after each event. The flows speak after all of the first list, and
/// again after all of the second.
pub(crate) struct Story {
    pub(crate) before: Vec<Value>,
    pub(crate) first: Vec<Vec<Value>>,
    pub(crate) second: Vec<Vec<Value>>,
    /// Control is restarted before the first event.
    pub(crate) restart: bool,
}

fn shape(endpoints: &[(&'static str, Condition)]) -> Shape {
    Shape {
        balanced: pair("203.0.113.77", "2001:db8:113::77").into(),
        external: pair("198.18.0.77", "2001:db8:18::77").into(),
        ports: vec![
            ("t", "TCP", 80, 8080, Some(NODE_PORT)),
            ("u", "UDP", 80, 8080, Some(NODE_PORT)),
        ],
        endpoints: endpoints.to_vec(),
        ..Shape::default()
    }
}

/// Endpoints before, as the record has them; `R` ready, `N` not.
fn before(row: &Row) -> Vec<(&'static str, Condition)> {
    let list = row.value["endpoints_before"].as_array().into_iter().flatten();
    let condition = |letter: &Value| {
        if letter == "R" {
            Condition::READY
        } else {
            Condition::NOT_READY
        }
    };
    list.map(|pair| (named(pair[0].as_str().unwrap()).name, condition(&pair[1])))
        .collect()
}

/// The story of a row.
pub(crate) fn story(row: &Row) -> Story {
    let was = before(row);
    let plain = shape(&was);
    let flow = row.text("udp_endpoint");
    // The endpoint of the flow in another condition, or gone.
    let with = |condition: Option<Condition>| {
        let others = was.iter().copied().filter(|(name, _)| *name != flow);
        let changed = condition.map(|condition| (named(flow).name, condition));
        shape(&others.chain(changed).collect::<Vec<_>>()).objects()
    };
    let kept = |change: &dyn Fn(&mut Shape)| {
        let mut shape = plain.clone();
        change(&mut shape);
        shape.objects()
    };
    let just = |first: Vec<Value>| (vec![first], Vec::new());
    let then = |first: Vec<Value>, second: Vec<Value>| (vec![first], vec![second]);
    let all = || plain.objects();
    let slices_only = || all().split_off(1);
    let none = || shape(&[]).objects();
    let case = row
        .text("case")
        .trim_start_matches("kube-proxy stopped, ")
        .trim_end_matches(", kube-proxy started");
    let (first, second) = match case {
        "Service deleted (slices kept), then nothing" | "Service deleted" => just(slices_only()),
        "Service deleted with its slices" => just(Vec::new()),
        "Service deleted and recreated with the same clusterIP and other endpoints" => (
            vec![Vec::new(), shape(&ready(&["l2", "r2"])).objects()],
            Vec::new(),
        ),
        "all endpoints removed (scaled to zero), then back" => then(none(), all()),
        "endpoint becomes not ready (not serving)" | "single endpoint becomes not ready" => {
            then(with(Some(Condition::NOT_READY)), all())
        }
        "endpoint becomes terminating and not serving" => {
            just(with(Some(Condition::TERMINATING_NOT_SERVING)))
        }
        "endpoint becomes not ready but still serving, not terminating" => {
            then(with(Some(Condition::SERVING_NOT_READY)), all())
        }
        "endpoint becomes terminating and serving" | "single endpoint becomes terminating and serving" => {
            then(with(Some(Condition::TERMINATING)), with(None))
        }
        "another endpoint added" => just(shape(&ready(&["l1", "r1", "l2", "r2"])).objects()),
        "another endpoint removed" => just(shape(&ready(&["l1", "r1"])).objects()),
        "internalTrafficPolicy set to Local while the flow goes to a remote endpoint" => {
            // An endpoint elsewhere is what makes it DROP.
            just(kept(&|shape| shape.internal_policy = "Local"))
        }
        "externalTrafficPolicy set to Local while the flow goes to a remote endpoint" => {
            just(kept(&|shape| shape.external_policy = "Local"))
        }
        "type LoadBalancer -> ClusterIP while a flow uses the nodePort" => just(kept(&|shape| {
            shape.balanced.clear();
            shape.ports.iter_mut().for_each(|port| port.4 = None);
        })),
        "LB status removed while a flow uses the LB IP" => {
            let mut objects = all();
            objects[0]["status"] = json!({});
            just(objects)
        }
        "target port changes 8080 -> 8081 (same addresses)" => just(kept(&|shape| {
            shape.ports.iter_mut().for_each(|port| port.3 = 8081)
        })),
        "an unrelated Service of the same endpoints is deleted" => just(all()),
        "all endpoints become not ready, a replacement appears 1.5 s later" => {
            let gone = was.iter().map(|(name, _)| (*name, Condition::NOT_READY));
            let replaced = gone.clone().chain([("l2", Condition::READY)]);
            let (gone, replaced): (Vec<_>, Vec<_>) = (gone.collect(), replaced.collect());
            (
                vec![shape(&gone).objects(), shape(&replaced).objects()],
                Vec::new(),
            )
        }
        "externalIPs of the Service changed while a flow uses the clusterIP" => just(kept(&|shape| {
            shape.external = pair("198.18.0.78", "2001:db8:18::78").into()
        })),
        "sessionAffinity switched on while a flow is open" => just(kept(&|shape| shape.affinity = 10_800)),
        "client sends UDP from a fixed port before the Service exists, and keeps sending" => {
            (vec![none(), shape(&ready(&["l1", "r1"])).objects()], Vec::new())
        }
        "Service starts without endpoints (REJECT), then gets them" => {
            just(shape(&ready(&["l1", "r1"])).objects())
        }
        "Service starts with only remote endpoints and iTP Local (DROP), then gets a local one" => {
            just(kept(&|shape| {
                shape.internal_policy = "Local";
                shape.endpoints = ready(&["l1", "r1"]);
            }))
        }
        "kube-proxy restarted, endpoints unchanged" => just(all()),
        _ if case.starts_with("endpoint of the UDP flow removed") => then(with(None), all()),
        other => panic!("{row}: no case: {other}"),
    };
    let unrelated = Shape {
        name: "unrelated".into(),
        cluster: pair("10.96.7.8", "fd00:10:96::708"),
        endpoints: was.clone(),
        ..Shape::default()
    };
    let mut before = match case {
        _ if case.starts_with("client sends UDP") => Vec::new(),
        _ if case.contains("iTP Local (DROP)") => kept(&|shape| shape.internal_policy = "Local"),
        _ => all(),
    };
    if case.starts_with("an unrelated Service") {
        before.extend(unrelated.objects());
    }
    Story {
        before,
        first,
        second: if row.value["timeline_udp_second_event"].is_null() {
            Vec::new()
        } else {
            second
        },
        restart: row.text("case").starts_with("kube-proxy"),
    }
}
