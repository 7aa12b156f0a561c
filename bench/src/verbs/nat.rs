//! `sluice-bench nat`.

use std::error::Error;

use clap::{Args, ValueEnum};
use sluice_bench::nat::{self, Kind, Row, Spread, Workload, rows, scaling};
use sluice_dataplane::segment::Pages;

/// What one packet costs the whole pipeline, in memory, on one worker: the table's rows, one of them, or by hand.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Every row of the table.
    #[arg(long, conflicts_with_all = ["row", "flows", "services", "backends", "size", "family", "mode", "new", "lives", "zipf"])]
    table: bool,
    /// One row of the table, by its name.
    #[arg(long, value_name = "NAME")]
    row: Option<String>,
    /// Flows opened before; of --new, room for as many.
    #[arg(long)]
    flows: Option<usize>,
    /// Services.
    #[arg(long)]
    services: Option<u32>,
    /// Endpoints of each.
    #[arg(long)]
    backends: Option<u16>,
    /// Bytes of a frame, without the FCS.
    #[arg(long)]
    size: Option<usize>,
    /// Address family.
    #[arg(long, value_enum)]
    family: Option<Family>,
    /// What the endpoint sees.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Packets of the reply direction.
    #[arg(long)]
    reply: bool,
    /// Every packet opens a flow.
    #[arg(long, conflicts_with_all = ["reply", "lives"])]
    new: bool,
    /// Whole TCP connections.
    #[arg(long, conflicts_with = "reply")]
    lives: bool,
    /// Few flows have most packets.
    #[arg(long)]
    zipf: bool,
    /// Up to so many workers instead, by powers of two: what hand-over costs, and whether two cores are twice one.
    #[arg(long, value_name = "N", conflicts_with_all = ["table", "new", "lives", "reply"])]
    workers: Option<usize>,
    /// Flows in files on a tmpfs, as where they are to outlive the process.
    #[arg(long)]
    files: bool,
    /// What pages everything else is in.
    #[arg(long, value_enum, default_value_t = OfPages::Transparent)]
    pages: OfPages,
    /// Repeats.
    #[arg(long)]
    repeats: Option<usize>,
    /// Packets per repeat.
    #[arg(long)]
    packets: Option<usize>,
    /// Leave out what needs a second core: each row once more, with packets that another core makes and a ring brings.
    #[arg(long)]
    one_core: bool,
    /// One JSON object a row.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OfPages {
    /// Huge ones as the kernel makes them.
    Transparent,
    /// Huge ones from the kernel's pool (vm.nr_hugepages).
    Reserved,
    /// Small ones.
    Small,
}

/// Measures and prints, row by row as they come.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let names: Vec<&str> = match &arguments.row {
        _ if arguments.table => rows::TARGETS.iter().map(|row| row.name).collect(),
        Some(name) => vec![
            rows::TARGETS
                .iter()
                .find(|row| row.name == name)
                .ok_or_else(|| format!("no row {name:?}; there are {}", all_rows()))?
                .name,
        ],
        None => vec!["by-hand"],
    };
    if let Some(workers) = arguments.workers {
        for name in names {
            scale(&arguments.workload(name), workers, arguments.json)?;
        }
        return Ok(());
    }
    if !arguments.json {
        println!(
            "{:<34} {:>23} {:>7} {:>8} {:>16} {:>6} {:>7} {:>20}",
            "row",
            "ns/packet min/p50/max",
            "Mpps",
            "target",
            "floor min/p50",
            "ratio",
            "B/flow",
            "from another core"
        );
    }
    for name in names {
        let row = nat::run(&arguments.workload(name))?;
        if arguments.json {
            println!("{}", serde_json::to_string(&row)?);
        } else {
            print(&row);
        }
    }
    Ok(())
}

fn scale(workload: &Workload, workers: usize, json: bool) -> Result<(), Box<dyn Error>> {
    if !json {
        println!(
            "{:<8} {:<8} {:<9} {:>11} {:>23} {:>7} {:>10}",
            "workers", "queues", "cores", "handed over", "ns/packet min/p50/max", "Mpps", "of linear"
        );
    }
    for row in scaling::run(workload, workers)? {
        if json {
            println!("{}", serde_json::to_string(&row)?);
            continue;
        }
        let ns = row.ns_per_packet;
        println!(
            "{:<8} {:<8} {:<9} {:>11.3} {:>23} {:>7.1} {:>10.3}",
            row.workers,
            row.queues,
            if row.parallel { "one each" } else { "in turns" },
            row.handed_over,
            format!("{:.1}/{:.1}/{:.1}", ns.min, ns.p50, ns.max),
            row.mpps,
            row.of_linear
        );
    }
    Ok(())
}

impl Arguments {
    fn workload(&self, name: &str) -> Workload {
        let row = rows::workload(name);
        Workload {
            kind: match (self.reply, self.new, self.lives) {
                (true, ..) => Kind::Reply,
                (_, true, _) => Kind::New,
                (_, _, true) => Kind::Lives,
                _ => row.kind,
            },
            flows: self.flows.unwrap_or(row.flows),
            services: self.services.unwrap_or(row.services),
            backends: self.backends.unwrap_or(row.backends),
            zipf: self.zipf || row.zipf,
            full_nat: self.mode.map_or(row.full_nat, |mode| mode == Mode::Full),
            v6: self.family.map_or(row.v6, |family| family == Family::Ipv6),
            files: self.files,
            pages: match self.pages {
                OfPages::Transparent => Pages::Transparent,
                OfPages::Reserved => Pages::Reserved,
                OfPages::Small => Pages::Small,
            },
            size: self.size.unwrap_or(row.size),
            repeats: self.repeats.unwrap_or(row.repeats),
            packets: self.packets.unwrap_or(row.packets),
            other_core: !self.one_core && nat::has_other_core(),
            ..row
        }
    }
}

fn all_rows() -> String {
    let names: Vec<&str> = rows::TARGETS.iter().map(|row| row.name).collect();
    names.join(", ")
}

fn print(row: &Row) {
    let target = rows::TARGETS.iter().find(|target| target.name == row.workload);
    let target = target.map_or_else(String::new, |t| {
        let missed = if row.ns_per_packet.p50 > t.target { "!" } else { "" };
        format!("{missed}{:.0}", t.target)
    });
    let floor = row
        .floor_ns_per_packet
        .map_or_else(String::new, |floor| format!("{:.1}/{:.1}", floor.min, floor.p50));
    let ratio = row
        .ratio_to_floor
        .map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    let spread = |ns: Spread| format!("{:.1}/{:.1}/{:.1}", ns.min, ns.p50, ns.max);
    println!(
        "{:<34} {:>23} {:>7.1} {target:>8} {floor:>16} {ratio:>6} {:>7.0} {:>20}",
        row.workload,
        spread(row.ns_per_packet),
        row.mpps,
        row.bytes_per_flow,
        row.ring_ns_per_packet.map_or_else(String::new, spread)
    );
    if let Some(lives) = row.lives_per_second {
        println!("{:<34} {:.2} million whole connections a second", "", lives / 1e6);
    }
}
