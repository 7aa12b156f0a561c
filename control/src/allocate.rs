//! Cluster IPs and node ports: who holds which (AL-1 to AL-8, AL-10, AL-11); and addresses of load balancers. Takes a Service that says what it wants, gives
//! it with everything filled in, or says what is in the way and who holds it. What a Service holds it keeps, over edits,
//! reloads and restarts: the holdings are written to a state file.
//!
//! Where Kubernetes picks at random, the pick here begins at a hash of the Service's name: as spread out, and a lost
//! state file gives most Services what they had.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde::{Deserialize, Serialize};

use crate::model::{Errors, Families, Family, FieldError, ServiceName};

/// Cluster IPs.
mod cluster_ips;
/// Addresses of load balancers.
pub mod load_balancer;
/// Node ports.
mod node_ports;
/// Ranges of numbers.
mod pool;
/// The state file.
pub mod state;

use cluster_ips::Range;
use load_balancer::AddressPool;
use pool::Pool;

/// Where cluster IPs and node ports come from.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Cluster IPs, one range or one of each family: the first is that of Services that name no family (AL-1, DS-3).
    pub services: Vec<IpNet>,
    /// Further ones, of the same families: for those who name an address in them, and for all once the first of a family
    /// is full (AL-11).
    pub other_services: Vec<IpNet>,
    /// Node ports (AL-5).
    pub node_ports: RangeInclusive<u16>,
    /// Addresses of load balancers, those that are given out first before others.
    pub load_balancers: Vec<AddressPool>,
    /// spec.loadBalancerClass of Services that get such; those without one if none is said.
    pub load_balancer_class: Option<String>,
}

/// What one Service holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Holding {
    /// Since when the Service is known.
    pub created: Timestamp,
    /// Its cluster IPs, one a family.
    #[serde(
        default,
        alias = "clusterIp",
        deserialize_with = "state::one_or_several",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cluster_ips: Vec<IpAddr>,
    /// It is headless, and stays so when it no longer says so (DEF-3).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
    /// Its families, and how it came to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<Family>,
    /// spec.ipFamilyPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Its node ports by port name (DEF-3 keeps them by name).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_ports: BTreeMap<String, u16>,
    /// spec.healthCheckNodePort (AL-7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// Its load-balancer addresses, as far as they are of our pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_ips: Vec<IpAddr>,
}

impl Holding {
    fn all_addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.cluster_ips.iter().chain(&self.load_balancer_ips)
    }

    /// All node ports it has, for whatever.
    fn all_node_ports(&self) -> impl Iterator<Item = u16> {
        self.node_ports
            .values()
            .copied()
            .chain(self.health_check_node_port)
    }
}

/// What Services ask for by number: nothing of it is given to one that does not care.
#[derive(Debug, Default)]
pub struct Wanted {
    addresses: BTreeSet<IpAddr>,
    node_ports: BTreeSet<u16>,
}

impl Wanted {
    /// Adds what `service` asks for.
    pub fn add(&mut self, service: &Service) {
        self.addresses.extend(load_balancer::written(service));
        let Some(spec) = &service.spec else { return };
        let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let ips = ips.chain(&spec.load_balancer_ip);
        self.addresses
            .extend(ips.filter_map(|ip| ip.parse::<IpAddr>().ok()));
        let ports = spec.ports.iter().flatten().filter_map(|port| port.node_port);
        let ports = ports.chain(spec.health_check_node_port);
        self.node_ports
            .extend(ports.filter_map(|number| u16::try_from(number).ok()));
    }
}

/// All holdings.
#[derive(Debug)]
pub struct Allocator {
    ranges: Ranges,
    services: Vec<Range>,
    node_ports: Pool,
    ip_holders: BTreeMap<IpAddr, ServiceName>,
    port_holders: BTreeMap<u16, ServiceName>,
    holdings: BTreeMap<ServiceName, Holding>,
    /// Whether anything changed since the state was last saved.
    changed: bool,
}

/// Those of a cluster that was made without saying otherwise.
impl Default for Ranges {
    fn default() -> Self {
        let services = const { Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16) };
        Self {
            services: vec![services.into()],
            other_services: Vec::new(),
            node_ports: 30_000..=32_767,
            load_balancers: Vec::new(),
            load_balancer_class: None,
        }
    }
}

impl Ranges {
    /// All networks that cluster IPs are in.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.services.iter().chain(&self.other_services).copied()
    }

    /// Families of the cluster.
    pub fn families(&self) -> Families {
        let family = |net: &IpNet| Family::of(net.addr());
        let primary = self.services.first().map_or(Family::V4, family);
        Families {
            primary,
            dual: self.services.iter().any(|net| family(net) != primary),
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for network in self.networks() {
            write!(f, "{network}, ")?;
        }
        write!(
            f,
            "node ports {}-{}",
            self.node_ports.start(),
            self.node_ports.end()
        )
    }
}

