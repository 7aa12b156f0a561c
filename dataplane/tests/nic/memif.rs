//! Memif peers that nobody would want, at the real socket. What they write into shared memory is tested at the rings, and fuzzed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, sendmsg, socket_with,
};
use sluice_dataplane::nic::memif::handshake::{Handshake, Link, Terms};
use sluice_dataplane::nic::memif::message::{MESSAGE, Message, RingPlace, Way};
use sluice_dataplane::nic::memif::{BUFFER_SIZE, MemifSpec, Role};
use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::{Burst, FrameMemory};

use crate::conformance::{FRAMES, Port};
use crate::port;

fn server(memory: &mut FrameMemory, path: &str) -> Port {
    let options = MemifSpec::new(path, Role::Server);
    port(memory, &mut None, "memif0", DriverSpec::Memif(options))
}

/// A client's socket, which has not heard anything yet.
fn client(path: &str) -> OwnedFd {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// The server's next message; `None` when it has hung up.
fn hear(socket: &OwnedFd) -> Option<Message> {
    let mut bytes = [0; MESSAGE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut []);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::empty(),
    )
    .unwrap();
    (received.bytes > 0).then(|| Message::decode(&bytes).expect("a server of ours sends messages"))
}

fn say(socket: &OwnedFd, message: &Message, file: Option<&OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.into_iter().map(AsFd::as_fd).collect();
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&message.encode())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

/// What a client has in its hands after a handshake.
struct Linked {
    socket: OwnedFd,
    _link: Link,
    region: OwnedFd,
    rings: Vec<(RingPlace, OwnedFd)>,
}

fn shake_hands(socket: OwnedFd) -> Linked {
    let terms = Terms {
        name: "peer0".into(),
        role: Role::Client,
        id: 0,
        secret: String::new(),
        queues: 1,
        log2_ring: 6,
        buffer_size: BUFFER_SIZE,
        lends: false,
    };
    let mut handshake = Handshake::new(terms, Vec::new());
    let (mut region, mut rings) = (None, Vec::new());
    loop {
        let message = hear(&socket).expect("the server goes on");
        let reply = handshake.receive(message, None).unwrap();
        if let Some(link) = reply.link {
            return Linked {
                socket,
                _link: link,
                region: region.expect("one was offered"),
                rings,
            };
        }
        let (answer, file) = reply.answer.expect("a client goes on, too");
        say(&socket, &answer, file.as_ref());
        match (answer, file) {
            (Message::AddRegion { .. }, Some(file)) => region = Some(file),
            (Message::AddRing(place), Some(file)) => rings.push((place, file)),
            _ => {}
        }
    }
}

#[test]
fn a_memif_peer_that_talks_nonsense_is_told_so_and_the_next_one_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memif.sock");
    let path = path.to_str().unwrap();
    let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
    let port = server(&mut memory, path);
    let mut unknown = [0; MESSAGE];
    unknown[0] = 99;
    let nonsense: [(&[u8], &str); 4] = [
        (b"hello", "a message of 5 bytes"),
        (&[0; MESSAGE + 1], "a message of 129 bytes"),
        (&unknown, "a message of unknown type"),
        (&Message::Ack.encode(), "unexpected message: ack"),
    ];
    for (bytes, why) in nonsense {
        let socket = client(path);
        assert!(matches!(hear(&socket), Some(Message::Hello { .. })));
        send(&socket, bytes, SendFlags::NOSIGNAL).unwrap();
        match hear(&socket) {
            Some(Message::Disconnect { reason, .. }) => assert!(reason.to_string().contains(why), "{reason}"),
            other => panic!("{other:?}, not: {why}"),
        }
        assert_eq!(hear(&socket), None, "hung up on");
    }
    // One that goes in the middle of it.
    drop(client(path));
    shake_hands(client(path));
    port.close(&mut memory);
    assert_eq!(memory.available(), FRAMES);
    assert!(!std::fs::exists(path).unwrap(), "the socket goes with the port");
}

/// Its eventfd is full, and it has made it block: whoever writes to it waits until the peer likes.
#[test]
fn a_memif_peer_whose_eventfd_blocks_holds_up_neither_packets_nor_the_close() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memif.sock");
    let path = path.to_str().unwrap();
    let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
    let mut port = server(&mut memory, path);
    let peer = shake_hands(client(path));
    let (place, interrupt) = peer
        .rings
        .iter()
        .find(|(place, _)| place.way == Way::ToClient)
        .unwrap();
    fcntl_setfl(interrupt, OFlags::empty()).unwrap();
    rustix::io::write(interrupt, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    // It wants interrupts: the flags of the ring, behind its cookie.
    rustix::io::pwrite(&peer.region, &[0; 2], u64::from(place.offset) + 4).unwrap();
    // Until the link is there they are refused.
    while port.stats().tx_packets < 32 {
        let mut frames: Burst = memory.copy_in(&[0; 60]).into_iter().collect();
        port.tx_burst(&mut memory, &mut frames);
        frames.drain(..).for_each(|frame| memory.free(frame));
        std::thread::yield_now();
    }
    // Comes back although the port's thread does not.
    port.close(&mut memory);
    assert_eq!(memory.available(), FRAMES);
    assert!(
        !hung_up(&peer.socket, Duration::ZERO),
        "the thread hangs in the eventfd"
    );
    // The peer reads it after all, and the thread finds that it is not wanted any more.
    rustix::io::read(interrupt, &mut [0; 8]).unwrap();
    assert!(
        hung_up(&peer.socket, Duration::from_secs(10)),
        "the thread has ended"
    );
}

/// Whether the server says its last word within this time.
fn hung_up(socket: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit)).unwrap() > 0
}
