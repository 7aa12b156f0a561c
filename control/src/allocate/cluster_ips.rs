//! Which cluster IPs a Service gets, one of each of its families (AL-1 to AL-3, AL-11). Takes none of them: that is done
//! once nothing is in the way of the whole Service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;

use super::pool::{Pool, hash};
use super::{Allocator, Wanted};
use crate::model::{Errors, Family, ServiceName};

/// A range of cluster IPs.
#[derive(Debug)]
pub(super) struct Range {
    network: IpNet,
    pub(super) pool: Pool,
}

impl Range {
    pub(super) fn new(network: IpNet) -> Self {
        let length = network.max_prefix_len() - network.prefix_len();
        let size = 1_u128.checked_shl(length.into()).unwrap_or(u128::MAX);
        let (first, last) = (number(network.network()), number(network.broadcast()));
        // IPv6 has no broadcast address.
        let last = last - u128::from(network.addr().is_ipv4());
        Self {
            network,
            pool: Pool::new(first + 1, last, size, 16, (16, 256)),
        }
    }

    fn family(&self) -> Family {
        Family::of(self.network.addr())
    }

    fn address(&self, number: u128) -> Option<IpAddr> {
        self.family().address(number)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.family() == Family::of(address) && self.pool.has(number(address))
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

impl Allocator {
    /// Whether `address` can be a cluster IP, and is nobody's but `name`'s.
    fn is_free(&self, address: IpAddr, name: &ServiceName) -> bool {
        let holder = self.ip_holders.get(&address);
        self.is_in_range(address) && holder.is_none_or(|holder| holder == name)
    }

    fn is_in_range(&self, address: IpAddr) -> bool {
        self.services.iter().any(|range| range.has(address))
    }

    /// A cluster IP of each of the families of `spec`, in order; none if it needs none.
    pub(super) fn cluster_ips(
        &self,
        name: &ServiceName,
        spec: &ServiceSpec,
        wanted: &Wanted,
        errors: &mut Errors,
    ) -> Vec<IpAddr> {
        if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
            return Vec::new();
        }
        let families = spec.ip_families.iter().flatten();
        let families = families.filter_map(|name| Family::named(name));
        let said = spec
            .cluster_ips
            .iter()
            .flatten()
            .map(Some)
            .chain(std::iter::repeat(None));
        families
            .zip(said)
            .filter_map(|(family, said)| match said {
                Some(text) => self.said(name, text, errors),
                None => self.picked(name, family, wanted, errors),
            })
            .collect()
    }

    fn said(&self, name: &ServiceName, text: &str, errors: &mut Errors) -> Option<IpAddr> {
        let field = "spec.clusterIPs";
        let Ok(address) = text.parse::<IpAddr>() else {
            errors.invalid(field, text, "must be an IP address");
            return None;
        };
        if !self.is_in_range(address) {
            let ranges = self
                .services
                .iter()
                .filter(|range| range.family() == Family::of(address));
            let ranges = ranges.filter_map(|range| {
                let (first, last) = (range.address(range.pool.first)?, range.address(range.pool.last)?);
                Some(format!("from {first} to {last}"))
            });
            let ranges = ranges.collect::<Vec<_>>().join(" or ");
            errors.invalid(field, address, format!("must be {ranges}, the service range"));
        } else {
            self.is_nobodys(address, name, field, errors);
        }
        Some(address)
    }

    fn picked(
        &self,
        name: &ServiceName,
        family: Family,
        wanted: &Wanted,
        errors: &mut Errors,
    ) -> Option<IpAddr> {
        let seed = hash(&[&name.namespace, &name.name]);
        let ranges = || self.services.iter().filter(|range| range.family() == family);
        let picked = ranges().find_map(|range| {
            let free = |number| {
                range.address(number).is_some_and(|address| {
                    !self.ip_holders.contains_key(&address) && !wanted.addresses.contains(&address)
                })
            };
            range.address(range.pool.pick(seed, free)?)
        });
        if picked.is_none() {
            let full = ranges()
                .map(|range| range.network.to_string())
                .collect::<Vec<_>>();
            let message = format!("no address is free in {}", full.join(" and "));
            errors.invalid("spec.clusterIPs", "", message);
        }
        picked
    }

    /// Those of a Service that were found in the state, as far as they can still be. Without its first address a Service
    /// has none: it would be of another family than it was.
    pub(super) fn still_possible(&self, name: &ServiceName, held: &[IpAddr]) -> Vec<IpAddr> {
        let mut families = BTreeSet::new();
        let held = held.iter().copied();
        held.take_while(|ip| self.is_free(*ip, name) && families.insert(Family::of(*ip)))
            .collect()
    }
}
