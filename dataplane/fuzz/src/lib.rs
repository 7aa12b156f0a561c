//! Every reader of foreign bytes, fed with any bytes: the fuzz targets.
//!
//! A target is a function of bytes that must return: it panics where what was read breaks a promise. `.ci/run fuzz`
//! feeds them by coverage (libFuzzer, feature `libfuzzer`); `tests/replay.rs` feeds every file of `corpus/` in the usual
//! tests, so what was once found stays found. A new finding's input goes into `corpus/<target>/` under a name that says
//! what it is.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "all of this package is test code: a panic is a finding"
)]

use std::fmt;

/// Frames to packets, and packets rewritten.
mod parse;
/// Datagrams in pieces.
mod fragments;
/// Packets refused.
mod reject;
/// Protocol headers.
mod wire;
/// Messages of the channel.
mod message;
/// A hostile control process.
mod channel;
/// A hostile dataplane.
mod connect;
/// A hostile memif peer.
mod memif;
/// A hostile netmap module.
mod netmap;
/// Recordings.
mod pcap;
/// The dataplane's config file.
mod config;
/// Neighbours' messages.
mod neighbours;
/// Kubernetes manifests.
mod manifests;
/// Questions to cluster DNS.
mod dns;
/// Files of flows.
mod shard;
/// Whole turns of a worker.
mod worker;

mod bytes;

/// The world of the golden vectors.
#[path = "../../tests/support/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "shared with the tests of the dataplane"
)]
mod support;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its corpus' folder.
    pub name: &'static str,
    /// Returns, whatever the bytes.
    pub run: fn(&[u8]),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "parse",
        run: parse::run,
    },
    Target {
        name: "fragments",
        run: fragments::run,
    },
    Target {
        name: "reject",
        run: reject::run,
    },
    Target {
        name: "wire",
        run: wire::run,
    },
    Target {
        name: "message",
        run: message::run,
    },
    Target {
        name: "channel",
        run: channel::run,
    },
    Target {
        name: "connect",
        run: connect::run,
    },
    Target {
        name: "memif",
        run: memif::run,
    },
    Target {
        name: "netmap",
        run: netmap::run,
    },
    Target {
        name: "pcap",
        run: pcap::run,
    },
    Target {
        name: "config",
        run: config::run,
    },
    Target {
        name: "neighbours",
        run: neighbours::run,
    },
    Target {
        name: "manifests",
        run: manifests::run,
    },
    Target {
        name: "dns",
        run: dns::run,
    },
    Target {
        name: "shard",
        run: shard::run,
    },
    Target {
        name: "worker",
        run: worker::run,
    },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
