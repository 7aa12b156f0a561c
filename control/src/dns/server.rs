//! The threads that answer: some that read datagrams, a batch at a time, one that takes connections, and as many as there
//! are questions being asked upstream. Takes sockets and a zone at a time, gives answers. No thread that answers from the
//! zone waits for anything but its socket; a new zone is in force with the next batch.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use arc_swap::ArcSwap;
use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use serde::{Deserialize, Serialize};

use super::sockets::Sockets;
use super::tcp;
use super::upstream::Upstream;
use super::wire::{self, Pending, Transport, Verdict};
use super::zone::{Options, Zone};

/// Datagrams that are read, answered and sent with one system call each: enough to spread the calls thin, and few enough
/// that the first of them does not wait for the last.
const BATCH: usize = 32;
/// The longest question: 4 KiB is an OPT record with every option there is. What is cut off is no message any more.
const LONGEST_QUESTION: usize = 4096;
/// How long questions wait for the zone after a start: what has not been read by then is said not to be known, before
/// clients (5 s, resolv.conf(5)) give up.
const HOLD: Duration = Duration::from_secs(3);
/// A thread that asks upstream ends when it had nothing to do for this long.
const IDLE: Duration = Duration::from_secs(30);
/// The stack of a thread that asks upstream or holds a connection: messages are on the heap.
pub(super) const STACK: usize = 256 << 10;
/// After an error that is the socket's, not a client's, such as no descriptors left.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

/// How the server works.
#[derive(Debug)]
pub struct Settings {
    /// What names look like.
    pub options: Options,
    /// Threads that read datagrams.
    pub threads: usize,
    /// Connections at once; the oldest makes room for a new one.
    pub connections: usize,
    /// Questions that are asked upstream at once; further ones fail.
    pub forwards: usize,
    /// Servers for all other names.
    pub upstream: Option<Upstream>,
}

/// How often what happened, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Messages answered without asking anybody.
    pub answered: u64,
    /// Messages asked upstream.
    pub forwarded: u64,
    /// Of those, how many no upstream server answered.
    pub unanswered: u64,
    /// Messages for which too many were being asked upstream already.
    pub busy: u64,
    /// Messages that get no answer: no question, or not a message.
    pub dropped: u64,
    /// Connections closed to make room for newer ones.
    pub crowded_out: u64,
    /// Threads that ask upstream now, or did a moment ago, of how many at most.
    pub asking: (u64, u64),
    /// Connections now, of how many at most.
    pub connections: (u64, u64),
}

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Each held by a thread from before it takes datagrams off the socket until their answers are sent.
    turns: Mutex<Vec<Arc<Mutex<()>>>>,
    pub(super) zone: ArcSwap<Zone>,
    upstream: Option<Upstream>,
    asking: AtomicUsize,
    most_asking: usize,
    /// To a thread that waits for a question to ask; there is no queue.
    jobs: Sender<Job>,
    waiting: Receiver<Job>,
    pub(super) connections: tcp::Connections,
    answered: AtomicU64,
    forwarded: AtomicU64,
    unanswered: AtomicU64,
    busy: AtomicU64,
    dropped: AtomicU64,
}

/// A datagram whose answer is still to come.
#[derive(Debug)]
struct Job {
    pending: Box<Pending>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
}

/// The running server.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    options: Options,
    start: SyncSender<()>,
}

