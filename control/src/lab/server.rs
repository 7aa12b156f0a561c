//! The server in a pod that names no program of its own: HTTP on every TCP port, datagrams on every UDP port.
//!
//! Takes ports and the pod's name from its environment; gives answers that say who answered, and one log line per request.
//! `GET /bytes/N` streams N bytes that are the same every time. Never reads a file, never believes a length it was not
//! given. On SIGTERM it closes idle connections, finishes what it has begun, and ends when the last is closed, or after
//! `DRAIN`.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use nix::sys::signal::{SigSet, Signal};

/// Connections at once: each has a thread, and a lab on a small machine has several pods.
const MOST_CONNECTIONS: usize = 4096;
/// Largest head of a request, and most header fields in it: what nginx allows by default, roughly.
const LARGEST_HEAD: usize = 16 * 1024;
const MOST_HEADERS: usize = 96;
/// Largest body a request may bring; it is read and thrown away.
const LARGEST_BODY: u64 = 1 << 30;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(75);
/// How long the last connections may take after SIGTERM: a pod's grace period (core/v1 PodSpec), by whose end the keeper
/// kills it anyway.
const DRAIN: Duration = Duration::from_secs(30);
/// How long a client may take to close after the last answer.
const LINGER: Duration = Duration::from_secs(2);
/// A connection's thread holds two small buffers and no recursion.
const STACK: usize = 128 * 1024;

/// The hidden command `sluice lab server`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// TCP ports to serve HTTP on
    #[arg(long)]
    tcp: Vec<u16>,
    /// UDP ports to answer datagrams on
    #[arg(long)]
    udp: Vec<u16>,
}

struct Pod {
    name: String,
    namespace: String,
    ip: String,
    connections: AtomicUsize,
    /// Connections between two requests, by a number of each.
    idle: Mutex<BTreeMap<usize, Arc<TcpStream>>>,
    ending: AtomicBool,
}

impl Pod {
    /// Waits with `wait` for the next request on a connection; SIGTERM ends the wait.
    fn between_requests<T>(&self, stream: &Arc<TcpStream>, wait: impl FnOnce() -> T) -> T {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let number = Arc::as_ptr(stream).addr();
        {
            let mut idle = idle();
            if self.ending.load(Ordering::Relaxed) {
                // Bytes that have come already can still be read.
                let _closed = stream.shutdown(Shutdown::Read);
            }
            idle.insert(number, Arc::clone(stream));
        }
        let waited = wait();
        idle().remove(&number);
        waited
    }

    /// From now on no connection is kept open for a further request.
    fn end_idle(&self) {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        self.ending.store(true, Ordering::Relaxed);
        for stream in idle.values() {
            let _closed = stream.shutdown(Shutdown::Read);
        }
    }
}

/// Serves until SIGTERM.
///
/// # Errors
/// A port that cannot be bound.
pub fn run(args: &ServerArgs) -> anyhow::Result<()> {
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.add(Signal::SIGINT);
    // Before any thread, so that all of them leave the signals to the wait below.
    end.thread_block().context("cannot block signals")?;
    let var = |name| std::env::var(name).unwrap_or_default();
    let pod = Arc::new(Pod {
        name: var("POD_NAME"),
        namespace: var("POD_NAMESPACE"),
        ip: var("POD_IP"),
        connections: AtomicUsize::new(0),
        idle: Mutex::default(),
        ending: AtomicBool::new(false),
    });
    for &port in &args.tcp {
        let listener = TcpListener::bind(every_address(port).as_slice());
        let listener = listener.with_context(|| format!("cannot listen on TCP {port}"))?;
        let pod = Arc::clone(&pod);
        thread::spawn(move || accept(&listener, &pod));
    }
    for &port in &args.udp {
        let socket = UdpSocket::bind(every_address(port).as_slice());
        let socket = socket.with_context(|| format!("cannot listen on UDP {port}"))?;
        let pod = Arc::clone(&pod);
        thread::spawn(move || answer_datagrams(&socket, &pod));
    }
    tell_ready();
    end.wait().context("cannot wait for signals")?;
    pod.end_idle();
    drain(&pod);
    Ok(())
}

