//! Servers for names that are not the cluster's (DNS-23): one question, one answer, bounded in time. Blocks its caller,
//! which is never a thread that answers from the zone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::wire::{Pending, Transport, answers};

/// A server that does not answer is asked again, or another, so often in all.
const TRIES: usize = 2;

/// Servers, one of which is asked first as long as it answers.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    first: AtomicUsize,
}

impl Upstream {
    /// Asks `servers`, at least one, and waits `timeout` for each.
    pub const fn new(servers: Vec<SocketAddr>, timeout: Duration) -> Self {
        Self {
            servers,
            timeout,
            first: AtomicUsize::new(0),
        }
    }

    /// The answer to what `pending` asks, under another id than its own.
    pub fn ask(&self, pending: &Pending) -> io::Result<Vec<u8>> {
        let first = self.first.load(Ordering::Relaxed);
        let mut failure = io::Error::new(ErrorKind::NotFound, "no upstream server");
        for next in (first..).take(TRIES.max(self.servers.len())) {
            let Some(server) = self.servers.get(next % self.servers.len()) else {
                break;
            };
            // From the kernel's generator and a socket of its own each time: both halves must be guessed to forge an answer
            // (RFC 5452 §9.2).
            let mut id = [0; 2];
            rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
            let question = pending
                .question(u16::from_be_bytes(id))
                .map_err(io::Error::other)?;
            let answer = match pending.transport() {
                Transport::Udp => self.by_datagram(*server, &question),
                Transport::Tcp => self.by_stream(*server, &question),
            };
            match answer {
                Ok(answer) => {
                    self.first.store(next % self.servers.len(), Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn by_datagram(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let own: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(own)?;
        socket.connect(server)?;
        socket.send(question)?;
        let deadline = now() + self.timeout;
        let mut answer = vec![0; usize::from(u16::MAX)];
        loop {
            socket.set_read_timeout(Some(left(deadline)?))?;
            let length = socket.recv(&mut answer)?;
            if answers(question, &answer[..length]) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    }

    fn by_stream(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let deadline = now() + self.timeout;
        let mut stream = TcpStream::connect_timeout(&server, self.timeout)?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(&framed(question)?)?;
        let mut length = [0; 2];
        read_exact_until(&mut stream, &mut length, deadline)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        read_exact_until(&mut stream, &mut answer, deadline)?;
        match answers(question, &answer) {
            true => Ok(answer),
            false => Err(ErrorKind::InvalidData.into()),
        }
    }
}

/// With its length before it (RFC 1035 §4.2.2).
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Fills `buffer`, however slowly the bytes drip, by `deadline`.
pub(super) fn read_exact_until(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(now());
    match left.is_zero() {
        true => Err(ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// No packet of the dataplane waits for it.
#[allow(clippy::disallowed_methods)]
pub(super) fn now() -> Instant {
    Instant::now()
}
