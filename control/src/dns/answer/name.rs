//! A name of the zone, to what stands there (§9.2). Pure, as `answer` is; it knows nothing of types and records.

use std::net::IpAddr;

use hickory_proto::rr::Name;

use crate::dns::zone::{At, Endpoint, Entry, Hosts, Port, Zone};

/// A port as asked for; an empty part is any (measured: `_._tcp` is every TCP port).
#[derive(Clone, Copy)]
pub(super) struct Wanted<'n> {
    pub(super) name: &'n [u8],
    pub(super) protocol: &'n [u8],
}

impl Wanted<'_> {
    pub(super) fn takes(&self, port: &Port) -> bool {
        let same =
            |wanted: &[u8], has: &str| wanted.is_empty() || wanted.eq_ignore_ascii_case(has.as_bytes());
        same(self.name, &port.name) && same(self.protocol, &port.protocol)
    }
}

/// What stands at a name of the zone.
pub(super) enum Found<'z, 'n> {
    Nothing,
    /// A name with others below it, or whose data are of no type that is asked for.
    Empty,
    Apex,
    Version,
    NameServer,
    Alias(&'z Name),
    Service(&'z Hosts, Wanted<'n>, Place<'n>),
    Endpoints(&'z [Endpoint], Wanted<'n>, Place<'n>),
    Pod(IpAddr, &'n [u8], &'n [u8]),
}

/// A Service by its names.
#[derive(Clone, Copy)]
pub(super) struct Place<'n> {
    pub(super) namespace: &'n [u8],
    pub(super) service: &'n [u8],
}

/// Looks for a name of the zone, in small letters (§9.2).
pub(super) fn find<'z, 'n>(zone: &'z Zone, name: &'n Name) -> Found<'z, 'n> {
    let mut labels = name.iter().rev().skip(zone.domain.num_labels().into());
    let Some(first) = labels.next() else {
        return Found::Apex;
    };
    let second = labels.next();
    match (first, second) {
        (b"dns-version", None) => return Found::Version,
        (b"dns", None) => return Found::Empty,
        (b"dns", Some(b"ns")) if labels.next().is_none() => return Found::NameServer,
        (b"svc", _) => {}
        (b"pod", _) if zone.has_pods() => {}
        _ => return Found::Nothing,
    }
    let Some(namespace) = second else {
        return Found::Empty;
    };
    let Some(service) = labels.next() else {
        return match zone.has_namespace(namespace) {
            true => Found::Empty,
            false => Found::Nothing,
        };
    };
    let (third, fourth) = (labels.next(), labels.next());
    if labels.next().is_some() {
        return Found::Nothing;
    }
    if first == b"pod" {
        return match pod_address(service).filter(|address| zone.has_pod(namespace, *address)) {
            Some(address) => Found::Pod(address, namespace, service),
            None => Found::Nothing,
        };
    }
    let bare = |label: &'n [u8]| label.strip_prefix(b"_").unwrap_or(label);
    let wanted = Wanted {
        name: fourth.map_or(&[], bare),
        protocol: fourth.and(third).map_or(&[], bare),
    };
    let place = Place { namespace, service };
    match zone.service(namespace, service) {
        None => Found::Nothing,
        Some(Entry::Alias(Some(target))) if third.is_none() => Found::Alias(target),
        Some(Entry::Alias(_)) => Found::Nothing,
        Some(Entry::Hosts(hosts)) => match (third, fourth) {
            (Some(host), None) => endpoints(hosts.named(host), wanted, place),
            _ if hosts.headless && fourth.is_some() => endpoints(&hosts.endpoints, wanted, place),
            _ if hosts.headless => match hosts.endpoints.first() {
                None => Found::Nothing,
                // A list of names can only be said as one alias (RFC 1034 §3.6.2).
                Some(Endpoint {
                    at: At::Name(name), ..
                }) => Found::Alias(name),
                Some(_) => Found::Service(hosts, wanted, place),
            },
            _ if hosts.ports.iter().any(|port| wanted.takes(port)) => Found::Service(hosts, wanted, place),
            _ => Found::Nothing,
        },
    }
}

fn endpoints<'z, 'n>(list: &'z [Endpoint], wanted: Wanted<'n>, place: Place<'n>) -> Found<'z, 'n> {
    let any = wanted.name.is_empty() && wanted.protocol.is_empty();
    let takes = |endpoint: &&Endpoint| any || endpoint.ports.iter().any(|port| wanted.takes(port));
    match list.iter().find(takes).map(|endpoint| &endpoint.at) {
        None => Found::Nothing,
        Some(At::Name(name)) => Found::Alias(name),
        Some(At::Address(_)) => Found::Endpoints(list, wanted, place),
    }
}

/// DNS-15: `10-1-2-3` and `fd00--7` as addresses.
fn pod_address(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let v4 = text.bytes().filter(|byte| *byte == b'-').count() == 3 && !text.contains("--");
    text.replace('-', if v4 { "." } else { ":" }).parse().ok()
}
