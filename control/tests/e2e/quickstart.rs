//! The README's first lab: who answers, and what the pods see of their clients.

use std::collections::BTreeSet;

use crate::lab::{Lab, Setup};
use crate::requests::{by_pod, requests};

in_every_lab! {
    fn a_thousand_connections_through_each_frontend_are_shared_by_the_summer_pods(lab: &Lab, "quickstart") {
        let inside = format!("http://{}/cluster-ip", lab.cluster_ip("echo"));
        let outside = format!("http://{}:30026/node-port", lab.node());
        let summer: Vec<_> = lab.pods("echo-summer").into_iter().map(|pod| pod.0).collect();
        for answers in [requests(lab, "debug", &inside, 1000), requests(lab, "client", &outside, 1000)] {
            let counts = by_pod(&answers);
            assert!(counts.keys().eq(&summer), "{counts:?}");
            // Random and fair: five standard deviations are sqrt(1000) / 2 * 5.
            assert!(counts.values().all(|count| count.abs_diff(500) <= 79), "{counts:?}");
        }
        let spring = lab.pods("echo-spring").remove(0).0;
        assert_eq!(lab.log(&spring), "");

        let logs: String = summer.iter().map(|pod| lab.log(pod)).collect();
        let debug = lab.pod_address("debug");
        // A pod's address is kept; what comes from outside has an address of the gateway's.
        let mut seen = BTreeSet::new();
        for line in logs.lines() {
            let (client, path) = well_formed(line).unwrap_or_else(|| panic!("{line:?}"));
            if path.starts_with("/cluster-ip/") {
                assert_eq!(client, debug, "{line}");
            } else if path.starts_with("/node-port/") {
                assert!(["10.244.0.1", "172.18.0.2"].contains(&client), "{line}");
            } else {
                continue; // of the lab's own proof
            }
            assert!(seen.insert(path), "twice: {line}");
        }
        assert_eq!(seen.len(), 2000);
    }
}

/// Client address and path of `2026-11-20T10:00:00Z 10.244.0.7:51234 GET /path 200`, if the line has that form.
fn well_formed(line: &str) -> Option<(&str, &str)> {
    let fields: Vec<_> = line.split(' ').collect();
    let &[time, client, "GET", path, "200"] = fields.as_slice() else {
        return None;
    };
    let fits = |(byte, form): (u8, u8)| {
        if form == b'0' {
            byte.is_ascii_digit()
        } else {
            byte == form
        }
    };
    let form = b"0000-00-00T00:00:00Z";
    let whole = time.len() == form.len() && time.bytes().zip(*form).all(fits);
    let (address, port) = client.split_once(':')?;
    let known = address.parse::<std::net::Ipv4Addr>().is_ok() && port.parse::<u16>().is_ok();
    (whole && known && path.starts_with('/')).then_some((address, path))
}

#[test]
fn the_form_of_a_log_line_is_told_from_others() {
    assert_eq!(
        well_formed("2026-11-20T10:00:00Z 10.244.0.7:51234 GET /p 200"),
        Some(("10.244.0.7", "/p"))
    );
    for other in [
        "2026-11-20T10:00:00.5Z 10.244.0.7:51234 GET /p 200",
        "2026-11-20T10:00:00Z 10.244.0.7 GET /p 200",
        "2026-11-20T10:00:00Z 10.244.0.7:51234 GET /p 200 ",
        "10.244.0.7:51234 GET /p 200",
    ] {
        assert_eq!(well_formed(other), None, "{other}");
    }
}
