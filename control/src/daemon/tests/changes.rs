//! What of a change is sent to the dataplane: exactly that, and nothing if nothing is another.

use sluice_dataplane::channel::record::{Key, Record};

use super::*;
use crate::manifest;

/// A Service and a slice of two endpoints, of which one serves but takes no new flows.
const BOTH: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.5, ports: [{name: a, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: a, port: 8080}]
endpoints:
- {addresses: [10.1.0.1], conditions: {ready: false, serving: true, terminating: false}}
- {addresses: [10.1.0.2], hostname: h}
";

/// The last update, in words: what was deleted, then what was put.
fn sent(double: &Rc<RefCell<Double>>) -> String {
    let (deletes, puts) = &double.borrow().sent;
    let deletes = deletes.iter().map(|key| match key {
        Key::Backend(_, address, port) => format!("-{address}:{port}"),
        Key::Frontend(address, _, port) => format!("-frontend {address}:{port}"),
        Key::ServicePort(index) => format!("-port #{}", index.0),
        other => format!("-{other:?}"),
    });
    let puts = puts.iter().map(|record| match record {
        Record::Backend(r) => {
            let flags = [
                (r.in_cluster_set, " cluster"),
                (r.in_local_set, " local"),
                (r.usable, " usable"),
                (r.serving, " serving"),
            ];
            let flags = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name);
            format!("+{}:{}{}", r.address, r.port, flags.collect::<String>())
        }
        Record::Frontend(r) => format!("+frontend {}:{} of #{}", r.address, r.port, r.service_port.0),
        Record::ServicePort(r) => format!("+port #{} {}", r.index.0, r.port_name),
        other => format!("+{other:?}"),
    });
    deletes.chain(puts).collect::<Vec<_>>().join(", ")
}

const READY: &str = "+10.1.0.1:8080 cluster usable serving";

#[rustfmt::skip]
const CHANGES: &[(&str, &str, &str)] = &[
    // What becomes what, and what is sent of it
    ("serving: true", "serving: false", "+10.1.0.1:8080"),
    ("terminating: false", "terminating: true", "+10.1.0.1:8080 usable serving"),
    ("ready: false", "ready: true", READY),
    ("conditions: {ready: false, serving: true, terminating: false}", "conditions: {}", READY),
    ("[10.1.0.1]", "[10.1.0.3]", "-10.1.0.1:8080, +10.1.0.3:8080 serving"),
    ("- {addresses: [10.1.0.2], hostname: h}\n", "", "-10.1.0.2:8080"),
    ("hostname: h}\n", "hostname: h}\n- {addresses: [10.1.0.3]}\n", "+10.1.0.3:8080 cluster usable serving"),
    ("name: a, port: 8080", "name: a, port: 8081",
        "-10.1.0.1:8080, -10.1.0.2:8080, +10.1.0.1:8081 serving, +10.1.0.2:8081 cluster usable serving"),
    ("name: a, port: 8080", "name: b, port: 8080", "-10.1.0.1:8080, -10.1.0.2:8080"),
    ("port: 80}", "port: 81}", "-frontend 10.96.0.5:80, +frontend 10.96.0.5:81 of #0"),
    ("clusterIP: 10.96.0.5", "clusterIP: 10.96.0.5, externalIPs: [192.0.2.9]", "+frontend 192.0.2.9:80 of #0"),
    ("clusterIP: 10.96.0.5", "clusterIP: 10.96.0.5, sessionAffinity: ClientIP", "+port #0 a"),
    // What no packet can tell
    ("ports: [{name: a, port: 80}]", "ports: [{name: a, port: 80, targetPort: 9, appProtocol: http}]", ""),
    ("{name: web}", "{name: web, annotations: {n: note}}", ""),
    ("hostname: h", "hostname: i", ""),
    ("hostname: h", "zone: z, nodeName: elsewhere", ""),
    ("name: web-1", "name: web-2", ""),
];

#[test]
fn a12_b7_b10_a_change_is_sent_exactly_and_the_same_again_is_none() {
    for (from, to, wanted) in CHANGES {
        let changed = BOTH.replacen(from, to, 1);
        assert_ne!(changed, BOTH, "{from}");
        let dir = tempfile::tempdir().unwrap();
        let (state, double) = (dir.path().join("state"), Rc::default());
        let mut daemon = daemon(&state, &double);
        let mut apply = |text: &str| {
            daemon.model.apply(reset(text));
            assert!(
                daemon.model.problems().is_empty(),
                "{:?}",
                daemon.model.problems()
            );
            daemon.update(now());
            double.borrow().updates
        };
        // The same Service and slice, read anew: objects of their own that say the same.
        assert_eq!((apply(BOTH), apply(BOTH)), (1, 1), "{from}");
        let updates = 1 + usize::from(!wanted.is_empty());
        assert_eq!(apply(&changed), updates, "{from} -> {to}");
        if !wanted.is_empty() {
            assert_eq!(sent(&double), *wanted, "{from} -> {to}");
        }
        assert_eq!(apply(&changed), updates, "{to}, again");
    }
}

/// The object of this kind in a manifest.
fn object(text: &str, kind: &str) -> manifest::Object {
    let mut objects = reset(text).into_iter().filter_map(|event| match event {
        Event::Apply(object) => Some(*object),
        _ => None,
    });
    objects
        .find(|object| object.key.to_string().starts_with(kind))
        .unwrap()
}

#[test]
fn b9_deleted_and_made_again_in_one_batch_is_what_it_was_made_as() {
    for (kind, from, to, wanted) in [
        ("Service", "", "", ""),
        ("EndpointSlice", "", "", ""),
        // Made anew it may have another cluster IP, which one that lives may not.
        (
            "Service",
            "10.96.0.5",
            "10.96.0.6",
            "-frontend 10.96.0.5:80, +frontend 10.96.0.6:80 of #0",
        ),
        (
            "EndpointSlice",
            "[10.1.0.2]",
            "[10.1.0.3]",
            "-10.1.0.2:8080, +10.1.0.3:8080 cluster usable serving",
        ),
    ] {
        let again = object(&BOTH.replacen(from, to, 1), kind);
        let dir = tempfile::tempdir().unwrap();
        let (state, double) = (dir.path().join("state"), Rc::default());
        let mut daemon = daemon(&state, &double);
        daemon.model.apply(reset(BOTH));
        daemon.update(now());
        let delete = || Event::Delete(again.key.clone());
        daemon
            .model
            .apply(vec![delete(), Event::Apply(Box::new(again.clone()))]);
        daemon.update(now());
        assert_eq!(
            double.borrow().updates,
            1 + usize::from(!wanted.is_empty()),
            "{kind}"
        );
        if !wanted.is_empty() {
            assert_eq!(sent(&double), wanted, "{kind}");
        }
        assert!(
            daemon.model.problems().is_empty(),
            "{:?}",
            daemon.model.problems()
        );
        // The other way round it is gone.
        daemon
            .model
            .apply(vec![Event::Apply(Box::new(again.clone())), delete()]);
        daemon.update(now());
        let gone = double.borrow().sent.clone();
        assert!(gone.1.is_empty() && !gone.0.is_empty(), "{kind}: {gone:?}");
    }
}
