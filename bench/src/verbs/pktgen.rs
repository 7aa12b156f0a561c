//! `sluice-bench pktgen`.

use std::error::Error;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sluice_bench::machine::Machine;
use sluice_bench::pktgen::device::Device;
use sluice_bench::pktgen::plan::{Pick, Plan};
use sluice_bench::pktgen::ports::{Driver, Ports};
use sluice_bench::pktgen::rate::{Pps, Rate};
use sluice_bench::pktgen::run::{Generator, Latency, Row};
use sluice_bench::pktgen::schedule::{Schedule, describe};
use sluice_bench::pktgen::search::search;
use sluice_bench::pktgen::tally::Tally;

/// Sends packets to a gateway's Services from one NIC port, answers them from another, and judges every one.
///
/// What to send is in a file (configs/pktgen/ has some); arguments say what is different this time. Latency is counted
/// from when a packet was due, so that a stall is charged to all that waited in it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The plan.
    plan: PathBuf,
    /// Packets a second (250kpps, 1.5Mpps), per cent of the line (80%), or max.
    #[arg(long)]
    rate: Option<Rate>,
    /// Seconds of a trial.
    #[arg(long)]
    seconds: Option<f64>,
    /// Trials.
    #[arg(long)]
    repeats: Option<usize>,
    /// Flows.
    #[arg(long)]
    flows: Option<u32>,
    /// Zipf's exponent; flows are picked evenly otherwise.
    #[arg(long)]
    zipf: Option<f64>,
    /// Interface and driver toward clients.
    #[arg(long, value_name = "INTERFACE")]
    clients: Option<String>,
    /// Interface toward pods.
    #[arg(long, value_name = "INTERFACE")]
    pods: Option<String>,
    /// The gateway's MAC address toward clients.
    #[arg(long, value_name = "MAC")]
    gateway: Option<String>,
    /// Search for NDR and PDR instead.
    #[arg(long, conflicts_with = "rate")]
    search: bool,
    /// One JSON object a trial instead of lines.
    #[arg(long)]
    json: bool,
}

/// Sends and prints. A wrong packet is an error: a gateway that translates wrongly has no figure.
pub(crate) fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let json = arguments.json;
    let plan = plan(arguments)?;
    if let Some(id) = plan.core {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    let (_device, ports) = open(&plan)?;
    let traffic = plan.traffic(ports.clients.driver.info().mac)?;
    for (name, side) in [("clients", &ports.clients), ("pods", &ports.pods)] {
        let info = side.driver.info();
        eprintln!(
            "{name}: {} {}: {}, {}",
            info.driver, info.interface, info.mode, info.mac
        );
    }
    let mut generator = Generator::new(ports, traffic);
    if plan.open_rate > 0.0 {
        let opened = generator.open_flows(plan.open_rate);
        if opened.forward.sent > 0 {
            eprintln!("opened {} of {} flows", opened.forward.received, plan.flows);
        }
    }
    let show = Show::new(json);
    let mut wrong = 0;
    if let Some(goals) = plan.search {
        wrong += find(&plan, goals, &mut generator, &show)?;
    } else {
        for repeat in 0..plan.repeats {
            let schedule = plan.schedule(0);
            let length = match &schedule {
                Schedule::Paced { phases, .. } => phases.iter().map(|phase| phase.length).sum::<f64>() / 1e9,
                Schedule::Max { .. } => plan.seconds,
            };
            let progress = show.trial(&format!("trial {} of {}", repeat + 1, plan.repeats));
            let (tally, row) = generator.trial(
                Duration::from_secs_f64(length),
                |start| plan.schedule(start),
                |share, tally| progress.at(share, tally),
            );
            progress.done();
            wrong += row.wrong();
            show.row(&plan, &row, &json!({ "repeat": repeat }))?;
            show.sample(&tally);
        }
    }
    if wrong > 0 {
        return Err(format!("{wrong} packets came out wrong: see above").into());
    }
    Ok(())
}

