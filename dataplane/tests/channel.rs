//! The channel between two real processes. This test binary runs itself again as the control process or as the
//! dataplane, and kills it where it hurts. A child says on its standard output how far it is and waits for a line on
//! its standard input, so that nothing here waits for time to pass.
#![allow(clippy::unwrap_used, reason = "all of this file is test code")]

mod channel_raw;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use sluice_dataplane::channel::client::{ConnectError, Connection, Lost, PublishError};
use sluice_dataplane::channel::message::{Message, NackReason};
use sluice_dataplane::channel::record::{Key, NetworkKind, NetworkRecord, Record, SettingsRecord};
use sluice_dataplane::channel::server::{Event, Server, ServerOptions, Transaction};
use sluice_dataplane::counters::CounterId;
use sluice_dataplane::index::{Generation, WorkerIndex};

use channel_raw::{RING_SLOTS, RawControl, transaction};

const ROLE: &str = "SLUICE_CHANNEL_TEST_ROLE";
const SOCKET: &str = "SLUICE_CHANNEL_TEST_SOCKET";
const OPTIONS: ServerOptions = ServerOptions {
    ring_slots: RING_SLOTS,
    workers: 2,
    max_changes: 100,
};

/// A row, one for each number.
fn network(number: u8) -> Record {
    let network = format!("10.{number}.0.0/16").parse().unwrap();
    Record::Network(NetworkRecord {
        kind: NetworkKind::PodRange,
        network,
    })
}

fn networks(numbers: std::ops::Range<u8>) -> Vec<Record> {
    numbers.map(network).collect()
}

/// The steward as the channel knows it: a table of rows, changed whole or not at all.
struct Steward {
    server: Server,
    table: BTreeMap<Key, Record>,
    generation: Generation,
}

impl Steward {
    fn bind(path: &Path) -> Self {
        Self {
            server: Server::bind(path, OPTIONS).unwrap(),
            table: BTreeMap::new(),
            generation: Generation(0),
        }
    }

    /// Sleeps until control has done something.
    fn wait(&self) {
        let fds: Vec<_> = self.server.fds().collect();
        let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        poll(&mut fds, None).unwrap();
    }

    /// Waits for one event and answers it. A settings row is refused.
    fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.server.poll() {
                self.answer(&event);
                return event;
            }
            if !self.server.wants_poll() {
                self.wait();
            }
        }
    }

    fn answer(&mut self, event: &Event) {
        match event {
            Event::Transaction(Transaction {
                generation,
                deletes,
                puts,
            }) => {
                if let Some(place) = puts.iter().position(|put| matches!(put, Record::Settings(_))) {
                    let number = (deletes.len() + place + 1) as u64;
                    return self
                        .server
                        .nack(*generation, number, "this table has no settings");
                }
                deletes.iter().for_each(|key| drop(self.table.remove(key)));
                self.table.extend(puts.iter().map(|put| (put.key(), put.clone())));
                self.generation = *generation;
                self.server.ack(*generation);
            }
            Event::DumpRequest => self.server.dump(self.generation, self.rows()),
            Event::Disconnected => {}
        }
    }

    fn rows(&self) -> Vec<Record> {
        self.table.values().cloned().collect()
    }

    /// Events until control is gone.
    fn until_disconnected(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while events.last() != Some(&Event::Disconnected) {
            events.push(self.event());
        }
        events
    }

    /// Serves one control, `work` on another thread, to its end.
    fn beside<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let control = scope.spawn(work);
            self.until_disconnected();
            control.join().unwrap()
        })
    }
}

