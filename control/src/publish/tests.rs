//! What is sent to a dataplane that takes it, refuses it, or goes away.

use std::cell::RefCell;
use std::rc::Rc;

use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, ServicePortRecord, SettingsRecord,
};

use super::*;

/// A dataplane of a test: what it has, and whether it is there.
#[derive(Debug, Default)]
pub(crate) struct Double {
    pub(crate) records: BTreeMap<Key, Record>,
    pub(crate) generation: Generation,
    pub(crate) refuse: bool,
    /// A Service that has something wrong with it.
    pub(crate) poison: Option<&'static str>,
    pub(crate) gone: bool,
    pub(crate) updates: usize,
    /// The last update.
    pub(crate) sent: (Vec<Key>, Vec<Record>),
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
        let poisons =
            |record: &Record| matches!(record, Record::ServicePort(port) if this.poison == Some(&port.name));
        if this.refuse || puts.iter().any(poisons) {
            return Err(PublishError::Refused("too many".into()));
        }
        assert_eq!(generation.0, this.generation.0 + 1);
        this.generation = generation;
        this.updates += 1;
        this.sent = (deletes.to_vec(), puts.to_vec());
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
            .publish(&desired(&[settings(false)]))
            .unwrap()
            .unwrap()
            .to_string(),
        "+1 setting"
    );
    assert!(publisher.publish(&desired(&[settings(false)])).unwrap().is_none());
    assert_eq!(
        publisher
            .publish(&desired(&[settings(true)]))
            .unwrap()
            .unwrap()
            .to_string(),
        "~1 setting"
    );
    assert_eq!(
        publisher.publish(&desired(&[])).unwrap().unwrap().to_string(),
        "-1 setting"
    );
    assert_eq!((double.borrow().updates, double.borrow().records.len()), (3, 0));
}

/// The table of these records.
fn desired(records: &[Record]) -> Desired {
    records.iter().cloned().collect()
}

#[test]
fn service_ports_that_are_the_same_still_are_not_looked_at_and_the_others_are() {
    let double = Rc::new(RefCell::new(Double::default()));
    let mut publisher = Publisher::new(double.clone());
    publisher.connect().unwrap();
    let backend = |index: u32, last: u8| {
        Record::Backend(BackendRecord {
            service_port: ServicePortIndex(index),
            address: [10, 244, 0, last].into(),
            port: 80,
            in_cluster_set: true,
            in_local_set: false,
            usable: true,
            serving: true,
            local: false,
        })
    };
    let mut table = desired(&[
        backend(0, 1),
        backend(0, 2),
        backend(1, 1),
        backend(2, 1),
        settings(true),
    ]);
    publisher.publish(&table).unwrap();
    assert!(publisher.publish(&table).unwrap().is_none());
    table
        .ports
        .insert(ServicePortIndex(0), [backend(0, 2), backend(0, 3)].into());
    table.ports.remove(&ServicePortIndex(2));
    let said = publisher.publish(&table).unwrap().unwrap().to_string();
    assert_eq!(said, "+1 backend, -2 backends");
    let has: Vec<Record> = double.borrow().records.values().cloned().collect();
    assert_eq!(has, table.records());
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
        publisher.publish(&desired(&[settings(true)])),
        Err(PublishError::Refused(_))
    ));
    double.borrow_mut().refuse = false;
    assert!(publisher.publish(&desired(&[settings(true)])).unwrap().is_some());
    assert_eq!(publisher.generation(), Generation(1));
}

#[test]
fn one_service_that_is_refused_is_named_and_the_others_are_in_force() {
    let service = |index: u32| {
        let port = ServicePortRecord {
            index: ServicePortIndex(index),
            namespace: "shop".into(),
            name: format!("s{index}"),
            port_name: String::new(),
            protocol: Protocol::TCP,
            algorithm: Algorithm::default(),
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
        };
        let frontend = FrontendRecord {
            address: [10, 96, 0, 1].into(),
            protocol: Protocol::TCP,
            port: u16::try_from(index + 1).unwrap(),
            kind: FrontendKind::ClusterIp,
            service_port: port.index,
        };
        [Record::ServicePort(port), Record::Frontend(frontend)]
    };
    let double = Rc::new(RefCell::new(Double {
        poison: Some("s5"),
        ..Double::default()
    }));
    let mut publisher = Publisher::new(double.clone());
    publisher.connect().unwrap();
    let all: Vec<Record> = (0..9).flat_map(service).chain([settings(true)]).collect();
    let said = publisher.publish(&desired(&all)).unwrap_err().to_string();
    assert_eq!(said, "Service shop/s5: too many");
    let has = |index: u32| {
        service(index)
            .iter()
            .filter(|r| double.borrow().records.contains_key(&r.key()))
            .count()
    };
    assert_eq!((0..9).map(has).collect::<Vec<_>>(), [2, 2, 2, 2, 2, 0, 2, 2, 2]);
    assert!(double.borrow().records.contains_key(&Key::Settings));
    assert_eq!(publisher.generation(), double.borrow().generation);
    double.borrow_mut().poison = None;
    assert!(publisher.publish(&desired(&all)).unwrap().is_some());
    assert_eq!(has(5), 2);
}

#[test]
fn after_a_reconnection_the_difference_is_against_what_the_dataplane_has() {
    let double = Rc::new(RefCell::new(Double::default()));
    let mut publisher = Publisher::new(double.clone());
    publisher.connect().unwrap();
    publisher.publish(&desired(&[settings(true)])).unwrap();
    double.borrow_mut().gone = true;
    assert!(matches!(
        publisher.publish(&desired(&[])),
        Err(PublishError::Lost(_))
    ));
    assert!(!publisher.is_connected());
    double.borrow_mut().gone = false;
    publisher.connect().unwrap();
    assert!(publisher.publish(&desired(&[settings(true)])).unwrap().is_none());
}
