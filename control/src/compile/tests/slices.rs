//! Several slices of one family behind a Service (EP-2, EP-8): what they are together.

use super::*;

/// Slices, each the number of its port and its endpoints; then the sets, and each endpoint with its port.
type Case = (
    &'static str,
    &'static [(u16, &'static [&'static str])],
    &'static str,
    &'static str,
);

#[rustfmt::skip]
const CASES: &[Case] = &[
    // name, slices, sets, endpoints
    ("EP-2: two are a union", &[(8080, &["1", "2"]), (8080, &["3"])],
        "cluster:123 local: any", "1:8080 2:8080 3:8080"),
    ("EP-2: three are, in the order of addresses", &[(8080, &["3"]), (8080, &["1"]), (8080, &["2"])],
        "cluster:123 local: any", "1:8080 2:8080 3:8080"),
    ("EP-2: an address that is in two is one endpoint", &[(8080, &["1", "2"]), (8080, &["2", "3"])],
        "cluster:123 local: any", "1:8080 2:8080 3:8080"),
    ("EP-2: one that is in all three is, too", &[(8080, &["1"]), (8080, &["1"]), (8080, &["1"])],
        "cluster:1 local: any", "1:8080"),
    ("EP-2, EP-6: an address on two ports is two endpoints", &[(8080, &["1", "2"]), (8081, &["1"])],
        "cluster:112 local: any", "1:8080 1:8081 2:8080"),
    ("CAT-1: one slice's ready endpoints let the other's terminating ones rest", &[(8080, &["1 terminating"]), (8080, &["2"])],
        "cluster:2 local: any", "1:8080 2:8080"),
    ("CAT-1: without ready ones those of all slices serve", &[(8080, &["1 terminating"]), (8080, &["2 terminating"])],
        "cluster:12 local: any", "1:8080 2:8080"),
    ("TOP-4: a hint that one slice lacks counts for all", &[(8080, &["1 zones=a"]), (8080, &["2"])],
        "cluster:12 local: any", "1:8080 2:8080"),
    ("TOP-3: hints of all slices are asked", &[(8080, &["1 zones=a"]), (8080, &["2 zones=b"])],
        "cluster:1 local: any", "1:8080 2:8080"),
    ("EP-8: ready wins over terminating that comes later", &[(8080, &["1"]), (8080, &["1 terminating"])],
        "cluster:1 local: any", "1:8080"),
    ("EP-8: and over terminating that comes first", &[(8080, &["1 terminating", "2"]), (8080, &["1"])],
        "cluster:12 local: any", "1:8080 2:8080"),
    ("EP-8: not ready wins over terminating, since that was another's life", &[(8080, &["1 unready"]), (8080, &["1 terminating"])],
        "cluster: local:", "1:8080"),
    ("EP-8: in either order", &[(8080, &["1 terminating"]), (8080, &["1 unready"])],
        "cluster: local:", "1:8080"),
    ("EP-8: twice terminating still serves as the last resort", &[(8080, &["1 terminating"]), (8080, &["1 terminating"])],
        "cluster:1 local: any", "1:8080"),
    ("EP-8: ready among three, in the middle", &[(8080, &["1 dying"]), (8080, &["1"]), (8080, &["1 terminating"])],
        "cluster:1 local: any", "1:8080"),
    ("EP-8: of two that do not terminate the first slice's, ready or not", &[(8080, &["1"]), (8080, &["1 unready"])],
        "cluster:1 local: any", "1:8080"),
    ("EP-8: the same", &[(8080, &["1 unready"]), (8080, &["1"])],
        "cluster: local:", "1:8080"),
];

/// Last digit and port of each endpoint that the dataplane is told of.
fn endpoints_of(compiled: &Compiled) -> String {
    let said = compiled.records.iter().filter_map(|record| match record {
        Record::Backend(r) => Some(format!("{}:{}", r.address.to_string().pop()?, r.port)),
        _ => None,
    });
    said.collect::<Vec<_>>().join(" ")
}

/// A Service of one family, and slices of it.
fn of_family(ipv6: bool, slices: &[(u16, &[&str])]) -> Compiled {
    let (cluster_ip, pods) = match ipv6 {
        false => ("10.96.0.1", "10.1.0."),
        true => ("fd00:96::1", "fd00:1::"),
    };
    let service = service(json!({"clusterIPs": [cluster_ip]}), &json!([]));
    let made = slices.iter().map(|(port, endpoints)| {
        let endpoints: Vec<String> = endpoints.iter().map(|text| format!("{pods}{text}")).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        slice(ipv6, *port, &endpoints)
    });
    compiled_of(&service, made.collect(), &here("a"))
}

#[test]
fn ep_2_and_ep_8_slices_are_a_union_in_which_the_living_win() {
    for ipv6 in [false, true] {
        for &(name, slices, sets, endpoints) in CASES {
            let compiled = of_family(ipv6, slices);
            assert_eq!(sets_of(&compiled, ipv6), sets, "{name} (IPv6: {ipv6})");
            assert_eq!(endpoints_of(&compiled), endpoints, "{name} (IPv6: {ipv6})");
        }
    }
}

#[test]
fn ep_2_an_endpoint_that_moves_between_slices_is_there_all_the_while() {
    for ipv6 in [false, true] {
        // The controller writes the new slice first, and may call the old place terminating before it clears it.
        let steps: [&[(u16, &[&str])]; 4] = [
            &[(8080, &["1", "2"]), (8080, &["3"])],
            &[(8080, &["1", "2"]), (8080, &["2", "3"])],
            &[(8080, &["1", "2 terminating"]), (8080, &["2", "3"])],
            &[(8080, &["1"]), (8080, &["2", "3"])],
        ];
        let [first, rest @ ..] = steps.map(|slices| of_family(ipv6, slices).records);
        for (step, records) in rest.iter().enumerate() {
            assert_eq!(records, &first, "step {step} (IPv6: {ipv6})");
        }
        assert!(first.iter().any(|record| matches!(record, Record::Backend(_))));
    }
}
