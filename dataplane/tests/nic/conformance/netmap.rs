//! `netmap`: on a module that a test plays (`fake_netmap`), and on the kernel's own wherever it is loaded.

use std::path::Path;
use std::thread::{self, JoinHandle};

use sluice_dataplane::nic::netmap::Netmap;
use sluice_dataplane::nic::netmap::abi::DEVICE;
use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{Driver as _, FrameMemory, Link};

use super::end::FRAMES;
use super::{Port, Rig};
use crate::fake_netmap::Module;
use crate::namespace::{delete, down, set_mtu, up, veth};
use crate::{AF_PACKET, port, spec};

type Reasons = &'static [(&'static str, &'static str)];

const NO_INTERFACE: &str = "there is no interface behind it";
const PIPES: Reasons = &[
    ("the_mtu_is_lowered_and_restored", NO_INTERFACE),
    (
        "packets_longer_than_a_frame_are_counted",
        "its frames are its buffers",
    ),
    ("the_link_goes_down_and_up", NO_INTERFACE),
];
const SWITCHES: Reasons = &[
    (
        "a_full_ring_is_counted",
        "a switch drops what a full ring has no room for, and tells nobody",
    ),
    (
        "want_of_frames_is_counted",
        "a switch drops what a full ring has no room for, and tells nobody",
    ),
    ("the_mtu_is_lowered_and_restored", NO_INTERFACE),
    (
        "packets_longer_than_a_frame_are_counted",
        "its frames are its buffers",
    ),
    ("the_link_goes_down_and_up", NO_INTERFACE),
];
const KERNELS_PIPES: Reasons = &[
    ("a_removed_interface_is_gone_and_works_when_back", NO_INTERFACE),
    ("the_mtu_is_lowered_and_restored", NO_INTERFACE),
    (
        "packets_longer_than_a_frame_are_counted",
        "its frames are its buffers",
    ),
    ("the_link_goes_down_and_up", NO_INTERFACE),
];
const KERNELS_SWITCHES: Reasons = &[
    (
        "a_full_ring_is_counted",
        "a switch drops what a full ring has no room for, and tells nobody",
    ),
    (
        "want_of_frames_is_counted",
        "a switch drops what a full ring has no room for, and tells nobody",
    ),
    ("a_removed_interface_is_gone_and_works_when_back", NO_INTERFACE),
    ("the_mtu_is_lowered_and_restored", NO_INTERFACE),
    (
        "packets_longer_than_a_frame_are_counted",
        "its frames are its buffers",
    ),
    ("the_link_goes_down_and_up", NO_INTERFACE),
];
const EMULATED: Reasons = &[(
    "a_full_ring_is_counted",
    "what the emulation's queue has no room for it tells nobody",
)];

