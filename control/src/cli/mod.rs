//! The commands of `sluice`. `args` is what was typed; each verb is one file; `run` joins them and does nothing else.

use std::process::ExitCode;

use args::{Args, Command};

pub mod args;
mod check;
mod control;
mod env;
pub mod get;
mod lab;
pub mod selector;

/// Runs the command that was typed. An error is one line for a person; a command that has already said what is wrong
/// returns its exit code instead.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Control(args) => control::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Env(args) => env::run(&args),
        Command::Lab(args) => lab::run(args),
    }
}
