//! What clients and pods say to each other: exchanges in which every byte is foreseeable, over TCP as many to a
//! connection as the client likes, over UDP one to a datagram. An answer names the pod that gave it and the source
//! address that this pod saw.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::random::Random;
use crate::sandbox::{now, wait_until};

/// A connection that makes no progress for so long is stuck: with retransmission every second (`patient`), longer than
/// chance lets thirty attempts in turn be lost.
pub(crate) const STUCK: Duration = Duration::from_secs(30);
/// How long an answer over UDP may take before the request is sent again.
const UDP_WAIT: Duration = Duration::from_millis(100);
/// Where every pod listens.
pub(crate) const PORT: u16 = 8080;

/// Length of a TCP request's header: seed, bytes to the pod, bytes from it.
const ASK: usize = 16;
/// Length of an answer's header: the pod, and the source it saw.
const TELL: usize = 17;
const CHUNK: usize = 8192;

/// Who answered, and whom they saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) pod: u8,
    pub(crate) source: IpAddr,
}

impl Answer {
    fn encode(self) -> [u8; TELL] {
        let mut bytes = [self.pod; TELL];
        let source = match self.source {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        bytes[1..].copy_from_slice(&source.octets());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let source: [u8; 16] = bytes[1..TELL].try_into().unwrap();
        Self {
            pod: bytes[0],
            source: Ipv6Addr::from(source).to_canonical(),
        }
    }
}

/// How a host's TCP waits on a bad link: retransmissions a second apart at most where the kernel can (Linux 6.15), and
/// never giving up before the test does, unless nobody waits for it: a connection not accepted or closed by its program.
pub(crate) fn patient(host: Host) {
    host.may_set("ipv4/tcp_rto_max_ms", "1000");
    for (setting, value) in [
        ("tcp_syn_retries", "60"),
        // Their intervals double whatever the kernel can: 8 s at most, and though all but the last are lost on the way, no
        // longer than flows that wait are known (`gateway`).
        ("tcp_synack_retries", "4"),
        ("tcp_orphan_retries", "20"),
        ("tcp_retries2", "60"),
    ] {
        host.set(&format!("ipv4/{setting}"), value);
    }
}

/// A pod that answers at `address` for as long as the test runs.
pub(crate) fn serve(host: Host, pod: u8, address: IpAddr) {
    let (tcp, udp) = host.enter(move || {
        let at = SocketAddr::new(address, PORT);
        // The kernel takes an IPv6 address into use a while after it was added, and tells nobody.
        wait_until("the pod has its address", STUCK, || match TcpListener::bind(at) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => None,
            tcp => Some((tcp.unwrap(), UdpSocket::bind(at).unwrap())),
        })
    });
    thread::spawn(move || {
        for stream in tcp.incoming().map(Result::unwrap) {
            // A client that goes away ends its connection, and nothing else.
            thread::spawn(move || drop(serve_connection(stream, pod)));
        }
    });
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        loop {
            let (len, client) = udp.recv_from(&mut datagram).unwrap();
            let answer = Answer {
                pod,
                source: client.ip(),
            }
            .encode();
            // A full queue loses the answer, as a network may.
            let _ = udp.send_to(&[&answer, &datagram[..len]].concat(), client);
        }
    });
}

fn serve_connection(mut stream: TcpStream, pod: u8) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(2 * STUCK))?;
    stream.set_write_timeout(Some(2 * STUCK))?;
    let answer = Answer {
        pod,
        source: stream.peer_addr()?.ip(),
    }
    .encode();
    loop {
        let mut ask = [0; ASK];
        stream.read_exact(&mut ask)?;
        let word = |at: usize| u32::from_be_bytes(ask[at..at + 4].try_into().unwrap()) as usize;
        let seed = u64::from_be_bytes(ask[..8].try_into().unwrap());
        receive(&mut stream, seed, word(8))?;
        stream.write_all(&answer)?;
        send(&mut stream, !seed, word(12))?;
    }
}

/// One side of a connection to a frontend.
pub(crate) fn connect(frontend: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&frontend, STUCK)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STUCK))?;
    stream.set_write_timeout(Some(STUCK))?;
    Ok(stream)
}

/// Sends `up` bytes, receives `down`.
pub(crate) fn exchange(stream: &mut TcpStream, seed: u64, up: usize, down: usize) -> io::Result<Answer> {
    let mut ask = seed.to_be_bytes().to_vec();
    ask.extend((up as u32).to_be_bytes());
    ask.extend((down as u32).to_be_bytes());
    stream.write_all(&ask)?;
    send(stream, seed, up)?;
    let mut tell = [0; TELL];
    stream.read_exact(&mut tell)?;
    receive(stream, !seed, down)?;
    Ok(Answer::decode(&tell))
}

/// Ends a connection in both directions; the pod must have nothing more to say.
pub(crate) fn finish(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(wrong("bytes after the end")),
    }
}

/// One exchange over a connected UDP socket, asked again until answered. Late answers to earlier ones are no answer.
pub(crate) fn datagram(socket: &UdpSocket, number: u64, len: usize) -> io::Result<Answer> {
    let request = stream_of(number, len.max(8));
    let mut buffer = [0; 2048];
    let start = now();
    while start.elapsed() < STUCK {
        socket.send(&request)?;
        let asked = now();
        while let Some(left) = left_of(UDP_WAIT, asked) {
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(len) if len >= TELL && buffer[TELL..len] == request[..] => {
                    return Ok(Answer::decode(&buffer));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

fn left_of(wait: Duration, since: Instant) -> Option<Duration> {
    wait.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
}

fn send(to: &mut impl Write, seed: u64, len: usize) -> io::Result<()> {
    let mut random = Random(seed);
    for at in (0..len).step_by(CHUNK) {
        to.write_all(&chunk(&mut random, CHUNK.min(len - at)))?;
    }
    Ok(())
}

fn receive(from: &mut impl Read, seed: u64, len: usize) -> io::Result<()> {
    let mut random = Random(seed);
    for at in (0..len).step_by(CHUNK) {
        let expected = chunk(&mut random, CHUNK.min(len - at));
        let mut got = vec![0; expected.len()];
        from.read_exact(&mut got)?;
        if got != expected {
            return Err(wrong("other bytes than were sent"));
        }
    }
    Ok(())
}

/// Bytes that the seed foretells.
fn stream_of(seed: u64, len: usize) -> Vec<u8> {
    chunk(&mut Random(seed), len)
}

fn chunk(random: &mut Random, len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8)).flat_map(|_| random.next().to_be_bytes());
    words.take(len).collect()
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
