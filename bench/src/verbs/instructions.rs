//! `sluice-bench instructions`: counts what a packet costs instead of timing it, so that a noisy machine says the same as
//! a quiet one, and a change that makes the packet path longer is seen where it is made.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

/// Counts the instructions of a packet by valgrind, and compares them with what is written down.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What is written down: instructions a packet, by row.
    #[arg(long, default_value = "bench/instructions.json")]
    file: PathBuf,
    /// Write down what was counted instead.
    #[arg(long)]
    write: bool,
    /// Percent that a row may cost more.
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
}

/// Rows with few flows: what is counted does not depend on caches.
const ROWS: [(&str, &[&str]); 7] = [
    ("established", &["--flows", "8192"]),
    ("established-full", &["--flows", "8192", "--mode", "full"]),
    ("established-v6", &["--flows", "8192", "--family", "ipv6"]),
    ("reply-full", &["--flows", "8192", "--mode", "full", "--reply"]),
    ("new-udp-dnat", &["--flows", "40960", "--new"]),
    ("new-udp-full", &["--flows", "40960", "--new", "--mode", "full"]),
    ("tcp-lives", &["--flows", "8192", "--lives"]),
];

/// Counts of a row that is dearer than is written down, of which the least is taken: one in dozens came out dearer, and not
/// when it was counted again (why is not known; hash keys are random). A longer packet path is so in every count.
const COUNTS: usize = 3;

/// The function that is counted; nothing outside of it is.
const COUNTED: &str = "--toggle-collect=sluice_bench::nat::Bench::time";

/// Counts, prints and compares. Errors: no valgrind; rows that cost more than is written down.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let written: BTreeMap<String, f64> = match std::fs::read_to_string(&arguments.file) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) if arguments.write => BTreeMap::new(),
        Err(error) => {
            return Err(format!(
                "{}: {error}; run from the repository's root",
                arguments.file.display()
            )
            .into());
        }
    };
    let mut counted = BTreeMap::new();
    let mut dearer = Vec::new();
    for (name, flags) in ROWS {
        let before = written.get(name).copied();
        let mut instructions = count(flags)?;
        for _ in 1..COUNTS {
            if before.is_none_or(|before| instructions <= before * (1.0 + arguments.tolerance / 100.0)) {
                break;
            }
            instructions = instructions.min(count(flags)?);
        }
        let change = before.map(|before| (instructions / before - 1.0) * 100.0);
        println!(
            "{name:<18} {instructions:8.1} instructions a packet{}",
            change.map_or_else(String::new, |change| format!(" ({change:+.1} %)"))
        );
        if change.is_none_or(|change| change > arguments.tolerance) {
            dearer.push(name);
        }
        counted.insert(name, (instructions * 10.0).round() / 10.0);
    }
    if arguments.write {
        std::fs::write(&arguments.file, serde_json::to_string_pretty(&counted)? + "\n")?;
        return Ok(());
    }
    if dearer.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} cost over {} % more than {} says, or are not in it; if that is wanted, run with --write",
        dearer.join(", "),
        arguments.tolerance,
        arguments.file.display()
    )
    .into())
}

fn count(flags: &[&str]) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", COUNTED])
        .arg(std::env::current_exe()?)
        .args([
            "nat",
            "--json",
            "--one-core",
            "--repeats",
            "2",
            "--packets",
            "200000",
        ])
        .args(flags)
        .output()
        .map_err(|error| format!("valgrind: {error}; install it (Debian: valgrind)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let instructions = said
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, count)| count.trim().parse::<f64>().ok())
        .ok_or_else(|| format!("valgrind counted nothing: {said}"))?;
    let row: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packets = row["handled"].as_f64().filter(|&packets| packets > 0.0);
    Ok(instructions / packets.ok_or("no packets were handled")?)
}
