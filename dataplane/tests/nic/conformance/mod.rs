//! The driver contract (`sluice_dataplane::nic`) as tests: every driver × every case, by name
//! `conformance::DRIVER::CASE`. Each test is a process in a network namespace of its own.
//!
//! A driver joins with a file of its own here, in which it implements `Rig`, and a line at the end of this file.
//! Nothing is left out silently: a case that a driver cannot have is printed as ABSENT with its reason, a case that
//! this machine cannot run as SKIPPED.

mod cases;
mod end;
mod memif;
mod memory;
mod netmap;
mod pcap;
mod tap;
mod veth;

use std::io::{self, Write as _};

use sluice_dataplane::nic::memif::Role;
use sluice_dataplane::nic::xdp_socket::Umem;
use sluice_dataplane::nic::{Driver, FrameMemory, Link};

pub(crate) use end::{FRAMES, receive};

use crate::namespace::{User, in_namespace, skipped};

pub(crate) type Port = Box<dyn Driver>;

/// The MTU of a rig that nobody has set another: Ethernet's.
pub(crate) const MTU: usize = 1500;
/// The longest frame asked of a driver: jumbo Ethernet, with its header.
pub(crate) const JUMBO: usize = 9014;

/// A pair of ends: `near`, the driver under test, and `far`, the other side, whatever plays it. A fresh one for each test.
pub(crate) trait Rig {
    /// Makes what the ends stand on: interfaces, files, a socket. Again after `remove`.
    fn make(&mut self) {}

    /// Opens the driver under test, with rings of at most 64 packets where that can be said.
    fn near(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port;

    /// Opens the other side, after `near`.
    fn far(&mut self, memory: &mut FrameMemory, umem: &mut Option<Umem>) -> Port;

    /// Why this machine cannot run the driver at all; `None` if it can. The failing tests of a machine that should are
    /// told from it, so it tries as little as will tell.
    fn unavailable(&mut self) -> Option<String> {
        None
    }

    /// Cases that the driver cannot have, each with the reason.
    fn absent(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Length of the longest frame that crosses once `set_mtu` made room for it; why, if that is less than `JUMBO`.
    fn longest(&self) -> (usize, &'static str) {
        (JUMBO, "")
    }

    /// More frames than the way between the ends holds.
    fn overload(&self) -> usize {
        256
    }

    /// What `near` says of its link while nobody is at the other side.
    fn link_without_peer(&self) -> Link {
        Link::Gone
    }

    /// Whether `far` can stay open while `near` is closed and opened anew.
    fn far_stays(&self) -> bool {
        true
    }

    /// More rigs of its kind, for a case in which the kernel lets each wait long: they wait at the same time.
    fn beside(&mut self) -> Vec<Box<dyn Rig + Send>> {
        Vec::new()
    }

    /// Takes away under open ends what they stand on.
    fn remove(&mut self) {
        unreachable!("the rig says that this case is absent")
    }

    /// Whether `near`, left open, serves what is there again by itself.
    fn serves_again(&self) -> bool {
        true
    }

    /// Sets the MTU of what the ends stand on, whether or not they are open.
    fn set_mtu(&mut self, _mtu: usize) {
        unreachable!("the rig says that this case is absent")
    }

    /// Takes the carrier away from `near`, and gives it back.
    fn set_carrier(&mut self, _up: bool) {
        unreachable!("the rig says that this case is absent")
    }
}

/// Runs one case, or says why not.
fn run(name: &str, user: User, mut rig: impl Rig, case: fn(&mut dyn Rig)) {
    let own = name.rsplit("::").next().unwrap_or(name);
    if let Some((_, why)) = rig.absent().iter().find(|(absent, _)| *absent == own) {
        // Not through `eprintln`, which the harness hides for a test that passes.
        let _ = writeln!(io::stderr(), "ABSENT {name}: {why}");
        return;
    }
    in_namespace(name, user, || {
        if let Some(why) = rig.unavailable() {
            return skipped(name, &why);
        }
        rig.make();
        case(&mut rig);
    });
}

/// All cases for one driver, as tests of a module of its name.
macro_rules! conforms {
    ($driver:ident, $user:expr, $rig:expr) => {
        pub(crate) mod $driver {
            #[allow(unused_imports, reason = "not every rig has options")]
            use super::*;
            conforms!(@ $driver, $user, $rig;
                order_is_kept_and_all_is_counted, both_ways_at_once, rings_wrap_around, every_length_arrives_whole,
                a_vlan_tag_arrives, a_sleeper_is_woken, a_full_ring_is_counted, want_of_frames_is_counted,
                a_thousand_openings_leak_nothing, a_peer_that_dies_harms_nobody, a_peer_that_comes_back_is_served,
                a_removed_interface_is_gone_and_works_when_back, the_mtu_is_lowered_and_restored,
                packets_longer_than_a_frame_are_counted, the_link_goes_down_and_up);
        }
    };
    (@ $driver:ident, $user:expr, $rig:expr; $($case:ident),*) => {
        /// How many cases there are for the driver.
        #[allow(dead_code, reason = "asked of the drivers that most machines cannot run")]
        pub(crate) fn cases() -> usize {
            let rig = $rig;
            let absent = |case: &str| rig.absent().iter().any(|(absent, _)| *absent == case);
            [$(stringify!($case)),*].into_iter().filter(|case| !absent(case)).count()
        }

        $(#[test]
        fn $case() {
            let name = concat!("conformance::", stringify!($driver), "::", stringify!($case));
            run(name, $user, $rig, cases::$case);
        })*
    };
}

conforms!(in_memory, User::Same, memory::Memory::default());
conforms!(af_packet, User::Same, veth::Veth::AF_PACKET);
conforms!(af_packet_unprivileged, User::Namespaced, veth::Veth::AF_PACKET);
conforms!(af_xdp_native, User::Same, veth::Veth::AF_XDP_NATIVE);
conforms!(af_xdp_generic, User::Same, veth::Veth::AF_XDP_GENERIC);
conforms!(memif_server, User::Namespaced, memif::Memif::new(Role::Server));
conforms!(memif_client, User::Namespaced, memif::Memif::new(Role::Client));
conforms!(memif_zero_copy, User::Namespaced, memif::Memif::lending());
conforms!(tap_device, User::Same, tap::Tap::default());
conforms!(netmap_pipe, User::Same, netmap::Virtual::fake_pipe());
conforms!(
    netmap_pipe_copying,
    User::Same,
    netmap::Virtual::fake_pipe_copying()
);
conforms!(netmap_switch, User::Same, netmap::Virtual::fake_switch());
conforms!(netmap_kernel_pipe, User::Same, netmap::Virtual::pipe());
conforms!(netmap_kernel_switch, User::Same, netmap::Virtual::switch());
conforms!(
    netmap_kernel_switch_zero_copy,
    User::Same,
    netmap::Virtual::switch_zero_copy()
);
conforms!(netmap_kernel_veth, User::Same, netmap::Emulated::default());
conforms!(pcap_file, User::Same, pcap::Pcap::new("pcap"));
conforms!(pcapng_file, User::Same, pcap::Pcap::new("pcapng"));
