//! The lab's network: a client outside, the node that is the gateway, pods behind it.
//!
//! ```text
//! client ──────── client0 ┐      ┌ pods0 ──── fabric (bridge) ──── eth0 pod
//! 172.18.0.10             │ node │                         └────── eth0 pod
//! 10.96/16, 10.244/16     └──────┘ dataplane: 172.18.0.2, 10.244.0.1
//! via 172.18.0.2             host0: the node's own stack
//! ```
//!
//! Takes a name and an address; gives namespaces with their links. The keeper's own network namespace is the fabric,
//! so nothing is ever made outside the lab. Pods know only their gateway, so traffic from pod to pod passes it too.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use anyhow::Context;
use ipnet::Ipv4Net;

use super::namespace::{Namespaces, set_sysctl};
use super::netlink::{Netlink, VethEnd, disable_checksum_offload};

/// What carries the node's own traffic between its stack and the dataplane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostPort {
    /// A tap, which the dataplane makes.
    Tap,
    /// A veth pair, made here: the kernel's end is `host0`, the dataplane's [`HOST_PEER`].
    Veth,
}

impl HostPort {
    /// A tap where `/dev/net/tun` may be opened; many containers and minimal machines keep it to root.
    pub(super) fn possible() -> Self {
        let tun = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun");
        if tun.is_ok() { Self::Tap } else { Self::Veth }
    }
}

/// The node's address towards clients.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The client's address.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 10);
/// The node's address towards pods.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Where pods' addresses come from: the first 24 bits of the pod range, what a cluster gives one node.
pub const FIRST_POD: u8 = 2;
/// The last octet a pod may have; 255 is the broadcast address.
pub const LAST_POD: u8 = 254;

const BRIDGE: &str = "fabric";
const NODE_PORTS: [&str; 2] = ["client0", "pods0"];
const HOST_PORT: &str = "host0";
/// The dataplane's end of a host port that is a veth pair.
pub(super) const HOST_PEER: &str = "host0d";

/// The fixed part of the lab's network. Pods' links come and go.
pub(super) struct Network {
    /// Where outside clients run.
    pub(super) client: Namespaces,
    /// Where the dataplane and control run.
    pub(super) node: Namespaces,
    fabric: OwnedFd,
}

impl Network {
    /// Makes the client, the node and the fabric. Must run in the fabric's network namespace.
    pub(super) fn create() -> anyhow::Result<Self> {
        let fabric = std::fs::File::open("/proc/self/ns/net")
            .context("cannot open /proc/self/ns/net")?
            .into();
        let network = Self {
            client: Namespaces::create()?,
            node: Namespaces::create()?,
            fabric,
        };
        let mut netlink = Netlink::open()?;
        quiet_ipv6();
        netlink.set_up("lo", None)?;
        netlink.add_bridge(BRIDGE)?;
        netlink.add_veth(
            &VethEnd {
                name: "eth0",
                namespace: network.client.net(),
                single_segments: true,
            },
            &VethEnd {
                name: "client0",
                namespace: network.node.net(),
                single_segments: false,
            },
        )?;
        netlink.add_veth(
            &VethEnd {
                name: "node",
                namespace: std::os::fd::AsFd::as_fd(&network.fabric),
                single_segments: false,
            },
            &VethEnd {
                name: "pods0",
                namespace: network.node.net(),
                single_segments: false,
            },
        )?;
        netlink.set_up("node", Some(BRIDGE))?;
        network.client.enter(configure_client)?;
        network.node.enter(configure_node)?;
        Ok(network)
    }

    /// Makes a pod's namespaces and its link to the fabric.
    pub(super) fn create_pod(&self, address: Ipv4Addr) -> anyhow::Result<Namespaces> {
        let namespaces = Namespaces::create()?;
        let name = fabric_port(address);
        let mut netlink = Netlink::open()?;
        // The pair of a pod that had this address long ago may still be on its way out.
        netlink.delete_link(&name)?;
        netlink.add_veth(
            &VethEnd {
                name: "eth0",
                namespace: namespaces.net(),
                single_segments: true,
            },
            &VethEnd {
                name: &name,
                namespace: std::os::fd::AsFd::as_fd(&self.fabric),
                single_segments: false,
            },
        )?;
        netlink.set_up(&name, Some(BRIDGE))?;
        namespaces.enter(|| configure_pod(address))?;
        Ok(namespaces)
    }

    /// Takes a pod's link away at once, whoever still holds its namespace.
    pub(super) fn remove_pod(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        Netlink::open()?.delete_link(&fabric_port(address))
    }

    /// Lets the node's kernel forward between client and pods, in the dataplane's place: a lab without services.
    pub(super) fn forward_in_kernel(&self) -> anyhow::Result<()> {
        self.node.enter(|| {
            let mut netlink = Netlink::open()?;
            for (port, address) in NODE_PORTS.into_iter().zip([NODE_ADDRESS, POD_GATEWAY]) {
                set_sysctl(&format!("ipv4/conf/{port}/arp_ignore"), "0")?;
                netlink.add_address(port, Ipv4Net::new_assert(address, 24))?;
            }
            set_sysctl("ipv4/ip_forward", "1")
        })
    }

