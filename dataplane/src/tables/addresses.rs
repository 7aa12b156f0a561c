//! What each address is to Services, whatever the port: kept while transactions put and delete frontends, and given to
//! the frontend tables as one row per address. An address whose last frontend is gone is remembered for a while, since
//! its flows are not gone (CT-2); how many are remembered is bounded, and the oldest is forgotten first.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::AddressKind;
use super::frontends::Frontend;
use crate::channel::record::FrontendKind;
use crate::index::ServicePortIndex;

/// How many frontends an address has, or since when it has none.
#[derive(Clone, Copy, Default)]
struct Use {
    cluster: u32,
    external: u32,
    former_since: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Addresses {
    uses: BTreeMap<IpAddr, Use>,
    /// Those without frontends, oldest first, by a number that only grows.
    former: BTreeMap<u64, IpAddr>,
    next: u64,
}

impl Addresses {
    /// The address has one more frontend of this kind. Node ports have no address of their own, here as below.
    pub(super) fn gain(&mut self, address: IpAddr, kind: FrontendKind) {
        *self.uses.entry(address).or_default().count(kind) += 1;
    }

    /// The address has lost one that it had.
    pub(super) fn lose(&mut self, address: IpAddr, kind: FrontendKind) {
        *self.uses.entry(address).or_default().count(kind) -= 1;
    }

    /// The address had frontends before anything was counted here. To be settled.
    pub(super) fn had(&mut self, address: IpAddr) {
        self.uses.entry(address).or_default();
    }

    /// Settles an address whose frontends changed; gives an address that is forgotten for it, if there is one. Called
    /// when the transaction is done: an address that loses its last frontend and gains another was never without.
    pub(super) fn settle(&mut self, address: IpAddr, limit: usize) -> Option<IpAddr> {
        let uses = self.uses.get_mut(&address)?;
        let used = uses.cluster + uses.external > 0;
        match uses.former_since {
            Some(since) if used => {
                uses.former_since = None;
                self.former.remove(&since);
            }
            None if !used => {
                uses.former_since = Some(self.next);
                self.former.insert(self.next, address);
                self.next += 1;
            }
            _ => {}
        }
        if self.former.len() <= limit {
            return None;
        }
        let (_, forgotten) = self.former.pop_first()?;
        self.uses.remove(&forgotten);
        Some(forgotten)
    }

    /// The row that tells what the address is. Its service port means nothing, nor does the kind beyond `kind_of`.
    pub(super) fn row(&self, address: IpAddr) -> Option<Frontend> {
        let uses = self.uses.get(&address)?;
        // A cluster IP is one whatever else it is.
        let kind = match (uses.cluster, uses.external) {
            (0, 0) => FrontendKind::NodePort,
            (0, _) => FrontendKind::ExternalIp,
            _ => FrontendKind::ClusterIp,
        };
        let service_port = ServicePortIndex(0);
        Some(Frontend { service_port, kind })
    }

    /// What a row made by `row` says.
    #[inline]
    pub(super) const fn kind_of(row: &Frontend) -> AddressKind {
        match row.kind {
            FrontendKind::ClusterIp => AddressKind::ClusterIp,
            FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp => AddressKind::External,
            // No address is a node port's own.
            FrontendKind::NodePort => AddressKind::Former,
        }
    }
}

impl Use {
    const fn count(&mut self, kind: FrontendKind) -> &mut u32 {
        if kind.is_external() {
            &mut self.external
        } else {
            &mut self.cluster
        }
    }
}
