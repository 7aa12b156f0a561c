//! DPDK's testpmd with memif ports (net_memif): a packet generator and a sink that nobody here wrote.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// How long it may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of memory it is given: packets for all rings, with room.
const MEBIBYTES: &str = "256";
/// A huge page of x86-64.
const HUGE_PAGE: usize = 2;

/// Where its memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Ordinary pages.
    Small,
    /// Huge pages, mounted here.
    Huge,
    /// And as a client it shares its packets' own buffers with the server, instead of copying into others (`zero-copy`).
    Lent,
}

const HUGE: &str = "/run/huge";
/// Pages that may be taken on demand, and go back to the system by themselves: for the whole machine.
const ON_DEMAND: &str = "/proc/sys/vm/nr_overcommit_hugepages";

/// What this machine has for it.
pub(crate) struct Memories {
    pub(crate) kinds: Vec<Memory>,
    /// Pages that could be taken on demand before, if we have changed it.
    before: Option<String>,
    /// Locked: these pages are of the whole machine, and enough for one test.
    _mine: Option<File>,
}

impl Memories {
    /// All kinds, if there are huge pages for us; else says why not.
    pub(crate) fn new(test: &str) -> Self {
        let mut new = Self {
            kinds: vec![Memory::Small],
            before: None,
            _mine: None,
        };
        match new.allow() {
            Ok(()) => new.kinds.extend([Memory::Huge, Memory::Lent]),
            Err(why) => eprintln!("SKIPPED {test} with huge pages: {why}"),
        }
        new
    }

    fn allow(&mut self) -> Result<(), String> {
        let told = |what: &str, error: std::io::Error| format!("{what}: {error}");
        // For two of them.
        let wanted = 2 * MEBIBYTES.parse::<usize>().unwrap() / HUGE_PAGE;
        // This program, which all sandboxes see: each has a /proc of its own.
        let mine = File::open("/proc/self/exe").unwrap();
        mine.lock().unwrap();
        self._mine = Some(mine);
        let before = fs::read_to_string(ON_DEMAND).map_err(|error| told(ON_DEMAND, error))?;
        if before.trim().parse::<usize>().unwrap() < wanted {
            fs::write(ON_DEMAND, wanted.to_string()).map_err(|error| told(ON_DEMAND, error))?;
            self.before = Some(before);
        }
        fs::create_dir_all(HUGE).map_err(|error| told(HUGE, error))?;
        let output = Command::new("mount")
            .args(["-t", "hugetlbfs", "-o", "pagesize=2M", "hugetlbfs", HUGE])
            .output()
            .unwrap();
        let failed = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        output.status.success().then_some(()).ok_or_else(failed)
    }
}

impl Drop for Memories {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(ON_DEMAND, before);
        }
    }
}

/// A memif port of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port<'a> {
    /// `client` or `server`.
    pub(crate) role: &'a str,
    pub(crate) socket: &'a str,
    pub(crate) mac: &'a str,
}

/// Packets of a port since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

pub(crate) struct Testpmd {
    process: Child,
    commands: ChildStdin,
    said: Receiver<String>,
    log: Vec<String>,
}

