//! Which frontends, source ranges and networks there are.

use sluice_dataplane::channel::record::UndefinedPorts;

use super::*;

const BOTH: [&str; 2] = ["10.96.0.1", "fd00:96::1"];

fn balanced(spec: &Value) -> Service {
    let mut all = json!({"type": "LoadBalancer", "clusterIPs": BOTH});
    for (field, value) in spec.as_object().unwrap() {
        all[field] = value.clone();
    }
    service(
        all,
        &json!([{"ip": "203.0.113.1", "ipMode": "VIP"}, {"ip": "2001:db8::1"}]),
    )
}

#[test]
fn svc_7_every_address_and_the_node_port_of_each_family_is_a_frontend() {
    let service = balanced(&json!({
        "externalIPs": ["198.51.100.1", "2001:db8::e"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
    }));
    assert_eq!(
        addresses(&compiled(&service, &[], &here(""))),
        "NodePort 0.0.0.0 30080\nClusterIp 10.96.0.1 80\nExternalIp 198.51.100.1 80\n\
         LoadBalancerIp 203.0.113.1 80\nNodePort :: 30080\nLoadBalancerIp 2001:db8::1 80\n\
         ExternalIp 2001:db8::e 80\nClusterIp fd00:96::1 80\n"
    );
}

#[test]
fn svc_2_a_family_without_a_cluster_ip_has_nothing() {
    let service = service(
        json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["2001:db8::e"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
            "loadBalancerSourceRanges": ["2001:db8::/32"],
        }),
        &json!([{"ip": "2001:db8::1"}]),
    );
    let compiled = compiled(&service, &["fd00:1::1", "10.1.0.2"], &here(""));
    assert_eq!(
        addresses(&compiled),
        "NodePort 0.0.0.0 30080\nClusterIp 10.96.0.1 80\n"
    );
    assert_eq!(sets_of(&compiled, false), "cluster:2 local: any");
    assert_eq!(sets_of(&compiled, true), "cluster: local:");
}

#[test]
fn svc_2_each_family_has_its_own_sets_and_its_own_reachability() {
    // CAT-5, CAT-6: only IPv4 is reachable from outside, so only there external Local makes a local set.
    let service = service(
        json!({"clusterIPs": BOTH, "externalIPs": ["198.51.100.1"], "externalTrafficPolicy": "Local"}),
        &json!([]),
    );
    let endpoints = ["10.1.0.1 on=here", "fd00:1::2 on=here", "fd00:1::3 terminating"];
    let both = compiled(&service, &endpoints, &here(""));
    assert_eq!(sets_of(&both, false), "cluster:1 local:1 any");
    assert_eq!(sets_of(&both, true), "cluster:2 local: any");
    // One family's ready endpoints do not keep the other's terminating ones from serving.
    let both = compiled(&service, &["10.1.0.1", "fd00:1::3 terminating"], &here(""));
    assert_eq!(sets_of(&both, true), "cluster:3 local: any");
}

#[test]
fn svc_1_svc_4_headless_external_and_others_services_are_no_frontends() {
    let plain = service(json!({}), &json!([]));
    assert!(!addresses(&compiled(&plain, &[], &here(""))).is_empty());
    let mut others = plain.clone();
    others.others = true;
    let headless = service(json!({"clusterIP": "None", "clusterIPs": ["None"]}), &json!([]));
    let named = service(
        json!({"type": "ExternalName", "externalName": "a.example"}),
        &json!([]),
    );
    for service in [others, headless, named] {
        assert_eq!(addresses(&compiled(&service, &[], &here(""))), "");
    }
}

#[test]
fn svc_9_svc_10_svc_11_load_balancer_ips_are_those_of_the_status_in_vip_mode() {
    for (ingress, expected) in [
        (json!([{"ip": "203.0.113.1"}]), true),
        (json!([{"ip": "203.0.113.1", "ipMode": "VIP"}]), true),
        (json!([{"ip": "203.0.113.1", "ipMode": "Proxy"}]), false),
        (json!([{"hostname": "lb.example"}]), false),
        (json!([{"ip": "127.0.0.1"}]), false),
        (json!([]), false),
    ] {
        let spec = json!({"type": "LoadBalancer", "loadBalancerIP": "203.0.113.9"});
        let found = addresses(&compiled(&service(spec, &ingress), &[], &here("")));
        assert_eq!(found.contains("LoadBalancerIp"), expected, "{ingress}");
        assert!(found.contains("ClusterIp") && !found.contains("203.0.113.9"));
    }
    // The status of another type is an old printout.
    let found = service(json!({"type": "ClusterIP"}), &json!([{"ip": "203.0.113.1"}]));
    assert!(found.load_balancer_ips.is_empty());
}

