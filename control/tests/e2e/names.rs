//! Cluster DNS through the dataplane, as programs that nobody here wrote ask for it: the C library's resolver under curl, and dig.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::thread;

use crate::lab::{Lab, PATIENCE, Setup, kill_9, run, succeed, text, wait_for, wait_until};

/// Questions that are asked one after the other while control is killed or stopped again and again.
const QUESTIONS: usize = 5000;
/// How often.
const RESTARTS: usize = 3;

/// What dig finds, in the lab's debug pod.
pub(crate) fn dig(lab: &Lab, words: &[&str]) -> BTreeSet<String> {
    let mut all = vec!["dig", "+search", "+short", "+time=5", "+tries=1"];
    all.extend(words);
    succeed(lab.exec("debug", &all))
        .lines()
        .map(str::to_owned)
        .collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// K7: a Service whose name begins with a digit, of a pod on the node's network that asks cluster DNS.
const ON_HOST: &str = "apiVersion: v1
kind: Pod
metadata: {name: on-host, namespace: market, labels: {app: on-host}}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers: [{name: web, image: web, ports: [{containerPort: 8088}]}]
---
apiVersion: v1
kind: Service
metadata: {name: 1-on-host, namespace: market}
spec: {selector: {app: on-host}, ports: [{port: 80, targetPort: 8088}]}
";

fn a_pod_on_the_nodes_network_has_names_and_is_an_endpoint(lab: &Lab) {
    fs::write(lab.manifests().join("on-host.yaml"), ON_HOST).unwrap();
    let get = |url: &str| ["curl", "-sS", "--fail", "--max-time", "5", url].map(str::to_owned);
    let there = get("http://1-on-host.market/");
    wait_until("it answers", || {
        let done = run(lab.exec("debug", &there.each_ref().map(String::as_str)));
        done.out.contains("pod: on-host").then_some(())
    });
    assert_eq!(lab.pod_address("on-host"), lab.node());
    let inside = |words: &[String]| {
        let exec = ["lab", "exec", "-n", "market", "on-host", "--"];
        let words = words.iter().map(String::as_str);
        succeed(lab.sluice(&exec.into_iter().chain(words).collect::<Vec<_>>()))
    };
    let conf = inside(&["cat", "/etc/resolv.conf"].map(str::to_owned));
    // Not the cluster IP: the server is on the same node.
    for line in [
        &*format!("nameserver {}", lab.node()),
        "search market.svc.cluster.local svc.cluster.local cluster.local",
    ] {
        assert!(conf.contains(line), "{conf}");
    }
    assert!(inside(&get("http://shop/")).contains("pod: shop"));
    fs::remove_file(lab.manifests().join("on-host.yaml")).unwrap();
    wait_until("it is gone, and the node goes on", || {
        let pods = lab.status()["pods"].to_string();
        (!pods.contains("on-host") && lab.process("dataplane").is_some()).then_some(())
    });
    succeed(lab.exec(
        "debug",
        &get("http://shop.market/").each_ref().map(String::as_str),
    ));
}

in_every_lab! {
    fn curl_finds_services_by_every_form_of_their_names(lab: &Lab, "names") {
        let pods: BTreeSet<String> = lab.pods("shop").into_iter().map(|pod| pod.0).collect();
        for name in ["shop.market", "shop.market.svc", "shop.market.svc.cluster.local", "near"] {
            let url = format!("http://{name}/");
            let out = succeed(lab.exec("debug", &["curl", "-sS", "--fail", "--max-time", "5", &url]));
            let pod = out.lines().find_map(|line| line.strip_prefix("pod: ")).unwrap();
            assert!(pods.contains(pod), "{name}: {out}");
        }
        // In its own namespace the bare name is enough, and in another it is not this Service's.
        let script = ["lab", "exec", "-n", "market", "db-0", "--", "curl", "-sS", "--fail", "--max-time", "5", "http://shop/"];
        assert!(succeed(lab.sluice(&script)).contains("namespace: market"));
        let done = run(lab.exec("debug", &["curl", "-sS", "--max-time", "5", "http://shop/"]));
        assert!(done.errors.contains("Could not resolve host: shop"), "{}", done.errors);
        a_pod_on_the_nodes_network_has_names_and_is_an_endpoint(lab);
    }

    fn dig_finds_addresses_ports_endpoints_and_aliases(lab: &Lab, "names") {
        let shop = lab.cluster_ip("shop");
        for transport in ["+notcp", "+tcp"] {
            assert_eq!(dig(lab, &[transport, "shop.market"]), set(&[&shop]));
        }
        assert_eq!(dig(lab, &["kube-dns.kube-system"]), set(&["10.96.0.10"]));
        assert_eq!(
            dig(lab, &["_metrics._tcp.shop.market", "SRV"]),
            set(&["0 100 9090 shop.market.svc.cluster.local."])
        );
        assert_eq!(
            dig(lab, &["shop.market", "SRV"]),
            set(&["0 50 80 shop.market.svc.cluster.local.", "0 50 9090 shop.market.svc.cluster.local."])
        );
        assert_eq!(dig(lab, &["-x", &shop]), set(&["shop.market.svc.cluster.local."]));
        let pods: BTreeSet<String> = lab.pods("db-").into_iter().map(|pod| pod.1).collect();
        assert_eq!(pods.len(), 2);
        assert_eq!(dig(lab, &["db.market"]), pods);
        assert_eq!(dig(lab, &["db-0.db.market"]), set(&[&lab.pod_address("db-0")]));
        assert_eq!(
            dig(lab, &["_sql._tcp.db.market", "SRV"]),
            set(&["0 50 8080 db-0.db.market.svc.cluster.local.", "0 50 8080 db-1.db.market.svc.cluster.local."])
        );
        assert_eq!(dig(lab, &["near"]), set(&["shop.market.svc.cluster.local.", &shop]));
        assert_eq!(dig(lab, &["far", "CNAME"]), set(&["www.example.com."]));
        assert_eq!(dig(lab, &["nowhere.market"]), set(&[]));
        // An edit is seen by the next question; a saved file takes a moment to be read.
        lab.edit("names.yaml", "www.example.com", "www.example.org");
        wait_until("the alias is another", || {
            (dig(lab, &["far", "CNAME"]) == set(&["www.example.org."])).then_some(())
        });
        lab.edit("names.yaml", "type: ExternalName\n  externalName: www.example.org", "ports: [{port: 80}]");
        let far = wait_until("the alias is a Service", || {
            let found = dig(lab, &["far"]);
            found.first().filter(|address| address.starts_with("10.96.")).cloned()
        });
        assert_eq!(far, lab.cluster_ip("far"));
    }

    fn containers_are_told_of_the_services_there_are_as_they_start(lab: &Lab, "names") {
        let logs = ["lab", "logs", "-n", "market", "environment"];
        let told = wait_until("the pod has printed its environment", || {
            let log = lab.stdout(&logs);
            log.contains("SHOP_URL=").then_some(log)
        });
        let told: BTreeSet<&str> = told.lines().collect();
        let api = lab.directory().join("control.sock");
        let shown = lab.stdout(&["env", "environment", "-n", "market", "--api", api.to_str().unwrap()]);
        assert!(shown.starts_with("SHOP_SERVICE_HOST="), "{shown}");
        assert_eq!(shown.lines().count(), 2 + 2 + 1 + 8, "{shown}");
        for line in shown.lines() {
            assert!(told.contains(line), "{line} is not in {told:?}");
        }
        let url = format!("SHOP_URL=http://{}:80/", lab.cluster_ip("shop"));
        assert!(told.contains(&*url), "{told:?}");
        assert!(!told.iter().any(|line| line.starts_with("DB_")), "headless: {told:?}");
    }

    fn no_question_is_lost_while_control_is_stopped_and_started_again(lab: &Lab, "quickstart") {
        let died = ask_through_restarts(lab, "+tries=1", terminate);
        assert_eq!(died, 0, "questions that were not answered at once");
    }

    fn a_question_that_dies_with_control_is_answered_when_it_is_asked_again(lab: &Lab, "quickstart") {
        // One is asked at a time: a kill takes the one that control had read at most.
        let died = ask_through_restarts(lab, "+tries=3", kill_9);
        assert!(died <= RESTARTS, "{died} questions died in {RESTARTS} kills");
    }
}

fn terminate(pid: i32) {
    use rustix::process::{Pid, Signal, kill_process};
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
}

/// All answers are right, whatever becomes of control while they are asked for; how many questions had to be asked again,
/// of each of which dig says so.
fn ask_through_restarts(lab: &Lab, tries: &str, end: fn(i32)) -> usize {
    let echo = lab.cluster_ip("echo");
    let questions = lab.stage().join("questions");
    fs::write(&questions, "echo.default.svc.cluster.local\n".repeat(QUESTIONS)).unwrap();
    let words = [
        "dig",
        "+short",
        "+time=5",
        tries,
        "-f",
        questions.to_str().unwrap(),
    ];
    let mut asking = lab.exec("debug", &words);
    let mut asking = asking.stdout(Stdio::piped()).spawn().unwrap();
    let out = asking.stdout.take().unwrap();
    let reading = thread::spawn(move || std::io::read_to_string(out).unwrap());
    let mut ended = 0;
    for _ in 0..RESTARTS {
        let pid = lab.new_process("control", ended);
        end(pid);
        ended = pid;
    }
    assert!(
        asking.try_wait().unwrap().is_none(),
        "all was asked before the last restart"
    );
    let status = wait_for(&mut asking, PATIENCE).expect("dig takes too long");
    let answers = reading.join().unwrap();
    let (again, answers): (Vec<&str>, Vec<&str>) = answers
        .lines()
        .partition(|line| line.starts_with(";; communications error"));
    let wrong: Vec<&str> = answers.iter().copied().filter(|line| *line != echo).collect();
    assert_eq!(
        (answers.len(), wrong.len()),
        (QUESTIONS, 0),
        "{status}: {wrong:?}, asked again: {again:?}"
    );
    again.len()
}

#[test]
fn a_lab_of_both_families_answers_for_both() {
    Lab::with(Setup::AfPacket, "dual-stack", |lab| {
        let status = lab.status();
        let services = status["services"].as_array().unwrap();
        let both = services.iter().find(|service| {
            let ips = service["clusterIPs"].as_array().unwrap();
            ips.len() == 2 && service["namespace"] == "default"
        });
        let both = both.unwrap_or_else(|| panic!("no Service of both families: {status}"));
        let (name, ips) = (text(&both["name"]), &both["clusterIPs"]);
        let of = |kind: &str, server: &str| dig(lab, &[server, &name, kind]);
        for server in ["@10.96.0.10", "@fd00:10:96::a"] {
            let found: BTreeSet<String> = [of("A", server), of("AAAA", server)]
                .into_iter()
                .flatten()
                .collect();
            assert_eq!(found, set(&[&text(&ips[0]), &text(&ips[1])]), "{server}");
        }
    });
}
