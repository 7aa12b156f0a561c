//! What an interface does to packets by itself that its driver cannot live with: found, and by the port's policy switched off
//! while a port is open, or a reason not to open, or left alone. Which is said in the line that tells of the port.
//!
//! Takes  an interface and what the driver needs of it.
//! Gives  a value that puts back what it changed when the last port of the interface lets go of it; a killed process
//!        cannot, and the line that told of the port names what to switch on again.
//! Never  switches anything on that was off, or touches what no driver of ours needs.

use std::fmt;

use super::OpenError;
use super::ethtool::{self, Feature};
use super::interface::{Interface, InterfaceId};
use super::open::{Offloads, PortSpec};
use super::registry::{Registry, Share};

/// What a driver needs an interface not to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Merge received packets into ones longer than the MTU, anywhere below a socket.
    Unmerged,
    /// Merge them in the NIC, which is what refuses XDP programs (the kernel itself does not merge what XDP has seen).
    Unaggregated,
    /// Take VLAN tags out of received frames: a frame without its tag would seem to be of another network.
    Tagged,
    /// Be given packets to segment and checksum by the host's own stack.
    Finished,
}

/// Features that merge packets in the NIC.
const AGGREGATION: &[&str] = &["rx-lro", "rx-gro-hw"];
/// Features that merge them in the kernel.
const MERGING: &[&str] = &["rx-gro", "rx-gro-list", "rx-udp-gro-forwarding"];
const STRIPPING: &[&str] = &["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
/// Features by which the host's stack leaves work undone. Prefixes: there is one of each for every protocol.
const UNFINISHED: &[&str] = &[
    "tx-checksum-",
    "tx-tcp",
    "tx-udp-segmentation",
    "tx-generic-segmentation",
    "tx-sctp-",
];
/// Features that no driver minds: told if they are on, since they explain what is seen.
const HARMLESS: &[&str] = &[
    "rx-checksum",
    "rx-hashing",
    "tx-checksum-",
    "tx-tcp-segmentation",
    "tx-vlan-hw-insert",
];

impl Need {
    /// Whether the need is that this feature be off.
    fn forbids(self, name: &str) -> bool {
        match self {
            Self::Unmerged => MERGING.contains(&name) || AGGREGATION.contains(&name),
            Self::Unaggregated => AGGREGATION.contains(&name),
            Self::Tagged => STRIPPING.contains(&name),
            Self::Finished => UNFINISHED.iter().any(|prefix| name.starts_with(prefix)),
        }
    }
}

/// The interfaces that were prepared.
static PREPARED: Registry<InterfaceId, Prepared> = Registry::new();

/// An interface made fit for a driver, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Prepared {
    interface: Interface,
    needs: Vec<Need>,
    /// Switched off here, and what was asked for of each before.
    off: Vec<Feature>,
    /// In the way, and still on.
    left: Vec<String>,
    /// On, and in nobody's way.
    harmless: Vec<String>,
}

/// Makes the interface fit for a driver with these needs. Errors: by the policy `refuse`, what is in the way.
pub(crate) fn prepare(
    spec: &PortSpec,
    interface: &Interface,
    needs: &[Need],
) -> Result<Share<InterfaceId, Prepared>, OpenError> {
    PREPARED.hold(
        interface.id(),
        |there| Ok(needs.iter().all(|need| there.needs.contains(need))),
        || Prepared::new(spec, interface, needs),
    )
}

/// Features by which the interface merges received packets, if any is on.
pub(crate) fn merging(interface: &Interface) -> Option<Vec<String>> {
    let features = ethtool::features(interface).ok()?;
    let names = names(
        features
            .iter()
            .filter(|f| f.active && Need::Unmerged.forbids(&f.name)),
    );
    (!names.is_empty()).then_some(names)
}

