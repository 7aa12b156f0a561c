//! Which worker owns a packet's flow: a pure function of the packet and the tables, never of who happened to receive
//! it, or a fragment, a re-hash or a second queue would open a second flow.
//!
//! The owner of a Service flow is named by a hash of the client's address and port, which both directions carry; the
//! owner of a full-NAT flow's replies by the SNAT port, since every worker has its own slice of the ports. Fragments
//! are gathered by the worker that a hash of what they have in common names, and go on from there with their ports.

use std::ops::RangeInclusive;

use crate::addr::{FlowKey, Port};
use crate::index::WorkerIndex;
use crate::lookup::Family;
use crate::network::Network;
use crate::tables::{AddressKind, Keyed, Tables, client_hash};

/// How flows and SNAT ports are divided among the workers.
#[derive(Clone, Debug)]
pub struct Steering {
    workers: u8,
    snat_ports: Vec<RangeInclusive<u16>>,
}

impl Steering {
    /// For `workers` workers (at least 1) that share these SNAT port ranges.
    pub fn new(workers: u8, snat_ports: Vec<RangeInclusive<u16>>) -> Self {
        Self {
            workers: workers.max(1),
            snat_ports,
        }
    }

    /// The ports worker `worker` may use: of each range an equal share, the last worker the remainder, too.
    pub fn slice(&self, worker: WorkerIndex) -> Vec<RangeInclusive<u16>> {
        let mut slice = Vec::new();
        for range in &self.snat_ports {
            let mut mine = range
                .clone()
                .filter(|&port| self.port_owner(port) == Some(worker));
            if let (Some(first), Some(last)) = (mine.clone().next(), mine.next_back()) {
                slice.push(first..=last);
            }
        }
        slice
    }

    /// The worker that owns the flow of a packet with this key, should it have or open one.
    pub fn owner<A: Family>(&self, key: &FlowKey<A>, tables: &Tables, network: &Network) -> WorkerIndex {
        if self.workers == 1 {
            return WorkerIndex(0);
        }
        if network.is_own(key.dst) {
            // A SNAT port stands for a translated client whatever else has it, and who is known before who is new (TP-7):
            // a frontend on such a port is served where the port is.
            let translated = self.port_owner(key.dst_port.number());
            return translated.unwrap_or_else(|| self.client_owner(key.src, key.src_port, network));
        }
        // Toward a Service, also one whose frontend is gone: its flows are not (CT-2).
        if tables.address(key.dst) != AddressKind::Other {
            self.client_owner(key.src, key.src_port, network)
        } else {
            self.client_owner(key.dst, key.dst_port, network)
        }
    }

    /// How many share.
    pub fn workers(&self) -> usize {
        usize::from(self.workers)
    }

    /// The worker that owns the flows of this client. Our own address with a SNAT port stands for a translated client,
    /// whose flow is where the port is; the node's own sockets follow the same rule, so that both directions do.
    pub fn client_owner<A: Keyed>(&self, address: A, port: Port, network: &Network) -> WorkerIndex {
        if network.is_own(address)
            && let Some(owner) = self.port_owner(port.number())
        {
            return owner;
        }
        self.hash_owner(address, port)
    }

    /// The worker that gathers the fragments between these two.
    pub fn fragment_owner<A: Keyed>(&self, key: &FlowKey<A>) -> WorkerIndex {
        if self.workers == 1 {
            return WorkerIndex(0);
        }
        let sum = client_hash(key.src, Port::default()) ^ client_hash(key.dst, Port::new(1));
        self.share(sum)
    }

    /// The worker that owns the flows of a client that is not ourselves.
    pub(crate) fn hash_owner<A: Keyed>(&self, address: A, port: Port) -> WorkerIndex {
        self.share(client_hash(address, port))
    }

    fn share(&self, hash: u64) -> WorkerIndex {
        let scaled = u128::from(hash) * u128::from(self.workers);
        WorkerIndex((scaled >> 64) as u8)
    }

    /// The worker that translates clients to this port, if any does.
    pub fn port_owner(&self, port: u16) -> Option<WorkerIndex> {
        let range = self.snat_ports.iter().find(|r| r.contains(&port))?;
        let (at, len) = (usize::from(port - range.start()), range.len());
        Some(WorkerIndex((at * usize::from(self.workers) / len) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_snat_port_has_exactly_one_owner() {
        for workers in [1, 2, 3, 7] {
            let ranges = vec![1024..=29_999, 32_768..=65_535];
            let steering = Steering::new(workers, ranges.clone());
            let mut owned: Vec<u16> = (0..workers)
                .flat_map(|w| steering.slice(WorkerIndex(w)))
                .flatten()
                .collect();
            owned.sort_unstable();
            assert_eq!(owned, ranges.into_iter().flatten().collect::<Vec<_>>());
        }
    }

    #[test]
    fn clients_spread_evenly_over_the_workers() {
        let steering = Steering::new(4, vec![]);
        let mut counts = [0u32; 4];
        for port in 1024..=u16::MAX {
            counts[steering.hash_owner([198, 51, 100, 10], Port::new(port)).get()] += 1;
        }
        // 64,512 ports over 4 workers: 16,128 each, standard deviation 110; 5 of them.
        assert!(counts.iter().all(|c| c.abs_diff(16_128) < 550), "{counts:?}");
    }
}
