//! How large the tables may grow, and why no larger.

/// Capacities. A transaction that would exceed one is refused whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLimits {
    /// Service ports, and the bound of a `ServicePortIndex`. 65,536: kube-proxy is tested by its authors to 10,000
    /// Services; six times that leaves room for several ports each, at 256 KiB of round-robin state per worker.
    pub service_ports: u32,
    /// Frontends. 131,072: two addresses (cluster IP and node port, or load-balancer IP) for every service port.
    pub frontends: u32,
    /// Backends. 1,048,576: sixteen per service port; when all are in use, 20 MiB of slots and states if they are IPv4,
    /// 32 MiB if they are IPv6, 48 MiB if the two are thoroughly mixed.
    pub backends: u32,
    /// Backends of one service port. 65,535: a Maglev slot names one in 16 bits.
    pub backends_per_service_port: u32,
    /// Networks of all kinds. 4,096: a pod range per node in the largest clusters, and a few more.
    pub networks: u32,
    /// Source ranges of all service ports. 65,536: sixteen each for 4,096 ports of load balancers.
    pub source_ranges: u32,
    /// Addresses remembered after their last frontend was deleted, so that TCP flows to them keep finding their worker
    /// (CT-2). 4,096: what a cluster that deletes three Services a minute leaves behind in the day an established
    /// connection may be idle; at most 256 KiB.
    pub former_addresses: u32,
}

impl Default for TableLimits {
    fn default() -> Self {
        Self {
            service_ports: 1 << 16,
            frontends: 1 << 17,
            backends: 1 << 20,
            backends_per_service_port: u16::MAX as u32,
            networks: 1 << 12,
            source_ranges: 1 << 16,
            former_addresses: 1 << 12,
        }
    }
}
