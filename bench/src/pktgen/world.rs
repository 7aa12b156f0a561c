//! Who speaks with whom: clients, Services and endpoints as ranges, so that a packet's right translation is computed and
//! never looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserialize;

use super::layout::Family;

/// Ports a client address uses: above the well-known ones and below the node ports.
const CLIENT_PORTS: u32 = 28_000;
const FIRST_CLIENT_PORT: u16 = 1_500;

/// An address and a port.
pub type Socket = (IpAddr, u16);

/// The cast, all of one family. Flow `i` is of client address `first + i / 28,000` and port `1,500 + i % 28,000`, and goes to service
/// `i % count`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct World {
    /// First client address; further ones follow it.
    pub clients: IpAddr,
    /// Frontends.
    pub services: Services,
    /// What is behind them.
    pub endpoints: Endpoints,
    /// Addresses that a gateway may put in the client's place. None: every endpoint must see the client's own address
    /// and port.
    #[serde(default)]
    pub snat: Vec<IpAddr>,
    /// Clients address an endpoint of their service itself: for what a forwarder costs that translates nothing.
    #[serde(default)]
    pub direct: bool,
}

/// Service `i` has the cluster IP `first + i`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Services {
    /// The first one's address.
    pub first: IpAddr,
    /// How many.
    pub count: u32,
    /// Their port.
    pub port: u16,
}

/// Endpoint `n = service × perService + j` has the address `first + n % addresses` and the port `port + n / addresses`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoints {
    /// The first one's address.
    pub first: IpAddr,
    /// How many addresses there are before they are used again with the next port.
    #[serde(default = "all")]
    pub addresses: u32,
    /// Endpoints of a service.
    pub per_service: u32,
    /// Their port.
    pub port: u16,
}

const fn all() -> u32 {
    1 << 16
}

impl World {
    /// What of it cannot be, for `flows` flows.
    pub fn check(&self, flows: usize) -> Result<(), String> {
        if self.services.count == 0 || self.endpoints.per_service == 0 || self.endpoints.addresses == 0 {
            return Err(
                "services.count, endpoints.perService and endpoints.addresses must be at least 1".into(),
            );
        }
        let others = [self.services.first, self.endpoints.first];
        let mut others = others.iter().chain(&self.snat);
        if others.any(|address| Family::of(*address) != self.family()) {
            return Err("clients, services, endpoints and snat must be all IPv4 or all IPv6".into());
        }
        let endpoints = u64::from(self.services.count) * u64::from(self.endpoints.per_service);
        let last_port = u64::from(self.endpoints.port) + endpoints / u64::from(self.endpoints.addresses);
        let ranges = [
            (self.clients, flows as u64 / u64::from(CLIENT_PORTS)),
            (self.services.first, self.services.count.into()),
            (
                self.endpoints.first,
                endpoints.min(self.endpoints.addresses.into()),
            ),
        ];
        if let Some((first, _)) = ranges.iter().find(|&&(first, count)| runs_past(first, count)) {
            return Err(format!(
                "addresses from {first} on run past the last there is: begin lower"
            ));
        }
        if last_port > u64::from(u16::MAX) {
            return Err("endpoints run past port 65535: raise endpoints.addresses".into());
        }
        Ok(())
    }

    /// Of all its addresses.
    #[inline]
    pub const fn family(&self) -> Family {
        Family::of(self.clients)
    }

    /// A flow's client.
    #[inline]
    pub fn client(&self, flow: u32) -> Socket {
        (
            later(self.clients, flow / CLIENT_PORTS),
            FIRST_CLIENT_PORT + (flow % CLIENT_PORTS) as u16,
        )
    }

    /// Whose flow a client's address and port are, if anybody's.
    #[inline]
    pub fn flow(&self, (address, port): Socket) -> Option<u32> {
        let row = behind(address, self.clients)?;
        let place = u32::from(port.checked_sub(FIRST_CLIENT_PORT)?);
        if place >= CLIENT_PORTS {
            return None;
        }
        row.checked_mul(CLIENT_PORTS)?.checked_add(place)
    }

    /// The service of a flow.
    #[inline]
    pub const fn service(&self, flow: u32) -> u32 {
        flow % self.services.count
    }

    /// What a flow's client addresses.
    #[inline]
    pub fn frontend(&self, flow: u32) -> Socket {
        if self.direct {
            return self.endpoint(self.service(flow), 0);
        }
        (later(self.services.first, self.service(flow)), self.services.port)
    }

