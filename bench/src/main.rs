//! `sluice-bench`: arguments to meaning to one command, a file in `verbs/` for each.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod verbs {
    pub(crate) mod instructions;
    pub(crate) mod nat;
    pub(crate) mod pktgen;
    pub(crate) mod compare;
    pub(crate) mod forward;
    pub(crate) mod report;
}

/// Measures Sluice's dataplane.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Instructions(verbs::instructions::Arguments),
    Nat(verbs::nat::Arguments),
    Pktgen(verbs::pktgen::Arguments),
    Compare(verbs::compare::Arguments),
    Report(verbs::report::Arguments),
    #[command(hide = true)]
    Forward(verbs::forward::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Instructions(arguments) => verbs::instructions::run(arguments),
        Verb::Nat(arguments) => verbs::nat::run(arguments),
        Verb::Pktgen(arguments) => verbs::pktgen::run(arguments),
        Verb::Compare(arguments) => verbs::compare::run(arguments),
        Verb::Report(arguments) => verbs::report::run(arguments),
        Verb::Forward(arguments) => verbs::forward::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
