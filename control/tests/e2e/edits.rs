//! What an operator breaks in the folder of manifests, and mends.

use std::fs;

use crate::lab::{Lab, Setup, run, wait_until};
use crate::requests::{by_pod, curl, requests};

/// A Service at a fixed address, so that the test knows it.
const EXTRA: &str = "apiVersion: v1
kind: Service
metadata: {name: extra}
spec:
  clusterIP: 10.96.7.7
  selector: {app: echo, release: summer}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";

#[test]
fn a_broken_file_is_named_by_line_and_column_and_all_that_was_in_force_stays() {
    for setup in [Setup::AfXdp, Setup::Unprivileged] {
        Lab::with(setup, "quickstart", |lab| {
            let file = lab.manifests().join("extra.yaml");
            let shown = file.display().to_string();
            let answers = |url: &str, release: &str| {
                let url = format!("http://{url}");
                wait_until(&format!("{url} is answered by {release} alone"), || {
                    // Until it is published there is nobody to answer.
                    let first = curl(lab, "debug", &url);
                    if !first.out.contains(&format!("pod: echo-{release}")) {
                        return None;
                    }
                    let counts = by_pod(&requests(lab, "debug", &url, 30));
                    counts
                        .keys()
                        .all(|pod| pod.starts_with(&format!("echo-{release}")))
                        .then_some(())
                });
            };
            let echo = lab.cluster_ip("echo");
            fs::write(&file, EXTRA).unwrap();
            answers("10.96.7.7", "summer");

            for (broken, place) in [
                // No YAML at all, and YAML that is no Service.
                (EXTRA.replace("8080}", "8080"), ":8:"),
                (EXTRA.replace("port: 80,", "port: eighty,"), ":8:24"),
                (EXTRA.replace("port: 80,", "port: 80000,"), ":8:24"),
            ] {
                let place = format!("{shown}{place}");
                let times = || {
                    let log = fs::read_to_string(lab.directory().join("control.log")).unwrap();
                    let said = log
                        .lines()
                        .filter(|line| line.contains(&place) && !line.contains("no longer"));
                    said.count()
                };
                let before = times();
                fs::write(&file, &broken).unwrap();
                wait_until(&format!("control's log names {place}"), || {
                    (times() > before).then_some(())
                });
                let check = run(lab.sluice(&["check", &shown]));
                assert_eq!(check.status.code(), Some(1));
                assert!(
                    check.out.contains(&place) || check.errors.contains(&place),
                    "{}{}",
                    check.out,
                    check.errors
                );
                // What the file said before is in force, and so is all else.
                answers("10.96.7.7", "summer");
                answers(&echo, "summer");
            }
            // Another file's edit is taken while this one is broken.
            lab.edit("services.yaml", "release: summer", "release: spring");
            answers(&echo, "spring");
            answers("10.96.7.7", "summer");

            fs::write(&file, EXTRA.replace("summer", "spring")).unwrap();
            answers("10.96.7.7", "spring");
            fs::remove_file(&file).unwrap();
            wait_until("the Service is gone with its file", || {
                (!lab.get(&["services"]).out.contains("10.96.7.7")).then_some(())
            });
            answers(&echo, "spring");
        });
    }
}
