//! `sluice control`: configuration to running daemon.

use std::process::ExitCode;

use super::args::ControlArgs;
use crate::daemon::{self, config::Config};
use crate::publish::{Dataplane, Inventory, PublishError};
use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::index::Generation;

/// Runs until it is killed.
pub(super) fn run(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    let filter = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(filter).format_target(false).init();
    let config = Config::load(&args.config)?;
    daemon::run(&config, Nobody)?;
    Ok(ExitCode::SUCCESS)
}

struct Nobody;

impl Dataplane for Nobody {
    fn connect(&mut self) -> Result<Inventory, String> {
        Err("no channel yet".into())
    }
    fn publish(&mut self, _: Generation, _: &[Key], _: &[Record]) -> Result<(), PublishError> {
        Err(PublishError::Lost("no channel yet".into()))
    }
    fn is_alive(&self) -> bool {
        false
    }
}
