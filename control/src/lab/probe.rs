//! Requests from inside the lab: readiness probes, and one fetch to see who answers.
//!
//! Takes namespaces and an address; gives yes or no, or a pod's name. Every wait is bounded.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::namespace::Namespaces;
use super::process::{Exit, Reaper};

/// How long one fetch may take from connect to the last byte: well above a lost first packet's retry (1 s, RFC 6298).
const FETCH: Duration = Duration::from_secs(3);
/// Pause between probes until the first success: a lab's user waits for it.
const EAGER: Duration = Duration::from_millis(200);
/// Most of an answer that is looked at.
const LARGEST: u64 = 64 * 1024;

/// What a readiness probe does each time.
#[derive(Clone, Debug)]
enum Action {
    /// A request; success is a status from 200 to below 400, as for a kubelet.
    Http {
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    /// A connection.
    Tcp { port: u16 },
    /// A program of the container; success is its status 0.
    Exec(Vec<String>),
}

/// A readiness probe.
#[derive(Clone, Debug)]
pub(super) struct Check {
    action: Action,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

/// Where a probe is made.
pub(super) struct Place {
    pub(super) namespaces: Namespaces,
    pub(super) address: Ipv4Addr,
    pub(super) reaper: Reaper,
    /// What the container's own program was started with.
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) folder: Option<PathBuf>,
}

impl Check {
    /// The check of a container's `readinessProbe`, if it has one.
    ///
    /// # Errors
    /// It has one that the lab cannot do.
    pub(super) fn of(container: &Container) -> anyhow::Result<Option<Self>> {
        let Some(probe) = &container.readiness_probe else {
            return Ok(None);
        };
        let number = |port| {
            port_number(container, port)
                .with_context(|| format!("readinessProbe: the container has no port {port:?}"))
        };
        let action = match probe {
            Probe {
                http_get: Some(get), ..
            } => {
                if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
                    bail!(
                        "readinessProbe: the lab does not speak {}",
                        get.scheme.as_deref().unwrap_or_default()
                    );
                }
                let headers = get.http_headers.iter().flatten();
                Action::Http {
                    port: number(&get.port)?,
                    path: get
                        .path
                        .clone()
                        .filter(|path| !path.is_empty())
                        .unwrap_or_else(|| "/".to_owned()),
                    headers: headers
                        .map(|header| (header.name.clone(), header.value.clone()))
                        .collect(),
                }
            }
            Probe {
                tcp_socket: Some(socket),
                ..
            } => Action::Tcp {
                port: number(&socket.port)?,
            },
            Probe { exec: Some(exec), .. } => Action::Exec(exec.command.clone().unwrap_or_default()),
            _ => bail!("readinessProbe: the lab does httpGet, tcpSocket and exec"),
        };
        let seconds = |value: Option<i32>, default: u32| {
            Duration::from_secs(
                value
                    .and_then(|v| u32::try_from(v).ok())
                    .unwrap_or(default)
                    .into(),
            )
        };
        let count = |value: Option<i32>, default| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .unwrap_or(default)
                .max(1)
        };
        Ok(Some(Self {
            action,
            // The defaults of core/v1 Probe.
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }))
    }

    /// Probes until the returned handle is dropped; `changed` hears of every change, beginning from not ready.
    pub(super) fn start(
        self,
        place: Place,
        changed: impl Fn(bool) + Send + 'static,
    ) -> anyhow::Result<mpsc::Sender<()>> {
        let (handle, stop) = mpsc::channel();
        let run = move || {
            if let Err(error) = place.namespaces.enter_this_thread() {
                log::error!("cannot probe {}: {error:#}", place.address);
                return;
            }
            let mut verdict = Verdict::new(self.successes, self.failures);
            let mut pause = self.delay;
            while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(pause) {
                if let Some(ready) = verdict.after(self.once(&place)) {
                    changed(ready);
                }
                pause = if verdict.was_ready {
                    self.period
                } else {
                    self.period.min(EAGER)
                };
            }
        };
        thread::Builder::new()
            .name("probe".to_owned())
            .spawn(run)
            .context("cannot start a thread")?;
        Ok(handle)
    }

    fn once(&self, place: &Place) -> bool {
        match &self.action {
            Action::Tcp { port } => {
                TcpStream::connect_timeout(&(place.address, *port).into(), self.timeout).is_ok()
            }
            Action::Http { port, path, headers } => {
                let to = SocketAddr::from((place.address, *port));
                let answer = get(to, path, headers, self.timeout);
                answer.is_ok_and(|answer| (200..400).contains(&answer.status))
            }
            Action::Exec(words) => {
                let Some((program, arguments)) = words.split_first() else {
                    return false;
                };
                let mut command = Command::new(program);
                command.args(arguments).envs(place.environment.iter().cloned());
                if let Some(folder) = &place.folder {
                    command.current_dir(folder);
                }
                let exit = place.reaper.run(&place.namespaces, command, self.timeout);
                // One that cannot be run fails as one that runs and fails.
                matches!(exit, Ok(Some(Exit::Status(0))))
            }
        }
    }
}

/// Whether a container is ready, after so many successes or failures one after the other.
#[derive(Debug)]
struct Verdict {
    successes: u32,
    failures: u32,
    ready: bool,
    was_ready: bool,
    streak: u32,
}

