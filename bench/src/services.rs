//! The Services of a generator's world as the dataplane's table records: each with UDP and TCP on one port.

use ipnet::Ipv4Net;
use sluice_dataplane::addr::Protocol;
use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, NetworkKind, NetworkRecord, Record,
    ServicePortRecord,
};
use sluice_dataplane::index::ServicePortIndex;

use crate::pktgen::world::World;

/// Protocols of each Service, in the order of their service ports.
const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::UDP, "udp"), (Protocol::TCP, "tcp")];

/// All records. Clients in `pods` keep their address.
pub fn records(world: &World, pods: Ipv4Net) -> Vec<Record> {
    let mut records: Vec<Record> = (0..world.services.count)
        .flat_map(|service| service_records(world, service))
        .collect();
    records.push(Record::Network(NetworkRecord {
        kind: NetworkKind::PodRange,
        network: pods.into(),
    }));
    records
}

fn service_records(world: &World, service: u32) -> Vec<Record> {
    let mut records = Vec::new();
    for (nth, (protocol, name)) in PROTOCOLS.into_iter().enumerate() {
        let service_port = ServicePortIndex(service * PROTOCOLS.len() as u32 + nth as u32);
        let (address, port) = world.frontend(service);
        records.push(Record::ServicePort(ServicePortRecord {
            index: service_port,
            namespace: "bench".into(),
            name: format!("s{service:05}"),
            port_name: name.into(),
            protocol,
            // kube-proxy's.
            algorithm: Algorithm::Random,
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
        }));
        records.push(Record::Frontend(FrontendRecord {
            address: address.into(),
            protocol,
            port,
            kind: FrontendKind::ClusterIp,
            service_port,
        }));
        records.extend((0..world.endpoints.per_service).map(|j| backend(world, service, nth as u32, j)));
    }
    records
}

/// An endpoint of a Service's `nth` protocol.
pub fn backend(world: &World, service: u32, nth: u32, j: u32) -> Record {
    let (address, port) = world.endpoint(service, j);
    Record::Backend(BackendRecord {
        service_port: ServicePortIndex(service * PROTOCOLS.len() as u32 + nth),
        address: address.into(),
        port,
        in_cluster_set: true,
        in_local_set: false,
        usable: true,
        serving: true,
        local: false,
    })
}
