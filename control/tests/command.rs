//! The program itself, as a person runs it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use sluice_control::daemon::config::Config;

fn sluice(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(args)
        .output()
        .unwrap()
}

fn out(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_names_file_line_column_field_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.yaml");
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: NodePort\n  ports:\n  - port: 80\n    nodePort: 80\n";
    fs::write(&path, text).unwrap();
    let (code, stdout, _) = out(&sluice(&["check", path.to_str().unwrap()]));
    assert_eq!(code, Some(1));
    let said = [
        "web.yaml:8:15",
        "spec.ports[0].nodePort",
        "Invalid value: 80: must be from 30000 to 32767",
    ];
    said.iter()
        .for_each(|said| assert!(stdout.contains(said), "{said} in {stdout}"));

    let (code, stdout, _) = out(&sluice(&["check", "-o", "json", path.to_str().unwrap()]));
    let problems: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, problems[0]["line"].as_u64(), problems[0]["column"].as_u64()),
        (Some(1), Some(8), Some(15))
    );

    fs::write(&path, text.replace("nodePort: 80", "nodePort: 30080")).unwrap();
    assert_eq!(out(&sluice(&["check", dir.path().to_str().unwrap()])).0, Some(0));
}

#[test]
fn check_prints_one_line_a_mistake_and_a_summary_and_warnings_alone_are_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.yaml");
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: wbe}, ports: [{port: 80}]}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}}\n";
    fs::write(&path, text).unwrap();
    let (code, stdout, _) = out(&sluice(&["check", path.to_str().unwrap()]));
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((code, lines.len()), (Some(0), 2), "{stdout}");
    assert!(
        lines[0].contains("web.yaml:4:8: warning: Service default/web: spec.selector: no pod"),
        "{stdout}"
    );
    assert_eq!(lines[1], "1 valid Service in 1 file: 0 errors, 1 warning");

    fs::write(&path, text.replace("port: 80", "port: 0")).unwrap();
    assert_eq!(out(&sluice(&["check", path.to_str().unwrap()])).0, Some(1));
    let (code, _, stderr) = out(&sluice(&["check", "/nonexistent/folder"]));
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
}

#[test]
fn check_takes_the_ranges_of_a_gateways_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let (path, config) = (dir.path().join("web.yaml"), dir.path().join("control.yaml"));
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                spec: {type: NodePort, clusterIP: 10.7.0.9, ports: [{port: 80, nodePort: 20080}]}\n";
    fs::write(&path, text).unwrap();
    let ranges = "manifests: [m]\nserviceRanges: [10.7.0.0/24]\nnodePortRange: 20000-20999\n";
    fs::write(&config, ranges).unwrap();
    let path = path.to_str().unwrap();
    let (code, stdout, _) = out(&sluice(&["check", path]));
    assert_eq!((code, stdout.lines().count()), (Some(1), 3), "{stdout}");
    let (code, stdout, _) = out(&sluice(&["check", "--config", config.to_str().unwrap(), path]));
    assert_eq!(code, Some(0), "{stdout}");
}

#[test]
fn check_takes_services_of_every_family_unless_a_configuration_has_one_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (lab, config) = (
        root.join("configs/lab/dual-stack"),
        root.join("configs/gateway/control.yaml"),
    );
    let (lab, config) = (lab.to_str().unwrap(), config.to_str().unwrap());
    let (code, stdout, _) = out(&sluice(&["check", lab]));
    assert_eq!(
        (code, stdout.as_str()),
        (Some(0), "3 valid Services in 2 files: 0 errors, 0 warnings\n")
    );
    let (code, stdout, _) = out(&sluice(&["check", "--config", config, lab]));
    assert_eq!(
        (code, stdout.matches("this cluster has IPv4 only").count()),
        (Some(1), 2),
        "{stdout}"
    );
}

#[test]
fn get_of_an_unknown_kind_exits_with_1_and_names_the_kinds() {
    let (code, _, stderr) = out(&sluice(&["get", "secrets"]));
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("endpointslices"), "{stderr}");
}

#[test]
fn a_bad_configuration_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.yaml");
    fs::write(&path, "manifests: [m]\nserviceRanges: [10.96.0.1/16]\n").unwrap();
    let (code, stdout, stderr) = out(&sluice(&["control", "--config", path.to_str().unwrap()]));
    assert_eq!(
        (code, stdout.as_str(), stderr.lines().count()),
        (Some(1), "", 1),
        "{stderr}"
    );
    assert!(
        stderr.contains("control.yaml:2:17: serviceRanges[0]: must be a network"),
        "{stderr}"
    );
}

#[test]
fn get_without_a_control_process_says_what_to_do_next() {
    let (code, _, stderr) = out(&sluice(&["get", "svc", "--api", "/nonexistent/control.sock"]));
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("sluice lab up") && stderr.contains("--api PATH"),
        "{stderr}"
    );
}

#[test]
fn the_example_configuration_is_one_that_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let config = Config::load(&root.join("configs/gateway/control.yaml")).unwrap();
    assert_eq!(config.service_ranges, ["10.96.0.0/16".parse().unwrap()]);
}

#[test]
fn the_example_sockets_are_those_that_the_example_configuration_listens_at() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let config = Config::load(&root.join("configs/gateway/control.yaml")).unwrap();
    let unit = fs::read_to_string(root.join("configs/systemd/sluice-control.socket")).unwrap();
    for key in ["ListenDatagram=", "ListenStream="] {
        let listed = unit.lines().filter_map(|line| line.strip_prefix(key));
        let listed: Vec<SocketAddr> = listed.map(|address| address.parse().unwrap()).collect();
        assert_eq!(listed, config.dns.as_ref().unwrap().listen, "{key}");
    }
}
