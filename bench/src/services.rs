//! The Services of a generator's world as the dataplane's table records.

use ipnet::IpNet;
use sluice_dataplane::addr::Protocol;
use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, NetworkKind, NetworkRecord, Record,
    ServicePortRecord,
};
use sluice_dataplane::index::ServicePortIndex;

use crate::pktgen::world::{Socket, World};

/// Both that a generator speaks, in the order of a Service's ports.
pub const UDP_AND_TCP: &[Protocol] = &[Protocol::UDP, Protocol::TCP];

/// All records, each Service with these protocols on one port. Clients in `pods` keep their address.
pub fn records(world: &World, pods: IpNet, protocols: &[Protocol]) -> Vec<Record> {
    let mut records: Vec<Record> = (0..world.services.count)
        .flat_map(|service| service_records(world, service, protocols))
        .collect();
    records.push(Record::Network(NetworkRecord {
        kind: NetworkKind::PodRange,
        network: pods,
    }));
    records
}

fn service_records(world: &World, service: u32, protocols: &[Protocol]) -> Vec<Record> {
    let mut records = Vec::new();
    for (nth, &protocol) in protocols.iter().enumerate() {
        let service_port = ServicePortIndex(service * protocols.len() as u32 + nth as u32);
        let (address, port) = world.frontend(service);
        records.push(Record::ServicePort(ServicePortRecord {
            index: service_port,
            namespace: "bench".into(),
            name: format!("s{service:05}"),
            port_name: protocol.to_string(),
            protocol,
            // kube-proxy's.
            algorithm: Algorithm::Random,
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
        }));
        records.push(Record::Frontend(FrontendRecord {
            address,
            protocol,
            port,
            kind: FrontendKind::ClusterIp,
            service_port,
        }));
        records.extend(
            (0..world.endpoints.per_service).map(|j| backend(service_port, world.endpoint(service, j))),
        );
    }
    records
}

/// An endpoint of a service port.
pub fn backend(service_port: ServicePortIndex, (address, port): Socket) -> Record {
    Record::Backend(BackendRecord {
        service_port,
        address,
        port,
        in_cluster_set: true,
        in_local_set: false,
        usable: true,
        serving: true,
        local: false,
    })
}
