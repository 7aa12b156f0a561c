//! What a restart, a refusal and many changes leave.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::model::tests::{model, reset};
use crate::publish::tests::Double;
use crate::source::Event;

mod changes;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.5, ports: [{port: 80}]}\n";

fn daemon<'a>(state: &'a Path, double: &Rc<RefCell<Double>>) -> Daemon<'a, Rc<RefCell<Double>>> {
    let settings = Settings {
        service_ranges: vec!["10.96.0.0/16".parse().unwrap()],
        ..Settings::default()
    };
    let (endpoints, view, told, proxy) = Default::default();
    let mut publisher = Publisher::new(double.clone());
    publisher.connect().unwrap();
    Daemon {
        dns: None,
        compiler: Compiler::new(settings),
        endpoints,
        config: Path::new(""),
        state,
        model: model(),
        publisher,
        view,
        health: health::server::Server::new(Vec::new()).unwrap(),
        proxy,
        retried: now(),
        told,
        triggers: Triggers::new(Timestamp::now()),
        waiting: None,
    }
}

#[test]
fn svc_6_nothing_is_published_before_everything_has_been_read() {
    let dir = tempfile::tempdir().unwrap();
    let (state, double) = (dir.path().join("state"), Rc::default());
    let mut daemon = daemon(&state, &double);
    daemon.model.apply(vec![Event::Problems(Vec::new())]);
    daemon.update(now());
    assert_eq!(double.borrow().updates, 0);
    daemon.model.apply(reset(WEB));
    daemon.update(now());
    assert_eq!(double.borrow().updates, 1);
}

#[test]
fn a_restarted_control_finds_its_work_done_and_sends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (state, double) = (dir.path().join("state"), Rc::default());
    let other = WEB.replace("web", "another").replace("10.96.0.5", "10.96.0.6");
    let mut first = daemon(&state, &double);
    for text in [WEB.to_owned(), format!("{other}---\n{WEB}")] {
        first.model.apply(reset(&text));
        first.update(now());
    }
    let updates = double.borrow().updates;
    let mut second = daemon(&state, &double);
    let inventory = second.publisher.connect().unwrap();
    second.compiler.learn(&inventory);
    second.model.apply(reset(&format!("{other}---\n{WEB}")));
    second.update(now());
    assert_eq!((updates, double.borrow().updates), (2, 2));
}

#[test]
fn a_refused_update_is_sent_again_with_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let (state, double) = (dir.path().join("state"), Rc::<RefCell<Double>>::default());
    double.borrow_mut().refuse = true;
    let mut daemon = daemon(&state, &double);
    daemon.model.apply(reset(WEB));
    daemon.update(now());
    double.borrow_mut().refuse = false;
    daemon.update(now());
    assert_eq!((double.borrow().updates, double.borrow().generation.0), (1, 1));
}

/// All that is remembered, but for counters and times that only grow.
fn held(daemon: &Daemon<'_, Rc<RefCell<Double>>>) -> Vec<String> {
    let Daemon {
        compiler,
        endpoints,
        model,
        publisher,
        view,
        health,
        told,
        triggers,
        ..
    } = daemon;
    let all = format!(
        "{compiler:#?}{endpoints:#?}{model:#?}{publisher:#?}{view:#?}{health:#?}{told:#?}{triggers:#?}"
    );
    let counters = ["generation", "last_updated", "revision", "updates"];
    let mut lines = all.lines().map(|line| line.trim().to_owned()).peekable();
    let mut held = Vec::new();
    while let Some(line) = lines.next() {
        if counters.iter().any(|counter| line.starts_with(counter)) {
            // Of a wrapped number, too.
            while lines
                .next_if(|line| line.starts_with(|c: char| c.is_ascii_digit() || c == ')'))
                .is_some()
            {}
        } else {
            held.push(line);
        }
    }
    held
}

