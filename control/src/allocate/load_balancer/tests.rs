//! Addresses from pools, as Services come, change and go.

use std::collections::BTreeMap;

use super::*;
use crate::allocate::Ranges;
use crate::model::Model;
use crate::model::tests::reset;

fn pool(name: &str, texts: &[&str], auto_assign: bool) -> AddressPool {
    AddressPool {
        name: name.into(),
        ranges: texts.iter().map(|text| addresses(text).unwrap()).collect(),
        auto_assign,
    }
}

fn ranges(load_balancers: Vec<AddressPool>) -> Ranges {
    Ranges {
        services: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        load_balancers,
        ..Ranges::default()
    }
}

fn model(load_balancers: Vec<AddressPool>) -> Model {
    Model::new(Allocator::new(ranges(load_balancers), BTreeMap::new()))
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: LoadBalancer, ports: [{{port: 80}}], {spec}}}\n"
    )
}

fn given(model: &Model) -> Vec<String> {
    let ips = |service: &crate::model::Service| {
        let ips = service
            .load_balancer_ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        format!("{} {}", service.name.name, ips.join(" "))
    };
    model.services().map(|service| ips(service)).collect()
}

fn said(model: &Model) -> Vec<String> {
    model
        .problems()
        .iter()
        .map(|problem| format!("{}: {}", problem.field, problem.message))
        .collect()
}

#[test]
fn a_service_gets_an_address_of_each_family_and_keeps_it_over_edits_and_restarts() {
    let pools = || vec![pool("p", &["192.0.2.0/24", "2001:db8::/64"], true)];
    let mut first = model(pools());
    let dual = "ipFamilyPolicy: RequireDualStack";
    first.apply(reset(&service("a", dual)));
    let before = given(&first);
    assert!(
        before[0].starts_with("a 192.0.2.") && before[0].contains(" 2001:db8::"),
        "{before:?}"
    );
    let ingress = first
        .services()
        .next()
        .unwrap()
        .object
        .status
        .clone()
        .unwrap()
        .load_balancer
        .unwrap()
        .ingress
        .unwrap();
    assert!(ingress.iter().all(|one| one.ip_mode.as_deref() == Some("VIP")));
    first.apply(reset(&service("a", &format!("{dual}, selector: {{a: b}}"))));
    assert_eq!(given(&first), before);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    first.allocator().save(&path).unwrap();
    let mut later = vec![pool("new", &["198.51.100.0/24"], true)];
    later.extend(pools());
    let mut second = Model::new(Allocator::new(
        ranges(later),
        super::super::state::load(&path).unwrap(),
    ));
    second.apply(reset(&service("a", dual)));
    assert_eq!(given(&second), before, "a pool before its own changes nothing");
}

#[test]
fn an_address_that_a_service_names_is_its_own_and_nobody_elses() {
    let mut model = model(vec![
        pool("named", &["192.0.2.7-192.0.2.7"], false),
        pool("auto", &["198.51.100.1-198.51.100.2"], true),
    ]);
    let all = |texts: &[String]| reset(&texts.concat());
    let (a, b) = (service("a", "loadBalancerIP: 198.51.100.1"), service("b", ""));
    model.apply(all(&[service("0a", ""), a.clone()]));
    assert_eq!(
        given(&model),
        ["0a 198.51.100.2", "a 198.51.100.1"],
        "what one names, none is given"
    );
    model.apply(all(&[
        a.clone(),
        b.clone(),
        service("c", "loadBalancerIP: 192.0.2.7"),
    ]));
    assert_eq!(given(&model), ["a 198.51.100.1", "b 198.51.100.2", "c 192.0.2.7"]);
    model.apply(all(&[
        a.clone(),
        b.clone(),
        service("c", "loadBalancerIP: 198.51.100.2"),
        service("d", "loadBalancerIP: 8.8.8.8"),
    ]));
    assert_eq!(given(&model), ["a 198.51.100.1", "b 198.51.100.2", "c ", "d "]);
    assert_eq!(
        said(&model),
        [
            "spec.loadBalancerIP: Invalid value: 198.51.100.2: is already held by Service default/b",
            "spec.loadBalancerIP: Invalid value: 8.8.8.8: is in none of the loadBalancerPools (named, auto)"
        ]
    );
    model.apply(vec![crate::source::Event::Delete(crate::manifest::Key {
        kind: crate::manifest::Kind::Service,
        namespace: "default".into(),
        name: "b".into(),
    })]);
    assert_eq!(
        given(&model)[1],
        "c 198.51.100.2",
        "whoever waits gets what is freed"
    );
}

