//! The cluster that kube-proxy's packets were recorded in, with two gateways to put in its middle: the kernel, for the
//! recorded rules, and ours.
//!
//! ```text
//! client 198.51.100.10 ── clients ┐          ┌ pods ── l1 l2 lc  10.244.1.11 .12 .13
//!                                 │ gateway  │
//!                                 └──────────┴ mid ── rtr ── far ── r1 r2 rc  10.244.2.11 .12 .13
//! ```
//! All pods know only their router, and what rtr hears from its pods it sends to the gateway, pod to pod included. What
//! the gateway does not know goes to the client, so that nothing leaves unseen. IPv6 likewise.

use std::net::IpAddr;
use std::process::Command;

use crate::exchange::serve;
use crate::gateway::Gateway;
use crate::host::{Host, Wires};
use crate::sandbox::{finished, run};

/// A host that sends, with its addresses of both families.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Station {
    pub(crate) host: Host,
    pub(crate) addresses: [&'static str; 2],
}

/// Everybody but the gateway; those whose name has a number are endpoints.
pub(crate) const STATIONS: [(&str, [&str; 2]); 7] = [
    ("client", ["198.51.100.10", "2001:db8:c::10"]),
    ("l1", ["10.244.1.11", "fd00:244:1::11"]),
    ("l2", ["10.244.1.12", "fd00:244:1::12"]),
    ("lc", ["10.244.1.13", "fd00:244:1::13"]),
    ("r1", ["10.244.2.11", "fd00:244:2::11"]),
    ("r2", ["10.244.2.12", "fd00:244:2::12"]),
    ("rc", ["10.244.2.13", "fd00:244:2::13"]),
];

/// The gateway's links and its addresses on them.
const LINKS: [(&str, [&str; 2], &str); 3] = [
    (
        "clients",
        ["198.51.100.1/24", "2001:db8:c::1/64"],
        "02:00:00:00:99:01",
    ),
    ("mid", ["172.18.1.1/24", "fd00:18:1::1/64"], "02:00:00:00:99:02"),
    ("pods", ["10.244.1.1/24", "fd00:244:1::1/64"], "02:00:00:00:99:03"),
];
/// The node's own addresses, as sources and for node ports.
pub(crate) const NODE: [&str; 2] = ["172.18.1.1", "fd00:18:1::1"];

