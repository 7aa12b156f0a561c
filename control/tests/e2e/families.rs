//! A lab of both families: the same pods behind every frontend, each client in the family it came by, and the second family
//! coming and going while the lab is up.

use crate::lab::{Lab, Setup, text, wait_until};
use crate::requests::{by_pod, curl, requests};

/// The Service's cluster IPs, bracketed where a URL wants it.
fn hosts(lab: &Lab, service: &str) -> Vec<String> {
    let status = lab.status();
    let mut services = status["services"].as_array().unwrap().iter();
    let found = services.find(|found| found["name"] == service).unwrap();
    let ips = found["clusterIPs"].as_array().unwrap().iter();
    ips.map(|ip| host(&text(ip))).collect()
}

fn host(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}

in_every_lab! {
    fn both_families_reach_the_same_pods_through_cluster_ips_and_node_ports(lab: &Lab, "dual-stack") {
        let pods: Vec<_> = lab.pods("echo").into_iter().map(|pod| pod.0).collect();
        let first = |service: &str| hosts(lab, service).remove(0);
        assert_eq!(hosts(lab, "echo").len(), 2);
        assert!(first("echo").starts_with("10.96.") && first("echo-v6-first").starts_with("[fd00:10:96::"));
        let inside = ["echo", "echo-v6-first", "echo-v6"].map(|service| hosts(lab, service)).concat();
        assert_eq!(inside.len(), 5, "{inside:?}");
        for host in &inside {
            let counts = by_pod(&requests(lab, "debug", &format!("http://{host}/cluster-ip"), 30));
            // 2^-29 against.
            assert!(counts.keys().eq(&pods), "{host}: {counts:?}");
        }
        for host in hosts(lab, "echo") {
            let from_node = by_pod(&requests(lab, "node", &format!("http://{host}/node"), 30));
            assert!(from_node.keys().eq(&pods), "{host}: {from_node:?}");
        }
        let status = lab.status();
        let nodes = status["node"]["addresses"].as_array().unwrap();
        assert_eq!(nodes.len(), 2, "{status}");
        for node in nodes {
            let url = format!("http://{}:30046/node-port", host(&text(node)));
            assert!(by_pod(&requests(lab, "client", &url, 30)).keys().eq(&pods), "{url}");
        }
        // A pod's address is kept, in either family; what comes from outside has one of the gateway's.
        let debug = status["pods"].as_array().unwrap().iter().find(|pod| pod["name"] == "debug").unwrap();
        let debug: Vec<_> = debug["ips"].as_array().unwrap().iter().map(|ip| host(&text(ip))).collect();
        let gateway = ["10.244.0.1", "172.18.0.2", "[fd00:10:244::1]", "[fd00:172:18::2]"];
        let logs: String = pods.iter().map(|pod| lab.log(pod)).collect();
        let client = |line: &str| line.split(' ').nth(1)?.rsplit_once(':').map(|(host, _)| host.to_owned());
        let asked = |path: &str| -> Vec<_> { logs.lines().filter(|line| line.contains(path)).collect() };
        let (inside, outside) = (asked("/cluster-ip/"), asked("/node-port/"));
        assert_eq!((inside.len(), outside.len()), (5 * 30, 2 * 30), "a line a request: {logs}");
        for line in inside {
            assert!(debug.contains(&client(line).unwrap()), "{line}");
        }
        for line in outside {
            assert!(gateway.contains(&client(line).unwrap().as_str()), "{line}");
        }
    }

    fn a_family_that_is_added_by_an_edit_is_served_and_one_taken_away_is_not(lab: &Lab, "dual-stack") {
        let before = hosts(lab, "echo");
        lab.edit("services.yaml", "ipFamilyPolicy: PreferDualStack #", "ipFamilyPolicy: SingleStack #");
        wait_until("the second family is gone", || (hosts(lab, "echo") == before[..1]).then_some(()));
        let gone = curl(lab, "debug", &format!("http://{}/", before[1]));
        assert!(!gone.status.success(), "{gone:?}");
        assert!(curl(lab, "debug", &format!("http://{}/", before[0])).status.success());
        lab.edit("services.yaml", "ipFamilyPolicy: SingleStack #", "ipFamilyPolicy: PreferDualStack #");
        wait_until("the second family is back", || (hosts(lab, "echo").len() == 2).then_some(()));
        assert_eq!(hosts(lab, "echo"), before, "the same addresses as before");
        wait_until("it is served", || {
            let answer = curl(lab, "debug", &format!("http://{}/", before[1]));
            answer.status.success().then_some(())
        });
    }
}
