//! What became of the records of a file: each agrees, differs on purpose, or is not about packets of ours.
//! Anything else fails, and so does a listed difference that is none.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::support::{folder, records};

/// A record: its name, and what was written.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) value: Value,
}

impl Row {
    /// The text of a field, "" if it has none.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.value[field].as_str().unwrap_or_default()
    }
}

/// Its name, and what tells it from its neighbours.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        let fields = [
            "test",
            "case",
            "setup",
            "source",
            "frontend",
            "eTP",
            "etp",
            "iTP",
            "situation",
            "proto",
        ];
        for field in fields.into_iter().chain(["family", "dst"]) {
            match self.text(field) {
                "" => {}
                text => write!(f, " | {text}")?,
            }
        }
        Ok(())
    }
}

/// How many there are, and the first few.
fn some(list: &[String]) -> String {
    let few: Vec<_> = list.iter().take(4).map(String::as_str).collect();
    let more = if list.len() > few.len() { ", …" } else { "" };
    format!("{}: {}{more}", list.len(), few.join(", "))
}

/// The rows of a file of records.
pub(crate) fn rows(file: &str) -> Vec<Row> {
    let path = folder("oracle/kube-proxy").join(format!("{file}.jsonl"));
    let row = |(line, value): (usize, Value)| {
        let id = value["id"].as_str().map(str::to_owned);
        Row {
            id: id.unwrap_or_else(|| format!("{file}:{}", line + 1)),
            value,
        }
    };
    records(&path).into_iter().enumerate().map(row).collect()
}

/// Why a row differs from its record.
pub(crate) struct Difference {
    /// The rule, and what we do instead.
    pub(crate) reason: &'static str,
    /// Which rows, by the row and what was recorded.
    pub(crate) applies: fn(&Row, &str) -> bool,
    /// From what was recorded to what we do.
    pub(crate) ours: fn(&Row, &str) -> String,
}

#[derive(Default)]
pub(crate) struct Ledger {
    file: &'static str,
    purpose: &'static [Difference],
    total: usize,
    agree: usize,
    on_purpose: BTreeMap<&'static str, Vec<String>>,
    not_ours: BTreeMap<&'static str, Vec<String>>,
    /// By what is wrong, since rows are seldom wrong alone.
    wrong: BTreeMap<String, Vec<String>>,
}

impl Ledger {
    pub(crate) fn new(file: &'static str, purpose: &'static [Difference]) -> Self {
        Self {
            file,
            purpose,
            ..Self::default()
        }
    }

    /// Counts a row: what was recorded, and what we do.
    pub(crate) fn compare(&mut self, row: &Row, recorded: &str, ours: &str) {
        self.compare_by(row, recorded, ours, |wanted, ours| wanted == ours);
    }

    /// The same, where more than one text fits.
    pub(crate) fn compare_by(
        &mut self,
        row: &Row,
        recorded: &str,
        ours: &str,
        fits: impl Fn(&str, &str) -> bool,
    ) {
        self.total += 1;
        let difference = self
            .purpose
            .iter()
            .find(|difference| (difference.applies)(row, recorded));
        let wanted = difference.map_or_else(|| recorded.to_owned(), |d| (d.ours)(row, recorded));
        if !fits(&wanted, ours) {
            return self.wrong(row, format!("wanted {wanted}\n     got {ours}"));
        }
        match difference {
            Some(difference) if fits(recorded, ours) => {
                self.wrong(
                    row,
                    format!("differs on purpose ({}), and agrees", difference.reason),
                );
            }
            Some(difference) => self
                .on_purpose
                .entry(difference.reason)
                .or_default()
                .push(row.id.clone()),
            None => self.agree += 1,
        }
    }

    fn wrong(&mut self, row: &Row, what: String) {
        self.wrong.entry(what).or_default().push(row.to_string());
    }

    /// A row that says nothing about packets of ours.
    pub(crate) fn not_ours(&mut self, row: &Row, why: &'static str) {
        self.total += 1;
        self.not_ours.entry(why).or_default().push(row.id.clone());
    }

    /// Prints the account, and fails unless all `rows` are in it and none is wrong.
    pub(crate) fn close(self, rows: usize) {
        println!("{}: {} rows, {} agree", self.file, self.total, self.agree);
        let lists = [
            ("differ on purpose", &self.on_purpose),
            ("are not about packets of ours", &self.not_ours),
        ];
        for (what, list) in lists {
            for (reason, ids) in list {
                println!("  {what}: {reason}: {}", some(ids));
            }
        }
        let wrong = self
            .wrong
            .iter()
            .map(|(what, rows)| format!("  {what}\n    {}", some(rows)));
        let wrong: Vec<_> = wrong.collect();
        assert!(wrong.is_empty(), "{}:\n{}", self.file, wrong.join("\n"));
        assert_eq!(self.total, rows, "every row is accounted for, once");
        for Difference { reason, .. } in self.purpose {
            let found = self.on_purpose.contains_key(reason);
            assert!(found, "no row differs by \"{reason}\": strike it off");
        }
    }
}
