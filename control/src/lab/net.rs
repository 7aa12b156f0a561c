//! The lab's network: a client outside, the node that is the gateway, pods behind it.
//!
//! ```text
//! client ──────── client0 ┐      ┌ pods0 ──── fabric (bridge) ──── eth0 pod
//! 172.18.0.10             │ node │                         └────── eth0 pod
//! 10.96/16, 10.244/16,    └──────┘ dataplane: 172.18.0.2, 10.244.0.1
//! 172.19.0/24                host0: the node's own stack
//! via 172.18.0.2
//! ```
//!
//! In a lab of both families the same once more: client fd00:172:18::10, node fd00:172:18::2 and fd00:10:244::1, pods
//! fd00:10:244::/64, Services fd00:10:96::/112.
//!
//! Takes a name and an address; gives namespaces with their links. The keeper's own network namespace is the fabric,
//! so nothing is ever made outside the lab. Pods know only their gateway, so traffic from pod to pod passes it too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

/// A host's addresses: of IPv4, and of IPv6 in a lab of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Option<Ipv6Addr>,
}

impl Addresses {
    const fn new(v4: Ipv4Addr, v6: Ipv6Addr, dual: bool) -> Self {
        let v6 = if dual { Some(v6) } else { None };
        Self { v4, v6 }
    }

    /// The node's towards clients.
    pub(super) const fn node(dual: bool) -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 2);
        Self::new(Ipv4Addr::new(172, 18, 0, 2), v6, dual)
    }

    /// The client's.
    pub(super) const fn client(dual: bool) -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x10);
        Self::new(Ipv4Addr::new(172, 18, 0, 10), v6, dual)
    }

    /// The node's towards pods, or those of the pod of this number, [`FIRST_POD`] to [`LAST_POD`].
    pub(super) const fn pod(number: u8, dual: bool) -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number as u16);
        Self::new(Ipv4Addr::new(10, 244, 0, number), v6, dual)
    }

    /// Of every family.
    pub(super) fn all(self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.v4.into()).chain(self.v6.map(IpAddr::from))
    }

    /// With the lengths of their networks.
    pub(super) fn networks(self, v4: u8, v6: u8) -> impl Iterator<Item = IpNet> {
        let length = move |address: &IpAddr| if address.is_ipv4() { v4 } else { v6 };
        self.all()
            .filter_map(move |address| IpNet::new(address, length(&address)).ok())
    }
}

/// Networks of a lab's cluster: of IPv4, and of IPv6 in a lab of both families.
pub(super) fn ranges(v4: Ipv4Net, v6: Ipv6Net, dual: bool) -> impl Iterator<Item = IpNet> {
    std::iter::once(v4.into()).chain(dual.then_some(v6.into()))
}

/// Cluster IPs are in these.
pub(crate) fn service_ranges(dual: bool) -> impl Iterator<Item = IpNet> {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0);
    ranges(
        Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
        Ipv6Net::new_assert(v6, 112),
        dual,
    )
}

/// Pods are in these.
pub(super) fn pod_ranges(dual: bool) -> impl Iterator<Item = IpNet> {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0);
    ranges(
        Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
        Ipv6Net::new_assert(v6, 64),
        dual,
    )
}

/// Load balancers have addresses from these.
pub(super) fn load_balancer_ranges(dual: bool) -> impl Iterator<Item = IpNet> {
    let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x19, 0, 0, 0, 0, 0);
    ranges(
        Ipv4Net::new_assert(Ipv4Addr::new(172, 19, 0, 0), 24),
        Ipv6Net::new_assert(v6, 112),
        dual,
    )
}

/// The node, as a pod knows it.
pub(super) const POD_GATEWAY: u8 = 1;
/// The last octet that a pod's address may have: those of the first 24 bits of the pod range, what a cluster gives one
/// node.
pub(super) const FIRST_POD: u8 = 2;
/// 255 is the broadcast address.
pub(super) const LAST_POD: u8 = 254;

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
    /// Whether there is IPv6, too.
    pub(super) dual: bool,
    fabric: OwnedFd,
}

impl Network {
    /// Makes the client, the node and the fabric. Must run in the fabric's network namespace.
    pub(super) fn create(dual: bool) -> anyhow::Result<Self> {
        let fabric = std::fs::File::open("/proc/self/ns/net")
            .context("cannot open /proc/self/ns/net")?
            .into();
        let network = Self {
            client: Namespaces::create()?,
            node: Namespaces::create()?,
            dual,
            fabric,
        };
        let mut netlink = Netlink::open()?;
        without_ipv6();
        network.client.enter(without_routers)?;
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
        network.client.enter(|| configure_client(dual))?;
        network.node.enter(configure_node)?;
        Ok(network)
    }

    /// Makes a pod's namespaces and its link to the fabric.
    pub(super) fn create_pod(&self, number: u8) -> anyhow::Result<Namespaces> {
        let namespaces = Namespaces::create()?;
        namespaces.enter(without_routers)?;
        let name = fabric_port(number);
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
        namespaces.enter(|| configure_pod(number, self.dual))?;
        Ok(namespaces)
    }

