//! The table: each row's workload, and what it is to cost at most.

use sluice_dataplane::segment::Pages;

use super::{Kind, Workload};

/// A row's name, the nanoseconds a packet it is to cost at most, and those that would be excellent.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// At most.
    pub target: f64,
    /// Excellent.
    pub stretch: f64,
}

const fn target(name: &'static str, target: f64, stretch: f64) -> Target {
    Target {
        name,
        target,
        stretch,
    }
}

/// Every row, in the table's order. Of whole lives the figures are those of a million and of 1.6 million lives a second,
/// six packets each.
pub const TARGETS: [Target; 11] = [
    target("established-1k", 25.0, 15.0),
    target("established-100k", 32.0, 20.0),
    target("established-1M", 45.0, 32.0),
    target("established-10M", 70.0, 45.0),
    target("established-1M-10k-services", 50.0, 38.0),
    target("established-1M-10k-services-zipf", 50.0, 38.0),
    target("reply-full-1M", 45.0, 32.0),
    target("new-udp-dnat", 150.0, 100.0),
    target("new-udp-full", 220.0, 150.0),
    target("tcp-lives-1M", 1_000.0 / 6.0, 625.0 / 6.0),
    target("established-v6-1M", 60.0, 45.0),
];

/// The workload of a row; of another name, 1,000 flows of one Service.
pub fn workload(name: &str) -> Workload {
    let base = Workload {
        name: name.to_owned(),
        kind: Kind::Established,
        flows: 1_000,
        services: 1,
        backends: 4,
        zipf: false,
        full_nat: false,
        v6: false,
        files: false,
        pages: Pages::Transparent,
        size: 60,
        repeats: 10,
        packets: 500_000,
        other_core: false,
    };
    let million = Workload {
        flows: 1_000_000,
        backends: 32,
        ..base.clone()
    };
    let services = Workload {
        services: 10_000,
        backends: 10,
        ..million.clone()
    };
    match name {
        "established-100k" => Workload {
            flows: 100_000,
            ..base
        },
        "established-1M" => million,
        "established-10M" => Workload {
            flows: 10_000_000,
            ..million
        },
        "established-1M-10k-services" => services,
        "established-1M-10k-services-zipf" => Workload {
            zipf: true,
            ..services
        },
        "reply-full-1M" => Workload {
            kind: Kind::Reply,
            full_nat: true,
            ..million
        },
        "new-udp-dnat" => Workload {
            kind: Kind::New,
            ..million
        },
        "new-udp-full" => Workload {
            kind: Kind::New,
            full_nat: true,
            ..million
        },
        "tcp-lives-1M" => Workload {
            kind: Kind::Lives,
            ..million
        },
        "established-v6-1M" => Workload { v6: true, ..million },
        _ => base,
    }
}
