//! Ports that cannot be opened: each failure says what happened and what to do, and leaves nothing behind.

use sluice_dataplane::nic::FrameMemory;
use sluice_dataplane::nic::open::{DriverSpec, PortSpec};

use crate::conformance::FRAMES;
use crate::namespace::{User, in_namespace, veth};
use crate::{AF_PACKET, GENERIC, NATIVE, TAP, explains, failure, may_use, port, spec};

#[test]
fn every_failure_to_open_says_what_to_do_and_leaves_nothing() {
    in_namespace(
        "refusals::every_failure_to_open_says_what_to_do_and_leaves_nothing",
        User::Same,
        || {
            veth("va", "vb");
            let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
            let mut small = FrameMemory::new(64, 2048).unwrap();
            let mut large = FrameMemory::new(FRAMES, 8192).unwrap();
            let odd_ring = PortSpec {
                ring_size: 65,
                ..spec("va", AF_PACKET)
            };
            let high_queue = PortSpec {
                queue: 5000,
                ..spec("va", NATIVE)
            };
            explains(
                &failure(&mut memory, &spec("none0", AF_PACKET)),
                "no such interface",
                "ip link",
            );
            explains(
                &failure(&mut memory, &spec("none0", NATIVE)),
                "no such interface",
                "ip link",
            );
            explains(
                &failure(&mut memory, &spec("a/b", AF_PACKET)),
                "not an interface name",
                "slash",
            );
            explains(
                &failure(&mut memory, &spec("lo", AF_PACKET)),
                "does not fit",
                "larger frames",
            );
            explains(&failure(&mut memory, &odd_ring), "ringSize 65", "1024");
            explains(&failure(&mut memory, &high_queue), "queue 5000", "lower");
            explains(
                &failure(&mut small, &spec("va", NATIVE)),
                "too few",
                "raise frames.count",
            );
            explains(
                &failure(&mut large, &spec("va", NATIVE)),
                "more than a page",
                "af_packet",
            );
        },
    );
}

#[test]
fn every_failure_to_make_a_tap_is_explained() {
    in_namespace(
        "refusals::every_failure_to_make_a_tap_is_explained",
        User::Same,
        || {
            if !may_use(&TAP, "tap errors") {
                return;
            }
            veth("va", "vb");
            let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
            let held = port(&mut memory, &mut None, "tap0", TAP);
            let long = DriverSpec::Tap {
                mtu: 9000,
                queues: false,
            };
            explains(
                &failure(&mut memory, &spec("va", TAP)),
                "cannot create the tap",
                "is no tap",
            );
            explains(
                &failure(&mut memory, &spec("tap0", TAP)),
                "cannot create the tap",
                "another process",
            );
            explains(
                &failure(&mut memory, &spec("tap1", long)),
                "does not fit",
                "larger frames",
            );
            explains(&failure(&mut memory, &spec("a/b", TAP)), "interface name", "name");
            held.close(&mut memory);
        },
    );
}

#[test]
fn a_queue_that_is_taken_or_missing_is_explained() {
    in_namespace(
        "refusals::a_queue_that_is_taken_or_missing_is_explained",
        User::Same,
        || {
            if !may_use(&NATIVE, "AF_XDP queue errors") {
                return;
            }
            veth("va", "vb");
            let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
            let first = port(&mut memory, &mut None, "va", NATIVE);
            let taken = failure(&mut memory, &spec("va", NATIVE)).to_string();
            assert!(
                taken.contains("queue 0") && taken.contains("stop its owner"),
                "{taken}"
            );
            let missing = failure(
                &mut memory,
                &PortSpec {
                    queue: 7,
                    ..spec("va", NATIVE)
                },
            )
            .to_string();
            assert!(missing.contains("no such queue"), "{missing}");
            let mixed = failure(&mut memory, &spec("va", GENERIC)).to_string();
            assert!(mixed.contains("already attached"), "{mixed}");
            first.close(&mut memory);
            port(&mut memory, &mut None, "va", GENERIC).close(&mut memory);
            assert_eq!(memory.available(), FRAMES);
        },
    );
}

#[test]
fn af_xdp_without_privileges_names_the_driver_to_use_instead() {
    in_namespace(
        "refusals::af_xdp_without_privileges_names_the_driver_to_use_instead",
        User::Namespaced,
        || {
            veth("va", "vb");
            let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
            let error = failure(&mut memory, &spec("va", NATIVE)).to_string();
            assert!(
                error.contains("CAP_BPF") && error.contains("af_packet"),
                "{error}"
            );
        },
    );
}
