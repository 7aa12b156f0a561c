//! What follows from the rules of names alone, and what the options of cluster DNS change.

use std::collections::BTreeMap;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use sluice_control::dns::wire::{self, Transport, Verdict};
use sluice_control::dns::zone::{Options, PodNames, Zone};

use super::{ask, options, question, zone};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: ";

fn addresses(answer: &Message) -> Vec<String> {
    answer
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[test]
fn dns_13_what_a_service_is_now_is_what_the_next_answer_says() {
    for (spec, wanted) in [
        (
            "{type: ExternalName, externalName: foo.example.com}",
            "foo.example.com.",
        ),
        (
            "{type: ExternalName, externalName: bar.example.com}",
            "bar.example.com.",
        ),
        ("{clusterIP: 10.96.0.7, ports: [{port: 80}]}", "10.96.0.7"),
    ] {
        let zone = zone(&(SERVICE.to_owned() + spec), &options());
        let answer = ask(
            &zone,
            None,
            &question("web.default.svc.cluster.local", RecordType::A),
            Transport::Udp,
        );
        assert_eq!(addresses(&answer.unwrap()), [wanted]);
    }
}

/// Services `s0`, `s1` and so on, each another name for the next; what the last is, is `end`.
fn chain(links: usize, end: &str) -> String {
    let service = |name: usize, spec: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s{name}}}\nspec: {spec}\n---\n")
    };
    let link = |n: usize| {
        let next = format!(
            "{{type: ExternalName, externalName: s{}.default.svc.cluster.local}}",
            n + 1
        );
        service(n, &next)
    };
    (0..links).map(link).collect::<String>() + &service(links, end)
}

#[test]
fn dns_12_aliases_are_followed_as_far_as_coredns_goes_and_loops_end() {
    let asked = |text: &str, kind| {
        let answer = ask(
            &zone(text, &options()),
            None,
            &question("s0.default.svc.cluster.local", kind),
            Transport::Tcp,
        );
        let answer = answer.unwrap();
        assert!(
            answer.authorities.len() == usize::from(answer.answers.is_empty()),
            "{answer:?}"
        );
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        answer.answers.len()
    };
    let end = "{clusterIP: 10.96.0.7, ports: [{port: 80}]}";
    for (links, records) in [(0, 1), (1, 2), (2, 3), (8, 9), (9, 0), (10, 0), (2000, 0)] {
        assert_eq!(asked(&chain(links, end), RecordType::A), records, "{links} links");
        let aliases = usize::from(links > 0);
        assert_eq!(
            asked(&chain(links, end), RecordType::CNAME),
            aliases,
            "{links} links"
        );
    }
    // Back to the beginning, or into the middle.
    for (links, to) in [(0, 0), (1, 0), (2, 0), (2, 1), (5, 3), (2000, 0), (2000, 1999)] {
        let back = format!("{{type: ExternalName, externalName: s{to}.default.svc.cluster.local}}");
        assert_eq!(
            asked(&chain(links, &back), RecordType::A),
            0,
            "{links} links, then s{to}"
        );
    }
}

#[test]
fn what_has_not_been_read_is_not_said_not_to_be() {
    let zone = Zone::unknown(&options());
    for (asked, kind) in [
        ("web.default.svc.cluster.local", RecordType::A),
        ("cluster.local.default.svc.cluster.local", RecordType::AAAA),
        ("7.0.96.10.in-addr.arpa", RecordType::PTR),
    ] {
        let answer = ask(&zone, None, &question(asked, kind), Transport::Udp).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{asked}");
    }
}

#[test]
fn dns_15_pods_have_the_names_that_are_configured() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n\
               status: {phase: Running, podIPs: [{ip: 10.244.0.7}]}\n";
    for (pods, known, other, namespace) in [
        (PodNames::Disabled, "NXDomain", "NXDomain", "NXDomain"),
        (PodNames::Insecure, "NoError", "NoError", "NoError"),
        (PodNames::Verified, "NoError", "NXDomain", "NoError"),
    ] {
        let zone = zone(pod, &Options { pods, ..options() });
        let code = |asked: &str| {
            let asked = question(&format!("{asked}default.pod.cluster.local"), RecordType::A);
            format!(
                "{:?}",
                ask(&zone, None, &asked, Transport::Udp)
                    .unwrap()
                    .metadata
                    .response_code
            )
        };
        assert_eq!(
            (code("10-244-0-7."), code("10-244-0-8."), code("")),
            (known.into(), other.into(), namespace.into())
        );
        assert_eq!(code("blah."), "NXDomain");
    }
}

