//! How the node is, told over HTTP: to load balancers, on the health-check node port of each Service that keeps clients'
//! addresses (HC-1 to HC-5), and to whoever looks after the node, on `/healthz` and `/livez` (HC-6). Takes what is so from the
//! daemon; gives answers, in kube-proxy's form. It decides nothing about packets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::endpoints::Slices;
use crate::endpoints::sets::{self, Here};
use crate::model::{Family, Model, ServiceName};

/// Sockets, and who answers on them.
pub mod server;

/// How long an update may wait for the dataplane before the node counts as broken: twice kube-proxy's longest time between
/// two of its updates.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many endpoints a node has, for load balancers that share clients out accordingly.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What load balancers are told of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// The node port on which they ask.
    pub port: u16,
    /// Endpoints on this node that take new clients.
    pub local_endpoints: usize,
}

/// All checks. Each family is a Service of its own, as everywhere in the dataplane (SVC-2).
pub type Checks = BTreeMap<(ServiceName, Family), Check>;

/// The checks there have to be.
pub fn checks(model: &Model, slices: &Slices, here: &Here) -> Checks {
    let mut found = Checks::new();
    for service in model.services().filter(|service| service.is_proxied()) {
        let Some(port) = service.health_check_node_port else {
            continue;
        };
        let slices = slices.get(&service.name).map_or(&[][..], Vec::as_slice);
        for family in service.cluster_ips.iter().copied().map(Family::of) {
            let local_endpoints = sets::local_ready(slices, here, family == Family::V6);
            let check = Check {
                port,
                local_endpoints,
            };
            found.insert((service.name.clone(), family), check);
        }
    }
    found
}

/// How the gateway itself is.
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    /// Whether there is a dataplane: without one no packet is carried.
    pub connected: bool,
    /// Since when an update waits for it.
    pub pending_since: Option<Instant>,
    /// When it last had all there is.
    pub last_updated: Option<Timestamp>,
    /// The node is about to go: its Node object is being deleted, or has the cluster autoscaler's taint.
    pub leaving: bool,
}

impl Proxy {
    /// Whether updates arrive.
    fn is_live(&self) -> bool {
        self.pending_since.is_none_or(|since| since.elapsed() < PATIENCE)
    }

    /// Whether clients are served.
    fn is_healthy(&self) -> bool {
        self.connected && self.is_live()
    }
}

type Answer = Response<Full<Bytes>>;

fn answer(good: bool, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(body.to_string().into()));
    if !good {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// HC-2 to HC-4.
fn service_answer(name: &ServiceName, local_endpoints: usize, proxy: &Proxy) -> Answer {
    let healthy = proxy.is_healthy();
    let body = json!({
        "service": {"namespace": name.namespace, "name": name.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": healthy,
    });
    let mut answer = answer(healthy && local_endpoints > 0, &body);
    answer.headers_mut().insert(WEIGHT, local_endpoints.into());
    answer
}

/// HC-6. An update is one of both families, so that they are always alike.
fn node_answer(path: &str, families: &[Family], proxy: &Proxy) -> Answer {
    let (good, eligible) = match path {
        "/healthz" => (proxy.is_healthy() && !proxy.leaving, Some(!proxy.leaving)),
        "/livez" => (proxy.is_live(), None),
        _ => {
            let mut answer = answer(true, &json!({"paths": ["/healthz", "/livez"]}));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return answer;
        }
    };
    let healthy = if eligible.is_some() {
        proxy.is_healthy()
    } else {
        proxy.is_live()
    };
    let of_family = json!({"lastUpdated": proxy.last_updated, "healthy": healthy});
    let status: serde_json::Map<_, _> = families
        .iter()
        .map(|family| (family.name().to_owned(), of_family.clone()))
        .collect();
    let mut body = json!({
        "lastUpdated": proxy.last_updated,
        "currentTime": Timestamp::now(),
        "healthy": good,
        "status": status,
    });
    if let Some(eligible) = eligible {
        body["nodeEligible"] = eligible.into();
    }
    answer(good, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{model, reset};

    /// A Service whose pods are on this node and on another, in several conditions.
    const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 31500
  ports: [{name: a, port: 80}, {name: b, port: 443}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: a, port: 8080}, {name: b, port: 8443}]
endpoints:
- {addresses: [10.244.0.1], nodeName: here}
- {addresses: [10.244.0.2], nodeName: here, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.0.3], nodeName: here, conditions: {ready: false}}
- {addresses: [10.244.0.4], nodeName: there}
- {addresses: [10.244.0.5]}
";

    fn found(text: &str) -> Checks {
        let mut model = model();
        model.apply(reset(text));
        assert!(model.problems().is_empty(), "{:?}", model.problems());
        let here = Here {
            node: "here".into(),
            ..Here::default()
        };
        checks(&model, &crate::endpoints::slices(&model), &here)
    }

    #[test]
    fn hc_4_ready_endpoints_of_this_node_count_once_over_all_ports() {
        let expected = Check {
            port: 31_500,
            local_endpoints: 1,
        };
        assert_eq!(found(SERVICE).into_values().collect::<Vec<_>>(), [expected]);
        let (_, slice) = SERVICE.split_once("---\n").unwrap();
        let more = slice
            .replace("web-1", "web-2")
            .replace("10.244.0.4], nodeName: there", "10.244.0.6], nodeName: here");
        let both = found(&format!("{SERVICE}---\n{more}"));
        assert_eq!(
            both.into_values().next().unwrap().local_endpoints,
            2,
            "10.244.0.1 and .6"
        );
    }

    #[test]
    fn hc_1_only_load_balancers_that_stay_on_the_node_are_asked_for() {
        for (from, to) in [
            ("type: LoadBalancer", "type: NodePort"),
            ("externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster"),
        ] {
            let text = SERVICE
                .replace(from, to)
                .replace("  healthCheckNodePort: 31500\n", "");
            assert_eq!(found(&text), Checks::new(), "{to}");
        }
    }

    // There is no way to wait a minute in a test.
    #[allow(clippy::disallowed_methods)]
    #[test]
    fn hc_6_an_update_that_waits_for_a_minute_makes_the_node_unhealthy_and_a_leaving_node_is_alive() {
        let status = |path: &str, proxy: &Proxy| node_answer(path, &[Family::V4], proxy).status().as_u16();
        let well = Proxy {
            connected: true,
            ..Proxy::default()
        };
        let ago = |seconds: u64| Proxy {
            pending_since: Instant::now().checked_sub(Duration::from_secs(seconds)),
            ..well.clone()
        };
        let leaving = Proxy {
            leaving: true,
            ..well.clone()
        };
        let alone = Proxy::default();
        for (proxy, healthz, livez) in [
            (&well, 200, 200),
            (&ago(59), 200, 200),
            (&ago(61), 503, 503),
            (&leaving, 503, 200),
            (&alone, 503, 200),
        ] {
            assert_eq!(
                (status("/healthz", proxy), status("/livez", proxy)),
                (healthz, livez),
                "{proxy:?}"
            );
        }
        assert_eq!(status("/metrics", &well), 404);
    }
}
