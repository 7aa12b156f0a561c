//! The commands of `sluice`. `args` is what was typed; each verb is one file; `run` joins them and does nothing else.

use std::process::ExitCode;

use args::{Args, Command};
use clap::CommandFactory;

mod apply;
pub mod args;
mod check;
mod control;
mod describe;
mod env;
mod expose;
pub mod get;
pub mod jsonpath;
mod lab;
pub mod selector;
mod store;

/// Runs the command that was typed. An error is one line for a person; a command that has already said what is wrong
/// returns its exit code instead.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Control(args) => control::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Env(args) => env::run(&args),
        Command::Describe(args) => describe::run(&args),
        Command::Apply(args) => apply::apply(&args),
        Command::Expose(args) => expose::run(&args),
        Command::Delete(args) => apply::delete(&args),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "sluice", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Lab(args) => lab::run(args),
    }
}
