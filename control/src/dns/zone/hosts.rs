//! What a Service's name stands for: its slices to addresses and endpoints with names of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::Name;
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointPort, EndpointSlice};

use super::LONGEST_LABEL;

/// A Service.
#[derive(Clone, Debug)]
pub(in crate::dns) enum Entry {
    /// Another name for something (DNS-12); none if what it says cannot be a name's alias (DNS-22).
    Alias(Option<Name>),
    /// One with cluster IPs (DNS-1), or headless (DNS-5).
    Hosts(Arc<Hosts>),
}

/// A Service's addresses.
#[derive(Debug, Default)]
pub(in crate::dns) struct Hosts {
    /// It has addresses, and no name.
    pub(in crate::dns) nameless: bool,
    pub(in crate::dns) headless: bool,
    pub(in crate::dns) v4: Box<[Ipv4Addr]>,
    pub(in crate::dns) v6: Box<[Ipv6Addr]>,
    /// Of a Service with cluster IPs.
    pub(in crate::dns) ports: Box<[Port]>,
    /// Ready ones, sorted by their names. The same one in two slices is here twice: SRV weights count it twice.
    pub(in crate::dns) endpoints: Box<[Endpoint]>,
}

/// A port of a Service or an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::dns) struct Port {
    pub(in crate::dns) name: Box<str>,
    /// `tcp`, `udp` or `sctp`, in capitals.
    pub(in crate::dns) protocol: Box<str>,
    pub(in crate::dns) number: u16,
}

/// An address of an endpoint, with a name of its own.
#[derive(Debug)]
pub(in crate::dns) struct Endpoint {
    /// Its first label, in small letters.
    pub(in crate::dns) host: Box<str>,
    pub(in crate::dns) at: At,
    pub(in crate::dns) ports: Arc<[Port]>,
}

/// Where an endpoint is.
#[derive(Debug)]
pub(in crate::dns) enum At {
    Address(IpAddr),
    /// That of a slice of names (EP-3).
    Name(Name),
}

impl Endpoint {
    pub(in crate::dns) fn address(&self) -> Option<IpAddr> {
        match self.at {
            At::Address(address) => Some(address),
            At::Name(_) => None,
        }
    }
}

impl Hosts {
    /// Endpoints of this name, given in small letters (DNS-7, DNS-11).
    pub(in crate::dns) fn named(&self, host: &[u8]) -> &[Endpoint] {
        let from = self
            .endpoints
            .partition_point(|endpoint| endpoint.host.as_bytes() < host);
        let rest = &self.endpoints[from..];
        &rest[..rest.partition_point(|endpoint| endpoint.host.as_bytes() == host)]
    }
}

/// The absolute name that `text` is, unless it is an address.
pub(super) fn alias(text: &str) -> Option<Name> {
    if text.parse::<IpAddr>().is_ok() {
        return None;
    }
    absolute(text)
}

fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

pub(super) fn endpoints_of(slice: &EndpointSlice, pod_names: bool) -> impl Iterator<Item = Endpoint> {
    let ports: Arc<[Port]> = slice.ports.iter().flatten().filter_map(port).collect();
    let names = slice.address_type == "FQDN";
    let ready = |endpoint: &&SliceEndpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|conditions| conditions.ready) != Some(false)
    };
    let endpoints = slice.endpoints.iter().flatten().filter(ready);
    endpoints.flat_map(move |endpoint| {
        let ports = ports.clone();
        endpoint.addresses.iter().filter_map(move |text| {
            Some(Endpoint {
                host: host(endpoint, text, pod_names).to_ascii_lowercase().into(),
                at: match names {
                    true => At::Name(absolute(text)?),
                    false => At::Address(text.parse().ok()?),
                },
                ports: ports.clone(),
            })
        })
    })
}

fn port(port: &EndpointPort) -> Option<Port> {
    Some(Port {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
        number: u16::try_from(port.port?).ok()?,
    })
}

/// DNS-6.
fn host(endpoint: &SliceEndpoint, address: &str, pod_names: bool) -> String {
    if let Some(hostname) = endpoint.hostname.as_ref().filter(|name| !name.is_empty()) {
        return hostname.clone();
    }
    let pod = || endpoint.target_ref.as_ref()?.name.clone();
    if let Some(name) = pod().filter(|name| pod_names && name.len() <= LONGEST_LABEL) {
        return name;
    }
    let dashed = address.replace(['.', ':'], "-");
    match dashed.ends_with('-') {
        true => dashed + "0",
        false => dashed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_6_an_endpoint_without_a_hostname_is_named_after_its_address_or_pod() {
        let endpoint = |hostname: Option<&str>, pod: Option<&str>| SliceEndpoint {
            hostname: hostname.map(Into::into),
            target_ref: pod.map(|name| k8s_openapi::api::core::v1::ObjectReference {
                name: Some(name.into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let long = "p".repeat(64);
        for (hostname, pod, address, pod_names, named) in [
            (Some("web-0"), None, "10.1.2.3", false, "web-0"),
            (None, None, "10.1.2.3", false, "10-1-2-3"),
            (None, None, "fd00::7", false, "fd00--7"),
            (None, None, "fd00:244::", false, "fd00-244--0"),
            (None, Some("pod-a"), "10.1.2.3", false, "10-1-2-3"),
            (None, Some("pod-a"), "10.1.2.3", true, "pod-a"),
            (Some("web-0"), Some("pod-a"), "10.1.2.3", true, "web-0"),
            (None, Some(&*long), "10.1.2.3", true, "10-1-2-3"),
        ] {
            assert_eq!(host(&endpoint(hostname, pod), address, pod_names), named);
        }
    }
}
