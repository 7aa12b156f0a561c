//! A place of one's own: network and mount namespaces around this process, in which hosts are named network namespaces.
//! All of it ends with the process, however that ends. Never outside of it: not an interface, not a file but in its own /run.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Set inside, to the process outside.
const INSIDE: &str = "SLUICE_BENCH_SANDBOX";

/// Programs that are needed, and the Debian package of each.
const PROGRAMS: [(&str, &str); 6] = [
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("mount", "mount"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
];

/// Runs this program's command anew inside, unless it is there: then `None`. The exit code of that run otherwise.
/// Errors: not root; a program is missing.
pub fn enter() -> io::Result<Option<i32>> {
    if let Some(outside) = std::env::var_os(INSIDE) {
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if outside.to_str() != Some(&parent.to_string()) {
            return Err(io::Error::other("the process that started this one is gone"));
        }
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        // One that shows this namespace's interfaces.
        run("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
        std::fs::create_dir_all("/run/netns")?;
        for which in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").or_else(missing)?;
        }
        run("ip", &["link", "set", "lo", "up"])?;
        return Ok(None);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(io::Error::other(
            "network namespaces, AF_XDP and packet filters need root: run it as root",
        ));
    }
    for (program, package) in PROGRAMS {
        let there = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if there.is_err() {
            return Err(io::Error::other(format!(
                "{program} is not installed: apt-get install {package}"
            )));
        }
    }
    // A session of its own: what the scheduler sees as one group, with a niceness of its own.
    let status = Command::new("setsid")
        .args(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, std::process::id().to_string())
        .status()?;
    Ok(Some(status.code().unwrap_or(1)))
}

/// A kernel without the setting has nothing to set.
fn missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

/// Runs a program to its end. Errors: it cannot be started, or fails; then with what it said.
pub fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    feed(program, arguments, "")
}

/// The same, of one that reads `input`.
pub fn feed(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{program} {}: {}: {}",
        arguments.join(" "),
        output.status,
        errors.lines().take(5).collect::<Vec<_>>().join("; ")
    )))
}

/// A host: a network namespace by its name, or the one we are in.
#[derive(Clone, Debug)]
pub struct Host(Option<String>);

impl Host {
    /// Makes it, with its loopback up.
    pub fn new(name: &str) -> io::Result<Self> {
        run("ip", &["netns", "add", name])?;
        let host = Self(Some(name.to_owned()));
        host.ip("link set lo up")?;
        for which in ["all", "default"] {
            host.set(&format!("ipv6/conf/{which}/disable_ipv6"), "1")?;
        }
        Ok(host)
    }

    /// The namespace we are in.
    pub const fn here() -> Self {
        Self(None)
    }

    /// Gives it an interface of ours.
    pub fn take(&self, interface: &str) -> io::Result<()> {
        match &self.0 {
            Some(name) => run("ip", &["link", "set", interface, "netns", name]).map(drop),
            None => Ok(()),
        }
    }

    /// A program in it, and its arguments.
    fn words<'a>(&'a self, program: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
        let inside = self.0.iter().flat_map(|name| ["ip", "netns", "exec", name]);
        inside.chain([program]).chain(arguments.iter().copied()).collect()
    }

    /// Commands of ip(8), one a line.
    pub fn ip(&self, commands: &str) -> io::Result<()> {
        let lines: String = commands
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        self.run("ip", &["-batch", "-"], &lines).map(drop)
    }

    /// A program in it.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
        let words = self.words(program, arguments);
        feed(words[0], &words[1..], input)
    }

    /// A program in it that goes on, and ends with us.
    pub fn command(&self, program: &std::path::Path) -> Command {
        // If we end before it is to hear of that, it has another parent by then.
        let unless_late = format!("[ $PPID = {} ] && exec \"$0\" \"$@\"", std::process::id());
        let words = self.words("setpriv", &["--pdeathsig", "KILL", "sh", "-c", &unless_late]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(program);
        command
    }

    /// A setting below /proc/sys/net, where the kernel has it.
    pub fn set(&self, name: &str, value: &str) -> io::Result<()> {
        let line = format!("test ! -e /proc/sys/net/{name} || echo {value} > /proc/sys/net/{name}");
        self.run("sh", &["-c", &line], "").map(drop)
    }
}
