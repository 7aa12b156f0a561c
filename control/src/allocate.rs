//! Cluster IPs and node ports: who holds which (AL-1 to AL-6, AL-10). Takes a Service that says what it wants, gives it
//! with everything filled in, or says what is in the way and who holds it. What a Service holds it keeps, over edits,
//! reloads and restarts: the holdings are written to a state file.
//!
//! Where Kubernetes picks at random, the pick here begins at a hash of the Service's name: as spread out, and a lost
//! state file gives most Services what they had.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceSpec;
use serde::{Deserialize, Serialize};

use crate::model::{Errors, FieldError, ServiceName};

/// Node ports.
mod node_ports;
/// Numbers and their holders.
mod pool;
/// The state file.
pub mod state;

use pool::{Pool, hash};

/// Where cluster IPs and node ports come from.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Cluster IPs (AL-1).
    pub services: Ipv4Net,
    /// Node ports (AL-5).
    pub node_ports: RangeInclusive<u16>,
}

/// What one Service holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Holding {
    /// Since when the Service is known.
    pub created: Timestamp,
    /// Its cluster IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<Ipv4Addr>,
    /// It is headless, and stays so when it no longer says so (DEF-3).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
    /// Its node ports by port name (DEF-3 keeps them by name).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_ports: BTreeMap<String, u16>,
}

/// What Services ask for by number: nothing of it is given to one that does not care.
#[derive(Debug, Default)]
pub struct Wanted {
    cluster_ips: BTreeSet<u32>,
    node_ports: BTreeSet<u32>,
}

impl Wanted {
    /// Adds what `spec` asks for.
    pub fn add(&mut self, spec: &ServiceSpec) {
        let ip = spec
            .cluster_ip
            .as_ref()
            .and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        self.cluster_ips.extend(ip.map(u32::from));
        let ports = spec.ports.iter().flatten().filter_map(|port| port.node_port);
        self.node_ports
            .extend(ports.filter_map(|number| u32::try_from(number).ok()));
    }
}

/// All holdings.
#[derive(Debug)]
pub struct Allocator {
    ranges: Ranges,
    cluster_ips: Pool,
    node_ports: Pool,
    holdings: BTreeMap<ServiceName, Holding>,
    /// Whether anything changed since the state was last saved.
    changed: bool,
}

/// Those of a cluster that was made without saying otherwise.
impl Default for Ranges {
    fn default() -> Self {
        Self {
            services: const { Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16) },
            node_ports: 30_000..=32_767,
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, node ports {}-{}",
            self.services,
            self.node_ports.start(),
            self.node_ports.end()
        )
    }
}

impl Allocator {
    /// An allocator over `ranges` that starts from `holdings`. What lies outside the ranges, or is held twice, is let go.
    pub fn new(ranges: Ranges, holdings: BTreeMap<ServiceName, Holding>) -> Self {
        let size = 1_u64 << (32 - ranges.services.prefix_len());
        let band = if size <= 16 {
            0
        } else {
            (size / 16).clamp(16, 256) as u32
        };
        let network = u32::from(ranges.services.network());
        let broadcast = u32::from(ranges.services.broadcast());
        let cluster_ips = Pool::new(network + 1, broadcast.saturating_sub(1), band);

        let (first, last) = (
            u32::from(*ranges.node_ports.start()),
            u32::from(*ranges.node_ports.end()),
        );
        let size = last - first + 1;
        let band = if size <= 16 { 0 } else { (size / 32).clamp(16, 128) };
        let node_ports = Pool::new(first, last, band);

        let mut allocator = Self {
            ranges,
            cluster_ips,
            node_ports,
            holdings: BTreeMap::new(),
            changed: false,
        };
        for (name, mut holding) in holdings {
            let free = |pool: &Pool, number: u32| pool.has(number) && !pool.holders.contains_key(&number);
            let before = holding.clone();
            holding.cluster_ip = holding
                .cluster_ip
                .filter(|ip| free(&allocator.cluster_ips, u32::from(*ip)));
            holding
                .node_ports
                .retain(|_, number| free(&allocator.node_ports, u32::from(*number)));
            allocator.changed |= before != holding;
            allocator.hold(&name, holding);
        }
        allocator
    }

