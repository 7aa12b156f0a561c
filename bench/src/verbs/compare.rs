//! `sluice-bench compare`.

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sluice_bench::compare::gateway::{Cores, Gateway, Kind, Size};
use sluice_bench::compare::measure::{Row, Settings, measure};
use sluice_bench::compare::sandbox;
use sluice_bench::machine::Machine;
use sluice_bench::pktgen::plan::Driver;

/// Compares gateways on one machine: the dataplane with each driver, and the kernel with kube-proxy's rules.
///
/// Each is a network namespace with a cable toward clients and one toward pods, has the same Services, and is measured in
/// turn with the others, again and again. Needs root, two cores, nft and iptables-legacy. Nothing is left behind.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which; several separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [
        Kind::Nftables, Kind::AfXdp, Kind::Iptables, Kind::AfPacket, Kind::Forward, Kind::Ceiling
    ])]
    driver: Vec<Kind>,
    /// Services, with four endpoints each.
    #[arg(long, default_value_t = 1_000)]
    services: u32,
    /// Established flows.
    #[arg(long, default_value_t = 1_000)]
    flows: u32,
    /// Bytes of a frame, with FCS.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Turns.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Seconds of a trial; each turn has two.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Packets a second at which latency is taken.
    #[arg(long, default_value_t = 50_000.0)]
    rate: f64,
    /// Changes of one Service that are timed.
    #[arg(long, default_value_t = 5)]
    changes: usize,
    /// Workers spin instead of waiting for packets.
    #[arg(long)]
    spin: bool,
    /// The generator's driver: af_xdp or af_packet.
    #[arg(long, value_enum, default_value = "af-xdp")]
    generator: By,
    /// The generator's CPU, and the gateways'.
    #[arg(long, num_args = 2, default_values_t = [0, 1])]
    cores: Vec<usize>,
    /// Rows as JSON, one a line, into this file.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Rows as JSON instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    AfXdp,
    AfPacket,
}

/// What we promise: this many times the packets per gateway core of the kernel's nftables path.
const PROMISE: f64 = 1.5;

/// Measures and prints.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    // Before the namespaces change what is below the paths.
    let mut output = match &arguments.output {
        Some(path) => Some(
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| format!("{}: {error}", path.display()))?,
        ),
        None => None,
    };
    if let Some(code) = sandbox::enter()? {
        return if code == 0 {
            Ok(())
        } else {
            Err(format!("the comparison ended with {code}").into())
        };
    }
    // Whoever asks while no generator is there is answered by the kernel.
    for address in ["198.51.100.2/32", "172.18.1.2/32"] {
        sandbox::run("ip", &["addr", "add", address, "dev", "lo"])?;
    }
    let cores = Cores {
        generator: arguments.cores[0],
        gateway: arguments.cores[1],
    };
    core_affinity::set_for_current(core_affinity::CoreId { id: cores.generator });
    let size = Size {
        services: arguments.services,
        flows: arguments.flows,
        spin: arguments.spin,
    };
    let machine = Machine::this();
    let mut emit = |value: Value| -> Result<(), Box<dyn Error>> {
        if let Some(output) = &mut output {
            writeln!(output, "{value}")?;
        }
        if arguments.json {
            writeln!(std::io::stdout(), "{value}")?;
        }
        Ok(())
    };
    let mut gateways = Vec::new();
    for (number, kind) in arguments.driver.iter().enumerate() {
        let mut gateway = Gateway::new(*kind, number, size, cores)?;
        if kind.translates() {
            let changes = changes(&mut gateway, arguments.changes)?;
            eprintln!(
                "{}: {} services in {:.3} s; one changed in {}",
                kind.name(),
                size.services,
                gateway.load.as_secs_f64(),
                spread(&changes, |seconds| format!("{:.2} ms", seconds * 1e3))
            );
            emit(
                json!({"kind": "compare-update", "gateway": kind.name(), "services": size.services,
                        "load_seconds": gateway.load.as_secs_f64(), "change_seconds": changes, "machine": machine}),
            )?;
        }
        gateway.pause(true)?;
        gateways.push(gateway);
    }
    let settings = Settings {
        flows: arguments.flows,
        size: arguments.size,
        length: Duration::from_secs_f64(arguments.seconds),
        rate: arguments.rate,
        driver: match arguments.generator {
            By::AfXdp => Driver::AfXdp,
            By::AfPacket => Driver::AfPacket,
        },
        cores,
    };
    let mut rows: Vec<Row> = Vec::new();
    for repeat in 0..arguments.repeats {
        for gateway in &gateways {
            gateway.pause(false)?;
            let row = measure(gateway, &settings, repeat)?;
            gateway.pause(true)?;
            eprintln!(
                "{} {repeat}: {} flows known, {:.3} Mpps, {:.0} ns a packet, {:.0} % busy {:?}",
                row.gateway,
                row.opened,
                row.mpps,
                row.gateway_ns_per_packet,
                row.gateway_busy * 100.0,
                row.drops
            );
            emit(
                json!({"kind": "compare", "services": size.services, "flows": size.flows, "frame": arguments.size,
                        "rate": arguments.rate, "row": row, "machine": machine}),
            )?;
            rows.push(row);
        }
    }
    if !arguments.json {
        table(&arguments, &rows)?;
    }
    for row in &rows {
        let wrong = row.flood.wrong() + row.paced.wrong();
        if wrong > 0 {
            let what = format!(
                "{}: {wrong} packets came out wrong in turn {}",
                row.gateway, row.repeat
            );
            if row.gateway.starts_with("af-") {
                return Err(format!("{what}: what translates wrongly has no figure").into());
            }
            eprintln!("{what}");
        }
    }
    Ok(())
}

