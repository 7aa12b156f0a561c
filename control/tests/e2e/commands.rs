//! What is asked wrongly is refused in one clear line, and what works goes on.

use std::fs;

use crate::lab::{Done, Lab, Setup, run};
use crate::requests::requests;

/// The command failed, with one line that says so.
fn refused(done: &Done, line: &str) {
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.errors.contains(line), "{done:?}");
    assert_eq!(done.errors.lines().count(), 1, "{done:?}");
}

#[test]
fn a_second_dataplane_is_refused_and_the_first_works_on() {
    for setup in [Setup::AfXdp, Setup::Unprivileged] {
        Lab::with(setup, "quickstart", |lab| {
            let own = fs::read_to_string(lab.directory().join("dataplane.yaml")).unwrap();
            let socket = lab.directory().join("dataplane.sock").display().to_string();
            let start = |config: &str| {
                let file = lab.stage().join("dataplane.yaml");
                fs::write(&file, config).unwrap();
                let dataplane = lab.program("sluice-dataplane");
                run(lab.exec("node", &[&dataplane, "--config", file.to_str().unwrap()]))
            };
            refused(&start(&own), &format!("{socket} is in use"));
            // The same interfaces under another socket, and one that is not there.
            let elsewhere = own.replace(&socket, &lab.stage().join("other.sock").display().to_string());
            if setup == Setup::AfXdp {
                refused(&start(&elsewhere), "client0");
            }
            refused(
                &start(&elsewhere.replace("interface: client0", "interface: nope0")),
                "nope0: no such interface",
            );
            refused(
                &start(&elsewhere.replace("driver: af_", "driver: of_")),
                "unknown variant `of_",
            );
            assert!(!lab.stage().join("other.sock").exists());
            requests(lab, "debug", &format!("http://{}", lab.cluster_ip("echo")), 50);
            requests(lab, "client", &format!("http://{}:30026", lab.node()), 50);
        });
    }
}

#[test]
fn a_lab_that_is_up_is_not_made_again_and_without_manifests_there_is_none() {
    Lab::with(Setup::AfXdp, "quickstart", |lab| {
        let pods = lab.pods("");
        refused(&lab.up("quickstart"), "is up already");
        assert_eq!(lab.pods(""), pods);
    });
    let lab = Lab::new(Setup::Unprivileged);
    let missing = lab.stage().join("nothing-here").display().to_string();
    refused(
        &run(lab.sluice(&["lab", "up", &missing])),
        &format!("there is no folder {missing}"),
    );
    refused(&run(lab.sluice(&["lab", "status"])), "there is no lab");
}

#[test]
fn lists_are_printed_as_kubectl_does() {
    Lab::with(Setup::AfXdp, "quickstart", |lab| {
        let (echo, outside) = (lab.cluster_ip("echo"), lab.cluster_ip("echo-outside"));
        let fields = |text: &str| -> Vec<Vec<String>> {
            let line = |line: &str| line.split_whitespace().map(str::to_owned).collect();
            text.lines().map(line).collect()
        };
        let table = lab.get(&["services"]).out;
        let head = table.lines().next().unwrap();
        // Columns are as wide as their widest cell and three spaces apart.
        assert!(
            head.starts_with("NAME           TYPE        CLUSTER-IP "),
            "{head}"
        );
        let rows = fields(&table);
        assert_eq!(
            rows[0],
            ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
        );
        assert_eq!(rows[1][..5], ["echo", "ClusterIP", &echo, "<none>", "80/TCP"]);
        assert_eq!(
            rows[2][..5],
            ["echo-outside", "NodePort", &outside, "<none>", "80:30026/TCP"]
        );
        let wide = fields(&lab.get(&["services", "-o", "wide"]).out);
        assert_eq!(
            wide[0],
            [
                "NAME",
                "TYPE",
                "CLUSTER-IP",
                "EXTERNAL-IP",
                "PORT(S)",
                "AGE",
                "SELECTOR"
            ]
        );
        assert_eq!(wide[1][6], "app=echo,release=summer");
        let json: serde_json::Value =
            serde_json::from_str(&lab.get(&["services", "-o", "json"]).out).unwrap();
        assert_eq!(json["items"][0]["spec"]["clusterIP"], *echo);
        assert_eq!(json["items"][1]["spec"]["ports"][0]["nodePort"], 30026);
        let yaml = lab.get(&["services", "-o", "yaml"]).out;
        let yaml: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(yaml, json);
        let pods = fields(&lab.get(&["pods", "-l", "release=summer"]).out);
        assert_eq!(pods[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        assert_eq!(pods.len(), 3);
        let nobody = lab.get(&["services", "nobody"]);
        assert_eq!(nobody.status.code(), Some(1));
        assert_eq!(
            nobody.errors,
            "Error from server (NotFound): services \"nobody\" not found\n"
        );
    });
}
