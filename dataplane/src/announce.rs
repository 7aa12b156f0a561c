//! What was opened, said once at start: a line for each NIC port, and a warning for what an operator should not have to find
//! out under load.
//!
//! Takes  the config, the opened queues, what surveys of their interfaces tell.   Gives  lines to the log.
//! Never  changes anything.

use std::path::Path;

use crate::assemble::Queues;
use crate::config::{Config, DriverKind, NicPort};
use crate::nic::netmap::name::PortName;
use crate::nic::open::Faces;
use crate::nic::rss::Traffic;
use crate::nic::survey::Survey;
use crate::nic::{DriverInfo, numa, oversize};
use crate::steering::Steering;

/// Says what the NIC ports are.
pub(crate) fn ports(config: &Config, queues: &[Queues], steering: &Steering) {
    for (place, port) in config.ports.iter().enumerate() {
        let opened = queues
            .iter()
            .filter_map(|(_, drivers)| drivers.get(place)?.as_ref());
        let infos: Vec<&DriverInfo> = opened.map(|driver| driver.info()).collect();
        let survey = interface(port).and_then(|name| Survey::of(&name).ok());
        let survey = survey.unwrap_or_default();
        log::info!("{}", line(config, port, &infos, &survey, steering));
        let before = config.ports.iter().take(place);
        if before.into_iter().any(|other| other.interface == port.interface) {
            continue;
        }
        let warnings = [
            (port.driver == DriverKind::AfPacket)
                .then(|| oversize::doubt(&port.interface))
                .flatten(),
            unserved(port, infos.len(), &survey),
            far(config, &survey, Path::new(numa::SYS)),
        ];
        for warning in warnings.into_iter().flatten() {
            log::warn!("NIC port {}: {warning}", port.name);
        }
    }
}

/// The kernel's interface that a port opens, if it opens one that was there before.
fn interface(port: &NicPort) -> Option<String> {
    match port.driver {
        DriverKind::AfXdp | DriverKind::AfPacket => Some(port.interface.clone()),
        DriverKind::Netmap => PortName::parse(&port.interface).ok()?.interface,
        DriverKind::Memif | DriverKind::Pcap | DriverKind::Tap => None,
    }
}

/// Whether its queues are the NIC's, each a worker's own.
fn has_hardware_queues(port: &NicPort) -> bool {
    match port.driver {
        DriverKind::AfXdp => true,
        DriverKind::Netmap => PortName::parse(&port.interface).is_ok_and(|name| name.has_queues()),
        _ => false,
    }
}

/// Driver, mode, queues, memory, place, spread.
fn line(
    config: &Config,
    port: &NicPort,
    infos: &[&DriverInfo],
    survey: &Survey,
    steering: &Steering,
) -> String {
    let Some(first) = infos.first() else {
        return format!("NIC port {}: no queue", port.name);
    };
    let mut modes: Vec<&str> = Vec::new();
    for info in infos {
        if !modes.contains(&info.mode.as_str()) {
            modes.push(&info.mode);
        }
    }
    let hardware = match (survey.driver.as_str(), survey.bus.as_str()) {
        ("", _) => String::new(),
        (driver, "") => format!(" ({driver})"),
        (driver, bus) => format!(" ({driver} at {bus})"),
    };
    let queues = match (has_hardware_queues(port), survey.queues) {
        (true, Some(all)) => format!("{} of {all} queues", infos.len()),
        _ => format!("{} queue{}", infos.len(), if infos.len() == 1 { "" } else { "s" }),
    };
    let frames = 2 * infos.len() * port.ring_size as usize * config.frames.size;
    let mut line = format!(
        "NIC port {}: {} {}{hardware}: {}, {queues} with up to {:.1} MiB of frames, {}, MTU {}",
        port.name,
        first.driver,
        first.interface,
        modes.join(" | "),
        frames as f64 / 1_048_576.0,
        first.mac,
        first.mtu,
    );
    if let Some(node) = survey.numa {
        line += &format!(", NUMA node {node}");
    }
    if has_hardware_queues(port) && infos.len() > 1 {
        line += &spread(port, survey, steering);
    }
    line
}

/// Whether the NIC puts packets where their flows are.
fn spread(port: &NicPort, survey: &Survey, steering: &Steering) -> String {
    let Some(rss) = &survey.rss else {
        return ", RSS not told by its driver".to_owned();
    };
    let share = |traffic| {
        let percent = |ipv6| Some(rss.misses(traffic, ipv6, steering)?.percent());
        Some(format!("{} % (IPv6: {} %)", percent(false)?, percent(true)?))
    };
    let (Some(clients), Some(answers)) = (share(Traffic::Clients), share(Traffic::Answers)) else {
        return ", RSS by a function that is not known here".to_owned();
    };
    let shares = match port.faces {
        Faces::Clients => format!("of clients' packets about {clients}"),
        Faces::Endpoints => format!("of answers about {answers}"),
        Faces::Both => format!("of clients' packets about {clients}, of answers about {answers}"),
    };
    let udp = match rss.hashes_udp_ports {
        [true, true] => "",
        [false, false] => "; UDP's are spread by addresses alone",
        [false, true] => "; IPv4 UDP's are spread by addresses alone",
        [true, false] => "; IPv6 UDP's are spread by addresses alone",
    };
    format!(
        ", RSS by Toeplitz with a key of {} bytes and {} entries: {shares} come to another worker than their flow's and are \
         handed over{udp}",
        rss.key.len(),
        rss.table.len(),
    )
}

