//! `sluice`: arguments to meaning to one command; errors are printed once, here.

use std::process::ExitCode;

use clap::Parser;
use sluice_control::cli::{self, args::Args};

fn main() -> ExitCode {
    let args = Args::try_parse().unwrap_or_else(|error| {
        let _unwritable = error.print();
        if let Some(hint) = cli::args::instead(&error) {
            eprintln!("\n{hint}");
        }
        std::process::exit(error.exit_code())
    });
    match cli::run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}
