//! What a config must not say: values out of range, and those that contradict each other. In the order of the file.

use std::net::IpAddr;

use super::{Config, DriverKind, Memif, MemifRole, Mode, NicPort, Role, StaticRoute};
use crate::index::WorkerIndex;
use crate::nic::memif::{BUFFER_SIZES, SOCKET_MAX, message};
use crate::nic::netmap::name::PortName;
use crate::nic::open::{Faces, ZeroCopy};

/// Of either, per worker and family: what a link of 10 Gbit/s brings in 80 ms, longer than packets overtake each other. Held
/// fragments are 128 MiB then, in frames of 2,048 bytes.
const MOST_FRAGMENTS: usize = 65_536;

/// A second, as which no call may look.
const MOST_MICROS: u32 = 1_000_000;

impl Config {
    fn bad_route(&self, route: &StaticRoute) -> Option<(&'static str, String)> {
        let via = route.via;
        if route.to.addr().is_ipv4() != via.is_ipv4() {
            return Some(("via", format!("{via} is not of the family of {}", route.to)));
        }
        match (&route.port, self.port_of(route)) {
            (Some(name), None) => Some(("port", format!("there is no NIC port \"{name}\""))),
            (None, None) if is_link_local(via) => Some((
                "port",
                format!("say which NIC port {via} is on: it is link-local"),
            )),
            (None, None) => Some(("via", format!("{via} is on no NIC port's network"))),
            _ => None,
        }
    }

