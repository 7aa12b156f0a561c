//! Where the gateway is: its ports, addresses and routes (`support::station` draws the same picture).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::bytes::LINK;
use super::gateway::{Fate, addressed};
use super::tables::{Prefix, contains};
use crate::support::station::{KERNEL, Port};
use crate::support::vector::Setup;

#[derive(Clone, Debug)]
pub struct Surroundings {
    pub workers: usize,
    pub host: bool,
    pub default_route: bool,
    /// CT-15's switch.
    pub midstream: bool,
    pub snat_ports: RangeInclusive<u16>,
    /// Of the pods' port.
    pub mtu: usize,
}

/// More flows than a world opens: which one a full table gives up (CT-18) cannot be seen from outside.
const CAPACITY: usize = 4096;

const NODE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 18, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 2)),
];
const OURS_TO_PODS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1)),
];
const CLIENTS: [Prefix; 2] = [
    (IpAddr::V4(Ipv4Addr::new(172, 18, 0, 0)), 24),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, 0)), 64),
];
const PODS: [Prefix; 2] = [
    (IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 24),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0)), 64),
];

impl Surroundings {
    pub fn is_own(&self, address: IpAddr) -> bool {
        NODE.contains(&address) || OURS_TO_PODS.contains(&address)
    }

    /// The same for the workers.
    pub fn setup(&self) -> Setup {
        Setup {
            flows: Some(CAPACITY),
            snat_ports: Some(self.snat_ports.clone()),
            mtu: Some(self.mtu),
            no_host: !self.host,
            no_default_route: !self.default_route,
            no_midstream_pickup: !self.midstream,
            ..Setup::default()
        }
    }

    /// NP-1, NP-2: the primary address, or all of ours in the networks given.
    pub fn has_node_ports(&self, address: IpAddr, networks: &[Prefix]) -> bool {
        if networks.is_empty() {
            return NODE.contains(&address);
        }
        let mut of_family = networks
            .iter()
            .filter(|(network, _)| network.is_ipv4() == address.is_ipv4())
            .peekable();
        self.is_own(address)
            && (of_family.peek().is_none() || of_family.any(|network| contains(*network, address)))
    }

    /// Where an address is.
    pub fn route(&self, address: IpAddr) -> Option<Port> {
        if self.is_own(address) {
            return self.host.then_some(Port::Host);
        }
        if PODS.iter().any(|pods| contains(*pods, address)) {
            return Some(Port::Pods);
        }
        let is_near = CLIENTS.iter().any(|clients| contains(*clients, address));
        (is_near || self.default_route).then_some(Port::Client)
    }

    /// The address that we speak with on a port, to one of the family of `to` (TP-6).
    pub const fn source(&self, port: Port, to: IpAddr) -> IpAddr {
        let ours = match port {
            Port::Pods => OURS_TO_PODS,
            Port::Client | Port::Host => NODE,
        };
        ours[to.is_ipv6() as usize]
    }

    /// A frame that goes on to `address`.
    pub fn send(&self, what: &'static str, out: Port, address: IpAddr, frame: Vec<u8>) -> Fate {
        let mtu = if out == Port::Pods { self.mtu } else { 1500 };
        if frame.len() > mtu + LINK {
            return Fate::Dropped("too-big");
        }
        Fate::Leaves(what, out, addressed(frame, out, out.next_station(address)))
    }

    /// A frame for the node's own stack, as it came.
    pub fn to_host(&self, from: Port, frame: &[u8], reason: &'static str) -> Fate {
        match (self.host, from) {
            (false, _) => Fate::Dropped(reason),
            (true, Port::Host) => Fate::Dropped("no-host-port"),
            (true, _) if frame.len() > 1514 => Fate::Dropped("too-big"),
            (true, _) => {
                let frame = addressed(frame.to_vec(), Port::Host, KERNEL);
                Fate::Leaves("punted", Port::Host, frame)
            }
        }
    }
}

impl fmt::Display for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# workers {}", self.workers)?;
        writeln!(
            f,
            "capacity snat-ports {}-{}",
            self.snat_ports.start(),
            self.snat_ports.end()
        )?;
        f.write_str(if self.host { "" } else { "without host\n" })?;
        f.write_str(if self.midstream {
            ""
        } else {
            "without midstream-pickup\n"
        })
    }
}

pub const fn mac(port: Port) -> [u8; 6] {
    port.mac()
}
