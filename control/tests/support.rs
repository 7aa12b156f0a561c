//! What the replays share: reading records, models, and a count of what was compared and what was not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;
use sluice_control::allocate::{Allocator, Ranges};
use sluice_control::manifest::{self, Contents};
use sluice_control::model::Model;
use sluice_control::problem::SourceText;
use sluice_control::source::{Batch, Event};

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The records of a file of JSON lines.
pub(crate) fn records(path: &Path) -> Vec<Value> {
    text(path)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

pub(crate) fn parse(text: &str) -> Contents {
    manifest::read(&Arc::new(SourceText {
        path: "f.yaml".into(),
        text: text.into(),
    }))
}

/// Of a cluster with Services from these ranges.
pub(crate) fn allocator(services: &[&str]) -> Allocator {
    let ranges = Ranges {
        services: services.iter().map(|range| range.parse().unwrap()).collect(),
        ..Ranges::default()
    };
    Allocator::new(ranges, BTreeMap::new())
}

/// The ranges of the recorded cluster.
pub(crate) const DUAL: &[&str] = &["10.96.0.0/16", "fd00:96::/112"];
/// Those of a cluster of one family.
pub(crate) const SINGLE: &[&str] = &["10.96.0.0/16"];

/// Whether `value` may be what a record's symbol stands for: an address of the range of that family, or a node port.
pub(crate) fn is_allocated(value: &str, symbol: &str) -> bool {
    let range = match symbol {
        symbol if symbol.contains("v4") => DUAL[0],
        symbol if symbol.contains("v6") => DUAL[1],
        _ => {
            return value
                .parse()
                .is_ok_and(|port: u16| (30_000..=32_767).contains(&port));
        }
    };
    let range: IpNet = range.parse().unwrap();
    value
        .parse()
        .is_ok_and(|address: IpAddr| range.contains(&address))
}

/// The events of a source that holds `text` and nothing else.
pub(crate) fn reset(text: &str) -> Batch {
    let contents = parse(text);
    let objects = contents
        .objects
        .into_iter()
        .map(|object| Event::Apply(Box::new(object)));
    [Event::Problems(contents.problems), Event::ResetBegin]
        .into_iter()
        .chain(objects)
        .chain([Event::ResetEnd])
        .collect()
}

pub(crate) fn model(text: &str) -> Model {
    let mut model = Model::new(allocator(DUAL));
    model.apply(reset(text));
    model
}

/// What a replay compared, what differed, and what it left out and why.
#[derive(Default)]
pub(crate) struct Tally {
    compared: usize,
    left_out: BTreeMap<&'static str, Vec<String>>,
    different: BTreeMap<&'static str, Vec<String>>,
    wrong: Vec<String>,
}

impl Tally {
    pub(crate) fn compare(&mut self, id: &str, got: &str, wanted: &str) {
        self.compared += 1;
        if got != wanted {
            self.wrong
                .push(format!("{id}\n     got: {got}\n  wanted: {wanted}"));
        }
    }

    /// Where ours differs on purpose: what it then is, `ours`, is compared instead, and must not be what was recorded.
    pub(crate) fn differ(&mut self, id: &str, reason: &'static str, got: &str, recorded: &str, ours: &str) {
        if got == recorded {
            self.wrong
                .push(format!("{id} differs on purpose ({reason}), and agrees: {got}"));
        }
        self.compare(id, got, ours);
        self.different.entry(reason).or_default().push(id.into());
    }

    /// Whether all of these, and no others, differed on purpose.
    pub(crate) fn all_differed<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        let wanted: BTreeSet<&str> = ids.into_iter().collect();
        let differed: BTreeSet<&str> = self.different.values().flatten().map(String::as_str).collect();
        assert_eq!(differed, wanted, "what is listed as different was not met");
    }

    pub(crate) fn leave_out(&mut self, id: &str, reason: &'static str) {
        self.left_out.entry(reason).or_default().push(id.into());
    }

    /// Prints the count; fails if anything differed, or if less was compared than `at_least`.
    pub(crate) fn finish(self, at_least: usize) {
        println!("{} records compared", self.compared);
        for (what, lists) in [("left out", &self.left_out), ("differ", &self.different)] {
            for (reason, ids) in lists {
                println!("{} {what}, {reason}: {}", ids.len(), ids.join(" "));
            }
        }
        assert!(
            self.wrong.is_empty(),
            "{} of {} differ:\n{}",
            self.wrong.len(),
            self.compared,
            self.wrong.join("\n")
        );
        assert!(self.compared >= at_least, "only {} compared", self.compared);
    }
}
