//! `sluice control`: configuration to running daemon.

use std::process::ExitCode;

use sluice_dataplane::channel::client::PATIENCE;

use super::args::ControlArgs;
use crate::daemon::{self, config::Config};
use crate::publish::channel::Channel;

/// Runs until it is killed.
pub(super) fn run(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    let filter = env_logger::Env::default().default_filter_or("info,notify=off");
    env_logger::Builder::from_env(filter)
        .format_target(false)
        .format_timestamp_millis()
        .init();
    let config = Config::load(&args.config)?;
    let dataplane = Channel::new(config.dataplane.socket.clone(), PATIENCE);
    daemon::run(&config, dataplane)?;
    Ok(ExitCode::SUCCESS)
}
