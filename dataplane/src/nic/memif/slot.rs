//! Where a memif interface's thread and the port of a queue meet: the thread offers rings, the port takes them between two
//! bursts and lays the old ones down. Neither ever waits for the other.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam::queue::ArrayQueue;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::handshake::Frames;
use super::queue::{Rx, Tx};
use crate::nic::FrameMemory;

/// A queue's rings, of one link.
#[derive(Debug)]
pub(super) struct Pair {
    /// Number of the link.
    pub(super) link: u32,
    pub(super) rx: Option<Rx>,
    pub(super) tx: Option<Tx>,
}

impl Pair {
    /// Port: gives back the frames in it, and uses it no more.
    pub(super) fn end(&mut self, memory: &mut FrameMemory) {
        if let Some(rx) = &mut self.rx {
            rx.end(memory);
        }
        if let Some(tx) = &mut self.tx {
            tx.end(memory);
        }
    }
}

/// Where the thread and the port of a queue meet.
#[derive(Debug)]
pub(super) struct Slot {
    newest: ArrayQueue<Option<Box<Pair>>>,
    /// What the port has laid down: unmapping takes time.
    retired: ArrayQueue<Box<Pair>>,
    /// A link whose rings the port found broken.
    pub(super) broken: AtomicU32,
    up: AtomicBool,
    /// A port has this queue.
    pub(super) claimed: AtomicBool,
    /// That port's frame memory, if it is to be lent.
    frames: Mutex<Option<Frames>>,
    /// What a waiting port waits on: the peer's interrupt and `wake`, edge-triggered, so that neither is ever read.
    events: OwnedFd,
    wake: OwnedFd,
}

impl Slot {
    pub(super) fn new() -> io::Result<Self> {
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
            frames: Mutex::new(None),
            events,
            wake,
        })
    }

    /// Port, before its first burst: what is lent, or nothing any more.
    pub(super) fn lend(&self, frames: Option<Frames>) {
        *self.frames.lock().unwrap_or_else(PoisonError::into_inner) = frames;
    }

    /// Thread: what is lent, once the port has come. Errors: no descriptor left.
    pub(super) fn lent(&self) -> io::Result<Option<Frames>> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.as_ref().map(Frames::try_clone).transpose()
    }

    /// Thread: other rings, or none.
    pub(super) fn offer(&self, pair: Option<Box<Pair>>) {
        self.collect();
        self.up.store(pair.is_some(), Ordering::Relaxed);
        drop(self.newest.force_push(pair));
        self.wake();
    }

    /// Thread: unmaps what the port has laid down.
    pub(super) fn collect(&self) {
        while self.retired.pop().is_some() {}
    }

    /// Port: exchanges its rings for the newest; whether it laid any down.
    pub(super) fn take(&self, current: &mut Option<Box<Pair>>, memory: &mut FrameMemory) -> bool {
        let Some(newest) = self.newest.pop() else {
            return false;
        };
        let mut old = std::mem::replace(current, newest);
        if let Some(old) = &mut old {
            old.end(memory);
        }
        if let Some(rx) = current.as_mut().and_then(|pair| pair.rx.as_mut()) {
            rx.begin(memory);
        }
        // Never full (see `new`); if it were, unmapping here would be slow but not wrong.
        old.is_some_and(|old| self.retired.push(old).is_ok())
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

    /// Thread: who waits on `events` wakes up for this, too.
    pub(super) fn watch(&self, interrupt: BorrowedFd<'_>) -> io::Result<()> {
        watch(&self.events, interrupt)
    }

    /// Thread: and no more.
    pub(super) fn forget(&self, interrupt: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.events, interrupt);
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
