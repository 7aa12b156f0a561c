//! `sluice lab`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use notify::Watcher;
use serde_json::Value;

use super::args::{LabArgs, LabCommand, LabUpArgs};
use crate::lab::ipc::{Request, ask};
use crate::lab::state::State;
use crate::lab::{self, Options, Target};

mod show;
mod prove;

/// Runs the verb.
pub(super) fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    let state = State::of(&args.name)?;
    match args.command {
        LabCommand::Up(up_args) => return up(&state, &up_args),
        LabCommand::Status { output } => show::status(&state, output)?,
        LabCommand::Exec {
            host,
            namespace,
            command,
        } => {
            return exec(
                &state,
                Target {
                    name: host,
                    namespace,
                },
                &command,
            );
        }
        LabCommand::Logs {
            pod,
            namespace,
            follow,
        } => logs(&state, &namespace, &pod, follow)?,
        LabCommand::Scale {
            target,
            replicas,
            namespace,
        } => scale(&state, &target, replicas, namespace)?,
        LabCommand::Delete {
            kind: _,
            pod,
            namespace,
        } => {
            lab::living(&state)?;
            let _null: Value = ask(
                &state.socket("keeper"),
                &Request::Delete {
                    namespace,
                    name: pod.clone(),
                },
            )?;
            println!("pod {pod} deleted");
        }
        LabCommand::Down => match lab::down(&state)? {
            true => println!("lab {} is down", state.name()),
            false => println!("there is no lab {}", state.name()),
        },
        LabCommand::Keeper(keeper) => lab::launch::run(&keeper)?,
        LabCommand::Server(server) => lab::server::run(&server)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(state: &State, args: &LabUpArgs) -> anyhow::Result<ExitCode> {
    let mut end = SigSet::empty();
    if args.foreground {
        // Before anything is made, so that Ctrl-C at any time ends all of it.
        end.add(Signal::SIGINT);
        end.add(Signal::SIGTERM);
        end.thread_block().context("cannot block signals")?;
    }
    let clock = Clock::start();
    let options = Options {
        driver: args.driver,
        no_services: args.no_services,
        user_namespace: args.user_namespace,
    };
    lab::up(&args.folder, state, &options, &mut |line| clock.say(line))?;
    if !args.no_services {
        prove::wait_for_control(state).with_context(|| lab::left(state))?;
    }
    clock.say("ready");
    show::made(state)?;
    if !args.no_services {
        prove::prove(state, &clock).with_context(|| lab::left(state))?;
    }
    if args.foreground {
        println!("\nCtrl-C ends the lab.");
        end.wait().context("cannot wait for signals")?;
        lab::down(state)?;
    } else {
        show::try_these(state)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Progress lines with the time since the start.
pub(super) struct Clock(std::time::Instant);

impl Clock {
    // A person reads it: no packet waits.
    #[allow(clippy::disallowed_methods)]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn say(&self, line: &str) {
        println!("[{:5.2} s] {line}", self.0.elapsed().as_secs_f32());
    }
}

fn exec(state: &State, target: Target, command: &[String]) -> anyhow::Result<ExitCode> {
    let record = lab::living(state)?;
    let error = lab::enter(state, &record, &target, command);
    // A shell's numbers for a program that is not there, and for one that cannot be run.
    let code = match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => 127,
        Some(io::ErrorKind::PermissionDenied) => 126,
        _ => return Err(error),
    };
    eprintln!("sluice: {error:#}");
    Ok(ExitCode::from(code))
}

fn scale(state: &State, target: &str, replicas: u32, namespace: String) -> anyhow::Result<()> {
    let (deployment, name) = match target.split_once('/') {
        Some(("rs" | "replicaset" | "replicasets", name)) => (false, name),
        Some(("deploy" | "deployment" | "deployments", name)) => (true, name),
        _ => bail!("{target:?} names nothing to scale: say rs/NAME or deployment/NAME"),
    };
    lab::living(state)?;
    let request = Request::Scale {
        deployment,
        namespace,
        name: name.to_owned(),
        replicas,
    };
    let _null: Value = ask(&state.socket("keeper"), &request)?;
    println!("{target} scaled to {replicas}");
    Ok(())
}

fn logs(state: &State, namespace: &str, pod: &str, follow: bool) -> anyhow::Result<()> {
    let path = state.pod_log(namespace, pod);
    if !path.exists() {
        let known = show::pod_names(state)?;
        if known.iter().any(|name| name == pod) {
            return Ok(()); // it has written nothing yet
        }
        bail!(
            "no pod {pod} in namespace {namespace}; there are: {}",
            known.join(", ")
        );
    }
    let mut file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // The watch comes first, so that nothing written in between is missed.
    let (changed, changes) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |_| changed.send(()).unwrap_or_default())
        .context("cannot watch the log")?;
    if follow {
        watcher
            .watch(&path, notify::RecursiveMode::NonRecursive)
            .context("cannot watch the log")?;
    }
    loop {
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        match io::stdout().write_all(&text).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.context("cannot print the log")?,
        }
        if !follow || changes.recv().is_err() || !path.exists() {
            return Ok(());
        }
    }
}
