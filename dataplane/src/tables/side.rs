//! What the tables have once per family: the part of them that a packet of that family asks.

use std::sync::Arc;

use super::Tables;
use super::backend::Backend;
use super::chunked::Chunked;
use super::frontends::FrontendTable;
use super::networks::Networks;
use super::service_port::{Family, ServicePort};
use crate::addr::{Address, V4, V6};

/// A family that the tables have a side for: how generic code finds it.
pub trait Keyed: Address {
    /// An address and 64 more bits, as words to compare and to hash.
    type Words: Copy + Default + Eq + Ord + AsRef<[u64]> + Send + Sync;

    /// The address beside `rest`, no two alike; `rest` uses its upper 16 and lower 16 bits only.
    fn words(self, rest: u64) -> Self::Words;

    /// The family's side of the tables.
    fn side(tables: &Tables) -> &Side<Self>;

    /// The same, to be built.
    fn side_mut(tables: &mut Tables) -> &mut Side<Self>;

    /// The family's side of a service port.
    fn family(service_port: &ServicePort) -> &Family<Self>;
}

impl Keyed for V4 {
    type Words = [u64; 1];

    #[inline]
    fn words(self, rest: u64) -> [u64; 1] {
        [u64::from(u32::from_be_bytes(self)) << 16 | rest]
    }

    #[inline]
    fn side(tables: &Tables) -> &Side<Self> {
        &tables.v4
    }

    fn side_mut(tables: &mut Tables) -> &mut Side<Self> {
        &mut tables.v4
    }

    #[inline]
    fn family(service_port: &ServicePort) -> &Family<Self> {
        &service_port.v4
    }
}

impl Keyed for V6 {
    type Words = [u64; 3];

    #[inline]
    fn words(self, rest: u64) -> [u64; 3] {
        let address = u128::from_be_bytes(self);
        [(address >> 64) as u64, address as u64, rest]
    }

    #[inline]
    fn side(tables: &Tables) -> &Side<Self> {
        &tables.v6
    }

    fn side_mut(tables: &mut Tables) -> &mut Side<Self> {
        &mut tables.v6
    }

    #[inline]
    fn family(service_port: &ServicePort) -> &Family<Self> {
        &service_port.v6
    }
}

/// One family's side.
#[derive(Clone)]
pub struct Side<A: Keyed> {
    pub(super) networks: Arc<Networks<A>>,
    pub(super) frontends: FrontendTable<A>,
    /// By slot; the slots are one number space, and each is of the family of its occupant.
    pub(super) backends: Chunked<Option<Backend<A>>, 1024>,
}

impl<A: Keyed> Side<A> {
    pub(super) fn new() -> Self {
        Self {
            networks: Arc::default(),
            frontends: FrontendTable::new(),
            backends: Chunked::new(),
        }
    }

    /// Memory held.
    pub(super) fn bytes(&self) -> usize {
        self.networks.bytes() + self.frontends.bytes() + self.backends.bytes()
    }
}
