//! Pods of StatefulSets and DaemonSets, and what readiness probes make of them.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use serde_json::Value;

use crate::lab::{Lab, Setup, run, succeed, text, wait_until};
use crate::requests::{by_pod, curl, requests};

/// Addresses and conditions of a Service's endpoints, by pod.
fn endpoints(lab: &Lab, service: &str) -> Vec<(String, bool)> {
    let label = format!("kubernetes.io/service-name={service}");
    let slices: Value =
        serde_json::from_str(&lab.get(&["endpointslices", "-l", &label, "-o", "json"]).out).unwrap();
    let slices = slices["items"].as_array().unwrap().iter();
    let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    let mut found: Vec<_> = endpoints
        .map(|endpoint| {
            (
                text(&endpoint["targetRef"]["name"]),
                endpoint["conditions"]["ready"] == true,
            )
        })
        .collect();
    found.sort();
    found
}

/// I12, I13: with publishNotReadyAddresses a pod is reached before it is ready and while it ends, and no longer.
fn published_although_unready_or_terminating(lab: &Lab, agent: &String) {
    let cluster_ip = format!("http://{}", lab.cluster_ip("agent"));
    let frontends = [
        ("debug", cluster_ip.clone()),
        ("client", format!("http://{}:30080", lab.node())),
    ];
    let busy = scratch(lab, agent).join("busy");
    fs::write(&busy, "").unwrap();
    let is_ready = |ready: bool| (endpoints(lab, "agent") == [(agent.clone(), ready)]).then_some(());
    wait_until("the probe finds the file", || is_ready(false));
    let local = "internalTrafficPolicy: Local\n";
    let published = "internalTrafficPolicy: Local\n  publishNotReadyAddresses: true\n";
    lab.edit("db.yaml", local, published);
    wait_until("it is published", || is_ready(true));
    for (from, url) in &frontends {
        assert!(
            by_pod(&requests(lab, from, url, 3)).keys().eq([agent]),
            "{from} {url}"
        );
    }

    // A client that reads slowly, more than buffers hold, keeps the pod from its end.
    let download = format!("{cluster_ip}/bytes/100000000");
    let mut slow = lab.exec("debug", &["curl", "-sSN", "--limit-rate", "1k", &download]);
    let mut slow = slow.stdout(Stdio::piped()).spawn().unwrap();
    slow.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    succeed(lab.sluice(&["lab", "delete", "pod", agent]));
    let terminates = || {
        let status = lab.status();
        let mut pods = status["pods"].as_array().unwrap().iter();
        pods.any(|pod| pod["name"] == agent.as_str() && pod["status"] == "Terminating")
    };
    wait_until("it terminates", || terminates().then_some(()));
    for (from, url) in &frontends {
        wait_until("it answers while it terminates", || {
            by_pod(&requests(lab, from, url, 5))
                .contains_key(agent)
                .then_some(())
        });
    }
    assert!(terminates(), "it ended under an open connection");
    slow.kill().unwrap();
    slow.wait().unwrap();
    wait_until("it is gone, and another is there", || {
        let endpoints = endpoints(lab, "agent");
        (endpoints.len() == 1 && endpoints[0].0 != *agent).then_some(())
    });
    for (from, url) in &frontends {
        assert!(
            !by_pod(&requests(lab, from, url, 5)).contains_key(agent),
            "{from} {url}"
        );
    }
    lab.edit("db.yaml", published, local);
}

/// Where a pod's own files are.
fn scratch(lab: &Lab, pod: &str) -> std::path::PathBuf {
    lab.directory().join("tmp").join(format!("default.{pod}"))
}

in_every_lab! {
    fn pods_of_stateful_sets_come_and_go_in_order_under_names_that_stay(lab: &Lab, "sets") {
        let names = |lab: &Lab| lab.pods("db-").into_iter().map(|pod| pod.0).collect::<Vec<_>>();
        wait_until("all are ready", || (names(lab) == ["db-0", "db-1", "db-2"]).then_some(()));
        let pods: Value = serde_json::from_str(&lab.get(&["pods", "-l", "app=db", "-o", "json"]).out).unwrap();
        let started: Vec<_> = pods["items"].as_array().unwrap().iter().map(|pod| text(&pod["status"]["startTime"])).collect();
        assert!(started.is_sorted(), "{started:?}");
        let first = &pods["items"][0];
        assert_eq!((&first["spec"]["hostname"], &first["spec"]["subdomain"]), (&"db-0".into(), &"db".into()));
        assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "StatefulSet");
        let slices = lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=db", "-o", "jsonpath={.items[*].endpoints[*].hostname}"]).out;
        assert_eq!(slices, "db-0 db-1 db-2");
        let before = lab.pod_address("db-1");
        succeed(lab.sluice(&["lab", "scale", "sts/db", "1"]));
        wait_until("only the first is left", || (names(lab) == ["db-0"]).then_some(()));
        succeed(lab.sluice(&["lab", "scale", "sts/db", "2"]));
        wait_until("the second is back", || (names(lab) == ["db-0", "db-1"]).then_some(()));
        assert_ne!(lab.pod_address("db-1"), before, "the same name at another address");
        // A changed template: each pod is made anew, under its name.
        let first = lab.pod_address("db-0");
        lab.edit("db.yaml", "failureThreshold: 2", "failureThreshold: 4");
        wait_until("the first is the last to be replaced", || {
            let pods = lab.pods("db-");
            let replaced = pods.iter().any(|pod| pod.0 == "db-0" && pod.1 != first);
            (replaced && pods.len() == 2).then_some(())
        });
    }

    fn a_pod_is_served_while_its_probe_says_that_it_is_ready(lab: &Lab, "sets") {
        let agent = || lab.status()["pods"].as_array().unwrap().iter().map(|pod| text(&pod["name"])).find(|name| name.starts_with("agent-"));
        let agent = wait_until("the daemon's pod is there", agent);
        let url = format!("http://{}/", lab.cluster_ip("agent"));
        let is_ready = |ready: bool| (endpoints(lab, "agent") == [(agent.clone(), ready)]).then_some(());
        wait_until("it is an endpoint", || is_ready(true));
        assert!(by_pod(&requests(lab, "debug", url.trim_end_matches('/'), 3)).keys().eq([&agent]));
        let file = scratch(lab, &agent).join("busy");
        fs::write(&file, "").unwrap();
        wait_until("the probe finds the file", || is_ready(false));
        assert!(!curl(lab, "debug", &url).status.success(), "nobody is ready");
        fs::remove_file(&file).unwrap();
        wait_until("the probe misses it", || is_ready(true));
        requests(lab, "debug", url.trim_end_matches('/'), 1);
        published_although_unready_or_terminating(lab, &agent);
        let one = run(lab.sluice(&["lab", "scale", "sts/agent", "2"]));
        assert!(one.errors.contains("one pod on each node"), "{one:?}");
    }
}
