//! The layout hash: what two programs must agree on before one may believe the other's bytes.
//!
//! Nobody has to remember to raise a number: the hash is made of what a sample of every message encodes to, and of the
//! counters' names and places, so whoever changes those has changed the hash.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::addr::Protocol;
use crate::counters::{CounterId, PortCounter};
use crate::index::{Generation, ServicePortIndex};

use super::codec::Slot;
use super::digest::Digest;
use super::layout::COUNTER_WORDS;
use super::message::{Message, Nack, NackReason, TEXT_MAX};
use super::record::{
    BackendRecord, FrontendRecord, NAME_MAX, NetworkRecord, Record, ServicePortRecord, SettingsRecord,
    SourceRangeRecord,
};
use super::row;

/// What both programs must agree on beyond the version that people remember to raise: the encoding of a sample of
/// every message, and the counters' names and places.
pub(super) fn layout_hash() -> u64 {
    let mut sum = Digest::default();
    for (place, slot) in samples().into_iter().enumerate() {
        sum.add(&[&(place as u64).to_le_bytes()[..], &slot].concat());
    }
    for id in CounterId::all() {
        sum.add(format!("{} {id}", id.get()).as_bytes());
    }
    for counter in PortCounter::ALL {
        sum.add(format!("{COUNTER_WORDS} port {} {}", *counter as usize, counter.name()).as_bytes());
    }
    sum.sum
}

/// One of every message, record and key with telling values: what the layout hash is made of.
pub(super) fn samples() -> Vec<Slot> {
    let v4 = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
    let v6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    let (service_port, generation, count, digest) = (ServicePortIndex(0x0102_0304), Generation(5), 6, 7);
    let mut records = Vec::new();
    for (place, &algorithm) in row::ALGORITHMS.iter().enumerate() {
        records.push(Record::ServicePort(ServicePortRecord {
            index: service_port,
            namespace: "n".repeat(NAME_MAX),
            name: "s".repeat(NAME_MAX),
            port_name: "p".repeat(NAME_MAX),
            protocol: Protocol::TCP,
            algorithm,
            affinity_seconds: 10_800,
            external_local: place == 0,
            internal_local: place == 1,
        }));
    }
    for (address, &kind) in [v4, v6, v4, v6].into_iter().zip(&row::FRONTEND_KINDS) {
        records.push(Record::Frontend(FrontendRecord {
            address,
            protocol: Protocol::UDP,
            port: 53,
            kind,
            service_port,
        }));
    }
    for (place, address) in [v4, v6, v4, v6, v4].into_iter().enumerate() {
        records.push(Record::Backend(BackendRecord {
            service_port,
            address,
            port: 8080,
            in_cluster_set: place == 0,
            in_local_set: place == 1,
            usable: place == 2,
            serving: place == 3,
            local: place == 4,
        }));
    }
    for (network, &kind) in [v4, v6, v4].into_iter().zip(&row::NETWORK_KINDS) {
        records.push(Record::Network(NetworkRecord {
            kind,
            network: network.into(),
        }));
    }
    for address in [v4, v6] {
        let network = address.into();
        records.push(Record::SourceRange(SourceRangeRecord {
            service_port,
            network,
        }));
    }
    for (place, &undefined_ports) in row::UNDEFINED_PORTS.iter().enumerate() {
        records.push(Record::Settings(SettingsRecord {
            masquerade_all: place == 0,
            ping_replies: place == 1,
            undefined_ports,
        }));
    }

    let mut messages = vec![
        Message::Hello {
            version: 1,
            layout_hash: 2,
        },
        Message::Begin { generation },
        Message::Commit {
            generation,
            count,
            digest,
        },
        Message::Ack { generation },
        Message::DumpRequest,
        Message::DumpEnd {
            generation,
            count,
            digest,
        },
    ];
    messages.extend(NackReason::ALL.map(|reason| {
        Message::Nack(Nack {
            generation,
            message: 3,
            reason,
            text: "t".repeat(TEXT_MAX),
        })
    }));
    for record in records {
        messages.push(Message::Delete(record.key()));
        messages.push(Message::Put(record.clone()));
        messages.push(Message::DumpRecord(record));
    }
    messages
        .iter()
        .filter_map(|message| message.encode().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_message_of_each_kind_fits_a_slot_and_returns() {
        let samples = samples();
        assert_eq!(samples.len(), 6 + 6 + 3 * 21);
        for slot in samples {
            assert_eq!(Message::decode(&slot).unwrap().encode().unwrap(), slot);
        }
    }
}
