//! What a configuration may say, and what is said of a wrong one.

use super::*;

fn mistake(text: &str) -> String {
    let (spot, message) = Config::parse(text, Path::new("/etc/sluice")).unwrap_err();
    let spot = spot.unwrap_or_default();
    format!("{}:{}: {message}", spot.line, spot.column)
}

#[test]
fn the_least_configuration_is_a_folder() {
    let config = Config::parse("manifests: [manifests]\n", Path::new("/etc/sluice")).unwrap();
    assert_eq!(config.manifests, [Path::new("/etc/sluice/manifests")]);
    assert_eq!(config.node_ports, 30_000..=32_767);
    assert!(!config.node.name.is_empty());
}

#[test]
fn a_mistake_is_one_line_with_its_place() {
    for (text, said) in [
        (
            "manifests: [a]\nserviceRnages: 1\n",
            "2:1: serviceRnages: is not a known field; did you mean `serviceRanges`?",
        ),
        (
            "manifests: [a]\nnodePortRange: 5\n",
            "2:16: nodePortRange: must be text, not the number 5 (write \"5\" in quotes)",
        ),
        (
            "manifests: [a]\nnodePortRange: 9-1\n",
            "2:16: nodePortRange: must be two ports such as \"30000-32767\", not \"9-1\"",
        ),
        (
            "manifests: [a]\nserviceRanges: [10.96.0.0/16, 10.97.0.0/16]\n",
            "2:31: serviceRanges[1]: must be of another family than the first",
        ),
        (
            "manifests: [a]\nserviceRanges: [10.96.0.0/16, 'fd00:96::/56']\n",
            "2:31: serviceRanges[1]: must be a network with a length from 64 to 125, such as fd00:96::/112, not fd00:96::/56",
        ),
        (
            "manifests: [a]\nserviceRanges: ['fd00:96::/112', 10.96.0.0/30]\n",
            "2:34: serviceRanges[1]: must be a network with a length from 8 to 29, such as 10.96.0.0/16, not 10.96.0.0/30",
        ),
        (
            "manifests: [a]\nserviceRanges: []\n",
            "2:16: serviceRanges: must be one network, or one of each family, the primary family's first",
        ),
        (
            "manifests: [a]\notherServiceRanges: ['fd00:97::/112']\n",
            "2:22: otherServiceRanges[0]: fd00:97::/112 is of a family that serviceRanges has not",
        ),
        (
            "manifests: [a]\notherServiceRanges: [10.97.0.0/30, 10.98.0.0/31]\n",
            "2:36: otherServiceRanges[1]: must be a network with a length from 8 to 30, such as 10.96.0.0/16, not 10.98.0.0/31",
        ),
        (
            "manifests: [a]\nhealthz: 10256\n",
            "2:10: healthz: must be text, not the number 10256 (write \"10256\" in quotes)",
        ),
        (
            "manifests: [a]\nhealthz: localhost\n",
            "2:10: healthz: must be an address and port such as 0.0.0.0:10256, or `none`, not \"localhost\"",
        ),
        (
            "manifests: [a]\nloadBalancerPools: [{name: p, addresses: [192.0.2.0/24, 192.0.2.9/24]}]\n",
            "2:55: loadBalancerPools[0].addresses[1]: has bits beyond its length: 192.0.2.0/24 is the network",
        ),
        (
            "manifests: [a]\nloadBalancerPools: [{name: p, addresses: [10.96.7.1-10.97.0.1]}]\n",
            "2:41: loadBalancerPools[0].addresses[0]: overlaps with the Service range 10.96.0.0/16",
        ),
        (
            "manifests: [a]\nloadBalancerPools: [{name: p, addresses: [192.0.2.0/24, 192.0.2.7-192.0.2.9]}]\n",
            "2:55: loadBalancerPools[0].addresses[1]: overlaps with 192.0.2.1-192.0.2.254",
        ),
        (
            "manifests: []\n",
            "1:12: manifests: must name at least one folder",
        ),
        (
            "manifests: [a]\ndns: {}\n",
            "2:6: dns.listen: must name an address, or node.addresses must",
        ),
        (
            "manifests: [a]\ndns: {listen: [192.0.2.2], ttl: 3601}\n",
            "2:32: dns.ttl: must be from 0 to 3600 seconds, not 3601",
        ),
        (
            "manifests: [a]\ndns: {listen: [192.0.2.2], ttl: -1}\n",
            "2:32: dns.ttl: must be from 0 to 4294967295, not -1",
        ),
        (
            "manifests: [a]\ndns: {listen: [192.0.2.2], clusterIPs: [10.97.0.10]}\n",
            "2:39: dns.clusterIPs: 10.97.0.10 is in none of serviceRanges",
        ),
        (
            "manifests: [a]\ndns: {listen: [192.0.2.2], upstreams: [192.0.2.2]}\n",
            "2:38: dns.upstreams: 192.0.2.2:53 is this server itself: questions would go round for ever",
        ),
        (
            "manifests: [a]\ndns: {listen: [192.0.2.2], namespaces: []}\n",
            "2:39: dns.namespaces: must name a namespace; without this field all are exposed",
        ),
        (
            "manifests: [a]\ndns: {listen: [192.0.2.2], namespaces: [shop, Shop]}\n",
            "2:39: dns.namespaces: \"Shop\": must be lower-case letters, digits and `-`, with a letter or digit at both ends",
        ),
        (
            "manifests: [a]\nalgorithm: best\n",
            "2:12: algorithm: unknown variant `best`, expected one of `random`, `maglev`, `round-robin`, `least-connections`",
        ),
    ] {
        let found = mistake(text);
        assert!(
            found == said || found.ends_with(said.split_once(' ').unwrap().1),
            "{found}\n{said}"
        );
    }
}

#[test]
fn l24_a_ttl_is_a_number_from_0_to_3600_and_30_unless_said() {
    let with = |ttl: &str| {
        let text = format!("manifests: [a]\ndns: {{listen: [192.0.2.2]{ttl}}}\n");
        Config::parse(&text, Path::new("/etc/sluice"))
            .map(|config| config.dns.unwrap().settings().options.ttl)
    };
    for (ttl, seconds) in [("", 30), (", ttl: 0", 0), (", ttl: 1", 1), (", ttl: 3600", 3600)] {
        assert_eq!(with(ttl).unwrap(), seconds, "{ttl}");
    }
    for ttl in ["-1", "3601", "4294967296", "5s", "\"5\"", "true", "[5]", "0.5"] {
        let (spot, message) = with(&format!(", ttl: {ttl}")).unwrap_err();
        assert!(
            message.starts_with("dns.ttl: must be ") && spot.is_some(),
            "{ttl}: {message}"
        );
    }
}
