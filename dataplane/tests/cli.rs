//! The process as its operator meets it: what it says when it cannot start. One line, exit code 1, no panic, nothing
//! left behind.

// A test may panic; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const CONFIG: &str = "
node: {addresses: [172.18.0.2]}
ports:
- {name: client0, driver: af_packet, interface: nowhere0, addresses: [172.18.0.2/24]}
channel: {socket: SOCKET}
";

fn start(folder: &Path, config: &str) -> Output {
    let file = folder.join("dataplane.yaml");
    let socket = folder.join("dataplane.sock");
    std::fs::write(&file, config.replace("SOCKET", &socket.to_string_lossy())).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sluice-dataplane"))
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    assert!(!socket.exists(), "a socket was left behind");
    output
}

/// The error, checked for what every error must be.
fn refused(folder: &Path, config: &str) -> String {
    let output = start(folder, config);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let errors: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("sluice-dataplane: "))
        .collect();
    assert_eq!(errors.len(), 1, "one line: {text}");
    assert_eq!(
        text.lines().last(),
        Some(errors[0]),
        "the error is the last word: {text}"
    );
    errors[0].to_owned()
}

#[test]
fn a_missing_config_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("none.yaml");
    let output = Command::new(env!("CARGO_BIN_EXE_sluice-dataplane"))
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("none.yaml: cannot read the config file"), "{text}");
}

#[test]
fn a_mistake_in_the_config_has_its_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let error = refused(folder.path(), &CONFIG.replace("af_packet", "af_pocket"));
    assert!(
        error.contains("dataplane.yaml:4:27:") && error.contains("af_pocket"),
        "{error}"
    );
}

#[test]
fn an_interface_that_does_not_exist_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for driver in ["af_packet", "af_xdp"] {
        let error = refused(folder.path(), &CONFIG.replace("af_packet", driver));
        assert!(error.contains("NIC port client0: nowhere0: "), "{error}");
        assert!(error.contains("; "), "says what to do next: {error}");
    }
}

#[test]
fn a_socket_in_a_folder_that_does_not_exist_is_refused_before_any_nic_port_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let error = refused(
        folder.path(),
        &CONFIG.replace("SOCKET", "/nonexistent/folder/dataplane.sock"),
    );
    assert!(
        error.contains("/nonexistent/folder") && !error.contains("nowhere0"),
        "{error}"
    );
}

#[test]
fn check_reads_the_config_and_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dataplane.yaml");
    std::fs::write(&file, CONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-dataplane"));
    let output = command
        .arg("--check")
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .ends_with("dataplane.yaml: ok\n")
    );
}

#[test]
fn every_example_config_is_sound_and_every_driver_has_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/gateway");
    let mut drivers = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("dataplane"))
        {
            let config = sluice_dataplane::config::Config::load(&path).unwrap();
            drivers.extend(config.ports.iter().map(|port| format!("{:?}", port.driver)));
        }
    }
    assert_eq!(
        drivers.into_iter().collect::<Vec<_>>(),
        ["AfPacket", "AfXdp", "Memif", "Netmap", "Pcap", "Tap"]
    );
}
