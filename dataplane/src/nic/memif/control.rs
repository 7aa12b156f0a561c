//! A memif interface's thread: it holds the socket, shakes hands, hands each queue's rings to the port that drives it, and
//! takes them away when the peer is gone. Then it waits for the next peer, or knocks again.
//!
//! It is a thread of its own because it does what a worker must not: it maps memory, and it writes to eventfds that a
//! hostile peer may make block. It sleeps in poll(2) but for those moments.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::handshake::{Handshake, Link, Refusal, Role, Terms};
use super::message::{MESSAGE, Message, Text};
use super::ring::{RxRing, TxRing};
use crate::channel::BindError;
use crate::channel::endpoint::Endpoint;

/// Before the next attempt, and after a peer that went: a restarted peer is back in a tenth of a second, and one that fails
/// in a loop costs ten handshakes a second.
const REST: Duration = Duration::from_millis(100);
/// For the next message of a handshake: the peer has little to do in between, and others wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages read at one time: a peer that talks without end cannot keep us from anything else.
const MESSAGES: usize = 16;
/// How long a port that closes waits for the thread, which may hang in a hostile peer's eventfd.
const FAREWELL: Duration = Duration::from_secs(2);

/// A queue's rings, of one link.
#[derive(Debug)]
pub(super) struct Pair {
    /// Number of the link.
    pub(super) link: u32,
    pub(super) rx: Option<RxRing>,
    pub(super) tx: Option<TxRing>,
}

/// Where the thread and the port of a queue meet.
#[derive(Debug)]
pub(super) struct Slot {
    newest: ArrayQueue<Option<Box<Pair>>>,
    /// What the port has laid down: unmapping takes time.
    retired: ArrayQueue<Box<Pair>>,
    /// A link whose rings the port found broken.
    broken: AtomicU32,
    up: AtomicBool,
    /// A port has this queue.
    claimed: AtomicBool,
    /// What a waiting port waits on: the peer's interrupt and `wake`, edge-triggered, so that neither is ever read.
    events: OwnedFd,
    wake: OwnedFd,
}

impl Slot {
    fn new() -> io::Result<Self> {
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        watch(&events, wake.as_fd())?;
        Ok(Self {
            newest: ArrayQueue::new(1),
            // One for every offer that was taken; `offer` collects before it offers.
            retired: ArrayQueue::new(4),
            broken: AtomicU32::new(0),
            up: AtomicBool::new(false),
            claimed: AtomicBool::new(false),
            events,
            wake,
        })
    }

    /// Thread: other rings, or none.
    fn offer(&self, pair: Option<Box<Pair>>) {
        self.collect();
        self.up.store(pair.is_some(), Ordering::Relaxed);
        drop(self.newest.force_push(pair));
        self.wake();
    }

    /// Thread: unmaps what the port has laid down.
    fn collect(&self) {
        while self.retired.pop().is_some() {}
    }

    /// Port: exchanges its rings for the newest; whether it laid any down.
    pub(super) fn take(&self, current: &mut Option<Box<Pair>>) -> bool {
        match self.newest.pop() {
            None => false,
            Some(newest) => match std::mem::replace(current, newest) {
                None => false,
                Some(old) => {
                    // Never full (see `new`); if it were, unmapping here would be slow but not wrong.
                    drop(self.retired.push(old));
                    true
                }
            },
        }
    }

    /// Port: whether there is something to take.
    #[inline(always)]
    pub(super) fn is_newer(&self) -> bool {
        !self.newest.is_empty()
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Has whoever waits on `events` wake up.
    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// What to wait on.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Forgets what woke us, without reading what is the peer's.
    pub(super) fn quiet(&self) {
        let mut seen = [MaybeUninit::<epoll::Event>::uninit(); 4];
        let _ = epoll::wait(&self.events, &mut seen, Some(&NO_TIME));
    }
}

const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

fn watch(events: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = EventFlags::IN | EventFlags::ET;
    Ok(epoll::add(events, fd, EventData::new_u64(0), flags)?)
}

/// What the thread and all ports of an interface share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) slots: Box<[Slot]>,
    /// Queues whose peer waits for an interrupt.
    interrupts: AtomicU64,
    stop: AtomicBool,
    kick: OwnedFd,
}

