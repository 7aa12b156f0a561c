//! A config to begin with, for the machine that was looked at: it loads, and its comments say what remains to be decided.
//!
//! Takes  a `Machine`.
//! Gives  the text of a config with every interface that a driver could have; nothing where there is none.
//! Never  says what cannot be known: which side clients are on, routes.

use std::fmt::Write as _;

use super::{Interface, Machine, Presence};

/// The most NIC ports a config can have beside a host port.
const MOST: usize = 254;
/// Most workers of a config.
const MOST_WORKERS: usize = 64;
/// Virtual interfaces that lead to others.
const LINKS: &[&str] = &["veth", "bond", "macvlan"];
/// Descriptors of a ring, and frames of a worker, if nothing else is said.
const RING: usize = 1_024;
const FRAMES: usize = 16_384;

/// The config.
pub fn suggest(machine: &Machine) -> Option<String> {
    let chosen: Vec<(&Interface, &str)> = machine
        .interfaces
        .iter()
        .filter_map(|interface| Some((interface, best(interface)?)))
        .take(MOST)
        .collect();
    if chosen.is_empty() {
        return None;
    }
    let mut text = "# Suggested by sluice-dataplane --probe. Every line is explained in configs/gateway/dataplane.yaml.\n".to_owned();
    node(&mut text, &chosen);
    ports(&mut text, machine, &chosen);
    workers(&mut text, machine, &chosen);
    text += "channel: {socket: /run/sluice/dataplane.sock}\n";
    Some(text)
}

/// The driver to have it with, if it leads to others: hardware, and virtual ones that stand for it. Netmap only where it is
/// asked for by name, since it takes the interface from the kernel.
fn best(interface: &Interface) -> Option<&'static str> {
    if interface.bus.is_empty() && !LINKS.contains(&interface.driver.as_str()) {
        return None;
    }
    let possible = interface.drivers.iter().filter(|verdict| verdict.possible);
    possible
        .map(|verdict| verdict.driver)
        .find(|driver| *driver != "netmap")
}

/// Addresses that a config takes, with their networks.
fn addresses(interface: &Interface) -> Vec<&str> {
    // What every link of IPv6 must carry (RFC 8200 §5).
    let fits = |address: &&str| interface.mtu >= 1_280 || !address.contains(':');
    interface
        .addresses
        .iter()
        .map(String::as_str)
        .filter(fits)
        .collect()
}

fn node(text: &mut String, chosen: &[(&Interface, &str)]) {
    let all = chosen.iter().flat_map(|(interface, _)| addresses(interface));
    let mut own: Vec<&str> = all.filter_map(|address| address.split('/').next()).collect();
    *text += "node:\n";
    if own.is_empty() {
        own.push("192.0.2.2");
        *text += "  # No interface has an address: this is one of documentation. Write the node's own.\n";
    } else {
        *text += "  # Primary of each family first: node ports answer on it.\n";
    }
    let own: Vec<String> = own.iter().map(|address| quoted(address)).collect();
    let _ = writeln!(text, "  addresses: [{}]", own.join(", "));
}

fn ports(text: &mut String, machine: &Machine, chosen: &[(&Interface, &str)]) {
    *text += "ports:\n";
    for (interface, driver) in chosen {
        let (name, own) = (quoted(&interface.name), addresses(interface));
        let _ = writeln!(text, "- name: {name}");
        let how = interface.drivers.iter().find(|verdict| verdict.driver == *driver);
        let how = how.map_or("", |verdict| verdict.how.as_str());
        let _ = writeln!(text, "  driver: {driver} # {how}\n  interface: {name}");
        if !interface.is_up {
            *text += "  # It is down: ip link set it up before.\n";
        }
        if own.is_empty() {
            *text += "  # It has no address; give it one with its network, for example [192.0.2.2/24].\n  addresses: []\n";
        } else {
            let own: Vec<String> = own.iter().map(|address| quoted(address)).collect();
            let _ = writeln!(
                text,
                "  # The kernel has these now. Take them from it (ip addr flush), or both answer: whoever is logged in by this\n  \
                 # interface is then locked out, unless the host port leads back in.\n  addresses: [{}]",
                own.join(", ")
            );
        }
    }
    *text += "# With several workers say of each port who is beyond it, so that packets come to the worker that owns their flow: faces: clients, or\n\
              # endpoints.\n";
    let taken = machine
        .interfaces
        .iter()
        .any(|interface| interface.name == "host0");
    if machine.devices.tun == Presence::Present && machine.privileges.net_admin && !taken {
        *text += "- {name: host0, driver: tap, interface: host0, role: host} # the node's own stack\n";
    }
    *text += "routes: [] # for example {to: 0.0.0.0/0, via: ROUTER}\n";
}

