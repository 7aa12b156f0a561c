//! Who speaks with whom: clients, Services and endpoints as ranges, so that a packet's right translation is computed and
//! never looked up.

use std::net::Ipv4Addr;

use serde::Deserialize;

/// Ports a client address uses: above the well-known ones and below the node ports.
const CLIENT_PORTS: u32 = 28_000;
const FIRST_CLIENT_PORT: u16 = 1_500;

/// An address and a port.
pub type Socket = (Ipv4Addr, u16);

/// The cast. Flow `i` is of client address `first + i / 28,000` and port `1,500 + i % 28,000`, and goes to service
/// `i % count`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct World {
    /// First client address; further ones follow it.
    pub clients: Ipv4Addr,
    /// Frontends.
    pub services: Services,
    /// What is behind them.
    pub endpoints: Endpoints,
    /// Addresses that a gateway may put in the client's place. None: every endpoint must see the client's own address
    /// and port.
    #[serde(default)]
    pub snat: Vec<Ipv4Addr>,
    /// Clients address an endpoint of their service itself: for what a forwarder costs that translates nothing.
    #[serde(default)]
    pub direct: bool,
}

/// Service `i` has the cluster IP `first + i`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Services {
    /// The first one's address.
    pub first: Ipv4Addr,
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
    pub first: Ipv4Addr,
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
        let last_client = u64::from(u32::from(self.clients)) + flows as u64 / u64::from(CLIENT_PORTS);
        let last_service = u64::from(u32::from(self.services.first)) + u64::from(self.services.count);
        let endpoints = u64::from(self.services.count) * u64::from(self.endpoints.per_service);
        let last_port = u64::from(self.endpoints.port) + endpoints / u64::from(self.endpoints.addresses);
        if last_client.max(last_service) > u64::from(u32::MAX) {
            return Err("clients or services run past 255.255.255.255: begin lower".into());
        }
        if last_port > u64::from(u16::MAX) {
            return Err("endpoints run past port 65535: raise endpoints.addresses".into());
        }
        Ok(())
    }

    /// A flow's client.
    #[inline]
    pub fn client(&self, flow: u32) -> Socket {
        let address = u32::from(self.clients).wrapping_add(flow / CLIENT_PORTS);
        (address.into(), FIRST_CLIENT_PORT + (flow % CLIENT_PORTS) as u16)
    }

    /// Whose flow a client's address and port are, if anybody's.
    #[inline]
    pub fn flow(&self, (address, port): Socket) -> Option<u32> {
        let row = u32::from(address).checked_sub(u32::from(self.clients))?;
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
        let address = u32::from(self.services.first).wrapping_add(self.service(flow));
        (address.into(), self.services.port)
    }

    /// Endpoint `j` of a service.
    pub fn endpoint(&self, service: u32, j: u32) -> Socket {
        let n = service * self.endpoints.per_service + j;
        let address = u32::from(self.endpoints.first).wrapping_add(n % self.endpoints.addresses);
        (
            address.into(),
            self.endpoints.port + (n / self.endpoints.addresses) as u16,
        )
    }

    /// Which service has this endpoint, and which of its endpoints it is.
    #[inline]
    pub fn endpoint_at(&self, (address, port): Socket) -> Option<(u32, u32)> {
        let place = u32::from(address).checked_sub(u32::from(self.endpoints.first))?;
        let row = u32::from(port.checked_sub(self.endpoints.port)?);
        if place >= self.endpoints.addresses {
            return None;
        }
        let n = row.checked_mul(self.endpoints.addresses)?.checked_add(place)?;
        let found = (n / self.endpoints.per_service, n % self.endpoints.per_service);
        (found.0 < self.services.count).then_some(found)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn world() -> World {
        World {
            clients: Ipv4Addr::new(198, 18, 0, 1),
            services: Services {
                first: Ipv4Addr::new(10, 96, 0, 10),
                count: 1,
                port: 80,
            },
            endpoints: Endpoints {
                first: Ipv4Addr::new(10, 244, 1, 0),
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
        let mut world = world();
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
        assert_eq!(world.endpoint_at((Ipv4Addr::new(10, 244, 1, 0), 79)), None);
        assert_eq!(world.endpoint_at((Ipv4Addr::new(10, 244, 1, 0), 94)), None);
        assert_eq!(world.flow((Ipv4Addr::new(198, 18, 0, 0), 2_000)), None);
    }

    #[test]
    fn a_cast_that_runs_out_of_addresses_or_ports_is_refused() {
        let mut late = world();
        late.clients = Ipv4Addr::BROADCAST;
        assert!(late.check(1).is_ok());
        assert!(late.check(100_000).unwrap_err().contains("begin lower"));
        let mut few = world();
        (few.services.count, few.endpoints.addresses) = (100_000, 1);
        assert!(few.check(1).unwrap_err().contains("endpoints.addresses"));
    }
}
