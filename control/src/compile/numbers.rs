//! Numbers of service ports: names to numbers that stay.

use std::collections::{BTreeMap, BTreeSet};

use sluice_dataplane::addr::Protocol;
use sluice_dataplane::channel::record::Record;
use sluice_dataplane::index::ServicePortIndex;

use crate::model::{Service, ServicePort};

/// What names a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port, "" if unnamed.
    pub port: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
}

/// Which service port has which number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(pub(super) BTreeMap<PortName, ServicePortIndex>);

impl Numbers {
    /// As the dataplane has them.
    pub fn learn(records: &[Record]) -> Self {
        let number = |record: &Record| match record {
            Record::ServicePort(r) => Some((
                PortName {
                    namespace: r.namespace.clone(),
                    service: r.name.clone(),
                    port: r.port_name.clone(),
                    protocol: r.protocol,
                },
                r.index,
            )),
            _ => None,
        };
        Self(records.iter().filter_map(number).collect())
    }

    /// Gives numbers to `new` names, which come in place of `old` ones: those they have, and otherwise the lowest that
    /// none had. A number is free for another one update after its owner is gone, so that in no update it means both.
    pub(super) fn assign(&mut self, old: Vec<PortName>, new: Vec<PortName>) {
        let had: BTreeSet<u32> = match new.iter().all(|name| self.0.contains_key(name)) {
            true => BTreeSet::new(),
            false => self.0.values().map(|index| index.0).collect(),
        };
        let mut free = (0..).filter(|number| !had.contains(number));
        let names: BTreeSet<&PortName> = new.iter().collect();
        for name in old.iter().filter(|name| !names.contains(name)) {
            self.0.remove(name);
        }
        for name in new {
            self.0
                .entry(name)
                .or_insert_with(|| ServicePortIndex(free.next().unwrap_or(u32::MAX)));
        }
    }
}

/// The names of its ports, in their order.
pub(super) fn port_names(service: &Service) -> Vec<PortName> {
    service
        .ports
        .iter()
        .map(|port| port_name(service, port))
        .collect()
}

fn port_name(service: &Service, port: &ServicePort) -> PortName {
    PortName {
        namespace: service.name.namespace.clone(),
        service: service.name.name.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
    }
}