    /// Takes a pod's link away at once, whoever still holds its namespace.
    pub(super) fn remove_pod(&self, number: u8) -> anyhow::Result<()> {
        Netlink::open()?.delete_link(&fabric_port(number))
    }

    /// Lets the node's kernel forward between client and pods, in the dataplane's place: a lab without services.
    pub(super) fn forward_in_kernel(&self) -> anyhow::Result<()> {
        self.node.enter(|| {
            let mut netlink = Netlink::open()?;
            let addresses = [Addresses::node(self.dual), Addresses::pod(POD_GATEWAY, self.dual)];
            for (port, addresses) in NODE_PORTS.into_iter().zip(addresses) {
                set_sysctl(&format!("ipv4/conf/{port}/arp_ignore"), "0")?;
                if self.dual {
                    set_sysctl(&format!("ipv6/conf/{port}/disable_ipv6"), "0")?;
                }
                for network in addresses.networks(24, 64) {
                    netlink.add_address(port, network)?;
                }
            }
            if self.dual {
                set_sysctl("ipv6/conf/all/forwarding", "1")?;
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
            configure_host(&mut netlink, self.dual)
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
        let dual = self.dual;
        std::thread::Builder::new()
            .name("host-port".to_owned())
            .spawn(move || {
                if let Err(error) = watch_host_port(&node, dual, &done) {
                    done(Err(error));
                }
            })
            .context("cannot start a thread")?;
        Ok(())
    }
}

fn fabric_port(number: u8) -> String {
    format!("pod{number}")
}

fn configure_client(dual: bool) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.set_up("lo", None)?;
    disable_checksum_offload("eth0")?;
    netlink.set_up("eth0", None)?;
    for network in Addresses::client(dual).networks(24, 64) {
        netlink.add_address("eth0", network)?;
    }
    let node = Addresses::node(dual);
    for ranges in [
        service_ranges(dual).collect::<Vec<_>>(),
        pod_ranges(dual).collect(),
        load_balancer_ranges(dual).collect(),
    ] {
        for (range, gateway) in ranges.into_iter().zip(node.all()) {
            netlink.add_route(range, "eth0", Some(gateway), None)?;
        }
    }
    Ok(())
}

fn configure_node() -> anyhow::Result<()> {
    // First, so that interfaces come up without a link-local address: the dataplane owns them alone.
    without_ipv6();
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

fn configure_pod(number: u8, dual: bool) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.set_up("lo", None)?;
    disable_checksum_offload("eth0")?;
    netlink.set_up("eth0", None)?;
    for network in Addresses::pod(number, dual).networks(32, 128) {
        netlink.add_address("eth0", network)?;
    }
    for gateway in Addresses::pod(POD_GATEWAY, dual).all() {
        netlink.add_route(gateway.into(), "eth0", None, None)?;
        netlink.add_route(everything(gateway), "eth0", Some(gateway), None)?;
    }
    Ok(())
}

/// Everywhere that one of its family can go.
fn everything(of: IpAddr) -> IpNet {
    match of {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

fn watch_host_port(node: &Namespaces, dual: bool, done: &dyn Fn(anyhow::Result<()>)) -> anyhow::Result<()> {
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
            let result = configure_host(&mut netlink, dual);
            if result.is_ok() {
                configured = Some(index);
            }
            done(result);
        }
    }
}

fn configure_host(netlink: &mut Netlink, dual: bool) -> anyhow::Result<()> {
    if dual {
        // The one interface of the node whose IPv6 is its kernel's, and the one that its kernel talks to itself on.
        for port in ["lo", HOST_PORT] {
            set_sysctl(&format!("ipv6/conf/{port}/disable_ipv6"), "0")?;
        }
        set_sysctl(&format!("ipv6/conf/{HOST_PORT}/accept_ra"), "0")?;
    }
    netlink.set_up(HOST_PORT, None)?;
    let node = Addresses::node(dual);
    for network in node.networks(32, 128) {
        netlink.add_address(HOST_PORT, network)?;
    }
    // On-link: the dataplane answers ARP and neighbour discovery on the host port for everything.
    for address in node.all() {
        netlink.add_route(everything(address), HOST_PORT, None, Some(address))?;
    }
    Ok(())
}

/// Whether the kernel has IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Turns IPv6 off for interfaces to come. A kernel without IPv6 has no such setting, which is as good.
fn without_ipv6() {
    for scope in ["all", "default"] {
        if let Err(error) = set_sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1") {
            log::debug!("{error:#}");
        }
    }
}

/// On interfaces to come addresses of IPv6 are usable at once, and nobody asks for routers: they are known.
fn without_routers() -> anyhow::Result<()> {
    if !has_ipv6() {
        return Ok(());
    }
    let settings = ["accept_dad", "accept_ra", "router_solicitations"];
    let mut settings = settings.iter();
    settings.try_for_each(|setting| set_sysctl(&format!("ipv6/conf/default/{setting}"), "0"))
}
