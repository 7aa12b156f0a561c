//! What a figure was measured on: without it a figure says nothing.

use std::fs;

use serde::{Deserialize, Serialize};

/// The machine, as its kernel tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor.
    pub cpu: String,
    /// Cores online.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Transparent huge pages, and reserved ones of 2 MiB.
    pub huge_pages: String,
    /// Frequency governor, where there is one to see.
    pub governor: String,
    /// Hypervisor, if the processor says that there is one.
    pub virtualised: bool,
    /// Processes that wanted to run in the last minute: above `cores`, something else was running too.
    pub load: String,
}

impl Machine {
    /// This one, now. What cannot be read is empty.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let info = read("/proc/cpuinfo");
        let field = |name: &str| {
            info.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(": "))
                .map(|(_, value)| value.trim().to_owned())
        };
        let thp = read("/sys/kernel/mm/transparent_hugepage/enabled");
        let chosen = thp
            .split('[')
            .nth(1)
            .and_then(|rest| rest.split(']').next())
            .unwrap_or("unknown");
        let reserved = read("/proc/sys/vm/nr_hugepages");
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            cpu: format!(
                "{} (family {}, model {})",
                field("model name").unwrap_or_default(),
                field("cpu family").unwrap_or_default(),
                field("model\t").unwrap_or_default()
            ),
            // Not what this thread may run on: it may be pinned.
            cores: info.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease"),
            huge_pages: format!("transparent: {chosen}, reserved: {reserved}"),
            governor: if governor.is_empty() {
                "not visible".to_owned()
            } else {
                governor
            },
            virtualised: info.contains(" hypervisor "),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_cores() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && machine.kernel.contains('.'), "{machine:?}");
    }
}