    /// When `name` was first known.
    pub fn created(&self, name: &ServiceName) -> Option<Timestamp> {
        self.holdings.get(name).map(|holding| holding.created)
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
        if spec.cluster_ip.is_none()
            && spec.type_.as_deref() == Some("ClusterIP")
            && held.as_ref().is_some_and(|holding| holding.headless)
        {
            spec.cluster_ip = Some("None".into());
            spec.cluster_ips = Some(vec!["None".into()]);
        }
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let cluster_ip = self.cluster_ip(name, spec, held.as_ref(), wanted, &mut errors);
        let node_ports = self.node_ports(name, spec, held.as_ref(), wanted, &mut errors);
        if !errors.0.is_empty() {
            return Err(errors.0);
        }
        if let Some(ip) = cluster_ip {
            spec.cluster_ip = Some(ip.to_string());
            spec.cluster_ips = Some(vec![ip.to_string()]);
        }
        let mut by_name = BTreeMap::new();
        for (port, number) in spec.ports.iter_mut().flatten().zip(&node_ports) {
            if let Some(number) = number {
                port.node_port = Some(i32::from(*number));
                by_name.insert(port.name.clone().unwrap_or_default(), *number);
            }
        }
        let created = held
            .as_ref()
            .map_or_else(Timestamp::now, |holding| holding.created);
        let holding = Holding {
            created,
            cluster_ip,
            headless,
            node_ports: by_name,
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
        if self.holdings.remove(name).is_some() {
            self.cluster_ips.holders.retain(|_, holder| holder != name);
            self.node_ports.holders.retain(|_, holder| holder != name);
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

    fn hold(&mut self, name: &ServiceName, holding: Holding) {
        if let Some(ip) = holding.cluster_ip {
            self.cluster_ips.holders.insert(u32::from(ip), name.clone());
        }
        for number in holding.node_ports.values() {
            self.node_ports.holders.insert(u32::from(*number), name.clone());
        }
        self.holdings.insert(name.clone(), holding);
    }

    fn cluster_ip(
        &self,
        name: &ServiceName,
        spec: &ServiceSpec,
        held: Option<&Holding>,
        wanted: &Wanted,
        errors: &mut Errors,
    ) -> Option<Ipv4Addr> {
        let field = "spec.clusterIPs";
        match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) | (_, Some("None")) => None,
            (_, Some(text)) => {
                let Ok(ip) = text.parse::<Ipv4Addr>() else {
                    errors.invalid(field, text, "must be an IPv4 address");
                    return None;
                };
                let number = u32::from(ip);
                if !self.cluster_ips.has(number) {
                    let (first, last) = (
                        Ipv4Addr::from(self.cluster_ips.first),
                        Ipv4Addr::from(self.cluster_ips.last),
                    );
                    errors.invalid(
                        field,
                        ip,
                        format!("must be from {first} to {last}, the service range"),
                    );
                } else if let Some(holder) = self
                    .cluster_ips
                    .holders
                    .get(&number)
                    .filter(|holder| *holder != name)
                {
                    errors.invalid(field, ip, format!("is already held by Service {holder}"));
                }
                Some(ip)
            }
            (_, None) => held.and_then(|holding| holding.cluster_ip).or_else(|| {
                let seed = hash(&[&name.namespace, &name.name]);
                let picked = self.cluster_ips.pick(seed, &wanted.cluster_ips, &BTreeSet::new());
                if picked.is_none() {
                    errors.invalid(
                        field,
                        "",
                        format!("no address is free in {}", self.ranges.services),
                    );
                }
                picked.map(Ipv4Addr::from)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::service;

    pub(super) fn allocator(range: &str) -> Allocator {
        let ranges = Ranges {
            services: range.parse().unwrap(),
            node_ports: 30_000..=32_767,
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
        crate::model::defaults::apply(&mut object);
        let mut spec = object.spec.unwrap();
        match allocator.allocate(&name(service_name), &mut spec, &Wanted::default()) {
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
            ("10.0.0.0/24", 16),
            ("10.0.0.0/20", 256),
            ("10.0.0.0/16", 256),
            ("10.0.0.0/22", 64),
            ("10.0.0.0/27", 16),
            ("10.0.0.0/28", 0),
        ] {
            let pool = allocator(range).cluster_ips;
            assert_eq!(pool.dynamic - pool.first, band, "{range}");
        }
        let pool = allocator("10.0.0.0/24").node_ports;
        assert_eq!(pool.dynamic, 30_086, "AL-5");
    }

    #[test]
    fn al_3_the_dynamic_part_is_used_up_first_then_the_band_then_it_is_an_error() {
        let mut small = allocator("10.0.0.0/27");
        let mut ip = |i: usize| allocate(&mut small, &format!("s{i}"), "{ports: [{port: 80}]}");
        let number = |spec: ServiceSpec| spec.cluster_ip.unwrap().parse::<Ipv4Addr>().unwrap().octets()[3];
        let mut upper: Vec<u8> = (0..14).map(|i| number(ip(i).unwrap())).collect();
        let mut lower: Vec<u8> = (14..30).map(|i| number(ip(i).unwrap())).collect();
        upper.sort_unstable();
        lower.sort_unstable();
        assert_eq!((upper, lower), ((17..=30).collect(), (1..=16).collect()));
        assert_eq!(
            ip(30).unwrap_err(),
            "spec.clusterIPs: Invalid value: : no address is free in 10.0.0.0/27"
        );
    }

    #[test]
    fn the_holder_of_an_address_or_port_is_named() {
        let mut all = allocator("10.96.0.0/16");
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
        let mut all = allocator("10.96.0.0/16");
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
        let once = allocate(&mut allocator("10.96.0.0/16"), "a", text).unwrap();
        let again = allocate(&mut allocator("10.96.0.0/16"), "a", text).unwrap();
        assert_eq!(once, again);
    }
}
