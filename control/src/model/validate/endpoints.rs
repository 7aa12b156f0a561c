//! What EndpointSlices and Endpoints that users write may not say (EPM-3, EPM-4). Takes one object, gives everything that
//! is wrong with it. Port numbers of slices are not looked at here, as upstream: what cannot be served is passed over by
//! `endpoints::sets`.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::field_error::{Errors, FieldError};
use super::super::{given, names};

const MOST_ENDPOINTS: usize = 1000;
const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 20_000;
const MOST_HINTS: usize = 8;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Everything wrong with a slice; `old` is what it was.
pub(crate) fn endpoint_slice(slice: &EndpointSlice, old: Option<&EndpointSlice>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata(&slice.metadata, &mut errors);
    let family = slice.address_type.as_str();
    let families = ["FQDN", "IPv4", "IPv6"];
    errors.one_of(
        "addressType",
        Some(family).filter(|family| !family.is_empty()),
        &families,
    );
    if let Some(old) = old.filter(|old| old.address_type != family) {
        let message = format!(
            "may not change from {}: give the slice another name",
            old.address_type
        );
        errors.invalid("addressType", family, message);
    }
    let endpoints = given(&slice.endpoints);
    if at_most(MOST_ENDPOINTS, endpoints.len(), "endpoints", &mut errors) {
        for (index, endpoint) in endpoints.iter().enumerate() {
            one_endpoint(&format!("endpoints[{index}]"), family, endpoint, &mut errors);
        }
    }
    let ports = given(&slice.ports);
    if at_most(MOST_PORTS, ports.len(), "ports", &mut errors) {
        let mut port_names = HashSet::new();
        for (index, port) in ports.iter().enumerate() {
            let field = |name: &str| format!("ports[{index}].{name}");
            let name = port.name.as_deref().unwrap_or_default();
            if !port_names.insert(name) {
                errors.duplicate(
                    &field("name"),
                    format!("\"{name}\""),
                    "names of ports must differ",
                );
            } else if !name.is_empty() {
                label(&field("name"), name, &mut errors);
            }
            one_protocol(&field("protocol"), port.protocol.as_deref(), &mut errors);
            app_protocol(&field("appProtocol"), port.app_protocol.as_deref(), &mut errors);
        }
    }
    errors.0
}

/// Everything wrong with an Endpoints object.
pub(crate) fn endpoints(endpoints: &Endpoints) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata(&endpoints.metadata, &mut errors);
    for (index, subset) in given(&endpoints.subsets).iter().enumerate() {
        one_subset(&format!("subsets[{index}]"), subset, &mut errors);
    }
    errors.0
}

fn metadata(metadata: &ObjectMeta, errors: &mut Errors) {
    let name = metadata.name.as_deref().unwrap_or_default();
    if let Some(wrong) = names::subdomain(name) {
        errors.invalid("metadata.name", format!("\"{name}\""), wrong);
    }
    super::labels("metadata.labels", metadata.labels.as_ref(), errors);
}

fn at_most(most: usize, count: usize, field: &str, errors: &mut Errors) -> bool {
    if count > most {
        errors.too_many(field, count, most);
    }
    count <= most
}

fn label(field: &str, text: &str, errors: &mut Errors) {
    if let Some(wrong) = names::label(text) {
        errors.invalid(field, format!("\"{text}\""), wrong);
    }
}

fn node_name(field: &str, name: Option<&str>, errors: &mut Errors) {
    if let Some(name) = name
        && let Some(wrong) = names::subdomain(name)
    {
        errors.invalid(field, format!("\"{name}\""), wrong);
    }
}

fn one_protocol(field: &str, protocol: Option<&str>, errors: &mut Errors) {
    // What is left out is TCP.
    errors.one_of(
        field,
        Some(protocol.filter(|text| !text.is_empty()).unwrap_or("TCP")),
        PROTOCOLS,
    );
}

fn app_protocol(field: &str, protocol: Option<&str>, errors: &mut Errors) {
    for wrong in protocol.map(names::qualified).unwrap_or_default() {
        errors.invalid(field, format!("\"{}\"", protocol.unwrap_or_default()), wrong);
    }
}

