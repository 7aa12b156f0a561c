//! Networks with a meaning: pod ranges, Service ranges, node-port addresses. The first two are asked about single
//! IPv4 addresses and kept as disjoint ordered ranges, so that the answer is a binary search however many there are.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use crate::channel::record::NetworkKind;

/// Disjoint ranges of IPv4 addresses, ascending, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    fn new(networks: impl Iterator<Item = IpNet>) -> Self {
        let v4 = networks.filter_map(|network| match network {
            IpNet::V4(v4) => Some((v4.network().to_bits(), v4.broadcast().to_bits())),
            IpNet::V6(_) => None,
        });
        let mut ranges: Vec<_> = v4.collect();
        ranges.sort_unstable();
        // Two networks are disjoint or one holds the other, and the one that holds sorts first or starts equal.
        ranges.dedup_by(|next, held| {
            let overlap = next.0 <= held.1;
            held.1 = if overlap { held.1.max(next.1) } else { held.1 };
            overlap
        });
        Self(ranges)
    }

    fn contains(&self, address: [u8; 4]) -> bool {
        let address = Ipv4Addr::from(address).to_bits();
        let after = self.0.partition_point(|range| range.0 <= address);
        after > 0 && address <= self.0[after - 1].1
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Networks {
    pods: Ranges,
    services: Ranges,
    node_port_addresses: Vec<IpNet>,
}

impl Networks {
    pub(super) fn new<'a>(rows: impl Iterator<Item = &'a (NetworkKind, IpNet)> + Clone) -> Self {
        let of = |kind| rows.clone().filter(move |row| row.0 == kind).map(|row| row.1);
        Self {
            pods: Ranges::new(of(NetworkKind::PodRange)),
            services: Ranges::new(of(NetworkKind::ServiceRange)),
            node_port_addresses: of(NetworkKind::NodePortAddresses).collect(),
        }
    }

    pub(super) fn has_pod_ranges(&self) -> bool {
        !self.pods.0.is_empty()
    }

    pub(super) fn is_pod(&self, address: [u8; 4]) -> bool {
        self.pods.contains(address)
    }

    pub(super) fn in_service_range(&self, address: [u8; 4]) -> bool {
        self.services.contains(address)
    }

    pub(super) fn node_port_addresses(&self) -> &[IpNet] {
        &self.node_port_addresses
    }

    pub(super) fn bytes(&self) -> usize {
        let ranges = self.pods.0.len() + self.services.0.len();
        ranges * size_of::<(u32, u32)>() + self.node_port_addresses.len() * size_of::<IpNet>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(networks: &[&str]) -> Networks {
        let rows: Vec<_> = networks
            .iter()
            .map(|n| (NetworkKind::PodRange, n.parse().unwrap()))
            .collect();
        Networks::new(rows.iter())
    }

    #[test]
    fn an_address_is_in_a_range_from_its_first_to_its_last() {
        let networks = pods(&["10.2.0.0/16", "10.0.0.0/24", "192.0.2.7/32"]);
        for (address, expected) in [
            ([10, 1, 255, 255], false),
            ([10, 2, 0, 0], true),
            ([10, 2, 255, 255], true),
            ([10, 3, 0, 0], false),
            ([10, 0, 0, 255], true),
            ([10, 0, 1, 0], false),
            ([192, 0, 2, 7], true),
            ([192, 0, 2, 8], false),
            ([0, 0, 0, 0], false),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(networks.is_pod(address), expected, "{address:?}");
        }
    }

    #[test]
    fn a_range_within_another_hides_nothing_of_it() {
        let networks = pods(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"]);
        assert!(networks.is_pod([10, 200, 0, 1]) && networks.is_pod([10, 1, 2, 3]));
        assert_eq!(networks.pods.0.len(), 1);
    }

    #[test]
    fn every_address_is_a_pod_under_the_zero_network_and_none_without_ipv4_ranges() {
        let all = pods(&["0.0.0.0/0"]);
        assert!(all.is_pod([0; 4]) && all.is_pod([255; 4]) && all.has_pod_ranges());
        let none = pods(&["fd00::/8"]);
        assert!(!none.is_pod([10, 0, 0, 1]) && !none.has_pod_ranges());
    }
}
