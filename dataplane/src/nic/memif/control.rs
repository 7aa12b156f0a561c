//! A memif interface's thread: it holds the socket, shakes hands, hands each queue's rings to the port that drives it, and
//! takes them away when the peer is gone. Then it waits for the next peer, or knocks again.
//!
//! It is a thread of its own because it does what a worker must not: it maps memory, and it writes to eventfds that a
//! hostile peer may make block. It sleeps in poll(2) but for those moments.

use std::io::{self};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SocketAddrUnix, SocketFlags};

use super::handshake::{Frames, Handshake, Link, Refusal, Role, Terms};
use super::message::{Message, Text};
use super::slot::{Pair, Slot};
use super::socket::{Listener, address, hear, send, seqpacket};
use crate::channel::BindError;

/// Before the next attempt, and after a peer that went: a restarted peer is back in a tenth of a second, and one that fails
/// in a loop costs ten handshakes a second.
const REST: Duration = Duration::from_millis(100);
/// For the next message of a handshake: the peer has little to do in between, and others wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages read at one time: a peer that talks without end cannot keep us from anything else.
const MESSAGES: usize = 16;
/// How long a port that closes waits for the thread, which may hang in a hostile peer's eventfd.
const FAREWELL: Duration = Duration::from_secs(2);

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

    /// Gives a queue to a port, whose frames are lent if they are given; `false` if it has one.
    pub(super) fn claim(&self, queue: usize, frames: Option<Frames>) -> bool {
        let slot = self.shared.slots.get(queue);
        let free = slot.filter(|slot| !slot.claimed.swap(true, Ordering::Relaxed));
        free.inspect(|slot| slot.lend(frames)).is_some()
    }

    /// Takes it back.
    pub(super) fn give_up(&self, queue: usize) {
        self.shared.slots[queue].lend(None);
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

    /// Client: what is lent with each queue. Errors: a port has not come yet; no descriptor left.
    fn frames(&self) -> io::Result<Vec<Frames>> {
        if !self.terms.lends {
            return Ok(Vec::new());
        }
        let lent = |slot: &Slot| {
            let missing = || io::Error::other("its workers are not all there");
            slot.lent()?.ok_or_else(missing)
        };
        self.shared.slots.iter().map(lent).collect()
    }

    /// Client: tries to reach the server.
    fn knock(&mut self) {
        let reached = seqpacket().and_then(|socket| {
            let frames = self.frames()?;
            rustix::net::connect(&socket, &self.address)?;
            Ok((socket, Handshake::new(self.terms.clone(), frames)))
        });
        match reached {
            Ok((socket, handshake)) => self.peer = Peer::Greeted(socket, Box::new(handshake)),
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
                let handshake = Box::new(Handshake::new(self.terms.clone(), Vec::new()));
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
                && let Err(error) = slot.watch(interrupt.as_fd())
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
                        slot.forget(interrupt.as_fd());
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
