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

/// The program in a shell that lets it have 128 MiB of its own, which a longest file and what it means fit into.
fn sluice_in_little_memory(script: &str, words: &[&str]) -> Output {
    let script = format!("ulimit -d 131072; {script}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_sluice")]);
    command.args(words).output().unwrap()
}

#[test]
fn a_gib_of_yaml_is_refused_in_one_line_and_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.yaml");
    fs::write(&path, "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n").unwrap();
    // A hole: nothing is written.
    fs::File::options()
        .append(true)
        .open(&path)
        .and_then(|file| file.set_len(1 << 30))
        .unwrap();
    let path = path.to_str().unwrap();
    let (code, stdout, stderr) = out(&sluice_in_little_memory("exec \"$0\" check \"$@\"", &[path]));
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((code, lines.len(), stderr.as_str()), (Some(1), 2, ""), "{stdout}");
    assert_eq!(
        lines[0],
        format!("{path}: is longer than 16 MiB: split it into several files")
    );

    let endless = "yes 'kind: Service' | \"$0\" apply -f -";
    let (code, stdout, stderr) = out(&sluice_in_little_memory(endless, &[]));
    assert_eq!(
        (code, stdout.as_str(), stderr.lines().count()),
        (Some(1), "", 1),
        "{stderr}"
    );
    assert!(stderr.contains("<stdin>: is longer than 16 MiB"), "{stderr}");
}

#[test]
fn deep_and_wide_aliases_are_refused_in_one_line_and_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aliases.yaml");
    // Each stands for the one before, on one level more, or ten times.
    let deep = |n| format!("  a{n}: &a{n} [*a{}]\n", n - 1);
    let wide = |n| {
        format!(
            "  a{n}: &a{n} [{}]\n",
            vec![format!("*a{}", n - 1); 10].join(", ")
        )
    };
    let bomb = |links: usize, link: &dyn Fn(usize) -> String| {
        let head = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  a0: &a0 [x]\n";
        head.to_owned() + &(1..links).map(link).collect::<String>()
    };
    for (text, said) in [
        (bomb(100_000, &deep), "more than 64 levels of nesting"),
        (bomb(100_000, &wide), "aliases expand to more than 20000 values"),
    ] {
        fs::write(&path, text).unwrap();
        let words = [path.to_str().unwrap()];
        let (code, stdout, stderr) = out(&sluice_in_little_memory("exec \"$0\" check \"$@\"", &words));
        assert_eq!(
            (code, stdout.lines().count(), stderr.as_str()),
            (Some(1), 2, ""),
            "{stdout}"
        );
        assert!(
            stdout.contains("aliases.yaml:") && stdout.contains(said),
            "{stdout}"
        );
    }
}

#[test]
fn a_verb_of_kubectls_that_there_is_not_is_answered_with_what_to_do_instead() {
    for (verb, hint) in [
        ("logs", "sluice lab logs"),
        ("create", "sluice apply -f FILE"),
        ("edit", "edit the manifest"),
    ] {
        let (code, stdout, stderr) = out(&sluice(&[verb, "x"]));
        assert_eq!((code, stdout.as_str()), (Some(2), ""));
        assert!(
            stderr.contains(&format!("unrecognized subcommand '{verb}'")) && stderr.contains(hint),
            "{stderr}"
        );
    }
    let (code, _, stderr) = out(&sluice(&["descirbe"]));
    assert!(code == Some(2) && stderr.contains("'describe'"), "{stderr}");
    assert_eq!(out(&sluice(&["--help"])).0, Some(0));
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