/// Where the ends are.
pub(super) struct Virtual {
    names: [&'static str; 2],
    longest: (usize, &'static str),
    absent: Reasons,
    mode: &'static str,
    /// `None`: the kernel's own module.
    fake: Option<Module>,
}

const PIPE: Virtual = Virtual {
    names: ["netmap:pipe{1", "netmap:pipe}1"],
    longest: (1792, "a frame in memory of the worker's own is as long"),
    absent: PIPES,
    mode: "zero-copy",
    fake: None,
};

impl Virtual {
    /// A pipe of the fake module, both ends without copies.
    pub(super) fn fake_pipe() -> Self {
        Self {
            fake: Some(Module::new(2 * FRAMES + 1024)),
            ..PIPE
        }
    }

    /// The same with too little memory for frames: both ends copy.
    pub(super) fn fake_pipe_copying() -> Self {
        Self {
            fake: Some(Module::new(1024)),
            mode: "copy (no memory",
            ..PIPE
        }
    }

    /// A switch of the fake module.
    pub(super) fn fake_switch() -> Self {
        Self {
            names: ["vale0:a@1", "vale0:b@1"],
            absent: SWITCHES,
            fake: Some(Module::new(2 * FRAMES + 1024)),
            ..PIPE
        }
    }

    /// A pipe of the kernel's, hung on a switch, in its global memory.
    pub(super) fn pipe() -> Self {
        Self {
            names: ["vale1:x{1@1", "vale1:x}1@1"],
            absent: KERNELS_PIPES,
            ..PIPE
        }
    }

    /// A switch of the kernel's.
    pub(super) fn switch() -> Self {
        Self {
            names: ["vale0:a", "vale0:b"],
            longest: (1514, "a switch forwards no more"),
            absent: KERNELS_SWITCHES,
            ..PIPE
        }
    }

    /// The same, in the kernel's global memory: without copies where that is large enough.
    pub(super) fn switch_zero_copy() -> Self {
        Self {
            names: ["vale2:a@1", "vale2:b@1"],
            ..Self::switch()
        }
    }

    fn open(&self, name: &str, memory: &mut FrameMemory) -> Port {
        let spec = spec(name, DriverSpec::Netmap);
        match &self.fake {
            Some(module) => {
                let port = Netmap::open_by(&spec, memory, &module.devices()).unwrap();
                let mode = &port.info().mode;
                assert!(mode.starts_with(self.mode), "{mode}");
                Box::new(port)
            }
            None => port(memory, &mut None, name, DriverSpec::Netmap),
        }
    }
}

impl Rig for Virtual {
    fn make(&mut self) {
        if let Some(module) = &self.fake {
            module.remove(false);
        }
    }

    fn near(&mut self, memory: &mut FrameMemory, _: &mut Option<Umem>) -> Port {
        self.open(self.names[0], memory)
    }

    fn far(&mut self, memory: &mut FrameMemory, _: &mut Option<Umem>) -> Port {
        self.open(self.names[1], memory)
    }

    fn unavailable(&mut self) -> Option<String> {
        let absent = self.fake.is_none() && !Path::new(DEVICE).exists();
        absent.then(no_module)
    }

    fn longest(&self) -> (usize, &'static str) {
        self.longest
    }

    /// A switch and a pipe are there without anybody at the other end.
    fn link_without_peer(&self) -> Link {
        Link::Up
    }

    fn remove(&mut self) {
        match &self.fake {
            Some(module) => module.remove(true),
            None => unreachable!("the rig says that this case is absent"),
        }
    }

    /// Buffers always have room for the longest.
    fn set_mtu(&mut self, _mtu: usize) {}

    fn absent(&self) -> Reasons {
        self.absent
    }
}

const NEAR: &str = "va";
const FAR: &str = "vb";

/// One end of a veth pair in emulated mode, the other a packet socket's.
#[derive(Default)]
pub(super) struct Emulated {
    /// The kernel's answer to `remove` comes when the port has let go of the interface.
    removal: Option<JoinHandle<()>>,
}

impl Rig for Emulated {
    fn make(&mut self) {
        if let Some(removal) = self.removal.take() {
            removal.join().unwrap();
        }
        veth(NEAR, FAR);
    }

    fn near(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        port(memory, umem, NEAR, DriverSpec::Netmap)
    }

    fn far(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port {
        port(memory, umem, FAR, AF_PACKET)
    }

    fn unavailable(&mut self) -> Option<String> {
        (!Path::new(DEVICE).exists()).then(no_module)
    }

    fn longest(&self) -> (usize, &'static str) {
        (
            2044,
            "a buffer of netmap has 2048 bytes, and room is left for a tag",
        )
    }

    /// The wire stays.
    fn link_without_peer(&self) -> Link {
        Link::Up
    }

    fn remove(&mut self) {
        self.removal = Some(thread::spawn(|| delete(NEAR)));
    }

    fn set_mtu(&mut self, mtu: usize) {
        set_mtu(NEAR, mtu);
        set_mtu(FAR, mtu);
    }

    fn set_carrier(&mut self, carrier: bool) {
        if carrier { up(FAR) } else { down(FAR) }
    }

    fn absent(&self) -> Reasons {
        EMULATED
    }
}

fn no_module() -> String {
    format!("{DEVICE} is not there: netmap's kernel module is not loaded")
}
