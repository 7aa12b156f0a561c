//! Gateways compared: the dataplane, and the kernel with kube-proxy's rules, on the same cables, with the same Services,
//! under the same generator, in turns of one run.
//!
//! In reading order: `sandbox` (namespaces), `rules` (kube-proxy's), `cables` (links to the generator), `gateway` (one to
//! compare), `forward` (a driver that only forwards), `cpu` (what it took), `measure` (rows), `promises` (what is promised
//! of them).

use std::net::{IpAddr, Ipv4Addr};

use crate::pktgen::world::{Endpoints, Services, World};

/// Namespaces.
pub mod sandbox;
/// kube-proxy's rules.
pub mod rules;
/// Links.
pub mod cables;
/// A gateway.
pub mod gateway;
/// Forwarding without translation.
pub mod forward;
/// Processor time.
pub mod cpu;
/// Rows.
pub mod measure;
/// Promises.
pub mod promises;

/// So many Services with four endpoints each, and clients in the pod network, whose address is kept.
pub fn world(services: u32, direct: bool) -> World {
    World {
        clients: IpAddr::V4(Ipv4Addr::new(10, 244, 128, 1)),
        services: Services {
            first: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
            count: services,
            port: 80,
        },
        endpoints: Endpoints {
            first: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)),
            addresses: 32_767,
            per_service: 4,
            port: 8_080,
        },
        snat: Vec::new(),
        direct,
    }
}