/// Takes an endpoint away and gives it back, so many times in all; seconds, ascending.
fn changes(gateway: &mut Gateway, times: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let services = gateway.world.services.count as usize;
    let mut seconds = Vec::new();
    for n in 0..times {
        let service = (n / 2 * 37 % services) as u32;
        seconds.push(gateway.change(service, n % 2 == 0)?.as_secs_f64());
    }
    if times % 2 == 1 {
        gateway.change((times / 2 * 37 % services) as u32, false)?;
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// Min, median and max.
fn spread(sorted: &[f64], show: impl Fn(f64) -> String) -> String {
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(min), Some(median), Some(max)) => {
            format!("{} / {} / {}", show(*min), show(*median), show(*max))
        }
        _ => "-".to_owned(),
    }
}

fn table(arguments: &Arguments, rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let of = |kind: Kind, value: fn(&Row) -> f64| {
        let mut values: Vec<f64> = rows
            .iter()
            .filter(|row| row.gateway == kind.name())
            .map(value)
            .collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let median = |kind, value| {
        let values = of(kind, value);
        values.get(values.len() / 2).copied()
    };
    let per_core = |row: &Row| row.mpps_per_gateway_core;
    if let (Some(ours), Some(kernel)) = (median(Kind::AfXdp, per_core), median(Kind::Nftables, per_core)) {
        let ratio = ours / kernel;
        let verdict = if ratio >= PROMISE { "kept" } else { "MISSED" };
        writeln!(
            out,
            "{verdict}: af-xdp {ratio:.2} times nftables in Mpps per gateway core (promise: {PROMISE})"
        )?;
    }
    writeln!(
        out,
        "{} services, {} flows, {}-byte frames; min / median / max of {} turns; latency at {} pps, both ways answered",
        arguments.services, arguments.flows, arguments.size, arguments.repeats, arguments.rate
    )?;
    writeln!(
        out,
        "{:<10} {:>23} {:>23} {:>20} {:>9} {:>10} {:>10} {:>10} {:>9}",
        "gateway",
        "Mpps out (flood)",
        "Mpps per gateway core",
        "gateway ns/packet",
        "busy %",
        "rtt p50 µs",
        "p99 µs",
        "p99.9 µs",
        "loss %"
    )?;
    let number = |digits: usize| move |value: f64| format!("{value:.digits$}");
    for &kind in &arguments.driver {
        let latency = |pick: fn(&Row) -> f64| median(kind, pick).unwrap_or_default();
        writeln!(
            out,
            "{:<10} {:>23} {:>23} {:>20} {:>9.0} {:>10.1} {:>10.1} {:>10.1} {:>9.4}",
            kind.name(),
            spread(&of(kind, |row| row.mpps), number(3)),
            spread(&of(kind, per_core), number(3)),
            spread(&of(kind, |row| row.gateway_ns_per_packet), number(0)),
            latency(|row| row.gateway_busy * 100.0),
            latency(|row| row.paced.back.latency_ns.as_ref().map_or(0, |l| l.p50) as f64 / 1e3),
            latency(|row| row.paced.back.latency_ns.as_ref().map_or(0, |l| l.p99) as f64 / 1e3),
            latency(|row| row.paced.back.latency_ns.as_ref().map_or(0, |l| l.p999) as f64 / 1e3),
            latency(|row| row.paced.outcome().loss * 100.0),
        )?;
    }
    Ok(())
}
