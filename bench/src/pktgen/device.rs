//! A gateway in this process, for driver `memory`: a worker on a thread of its own between the generator's rings, with
//! the world's Services. Ends with the value.

use std::sync::Arc;
use std::thread::JoinHandle;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_dataplane::addr::Mac;
use sluice_dataplane::index::{Generation, NicPortIndex};
use sluice_dataplane::next_hop::Reachability;
use sluice_dataplane::nic::FrameMemory;
use sluice_dataplane::nic::memory::port_pair;
use sluice_dataplane::tables::{TableLimits, TablesBuilder};
use sluice_dataplane::worker::Shared;

use super::layout::Family;
use super::ports::Ports;
use super::world::World;
use crate::gateway::{Gateway, Setup};
use crate::services::{UDP_AND_TCP, records};

/// Its worker, running.
pub struct Device {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

impl Device {
    /// Starts it with room for `flows`, on `core` if said, and gives the generator's ports, with rings of `ring` places.
    pub fn start(
        world: &World,
        flows: usize,
        (ring, frames): (usize, usize),
        core: Option<usize>,
    ) -> Result<(Self, Ports), Box<dyn std::error::Error>> {
        let (a, client_port) = port_pair("clients", ring);
        let (b, pod_port) = port_pair("pods", ring);
        let endpoints = world.services.count.saturating_mul(world.endpoints.per_service);
        let setup = Setup {
            flows: flows + flows / 3 + 1_024,
            backends: u16::try_from(endpoints).unwrap_or(u16::MAX).min(60_000),
            keep_source: world.snat.is_empty(),
            v6: world.family() == Family::V6,
            ..Setup::default()
        };
        let (mut worker, shared, _) = Gateway::between(setup, Box::new(client_port), Box::new(pod_port))?;
        let next_hops = shared.network.next_hops();
        for n in 0..endpoints.min(world.endpoints.addresses) {
            let (address, _) =
                world.endpoint(n / world.endpoints.per_service, n % world.endpoints.per_service);
            if let Some(index) = next_hops.insert(NicPortIndex(1), address) {
                next_hops.set(index, Reachability::Reachable(Mac([2, 0, 0, 0, 0, 9])));
            }
        }
        // Who is a pod keeps its address.
        let everybody = match world.family() {
            Family::V4 => IpNet::from(Ipv4Net::default()),
            Family::V6 => IpNet::from(Ipv6Net::default()),
        };
        let pods = if world.snat.is_empty() {
            everybody
        } else {
            world.endpoint(0, 0).0.into()
        };
        let tables = TablesBuilder::new(TableLimits::default()).apply(
            Generation(1),
            &[],
            &records(world, pods, UDP_AND_TCP),
        )?;
        shared.slots[0].publish(tables);
        let shared = Arc::new(shared);
        let worker = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("gateway".to_owned())
                .spawn(move || {
                    if let Some(id) = core {
                        core_affinity::set_for_current(core_affinity::CoreId { id });
                    }
                    worker.run(&shared);
                })?
        };
        let ports = Ports::new(FrameMemory::new(frames, 2_048)?, Box::new(a), Box::new(b));
        let device = Self {
            shared,
            worker: Some(worker),
        };
        Ok((device, ports))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
