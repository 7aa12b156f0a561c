//! A lab of a test's own: made by `sluice lab up`, looked into by `status`, gone when dropped.

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes on a busy machine; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a condition that nothing reports.
const PAUSE: Duration = Duration::from_millis(20);
/// What runs in the labs, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 7] = [
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("nginx", "nginx-light"),
    ("iperf3", "iperf3"),
    ("socat", "socat"),
    ("sha256sum", "coreutils"),
    ("setpriv", "util-linux"),
];
/// Debian's user `nobody`: it has no rights, and no files.
const NOBODY: u32 = 65_534;

static LABS: AtomicU32 = AtomicU32::new(0);
static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// How a lab runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Setup {
    /// As root, with AF_XDP sockets.
    AfXdp,
    /// As root, with packet sockets.
    AfPacket,
    /// As a user without any right, which means packet sockets.
    Unprivileged,
}

pub(crate) struct Lab {
    name: String,
    setup: Setup,
    /// A directory that the lab's user may enter: manifests, files of servers, the programs for another user.
    stage: tempfile::TempDir,
    sluice: PathBuf,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) errors: String,
}

impl Lab {
    /// Makes a lab from a folder below `configs/lab` or `tests/e2e/manifests`, and runs the test in it. Where the setup
    /// needs root and there is none, says so and counts.
    pub(crate) fn with(setup: Setup, folder: &str, test: impl FnOnce(&Self)) {
        if setup != Setup::Unprivileged && !root() {
            let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
            println!("skipped: {count} (so far; {setup:?} needs root)");
            return;
        }
        let lab = Self::new(setup);
        let up = lab.up(folder);
        assert!(up.status.success(), "{}{}", up.out, up.errors);
        test(&lab);
    }

