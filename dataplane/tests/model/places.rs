//! Where everybody is in random worlds: few addresses, so that all meets again. The same picture in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::tables::Prefix;

pub struct Places {
    pub cluster_ips: [IpAddr; 2],
    pub external_ips: [IpAddr; 2],
    pub node: [IpAddr; 2],
    /// Pods of this node, of another one beyond the router, and the node itself.
    pub endpoints: [IpAddr; 5],
    pub outside: [IpAddr; 3],
    /// Nobody's: in the Service range, among the pods, anywhere.
    pub others: [IpAddr; 3],
    pub unspecified: IpAddr,
    pub pods: Prefix,
    pub services: Prefix,
    pub node_ports: [Prefix; 3],
    pub sources: [Prefix; 3],
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(a: u16, b: u16, c: u16, h: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, h))
}

pub static PLACES: [Places; 2] = [
    Places {
        cluster_ips: [v4(10, 96, 0, 10), v4(10, 96, 0, 11)],
        external_ips: [v4(192, 0, 2, 80), v4(203, 0, 113, 80)],
        node: [v4(172, 18, 0, 2), v4(10, 244, 0, 1)],
        endpoints: [
            v4(10, 244, 0, 11),
            v4(10, 244, 0, 12),
            v4(10, 244, 0, 13),
            v4(10, 244, 9, 11),
            v4(172, 18, 0, 2),
        ],
        outside: [v4(172, 18, 0, 7), v4(198, 51, 100, 10), v4(198, 51, 100, 11)],
        others: [v4(10, 96, 0, 99), v4(10, 244, 0, 20), v4(192, 0, 2, 9)],
        unspecified: v4(0, 0, 0, 0),
        pods: (v4(10, 244, 0, 0), 16),
        services: (v4(10, 96, 0, 0), 16),
        node_ports: [
            (v4(10, 244, 0, 0), 16),
            (v4(0, 0, 0, 0), 0),
            (v4(172, 18, 0, 2), 32),
        ],
        sources: [
            (v4(198, 51, 100, 10), 32),
            (v4(172, 18, 0, 0), 24),
            (v4(0, 0, 0, 0), 0),
        ],
    },
    Places {
        cluster_ips: [v6(0xfd00, 0x96, 0, 0x10), v6(0xfd00, 0x96, 0, 0x11)],
        external_ips: [v6(0x2001, 0xdb8, 0, 0x80), v6(0x2001, 0xdb8, 1, 0x80)],
        node: [v6(0xfd00, 0x18, 0, 2), v6(0xfd00, 0x244, 0, 1)],
        endpoints: [
            v6(0xfd00, 0x244, 0, 0x11),
            v6(0xfd00, 0x244, 0, 0x12),
            v6(0xfd00, 0x244, 0, 0x13),
            v6(0xfd00, 0x244, 9, 0x11),
            v6(0xfd00, 0x18, 0, 2),
        ],
        outside: [
            v6(0xfd00, 0x18, 0, 7),
            v6(0x2001, 0xdb8, 5, 0x10),
            v6(0x2001, 0xdb8, 5, 0x11),
        ],
        others: [
            v6(0xfd00, 0x96, 0, 0x99),
            v6(0xfd00, 0x244, 0, 0x20),
            v6(0x2001, 0xdb8, 9, 9),
        ],
        unspecified: v6(0, 0, 0, 0),
        pods: (v6(0xfd00, 0x244, 0, 0), 32),
        services: (v6(0xfd00, 0x96, 0, 0), 48),
        node_ports: [
            (v6(0xfd00, 0x244, 0, 0), 32),
            (v6(0, 0, 0, 0), 0),
            (v6(0xfd00, 0x18, 0, 2), 128),
        ],
        sources: [
            (v6(0x2001, 0xdb8, 5, 0x10), 128),
            (v6(0xfd00, 0x18, 0, 0), 64),
            (v6(0, 0, 0, 0), 0),
        ],
    },
];
