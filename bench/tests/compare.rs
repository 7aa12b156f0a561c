//! The comparison as its user starts it, small: every kind of gateway comes up, has its Services, translates rightly and
//! is gone afterwards. Needs root and what `.ci/run e2e` installs; figures are not judged here.
#![allow(clippy::unwrap_used, reason = "all of this file is test code")]

use std::process::Command;

use serde_json::Value;

#[test]
fn every_gateway_translates_rightly_under_both_generators_and_leaves_nothing_behind() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: 1 (compare: needs root)");
        return;
    }
    let hosts = || std::fs::read_dir("/run/netns").map_or(0, Iterator::count);
    let before = hosts();
    for generator in ["af-xdp", "af-packet"] {
        let output = Command::new(env!("CARGO_BIN_EXE_sluice-bench"))
            .args([
                "compare",
                "--driver",
                "af-xdp,af-packet,nftables,forward,ceiling",
                "--json",
            ])
            .args([
                "--services",
                "3",
                "--flows",
                "10",
                "--repeats",
                "1",
                "--seconds",
                "0.3",
            ])
            .args(["--rate", "1000", "--changes", "2", "--generator", generator])
            .output()
            .unwrap();
        let (out, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{generator}: {errors}");
        let rows: Vec<Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |kind: &str| rows.iter().filter(|row| row["kind"] == kind).collect::<Vec<_>>();
        assert_eq!((of("compare-update").len(), of("compare").len()), (3, 5), "{out}");
        for row in of("compare") {
            let row = &row["row"];
            for direction in ["forward", "back"] {
                let flow = &row["paced"][direction];
                assert!(flow["received"].as_u64().unwrap() > 0, "{generator}: {row}");
                // The kernel may give two endpoints to a flow whose first packets race (README, limits).
                let ours = row["gateway"] != "nftables";
                assert!(
                    !ours || flow["wrong"] == serde_json::json!({}),
                    "{generator}: {row}"
                );
            }
            assert!(row["gateway_ns_per_packet"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
    assert_eq!(hosts(), before);
}

#[test]
fn another_user_than_root_is_told_so() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([env!("CARGO_BIN_EXE_sluice-bench"), "compare"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    // Where the binary itself is out of that user's reach, setpriv says so.
    let told = errors.contains("run it as root") || errors.contains("failed to execute");
    assert!(!output.status.success() && told, "{errors}");
}