/// Features that are on and that somebody here cares about.
pub(crate) fn on(interface: &Interface) -> Vec<String> {
    const ALL: [Need; 3] = [Need::Unmerged, Need::Tagged, Need::Finished];
    let told = |name: &str| ALL.iter().any(|need| need.forbids(name)) || is_harmless(name);
    let features = ethtool::features(interface).unwrap_or_default();
    names(
        features
            .iter()
            .filter(|feature| feature.active && told(&feature.name)),
    )
}

fn is_harmless(name: &str) -> bool {
    HARMLESS.iter().any(|prefix| name.starts_with(prefix))
}

impl Prepared {
    fn new(spec: &PortSpec, interface: &Interface, needs: &[Need]) -> Result<Self, OpenError> {
        // An interface that tells nothing is one whose driver has no such features.
        let features = ethtool::features(interface).unwrap_or_default();
        let in_the_way = |f: &&Feature| f.active && needs.iter().any(|need| need.forbids(&f.name));
        let found: Vec<&Feature> = features.iter().filter(in_the_way).collect();
        if spec.offloads == Offloads::Refuse && !found.is_empty() {
            let what = format!(
                "{} on, which this driver cannot live with",
                names(found.iter().copied()).join(" ")
            );
            let advice = format!(
                "{}, or allow it to be done (offloads: fix)",
                switch(interface, &found)
            );
            return Err(spec.refusal(what, advice));
        }
        let mut off = Vec::new();
        if spec.offloads == Offloads::Fix && !found.is_empty() {
            let changes: Vec<_> = found.iter().map(|&feature| (feature, false)).collect();
            // What could not be switched off is seen right below, and told.
            let _ = ethtool::set_features(interface, &changes);
            let now = ethtool::features(interface).unwrap_or_default();
            let changed = features
                .iter()
                .zip(now)
                .filter(|(before, now)| before.requested != now.requested);
            off = changed.map(|(before, _)| before.clone()).collect();
        }
        let now = ethtool::features(interface).unwrap_or_default();
        let left: Vec<&Feature> = now.iter().filter(in_the_way).collect();
        if !left.is_empty() {
            log::warn!(
                "NIC port {}: {} still on, and packets will be lost: {}",
                spec.port,
                names(left.iter().copied()).join(" "),
                switch(interface, &left)
            );
        }
        let harmless = |f: &&Feature| f.active && is_harmless(&f.name);
        Ok(Self {
            interface: Interface::find(interface.name())
                .map_err(|error| spec.error("cannot look up the interface", "check the interface", error))?,
            needs: needs.to_vec(),
            off,
            left: names(left.into_iter()),
            harmless: names(
                now.iter()
                    .filter(harmless)
                    .filter(|f| !needs.iter().any(|n| n.forbids(&f.name))),
            ),
        })
    }
}

fn names<'a>(features: impl Iterator<Item = &'a Feature>) -> Vec<String> {
    features.map(|feature| feature.name.clone()).collect()
}

/// The command that switches them off.
fn switch(interface: &Interface, features: &[&Feature]) -> String {
    let off: String = features.iter().map(|f| format!(" {} off", f.name)).collect();
    format!("ethtool -K {}{off}", interface.name())
}

/// What was found and done, in one clause.
impl fmt::Display for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.off.is_empty() {
            parts.push(format!("switched off: {}", names(self.off.iter()).join(" ")));
        }
        if !self.left.is_empty() {
            parts.push(format!("in the way: {}", self.left.join(" ")));
        }
        if !self.harmless.is_empty() {
            parts.push(format!("left on: {}", self.harmless.join(" ")));
        }
        if parts.is_empty() {
            parts.push("none on".to_owned());
        }
        write!(f, "offloads {}", parts.join(", "))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let back: Vec<_> = self
            .off
            .iter()
            .map(|feature| (feature, feature.requested))
            .collect();
        if back.is_empty() {
            return;
        }
        if let Err(error) = ethtool::set_features(&self.interface, &back) {
            // An interface that is gone needs nothing.
            if error.raw_os_error() != Some(libc::ENODEV) {
                let names = names(self.off.iter()).join(" on ");
                log::warn!("{0}: {error}; ethtool -K {0} {names} on", self.interface.name());
            }
        }
    }
}
