//! What the replays share: reading records, models, and a count of what was compared and what was not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

    pub(crate) fn leave_out(&mut self, id: &str, reason: &'static str) {
        self.left_out.entry(reason).or_default().push(id.into());
    }

    /// Prints the count; fails if anything differed, or if less was compared than `at_least`.
    pub(crate) fn finish(self, at_least: usize) {
        println!("{} records compared", self.compared);
        for (reason, ids) in &self.left_out {
            println!("{} left out, {reason}: {}", ids.len(), ids.join(" "));
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
