//! `sluice`: arguments to meaning to one command; errors are printed once, here.

use std::process::ExitCode;

use clap::Parser;
use sluice_control::cli::{self, args::Args};

fn main() -> ExitCode {
    match cli::run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}
