//! The lab without dataplane and control, the kernel forwarding in their place: namespaces, pods, their server, commands,
//! and that nothing is left. Runs as root or not; always in a user namespace, so that both are the same.

// The helpers here are tests too, which clippy's own exception does not see.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use notify::Watcher;
use serde_json::Value;

/// Longer than anything here takes on a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/lab/quickstart");

struct Lab {
    name: String,
}

/// A lab of the quickstart's pods, or nothing where the kernel allows no user namespaces.
fn lab(name: &str) -> Option<Lab> {
    let lab = Lab {
        name: format!("test-{name}-{}", std::process::id()),
    };
    lab.up().then_some(lab)
}

impl Lab {
    fn sluice(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["lab", "--name", &self.name]).args(arguments);
        command
    }

    /// Whether it came up; if not for want of user namespaces, says so loudly.
    fn up(&self) -> bool {
        let output = self.run(&["up", QUICKSTART, "--no-services", "--user-namespace"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains("forbids user namespaces") {
            // Not through `eprintln`, which the harness hides for a test that passes.
            let said = writeln!(io::stderr(), "\n*** SKIPPED, nothing was tested: {errors}");
            said.unwrap();
            return false;
        }
        assert!(output.status.success(), "{errors}");
        true
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.sluice(arguments).output().unwrap()
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.stdout(&["status", "-o", "json"])).unwrap()
    }

    fn directory(&self) -> PathBuf {
        let manifests = self.status()["manifests"].as_str().unwrap().to_owned();
        PathBuf::from(manifests).parent().unwrap().to_owned()
    }

    fn keeper(&self) -> i32 {
        let record = fs::read(self.directory().join("keeper.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["pid"].as_i64().unwrap().try_into().unwrap()
    }

    /// Names and addresses of the ready pods whose name begins so.
    fn ready_pods(&self, prefix: &str) -> Vec<(String, String)> {
        let status = self.status();
        let pods = status["pods"].as_array().unwrap().iter();
        let ready =
            pods.filter(|pod| pod["ready"] == true && pod["name"].as_str().unwrap().starts_with(prefix));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        ready.map(|pod| (text(&pod["name"]), text(&pod["ip"]))).collect()
    }

    /// Waits until the pods are as described, looking again whenever one is reported.
    fn wait_for_pods(
        &self,
        prefix: &str,
        fit: impl Fn(&[(String, String)]) -> bool,
    ) -> Vec<(String, String)> {
        let (changed, changes) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |_| changed.send(()).unwrap_or_default()).unwrap();
        watcher
            .watch(
                &self.directory().join("pods"),
                notify::RecursiveMode::NonRecursive,
            )
            .unwrap();
        loop {
            let pods = self.ready_pods(prefix);
            if fit(&pods) {
                return pods;
            }
            changes
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("the pods stay {pods:?}"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

#[test]
fn a_client_outside_reaches_a_pod_and_down_leaves_nothing() {
    let Some(lab) = lab("reach") else { return };
    let directory = lab.directory();
    assert_ne!(processes_of(&directory), Vec::<String>::new());
    let (name, address) = lab.ready_pods("echo-summer").remove(0);
    // Bash speaks TCP by itself, so the test needs no client installed.
    let script =
        format!("exec 3<>/dev/tcp/{address}/8080; printf 'GET /x HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    let answer = lab.stdout(&["exec", "client", "--", "bash", "-c", &script]);
    assert!(answer.contains(&format!("X-Pod: {name}\r\n")), "{answer}");
    assert!(answer.contains("client: 172.18.0.10:"), "{answer}");
    assert!(answer.contains("path: /x\n"), "{answer}");
    let log = lab.stdout(&["logs", &name]);
    let line = log.lines().last().unwrap().split(' ').collect::<Vec<_>>();
    assert!(
        line[0].ends_with('Z') && line[1].starts_with("172.18.0.10:"),
        "{log}"
    );
    assert_eq!(line[2..], ["GET", "/x", "200"]);
    assert_eq!(lab.stdout(&["down"]), format!("lab {} is down\n", lab.name));
    assert!(!directory.exists());
    assert_eq!(processes_of(&directory), Vec::<String>::new());
}

#[test]
fn exec_passes_input_output_and_exit_code_untouched() {
    let Some(lab) = lab("exec") else { return };
    let mut child = lab
        .sluice(&["exec", "debug", "--", "sh", "-c", "cat; echo problem >&2; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\x00bytes\xff").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"\x00bytes\xff");
    assert_eq!(output.stderr, b"problem\n");
    assert_eq!(
        lab.run(&["exec", "debug", "--", "no-such-program"]).status.code(),
        Some(127)
    );
    assert_eq!(
        lab.run(&["exec", "debug", "--", "/etc/passwd"]).status.code(),
        Some(126)
    );
    let killed = lab.run(&["exec", "debug", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(
        killed.status.signal(),
        Some(nix::sys::signal::Signal::SIGTERM as i32)
    );
}

#[test]
fn what_is_not_there_is_named_in_one_line_with_what_is() {
    let Some(lab) = lab("unknown") else { return };
    let line = |arguments: &[&str]| {
        let output = lab.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(errors.lines().count(), 1, "{errors}");
        errors
    };
    assert!(
        line(&["exec", "nobody", "--", "true"])
            .contains("no pod nobody in namespace default; there are: client")
    );
    assert!(line(&["logs", "nobody"]).contains("no pod nobody in namespace default"));
    assert!(line(&["delete", "pod", "nobody"]).contains("no pod default/nobody; there are: default/debug"));
    assert!(line(&["scale", "rs/nothing", "1"]).contains("there are: rs/echo-spring, rs/echo-summer"));
    assert!(line(&["scale", "nothing", "1"]).contains("say rs/NAME, sts/NAME or deployment/NAME"));
    assert!(line(&["up", QUICKSTART]).contains("is up already"));
}

#[test]
fn up_makes_nothing_of_a_folder_that_is_missing_or_empty_or_a_file() {
    let lab = Lab {
        name: format!("test-nothing-{}", std::process::id()),
    };
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    let file = format!("{QUICKSTART}/echo.yaml");
    let missing = format!("{empty}/missing");
    for (folder, reason) in [
        (missing.as_str(), "there is no folder"),
        (empty, "no manifests"),
        (file.as_str(), "is no folder"),
    ] {
        let output = lab.run(&["up", folder]);
        assert_eq!(output.status.code(), Some(1));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(reason) && errors.lines().count() == 1, "{errors}");
    }
    assert_eq!(lab.stdout(&["down"]), format!("there is no lab {}\n", lab.name));
}

#[test]
fn a_reader_that_leaves_early_does_not_disturb_a_command() {
    let Some(lab) = lab("reader") else { return };
    let mut child = lab.sluice(&["status"]);
    let mut child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_killed_keeper_takes_every_process_along_and_the_next_up_cleans() {
    let Some(lab) = lab("killed") else { return };
    let before = lab.directory();
    // A command of `exec` is outside the lab's PID namespace: `up` ends it.
    let mut inside = lab.sluice(&["exec", "debug", "--", "sh", "-c", "echo in; exec sleep 1000"]);
    let mut inside = inside.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(inside.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "in\n");
    let keeper = rustix::process::Pid::from_raw(lab.keeper()).unwrap();
    let handle = rustix::process::pidfd_open(keeper, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    let mut handles = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(&handle),
        nix::poll::PollFlags::POLLIN,
    )];
    assert_eq!(
        nix::poll::poll(&mut handles, 20_000_u16).unwrap(),
        1,
        "the keeper does not end"
    );
    assert_eq!(processes_of(&before), [inside.id().to_string()]);
    assert!(String::from_utf8_lossy(&lab.run(&["status"]).stderr).contains("died"));
    assert!(lab.up());
    assert!(!inside.wait().unwrap().success());
    assert_eq!(lab.ready_pods("echo-summer").len(), 2);
}

/// Living processes that have to do with a lab's directory, by command line or environment.
fn processes_of(directory: &Path) -> Vec<String> {
    let needle = directory.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let file = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let texts = [file("cmdline"), file("environ")];
        texts
            .iter()
            .any(|text| text.windows(needle.len()).any(|part| part == needle))
    });
    let names = processes.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|pid| pid.parse::<u32>().is_ok()).collect()
}

#[test]
fn a_deleted_pod_is_replaced_under_another_name_and_address() {
    let Some(lab) = lab("delete") else { return };
    let (name, address) = lab.ready_pods("echo-spring").remove(0);
    lab.stdout(&["delete", "pod", &name]);
    let after = lab.wait_for_pods("echo-spring", |pods| pods.len() == 1 && pods[0].0 != name);
    assert_ne!(after[0].1, address);
    assert!(
        lab.run(&["logs", &name]).status.success(),
        "its log is gone with it"
    );
}

#[test]
fn scaling_by_command_holds_until_the_file_says_otherwise() {
    let Some(lab) = lab("scale") else { return };
    let first = lab.ready_pods("echo-spring");
    lab.stdout(&["scale", "rs/echo-spring", "3"]);
    let three = lab.wait_for_pods("echo-spring", |pods| pods.len() == 3);
    assert!(
        first.iter().all(|pod| three.contains(pod)),
        "a pod that served was replaced"
    );
    let file = lab.directory().join("manifests/echo.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("replicas: 1", "replicas: 2", 1)).unwrap();
    lab.wait_for_pods("echo-spring", |pods| pods.len() == 2);
}

/// The built-in server by itself, on loopback.
struct Server {
    child: Child,
    tcp: u16,
    udp: u16,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        // Ports that were free a moment ago.
        let tcp = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let udp = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args([
            "lab",
            "server",
            "--tcp",
            &tcp.to_string(),
            "--udp",
            &udp.to_string(),
        ]);
        command
            .env("NOTIFY_SOCKET", &path)
            .env("POD_NAME", "alone")
            .stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let mut word = [0; 64];
        let length = notify.recv(&mut word).unwrap();
        assert!(word[..length].starts_with(b"READY=1"));
        Self { child, tcp, udp }
    }

    /// Sends bytes, then reads until the server closes.
    fn talk(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.tcp)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been told to end already.
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

#[test]
fn the_server_answers_several_requests_of_one_connection_in_order() {
    let server = Server::start();
    let answer = server.talk(
        b"HEAD /one HTTP/1.1\r\nHost: x\r\n\r\nPOST /two HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\
          GET /three HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answer}");
    assert_eq!(answer.matches("X-Pod: alone\r\n").count(), 3, "{answer}");
    // No body answers HEAD, and the body of POST is no request.
    let paths: Vec<_> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("path: "))
        .collect();
    assert_eq!(paths, ["/two", "/three"]);
}

#[test]
fn the_server_streams_as_many_bytes_as_asked_the_same_each_time() {
    let server = Server::start();
    let body = |request: &[u8]| {
        let answer = server.talk(request);
        let head = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
        answer[head..].to_vec()
    };
    let large = body(b"GET /bytes/1000000 HTTP/1.0\r\n\r\n");
    assert_eq!(large.len(), 1_000_000);
    assert_eq!(body(b"GET /bytes/100000 HTTP/1.0\r\n\r\n"), large[..100_000]);
    assert!(
        server
            .talk(b"GET /bytes/many HTTP/1.0\r\n\r\n")
            .starts_with(b"HTTP/1.1 400 ")
    );
}

#[test]
fn a_stopping_server_closes_idle_connections_and_finishes_what_it_has_begun() {
    let server = Server::start();
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", server.tcp)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    // More than both sides' buffers hold, so that the answer is under way for as long as it is not read.
    const LONG: usize = 64 << 20;
    let mut busy = connect();
    busy.write_all(format!("GET /bytes/{LONG} HTTP/1.0\r\n\r\n").as_bytes())
        .unwrap();
    let mut byte = [0];
    busy.read_exact(&mut byte).unwrap();
    let mut idle = connect();
    idle.write_all(b"HEAD / HTTP/1.1\r\n\r\n").unwrap();
    let mut head = [0; 1024];
    assert!(idle.read(&mut head).unwrap() > 0);
    let process = nix::unistd::Pid::from_raw(server.child.id().try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(idle.read(&mut head).unwrap(), 0, "kept open");
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > LONG, "cut off after {} bytes", rest.len());
}

#[test]
fn the_server_refuses_what_is_not_http_and_lives_on() {
    let server = Server::start();
    assert!(
        server
            .talk(b"\x16\x03\x01\x02\x00\x01")
            .starts_with(b"HTTP/1.1 400 ")
    );
    assert!(
        server
            .talk(b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n")
            .starts_with(b"HTTP/1.1 400 ")
    );
    assert!(
        server
            .talk(b"GET / HTTP/1.0\r\n\r\n")
            .starts_with(b"HTTP/1.1 200 ")
    );
}

#[test]
fn the_server_answers_a_datagram_with_its_name_the_client_and_the_payload() {
    let server = Server::start();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"payload", ("127.0.0.1", server.udp)).unwrap();
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer).unwrap();
    let expected = format!("POD alone {}\npayload", socket.local_addr().unwrap());
    assert_eq!(String::from_utf8_lossy(&answer[..length]), expected);
}
