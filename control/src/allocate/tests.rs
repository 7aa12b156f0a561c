//! Who gets what, keeps it, and is told who has it.

use super::*;
use crate::model::tests::service;

pub(super) fn allocator(ranges: &[&str]) -> Allocator {
    let ranges = Ranges {
        services: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        ..Ranges::default()
    };
    Allocator::new(ranges, BTreeMap::new())
}

fn name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn allocate(allocator: &mut Allocator, service_name: &str, text: &str) -> Result<ServiceSpec, String> {
    let mut object = service(text);
    let name = name(service_name);
    crate::model::defaults::apply(&mut object, allocator.families(), allocator.held(&name));
    let mut spec = object.spec.unwrap();
    match allocator.allocate(&name, &mut spec, &Wanted::default()) {
        Ok(()) => Ok(spec),
        Err(errors) => Err(errors
            .iter()
            .map(|e| format!("{}: {e}", e.field))
            .collect::<Vec<_>>()
            .join("; ")),
    }
}

#[test]
fn al_2_static_bands_are_those_of_the_upstream_sizes() {
    for (range, band) in [
        ("10.0.0.0/8", 256),
        ("10.0.0.0/24", 16),
        ("10.0.0.0/20", 256),
        ("10.0.0.0/16", 256),
        ("10.0.0.0/22", 64),
        ("10.0.0.0/27", 16),
        ("10.0.0.0/28", 0),
        ("10.0.0.0/30", 0),
        ("10.0.0.0/32", 0),
        ("fd00:96::/112", 256),
        ("fd00:96::/64", 256),
        ("fd00:96::/118", 64),
        ("fd00:96::/121", 16),
        ("fd00:96::/122", 16),
        ("fd00:96::/124", 0),
    ] {
        let pool = &allocator(&[range]).services[0].pool;
        assert_eq!(pool.dynamic - pool.first, band, "{range}");
    }
}

#[test]
fn al_5_g30_the_band_of_node_ports_is_that_of_the_upstream_sizes() {
    for (size, band) in [
        (2768, 86),
        (10, 0),
        (16, 0),
        (17, 16),
        (128, 16),
        (2048, 64),
        (4096, 128),
        (8192, 128),
        (65_535, 128),
    ] {
        let ranges = Ranges {
            node_ports: 1..=size,
            ..Ranges::default()
        };
        let pool = Allocator::new(ranges, BTreeMap::new()).node_ports;
        assert_eq!(
            (pool.dynamic - pool.first, pool.last),
            (band, size.into()),
            "{size}"
        );
    }
}

#[test]
fn g32_ranges_of_few_addresses_give_what_they_have_and_then_say_that_they_are_full() {
    for (range, has) in [
        ("10.0.0.0/32", 0),
        ("10.0.0.0/31", 0),
        ("10.0.0.0/30", 2),
        ("10.0.0.0/29", 6),
        ("255.255.255.252/30", 2),
        ("fd00:96::/128", 0),
        ("fd00:96::/127", 1),
        ("fd00:96::/126", 3),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", 3),
    ] {
        let mut tiny = allocator(&[range]);
        let network: IpNet = range.parse().unwrap();
        let mut given = BTreeSet::new();
        for i in 0..has {
            let spec = allocate(&mut tiny, &format!("s{i}"), "{ports: [{port: 80}]}").unwrap();
            let address: IpAddr = spec.cluster_ip.unwrap().parse().unwrap();
            assert!(
                network.contains(&address) && address != network.network(),
                "{address} of {range}"
            );
            assert!(given.insert(address), "{address} of {range} twice");
        }
        let mut error = |spec: &str| allocate(&mut tiny, "more", spec).unwrap_err();
        let full = format!("spec.clusterIPs: Invalid value: : no address is free in {range}");
        assert_eq!(error("{ports: [{port: 80}]}"), full);
        let outside = network.network();
        let outside = error(&format!("{{clusterIP: \"{outside}\", ports: [{{port: 80}}]}}"));
        assert!(outside.contains("the service range"), "{outside}");
        if let Some(taken) = given.first() {
            let taken = error(&format!("{{clusterIP: \"{taken}\", ports: [{{port: 80}}]}}"));
            assert!(taken.contains("is already held by Service default/s"), "{taken}");
        }
    }
}

