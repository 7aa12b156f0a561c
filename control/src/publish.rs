//! The difference between what should be and what the dataplane has acknowledged, as one transaction. Takes the records
//! of the desired table, gives the dataplane's answer. It never waits for a dataplane that has fallen silent, never sends
//! half a Service, and never touches flows. An update that is refused whole goes again in parts, so that what one Service
//! has wrong is not in the way of the others. A lost connection is made again, and the difference is then against what the dataplane says it has.
//!
//! Read next: `sluice_dataplane::channel`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use sluice_dataplane::addr::Protocol;

use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::index::{Generation, ServicePortIndex};

use crate::compile::Desired;

/// The real one.
pub mod channel;

/// The address before all others.
const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What a dataplane has.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The last update it took.
    pub generation: Generation,
    /// Its table.
    pub records: Vec<Record>,
}

/// Why an update did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The dataplane found it wrong and changed nothing.
    #[error("{0}")]
    Refused(String),
    /// The dataplane is gone or silent; whether it took the update is not known.
    #[error("{0}")]
    Lost(String),
}

/// A dataplane that can be reached: the real one, or a test's.
pub trait Dataplane {
    /// Makes a new connection, in place of the one there is. Bounded in time, whatever the dataplane does.
    fn connect(&mut self) -> Result<Inventory, String>;
    /// Sends an update and waits until it is taken or refused, or the dataplane has been silent for too long.
    fn publish(
        &mut self,
        generation: Generation,
        deletes: &[Key],
        puts: &[Record],
    ) -> Result<(), PublishError>;
    /// Whether the connection still stands.
    fn is_alive(&self) -> bool;
}

/// How many rows of each kind come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Put that were not there: service ports, frontends, backends, others.
    added: [usize; 4],
    /// Put in place of another.
    changed: [usize; 4],
    /// Deleted.
    deleted: [usize; 4],
}

fn column(key: &Key) -> usize {
    match key {
        Key::ServicePort(_) => 0,
        Key::Frontend(..) => 1,
        Key::Backend(..) => 2,
        Key::SourceRange(..) | Key::Network(..) | Key::Settings => 3,
    }
}

/// `+1 frontend, -2 backends`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["service port", "frontend", "backend", "setting"];
        let mut first = true;
        for (sign, counts) in [("+", self.added), ("~", self.changed), ("-", self.deleted)] {
            for (name, count) in names.iter().zip(counts).filter(|(_, count)| *count > 0) {
                let (comma, plural) = (if first { "" } else { ", " }, if count == 1 { "" } else { "s" });
                write!(f, "{comma}{sign}{count} {name}{plural}")?;
                first = false;
            }
        }
        if first { f.write_str("no change") } else { Ok(()) }
    }
}

/// The dataplane's acknowledged table, and the way to change it.
#[derive(Debug)]
pub struct Publisher<D> {
    dataplane: D,
    connected: bool,
    generation: Generation,
    acknowledged: BTreeMap<Key, Record>,
    /// What service ports have as acknowledged, by identity: who has the same still needs no comparison. Nothing after a
    /// new connection, or a refusal.
    ports: BTreeMap<ServicePortIndex, Arc<[Record]>>,
}

impl<D: Dataplane> Publisher<D> {
    /// Not connected yet.
    pub const fn new(dataplane: D) -> Self {
        Self {
            dataplane,
            connected: false,
            generation: Generation(0),
            acknowledged: BTreeMap::new(),
            ports: BTreeMap::new(),
        }
    }

    /// Whether updates arrive.
    pub fn is_connected(&mut self) -> bool {
        self.connected = self.connected && self.dataplane.is_alive();
        self.connected
    }

    /// The last update the dataplane acknowledged.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Connects, and learns what the dataplane has.
    pub fn connect(&mut self) -> Result<Vec<Record>, String> {
        let Inventory { generation, records } = self.dataplane.connect()?;
        self.connected = true;
        self.generation = generation;
        self.ports.clear();
        self.acknowledged = records
            .iter()
            .map(|record| (record.key(), record.clone()))
            .collect();
        Ok(records)
    }