fn workers(text: &mut String, machine: &Machine, chosen: &[(&Interface, &str)]) {
    // A queue without a worker is lost to the dataplane, and a worker needs a queue of every interface.
    let queues = chosen
        .iter()
        .filter(|(_, driver)| *driver == "af_xdp")
        .map(|(interface, _)| interface.rss_queues.or(interface.queues).unwrap_or(1) as usize);
    let (least, most) = (queues.clone().min().unwrap_or(1), queues.max().unwrap_or(1));
    let node = chosen.iter().find_map(|(interface, _)| interface.numa);
    let near = machine
        .cpus
        .iter()
        .filter(|cpu| node.is_none() || cpu.numa.is_none() || cpu.numa == node);
    let near: Vec<usize> = near.map(|cpu| cpu.cpu).collect();
    // One CPU is left to the steward and everybody else.
    let count = least.min(near.len().saturating_sub(1)).clamp(1, MOST_WORKERS);
    if most > count {
        let _ = writeln!(
            text,
            "# Some interface spreads packets over {most} queues: ethtool -L IF combined {count}, or a worker for each, else what comes by the \
             others is lost."
        );
    }
    let _ = writeln!(text, "workers:\n  count: {count}");
    let cores: Vec<String> = near.iter().rev().take(count).map(usize::to_string).collect();
    if cores.len() == count {
        let near = if node.is_some() {
            " # at the NICs' NUMA node"
        } else {
            ""
        };
        let _ = writeln!(text, "  cores: [{}]{near}", cores.join(", "));
    }
    let rings = 2 * RING * (chosen.len() + 1);
    if rings > FRAMES {
        let _ = writeln!(text, "frames: {{count: {}}}", rings.next_power_of_two());
    }
}

/// As a YAML string, whatever is in it: interfaces may be called `null`, `1e3` or `#1`.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{Cpu, Devices, Privileges, verdict::verdicts};
    use super::*;
    use crate::config::Config;
    use crate::nic::census::XdpFeatures;

    fn machine(interfaces: Vec<Interface>, privileges: Privileges) -> Machine {
        let mut machine = Machine {
            privileges,
            devices: Devices {
                tun: Presence::Present,
                ..Devices::default()
            },
            cpus: (0..8)
                .map(|cpu| Cpu {
                    cpu,
                    numa: Some(cpu as u32 / 4),
                })
                .collect(),
            ..Machine::default()
        };
        for mut interface in interfaces {
            interface.drivers = verdicts(&machine, &interface, Some(XdpFeatures(3)));
            machine.interfaces.push(interface);
        }
        machine
    }

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        Interface {
            name: name.into(),
            driver: "veth".into(),
            is_ethernet: true,
            mtu: 1_500,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            ..Interface::default()
        }
    }

    const ROOT: Privileges = Privileges {
        net_raw: true,
        net_admin: true,
        bpf: true,
        in_user_namespace: false,
    };

    #[test]
    fn what_is_suggested_loads_whatever_the_machine() {
        let nic = |name: &str, queues, numa| Interface {
            queues: Some(queues),
            numa,
            ..interface(name, &["192.0.2.7/24", "2001:db8::7/64"])
        };
        let many = (0..300).map(|n| interface(&format!("eth{n}"), &[])).collect();
        let odd = ["null", "1e3", "#1", "{a", "a\"b\\", "true", "host0"].map(|name| interface(name, &[]));
        let small = Interface {
            mtu: 576,
            ..interface("small", &["2001:db8::7/64"])
        };
        let raw = Privileges {
            net_raw: true,
            ..Privileges::default()
        };
        for (what, machine) in [
            (
                "two NICs",
                machine(vec![nic("eth0", 4, Some(1)), nic("eth1", 16, Some(1))], ROOT),
            ),
            ("no address", machine(vec![interface("eth0", &[])], ROOT)),
            ("packet sockets only", machine(vec![nic("eth0", 4, None)], raw)),
            ("300 interfaces", machine(many, ROOT)),
            ("odd names", machine(odd.to_vec(), ROOT)),
            ("an MTU below IPv6's", machine(vec![small], ROOT)),
        ] {
            let text = suggest(&machine).unwrap();
            let config = Config::parse(&text, std::path::Path::new("suggested.yaml"));
            let config = config.unwrap_or_else(|error| panic!("{what}: {error}\n{text}"));
            for (port, interface) in config.ports.iter().zip(&machine.interfaces).take(MOST) {
                assert_eq!(port.interface, interface.name, "{what}");
            }
        }
    }

    #[test]
    fn workers_are_as_many_as_queues_and_near_the_nic() {
        let nic = |queues| Interface {
            queues: Some(queues),
            numa: Some(1),
            ..interface("eth0", &[])
        };
        let parsed = |queues| {
            let text = suggest(&machine(vec![nic(queues)], ROOT)).unwrap();
            (
                Config::parse(&text, std::path::Path::new("suggested.yaml")).unwrap(),
                text,
            )
        };
        let (two, text) = parsed(2);
        assert_eq!((two.workers.count, two.workers.cores), (2, vec![7, 6]));
        assert!(!text.contains("ethtool -L"), "{text}");
        let (sixteen, text) = parsed(16);
        assert_eq!(
            sixteen.workers.count, 3,
            "four CPUs are near, and one is left to others"
        );
        assert!(text.contains("16 queues: ethtool -L IF combined 3"), "{text}");
    }

    #[test]
    fn where_no_driver_could_have_an_interface_nothing_is_suggested() {
        assert_eq!(
            suggest(&machine(vec![interface("eth0", &[])], Privileges::default())),
            None
        );
        assert_eq!(suggest(&machine(vec![], ROOT)), None);
        let mirror = Interface {
            driver: "ifb".into(),
            ..interface("ifb0", &[])
        };
        assert_eq!(suggest(&machine(vec![mirror], ROOT)), None, "it leads to nobody");
    }
}