/// What our gateway is told; the default route leads to the client.
const CONFIG: &str = "
node: {addresses: [172.18.1.1, \"fd00:18:1::1\"]}
ports:
- {name: clients, driver: af_packet, interface: clients, addresses: [198.51.100.1/24, \"2001:db8:c::1/64\"]}
- {name: mid, driver: af_packet, interface: mid, addresses: [172.18.1.1/24, \"fd00:18:1::1/64\"]}
- {name: pods, driver: af_packet, interface: pods, addresses: [10.244.1.1/24, \"fd00:244:1::1/64\"]}
- {name: host0, driver: af_packet, interface: host1, role: host}
routes:
- {to: 0.0.0.0/0, via: 198.51.100.10}
- {to: 10.244.2.0/24, via: 172.18.1.254}
- {to: \"::/0\", via: \"2001:db8:c::10\"}
- {to: \"fd00:244:2::/64\", via: \"fd00:18:1::fe\"}
";

pub(crate) struct Cluster {
    pub(crate) stations: Vec<Station>,
    kernel: Host,
    sluice: Host,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let wires = Wires::new();
        for bridge in ["clients", "mid", "pods", "far"] {
            run(
                "ip",
                &["link", "add", bridge, "type", "bridge", "mcast_snooping", "0"],
            );
            run("ip", &["link", "set", bridge, "up"]);
        }
        let join = |wire: &str, bridge: &str, end: (Host, &str)| {
            wires.plug(wire, end);
            run("ip", &["link", "set", wire, "master", bridge]);
        };
        let (kernel, sluice) = (Host::new("kernel"), Host::silent("sluice"));
        for gateway in [kernel, sluice] {
            for (link, _, mac) in LINKS {
                join(&format!("{}-{link}", &gateway.0[..1]), link, (gateway, link));
                // One gateway is there at a time, and nobody can tell which.
                gateway.ip(&format!("link set {link} down address {mac}"));
            }
        }
        // The node's own stack: a cable from it to our gateway, for who may not make a tap.
        sluice.ip("link add host0 type veth peer name host1\nlink set host1 up");
        sluice.set("ipv4/conf/host0/arp_ignore", "0");
        for interface in ["lo", "host0"] {
            sluice.set(&format!("ipv6/conf/{interface}/disable_ipv6"), "0");
        }
        sluice.ip("addr add 172.18.1.1/32 dev host0
             addr add 198.51.100.1/32 dev host0
             addr add fd00:18:1::1/128 dev host0
             addr add 2001:db8:c::1/128 dev host0
             link set host0 up
             route replace default dev host0 src 172.18.1.1
             route replace ::/0 dev host0");
        router(kernel);
        kernel.ip("link set clients up\nlink set mid up\nlink set pods up");
        for (link, addresses, _) in LINKS {
            addresses
                .iter()
                .for_each(|address| kernel.ip(&format!("addr add {address} dev {link}")));
        }
        kernel.ip(
            "route add default via 198.51.100.10\nroute add default via 2001:db8:c::10
                   route add 10.244.2.0/24 via 172.18.1.254\nroute add fd00:244:2::/64 via fd00:18:1::fe",
        );
        kernel.ip("link set clients down\nlink set mid down\nlink set pods down");

        let rtr = Host::new("rtr");
        join("rtr-mid", "mid", (rtr, "mid"));
        join("rtr-far", "far", (rtr, "far"));
        router(rtr);
        rtr.ip(
            "addr add 172.18.1.254/24 dev mid\naddr add fd00:18:1::fe/64 dev mid
                addr add 10.244.2.1/24 dev far\naddr add fd00:244:2::1/64 dev far
                route add default via 172.18.1.1\nroute add default via fd00:18:1::1
                route add default via 172.18.1.1 table 100\nroute add default via fd00:18:1::1 table 100",
        );
        rtr.run("ip", &["-4", "rule", "add", "iif", "far", "lookup", "100"]);
        rtr.run("ip", &["-6", "rule", "add", "iif", "far", "lookup", "100"]);

        let stations = STATIONS.map(|(name, addresses)| {
            let host = Host::new(name);
            let (bridge, routers) = match &name[..1] {
                "c" => ("clients", ["198.51.100.1", "2001:db8:c::1"]),
                "l" => ("pods", ["10.244.1.1", "fd00:244:1::1"]),
                _ => ("far", ["10.244.2.1", "fd00:244:2::1"]),
            };
            join(&format!("{name}-wire"), bridge, (host, "eth0"));
            for (address, router) in addresses.iter().zip(routers) {
                host.ip(&format!(
                    "addr add {address} dev eth0\nroute add {router} dev eth0\nroute add default via {router}"
                ));
            }
            if name.ends_with(['1', '2']) {
                addresses
                    .iter()
                    .for_each(|address| serve(host, 0, address.parse::<IpAddr>().unwrap()));
            }
            Station { host, addresses }
        });
        Self {
            stations: stations.into(),
            kernel,
            sluice,
        }
    }

    /// The node itself, as the kernel gateway.
    pub(crate) fn kernel(&self) -> Station {
        Station {
            host: self.kernel,
            addresses: NODE,
        }
    }

    /// The node itself, as our gateway.
    pub(crate) fn sluice(&self) -> Station {
        Station {
            host: self.sluice,
            addresses: NODE,
        }
    }

    /// Puts the kernel in the middle, with rules.
    pub(crate) fn load(&self, ruleset: &str) {
        self.choose(self.kernel, self.sluice);
        finished(
            &mut self.kernel.command("nft", &["-f", "-"]),
            &format!("flush ruleset\n{ruleset}"),
        );
    }

    /// Puts our gateway in the middle, with tables.
    pub(crate) fn start(&self, tables: &str) -> Gateway {
        self.choose(self.sluice, self.kernel);
        let mut gateway = Gateway::start(self.sluice, CONFIG);
        gateway.publish(tables);
        gateway
    }

    fn choose(&self, this: Host, other: Host) {
        for (host, state) in [(other, "down"), (this, "up")] {
            LINKS
                .iter()
                .for_each(|(link, ..)| host.ip(&format!("link set {link} {state}")));
        }
        if this.0 == self.kernel.0 {
            // Routes and IPv6 addresses went with the links.
            for (link, [_, address], _) in LINKS {
                this.ip(&format!("addr replace {address} dev {link}"));
            }
            this.ip("route replace default via 198.51.100.10\nroute replace default via 2001:db8:c::10
                     route replace 10.244.2.0/24 via 172.18.1.254\nroute replace fd00:244:2::/64 via fd00:18:1::fe");
        }
    }
}

/// Whether nft(8) is here and this kernel takes its rules.
pub(crate) fn has_nftables() -> bool {
    Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A host that forwards, believes sources, redirects nobody and tells every error.
fn router(host: Host) {
    for (setting, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        host.set(setting, value);
    }
    host.may_set("ipv4/icmp_msgs_per_sec", "100000");
    host.may_set("ipv4/icmp_msgs_burst", "100000");
    for link in ["clients", "mid", "pods", "far"] {
        host.may_set(&format!("ipv4/conf/{link}/rp_filter"), "0");
        host.may_set(&format!("ipv4/conf/{link}/send_redirects"), "0");
    }
}
