//! The Unix socket of the channel: hand-over of the segment, doorbell, liveness. No data goes through it.
//!
//! The dataplane greets each connection with one byte: `SEGMENT`, with the memfd attached, or `REFUSED`, with a
//! sentence after it. From then on any byte, either way, is a doorbell: "look at your rings". A bell rung while earlier
//! bells wait unheard may be lost, since one is enough; a bell is rung *after* what it announces is published, and
//! heard (drained) *before* the rings are looked at, so none can be missed.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

const SEGMENT: u8 = b'S';
const REFUSED: u8 = b'R';
const BELL: u8 = b'!';

/// Longest sentence of a refusal.
const REFUSAL_MAX: usize = 512;

/// Never block, never SIGPIPE: a full socket has unheard bells enough, a closed one is noticed by the next `drain`.
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// What the dataplane greeted with.
#[derive(Debug)]
pub(super) enum Greeting {
    /// The segment's memfd.
    Segment(OwnedFd),
    /// Why not.
    Refused(String),
}

/// Greets with the segment.
pub(super) fn offer(socket: impl AsFd, memfd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [memfd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(&[SEGMENT])], &mut ancillary, SEND)?;
    Ok(())
}

/// Greets with a refusal. Whoever does not stay to hear it is not waited for.
pub(super) fn refuse(socket: impl AsFd, sentence: &str) {
    let mut greeting = vec![REFUSED];
    greeting.extend_from_slice(&sentence.as_bytes()[..sentence.floor_char_boundary(REFUSAL_MAX)]);
    let _ = rustix::net::send(socket, &greeting, SEND);
}

/// Connects without waiting. Errors: WouldBlock where the queue of a listener that accepts nobody is full.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Waits for the greeting. Errors: UnexpectedEof where the other side went away, InvalidData where it is no Sluice,
/// WouldBlock where it said nothing for as long as `patience`.
pub(super) fn receive(socket: &UnixStream, patience: Duration) -> io::Result<Greeting> {
    socket.set_read_timeout(Some(patience))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 1 + REFUSAL_MAX];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
    })?;
    let memfd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match (bytes.get(..received.bytes).unwrap_or_default(), memfd) {
        ([SEGMENT, ..], Some(memfd)) => Ok(Greeting::Segment(memfd)),
        ([REFUSED, sentence @ ..], _) => {
            Ok(Greeting::Refused(String::from_utf8_lossy(sentence).into_owned()))
        }
        ([], _) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the socket does not greet as Sluice's dataplane does",
        )),
    }
}

/// The socket after the greeting.
#[derive(Debug)]
pub(super) struct Doorbell(UnixStream);

impl Doorbell {
    pub(super) const fn new(socket: UnixStream) -> Self {
        Self(socket)
    }

    /// "Look at your rings."
    pub(super) fn ring(&self) {
        let _ = rustix::net::send(&self.0, &[BELL], SEND);
    }

    /// Hears all bells that wait; false if the other side is gone.
    pub(super) fn drain(&self) -> bool {
        let mut bells = [0; 4096];
        match retry_on_intr(|| rustix::net::recv(&self.0, &mut bells[..], RecvFlags::DONTWAIT)) {
            Ok((_, 0)) => false,
            // A peer that rings faster than we hear cannot hold us here: one read a call.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => !self.is_hung_up(),
            Err(_) => false,
        }
    }

    /// Waits for a bell or for the other side's end; false if neither came within `patience`.
    pub(super) fn wait(&self, patience: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN | PollFlags::RDHUP)];
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        Ok(retry_on_intr(|| poll(&mut fds, Some(&timeout)))? > 0)
    }

    /// Whether the other side is gone, heard bells or not.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        match retry_on_intr(|| {
            poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            )
        }) {
            Ok(_) => fds[0].revents().intersects(gone),
            Err(_) => true,
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::channel::client::PATIENCE;

    #[test]
    fn a_bell_is_heard_once_and_an_end_is_noticed_behind_unheard_bells() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (Doorbell::new(ours), Doorbell::new(theirs));
        assert!(ours.drain());
        theirs.ring();
        assert!(ours.wait(PATIENCE).unwrap());
        assert!(ours.drain() && !ours.is_hung_up());
        theirs.ring();
        drop(theirs);
        assert!(ours.is_hung_up());
        assert!(!ours.drain());
    }

    #[test]
    fn ringing_a_socket_that_nobody_hears_neither_blocks_nor_fails() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Doorbell::new(ours);
        for _ in 0..100_000 {
            ours.ring();
        }
        drop(theirs);
        ours.ring();
        assert!(ours.is_hung_up());
    }

    #[test]
    fn a_greeting_is_a_segment_or_a_sentence_or_an_error() {
        let greeted = |greet: &dyn Fn(&UnixStream)| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            greet(&ours);
            drop(ours);
            receive(&theirs, PATIENCE)
        };
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            greeted(&|s| offer(s, file.as_fd()).unwrap()),
            Ok(Greeting::Segment(_))
        ));
        assert!(matches!(greeted(&|s| refuse(s, "busy")), Ok(Greeting::Refused(text)) if text == "busy"));
        let kind = |result: io::Result<Greeting>| result.unwrap_err().kind();
        assert_eq!(kind(greeted(&|_| ())), io::ErrorKind::UnexpectedEof);
        assert_eq!(
            kind(greeted(&|s| Doorbell::new(s.try_clone().unwrap()).ring())),
            io::ErrorKind::InvalidData
        );
        let no_fd = |s: &UnixStream| assert_eq!(rustix::net::send(s, b"S", SEND), Ok(1));
        assert_eq!(kind(greeted(&no_fd)), io::ErrorKind::InvalidData);
    }
}
