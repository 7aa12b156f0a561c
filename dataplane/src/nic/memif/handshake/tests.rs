//! Both ends of the handshake against each other, and a peer that does not keep to it.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;

pub(crate) fn terms(role: Role) -> Terms {
    Terms {
        name: format!("{role:?}"),
        role,
        id: 7,
        secret: "sesame".into(),
        queues: 2,
        log2_ring: 3,
        buffer_size: 256,
        lends: false,
    }
}

/// Lets two ends talk until both have a link, or one refuses.
pub(crate) fn shake(server: Terms, client: Terms) -> Result<(Link, Link), Refusal> {
    shake_lending(server, client, Vec::new())
}

/// The same, and the client has frames to lend.
pub(crate) fn shake_lending(
    server: Terms,
    client: Terms,
    frames: Vec<Frames>,
) -> Result<(Link, Link), Refusal> {
    let (mut server, mut client) = (Handshake::new(server, Vec::new()), Handshake::new(client, frames));
    let mut to_client = server.greeting().map(|hello| (hello, None));
    let mut served = None;
    while let Some((message, file)) = to_client.take() {
        // As over the wire.
        let message = Message::decode(&message.encode()).unwrap();
        let reply = client.receive(message, file)?;
        if let Some(link) = reply.link {
            return Ok((served.expect("the server connects first"), link));
        }
        let (message, file) = reply
            .answer
            .expect("a client has something to say until it is connected");
        let reply = server.receive(Message::decode(&message.encode()).unwrap(), file)?;
        served = reply.link.or(served);
        to_client = reply.answer;
    }
    unreachable!("a server answers every message")
}

#[test]
fn two_ends_agree_on_the_fewer_queues_and_the_smaller_ring() {
    let (server, client) = shake(terms(Role::Server), terms(Role::Client)).unwrap();
    for link in [&server, &client] {
        assert_eq!(link.queues.len(), 2);
        for queue in &link.queues {
            assert!(queue.rx.is_some() && queue.tx.is_some());
            assert!(queue.rx_interrupt.is_some() && queue.tx_interrupt.is_some());
        }
    }
    assert_eq!(server.bytes, client.bytes);
    assert!(
        server.peer.ends_with("Client") && client.peer.ends_with("Server"),
        "{} {}",
        server.peer,
        client.peer
    );
    let one = Terms {
        queues: 1,
        ..terms(Role::Server)
    };
    let (server, client) = shake(one, terms(Role::Client)).unwrap();
    assert_eq!((server.queues.len(), client.queues.len()), (1, 2));
    assert!(client.queues[0].tx.is_some() && client.queues[1].tx.is_none() && client.queues[1].rx.is_none());
}

#[test]
fn who_is_not_meant_is_told_why() {
    let other = |change: fn(&mut Terms)| {
        let mut client = terms(Role::Client);
        change(&mut client);
        shake(terms(Role::Server), client).unwrap_err().0
    };
    assert_eq!(other(|t| t.id = 8), "ID not found");
    assert_eq!(other(|t| t.secret = "sesam".into()), "incorrect secret");
    assert_eq!(other(|t| t.secret.clear()), "incorrect secret");
    let open = Terms {
        secret: String::new(),
        ..terms(Role::Server)
    };
    assert!(
        shake(open, terms(Role::Client)).is_ok(),
        "a secret nobody asks for does no harm"
    );
}

fn init() -> Message {
    Message::Init {
        version: VERSION,
        id: 7,
        mode: ETHERNET,
        secret: Text::new("sesame"),
        name: Text::new("test"),
    }
}

fn memfd(len: u64) -> Option<OwnedFd> {
    let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, len).unwrap();
    Some(file)
}

