//! The drivers of any interface, `af_packet` and `af_xdp`, over a veth pair.

use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{FrameMemory, Link};

use super::{JUMBO, Port, Rig};
use crate::namespace::{delete, down, set_mtu, up, veth};
use crate::{AF_PACKET, GENERIC, NATIVE, port};

const NEAR: &str = "va";
const FAR: &str = "vb";

/// Both ends by the same driver.
pub(super) struct Veth {
    driver: DriverSpec,
    longest: (usize, &'static str),
}

impl Veth {
    pub(super) const AF_PACKET: Self = Self {
        driver: AF_PACKET,
        longest: (JUMBO, ""),
    };
    pub(super) const AF_XDP_NATIVE: Self = Self {
        driver: NATIVE,
        longest: (
            3514,
            "a frame is one page at most, and veth's programs need room in it",
        ),
    };
    pub(super) const AF_XDP_GENERIC: Self = Self {
        driver: GENERIC,
        longest: (
            3514,
            "a frame is one page at most, and the program needs room in it",
        ),
    };
}

impl Rig for Veth {
    fn make(&mut self) {
        veth(NEAR, FAR);
    }

    fn near(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        port(memory, umem, NEAR, self.driver.clone())
    }

    fn far(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        port(memory, umem, FAR, self.driver.clone())
    }

    fn unavailable(&mut self) -> Option<String> {
        crate::unavailable(&self.driver)
    }

    fn longest(&self) -> (usize, &'static str) {
        self.longest
    }

    /// The wire stays.
    fn link_without_peer(&self) -> Link {
        Link::Up
    }

    fn remove(&mut self) {
        delete(NEAR);
    }

    fn set_mtu(&mut self, mtu: usize) {
        set_mtu(NEAR, mtu);
        set_mtu(FAR, mtu);
    }

    fn set_carrier(&mut self, carrier: bool) {
        if carrier { up(FAR) } else { down(FAR) }
    }
}
