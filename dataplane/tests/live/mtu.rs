//! Path MTU discovery (RFC 1191, RFC 8201) by real TCP through the gateway, which translates the errors of others and
//! makes those of its own links: a transfer in both directions over a hop that is smaller than both ends know.

use std::net::SocketAddr;
use std::time::Duration;

use crate::exchange::{PORT, connect, exchange, finish, serve};
use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::sandbox::{now, sandboxed};

/// A small hop's, as of a tunnel.
const SMALL: u32 = 1_400;
const USUAL: u32 = 1_500;
/// Much more than a window, so that nothing is finished before the path is known.
const BYTES: usize = 2_000_000;
/// Without progress for so long, a path's MTU will not be found.
const DEAF: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(180);

/// ```text
/// client ── a ── b ── up0 gateway pods0 ── c ── d ── pods
/// ```
/// a, b, c and d are routers; the hops that get small are a–b, b–gateway, gateway–c and c–d.
struct Chain {
    hosts: [Host; 6],
    gateway: Host,
}

const CONFIG: &str = "
node: {addresses: [172.18.0.1, \"fd00:18::1\"]}
ports:
- {name: up0, driver: af_packet, interface: up0, addresses: [172.18.0.1/24, \"fd00:18::1/64\"]}
- {name: pods0, driver: af_packet, interface: pods0, addresses: [172.20.0.1/24, \"fd00:20::1/64\"]}
routes:
- {to: 198.51.100.0/24, via: 172.18.0.2}
- {to: 10.244.0.0/24, via: 172.20.0.2}
- {to: \"2001:db8:c::/64\", via: \"fd00:18::2\"}
- {to: \"fd00:244::/64\", via: \"fd00:20::2\"}
";

const TABLES: &str = "
put service echo tcp
put cluster-ip echo 10.96.0.10:80
put cluster-ip echo [fd00:10:96::10]:80
put node-port echo 30080
put node-port echo [::]:30080
";

/// Pod sources are nobody (TP-2): a cluster IP keeps the client's address, a node port does not.
const FRONTENDS: [(&str, &str); 4] = [
    ("without SNAT", "10.96.0.10:80"),
    ("with SNAT", "172.18.0.1:30080"),
    ("without SNAT", "[fd00:10:96::10]:80"),
    ("with SNAT", "[fd00:18::1]:30080"),
];
const PODS: [&str; 2] = ["10.244.0.11", "fd00:244::11"];

impl Chain {
    fn new() -> Self {
        let hosts = ["client", "a", "b", "c", "d", "pods"].map(Host::new);
        let [client, a, b, c, d, pods] = hosts;
        let gateway = Host::silent("gateway");
        let wires = Wires::new();
        for (left, right) in [
            ((client, "right"), (a, "left")),
            ((a, "right"), (b, "left")),
            ((b, "right"), (gateway, "up0")),
            ((gateway, "pods0"), (c, "left")),
            ((c, "right"), (d, "left")),
            ((d, "right"), (pods, "left")),
        ] {
            wires.cable(left, right);
        }
        for router in [a, b, c, d] {
            router.set("ipv4/ip_forward", "1");
            // Errors are told as often as they happen.
            router.set("ipv4/icmp_ratelimit", "0");
            router.set("ipv6/icmp/ratelimit", "0");
            router.set("ipv6/conf/all/forwarding", "1");
        }
        client.ip("addr add 198.51.100.10/24 dev right
             addr add 2001:db8:c::10/64 dev right
             route add default via 198.51.100.1
             route add default via 2001:db8:c::1");
        a.ip("addr add 198.51.100.1/24 dev left
             addr add 2001:db8:c::1/64 dev left
             addr add 172.19.0.1/24 dev right
             addr add fd00:19::1/64 dev right
             route add default via 172.19.0.2
             route add default via fd00:19::2");
        b.ip("addr add 172.19.0.2/24 dev left
             addr add fd00:19::2/64 dev left
             addr add 172.18.0.2/24 dev right
             addr add fd00:18::2/64 dev right
             route add 198.51.100.0/24 via 172.19.0.1
             route add 2001:db8:c::/64 via fd00:19::1
             route add default via 172.18.0.1
             route add default via fd00:18::1");
        c.ip("addr add 172.20.0.2/24 dev left
             addr add fd00:20::2/64 dev left
             addr add 172.21.0.1/24 dev right
             addr add fd00:21::1/64 dev right
             route add 10.244.0.0/24 via 172.21.0.2
             route add fd00:244::/64 via fd00:21::2
             route add default via 172.20.0.1
             route add default via fd00:20::1");
        d.ip("addr add 172.21.0.2/24 dev left
             addr add fd00:21::2/64 dev left
             addr add 10.244.0.1/24 dev right
             addr add fd00:244::1/64 dev right
             route add default via 172.21.0.1
             route add default via fd00:21::1");
        pods.ip("addr add 10.244.0.11/24 dev left
             addr add fd00:244::11/64 dev left
             route add default via 10.244.0.1
             route add default via fd00:244::1");
        for pod in PODS {
            serve(pods, 0, pod.parse().unwrap());
        }
        Self { hosts, gateway }
    }

    /// The four hops between the ends' own links, each by its two ends.
    fn hops(&self) -> [(&'static str, [(Host, &'static str); 2]); 4] {
        let [_, a, b, c, d, _] = self.hosts;
        [
            ("between client and gateway", [(a, "right"), (b, "left")]),
            (
                "of the gateway to the client",
                [(b, "right"), (self.gateway, "up0")],
            ),
            (
                "of the gateway to the pods",
                [(self.gateway, "pods0"), (c, "left")],
            ),
            ("between gateway and pods", [(c, "right"), (d, "left")]),
        ]
    }

    /// Nobody remembers anything of the paths.
    fn forget(&self) {
        for host in self.hosts {
            for family in ["-4", "-6"] {
                host.run("ip", &[family, "route", "flush", "cache"]);
            }
        }
    }
}

fn set_mtu(ends: [(Host, &str); 2], mtu: u32) {
    for (host, name) in ends {
        host.ip(&format!("link set {name} mtu {mtu}"));
    }
}

#[test]
fn transfers_pass_a_hop_that_is_smaller_than_both_ends_know() {
    sandboxed(
        "mtu::transfers_pass_a_hop_that_is_smaller_than_both_ends_know",
        LIMIT,
        || {
            let chain = Chain::new();
            let mut failures = Vec::new();
            for (hop, ends) in chain.hops() {
                set_mtu(ends, SMALL);
                // It reads its links' MTUs when it opens them.
                let mut gateway = Gateway::start(chain.gateway, CONFIG);
                let pods: String = PODS
                    .iter()
                    .map(|pod| {
                        format!(
                            "put backend echo {}\n",
                            SocketAddr::new(pod.parse().unwrap(), PORT)
                        )
                    })
                    .collect();
                gateway.publish(&(TABLES.to_owned() + &pods));
                for (kind, frontend) in FRONTENDS {
                    chain.forget();
                    let (start, at) = (now(), frontend.parse::<SocketAddr>().unwrap());
                    let result = chain.hosts[0].enter(move || {
                        let mut stream = connect(at)?;
                        stream.set_read_timeout(Some(DEAF))?;
                        stream.set_write_timeout(Some(DEAF))?;
                        exchange(&mut stream, 3, BYTES, BYTES)?;
                        finish(stream)
                    });
                    let said = format!(
                        "a small hop {hop}, {frontend} {kind}: {result:?} in {:?}",
                        start.elapsed()
                    );
                    eprintln!("mtu: {said}; dropped: {}", gateway.drops());
                    failures.extend(result.err().map(|_| said));
                }
                drop(gateway);
                set_mtu(ends, USUAL);
            }
            assert!(failures.is_empty(), "{}", failures.join("\n"));
        },
    );
}
