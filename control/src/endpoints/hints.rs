//! For which zones and nodes an endpoint is (TOP-6, TOP-7): what a Service wishes, and where its endpoints and the cluster's
//! processors are, to the hints of its slices. Which hints count is for `sets`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

use super::ZONE;
use crate::model::Service;

const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_AWARE_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// Nodes with one of these run no pods of users: their processors do not count.
const OF_THE_CLUSTER: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];
/// By how much a zone's endpoints may have more than their share of clients to serve: kube-controller-manager's.
const OVERLOAD: f64 = 0.2;

/// Which share of the cluster's processors each zone has; empty where that cannot be told.
pub(super) type Shares = BTreeMap<String, f64>;

/// The shares of zones that have one of `nodes` that is ready. One that tells no zone or no processors leaves all in the dark.
pub(super) fn shares<'n>(nodes: impl Iterator<Item = &'n Node>) -> Shares {
    let mut zones = Shares::new();
    for node in nodes {
        let label = |key: &str| node.metadata.labels.as_ref()?.get(key);
        let status = node.status.as_ref();
        let mut conditions = status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if !ready || OF_THE_CLUSTER.iter().any(|role| label(role).is_some()) {
            continue;
        }
        let cpu = || status?.allocatable.as_ref()?.get("cpu");
        let cpu = cpu().and_then(|quantity| processors(&quantity.0));
        let (Some(zone), Some(cpu)) = (label(ZONE).filter(|zone| !zone.is_empty()), cpu) else {
            return Shares::new();
        };
        *zones.entry(zone.clone()).or_default() += cpu;
    }
    let all: f64 = zones.values().sum();
    zones.values_mut().for_each(|share| *share /= all);
    // One zone has nothing to keep apart.
    if zones.len() < 2 { Shares::new() } else { zones }
}

/// `4`, `3920m` or `0.5`; nothing if that is none at all.
fn processors(quantity: &str) -> Option<f64> {
    let (number, unit) = match quantity.strip_suffix('m') {
        Some(number) => (number, 0.001),
        None => (quantity, 1.0),
    };
    let number: f64 = number.parse().ok()?;
    (number.is_finite() && number > 0.0).then_some(number * unit)
}

/// Gives hints to the endpoints of `service` of one family. With topology-mode Auto its field does not count, whether there are
/// hints then or not.
pub(super) fn give(service: &Service, endpoints: Vec<&mut Endpoint>, shares: &Shares) {
    let ready = |endpoint: &&mut Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    let ready: Vec<_> = endpoints.into_iter().filter(ready).collect();
    let annotations = service.object.metadata.annotations.as_ref();
    let mode = annotations.and_then(|all| all.get(TOPOLOGY_MODE).or_else(|| all.get(TOPOLOGY_AWARE_HINTS)));
    if mode.is_some_and(|mode| mode == "Auto" || mode == "auto") {
        return proportional(ready, shares);
    }
    let spec = service.object.spec.as_ref();
    let same_node = match spec.and_then(|spec| spec.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => false,
        Some("PreferSameNode") => true,
        _ => return,
    };
    for endpoint in ready {
        let Some(zone) = endpoint.zone.clone() else {
            continue;
        };
        let for_nodes = endpoint.node_name.clone().filter(|_| same_node);
        endpoint.hints = Some(EndpointHints {
            for_nodes: for_nodes.map(|name| vec![ForNode { name }]),
            for_zones: Some(vec![ForZone { name: zone }]),
        });
    }
}

/// TOP-7: each endpoint is for its own zone, but for as many as must be for another so that each zone has a share of them like
/// its share of the processors. Computed anew from what there is: unlike the controller's, it does not depend on what was before.
fn proportional(endpoints: Vec<&mut Endpoint>, shares: &Shares) {
    let all_have_zones = endpoints.iter().all(|endpoint| endpoint.zone.is_some());
    let Some(fair) = fair(endpoints.len(), shares).filter(|_| all_have_zones) else {
        return;
    };
    let mut lacks = fair;
    for zone in endpoints.iter().filter_map(|endpoint| endpoint.zone.as_ref()) {
        if let Some(lacks) = lacks.get_mut(zone) {
            *lacks -= 1.0;
        }
    }
    let mut moves = moves(lacks);
    for endpoint in endpoints {
        let Some(own) = endpoint.zone.clone() else {
            continue;
        };
        let name = moves.get_mut(&own).and_then(Vec::pop).unwrap_or(own);
        endpoint.hints = Some(EndpointHints {
            for_zones: Some(vec![ForZone { name }]),
            ..EndpointHints::default()
        });
    }
}

/// How many of `count` endpoints each zone should have; nothing where whole endpoints would leave one with too few.
fn fair(count: usize, shares: &Shares) -> Option<BTreeMap<String, f64>> {
    if shares.is_empty() || shares.len() > count {
        return None;
    }
    let wanted: BTreeMap<_, _> = shares
        .iter()
        .map(|(zone, share)| (zone.clone(), share * count as f64))
        .collect();
    let least = |wanted: &f64| (wanted / (1.0 + OVERLOAD)).ceil();
    (wanted.values().map(least).sum::<f64>() <= count as f64).then_some(wanted)
}

