//! Records and keys as fields of a message. See `record` for what they mean.
//!
//! Checked here is what a record says by itself: names, numbers, addresses. Whether records fit each other and the
//! dataplane's capacity is the steward's to check.

use crate::index::ServicePortIndex;

use super::codec::{DecodeError, Decoder, EncodeError, Encoder};
use super::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, Key, NAME_MAX, NetworkKind, NetworkRecord,
    Record, ServicePortRecord, SettingsRecord, SourceRangeRecord, UndefinedPorts,
};

/// Longest ClientIP affinity, one day (AFF-2).
pub(super) const AFFINITY_SECONDS_MAX: u32 = 86_400;

// A value's place in its list is its byte; `the_place_of_every_choice_is_its_own` holds them to the enums' order.
pub(super) const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::Random,
    Algorithm::Maglev,
    Algorithm::RoundRobin,
    Algorithm::LeastConnections,
];
pub(super) const FRONTEND_KINDS: [FrontendKind; 4] = [
    FrontendKind::ClusterIp,
    FrontendKind::ExternalIp,
    FrontendKind::LoadBalancerIp,
    FrontendKind::NodePort,
];
pub(super) const NETWORK_KINDS: [NetworkKind; 3] = [
    NetworkKind::PodRange,
    NetworkKind::ServiceRange,
    NetworkKind::NodePortAddresses,
];
pub(super) const UNDEFINED_PORTS: [UndefinedPorts; 3] = [
    UndefinedPorts::PassOn,
    UndefinedPorts::Drop,
    UndefinedPorts::Reject,
];

// The first byte of a record or key.
const SERVICE_PORT: u8 = 1;
const FRONTEND: u8 = 2;
const BACKEND: u8 = 3;
const NETWORK: u8 = 4;
const SETTINGS: u8 = 5;
const SOURCE_RANGE: u8 = 6;

pub(super) fn encode_record(to: &mut Encoder, record: &Record) -> Result<(), EncodeError> {
    match record {
        Record::ServicePort(r) => {
            to.u8(SERVICE_PORT);
            to.u32(r.index.0);
            to.u8(r.protocol.0);
            to.u8(r.algorithm as u8);
            to.u32(r.affinity_seconds);
            to.bool(r.external_local);
            to.bool(r.internal_local);
            to.text("namespace", &r.namespace, NAME_MAX)?;
            to.text("Service name", &r.name, NAME_MAX)?;
            to.text("port name", &r.port_name, NAME_MAX)?;
        }
        Record::Frontend(r) => {
            to.u8(FRONTEND);
            to.address(r.address);
            to.u8(r.protocol.0);
            to.u16(r.port);
            to.u8(r.kind as u8);
            to.u32(r.service_port.0);
        }
        Record::Backend(r) => {
            to.u8(BACKEND);
            to.u32(r.service_port.0);
            to.address(r.address);
            to.u16(r.port);
            for flag in [r.in_cluster_set, r.in_local_set, r.usable, r.serving, r.local] {
                to.bool(flag);
            }
        }
        Record::SourceRange(r) => {
            to.u8(SOURCE_RANGE);
            to.u32(r.service_port.0);
            to.network(r.network);
        }
        Record::Network(r) => {
            to.u8(NETWORK);
            to.u8(r.kind as u8);
            to.network(r.network);
        }
        Record::Settings(r) => {
            to.u8(SETTINGS);
            to.bool(r.masquerade_all);
            to.bool(r.ping_replies);
            to.u8(r.undefined_ports as u8);
        }
    }
    Ok(())
}

