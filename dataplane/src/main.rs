//! `sluice-dataplane`: config → segment → NIC ports → one pinned worker per core → signal → exit code.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use sluice_dataplane::assemble::Dataplane;
use sluice_dataplane::config::Config;
use sluice_dataplane::counters::{CounterId, CounterPages};
use sluice_dataplane::index::WorkerIndex;
use sluice_dataplane::probe::{Machine, suggest};
use sluice_dataplane::worker::Shared;

/// Carries packets for Kubernetes Services between NIC rings.
#[derive(Debug, Parser)]
#[command(name = "sluice-dataplane", version)]
struct Arguments {
    /// The config file (see configs/gateway/).
    #[arg(long, value_name = "FILE", required_unless_present = "probe")]
    config: Option<PathBuf>,
    /// Read and check the config, then exit.
    #[arg(long)]
    check: bool,
    /// Say what this machine can do for each interface, and suggest a config; changes nothing.
    #[arg(long, conflicts_with_all = ["config", "check"])]
    probe: bool,
    /// With --probe: as JSON.
    #[arg(long, requires = "probe")]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format_timestamp_millis()
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one place errors are printed; a closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "sluice-dataplane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let Some(file) = &arguments.config else {
        return probe(arguments.json);
    };
    let config = Config::load(file)?;
    if arguments.check {
        writeln!(std::io::stdout(), "{}: ok", file.display())?;
        return Ok(());
    }
    // Before anything is opened, so that a signal during start-up ends it cleanly, too.
    let (quit, signal) = UnixStream::pair()?;
    for number in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(number, signal.try_clone()?)?;
    }
    let Dataplane {
        mut steward,
        workers,
        shared,
        counters,
    } = Dataplane::open(&config)?;
    std::thread::scope(|scope| {
        let serve = || {
            for (i, mut worker) in workers.into_iter().enumerate() {
                let shared = Arc::clone(&shared);
                let core = config
                    .workers
                    .cores
                    .get(i)
                    .map(|&id| core_affinity::CoreId { id });
                std::thread::Builder::new()
                    .name(format!("worker-{i}"))
                    .spawn_scoped(scope, move || {
                        if let Some(core) = core
                            && !core_affinity::set_for_current(core)
                        {
                            log::warn!(
                                "worker {i}: cannot be pinned to CPU {}: not in this process's affinity mask",
                                core.id
                            );
                        }
                        let _end = StopAll(&shared);
                        worker.run(&shared);
                    })?;
            }
            log::info!("ready");
            steward.run(&shared, quit.as_fd())
        };
        let result = serve();
        // Whatever ended it, a thread that could not be started included: the scope waits for the workers.
        shared.stop();
        log::info!("stopping");
        result
    })?;
    say_drops(&counters);
    Ok(())
}

/// What the machine can do, and the config to begin with.
fn probe(json: bool) -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::look()?;
    let suggestion = suggest(&machine);
    let mut out = std::io::stdout().lock();
    if json {
        let report = serde_json::json!({"machine": machine, "suggestion": suggestion});
        writeln!(out, "{report:#}")?;
        return Ok(());
    }
    writeln!(out, "{machine}")?;
    match suggestion {
        Some(config) => write!(out, "A config to begin with:\n\n{config}")?,
        None => writeln!(
            out,
            "No config is suggested: no driver could have any interface; each line above says why."
        )?,
    }
    Ok(())
}

/// One line for every reason something was dropped for.
fn say_drops(counters: &CounterPages) {
    for id in CounterId::all().filter(|id| id.drop_reason().is_some()) {
        let pages = (0..counters.workers()).map(|page| WorkerIndex(page as u8));
        let packets: u64 = pages.map(|page| counters.get(page, id)).sum();
        if packets > 0 {
            log::info!("{id}: {packets}: {}", id.sentence());
        }
    }
}

/// A worker that ends, by a panic, ends the process: a supervisor starts it anew, and a half-working gateway helps nobody.
struct StopAll<'a>(&'a Shared);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.stop();
        self.0.steward.ring();
    }
}
