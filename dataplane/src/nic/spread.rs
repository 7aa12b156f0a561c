//! A NIC's receive-side scaling set so that packets come to the queue of the worker that owns their flow, for as long as a
//! port of it is open.
//!
//! Takes  an interface, who is beyond it and the worker of each class.
//! Gives  a value that puts back what it changed when the last port of the interface lets go of it; a killed process
//!        cannot, and the next start sets the same.
//! Never  a reason not to open: what cannot be set is told, and packets that come to others are handed over as ever.

use std::io;

use super::ethtool;
use super::interface::{Interface, InterfaceId};
use super::open::{PortSpec, Spread};
use super::registry::{Registry, Share};
use super::rss::Rss;

/// The interfaces that were set.
static SET: Registry<InterfaceId, Spreading> = Registry::new();

/// An interface's spreading, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Spreading {
    interface: Interface,
    /// What it was, if it was changed.
    before: Option<Rss>,
    /// What was hashed before, of the types of flows for which that was changed.
    fields: Vec<(u32, u32)>,
    /// Why it is not as it was to be.
    failure: Option<String>,
}

/// Sets the interface's spreading as `spec` has it. `None` if there is nothing to set.
pub(crate) fn set(spec: &PortSpec, interface: &Interface) -> Option<Share<InterfaceId, Spreading>> {
    let spread = spec.spread.as_ref()?;
    if ethtool::receive_queues(interface).is_ok_and(|queues| queues == 1) {
        return None;
    }
    let make = || {
        let spreading = Spreading::new(spread, Interface::find(interface.name())?);
        if let Some(failure) = &spreading.failure {
            log::warn!(
                "NIC port {}: {failure}; packets come to other workers than their flows'",
                spec.port
            );
        }
        Ok::<_, io::Error>(spreading)
    };
    SET.hold(interface.id(), |_| Ok(true), make).ok()
}

impl Spreading {
    fn new(spread: &Spread, interface: Interface) -> Self {
        let mut new = Self {
            interface,
            before: None,
            fields: Vec::new(),
            failure: None,
        };
        new.failure = new.change(spread).err();
        new
    }

    fn change(&mut self, spread: &Spread) -> Result<(), String> {
        let interface = &self.interface;
        let before = ethtool::rss(interface)
            .map_err(|error| format!("{} has no RSS that could be set: {error}", interface.name()))?;
        let wanted = before
            .set_for(spread)
            .map_err(|lack| format!("the RSS of {} cannot be set: it has {lack}", interface.name()))?;
        let mut fields = ethtool::all_hash_fields(interface);
        fields.retain(|(_, fields)| *fields != ethtool::ALL);
        let set = |error: io::Error| format!("the RSS of {} cannot be set: {error}", interface.name());
        if wanted != before {
            ethtool::set_rss(interface, &wanted).map_err(set)?;
            self.before = Some(before);
        }
        // What cannot be set is seen in the line that tells of the port, which reads it again.
        for (flow, fields) in fields {
            if ethtool::set_hash_fields(interface, flow, None).is_ok() {
                self.fields.push((flow, fields));
            }
        }
        Ok(())
    }
}

/// What was done, as the end of a port's mode.
pub(crate) fn told(spreading: Option<&Spreading>) -> &'static str {
    match spreading {
        None => "",
        Some(Spreading { failure: Some(_), .. }) => ", RSS as it was",
        Some(Spreading { before: Some(_), .. }) => ", RSS set by owner",
        Some(_) => ", RSS by owner already",
    }
}

impl Drop for Spreading {
    fn drop(&mut self) {
        for (flow, fields) in &self.fields {
            // As the driver said it was; one that refuses this now cannot be helped.
            let _ = ethtool::set_hash_fields(&self.interface, *flow, Some(*fields));
        }
        let Some(before) = &self.before else { return };
        if let Err(error) = ethtool::set_rss(&self.interface, before)
            // An interface that is gone needs nothing.
            && error.raw_os_error() != Some(libc::ENODEV)
        {
            log::warn!(
                "the RSS of {} stays as it was set for Services: {error}",
                self.interface.name()
            );
        }
    }
}