#[test]
fn dns_21_every_address_is_the_first_of_some_answers() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
                 endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}]\nports: []\n";
    let zone = zone(&format!("{SERVICE}{{clusterIP: None}}\n---\n{slice}"), &options());
    let mut first = BTreeMap::<String, u32>::new();
    for id in 0..300 {
        let mut asked = question("web.default.svc.cluster.local", RecordType::A);
        asked.metadata.id = id;
        let answer = ask(&zone, None, &asked, Transport::Udp).unwrap();
        assert_eq!(answer.answers.len(), 3);
        *first.entry(addresses(&answer)[0].clone()).or_default() += 1;
    }
    assert_eq!(first.into_values().collect::<Vec<_>>(), [100, 100, 100]);
}

#[test]
fn dns_20_l24_answers_live_as_long_as_configured_and_their_absence_five_minutes_at_most() {
    for (ttl, soa) in [(0, 0), (30, 30), (300, 300), (301, 300), (3600, 300)] {
        let zone = zone(
            &(SERVICE.to_owned() + "{clusterIP: 10.96.0.7, ports: [{port: 80}]}"),
            &Options { ttl, ..options() },
        );
        let asked = |name: &str| ask(&zone, None, &question(name, RecordType::A), Transport::Udp).unwrap();
        assert_eq!(asked("web.default.svc.cluster.local").answers[0].ttl, ttl);
        assert_eq!(
            asked("nosuch.default.svc.cluster.local").authorities[0].ttl,
            soa,
            "{ttl}"
        );
    }
}

#[test]
fn a_message_that_is_no_question_gets_the_answer_that_it_deserves_or_none() {
    let zone = zone(
        &(SERVICE.to_owned() + "{clusterIP: 10.96.0.7, ports: [{port: 80}]}"),
        &options(),
    );
    let good = question("web.default.svc.cluster.local", RecordType::A)
        .to_vec()
        .unwrap();
    let told = |change: &dyn Fn(&mut Vec<u8>)| {
        let (mut message, mut out) = (good.clone(), Vec::new());
        change(&mut message);
        match wire::handle(&zone, &message, Transport::Udp, &mut out) {
            Verdict::Answered => format!("{:?}", Message::from_vec(&out).unwrap().metadata.response_code),
            verdict => format!("{verdict:?}"),
        }
    };
    assert_eq!(told(&|_| {}), "NoError");
    assert_eq!(told(&|m| m.truncate(11)), "Dropped(Short)");
    assert_eq!(told(&|m| m[2] |= 0x80), "Dropped(Answer)");
    for opcode in [1, 2, 4, 5, 6, 15] {
        assert_eq!(told(&|m| m[2] |= opcode << 3), "NotImp", "opcode {opcode}");
    }
    assert_eq!(told(&|m| m[5] = 0), "FormErr");
    assert_eq!(told(&|m| m[5] = 2), "FormErr");
    assert_eq!(told(&|m| m[4..6].fill(0xff)), "FormErr");
    assert_eq!(told(&|m| m[6..12].fill(0xff)), "FormErr");
    assert_eq!(told(&|m| m.truncate(20)), "FormErr");
    assert_eq!(told(&|m| m.truncate(12)), "FormErr");
    // A name that points to itself, and one that points past the end.
    assert_eq!(told(&|m| m[12..14].copy_from_slice(&[0xc0, 12])), "FormErr");
    assert_eq!(told(&|m| m[12..14].copy_from_slice(&[0xff, 0xff])), "FormErr");
    // Options of a version to come (BADVERS, which the library reads as another word for 16; RFC 6891 §6.1.3), and
    // options twice.
    let opt = [0, 0, 41, 16, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(told(&|m| (m[11] = 1, m.extend(opt)).0), "BADSIG");
    assert_eq!(told(&|m| (m[11] = 2, m.extend([opt, opt].concat())).0), "FormErr");
}

/// How a name of the zone is answered, and what the answers say.
fn told(zone: &Zone, asked: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let answer = ask(zone, None, &question(asked, kind), Transport::Udp).unwrap();
    (answer.metadata.response_code, addresses(&answer))
}

/// A slice of Service `web` of namespace `namespace`: `10.0.0.7`, ready or not.
fn slice(namespace: &str, ready: bool) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [10.0.0.7], conditions: {{ready: {ready}}}}}]\nports: [{{port: 80}}]\n"
    )
}