fn event() -> Option<OwnedFd> {
    Some(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
}

const PLACE: RingPlace = RingPlace {
    way: Way::ToServer,
    index: 0,
    region: 0,
    offset: 0,
    log2_size: 3,
    private_header: 0,
};

/// What a server says to a client whose first messages were right.
fn answer(messages: impl IntoIterator<Item = (Message, Option<OwnedFd>)>) -> Result<(), String> {
    let mut server = Handshake::new(terms(Role::Server), Vec::new());
    server.receive(init(), None).unwrap();
    for (message, file) in messages {
        server.receive(message, file).map_err(|refusal| refusal.0)?;
    }
    Ok(())
}

#[test]
fn a_client_that_does_not_keep_to_the_protocol_is_refused_with_a_sentence() {
    let region = |size| Message::AddRegion { index: 0, size };
    let ring = |place| (Message::AddRing(place), event());
    let refused = |messages: Vec<(Message, Option<OwnedFd>)>, why: &str| {
        let error = answer(messages).unwrap_err();
        assert!(error.contains(why), "{error}, not: {why}");
    };
    refused(vec![(init(), None)], "unexpected message: init");
    refused(vec![(region(4096), None)], "without its file");
    refused(vec![(region(8192), memfd(4096))], "shorter than its 8192 bytes");
    refused(vec![(region(1 << 40), memfd(4096))], "more than 4294967296 bytes");
    let far = Message::AddRegion { index: 1, size: 4096 };
    refused(vec![(far, memfd(4096))], "numbered from 0 to 15");
    refused(vec![(Message::AddRing(PLACE), None)], "without its interrupt");
    refused(vec![(Message::AddRing(PLACE), memfd(8))], "must be an eventfd");
    let (reader, _writer) = std::io::pipe().unwrap();
    refused(
        vec![(Message::AddRing(PLACE), Some(reader.into()))],
        "must be an eventfd",
    );
    refused(
        vec![ring(RingPlace { index: 1, ..PLACE })],
        "numbered from 0 to 1",
    );
    refused(
        vec![
            ring(PLACE),
            ring(RingPlace { index: 1, ..PLACE }),
            ring(RingPlace { index: 2, ..PLACE }),
        ],
        "numbered from 0 to 1",
    );
    refused(
        vec![ring(RingPlace {
            private_header: 8,
            ..PLACE
        })],
        "private headers",
    );
    let connect = || (Message::Connect { name: Text::new("c") }, None);
    for place in [
        PLACE, // no cookie
        RingPlace { region: 1, ..PLACE },
        RingPlace {
            offset: 4000,
            ..PLACE
        },
        RingPlace {
            log2_size: 8,
            ..PLACE
        },
        RingPlace {
            log2_size: 255,
            ..PLACE
        },
    ] {
        refused(
            vec![(region(4096), memfd(4096)), ring(place), connect()],
            "there is none where it is said",
        );
    }
    refused(
        vec![(
            Message::Disconnect {
                code: 1,
                reason: Text::new("bye"),
            },
            None,
        )],
        "the peer says: bye",
    );
}

#[test]
fn more_regions_than_are_of_use_are_refused() {
    let region = |index| (Message::AddRegion { index, size: 4096 }, memfd(4096));
    assert_eq!(answer((0..MAX_REGIONS).map(region)), Ok(()));
    assert!(answer((0..=MAX_REGIONS).map(region)).is_err());
    let large = |index| {
        (
            Message::AddRegion {
                index,
                size: MAX_BYTES / 2,
            },
            memfd(MAX_BYTES / 2),
        )
    };
    assert_eq!(answer((0..2).map(large)), Ok(()));
    assert!(answer((0..3).map(large)).unwrap_err().contains("4294967296"));
}

#[test]
fn a_server_that_speaks_another_version_or_out_of_turn_is_left() {
    let hello = |versions, max_log2_size| Message::Hello {
        name: Text::new("test"),
        versions,
        max_region: 0,
        max_to_client: u16::MAX,
        max_to_server: u16::MAX,
        max_log2_size,
    };
    let client = || Handshake::new(terms(Role::Client), Vec::new());
    assert!(
        client()
            .receive(hello((VERSION + 1, VERSION + 2), 10), None)
            .is_err()
    );
    assert!(client().receive(Message::Ack, None).is_err());
    let mut smallest = client();
    smallest.receive(hello((VERSION, VERSION), 0), None).unwrap();
    let early = Message::Connected { name: Text::new("s") };
    assert!(
        smallest.receive(early, None).is_err(),
        "connected before all was said"
    );
}
