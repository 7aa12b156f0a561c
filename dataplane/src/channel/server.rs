//! The dataplane's end of the channel, for the steward.
//!
//! Takes  a path for the socket.     Gives  whole transactions and requests for dumps; carries the answers back.
//! Never  blocks, never trusts a byte of control's, never holds more than one control and one transaction.
//!
//! The steward waits on `fds` with poll(2), calls `poll` until it gives `None`, and waits again (without a timeout of
//! its own only while `wants_poll` is false).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::SocketType;

use crate::counters::{CounterPages, WorkerCounters};
use crate::index::{Generation, WorkerIndex};

use super::endpoint::{BindError, Endpoint};
use super::intake::{Intake, Step};
use super::layout::{Geometry, LayoutError, Segment, Way};
use super::message::{Message, Nack, NackReason};
use super::outbox::{BUDGET, Flush, Outbox};
use super::peer::Peer;
use super::record::Record;
use super::ring::{RingReader, RingWriter};
use super::socket::{self, Doorbell};

pub use super::intake::Transaction;

/// Connections accepted in one turn: enough for a mistaken second control, too few to hold the steward.
const ACCEPTS: usize = 8;

/// Refusals in a row after which control is hung up on: it does not speak this protocol, and each refusal is a log line.
const REFUSALS: u32 = 64;

/// Sizes of the segment and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Slots of each ring, a power of two from `RING_SLOTS_MIN` to `RING_SLOTS_MAX`; a slot has 256 bytes.
    pub ring_slots: usize,
    /// Counter pages, one per worker, at most `WORKERS_MAX`.
    pub workers: usize,
    /// Most puts and deletes in one transaction: bounds the steward's memory.
    pub max_changes: usize,
}

impl Default for ServerOptions {
    /// 1024 slots: 256 KiB a ring, half a second-level cache, and a transaction of a few Services never waits. 2²⁰ rows:
    /// 10,000 Services with 100 endpoints each, from nothing, in one transaction of some 200 MB at most.
    fn default() -> Self {
        Self {
            ring_slots: 1024,
            workers: 1,
            max_changes: 1 << 20,
        }
    }
}

/// What control wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Commit this or not: nothing further is read until `ack` or `nack`.
    Transaction(Transaction),
    /// Answer with `dump`.
    DumpRequest,
    /// Control is gone, and with it whatever it had not committed. The tables stay as they are.
    Disconnected,
}

/// The dataplane's end.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    segment: Segment,
    options: ServerOptions,
    /// Pages whose writer was not yet taken.
    counters: Vec<WorkerCounters>,
    control: Option<Control>,
    /// accept(2) failed at its last call: not waited for until something else wakes the steward.
    deaf: bool,
    again: bool,
}

/// The connected control process.
#[derive(Debug)]
struct Control {
    peer: Peer,
    doorbell: Doorbell,
    inbox: RingReader,
    intake: Intake,
    outbox: Outbox,
    /// A transaction that the steward has not answered.
    unanswered: Option<Generation>,
    refusals: u32,
    /// After the other end closed: messages that may still be read, a ring full at most. What was published whole
    /// before the end is committed; whoever keeps writing after it is not listened to for ever.
    last: Option<usize>,
}

/// A reason to hang up, for the log.
struct HangUp(String);

impl Server {
    /// Makes the segment and listens at `path`. A socket file that a dead process left behind is replaced.
    ///
    /// Errors: `BindError` says who holds the path, or what the system refused.
    pub fn bind(path: impl AsRef<Path>, options: ServerOptions) -> Result<Self, BindError> {
        let geometry = Geometry {
            ring_slots: options.ring_slots,
            workers: options.workers,
        };
        let segment = Segment::create(geometry).map_err(|error| match error {
            LayoutError::Map(error) => BindError::Segment(error),
            bad => BindError::Options(bad.to_string()),
        })?;
        let pages = CounterPages::new(segment.counter_words());
        let counters = (0..options.workers)
            .filter_map(|w| pages.writer(WorkerIndex(w as u8)))
            .collect();
        let endpoint = Endpoint::bind(path.as_ref(), SocketType::STREAM)?;
        Ok(Self {
            endpoint,
            segment,
            options,
            counters,
            control: None,
            deaf: false,
            again: false,
        })
    }

    /// The writers of all counter pages, in worker order. The first call gets them: a page has one writer.
    pub fn take_counters(&mut self) -> Vec<WorkerCounters> {
        std::mem::take(&mut self.counters)
    }

