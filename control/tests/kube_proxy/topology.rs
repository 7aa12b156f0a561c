//! The recorded network: who has which addresses, behind which NIC port of the gateway (`node1` of the records).

use std::net::IpAddr;

use sluice_dataplane::addr::Mac;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn named(name: &str) -> Self {
        match name {
            "v4" => Self::V4,
            "v6" => Self::V6,
            _ => panic!("no family: {name}"),
        }
    }
}

/// The gateway's NIC ports, in `NicPortIndex` order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nic {
    /// The bridge with both clients; the default route.
    Clients,
    /// The local pods, in the records a veth each.
    Pods,
    /// The router, and behind it the other node's pods.
    Net,
    /// The node itself.
    Host,
}

impl Nic {
    pub(crate) const ALL: [Self; 4] = [Self::Clients, Self::Pods, Self::Net, Self::Host];

    /// The gateway's station address on it.
    pub(crate) const fn mac(self) -> Mac {
        Mac([0x02, 0, 0, 0, 0, self as u8])
    }

    /// The gateway's addresses on it, with their networks; the host port has none of its own.
    pub(crate) const fn addresses(self) -> &'static [&'static str] {
        match self {
            Self::Clients => &["198.51.100.1/24", "2001:db8:c::1/64"],
            Self::Pods => &["10.244.1.1/24", "fd00:244:1::1/64"],
            Self::Net => &["172.18.1.1/24", "fd00:18:1::1/64"],
            Self::Host => &[],
        }
    }
}

/// Somebody with an address.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) name: &'static str,
    addresses: [&'static str; 2],
    /// The gateway's NIC port that its packets come in by.
    pub(crate) nic: Nic,
    /// The last byte of the MAC address that they come from: its own, or the router's.
    mac: u8,
}

const ROUTER: u8 = 30;
/// The kernel's end of the host port.
pub(crate) const KERNEL: Mac = Mac([0x06, 0, 0, 0, 0, 40]);

const fn station(name: &'static str, v4: &'static str, v6: &'static str, nic: Nic, mac: u8) -> Station {
    Station {
        name,
        addresses: [v4, v6],
        nic,
        mac,
    }
}

/// All of them; the node with the address it has on its default route.
pub(crate) const STATIONS: &[Station] = &[
    station("client", "198.51.100.10", "2001:db8:c::10", Nic::Clients, 10),
    station("client2", "198.51.100.20", "2001:db8:c::20", Nic::Clients, 11),
    station("l1", "10.244.1.11", "fd00:244:1::11", Nic::Pods, 20),
    station("l2", "10.244.1.12", "fd00:244:1::12", Nic::Pods, 21),
    station("lc", "10.244.1.13", "fd00:244:1::13", Nic::Pods, 22),
    station("rtr", "172.18.1.254", "fd00:18:1::fe", Nic::Net, ROUTER),
    station("r1", "10.244.2.11", "fd00:244:2::11", Nic::Net, ROUTER),
    station("r2", "10.244.2.12", "fd00:244:2::12", Nic::Net, ROUTER),
    station("rc", "10.244.2.13", "fd00:244:2::13", Nic::Net, ROUTER),
    station("node", "198.51.100.1", "2001:db8:c::1", Nic::Host, 40),
];

/// The node's primary addresses: its InternalIPs.
pub(crate) const PRIMARY: [&str; 2] = ["172.18.1.1", "fd00:18:1::1"];

impl Station {
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        ip(self.addresses[family as usize])
    }

    /// Who its packets come from, on the link.
    pub(crate) const fn mac(&self) -> Mac {
        Mac([0x06, 0, 0, 0, 0, self.mac])
    }

    /// Behind the router: addressed through it, not on the link.
    pub(crate) fn is_behind_router(&self) -> bool {
        self.mac == ROUTER && self.name != "rtr"
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("no address: {text}"))
}

/// The station of this name; the records name sources by what they are.
pub(crate) fn named(name: &str) -> &'static Station {
    let name = match name {
        "pod-local" => "lc",
        "pod-remote" => "rc",
        "external" => "client",
        "external2" => "client2",
        "hairpin-local" => "l1",
        "hairpin-remote" => "r1",
        other => other,
    };
    let found = STATIONS.iter().find(|station| station.name == name);
    found.unwrap_or_else(|| panic!("no station: {name}"))
}

/// The station that has this address.
pub(crate) fn having(address: IpAddr) -> Option<&'static Station> {
    let has = |station: &&Station| station.address(Family::of(address)) == address;
    STATIONS
        .iter()
        .filter(|station| station.nic != Nic::Host)
        .find(has)
}

/// What the records call one of the gateway's addresses.
pub(crate) fn kind(address: IpAddr) -> Option<&'static str> {
    let own = |nic: Nic| {
        let mut addresses = nic.addresses().iter();
        addresses.any(|a| a.split('/').next().is_some_and(|a| ip(a) == address))
    };
    let kinds = [
        (Nic::Net, "node-primary"),
        (Nic::Pods, "node-podside"),
        (Nic::Clients, "node-clientside"),
    ];
    kinds.into_iter().find(|(nic, _)| own(*nic)).map(|(_, kind)| kind)
}
