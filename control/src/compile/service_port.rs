//! One port of one Service as records.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sluice_dataplane::channel::record::{
    BackendRecord, FrontendKind, FrontendRecord, Key, Record, ServicePortRecord, SourceRangeRecord,
};
use sluice_dataplane::index::ServicePortIndex;

use super::Settings;
use crate::endpoints::sets;
use crate::model::{Service, ServicePort};

/// The frontends that a service port wants, and what else it has.
pub(super) fn service_port(
    index: ServicePortIndex,
    service: &Service,
    port: &ServicePort,
    slices: &[Arc<EndpointSlice>],
    settings: &Settings,
) -> (Vec<FrontendRecord>, BTreeMap<Key, Record>) {
    let mut made = (Vec::new(), BTreeMap::new());
    let record = Record::ServicePort(ServicePortRecord {
        index,
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        algorithm: settings.algorithm,
        affinity_seconds: service.affinity_seconds,
        external_local: service.external_local,
        internal_local: service.internal_local,
    });
    made.1.insert(record.key(), record);
    // SVC-2, SVC-3: a family without a cluster IP has nothing.
    for cluster_ip in &service.cluster_ips {
        let family = Family {
            index,
            service,
            port,
            cluster_ip: *cluster_ip,
        };
        family.compile(&mut made, slices, settings);
    }
    made
}

/// A service port in one of its Service's families.
struct Family<'a> {
    index: ServicePortIndex,
    service: &'a Service,
    port: &'a ServicePort,
    cluster_ip: IpAddr,
}

impl Family<'_> {
    fn has(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.cluster_ip.is_ipv6()
    }

    fn compile(
        &self,
        (wanted, records): &mut (Vec<FrontendRecord>, BTreeMap<Key, Record>),
        slices: &[Arc<EndpointSlice>],
        settings: &Settings,
    ) {
        let mut put = |record: Record| records.insert(record.key(), record);
        let (service, port) = (self.service, self.port);
        // SVC-7.
        let mut frontends = vec![(FrontendKind::ClusterIp, self.cluster_ip, port.port)];
        let of_family = |kind, ip: IpAddr| self.has(ip).then_some((kind, ip, port.port));
        // Before external IPs: an address that is both has its source ranges.
        let balanced = service.load_balancer_ips.iter();
        frontends.extend(balanced.filter_map(|ip| of_family(FrontendKind::LoadBalancerIp, *ip)));
        let external_ips = service.external_ips.iter().filter(|_| settings.external_ips);
        frontends.extend(external_ips.filter_map(|ip| of_family(FrontendKind::ExternalIp, *ip)));
        if let Some(number) = port.node_port {
            let every = match self.cluster_ip {
                IpAddr::V4(_) => IpAddr::from([0; 4]),
                IpAddr::V6(_) => IpAddr::from([0; 16]),
            };
            frontends.push((FrontendKind::NodePort, every, number));
        }
        let external = frontends.iter().any(|(kind, ..)| kind.is_external());
        for (kind, address, number) in frontends {
            let record = FrontendRecord {
                address,
                protocol: port.protocol,
                port: number,
                kind,
                service_port: self.index,
            };
            wanted.push(record);
        }
        for network in self.source_ranges(settings) {
            let service_port = self.index;
            put(Record::SourceRange(SourceRangeRecord {
                service_port,
                network,
            }));
        }
        let ipv6 = self.cluster_ip.is_ipv6();
        for candidate in sets::candidates(service, port, slices, &settings.here, ipv6, external) {
            put(Record::Backend(BackendRecord {
                service_port: self.index,
                address: candidate.address,
                port: candidate.port,
                in_cluster_set: candidate.in_cluster_set,
                in_local_set: candidate.in_local_set,
                usable: candidate.usable,
                serving: candidate.serving,
                local: candidate.local,
            }));
        }
    }

    /// A source range that no packet comes from: the unspecified address never sends (RFC 1122 §3.2.1.3, RFC 4291 §2.5.2).
    const fn nobody(&self) -> IpNet {
        match self.cluster_ip {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
        }
    }

    /// LBR-3 to LBR-5: none where the family is unrestricted. LBR-8: the annotation is not read.
    fn source_ranges(&self, settings: &Settings) -> Vec<IpNet> {
        let balanced = self.service.load_balancer_ips.iter();
        let balanced: Vec<IpAddr> = balanced.copied().filter(|ip| self.has(*ip)).collect();
        let ranges = self
            .service
            .source_ranges
            .iter()
            .filter(|range| self.has(range.addr()));
        let mut ranges: Vec<IpNet> = ranges.copied().collect();
        if balanced.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
            return Vec::new();
        }
        if ranges.is_empty() {
            let closed = settings.strict_source_ranges && !self.service.source_ranges.is_empty();
            return closed.then(|| self.nobody()).into_iter().collect();
        }
        // The node talks to an address that is its own, too: from it.
        let node_is_in = |range: &IpNet| settings.node_addresses.iter().any(|node| range.contains(node));
        if ranges.iter().any(node_is_in) {
            ranges.extend(balanced.into_iter().map(IpNet::from));
        }
        ranges
    }
}
