//! `tap`, with its kernel end played by a packet socket.

use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{FrameMemory, Link};

use super::{MTU, Port, Rig};
use crate::namespace::{delete, down, set_mtu, up};
use crate::{AF_PACKET, TAP, port};

const NAME: &str = "tap0";

/// A tap of its own making.
pub(super) struct Tap {
    mtu: usize,
    open: bool,
}

impl Default for Tap {
    fn default() -> Self {
        Self {
            mtu: MTU,
            open: false,
        }
    }
}

impl Rig for Tap {
    fn near(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        self.open = true;
        port(
            memory,
            umem,
            NAME,
            DriverSpec::Tap {
                mtu: self.mtu,
                queues: false,
            },
        )
    }

    fn far(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        port(memory, umem, NAME, AF_PACKET)
    }

    fn unavailable(&mut self) -> Option<String> {
        crate::unavailable(&TAP)
    }

    /// The tap's own queue holds 1000 frames.
    fn overload(&self) -> usize {
        2500
    }

    /// The kernel's end is the kernel's.
    fn link_without_peer(&self) -> Link {
        Link::Up
    }

    /// The interface goes with the port.
    fn far_stays(&self) -> bool {
        false
    }

    fn remove(&mut self) {
        delete(NAME);
    }

    /// The tap is the port's own: nobody else makes it again.
    fn serves_again(&self) -> bool {
        false
    }

    fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
        if self.open {
            set_mtu(NAME, mtu);
        }
    }

    fn set_carrier(&mut self, carrier: bool) {
        if carrier { up(NAME) } else { down(NAME) }
    }
}