impl Shared {
    /// Port: has the thread interrupt the peer of this queue.
    pub(super) fn interrupt(&self, queue: usize) {
        if self.interrupts.fetch_or(1 << queue, Ordering::AcqRel) == 0 {
            self.kick();
        }
    }

    /// Port: gives up on a link.
    pub(super) fn broken(&self, queue: usize, link: u32) {
        self.slots[queue].broken.store(link, Ordering::Relaxed);
        self.kick();
    }

    /// Has the thread look.
    pub(super) fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }
}

/// An interface: its thread ends with it.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) shared: Arc<Shared>,
    pub(super) terms: Terms,
    ended: Receiver<()>,
}

impl Interface {
    /// Listens, or begins to knock. `socket` is a path, or a name after `@` in the abstract namespace.
    pub(super) fn open(socket: &str, terms: Terms) -> Result<Self, BindError> {
        let failed = |error| BindError::Io {
            path: socket.into(),
            error,
        };
        let address = address(socket).map_err(failed)?;
        let listener = match terms.role {
            Role::Client => None,
            Role::Server => Some(Listener::new(socket, &address)?),
        };
        let new = || -> io::Result<Shared> {
            Ok(Shared {
                slots: (0..terms.queues).map(|_| Slot::new()).collect::<Result<_, _>>()?,
                interrupts: AtomicU64::new(0),
                stop: AtomicBool::new(false),
                kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            })
        };
        let shared = Arc::new(new().map_err(failed)?);
        let (end, ended) = bounded(0);
        let thread = Thread {
            name: format!("memif {} at {socket}", terms.name),
            shared: Arc::clone(&shared),
            terms: terms.clone(),
            address,
            listener,
            peer: Peer::None,
            links: 0,
            said: String::new(),
        };
        std::thread::Builder::new()
            .name(format!("memif-{}", terms.id))
            .spawn(move || thread.run(end))
            .map_err(failed)?;
        Ok(Self { shared, terms, ended })
    }

    /// Gives a queue to a port; `false` if it has one.
    pub(super) fn claim(&self, queue: usize) -> bool {
        let slot = self.shared.slots.get(queue);
        slot.is_some_and(|slot| !slot.claimed.swap(true, Ordering::Relaxed))
    }

    /// Takes it back.
    pub(super) fn give_up(&self, queue: usize) {
        self.shared.slots[queue].claimed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.kick();
        if self.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            log::warn!(
                "memif {}: its thread hangs in its peer's eventfd and is left there",
                self.terms.name
            );
        }
    }
}

fn address(socket: &str) -> io::Result<SocketAddrUnix> {
    Ok(match socket.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(socket)?,
    })
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// What a server listens with.
#[derive(Debug)]
enum Listener {
    /// A socket file, which goes with it.
    File(Endpoint),
    /// A name.
    Abstract(OwnedFd),
}

impl Listener {
    fn new(socket: &str, address: &SocketAddrUnix) -> Result<Self, BindError> {
        if !socket.starts_with('@') {
            return Ok(Self::File(Endpoint::bind(
                Path::new(socket),
                SocketType::SEQPACKET,
            )?));
        }
        let listen = || -> io::Result<OwnedFd> {
            let listener = seqpacket()?;
            rustix::net::bind(&listener, address)?;
            rustix::net::listen(&listener, 8)?;
            Ok(listener)
        };
        let failed = |error| BindError::Io {
            path: socket.into(),
            error,
        };
        listen().map(Self::Abstract).map_err(failed)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(endpoint) => endpoint.listener().as_fd(),
            Self::Abstract(fd) => fd.as_fd(),
        }
    }
}

/// Whom the thread talks to.
#[derive(Debug)]
enum Peer {
    /// Nobody: it waits, or knocks at once.
    None,
    /// Nobody, and for a moment nobody is let in.
    Resting,
    /// Somebody whose handshake is under way.
    Greeted(OwnedFd, Box<Handshake>),
    /// Somebody whose rings the ports have.
    Linked(OwnedFd, Interrupts),
}

/// The eventfds of a link, by queue.
#[derive(Debug)]
struct Interrupts {
    rx: Vec<Option<OwnedFd>>,
    tx: Vec<Option<OwnedFd>>,
}

struct Thread {
    name: String,
    shared: Arc<Shared>,
    terms: Terms,
    address: SocketAddrUnix,
    listener: Option<Listener>,
    peer: Peer,
    /// How many there were.
    links: u32,
    /// Why the last peer went: the same again is no news.
    said: String,
}