pub(super) fn decode_record(from: &mut Decoder<'_>) -> Result<Record, DecodeError> {
    Ok(match from.u8("record kind")? {
        SERVICE_PORT => Record::ServicePort(ServicePortRecord {
            index: ServicePortIndex(from.u32("service port index")?),
            protocol: from.protocol()?,
            algorithm: from.choice("algorithm", &ALGORITHMS)?,
            affinity_seconds: affinity(from)?,
            external_local: from.bool("externalTrafficPolicy")?,
            internal_local: from.bool("internalTrafficPolicy")?,
            namespace: name(from, "namespace")?,
            name: name(from, "Service name")?,
            port_name: from.text("port name", NAME_MAX)?,
        }),
        FRONTEND => Record::Frontend(FrontendRecord {
            address: from.address("frontend address")?,
            protocol: from.protocol()?,
            port: from.port("frontend port")?,
            kind: from.choice("frontend kind", &FRONTEND_KINDS)?,
            service_port: ServicePortIndex(from.u32("service port index")?),
        }),
        BACKEND => Record::Backend(BackendRecord {
            service_port: ServicePortIndex(from.u32("service port index")?),
            address: from.address("endpoint address")?,
            port: from.port("endpoint port")?,
            in_cluster_set: from.bool("cluster set flag")?,
            in_local_set: from.bool("local set flag")?,
            usable: from.bool("usable flag")?,
            serving: from.bool("serving flag")?,
            local: from.bool("local flag")?,
        }),
        SOURCE_RANGE => Record::SourceRange(SourceRangeRecord {
            service_port: ServicePortIndex(from.u32("service port index")?),
            network: from.network()?,
        }),
        NETWORK => Record::Network(NetworkRecord {
            kind: from.choice("network kind", &NETWORK_KINDS)?,
            network: from.network()?,
        }),
        SETTINGS => Record::Settings(SettingsRecord {
            masquerade_all: from.bool("masqueradeAll")?,
            ping_replies: from.bool("ping replies flag")?,
            undefined_ports: from.choice("fate of undefined ports", &UNDEFINED_PORTS)?,
        }),
        value => {
            return Err(DecodeError::Unknown {
                what: "record kind",
                value,
            });
        }
    })
}

pub(super) fn encode_key(to: &mut Encoder, key: &Key) {
    match *key {
        Key::ServicePort(index) => {
            to.u8(SERVICE_PORT);
            to.u32(index.0);
        }
        Key::Frontend(address, protocol, port) => {
            to.u8(FRONTEND);
            to.address(address);
            to.u8(protocol.0);
            to.u16(port);
        }
        Key::Backend(service_port, address, port) => {
            to.u8(BACKEND);
            to.u32(service_port.0);
            to.address(address);
            to.u16(port);
        }
        Key::SourceRange(service_port, network) => {
            to.u8(SOURCE_RANGE);
            to.u32(service_port.0);
            to.network(network);
        }
        Key::Network(kind, network) => {
            to.u8(NETWORK);
            to.u8(kind as u8);
            to.network(network);
        }
        Key::Settings => to.u8(SETTINGS),
    }
}

pub(super) fn decode_key(from: &mut Decoder<'_>) -> Result<Key, DecodeError> {
    Ok(match from.u8("key kind")? {
        SERVICE_PORT => Key::ServicePort(ServicePortIndex(from.u32("service port index")?)),
        FRONTEND => Key::Frontend(
            from.address("frontend address")?,
            from.protocol()?,
            from.port("frontend port")?,
        ),
        BACKEND => Key::Backend(
            ServicePortIndex(from.u32("service port index")?),
            from.address("endpoint address")?,
            from.port("endpoint port")?,
        ),
        SOURCE_RANGE => Key::SourceRange(ServicePortIndex(from.u32("service port index")?), from.network()?),
        NETWORK => Key::Network(from.choice("network kind", &NETWORK_KINDS)?, from.network()?),
        SETTINGS => Key::Settings,
        value => {
            return Err(DecodeError::Unknown {
                what: "key kind",
                value,
            });
        }
    })
}

fn name(from: &mut Decoder<'_>, what: &'static str) -> Result<String, DecodeError> {
    let name = from.text(what, NAME_MAX)?;
    if name.is_empty() {
        Err(DecodeError::Empty(what))
    } else {
        Ok(name)
    }
}