impl Allocator {
    /// An allocator over `ranges` that starts from `holdings`. What lies outside the ranges, or is held twice, is let go.
    pub fn new(ranges: Ranges, holdings: BTreeMap<ServiceName, Holding>) -> Self {
        let (first, last) = (
            u128::from(*ranges.node_ports.start()),
            u128::from(*ranges.node_ports.end()),
        );
        let mut allocator = Self {
            services: ranges.networks().map(Range::new).collect(),
            node_ports: Pool::new(first, last, last - first + 1, 32, (16, 128)),
            ranges,
            ip_holders: BTreeMap::new(),
            port_holders: BTreeMap::new(),
            holdings: BTreeMap::new(),
            changed: false,
        };
        for (name, mut holding) in holdings {
            let before = holding.clone();
            let had_addresses = !holding.cluster_ips.is_empty();
            holding.cluster_ips = allocator.still_possible(&name, &holding.cluster_ips);
            if had_addresses {
                holding.families = holding.cluster_ips.iter().copied().map(Family::of).collect();
            }
            let possible = |number: &u16| {
                allocator.node_ports.has((*number).into()) && !allocator.port_holders.contains_key(number)
            };
            holding.node_ports.retain(|_, number| possible(number));
            holding.health_check_node_port = holding.health_check_node_port.filter(possible);
            let pools = &allocator.ranges.load_balancers;
            let possible = |ip: &IpAddr| {
                pools.iter().any(|pool| pool.has(*ip)) && !allocator.ip_holders.contains_key(ip)
            };
            holding.load_balancer_ips.retain(possible);
            allocator.changed |= before != holding;
            allocator.hold(&name, holding);
        }
        allocator
    }

    /// Families of the cluster.
    pub fn families(&self) -> Families {
        self.ranges.families()
    }

    /// What `name` holds.
    pub fn held(&self, name: &ServiceName) -> Option<&Holding> {
        self.holdings.get(name)
    }

    /// Fills in what `spec` (defaulted, valid) leaves to us and takes it for `name`. On an error nothing changes.
    pub fn allocate(
        &mut self,
        name: &ServiceName,
        spec: &mut ServiceSpec,
        wanted: &Wanted,
    ) -> Result<(), Vec<FieldError>> {
        let mut errors = Errors::default();
        let held = self.holdings.get(name).cloned();
        let cluster_ips = self.cluster_ips(name, spec, wanted, &mut errors);
        let node_ports = self.node_ports(name, spec, held.as_ref(), wanted, &mut errors);
        let taken: Vec<u16> = node_ports.iter().flatten().copied().collect();
        let health = self.health_check_node_port(name, spec, held.as_ref(), &taken, wanted, &mut errors);
        if !errors.0.is_empty() {
            return Err(errors.0);
        }
        if let Some(primary) = cluster_ips.first() {
            spec.cluster_ip = Some(primary.to_string());
            spec.cluster_ips = Some(cluster_ips.iter().map(ToString::to_string).collect());
        }
        let mut by_name = BTreeMap::new();
        for (port, number) in spec.ports.iter_mut().flatten().zip(&node_ports) {
            if let Some(number) = number {
                port.node_port = Some(i32::from(*number));
                by_name.insert(port.name.clone().unwrap_or_default(), *number);
            }
        }
        spec.health_check_node_port = health.map(i32::from);
        let created = held
            .as_ref()
            .map_or_else(Timestamp::now, |holding| holding.created);
        let families = spec.ip_families.iter().flatten();
        let holding = Holding {
            created,
            cluster_ips,
            headless: spec.cluster_ip.as_deref() == Some("None"),
            families: families.filter_map(|name| Family::named(name)).collect(),
            policy: spec.ip_family_policy.clone(),
            node_ports: by_name,
            health_check_node_port: health,
            load_balancer_ips: held
                .as_ref()
                .map(|held| held.load_balancer_ips.clone())
                .unwrap_or_default(),
        };
        if held.as_ref() != Some(&holding) {
            self.release(name);
            self.hold(name, holding);
            self.changed = true;
        }
        Ok(())
    }

    /// Lets go of all that `name` holds.
    pub fn release(&mut self, name: &ServiceName) {
        if let Some(holding) = self.holdings.remove(name) {
            holding.all_addresses().for_each(|ip| {
                self.ip_holders.remove(ip);
            });
            holding.all_node_ports().for_each(|number| {
                self.port_holders.remove(&number);
            });
            self.changed = true;
        }
    }

    /// Lets go of what Services hold that `exists` does not know.
    pub fn retain(&mut self, exists: impl Fn(&ServiceName) -> bool) {
        let gone: Vec<_> = self
            .holdings
            .keys()
            .filter(|name| !exists(name))
            .cloned()
            .collect();
        gone.iter().for_each(|name| self.release(name));
    }

    /// Whether no other Service has this address; if one has, that is an error of `field`.
    fn is_nobodys(&self, address: IpAddr, name: &ServiceName, field: &str, errors: &mut Errors) -> bool {
        let holder = self.ip_holders.get(&address).filter(|holder| *holder != name);
        if let Some(holder) = holder {
            errors.invalid(field, address, format!("is already held by Service {holder}"));
        }
        holder.is_none()
    }

    fn hold(&mut self, name: &ServiceName, holding: Holding) {
        for ip in holding.all_addresses() {
            self.ip_holders.insert(*ip, name.clone());
        }
        for number in holding.all_node_ports() {
            self.port_holders.insert(number, name.clone());
        }
        self.holdings.insert(name.clone(), holding);
    }
}

#[cfg(test)]
mod tests;
