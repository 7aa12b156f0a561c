//! Pods are mortal, and may be clients too.

use std::collections::BTreeSet;

use crate::lab::{Lab, Setup, run, text, wait_until};
use crate::requests::{Load, all_good, by_pod, requests};

in_every_lab! {
    fn a_deleted_pod_is_replaced_under_another_address_and_no_request_fails(lab: &Lab, "quickstart") {
        let mut load = Load::start(lab, "debug", &format!("http://{}/", lab.cluster_ip("echo")));
        load.take(20);
        let before = lab.pods("echo-summer");
        lab.stdout(&["lab", "delete", "pod", &before[0].0]);
        let fresh = wait_until("there is another pod", || {
            lab.pods("echo-summer").into_iter().find(|pod| !before.contains(pod))
        });
        assert!(before.iter().all(|pod| pod.0 != fresh.0 && pod.1 != fresh.1), "{fresh:?} of {before:?}");
        while load.next().pod != fresh.0 {
            // Bounded by the odds of a fair choice, and some time for the news to travel.
            assert!(load.taken() < 2000, "{} never answers", fresh.0);
        }
        // While the old one ends.
        load.take(100);
        // I30: all of its pods at once for those of another release.
        lab.edit("services.yaml", "release: summer", "release: spring");
        while !load.next().pod.starts_with("echo-spring") {
            assert!(load.taken() < 4000, "the other release never answers");
        }
        let change = load.taken();
        load.take(50);
        let answers = load.stop();
        all_good(&answers);
        assert!(answers[change..].iter().all(|answer| answer.pod.starts_with("echo-spring")), "{answers:?}");
    }

    fn scaling_is_seen_by_clients(lab: &Lab, "quickstart") {
        let url = format!("http://{}", lab.cluster_ip("echo"));
        lab.stdout(&["lab", "scale", "rs/echo-summer", "5"]);
        wait_until("five pods answer", || {
            let names: BTreeSet<_> = lab.pods("echo-summer").into_iter().map(|pod| pod.0).collect();
            (names.len() == 5 && by_pod(&requests(lab, "debug", &url, 100)).into_keys().eq(names)).then_some(())
        });

        lab.stdout(&["lab", "scale", "rs/echo-summer", "0"]);
        wait_until("control has no endpoint left", || {
            lab.get(&["endpoints", "echo"]).out.contains("<none>").then_some(())
        });
        wait_until("the last pod has ended", || {
            let status = lab.status();
            let mut pods = status["pods"].as_array().unwrap().iter();
            (!pods.any(|pod| text(&pod["name"]).starts_with("echo-summer"))).then_some(())
        });
        for (from, url) in [("debug", url.clone()), ("client", format!("http://{}:30026", lab.node()))] {
            // An ICMP error ends the connection at once; silence would take the two seconds (curl's exit code 28).
            let refused = wait_until("the last connections have ended", || {
                let words = ["curl", "-sS", "--max-time", "2", "-o", "/dev/null", "-w", "%{time_total}", &url];
                let done = run(lab.exec(from, &words));
                (!done.status.success()).then_some(done)
            });
            assert_eq!(refused.status.code(), Some(7), "{from}: {}", refused.errors);
            assert!(refused.out.parse::<f64>().unwrap() < 1.0, "{from}: {}", refused.out);
        }

        lab.stdout(&["lab", "scale", "rs/echo-summer", "2"]);
        wait_until("two pods answer again", || {
            let names: BTreeSet<_> = lab.pods("echo-summer").into_iter().map(|pod| pod.0).collect();
            let known = lab.get(&["endpoints", "echo"]).out.matches(":8080").count();
            (names.len() == 2 && known == 2).then_some(names)
        });
        wait_until("the first request succeeds", || {
            run(lab.exec("debug", &["curl", "-s", "--max-time", "2", &url])).status.success().then_some(())
        });
        assert_eq!(by_pod(&requests(lab, "debug", &url, 100)).len(), 2);
    }

    fn the_node_and_a_services_own_pods_are_clients_like_others(lab: &Lab, "quickstart") {
        let cluster_ip = format!("http://{}", lab.cluster_ip("echo"));
        let node_port = format!("http://{}:30026", lab.node());
        let summer = lab.pods("echo-summer").remove(0).0;
        // From a pod to itself through its own Service, half the time: a hairpin.
        for (from, url) in [("node", &cluster_ip), (&summer, &cluster_ip), (&summer, &node_port), ("debug", &node_port)] {
            assert_eq!(by_pod(&requests(lab, from, url, 200)).len(), 2, "{from} {url}");
        }
    }
}