impl Server {
    /// Begins to answer at `sockets` as soon as there is a whole zone, or after `HOLD`; until then questions wait.
    pub fn start(sockets: Sockets, settings: Settings) -> io::Result<Self> {
        let (jobs, waiting) = channel::bounded(0);
        let shared = Arc::new(Shared {
            turns: Mutex::default(),
            zone: ArcSwap::from_pointee(Zone::unknown(&settings.options)),
            upstream: settings.upstream,
            asking: AtomicUsize::new(0),
            most_asking: settings.forwards,
            jobs,
            waiting,
            connections: tcp::Connections::new(settings.connections),
            answered: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let (start, started) = mpsc::sync_channel(1);
        let serving = shared.clone();
        thread::Builder::new().name("dns".into()).spawn(move || {
            // Whether it came or not: it is time.
            let _whole = started.recv_timeout(HOLD);
            if let Err(error) = begin(&serving, sockets, settings.threads) {
                log::error!("dns: cannot start a thread: {error}");
            }
        })?;
        Ok(Self {
            shared,
            options: settings.options,
            start,
        })
    }

    /// What names look like.
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// What answers are from.
    pub fn zone(&self) -> Arc<Zone> {
        self.shared.zone.load_full()
    }

    /// From now on answers are from `zone`.
    pub fn set(&self, zone: Zone) {
        let whole = zone.complete;
        self.shared.zone.store(Arc::new(zone));
        if whole {
            // It is heard once; later there is nobody to hear it.
            let _started = self.start.try_send(());
        }
    }

    /// Answers all that has been taken off the sockets and takes no more: what comes is for whoever has them next. For the
    /// end of the process; a connection, and what is being asked upstream, ends in the middle.
    pub fn stop(&self) {
        for turn in &*self.shared.turns.lock().unwrap_or_else(PoisonError::into_inner) {
            // Nobody gets it back.
            std::mem::forget(turn.lock());
        }
    }

    /// How often what happened.
    pub fn counts(&self) -> Counts {
        let shared = &*self.shared;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            answered: get(&shared.answered),
            forwarded: get(&shared.forwarded),
            unanswered: get(&shared.unanswered),
            busy: get(&shared.busy),
            dropped: get(&shared.dropped),
            crowded_out: shared.connections.crowded_out(),
            asking: (
                shared.asking.load(Ordering::Relaxed) as u64,
                shared.most_asking as u64,
            ),
            connections: shared.connections.used(),
        }
    }
}

fn begin(shared: &Arc<Shared>, sockets: Sockets, threads: usize) -> io::Result<()> {
    for socket in sockets.udp {
        let socket = Arc::new(socket);
        for _ in 0..threads {
            let (shared, socket, turn) = (shared.clone(), socket.clone(), Arc::default());
            let mut turns = shared.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.push(Arc::clone(&turn));
            drop(turns);
            thread::Builder::new()
                .name("dns-udp".into())
                .spawn(move || read_datagrams(&shared, &socket, &turn))?;
        }
    }
    for listener in sockets.tcp {
        let shared = shared.clone();
        thread::Builder::new()
            .name("dns-tcp".into())
            .spawn(move || tcp::accept(&shared, &listener))?;
    }
    Ok(())
}

impl Shared {
    /// Answers a message that came by a stream, however long that takes. `false`: it gets no answer.
    pub(super) fn answer_stream(&self, message: &[u8], out: &mut Vec<u8>) -> bool {
        match wire::handle(&self.zone.load(), message, Transport::Tcp, out) {
            Verdict::Answered => {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Ask(pending) => self.ask(*pending, out),
            Verdict::Dropped(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    /// Asks upstream and writes the answer.
    fn ask(&self, pending: Pending, out: &mut Vec<u8>) {
        let Some(upstream) = &self.upstream else {
            self.answered.fetch_add(1, Ordering::Relaxed);
            return pending.refuse(out);
        };
        self.forwarded.fetch_add(1, Ordering::Relaxed);
        let answer = upstream.ask(&pending);
        if let Err(error) = &answer {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            log::debug!("dns: upstream: {error}");
        }
        pending.finish(answer.ok().as_deref(), out);
    }

    /// Has a thread ask upstream for a datagram; if all are asking, the answer is that it failed.
    fn hand_over(self: &Arc<Self>, job: Job) {
        let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) else {
            return;
        };
        if self.asking.fetch_add(1, Ordering::Relaxed) < self.most_asking {
            let shared = self.clone();
            let thread = thread::Builder::new().name("dns-ask".into()).stack_size(STACK);
            match thread.spawn(move || shared.ask_for(job)) {
                Ok(_) => return,
                Err(error) => log::warn!("dns: cannot start a thread: {error}"),
            }
        } else {
            self.fail(job);
        }
        self.asking.fetch_sub(1, Ordering::Relaxed);
    }

    fn fail(&self, job: Job) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        let mut out = Vec::new();
        job.pending.finish(None, &mut out);
        send(&job.socket, &out, job.client);
    }

    /// The life of a thread that asks upstream.
    fn ask_for(&self, mut job: Job) {
        let mut out = Vec::new();
        loop {
            self.ask(*job.pending, &mut out);
            send(&job.socket, &out, job.client);
            match self.waiting.recv_timeout(IDLE) {
                Ok(next) => job = next,
                Err(_) => break,
            }
        }
        self.asking.fetch_sub(1, Ordering::Relaxed);
    }
}

fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    // A client that cannot be reached asks again or is gone.
    if let Err(error) = socket.send_to(answer, client) {
        log::debug!("dns: {client}: {error}");
    }
}

/// Reads, answers and sends, a batch at a time, for as long as the process lives.
fn read_datagrams(shared: &Arc<Shared>, socket: &Arc<UdpSocket>, turn: &Mutex<()>) {
    let fd = socket.as_raw_fd();
    let mut readable = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let mut buffers = vec![[0; LONGEST_QUESTION]; BATCH];
    let mut answers = vec![Vec::new(); BATCH];
    let mut came = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut goes = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut questions: Vec<(usize, Option<SockaddrStorage>)> = Vec::with_capacity(BATCH);
    loop {
        questions.clear();
        let woken = poll(&mut readable, PollTimeout::NONE);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slices: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        match woken.and_then(|_| recvmmsg(fd, &mut came, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)) {
            Ok(messages) => questions.extend(messages.map(|message| (message.bytes, message.address))),
            // Another thread of the same socket was quicker.
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(error) => {
                log::warn!("dns: cannot receive: {error}");
                thread::sleep(PAUSE);
                continue;
            }
        }
        let zone = shared.zone.load();
        let mut clients = Vec::with_capacity(BATCH);
        let (mut dropped, mut asked) = (0, 0);
        for ((length, client), buffer) in questions.iter().zip(&buffers) {
            let answer = &mut answers[clients.len()];
            match wire::handle(&zone, &buffer[..*length], Transport::Udp, answer) {
                Verdict::Answered if answer.is_empty() => dropped += 1,
                Verdict::Answered => clients.push(*client),
                Verdict::Dropped(_) => dropped += 1,
                Verdict::Ask(pending) if shared.upstream.is_none() => {
                    pending.refuse(answer);
                    clients.push(*client);
                }
                Verdict::Ask(pending) => {
                    asked += 1;
                    if let Some(client) = client.as_ref().and_then(address) {
                        let socket = socket.clone();
                        shared.hand_over(Job {
                            pending,
                            socket,
                            client,
                        });
                    }
                }
            }
        }
        drop(zone);
        shared
            .answered
            .fetch_add((questions.len() - dropped - asked) as u64, Ordering::Relaxed);
        shared.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        let mut sent = 0;
        while sent < clients.len() {
            let slices: Vec<_> = answers[sent..clients.len()]
                .iter()
                .map(|answer| [IoSlice::new(answer)])
                .collect();
            let unsent = &clients[sent..];
            match sendmmsg(fd, &mut goes, slices.iter(), unsent, [], MsgFlags::empty()) {
                Ok(messages) => sent += messages.count().max(1),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    // The first of them cannot be sent: it asks again, or is gone.
                    log::debug!("dns: cannot send: {error}");
                    sent += 1;
                }
            }
        }
    }
}

fn address(client: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = client
        .as_sockaddr_in()
        .map(|client| SocketAddr::V4((*client).into()));
    v4.or_else(|| {
        client
            .as_sockaddr_in6()
            .map(|client| SocketAddr::V6((*client).into()))
    })
}
