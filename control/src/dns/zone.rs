//! What the cluster's names stand for, as of one moment: takes the model and its EndpointSlices, gives a snapshot that
//! never changes and that any number of threads read without a lock. Knows nothing of messages.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rpds::HashTrieMapSync;
use serde::Deserialize;

use crate::endpoints::Slices;
use crate::model::{Model, Service, ServiceName};

mod hosts;

pub(super) use hosts::{At, Endpoint, Entry, Hosts, Port};
use hosts::{alias, endpoints_of};

/// Namespaces that every cluster has, whether anything is in them or not.
const NAMESPACES: &[&str] = &["default", "kube-node-lease", "kube-public", "kube-system"];
/// The longest label (RFC 1035 §2.3.4).
const LONGEST_LABEL: usize = 63;

/// What the names look like, and what they say beside the model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's domain.
    pub domain: Name,
    /// How long an answer may be kept, in seconds (DNS-20).
    pub ttl: u32,
    /// Which names of pods there are (DNS-15).
    pub pods: PodNames,
    /// Whether endpoints without a hostname are named after their pods (DNS-6).
    pub endpoint_pod_names: bool,
    /// The only namespaces whose names there are; none: all.
    pub namespaces: Option<Vec<String>>,
    /// Whether a Service that has a cluster IP but no ready endpoint has no name.
    pub ignore_empty_services: bool,
    /// The Service that this server is reached by (DNS-18).
    pub service: ServiceName,
    /// Where it is without that Service.
    pub addresses: Vec<IpAddr>,
}

/// Which names `1-2-3-4.NAMESPACE.pod.ZONE` there are (DNS-15).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodNames {
    /// None.
    Disabled,
    /// Every address in every namespace.
    #[default]
    Insecure,
    /// Those of pods there are.
    Verified,
}

/// All that is known.
#[derive(Debug)]
pub struct Zone {
    pub(super) domain: Name,
    pub(super) ttl: u32,
    pub(super) serial: u32,
    /// Whether all has been read at least once; before, what is not here is not known not to be.
    pub(super) complete: bool,
    /// The name servers (DNS-18).
    pub(super) servers: Vec<NameServer>,
    pods: PodNames,
    namespaces: HashSet<Box<[u8]>>,
    /// By namespace and name.
    services: HashTrieMapSync<Box<[u8]>, Entry>,
    /// Cluster IPs (DNS-4).
    cluster_ips: HashTrieMapSync<IpAddr, Arc<ServiceName>>,
    /// Endpoints by address: the Service's name and the endpoint's (DNS-10), sorted.
    endpoints: HashTrieMapSync<IpAddr, Box<[Place]>>,
    pod_addresses: HashSet<(Box<[u8]>, IpAddr)>,
}

/// Whose endpoint, and its first label.
type Place = (Arc<ServiceName>, Box<str>);

