//! Which address a load-balancer Service gets, one of each of its families, from pools that the operator gives: what a
//! controller does in a cluster. A Service that finds none is served all the same, at its other frontends, and is told why.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Service};

use super::cluster_ips::number;
use super::pool::{Pool, hash};
use super::{Allocator, Wanted};
use crate::model::{Errors, Family, FieldError, ServiceName, ingress};

/// Addresses for load balancers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    /// What messages call it.
    pub name: String,
    /// First and last address of each part.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Whether Services get addresses from it that name none.
    pub auto_assign: bool,
}

/// The addresses of `192.0.2.128/25` or `192.0.2.10-192.0.2.20`; of a network, those that hosts have (AL-1).
///
/// # Errors
/// What is wrong with the text.
pub fn addresses(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let example = "must be a network such as 192.0.2.128/25, or two addresses such as 192.0.2.10-192.0.2.20";
    let wrong = || format!("{example}, not {text}");
    if let Some((first, last)) = text.split_once('-') {
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
        let (first, last) = (address(first)?, address(last)?);
        return match Family::of(first) == Family::of(last) && first <= last {
            true => Ok((first, last)),
            false => Err(wrong()),
        };
    }
    let network: IpNet = text.trim().parse().map_err(|_| wrong())?;
    if network.addr() != network.network() {
        return Err(format!(
            "has bits beyond its length: {} is the network",
            network.trunc()
        ));
    }
    match network {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            let (first, last) = (u32::from(v4.network()) + 1, u32::from(v4.broadcast()) - 1);
            Ok((Ipv4Addr::from(first).into(), Ipv4Addr::from(last).into()))
        }
        // The network's own address is every router's (RFC 4291 §2.6.1).
        IpNet::V6(v6) if v6.prefix_len() < 127 => {
            let first = u128::from(v6.network()) + 1;
            Ok((Ipv6Addr::from(first).into(), v6.broadcast().into()))
        }
        _ => Ok((network.network(), network.broadcast())),
    }
}

impl AddressPool {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        // Addresses of one family are ordered as numbers are, and those of the other lie outside.
        self.ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&address))
    }

    fn of(&self, family: Family) -> impl Iterator<Item = Pool> {
        let ranges = self
            .ranges
            .iter()
            .filter(move |(first, _)| Family::of(*first) == family);
        ranges.map(|(first, last)| Pool {
            first: number(*first),
            last: number(*last),
            dynamic: number(*first),
        })
    }
}

impl Allocator {
    /// Gives `service` (allocated otherwise) its load-balancer addresses, in its status. What it cannot have is told; it is
    /// tried again by whoever allocates again.
    pub fn balance(&mut self, name: &ServiceName, service: &mut Service, wanted: &Wanted) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let addresses = self.load_balancer_ips(name, service, wanted, &mut errors);
        if ingress(service).is_empty() && !addresses.is_empty() {
            let ingress = |address: &IpAddr| LoadBalancerIngress {
                ip: Some(address.to_string()),
                ip_mode: Some("VIP".into()),
                ..LoadBalancerIngress::default()
            };
            let ingress = Some(addresses.iter().map(ingress).collect());
            service.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus { ingress });
        }
        let held = self.holdings.get(name);
        if let Some(mut holding) = held
            .filter(|holding| holding.load_balancer_ips != addresses)
            .cloned()
        {
            self.release(name);
            holding.load_balancer_ips = addresses;
            self.hold(name, holding);
            self.changed = true;
        }
        errors.0
    }

    fn load_balancer_ips(
        &self,
        name: &ServiceName,
        service: &Service,
        wanted: &Wanted,
        errors: &mut Errors,
    ) -> Vec<IpAddr> {
        let Some(spec) = service
            .spec
            .as_ref()
            .filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
        else {
            return Vec::new();
        };
        let pools = &self.ranges.load_balancers;
        // Another class is another controller's.
        if pools.is_empty() || spec.load_balancer_class != self.ranges.load_balancer_class {
            return Vec::new();
        }
        // An address that the manifest gives is its Service's, and nobody else's.
        let written = written(service);
        if !written.is_empty() {
            let in_pool = written
                .into_iter()
                .filter(|ip| pools.iter().any(|pool| pool.has(*ip)));
            let field = "status.loadBalancer.ingress";
            return in_pool
                .filter(|ip| self.is_nobodys(*ip, name, field, errors))
                .collect();
        }
        let asked = spec
            .load_balancer_ip
            .as_deref()
            .and_then(|text| text.parse::<IpAddr>().ok());
        let families: Vec<Family> = spec
            .ip_families
            .iter()
            .flatten()
            .filter_map(|name| Family::named(name))
            .collect();
        let served = |family: &Family| pools.iter().any(|pool| pool.of(*family).next().is_some());
        if !families.iter().any(served) {
            let names: Vec<_> = families.iter().map(ToString::to_string).collect();
            let message = format!("no loadBalancerPool has addresses of {}", names.join(" or "));
            errors.invalid("spec.ipFamilies", names.join(", "), message);
        }
        let held = self
            .holdings
            .get(name)
            .map_or(&[][..], |holding| &holding.load_balancer_ips);
        let mut found = Vec::new();
        for family in families.into_iter().filter(served) {
            let of_family = |ip: &IpAddr| Family::of(*ip) == family;
            let kept = held
                .iter()
                .copied()
                .filter(of_family)
                .find(|ip| pools.iter().any(|pool| pool.has(*ip)));
            found.extend(match asked.filter(of_family) {
                Some(asked) => self.asked(name, asked, errors),
                None => kept.or_else(|| self.pick_address(name, family, wanted, errors)),
            });
        }
        found
    }

    fn asked(&self, name: &ServiceName, asked: IpAddr, errors: &mut Errors) -> Option<IpAddr> {
        const FIELD: &str = "spec.loadBalancerIP";
        let pools = &self.ranges.load_balancers;
        if !pools.iter().any(|pool| pool.has(asked)) {
            let names: Vec<_> = pools.iter().map(|pool| pool.name.as_str()).collect();
            errors.invalid(
                FIELD,
                asked,
                format!("is in none of the loadBalancerPools ({})", names.join(", ")),
            );
            return None;
        }
        self.is_nobodys(asked, name, FIELD, errors).then_some(asked)
    }

    fn pick_address(
        &self,
        name: &ServiceName,
        family: Family,
        wanted: &Wanted,
        errors: &mut Errors,
    ) -> Option<IpAddr> {
        let seed = hash(&[&name.namespace, &name.name]);
        let address = |number: u128| family.address(number);
        let free = |number| {
            address(number)
                .is_some_and(|ip| !self.ip_holders.contains_key(&ip) && !wanted.addresses.contains(&ip))
        };
        let automatic = || self.ranges.load_balancers.iter().filter(|pool| pool.auto_assign);
        let picked = automatic()
            .flat_map(|pool| pool.of(family))
            .find_map(|pool| pool.pick(seed, free));
        let picked = picked.and_then(address);
        if picked.is_none() {
            let names: Vec<_> = automatic().map(|pool| pool.name.as_str()).collect();
            let message = match names.is_empty() {
                true => "no loadBalancerPool gives addresses to Services that name none".to_owned(),
                false => format!(
                    "no {family} address is free in the loadBalancerPools ({})",
                    names.join(", ")
                ),
            };
            errors.invalid("status.loadBalancer", "pending", message);
        }
        picked
    }
}

/// Addresses that a manifest gives its Service.
pub(super) fn written(service: &Service) -> Vec<IpAddr> {
    ingress(service)
        .iter()
        .filter_map(|one| one.ip.as_deref()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests;