#[test]
fn al_3_the_dynamic_part_is_used_up_first_then_the_band_then_it_is_an_error() {
    // IPv6 has an address more: none is for broadcasts.
    for (range, last) in [("10.0.0.0/27", 30), ("fd00:96::/123", 31)] {
        let mut small = allocator(&[range]);
        let mut ip = |i: usize| allocate(&mut small, &format!("s{i}"), "{ports: [{port: 80}]}");
        let number = |spec: ServiceSpec| match spec.cluster_ip.unwrap().parse().unwrap() {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        };
        let mut upper: Vec<u8> = (17..=last).map(|i| number(ip(i.into()).unwrap())).collect();
        let mut lower: Vec<u8> = (1..=16).map(|i| number(ip(i).unwrap())).collect();
        upper.sort_unstable();
        lower.sort_unstable();
        assert_eq!((upper, lower), ((17..=last).collect(), (1..=16).collect()));
        let full = format!("spec.clusterIPs: Invalid value: : no address is free in {range}");
        assert_eq!(ip(99).unwrap_err(), full);
    }
}

#[test]
fn al_11_another_range_is_for_those_who_name_it_and_for_all_once_the_first_is_full() {
    let ranges = Ranges {
        services: vec!["10.0.0.0/29".parse().unwrap()],
        other_services: vec!["10.9.0.0/24".parse().unwrap()],
        ..Ranges::default()
    };
    let mut both = Allocator::new(ranges, BTreeMap::new());
    let text = "{clusterIP: 10.9.0.7, ports: [{port: 80}]}";
    assert_eq!(
        allocate(&mut both, "named", text).unwrap().cluster_ip.unwrap(),
        "10.9.0.7"
    );
    let mut ip = |i: u8| {
        let spec = allocate(&mut both, &format!("s{i}"), "{ports: [{port: 80}]}");
        spec.unwrap().cluster_ip.unwrap()
    };
    assert!((1..=6).all(|i| ip(i).starts_with("10.0.0.")));
    assert!(ip(7).starts_with("10.9.0."));
}

#[test]
fn what_one_family_lacks_takes_nothing_of_the_other() {
    let mut both = allocator(&["10.96.0.0/16", "fd00:96::/125"]);
    let text = "{ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}";
    (1..=7).for_each(|i| assert!(allocate(&mut both, &format!("s{i}"), text).is_ok()));
    let before = both.ip_holders.clone();
    assert_eq!(
        allocate(&mut both, "late", text).unwrap_err(),
        "spec.clusterIPs: Invalid value: : no address is free in fd00:96::/125"
    );
    assert_eq!(both.ip_holders, before);
}

#[test]
fn the_holder_of_an_address_or_port_is_named() {
    let mut all = allocator(&["10.96.0.0/16"]);
    let text = "{type: NodePort, clusterIP: 10.96.0.5, ports: [{port: 80, nodePort: 30026}]}";
    allocate(&mut all, "a", text).unwrap();
    assert_eq!(
        allocate(&mut all, "b", text).unwrap_err(),
        "spec.clusterIPs: Invalid value: 10.96.0.5: is already held by Service default/a; \
         spec.ports[0].nodePort: Invalid value: 30026: is already held by Service default/a"
    );
}

#[test]
fn a_failed_allocation_takes_and_frees_nothing() {
    let mut all = allocator(&["10.96.0.0/16"]);
    allocate(
        &mut all,
        "a",
        "{type: NodePort, ports: [{port: 80, nodePort: 30026}]}",
    )
    .unwrap();
    let before = all.holdings.clone();
    allocate(
        &mut all,
        "a",
        "{type: NodePort, ports: [{port: 80, nodePort: 80}]}",
    )
    .unwrap_err();
    assert_eq!(all.holdings, before);
}

#[test]
fn a_service_without_memory_of_it_gets_the_same_again() {
    let text = "{type: NodePort, ports: [{port: 80}]}";
    let once = allocate(&mut allocator(&["10.96.0.0/16"]), "a", text).unwrap();
    let again = allocate(&mut allocator(&["10.96.0.0/16"]), "a", text).unwrap();
    assert_eq!(once, again);
}
