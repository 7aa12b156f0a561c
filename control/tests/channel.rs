//! The whole way: a file saved, the real program, the real channel, a dataplane's end of it that keeps what it is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sluice_dataplane::channel::record::{Key, Record};
use sluice_dataplane::channel::server::{Event, Server, ServerOptions, Transaction};
use sluice_dataplane::index::Generation;

/// Longer than a busy machine needs; a test that waits for all of it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A dataplane without packets.
struct Dataplane {
    taken: Receiver<Transaction>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Dataplane {
    fn start(socket: &Path) -> Self {
        let mut server = Server::bind(socket, ServerOptions::default()).unwrap();
        let (sender, taken) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut generation, mut table) = (Generation(0), BTreeMap::<Key, Record>::new());
            while !stopped.load(Ordering::Relaxed) {
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
            thread: Some(thread),
        }
    }

    fn next(&self) -> Transaction {
        self.taken.recv_timeout(PATIENCE).expect("no update arrived")
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// The program under test; killed without a chance to tidy up.
struct Control(Child);

impl Control {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        Self(command.args(["control", "--config"]).arg(config).spawn().unwrap())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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

/// The cluster IP of Service `a`, as `sluice get` prints it. The dataplane may have an update before the API does.
fn cluster_ip(folder: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command
        .args(["get", "svc", "a", "--no-headers", "--api"])
        .arg(folder.join("api.sock"));
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.split_whitespace()
        .nth(2)
        .unwrap_or_else(|| panic!("{text:?} {output:?}"))
        .into()
}

#[test]
fn a_saved_file_reaches_the_dataplane_and_a_killed_control_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    fs::create_dir(path("manifests")).unwrap();
    fs::write(path("manifests/a.yaml"), service("a", 80)).unwrap();
    let config = "manifests: [manifests]\nstate: state.json\nnode: {name: node-a}\napi: {socket: api.sock}\n\
                  dataplane: {socket: dataplane.sock}\n";
    fs::write(path("control.yaml"), config).unwrap();

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
