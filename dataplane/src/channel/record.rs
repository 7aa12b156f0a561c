//! What control tells the dataplane: the records of the desired table, each with a key. Control publishes the
//! difference between two sets of records; the steward checks each against bounds and against each other; a fresh
//! control asks for all of them back. One vocabulary, both ways.
//!
//! Numbers a `ServicePortRecord` is known by are chosen by control, dense from 0 (the dataplane's capacity bounds
//! them), and learnt back from the dataplane after control restarts.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::Protocol;
use crate::index::ServicePortIndex;

/// Longest namespace, Service or port name: a DNS label (RFC 1035 §2.3.4).
pub const NAME_MAX: usize = 63;

/// One row of the desired table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A service port and its policies.
    ServicePort(ServicePortRecord),
    /// An address that clients use.
    Frontend(FrontendRecord),
    /// An endpoint of a service port.
    Backend(BackendRecord),
    /// Who may address a service port's load-balancer IPs.
    SourceRange(SourceRangeRecord),
    /// A network with a meaning.
    Network(NetworkRecord),
    /// Switches that hold for all Services.
    Settings(SettingsRecord),
}

/// What names a row: two records with one key are one row, put twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// See `ServicePortRecord::index`.
    ServicePort(ServicePortIndex),
    /// Address as in the record, protocol, port.
    Frontend(IpAddr, Protocol, u16),
    /// Service port, endpoint address, endpoint port.
    Backend(ServicePortIndex, IpAddr, u16),
    /// Service port, network.
    SourceRange(ServicePortIndex, IpNet),
    /// Kind and network.
    Network(NetworkKind, IpNet),
    /// The one settings row.
    Settings,
}

/// A service port: (namespace, Service, port name, protocol), §Vocabulary of the semantics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortRecord {
    /// Its number.
    pub index: ServicePortIndex,
    /// Namespace of the Service, at most `NAME_MAX` bytes.
    pub namespace: String,
    /// Name of the Service, at most `NAME_MAX` bytes.
    pub name: String,
    /// Name of the port, "" if unnamed.
    pub port_name: String,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// How a new flow picks its endpoint.
    pub algorithm: Algorithm,
    /// ClientIP session affinity in seconds (AFF-1), 0 for none.
    pub affinity_seconds: u32,
    /// externalTrafficPolicy: Local.
    pub external_local: bool,
    /// internalTrafficPolicy: Local.
    pub internal_local: bool,
}

/// Endpoint choice for new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Uniformly random (VD-8), kube-proxy's.
    Random,
    /// Consistent hash of the client: every gateway picks the same endpoint.
    #[default]
    Maglev,
    /// In turn, per worker.
    RoundRobin,
    /// Fewest live flows, per worker.
    LeastConnections,
}

/// An (address, protocol, port) that clients address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendRecord {
    /// For a node port, which is on every node-port address of its family, that family's unspecified address.
    pub address: IpAddr,
    /// Protocol, equal to the service port's.
    pub protocol: Protocol,
    /// Port that clients address.
    pub port: u16,
    /// Which kind of frontend.
    pub kind: FrontendKind,
    /// The service port behind it.
    pub service_port: ServicePortIndex,
}

/// Kinds of frontends (§Vocabulary of the semantics). All but `ClusterIp` are external.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// A cluster IP.
    ClusterIp,
    /// spec.externalIPs.
    ExternalIp,
    /// status.loadBalancer.ingress in VIP mode.
    LoadBalancerIp,
    /// A node port.
    NodePort,
}

impl FrontendKind {
    /// Reachable from outside the cluster: externalTrafficPolicy applies.
    pub const fn is_external(self) -> bool {
        !matches!(self, Self::ClusterIp)
    }
}

/// An endpoint behind a service port, with the sets (CAT-1, CAT-2) that control put it into. One that is in no set
/// takes no new flows but keeps those it has (CT-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRecord {
    /// The service port.
    pub service_port: ServicePortIndex,
    /// Endpoint address, of the same family as the frontends it serves.
    pub address: IpAddr,
    /// Endpoint port, 1 to 65535 (EP-6).
    pub port: u16,
    /// In the Cluster set.
    pub in_cluster_set: bool,
    /// In the Local set.
    pub in_local_set: bool,
    /// Ready, or serving and terminating: counts for "has any endpoints" (CAT-7).
    pub usable: bool,
    /// Serving (CT-5).
    pub serving: bool,
    /// On this node.
    pub local: bool,
}

impl BackendRecord {
    /// Whether UDP flows to it stay: it serves, or new flows may come to it, as to one that is published though not ready
    /// (EPC-4). No answer of such a one would pass else.
    pub const fn keeps_flows(&self) -> bool {
        self.serving || self.usable || self.in_cluster_set || self.in_local_set
    }
}

/// A network whose addresses may be clients of a service port's load-balancer IPs (LBR-1). A family without any is
/// unrestricted (LBR-4); that one of them is zero (LBR-5), or that the node may, too (LBR-3), is resolved by control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRangeRecord {
    /// The service port.
    pub service_port: ServicePortIndex,
    /// The network.
    pub network: IpNet,
}

/// A network whose meaning the packet path must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRecord {
    /// What it is.
    pub kind: NetworkKind,
    /// The network.
    pub network: IpNet,
}

/// Meanings of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkKind {
    /// Sources in it are pods.
    PodRange,
    /// Cluster IPs are allocated from it (VD-5).
    ServiceRange,
    /// Node addresses in it accept node ports (NP-2); none at all means `primary`.
    NodePortAddresses,
}

/// Switches for all Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SettingsRecord {
    /// masqueradeAll (TP-3).
    pub masquerade_all: bool,
    /// Echo requests to addresses of frontends are answered, not rejected (PING-1).
    pub ping_replies: bool,
    /// What becomes of packets to an external or load-balancer IP on a port that it does not have (VD-6).
    pub undefined_ports: UndefinedPorts,
}

/// See `SettingsRecord::undefined_ports`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UndefinedPorts {
    /// Not ours: they go where the routes say, as with kube-proxy.
    #[default]
    PassOn,
    /// Silence.
    Drop,
    /// ICMP port unreachable.
    Reject,
}

impl FrontendRecord {
    /// Whether it has an address of its own: all but node ports.
    pub const fn has_own_address(&self) -> bool {
        !matches!(self.kind, FrontendKind::NodePort)
    }
}

impl Record {
    /// The key this record is put under.
    pub fn key(&self) -> Key {
        match self {
            Self::ServicePort(r) => Key::ServicePort(r.index),
            Self::Frontend(r) => Key::Frontend(r.address, r.protocol, r.port),
            Self::Backend(r) => Key::Backend(r.service_port, r.address, r.port),
            Self::SourceRange(r) => Key::SourceRange(r.service_port, r.network),
            Self::Network(r) => Key::Network(r.kind, r.network),
            Self::Settings(_) => Key::Settings,
        }
    }
}
