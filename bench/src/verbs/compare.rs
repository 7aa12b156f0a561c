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
use sluice_bench::compare::promises::{Figure, PROMISES};
use sluice_bench::compare::sandbox;
use sluice_bench::machine::Machine;
use sluice_bench::pktgen::ports::Driver;
use sluice_bench::report::rows::Spread;

/// Compares gateways on one machine: the dataplane with each driver, and the kernel with kube-proxy's rules.
///
/// Each has a cable toward clients and one toward pods and the same Services, and is measured in turn with the others, again
/// and again. Beside the dataplane with a driver stands its ceiling: that driver alone, forwarding. Needs root, two cores,
/// nft and iptables-legacy. Nothing is left behind.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which; several separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…", default_values_t = [
        Name::Nftables, Name::AfXdp, Name::Iptables, Name::AfPacket, Name::Tap, Name::Memif, Name::Forward
    ])]
    driver: Vec<Name>,
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
    /// Seconds of a trial; each turn has two, and up to six of half of it.
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
    /// The generator's driver on interfaces; memif is spoken with by memif.
    #[arg(long, value_enum, default_value = "af_xdp")]
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

/// What can be compared: the dataplane by its driver, or the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Name {
    /// The dataplane on AF_XDP sockets.
    AfXdp,
    /// The dataplane on AF_PACKET rings.
    AfPacket,
    /// The dataplane on taps.
    Tap,
    /// The dataplane on memory that it shares with the generator.
    Memif,
    /// The kernel with kube-proxy's nftables rules.
    Nftables,
    /// The kernel with kube-proxy's iptables rules.
    Iptables,
    /// The kernel, only forwarding.
    Forward,
}

impl Name {
    /// The gateways that it is measured with.
    fn kinds(self) -> Vec<Kind> {
        let with_ceiling = |driver| vec![Kind::Dataplane(driver), Kind::Ceiling(driver)];
        match self {
            Self::AfXdp => with_ceiling(Driver::AfXdp),
            Self::AfPacket => with_ceiling(Driver::AfPacket),
            Self::Tap => with_ceiling(Driver::Tap),
            Self::Memif => with_ceiling(Driver::Memif),
            Self::Nftables => vec![Kind::Nftables],
            Self::Iptables => vec![Kind::Iptables],
            Self::Forward => vec![Kind::Forward],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum By {
    AfXdp,
    AfPacket,
}

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
    let kinds: Vec<Kind> = arguments.driver.iter().flat_map(|name| name.kinds()).collect();
    for (number, &kind) in kinds.iter().enumerate() {
        let mut gateway = Gateway::new(kind, number, size, cores)?;
        if kind.translates() {
            let changes = changes(&mut gateway, arguments.changes)?;
            eprintln!(
                "{}: {} services in {:.3} s; one changed in {}",
                kind.name(),
                size.services,
                gateway.load.as_secs_f64(),
                spread(changes.clone(), |seconds| format!("{:.2} ms", seconds * 1e3))
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
                "{} {repeat}: {} flows known, {:.3} Mpps, {:.0} % busy; {} ns a packet, each at half the load before {:?}",
                row.gateway,
                row.opened,
                row.mpps,
                row.gateway_busy * 100.0,
                row.ladder
                    .iter()
                    .map(|rung| format!("{:.0}", rung.gateway_ns_per_packet))
                    .collect::<Vec<_>>()
                    .join(", "),
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
        table(&arguments, &kinds, &rows)?;
    }
    let ours: Vec<String> = kinds
        .iter()
        .filter(|kind| matches!(kind, Kind::Dataplane(_)))
        .map(|kind| kind.name())
        .collect();
    for row in &rows {
        let wrong = row.ladder.iter().map(|rung| rung.wrong).sum::<u64>() + row.paced.wrong();
        if wrong > 0 {
            let what = format!(
                "{}: {wrong} packets came out wrong in turn {}",
                row.gateway, row.repeat
            );
            if ours.contains(&row.gateway) {
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
fn spread(values: Vec<f64>, show: impl Fn(f64) -> String) -> String {
    Spread::of(values).map_or_else(
        || "-".to_owned(),
        |Spread { min, median, max }| format!("{} / {} / {}", show(min), show(median), show(max)),
    )
}

fn table(arguments: &Arguments, kinds: &[Kind], rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let number = |digits: usize| move |value: f64| format!("{value:.digits$}");
    let figures: Vec<Figure<'_>> = rows
        .iter()
        .map(|row| Figure {
            gateway: &row.gateway,
            turn: row.repeat as u64,
            mpps: row.mpps_per_gateway_core,
        })
        .collect();
    for promise in PROMISES {
        if let Some(measured) = promise.measured(&figures) {
            let verdict = if promise.kept(measured) { "kept" } else { "MISSED" };
            let Spread { min, median, max } = measured;
            writeln!(
                out,
                "{verdict}: {promise}, in Mpps per gateway core: {min:.2} / {median:.2} / {max:.2}"
            )?;
        }
    }
    writeln!(
        out,
        "{} services, {} flows, {}-byte frames; min / median / max of {} turns; latency at {} pps, both ways answered",
        arguments.services, arguments.flows, arguments.size, arguments.repeats, arguments.rate
    )?;
    writeln!(
        out,
        "{:<17} {:>23} {:>23} {:>20} {:>8} {:>6} {:>10} {:>10} {:>10} {:>8}",
        "gateway",
        "Mpps out (flood)",
        "Mpps per gateway core",
        "gateway ns/packet",
        "ceiling%",
        "busy %",
        "rtt p50 µs",
        "p99 µs",
        "p99.9 µs",
        "loss %"
    )?;
    for &kind in kinds {
        let of = |kind: Kind, value: fn(&Row) -> f64| -> Vec<f64> {
            let these = rows.iter().filter(|row| row.gateway == kind.name());
            these.map(value).collect()
        };
        let median = |kind, value| Spread::of(of(kind, value)).map(|spread| spread.median);
        let own = |value: fn(&Row) -> f64| median(kind, value).unwrap_or_default();
        let per_core = |row: &Row| row.mpps_per_gateway_core;
        let share = match kind {
            Kind::Dataplane(driver) => median(Kind::Ceiling(driver), per_core)
                .map_or_else(String::new, |ceiling| {
                    format!("{:.0}", own(per_core) / ceiling * 100.0)
                }),
            _ => String::new(),
        };
        writeln!(
            out,
            "{:<17} {:>23} {:>23} {:>20} {share:>8} {:>6.0} {:>10.1} {:>10.1} {:>10.1} {:>8.4}",
            kind.name(),
            spread(of(kind, |row| row.mpps), number(3)),
            spread(of(kind, per_core), number(3)),
            spread(of(kind, |row| row.gateway_ns_per_packet), number(0)),
            own(|row| row.gateway_busy * 100.0),
            own(|row| row.paced.back.latency_ns.as_ref().map_or(0, |l| l.p50) as f64 / 1e3),
            own(|row| row.paced.back.latency_ns.as_ref().map_or(0, |l| l.p99) as f64 / 1e3),
            own(|row| row.paced.back.latency_ns.as_ref().map_or(0, |l| l.p999) as f64 / 1e3),
            own(|row| row.paced.outcome().loss * 100.0),
        )?;
    }
    Ok(())
}