fn affinity(from: &mut Decoder<'_>) -> Result<u32, DecodeError> {
    let seconds = from.u32("affinity timeout")?;
    if seconds > AFFINITY_SECONDS_MAX {
        let (value, max) = (seconds.into(), AFFINITY_SECONDS_MAX.into());
        return Err(DecodeError::TooLarge {
            what: "affinity timeout in seconds",
            value,
            max,
        });
    }
    Ok(seconds)
}

/// Strategies for records and keys that pass the checks, shared by the channel's tests.
#[cfg(test)]
pub(super) mod arbitrary {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::addr::Protocol;

    fn protocol() -> impl Strategy<Value = Protocol> {
        select(vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP])
    }

    fn network() -> impl Strategy<Value = IpNet> {
        (any::<IpAddr>(), 0u8..=128).prop_map(|(address, prefix)| {
            let prefix = if address.is_ipv4() { prefix % 33 } else { prefix };
            IpNet::new(address, prefix).unwrap().trunc()
        })
    }

    pub(in crate::channel) fn record() -> impl Strategy<Value = Record> {
        let index = || any::<u32>().prop_map(ServicePortIndex);
        let names = ("[a-z0-9-]{1,63}", "[a-z0-9-]{1,63}", "[a-z0-9-]{0,63}");
        let policies = (
            protocol(),
            select(&ALGORITHMS[..]),
            0..=AFFINITY_SECONDS_MAX,
            any::<(bool, bool)>(),
        );
        let frontend = (
            any::<IpAddr>(),
            protocol(),
            1u16..,
            select(&FRONTEND_KINDS[..]),
            index(),
        );
        prop_oneof![
            (index(), names, policies).prop_map(|(index, (namespace, name, port_name), p)| {
                let (protocol, algorithm, affinity_seconds, (external_local, internal_local)) = p;
                Record::ServicePort(ServicePortRecord {
                    index,
                    namespace,
                    name,
                    port_name,
                    protocol,
                    algorithm,
                    affinity_seconds,
                    external_local,
                    internal_local,
                })
            }),
            frontend.prop_map(|(address, protocol, port, kind, service_port)| {
                Record::Frontend(FrontendRecord {
                    address,
                    protocol,
                    port,
                    kind,
                    service_port,
                })
            }),
            (index(), any::<IpAddr>(), 1u16.., any::<[bool; 5]>()).prop_map(
                |(service_port, address, port, [in_cluster_set, in_local_set, usable, serving, local])| {
                    Record::Backend(BackendRecord {
                        service_port,
                        address,
                        port,
                        in_cluster_set,
                        in_local_set,
                        usable,
                        serving,
                        local,
                    })
                }
            ),
            (select(&NETWORK_KINDS[..]), network())
                .prop_map(|(kind, network)| Record::Network(NetworkRecord { kind, network })),
            (index(), network()).prop_map(|(service_port, network)| Record::SourceRange(SourceRangeRecord {
                service_port,
                network
            })),
            (any::<[bool; 2]>(), select(&UNDEFINED_PORTS[..])).prop_map(
                |([masquerade_all, ping_replies], undefined_ports)| Record::Settings(SettingsRecord {
                    masquerade_all,
                    ping_replies,
                    undefined_ports
                })
            ),
        ]
    }

    pub(in crate::channel) fn key() -> impl Strategy<Value = Key> {
        record().prop_map(|record| record.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_every_choice_is_its_own() {
        assert!(
            ALGORITHMS
                .iter()
                .enumerate()
                .all(|(place, &a)| a as usize == place)
        );
        assert!(
            FRONTEND_KINDS
                .iter()
                .enumerate()
                .all(|(place, &k)| k as usize == place)
        );
        assert!(
            UNDEFINED_PORTS
                .iter()
                .enumerate()
                .all(|(place, &u)| u as usize == place)
        );
        assert!(
            NETWORK_KINDS
                .iter()
                .enumerate()
                .all(|(place, &k)| k as usize == place)
        );
    }
}