#[test]
fn a14_after_services_of_every_kind_came_changed_and_went_nothing_is_left_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (state, double) = (dir.path().join("state"), Rc::<RefCell<Double>>::default());
    let mut daemon = daemon(&state, &double);
    let apply = |daemon: &mut Daemon<'_, Rc<RefCell<Double>>>, text: &str| {
        daemon.model.apply(reset(text));
        daemon.update(now());
        double.borrow_mut().sent = Default::default();
    };
    // Twice: a number of a service port is kept from others for one update.
    (0..2).for_each(|_| apply(&mut daemon, WEB));
    let before = held(&daemon);
    for cycle in 0..50 {
        let all = |kind: &str, port: u16| {
            let service = |name: &str, spec: &str| {
                format!(
                    "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}-{cycle}}}\nspec: {spec}\n"
                )
            };
            let pod = format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p-{cycle}, labels: {{app: a-{cycle}}}}}\n\
                 spec: {{nodeName: n1, containers: [{{name: c, image: i}}]}}\nstatus: {{phase: Running, podIP: 10.244.0.7, \
                 podIPs: [{{ip: 10.244.0.7}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n"
            );
            let slice = format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-{cycle}, labels: \
                 {{kubernetes.io/service-name: plain-{cycle}}}, annotations: \
                 {{endpoints.kubernetes.io/last-change-trigger-time: \"2099-01-01T00:00:00Z\"}}}}\naddressType: IPv4\n\
                 endpoints: [{{addresses: [10.244.0.8]}}]\nports: [{{port: {port}}}]\n"
            );
            [
                WEB.to_owned(),
                service("plain", &format!("{{ports: [{{port: {port}}}]}}")),
                service(
                    "pods",
                    &format!("{{type: {kind}, selector: {{app: a-{cycle}}}, ports: [{{port: {port}}}]}}"),
                ),
                service(
                    "local",
                    "{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]}",
                ),
                service(
                    "headless",
                    &format!("{{clusterIP: None, selector: {{app: a-{cycle}}}}}"),
                ),
                service("alias", "{type: ExternalName, externalName: foo.example.com}"),
                service("wrong", "{ports: [{port: 0}]}"),
                service("waits", "{clusterIP: 10.96.0.5, ports: [{port: 80}]}"),
                pod,
                slice,
            ]
            .concat()
        };
        for text in [
            &all("ClusterIP", 80),
            &all("NodePort", 81),
            &all("LoadBalancer", 82),
        ] {
            apply(&mut daemon, text);
        }
        assert_eq!(daemon.model.services().count(), 6);
        assert!(!daemon.told.is_empty());
        (0..2).for_each(|_| apply(&mut daemon, WEB));
    }
    let after = held(&daemon);
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(
        after == before,
        "{} lines before, {} after: {new:#?}",
        before.len(),
        after.len()
    );
}

/// What there may be, each with its variants; whoever is not there is none of them.
const OBJECTS: &[&[&str]] = &[
    &[
        "{kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.5, ports: [{port: 80}]}}",
        "{kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.5, externalIPs: [192.0.2.9], ports: [{port: 80}]}}",
        "{kind: Service, metadata: {name: a}, spec: {selector: {app: x}, clusterIP: 10.96.0.6, ports: [{port: 80, name: p}, {port: 81, name: r}]}}",
        "{kind: Service, metadata: {name: a}, spec: {selector: {app: x}, clusterIP: None, ports: [{port: 80}]}}",
        "{kind: Service, metadata: {name: a}, spec: {type: ExternalName, externalName: b.example}}",
    ],
    &[
        "{kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.6, externalIPs: [192.0.2.9], ports: [{port: 80}]}}",
        "{kind: Service, metadata: {name: b}, spec: {selector: {app: z}, publishNotReadyAddresses: true, ports: [{port: 80}], clusterIP: 10.96.0.5}}",
        "{kind: Service, metadata: {name: b}, spec: {clusterIP: None, ports: [{port: 80}]}}",
    ],
    &[
        "{kind: Service, metadata: {name: b, namespace: other}, spec: {selector: {app: x}, externalIPs: [192.0.2.9], ports: [{port: 80}], clusterIP: 10.96.0.7}}",
    ],
    &[
        "{kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 8080, name: ''}], endpoints: [{addresses: [10.244.0.1]}, {addresses: [10.244.0.2]}]}",
        "{kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: b}}, addressType: IPv4, ports: [{port: 8080, name: ''}], endpoints: [{addresses: [10.244.0.1]}]}",
        "{kind: EndpointSlice, metadata: {name: s}, addressType: IPv4, endpoints: []}",
    ],
    &[
        "{kind: EndpointSlice, metadata: {name: t, labels: {kubernetes.io/service-name: b}}, addressType: IPv4, ports: [{port: 8080, name: ''}], endpoints: [{addresses: [10.244.0.1], hostname: h}, {addresses: [10.244.0.3], conditions: {ready: false}}]}",
    ],
    &[
        "{kind: Endpoints, metadata: {name: b}, subsets: [{addresses: [{ip: 10.244.0.2}], ports: [{port: 9}]}]}",
    ],
    &[
        "{kind: Pod, metadata: {name: p, labels: {app: x}}, spec: {nodeName: n1, containers: [{name: c, image: i}]}, status: {podIPs: [{ip: 10.244.0.1}], podIP: 10.244.0.1, conditions: [{type: Ready, status: 'True'}]}}",
        "{kind: Pod, metadata: {name: p, labels: {app: z}}, spec: {nodeName: n1, containers: [{name: c, image: i}]}, status: {podIPs: [{ip: 10.244.0.1}], podIP: 10.244.0.1}}",
    ],
    &[
        "{kind: Pod, metadata: {name: q, namespace: other, labels: {app: x}}, spec: {nodeName: n2, containers: [{name: c, image: i}]}, status: {podIPs: [{ip: 10.244.0.4}], podIP: 10.244.0.4, conditions: [{type: Ready, status: 'True'}]}}",
    ],
    &[
        "{kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z}}}",
        "{kind: Node, metadata: {name: n1}}",
    ],
];

/// As a manifest is read, with its version.
fn object(text: &str) -> Batch {
    let version = if text.contains("EndpointSlice") {
        "discovery.k8s.io/v1"
    } else {
        "v1"
    };
    let mut batch = reset(&text.replacen('{', &format!("{{apiVersion: {version}, "), 1));
    let said = format!("{batch:?}");
    batch.retain(|event| matches!(event, Event::Apply(_)));
    assert_eq!(batch.len(), 1, "{text}: {said}");
    batch
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 256, ..Default::default() })]

    /// Slices, tables and names after many changes, of which each update looked at what was touched, are those of who sees
    /// everything for the first time.
    #[test]
    fn changes_one_after_the_other_come_to_what_a_start_makes_of_all(
        changes in proptest::collection::vec((0..OBJECTS.len(), 0..6usize), 1..40)
    ) {
        let options = crate::dns::Options {
            domain: "cluster.local.".parse().unwrap(),
            ttl: 5,
            pods: crate::dns::PodNames::Verified,
            endpoint_pod_names: false,
            namespaces: None,
            ignore_empty_services: true,
            service: crate::model::ServiceName { namespace: "default".into(), name: "b".into() },
            addresses: Vec::new(),
        };
        let (mut model, mut endpoints, mut compiler) = (model(), Endpoints::default(), Compiler::new(Settings::default()));
        let mut zone = crate::dns::Zone::unknown(&options);
        let mut there: Vec<Option<crate::manifest::Key>> = vec![None; OBJECTS.len()];
        model.apply(reset(""));
        for (place, variant) in changes {
            match (OBJECTS[place].get(variant), there[place].take()) {
                (Some(text), _) => {
                    let batch = object(text);
                    if let [Event::Apply(object)] = &batch[..] {
                        there[place] = Some(object.key.clone());
                    }
                    model.apply(batch);
                }
                (None, Some(key)) => model.apply(vec![Event::Delete(key)]),
                (None, None) => continue,
            }
            let before = compiler.numbers().clone();
            let touched = model.take_touched();
            let changed = endpoints.update(&model, &touched);
            let slices = endpoints.slices();
            proptest::prop_assert_eq!(slices, &endpoints::slices(&model));
            compiler.compile(model.services_by_name(), slices, &changed);
            let anew = crate::compile::compile(&model, slices, compiler.settings(), &before);
            proptest::prop_assert_eq!(compiler.desired().records(), anew.records);
            proptest::prop_assert_eq!(compiler.numbers(), &anew.numbers);
            proptest::prop_assert_eq!(compiler.conflicts(), anew.conflicts);
            zone = zone.next(&options, &model, slices, 1, changed.iter());
            let anew = crate::dns::Zone::new(&options, &model, slices, 1);
            proptest::prop_assert_eq!(zone.contents(), anew.contents());
        }
    }
}
