//! The whole way: a file saved, the real program, the real channel, a dataplane's end of it that keeps what it is told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::channel::server::{Event, Server, ServerOptions, Transaction};
use sluice_dataplane::index::Generation;

/// Longer than a busy machine needs; a test that waits for all of it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A dataplane without packets.
struct Dataplane {
    taken: Receiver<Transaction>,
    stop: Arc<AtomicBool>,
    stuck: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Dataplane {
    fn start(socket: &Path) -> Self {
        let mut server = Server::bind(socket, ServerOptions::default()).unwrap();
        let (sender, taken) = channel();
        let (stop, stuck) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, asleep) = (stop.clone(), stuck.clone());
        let thread = std::thread::spawn(move || {
            let (mut generation, mut table) = (Generation(0), BTreeMap::<Key, Record>::new());
            while !stopped.load(Ordering::Relaxed) {
                if asleep.load(Ordering::Relaxed) {
                    std::thread::park();
                    continue;
                }
                match server.poll() {
                    Some(Event::Transaction(transaction)) => {
                        generation = transaction.generation;
                        transaction.deletes.iter().for_each(|key| drop(table.remove(key)));
                        table.extend(
                            transaction
                                .puts
                                .iter()
                                .map(|record| (record.key(), record.clone())),
                        );
                        server.ack(generation);
                        let _ = sender.send(transaction);
                    }
                    Some(Event::DumpRequest) => {
                        server.dump(generation, table.values().cloned().collect::<Vec<_>>());
                    }
                    Some(Event::Disconnected) => {}
                    None if server.wants_poll() => {}
                    None => {
                        let mut fds: Vec<_> = server
                            .fds()
                            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                            .collect();
                        let _ = poll(&mut fds, PollTimeout::from(100_u8));
                    }
                }
            }
        });
        Self {
            taken,
            stop,
            stuck,
            thread: Some(thread),
        }
    }

    /// From now on it is there and does nothing, as a stopped process; or it goes on.
    fn stick(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Relaxed);
        self.thread.iter().for_each(|thread| thread.thread().unpark());
    }

    fn next(&self) -> Transaction {
        self.taken.recv_timeout(PATIENCE).expect("no update arrived")
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.stick(false);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// The program under test; killed without a chance to tidy up.
struct Control {
    child: Child,
    log: std::io::Lines<BufReader<ChildStderr>>,
}

impl Control {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["control", "--config"]).arg(config);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, log }
    }

    /// What it logs up to and with the line that contains `text`.
    fn said_until(&mut self, text: &str) -> Vec<String> {
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains(text)) {
            said.push(
                self.log
                    .next()
                    .unwrap_or_else(|| panic!("never said {text}: {said:#?}"))
                    .unwrap(),
            );
        }
        said
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

fn frontends(transaction: &Transaction) -> Vec<u16> {
    let port = |record: &Record| {
        if let Record::Frontend(r) = record {
            Some(r.port)
        } else {
            None
        }
    };
    transaction.puts.iter().filter_map(port).collect()
}

/// What `sluice get services` prints.
fn get_services(folder: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(["get", "svc", "a", "--no-headers", "--api"]);
    let output = command.arg(folder.join("api.sock")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The cluster IP of Service `a`. Control tells of an update before it publishes it.
fn cluster_ip(folder: &Path) -> String {
    let text = get_services(folder);
    let ip = text.split_whitespace().nth(2);
    ip.unwrap_or_else(|| panic!("{text:?}")).into()
}

/// A folder with a configuration and the Service `a`.
fn gateway() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("manifests")).unwrap();
    fs::write(dir.path().join("manifests/a.yaml"), service("a", 80)).unwrap();
    let config = "manifests: [manifests]\nstate: state.json\nnode: {name: node-a}\napi: {socket: api.sock}\n\
                  dataplane: {socket: dataplane.sock}\n";
    fs::write(dir.path().join("control.yaml"), config).unwrap();
    dir
}