fn one_endpoint(field: &str, family: &str, endpoint: &Endpoint, errors: &mut Errors) {
    let addresses = format!("{field}.addresses");
    if endpoint.addresses.is_empty() {
        errors.required(&addresses, "an endpoint needs an address");
    } else if at_most(MOST_ADDRESSES, endpoint.addresses.len(), &addresses, errors) {
        for (index, text) in endpoint.addresses.iter().enumerate() {
            let item = format!("{addresses}[{index}]");
            match family {
                "IPv4" | "IPv6" => address(family, &addresses, &item, text, errors),
                "FQDN" => domain(&item, text, errors),
                _ => {}
            }
        }
    }
    if let Some(hostname) = &endpoint.hostname {
        label(&format!("{field}.hostname"), hostname, errors);
    }
    node_name(
        &format!("{field}.nodeName"),
        endpoint.node_name.as_deref(),
        errors,
    );
    if let Some(hints) = &endpoint.hints {
        one_hint(&format!("{field}.hints"), hints, errors);
    }
}

/// An address of a slice has one form only, its shortest.
fn address(family: &str, list: &str, item: &str, text: &str, errors: &mut Errors) {
    let quoted = format!("\"{text}\"");
    match names::address(text) {
        Err(wrong) => errors.invalid(item, quoted, wrong),
        Ok(address) if address.is_ipv6() != (family == "IPv6") => {
            errors.invalid(
                list,
                quoted,
                format!("must be of the slice's addressType, {family}"),
            );
        }
        Ok(address) if address.to_string() != text => {
            errors.invalid(item, quoted, format!("must be written as {address}"));
        }
        Ok(address) => {
            if let Some(wrong) = names::unusable(address) {
                errors.invalid(item, quoted, wrong);
            }
        }
    }
}

fn domain(item: &str, text: &str, errors: &mut Errors) {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let wrong = names::subdomain(bare).or_else(|| {
        let single = !bare.contains('.');
        single.then_some("must be a whole domain name, such as db.example.com")
    });
    if let Some(wrong) = wrong {
        errors.invalid(item, format!("\"{text}\""), wrong);
    }
}

fn one_hint(field: &str, hints: &EndpointHints, errors: &mut Errors) {
    let zones = given(&hints.for_zones)
        .iter()
        .map(|zone| zone.name.as_str())
        .collect();
    hinted(&format!("{field}.forZones"), zones, names::label_value, errors);
    let nodes = given(&hints.for_nodes)
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    hinted(&format!("{field}.forNodes"), nodes, names::subdomain, errors);
}

fn hinted(field: &str, hints: Vec<&str>, wrong: impl Fn(&str) -> Option<&'static str>, errors: &mut Errors) {
    if !at_most(MOST_HINTS, hints.len(), field, errors) {
        return;
    }
    let mut seen = HashSet::new();
    for (index, name) in hints.into_iter().enumerate() {
        let item = format!("{field}[{index}].name");
        if let Some(wrong) = wrong(name) {
            errors.invalid(&item, format!("\"{name}\""), wrong);
        } else if !seen.insert(name) {
            errors.duplicate(&item, name, "is named before");
        }
    }
}

fn one_subset(field: &str, subset: &EndpointSubset, errors: &mut Errors) {
    let (ready, not_ready) = (given(&subset.addresses), given(&subset.not_ready_addresses));
    if ready.is_empty() && not_ready.is_empty() {
        errors.required(field, "a subset needs addresses or notReadyAddresses");
    }
    for (name, list) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
        for (index, address) in list.iter().enumerate() {
            subset_address(&format!("{field}.{name}[{index}]"), address, errors);
        }
    }
    let ports = given(&subset.ports);
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("{field}.ports[{index}].{name}");
        match port.name.as_deref().unwrap_or_default() {
            "" if ports.len() > 1 => errors.required(&field("name"), "each of several ports needs a name"),
            "" => {}
            name => label(&field("name"), name, errors),
        }
        if !(1..=65_535).contains(&port.port) {
            errors.invalid(&field("port"), port.port, "must be from 1 to 65535");
        }
        one_protocol(&field("protocol"), port.protocol.as_deref(), errors);
        app_protocol(&field("appProtocol"), port.app_protocol.as_deref(), errors);
    }
}

fn subset_address(field: &str, address: &EndpointAddress, errors: &mut Errors) {
    let ip = &address.ip;
    match names::address(ip).map(names::unusable) {
        Err(wrong) | Ok(Some(wrong)) => errors.invalid(&format!("{field}.ip"), format!("\"{ip}\""), wrong),
        Ok(None) => {}
    }
    if let Some(hostname) = address
        .hostname
        .as_deref()
        .filter(|hostname| !hostname.is_empty())
    {
        label(&format!("{field}.hostname"), hostname, errors);
    }
    node_name(&format!("{field}.nodeName"), address.node_name.as_deref(), errors);
}