    /// Makes a host port that is a veth pair and gives its kernel end the node's address, before any dataplane starts.
    pub(super) fn create_host_pair(&self) -> anyhow::Result<()> {
        self.node.enter(|| {
            let mut netlink = Netlink::open()?;
            let end = |name, single_segments| VethEnd {
                name,
                namespace: self.node.net(),
                single_segments,
            };
            netlink.add_veth(&end(HOST_PORT, true), &end(HOST_PEER, false))?;
            disable_checksum_offload(HOST_PORT)?;
            own_alone(&mut netlink, HOST_PEER)?;
            configure_host(&mut netlink)
        })
    }

    /// Watches the node for the tap that a starting dataplane makes, and gives it the node's address, each time it
    /// comes. Runs until the namespace is gone; `done` hears of every success and failure.
    pub(super) fn configure_host_port(
        &self,
        done: impl Fn(anyhow::Result<()>) + Send + 'static,
    ) -> anyhow::Result<()> {
        let node = self
            .node
            .try_clone()
            .context("cannot hold the node's namespace")?;
        std::thread::Builder::new()
            .name("host-port".to_owned())
            .spawn(move || {
                if let Err(error) = watch_host_port(&node, &done) {
                    done(Err(error));
                }
            })
            .context("cannot start a thread")?;
        Ok(())
    }
}

fn fabric_port(address: Ipv4Addr) -> String {
    format!("pod{}", address.octets()[3])
}

fn configure_client() -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.set_up("lo", None)?;
    disable_checksum_offload("eth0")?;
    netlink.set_up("eth0", None)?;
    netlink.add_address("eth0", Ipv4Net::new_assert(CLIENT_ADDRESS, 24))?;
    for (range, length) in [
        (Ipv4Addr::new(10, 96, 0, 0), 16),
        (Ipv4Addr::new(10, 244, 0, 0), 16),
    ] {
        netlink.add_route(
            Ipv4Net::new_assert(range, length),
            "eth0",
            Some(NODE_ADDRESS),
            None,
        )?;
    }
    Ok(())
}

fn configure_node() -> anyhow::Result<()> {
    // First, so that interfaces come up without a link-local address: the dataplane owns them alone.
    quiet_ipv6();
    let mut netlink = Netlink::open()?;
    netlink.set_up("lo", None)?;
    NODE_PORTS
        .into_iter()
        .try_for_each(|port| own_alone(&mut netlink, port))
}

/// Brings up an interface that the dataplane is to own alone.
///
/// With a raw socket the kernel sees each frame too. The node's address is on the host port, so the kernel must neither
/// answer ARP for it here (arp_ignore 8) nor accept its packets here and reset the connections it does not know
/// (rp_filter 1: the way back is the host port).
fn own_alone(netlink: &mut Netlink, port: &str) -> anyhow::Result<()> {
    set_sysctl(&format!("ipv4/conf/{port}/arp_ignore"), "8")?;
    set_sysctl(&format!("ipv4/conf/{port}/rp_filter"), "1")?;
    netlink.set_up(port, None)
}

fn configure_pod(address: Ipv4Addr) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.set_up("lo", None)?;
    disable_checksum_offload("eth0")?;
    netlink.set_up("eth0", None)?;
    netlink.add_address("eth0", Ipv4Net::new_assert(address, 32))?;
    netlink.add_route(Ipv4Net::new_assert(POD_GATEWAY, 32), "eth0", None, None)?;
    netlink.add_route(Ipv4Net::default(), "eth0", Some(POD_GATEWAY), None)
}

fn watch_host_port(node: &Namespaces, done: &dyn Fn(anyhow::Result<()>)) -> anyhow::Result<()> {
    node.enter_this_thread()?;
    let mut events = Netlink::open()?;
    events.watch_links()?;
    let mut netlink = Netlink::open()?;
    // A tap of a restarted dataplane is a new interface with a new index.
    let mut configured = None;
    // It may have come before the watch did.
    let mut next = netlink
        .index(HOST_PORT)
        .ok()
        .map(|index| (HOST_PORT.to_owned(), index));
    loop {
        let (name, index) = match next.take() {
            Some(link) => link,
            None => events.next_link()?,
        };
        if name == HOST_PORT && configured != Some(index) {
            let result = configure_host(&mut netlink);
            if result.is_ok() {
                configured = Some(index);
            }
            done(result);
        }
    }
}

fn configure_host(netlink: &mut Netlink) -> anyhow::Result<()> {
    netlink.set_up(HOST_PORT, None)?;
    netlink.add_address(HOST_PORT, Ipv4Net::new_assert(NODE_ADDRESS, 32))?;
    // On-link: the dataplane answers ARP on the host port for everything.
    netlink.add_route(Ipv4Net::default(), HOST_PORT, None, Some(NODE_ADDRESS))
}

/// Turns IPv6 off for interfaces to come. A kernel without IPv6 has no such setting, which is as good.
fn quiet_ipv6() {
    for scope in ["all", "default"] {
        if let Err(error) = set_sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1") {
            log::debug!("{error:#}");
        }
    }
}
