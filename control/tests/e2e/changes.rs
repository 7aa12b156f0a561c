//! Services made, changed and taken away by command, as with kubectl; and one that becomes of another type again and again.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use crate::lab::{Done, Lab, PATIENCE, Setup, run, wait_until};
use crate::names::dig;
use crate::requests::{by_pod, curl, requests};

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
fn apply(lab: &Lab, options: &[&str], text: &str) -> Done {
    let mut child = command(lab, &[&["apply", "-f", "-"], options].concat())
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
        let wrong = apply(lab, &[], &manifest.replace("port: 80\n", "port: 0\n"));
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
        let changed = apply(lab, &[], &manifest.replace("port: 80\n", "port: 81\n"));
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
        several_kinds_and_collections(lab);
    });
}

/// I25: listed over all namespaces, listed and deleted by kind and label.
fn several_kinds_and_collections(lab: &Lab) {
    let service = |name: &str, namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{team: blue}}{namespace}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let both = service("a", "") + &service("b", "");
    let elsewhere = apply(lab, &["-n", "shop"], &service("a", ", namespace: market"));
    assert!(
        elsewhere.errors.contains("does not match the namespace \"shop\""),
        "{elsewhere:?}"
    );
    let done = apply(lab, &["-n", "shop", "--dry-run=server"], &both);
    assert_eq!(
        done.out, "service/a created (server dry run)\nservice/b created (server dry run)\n",
        "{done:?}"
    );
    let done = apply(lab, &["-n", "shop"], &both);
    assert_eq!(done.out, "service/a created\nservice/b created\n", "{done:?}");
    let names = said(
        lab,
        &[
            "get",
            "svc",
            "-A",
            "-l",
            "team=blue",
            "-o",
            "custom-columns=N:.metadata.namespace,S:.metadata.name",
            "--no-headers",
        ],
    );
    assert_eq!(
        names.split_whitespace().collect::<Vec<_>>(),
        ["shop", "a", "shop", "b"]
    );

    let all = said(lab, &["get", "all"]);
    for part in [
        "pod/echo-summer-",
        "service/echo ",
        "replicaset.apps/echo-summer   2         2         2 ",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    let mut pods = all.lines().filter(|line| line.starts_with("pod/"));
    assert!(
        pods.all(|line| line.contains("   1/1     Running   0  ")),
        "{all}"
    );
    let manifest = said(
        lab,
        &[
            "expose",
            "rs",
            "echo-summer",
            "--name",
            "dry",
            "--port",
            "80",
            "--dry-run=client",
            "-o",
            "yaml",
        ],
    );
    assert!(manifest.contains("kind: Service"), "{manifest}");
    assert_eq!(said(lab, &["get", "svc/dry", "--ignore-not-found"]), "");

    let some = said(
        lab,
        &["delete", "svc,ep", "-n", "shop", "-l", "team=blue", "--dry-run"],
    );
    assert_eq!(
        some.matches(" deleted from shop namespace (dry run)\n").count(),
        2,
        "{some}"
    );
    said(lab, &["delete", "svc", "-n", "shop", "-l", "team=blue"]);
    assert_eq!(said(lab, &["get", "all", "-n", "shop"]), "");
    assert_eq!(
        said(
            lab,
            &["delete", "svc/a", "svc/b", "-n", "shop", "--ignore-not-found"]
        ),
        ""
    );
}

