//! A world's Services as kube-proxy 1.36 writes them for the kernel: the nftables rules in the shape that was recorded of
//! one (`dataplane/tests/live/rulesets/`), the iptables rules as `iptables-restore` takes them. Endpoints are on other
//! nodes and clients in the pod network, so that nobody is masqueraded; UDP only.

use std::fmt::Write as _;

use crate::pktgen::world::World;

/// Pods' network, whose clients keep their address.
pub const PODS: &str = "10.244.0.0/16";
const SERVICES: &str = "10.96.0.0/12";

/// What every nftables ruleset has, without Services.
const NFT_FRAME: &str = "
add table ip kube-proxy { comment \"rules for kube-proxy\" ; }
add set ip kube-proxy hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; }
add set ip kube-proxy nodeport-ips { type ipv4_addr ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; }
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority dstnat - 10 ; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain ip kube-proxy filter-input { type filter hook input priority filter ; }
add chain ip kube-proxy filter-forward { type filter hook forward priority filter ; }
add chain ip kube-proxy filter-output { type filter hook output priority filter ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority dstnat ; }
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority srcnat ; }
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy service-endpoints-check
add chain ip kube-proxy firewall-check
add chain ip kube-proxy services
add chain ip kube-proxy masquerading
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy reject-chain
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy services ip daddr @cluster-ips ip saddr != PODS meta mark set meta mark or 0x4000
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy masquerading meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random
add rule ip kube-proxy masquerading ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add rule ip kube-proxy cluster-ips-check ip daddr SERVICES drop
add rule ip kube-proxy reject-chain reject
";

/// `nft -f`: all Services, in one transaction.
pub fn nftables(world: &World) -> String {
    let mut text = NFT_FRAME.replace("PODS", PODS).replace("SERVICES", SERVICES);
    for service in 0..world.services.count {
        let (address, port) = world.frontend(service);
        let chain = nft_chain(service);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "add chain ip kube-proxy {chain}");
        text.push_str(&nft_rule(world, service, world.endpoints.per_service));
        let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {address} }}");
        let _ = writeln!(
            text,
            "add element ip kube-proxy service-ips {{ {address} . udp . {port} : goto {chain} }}"
        );
    }
    text
}

/// `nft -f`: one Service has so many endpoints now.
pub fn nftables_change(world: &World, service: u32, endpoints: u32) -> String {
    let chain = nft_chain(service);
    format!(
        "flush chain ip kube-proxy {chain}\n{}",
        nft_rule(world, service, endpoints)
    )
}

fn nft_chain(service: u32) -> String {
    format!("service-{:08X}-default/s{service:05}/udp/p", mixed(service))
}

fn nft_rule(world: &World, service: u32, endpoints: u32) -> String {
    let places: Vec<String> = (0..endpoints)
        .map(|j| {
            let (address, port) = world.endpoint(service, j);
            format!("{j} : {address} . {port}")
        })
        .collect();
    format!(
        "add rule ip kube-proxy {} meta l4proto udp dnat ip to numgen random mod {endpoints} map {{ {} }}\n",
        nft_chain(service),
        places.join(", ")
    )
}

/// A number that looks like a hash, as kube-proxy's names have one.
const fn mixed(n: u32) -> u32 {
    n.wrapping_mul(0x9E37_79B1)
}

/// `iptables-restore`: all Services.
pub fn iptables(world: &World) -> String {
    let mut chains = String::new();
    let (mut services, mut rules) = (String::new(), String::new());
    for service in 0..world.services.count {
        let _ = writeln!(chains, ":KUBE-SVC-{} - [0:0]", iptables_name(service, u32::MAX));
        for j in 0..world.endpoints.per_service {
            let _ = writeln!(chains, ":KUBE-SEP-{} - [0:0]", iptables_name(service, j));
        }
        services.push_str(&iptables_service(world, service));
        rules.push_str(&iptables_rules(world, service, world.endpoints.per_service));
    }
    format!(
        "*filter
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
{chains}-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
{services}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
{rules}COMMIT
"
    )
}

/// `iptables-restore --noflush`: one Service has so many endpoints now. As kube-proxy does, the chain of all Services is
/// written anew, and of the others only those of this one.
pub fn iptables_change(world: &World, service: u32, endpoints: u32) -> String {
    let mut chains = format!(
        ":KUBE-SERVICES - [0:0]\n:KUBE-SVC-{} - [0:0]\n",
        iptables_name(service, u32::MAX)
    );
    for j in 0..world.endpoints.per_service {
        let _ = writeln!(chains, ":KUBE-SEP-{} - [0:0]", iptables_name(service, j));
    }
    let services: String = (0..world.services.count)
        .map(|service| iptables_service(world, service))
        .collect();
    let rules = iptables_rules(world, service, endpoints);
    format!(
        "*nat\n{chains}{services}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n{rules}COMMIT\n"
    )
}

