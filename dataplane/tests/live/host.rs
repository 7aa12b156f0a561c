//! A host: a network namespace with a name, whose kernel is a station of the test's network.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sandbox::{finished, run};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Host(pub(crate) &'static str);

/// The namespace that the test itself is in: its ends of links are the wires between hosts.
pub(crate) struct Wires;

impl Wires {
    /// The test's own namespace, where the kernel says nothing by itself.
    pub(crate) fn new() -> Self {
        silence();
        Self
    }

    /// A cable: an interface of one host to an interface of another.
    pub(crate) fn cable(&self, (a, a_name): (Host, &str), (b, b_name): (Host, &str)) {
        let (a, b) = (a.0, b.0);
        run(
            "ip",
            &[
                "link", "add", a_name, "netns", a, "type", "veth", "peer", "name", b_name, "netns", b,
            ],
        );
        for (host, name) in [(a, a_name), (b, b_name)] {
            ready(&["-n", host], name);
        }
    }

    /// Half a cable: `wire` is the end of it that is here.
    pub(crate) fn plug(&self, wire: &str, (host, name): (Host, &str)) {
        run(
            "ip",
            &[
                "link", "add", wire, "type", "veth", "peer", "name", name, "netns", host.0,
            ],
        );
        ready(&["-n", host.0], name);
        ready(&[], wire);
    }
}

/// An interface that hands over single segments, as a wire has them, and is up.
fn ready(place: &[&str], name: &str) {
    let words = ["link", "set", name, "gso_max_segs", "1", "up"];
    run("ip", &[place, &words].concat());
}

/// No IPv6 of the kernel's own in the calling thread's namespace, now or on interfaces that come.
fn silence() {
    for which in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
    }
}

impl Host {
    /// A host with a network stack.
    pub(crate) fn new(name: &'static str) -> Self {
        let host = Self(name);
        run("ip", &["netns", "add", name]);
        host.ip("link set lo up");
        // Addresses are usable at once, and nobody asks for routers.
        for (setting, value) in [
            ("accept_dad", "0"),
            ("router_solicitations", "0"),
            ("accept_ra", "0"),
        ] {
            host.set(&format!("ipv6/conf/default/{setting}"), value);
        }
        host
    }

    /// A host for a dataplane: its kernel leaves the links alone, as the README says.
    pub(crate) fn silent(name: &'static str) -> Self {
        let host = Self::new(name);
        host.enter(silence);
        host.set("ipv4/conf/default/rp_filter", "1");
        host.set("ipv4/conf/default/arp_ignore", "8");
        host
    }

    /// Commands of ip(8), one a line.
    pub(crate) fn ip(self, commands: &str) {
        let lines: String = commands
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        finished(Command::new("ip").args(["-n", self.0, "-batch", "-"]), &lines);
    }

    /// A kernel setting of this namespace, below /proc/sys/net.
    pub(crate) fn set(self, name: &str, value: &str) {
        assert!(self.may_set(name, value), "this kernel has no setting {name}");
    }

    /// The same, of a kernel that may not have it. Whether it has.
    pub(crate) fn may_set(self, name: &str, value: &str) -> bool {
        let path = format!("/proc/sys/net/{name}");
        let value = value.to_owned();
        self.enter(move || match fs::write(&path, value) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            written => {
                written.unwrap_or_else(|error| panic!("{path}: {error}"));
                true
            }
        })
    }

    /// A command that runs here.
    pub(crate) fn command(self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.0, program]).args(arguments);
        command
    }

    /// A program that runs here to its end and must succeed.
    pub(crate) fn run(self, program: &str, arguments: &[&str]) -> String {
        finished(&mut self.command(program, arguments), "")
    }

    /// What its kernel counts (/proc/net/snmp): a protocol's count by its name.
    pub(crate) fn counted(self, protocol: &str, name: &str) -> u64 {
        let text = self.run("cat", &["/proc/net/snmp"]);
        let mut lines = text.lines().filter(|line| line.starts_with(protocol));
        let (names, counts) = (lines.next().unwrap(), lines.next().unwrap());
        let place = names.split_whitespace().position(|n| n == name).unwrap();
        counts.split_whitespace().nth(place).unwrap().parse().unwrap()
    }

    /// A thread that is here.
    pub(crate) fn spawn<T: Send + 'static>(self, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.0)).unwrap();
        let inside = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            body()
        };
        thread::Builder::new()
            .name(self.0.to_owned())
            .spawn(inside)
            .unwrap()
    }

    /// Does something here.
    pub(crate) fn enter<T: Send + 'static>(self, body: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(body).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
