//! Processes of the lab: started inside a host's namespaces, reaped by the keeper, started again with back-off.
//!
//! The keeper is the first process of its PID namespace, so orphans become its children too: one thread waits for all of
//! them, and tells whoever waits for one. Never restarts without saying so.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::namespace::Namespaces;
use super::now;

/// First wait before a restart; doubled each time, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A process that ran this long was well: the next restart waits shortly again.
const WELL: Duration = Duration::from_secs(10);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Exit {
    Status(i32),
    Signal(Signal),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended with status {status}"),
            Self::Signal(signal) => write!(f, "was killed by {signal}"),
        }
    }
}

/// Those who wait for one child themselves, by its process id.
type Waiting = Arc<Mutex<HashMap<i32, mpsc::Sender<Exit>>>>;

/// The thread that waits for children.
#[derive(Clone)]
pub(super) struct Reaper {
    born: mpsc::Sender<()>,
    waiting: Waiting,
    /// Held while a child is made: one whose program cannot be run is waited for by the library that made it.
    making: Arc<Mutex<()>>,
}

impl Reaper {
    /// Starts it; `ended` hears of every child that ends.
    pub(super) fn start(ended: impl Fn(i32, Exit) + Send + 'static) -> anyhow::Result<Self> {
        let (born, births) = mpsc::channel();
        let making = Arc::new(Mutex::new(()));
        let lock = Arc::clone(&making);
        let waiting = Waiting::default();
        let waited_for = Arc::clone(&waiting);
        let ended = move |pid: Pid, exit| {
            let mut waiting = waited_for.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.remove(&pid.as_raw()) {
                // Who waited may have lost patience.
                Some(waits) => drop(waits.send(exit)),
                None => ended(pid.as_raw(), exit),
            }
        };
        let run = move || {
            loop {
                match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                    Ok(status) => {
                        let _made = lock.lock().unwrap_or_else(PoisonError::into_inner);
                        let Some(pid) = status.pid() else { continue };
                        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                            Ok(WaitStatus::Exited(pid, status)) => ended(pid, Exit::Status(status)),
                            Ok(WaitStatus::Signaled(pid, signal, _)) => ended(pid, Exit::Signal(signal)),
                            _ => {}
                        }
                    }
                    // No child at all: until the next one is made.
                    Err(Errno::ECHILD) => {
                        if births.recv().is_err() {
                            return;
                        }
                    }
                    Err(_) => {}
                }
            }
        };
        thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(run)
            .context("cannot start a thread")?;
        Ok(Self {
            born,
            waiting,
            making,
        })
    }

    /// Starts a process inside namespaces, its output appended to `log`. Gives its process id.
    pub(super) fn spawn(
        &self,
        namespaces: &Namespaces,
        mut command: Command,
        log: &Path,
        sockets: &HandOver,
    ) -> anyhow::Result<i32> {
        let open = || File::options().create(true).append(true).open(log);
        let output = open().and_then(|file| Ok((file.try_clone()?, file)));
        let (output, errors) = output.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        self.make(namespaces, command, sockets, None)
    }

    /// Runs a command inside namespaces to its end, its output thrown away. One that takes longer than `within` is killed,
    /// and gives nothing.
    pub(super) fn run(
        &self,
        namespaces: &Namespaces,
        mut command: Command,
        within: Duration,
    ) -> anyhow::Result<Option<Exit>> {
        let (ended, end) = mpsc::channel();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let pid = self.make(namespaces, command, &HandOver::default(), Some(ended))?;
        let exit = end.recv_timeout(within).ok();
        if exit.is_none() {
            signal(pid, Signal::SIGKILL);
        }
        Ok(exit)
    }

    fn make(
        &self,
        namespaces: &Namespaces,
        mut command: Command,
        sockets: &HandOver,
        waits: Option<mpsc::Sender<Exit>>,
    ) -> anyhow::Result<i32> {
        command.process_group_of_its_own();
        let program = command.get_program().to_string_lossy().into_owned();
        let pid = namespaces.enter(|| {
            // The keeper's threads leave SIGTERM to one of them; a child must not inherit that.
            SigSet::empty()
                .thread_set_mask()
                .context("cannot unblock signals")?;
            let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody else makes a child meanwhile, so only this one gets them.
            sockets.open_to(&mut command)?;
            let child = command.spawn();
            sockets.close_to_others()?;
            let child = child.with_context(|| format!("cannot run {program}"))?;
            let pid = i32::try_from(child.id()).context("a process id beyond the kernel's range")?;
            // Before the reaper can see its end.
            if let Some(waits) = waits {
                self.waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(pid, waits);
            }
            Ok(pid)
        })?;
        // If the reaper is gone, so is the keeper.
        let _gone = self.born.send(());
        Ok(pid)
    }
}

/// Sockets that every successor of a process gets, in the form of sd_listen_fds(3): consecutive numbers.
#[derive(Debug, Default)]
pub(super) struct HandOver(Vec<OwnedFd>);

impl HandOver {
    /// Their first number: above what a keeper has open when it begins, below the usual limit of 1024.
    const FIRST: RawFd = 900;

    /// The same sockets under numbers in a row.
    pub(super) fn new(sockets: &[OwnedFd]) -> anyhow::Result<Self> {
        let mut row = Vec::new();
        for (socket, number) in sockets.iter().zip(Self::FIRST..) {
            let copy = fcntl_dupfd_cloexec(socket, number).context("cannot keep a socket")?;
            anyhow::ensure!(copy.as_raw_fd() == number, "descriptor {number} is taken");
            row.push(copy);
        }
        Ok(Self(row))
    }

    /// Has the next child inherit them, and tells it.
    fn open_to(&self, command: &mut Command) -> anyhow::Result<()> {
        if !self.0.is_empty() {
            command.env("LISTEN_FDS", self.0.len().to_string());
            command.env("LISTEN_FDS_FIRST_FD", Self::FIRST.to_string());
            // Its process id is not known before it runs; without it the sockets are whoever's reads them.
            command.env_remove("LISTEN_PID");
        }
        self.flags(FdFlags::empty())
    }

    fn close_to_others(&self) -> anyhow::Result<()> {
        self.flags(FdFlags::CLOEXEC)
    }

    fn flags(&self, flags: FdFlags) -> anyhow::Result<()> {
        let mut sockets = self.0.iter();
        sockets.try_for_each(|socket| fcntl_setfd(socket, flags).context("cannot hand a socket over"))
    }
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self);
}

impl OwnGroup for Command {
    /// So that a signal reaches what the program started as well.
    fn process_group_of_its_own(&mut self) {
        std::os::unix::process::CommandExt::process_group(self, 0);
    }
}

/// Sends a signal to a process and all it started. One that is gone already is no error.
pub(super) fn signal(pid: i32, signal: Signal) {
    let group = Pid::from_raw(pid);
    if killpg(group, signal).is_err() {
        // Between its making and its own group there is an instant.
        let _gone = kill(group, signal);
    }
}

/// When a process that keeps ending is started again.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Duration,
    started: Instant,
}

impl Backoff {
    /// The process starts now.
    pub(super) fn new() -> Self {
        Self {
            wait: FIRST_WAIT,
            started: now(),
        }
    }

    /// It was started again.
    pub(super) fn restarted(&mut self) {
        self.started = now();
    }

    /// It ended: how long until it is to be started again?
    pub(super) fn ended(&mut self) -> Duration {
        if self.started.elapsed() >= WELL {
            self.wait = FIRST_WAIT;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_keeps_ending_waits_longer_each_time_up_to_a_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..8).map(|_| backoff.ended().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