impl Verdict {
    const fn new(successes: u32, failures: u32) -> Self {
        Self {
            successes,
            failures,
            ready: false,
            was_ready: false,
            streak: 0,
        }
    }

    /// Takes one result; the new verdict if it is another.
    const fn after(&mut self, success: bool) -> Option<bool> {
        self.streak = if success == self.ready { 0 } else { self.streak + 1 };
        if self.streak < if self.ready { self.failures } else { self.successes } {
            return None;
        }
        self.ready = success;
        self.was_ready |= success;
        self.streak = 0;
        Some(success)
    }
}

fn port_number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = |port: &&k8s_openapi::api::core::v1::ContainerPort| port.name.as_ref() == Some(name);
            container.ports.as_ref()?.iter().find(named)?.container_port
        }
    };
    u16::try_from(number).ok()
}

/// Sends one request from the calling thread's network namespace. Gives the name of the pod that answered, if it is one of
/// the lab's own servers.
pub(super) fn fetch(to: SocketAddr, udp: bool) -> anyhow::Result<Option<String>> {
    if udp {
        return fetch_datagram(to);
    }
    // A server that speaks something else than HTTP has answered all the same: it was reached.
    let stream = TcpStream::connect_timeout(&to, FETCH).with_context(|| format!("cannot connect to {to}"))?;
    Ok(exchange(&stream, to, "/", &[], FETCH)
        .ok()
        .and_then(|answer| answer.pod))
}

fn fetch_datagram(to: SocketAddr) -> anyhow::Result<Option<String>> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).context("cannot open a datagram socket")?;
    socket
        .set_read_timeout(Some(FETCH))
        .context("cannot set a time limit")?;
    socket.connect(to).with_context(|| format!("cannot reach {to}"))?;
    socket
        .send(b"hello\n")
        .with_context(|| format!("cannot send to {to}"))?;
    let mut buffer = [0; 2048];
    let length = match socket.recv(&mut buffer) {
        Ok(length) => length,
        // A server of something else need not answer this; a refusal would have come as an error.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("no answer from {to}")),
    };
    let answer = String::from_utf8_lossy(&buffer[..length]);
    Ok(answer
        .strip_prefix("POD ")
        .and_then(|rest| rest.split(' ').next())
        .map(str::to_owned))
}

struct Response {
    status: u16,
    pod: Option<String>,
}

fn get(
    to: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    timeout: Duration,
) -> anyhow::Result<Response> {
    let stream = TcpStream::connect_timeout(&to, timeout)?;
    exchange(&stream, to, path, headers, timeout)
}

fn exchange(
    mut stream: &TcpStream,
    to: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    timeout: Duration,
) -> anyhow::Result<Response> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let host = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = host.map_or_else(|| to.to_string(), |(_, host)| host.clone());
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("host"))
    {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all((request + "\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(LARGEST).read_to_end(&mut bytes)?;
    let mut heads = [httparse::EMPTY_HEADER; 96];
    let mut response = httparse::Response::new(&mut heads);
    let (Ok(httparse::Status::Complete(_)), Some(status)) = (response.parse(&bytes), response.code) else {
        bail!("{to} does not speak HTTP");
    };
    let pod = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("x-pod"));
    Ok(Response {
        status,
        pod: pod.map(|header| String::from_utf8_lossy(header.value).into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(probe: &serde_json::Value) -> anyhow::Result<Option<Check>> {
        let container =
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}], "readinessProbe": probe});
        Check::of(&serde_json::from_value(container).unwrap())
    }

    #[test]
    fn a_container_is_ready_after_so_many_successes_and_no_longer_after_so_many_failures() {
        let mut verdict = Verdict::new(2, 3);
        let said: Vec<_> = "+-++--+---++".chars().map(|c| verdict.after(c == '+')).collect();
        let (none, yes, no) = (None, Some(true), Some(false));
        assert_eq!(
            said,
            [none, none, none, yes, none, none, none, none, none, no, none, yes]
        );
    }

    #[test]
    fn periods_and_thresholds_are_the_probes_own_or_kubernetes_defaults() {
        let found = check(&json!({"httpGet": {"port": "web"}})).unwrap().unwrap();
        let seconds = [found.delay, found.period, found.timeout].map(|time| time.as_secs());
        assert_eq!((seconds, found.successes, found.failures), ([0, 10, 1], 1, 3));
        assert!(matches!(found.action, Action::Http { port: 8080, ref path, .. } if path == "/"));
        let said = json!({"exec": {"command": ["true"]}, "initialDelaySeconds": 5, "periodSeconds": 2, "timeoutSeconds": 4,
                          "successThreshold": 2, "failureThreshold": 6});
        let found = check(&said).unwrap().unwrap();
        let seconds = [found.delay, found.period, found.timeout].map(|time| time.as_secs());
        assert_eq!((seconds, found.successes, found.failures), ([5, 2, 4], 2, 6));
    }

    #[test]
    fn a_probe_that_the_lab_cannot_do_is_told_not_passed_over() {
        for (probe, said) in [
            (json!({"grpc": {"port": 80}}), "httpGet, tcpSocket and exec"),
            (
                json!({"httpGet": {"port": 80, "scheme": "HTTPS"}}),
                "does not speak HTTPS",
            ),
            (json!({"tcpSocket": {"port": "dns"}}), "has no port"),
        ] {
            let error = check(&probe).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(check(&json!(null)).unwrap().is_none());
    }
}