    /// Makes the dataplane's table `desired`; `None` if it is that already. What is refused is left out and named; the
    /// rest is in force.
    pub fn publish(&mut self, desired: &Desired) -> Result<Option<Difference>, PublishError> {
        let whole = self.changes(desired);
        if whole.deletes.is_empty() && whole.puts.is_empty() {
            self.ports.clone_from(&desired.ports);
            return Ok(None);
        }
        self.ports.clear();
        match self.send(&whole) {
            Err(PublishError::Refused(reason)) => self.in_parts(&whole, &desired.records(), reason)?,
            sent => sent?,
        }
        self.ports.clone_from(&desired.ports);
        Ok(Some(whole.difference))
    }

    /// What is between the acknowledged table and `desired`.
    fn changes(&self, desired: &Desired) -> Changes {
        let mut whole = Changes::default();
        let known = self.ports.keys().chain(desired.ports.keys());
        let differs = |index: &&ServicePortIndex| match (self.ports.get(index), desired.ports.get(index)) {
            (Some(had), Some(wanted)) => !Arc::ptr_eq(had, wanted),
            _ => true,
        };
        let changed: BTreeSet<ServicePortIndex> = known.filter(differs).copied().collect();
        let ports = changed.iter().filter_map(|index| desired.ports.get(index));
        let records = ports
            .flat_map(|records| records.iter())
            .chain(desired.shared.values());
        let wanted: BTreeMap<Key, &Record> = records.map(|record| (record.key(), record)).collect();
        let gone = |key: &Key| !wanted.contains_key(key);
        let mut delete = |key: &Key| {
            whole.difference.deleted[column(key)] += 1;
            whole.deletes.push(key.clone());
        };
        if self.ports.is_empty() {
            self.acknowledged
                .keys()
                .filter(|key| gone(key))
                .for_each(&mut delete);
        } else {
            self.shared_keys().filter(|key| gone(key)).for_each(&mut delete);
            let keys = changed.iter().flat_map(|index| self.keys_of(*index));
            keys.filter(|key| gone(key)).for_each(&mut delete);
            whole.deletes.sort_unstable();
        }
        for (key, record) in wanted {
            match self.acknowledged.get(&key) {
                Some(had) if had == record => continue,
                Some(_) => whole.difference.changed[column(&key)] += 1,
                None => whole.difference.added[column(&key)] += 1,
            }
            whole.puts.push(record.clone());
        }
        whole
    }

    /// Keys of what belongs to no one service port.
    fn shared_keys(&self) -> impl Iterator<Item = &Key> {
        let all = self.acknowledged.range(Key::Frontend(FIRST, Protocol(0), 0)..);
        let frontends = all
            .map(|(key, _)| key)
            .take_while(|key| matches!(key, Key::Frontend(..)));
        let last = self.acknowledged.keys().rev();
        frontends.chain(last.take_while(|key| matches!(key, Key::Network(..) | Key::Settings)))
    }

    /// Keys of what a service port has beside its frontends.
    fn keys_of(&self, index: ServicePortIndex) -> impl Iterator<Item = &Key> {
        let next = ServicePortIndex(index.0.saturating_add(1));
        let every = IpNet::from(Ipv4Net::default());
        let parts = [
            Key::ServicePort(index)..Key::ServicePort(next),
            Key::Backend(index, FIRST, 0)..Key::Backend(next, FIRST, 0),
            Key::SourceRange(index, every)..Key::SourceRange(next, every),
        ];
        parts
            .into_iter()
            .flat_map(|part| self.acknowledged.range(part))
            .map(|(key, _)| key)
    }

