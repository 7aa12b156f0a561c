//! The stations around the gateway: who is behind which NIC port, and the MAC addresses by which they are told apart.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The gateway's NIC ports, in `NicPortIndex` order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// 172.18.0.2/24, fd00:18::2/64; the router 172.18.0.1, fd00:18::1 and, behind it, everybody else.
    Client,
    /// 10.244.0.1/24, fd00:244::1/64; the pods.
    Pods,
    /// The node's own network stack.
    Host,
}

/// A MAC address as it is on the wire.
pub type Mac = [u8; 6];

/// ff:ff:ff:ff:ff:ff.
pub const BROADCAST: Mac = [0xff; 6];
/// The kernel's end of the host port.
pub const KERNEL: Mac = [0x02, 0x5e, 0, 0, 1, 2];
/// The router on the client side.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
/// Its IPv6 address.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 1);

impl Port {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Client, Self::Pods, Self::Host];

    /// The name in vectors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Pods => "pods",
            Self::Host => "host",
        }
    }

    /// The port of this name.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|port| port.name() == name);
        found.ok_or_else(|| format!("\"{name}\" is no NIC port: client, pods or host"))
    }

    /// The gateway's own address on it.
    pub const fn mac(self) -> Mac {
        [0x02, 0x5e, 0, 0, 0, self as u8]
    }

    /// The station that packets from and to `address` pass on this port.
    pub fn next_station(self, address: IpAddr) -> Mac {
        match (self, address) {
            (Self::Client, IpAddr::V4(address)) if address.octets()[..3] != ROUTER.octets()[..3] => {
                station(ROUTER)
            }
            (Self::Client, IpAddr::V6(address))
                if address.octets()[..8] != ROUTER_V6.octets()[..8]
                    && !address.is_unicast_link_local()
                    && !address.is_unspecified() =>
            {
                station(ROUTER_V6)
            }
            (Self::Client | Self::Pods, _) => station(address),
            (Self::Host, _) => KERNEL,
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The MAC address of the station that has `address`. IPv6 stations differ in the second and in the last 16 bits.
pub fn station(address: impl Into<IpAddr>) -> Mac {
    match address.into() {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [0x06, 0, a, b, c, d]
        }
        IpAddr::V6(address) => {
            let [_, _, a, b, .., c, d] = address.octets();
            [0x06, 6, a, b, c, d]
        }
    }
}

/// A MAC address as vectors write it: a NIC port's name, `kernel`, `broadcast`, `@` and a station's IP address, or hex.
pub fn mac_name(mac: Mac) -> String {
    match mac {
        BROADCAST => "broadcast".to_owned(),
        KERNEL => "kernel".to_owned(),
        [0x06, 0, a, b, c, d] => format!("@{}", Ipv4Addr::new(a, b, c, d)),
        [0x06, 6, a, b, c, d] => {
            let [net, host] = [[a, b], [c, d]].map(u16::from_be_bytes);
            format!("@{}", Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, host))
        }
        _ => Port::ALL.into_iter().find(|port| port.mac() == mac).map_or_else(
            || mac.map(|byte| format!("{byte:02x}")).join(":"),
            |port| port.name().to_owned(),
        ),
    }
}

/// The MAC address of that name.
pub fn mac_named(name: &str) -> Result<Mac, String> {
    if let Ok(port) = Port::named(name) {
        return Ok(port.mac());
    }
    if let Some(address) = name.strip_prefix('@') {
        return address
            .parse()
            .map(|address: IpAddr| station(address))
            .map_err(|_| format!("\"{name}\" is no station"));
    }
    match name {
        "broadcast" => Ok(BROADCAST),
        "kernel" => Ok(KERNEL),
        _ => {
            let bytes: Result<Vec<u8>, _> =
                name.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
            let mac = bytes.ok().and_then(|bytes| bytes.try_into().ok());
            mac.ok_or_else(|| {
                format!("\"{name}\" is no MAC address: a NIC port, kernel, broadcast, @IP or hex")
            })
        }
    }
}

#[test]
fn every_station_has_its_own_mac_address_and_name() {
    let pod = station(Ipv4Addr::new(10, 244, 0, 11));
    let pod_v6 = station(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0x11));
    for mac in [
        BROADCAST,
        KERNEL,
        Port::Client.mac(),
        Port::Pods.mac(),
        Port::Host.mac(),
        pod,
        pod_v6,
        [1, 2, 3, 4, 5, 6],
    ] {
        assert_eq!(mac_named(&mac_name(mac)).unwrap(), mac);
    }
    assert_eq!(
        Port::Client.next_station(Ipv4Addr::new(198, 51, 100, 10).into()),
        station(ROUTER)
    );
    assert_eq!(
        Port::Client.next_station("2001:db8::10".parse().unwrap()),
        station(ROUTER_V6)
    );
}
