//! `sluice control`.

use std::process::ExitCode;

use super::args::ControlArgs;

/// Runs the verb.
pub(super) fn run(_args: &ControlArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not written yet")
}
