//! Checks asked over loopback, as load balancers ask them.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::*;

fn name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

/// Ports that nobody has: bound together so that they differ.
fn free_ports<const N: usize>() -> [u16; N] {
    let sockets = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

fn checks(of: &[(&str, u16, usize)]) -> Checks {
    let check = |(service, port, local_endpoints): &(&str, u16, usize)| {
        let check = Check {
            port: *port,
            local_endpoints: *local_endpoints,
        };
        ((name(service), Family::V4), check)
    };
    of.iter().map(check).collect()
}

/// Listens on one address of loopback alone.
fn server() -> Server {
    let server = Server::new(vec!["127.0.0.1/32".parse().unwrap()]).unwrap();
    server.set_proxy(Proxy {
        connected: true,
        ..Proxy::default()
    });
    server
}

/// The answer, headers in lower case; none if nobody listens.
fn ask(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    Some(answer)
}

/// Status, weight, endpoints in the body.
fn told(port: u16) -> Option<(u16, String, u64)> {
    let answer = ask(port, "GET /")?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim_start_matches(": ").to_owned()
    };
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("x-content-type-options"), "nosniff");
    Some((
        head[9..12].parse().unwrap(),
        header("x-load-balancing-endpoint-weight"),
        body["localEndpoints"].as_u64().unwrap(),
    ))
}

#[test]
fn hc_3_a_service_is_answered_for_as_it_comes_changes_and_goes() {
    let [port] = free_ports();
    let mut server = server();
    assert_eq!(told(port), None);
    for (endpoints, status) in [(0, 503), (18, 200), (0, 503)] {
        server.set_checks(checks(&[("web", port, endpoints)]));
        assert_eq!(
            told(port),
            Some((status, endpoints.to_string(), endpoints as u64))
        );
    }
    server.set_checks(Checks::new());
    assert_eq!(told(port), None);
}

/// Status and body.
fn answered(port: u16, request: &str) -> (u16, Value) {
    let answer = ask(port, request).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[test]
fn hc_2_the_body_is_kube_proxys_whatever_is_asked_for() {
    let [port] = free_ports();
    let mut server = server();
    server.set_checks(checks(&[("web", port, 2)]));
    let body = |healthy: bool| {
        let service = json!({"namespace": "shop", "name": "web"});
        json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": healthy})
    };
    for request in ["GET /healthz", "POST /x/y?z"] {
        assert_eq!(answered(port, request), (200, body(true)), "{request}");
    }
    // F3: endpoints do not help where no packet is carried.
    server.set_proxy(Proxy::default());
    assert_eq!(answered(port, "GET /"), (503, body(false)));
}

// There is no way to wait a minute in a test.
#[allow(clippy::disallowed_methods)]
#[test]
fn hc_6_the_node_is_told_of_with_each_of_its_families() {
    let updated = "2026-01-02T03:04:05Z";
    let well = Proxy {
        connected: true,
        last_updated: Some(updated.parse().unwrap()),
        ..Proxy::default()
    };
    let late = Proxy {
        pending_since: std::time::Instant::now().checked_sub(Duration::from_secs(61)),
        ..well.clone()
    };
    let leaving = Proxy {
        leaving: true,
        ..well.clone()
    };
    let alone = Proxy {
        connected: false,
        ..well.clone()
    };
    for families in [&[Family::V4][..], &[Family::V4, Family::V6]] {
        let [port] = free_ports();
        let server = server();
        let address = (Ipv4Addr::LOCALHOST, port);
        server.serve_node(address.into(), families.to_vec()).unwrap();
        // Status, of each family, and whether the node may be sent clients; alive or not.
        for (proxy, healthz, live) in [
            (&well, (200, true, true), true),
            (&late, (503, false, true), false),
            (&leaving, (503, true, false), true),
            (&alone, (503, false, true), true),
        ] {
            server.set_proxy(proxy.clone());
            let (status, of_families, eligible) = healthz;
            let paths = [
                ("GET /healthz", status, of_families, Some(eligible)),
                ("GET /livez", if live { 200 } else { 503 }, live, None),
            ];
            for (request, status, of_families, eligible) in paths {
                let (told, mut body) = answered(port, request);
                let now = body.as_object_mut().unwrap().remove("currentTime").unwrap();
                assert!(now.as_str().unwrap() > updated, "{now}");
                let family = |family: &Family| {
                    let told = json!({"lastUpdated": updated, "healthy": of_families});
                    (family.name().to_owned(), told)
                };
                let mut wanted = json!({
                    "lastUpdated": updated,
                    "healthy": status == 200,
                    "status": families.iter().map(family).collect::<serde_json::Map<_, _>>(),
                });
                if let Some(eligible) = eligible {
                    wanted["nodeEligible"] = eligible.into();
                }
                assert_eq!((told, body), (status, wanted), "{request} {proxy:?}");
            }
        }
    }
}

#[test]
fn hc_5_a_port_that_changes_moves_its_service_alone_and_may_be_anothers_at_once() {
    let [a, b, c, other] = free_ports();
    let mut server = server();
    server.set_checks(checks(&[("a", a, 1), ("b", b, 2), ("c", c, 3)]));
    let mut kept = TcpStream::connect(("127.0.0.1", c)).unwrap();
    server.set_checks(checks(&[("a", b, 1), ("b", other, 2), ("c", c, 3)]));
    assert_eq!(server.failures(), &Failures::new());
    assert_eq!(told(a), None);
    assert_eq!(told(b).unwrap().2, 1);
    assert_eq!(told(other).unwrap().2, 2);
    kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"localEndpoints\":3"), "{answer}");
}

#[test]
fn hc_5_a_port_that_is_taken_fails_alone_and_is_had_once_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let [free] = free_ports();
    let mut server = server();
    server.set_checks(checks(&[("a", port, 1), ("b", free, 2)]));
    assert_eq!(told(free).unwrap().2, 2);
    assert!(server.failures()[&name("a")].contains("cannot be listened on"));
    assert!(!server.retry());
    drop(taken);
    assert!(server.retry());
    assert_eq!((server.failures().len(), told(port).unwrap().2), (0, 1));
}

#[test]
fn hc_1_only_the_addresses_of_node_ports_are_listened_on() {
    let [port] = free_ports();
    let mut server = server();
    server.set_checks(checks(&[("a", port, 1)]));
    assert!(TcpStream::connect(("127.0.0.2", port)).is_err());
    assert!(told(port).is_some());
    let mut nowhere = Server::new(vec!["240.0.0.0/4".parse().unwrap()]).unwrap();
    nowhere.set_checks(checks(&[("a", port, 1)]));
    assert!(nowhere.failures()[&name("a")].contains("nodePortAddresses"));
}

#[test]
fn a_client_that_says_nothing_is_in_nobodys_way() {
    let [port] = free_ports();
    let mut server = server();
    server.set_checks(checks(&[("a", port, 1)]));
    let _silent: Vec<_> = (0..CONNECTIONS / 2)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    assert!(told(port).is_some());
}
