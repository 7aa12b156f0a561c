//! `sluice-bench forward`: for `compare` alone.

use std::error::Error;

use clap::Args;

/// Forwards between two interfaces by AF_XDP, and does nothing else.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One.
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
    sluice_bench::compare::forward::run([&arguments.clients, &arguments.pods])
}
