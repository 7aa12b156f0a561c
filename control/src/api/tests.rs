//! Both ends of the socket.

use k8s_openapi::api::core::v1::Service;

use super::*;
use crate::model::tests::{model, reset};

#[test]
fn services_are_told_with_what_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let shared = serve(&socket, Duration::ZERO).unwrap();
    let mut model = model();
    model.apply(reset(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n",
    ));
    let slices = crate::endpoints::slices(&model);
    shared.set(View::new(&model, slices, Vec::new()));
    let services: Vec<Service> = ask(&socket, List::Services).unwrap();
    assert!(
        services[0]
            .spec
            .as_ref()
            .unwrap()
            .cluster_ip
            .as_ref()
            .unwrap()
            .starts_with("10.96.")
    );
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
}

/// What is answered to a line.
fn answered(socket: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap();
    reply
}

#[test]
fn nonsense_is_answered_with_an_error_not_with_silence() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let _shared = serve(&socket, Duration::ZERO).unwrap();
    assert!(answered(&socket, "{\"list\":\"secrets\"}").contains("not a request"));
}

#[test]
fn who_asks_for_news_gets_it_when_it_comes_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let shared = serve(&socket, Duration::ZERO).unwrap();
    let status = |generation| Status {
        generation,
        ..Status::default()
    };
    shared.set_status(status(1));
    let (_, revision) = ask_for_news::<Status>(&socket, List::Status, None).unwrap();
    let waiting = {
        let socket = socket.clone();
        std::thread::spawn(move || ask_for_news::<Status>(&socket, List::Status, Some(revision)).unwrap())
    };
    let silent: Vec<_> = (0..CLIENTS / 2)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    assert_eq!(ask::<Status>(&socket, List::Status).unwrap(), [status(1)]);
    shared.set_status(status(2));
    assert_eq!(waiting.join().unwrap(), (vec![status(2)], revision + 1));
    drop(silent);
}

#[test]
fn more_clients_than_there_may_be_are_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let _shared = serve(&socket, Duration::ZERO).unwrap();
    let _silent: Vec<_> = (0..CLIENTS)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    assert!(answered(&socket, "{\"list\":\"status\"}").contains("others ask already"));
}

#[test]
fn a_second_control_process_does_not_take_the_first_ones_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let _first = serve(&socket, Duration::ZERO).unwrap();
    for patience in [Duration::ZERO, 2 * PAUSE] {
        let error = serve(&socket, patience).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
    assert_eq!(
        ask::<Status>(&socket, List::Status).unwrap().len(),
        1,
        "it is the first's"
    );
}

#[test]
fn a_control_process_that_ends_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let predecessor = UnixListener::bind(&socket).unwrap();
    // It ends after its successor has found it alive.
    let end = std::thread::spawn(move || drop(predecessor.accept().unwrap()));
    let _shared = serve(&socket, PATIENCE).unwrap();
    end.join().unwrap();
    assert_eq!(ask::<Status>(&socket, List::Status).unwrap().len(), 1);
}
