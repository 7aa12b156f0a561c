//! A test in namespaces of its own: network, mounts, processes. It runs in a child process that is the first of its
//! PID namespace, so that whatever it started or made ends with it; the child ends with the test's thread.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const IN_CHILD: &str = "SLUICE_LIVE_TEST_CHILD";
/// What the tests need, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 4] = [
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
];

/// Runs `body` alone, for at most `limit`. `name` is the test's own name, by which the child finds it again. As another
/// user than root, the child is root of a user namespace.
pub(crate) fn sandboxed(name: &str, limit: Duration, body: impl FnOnce()) {
    if std::env::var(IN_CHILD).is_ok_and(|child| child == name) {
        watch(limit);
        // Named network namespaces (ip-netns(8)), sockets and files live in /run: an own one, which nobody has to clean.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        return body();
    }
    for (program, package) in PROGRAMS {
        let there = Command::new(program)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            there.is_ok(),
            "{program} is not installed: apt-get install {package}"
        );
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, name)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    // What the test says about what happened; not through `eprintln`, which the harness hides for a test that passes.
    let _ = std::io::stderr().write_all(errors.as_bytes());
    assert!(
        output.status.success() && out.contains("1 passed"),
        "in the sandbox, see above:\n{out}"
    );
}

/// A first process is not ended by an alarm (pid_namespaces(7)), but may end itself.
fn watch(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("not done within {limit:?}");
        std::process::exit(3);
    });
}

/// Runs a program that must succeed, and gives what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    finished(Command::new(program).args(arguments), "")
}

/// The same, of a command that reads `input`.
pub(crate) fn finished(command: &mut Command, input: &str) -> String {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{errors}{input}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition that nothing reports, and gives what it found.
pub(crate) fn wait_until<T>(what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> T {
    within(limit, look).unwrap_or_else(|| panic!("not within {limit:?}: {what}"))
}

/// The same, or nothing when the time is over, of a test that can say more than what it waited for.
pub(crate) fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = now();
    loop {
        match look() {
            None if start.elapsed() < limit => thread::sleep(Duration::from_millis(5)),
            found => return found,
        }
    }
}

/// The tests' clock.
#[allow(clippy::disallowed_methods, reason = "tests measure real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
