//! Real TCP between two kernel stacks through two ports that are joined like a cable: what loses, reorders, cuts or
//! corrupts shows as bytes that do not arrive.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::mpsc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_dataplane::nic::open::DriverSpec;
use sluice_dataplane::nic::{Burst, FrameMemory};

use crate::conformance::FRAMES;
use crate::namespace::{address, address6, enter_new_namespace, move_to, up, veth};
use crate::port;

/// The server, in both families.
const SERVERS: [&str; 2] = ["10.9.0.2:7", "[fd09::2]:7"];

/// More than any ring or socket buffer on the way holds.
const BYTES: usize = 4 << 20;

/// A client sends `BYTES` to a server in another namespace, which sends them back: by IPv4, then by IPv6.
pub(crate) fn tcp_echo_through(driver: &DriverSpec) {
    veth("wa", "va");
    veth("wb", "vb");
    let mut memory = FrameMemory::new(FRAMES, 2048).unwrap();
    let mut umem = None;
    let mut left = port(&mut memory, &mut umem, "va", driver.clone());
    let mut right = port(&mut memory, &mut umem, "vb", driver.clone());
    let (namespace, other_namespace) = mpsc::channel();
    let (moved, arrived) = mpsc::channel::<()>();
    let server = thread::spawn(move || {
        namespace.send(enter_new_namespace()).unwrap();
        arrived.recv().unwrap();
        up("wb");
        address("wb", [10, 9, 0, 2]);
        address6("wb", 2);
        let listener = TcpListener::bind("[::]:7").unwrap();
        for _ in SERVERS {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        }
    });
    move_to("wb", other_namespace.recv().unwrap().as_fd());
    moved.send(()).unwrap();
    address("wa", [10, 9, 0, 1]);
    address6("wa", 1);
    let client = thread::spawn(|| {
        let sent: Vec<u8> = (0..BYTES).map(|n| (n * 31 / 7) as u8).collect();
        for server in SERVERS {
            // The server may not listen yet.
            let mut stream = loop {
                if let Ok(stream) = TcpStream::connect(server) {
                    break stream;
                }
            };
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut echoed = Vec::new();
            stream.read_to_end(&mut echoed).unwrap();
            assert!(
                echoed == sent,
                "{} of {BYTES} bytes came back from {server}",
                echoed.len()
            );
        }
    });
    let (mut to_right, mut to_left) = (Burst::new(), Burst::new());
    while !client.is_finished() {
        left.rx_burst(&mut memory, &mut to_right);
        right.rx_burst(&mut memory, &mut to_left);
        if to_right.is_empty() && to_left.is_empty() {
            let [a, b] = [&left, &right].map(|port| port.wait_fd().unwrap());
            let mut fds = [PollFd::new(&a, PollFlags::IN), PollFd::new(&b, PollFlags::IN)];
            let _ = poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 10_000_000,
                }),
            );
        }
        right.tx_burst(&mut memory, &mut to_right);
        left.tx_burst(&mut memory, &mut to_left);
    }
    client.join().unwrap();
    server.join().unwrap();
    for port in [&left, &right] {
        let stats = port.stats();
        assert_eq!(
            (stats.rx_errors, stats.tx_errors),
            (0, 0),
            "{}: {stats:?}",
            port.info().mode
        );
    }
    to_right
        .drain(..)
        .chain(to_left.drain(..))
        .for_each(|frame| memory.free(frame));
    left.close(&mut memory);
    right.close(&mut memory);
    assert_eq!(memory.available(), FRAMES);
}
