//! Where in the machine an interface and a CPU are: packets that cross between two NUMA nodes cost each of them, and the link
//! between them, more than the packet path itself.
//!
//! Takes  the folder that sysfs is mounted at, `/sys`.   Gives  numbers of nodes; nothing where the machine tells none.

use std::fs;
use std::path::Path;

/// Where sysfs is.
pub const SYS: &str = "/sys";

/// The node of the device at this place (`0000:3b:00.0`, `virtio0`), as a driver tells it.
pub fn of_device(sys: &Path, bus: &str) -> Option<u32> {
    let is_place = !bus.is_empty() && !bus.contains('/') && !bus.starts_with('.');
    let device = ["pci", "virtio"].iter().filter(|_| is_place).find_map(|kind| {
        let link = sys.join("bus").join(kind).join("devices").join(bus);
        fs::canonicalize(link).ok()
    })?;
    // One that has no node of its own is where the device it hangs from is. The machine writes -1 for none.
    device
        .ancestors()
        .find_map(|folder| fs::read_to_string(folder.join("numa_node")).ok())?
        .trim()
        .parse()
        .ok()
}

/// The node of a CPU.
pub fn of_cpu(sys: &Path, cpu: usize) -> Option<u32> {
    let folder = sys.join(format!("devices/system/cpu/cpu{cpu}"));
    let mut names = fs::read_dir(folder).ok()?.flatten();
    names.find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// The CPUs of a node, as the kernel lists them: `0-7,16-23`.
pub fn cpus(sys: &Path, node: u32) -> Option<String> {
    let list = fs::read_to_string(sys.join(format!("devices/system/node/node{node}/cpulist"))).ok()?;
    Some(list.trim().to_owned())
}

#[cfg(all(test, not(miri)))]
pub(crate) mod tests {
    use super::*;

    /// A machine of two nodes: a NIC on the second, and one that does not say.
    #[allow(clippy::unwrap_used, reason = "clippy knows only functions marked #[test]")]
    pub(crate) fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for (folder, node) in [
            ("devices/pci/0000:3b:00.0", "1\n"),
            ("devices/pci/0000:04:00.0", "-1\n"),
        ] {
            fs::create_dir_all(at(folder).join("virtio0")).unwrap();
            fs::write(at(folder).join("numa_node"), node).unwrap();
        }
        for (bus, device, target) in [
            ("pci", "0000:3b:00.0", "devices/pci/0000:3b:00.0"),
            ("pci", "0000:04:00.0", "devices/pci/0000:04:00.0"),
            ("virtio", "virtio0", "devices/pci/0000:3b:00.0/virtio0"),
        ] {
            fs::create_dir_all(at(&format!("bus/{bus}/devices"))).unwrap();
            std::os::unix::fs::symlink(at(target), at(&format!("bus/{bus}/devices/{device}"))).unwrap();
        }
        for (cpu, node) in [(0, 0), (8, 1)] {
            fs::create_dir_all(at(&format!("devices/system/cpu/cpu{cpu}/node{node}"))).unwrap();
            fs::create_dir_all(at(&format!("devices/system/node/node{node}"))).unwrap();
            let list = at(&format!("devices/system/node/node{node}/cpulist"));
            fs::write(list, format!("{cpu}-{}\n", cpu + 7)).unwrap();
        }
        root
    }

    #[test]
    fn devices_and_cpus_have_the_node_that_the_machine_tells() {
        let root = machine();
        let sys = root.path();
        assert_eq!(of_device(sys, "0000:3b:00.0"), Some(1));
        assert_eq!(of_device(sys, "virtio0"), Some(1), "that of what it hangs from");
        for none in [
            "0000:04:00.0",
            "0000:99:00.0",
            "",
            "..",
            "../../devices/pci/0000:3b:00.0",
        ] {
            assert_eq!(of_device(sys, none), None, "{none}");
        }
        assert_eq!(
            (of_cpu(sys, 0), of_cpu(sys, 8), of_cpu(sys, 99)),
            (Some(0), Some(1), None)
        );
        assert_eq!(cpus(sys, 1).as_deref(), Some("8-15"));
    }
}
