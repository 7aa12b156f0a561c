//! Opens NIC ports: each worker's frame memory and its queue of every port, and what shared interfaces need beside.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{StartError, resources};
use crate::config::{self, Config, DriverKind, MemifMode, MemifRole, Mode};
use crate::index::{NicPortIndex, WorkerIndex};
use crate::nic::fanout::Fanout;
use crate::nic::memif::{self, MemifSpec};
use crate::nic::netmap::name::PortName;
use crate::nic::open::{self, DriverSpec, Faces, PortSpec, Spread};
use crate::nic::overhear::Overhear;
use crate::nic::pcap::PcapSpec;
use crate::nic::xdp_shared::{Keep, SharedMaps, Sharing};
use crate::nic::xdp_socket::Umem;
use crate::nic::{Driver, FrameMemory, vlan};

/// A tap's MTU where there is no other port whose packets it must take: Ethernet's.
const TAP_MTU: usize = 1_500;

/// A worker's frame memory, and its queue of each NIC port that has one for it.
pub(crate) type Queues = (FrameMemory, Vec<Option<Box<dyn Driver>>>);

/// A worker's frame memory and its queue of every NIC port that has one for it.
pub(super) fn open_ports(
    config: &Config,
    worker: WorkerIndex,
    maps: Option<&Arc<SharedMaps>>,
) -> Result<Queues, StartError> {
    let lent = |port: &config::NicPort| port.memif.as_ref().is_some_and(|memif| memif.zero_copy);
    let new = if config.ports.iter().any(lent) {
        FrameMemory::shared
    } else {
        FrameMemory::new
    };
    let mut memory = new(config.frames.count, config.frames.size).map_err(resources("frame memory"))?;
    let mut umem: Option<Umem> = None;
    let mut drivers: Vec<Option<Box<dyn Driver>>> = config.ports.iter().map(|_| None).collect();
    // Taps last: what comes by any other port must fit into them.
    let (taps, others): (Vec<_>, Vec<_>) =
        (config.ports.iter().enumerate()).partition(|(_, port)| port.driver == DriverKind::Tap);
    let mut mtu = 0;
    for (i, port) in others.into_iter().chain(taps) {
        let same = |(_, p): &(usize, &config::NicPort)| p.interface == port.interface;
        let sharing: Vec<_> = config.ports.iter().enumerate().filter(same).collect();
        // What has one queue is worker 0's. An interface with VLANs is opened with its first port.
        let elsewhere = worker.0 > 0 && has_one_queue(port);
        if elsewhere || sharing.first().is_some_and(|(first, _)| *first < i) {
            continue;
        }
        let driver = open::open(&spec(config, port, worker, mtu, maps), &mut memory, &mut umem)?;
        mtu = mtu.max(driver.info().mtu);
        if sharing.len() == 1 && port.vlan.is_none() {
            drivers[i] = Some(driver);
            continue;
        }
        let vlans = vlans(config, &port.interface);
        let shared = vlan::share(driver, &vlans).map_err(resources("file descriptors"))?;
        for ((place, _), driver) in sharing.into_iter().zip(shared) {
            drivers[place] = Some(driver);
        }
    }
    Ok((memory, drivers))
}

/// Files, and all netmap ports but those of an interface that leave open which ring pair.
fn has_one_queue(port: &config::NicPort) -> bool {
    match port.driver {
        DriverKind::Pcap => true,
        DriverKind::Netmap => !PortName::parse(&port.interface).is_ok_and(|name| name.has_queues()),
        DriverKind::AfXdp | DriverKind::AfPacket | DriverKind::Memif | DriverKind::Tap => false,
    }
}

