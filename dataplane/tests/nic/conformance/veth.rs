//! The drivers of any interface, `af_packet` and `af_xdp`, over a veth pair.

use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{FrameMemory, Link};

use super::{JUMBO, Port, Rig};
use crate::namespace::{delete, down, set_mtu, up, veth, veth_without_wait};
use crate::{AF_PACKET, FRAMES, GENERIC, NATIVE, port};

/// Interfaces of rigs side by side, the near and the far end of each: the first is every test's.
const PAIRS: [[&str; 2]; 4] = [["va", "vb"], ["va1", "vb1"], ["va2", "vb2"], ["va3", "vb3"]];
/// Programs that the kernel calls directly (BPF_DISPATCHER_MAX of linux/bpf.h): it changes the code that does, and waits for
/// all processors under a lock of the whole machine, whenever one comes or goes, while there is room for it.
const CALLED_DIRECTLY: usize = 48;

/// Both ends by the same driver.
pub(super) struct Veth {
    pair: [&'static str; 2],
    driver: DriverSpec,
    longest: (usize, &'static str),
}

impl Veth {
    pub(super) const AF_PACKET: Self = Self {
        pair: PAIRS[0],
        driver: AF_PACKET,
        longest: (JUMBO, ""),
    };
    pub(super) const AF_XDP_NATIVE: Self = Self {
        pair: PAIRS[0],
        driver: NATIVE,
        longest: (
            3514,
            "a frame is one page at most, and veth's programs need room in it",
        ),
    };
    pub(super) const AF_XDP_GENERIC: Self = Self {
        pair: PAIRS[0],
        driver: GENERIC,
        longest: (
            3514,
            "a frame is one page at most, and the program needs room in it",
        ),
    };
}

impl Rig for Veth {
    fn make(&mut self) {
        let [near, far] = self.pair;
        veth(near, far);
    }

    fn near(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        port(memory, umem, self.pair[0], self.driver.clone())
    }

    fn far(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        port(memory, umem, self.pair[1], self.driver.clone())
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

    /// What a port of `af_xdp` waits for is the end of what every processor does (RCU's grace period), which is as good for
    /// one as for many, but for the changes of direct calls: so there is no room for those.
    fn beside(&mut self) -> Vec<Box<dyn Rig + Send>> {
        if self.driver == AF_PACKET {
            return Vec::new();
        }
        let (mut memory, mut umem) = (FrameMemory::new(FRAMES, 2048).unwrap(), None);
        for nth in 0..CALLED_DIRECTLY / 2 {
            let ends = [format!("full{nth}a"), format!("full{nth}b")];
            veth_without_wait(&ends[0], &ends[1]);
            for end in &ends {
                // For as long as this process, which ends with the test.
                std::mem::forget(port(&mut memory, &mut umem, end, GENERIC));
            }
        }
        std::mem::forget((memory, umem));
        let rig = |&pair: &[&'static str; 2]| {
            let mut rig = Self {
                pair,
                driver: self.driver.clone(),
                longest: self.longest,
            };
            rig.make();
            Box::new(rig) as Box<dyn Rig + Send>
        };
        PAIRS[1..].iter().map(rig).collect()
    }

    fn remove(&mut self) {
        delete(self.pair[0]);
    }

    fn set_mtu(&mut self, mtu: usize) {
        self.pair.into_iter().for_each(|end| set_mtu(end, mtu));
    }

    fn set_carrier(&mut self, carrier: bool) {
        let far = self.pair[1];
        if carrier { up(far) } else { down(far) }
    }
}
