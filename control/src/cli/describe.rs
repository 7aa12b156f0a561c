//! `sluice describe KIND NAME`: a Service or a pod in full, as kubectl describes it, and what kubectl does not know: frontends,
//! endpoints with their conditions, and what stands in the way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::args::DescribeArgs;
use crate::api::{self, List};
use crate::manifest::Kind;

/// A pod.
mod pod;
/// A Service.
mod service;

/// What the control process says of a mistake.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Event {
    severity: String,
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    field: String,
    message: String,
}

impl Event {
    /// `file:line:column: field: message`.
    pub(super) fn text(&self) -> String {
        let place = match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", self.file),
            _ => self.file.clone(),
        };
        let parts = [place.as_str(), &self.field, &self.message];
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(": ")
    }
}

/// Runs the verb.
pub(super) fn run(args: &DescribeArgs) -> anyhow::Result<ExitCode> {
    let socket: PathBuf = args.api.clone().unwrap_or_else(api::default_api_socket);
    let namespace = args.object.namespace.as_str();
    let mut found = Vec::new();
    for (kind, names) in args.object.wanted()? {
        found.extend(match kind {
            Kind::Service => services(&socket, namespace, &names)?,
            Kind::Pod => pods(&socket, namespace, &names)?,
            other => bail!(
                "services and pods are described; `sluice get {} -o yaml` shows all of the others",
                other.resources()
            ),
        });
    }
    if found.is_empty() {
        eprintln!("No resources found in {namespace} namespace.");
    }
    let mut failed = false;
    let mut texts = Vec::new();
    for described in found {
        match described {
            Ok(text) => texts.push(text),
            Err(reason) => {
                failed = true;
                eprintln!("{reason}");
            }
        }
    }
    // Whoever reads no further (`| head`) needs no more.
    let _ = std::io::stdout().write_all(texts.join("\n\n").as_bytes());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// A description, or why there is none.
type Described = Result<String, String>;

fn services(socket: &Path, namespace: &str, names: &[String]) -> anyhow::Result<Vec<Described>> {
    if !names.is_empty() {
        let described = names
            .iter()
            .map(|name| service::described(socket, namespace, name));
        return described.collect();
    }
    let all: Vec<Service> = api::ask(socket, List::Services)?;
    let here = all.iter().filter(|one| is_in(&one.metadata, namespace));
    let names = here.filter_map(|one| one.metadata.name.as_deref());
    names
        .map(|name| service::described(socket, namespace, name))
        .collect()
}

/// As kubectl, a name that is none may be the beginning of some.
fn pods(socket: &Path, namespace: &str, names: &[String]) -> anyhow::Result<Vec<Described>> {
    let mut all: Vec<Pod> = api::ask(socket, List::Pods)?;
    all.retain(|pod| is_in(&pod.metadata, namespace));
    let slices: Vec<EndpointSlice> = api::ask(socket, List::EndpointSlices)?;
    let describe = |pod: &Pod| Ok(pod::describe(pod, &slices));
    if names.is_empty() {
        return Ok(all.iter().map(describe).collect());
    }
    let mut described = Vec::new();
    for name in names {
        let called = |pod: &&Pod| pod.metadata.name.as_ref() == Some(name);
        let begins = |pod: &&Pod| {
            pod.metadata
                .name
                .as_ref()
                .is_some_and(|own| own.starts_with(name))
        };
        let found: Vec<&Pod> = match all.iter().find(called) {
            Some(pod) => vec![pod],
            None => all.iter().filter(begins).collect(),
        };
        if found.is_empty() {
            described.push(Err(format!(
                "Error from server (NotFound): pods \"{name}\" not found"
            )));
        }
        described.extend(found.into_iter().map(describe));
    }
    Ok(described)
}

fn is_in(metadata: &ObjectMeta, namespace: &str) -> bool {
    metadata.namespace.as_deref() == Some(namespace)
}

/// Lines of a name and what it is, the second column where the longest name ends.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    fn add(&mut self, name: &str, value: impl ToString) {
        self.0.push((format!("{name}:"), value.to_string()));
    }

    fn given<T: ToString>(&mut self, name: &str, value: Option<T>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// One line a value; the name before the first.
    fn several(&mut self, name: &str, values: Vec<String>) {
        let mut values = values.into_iter();
        self.add(name, values.next().unwrap_or_else(|| "<none>".into()));
        self.0.extend(values.map(|value| (String::new(), value)));
    }

    fn text(&self) -> String {
        let width = self
            .0
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0)
            + 2;
        let line = |(name, value): &(String, String)| format!("{name:width$}{value}\n");
        self.0.iter().map(line).collect()
    }
}

/// `key=value` and the like.
fn pairs(map: &Option<BTreeMap<String, String>>, between: &str) -> Vec<String> {
    let pairs = map.iter().flatten();
    pairs
        .map(|(key, value)| format!("{key}{between}{value}"))
        .collect()
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

fn joined(list: &Option<Vec<String>>) -> String {
    list.as_deref().unwrap_or_default().join(",")
}

#[derive(Clone, Copy)]
enum Condition {
    Ready,
    Serving,
    Terminating,
}

/// EP-7.
fn is(endpoint: &Endpoint, condition: Condition) -> bool {
    let conditions = endpoint.conditions.as_ref();
    match condition {
        Condition::Ready => conditions.and_then(|c| c.ready).unwrap_or(true),
        Condition::Serving => conditions.and_then(|c| c.serving).unwrap_or(true),
        Condition::Terminating => conditions.and_then(|c| c.terminating).unwrap_or(false),
    }
}

/// Two more columns in, heads underlined, two apart.
fn table(rows: &[Vec<String>]) -> String {
    let mut rows = rows.to_vec();
    if let Some(heads) = rows.first() {
        let lines = heads
            .iter()
            .map(|head| "-".repeat(head.chars().count()))
            .collect();
        rows.insert(1, lines);
    }
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
            + 2
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<String>();
        let _ = writeln!(out, "  {}", line.trim_end());
    }
    out
}