    /// A lab that is not up yet.
    pub(crate) fn new(setup: Setup) -> Self {
        let own = Path::new(env!("CARGO_BIN_EXE_sluice"));
        let dataplane = own.with_file_name("sluice-dataplane");
        assert!(
            dataplane.exists(),
            "{} is not there: build the whole workspace first (cargo build --workspace, with --release if this is)",
            dataplane.display()
        );
        for (program, package) in PROGRAMS {
            assert!(
                installed(program),
                "{program} is not installed: apt-get install {package}"
            );
        }
        let stage = tempfile::Builder::new()
            .prefix("sluice-e2e-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let mut sluice = own.to_owned();
        if setup == Setup::Unprivileged && root() {
            chown(stage.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            // The build may lie where only root can go.
            sluice = stage.path().join("sluice");
            fs::copy(own, &sluice).unwrap();
            fs::copy(&dataplane, stage.path().join("sluice-dataplane")).unwrap();
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("e2e-{}-{number}", std::process::id()),
            setup,
            stage,
            sluice,
        }
    }

    /// `sluice lab up`.
    pub(crate) fn up(&self, folder: &str) -> Done {
        let stage = self.stage.path();
        let manifests = stage.join("manifests");
        fs::create_dir_all(&manifests).unwrap();
        for file in fs::read_dir(source_folder(folder)).unwrap().flatten() {
            // Commands of pods name files of the stage: those beside what the lab itself reads go there.
            let text = fs::read_to_string(file.path()).unwrap();
            let text = text.replace("@STAGE@", stage.to_str().unwrap());
            let manifest = file
                .path()
                .extension()
                .is_some_and(|extension| extension == "yaml");
            let target = if manifest || file.file_name() == "ports.conf" {
                manifests.as_path()
            } else {
                stage
            };
            fs::write(target.join(file.file_name()), text).unwrap();
        }
        let mut arguments = vec!["lab", "up", manifests.to_str().unwrap()];
        if self.setup == Setup::AfPacket {
            arguments.extend(["--driver", "af_packet"]);
        }
        run(self.sluice(&arguments))
    }

    /// A command of `sluice` as the lab's user; those of `lab` concern this lab.
    pub(crate) fn sluice(&self, arguments: &[&str]) -> Command {
        let mut command = if self.setup == Setup::Unprivileged && root() {
            let mut command = Command::new("setpriv");
            let nobody = NOBODY.to_string();
            command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
            command.arg(&self.sluice);
            // Root's own directory is not for others.
            command.env_remove("XDG_RUNTIME_DIR");
            command
        } else {
            Command::new(&self.sluice)
        };
        command.args(&arguments[..1]);
        if arguments[0] == "lab" {
            command.args(["--name", &self.name]);
        }
        command.args(&arguments[1..]);
        // nginx is where only root looks.
        command.env("PATH", search_path()).env_remove("SLUICE_API");
        command.current_dir(self.stage.path()).stdin(Stdio::null());
        command
    }

    /// A command inside a host of the lab.
    pub(crate) fn exec(&self, host: &str, words: &[&str]) -> Command {
        let mut arguments = vec!["lab", "exec", host, "--"];
        arguments.extend(words);
        self.sluice(&arguments)
    }

    /// What a command of `sluice` prints; it must succeed.
    pub(crate) fn stdout(&self, arguments: &[&str]) -> String {
        succeed(self.sluice(arguments))
    }

    /// `sluice get`, from this lab's control.
    pub(crate) fn get(&self, arguments: &[&str]) -> Done {
        let api = self.directory().join("control.sock");
        let mut words = vec!["get", "--api", api.to_str().unwrap()];
        words.extend(arguments);
        run(self.sluice(&words))
    }

    /// A program that lies beside the lab's `sluice`.
    pub(crate) fn program(&self, name: &str) -> String {
        self.sluice.with_file_name(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn setup(&self) -> Setup {
        self.setup
    }

    pub(crate) fn stage(&self) -> &Path {
        self.stage.path()
    }

    /// `sluice lab status -o json`, if it answers.
    pub(crate) fn try_status(&self) -> Option<Value> {
        let done = run(self.sluice(&["lab", "status", "-o", "json"]));
        let success = done.status.success();
        success
            .then(|| serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {}", done.out)))
    }

    /// The same, once it answers.
    pub(crate) fn status(&self) -> Value {
        wait_until("the lab tells its status", || self.try_status())
    }

    /// The folder that control watches.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.status()["manifests"].as_str().unwrap().into()
    }

    /// Where the lab keeps its files.
    pub(crate) fn directory(&self) -> PathBuf {
        self.manifests().parent().unwrap().to_owned()
    }

    /// A process of the lab, if it runs.
    pub(crate) fn process(&self, name: &str) -> Option<i32> {
        let pid = self.try_status()?["processes"][name]["pid"].as_i64()?;
        Some(pid.try_into().unwrap())
    }

    /// Waits until a process runs that is not `before`.
    pub(crate) fn new_process(&self, name: &str, before: i32) -> i32 {
        wait_until(&format!("{name} is started again"), || {
            self.process(name).filter(|&pid| pid != before)
        })
    }

    /// Names and addresses of the ready pods whose name begins so.
    pub(crate) fn pods(&self, prefix: &str) -> Vec<(String, String)> {
        let status = self.status();
        let pods = status["pods"].as_array().unwrap().iter();
        let ready = pods.filter(|pod| pod["ready"] == true && text(&pod["name"]).starts_with(prefix));
        ready.map(|pod| (text(&pod["name"]), text(&pod["ip"]))).collect()
    }

    /// The address of one pod.
    pub(crate) fn pod_address(&self, name: &str) -> String {
        let pods = self.pods(name);
        pods.into_iter().find(|pod| pod.0 == name).unwrap().1
    }

    /// A Service's cluster IP.
    pub(crate) fn cluster_ip(&self, service: &str) -> String {
        let status = self.status();
        let mut services = status["services"].as_array().unwrap().iter();
        let found = services.find(|found| found["name"] == service);
        text(&found.unwrap_or_else(|| panic!("no Service {service} in {status}"))["clusterIP"])
    }

    /// The node's address.
    pub(crate) fn node(&self) -> String {
        text(&self.status()["node"]["addresses"][0])
    }

    /// What pods wrote.
    pub(crate) fn log(&self, pod: &str) -> String {
        self.stdout(&["lab", "logs", pod])
    }

    /// Replaces text in a file that control watches; it must be there.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.manifests().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let failed = thread::panicking();
        if let Some(directory) = self.directory_if_any().filter(|_| failed) {
            for name in ["keeper.log", "control.log", "dataplane.log"] {
                let text = fs::read_to_string(directory.join(name)).unwrap_or_default();
                println!("---- {name}\n{text}");
            }
        }
        let down = run(self.sluice(&["lab", "down"]));
        if !down.status.success() && !failed {
            panic!("lab down: {}", down.errors);
        }
    }
}

impl Lab {
    fn directory_if_any(&self) -> Option<PathBuf> {
        let status = self.try_status()?;
        Some(Path::new(status["manifests"].as_str()?).parent()?.to_owned())
    }
}

/// Whether the test runs as root.
pub(crate) fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A string of a JSON document.
pub(crate) fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no string"))
        .to_owned()
}

fn source_folder(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = here.join("tests/e2e/manifests").join(name);
    if own.exists() {
        own
    } else {
        here.join("../configs/lab").join(name)
    }
}

fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap())
}

fn installed(program: &str) -> bool {
    search_path()
        .split(':')
        .any(|folder| Path::new(folder).join(program).exists())
}

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Done {
    run_within(PATIENCE, command)
}

/// Runs a command that must end in time; it is killed if not.
pub(crate) fn run_within(limit: Duration, mut command: Command) -> Done {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, errors) = (
        collect(child.stdout.take().unwrap()),
        collect(child.stderr.take().unwrap()),
    );
    let status =
        wait_for(&mut child, limit).unwrap_or_else(|| panic!("{command:?} takes longer than {limit:?}"));
    let [out, errors] = [out, errors].map(|text| text.recv_timeout(PATIENCE).unwrap_or_default());
    Done { status, out, errors }
}

/// What a command prints; it must succeed.
pub(crate) fn succeed(command: Command) -> String {
    let shown = format!("{command:?}");
    let done = run(command);
    assert!(
        done.status.success(),
        "{shown}: {}\n{}{}",
        done.status,
        done.out,
        done.errors
    );
    done.out
}

fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        // Nobody may want it any more.
        drop(sender.send(String::from_utf8_lossy(&bytes).into_owned()));
    });
    receiver
}

/// Waits for a child; kills it when it takes too long, and then gives nothing.
pub(crate) fn wait_for(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a condition and gives what it found.
pub(crate) fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < deadline, "not in {PATIENCE:?}: {what}");
        thread::sleep(PAUSE);
    }
}

/// The test's clock.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Ends a process as a crash would.
pub(crate) fn kill_9(pid: i32) {
    use rustix::process::{Pid, Signal, kill_process};
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}
