//! Networks with a meaning, of one family: pod ranges and Service ranges. Kept as disjoint ordered ranges, so that the
//! answer for an address is a binary search however many there are.

use ipnet::IpNet;

use crate::addr::Address;
use crate::channel::record::NetworkKind;

/// Networks of one family as disjoint ranges, ascending, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<A>(Vec<(A, A)>);

impl<A: Address> Ranges<A> {
    /// Of those networks that are of the family.
    pub(super) fn new(networks: impl Iterator<Item = IpNet>) -> Self {
        let ends = |network: IpNet| Some((A::of(network.network())?, A::of(network.broadcast())?));
        let mut ranges: Vec<_> = networks.filter_map(ends).collect();
        ranges.sort_unstable();
        // Two networks are disjoint or one holds the other, and the one that holds sorts first or starts equal.
        ranges.dedup_by(|next, held| {
            let overlap = next.0 <= held.1;
            held.1 = if overlap { held.1.max(next.1) } else { held.1 };
            overlap
        });
        Self(ranges)
    }

    pub(super) fn contains(&self, address: A) -> bool {
        let after = self.0.partition_point(|range| range.0 <= address);
        after > 0 && address <= self.0[after - 1].1
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Networks<A> {
    pub(super) pods: Ranges<A>,
    pub(super) services: Ranges<A>,
}

impl<A: Address> Default for Networks<A> {
    fn default() -> Self {
        Self::new([].iter())
    }
}

impl<A: Address> Networks<A> {
    pub(super) fn new<'a>(rows: impl Iterator<Item = &'a (NetworkKind, IpNet)> + Clone) -> Self {
        let of = |kind| rows.clone().filter(move |row| row.0 == kind).map(|row| row.1);
        Self {
            pods: Ranges::new(of(NetworkKind::PodRange)),
            services: Ranges::new(of(NetworkKind::ServiceRange)),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.pods.bytes() + self.services.bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::addr::{V4, V6};

    fn ranges<A: Address>(networks: &[&str]) -> Ranges<A> {
        Ranges::new(networks.iter().map(|n| n.parse().unwrap()))
    }

    #[test]
    fn an_address_is_in_a_range_from_its_first_to_its_last() {
        let v4 = ranges::<V4>(&["10.2.0.0/16", "10.0.0.0/24", "192.0.2.7/32", "fd00::/8"]);
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
            assert_eq!(v4.contains(address), expected, "{}", Ipv4Addr::from(address));
        }
        let v6 = ranges::<V6>(&["fd00:1::/64", "fd00:3::5/128", "10.0.0.0/8"]);
        for (address, expected) in [
            ("fd00:0:ffff:ffff:ffff:ffff:ffff:ffff", false),
            ("fd00:1::", true),
            ("fd00:1::ffff:ffff:ffff:ffff", true),
            ("fd00:1:0:1::", false),
            ("fd00:3::5", true),
            ("fd00:3::6", false),
            ("::ffff:10.0.0.1", false),
        ] {
            let octets = address.parse::<Ipv6Addr>().unwrap().octets();
            assert_eq!(v6.contains(octets), expected, "{address}");
        }
    }

    #[test]
    fn a_range_within_another_hides_nothing_of_it() {
        let v4 = ranges::<V4>(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"]);
        assert!(v4.contains([10, 200, 0, 1]) && v4.contains([10, 1, 2, 3]));
        assert_eq!(v4.0.len(), 1);
    }

    #[test]
    fn every_address_of_its_family_and_none_of_the_other_is_in_the_zero_network() {
        let all = ranges::<V4>(&["0.0.0.0/0"]);
        assert!(all.contains([0; 4]) && all.contains([255; 4]));
        assert!(ranges::<V6>(&["0.0.0.0/0"]).is_empty());
        assert!(ranges::<V6>(&["::/0"]).contains([255; 16]) && ranges::<V4>(&["::/0"]).is_empty());
    }
}
