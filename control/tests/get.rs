//! `sluice get` prints what kubectl printed.

use clap::Parser;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use serde::Serialize;
use sluice_control::cli::args::{Args, Command, GetKind};
use sluice_control::cli::get::print;
use sluice_control::manifest::Body;
use sluice_control::model::defaults;
use sluice_control::table::Rows;

use crate::support::{Tally, folder, parse, records, text};

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

fn run<T: Rows + Serialize>(args: &sluice_control::cli::args::GetArgs, mut all: Vec<T>) -> String {
    all.sort_by_key(|item| (item.metadata().namespace.clone(), item.metadata().name.clone()));
    let selector = args.selector.as_deref().unwrap_or_default();
    let Ok(selector) = selector.parse() else {
        return "<error text>".into();
    };
    let printed = print(args, &selector, &all, Timestamp::now()).unwrap();
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
                let mut service = *service;
                let status = service.status.take();
                defaults::apply(&mut service);
                service.status = status;
                services.push(service);
            }
            Body::Pod(pod) => pods.push(*pod),
            _ => {}
        }
    }
    let mut tally = Tally::default();
    for record in records(&folder("oracle/get/commands.jsonl")) {
        let command = record["cmd"].as_str().unwrap();
        let line = command.replacen("kubectl", "sluice", 1);
        let Ok(Args {
            command: Command::Get(args),
        }) = Args::try_parse_from(words(&line))
        else {
            tally.leave_out(
                command,
                "an option or a list of kinds that `sluice get` does not have",
            );
            continue;
        };
        let got = match args.kind {
            GetKind::Services => run(&args, services.clone()),
            GetKind::Pods => run(&args, pods.clone()),
            GetKind::Endpoints => run(&args, Vec::<Endpoints>::new()),
            GetKind::Endpointslices => String::new(),
        };
        if matches!(args.kind, GetKind::Endpoints | GetKind::Endpointslices) {
            tally.leave_out(command, "derived objects: compared in endpointslices");
            continue;
        }
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
    tally.finish(15);
}
