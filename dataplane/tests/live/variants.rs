//! What the kernel and we are asked: the Service `svc` in its variants, from whom, at which frontends.

use crate::cluster::{NODE, STATIONS};

/// The rules of a variant, and what our tables say instead.
pub(crate) const VARIANTS: [(&str, &str, &str); 17] = [
    ("empty", include_str!("rulesets/empty.nft"), ""),
    (
        "clusterip-4ep",
        include_str!("rulesets/clusterip-4ep.nft"),
        "| cluster-ip | l1 l2 r1 r2",
    ),
    (
        "clusterip-itp-local",
        include_str!("rulesets/clusterip-itp-local.nft"),
        "internal-local | cluster-ip | l1 l2 r1 r2",
    ),
    (
        "clusterip-itp-local-remote-only",
        include_str!("rulesets/clusterip-itp-local-remote-only.nft"),
        "internal-local | cluster-ip | r1 r2",
    ),
    (
        "clusterip-no-endpoints",
        include_str!("rulesets/clusterip-no-endpoints.nft"),
        "| cluster-ip |",
    ),
    (
        "nodeport",
        include_str!("rulesets/nodeport.nft"),
        "| cluster-ip node-port | l1 l2 r1 r2",
    ),
    (
        "nodeport-etp-local",
        include_str!("rulesets/nodeport-etp-local.nft"),
        "external-local | cluster-ip node-port | l1 l2 r1 r2",
    ),
    (
        "nodeport-no-endpoints",
        include_str!("rulesets/nodeport-no-endpoints.nft"),
        "| cluster-ip node-port |",
    ),
    (
        "lb",
        include_str!("rulesets/lb.nft"),
        "| cluster-ip node-port load-balancer-ip | l1 l2 r1 r2",
    ),
    (
        "lb-etp-local",
        include_str!("rulesets/lb-etp-local.nft"),
        "external-local | cluster-ip node-port load-balancer-ip | l1 l2 r1 r2",
    ),
    (
        "lb-etp-local-remote-only",
        include_str!("rulesets/lb-etp-local-remote-only.nft"),
        "external-local | cluster-ip node-port load-balancer-ip | r1 r2",
    ),
    (
        "externalip",
        include_str!("rulesets/externalip.nft"),
        "| cluster-ip external-ip | l1 l2 r1 r2",
    ),
    (
        "clusterip-affinity",
        include_str!("rulesets/clusterip-affinity.nft"),
        "affinity 10800s | cluster-ip | l1 l2 r1 r2",
    ),
    (
        "lb-etp-local-affinity-source-ranges",
        include_str!("rulesets/lb-etp-local-affinity-source-ranges.nft"),
        "affinity 10800s external-local | cluster-ip node-port load-balancer-ip external-ip | l1 l2 r1 r2 | 198.51.100.0/28",
    ),
    (
        "lb-source-ranges",
        include_str!("rulesets/lb-source-ranges.nft"),
        "| cluster-ip node-port load-balancer-ip | l1 l2 r1 r2 | 198.51.100.0/28 2001:db8:c::10/128",
    ),
    (
        "lb-source-ranges-v4-only",
        include_str!("rulesets/lb-source-ranges-v4-only.nft"),
        "| cluster-ip node-port load-balancer-ip | l1 l2 r1 r2 | 198.51.100.0/28",
    ),
    (
        "lb-source-ranges-node-included",
        include_str!("rulesets/lb-source-ranges-node-included.nft"),
        "| cluster-ip node-port load-balancer-ip | l1 l2 r1 r2 | 172.18.1.0/24 fd00:18:1::/64",
    ),
];

/// What is asked: name, addresses, port.
pub(crate) const FRONTENDS: [(&str, [&str; 2], u16); 10] = [
    ("cluster IP", ["10.96.7.7", "fd00:10:96::707"], 80),
    ("cluster IP, another port", ["10.96.7.7", "fd00:10:96::707"], 81),
    (
        "unallocated service address",
        ["10.96.7.8", "fd00:10:96::708"],
        80,
    ),
    ("kubernetes without endpoints", ["10.96.0.1", "10.96.0.1"], 443),
    ("node port", NODE, 30077),
    (
        "node port, not the primary address",
        ["198.51.100.1", "2001:db8:c::1"],
        30077,
    ),
    ("load balancer IP", ["203.0.113.77", "2001:db8:113::77"], 80),
    (
        "load balancer IP, another port",
        ["203.0.113.77", "2001:db8:113::77"],
        81,
    ),
    ("external IP", ["198.18.0.77", "2001:db8:18::77"], 80),
    (
        "external IP, another port",
        ["198.18.0.77", "2001:db8:18::77"],
        81,
    ),
];

/// Sources, as the records name them.
pub(crate) const SOURCES: [(&str, &str); 6] = [
    ("external", "client"),
    ("pod-local", "lc"),
    ("pod-remote", "rc"),
    ("hairpin-local", "l1"),
    ("hairpin-remote", "r1"),
    ("node", "the node"),
];

/// The tables of a variant: policies, frontends, endpoints and source ranges between bars.
pub(crate) fn tables(says: &str) -> String {
    let mut lines = "put network pods 10.244.0.0/16\nput network pods fd00:244::/32\n\
                     put network services 10.96.0.0/16\nput network services fd00:10:96::/112\n\
                     put service kubernetes tcp random\nput cluster-ip kubernetes 10.96.0.1:443\n"
        .to_owned();
    let mut parts = says.split('|');
    let policies = parts.next().unwrap();
    if let (Some(frontends), Some(endpoints)) = (parts.next(), parts.next()) {
        lines += &format!("put service svc tcp random {policies}\n");
        for kind in frontends.split_whitespace() {
            let places: &[&str] = match kind {
                "cluster-ip" => &["10.96.7.7:80", "[fd00:10:96::707]:80"],
                "load-balancer-ip" => &["203.0.113.77:80", "[2001:db8:113::77]:80"],
                "external-ip" => &["198.18.0.77:80", "[2001:db8:18::77]:80"],
                _ => &["30077", "[::]:30077"],
            };
            places
                .iter()
                .for_each(|at| lines += &format!("put {kind} svc {at}\n"));
        }
        for name in endpoints.split_whitespace() {
            let (_, [v4, v6]) = STATIONS.iter().find(|station| station.0 == name).unwrap();
            let local = if name.starts_with('l') { "local" } else { "" };
            lines += &format!("put backend svc {v4}:8080 {local}\nput backend svc [{v6}]:8080 {local}\n");
        }
        for range in parts.next().unwrap_or_default().split_whitespace() {
            lines += &format!("put source-range svc {range}\n");
        }
    }
    lines
}
