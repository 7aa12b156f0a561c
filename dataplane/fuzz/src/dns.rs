//! Any bytes as a question to cluster DNS, and any as an upstream server's answer: what goes back is a message, an answer
//! to that question, and no longer than the asker takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::Name;
use sluice_control::allocate::{Allocator, Ranges};
use sluice_control::dns::wire::{Transport, Verdict, handle};
use sluice_control::dns::{Options, PodNames, Zone, kube_dns};
use sluice_control::endpoints;
use sluice_control::manifest;
use sluice_control::model::Model;
use sluice_control::problem::SourceText;
use sluice_control::source::Event;

/// One of everything that has a name.
const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.7, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], hostname: db-0}, {addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}]
ports: [{name: sql, port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: loop}
spec: {type: ExternalName, externalName: loop.default.svc.cluster.local}
";

thread_local! {
    static ZONE: Zone = zone();
}

fn zone() -> Zone {
    let mut model = Model::new(Allocator::new(Ranges::default(), BTreeMap::new()));
    let contents = manifest::read(&Arc::new(SourceText {
        path: "f.yaml".into(),
        text: OBJECTS.into(),
    }));
    let objects = contents
        .objects
        .into_iter()
        .map(|object| Event::Apply(Box::new(object)));
    let batch = std::iter::once(Event::ResetBegin)
        .chain(objects)
        .chain([Event::ResetEnd]);
    model.apply(batch.collect());
    let options = Options {
        domain: Name::from_ascii("cluster.local.").unwrap(),
        ttl: 30,
        pods: PodNames::Insecure,
        endpoint_pod_names: false,
        namespaces: None,
        ignore_empty_services: false,
        service: kube_dns::name(),
        addresses: vec!["192.0.2.2".parse().unwrap()],
    };
    Zone::new(&options, &model, &endpoints::slices(&model), 1)
}

/// The first byte is where the question ends, the second how it comes.
pub(crate) fn run(data: &[u8]) {
    let [end, how, rest @ ..] = data else { return };
    let (question, upstream) = rest.split_at(usize::from(*end).min(rest.len()));
    let transport = if how & 1 == 0 {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    let (mut out, mut passed_on) = (Vec::new(), false);
    let verdict = ZONE.with(|zone| handle(zone, question, transport, &mut out));
    match verdict {
        Verdict::Answered => {}
        Verdict::Dropped(_) => return,
        Verdict::Ask(pending) => {
            let asked = Message::from_vec(&pending.question(7).unwrap()).unwrap();
            assert_eq!((asked.metadata.id, asked.queries.len()), (7, 1));
            match how >> 1 {
                0 => pending.refuse(&mut out),
                1 => pending.finish(None, &mut out),
                // Only a message that answers the question comes as far as this.
                _ if Message::from_vec(upstream).is_err() => return,
                _ => {
                    pending.finish(Some(upstream), &mut out);
                    passed_on = out.get(2..) == upstream.get(2..);
                }
            }
        }
    }
    assert_eq!(out[..2], question[..2], "its id");
    if passed_on {
        // As it came: a name that points into the header is another one under another id, for the asker to find wrong.
        return;
    }
    let answer = Message::from_vec(&out).unwrap();
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    let limit = match (transport, Message::from_vec(question)) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Ok(question)) => question.max_payload().max(512),
        (Transport::Udp, Err(_)) => 512,
    };
    assert!(out.len() <= limit.into(), "{} of {limit} bytes", out.len());
}