    /// The first field that contradicts another or what is possible, and how.
    pub(super) fn contradiction(&self) -> Option<(String, String)> {
        let found = |field: &str, problem: &str| Some((field.to_owned(), problem.to_owned()));
        if self.node.addresses.is_empty() {
            return found("node.addresses", "give at least one address, the primary first");
        }
        if let Some(address) = self
            .node
            .addresses
            .iter()
            .find(|&&a| !can_be_ours(a) || is_link_local(a))
        {
            let problem = format!("{address} is no address that others can reach this node at");
            return Some(("node.addresses".into(), problem));
        }
        if self.ports.is_empty() || self.ports.len() > 255 {
            return found("ports", "give 1 to 255 NIC ports");
        }
        for (i, port) in self.ports.iter().enumerate() {
            let field = |name: &str| format!("ports[{i}].{name}");
            if port.driver == DriverKind::Netmap {
                let name = PortName::parse(&port.interface);
                if let Err(what) = &name {
                    let problem = format!("the name of a netmap port, \"{}\", {what}", port.interface);
                    return Some((field("interface"), problem));
                }
                if name.is_ok_and(|name| name.is_host()) != (port.role == Role::Host) {
                    let problem = "netmap's host rings (IF^) lead to this host's own stack: their role is \
                                   host, and no other netmap port's";
                    return Some((field("role"), problem.into()));
                }
            } else if port.interface.is_empty() || port.interface.len() > 15 {
                let problem = format!(
                    "\"{}\" is not an interface name: 1 to 15 characters",
                    port.interface
                );
                return Some((field("interface"), problem));
            }
            if let Some(address) = port.addresses.iter().find(|a| !can_be_ours(a.addr())) {
                let problem = format!("{} is no address a station can have", address.addr());
                return Some((field("addresses"), problem));
            }
            if !port.ring_size.is_power_of_two() || !(64..=32_768).contains(&port.ring_size) {
                return Some((field("ringSize"), "must be a power of two, 64 to 32768".into()));
            }
            if port.mode == Mode::Shared && (port.driver != DriverKind::AfXdp || port.role != Role::Link) {
                let problem = "only a link of driver af_xdp can be shared with the kernel";
                return Some((field("mode"), problem.into()));
            }
            let spreads = match port.driver {
                DriverKind::AfXdp | DriverKind::AfPacket => true,
                DriverKind::Netmap => PortName::parse(&port.interface).is_ok_and(|name| name.has_queues()),
                DriverKind::Memif | DriverKind::Pcap | DriverKind::Tap => false,
            };
            if port.faces != Faces::Both && (!spreads || port.role == Role::Host) {
                let problem =
                    "is for links of af_xdp, af_packet and netmap that have a queue for each worker";
                return Some((field("faces"), problem.into()));
            }
            if let Some((name, problem)) = port.bad_af_xdp() {
                return Some((field(name), problem.to_owned()));
            }
            if let Some((name, problem)) = port.bad_memif(&self.ports[..i]) {
                return Some((field(name), problem));
            }
            if let Some((name, problem)) = port.bad_pcap() {
                return Some((field(name), problem));
            }
            if let Some((name, problem)) = port.clash(&self.ports[..i]) {
                return Some((field(name), problem));
            }
        }
        if self.ports.iter().filter(|p| p.role == Role::Host).count() > 1 {
            return found("ports", "only one NIC port can be the host port");
        }
        if self.workers.count == 0 || self.workers.count > 64 {
            return found("workers.count", "must be 1 to 64");
        }
        // A queue's places are counted in memory: 65,536 of 2 KiB are 128 MiB.
        if !(1..=65_536).contains(&self.workers.letters) {
            return found("workers.letters", "must be 1 to 65536");
        }
        if !self.workers.cores.is_empty() && self.workers.cores.len() != usize::from(self.workers.count) {
            return found("workers.cores", "give one CPU for each worker, or none at all");
        }
        for (i, route) in self.routes.iter().enumerate() {
            if let Some((field, problem)) = self.bad_route(route) {
                return Some((format!("routes[{i}].{field}"), problem));
            }
        }
        if self.flows.capacity == 0 || self.flows.capacity > 1 << 30 {
            return found("flows.capacity", "must be 1 to 1073741824");
        }
        if !(1..=100).contains(&self.flows.embryonic_percent) {
            return found("flows.embryonicPercent", "must be 1 to 100");
        }
        let steering = self.steering();
        let mut shares = (0..self.workers.count).map(|worker| steering.source_ports(WorkerIndex(worker)));
        if let Some(error) = shares.find_map(|share| share.check().err()) {
            return Some(("snat.ports".into(), error.to_string()));
        }
        if self.snat.resting_ports > 1 << 30 {
            return found("snat.restingPorts", "must be 0 to 1073741824");
        }
        for (field, limit) in [
            ("tables.servicePorts", self.tables.service_ports),
            ("tables.frontends", self.tables.frontends),
            ("tables.backends", self.tables.backends),
            ("snat.destinations", self.snat.destinations),
            ("neighbours.capacity", self.neighbours.capacity),
        ] {
            // Above any use, and below where a size in bytes or an index of 32 bits would overflow.
            if limit == 0 || limit > 1 << 26 {
                return found(field, "must be 1 to 67108864");
            }
        }
        for (field, limit) in [
            ("fragments.datagrams", self.fragments.datagrams),
            ("fragments.held", self.fragments.held),
        ] {
            if limit == 0 || limit > MOST_FRAGMENTS {
                return Some((field.to_owned(), format!("must be 1 to {MOST_FRAGMENTS}")));
            }
        }
        let first = |&(i, p): &(usize, &NicPort)| !self.ports[..i].iter().any(|q| q.interface == p.interface);
        let interfaces = self.ports.iter().enumerate().filter(first);
        let rings: usize = interfaces.map(|(_, p)| 2 * p.ring_size as usize).sum();
        if self.frames.count < rings {
            let problem = format!("must be at least {rings}: two rings of frames for every NIC port");
            return Some(("frames.count".into(), problem));
        }
        None
    }
}

impl NicPort {
    /// What of its memif options contradicts those of the ports before it, or itself.
    fn bad_memif(&self, before: &[Self]) -> Option<(&'static str, String)> {
        let of = |port: &Self| port.memif.clone().filter(|_| port.interface != self.interface);
        let (memif, others) = match (self.driver, &self.memif) {
            (DriverKind::Memif, Some(memif)) => (memif, before.iter().filter_map(of)),
            (DriverKind::Memif, None) => {
                return Some((
                    "memif",
                    "say where the peer is: {socket: PATH, role: server or client}".into(),
                ));
            }
            (_, Some(_)) => return Some(("memif", "is for driver memif only".into())),
            _ => return None,
        };
        if memif.socket.is_empty() || memif.socket.len() > SOCKET_MAX {
            let problem = format!(
                "\"{}\" is no socket: a path of 1 to {SOCKET_MAX} bytes, or @ and a name",
                memif.socket
            );
            return Some(("memif.socket", problem));
        }
        if memif.secret.len() >= message::SECRET || memif.secret.contains('\0') {
            return Some((
                "memif.secret",
                format!(
                    "must have at most {} bytes, none of them zero",
                    message::SECRET - 1
                ),
            ));
        }
        if !BUFFER_SIZES.contains(&memif.buffer_size) || memif.buffer_size % 64 != 0 {
            let (least, most) = (BUFFER_SIZES.start(), BUFFER_SIZES.end());
            return Some((
                "memif.bufferSize",
                format!("must be a multiple of 64, {least} to {most}"),
            ));
        }
        if memif.zero_copy && memif.role == MemifRole::Server {
            let problem = "is the client's to choose, whose memory it is: leave it out here";
            return Some(("memif.zeroCopy", problem.into()));
        }
        let same = |other: &Memif| other.socket == memif.socket && other.role == memif.role;
        let clashes =
            |other: &Memif| same(other) && (other.id == memif.id || memif.role == MemifRole::Server);
        if others.into_iter().any(|other| clashes(&other)) {
            let problem = "two servers cannot listen at one socket, nor two clients be one interface there";
            return Some(("memif.socket", problem.into()));
        }
        None
    }