    /// All counter pages, to read.
    pub fn counter_pages(&self) -> CounterPages {
        CounterPages::new(self.segment.counter_words())
    }

    /// What to wait on for reading with poll(2).
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = (!self.deaf).then(|| self.endpoint.listener().as_fd());
        // A closed connection is always readable: `poll` knows already, and says so when it has read the ring.
        let control = self
            .control
            .as_ref()
            .filter(|c| c.last.is_none())
            .map(|c| c.doorbell.as_fd());
        listener.into_iter().chain(control)
    }

    /// There is more to do now: call `poll` again without waiting.
    pub const fn wants_poll(&self) -> bool {
        self.again
    }

    /// Whether a control process is connected.
    pub const fn is_connected(&self) -> bool {
        self.control.is_some()
    }

    /// Does what can be done without waiting, up to the next event; bounded, whatever control does.
    pub fn poll(&mut self) -> Option<Event> {
        self.again = false;
        let event = match self.control.as_mut().map(Control::serve) {
            Some(Ok((event, again))) => {
                self.again = again;
                event
            }
            Some(Err(HangUp(reason))) => {
                if let Some(control) = self.control.take() {
                    control.log_end(&reason);
                }
                self.again = true;
                Some(Event::Disconnected)
            }
            None => None,
        };
        if event.is_none() {
            self.admit();
        }
        event
    }

    /// The transaction is committed.
    pub fn ack(&mut self, generation: Generation) {
        self.answer(generation, &Message::Ack { generation });
    }

    /// The transaction changed nothing, because of `text`, a sentence for a person. `message` is the number of the
    /// offending row: deletes count from 1, puts go on after them; 0 if no single row is to blame.
    pub fn nack(&mut self, generation: Generation, message: u64, text: &str) {
        log::warn!(
            "update to generation {} refused, message {message}: {text}",
            generation.0
        );
        let reason = NackReason::Refused;
        self.answer(
            generation,
            &Message::Nack(Nack {
                generation,
                message,
                reason,
                text: text.to_owned(),
            }),
        );
    }

    /// Answers a `DumpRequest` with every record of `generation`. The iterator is read as control makes room, over
    /// many calls of `poll`: it must own what it reads (a snapshot), and no transaction is read meanwhile.
    pub fn dump<I>(&mut self, generation: Generation, records: I)
    where
        I: IntoIterator<Item = Record>,
        I::IntoIter: Send + 'static,
    {
        self.again = true;
        if let Some(control) = &mut self.control {
            control.outbox.dump(generation, Box::new(records.into_iter()));
        }
    }

    fn answer(&mut self, generation: Generation, message: &Message) {
        self.again = true;
        // Control may have gone, and another come, since the question.
        if let Some(control) = self.control.as_mut().filter(|c| c.unanswered == Some(generation)) {
            control.unanswered = None;
            control.outbox.answer(message);
            // At once: control waits for it. What goes wrong here goes wrong again in `serve`, which says so.
            let _ = control.flush();
        }
    }

    /// Lets a control in, or tells a second one why not.
    fn admit(&mut self) {
        for _ in 0..ACCEPTS {
            match self.endpoint.listener().accept() {
                Ok((socket, _)) => self.greet(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.deaf = false;
                    return;
                }
                Err(error) => {
                    if !self.deaf {
                        log::error!("no control process can connect to {}: {error}", self.endpoint);
                    }
                    self.deaf = true;
                    return;
                }
            }
        }
        self.again = true;
    }

    fn greet(&mut self, socket: UnixStream) {
        let peer = match Peer::of(&socket) {
            Ok(peer) if peer.is_trusted() => peer,
            Ok(peer) => {
                log::warn!(
                    "{peer} may not control this dataplane: connection to {} refused",
                    self.endpoint
                );
                return socket::refuse(&socket, "only root and the dataplane's own user may control it");
            }
            Err(error) => return log::warn!("connection to {} refused: {error}", self.endpoint),
        };
        let doorbell = Doorbell::new(socket);
        if doorbell.is_hung_up() {
            return; // a second dataplane that only asked whether somebody listens here
        }
        if let Some(control) = &self.control {
            log::warn!(
                "{peer} refused at {}: {} is connected",
                self.endpoint,
                control.peer
            );
            let held = format!("{} controls this dataplane already; stop it first", control.peer);
            return socket::refuse(&doorbell, &held);
        }
        // Nobody uses the rings: the last control is gone. (One that closed its socket but kept the mapping could
        // write into its successor's ring: it is trusted as much as the successor, and believed as little.)
        self.segment.prepare();
        let offered = self
            .segment
            .memfd()
            .ok_or_else(|| io::ErrorKind::Unsupported.into());
        if let Err(error) = offered.and_then(|memfd| socket::offer(&doorbell, memfd)) {
            return log::debug!("{peer} left before it had the segment: {error}");
        }
        log::info!("control process connected: {peer}");
        self.control = Some(Control {
            peer,
            doorbell,
            inbox: RingReader::new(&self.segment, Way::ToDataplane),
            intake: Intake::new(self.options.max_changes),
            outbox: Outbox::new(RingWriter::new(&self.segment, Way::ToControl)),
            unanswered: None,
            refusals: 0,
            last: None,
        });
        self.again = true;
    }
}