/// Which zones endpoints of a zone go to, one at a time from who has most too many to who has most too few, as long as that
/// is better than nothing.
fn moves(mut lacks: BTreeMap<String, f64>) -> BTreeMap<String, Vec<String>> {
    let mut moves = BTreeMap::<String, Vec<String>>::new();
    // Bounded: each turn brings two zones an endpoint nearer to what they should have.
    loop {
        let most_too_many = lacks.iter().min_by(|a, b| a.1.total_cmp(b.1));
        let most_too_few = lacks.iter().rev().max_by(|a, b| a.1.total_cmp(b.1));
        let (Some((from, surplus)), Some((to, lack))) = (most_too_many, most_too_few) else {
            return moves;
        };
        let (surplus, lack) = (-surplus, *lack);
        if surplus.min(lack) < 0.5 || surplus.max(lack) < 1.0 {
            return moves;
        }
        let (from, to) = (from.clone(), to.clone());
        lacks.entry(from.clone()).and_modify(|lack| *lack += 1.0);
        lacks.entry(to.clone()).and_modify(|lack| *lack -= 1.0);
        moves.entry(from).or_default().push(to);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(zone: &str, cpu: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"labels": {ZONE: zone}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]}
        }))
        .unwrap()
    }

    /// Hints for endpoints in these zones, of a cluster of such nodes.
    fn hints(nodes: &[(&str, &str)], zones: &str) -> String {
        let nodes: Vec<Node> = nodes.iter().map(|(zone, cpu)| node(zone, cpu)).collect();
        let endpoint = |zone: char| Endpoint {
            zone: (zone != '-').then(|| zone.to_string()),
            ..Endpoint::default()
        };
        let mut endpoints: Vec<Endpoint> = zones.chars().map(endpoint).collect();
        proportional(endpoints.iter_mut().collect(), &shares(nodes.iter()));
        let hint = |endpoint: &Endpoint| match &endpoint.hints {
            Some(hints) => hints.for_zones.as_ref().unwrap()[0].name.clone(),
            None => "-".into(),
        };
        endpoints.iter().map(hint).collect()
    }

    #[test]
    fn top_7_each_zone_gets_endpoints_by_its_processors_and_as_few_as_possible_move() {
        let equal = [("a", "4"), ("b", "4000m")];
        let double = [("a", "4"), ("a", "4"), ("b", "4")];
        for (nodes, zones, wanted) in [
            (&equal[..], "aabb", "aabb"),
            (&equal, "aaaa", "bbaa"),
            (&equal, "aaab", "baab"),
            (&equal, "aab", "---"),
            (&double, "aab", "aab"),
            (&double, "abb", "aab"),
            (&double, "aabbbb", "aaaabb"),
            // Too few endpoints, or one without a zone.
            (&equal, "a", "-"),
            (&equal, "aab-", "----"),
            // A zone of no node: its endpoints are for it alone.
            (&equal, "aaabbbc", "aaabbbc"),
            // One zone, or a node that tells nothing.
            (&equal[..1], "aaaa", "----"),
            (&[("a", "4"), ("b", "0")], "aabb", "----"),
            (&[("a", "4"), ("b", "many")], "aabb", "----"),
            (&[("a", "4"), ("", "4"), ("b", "4")], "aabb", "----"),
        ] {
            assert_eq!(hints(nodes, zones), wanted, "{zones} on {nodes:?}");
        }
    }

    #[test]
    fn top_7_every_endpoint_is_for_a_zone_and_no_zone_is_an_endpoint_off_what_it_should_have() {
        let mut given = 0;
        for (a, b, c) in (1..5).flat_map(|a| (1..5).flat_map(move |b| (1..5).map(move |c| (a, b, c)))) {
            let cpus = [("a", a), ("b", b), ("c", c)].map(|(zone, cpu)| (zone, f64::from(cpu)));
            let texts = cpus.map(|(zone, cpu)| (zone, cpu.to_string()));
            let nodes = texts.each_ref().map(|(zone, cpu)| (*zone, cpu.as_str()));
            for count in 1..24_u32 {
                for here in ["a", "b", "c"] {
                    let hints = hints(&nodes, &here.repeat(count as usize));
                    if hints.starts_with('-') {
                        assert_eq!(hints, "-".repeat(count as usize));
                        continue;
                    }
                    given += 1;
                    for (zone, cpu) in cpus {
                        let due = cpu / f64::from(a + b + c) * f64::from(count);
                        let has = hints.matches(zone).count() as f64;
                        assert!((has - due).abs() < 1.0, "{zone} of {nodes:?}: {hints}");
                    }
                }
            }
        }
        assert!(given > 1000, "{given}");
    }

    #[test]
    fn nodes_of_the_cluster_and_those_that_are_not_ready_do_not_count() {
        let mut nodes = vec![node("a", "3"), node("b", "1")];
        let even = shares(nodes.iter());
        assert_eq!(even, Shares::from([("a".into(), 0.75), ("b".into(), 0.25)]));
        let mut control_plane = node("", "8");
        let labels = control_plane.metadata.labels.as_mut().unwrap();
        labels.insert(OF_THE_CLUSTER[0].into(), String::new());
        let mut broken = node("b", "8");
        broken.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "Unknown".into();
        nodes.extend([control_plane, broken, Node::default()]);
        assert_eq!(shares(nodes.iter()), even);
    }
}