fn plan(arguments: Arguments) -> Result<Plan, Box<dyn Error>> {
    let mut plan = Plan::load(&arguments.plan)?;
    if let Some(rate) = arguments.rate {
        (plan.rate, plan.phases, plan.search) = (Some(rate), Vec::new(), None);
    }
    if arguments.search {
        (plan.rate, plan.phases) = (None, Vec::new());
        plan.search = Some(plan.search.unwrap_or_default());
    }
    plan.seconds = arguments.seconds.unwrap_or(plan.seconds);
    plan.repeats = arguments.repeats.unwrap_or(plan.repeats);
    plan.flows = arguments.flows.unwrap_or(plan.flows);
    plan.pick = arguments.zipf.map_or(plan.pick, Pick::Zipf);
    if let Some(interface) = arguments.clients {
        plan.clients.interface = interface;
    }
    if let Some(interface) = arguments.pods {
        plan.pods.interface = interface;
    }
    if arguments.gateway.is_some() {
        plan.clients.gateway = arguments.gateway;
    }
    plan.check()?;
    Ok(plan)
}

fn open(plan: &Plan) -> Result<(Option<Device>, Ports), Box<dyn Error>> {
    if plan.clients.driver == Driver::Memory {
        let rings = (plan.clients.ring_size as usize, plan.frames);
        // The generator's neighbour, if it has a core of its own.
        let core = plan.core.map(|core| core ^ 1);
        let (device, ports) = Device::start(&plan.world, plan.tracked(), rings, core)?;
        return Ok((Some(device), ports));
    }
    let (Some(clients), Some(pods)) = (plan.clients.spec("clients"), plan.pods.spec("pods")) else {
        return Err("driver memory: both ports or none".into());
    };
    Ok((None, Ports::open(&clients, &pods, plan.frames)?))
}

/// NDR and PDR. How many packets came out wrong on the way.
fn find(
    plan: &Plan,
    settings: sluice_bench::pktgen::plan::Search,
    generator: &mut Generator,
    show: &Show,
) -> Result<u64, Box<dyn Error>> {
    let mut wrong = 0;
    let highest = match settings.highest.and_then(|rate| plan.packets(rate)) {
        Some(highest) => highest,
        None => {
            let progress = show.trial("flood");
            let length = Duration::from_secs_f64(plan.seconds.min(2.0));
            let (_, row) = generator.trial(
                length,
                |start| Schedule::even(None, start, length.as_nanos() as u64),
                |share, tally| progress.at(share, tally),
            );
            progress.done();
            eprintln!(
                "flood: {} sent, {} came out",
                Pps(row.sent_pps),
                Pps(row.received_pps)
            );
            // A little above what came out at most, which no search can pass.
            row.received_pps * 1.1
        }
    };
    for (name, goal) in settings.goals() {
        let found = search(goal, highest, |rate, share| {
            let length = Duration::from_secs_f64((plan.seconds * share).max(0.1));
            let progress = show.trial(&format!("{name}: {}", Pps(rate)));
            let (tally, row) = generator.trial(
                length,
                |start| Schedule::even(Some(rate), start, length.as_nanos() as u64),
                |share, tally| progress.at(share, tally),
            );
            progress.done();
            wrong += row.wrong();
            show.sample(&tally);
            let outcome = row.outcome();
            eprintln!(
                "{name}: {} for {:.1} s: {:.4} % lost, {:.4} % unsent",
                Pps(rate),
                length.as_secs_f64(),
                outcome.loss * 100.0,
                outcome.unsent * 100.0
            );
            outcome
        });
        let steps: Vec<_> = found
            .steps
            .iter()
            .map(|step| {
                json!({"pps": step.rate, "seconds": step.length * plan.seconds, "loss": step.outcome.loss,
                       "unsent": step.outcome.unsent, "passed": step.passed})
            })
            .collect();
        let share = found.rate / plan.line.packets(plan.mean_size()) * 100.0;
        if show.json {
            let row = json!({"kind": "search", "goal": name, "loss": goal.loss, "pps": found.rate,
                             "above_pps": found.above, "why": found.why.to_string(), "line_percent": share,
                             "steps": steps, "frame": plan.mean_size(), "flows": plan.flows,
                             "machine": Machine::this()});
            writeln!(std::io::stdout(), "{row}")?;
        } else {
            writeln!(
                std::io::stdout(),
                "{name} ({} % loss): {} passed, {} failed; {share:.2} % of the line; {} ({} trials)",
                goal.loss * 100.0,
                Pps(found.rate),
                Pps(found.above),
                found.why,
                found.steps.len()
            )?;
        }
    }
    Ok(wrong)
}