impl Thread {
    fn run(mut self, end: Sender<()>) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if matches!(self.peer, Peer::None) && self.listener.is_none() {
                self.knock();
            }
            let (kicked, socket) = self.wait();
            if kicked {
                self.kicked();
            }
            match (&self.peer, socket) {
                (Peer::None, true) => self.accept(),
                (Peer::Greeted(..) | Peer::Linked(..), true) => self.listen(),
                // Nobody kicked and nothing came: the time is over.
                (Peer::Resting, false) if !kicked => self.peer = Peer::None,
                (Peer::Greeted(..), false) if !kicked => {
                    let silent = format!("no message for {} s", PATIENCE.as_secs());
                    self.part(&Refusal(silent));
                }
                _ => {}
            }
        }
        if !matches!(self.peer, Peer::None | Peer::Resting) {
            self.part(&Refusal("the port is closed".into()));
        }
        // The socket file is gone before anybody hears of the end.
        drop(self);
        drop(end);
    }

    /// Waits for a kick, or for the socket that matters now; which of them it was.
    fn wait(&self) -> (bool, bool) {
        let mut fds = vec![PollFd::new(&self.shared.kick, PollFlags::IN)];
        let (socket, timeout) = match &self.peer {
            Peer::None => (self.listener.as_ref().map(AsFd::as_fd), None),
            Peer::Resting => (None, Some(REST)),
            Peer::Greeted(socket, _) => (Some(socket.as_fd()), Some(PATIENCE)),
            Peer::Linked(socket, _) => (Some(socket.as_fd()), None),
        };
        fds.extend(socket.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let timeout = timeout.map(|time| Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: time.subsec_nanos().into(),
        });
        // Interrupted: as if kicked.
        let Ok(_) = poll(&mut fds, timeout.as_ref()) else {
            return (true, false);
        };
        let ready = |nth: usize| fds.get(nth).is_some_and(|fd| !fd.revents().is_empty());
        (ready(0), ready(1))
    }

    /// What the ports have asked for.
    fn kicked(&mut self) {
        let _ = rustix::io::read(&self.shared.kick, &mut [0; 8]);
        let wanted = self.shared.interrupts.swap(0, Ordering::AcqRel);
        if let Peer::Linked(_, interrupts) = &self.peer {
            let wanted = |queue: &usize| wanted >> queue & 1 != 0;
            for fd in (0..interrupts.tx.len())
                .filter(wanted)
                .filter_map(|q| interrupts.tx[q].as_ref())
            {
                let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
            }
        }
        let mut broken = false;
        for slot in &self.shared.slots {
            slot.collect();
            broken |= slot.broken.swap(0, Ordering::Relaxed) == self.links;
        }
        if broken && matches!(self.peer, Peer::Linked(..)) {
            self.part(&Refusal("a ring's index or buffer is not sound".into()));
        }
    }

    /// Client: tries to reach the server.
    fn knock(&mut self) {
        let reached = seqpacket().and_then(|socket| {
            rustix::net::connect(&socket, &self.address)?;
            Ok(socket)
        });
        match reached {
            Ok(socket) => self.peer = Peer::Greeted(socket, Box::new(Handshake::new(self.terms.clone()))),
            Err(error) => {
                self.say(format!("no server there yet ({error}); trying on"));
                self.peer = Peer::Resting;
            }
        }
    }

    /// Server: lets a client in.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let greeted = rustix::net::accept_with(listener, flags)
            .map_err(io::Error::from)
            .and_then(|socket| {
                let handshake = Box::new(Handshake::new(self.terms.clone()));
                if let Some(hello) = handshake.greeting() {
                    send(&socket, &hello, None)?;
                }
                Ok(Peer::Greeted(socket, handshake))
            });
        self.peer = greeted.unwrap_or_else(|error| {
            self.say(format!("a client could not be let in: {error}"));
            Peer::Resting
        });
    }

    /// Hears what the peer has to say.
    fn listen(&mut self) {
        for _ in 0..MESSAGES {
            let heard = match &mut self.peer {
                Peer::None | Peer::Resting => return,
                Peer::Greeted(socket, handshake) => hear(socket).and_then(|heard| {
                    let Some((message, file)) = heard else {
                        return Ok(Heard::Nothing);
                    };
                    let reply = handshake.receive(message, file)?;
                    if let Some((answer, file)) = reply.answer {
                        send(&*socket, &answer, file.as_ref().map(AsFd::as_fd))
                            .map_err(|error| Refusal(format!("it does not take our messages: {error}")))?;
                    }
                    Ok(reply.link.map_or(Heard::More, |link| Heard::Link(Box::new(link))))
                }),
                Peer::Linked(socket, _) => hear(socket).and_then(|heard| match heard {
                    None => Ok(Heard::Nothing),
                    Some((Message::Disconnect { reason, .. }, _)) => {
                        Err(Refusal(format!("the peer says: {reason}")))
                    }
                    Some(_) => Err("a message behind the handshake's last".into()),
                }),
            };
            match heard {
                Ok(Heard::Nothing) => return,
                Ok(Heard::More) => {}
                Ok(Heard::Link(link)) => self.link(*link),
                Err(refusal) => return self.part(&refusal),
            }
        }
    }

    /// Hands the rings to the ports.
    fn link(&mut self, link: Link) {
        let Peer::Greeted(socket, _) = std::mem::replace(&mut self.peer, Peer::None) else {
            return;
        };
        self.links += 1;
        let rings = |has: fn(&super::handshake::Queue) -> bool| link.queues.iter().filter(|q| has(q)).count();
        log::info!(
            "{}: linked with {}, {} rings to us and {} from us in {} KiB",
            self.name,
            link.peer,
            rings(|q| q.rx.is_some()),
            rings(|q| q.tx.is_some()),
            link.bytes.div_ceil(1024)
        );
        self.said.clear();
        let mut interrupts = Interrupts {
            rx: Vec::new(),
            tx: Vec::new(),
        };
        for (slot, queue) in self.shared.slots.iter().zip(link.queues) {
            if let Some(interrupt) = &queue.rx_interrupt
                && let Err(error) = watch(&slot.events, interrupt.as_fd())
            {
                log::warn!("{}: cannot wait for its interrupts: {error}", self.name);
            }
            interrupts.rx.push(queue.rx_interrupt);
            interrupts.tx.push(queue.tx_interrupt);
            slot.offer(Some(Box::new(Pair {
                link: self.links,
                rx: queue.rx,
                tx: queue.tx,
            })));
        }
        self.peer = Peer::Linked(socket, interrupts);
    }

    /// Ends with a peer, and tells it why.
    fn part(&mut self, why: &Refusal) {
        let socket = match std::mem::replace(&mut self.peer, Peer::Resting) {
            Peer::None | Peer::Resting => return,
            Peer::Greeted(socket, _) => socket,
            Peer::Linked(socket, interrupts) => {
                for (slot, interrupt) in self.shared.slots.iter().zip(&interrupts.rx) {
                    slot.offer(None);
                    // The peer has it open, too: it would go on to wake us.
                    if let Some(interrupt) = interrupt {
                        let _ = epoll::delete(&slot.events, interrupt);
                    }
                }
                socket
            }
        };
        let reason = Text::new(&why.0);
        let _ = send(&socket, &Message::Disconnect { code: 0, reason }, None);
        self.say(format!("no link any more: {why}"));
    }

    fn say(&mut self, what: String) {
        if self.said != what {
            log::info!("{}: {what}", self.name);
            self.said = what;
        }
    }
}

enum Heard {
    Nothing,
    More,
    Link(Box<Link>),
}

fn send(socket: impl AsFd, message: &Message, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.into_iter().collect();
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&message.encode())], &mut ancillary, flags)?;
    Ok(())
}

/// The next message, if there is one now. What more files came along than one are closed.
fn hear(socket: &OwnedFd) -> Result<Option<(Message, Option<OwnedFd>)>, Refusal> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // One more than a message has, to see that there are no more.
    let mut bytes = [0; MESSAGE + 1];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags);
    let len = match received {
        Ok(received) => received.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(Refusal(format!("its socket: {error}"))),
    };
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match (len, bytes.first_chunk()) {
        (0, _) => Err("the peer is gone".into()),
        (MESSAGE, Some(message)) => match Message::decode(message) {
            Some(message) => Ok(Some((message, file))),
            None => Err("a message of unknown type".into()),
        },
        _ => Err(Refusal(format!("a message of {len} bytes, not {MESSAGE}"))),
    }
}
