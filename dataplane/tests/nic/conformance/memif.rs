//! `memif` against itself, in both roles: what other programs make of it is tested alive.

use sluice_dataplane::nic::FrameMemory;
use sluice_dataplane::nic::memif::{MemifSpec, Role};
use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::xdp_socket::Umem;

use super::{MTU, Port, Rig};

/// The role of the driver under test; the other side has the other.
pub(super) struct Memif {
    near: Role,
    /// The client lends its frames.
    zero_copy: bool,
    mtu: usize,
}

impl Memif {
    pub(super) const fn new(near: Role) -> Self {
        Self {
            near,
            zero_copy: false,
            mtu: MTU,
        }
    }

    pub(super) const fn lending() -> Self {
        Self {
            zero_copy: true,
            ..Self::new(Role::Client)
        }
    }

    fn open(&self, role: Role, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        let zero_copy = self.zero_copy && role == Role::Client;
        if zero_copy && memory.region().is_some_and(|region| region.memfd().is_none()) {
            assert!(memory.is_whole());
            *memory = FrameMemory::shared(memory.capacity(), memory.chunk_size()).unwrap();
        }
        let options = MemifSpec {
            secret: "conformance".into(),
            mtu: self.mtu,
            zero_copy,
            // Of this network namespace, so of this test alone.
            ..MemifSpec::new("@sluice-conformance", role)
        };
        crate::port(memory, umem, "memif0", DriverSpec::Memif(options))
    }
}

impl Rig for Memif {
    fn near(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        self.open(self.near, memory, umem)
    }

    fn far(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        let far = match self.near {
            Role::Server => Role::Client,
            Role::Client => Role::Server,
        };
        self.open(far, memory, umem)
    }

    /// It could, but unlinks a moment after, in which nobody can tell what it holds.
    fn far_stays(&self) -> bool {
        false
    }

    /// Of the ports that are opened next.
    fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    fn absent(&self) -> &'static [(&'static str, &'static str)] {
        const NO_INTERFACE: &str =
            "there is no interface, only the other process, which comes and goes in other cases";
        &[
            ("a_removed_interface_is_gone_and_works_when_back", NO_INTERFACE),
            (
                "the_mtu_is_lowered_and_restored",
                "the ends do not tell each other an MTU",
            ),
            ("the_link_goes_down_and_up", NO_INTERFACE),
        ]
    }
}