    fn send(&mut self, changes: &Changes) -> Result<(), PublishError> {
        let next = Generation(self.generation.0 + 1);
        if let Err(error) = self.dataplane.publish(next, &changes.deletes, &changes.puts) {
            self.connected &= matches!(error, PublishError::Refused(_));
            return Err(error);
        }
        self.generation = next;
        for key in &changes.deletes {
            self.acknowledged.remove(key);
        }
        self.acknowledged
            .extend(changes.puts.iter().map(|record| (record.key(), record.clone())));
        Ok(())
    }

    /// Sends what was refused whole in parts, one for each Service, as many at once as are taken.
    fn in_parts(&mut self, whole: &Changes, desired: &[Record], reason: String) -> Result<(), PublishError> {
        let mut parts = whole.by_service(&self.acknowledged, desired);
        if parts.len() < 2 {
            return Err(PublishError::Refused(reason));
        }
        loop {
            let before = parts.len();
            let mut refused = Vec::new();
            self.halve(parts, &mut refused)?;
            if refused.is_empty() {
                return Ok(());
            }
            // One may have waited for an address that another gave up, or for room.
            if refused.len() == before {
                let said = refused
                    .iter()
                    .map(|((owner, _), reason)| format!("{owner}: {reason}"));
                return Err(PublishError::Refused(said.collect::<Vec<_>>().join("; ")));
            }
            parts = refused.into_iter().map(|(part, _)| part).collect();
        }
    }

    /// Sends `parts` as one update; if that is refused, each half of them by itself.
    fn halve(&mut self, mut parts: Vec<Part>, refused: &mut Vec<(Part, String)>) -> Result<(), PublishError> {
        let mut joined = Changes::default();
        for (_, part) in &parts {
            joined.deletes.extend_from_slice(&part.deletes);
            joined.puts.extend_from_slice(&part.puts);
        }
        match self.send(&joined) {
            Err(PublishError::Refused(reason)) => match (parts.len(), parts.pop()) {
                (0 | 1, last) => refused.extend(last.map(|part| (part, reason))),
                (count, last) => {
                    parts.extend(last);
                    let rest = parts.split_off(count / 2);
                    self.halve(parts, refused)?;
                    self.halve(rest, refused)?;
                }
            },
            sent => return sent,
        }
        Ok(())
    }
}

/// What an update changes.
#[derive(Clone, Debug, Default)]
struct Changes {
    deletes: Vec<Key>,
    puts: Vec<Record>,
    difference: Difference,
}

/// What an update changes of one Service, or of none.
type Part = (String, Changes);

impl Changes {
    /// By the Service that is there afterwards, or was before; what belongs to none first. A service port's number may
    /// pass from one Service to another: both are one part then.
    fn by_service(&self, before: &BTreeMap<Key, Record>, after: &[Record]) -> Vec<Part> {
        let mut owners = BTreeMap::new();
        for record in before.values().chain(after) {
            if let Record::ServicePort(port) = record {
                owners.insert(port.index, format!("Service {}/{}", port.namespace, port.name));
            }
        }
        let owner = |record: Option<&Record>| {
            let index = match record? {
                Record::ServicePort(port) => port.index,
                Record::Frontend(frontend) => frontend.service_port,
                Record::Backend(backend) => backend.service_port,
                Record::SourceRange(range) => range.service_port,
                Record::Network(_) | Record::Settings(_) => return None,
            };
            owners.get(&index).cloned()
        };
        let mut parts = BTreeMap::<Option<String>, Self>::new();
        for key in &self.deletes {
            let part = parts.entry(owner(before.get(key))).or_default();
            part.deletes.push(key.clone());
        }
        for record in &self.puts {
            let part = parts.entry(owner(Some(record))).or_default();
            part.puts.push(record.clone());
        }
        let named =
            |(owner, part): (Option<String>, Self)| (owner.unwrap_or_else(|| "settings".into()), part);
        parts.into_iter().map(named).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests;
