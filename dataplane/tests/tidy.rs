//! Reads the repository: the house rules that a compiler does not know.

// A test may panic; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[path = "tidy/maps.rs"]
mod maps;

/// The only files that may contain `unsafe`: plain old data that the derive cannot see is it, driver memory and system
/// calls, mapped memory, rings in it, SIMD, a hint.
const UNSAFE: &[&str] = &[
    "dataplane/src/addr.rs",
    "dataplane/src/channel/cursor_loom.rs",
    "dataplane/src/channel/layout.rs",
    "dataplane/src/channel/peer.rs",
    "dataplane/src/conntrack/flow.rs",
    "dataplane/src/conntrack/group.rs",
    "dataplane/src/nic/bpf.rs",
    "dataplane/src/nic/frame.rs",
    "dataplane/src/nic/frame/tests.rs",
    "dataplane/src/nic/memif/guard.rs",
    "dataplane/src/nic/memif/region.rs",
    "dataplane/src/nic/netmap/region.rs",
    "dataplane/src/nic/netmap/ring.rs",
    "dataplane/src/nic/packet_ring.rs",
    "dataplane/src/nic/ring.rs",
    "dataplane/src/nic/sys.rs",
    "dataplane/src/prefetch.rs",
    "dataplane/src/segment.rs",
];

/// The only files that may read a clock. Time reaches everything else as an argument.
const CLOCKS: &[&str] = &[
    "dataplane/src/steward.rs",
    "dataplane/src/tick.rs",
    "dataplane/src/worker.rs",
    "dataplane/src/assemble.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(below: &str, ending: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found)
            } else {
                found.push(path)
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    walk(&root.join(below), &mut found);
    found.sort();
    let named = found
        .into_iter()
        .filter(|p| p.to_string_lossy().ends_with(ending));
    let read = |p: PathBuf| {
        let name = p.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(&p).unwrap())
    };
    named.map(read).collect()
}

fn sources() -> Vec<(String, String)> {
    ["dataplane/src", "control/src", "bench/src"]
        .iter()
        .flat_map(|below| files(below, ".rs"))
        .collect()
}

/// Source without its unit tests and comments.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = before_tests
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn unsafe_is_only_in_the_files_that_are_listed() {
    let is_unsafe = |text: &str| {
        let code = code(text);
        ["unsafe {", "unsafe impl", "unsafe fn"]
            .iter()
            .any(|form| code.contains(form))
    };
    let found: BTreeSet<_> = sources()
        .into_iter()
        .filter(|(_, text)| is_unsafe(text))
        .map(|(name, _)| name)
        .collect();
    let listed: BTreeSet<_> = UNSAFE.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(
        found, listed,
        "change the list together with the files, and say why in the commit"
    );
}

#[test]
fn nothing_below_the_worker_reads_a_clock() {
    for (name, text) in files("dataplane/src", ".rs") {
        let reads = code(&text).contains("Tick::now()") || code(&text).contains("Instant::now()");
        assert!(
            !reads || CLOCKS.contains(&name.as_str()),
            "{name} reads a clock: take a Tick instead"
        );
    }
}

#[test]
fn lib_rs_lists_the_stages_in_the_order_a_packet_meets_them() {
    let (_, lib) = files("dataplane/src", "src/lib.rs").remove(0);
    let place = |module: &str| {
        lib.find(&format!("pub mod {module};"))
            .unwrap_or_else(|| panic!("no mod {module}"))
    };
    let order = [
        "worker",
        "rx",
        "parse",
        "lookup",
        "nat",
        "tx",
        "verdict",
        "conntrack",
        "tables",
        "channel",
        "nic",
    ];
    for pair in order.windows(2) {
        assert!(
            place(pair[0]) < place(pair[1]),
            "{} comes before {}",
            pair[0],
            pair[1]
        );
    }
}

#[test]
fn every_link_of_the_readme_leads_somewhere() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let links: Vec<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|l| !l.contains("://"))
        .collect();
    assert!(links.len() > 15, "the map is made of links");
    for link in links {
        assert!(
            root().join(link).exists(),
            "README.md links to {link}, which does not exist"
        );
    }
}

#[test]
fn every_stage_says_what_it_takes_gives_drops_and_never_does() {
    for stage in ["rx", "parse", "lookup", "nat", "tx"] {
        let text = std::fs::read_to_string(root().join(format!("dataplane/src/{stage}.rs"))).unwrap();
        let head: String = text.lines().take(5).collect();
        for word in ["Takes", "Gives", "Drops", "Never", "Next"] {
            assert!(
                head.contains(word),
                "{stage}.rs: its first lines have no \"{word}\""
            );
        }
    }
}

#[test]
fn files_stay_short_enough_to_hold_one_idea() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= 600,
            "{name} has {lines} lines: a second idea is hiding in it"
        );
    }
}

#[test]
fn no_drop_reason_goes_unused() {
    let all: String = files("dataplane/src", ".rs")
        .iter()
        .filter(|(n, _)| !n.ends_with("verdict.rs"))
        .map(|(_, t)| code(t))
        .collect();
    for reason in sluice_dataplane::verdict::DropReason::ALL {
        assert!(
            all.contains(&format!("DropReason::{reason:?}")),
            "nothing is ever dropped for {reason:?}"
        );
    }
}

#[test]
fn every_systemd_unit_starts_a_program_of_ours_with_an_example_config_that_exists() {
    let units = files("configs/systemd", ".service");
    assert!(units.len() >= 2);
    for (name, text) in units {
        let start = text
            .lines()
            .find_map(|l| l.strip_prefix("ExecStart=/usr/local/bin/"))
            .unwrap_or_else(|| panic!("{name}: no ExecStart"));
        let program = start.split_whitespace().next().unwrap();
        assert!(
            ["sluice", "sluice-dataplane"].contains(&program),
            "{name} starts {program}"
        );
        let config = start
            .split_whitespace()
            .skip_while(|&w| w != "--config")
            .nth(1)
            .unwrap();
        let example = Path::new("configs/gateway").join(Path::new(config).file_name().unwrap());
        assert!(
            root().join(&example).exists(),
            "{name}: {} does not exist",
            example.display()
        );
    }
}