#[test]
fn a_service_of_each_type_in_turn_is_reached_where_it_is_and_no_longer_where_it_was() {
    Lab::with(Setup::AfPacket, "quickstart", |lab| {
        let file = lab.manifests().join("walk.yaml");
        let is_now = |spec: &str| {
            let head = "apiVersion: v1\nkind: Service\nmetadata: {name: walk}\nspec:\n  selector: {app: echo, release: summer}\n";
            fs::write(&file, format!("{head}{spec}")).unwrap();
        };
        let field = |path: &str| lab.get(&["svc", "walk", "-o", &format!("jsonpath={path}")]).out;
        let ports = |port: u16, node_port: u16| {
            format!("  ports: [{{name: http, port: {port}, targetPort: 8080, nodePort: {node_port}}}]\n")
        };
        let resolves_to = |wanted: &str| {
            wait_until(&format!("walk is {wanted}"), || {
                dig(lab, &["walk"])
                    .into_iter()
                    .chain(dig(lab, &["walk", "CNAME"]))
                    .any(|found| found == wanted)
                    .then_some(())
            });
        };
        let reached = |from: &str, host: &str| {
            wait_until(&format!("{host} answers {from}"), || {
                curl(lab, from, &format!("http://{host}/"))
                    .out
                    .contains("pod: echo-summer")
                    .then_some(())
            });
        };
        let not_reached = |from: &str, host: &str| {
            wait_until(&format!("{host} answers {from} no more"), || {
                (!curl(lab, from, &format!("http://{host}/")).status.success()).then_some(())
            });
        };
        let node = lab.node();

        is_now("  type: ExternalName\n  externalName: www.example.com\n");
        resolves_to("www.example.com.");
        is_now("  ports: [{name: http, port: 80, targetPort: 8080}]\n");
        reached("debug", "walk");
        let ip = field("{.spec.clusterIP}");
        resolves_to(&ip);
        is_now(&format!("  type: NodePort\n{}", ports(80, 30111)));
        reached("client", &format!("{node}:30111"));
        reached("debug", &ip);
        is_now(&format!("  type: NodePort\n{}", ports(81, 30112)));
        reached("client", &format!("{node}:30112"));
        reached("debug", &format!("{ip}:81"));
        not_reached("client", &format!("{node}:30111"));
        not_reached("debug", &ip);
        is_now(&format!("  type: LoadBalancer\n{}", ports(81, 30112)));
        let balanced = wait_until("it has an address", || {
            let ip = field("{.status.loadBalancer.ingress[0].ip}");
            (!ip.is_empty()).then_some(ip)
        });
        for host in [format!("{balanced}:81"), format!("{node}:30112")] {
            reached("client", &host);
        }
        assert_eq!(
            field("{.spec.clusterIP}"),
            ip,
            "through all of these it keeps its address"
        );

        is_now("  type: ExternalName\n  externalName: www.example.org\n");
        resolves_to("www.example.org.");
        assert_eq!(field("{.spec.clusterIP}"), "");
        not_reached("client", &format!("{node}:30112"));
        not_reached("client", &format!("{balanced}:81"));
        not_reached("debug", &format!("{ip}:81"));
        is_now(&format!("  type: NodePort\n{}", ports(80, 30111)));
        reached("client", &format!("{node}:30111"));
        reached("debug", "walk");
        resolves_to(&field("{.spec.clusterIP}"));
        endpoints_by_hand(lab);
    });
}

/// A Service without a selector leads to whom a person says, also at an address that others route here.
fn endpoints_by_hand(lab: &Lab) {
    let (pod, address) = lab.pods("echo-summer").remove(0);
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: by-hand}}\n\
         spec: {{externalIPs: [172.19.0.200], ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: by-hand}}\n\
         subsets: [{{addresses: [{{ip: {address}}}], ports: [{{name: http, port: 8080}}]}}]\n"
    );
    fs::write(lab.manifests().join("by-hand.yaml"), text).unwrap();
    for (from, host) in [("debug", "by-hand"), ("client", "172.19.0.200")] {
        wait_until(&format!("{host} answers {from}"), || {
            let done = curl(lab, from, &format!("http://{host}/"));
            done.status.success().then_some(())
        });
        let counts = by_pod(&requests(lab, from, &format!("http://{host}"), 10));
        assert!(counts.keys().eq([&pod]), "{host}: {counts:?}");
    }
}
