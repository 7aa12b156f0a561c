//! Which endpoints of a service port take new flows: the Cluster set and the Local set (EP-2 to EP-11, CAT-1 to CAT-8,
//! TOP-1 to TOP-5). Takes a service port and the slices of its Service, gives every endpoint with its sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::model::{Service, ServicePort, names, protocol};

/// Where this gateway is.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// Its node's name, "" if it is no node.
    pub node: String,
    /// Nodes whose endpoints count as local, too: a gateway that runs no pods has none of its own (TP-11). `*` is every
    /// node.
    pub as_local: Vec<String>,
    /// Its zone, "" if it has none.
    pub zone: String,
}

impl Here {
    fn is_local(&self, node: &str) -> bool {
        !node.is_empty()
            && (node == self.node || self.as_local.iter().any(|name| name == node || name == "*"))
    }
}

/// An endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its address.
    pub address: IpAddr,
    /// Its port, never 0.
    pub port: u16,
    /// Takes flows that may go anywhere (CAT-1).
    pub in_cluster_set: bool,
    /// Takes flows that must stay on this node (CAT-2).
    pub in_local_set: bool,
    /// Ready, or serving while terminating (CAT-7).
    pub usable: bool,
    /// Keeps the flows it has (CT-5).
    pub serving: bool,
    /// On this node.
    pub local: bool,
}

struct Seen<'a> {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    endpoint: &'a Endpoint,
}

/// The endpoints of `port`, by address and port (EP-11). `external`: it is reachable from outside in this family, which
/// is that of the candidates, too: each family is a Service of its own (SVC-2).
pub fn candidates(
    service: &Service,
    port: &ServicePort,
    slices: &[Arc<EndpointSlice>],
    here: &Here,
    ipv6: bool,
    external: bool,
) -> Vec<Candidate> {
    let mut seen: BTreeMap<(IpAddr, u16), Seen<'_>> = BTreeMap::new();
    for slice in slices {
        if !feeds(slice, ipv6) {
            continue;
        }
        for number in numbers(port, slice) {
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(address) = address(endpoint, ipv6) else {
                    continue;
                };
                let new = Seen::new(endpoint, here);
                match seen.get(&(address, number)) {
                    // EP-8: an address in use again wins over its former life.
                    Some(old) if !old.terminating || new.terminating => {}
                    _ => {
                        seen.insert((address, number), new);
                    }
                }
            }
        }
    }
    decide(service, &seen, here, external)
}

/// How many addresses of a family are ready on this node, over all ports (HC-4).
pub fn local_ready(slices: &[Arc<EndpointSlice>], here: &Here, ipv6: bool) -> usize {
    let named = |slice: &&EndpointSlice| {
        let mut ports = slice.ports.iter().flatten();
        ports.any(|port| port.name.is_some() && port.port.is_some_and(|number| number != 0))
    };
    let endpoints = slices
        .iter()
        .map(|slice| &**slice)
        .filter(|slice| feeds(slice, ipv6))
        .filter(named);
    let endpoints = endpoints.flat_map(|slice| slice.endpoints.iter().flatten());
    let local = endpoints.filter_map(|endpoint| {
        let seen = Seen::new(endpoint, here);
        address(endpoint, ipv6).filter(|_| seen.ready && seen.local)
    });
    local.collect::<BTreeSet<IpAddr>>().len()
}

/// Whether the proxy reads this slice for a family. SVC-5; FQDN slices are the DNS server's (EP-3).
fn feeds(slice: &EndpointSlice, ipv6: bool) -> bool {
    let headless = slice
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(super::HEADLESS));
    !headless && slice.address_type == if ipv6 { "IPv6" } else { "IPv4" }
}

/// EP-4. EPM-3: an endpoint on a loopback address would be this gateway itself.
fn address(endpoint: &Endpoint, ipv6: bool) -> Option<IpAddr> {
    let address = endpoint.addresses.first()?.parse::<IpAddr>().ok()?;
    (address.is_ipv6() == ipv6 && names::unusable(address).is_none()).then_some(address)
}

