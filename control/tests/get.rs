//! `sluice get` prints what kubectl printed.

use clap::Parser;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde::Serialize;
use sluice_control::cli::args::{Args, Command, GetArgs};
use sluice_control::cli::get::{Printed, part, print, print_several};
use sluice_control::manifest::{Body, Kind};
use sluice_control::model::defaults;
use sluice_control::table::Rows;

use crate::support::{DUAL, Tally, allocator, folder, parse, records, text};

/// The words of a shell line with double quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

fn run<T: Rows + Serialize>(args: &GetArgs, names: &[String], mut all: Vec<T>) -> String {
    sort(&mut all);
    let selector = args.selector.as_deref().unwrap_or_default();
    let Ok(selector) = selector.parse() else {
        return "<error text>".into();
    };
    let Ok(printed) = print(args, names, &selector, &all, Timestamp::now()) else {
        return "<error text>".into();
    };
    said(&printed)
}

fn sort<T: Rows>(all: &mut [T]) {
    all.sort_by_key(|item| (item.metadata().namespace.clone(), item.metadata().name.clone()));
}

fn said(printed: &Printed) -> String {
    [printed.out.trim_end(), &printed.errors.join("\n")].concat()
}

#[test]
fn tables_are_kubectls_to_the_letter() {
    let contents = parse(&text(&folder("oracle/get/objects.yaml")));
    assert!(contents.problems.is_empty(), "{:?}", contents.problems);
    let (mut services, mut pods): (Vec<Service>, Vec<Pod>) = (Vec::new(), Vec::new());
    for object in contents.objects {
        match object.body {
            Body::Service(service) => {
                let mut service = (*service).clone();
                let status = service.status.take();
                defaults::apply(&mut service, allocator(DUAL).families(), None);
                service.status = status;
                services.push(service);
            }
            Body::Pod(pod) => pods.push((*pod).clone()),
            _ => {}
        }
    }
    let mut tally = Tally::default();
    for record in records(&folder("oracle/get/commands.jsonl")) {
        let command = record["cmd"].as_str().unwrap();
        let line = command.replacen("kubectl", "sluice", 1);
        let parsed = match Args::try_parse_from(words(&line)) {
            Ok(Args {
                command: Command::Get(args),
            }) => args.object.wanted().ok().map(|wanted| (args, wanted)),
            _ => None,
        };
        let Some((args, wanted)) = parsed else {
            panic!("{command} is not understood");
        };
        let got = match wanted.as_slice() {
            [(Kind::Service, names)] => run(&args, names, services.clone()),
            [(Kind::Pod, names)] => run(&args, names, pods.clone()),
            [(Kind::Node, names)] => run(&args, names, nodes()),
            all if all
                .iter()
                .all(|(kind, _)| !matches!(kind, Kind::Endpoints | Kind::EndpointSlice)) =>
            {
                let parts = all.iter().map(|(kind, names)| {
                    let (selector, now) = (Default::default(), Timestamp::now());
                    let (mut services, mut pods) = (services.clone(), pods.clone());
                    sort(&mut services);
                    sort(&mut pods);
                    match kind {
                        Kind::Service => part(&args, names, &selector, &services, now).unwrap(),
                        Kind::Pod => part(&args, names, &selector, &pods, now).unwrap(),
                        // Of all other kinds there are none.
                        _ => part::<Deployment>(&args, names, &selector, &[], now).unwrap(),
                    }
                });
                said(&print_several(&args, parts.collect()).unwrap())
            }
            _ => {
                tally.leave_out(command, "derived objects: compared in endpointslices");
                continue;
            }
        };
        let stdout: Vec<&str> = record["stdout"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap())
            .collect();
        let wanted = [&stdout.join("\n"), record["stderr"].as_str().unwrap_or_default()].concat();
        // Ages: `<a>` is three characters wide there and anything here.
        let ages = |text: &str| text.replace("<unknown>", "<a>").replace("AGE      ", "AGE");
        let squeeze = |text: &str| {
            ages(text)
                .lines()
                .map(|line| line.trim_end().to_owned())
                .collect::<Vec<_>>()
                .join("\n")
        };
        tally.compare(command, &squeeze(&got), &squeeze(&wanted));
    }
    tally.finish(25);
}

/// The nodes of the record of slices, which are those of this one.
fn nodes() -> Vec<Node> {
    let contents = parse(&text(&folder("oracle/endpointslices/nodes.yaml")));
    let nodes = contents
        .objects
        .into_iter()
        .filter_map(|object| match object.body {
            Body::Node(node) => Some((*node).clone()),
            _ => None,
        });
    nodes.collect()
}

/// What is printed for `sluice LINE` over the objects of the record.
fn printed(line: &str) -> (String, Vec<String>, bool) {
    let Ok(Args {
        command: Command::Get(args),
    }) = Args::try_parse_from(words(&format!("sluice {line}")))
    else {
        panic!("{line}")
    };
    let contents = parse(&text(&folder("oracle/get/objects.yaml")));
    let services = contents
        .objects
        .into_iter()
        .filter_map(|object| match object.body {
            Body::Service(service) => Some((*service).clone()),
            _ => None,
        });
    let (_, names) = args.object.wanted().unwrap().remove(0);
    let selector = args.selector.as_deref().unwrap_or_default().parse().unwrap();
    let all: Vec<Service> = services.collect();
    let printed = print(&args, &names, &selector, &all, Timestamp::now()).unwrap();
    (printed.out, printed.errors, printed.failed)
}