#[test]
fn l16_services_without_endpoints_have_no_name_where_so_configured() {
    let web = SERVICE.to_owned() + "{clusterIP: 10.96.0.7, ports: [{port: 80}]}\n";
    let name = "web.default.svc.cluster.local";
    let address = || (ResponseCode::NoError, vec!["10.96.0.7".to_owned()]);
    for (ignore_empty_services, endpoints, wanted) in [
        (false, String::new(), address()),
        (true, String::new(), (ResponseCode::NXDomain, Vec::new())),
        (
            true,
            slice("default", false),
            (ResponseCode::NXDomain, Vec::new()),
        ),
        (true, slice("default", true), address()),
    ] {
        let options = Options {
            ignore_empty_services,
            ..options()
        };
        let zone = zone(&(web.clone() + &endpoints), &options);
        assert_eq!(
            told(&zone, name, RecordType::A),
            wanted,
            "{ignore_empty_services} {endpoints}"
        );
        let port = told(&zone, &format!("_80._tcp.{name}"), RecordType::SRV);
        assert_eq!(port.0, ResponseCode::NXDomain, "an unnamed port");
    }
    let options = Options {
        ignore_empty_services: true,
        ..options()
    };
    let alias = SERVICE.to_owned() + "{type: ExternalName, externalName: foo.example.com}";
    let alias = told(&zone(&alias, &options), name, RecordType::CNAME);
    assert_eq!(
        alias,
        (ResponseCode::NoError, vec!["foo.example.com.".to_owned()])
    );
}

#[test]
fn l25_what_is_in_a_namespace_that_is_not_exposed_does_not_exist() {
    let service = |namespace: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\n\
             spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n{}---\n",
            slice(namespace, true).replace("10.0.0.7", &ip.replace("10.96", "10.0"))
        )
    };
    let pod = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {namespace}}}\n\
             spec: {{containers: [{{name: c, image: i}}]}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.244.0.7}}]}}\n---\n"
        )
    };
    let text = service("shop", "10.96.0.7") + &service("vault", "10.96.0.8") + &pod("shop") + &pod("vault");
    for pods in [PodNames::Insecure, PodNames::Verified] {
        let options = Options {
            namespaces: Some(vec!["shop".into(), "not-there-yet".into()]),
            pods,
            ..options()
        };
        let zone = zone(&text, &options);
        for (namespace, code) in [
            ("shop", ResponseCode::NoError),
            ("vault", ResponseCode::NXDomain),
            ("default", ResponseCode::NXDomain),
            ("not-there-yet", ResponseCode::NXDomain),
        ] {
            for name in ["", "web.", "10-0-0-7.web."] {
                let name = format!("{name}{namespace}.svc.cluster.local");
                let wanted = match name.starts_with("10-") && namespace == "shop" {
                    // Endpoints of Services with a cluster IP have names, too.
                    true => ResponseCode::NoError,
                    false => code,
                };
                assert_eq!(told(&zone, &name, RecordType::A).0, wanted, "{name}");
            }
            let name = format!("10-244-0-7.{namespace}.pod.cluster.local");
            assert_eq!(told(&zone, &name, RecordType::A).0, code, "{name}");
        }
        let reverse = |last: u8| told(&zone, &format!("{last}.0.96.10.in-addr.arpa"), RecordType::PTR);
        assert_eq!(reverse(7).1, ["web.shop.svc.cluster.local."]);
        assert!(reverse(8).1.is_empty());
    }
}

#[test]
fn l21_each_endpoint_of_a_headless_dns_service_is_a_name_server() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: kube-dns, namespace: kube-system}\n\
                spec: {clusterIP: None, ports: [{name: dns, port: 53, protocol: UDP}]}\n---\n\
                apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                metadata: {name: d, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}\n\
                addressType: IPv4\nports: [{name: dns, port: 53, protocol: UDP}]\nendpoints:\n";
    let asked = |endpoints: &str| {
        let zone = zone(
            &(text.to_owned() + endpoints),
            &Options {
                addresses: vec!["192.0.2.2".parse().unwrap()],
                ..options()
            },
        );
        let answer = ask(
            &zone,
            None,
            &question("cluster.local", RecordType::NS),
            Transport::Udp,
        )
        .unwrap();
        let records = answer.answers.iter().chain(&answer.additionals);
        let mut lines: Vec<_> = records
            .map(|record| format!("{} {}", record.name, record.data))
            .collect();
        lines.sort();
        let own = told(&zone, "ns.dns.cluster.local", RecordType::A).1;
        (lines, own)
    };
    let (lines, mut own) = asked("- {addresses: [192.0.2.3], hostname: b}\n- {addresses: [192.0.2.4]}\n");
    assert_eq!(
        lines,
        [
            "192-0-2-4.kube-dns.kube-system.svc.cluster.local. 192.0.2.4",
            "b.kube-dns.kube-system.svc.cluster.local. 192.0.2.3",
            "cluster.local. 192-0-2-4.kube-dns.kube-system.svc.cluster.local.",
            "cluster.local. b.kube-dns.kube-system.svc.cluster.local.",
        ]
    );
    own.sort();
    assert_eq!(own, ["192.0.2.3", "192.0.2.4"]);
    // One that has no endpoint is where it listens.
    let (lines, own) = asked("- {addresses: [192.0.2.3], conditions: {ready: false}}\n");
    assert_eq!(
        lines,
        [
            "cluster.local. ns.dns.cluster.local.",
            "ns.dns.cluster.local. 192.0.2.2"
        ]
    );
    assert_eq!(own, ["192.0.2.2"]);
}