    /// What of AF_XDP's options cannot be.
    fn bad_af_xdp(&self) -> Option<(&'static str, &'static str)> {
        let other = self.driver != DriverKind::AfXdp;
        match self.busy_poll {
            _ if other && self.zero_copy != ZeroCopy::Auto => Some(("zeroCopy", "is for driver af_xdp only")),
            Some(_) if other => Some(("busyPoll", "is for driver af_xdp only")),
            Some(poll) if poll.micros == 0 || poll.micros > MOST_MICROS => {
                Some(("busyPoll.micros", "must be 1 to 1000000"))
            }
            Some(poll) if poll.budget == 0 => Some(("busyPoll.budget", "must be 1 to 65535")),
            _ => None,
        }
    }

    /// What of its files cannot be.
    fn bad_pcap(&self) -> Option<(&'static str, String)> {
        match (self.driver, &self.pcap) {
            (DriverKind::Pcap, Some(pcap)) if pcap.read.is_none() && pcap.write.is_none() => {
                Some(("pcap", "give a file to read, one to write, or both".into()))
            }
            (DriverKind::Pcap, Some(pcap)) if pcap.read == pcap.write => {
                Some(("pcap.write", "would empty the file that is to be read".into()))
            }
            (DriverKind::Pcap, None) => Some(("pcap", "say which files: {read: PATH, write: PATH}".into())),
            (DriverKind::Pcap, Some(_)) | (_, None) => None,
            (_, Some(_)) => Some(("pcap", "is for driver pcap only".into())),
        }
    }

    /// What of it contradicts the ports before it, or itself.
    fn clash(&self, before: &[Self]) -> Option<(&'static str, String)> {
        if before.iter().any(|p| p.name == self.name) {
            return Some(("name", "must differ from every other port's".into()));
        }
        if self.vlan.is_some_and(|vlan| !(1..=4_094).contains(&vlan)) {
            return Some(("vlan", "must be 1 to 4094".into()));
        }
        if self.vlan.is_some() && self.driver == DriverKind::Tap {
            return Some(("vlan", "a tap has no VLANs".into()));
        }
        let shared = before.iter().find(|p| p.interface == self.interface)?;
        let of_vlan = |p: &&Self| p.interface == self.interface && p.vlan == self.vlan;
        if before.iter().any(|p| of_vlan(&p)) {
            let problem = "ports of one interface must each have a VLAN of their own, one may have none";
            return Some(("vlan", problem.into()));
        }
        let alike = (
            self.driver,
            &self.memif,
            self.mode,
            (self.attach, self.zero_copy, self.busy_poll),
            self.ring_size,
            self.complete_checksums,
            (self.offloads, self.faces),
        ) == (
            shared.driver,
            &shared.memif,
            shared.mode,
            (shared.attach, shared.zero_copy, shared.busy_poll),
            shared.ring_size,
            shared.complete_checksums,
            (shared.offloads, shared.faces),
        );
        let problem = format!(
            "shares {} with {}: driver, its options, mode, attach, zeroCopy, busyPoll, ringSize, completeChecksums, offloads and faces must be alike",
            self.interface, shared.name
        );
        (!alike).then_some(("interface", problem))
    }
}

const fn can_be_ours(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

pub(super) const fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