#[test]
fn one_name_is_printed_as_itself_and_several_as_a_list() {
    for line in [
        "get svc plain -n shop -o yaml",
        "get service/plain -n shop -o yaml",
    ] {
        let (out, ..) = printed(line);
        let contents = parse(&out);
        assert_eq!(contents.objects.len(), 1, "{out}");
        assert_eq!(contents.objects[0].key.to_string(), "Service shop/plain", "{out}");
        assert!(!out.contains("List"), "{out}");
    }
    let (out, ..) = printed("get svc plain lb-ip -n shop -o json");
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&list["kind"], list["items"].as_array().unwrap().len()),
        (&"List".into(), 2)
    );
}

#[test]
fn what_is_not_there_is_said_on_standard_error_and_fails_only_if_it_was_named() {
    let (out, errors, failed) = printed("get svc -n empty");
    assert_eq!((out.as_str(), failed), ("", false));
    assert_eq!(errors, ["No resources found in empty namespace."]);
    let (out, errors, failed) = printed("get svc plain x -n shop --no-headers");
    assert_eq!((out.lines().count(), failed), (1, true), "{out}");
    assert_eq!(errors, ["Error from server (NotFound): services \"x\" not found"]);
}

#[test]
fn a_kind_that_is_not_listed_is_answered_with_those_that_are() {
    let args = |kind: &str| match Args::try_parse_from(["sluice", "get", kind]).unwrap().command {
        Command::Get(args) => args.object.wanted(),
        _ => panic!("not a get"),
    };
    let error = args("secrets").unwrap_err().to_string();
    assert!(
        error.contains("\"secrets\"") && error.contains("services (svc)"),
        "{error}"
    );
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(args("SVC").unwrap(), [(Kind::Service, vec![])]);
    assert_eq!(args("pod/web-0").unwrap(), [(Kind::Pod, names(&["web-0"]))]);
    assert_eq!(
        args("svc,ep").unwrap(),
        [(Kind::Service, vec![]), (Kind::Endpoints, vec![])]
    );
    assert_eq!(args("all").unwrap().len(), 6);
    let words = |words: &[&str]| match Args::try_parse_from([&["sluice", "get"], words].concat())
        .unwrap()
        .command
    {
        Command::Get(args) => args.object.wanted(),
        _ => panic!("not a get"),
    };
    assert_eq!(
        words(&["svc/a", "pod/b", "svc/c"]).unwrap(),
        [(Kind::Service, names(&["a", "c"])), (Kind::Pod, names(&["b"]))]
    );
    for wrong in [
        &["svc", "pod/b"][..],
        &["svc/a", "b"],
        &["svc/"],
        &["all", "a"],
        &["svc,secrets"],
    ] {
        assert!(words(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn several_kinds_are_a_table_each_or_one_list() {
    let contents = parse(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec: {clusterIP: None}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: default, labels: {app: web}}\nspec: {containers: [{name: c, image: i}]}\n",
    );
    let printed = |line: &str| {
        let Ok(Args {
            command: Command::Get(args),
        }) = Args::try_parse_from(words(&format!("sluice get {line}")))
        else {
            panic!("{line}")
        };
        let selector = args.selector.as_deref().unwrap_or_default().parse().unwrap();
        let parts = args.object.wanted().unwrap().into_iter().map(|(kind, names)| {
            let mut bodies = contents.objects.iter().map(|object| &object.body);
            let now = Timestamp::now();
            let found = bodies.find(|body| body.kind() == kind);
            match found {
                Some(Body::Service(one)) => part(&args, &names, &selector, &[(**one).clone()], now),
                Some(Body::Pod(one)) => part(&args, &names, &selector, &[(**one).clone()], now),
                _ => part::<Deployment>(&args, &names, &selector, &[], now),
            }
            .unwrap()
        });
        let printed = print_several(&args, parts.collect()).unwrap();
        (printed.out, printed.errors, printed.failed)
    };
    let (out, errors, failed) = printed("all --show-labels");
    let lines: Vec<Vec<&str>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[1][0], "pod/p");
    assert_eq!(
        (lines[0].last(), lines[1].last()),
        (Some(&"LABELS"), Some(&"app=web"))
    );
    assert_eq!((lines[2].len(), lines[4][0], lines.len()), (0, "service/web", 5));
    assert_eq!((errors.len(), failed), (0, false));
    assert_eq!(printed("svc,po -o name").0, "service/web\npod/p\n");
    let list: serde_json::Value = serde_json::from_str(&printed("all -o json").0).unwrap();
    assert_eq!(
        (&list["kind"], list["items"].as_array().unwrap().len()),
        (&"List".into(), 2)
    );
    assert_eq!(
        printed("all -n elsewhere").1,
        ["No resources found in elsewhere namespace."]
    );
    let (out, errors, failed) = printed("svc/web pod/x");
    assert_eq!((out.lines().count(), errors.len(), failed), (2, 1, true), "{out}");
    let (out, errors, failed) = printed("svc/web pod/x --ignore-not-found");
    assert_eq!(
        (out.lines().count(), errors.len(), failed),
        (2, 0, false),
        "{out}"
    );
}
