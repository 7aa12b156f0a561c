//! The difference between what should be and what the dataplane has acknowledged, as one transaction. Takes the records
//! of the desired table, gives the dataplane's answer. It never waits for a dataplane that has fallen silent, never sends
//! half an update, and never touches flows: a lost connection is made again, and the difference is then against what the dataplane says it has.
//!
//! Read next: `sluice_dataplane::channel`.

use std::collections::BTreeMap;
use std::fmt;

use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::index::Generation;

/// The real one.
pub mod channel;

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
}

impl<D: Dataplane> Publisher<D> {
    /// Not connected yet.
    pub const fn new(dataplane: D) -> Self {
        Self {
            dataplane,
            connected: false,
            generation: Generation(0),
            acknowledged: BTreeMap::new(),
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
        self.acknowledged = records
            .iter()
            .map(|record| (record.key(), record.clone()))
            .collect();
        Ok(records)
    }

    /// Makes the dataplane's table `desired`; `None` if it is that already.
    pub fn publish(&mut self, desired: &[Record]) -> Result<Option<Difference>, PublishError> {
        let wanted: BTreeMap<Key, &Record> = desired.iter().map(|record| (record.key(), record)).collect();
        let mut difference = Difference::default();
        let mut deletes = Vec::new();
        for key in self.acknowledged.keys().filter(|key| !wanted.contains_key(key)) {
            difference.deleted[column(key)] += 1;
            deletes.push(key.clone());
        }
        let mut puts = Vec::new();
        for (key, record) in wanted {
            match self.acknowledged.get(&key) {
                Some(had) if had == record => continue,
                Some(_) => difference.changed[column(&key)] += 1,
                None => difference.added[column(&key)] += 1,
            }
            puts.push(record.clone());
        }
        if deletes.is_empty() && puts.is_empty() {
            return Ok(None);
        }
        let next = Generation(self.generation.0 + 1);
        match self.dataplane.publish(next, &deletes, &puts) {
            Ok(()) => {
                self.generation = next;
                deletes.iter().for_each(|key| drop(self.acknowledged.remove(key)));
                self.acknowledged
                    .extend(puts.into_iter().map(|record| (record.key(), record)));
                Ok(Some(difference))
            }
            Err(error) => {
                if let PublishError::Lost(_) = error {
                    self.connected = false;
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use sluice_dataplane::channel::record::SettingsRecord;

    use super::*;

    /// A dataplane of a test: what it has, and whether it is there.
    #[derive(Debug, Default)]
    pub(crate) struct Double {
        pub(crate) records: BTreeMap<Key, Record>,
        pub(crate) generation: Generation,
        pub(crate) refuse: bool,
        pub(crate) gone: bool,
        pub(crate) updates: usize,
    }

    impl Dataplane for Rc<RefCell<Double>> {
        fn connect(&mut self) -> Result<Inventory, String> {
            let this = self.borrow();
            if this.gone {
                return Err("nobody listens".into());
            }
            Ok(Inventory {
                generation: this.generation,
                records: this.records.values().cloned().collect(),
            })
        }

        fn publish(
            &mut self,
            generation: Generation,
            deletes: &[Key],
            puts: &[Record],
        ) -> Result<(), PublishError> {
            let mut this = self.borrow_mut();
            if this.gone {
                return Err(PublishError::Lost("killed".into()));
            }
            if this.refuse {
                return Err(PublishError::Refused("too many".into()));
            }
            assert_eq!(generation.0, this.generation.0 + 1);
            this.generation = generation;
            this.updates += 1;
            deletes
                .iter()
                .for_each(|key| assert!(this.records.remove(key).is_some(), "deletes what is not there"));
            this.records
                .extend(puts.iter().map(|record| (record.key(), record.clone())));
            Ok(())
        }

        fn is_alive(&self) -> bool {
            !self.borrow().gone
        }
    }

    fn settings(masquerade_all: bool) -> Record {
        Record::Settings(SettingsRecord {
            masquerade_all,
            ..SettingsRecord::default()
        })
    }

    #[test]
    fn only_the_difference_is_sent_and_nothing_if_there_is_none() {
        let double = Rc::new(RefCell::new(Double::default()));
        let mut publisher = Publisher::new(double.clone());
        publisher.connect().unwrap();
        assert_eq!(
            publisher
                .publish(&[settings(false)])
                .unwrap()
                .unwrap()
                .to_string(),
            "+1 setting"
        );
        assert!(publisher.publish(&[settings(false)]).unwrap().is_none());
        assert_eq!(
            publisher.publish(&[settings(true)]).unwrap().unwrap().to_string(),
            "~1 setting"
        );
        assert_eq!(publisher.publish(&[]).unwrap().unwrap().to_string(), "-1 setting");
        assert_eq!((double.borrow().updates, double.borrow().records.len()), (3, 0));
    }

    #[test]
    fn a_refused_update_leaves_what_is_acknowledged_as_it_was() {
        let double = Rc::new(RefCell::new(Double {
            refuse: true,
            ..Double::default()
        }));
        let mut publisher = Publisher::new(double.clone());
        publisher.connect().unwrap();
        assert!(matches!(
            publisher.publish(&[settings(true)]),
            Err(PublishError::Refused(_))
        ));
        double.borrow_mut().refuse = false;
        assert!(publisher.publish(&[settings(true)]).unwrap().is_some());
        assert_eq!(publisher.generation(), Generation(1));
    }

    #[test]
    fn after_a_reconnection_the_difference_is_against_what_the_dataplane_has() {
        let double = Rc::new(RefCell::new(Double::default()));
        let mut publisher = Publisher::new(double.clone());
        publisher.connect().unwrap();
        publisher.publish(&[settings(true)]).unwrap();
        double.borrow_mut().gone = true;
        assert!(matches!(publisher.publish(&[]), Err(PublishError::Lost(_))));
        assert!(!publisher.is_connected());
        double.borrow_mut().gone = false;
        publisher.connect().unwrap();
        assert!(publisher.publish(&[settings(true)]).unwrap().is_none());
    }
}
