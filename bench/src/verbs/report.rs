//! `sluice-bench report`.

use std::error::Error;
use std::path::PathBuf;

use clap::Args;
use sluice_bench::report::claims::claims;
use sluice_bench::report::page::page;
use sluice_bench::report::rows::Rows;

/// Makes a page of raw rows: the claims that are not kept first, then tables and pictures. One HTML file.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Files of rows, as the other commands print them with --json.
    #[arg(required = true)]
    rows: Vec<PathBuf>,
    /// Where the page goes.
    #[arg(long, default_value = "report.html")]
    output: PathBuf,
    /// Its title.
    #[arg(long, default_value = "Sluice, measured")]
    title: String,
}

/// Reads, writes, and says which claims are missed.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let rows = Rows::read(&arguments.rows)?;
    for claim in claims(&rows) {
        if let (false, Some(measured)) = (claim.kept, &claim.measured) {
            println!("MISSED: {}: {measured}", claim.what);
        }
    }
    let html = page(&arguments.title, &rows)?;
    std::fs::write(&arguments.output, html)
        .map_err(|error| format!("{}: {error}", arguments.output.display()))?;
    println!("{} rows: {}", rows.0.len(), arguments.output.display());
    Ok(())
}
