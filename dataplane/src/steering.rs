//! Which worker owns a packet's flow: a pure function of the packet and the tables, never of who happened to receive
//! it, or a fragment, a re-hash or a second queue would open a second flow.
//!
//! Clients are in classes (`class`), and each class has a worker. The owner of a Service flow is that of the client's
//! address and port, which both directions carry. Of a full-NAT flow's replies it is that of our own address and the SNAT
//! port: every worker translates to ports of its own classes only. So a NIC that puts packets in queues by class, of the
//! source where clients are and of the destination where endpoints are, hands every packet to its owner.
//! Fragments are gathered by the worker that a hash of what they have in common names, and go on from there with their
//! ports.

use std::ops::RangeInclusive;

use crate::addr::{Address, FlowKey, Port};
use crate::class::{self, CLASSES};
use crate::conntrack::ports::SourcePorts;
use crate::index::WorkerIndex;
use crate::lookup::Family;
use crate::network::Network;
use crate::tables::{AddressKind, Keyed, Tables, client_hash};

/// How flows and SNAT ports are divided among the workers.
#[derive(Clone, Debug)]
pub struct Steering {
    workers: u8,
    /// By class.
    owners: [WorkerIndex; CLASSES],
    snat_ports: Vec<RangeInclusive<u16>>,
}

impl Steering {
    /// For `workers` workers (at least 1) that share these SNAT port ranges.
    pub fn new(workers: u8, snat_ports: Vec<RangeInclusive<u16>>) -> Self {
        let workers = workers.max(1);
        let owner = |class| class::turn(class) % usize::from(workers);
        Self {
            workers,
            owners: std::array::from_fn(|class| WorkerIndex(owner(class) as u8)),
            snat_ports,
        }
    }

    /// The worker of each class.
    pub const fn owners(&self) -> &[WorkerIndex; CLASSES] {
        &self.owners
    }

    /// The ports worker `worker` may translate to.
    pub fn source_ports(&self, worker: WorkerIndex) -> SourcePorts {
        let classes = self.owners.iter().enumerate();
        SourcePorts {
            ranges: self.snat_ports.clone(),
            classes: classes
                .filter(|(_, owner)| **owner == worker)
                .fold(0, |classes, (class, _)| classes | 1 << class),
        }
    }

    /// The worker that owns the flow of a packet with this key, should it have or open one.
    pub fn owner<A: Family>(&self, key: &FlowKey<A>, tables: &Tables, network: &Network) -> WorkerIndex {
        if self.workers == 1 {
            return WorkerIndex(0);
        }
        let from_client = if network.is_own(key.dst) {
            // A SNAT port stands for a translated client whatever else has it, and who is known before who is new (TP-7):
            // a frontend on such a port is served where the port is.
            !self.is_snat_port(key.dst_port.number())
        } else {
            // Toward a Service, also one whose frontend is gone: its flows are not (CT-2).
            tables.address(key.dst) != AddressKind::Other
        };
        if from_client {
            self.client_owner(key.src, key.src_port)
        } else {
            self.client_owner(key.dst, key.dst_port)
        }
    }

    /// How many share.
    pub fn workers(&self) -> usize {
        usize::from(self.workers)
    }

    /// The worker that owns the flows of this client. Our own address with a SNAT port stands for a translated client.
    #[inline(always)]
    pub fn client_owner<A: Address>(&self, address: A, port: Port) -> WorkerIndex {
        self.owners[class::of(address, port)]
    }

    /// Whether clients are translated to this port.
    pub fn is_snat_port(&self, port: u16) -> bool {
        self.snat_ports.iter().any(|range| range.contains(&port))
    }

    /// The worker that gathers the fragments between these two.
    pub fn fragment_owner<A: Keyed>(&self, key: &FlowKey<A>) -> WorkerIndex {
        if self.workers == 1 {
            return WorkerIndex(0);
        }
        let sum = client_hash(key.src, Port::default()) ^ client_hash(key.dst, Port::new(1));
        let scaled = u128::from(sum) * u128::from(self.workers);
        WorkerIndex((scaled >> 64) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_snat_port_of_every_address_has_exactly_one_owner() {
        for workers in [1, 2, 3, 7] {
            let ranges = vec![1024..=29_999, 32_768..=65_535];
            let steering = Steering::new(workers, ranges.clone());
            let shares: Vec<SourcePorts> = (0..workers)
                .map(|worker| steering.source_ports(WorkerIndex(worker)))
                .collect();
            for port in (1..=u16::MAX).map(Port::new) {
                let own = [192, 0, 2, port.number() as u8];
                let having = shares
                    .iter()
                    .enumerate()
                    .filter(|(_, share)| share.has(own, port));
                let having: Vec<usize> = having.map(|(worker, _)| worker).collect();
                let owner = steering
                    .is_snat_port(port.number())
                    .then(|| steering.client_owner(own, port).get());
                assert_eq!(having, owner.into_iter().collect::<Vec<_>>(), "{port:?}");
            }
        }
    }

    #[test]
    fn clients_spread_evenly_over_the_workers() {
        for workers in [2, 3, 4, 6] {
            let steering = Steering::new(workers, vec![]);
            let mut counts = vec![0u32; workers.into()];
            for port in 1024..=u16::MAX {
                counts[steering.client_owner([198, 51, 100, 10], Port::new(port)).get()] += 1;
            }
            // 128 classes of 504 ports: no worker has more than one class more than its share.
            let share = 64_512 / u32::from(workers);
            assert!(
                counts.iter().all(|count| count.abs_diff(share) <= 504),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_connections_of_one_client_go_round_the_workers() {
        let steering = Steering::new(4, vec![]);
        let owner = |port| steering.client_owner([198, 51, 100, 10], Port::new(port)).get();
        // Every second port: what Linux takes for connections to one server.
        for first in [40_000, 40_001] {
            let mut owners: Vec<usize> = (0..4).map(|n| owner(first + 2 * n)).collect();
            owners.sort_unstable();
            assert_eq!(owners, [0, 1, 2, 3]);
        }
    }
}