/// This binary again, in another role.
struct Actor {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Actor {
    fn start(role: &str, socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_other_process_plays_its_role", "--nocapture"])
            .env(ROLE, role)
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Waits until the child has said `line`; the test harness in it says other things, too.
    fn hear(&mut self, line: &str) {
        let mut said = String::new();
        while said.trim_end() != line {
            said.clear();
            assert_ne!(
                self.said.read_line(&mut said).unwrap(),
                0,
                "the child ended before it said {line:?}"
            );
        }
    }

    /// kill -9, and wait until it is dead.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    println!("\n{line}");
    std::io::stdout().flush().unwrap();
}

fn wait_for_the_end() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// The transaction that a control does not live to see through: network 0 goes, networks 1 and 2 are put.
fn cut_short() -> Vec<Message> {
    transaction(Generation(2), &[network(0).key()], &networks(1..3))
}

/// What the children run; in the run of the tests proper there is no role to play.
#[test]
fn the_other_process_plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let socket = PathBuf::from(std::env::var_os(SOCKET).unwrap());
    match role.split_once(' ').unwrap_or((&role, "")) {
        // Serves for ever, or, told so, only until it has answered with its dump.
        ("dataplane", until) => {
            let mut steward = Steward::bind(&socket);
            say("listening");
            assert_eq!(steward.event(), Event::DumpRequest);
            if until != "dump" {
                loop {
                    steward.event();
                }
            }
            while steward.server.wants_poll() {
                steward.server.poll();
            }
            say("dumped");
            wait_for_the_end();
        }
        // Writes the first messages of a transaction, one by one.
        ("stepwise", messages) => {
            let mut control = RawControl::connect(&socket);
            control.hello();
            for message in cut_short().iter().take(messages.parse().unwrap()) {
                control.send(message);
            }
            say("written");
            wait_for_the_end();
        }
        // Publishes more than the ring holds.
        ("flood", _) => {
            let (mut connection, _) = Connection::connect(&socket).unwrap();
            connection.publish(Generation(2), &[], &networks(0..100)).unwrap();
        }
        (other, _) => panic!("no role {other}"),
    }
}

#[test]
fn a_control_killed_after_any_message_leaves_the_old_table_or_the_whole_new_one() {
    for messages in 0..=cut_short().len() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("channel");
        let mut steward = Steward::bind(&socket);
        steward.beside(|| {
            let (mut connection, inventory) = Connection::connect(&socket).unwrap();
            assert_eq!(
                (inventory.generation, inventory.records),
                (Generation(0), Vec::new())
            );
            connection.publish(Generation(1), &[], &networks(0..2)).unwrap();
        });

        let mut control = Actor::start(&format!("stepwise {messages}"), &socket);
        let whole = messages == cut_short().len();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                control.hear("written");
                control.kill();
            });
            assert_eq!(steward.until_disconnected().len(), if whole { 2 } else { 1 });
        });
        let (generation, table) = if whole {
            (2, networks(1..3))
        } else {
            (1, networks(0..2))
        };
        assert_eq!(
            (steward.generation.0, steward.rows()),
            (generation, table.clone()),
            "after {messages}"
        );

        // A new control learns what is there, and sends only the difference to what it wants.
        let wanted = networks(1..4);
        let sent = steward.beside(|| {
            let (mut connection, inventory) = Connection::connect(&socket).unwrap();
            assert_eq!((inventory.generation.0, &inventory.records), (generation, &table));
            let unwanted = inventory.records.iter().filter(|record| !wanted.contains(record));
            let deletes: Vec<Key> = unwanted.map(Record::key).collect();
            let missing = wanted.iter().filter(|record| !inventory.records.contains(record));
            let puts: Vec<Record> = missing.cloned().collect();
            connection
                .publish(Generation(generation + 1), &deletes, &puts)
                .unwrap();
            (deletes.len(), puts.len())
        });
        assert_eq!(sent, if whole { (0, 1) } else { (1, 2) });
        assert_eq!(steward.rows(), wanted);
    }
}

#[test]
fn a_control_killed_while_it_waits_for_room_leaves_the_old_table() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut steward = Steward::bind(&socket);
    let mut control = Actor::start("flood", &socket);
    assert_eq!(steward.event(), Event::DumpRequest);
    while steward.server.wants_poll() {
        assert_eq!(steward.server.poll(), None);
    }
    // Whatever of the transaction is in the ring by now: a part, since it has room for no more.
    steward.wait();
    control.kill();
    assert_eq!(steward.event(), Event::Disconnected);
    assert_eq!((steward.generation, steward.rows()), (Generation(0), Vec::new()));
}