/// `mtu`: the largest of the ports opened before it.
fn spec(
    config: &Config,
    port: &config::NicPort,
    worker: WorkerIndex,
    mtu: usize,
    maps: Option<&Arc<SharedMaps>>,
) -> PortSpec {
    let driver = match port.driver {
        DriverKind::AfXdp => DriverSpec::AfXdp {
            attach: port.attach,
            zero_copy: port.zero_copy,
            busy_poll: port.busy_poll,
            shared: maps.filter(|_| port.mode == Mode::Shared).map(|maps| Sharing {
                maps: Arc::clone(maps),
                vlans: vlans(config, &port.interface),
            }),
        },
        DriverKind::AfPacket => DriverSpec::AfPacket {
            fanout: (config.workers.count > 1).then(|| fanout(config, port)),
        },
        DriverKind::Memif => DriverSpec::Memif(memif_spec(config, port)),
        DriverKind::Netmap => DriverSpec::Netmap,
        DriverKind::Pcap => DriverSpec::Pcap(pcap_spec(port)),
        DriverKind::Tap => DriverSpec::Tap {
            mtu: if mtu == 0 { TAP_MTU } else { mtu },
            queues: config.workers.count > 1,
        },
    };
    PortSpec {
        queue: u32::from(worker.0),
        ring_size: port.ring_size,
        complete_checksums: port.complete_checksums,
        offloads: port.offloads,
        spread: (port.faces != Faces::Both && !has_one_queue(port)).then(|| spread(config, port)),
        ..PortSpec::new(&port.name, &port.interface, driver)
    }
}

/// The VLANs of an interface's ports, in their order; 0: none.
fn vlans(config: &Config, interface: &str) -> Vec<u16> {
    let ports = config.ports.iter().filter(|p| p.interface == interface);
    ports.map(|p| p.vlan.unwrap_or(0)).collect()
}

fn pcap_spec(port: &config::NicPort) -> PcapSpec {
    // The config has been checked: a pcap port has these.
    let pcap = port.pcap.clone().unwrap_or_default();
    PcapSpec {
        read: pcap.read,
        write: pcap.write,
        recorded_pace: pcap.pace == config::Pace::Recorded,
        mac: pcap.mac.map(|station| station.0),
        peer_mac: pcap.peer_mac.map(|station| station.0),
    }
}

fn memif_spec(config: &Config, port: &config::NicPort) -> MemifSpec {
    // The config has been checked: a memif port has these.
    let memif = port.memif.clone().unwrap_or_default();
    MemifSpec {
        socket: memif.socket,
        role: match memif.role {
            MemifRole::Server => memif::Role::Server,
            MemifRole::Client => memif::Role::Client,
        },
        id: memif.id,
        secret: memif.secret,
        queues: u16::from(config.workers.count),
        buffer_size: memif.buffer_size,
        zero_copy: memif.zero_copy,
        interrupts: memif.mode == MemifMode::Interrupt,
        mtu: memif.mtu,
        mac: memif.mac.map(|station| station.0),
        peer_mac: memif.peer_mac.map(|station| station.0),
    }
}

/// How a port's sockets share its packets. A group has one interface, and its number is the network namespace's: so each
/// port its own, counted from one that is likely to be no other process's.
fn fanout(config: &Config, port: &config::NicPort) -> Fanout {
    let first = (rustix::process::getpid().as_raw_nonzero().get() as u16).wrapping_mul(256);
    let nth = config
        .ports
        .iter()
        .position(|p| p.interface == port.interface)
        .unwrap_or(0);
    // Those that are ours (`Network::is_own`).
    let on_ports = config.ports.iter().flat_map(|port| &port.addresses);
    let mut own: Vec<IpAddr> = on_ports
        .map(IpNet::addr)
        .chain(config.node.addresses.clone())
        .collect();
    own.sort_unstable();
    own.dedup();
    Fanout {
        group: first.wrapping_add(nth as u16),
        own,
        ports: config.snat_ports(),
        faces: port.faces,
    }
}

/// How a port's NIC is to share its packets.
fn spread(config: &Config, port: &config::NicPort) -> Spread {
    // What is routed to it is not known here: IPv4 unless it has addresses of IPv6 alone.
    let addresses = config.ports.iter().filter(|p| p.interface == port.interface);
    let mut addresses = addresses.flat_map(|port| &port.addresses).peekable();
    Spread {
        faces: port.faces,
        owners: *config.steering().owners(),
        ipv4: addresses.peek().is_none() || addresses.any(|address| address.addr().is_ipv4()),
    }
}

