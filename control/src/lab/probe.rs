//! Requests from inside the lab: readiness probes, and one fetch to see who answers.
//!
//! Takes namespaces and an address; gives yes or no, or a pod's name. Every wait is bounded.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::namespace::Namespaces;

/// How long one fetch may take from connect to the last byte: well above a lost first packet's retry (1 s, RFC 6298).
const FETCH: Duration = Duration::from_secs(3);
/// Pause between probes until the first success: a lab's user waits for it.
const EAGER: Duration = Duration::from_millis(200);
/// Most of an answer that is looked at.
const LARGEST: u64 = 64 * 1024;

/// What a readiness probe does.
#[derive(Clone, Debug)]
pub(super) struct Check {
    port: u16,
    /// The HTTP path; a connection alone is enough without.
    path: Option<String>,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Check {
    /// The check of a container's `readinessProbe`, if it has one the lab can do: `httpGet` or `tcpSocket`.
    pub(super) fn of(container: &Container) -> Option<Self> {
        let probe = container.readiness_probe.as_ref()?;
        let (port, path) = match probe {
            Probe {
                http_get: Some(get), ..
            } => (
                &get.port,
                Some(get.path.clone().unwrap_or_else(|| "/".to_owned())),
            ),
            Probe {
                tcp_socket: Some(socket),
                ..
            } => (&socket.port, None),
            _ => return None,
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
        Some(Self {
            port: port_number(container, port)?,
            path,
            // The defaults of core/v1 Probe.
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        })
    }

    /// Probes until the returned handle is dropped; `changed` hears of every change, beginning from not ready.
    pub(super) fn start(
        self,
        namespaces: &Namespaces,
        address: Ipv4Addr,
        changed: impl Fn(bool) + Send + 'static,
    ) -> anyhow::Result<mpsc::Sender<()>> {
        let namespaces = namespaces
            .try_clone()
            .context("cannot hold the pod's namespace")?;
        let (handle, stop) = mpsc::channel();
        let run = move || {
            if let Err(error) = namespaces.enter_this_thread() {
                log::error!("cannot probe {address}: {error:#}");
                return;
            }
            let (mut ready, mut streak, mut pause) = (false, 0, self.delay);
            while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(pause) {
                let success = self.once(address);
                streak = if success == ready { 0 } else { streak + 1 };
                if streak >= if ready { self.failures } else { self.successes } {
                    ready = success;
                    streak = 0;
                    changed(ready);
                }
                pause = if ready {
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

    fn once(&self, address: Ipv4Addr) -> bool {
        let to = SocketAddr::from((address, self.port));
        match &self.path {
            None => TcpStream::connect_timeout(&to, self.timeout).is_ok(),
            // The kubelet's rule: from 200 to below 400.
            Some(path) => get(to, path, self.timeout).is_ok_and(|answer| (200..400).contains(&answer.status)),
        }
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
    Ok(exchange(&stream, to, "/", FETCH)
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

fn get(to: SocketAddr, path: &str, timeout: Duration) -> anyhow::Result<Response> {
    let stream = TcpStream::connect_timeout(&to, timeout)?;
    exchange(&stream, to, path, timeout)
}

fn exchange(
    mut stream: &TcpStream,
    to: SocketAddr,
    path: &str,
    timeout: Duration,
) -> anyhow::Result<Response> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(LARGEST).read_to_end(&mut bytes)?;
    let mut headers = [httparse::EMPTY_HEADER; 96];
    let mut response = httparse::Response::new(&mut headers);
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
