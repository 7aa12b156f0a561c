//! The Service that clients know the server by, as objects like everybody's: a Service with the cluster IPs that every
//! pod's resolv.conf names, and Endpoints with the addresses that the server listens at. Whoever writes a Service of that name
//! has their own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::manifest::{self, Object};
use crate::model::{Family, ServiceName};
use crate::problem::SourceText;

/// What every cluster calls it, whichever server it is.
pub fn name() -> ServiceName {
    ServiceName {
        namespace: "kube-system".into(),
        name: "kube-dns".into(),
    }
}

/// Its cluster IP in `range` unless another is chosen: the tenth, as kubeadm has it; none of a range that small.
pub fn cluster_ip(range: &IpNet) -> Option<IpAddr> {
    const TENTH: usize = 10;
    let mut hosts = match range {
        IpNet::V4(range) => range
            .addr()
            .to_bits()
            .checked_add(TENTH as u32)
            .map(|ip| IpAddr::V4(ip.into())),
        IpNet::V6(range) => range
            .addr()
            .to_bits()
            .checked_add(TENTH as u128)
            .map(|ip| IpAddr::V6(ip.into())),
    }
    .into_iter();
    hosts.find(|ip| range.contains(ip))
}

/// The objects: the Service first.
pub fn objects(cluster_ips: &[IpAddr], listen: &[SocketAddr]) -> Vec<Object> {
    let ServiceName { namespace, name } = name();
    let quoted = |list: &mut dyn Iterator<Item = IpAddr>| {
        list.map(|ip| format!("\"{ip}\"")).collect::<Vec<_>>().join(", ")
    };
    let families = |list: &[IpAddr]| {
        list.iter()
            .map(|ip| Family::of(*ip).to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let policy = if cluster_ips.len() > 1 {
        "RequireDualStack"
    } else {
        "SingleStack"
    };
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}, labels: {{k8s-app: kube-dns}}}}
spec:
  clusterIP: \"{}\"
  clusterIPs: [{}]
  ipFamilies: [{}]
  ipFamilyPolicy: {policy}
  ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
",
        cluster_ips.first().map(ToString::to_string).unwrap_or_default(),
        quoted(&mut cluster_ips.iter().copied()),
        families(cluster_ips),
    );
    let subset = |address: &SocketAddr| {
        let (ip, port) = (address.ip(), address.port());
        format!(
            "- addresses: [{{ip: \"{ip}\"}}]
  ports: [{{name: dns, port: {port}, protocol: UDP}}, {{name: dns-tcp, port: {port}, protocol: TCP}}]
"
        )
    };
    text += &format!(
        "---
apiVersion: v1
kind: Endpoints
metadata: {{name: {name}, namespace: {namespace}}}
subsets:
{}",
        listen.iter().map(subset).collect::<String>()
    );
    let source = Arc::new(SourceText {
        path: PathBuf::from("(cluster DNS)"),
        text,
    });
    manifest::read(&source).objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_cluster_ip_is_the_tenth_of_a_range() {
        let of = |range: &str| cluster_ip(&range.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(of("10.96.0.0/16").as_deref(), Some("10.96.0.10"));
        assert_eq!(of("fd00:96::/112").as_deref(), Some("fd00:96::a"));
        assert_eq!(of("10.0.0.0/29"), None);
    }

    #[test]
    fn its_objects_are_right_for_either_family_and_for_both() {
        let ips = ["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()];
        let listen = [
            "192.0.2.2:53".parse().unwrap(),
            "[2001:db8::2]:53".parse().unwrap(),
        ];
        for (ips, listen) in [
            (&ips[..], &listen[..]),
            (&ips[..1], &listen[..1]),
            (&ips[1..], &listen[1..]),
        ] {
            let kinds: Vec<_> = objects(ips, listen)
                .iter()
                .map(|object| object.key.kind.name())
                .collect();
            assert_eq!(kinds, ["Service", "Endpoints"]);
        }
    }
}
