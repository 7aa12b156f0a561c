//! `sluice lab`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use notify::Watcher;
use serde_json::Value;

use super::args::{LabArgs, LabCommand, LabUpArgs};
use crate::daemon::config::Config;
use crate::lab::ipc::{Request, Status, ask};
use crate::lab::state::State;
use crate::lab::{self, Options, Target};
use crate::problem::Severity;

#[macro_use]
mod print;
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
            delete(&state, namespace, &pod)?;
        }
        LabCommand::Down => match lab::down(&state)? {
            true => say!("lab {} is down", state.name()),
            false => say!("there is no lab {}", state.name()),
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
    let errors = report_problems(state, &args.folder);
    if !args.no_services {
        prove::wait_for_control(state).map_err(|error| lab::look_into(state, &error))?;
    }
    clock.say("ready\n");
    show::made(state)?;
    let mut answered = None;
    if !args.no_services {
        say!("");
        answered = prove::prove(state).map_err(|error| lab::look_into(state, &error))?;
    }
    show::try_these(state, answered.as_deref())?;
    if errors > 0 {
        let line = format!(
            "{errors} errors in the manifests, shown above: what they are about is left out; `{} check {}` shows them again",
            print::program(),
            args.folder.display()
        );
        say!("{}", print::paint(print::Style::Red, &line));
    }
    if args.foreground {
        say!("Ctrl-C ends the lab.");
        end.wait().context("cannot wait for signals")?;
        lab::down(state)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what is wrong with the manifests, in the folder as it was given; what is right works all the same. Gives how many
/// errors there are.
fn report_problems(state: &State, folder: &Path) -> usize {
    // A lab without control has no ranges of its own.
    let config = Config::load(&state.config("control"));
    let ranges = config.map_or_else(|_| super::check::any_cluster(), |config| config.ranges());
    let problems = super::check::problems(&[folder.to_owned()], ranges);
    let errors = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error);
    let errors: Vec<_> = errors.collect();
    super::check::print_problems(&errors);
    errors.len()
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
        say!("[{:5.2} s] {line}", self.0.elapsed().as_secs_f32());
    }
}

fn exec(state: &State, target: Target, command: &[String]) -> anyhow::Result<ExitCode> {
    let record = lab::living(state)?;
    let error = lab::enter(state, &record, &target, command);
    let program = command.first().map_or("", String::as_str);
    // A shell's numbers for a program that is not there, and for one that cannot be run.
    let code = match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => 127,
        // execvp(3) says so also if a folder of $PATH cannot be searched and none has the program.
        Some(io::ErrorKind::PermissionDenied) if !is_somewhere(program) => 127,
        Some(io::ErrorKind::PermissionDenied) => 126,
        _ => return Err(error),
    };
    match code {
        127 => eprintln!("sluice: {program}: no such program on this machine"),
        _ => eprintln!("sluice: {error:#}"),
    }
    Ok(ExitCode::from(code))
}

/// Whether there is such a file, looked for as execvp(3) does.
fn is_somewhere(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    program.contains('/') || std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Tells which pod goes and which comes.
fn delete(state: &State, namespace: String, name: &str) -> anyhow::Result<()> {
    lab::living(state)?;
    let keeper = state.socket("keeper");
    let before: Status = ask(&keeper, &Request::Status)?;
    let request = Request::Delete {
        namespace: namespace.clone(),
        name: name.to_owned(),
    };
    let _null: Value = ask(&keeper, &request)?;
    say!("pod {name} is being stopped");
    let owner = before
        .pods
        .iter()
        .find(|pod| pod.namespace == namespace && pod.name == name);
    let owner = owner.and_then(|pod| pod.owner.clone());
    // The keeper replaces it in the same turn, before it takes the next request.
    let after: Status = ask(&keeper, &Request::Status)?;
    let came = after.pods.iter().find(|pod| {
        let new = before
            .pods
            .iter()
            .all(|old| (&old.namespace, &old.name) != (&pod.namespace, &pod.name));
        new && pod.namespace == namespace && pod.owner == owner
    });
    if let (Some(pod), Some(_)) = (came, owner) {
        say!("pod {} takes its place at {}", pod.name, pod.ip);
    }
    Ok(())
}

fn scale(state: &State, target: &str, replicas: u32, namespace: String) -> anyhow::Result<()> {
    let (deployment, name) = match target.split_once('/') {
        Some(("rs" | "replicaset" | "replicasets" | "sts" | "statefulset" | "statefulsets", name)) => {
            (false, name)
        }
        Some(("deploy" | "deployment" | "deployments", name)) => (true, name),
        _ => bail!("{target:?} names nothing to scale: say rs/NAME, sts/NAME or deployment/NAME"),
    };
    lab::living(state)?;
    let request = Request::Scale {
        deployment,
        namespace,
        name: name.to_owned(),
        replicas,
    };
    let _null: Value = ask(&state.socket("keeper"), &request)?;
    say!("{target} scaled to {replicas}");
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
            "no pod {pod} in namespace {namespace}, now or earlier; there are: {}",
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
