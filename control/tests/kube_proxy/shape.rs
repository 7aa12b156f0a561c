//! Services of the records: an outline, and the objects that say it.

use serde_json::{Value, json};

use crate::cluster::{Condition, cluster_ips, service, slices};

/// A port: name, protocol, number, number on the endpoints, node port.
pub(crate) type Port = (&'static str, &'static str, u16, u16, Option<u16>);

/// A Service with its slices: whatever a row does not say is as here.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) cluster: [String; 2],
    pub(crate) balanced: Vec<String>,
    pub(crate) external: Vec<String>,
    pub(crate) ports: Vec<Port>,
    pub(crate) external_policy: &'static str,
    pub(crate) internal_policy: &'static str,
    pub(crate) ranges: Vec<String>,
    pub(crate) endpoints: Vec<(&'static str, Condition)>,
    /// Seconds of ClientIP affinity, 0 for none.
    pub(crate) affinity: u32,
}

/// All four endpoints, ready.
pub(crate) const ALL: [&str; 4] = ["l1", "l2", "r1", "r2"];

/// These endpoints, ready.
pub(crate) fn ready(names: &[&'static str]) -> Vec<(&'static str, Condition)> {
    names.iter().map(|name| (*name, Condition::READY)).collect()
}

/// Both addresses as text.
pub(crate) fn pair(v4: &str, v6: &str) -> [String; 2] {
    [v4.to_owned(), v6.to_owned()]
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            name: "svc".into(),
            cluster: pair("10.96.7.7", "fd00:10:96::707"),
            balanced: Vec::new(),
            external: Vec::new(),
            ports: vec![("t", "TCP", 80, 8080, None), ("u", "UDP", 80, 8080, None)],
            external_policy: "Cluster",
            internal_policy: "Cluster",
            ranges: Vec::new(),
            endpoints: ready(&ALL),
            affinity: 0,
        }
    }
}

impl Shape {
    /// The Service, then its slices.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let port = |(name, protocol, number, target, node): &Port| {
            let mut port = json!({"name": name, "protocol": protocol, "port": number, "targetPort": target});
            if let Some(node) = node {
                port["nodePort"] = json!(node);
            }
            port
        };
        let balanced = !self.balanced.is_empty();
        let external = balanced || self.ports.iter().any(|port| port.4.is_some());
        let kind = match (balanced, external) {
            (true, _) => "LoadBalancer",
            (false, true) => "NodePort",
            (false, false) => "ClusterIP",
        };
        let mut spec = json!({
            "type": kind, "ports": self.ports.iter().map(port).collect::<Vec<_>>(),
            "externalIPs": self.external, "internalTrafficPolicy": self.internal_policy,
        });
        if external || !self.external.is_empty() {
            spec["externalTrafficPolicy"] = json!(self.external_policy);
        }
        if !self.ranges.is_empty() {
            spec["loadBalancerSourceRanges"] = json!(self.ranges);
        }
        if self.affinity > 0 {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": self.affinity}});
        }
        cluster_ips(&mut spec, &[&self.cluster[0], &self.cluster[1]]);
        let balanced: Vec<_> = self.balanced.iter().map(String::as_str).collect();
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|(name, protocol, _, target, _)| (*name, *protocol, *target))
            .collect();
        let mut objects = vec![service(&self.name, spec, &balanced)];
        objects.extend(slices(&self.name, &ports, &self.endpoints));
        objects
    }
}