/// Every address of the pod: a socket of IPv6 hears IPv4, too; without IPv6 in the kernel there is IPv4 alone.
fn every_address(port: u16) -> [SocketAddr; 2] {
    [
        (Ipv6Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ]
}

/// A client as it is, where its socket's family is another (RFC 4291 §2.5.5.2).
fn as_itself(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

/// Waits for the connections that are left. Nothing else is to do, so a short nap between looks is enough.
fn drain(pod: &Pod) {
    const NAP: Duration = Duration::from_millis(20);
    for _ in 0..DRAIN.as_millis() / NAP.as_millis() {
        // First, so that connections already on their way are accepted.
        thread::sleep(NAP);
        if pod.connections.load(Ordering::Relaxed) == 0 {
            return;
        }
    }
}

/// Tells whoever started it that it listens, as systemd's services do (sd_notify(3)).
fn tell_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let word = format!(
        "READY=1\nSTATUS={}",
        std::env::var("SLUICE_CONTAINER").unwrap_or_default()
    );
    if let Err(error) = UnixDatagram::unbound().and_then(|socket| socket.send_to(word.as_bytes(), path)) {
        eprintln!("cannot tell that the server is ready: {error}");
    }
}

fn accept(listener: &TcpListener, pod: &Arc<Pod>) {
    loop {
        let (stream, client) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory, or the client gave up: the next one may fare better, a little later.
                eprintln!("cannot accept a connection: {error}");
                thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        if pod.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            pod.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (shared, stream) = (Arc::clone(pod), Arc::new(stream));
        let thread = thread::Builder::new().stack_size(STACK).spawn(move || {
            // A client that leaves in the middle is its own affair.
            let _gone = serve(&stream, as_itself(client), &shared);
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            pod.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What matters of a request's head.
struct Request {
    method: String,
    path: String,
    /// Bytes of the buffer that are the head.
    head: usize,
    body: u64,
    chunked: bool,
    expects_continue: bool,
    keep_alive: bool,
}

/// Answers until the client or the server closes. The client closes first if it will: with the process gone its pod's
/// link goes, and what is still on its way then would be lost.
fn serve(stream: &Arc<TcpStream>, client: SocketAddr, pod: &Pod) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let result = answer_all(stream, client, pod);
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(LINGER))?;
    let _rest = io::copy(&mut (&**stream).take(LARGEST_BODY), &mut io::sink());
    result
}

fn answer_all(shared: &Arc<TcpStream>, client: SocketAddr, pod: &Pod) -> io::Result<()> {
    let stream: &TcpStream = shared;
    let mut reader = stream;
    let mut buffer = Vec::new();
    let mut first = true;
    loop {
        // Who has just connected is about to ask; who has an answer may know that a kept connection can end.
        let head = match std::mem::replace(&mut first, false) {
            true => read_head(&mut reader, &mut buffer),
            false => pod.between_requests(shared, || read_head(&mut reader, &mut buffer)),
        };
        let request = match head? {
            Head::Request(request) => request,
            Head::Closed => return Ok(()),
            Head::Bad => {
                log_request(client, "-", "-", "400");
                return respond(
                    stream,
                    pod,
                    "400 Bad Request",
                    "text/plain",
                    b"not HTTP/1\n",
                    false,
                    false,
                );
            }
        };
        if request.body > LARGEST_BODY {
            log_request(client, &request.method, &request.path, "413");
            return respond(
                stream,
                pod,
                "413 Content Too Large",
                "text/plain",
                b"too large\n",
                false,
                false,
            );
        }
        buffer.drain(..request.head);
        if request.expects_continue {
            (&mut &*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        skip_body(&mut reader, &mut buffer, &request)?;
        // A chunked body is not read to its end, so nothing can follow it.
        let keep_alive = request.keep_alive && !request.chunked && !pod.ending.load(Ordering::Relaxed);
        answer(stream, client, pod, &request, keep_alive)?;
        if !keep_alive {
            return Ok(());
        }
    }
}

fn answer(
    stream: &TcpStream,
    client: SocketAddr,
    pod: &Pod,
    request: &Request,
    keep_alive: bool,
) -> io::Result<()> {
    let head_only = request.method == "HEAD";
    if !matches!(request.method.as_str(), "GET" | "HEAD" | "POST" | "PUT") {
        log_request(client, &request.method, &request.path, "405");
        return respond(
            stream,
            pod,
            "405 Method Not Allowed",
            "text/plain",
            b"GET, HEAD, POST\n",
            keep_alive,
            head_only,
        );
    }
    if let Some(count) = request.path.strip_prefix("/bytes/") {
        let Ok(count) = count.parse::<u64>() else {
            log_request(client, &request.method, &request.path, "400");
            let hint = b"say how many: /bytes/1000\n";
            return respond(
                stream,
                pod,
                "400 Bad Request",
                "text/plain",
                hint,
                keep_alive,
                head_only,
            );
        };
        log_request(client, &request.method, &request.path, "200");
        let mut out = BufWriter::with_capacity(64 * 1024, stream);
        write_head(
            &mut out,
            pod,
            "200 OK",
            "application/octet-stream",
            count,
            keep_alive,
        )?;
        if !head_only {
            write_bytes(&mut out, count)?;
        }
        return out.flush();
    }
    log_request(client, &request.method, &request.path, "200");
    let text = format!(
        "pod: {}\nnamespace: {}\nip: {}\nclient: {client}\npath: {}\n",
        pod.name, pod.namespace, pod.ip, request.path
    );
    respond(
        stream,
        pod,
        "200 OK",
        "text/plain; charset=utf-8",
        text.as_bytes(),
        keep_alive,
        head_only,
    )
}

enum Head {
    Request(Request),
    Closed,
    Bad,
}

/// Reads until the buffer begins with a whole head.
fn read_head(reader: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Head> {
    loop {
        if !buffer.is_empty() {
            match parse_head(buffer) {
                Some(Some(request)) => return Ok(Head::Request(request)),
                Some(None) if buffer.len() < LARGEST_HEAD => {}
                _ => return Ok(Head::Bad),
            }
        }
        let mut chunk = [0; 4096];
        match reader.read(&mut chunk)? {
            0 => return Ok(Head::Closed),
            count => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

/// `None`: not HTTP/1. `Some(None)`: not whole yet.
fn parse_head(bytes: &[u8]) -> Option<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = parsed.parse(bytes).ok()? else {
        return Some(None);
    };
    let mut request = Request {
        method: parsed.method?.to_owned(),
        path: parsed.path?.to_owned(),
        head,
        body: 0,
        chunked: false,
        expects_continue: false,
        keep_alive: parsed.version? == 1,
    };
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value).ok()?.trim();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => request.body = value.parse().ok()?,
            "transfer-encoding" => request.chunked = true,
            "expect" => request.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            "connection" if value.eq_ignore_ascii_case("close") => request.keep_alive = false,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => request.keep_alive = true,
            _ => {}
        }
    }
    Some(Some(request))
}

fn skip_body(reader: &mut impl Read, buffer: &mut Vec<u8>, request: &Request) -> io::Result<()> {
    if request.chunked {
        return Ok(());
    }
    let buffered = buffer
        .len()
        .min(usize::try_from(request.body).unwrap_or(usize::MAX));
    buffer.drain(..buffered);
    let rest = request.body - buffered as u64;
    let copied = io::copy(&mut reader.take(rest), &mut io::sink())?;
    if copied < rest {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(())
    }
}

fn respond(
    stream: &TcpStream,
    pod: &Pod,
    status: &str,
    kind: &str,
    body: &[u8],
    keep_alive: bool,
    head_only: bool,
) -> io::Result<()> {
    // One write, so that a short answer is one segment.
    let mut out = BufWriter::new(stream);
    write_head(&mut out, pod, status, kind, body.len() as u64, keep_alive)?;
    if !head_only {
        out.write_all(body)?;
    }
    out.flush()
}

fn write_head(
    out: &mut impl Write,
    pod: &Pod,
    status: &str,
    kind: &str,
    length: u64,
    keep_alive: bool,
) -> io::Result<()> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    write!(
        out,
        "HTTP/1.1 {status}\r\nServer: sluice-lab\r\nX-Pod: {}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n",
        pod.name
    )
}

/// Byte `i` is the low byte of `i * 31 / 7`: no period that a lost, doubled or swapped segment could hide in soon.
fn byte_at(index: u64) -> u8 {
    (index.wrapping_mul(31) / 7) as u8
}

fn write_bytes(out: &mut impl Write, count: u64) -> io::Result<()> {
    let mut chunk = [0; 8192];
    let mut sent = 0;
    while sent < count {
        let length = chunk
            .len()
            .min(usize::try_from(count - sent).unwrap_or(usize::MAX));
        for (index, byte) in (sent..).zip(&mut chunk[..length]) {
            *byte = byte_at(index);
        }
        out.write_all(&chunk[..length])?;
        sent += length as u64;
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, pod: &Pod) {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, sender) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // An ICMP error about an earlier answer surfaces here (udp(7)); the socket is as good as before.
            Err(error) => {
                eprintln!("cannot receive a datagram: {error}");
                continue;
            }
        };
        let client = as_itself(sender);
        let mut answer = format!("POD {} {client}\n", pod.name).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        answer.truncate(65_507); // the most an IPv4 datagram carries
        log_line(format_args!("{client} UDP {length} bytes"));
        if let Err(error) = socket.send_to(&answer, sender) {
            eprintln!("cannot answer {client}: {error}");
        }
    }
}

fn log_request(client: SocketAddr, method: &str, path: &str, status: &str) {
    log_line(format_args!("{client} {method} {path} {status}"));
}

fn log_line(what: std::fmt::Arguments<'_>) {
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    // One write of a whole line: several threads share the file. A full disk must not stop the answers.
    let line = format!("{now} {what}\n");
    let _lost = io::stdout().lock().write_all(line.as_bytes());
}
