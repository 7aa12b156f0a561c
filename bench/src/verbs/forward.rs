//! `sluice-bench forward`: for `compare` alone.

use std::error::Error;

use clap::Args;
use sluice_bench::pktgen::ports::Driver;

/// Forwards between two interfaces by a driver, and does nothing else.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The driver.
    #[arg(value_enum)]
    driver: Driver,
    /// One interface, or a socket of memif.
    clients: String,
    /// The other.
    pods: String,
    /// The CPU to stay on.
    #[arg(long)]
    core: usize,
}

/// Until the process ends.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    core_affinity::set_for_current(core_affinity::CoreId { id: arguments.core });
    sluice_bench::compare::forward::run(arguments.driver, [&arguments.clients, &arguments.pods])
}
