//! What each driver could do with an interface, and if nothing, why and what to do about it.

use std::fmt;

use serde::Serialize;

use super::{Interface, Machine, Presence};
use crate::nic::census::XdpFeatures;

/// What a driver could do with an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// As in the config.
    pub driver: &'static str,
    /// Whether the port would open now.
    pub possible: bool,
    /// In which mode; or why not, and what to do.
    pub how: String,
}

/// Drivers of the kernel's that let sockets share memory with the hardware, for kernels that do not tell (before 6.3).
const ZERO_COPY: &[&str] = &["i40e", "ice", "igc", "ixgbe", "mlx5_core", "stmmac"];
/// Those that run XDP programs.
const NATIVE: &[&str] = &[
    "bnxt_en",
    "ena",
    "hv_netvsc",
    "igb",
    "ixgbevf",
    "mlx4_en",
    "mvneta",
    "nfp",
    "qede",
    "sfc",
    "veth",
    "virtio_net",
];

/// Of the drivers that open an interface which is there, in the order in which to prefer them.
pub(super) fn verdicts(machine: &Machine, interface: &Interface, xdp: Option<XdpFeatures>) -> Vec<Verdict> {
    let verdict = |driver, how: Result<String, String>| Verdict {
        driver,
        possible: how.is_ok(),
        how: how.unwrap_or_else(|why| why),
    };
    let fit = |how: Result<String, String>| match unfit(interface) {
        Some(why) => Err(why),
        None => how,
    };
    vec![
        verdict("af_xdp", fit(af_xdp(machine, interface, xdp))),
        verdict("netmap", fit(netmap(machine))),
        verdict("af_packet", fit(af_packet(machine))),
    ]
}

/// Why no driver should have it.
fn unfit(interface: &Interface) -> Option<String> {
    let why = if !interface.is_ethernet {
        "it is no Ethernet link"
    } else if interface.is_enslaved {
        "it is a port of a bridge or bond, whose packets these are"
    } else if interface.driver == "tun" {
        "it is another program's tap: the host port is one that the dataplane makes (driver: tap)"
    } else {
        return None;
    };
    Some(why.to_owned())
}

fn af_xdp(machine: &Machine, interface: &Interface, xdp: Option<XdpFeatures>) -> Result<String, String> {
    let privileges = machine.privileges;
    if privileges.in_user_namespace {
        return Err("bpf(2) is not for a user namespace: run as root of the machine".to_owned());
    }
    let lacking: Vec<&str> = [
        (privileges.bpf, "CAP_BPF"),
        (privileges.net_admin, "CAP_NET_ADMIN"),
        (privileges.net_raw, "CAP_NET_RAW"),
    ]
    .into_iter()
    .filter_map(|(held, name)| (!held).then_some(name))
    .collect();
    if !lacking.is_empty() {
        return Err(format!("needs {}: run as root", lacking.join(" ")));
    }
    if interface.has_xdp_program {
        let name = &interface.name;
        return Err(format!(
            "another XDP program is attached: stop its owner or ip link set {name} xdp off"
        ));
    }
    let driver = interface.driver.as_str();
    Ok(match xdp {
        Some(xdp) if xdp.zero_copy() => "native, zero-copy".to_owned(),
        Some(xdp) if xdp.native() => "native, copy".to_owned(),
        Some(_) => "generic, copy: its driver runs no XDP programs".to_owned(),
        None if ZERO_COPY.contains(&driver) => "native, zero-copy likely".to_owned(),
        None if NATIVE.contains(&driver) => "native likely, copy".to_owned(),
        None => "generic at least: this kernel does not tell more".to_owned(),
    })
}

fn netmap(machine: &Machine) -> Result<String, String> {
    match machine.devices.netmap {
        Presence::Present => Ok("native where netmap has its driver, else emulated".to_owned()),
        Presence::Forbidden => Err("/dev/netmap is not for this user: run as root".to_owned()),
        Presence::Absent => Err("netmap's kernel module is not loaded (modprobe netmap)".to_owned()),
    }
}

fn af_packet(machine: &Machine) -> Result<String, String> {
    match (machine.privileges.net_raw, machine.privileges.net_admin) {
        (true, true) => Ok("copy".to_owned()),
        (true, false) => Ok("copy; without CAP_NET_ADMIN merging (GRO) cannot be switched off".to_owned()),
        _ => Err("needs CAP_NET_RAW: run as root, or as root of a user namespace (unshare -Urn)".to_owned()),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let can = if self.possible { "" } else { "no: " };
        write!(f, "{}: {can}{}", self.driver, self.how)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Devices, Privileges};
    use super::*;

    const ROOT: Privileges = Privileges {
        net_raw: true,
        net_admin: true,
        bpf: true,
        in_user_namespace: false,
    };

    fn said(privileges: Privileges, change: impl FnOnce(&mut Interface), xdp: Option<u64>) -> Vec<String> {
        let machine = Machine {
            privileges,
            devices: Devices {
                netmap: Presence::Absent,
                tun: Presence::Present,
            },
            ..Machine::default()
        };
        let mut interface = Interface {
            name: "eth0".into(),
            driver: "ice".into(),
            is_ethernet: true,
            ..Interface::default()
        };
        change(&mut interface);
        let verdicts = verdicts(&machine, &interface, xdp.map(XdpFeatures));
        verdicts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_xdp_can_do_is_the_kernels_word_and_else_what_its_driver_is_known_for() {
        let af_xdp = |driver: &str, xdp| said(ROOT, |i| i.driver = driver.into(), xdp).remove(0);
        assert_eq!(af_xdp("ice", Some(0b1011)), "af_xdp: native, zero-copy");
        assert_eq!(af_xdp("ice", Some(0b0011)), "af_xdp: native, copy");
        assert!(
            af_xdp("ice", Some(0)).contains("generic"),
            "the kernel knows better than the name"
        );
        assert!(af_xdp("ice", None).contains("zero-copy likely"));
        assert!(af_xdp("veth", None).contains("native likely"));
        assert!(af_xdp("r8169", None).contains("generic at least"));
    }

    #[test]
    fn who_lacks_privileges_is_told_which_and_how_to_have_them() {
        let none = Privileges {
            in_user_namespace: false,
            ..Privileges::default()
        };
        let told = said(none, |_| {}, Some(3)).join("\n");
        assert!(
            told.contains("needs CAP_BPF CAP_NET_ADMIN CAP_NET_RAW: run as root"),
            "{told}"
        );
        assert!(
            told.contains("af_packet: no: needs CAP_NET_RAW") && told.contains("unshare -Urn"),
            "{told}"
        );
        let namespaced = Privileges {
            in_user_namespace: true,
            ..ROOT
        };
        let told = said(namespaced, |_| {}, Some(3)).join("\n");
        assert!(
            told.contains("af_xdp: no: bpf(2)") && told.contains("af_packet: copy"),
            "{told}"
        );
    }

    #[test]
    fn interfaces_that_are_somebody_elses_are_no_drivers() {
        let changes: [fn(&mut Interface); 3] = [
            |i| i.is_ethernet = false,
            |i| i.is_enslaved = true,
            |i| i.driver = "tun".into(),
        ];
        for change in changes {
            assert!(
                said(ROOT, change, Some(3))
                    .iter()
                    .all(|told| told.contains(": no: "))
            );
        }
        let told = said(ROOT, |i| i.has_xdp_program = true, Some(3));
        assert!(
            told[0].contains("ip link set eth0 xdp off") && told[2] == "af_packet: copy",
            "{told:?}"
        );
    }
}
