//! The server on loopback: datagrams, streams, names of others, and what happens when there is too much of any.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use sluice_control::dns::sockets::Sockets;
use sluice_control::dns::upstream::Upstream;
use sluice_control::dns::{Server, Settings};

use crate::dns::{options, question, zone};

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
                   spec: {clusterIP: 10.96.0.7, ports: [{port: 80, name: http}]}\n---\n\
                   apiVersion: v1\nkind: Service\nmetadata: {name: far}\n\
                   spec: {type: ExternalName, externalName: far.example.com}\n";
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, where it listens, and what it was told.
struct Running {
    server: Server,
    udp: SocketAddr,
    tcp: SocketAddr,
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn start(upstream: Option<SocketAddr>, change: impl Fn(&mut Settings)) -> Running {
    let sockets = Sockets::bind(&[loopback()]).unwrap();
    let (udp, tcp) = (
        sockets.udp[0].local_addr().unwrap(),
        sockets.tcp[0].local_addr().unwrap(),
    );
    let mut settings = Settings {
        options: options(),
        threads: 2,
        connections: 4,
        forwards: 4,
        upstream: upstream.map(|server| Upstream::new(vec![server], Duration::from_millis(200))),
    };
    change(&mut settings);
    let server = Server::start(sockets, settings).unwrap();
    Running { server, udp, tcp }
}

fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(loopback()).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn by_udp(to: SocketAddr, asked: &str) -> Message {
    let socket = client(to);
    socket
        .send(&question(asked, RecordType::A).to_vec().unwrap())
        .unwrap();
    receive(&socket)
}

fn write(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    stream
        .write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(&bytes).unwrap();
}

fn read(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// An upstream server that answers every datagram with one address after `answer` has been heard, first with what
/// a forger would send: another id, and another question.
fn upstream(answer: mpsc::Receiver<()>) -> SocketAddr {
    let socket = UdpSocket::bind(loopback()).unwrap();
    let at = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if answer.recv().is_err() {
                return;
            }
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
            reply.add_queries(asked.queries.clone());
            let record = |ip| Record::from_rdata(asked.queries[0].name().clone(), 60, RData::A(A(ip)));
            let mut forged = reply.clone();
            forged.add_answer(record(Ipv4Addr::new(6, 6, 6, 6)));
            forged.metadata.id ^= 1;
            socket.send_to(&forged.to_vec().unwrap(), from).unwrap();
            forged.metadata.id ^= 1;
            forged.queries[0].set_query_type(RecordType::AAAA);
            socket.send_to(&forged.to_vec().unwrap(), from).unwrap();
            reply.add_answer(record(Ipv4Addr::new(198, 51, 100, 1)));
            socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
        }
    });
    at
}

fn shown(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[test]
fn k1_names_are_answered_by_datagram_and_by_stream() {
    let running = start(None, |_| {});
    running.server.set(zone(WEB, &options()));
    assert_eq!(
        shown(&by_udp(running.udp, "web.default.svc.cluster.local")),
        ["10.96.0.7"]
    );
    // Several questions on one connection, sent before the first answer (RFC 7766 §6.2.1.1).
    let mut stream = connect(running.tcp);
    let names = [
        "web.default.svc.cluster.local",
        "no.default.svc.cluster.local",
        "example.com",
    ];
    names
        .iter()
        .for_each(|name| write(&mut stream, &question(name, RecordType::A)));
    let codes = names.map(|_| read(&mut stream).metadata.response_code);
    assert_eq!(
        codes,
        [
            ResponseCode::NoError,
            ResponseCode::NXDomain,
            ResponseCode::Refused
        ]
    );
    assert_eq!(running.server.counts().answered, 4);
}

#[test]
fn questions_that_come_before_the_first_zone_wait_for_it() {
    let running = start(None, |_| {});
    let socket = client(running.udp);
    let mut stream = connect(running.tcp);
    let asked = question("web.default.svc.cluster.local", RecordType::A);
    socket.send(&asked.to_vec().unwrap()).unwrap();
    write(&mut stream, &asked);
    running.server.set(zone(WEB, &options()));
    assert_eq!(shown(&receive(&socket)), ["10.96.0.7"]);
    assert_eq!(shown(&read(&mut stream)), ["10.96.0.7"]);
}

#[test]
fn dns_23_names_of_others_are_asked_upstream_and_forged_answers_are_not_heard() {
    let (answer, answers) = mpsc::channel();
    let running = start(Some(upstream(answers)), |_| {});
    running.server.set(zone(WEB, &options()));
    answer.send(()).unwrap();
    let far = by_udp(running.udp, "far.example.com");
    assert_eq!(
        (shown(&far), far.metadata.id),
        (vec!["198.51.100.1".into()], 4711)
    );
    answer.send(()).unwrap();
    let alias = by_udp(running.udp, "far.default.svc.cluster.local");
    assert_eq!(shown(&alias), ["far.example.com.", "198.51.100.1"]);
    let counts = running.server.counts();
    assert_eq!((counts.forwarded, counts.unanswered), (2, 0));
}

#[test]
fn an_upstream_server_that_is_silent_costs_its_own_questions_only() {
    let (_silence, answers) = mpsc::channel();
    let running = start(Some(upstream(answers)), |settings| {
        (settings.threads, settings.forwards) = (1, 2);
    });
    running.server.set(zone(WEB, &options()));
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let socket = client(running.udp);
            socket
                .send(&question("far.example.com", RecordType::A).to_vec().unwrap())
                .unwrap();
            socket
        })
        .collect();
    // As many as may be asked at once are; the next one fails, and the cluster's names are answered.
    let third = by_udp(running.udp, "far.example.com");
    assert_eq!(third.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(
        shown(&by_udp(running.udp, "web.default.svc.cluster.local")),
        ["10.96.0.7"]
    );
    for socket in waiting {
        assert_eq!(receive(&socket).metadata.response_code, ResponseCode::ServFail);
    }
    let counts = running.server.counts();
    assert_eq!((counts.busy, counts.unanswered, counts.asking.1), (1, 2, 2));
}

#[test]
fn the_oldest_connection_makes_room_for_a_new_one() {
    let running = start(None, |settings| settings.connections = 2);
    running.server.set(zone(WEB, &options()));
    let ask = || {
        let mut stream = connect(running.tcp);
        write(
            &mut stream,
            &question("web.default.svc.cluster.local", RecordType::A),
        );
        assert_eq!(shown(&read(&mut stream)), ["10.96.0.7"]);
        stream
    };
    let (mut first, _second, _third) = (ask(), ask(), ask());
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "the first one is closed");
    let counts = running.server.counts();
    assert_eq!((counts.crowded_out, counts.connections.1), (1, 2));
}

#[test]
fn sockets_are_bound_to_addresses_that_are_still_to_come() {
    // TEST-NET-1: nobody's (RFC 5737).
    let sockets = Sockets::bind(&["192.0.2.2:0".parse().unwrap()]).unwrap();
    assert_eq!((sockets.udp.len(), sockets.tcp.len()), (1, 1));
    let taken = TcpListener::bind(loopback()).unwrap();
    let error = Sockets::bind(&[taken.local_addr().unwrap()]).unwrap_err();
    assert!(
        format!("{error:#}").contains("cannot listen at 127.0.0.1:"),
        "{error:#}"
    );
}