/// 16 characters, as kube-proxy's.
fn iptables_name(service: u32, j: u32) -> String {
    format!(
        "{:08X}{:08X}",
        mixed(service),
        mixed(service ^ j.wrapping_add(7) << 20)
    )
}

fn iptables_service(world: &World, service: u32) -> String {
    let (address, port) = world.frontend(service);
    format!(
        "-A KUBE-SERVICES -d {address}/32 -p udp -m comment --comment \"default/s{service:05}:p cluster IP\" -m udp --dport {port} -j KUBE-SVC-{}\n",
        iptables_name(service, u32::MAX)
    )
}

fn iptables_rules(world: &World, service: u32, endpoints: u32) -> String {
    let (address, port) = world.frontend(service);
    let chain = iptables_name(service, u32::MAX);
    let mut text = format!(
        "-A KUBE-SVC-{chain} ! -s {PODS} -d {address}/32 -p udp -m comment --comment \"default/s{service:05}:p cluster IP\" -m udp --dport {port} -j KUBE-MARK-MASQ\n"
    );
    for j in 0..endpoints {
        let (address, port) = world.endpoint(service, j);
        let endpoint = iptables_name(service, j);
        let chance = match endpoints - j {
            1 => String::new(),
            left => format!(
                " -m statistic --mode random --probability {:.11}",
                1.0 / f64::from(left)
            ),
        };
        let _ = writeln!(
            text,
            "-A KUBE-SVC-{chain} -m comment --comment \"default/s{service:05}:p -> {address}:{port}\"{chance} -j KUBE-SEP-{endpoint}"
        );
        let _ = writeln!(
            text,
            "-A KUBE-SEP-{endpoint} -s {address}/32 -m comment --comment \"default/s{service:05}:p\" -j KUBE-MARK-MASQ"
        );
        let _ = writeln!(
            text,
            "-A KUBE-SEP-{endpoint} -p udp -m comment --comment \"default/s{service:05}:p\" -m udp -j DNAT --to-destination {address}:{port}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::world;
    use super::*;

    /// Words of the recorded ruleset that ours must have, too: its hooks, sets, maps and rules.
    #[test]
    fn the_nftables_rules_have_every_hook_set_and_rule_that_was_recorded_of_kube_proxy() {
        let recorded = include_str!("../../../dataplane/tests/live/rulesets/clusterip-4ep.nft");
        let recorded = recorded.split("table ip6").next().unwrap();
        let ours = nftables(&world(3, false));
        let words = |text: &str| {
            let plain = text
                .replace("0x00004000", "0x4000")
                .replace("0x00000000", "0")
                .replace("mark | 0x", "mark or 0x")
                .replace("10.96.0.0/16", SERVICES);
            plain.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let ours_words = words(&ours);
        let mut compared = 0;
        for line in recorded.lines().map(str::trim) {
            let line = words(line.split(" comment ").next().unwrap());
            let chain = ["chain", "set", "map"]
                .iter()
                .find_map(|kind| line.strip_prefix(kind));
            let name = chain.map(|rest| rest.trim().trim_end_matches(" {"));
            if let Some(name) = name.filter(|name| !name.starts_with("service-2EOY")) {
                assert!(ours_words.contains(&format!(" {name}")), "no {name}");
            } else if line.starts_with("type ") && line.contains("hook") {
                let hook = line.split(';').next().unwrap();
                assert!(ours_words.contains(hook), "no {hook}");
            } else if ["ct ", "jump", "ip daddr", "meta mark", "reject"]
                .iter()
                .any(|word| line.starts_with(word))
            {
                assert!(ours_words.contains(&line), "no rule {line}");
            } else {
                continue;
            }
            compared += 1;
        }
        assert!(compared > 40, "{compared}");
    }

    #[test]
    fn a_service_has_its_endpoints_with_equal_chances() {
        let world = world(2, false);
        let text = iptables(&world);
        for chance in ["0.25000000000", "0.33333333333", "0.50000000000"] {
            assert_eq!(text.matches(chance).count(), 2, "{chance}");
        }
        let names: std::collections::BTreeSet<_> =
            text.lines().filter(|line| line.starts_with(":KUBE-S")).collect();
        assert_eq!(names.len(), 1 + 2 + 8);
        assert!(nftables_change(&world, 1, 3).contains("mod 3 map { 0 : 10.244.0.4 . 8080, 1"));
    }
}
