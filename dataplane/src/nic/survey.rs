//! What there is to know of an interface without touching its traffic: what drives it, where it is, its queues and how
//! packets are spread over them.
//!
//! Takes  an interface's name.   Gives  what the kernel and the driver tell; nothing where they do not.
//! Never  changes anything.

use std::io;
use std::path::Path;

use super::ethtool;
use super::interface::Interface;
use super::numa;
use super::offloads;
use super::rss::Rss;

/// An interface, looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The kernel's driver (`ice`, `virtio_net`, `veth`); empty if it has none.
    pub driver: String,
    /// Where the device is: `0000:3b:00.0`; empty for virtual interfaces.
    pub bus: String,
    /// The NUMA node it is at.
    pub numa: Option<u32>,
    /// Receive queues in use.
    pub queues: Option<u32>,
    /// How packets are spread over them.
    pub rss: Option<Rss>,
    /// Offloads that are on, by the kernel's names.
    pub offloads: Vec<String>,
}

impl Survey {
    /// Looks at an interface. Errors: NotFound, InvalidInput for what cannot be a name.
    pub fn of(interface: &str) -> io::Result<Self> {
        let interface = Interface::find(interface)?;
        let hardware = ethtool::hardware(&interface).unwrap_or_default();
        Ok(Self {
            numa: numa::of_device(Path::new(numa::SYS), &hardware.bus),
            driver: hardware.driver,
            bus: hardware.bus,
            queues: ethtool::receive_queues(&interface)
                .ok()
                .filter(|&queues| queues > 0),
            rss: ethtool::rss(&interface).ok().filter(|rss| !rss.table.is_empty()),
            offloads: offloads::on(&interface),
        })
    }

    /// Queues that packets come by: fewer than there are, where the table names fewer.
    pub fn queues_in_use(&self) -> Option<u32> {
        self.rss.as_ref().map(Rss::queues).or(self.queues)
    }
}