impl Testpmd {
    /// Starts it, forwarding nothing yet. `name` is unlike any other's that runs.
    pub(crate) fn start(name: &str, memory: Memory, ports: &[Port<'_>], options: &[&str]) -> Self {
        Self::start_as(None, name, memory, ports, options)
    }

    /// The same as another user, by number.
    pub(crate) fn start_as(
        user: Option<&str>,
        name: &str,
        memory: Memory,
        ports: &[Port<'_>],
        options: &[&str],
    ) -> Self {
        let cpu = rustix::thread::sched_getaffinity(None).unwrap();
        let cpu = (0..rustix::thread::CpuSet::MAX_CPU)
            .find(|&n| cpu.is_set(n))
            .unwrap();
        // It prints a line when it says it, and is ended with the test.
        let mut command = Command::new("setpriv");
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
            // Another's directory is not for it.
            command.env_remove("XDG_RUNTIME_DIR").env("HOME", "/");
        }
        command.args(["--pdeathsig", "KILL", "stdbuf", "-oL", "dpdk-testpmd"]);
        command.args([
            "--no-pci",
            "--no-telemetry",
            "-m",
            MEBIBYTES,
            "--file-prefix",
            name,
        ]);
        command.args(["--lcores", &format!("0@{cpu},1@{cpu}")]);
        match memory {
            Memory::Small => command.arg("--no-huge"),
            Memory::Huge => command.args(["--huge-dir", HUGE]),
            // Else a file for every page, of which the server would have to map each.
            Memory::Lent => command.args(["--huge-dir", HUGE, "--single-file-segments"]),
        };
        for port in ports.iter().filter(|port| port.role == "server") {
            // One that was killed left it behind, and then no other can listen there.
            let _ = fs::remove_file(port.socket);
        }
        for (nth, Port { role, socket, mac }) in ports.iter().enumerate() {
            let lent = memory == Memory::Lent && *role == "client";
            let lent = if lent { ",zero-copy=yes" } else { "" };
            command.arg(format!(
                "--vdev=net_memif{nth},role={role},id=0,socket={socket},socket-abstract=no,mac={mac}{lent}"
            ));
        }
        command
            .args(["--", "-i", "--total-num-mbufs=16384"])
            .args(options);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (tell, said) = channel();
        let complain = tell.clone();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| complain.send(line))
        });
        let mut new = Self {
            commands: process.stdin.take().unwrap(),
            process,
            said,
            log: Vec::new(),
        };
        new.until("Done");
        new
    }

    /// Lines up to one with these words.
    fn until(&mut self, words: &str) {
        loop {
            let Ok(line) = self.said.recv_timeout(PATIENCE) else {
                panic!("testpmd does not say \"{words}\" but:\n{}", self.log.join("\n"));
            };
            let found = line.contains(words);
            self.log.push(line);
            if found {
                return;
            }
        }
    }

    fn command(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    /// Begins to forward: whatever comes after this is not thrown away, as it is before.
    pub(crate) fn forward(&mut self) {
        self.command("start");
        self.until("TX offloads=");
    }

    /// Sends some bursts as the options say, and forwards then.
    pub(crate) fn send_bursts(&mut self, count: u32) {
        self.command(&format!("start tx_first {count}"));
        self.until("TX offloads=");
    }

    /// Stops forwarding: nothing is sent after it.
    pub(crate) fn stop(&mut self) {
        self.command("stop");
        self.until("Done.");
    }

    /// Whether a port has a peer.
    pub(crate) fn is_linked(&mut self, port: usize) -> bool {
        self.command(&format!("show port info {port}"));
        self.until("Link status:");
        self.log.last().is_some_and(|line| line.ends_with("up"))
    }

    /// What a port has counted.
    pub(crate) fn counts(&mut self, port: usize) -> Counts {
        let from = self.log.len();
        self.command(&format!("show port stats {port}"));
        self.until("TX-packets:");
        let number = |name: &str| {
            let lines = self.log[from..].iter().rev();
            let line = lines.filter_map(|line| line.split_once(name)).next();
            let (_, rest) = line.unwrap_or_else(|| panic!("no {name} in {:?}", &self.log[from..]));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        Counts {
            received: number("RX-packets:"),
            sent: number("TX-packets:"),
        }
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // Asked to quit it sometimes ends with a segmentation fault: what it counted has been read before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether it is here; the tests need it.
pub(crate) fn present() {
    let packages = "apt-get install dpdk-dev (it brings librte-net-memif)";
    let there = Command::new("dpdk-testpmd").arg("--version").output();
    assert!(there.is_ok(), "dpdk-testpmd is not installed: {packages}");
    let there = Command::new("stdbuf").arg("--version").output();
    assert!(
        there.is_ok(),
        "stdbuf is not installed: apt-get install coreutils"
    );
}
