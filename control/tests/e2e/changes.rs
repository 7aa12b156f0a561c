//! Services made, changed and taken away by command, as with kubectl.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use crate::lab::{Done, Lab, PATIENCE, Setup, run};
use crate::requests::{curl, requests};

/// A command that asks, or changes what is behind, this lab's control.
fn command(lab: &Lab, words: &[&str]) -> Command {
    let api = lab.directory().join("control.sock");
    let mut command = lab.sluice(words);
    command.args(["--api", api.to_str().unwrap()]);
    command
}

fn ask(lab: &Lab, words: &[&str]) -> Done {
    run(command(lab, words))
}

/// What it prints; it must succeed.
fn said(lab: &Lab, words: &[&str]) -> String {
    let done = ask(lab, words);
    assert!(done.status.success(), "{words:?}: {done:?}");
    done.out
}

/// Applies what comes on standard input.
fn apply(lab: &Lab, text: &str) -> Done {
    let mut child = command(lab, &["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done {
        status: done.status,
        out: text(&done.stdout),
        errors: text(&done.stderr),
    }
}

/// A command that goes on, and its lines.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The next line that says so.
    fn next(&self, wanted: &str) -> String {
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no line with {wanted:?}"));
            if line.contains(wanted) {
                return line;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn a_service_is_exposed_described_changed_and_deleted_by_command() {
    Lab::with(Setup::AfPacket, "quickstart", |lab| {
        let watch = Watch::start(command(lab, &["get", "services", "-w"]));
        watch.next("echo-outside");
        assert_eq!(
            said(
                lab,
                &[
                    "expose",
                    "rs",
                    "echo-summer",
                    "--name",
                    "web",
                    "--port",
                    "80",
                    "--target-port",
                    "8080"
                ]
            ),
            "service/web created\n"
        );
        watch.next("web ");
        let ip = said(lab, &["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"]);
        requests(lab, "debug", &format!("http://{ip}"), 5);
        let again = ask(
            lab,
            &["expose", "rs/echo-summer", "--name", "web", "--port", "80"],
        );
        assert!(again.errors.contains("already exists"), "{again:?}");
        let described = said(lab, &["describe", "service", "web"]);
        for part in [
            "Name:  ",
            &format!("ClusterIP  {ip}"),
            "Pod/echo-summer-",
            "true   true     false",
            "Events:  <none>",
        ] {
            assert!(described.contains(part), "{part}: {described}");
        }

        let manifest = said(lab, &["get", "svc", "web", "-o", "yaml"]);
        let wrong = apply(lab, &manifest.replace("port: 80\n", "port: 0\n"));
        assert!(
            !wrong.status.success() && wrong.errors.contains("<stdin>:"),
            "{wrong:?}"
        );
        assert!(
            wrong
                .errors
                .contains("spec.ports[0].port: Invalid value: 0: must be from 1 to 65535"),
            "{wrong:?}"
        );
        requests(lab, "debug", &format!("http://{ip}"), 1);
        let changed = apply(lab, &manifest.replace("port: 80\n", "port: 81\n"));
        assert_eq!(changed.out, "service/web configured\n", "{changed:?}");
        assert!(watch.next("web ").contains("81/TCP"));
        requests(lab, "debug", &format!("http://{ip}:81"), 1);
        assert!(!curl(lab, "debug", &format!("http://{ip}/")).status.success());

        assert_eq!(
            said(lab, &["delete", "service", "web"]),
            "service \"web\" deleted from default namespace\n"
        );
        watch.next("web ");
        assert!(!curl(lab, "debug", &format!("http://{ip}:81/")).status.success());
        let gone = ask(lab, &["describe", "service/web"]);
        assert_eq!(
            gone.errors,
            "Error from server (NotFound): services \"web\" not found\n"
        );
        let pod = lab.pods("echo-summer").remove(0).0;
        let alive = ask(lab, &["delete", "pod", &pod]);
        assert!(
            alive.errors.contains(&format!("`sluice lab delete pod {pod}`")),
            "{alive:?}"
        );
    });
}
