//! The lab with clients and servers that nobody here wrote: curl, dig, nginx, iperf3, socat, sha256sum, testpmd.
//!
//! Drives only the binary `sluice`, as a person would. Every test makes labs of its own and takes them down, even when it
//! fails. A program that is missing is a failure, not a skip; only without root some labs cannot be made, and those are
//! counted aloud. Waits are for conditions and bounded; the two limits that are promised to users (an edit works within a
//! second, a refusal is quick) are asserted.

// The helpers here are tests too, which clippy's own exception does not see.
#![allow(clippy::unwrap_used)]

/// One test for each way a lab can run: as root with either driver, and without root.
macro_rules! in_every_lab {
    ($(fn $name:ident($lab:ident: &Lab, $folder:literal) $body:block)*) => { $(
        mod $name {
            use super::*;

            fn case($lab: &Lab) $body

            #[test]
            fn with_af_xdp() {
                $crate::lab::Lab::with(Setup::AfXdp, $folder, case);
            }

            #[test]
            fn with_af_packet() {
                $crate::lab::Lab::with(Setup::AfPacket, $folder, case);
            }

            #[test]
            fn without_root() {
                $crate::lab::Lab::with(Setup::Unprivileged, $folder, case);
            }
        }
    )* };
}

mod lab;
mod requests;
mod quickstart;
mod servers;
#[path = "../../../dataplane/tests/live/testpmd.rs"]
#[allow(dead_code, reason = "the dataplane's own tests use more of it")]
mod testpmd;
mod generator;
mod families;
mod load_balancer;
mod changes;
mod sets;
mod edits;
mod pods;
mod kills;
mod names;
mod commands;
