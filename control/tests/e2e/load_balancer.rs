//! A load balancer with an address from the pool: reached from outside by clients whose addresses are kept, and asked for
//! its health.

use serde_json::Value;

use crate::lab::{Lab, Setup, kill_9, run, succeed, text, wait_until};
use crate::requests::{Load, all_good, by_pod, curl, requests};

/// The load balancer's address, once it is told.
fn address(lab: &Lab) -> String {
    wait_until("the Service has an address", || {
        let service: Value = serde_json::from_str(&lab.get(&["service", "echo", "-o", "json"]).out).ok()?;
        let ingress = service["status"]["loadBalancer"]["ingress"].get(0)?;
        assert_eq!(ingress["ipMode"], "VIP");
        Some(text(&ingress["ip"]))
    })
}

/// Status, weight and endpoints that a load balancer is told; nothing if nobody listens.
fn told(lab: &Lab, url: &str) -> Option<(u16, String, Value)> {
    let answer = run(lab.exec("client", &["curl", "-s", "-i", "--max-time", "5", url]));
    let (head, body) = answer.out.split_once("\r\n\r\n")?;
    let weight = head
        .lines()
        .find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
    let body: Value = serde_json::from_str(body).unwrap();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, weight.unwrap_or_default().to_owned(), body))
}

/// Replaces every pod, one after the other, while the client goes on.
fn replace_pods_under_load(lab: &Lab, url: &str) {
    let mut load = Load::start(lab, "client", url);
    load.take(10);
    for (name, _) in lab.pods("echo") {
        succeed(lab.sluice(&["lab", "delete", "pod", &name]));
        wait_until("another pod is ready", || {
            let pods = lab.pods("echo");
            (pods.len() == 2 && pods.iter().all(|pod| pod.0 != name)).then_some(())
        });
        load.take(20);
    }
    all_good(&load.stop());
}

in_every_lab! {
    fn a_load_balancer_keeps_its_clients_addresses_and_tells_whether_it_has_endpoints(lab: &Lab, "load-balancer") {
        let ip = address(lab);
        assert!(ip.starts_with("172.19.0."), "{ip}");
        let table = lab.get(&["services"]).out;
        assert!(table.contains(&format!("LoadBalancer   {}   {ip}", lab.cluster_ip("echo"))), "{table}");
        let pods: Vec<_> = lab.pods("echo").into_iter().map(|pod| pod.0).collect();
        let counts = by_pod(&requests(lab, "client", &format!("http://{ip}/outside"), 30));
        // 2^-29 against.
        assert!(counts.keys().eq(&pods), "{counts:?}");
        let logs: String = pods.iter().map(|pod| lab.log(pod)).collect();
        let outside: Vec<_> = logs.lines().filter(|line| line.contains("/outside/")).collect();
        assert_eq!(outside.len(), 30, "a line a request: {logs}");
        assert!(outside.iter().all(|line| line.contains(" 172.18.0.10:")), "{logs}");
        requests(lab, "debug", &format!("http://{ip}"), 5);

        // J4: under Local policy.
        replace_pods_under_load(lab, &format!("http://{ip}/"));

        let health = format!("http://{}:31500/", lab.node());
        let (status, weight, body) = told(lab, &health).unwrap();
        assert_eq!((status, weight.as_str()), (200, "2"));
        let expected = serde_json::json!({
            "service": {"namespace": "default", "name": "echo"}, "localEndpoints": 2, "serviceProxyHealthy": true
        });
        assert_eq!(body, expected);
        let (status, _, body) = told(lab, &format!("http://{}:10256/healthz", lab.node())).unwrap();
        assert_eq!((status, &body["nodeEligible"]), (200, &Value::Bool(true)));

        // F8: without pods here nobody should be sent here; under Cluster policy nobody need ask.
        succeed(lab.sluice(&["lab", "scale", "rs/echo", "0"]));
        wait_until("the last endpoint is gone", || (told(lab, &health)?.0 == 503).then_some(()));
        succeed(lab.sluice(&["lab", "scale", "rs/echo", "2"]));
        wait_until("there are endpoints again", || (told(lab, &health)?.1 == "2").then_some(()));
        let (asked, not_asked) =
            ("externalTrafficPolicy: Local\n  healthCheckNodePort: 31500\n", "externalTrafficPolicy: Cluster\n");
        lab.edit("echo.yaml", asked, not_asked);
        wait_until("nobody is asked any more", || told(lab, &health).is_none().then_some(()));
        // J4: under Cluster policy.
        replace_pods_under_load(lab, &format!("http://{ip}/"));
        lab.edit("echo.yaml", not_asked, asked);
        wait_until("it is asked again", || told(lab, &health).map(drop));

        // A new control gives the same address, and lets others than the listed in no more.
        let before = lab.process("control").unwrap();
        kill_9(before);
        lab.new_process("control", before);
        assert_eq!(address(lab), ip);
        lab.edit("echo.yaml", "selector: {app: echo}", "loadBalancerSourceRanges: [192.0.2.0/24]\n  selector: {app: echo}");
        wait_until("the client is shut out", || {
            (!curl(lab, "client", &format!("http://{ip}/")).status.success()).then_some(())
        });
    }
}
