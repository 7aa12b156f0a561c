//! Session affinity: which endpoint each client of a service port was sent to, for as long as its Service says (AFF-1
//! to AFF-8).
//!
//! Takes  a service port, a kind of endpoint set, a client's address.     Gives  the endpoint of its new flow.
//! Never  allocates or locks after start; is not asked for packets of flows that exist.
//!
//! One memory for all workers of the process, since a client's flows are spread over them by address *and* port. It is
//! of fixed size: buckets of ten clients in two cache lines, the least recently used forgotten first. What names a
//! client is hashed with a secret, so that nobody can choose addresses that push each other, or others, out.
//!
//! Upstream remembers per endpoint and so may remember several for a client; here it is one per client, service port
//! and kind of set, replaced when it is no longer in the set (AFF-4; semantics §14).

use std::io;

use crate::addr::{Address, FlowKey, Port, Protocol};
use crate::conntrack::HashKey;
use crate::index::{BackendIndex, ServicePortIndex};
use crate::tables::EndpointSetKind;
use crate::tick::Tick;

// The atomics that `bucket` finds here; the model checker compiles the same file over its own.
use core::sync::atomic as sync;

mod bucket;
#[cfg(all(test, loom))]
mod bucket_loom;
#[cfg(test)]
mod tests;

use bucket::{Bucket, Tag};
pub use bucket::{Choice, Occupant};

/// Entries of a bucket: with their times and the newest change, two cache lines.
const WAYS: usize = 10;
const _: () = assert!(size_of::<Bucket<WAYS>>() == 128);

/// Clients per bucket on average when the memory is as full as was asked for: of a hundred buckets four are then full,
/// so that what is forgotten early is little (Poisson).
const CLIENTS_PER_BUCKET: usize = 6;

/// See the module.
#[derive(Debug)]
pub struct Affinity {
    secret: HashKey,
    buckets: Box<[Bucket<WAYS>]>,
}

impl Affinity {
    /// Clients remembered if nothing is said: 262,144, four times the addresses of the largest pod networks, in 5.3 MiB.
    pub const CLIENTS: usize = 1 << 18;

    /// A memory for so many clients (of one service port each, and kind of set), with a fresh secret. All of it is
    /// allocated here. Errors: what getrandom says, in practice none.
    pub fn new(clients: usize) -> io::Result<Self> {
        Ok(Self::with_secret(clients, HashKey::random()?))
    }

    fn with_secret(clients: usize, secret: HashKey) -> Self {
        let buckets = clients.div_ceil(CLIENTS_PER_BUCKET).max(1);
        let buckets = (0..buckets).map(|_| Bucket::default()).collect();
        Self { secret, buckets }
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.buckets)
    }

    /// The endpoint of a new flow of `client`, whose address is that before SNAT (AFF-3): the remembered one, if its
    /// last new flow is less than `timeout` ticks ago and it is in the set still, for which `occupant` gives the
    /// generation of a slot that is; else the one that `pick` picks, which is then remembered (AFF-4). `None` if `pick`
    /// finds none: what is remembered then ages on (AFF-8).
    #[allow(clippy::too_many_arguments, reason = "each is one of the rule's own terms")]
    pub fn choose<A: Address>(
        &self,
        service_port: ServicePortIndex,
        set: EndpointSetKind,
        client: A,
        timeout: u32,
        now: Tick,
        occupant: impl Fn(BackendIndex) -> Option<u32>,
        pick: impl FnOnce() -> Option<Occupant>,
    ) -> Option<Choice> {
        let (bucket, tag) = self.find(service_port, set, client);
        bucket.choose(tag, timeout, now, occupant, pick)
    }

    fn find<A: Address>(
        &self,
        service_port: ServicePortIndex,
        set: EndpointSetKind,
        client: A,
    ) -> (&Bucket<WAYS>, Tag) {
        let [a, b, c, d] = service_port.0.to_be_bytes();
        let name = FlowKey {
            src: client,
            src_port: Port([a, b]),
            dst_port: Port([c, d]),
            protocol: Protocol(set as u8),
            ..FlowKey::default()
        };
        let hash = self.secret.hash(&name).0;
        // The bucket by the high bits (Lemire 2019), the tag by the low ones.
        let bucket = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        (&self.buckets[bucket as usize], Tag::new(hash))
    }
}