#[test]
fn a_transaction_and_a_dump_larger_than_the_ring_flow_through_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut steward = Steward::bind(&socket);
    steward.beside(|| {
        let (mut connection, _) = Connection::connect(&socket).unwrap();
        connection.publish(Generation(1), &[], &networks(0..100)).unwrap();
    });
    let inventory = steward.beside(|| Connection::connect(&socket).unwrap().1);
    assert_eq!(
        (inventory.generation, inventory.records),
        (Generation(1), networks(0..100))
    );
}

#[test]
fn a_refused_update_names_the_row_and_the_connection_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut steward = Steward::bind(&socket);
    steward.beside(|| {
        let (mut connection, _) = Connection::connect(&socket).unwrap();
        let mut refusal =
            |deletes: &[Key], puts: &[Record]| match connection.publish(Generation(1), deletes, puts) {
                Err(PublishError::Refused(nack)) => (nack.message, nack.reason, nack.text),
                other => panic!("{other:?}"),
            };
        let settings = Record::Settings(SettingsRecord::default());
        let (message, reason, text) = refusal(&[network(9).key()], &[network(1), settings]);
        assert_eq!(
            (message, reason, text.as_str()),
            (3, NackReason::Refused, "this table has no settings")
        );
        // This one is refused while control still writes.
        let (message, reason, _) = refusal(&[], &networks(0..200));
        assert_eq!((message, reason), (101, NackReason::TooLarge));

        connection.publish(Generation(1), &[], &networks(0..1)).unwrap();
        assert!(connection.is_alive());
    });
    assert_eq!(steward.rows(), networks(0..1));
}

#[test]
fn a_second_control_is_refused_while_the_first_lives_and_let_in_after() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut steward = Steward::bind(&socket);
    steward.beside(|| {
        let _first = Connection::connect(&socket).unwrap();
        let error = Connection::connect(&socket).unwrap_err();
        assert!(matches!(error, ConnectError::Refused(_)));
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
    });
    steward.beside(|| drop(Connection::connect(&socket).unwrap()));
}

#[test]
fn a_second_dataplane_at_the_same_path_is_told_who_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let first = Server::bind(&socket, OPTIONS).unwrap();
    let error = Server::bind(&socket, OPTIONS).unwrap_err().to_string();
    assert!(
        error.contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(first);
    drop(Server::bind(&socket, OPTIONS).unwrap());
    assert!(matches!(
        Connection::connect(&socket),
        Err(ConnectError::NoDataplane { .. })
    ));
}

#[test]
fn counters_cross_to_control_and_outlive_the_dataplane() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut steward = Steward::bind(&socket);
    let mut writers = steward.server.take_counters();
    assert_eq!((writers.len(), steward.server.take_counters().len()), (2, 0));
    writers[1].add(CounterId::FORWARDED, 5);
    let connection = std::thread::scope(|scope| {
        let control = scope.spawn(|| Connection::connect(&socket).unwrap().0);
        assert_eq!(steward.event(), Event::DumpRequest);
        while steward.server.wants_poll() {
            assert_eq!(steward.server.poll(), None);
        }
        control.join().unwrap()
    });
    let read = |worker| {
        connection
            .counters()
            .get(WorkerIndex(worker), CounterId::FORWARDED)
    };
    assert_eq!((connection.counters().workers(), read(0), read(1)), (2, 0, 5));
    writers[1].add(CounterId::FORWARDED, 1);
    assert_eq!(read(1), 6);
    drop((steward, writers));
    assert!(!connection.is_alive());
    assert_eq!(read(1), 6);
}