/// Queues that packets come by and no worker has.
fn unserved(port: &NicPort, workers: usize, survey: &Survey) -> Option<String> {
    let queues = survey.queues_in_use()? as usize;
    (has_hardware_queues(port) && queues > workers).then(|| {
        let interface = interface(port).unwrap_or_default();
        format!(
            "packets come by {queues} queues, of which {workers} have a worker; those of the others never reach the dataplane: \
             ethtool -L {interface} combined {workers}, or ethtool -X {interface} equal {workers}, or raise workers.count"
        )
    })
}

/// Workers that are pinned to CPUs of another NUMA node than the NIC's.
fn far(config: &Config, survey: &Survey, sys: &Path) -> Option<String> {
    let node = survey.numa?;
    let is_far = |&(_, &cpu): &(usize, &usize)| numa::of_cpu(sys, cpu).is_some_and(|its| its != node);
    let cores = config.workers.cores.iter().enumerate();
    let far: Vec<String> = cores
        .filter(is_far)
        .map(|(worker, cpu)| format!("worker {worker} on CPU {cpu}"))
        .collect();
    (!far.is_empty()).then(|| {
        let near = numa::cpus(sys, node).unwrap_or_else(|| "(none)".to_owned());
        format!(
            "it is at NUMA node {node}, and every packet crosses to {}: pin workers to the node's CPUs {near} (workers.cores)",
            far.join(", ")
        )
    })
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::addr::Mac;
    use crate::nic::rss::{self, Rss};

    #[allow(clippy::unwrap_used, reason = "clippy knows only functions marked #[test]")]
    fn config(rest: &str) -> Config {
        let text = format!(
            "
node: {{addresses: [192.0.2.2]}}
ports:
- {{name: uplink, driver: af_xdp, interface: eth0, addresses: [192.0.2.2/24]}}
- {{name: pods, driver: af_packet, interface: eth1, addresses: [198.51.100.1/24]}}
channel: {{socket: /run/sluice/dataplane.sock}}
{rest}"
        );
        Config::parse(&text, Path::new("gateway.yaml")).unwrap()
    }

    fn survey() -> Survey {
        Survey {
            driver: "ice".into(),
            bus: "0000:3b:00.0".into(),
            numa: Some(1),
            queues: Some(8),
            rss: Some(Rss {
                function: rss::TOEPLITZ,
                transformation: 0,
                hashes_ports: [true; 2],
                hashes_udp_ports: [true; 2],
                key: vec![0x6d; 52],
                table: (0..128).map(|n| n % 2).collect(),
            }),
            offloads: Vec::new(),
        }
    }

    #[test]
    fn a_port_is_told_in_one_line_with_all_there_is_to_know() {
        let config = config("workers: {count: 2}");
        let info = |queue| DriverInfo {
            driver: "af_xdp",
            interface: "eth0".into(),
            mode: format!("native, zero-copy, queue {queue}"),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            peer_mac: None,
            mtu: 1500,
        };
        let steering = Steering::new(2, vec![1_024..=29_999]);
        let (zero, one) = (info(0), info(1));
        let told = line(&config, &config.ports[0], &[&zero, &one], &survey(), &steering);
        for part in [
            "NIC port uplink: af_xdp eth0 (ice at 0000:3b:00.0): ",
            "native, zero-copy, queue 0 | native, zero-copy, queue 1",
            "2 of 8 queues with up to 8.0 MiB of frames",
            "02:00:00:00:00:01, MTU 1500, NUMA node 1",
            "Toeplitz with a key of 52 bytes and 128 entries",
        ] {
            assert!(told.contains(part) && !told.contains('\n'), "{part}: {told}");
        }
        // One worker hands nothing over, and virtual interfaces are nowhere.
        let told = line(&config, &config.ports[1], &[&zero], &Survey::default(), &steering);
        assert!(
            !told.contains("RSS") && !told.contains("NUMA") && told.contains("1 queue with"),
            "{told}"
        );
    }

    #[test]
    fn queues_without_a_worker_are_told_with_the_command_that_empties_them() {
        let config = config("");
        let (uplink, pods) = (&config.ports[0], &config.ports[1]);
        let told = unserved(uplink, 1, &survey()).unwrap();
        assert!(
            told.contains("by 2 queues, of which 1 have") && told.contains("ethtool -X eth0 equal 1"),
            "{told}"
        );
        assert_eq!(
            unserved(uplink, 2, &survey()),
            None,
            "the table names two of the eight"
        );
        let untold = Survey {
            rss: None,
            ..survey()
        };
        assert!(unserved(uplink, 2, &untold).unwrap().contains("by 8 queues"));
        assert_eq!(
            unserved(pods, 1, &untold),
            None,
            "a packet socket has what comes by all queues"
        );
    }

    #[test]
    fn workers_far_from_a_nic_are_told_with_the_cpus_that_are_near() {
        let root = numa::tests::machine();
        let told = far(
            &config("workers: {count: 2, cores: [0, 8]}"),
            &survey(),
            root.path(),
        )
        .unwrap();
        assert!(
            told.contains("worker 0 on CPU 0: ") && told.contains("CPUs 8-15"),
            "{told}"
        );
        assert_eq!(
            far(&config("workers: {count: 1, cores: [8]}"), &survey(), root.path()),
            None
        );
        assert_eq!(far(&config(""), &survey(), root.path()), None, "not pinned");
        let nowhere = Survey {
            numa: None,
            ..survey()
        };
        assert_eq!(
            far(&config("workers: {count: 1, cores: [0]}"), &nowhere, root.path()),
            None
        );
    }
}