#[test]
fn svc_12_external_ips_can_be_switched_off() {
    let service = service(
        json!({"externalIPs": ["198.51.100.1"], "internalTrafficPolicy": "Local"}),
        &json!([]),
    );
    let settings = Settings {
        external_ips: false,
        ..here("")
    };
    let compiled = compiled(&service, &["10.1.0.1 on=far"], &settings);
    assert_eq!(addresses(&compiled), "ClusterIp 10.96.0.1 80\n");
    assert_eq!(
        sets_of(&compiled, false),
        "cluster: local: any",
        "CAT-5: not reachable from outside"
    );
}

#[test]
fn svc_13_old_forms_are_canonical_and_what_cannot_be_read_is_skipped() {
    let service = service(
        json!({
            "type": "LoadBalancer", "externalIPs": ["198.51.100.010", "", "nonsense"],
            "loadBalancerSourceRanges": ["192.000.002.0/024", "nonsense", ""],
        }),
        &json!([{"ip": "203.0.113.01"}]),
    );
    assert_eq!(
        addresses(&compiled(&service, &[], &here(""))),
        "ClusterIp 10.96.0.1 80\nExternalIp 198.51.100.10 80\nLoadBalancerIp 203.0.113.1 80\nfrom 192.0.2.0/24\n"
    );
}

#[test]
fn an_address_of_two_kinds_is_the_load_balancers_and_no_conflict() {
    let service = balanced(&json!({"externalIPs": ["203.0.113.1", "203.0.113.1"]}));
    let compiled = compiled(&service, &[], &here(""));
    assert!(addresses(&compiled).contains("LoadBalancerIp 203.0.113.1 80\n"));
    assert_eq!(compiled.conflicts, []);
}