/// A name server of the zone.
#[derive(Debug)]
pub(super) struct NameServer {
    /// Its name below the domain.
    pub(super) labels: Vec<Box<str>>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Zone {
    /// Before anything has been read.
    pub fn unknown(options: &Options) -> Self {
        Self {
            domain: options.domain.to_lowercase(),
            ttl: options.ttl,
            serial: 0,
            complete: false,
            servers: vec![NameServer {
                labels: ["ns", "dns"].map(Into::into).into(),
                addresses: options.addresses.clone(),
            }],
            pods: options.pods,
            namespaces: HashSet::new(),
            services: HashTrieMapSync::default(),
            cluster_ips: HashTrieMapSync::default(),
            endpoints: HashTrieMapSync::default(),
            pod_addresses: HashSet::new(),
        }
    }

    /// What `model` and its slices say. `serial` is the SOA's: one that grows.
    pub fn new(options: &Options, model: &Model, slices: &Slices, serial: u32) -> Self {
        let all = model.services_by_name().keys();
        Self::unknown(options).next(options, model, slices, serial, all)
    }

    /// What they say now that `changed` Services, or their slices, are others than they were for this zone.
    #[must_use]
    pub fn next<'s>(
        &self,
        options: &Options,
        model: &Model,
        slices: &Slices,
        serial: u32,
        changed: impl Iterator<Item = &'s ServiceName> + Clone,
    ) -> Self {
        let mut zone = Self {
            serial,
            complete: model.is_complete(),
            services: self.services.clone(),
            cluster_ips: self.cluster_ips.clone(),
            endpoints: self.endpoints.clone(),
            ..Self::unknown(options)
        };
        let exposed = |namespace: &str| {
            let only = options.namespaces.as_ref();
            only.is_none_or(|only| only.iter().any(|one| one == namespace))
        };
        let namespaces = NAMESPACES.iter().copied().chain(model.namespaces());
        // Most objects are in the same one as the object before.
        let mut last = "";
        let namespaces =
            namespaces.filter(|name| *name != std::mem::replace(&mut last, *name) && exposed(name));
        zone.namespaces = namespaces.map(|name| name.as_bytes().into()).collect();
        // Addresses may pass from one to another.
        changed.clone().for_each(|name| zone.remove(name));
        for name in changed.filter(|name| exposed(&name.namespace)) {
            if let Some(service) = model.service(name) {
                let slices = slices.get(name).map_or(&[][..], Vec::as_slice);
                zone.add(service, slices, options);
            }
        }
        let servers = zone.servers_of(&options.service);
        if !servers.is_empty() {
            zone.servers = servers;
        }
        if options.pods == PodNames::Verified {
            for pod in model.pods() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                if !exposed(namespace) {
                    continue;
                }
                let addresses = pod
                    .status
                    .iter()
                    .flat_map(|status| status.pod_ips.iter().flatten());
                zone.pod_addresses.extend(addresses.filter_map(|ip| {
                    let address = ip.ip.parse().ok()?;
                    Some((namespace.as_bytes().into(), address))
                }));
            }
        }
        zone
    }

    /// All of it in an order of its own.
    #[cfg(test)]
    pub(crate) fn contents(&self) -> impl PartialEq + std::fmt::Debug {
        fn sorted<T: std::fmt::Debug>(items: impl Iterator<Item = T>) -> Vec<String> {
            let mut all: Vec<String> = items.map(|item| format!("{item:?}")).collect();
            all.sort();
            all
        }
        [
            sorted(self.services.iter()),
            sorted(self.cluster_ips.iter()),
            sorted(self.endpoints.iter()),
            sorted(self.servers.iter()),
            sorted(self.namespaces.iter()),
            sorted(self.pod_addresses.iter()),
        ]
    }

    fn remove(&mut self, name: &ServiceName) {
        let key = key(name.namespace.as_bytes(), name.name.as_bytes());
        let Some(entry) = self.services.get(&key).cloned() else {
            return;
        };
        self.services.remove_mut(&key);
        let Entry::Hosts(hosts) = entry else {
            return;
        };
        if !hosts.headless {
            let (v4, v6) = (hosts.v4.iter().copied(), hosts.v6.iter().copied());
            for address in v4.map(IpAddr::V4).chain(v6.map(IpAddr::V6)) {
                self.cluster_ips.remove_mut(&address);
            }
        }
        for address in hosts.endpoints.iter().filter_map(Endpoint::address) {
            let places = self.endpoints.get(&address).into_iter().flatten();
            let others: Box<[Place]> = places.filter(|(of, _)| **of != *name).cloned().collect();
            if others.is_empty() {
                self.endpoints.remove_mut(&address);
            } else {
                self.endpoints.insert_mut(address, others);
            }
        }
    }

    fn add(&mut self, service: &Service, slices: &[Arc<EndpointSlice>], options: &Options) {
        let key = key(service.name.namespace.as_bytes(), service.name.name.as_bytes());
        if service.external_name {
            let name = service
                .object
                .spec
                .as_ref()
                .and_then(|spec| spec.external_name.as_deref());
            self.services.insert_mut(key, Entry::Alias(name.and_then(alias)));
            return;
        }
        let name = Arc::new(service.name.clone());
        let mut endpoints: Vec<Endpoint> = slices
            .iter()
            .flat_map(|slice| endpoints_of(slice, options.endpoint_pod_names))
            .collect();
        endpoints.sort_by(|a, b| a.host.cmp(&b.host));
        for endpoint in &endpoints {
            if let At::Address(address) = endpoint.at {
                let place = (name.clone(), endpoint.host.clone());
                let mut places = self
                    .endpoints
                    .get(&address)
                    .map_or_else(Vec::new, |all| all.to_vec());
                if let Err(at) = places.binary_search(&place) {
                    places.insert(at, place);
                    self.endpoints.insert_mut(address, places.into());
                }
            }
        }
        let mut addresses: Vec<IpAddr> = match service.headless {
            false => service.cluster_ips.clone(),
            true => endpoints.iter().filter_map(Endpoint::address).collect(),
        };
        addresses.sort_unstable();
        addresses.dedup();
        for address in &service.cluster_ips {
            self.cluster_ips.insert_mut(*address, name.clone());
        }
        let ports = service.ports.iter().map(|port| Port {
            name: port.name.as_str().into(),
            protocol: port.protocol.to_string().into(),
            number: port.port,
        });
        let hosts = Hosts {
            nameless: options.ignore_empty_services && !service.headless && endpoints.is_empty(),
            headless: service.headless,
            v4: addresses.iter().filter_map(|ip| v4(*ip)).collect(),
            v6: addresses.iter().filter_map(|ip| v6(*ip)).collect(),
            ports: ports.collect(),
            endpoints: endpoints.into(),
        };
        self.services.insert_mut(key, Entry::Hosts(hosts.into()));
    }

    /// DNS-18: a Service with cluster IPs is one server at all of them; each endpoint of a headless one is one.
    fn servers_of(&self, service: &ServiceName) -> Vec<NameServer> {
        let ServiceName { namespace, name } = service;
        let Some(Entry::Hosts(hosts)) = self.service(namespace.as_bytes(), name.as_bytes()) else {
            return Vec::new();
        };
        let own = [name.as_str(), namespace, "svc"].map(Box::from);
        if !hosts.headless {
            let (v4, v6) = (hosts.v4.iter().copied(), hosts.v6.iter().copied());
            let addresses = v4.map(IpAddr::V4).chain(v6.map(IpAddr::V6)).collect();
            let labels = own.into();
            return vec![NameServer { labels, addresses }];
        }
        let same = |a: &Endpoint, b: &Endpoint| a.host == b.host;
        let servers = hosts.endpoints.chunk_by(same).map(|endpoints| NameServer {
            labels: [endpoints[0].host.clone()]
                .into_iter()
                .chain(own.clone())
                .collect(),
            addresses: endpoints.iter().filter_map(Endpoint::address).collect(),
        });
        servers.filter(|server| !server.addresses.is_empty()).collect()
    }

    /// The Service of this name, given in small letters.
    pub(super) fn service(&self, namespace: &[u8], name: &[u8]) -> Option<&Entry> {
        // On the way of every query: the key is put together without an allocation.
        let mut buffer = [0; 2 * LONGEST_LABEL + 1];
        let (first, rest) = buffer.split_at_mut_checked(namespace.len())?;
        let (slash, rest) = rest.split_first_mut()?;
        first.copy_from_slice(namespace);
        *slash = b'/';
        rest.get_mut(..name.len())?.copy_from_slice(name);
        let entry = self.services.get(&buffer[..namespace.len() + 1 + name.len()])?;
        (!matches!(entry, Entry::Hosts(hosts) if hosts.nameless)).then_some(entry)
    }

    pub(super) fn has_namespace(&self, name: &[u8]) -> bool {
        self.namespaces.contains(name)
    }

    /// Whether there is a name for a pod at `address`.
    pub(super) fn has_pod(&self, namespace: &[u8], address: IpAddr) -> bool {
        match self.pods {
            PodNames::Disabled => false,
            PodNames::Insecure => self.has_namespace(namespace),
            PodNames::Verified => self.pod_addresses.contains(&(namespace.into(), address)),
        }
    }

    pub(super) fn has_pods(&self) -> bool {
        self.pods != PodNames::Disabled
    }

    /// Names of what has this address: its Service and, of an endpoint, its first label (DNS-4, DNS-10).
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = (&ServiceName, Option<&str>)> {
        let cluster_ip = self.cluster_ips.get(&address).map(|service| (&**service, None));
        let places = match cluster_ip {
            Some(_) => None,
            None => self.endpoints.get(&address),
        };
        let endpoints = places.into_iter().flatten();
        cluster_ip
            .into_iter()
            .chain(endpoints.map(|(service, host)| (&**service, Some(&**host))))
    }
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

/// Neither part has a slash if it is the name of anything.
fn key(namespace: &[u8], name: &[u8]) -> Box<[u8]> {
    [namespace, b"/", name].concat().into()
}