/// The maps of shared interfaces, if there are any.
///
/// They hold what two generations of full tables mean, whatever is in them: the tables' limits are reached first.
pub(super) fn shared_maps(config: &Config) -> Result<Option<Arc<SharedMaps>>, StartError> {
    if config.ports.iter().all(|port| port.mode != Mode::Shared) {
        return Ok(None);
    }
    check_local_ports(config)?;
    let own = config.node.addresses.len() + config.ports.iter().map(|p| p.addresses.len() + 1).sum::<usize>();
    let frontends = config.tables.frontends as u32;
    let addresses = frontends
        .saturating_add(config.tables.backends as u32)
        .saturating_add(own as u32);
    let ports = frontends.saturating_mul(own as u32).saturating_mul(2);
    // As many as workers have under way, of each family.
    let datagrams = 2 * config.fragments.datagrams as u32 * u32::from(config.workers.count);
    let maps = SharedMaps::new(
        [
            addresses.saturating_mul(2).saturating_add(MAX_NETWORKS),
            ports,
            datagrams,
        ],
        config.snat_ports(),
        config.shared.folder.clone().map(|folder| Keep {
            folder,
            hold: config.shared.hold,
        }),
    );
    let maps = maps.map_err(resources(
        "maps of shared interfaces (CAP_BPF, CAP_NET_ADMIN; shared.folder)",
    ))?;
    Ok(Some(Arc::new(maps)))
}

/// Networks with a meaning, of two generations: a cluster has a handful.
const MAX_NETWORKS: u32 = 4_096;

/// The kernel's own connections must not have ports that SNAT has: replies to them would be taken for Services'.
fn check_local_ports(config: &Config) -> Result<(), StartError> {
    let file = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(file).map_err(resources(file))?;
    let mut numbers = text.split_whitespace().map_while(|n| n.parse::<u16>().ok());
    let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else {
        return Ok(());
    };
    let clash = config
        .snat
        .ports
        .iter()
        .find(|r| *r.0.start() <= last && first <= *r.0.end());
    clash.map_or(Ok(()), |range| {
        Err(StartError::LocalPorts {
            snat: range.0.clone(),
            local: first..=last,
        })
    })
}

/// What the kernel hears on each shared interface.
pub(super) fn overhear(config: &Config) -> Result<Vec<(NicPortIndex, Overhear)>, StartError> {
    let ports = config
        .ports
        .iter()
        .enumerate()
        .filter(|(_, p)| p.mode == Mode::Shared);
    let opened = ports.map(|(i, port)| {
        let socket =
            Overhear::new(&port.interface, port.vlan.unwrap_or(0)).map_err(resources("a packet socket"))?;
        Ok((NicPortIndex(i as u8), socket))
    });
    opened.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_netmap_ports_of_an_interface_have_a_ring_pair_for_every_worker() {
        let port = |interface: &str| {
            let text = format!("{{name: p0, driver: netmap, interface: \"{interface}\"}}");
            serde_saphyr::from_str::<config::NicPort>(&text).unwrap()
        };
        for one in ["netmap:eth0-0", "netmap:eth0^", "vale0:p", "netmap:x{1"] {
            assert!(has_one_queue(&port(one)), "{one}");
        }
        assert!(!has_one_queue(&port("eth0")) && !has_one_queue(&port("netmap:eth0")));
    }

    #[test]
    fn every_af_packet_port_has_a_fanout_group_of_its_own_for_all_workers() {
        let text = "
node: {addresses: [172.18.0.2]}
ports:
- {name: client0, driver: af_packet, interface: client0}
- {name: pods0, driver: af_packet, interface: pods0}
workers: {count: 2}
channel: {socket: /run/sluice/dataplane.sock}
";
        let config = Config::parse(text, std::path::Path::new("gateway.yaml")).unwrap();
        let group = |port: usize, worker| {
            let spec = spec(&config, &config.ports[port], WorkerIndex(worker), 0, None);
            match spec.driver {
                DriverSpec::AfPacket { fanout } => fanout.unwrap().group,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(group(0, 0), group(0, 1));
        assert_ne!(group(0, 0), group(1, 0));
    }
}
