//! From a command to a lab's keeper: the namespaces around the whole lab.
//!
//! `sluice lab up` runs its own binary as the *launcher*, which makes the user namespace (unless it is root), the PID,
//! network and mount namespaces, starts the *keeper* as the first process in them, and ends. If the keeper dies, by
//! whatever signal, the kernel kills every process of the PID namespace, and with the last of them every network
//! namespace and interface goes. The steps are separate processes since a user namespace may only be made by a
//! process of one thread, and a new PID namespace begins with the next child.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid, setsid};

use super::keeper::{self, ENDED, FAILED, READY};
use super::state::State;
use super::{Driver, Options};

/// What the keeper is told, as the arguments of the hidden command `sluice lab keeper`.
#[derive(Clone, Debug, clap::Args)]
pub struct KeeperArgs {
    /// The lab's directory
    #[arg(long)]
    state: PathBuf,
    /// The driver that was asked for
    #[arg(long, value_enum)]
    driver: Option<Driver>,
    /// Leave dataplane and control out
    #[arg(long)]
    no_services: bool,
    /// Still outside: make the namespaces first
    #[arg(long)]
    launch: bool,
    /// In a user namespace
    #[arg(long)]
    rootless: bool,
}

/// Why a lab did not come up.
pub(super) struct Failure {
    /// What went wrong.
    pub(super) reason: anyhow::Error,
    /// Whether the keeper runs on, so that one can look into its lab.
    pub(super) alive: bool,
}

impl From<anyhow::Error> for Failure {
    fn from(reason: anyhow::Error) -> Self {
        Self { reason, alive: false }
    }
}

/// Starts a keeper and waits until the lab is up. Every line of its progress goes to `progress`.
///
/// # Errors
/// What the keeper said went wrong.
pub(super) fn start(state: &State, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let log = fs::File::create(state.log("keeper")).context("cannot make the keeper's log")?;
    let mut command = Command::new(own_binary()?);
    command
        .args(["lab", "keeper", "--launch", "--state"])
        .arg(state.path());
    if let Some(driver) = options.driver {
        command.args(["--driver", driver.name()]);
    }
    if options.no_services {
        command.arg("--no-services");
    }
    if options.user_namespace {
        command.arg("--rootless");
    }
    let mut launcher = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("cannot start the lab's keeper")?;
    let lines = launcher.stdout.take().context("the keeper has no output")?;
    let mut outcome = None;
    for line in BufReader::new(lines).lines().map_while(Result::ok) {
        if line == READY {
            outcome = Some(Ok(()));
            break;
        }
        if let Some(reason) = line.strip_prefix(FAILED) {
            let reason = anyhow::anyhow!("{reason}");
            outcome = Some(Err(Failure { reason, alive: true }));
            break;
        }
        if let Some(reason) = line.strip_prefix(ENDED) {
            outcome = Some(Err(anyhow::anyhow!("{reason}").into()));
            break;
        }
        progress(&line);
    }
    // The launcher ended long ago, or is about to: it does not wait for the keeper.
    launcher.wait().context("cannot wait for the lab's launcher")?;
    outcome.unwrap_or_else(|| {
        let log = fs::read_to_string(state.log("keeper")).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it left no word").to_owned();
        Err(anyhow::anyhow!("the lab's keeper ended: {last}").into())
    })
}

/// The hidden command `sluice lab keeper`: launcher or keeper.
pub fn run(args: &KeeperArgs) -> anyhow::Result<()> {
    if !args.launch {
        return keeper::run(
            State::at(&args.state)?,
            args.driver.unwrap_or(Driver::AfPacket),
            args.rootless,
            !args.no_services,
        );
    }
    if let Err(error) = launch(args) {
        println!("{ENDED}{error:#}");
    }
    Ok(())
}

fn launch(args: &KeeperArgs) -> anyhow::Result<()> {
    // No terminal's Ctrl-C reaches the lab.
    setsid().context("cannot start a session")?;
    let around = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let rootless = match (geteuid().is_root() && !args.rootless).then(|| unshare(around)) {
        Some(Ok(())) => false,
        // Root of a container may lack the capability; a user namespace gives it.
        Some(Err(Errno::EPERM)) | None => {
            user_namespace()
                .and_then(|()| unshare(around))
                .map_err(forbidden)?;
            true
        }
        Some(Err(errno)) => return Err(errno).context("cannot make the lab's namespaces"),
    };
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("cannot make the lab's mounts private")?;
    let driver = args
        .driver
        .unwrap_or(if rootless { Driver::AfPacket } else { Driver::AfXdp });
    if rootless {
        println!(
            "not root: the lab is in a user namespace, driver {}",
            driver.name()
        );
    }
    let mut command = Command::new(own_binary()?);
    command
        .args(["lab", "keeper", "--driver", driver.name(), "--state"])
        .arg(&args.state);
    if rootless {
        command.arg("--rootless");
    }
    if args.no_services {
        command.arg("--no-services");
    }
    command
        .process_group(0)
        .spawn()
        .context("cannot start the lab's keeper")?;
    Ok(())
}

/// Makes a user namespace in which the caller is root.
fn user_namespace() -> nix::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EPERM as i32)))
    };
    // A group map may be written by an ordinary user only after giving setgroups(2) up (user_namespaces(7)).
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {user} 1"))?;
    write("gid_map", format!("0 {group} 1"))
}

fn forbidden(errno: Errno) -> anyhow::Error {
    let read = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let apparmor = read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    let debian = read("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0");
    let limit = read("/proc/sys/user/max_user_namespaces").as_deref() == Some("0");
    let remedy = match (apparmor, debian, limit) {
        (true, ..) => "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        (_, true, _) => "sudo sysctl kernel.unprivileged_userns_clone=1",
        (.., true) => "sudo sysctl user.max_user_namespaces=10000",
        _ => "in a container, allow CAP_SYS_ADMIN or the unshare system call",
    };
    anyhow::anyhow!("this kernel forbids user namespaces ({errno}): run as root, or allow them: {remedy}")
}

/// The running binary, which is also launcher, keeper and the pods' server.
pub(super) fn own_binary() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find the running program")?;
    if !path.exists() {
        bail!(
            "{} was replaced or removed while it ran: start the command again",
            path.display()
        );
    }
    Ok(path)
}
