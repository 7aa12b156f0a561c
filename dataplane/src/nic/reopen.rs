//! A port whose interface may be deleted and made again, as veth pairs are, and NICs whose driver is loaded anew.
//!
//! Takes  a driver's port that is open, and how to open it.
//! Gives  the same port for good: closed when its interface is gone, opened when one of its name is back, counters going on.
//! Never  looks for either but in `tend`, once a second. Until then packets are refused as by a port without a peer.

use std::fmt::Display;
use std::os::fd::BorrowedFd;

use super::interface::Interface;
use super::open::PortSpec;
use super::{Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link, OpenError};
use crate::addr::Mac;

/// How a port is opened again.
pub(crate) type Open<D> = Box<dyn Fn(&PortSpec, &mut FrameMemory) -> Result<D, OpenError> + Send>;

/// See the module.
pub(crate) struct Reopening<D> {
    port: Option<D>,
    open: Open<D>,
    spec: PortSpec,
    /// As neighbours, and the start-up line, know it.
    info: DriverInfo,
    /// Of ports that are closed.
    before: DriverStats,
    /// Why it was not opened again: the same is no news a second later.
    said: String,
}

impl<D: Driver> Reopening<D> {
    pub(crate) fn new(spec: &PortSpec, port: D, open: Open<D>) -> Self {
        Self {
            info: port.info().clone(),
            port: Some(port),
            open,
            spec: spec.clone(),
            before: DriverStats::default(),
            said: String::new(),
        }
    }

    fn let_go(&mut self, memory: &mut FrameMemory) {
        self.before = self.stats();
        if let Some(port) = self.port.take() {
            Box::new(port).close(memory);
        }
        let PortSpec { port, interface, .. } = &self.spec;
        log::warn!("NIC port {port}: {interface} is gone; it is opened again when it is back");
        self.said.clear();
    }

    fn open_again(&mut self, memory: &mut FrameMemory) {
        // That it is not there yet is what was said when it went.
        let Ok(interface) = Interface::find(&self.spec.interface) else {
            return;
        };
        restore_station(&self.spec, &interface, self.info.mac);
        match (self.open)(&self.spec, memory) {
            Ok(port) => {
                let mode = &port.info().mode;
                log::info!(
                    "NIC port {}: {} is back, {mode}",
                    self.spec.port,
                    self.spec.interface
                );
                self.info.mode.clone_from(mode);
                self.port = Some(port);
            }
            Err(error) => self.say(error),
        }
    }

    fn say(&mut self, error: impl Display) {
        let error = error.to_string();
        if self.said != error {
            log::warn!("{error}; trying on");
            self.said = error;
        }
    }
}

/// An interface that is made anew may have another hardware address; neighbours, and the host port, know the old one.
pub(crate) fn restore_station(spec: &PortSpec, interface: &Interface, station: Mac) {
    let restored = match interface.mac() {
        Ok(mac) if mac != station => interface.set_mac(station),
        _ => return,
    };
    if let Err(error) = restored {
        log::warn!(
            "NIC port {}: {} is back with another hardware address ({error}): ip link set {} address {station}",
            spec.port,
            spec.interface,
            interface.name()
        );
    }
}

impl<D: Driver> Driver for Reopening<D> {
    #[inline]
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        if let Some(port) = &mut self.port {
            port.rx_burst(memory, frames);
        }
    }

    #[inline]
    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        match &mut self.port {
            Some(port) => port.tx_burst(memory, frames),
            None => self.before.tx_unlinked += frames.len() as u64,
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.as_ref().and_then(Driver::wait_fd)
    }

    fn owes(&mut self) -> bool {
        self.port.as_mut().is_some_and(Driver::owes)
    }

    fn tend(&mut self, memory: &mut FrameMemory) {
        match &mut self.port {
            Some(port) if port.link() != Link::Gone => port.tend(memory),
            Some(_) => {
                self.let_go(memory);
                self.open_again(memory);
            }
            None => self.open_again(memory),
        }
    }

    fn has_peer(&self) -> bool {
        self.port.as_ref().is_some_and(Driver::has_peer)
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        let now = self.port.as_ref().map(Driver::stats).unwrap_or_default();
        self.before + now
    }

    fn link(&self) -> Link {
        self.port.as_ref().map_or(Link::Gone, Driver::link)
    }

    fn close(self: Box<Self>, memory: &mut FrameMemory) {
        if let Some(port) = self.port {
            Box::new(port).close(memory);
        }
    }
}