/// Where things are shown: a bar on a terminal, plain lines elsewhere.
struct Show {
    json: bool,
    terminal: bool,
}

struct Progress {
    bar: Option<ProgressBar>,
}

impl Show {
    fn new(json: bool) -> Self {
        Self {
            json,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn trial(&self, what: &str) -> Progress {
        let bar = self.terminal.then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} % {msg}");
            ProgressBar::new(1_000)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(what.to_owned())
        });
        Progress { bar }
    }

    fn row(&self, plan: &Plan, row: &Row, more: &serde_json::Value) -> Result<(), Box<dyn Error>> {
        let mut out = std::io::stdout();
        if self.json {
            let whole = json!({"kind": "pktgen", "driver": format!("{:?}", plan.clients.driver), "flows": plan.flows,
                               "services": plan.world.services.count, "frame": plan.mean_size(),
                               "rate": plan.rate.and_then(|rate| plan.packets(rate)), "answered": plan.answer,
                               "more": more, "row": row, "machine": Machine::this()});
            writeln!(out, "{whole}")?;
            return Ok(());
        }
        let rate = plan
            .rate
            .map_or_else(|| "phases".to_owned(), |rate| describe(rate, plan.packets(rate)));
        writeln!(
            out,
            "{rate}: {} sent, {} came out right ({:.2} % of the line) in {:.2} s; latest {} after it was due",
            Pps(row.sent_pps),
            Pps(row.received_pps),
            row.received_pps / plan.line.packets(plan.mean_size()) * 100.0,
            row.seconds,
            nanos(row.latest_ns)
        )?;
        for (name, flow) in [("to pods", &row.forward), ("back", &row.back)] {
            if flow.sent == 0 {
                continue;
            }
            let wrong: String = flow
                .wrong
                .iter()
                .map(|(what, count)| format!(", {count} wrong {what}"))
                .collect();
            writeln!(
                out,
                "  {name}: {} sent, {} lost ({:.4} %), {} again, {} overtaken{wrong}",
                flow.sent,
                flow.lost,
                flow.loss * 100.0,
                flow.duplicates,
                flow.overtaken
            )?;
            if let Some(latency) = &flow.latency_ns {
                writeln!(out, "    latency: {}", percentiles(latency))?;
            }
        }
        if let Some(lives) = &row.lives {
            writeln!(
                out,
                "  connections: {} begun, {} came to their end ({:.0} a second), {} did not",
                lives.started, lives.finished, lives.per_second, lives.failed
            )?;
            if let Some(length) = &lives.length_ns {
                writeln!(out, "    length: {}", percentiles(length))?;
            }
        }
        if row.unsent + row.unanswered > 0 {
            writeln!(
                out,
                "  not sent: {} that were due, {} answers (the driver took no more, or no flow was free)",
                row.unsent, row.unanswered
            )?;
        }
        Ok(())
    }

    /// The first wrong packet, dissected.
    fn sample(&self, tally: &Tally) {
        let Some((side, wrong, bytes)) = &tally.sample else {
            return;
        };
        let hex: Vec<String> = bytes.iter().take(96).map(|byte| format!("{byte:02x}")).collect();
        eprintln!("wrong at the {side}' side ({wrong}): {}", hex.join(" "));
        if let Ok(packet) = etherparse::PacketHeaders::from_ethernet_slice(bytes) {
            eprintln!("  {:?} {:?}", packet.net, packet.transport);
        }
    }
}

impl Progress {
    fn at(&self, share: f64, tally: &Tally) {
        if let Some(bar) = &self.bar {
            bar.set_position((share * 1_000.0) as u64);
            bar.set_message(format!(
                "{} sent, {} lost, {} wrong",
                tally.forward.sent,
                tally.forward.lost(),
                tally.forward.wrong() + tally.back.wrong()
            ));
        }
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn percentiles(latency: &Latency) -> String {
    format!(
        "p50 {}, p90 {}, p99 {}, p99.9 {}, p99.99 {}, max {}",
        nanos(latency.p50),
        nanos(latency.p90),
        nanos(latency.p99),
        nanos(latency.p999),
        nanos(latency.p9999),
        nanos(latency.max)
    )
}

fn nanos(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{:.1} µs", nanos as f64 / 1e3),
        _ => format!("{:.1} ms", nanos as f64 / 1e6),
    }
}