/// The numbers that `slice` gives the service port (EP-5, EP-6).
fn numbers<'a>(port: &'a ServicePort, slice: &'a EndpointSlice) -> impl Iterator<Item = u16> + 'a {
    let same = |candidate: &&k8s_openapi::api::discovery::v1::EndpointPort| {
        candidate.name.as_deref() == Some(port.name.as_str())
            && protocol(candidate.protocol.as_deref()) == Some(port.protocol)
    };
    let number = |port: i32| u16::try_from(port).ok().filter(|number| *number != 0);
    slice
        .ports
        .iter()
        .flatten()
        .filter(same)
        .filter_map(|port| port.port)
        .filter_map(number)
}

impl<'a> Seen<'a> {
    /// EP-7.
    fn new(endpoint: &'a Endpoint, here: &Here) -> Self {
        let conditions = endpoint.conditions.as_ref();
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        Self {
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating,
            local: endpoint
                .node_name
                .as_deref()
                .is_some_and(|name| here.is_local(name)),
            endpoint,
        }
    }

    const fn is_fallback(&self) -> bool {
        !self.ready && self.serving && self.terminating
    }
}

fn decide(
    service: &Service,
    seen: &BTreeMap<(IpAddr, u16), Seen<'_>>,
    here: &Here,
    external: bool,
) -> Vec<Candidate> {
    // CAT-5, CAT-6.
    let wants_cluster = !service.internal_local || external;
    let wants_local = service.internal_local || (service.external_local && external);
    let ready: Vec<&Seen<'_>> = seen.values().filter(|seen| seen.ready).collect();
    let topology = Topology::of(&ready, here);
    let any_near = ready.iter().any(|seen| topology.keeps(seen.endpoint, here));
    let any_local_ready = ready.iter().any(|seen| seen.local);
    seen.iter()
        .map(|((address, port), seen)| Candidate {
            address: *address,
            port: *port,
            in_cluster_set: wants_cluster
                && if any_near {
                    seen.ready && topology.keeps(seen.endpoint, here)
                } else {
                    seen.is_fallback()
                },
            in_local_set: wants_local
                && seen.local
                && if any_local_ready {
                    seen.ready
                } else {
                    seen.is_fallback()
                },
            usable: seen.ready || seen.is_fallback(),
            serving: seen.serving,
            local: seen.local,
        })
        .collect()
}

/// How hints narrow the Cluster set.
enum Topology {
    SameNode,
    SameZone,
    All,
}

impl Topology {
    /// TOP-1 to TOP-5.
    fn of(ready: &[&Seen<'_>], here: &Here) -> Self {
        if ready.is_empty() {
            return Self::All;
        }
        let applies = |mode: Self, named: fn(&Endpoint) -> bool| {
            let all = ready.iter().all(|seen| named(seen.endpoint));
            all && ready.iter().any(|seen| mode.keeps(seen.endpoint, here))
        };
        if applies(Self::SameNode, |e| {
            e.hints
                .as_ref()
                .and_then(|h| h.for_nodes.as_ref())
                .is_some_and(|n| !n.is_empty())
        }) {
            Self::SameNode
        } else if applies(Self::SameZone, |e| {
            e.hints
                .as_ref()
                .and_then(|h| h.for_zones.as_ref())
                .is_some_and(|z| !z.is_empty())
        }) {
            Self::SameZone
        } else {
            Self::All
        }
    }

    fn keeps(&self, endpoint: &Endpoint, here: &Here) -> bool {
        let hints = endpoint.hints.as_ref();
        match self {
            Self::All => true,
            Self::SameNode => {
                let mut nodes = hints
                    .and_then(|hints| hints.for_nodes.as_ref())
                    .into_iter()
                    .flatten();
                !here.node.is_empty() && nodes.any(|node| node.name == here.node)
            }
            Self::SameZone => {
                let mut zones = hints
                    .and_then(|hints| hints.for_zones.as_ref())
                    .into_iter()
                    .flatten();
                !here.zone.is_empty() && zones.any(|zone| zone.name == here.zone)
            }
        }
    }
}
