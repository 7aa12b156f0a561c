//! `sluice-bench nat`.

use std::error::Error;

use clap::{Args, ValueEnum};
use sluice_bench::nat::{self, Workload};

/// What one packet of an established flow costs, in memory, on one worker.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Established flows.
    #[arg(long, default_value_t = 1_000)]
    flows: usize,
    /// Endpoints of the Service.
    #[arg(long, default_value_t = 4)]
    backends: u16,
    /// What the endpoint sees.
    #[arg(long, value_enum, default_value = "dnat")]
    mode: Mode,
    /// Repeats.
    #[arg(long, default_value_t = 10)]
    repeats: usize,
    /// Packets per repeat.
    #[arg(long, default_value_t = 1_000_000)]
    packets: usize,
    /// One JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The client's address.
    Dnat,
    /// Ours.
    Full,
}

/// Measures and prints.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments {
        flows,
        backends,
        mode,
        repeats,
        packets,
        json,
    } = arguments;
    if flows == 0 || backends == 0 || repeats == 0 || packets == 0 {
        return Err("--flows, --backends, --repeats and --packets must be at least 1".into());
    }
    let workload = Workload {
        flows,
        backends,
        full_nat: mode == Mode::Full,
        repeats,
        packets,
    };
    let row = nat::run(workload)?;
    let ns = &row.ns_per_packet;
    let (min, p50, max) = (ns[0], ns[ns.len() / 2], ns[ns.len() - 1]);
    let turns = [50.0, 99.0, 99.9].map(|p| row.turn_ns.value_at_percentile(p));
    if json {
        println!(
            "{{\"flows\":{flows},\"backends\":{backends},\"packets\":{packets},\"verified\":{},\"ns_per_packet\":{{\"min\":{min:.2},\"p50\":{p50:.2},\"max\":{max:.2}}},\"mpps\":{:.2},\"turn_ns\":{{\"p50\":{},\"p99\":{},\"p99.9\":{}}}}}",
            row.verified,
            1_000.0 / p50,
            turns[0],
            turns[1],
            turns[2]
        );
    } else {
        println!("{} flows opened and verified", row.verified);
        println!(
            "established: {min:.1} / {p50:.1} / {max:.1} ns a packet (min/median/max of {repeats}), {:.1} Mpps",
            1_000.0 / p50
        );
        println!(
            "a turn of 64: {} / {} / {} ns (median, 99 %, 99.9 %)",
            turns[0], turns[1], turns[2]
        );
    }
    Ok(())
}
