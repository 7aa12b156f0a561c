//! Clients that use a frontend until told to stop, each in its way, and judge every answer.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use crate::exchange::{Answer, connect, datagram, exchange, finish};
use crate::random::Random;

/// How a client uses a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A connection for every request, like a web page.
    Short,
    /// A few megabytes each way over one connection, again and again.
    Bulk,
    /// One connection for the whole time, with a little now and then.
    Chat,
    /// Datagrams from one socket.
    Datagrams,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Short, Self::Bulk, Self::Chat, Self::Datagrams];
}

/// What clients have in common: when to stop, what was done, what went wrong.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) stop: AtomicBool,
    done: [AtomicU64; 4],
    bytes: AtomicU64,
    failures: Mutex<Vec<String>>,
    /// Twice how often each pod was taken away; odd while that is under way.
    removals: [AtomicU64; 8],
}

/// A frontend, and the source address that pods behind it must see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frontend {
    pub(crate) at: SocketAddr,
    pub(crate) seen_as: IpAddr,
}

impl Load {
    /// Uses the frontend until told to stop.
    pub(crate) fn run(self: Arc<Self>, way: Way, frontend: Frontend, seed: u64) {
        let mut random = Random(seed);
        while !self.stop.load(Relaxed) {
            let result = match way {
                Way::Short => self.short(frontend, &mut random),
                Way::Bulk => self.bulk(frontend, &mut random),
                Way::Chat => self.chat(frontend, &mut random),
                Way::Datagrams => self.datagrams(frontend, &mut random),
            };
            if let Err(error) = result {
                self.fail(format!(
                    "{way:?} to {}: {error} ({:?})",
                    frontend.at,
                    error.kind()
                ));
            }
        }
    }

    /// Takes a pod away, so that everybody knows.
    pub(crate) fn taken_away(&self, pod: u8, take: impl FnOnce()) {
        let count = &self.removals[usize::from(pod)];
        count.fetch_add(1, SeqCst);
        take();
        count.fetch_add(1, SeqCst);
    }

    /// How often each way has come to its good end.
    pub(crate) fn done(&self) -> [(Way, u64); 4] {
        Way::ALL.map(|way| (way, self.done[way as usize].load(Relaxed)))
    }

    /// What went wrong so far.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    fn removals(&self, pod: u8) -> u64 {
        self.removals[usize::from(pod)].load(SeqCst)
    }

    fn fail(&self, what: String) {
        let mut failures = self.failures.lock().unwrap();
        // The first few say it all.
        if failures.len() < 32 {
            failures.push(what);
        }
    }

    fn count(&self, way: Way, bytes: usize) {
        self.done[way as usize].fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn short(&self, frontend: Frontend, random: &mut Random) -> io::Result<()> {
        let (up, down) = (random.below(2_000), random.below(20_000));
        let mut stream = connect(frontend.at)?;
        judge(frontend, exchange(&mut stream, random.next(), up, down)?)?;
        finish(stream)?;
        self.count(Way::Short, up + down);
        Ok(())
    }

    fn bulk(&self, frontend: Frontend, random: &mut Random) -> io::Result<()> {
        let (up, down) = (1_000_000, 2_000_000);
        let mut stream = connect(frontend.at)?;
        judge(frontend, exchange(&mut stream, random.next(), up, down)?)?;
        finish(stream)?;
        self.count(Way::Bulk, up + down);
        Ok(())
    }

    fn chat(&self, frontend: Frontend, random: &mut Random) -> io::Result<()> {
        let mut stream = connect(frontend.at)?;
        let first = exchange(&mut stream, 0, 0, 0)?;
        while !self.stop.load(Relaxed) {
            let answer = exchange(&mut stream, random.next(), 300, 300)?;
            judge(frontend, answer)?;
            if answer != first {
                return Err(io::Error::other(format!(
                    "{first:?} became {answer:?} within a connection"
                )));
            }
            self.count(Way::Chat, 600);
            // A person's pace: the connection is to be old, not busy.
            thread::sleep(Duration::from_millis(20));
        }
        finish(stream)
    }

    /// VD-9, CT-4: a datagram's flow stays with its pod for as long as that is not taken away.
    fn datagrams(&self, frontend: Frontend, random: &mut Random) -> io::Result<()> {
        let any: SocketAddr = if frontend.at.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0; 16], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(frontend.at)?;
        let mut bound: Option<(u8, u64)> = None;
        for _ in 0..200 + random.below(400) {
            let before = self.removals.each_ref().map(|count| count.load(SeqCst));
            let len = 8 + random.below(1_200);
            let answer = datagram(&socket, random.next(), len)?;
            judge(frontend, answer)?;
            match bound {
                Some((pod, _)) if pod == answer.pod => {}
                Some((pod, removals)) if removals % 2 == 0 && self.removals(pod) == removals => {
                    return Err(io::Error::other(format!(
                        "pod {} answers for pod {pod}, which is still there",
                        answer.pod
                    )));
                }
                _ => bound = Some((answer.pod, before[usize::from(answer.pod)])),
            }
            self.count(Way::Datagrams, 2 * len);
            if self.stop.load(Relaxed) {
                break;
            }
        }
        Ok(())
    }
}

fn judge(frontend: Frontend, answer: Answer) -> io::Result<()> {
    if answer.source == frontend.seen_as {
        return Ok(());
    }
    let text = format!(
        "pod {} saw {} instead of {}",
        answer.pod, answer.source, frontend.seen_as
    );
    Err(io::Error::other(text))
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [short, bulk, chat, datagrams] = self.done().map(|(_, count)| count);
        let megabytes = self.bytes.load(Relaxed) / 1_000_000;
        write!(
            f,
            "{short} short connections, {bulk} bulk transfers, {chat} exchanges of long connections, \
             {datagrams} answered datagrams, {megabytes} MB"
        )
    }
}
