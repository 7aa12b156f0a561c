//! How much processor a gateway took: the time its threads ran, the kernel's NAPI threads of its interfaces included
//! (/proc/PID/schedstat, Documentation/scheduler/sched-stats.rst). Unlike a core's load it does not count who else was there.

use std::fs;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Threads by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Threads(Vec<i32>);

impl Threads {
    /// Those of a process.
    pub fn of_process(pid: u32) -> Self {
        let folder = fs::read_dir(format!("/proc/{pid}/task"));
        let names = folder
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        Self(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// The kernel's threads whose name begins with one of these: `napi/eth0-`.
    pub fn named(beginnings: &[String]) -> Self {
        let named = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            beginnings
                .iter()
                .any(|beginning| name.starts_with(beginning.as_str()))
        };
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        Self(
            all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                .filter(named)
                .collect(),
        )
    }

    /// Both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// How many.
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// Nanoseconds that they ran in all, so far.
    pub fn ran(&self) -> u64 {
        let ran = |pid: &i32| {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        self.0.iter().filter_map(ran).sum()
    }

    /// Gives them a niceness, -20 to 19; those that do not let themselves stay as they are.
    pub fn hurry(&self, niceness: i32) {
        for pid in self.0.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = rustix::process::setpriority_process(Some(pid), niceness);
        }
    }

    /// Keeps them on a core. Whether all let themselves.
    pub fn pin(&self, core: usize) -> bool {
        let mut set = CpuSet::new();
        set.set(core);
        self.0
            .iter()
            .all(|pid| Pid::from_raw(*pid).is_some_and(|pid| sched_setaffinity(Some(pid), &set).is_ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs() {
        let threads = Threads::of_process(std::process::id());
        let before = threads.ran();
        assert!(threads.count() > 0 && before > 0);
        assert_eq!(Threads::named(&["no such thread".to_owned()]).count(), 0);
    }
}
