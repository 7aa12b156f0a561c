//! `sluice get`.

use std::process::ExitCode;

use super::args::GetArgs;

/// Runs the verb.
pub(super) fn run(_args: &GetArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not written yet")
}
