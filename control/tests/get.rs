//! `sluice get` prints what kubectl printed.

use clap::Parser;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use serde::Serialize;
use sluice_control::cli::args::{Args, Command, GetArgs, GetKind};
use sluice_control::cli::get::print;
use sluice_control::manifest::Body;
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
    all.sort_by_key(|item| (item.metadata().namespace.clone(), item.metadata().name.clone()));
    let selector = args.selector.as_deref().unwrap_or_default();
    let Ok(selector) = selector.parse() else {
        return "<error text>".into();
    };
    let Ok(printed) = print(args, names, &selector, &all, Timestamp::now()) else {
        return "<error text>".into();
    };
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
        let Some((args, (kind, names))) = parsed else {
            let reason = "an option, a kind or a list of kinds that `sluice get` does not have";
            tally.leave_out(command, reason);
            continue;
        };
        let got = match kind {
            GetKind::Services => run(&args, &names, services.clone()),
            GetKind::Pods => run(&args, &names, pods.clone()),
            GetKind::Endpoints | GetKind::EndpointSlices => {
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
    tally.finish(23);
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
    let (_, names) = args.object.wanted().unwrap();
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
    assert_eq!(args("SVC").unwrap().0, GetKind::Services);
    assert_eq!(args("pod/web-0").unwrap(), (GetKind::Pods, vec!["web-0".into()]));
}
