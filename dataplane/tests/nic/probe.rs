//! `--probe` on interfaces that are known here: what it finds, that it changes nothing, and that what it suggests opens.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::namespace::{User, address, in_namespace, veth};
use crate::{merge, merges};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluice-dataplane");

#[test]
fn the_machine_is_found_as_it_is_and_what_is_suggested_opens() {
    let name = "probe::the_machine_is_found_as_it_is_and_what_is_suggested_opens";
    in_namespace(name, User::Same, || {
        probed(|drivers| {
            // Who may load programs here is who runs the tests; the kernel tells of veth what it can do.
            let af_xdp = &drivers["af_xdp"];
            assert!(af_xdp.1.contains("native") || !af_xdp.0, "{af_xdp:?}");
        });
    });
}

#[test]
fn within_a_user_namespace_packet_sockets_are_suggested_and_open() {
    let name = "probe::within_a_user_namespace_packet_sockets_are_suggested_and_open";
    in_namespace(name, User::Namespaced, || {
        probed(|drivers| {
            let af_xdp = &drivers["af_xdp"];
            assert!(!af_xdp.0 && af_xdp.1.contains("user namespace"), "{af_xdp:?}");
            assert!(drivers["af_packet"].0);
        });
    });
}

/// Of each driver: whether it could have the interface, and how or why not.
type Drivers = std::collections::BTreeMap<String, (bool, String)>;

fn probed(judge: impl FnOnce(&Drivers)) {
    veth("va", "vb");
    address("va", [10, 9, 0, 1]);
    merge(true);
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let report: Value = serde_json::from_str(&run(&["--probe", "--json"])).unwrap();
    assert!(merges(), "a probe changes nothing");
    let interfaces = report["machine"]["interfaces"].as_array().unwrap();
    let va = interfaces
        .iter()
        .find(|interface| interface["name"] == "va")
        .unwrap();
    assert_eq!(
        (
            va["driver"].as_str(),
            va["mtu"].as_u64(),
            va["queues"].as_u64(),
            va["isUp"].as_bool()
        ),
        (Some("veth"), Some(1_500), Some(1), Some(true))
    );
    assert_eq!(va["addresses"], serde_json::json!(["10.9.0.1/24"]));
    assert!(
        va["offloads"].as_array().unwrap().contains(&"rx-gro".into()),
        "{va}"
    );
    let drivers = va["drivers"].as_array().unwrap().iter();
    let driver = |verdict: &Value| {
        let text = |field: &str| verdict[field].as_str().unwrap().to_owned();
        (
            text("driver"),
            (verdict["possible"].as_bool().unwrap(), text("how")),
        )
    };
    judge(&drivers.map(driver).collect());

    let suggestion = report["suggestion"].as_str().unwrap();
    let text = run(&["--probe"]);
    assert!(
        text.contains("\nva: veth, up, ") && text.ends_with(suggestion),
        "{text}"
    );
    opens(suggestion);
}

/// The dataplane starts with this config, and says that it is ready.
fn opens(config: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (file, socket) = (at("dataplane.yaml"), at("dataplane.sock"));
    std::fs::write(&file, config.replace("/run/sluice/dataplane.sock", &socket)).unwrap();
    let mut process = Command::new(PROGRAM)
        .args(["--config", &file])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    // Ends with the process, if that ends first.
    for line in BufReader::new(process.stderr.take().unwrap()).lines() {
        said.push(line.unwrap());
        if said.last().is_some_and(|line| line.ends_with(" ready")) {
            break;
        }
    }
    process.kill().unwrap();
    process.wait().unwrap();
    let last = said.last().unwrap();
    assert!(last.ends_with(" ready"), "{config}\n{}", said.join("\n"));
    for interface in ["va", "vb"] {
        let line = format!("NIC port {interface}: ");
        assert!(
            said.iter().any(|said| said.contains(&line)),
            "{}",
            said.join("\n")
        );
    }
}
