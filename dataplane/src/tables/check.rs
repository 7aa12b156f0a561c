//! Whether a transaction may happen. Takes the acknowledged rows and what control asks for, trusts neither; gives the
//! transaction as one change per key, or the reason it is refused. Changes nothing itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::limits::TableLimits;
use super::refusal::Refusal;
use super::rows::{FrontendName, Rows};
use crate::addr::Protocol;
use crate::channel::record::{
    BackendRecord, FrontendKind, FrontendRecord, Key, NAME_MAX, Record, ServicePortRecord,
};
use crate::index::{Generation, ServicePortIndex};

/// Longest ClientIP affinity, a day (AFF-1; the API's own bound).
const AFFINITY_SECONDS_MAX: u32 = 86_400;

/// What a transaction does to one key. Neither is impossible.
#[derive(Clone, Copy, Default)]
pub(super) struct Change<'a> {
    /// The row that is there goes; what is put is a new row, not the old one with other values.
    pub(super) delete: bool,
    /// The row that is there afterwards.
    pub(super) put: Option<&'a Record>,
}

/// A transaction that may happen, by key.
pub(super) type Changes<'a> = BTreeMap<Key, Change<'a>>;

/// Checks a transaction; cost is proportional to it and to the rows of the service ports it deletes or changes.
pub(super) fn check<'a>(
    rows: &Rows,
    limits: &TableLimits,
    current: Generation,
    offered: Generation,
    deletes: &[Key],
    puts: &'a [Record],
) -> Result<Changes<'a>, Refusal> {
    if offered <= current {
        return Err(Refusal::OldGeneration {
            current: current.0,
            offered: offered.0,
        });
    }
    let mut changes = Changes::new();
    for key in deletes {
        let deleted = changes.insert(
            key.clone(),
            Change {
                delete: true,
                put: None,
            },
        );
        if deleted.is_some() || !rows.contains(key) {
            return Err(Refusal::UnknownKey(key.clone()));
        }
    }
    for record in puts {
        let key = record.key();
        check_record(record, limits)?;
        changes.entry(key).or_default().put = Some(record);
    }
    let after = After {
        rows,
        changes: &changes,
    };
    after.check_limits(limits)?;
    after.check_references()?;
    Ok(changes)
}

/// The record set as it will be.
struct After<'a> {
    rows: &'a Rows,
    changes: &'a Changes<'a>,
}

