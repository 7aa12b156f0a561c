//! `memory`: two ports back to back.

use sluice_dataplane::nic::FrameMemory;
use sluice_dataplane::nic::memory::{MAX_PACKET, MemoryPort, port_pair};
use sluice_dataplane::nic::xdp_socket::Umem;

use super::{Port, Rig};

/// Both ends are made at once.
#[derive(Default)]
pub(super) struct Memory {
    far: Option<MemoryPort>,
}

impl Rig for Memory {
    fn near(&mut self, _: &mut FrameMemory, _: &mut Option<Umem>) -> Port {
        let (near, far) = port_pair("test", 64);
        self.far = Some(far);
        Box::new(near)
    }

    fn far(&mut self, _: &mut FrameMemory, _: &mut Option<Umem>) -> Port {
        Box::new(self.far.take().expect("near is opened first, and each once"))
    }

    fn longest(&self) -> (usize, &'static str) {
        (MAX_PACKET, "its buffers are as long as a default frame")
    }

    fn far_stays(&self) -> bool {
        false
    }

    /// Its buffers always have room for the longest.
    fn set_mtu(&mut self, _mtu: usize) {}

    fn absent(&self) -> &'static [(&'static str, &'static str)] {
        const NO_INTERFACE: &str = "there is no interface: ends live and die together";
        &[
            ("a_sleeper_is_woken", "it can only be polled"),
            ("a_peer_that_comes_back_is_served", NO_INTERFACE),
            ("a_removed_interface_is_gone_and_works_when_back", NO_INTERFACE),
            ("the_mtu_is_lowered_and_restored", NO_INTERFACE),
            (
                "packets_longer_than_a_frame_are_counted",
                "no buffer is longer than a frame",
            ),
            ("the_link_goes_down_and_up", NO_INTERFACE),
        ]
    }
}