impl Control {
    /// One turn: hear the bells, write what waits, read until an event. With it, whether there is more to do.
    fn serve(&mut self) -> Result<(Option<Event>, bool), HangUp> {
        let turn = self.turn();
        self.give_back();
        turn
    }

    fn turn(&mut self) -> Result<(Option<Event>, bool), HangUp> {
        // First the bells and the end, then the rings: what was published before either is then seen.
        if self.last.is_none() && !self.doorbell.drain() {
            self.last = Some(self.ring_slots());
        }
        for _ in 0..BUDGET {
            let flushed = self.flush()?;
            if self.last.is_none() && !self.outbox.is_empty() {
                return Ok((None, flushed == Flush::Again));
            }
            if self.unanswered.is_some() {
                return Ok((None, false));
            }
            let Some(slot) = self.next()? else {
                return match self.last {
                    Some(_) => Err(HangUp("it closed the channel".into())),
                    None => Ok((None, false)),
                };
            };
            if let Some(event) = self.act(&slot)? {
                return Ok((Some(event), true));
            }
        }
        Ok((None, true))
    }

    fn act(&mut self, slot: &super::codec::Slot) -> Result<Option<Event>, HangUp> {
        match self.intake.take(slot) {
            Step::More => Ok(None),
            Step::Transaction(transaction) => {
                self.refusals = 0;
                self.unanswered = Some(transaction.generation);
                Ok(Some(Event::Transaction(transaction)))
            }
            Step::DumpRequest => Ok(Some(Event::DumpRequest)),
            Step::Refuse(nack) => {
                log::warn!("update from {} refused: {nack}", self.peer);
                self.outbox.answer(&Message::Nack(nack));
                self.refusals += 1;
                if self.refusals < REFUSALS {
                    Ok(None)
                } else {
                    Err(HangUp("it was refused too often".into()))
                }
            }
            Step::HangUp(nack) => {
                let reason = nack.to_string();
                self.outbox.answer(&Message::Nack(nack));
                self.flush()?;
                Err(HangUp(reason))
            }
        }
    }

    /// The next message, if one may still be read.
    fn next(&mut self) -> Result<Option<super::codec::Slot>, HangUp> {
        if let Some(last) = &mut self.last {
            let Some(rest) = last.checked_sub(1) else {
                return Ok(None);
            };
            *last = rest;
        }
        self.inbox.pop().map_err(|error| HangUp(error.to_string()))
    }

    /// Slots that were read are control's again.
    fn give_back(&mut self) {
        if self.inbox.release() {
            self.doorbell.ring();
        }
    }

    fn flush(&mut self) -> Result<Flush, HangUp> {
        if self.last.is_some() {
            return Ok(Flush::Done); // nobody reads any more
        }
        let (outcome, written) = self.outbox.flush().map_err(|error| HangUp(error.to_string()))?;
        if written {
            self.doorbell.ring();
        }
        Ok(outcome)
    }

    const fn ring_slots(&self) -> usize {
        self.inbox.slots()
    }

    fn log_end(&self, reason: &str) {
        match self.intake.unfinished() {
            Some((generation, messages)) => log::warn!(
                "control process disconnected ({}): {reason}; its unfinished update to generation {} ({messages} \
                 messages) is discarded, nothing changed",
                self.peer,
                generation.0
            ),
            None => log::info!("control process disconnected ({}): {reason}", self.peer),
        }
    }
}