impl After<'_> {
    fn exists(&self, key: &Key) -> bool {
        self.changes
            .get(key)
            .map_or_else(|| self.rows.contains(key), |change| change.put.is_some())
    }

    fn service_port_protocol(&self, index: ServicePortIndex) -> Option<Protocol> {
        match self.changes.get(&Key::ServicePort(index)) {
            Some(Change {
                put: Some(Record::ServicePort(record)),
                ..
            }) => Some(record.protocol),
            Some(_) => None,
            None => self.rows.service_ports.get(&index).map(|row| row.record.protocol),
        }
    }

    fn frontend_service_port(&self, name: FrontendName) -> Option<ServicePortIndex> {
        match self.changes.get(&Key::Frontend(name.0, name.1, name.2)) {
            Some(Change {
                put: Some(Record::Frontend(record)),
                ..
            }) => Some(record.service_port),
            Some(_) => None,
            None => self.rows.frontends.get(&name).map(|record| record.service_port),
        }
    }

    fn check_limits(&self, limits: &TableLimits) -> Result<(), Refusal> {
        let mut wanted = self.rows.used();
        let mut by_service_port = BTreeMap::<ServicePortIndex, usize>::new();
        for (key, change) in self.changes {
            let (before, after) = (self.rows.contains(key), change.put.is_some());
            // Never below 0: a row counted before is one of those in `used`.
            let adjust = |count: &mut usize| *count = *count + after as usize - before as usize;
            match *key {
                Key::ServicePort(_) => adjust(&mut wanted.service_ports),
                Key::Frontend(..) => adjust(&mut wanted.frontends),
                Key::Network(..) => adjust(&mut wanted.networks),
                Key::SourceRange(..) => adjust(&mut wanted.source_ranges),
                Key::Settings => {}
                Key::Backend(index, ..) => {
                    adjust(&mut wanted.backends);
                    let present = || {
                        self.rows
                            .service_ports
                            .get(&index)
                            .map_or(0, |row| row.backends.len())
                    };
                    adjust(by_service_port.entry(index).or_insert_with(present));
                }
            }
        }
        let most = by_service_port.values().max().copied().unwrap_or(0);
        for (what, limit, wanted) in [
            ("service ports", limits.service_ports, wanted.service_ports),
            ("frontends", limits.frontends, wanted.frontends),
            ("backends", limits.backends, wanted.backends),
            (
                "backends of one service port",
                limits.backends_per_service_port,
                most,
            ),
            ("source ranges", limits.source_ranges, wanted.source_ranges),
            ("networks", limits.networks, wanted.networks),
        ] {
            let limit = limit as usize;
            if wanted > limit {
                return Err(Refusal::LimitExceeded { what, limit, wanted });
            }
        }
        Ok(())
    }

    fn check_references(&self) -> Result<(), Refusal> {
        for (key, change) in self.changes {
            match (key, change.put) {
                (_, Some(Record::Frontend(record))) => self.check_frontend(key, record.service_port)?,
                (_, Some(Record::Backend(record))) => {
                    self.existing(key, record.service_port)?;
                }
                (_, Some(Record::SourceRange(record))) => {
                    self.existing(key, record.service_port)?;
                }
                (Key::ServicePort(index), Some(_)) => self.check_frontends_of(*index)?,
                (Key::ServicePort(index), None) => self.check_unreferred(*index)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn existing(&self, key: &Key, service_port: ServicePortIndex) -> Result<Protocol, Refusal> {
        let missing = || Refusal::NoSuchServicePort {
            key: key.clone(),
            service_port,
        };
        self.service_port_protocol(service_port).ok_or_else(missing)
    }

    fn check_frontend(&self, key: &Key, service_port: ServicePortIndex) -> Result<(), Refusal> {
        let expected = self.existing(key, service_port)?;
        match *key {
            Key::Frontend(_, protocol, _) if protocol != expected => Err(Refusal::ProtocolMismatch {
                key: key.clone(),
                service_port,
                expected,
            }),
            _ => Ok(()),
        }
    }

    /// The service port may have another protocol than before.
    fn check_frontends_of(&self, index: ServicePortIndex) -> Result<(), Refusal> {
        let referring = self
            .rows
            .service_ports
            .get(&index)
            .into_iter()
            .flat_map(|row| &row.frontends);
        for &name in referring.filter(|&&name| self.frontend_service_port(name) == Some(index)) {
            self.check_frontend(&Key::Frontend(name.0, name.1, name.2), index)?;
        }
        Ok(())
    }

    fn check_unreferred(&self, index: ServicePortIndex) -> Result<(), Refusal> {
        let Some(row) = self.rows.service_ports.get(&index) else {
            return Ok(());
        };
        let frontend = row
            .frontends
            .iter()
            .find(|&&name| self.frontend_service_port(name) == Some(index));
        let frontend = frontend.map(|&(address, protocol, port)| Key::Frontend(address, protocol, port));
        let backends = row
            .backends
            .keys()
            .map(|&(address, port)| Key::Backend(index, address, port));
        let source_ranges = row
            .source_ranges
            .iter()
            .map(|&network| Key::SourceRange(index, network));
        let mut others = backends.chain(source_ranges);
        match frontend.or_else(|| others.find(|key| self.exists(key))) {
            Some(by) => Err(Refusal::StillReferred {
                service_port: index,
                by,
            }),
            None => Ok(()),
        }
    }
}

fn check_record(record: &Record, limits: &TableLimits) -> Result<(), Refusal> {
    if let Record::ServicePort(ServicePortRecord { index, .. }) = record
        && index.0 >= limits.service_ports
    {
        return Err(Refusal::IndexOutOfRange {
            index: index.0,
            limit: limits.service_ports,
        });
    }
    let problem = match record {
        Record::ServicePort(record) => service_port_problem(record),
        Record::Frontend(record) => frontend_problem(record),
        Record::Backend(record) => backend_problem(record),
        Record::SourceRange(_) | Record::Network(_) | Record::Settings(_) => None,
    };
    problem.map_or(Ok(()), |reason| {
        Err(Refusal::BadField {
            key: record.key(),
            reason,
        })
    })
}

fn service_port_problem(record: &ServicePortRecord) -> Option<&'static str> {
    if [&record.namespace, &record.name, &record.port_name]
        .iter()
        .any(|name| name.len() > NAME_MAX)
    {
        Some("a name is longer than 63 bytes")
    } else if ![Protocol::TCP, Protocol::UDP, Protocol::SCTP].contains(&record.protocol) {
        Some("its protocol is not TCP, UDP or SCTP")
    } else if record.affinity_seconds > AFFINITY_SECONDS_MAX {
        Some("its affinity is longer than 86400 seconds")
    } else {
        None
    }
}

fn frontend_problem(record: &FrontendRecord) -> Option<&'static str> {
    match record.kind {
        _ if record.port == 0 => Some("its port is 0"),
        FrontendKind::NodePort if record.address.is_unspecified() => None,
        FrontendKind::NodePort => {
            Some("a node port has no address of its own: 0.0.0.0 or :: names its family")
        }
        _ => address_problem(record.address),
    }
}

fn backend_problem(record: &BackendRecord) -> Option<&'static str> {
    let link_local = match record.address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if record.port == 0 {
        Some("its port is 0")
    } else if link_local {
        Some("its address is link-local (EPM-3)")
    } else {
        address_problem(record.address)
    }
}

/// What neither a frontend nor a backend may have for an address (EPM-3).
fn address_problem(address: IpAddr) -> Option<&'static str> {
    let broadcast_or_mapped = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        // One address must not have two names.
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    if address.is_unspecified() {
        Some("its address is unspecified")
    } else if address.is_loopback() {
        Some("its address is loopback")
    } else if address.is_multicast() {
        Some("its address is multicast")
    } else if broadcast_or_mapped {
        Some("its address is broadcast, or an IPv4 address written as IPv6")
    } else {
        None
    }
}
