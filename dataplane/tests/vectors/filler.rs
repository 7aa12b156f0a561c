//! Packets of other flows, which a vector's own must not disturb and not be disturbed by.

use std::collections::{BTreeMap, BTreeSet};

use sluice_dataplane::channel::record::Record;

use crate::support::line::{Line, Variables};
use crate::support::packet::{Side, build, dissect};
use crate::support::records::{Changes, Records};
use crate::support::station::Port;
use crate::support::vector::{Action, Vector};
use crate::support::world::Seen;

/// Packets of other flows, for `Way::Burst`: routed ones, and ones of a Service of their own in both directions.
pub struct Fillers {
    /// Their Service.
    pub tables: Vec<Changes>,
    /// Not where flows would use up what the vector gives out sparingly, or masquerade-all would change them.
    with_flows: bool,
    number: u64,
    /// Ports of clients whose flow is open.
    open: BTreeSet<u16>,
    /// What must come out, by payload.
    due: BTreeMap<String, Line>,
}

impl Fillers {
    /// For this vector; payloads are numbered from `seed`.
    pub fn new(vector: &Vector, seed: u64) -> Self {
        let changes = vector.steps.iter().filter_map(|s| {
            if let Action::Tables(c) = &s.action {
                Some(c)
            } else {
                None
            }
        });
        let mut puts = vector
            .tables
            .iter()
            .chain(changes)
            .flat_map(|changes| &changes.puts);
        let with_flows =
            vector.setup.flows.is_none() && !puts.any(|record| matches!(record, Record::Settings(_)));
        let mut records = Records::default();
        let mut tables = Vec::new();
        if with_flows {
            for text in [
                "service filler udp",
                "cluster-ip filler 10.96.255.250:7",
                "backend filler 10.244.0.250:7",
            ] {
                tables.push(Changes {
                    deletes: Vec::new(),
                    puts: vec![records.put_at(63, text).unwrap()],
                });
            }
        }
        Self {
            tables,
            with_flows,
            number: seed % 1000,
            open: BTreeSet::new(),
            due: BTreeMap::new(),
        }
    }

    /// Time passes: flows may be gone.
    pub fn forget(&mut self) {
        self.open.clear();
    }

    /// A packet to arrive on `port`; what must come of it is due at the next `take`.
    pub fn make(&mut self, random: u64, port: Port) -> Result<Vec<u8>, String> {
        self.number += 1;
        let payload = format!("filler {}", self.number);
        let client = 20_000 + (random >> 8) as u16 % 64;
        let known = self.open.contains(&client);
        let (comes, goes) = match random % 4 {
            0 if self.with_flows && known => (
                format!("udp 10.244.0.250:7 > 10.244.0.201:{client}"),
                format!("udp 10.96.255.250:7 > 10.244.0.201:{client}"),
            ),
            1 | 2 if self.with_flows => {
                self.open.insert(client);
                (
                    format!("udp 10.244.0.201:{client} > 10.96.255.250:7"),
                    "udp $C > 10.244.0.250:7".to_owned(),
                )
            }
            _ => {
                let line = format!("udp 172.18.0.77:{client} > 10.244.0.251:7");
                (line.clone(), line)
            }
        };
        let with_payload = |text: &str| Line::parse(&format!("{text} \"{payload}\""));
        let frame = build(&with_payload(&comes)?, port, Side::In)?;
        self.due.insert(payload.clone(), with_payload(&goes)?);
        Ok(frame)
    }

    /// Takes the fillers out of what left. Errors: one that came out wrong or not at all.
    pub fn take(&mut self, left: Vec<Seen>) -> Result<Vec<Seen>, String> {
        let mut rest = Vec::new();
        for (port, frame) in left {
            let line = dissect(&frame, port, Side::Out);
            let due = line.text.as_ref().and_then(|text| self.due.remove(text));
            match due {
                None => rest.push((port, frame)),
                Some(due) if port == Port::Pods && due.matches(&line, &mut Variables::new()) => {}
                Some(due) => {
                    return Err(format!(
                        "a packet of another flow in the burst\n  expected pods < {due}\n  got {port} < {line}"
                    ));
                }
            }
        }
        match self.due.pop_first() {
            None => Ok(rest),
            Some((_, due)) => Err(format!(
                "a packet of another flow in the burst did not leave: pods < {due}"
            )),
        }
    }
}