#[test]
fn a_control_whose_dataplane_is_killed_hears_that_it_is_lost_and_meets_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut dataplane = Actor::start("dataplane dump", &socket);
    dataplane.hear("listening");
    let (mut connection, _) = Connection::connect(&socket).unwrap();
    dataplane.hear("dumped");
    assert!(connection.is_alive());
    // The child reads no more: this waits for room in the ring until the kill.
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| connection.publish(Generation(1), &[], &networks(0..90)));
        dataplane.kill();
        assert!(matches!(
            publisher.join().unwrap(),
            Err(PublishError::Lost(Lost::Closed))
        ));
    });
    assert!(!connection.is_alive());
    let again = connection.publish(Generation(2), &[], &[]);
    assert!(matches!(again, Err(PublishError::Lost(Lost::Closed))));

    let mut next = Actor::start("dataplane", &socket); // over the dead one's socket file
    next.hear("listening");
    let (mut connection, _) = Connection::connect(&socket).unwrap();
    connection.publish(Generation(1), &[], &networks(0..90)).unwrap();
}

#[test]
fn a_hostile_control_that_lies_about_its_indices_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut steward = Steward::bind(&socket);
    let connect = |steward: &mut Steward| {
        let control = RawControl::connect_unserved(&socket);
        assert_eq!(steward.server.poll(), None);
        control
    };
    for lie in [RING_SLOTS as u64 + 1, u64::MAX, 1 << 63] {
        let mut control = connect(&mut steward);
        control.write_word(channel_raw::TO_DATAPLANE_WRITTEN, lie);
        control.ring_bell();
        assert_eq!(steward.event(), Event::Disconnected);
        control.hear_the_end();
    }
    // Claims to have read answers that were never written; found out when the ring to control is full.
    let mut control = connect(&mut steward);
    control.hello();
    control.write_word(channel_raw::TO_CONTROL_READ, 1000);
    let refused = Message::Begin {
        generation: Generation(0),
    };
    let found_out = (0..=RING_SLOTS).find(|_| {
        control.send(&refused);
        (0..3).any(|_| steward.server.poll() == Some(Event::Disconnected))
    });
    assert_eq!(found_out, Some(RING_SLOTS));
    control.hear_the_end();
}

#[test]
fn a_control_that_is_refused_again_and_again_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("channel");
    let mut steward = Steward::bind(&socket);
    let mut control = RawControl::connect_unserved(&socket);
    assert_eq!(steward.server.poll(), None);
    control.hello();
    let mut refusals = 0;
    while steward.server.is_connected() {
        control.send(&Message::Begin {
            generation: Generation(0),
        });
        refusals += 1;
        control.write_word(channel_raw::TO_CONTROL_READ, refusals - 1);
        steward.server.poll();
    }
    assert_eq!(refusals, 64);
    control.hear_the_end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Random bytes anywhere in the segment, between turns of the steward. What holds: each turn ends, no panic, the
    /// table changes by whole transactions only, and an honest control is served afterwards.
    #[test]
    fn a_hostile_control_that_scribbles_over_the_segment_harms_only_itself(
        hello in any::<bool>(),
        scribbles in prop::collection::vec(
            (prop_oneof![0..1024usize, 4096..4096 + 2 * RING_SLOTS * 256], prop::collection::vec(any::<u8>(), 1..40)),
            1..20,
        ),
        counts in prop::collection::vec(0..2 * RING_SLOTS as u64, 1..20),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("channel");
        let mut steward = Steward::bind(&socket);
        let mut control = RawControl::connect_unserved(&socket);
        steward.server.poll();
        if hello { control.hello(); }
        for ((at, bytes), count) in scribbles.into_iter().zip(counts) {
            control.write(at, &bytes);
            control.write_word(channel_raw::TO_DATAPLANE_WRITTEN, count);
            control.ring_bell();
            // More turns than a ring has messages: the steward is done with it by then, or has hung up.
            for _ in 0..2 * RING_SLOTS {
                if let Some(event) = steward.server.poll() { steward.answer(&event); }
                if !steward.server.wants_poll() { break; }
            }
        }
        drop(control);
        while steward.server.is_connected() { steward.event(); }
        steward.server.poll();
        prop_assert!(steward.rows().is_empty(), "no random bytes have a digest");
        steward.beside(|| {
            let (mut connection, _) = Connection::connect(&socket).unwrap();
            connection.publish(Generation(9), &[], &networks(0..3)).unwrap();
        });
        prop_assert_eq!(steward.rows(), networks(0..3));
    }
}