#[test]
fn a_saved_file_reaches_the_dataplane_and_a_killed_control_goes_on_where_it_was() {
    let dir = gateway();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };

    // Control is there first and waits; nothing is lost by that.
    let control = Control::start(&path("control.yaml"));
    let dataplane = Dataplane::start(&path("dataplane.sock"));
    let first = dataplane.next();
    assert_eq!((first.generation, frontends(&first)), (Generation(1), vec![80]));

    fs::write(path("manifests/b.yaml"), service("b", 81)).unwrap();
    let second = dataplane.next();
    assert_eq!(
        (second.deletes.len(), second.puts.len(), frontends(&second)),
        (0, 2, vec![81])
    );
    let before = cluster_ip(dir.path());

    drop(control);
    fs::remove_file(path("manifests/b.yaml")).unwrap();
    let _control = Control::start(&path("control.yaml"));
    let third = dataplane.next();
    assert_eq!(
        (third.deletes.len(), third.puts.len()),
        (2, 0),
        "only the difference, under the same numbers"
    );
    assert_eq!(cluster_ip(dir.path()), before, "as before the restart");
}

#[test]
fn a_control_that_starts_while_its_predecessor_ends_waits_and_takes_over() {
    let dir = gateway();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let dataplane = Dataplane::start(&path("dataplane.sock"));
    let mut first = Control::start(&path("control.yaml"));
    assert_eq!(frontends(&dataplane.next()), [80]);
    first.said_until("generation 1:");
    let before = cluster_ip(dir.path());
    // As one that has been told to end and does not get to it: its socket takes connections, and it says nothing.
    let pid = Pid::from_raw(first.child.id().try_into().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut second = Control::start(&path("control.yaml"));
    second.said_until("another control process answers");
    fs::write(path("manifests/b.yaml"), service("b", 81)).unwrap();
    drop(first);
    let update = dataplane.next();
    assert_eq!((update.deletes.len(), frontends(&update)), (0, vec![81]));
    assert_eq!(cluster_ip(dir.path()), before);
}

#[test]
fn a_dataplane_that_is_not_there_is_waited_for_and_that_is_said_once() {
    let dir = gateway();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let mut control = Control::start(&path("control.yaml"));
    let waiting = "no dataplane listens";
    control.said_until(waiting);
    // A change while it waits: many looks later, and still no second line.
    fs::write(path("manifests/b.yaml"), "kind: [").unwrap();
    let said = control.said_until("b.yaml");
    assert!(!said.iter().any(|line| line.contains(waiting)), "{said:#?}");
    fs::remove_file(path("manifests/b.yaml")).unwrap();
    let said = control.said_until("no longer");
    assert!(!said.iter().any(|line| line.contains(waiting)), "{said:#?}");
    let dataplane = Dataplane::start(&path("dataplane.sock"));
    assert_eq!(frontends(&dataplane.next()), [80]);
    control.said_until("generation 1:");
}

#[test]
fn a_restarted_dataplane_is_told_everything_again() {
    let dir = gateway();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let mut control = Control::start(&path("control.yaml"));
    for _ in 0..3 {
        let dataplane = Dataplane::start(&path("dataplane.sock"));
        let first = dataplane.next();
        assert_eq!((first.generation, frontends(&first)), (Generation(1), vec![80]));
        control.said_until("generation 1:");
        drop(dataplane);
        control.said_until("no dataplane listens");
    }
}

#[test]
fn a_dataplane_that_is_stuck_holds_up_neither_control_nor_who_asks_it() {
    let dir = gateway();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let dataplane = Dataplane::start(&path("dataplane.sock"));
    let mut control = Control::start(&path("control.yaml"));
    assert_eq!(frontends(&dataplane.next()), [80]);
    control.said_until("generation 1:");

    dataplane.stick(true);
    fs::write(path("manifests/a.yaml"), service("a", 81)).unwrap();
    // It is asked while the update waits for an answer that does not come, and says what it means to publish.
    while !get_services(dir.path()).contains("81/TCP") {}
    control.said_until("it is stopped or stuck");
    // Given up once, it is asked again, and again in vain.
    control.said_until("it is stopped or stuck; trying again");
    assert!(get_services(dir.path()).contains("81/TCP"));

    dataplane.stick(false);
    // Whether it still took the update it slept over is its business: in the end it has what it should.
    let mut ports = vec![80];
    while ports != [81] {
        let transaction = dataplane.next();
        ports.retain(|port| {
            !transaction
                .deletes
                .iter()
                .any(|key| matches!(key, Key::Frontend(.., p) if p == port))
        });
        ports.extend(frontends(&transaction));
        ports.dedup();
    }
}
