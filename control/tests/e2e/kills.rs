//! What is lost when a process of the lab is killed: nothing of control, flows of the dataplane, all of the keeper.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::lab::{Lab, Setup, kill_9, now, run, wait_until};
use crate::requests::{Load, all_good, by_pod, curl, requests};

/// Requests that must be answered while control is away and comes back.
const OUTAGE: usize = 300;
/// What is promised for an edit: from the file's change to the first answer that shows it.
const EDIT: Duration = Duration::from_secs(1);

in_every_lab! {
    fn without_control_no_request_fails_and_its_successor_takes_edits_within_a_second(lab: &Lab, "quickstart") {
        let url = format!("http://{}/", lab.cluster_ip("echo"));
        let services = lab.status()["services"].clone();
        let first = lab.process("control").unwrap();
        let mut load = Load::start(lab, "debug", &url);
        load.take(20);
        let before = load.taken();
        let mut killed = 0;
        // Its successors die as well, so that the outage is as long as the requests take.
        while load.taken() < before + OUTAGE {
            if let Some(pid) = lab.process("control").filter(|&pid| pid != killed) {
                kill_9(pid);
                killed = pid;
            }
            load.next();
        }
        let successor = lab.new_process("control", killed);
        assert_ne!(successor, first);
        wait_until("control knows its Services again", || {
            lab.get(&["endpoints", "echo"]).out.contains(":8080").then_some(())
        });
        // What was allocated stays: cluster IPs and node ports, whoever chose them.
        assert_eq!(lab.status()["services"], services);

        lab.edit("services.yaml", "release: summer", "release: spring");
        let edited = now();
        while !load.next().pod.starts_with("echo-spring") {
            assert!(edited.elapsed() < EDIT, "after {:?} summer still answers", edited.elapsed());
        }
        assert!(edited.elapsed() < EDIT, "{:?}", edited.elapsed());
        all_good(&load.stop());
    }

    fn a_killed_dataplane_comes_back_and_services_work_again(lab: &Lab, "quickstart") {
        let inside = format!("http://{}", lab.cluster_ip("echo"));
        let outside = format!("http://{}:30026", lab.node());
        let before = lab.process("dataplane").unwrap();
        kill_9(before);
        lab.new_process("dataplane", before);
        wait_until("a Service answers", || curl(lab, "debug", &inside).status.success().then_some(()));
        for (from, url) in [("debug", &inside), ("client", &outside)] {
            assert_eq!(by_pod(&requests(lab, from, url, 50)).len(), 2, "{from}");
        }
    }

    fn a_killed_keeper_leaves_nothing_and_the_lab_comes_up_again(lab: &Lab, "quickstart") {
        let directory = lab.directory();
        let record = fs::read(directory.join("keeper.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let keeper = i32::try_from(record["pid"].as_i64().unwrap()).unwrap();
        let namespaces: BTreeSet<_> = held_namespaces(Path::new(&format!("/proc/{keeper}")))
            .difference(&held_namespaces(Path::new("/proc/self")))
            .cloned()
            .collect();
        // Client, node and four pods have a network each.
        assert!(namespaces.iter().filter(|name| name.starts_with("net:")).count() >= 6, "{namespaces:?}");
        assert!(processes_of(&directory).len() > 3);
        kill_9(keeper);
        wait_until("its death is known", || {
            let status = run(lab.sluice(&["lab", "status"]));
            status.errors.contains("died").then_some(())
        });
        wait_until("its processes are gone", || processes_of(&directory).is_empty().then_some(()));
        wait_until("its namespaces are gone", || {
            let held = fs::read_dir("/proc").unwrap().flatten().any(|process| {
                !held_namespaces(&process.path()).is_disjoint(&namespaces)
            });
            (!held).then_some(())
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&lab.stage().display().to_string()) && !mounts.contains("nsfs"), "{mounts}");

        let up = lab.up("quickstart");
        assert!(up.status.success(), "{}", up.errors);
        assert!(up.out.contains("removing what it left"), "{}", up.out);
        requests(lab, "debug", &format!("http://{}", lab.cluster_ip("echo")), 20);
    }
}

/// Network and mount namespaces that a process is in or has open.
fn held_namespaces(process: &Path) -> BTreeSet<String> {
    let open = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let own = ["net", "mnt"].map(|kind| process.join("ns").join(kind));
    // Processes end while we look.
    let names = open
        .chain(own)
        .filter_map(|path| fs::read_link(path).ok()?.into_os_string().into_string().ok());
    names
        .filter(|name| name.starts_with("net:[") || name.starts_with("mnt:["))
        .collect()
}

/// Living processes that have to do with a lab's directory, by command line or environment.
fn processes_of(directory: &Path) -> Vec<String> {
    let needle = directory.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        ["cmdline", "environ"].iter().any(|name| {
            let text = fs::read(entry.path().join(name)).unwrap_or_default();
            text.windows(needle.len()).any(|part| part == needle)
        })
    });
    let names = processes.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|pid| pid.parse::<u32>().is_ok()).collect()
}