    /// Endpoint `j` of a service.
    pub fn endpoint(&self, service: u32, j: u32) -> Socket {
        let n = service * self.endpoints.per_service + j;
        (
            later(self.endpoints.first, n % self.endpoints.addresses),
            self.endpoints.port + (n / self.endpoints.addresses) as u16,
        )
    }

    /// Which service has this endpoint, and which of its endpoints it is.
    #[inline]
    pub fn endpoint_at(&self, (address, port): Socket) -> Option<(u32, u32)> {
        let place = behind(address, self.endpoints.first)?;
        let row = u32::from(port.checked_sub(self.endpoints.port)?);
        if place >= self.endpoints.addresses {
            return None;
        }
        let n = row.checked_mul(self.endpoints.addresses)?.checked_add(place)?;
        let found = (n / self.endpoints.per_service, n % self.endpoints.per_service);
        (found.0 < self.services.count).then_some(found)
    }
}

/// The address `n` after another.
#[inline]
fn later(first: IpAddr, n: u32) -> IpAddr {
    match first {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(n)).into(),
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(n.into())).into(),
    }
}

/// How far an address is behind another, if it is.
#[inline]
fn behind(address: IpAddr, first: IpAddr) -> Option<u32> {
    match (address, first) {
        (IpAddr::V4(address), IpAddr::V4(first)) => u32::from(address).checked_sub(first.into()),
        (IpAddr::V6(address), IpAddr::V6(first)) => {
            u128::from(address).checked_sub(first.into())?.try_into().ok()
        }
        _ => None,
    }
}

/// Whether there are not `count` more addresses.
fn runs_past(first: IpAddr, count: u64) -> bool {
    match first {
        IpAddr::V4(first) => u64::from(u32::from(first)) + count > u64::from(u32::MAX),
        IpAddr::V6(first) => u128::from(first).checked_add(count.into()).is_none(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn world(family: Family) -> World {
        let [clients, services, endpoints] = match family {
            Family::V4 => ["198.18.0.1", "10.96.0.10", "10.244.1.0"],
            Family::V6 => ["2001:2::1", "fd96::10", "fd44::1:0"],
        }
        .map(|address| address.parse().unwrap());
        World {
            clients,
            services: Services {
                first: services,
                count: 1,
                port: 80,
            },
            endpoints: Endpoints {
                first: endpoints,
                addresses: 1 << 16,
                per_service: 4,
                port: 80,
            },
            snat: Vec::new(),
            direct: false,
        }
    }

    #[test]
    fn every_flow_and_endpoint_is_found_again_by_its_address_and_port() {
        for family in [Family::V4, Family::V6] {
            let mut world = world(family);
            world.services.count = 1_000;
            world.endpoints.addresses = 300;
            for flow in (0..200_000).step_by(977) {
                assert_eq!(world.flow(world.client(flow)), Some(flow));
            }
            for service in [0, 1, 74, 75, 999] {
                for j in 0..4 {
                    assert_eq!(world.endpoint_at(world.endpoint(service, j)), Some((service, j)));
                }
            }
            let (first, _) = world.endpoint(0, 0);
            assert_eq!(world.endpoint_at((first, 79)), None);
            assert_eq!(world.endpoint_at((first, 94)), None);
            assert_eq!(world.endpoint_at((later(first, 300), 80)), None);
            assert_eq!(world.flow((world.clients, 1_499)), None);
            assert_eq!(world.flow((first, 2_000)), None);
        }
        let (v4, v6) = (world(Family::V4), world(Family::V6));
        assert_eq!(v4.flow(v6.client(0)), None);
    }

    #[test]
    fn a_cast_that_runs_out_of_addresses_or_ports_or_is_of_two_families_is_refused() {
        for (family, last) in [
            (Family::V4, "255.255.255.255"),
            (Family::V6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let mut late = world(family);
            late.clients = last.parse().unwrap();
            assert!(late.check(1).is_ok());
            assert!(late.check(100_000).unwrap_err().contains("begin lower"));
            let mut few = world(family);
            (few.services.count, few.endpoints.addresses) = (100_000, 1);
            assert!(few.check(1).unwrap_err().contains("endpoints.addresses"));
        }
        let mut mixed = world(Family::V4);
        mixed.snat = vec!["fd02::2".parse().unwrap()];
        assert!(mixed.check(1).unwrap_err().contains("all IPv4 or all IPv6"));
    }
}