#[test]
fn lbr_4_source_ranges_of_one_family_close_the_other_where_so_switched() {
    let from = |ranges: Value| {
        let service = balanced(&json!({"loadBalancerSourceRanges": ranges}));
        let settings = Settings {
            strict_source_ranges: true,
            ..here("")
        };
        let found = addresses(&compiled(&service, &[], &settings));
        let ranges = found.lines().filter_map(|line| line.strip_prefix("from "));
        ranges.map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(from(json!(["10.0.0.0/8"])), "10.0.0.0/8 ::/128");
    assert_eq!(from(json!(["2001:db8::/32"])), "0.0.0.0/32 2001:db8::/32");
    assert_eq!(
        from(json!(["0.0.0.0/0", "2001:db8::/32"])),
        "2001:db8::/32",
        "LBR-5"
    );
    assert_eq!(from(json!([])), "", "no ranges restrict nobody");
}

#[test]
fn lbr_1_to_lbr_8_source_ranges_are_what_must_be_asked_of_a_client() {
    let from = |ranges: Value, nodes: &[&str]| {
        let service = balanced(&json!({"loadBalancerSourceRanges": ranges}));
        let settings = Settings {
            node_addresses: nodes.iter().map(|node| node.parse().unwrap()).collect(),
            ..here("")
        };
        let found = addresses(&compiled(&service, &[], &settings));
        let ranges = found.lines().filter_map(|line| line.strip_prefix("from "));
        ranges.map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    // LBR-4: of one family, and with spaces around.
    assert_eq!(
        from(json!([" 198.51.100.0/24 ", "192.0.2.7/32"]), &[]),
        "192.0.2.7/32 198.51.100.0/24"
    );
    assert_eq!(
        from(json!(["10.0.0.0/8", "2001:db8::/32"]), &[]),
        "10.0.0.0/8 2001:db8::/32"
    );
    // LBR-5: a zero network is no restriction in its family.
    assert_eq!(
        from(json!(["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32"]), &[]),
        "2001:db8::/32"
    );
    assert_eq!(from(json!(["10.0.0.0/8", "::/0"]), &[]), "10.0.0.0/8");
    // LBR-3: with the node in one, the load balancer's own addresses of that family, too.
    assert_eq!(
        from(
            json!(["10.0.0.0/8", "2001:db8:1::/48"]),
            &["10.0.0.5", "2001:db8:2::5"]
        ),
        "10.0.0.0/8 203.0.113.1/32 2001:db8:1::/48"
    );
    assert_eq!(from(json!(["10.0.0.0/8"]), &["192.0.2.1"]), "10.0.0.0/8");
    // LBR-8: the annotation is not read.
    let mut service = balanced(&json!({}));
    let object = std::sync::Arc::make_mut(&mut service.object);
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges".to_owned();
    object
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(annotation, "10.0.0.0/8".into());
    assert!(!addresses(&compiled(&service, &[], &here(""))).contains("from"));
}

#[test]
fn np_2_node_port_addresses_of_one_family_leave_the_other_at_all() {
    let service = service(json!({}), &json!([]));
    let accepting = |networks: &[&str]| {
        let settings = Settings {
            node_port_addresses: networks.iter().map(|network| network.parse().unwrap()).collect(),
            ..here("")
        };
        let records = compiled(&service, &[], &settings).records.into_iter();
        let networks = records.filter_map(|record| match record {
            Record::Network(NetworkRecord {
                kind: NetworkKind::NodePortAddresses,
                network,
            }) => Some(network.to_string()),
            _ => None,
        });
        networks.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(accepting(&[]), "", "primary");
    assert_eq!(accepting(&["192.0.2.0/24"]), "192.0.2.0/24 ::/0");
    assert_eq!(accepting(&["2001:db8::5/128"]), "0.0.0.0/0 2001:db8::5/128");
    assert_eq!(accepting(&["192.0.2.9/24", "fd00::/8"]), "192.0.2.0/24 fd00::/8");
}

#[test]
fn tp_11_endpoints_of_nodes_treated_as_local_are_local() {
    let service = service(
        json!({"externalIPs": ["198.51.100.1"], "externalTrafficPolicy": "Local"}),
        &json!([]),
    );
    let endpoints = ["10.1.0.1 on=w1", "10.1.0.2 on=w2", "10.1.0.3"];
    let sets = |as_local: &[&str]| {
        let mut settings = here("");
        settings.here.as_local = as_local.iter().map(|&name| name.to_owned()).collect();
        sets_of(&compiled(&service, &endpoints, &settings), false)
    };
    assert_eq!(
        sets(&[]),
        "cluster:123 local: any",
        "strict unless told otherwise"
    );
    assert_eq!(sets(&["w1"]), "cluster:123 local:1 any");
    assert_eq!(sets(&["*"]), "cluster:123 local:12 any");
}

#[test]
fn vd_5_and_tp_2_ranges_of_both_families_and_the_switches_are_passed_on() {
    let parse = |networks: [&str; 2]| networks.map(|network| network.parse().unwrap()).to_vec();
    let switches = SettingsRecord {
        masquerade_all: true,
        ping_replies: true,
        undefined_ports: UndefinedPorts::Reject,
    };
    let settings = Settings {
        pod_ranges: parse(["10.244.0.0/16", "fd00:244::/48"]),
        service_ranges: parse(["10.96.0.0/16", "fd00:96::/112"]),
        switches,
        ..here("")
    };
    let records = compile_services(
        &Services::new(),
        &Slices::default(),
        &settings,
        &Numbers::default(),
    )
    .records;
    let network = |kind, network: &str| {
        let network = network.parse().unwrap();
        Record::Network(NetworkRecord { kind, network })
    };
    assert_eq!(
        records,
        [
            network(NetworkKind::PodRange, "10.244.0.0/16"),
            network(NetworkKind::PodRange, "fd00:244::/48"),
            network(NetworkKind::ServiceRange, "10.96.0.0/16"),
            network(NetworkKind::ServiceRange, "fd00:96::/112"),
            Record::Settings(switches),
        ]
    );
}