#[test]
fn an_empty_pool_leaves_a_service_pending_and_served_elsewhere() {
    let mut model = model(vec![pool("p", &["192.0.2.1-192.0.2.1"], true)]);
    let texts = service("a", "") + &service("b", "");
    model.apply(reset(&texts));
    assert_eq!(given(&model), ["a 192.0.2.1", "b "]);
    assert!(
        model
            .services()
            .all(|service| service.is_proxied() && service.ports[0].node_port.is_some())
    );
    assert_eq!(
        said(&model),
        ["status.loadBalancer: Invalid value: pending: no IPv4 address is free in the loadBalancerPools (p)"]
    );
    // Another type lets go of it.
    model.apply(reset(&texts.replacen("type: LoadBalancer", "type: ClusterIP", 1)));
    assert_eq!(
        (given(&model), said(&model)),
        (vec!["a ".into(), "b 192.0.2.1".into()], Vec::new())
    );
}

#[test]
fn another_class_and_a_family_without_a_pool_are_left_alone() {
    let pools = || vec![pool("p", &["192.0.2.0/24"], true)];
    let mut left = model(pools());
    left.apply(reset(&service("a", "loadBalancerClass: example.com/other")));
    assert_eq!((given(&left), said(&left)), (vec!["a ".into()], Vec::new()));
    left.apply(reset(&service("b", "ipFamilyPolicy: PreferDualStack")));
    assert!(
        given(&left)[0].starts_with("b 192.0.2."),
        "the family that has a pool"
    );
    left.apply(reset(&service("c", "ipFamilies: [IPv6]")));
    assert_eq!(
        said(&left),
        ["spec.ipFamilies: Invalid value: IPv6: no loadBalancerPool has addresses of IPv6"]
    );
    let of_class = Ranges {
        load_balancer_class: Some("example.com/other".into()),
        ..ranges(pools())
    };
    let mut ours = Model::new(Allocator::new(of_class, BTreeMap::new()));
    ours.apply(reset(
        &(service("a", "loadBalancerClass: example.com/other") + &service("b", "")),
    ));
    assert!(
        given(&ours)[0].starts_with("a 192.0.2.") && given(&ours)[1] == "b ",
        "{:?}",
        given(&ours)
    );
}

#[test]
fn an_address_that_a_manifest_gives_is_given_to_nobody_else() {
    let mut model = model(vec![pool("p", &["192.0.2.1-192.0.2.2"], true)]);
    let written =
        service("z", "") + "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 203.0.113.9}]}}\n";
    model.apply(reset(&(service("a", "") + &service("b", "") + &written)));
    assert_eq!(given(&model)[2], "z 192.0.2.1 203.0.113.9");
    assert_eq!(
        given(&model)[..2]
            .iter()
            .filter(|said| said.contains("192.0.2.2"))
            .count(),
        1
    );
}

#[test]
fn pools_are_networks_without_their_ends_or_addresses_from_and_to() {
    let of = |text: &str| addresses(text).map(|(first, last)| format!("{first} {last}"));
    for (text, range) in [
        ("192.0.2.0/24", "192.0.2.1 192.0.2.254"),
        ("192.0.2.4/31", "192.0.2.4 192.0.2.5"),
        ("192.0.2.4/32", "192.0.2.4 192.0.2.4"),
        ("2001:db8::/127", "2001:db8:: 2001:db8::1"),
        ("2001:db8::/112", "2001:db8::1 2001:db8::ffff"),
        ("192.0.2.1 - 192.0.2.9", "192.0.2.1 192.0.2.9"),
    ] {
        assert_eq!(of(text).unwrap(), range, "{text}");
    }
    for text in [
        "192.0.2.1/24",
        "192.0.2.9-192.0.2.1",
        "192.0.2.1-fd00::1",
        "x",
        "",
        "192.0.2.1",
    ] {
        assert!(of(text).is_err(), "{text}");
    }
}
