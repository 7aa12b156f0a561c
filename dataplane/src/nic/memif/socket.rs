//! A memif interface's socket: where it listens or knocks, and messages with the files that come along with them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::handshake::Refusal;
use super::message::{MESSAGE, Message};
use crate::channel::BindError;
use crate::channel::endpoint::Endpoint;

/// A path, or a name after `@` in the abstract namespace.
pub(super) fn address(socket: &str) -> io::Result<SocketAddrUnix> {
    Ok(match socket.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(socket)?,
    })
}

/// A socket that never waits.
pub(super) fn seqpacket() -> io::Result<OwnedFd> {
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
pub(super) enum Listener {
    /// A socket file, which goes with it.
    File(Endpoint),
    /// A name.
    Abstract(OwnedFd),
}

impl Listener {
    pub(super) fn new(socket: &str, address: &SocketAddrUnix) -> Result<Self, BindError> {
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

/// Sends a message, with a file where it has one, or fails: it never waits.
pub(super) fn send(socket: impl AsFd, message: &Message, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
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
pub(super) fn hear(socket: &OwnedFd) -> Result<Option<(Message, Option<OwnedFd>)>, Refusal> {
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
