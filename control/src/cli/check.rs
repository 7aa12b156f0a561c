//! `sluice check`.

use std::process::ExitCode;

use super::args::CheckArgs;

/// Runs the verb.
pub(super) fn run(_args: &CheckArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not written yet")
}
