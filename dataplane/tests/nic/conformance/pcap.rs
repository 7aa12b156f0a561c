//! `pcap`: two ports, each of which reads what the other writes.

use std::fs::File;
use std::path::PathBuf;

use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::pcap::PcapSpec;
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{FrameMemory, Link};

use super::{Port, Rig};

/// Files in a folder of their own, new ones for each opening.
pub(super) struct Pcap {
    folder: tempfile::TempDir,
    ending: &'static str,
    opened: usize,
}

impl Pcap {
    pub(super) fn new(ending: &'static str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            ending,
            opened: 0,
        }
    }

    fn file(&self, end: &str) -> Option<PathBuf> {
        let name = format!("{end}-{}.{}", self.opened, self.ending);
        Some(self.folder.path().join(name))
    }

    fn open(&self, read: &str, write: &str, memory: &mut FrameMemory) -> Port {
        let options = PcapSpec {
            read: self.file(read),
            write: self.file(write),
            ..PcapSpec::default()
        };
        crate::port(memory, &mut None, "pcap0", DriverSpec::Pcap(options))
    }
}

impl Rig for Pcap {
    fn near(&mut self, memory: &mut FrameMemory, _: &mut Option<Umem>) -> Port {
        for end in ["far", "near"] {
            let _ = std::fs::remove_file(self.file(end).unwrap());
        }
        self.opened += 1;
        // Not written yet, but there.
        File::create(self.file("far").unwrap()).unwrap();
        self.open("far", "near", memory)
    }

    fn far(&mut self, memory: &mut FrameMemory, _: &mut Option<Umem>) -> Port {
        self.open("near", "far", memory)
    }

    /// A file made anew is another file.
    fn far_stays(&self) -> bool {
        false
    }

    fn link_without_peer(&self) -> Link {
        Link::Up
    }

    /// A file takes packets of any length.
    fn set_mtu(&mut self, _mtu: usize) {}

    fn absent(&self) -> &'static [(&'static str, &'static str)] {
        const NO_INTERFACE: &str = "there is no interface";
        &[
            ("a_full_ring_is_counted", "a file is never full"),
            (
                "a_peer_that_comes_back_is_served",
                "a file made anew is another file",
            ),
            ("a_removed_interface_is_gone_and_works_when_back", NO_INTERFACE),
            ("the_mtu_is_lowered_and_restored", "a file has no MTU"),
            ("the_link_goes_down_and_up", NO_INTERFACE),
        ]
    }
}
