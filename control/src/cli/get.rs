//! `sluice get`: asks the control process for a list, chooses, prints; with `-w` goes on with what changes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::args::{GetArgs, GetOutput};
use super::jsonpath::{Path, plain};
use super::selector::Selector;
use crate::api::{self, List};
use crate::manifest::Kind;
use crate::table::{Rows, Table, aligned};

/// A function of objects of a kind, and of the list that they are told in.
macro_rules! of_kind {
    ($kind:expr, $function:ident($($argument:expr),*)) => {
        match $kind {
            Kind::Service => $function::<Service>($($argument,)* List::Services),
            Kind::Pod => $function::<Pod>($($argument,)* List::Pods),
            Kind::Endpoints => $function::<Endpoints>($($argument,)* List::Endpoints),
            Kind::EndpointSlice => $function::<EndpointSlice>($($argument,)* List::EndpointSlices),
            Kind::Deployment => $function::<Deployment>($($argument,)* List::Deployments),
            Kind::ReplicaSet => $function::<ReplicaSet>($($argument,)* List::ReplicaSets),
            Kind::StatefulSet => $function::<StatefulSet>($($argument,)* List::StatefulSets),
            Kind::DaemonSet => $function::<DaemonSet>($($argument,)* List::DaemonSets),
            Kind::Node => $function::<Node>($($argument,)* List::Nodes),
            Kind::Namespace => $function::<Namespace>($($argument,)* List::Namespaces),
        }
    };
}

/// Runs the verb.
pub(super) fn run(args: &GetArgs) -> anyhow::Result<ExitCode> {
    let wanted = args.object.wanted()?;
    if let [(kind, names)] = wanted.as_slice() {
        return of_kind!(*kind, get(args, names));
    }
    if args.watch {
        bail!("only one kind can be watched at a time");
    }
    let parts = wanted
        .iter()
        .map(|(kind, names)| of_kind!(*kind, asked_for(args, names)));
    let printed = print_several(args, parts.collect::<anyhow::Result<_>>()?)?;
    say(&printed);
    Ok(exit_code(&printed))
}

const fn exit_code(printed: &Printed) -> ExitCode {
    match printed.failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// Namespace and name, as metadata has them.
type Name = (Option<String>, Option<String>);

fn get<T: Rows + Clone + DeserializeOwned + PartialEq + Serialize>(
    args: &GetArgs,
    names: &[String],
    list: List,
) -> anyhow::Result<ExitCode> {
    let selector = selector(args, names)?;
    let socket = socket(args);
    let (all, mut revision) = api::ask_for_news::<T>(&socket, list, None)?;
    let mut table = table(args);
    let printed = print_in(&mut table, args, names, &selector, &all, Timestamp::now())?;
    let mut reads_on = say(&printed);
    if !args.watch || printed.failed {
        return Ok(exit_code(&printed));
    }
    table.headers = false;
    let chosen = |all: &[T]| -> anyhow::Result<BTreeMap<Name, T>> {
        let chosen = choose(args, names, &selector, all, &mut Printed::default())?;
        let name = |item: &T| (item.metadata().namespace.clone(), item.metadata().name.clone());
        Ok(chosen
            .into_iter()
            .map(|item| (name(item), item.clone()))
            .collect())
    };
    let mut before = chosen(&all)?;
    while reads_on {
        let (all, newest) = api::ask_for_news::<T>(&socket, list, Some(revision))?;
        revision = newest;
        let after = chosen(&all)?;
        let changed = after
            .iter()
            .filter(|(name, item)| before.get(*name) != Some(*item));
        // As kubectl: what is gone is shown as it last was.
        let gone = before.iter().filter(|(name, _)| !after.contains_key(*name));
        let events: Vec<&T> = changed.chain(gone).map(|(_, item)| item).collect();
        if !events.is_empty() {
            let out = render(args, true, &events, &mut table, Timestamp::now())?;
            reads_on = say(&Printed {
                out,
                ..Printed::default()
            });
        }
        before = after;
    }
    Ok(ExitCode::SUCCESS)
}

fn socket(args: &GetArgs) -> PathBuf {
    args.api.clone().unwrap_or_else(api::default_api_socket)
}

/// The selector that was typed, if it goes together with the rest.
fn selector(args: &GetArgs, names: &[String]) -> anyhow::Result<Selector> {
    if (args.selector.is_some() || args.field_selector.is_some()) && !names.is_empty() {
        bail!("a name cannot be given together with a selector");
    }
    if args.all_namespaces && !names.is_empty() {
        bail!("a name cannot be looked for in all namespaces: give one with -n");
    }
    args.selector.as_deref().unwrap_or_default().parse()
}

/// Asks for one of several kinds.
fn asked_for<T: Rows + DeserializeOwned + Serialize>(
    args: &GetArgs,
    names: &[String],
    list: List,
) -> anyhow::Result<Part> {
    let selector = selector(args, names)?;
    let all: Vec<T> = api::ask(&socket(args), list)?;
    part(args, names, &selector, &all, Timestamp::now())
}

/// Whether anybody reads on (`| head` does not).
fn say(printed: &Printed) -> bool {
    printed.errors.iter().for_each(|error| eprintln!("{error}"));
    let mut out = std::io::stdout();
    out.write_all(printed.out.as_bytes())
        .and_then(|()| out.flush())
        .is_ok()
}

fn table(args: &GetArgs) -> Table {
    Table {
        wide: matches!(args.output, Some(GetOutput::Wide)),
        namespaces: args.all_namespaces,
        headers: !args.no_headers,
        labels: args.label_columns.clone(),
        all_labels: args.show_labels,
        ..Table::default()
    }
}

/// What the command says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// On standard output.
    pub out: String,
    /// Lines on standard error.
    pub errors: Vec<String>,
    /// Whether something that was asked for by name is not there.
    pub failed: bool,
}

/// Chooses from `all` (sorted) and prints. Pure, so that kubectl's own output can be compared with it.
///
/// # Errors
/// A selector or a path that is none.
pub fn print<T: Rows + Serialize>(
    args: &GetArgs,
    names: &[String],
    selector: &Selector,
    all: &[T],
    now: Timestamp,
) -> anyhow::Result<Printed> {
    print_in(&mut table(args), args, names, selector, all, now)
}

fn print_in<T: Rows + Serialize>(
    table: &mut Table,
    args: &GetArgs,
    names: &[String],
    selector: &Selector,
    all: &[T],
    now: Timestamp,
) -> anyhow::Result<Printed> {
    let mut printed = Printed::default();
    let chosen = choose(args, names, selector, all, &mut printed)?;
    if chosen.is_empty() && (printed.failed || prints_rows(args)) {
        if !printed.failed && (names.is_empty() || !args.ignore_not_found) {
            printed.errors.push(nothing(args, T::NAMESPACED));
        }
        return Ok(printed);
    }
    printed.out = render(args, names.len() == 1, &chosen, table, now)?;
    Ok(printed)
}

fn nothing(args: &GetArgs, namespaced: bool) -> String {
    match args.all_namespaces || !namespaced {
        true => "No resources found".into(),
        false => format!("No resources found in {} namespace.", args.object.namespace),
    }
}

/// What there is of one of several kinds.
#[derive(Debug)]
pub struct Part {
    printed: Printed,
    values: Vec<Value>,
}

/// Chooses from `all` (sorted), of one of several kinds. Pure, as [`print()`].
///
/// # Errors
/// A selector or a path that is none.
pub fn part<T: Rows + Serialize>(
    args: &GetArgs,
    names: &[String],
    selector: &Selector,
    all: &[T],
    now: Timestamp,
) -> anyhow::Result<Part> {
    let mut printed = Printed::default();
    let chosen = choose(args, names, selector, all, &mut printed)?;
    let mut table = Table {
        kinds: true,
        ..table(args)
    };
    let values = match prints_rows(args) || matches!(args.output, Some(GetOutput::Name)) {
        true => Vec::new(),
        false => values(&chosen)?,
    };
    if values.is_empty() && !chosen.is_empty() {
        printed.out = render(args, false, &chosen, &mut table, now)?;
    }
    Ok(Part { printed, values })
}

/// Prints several kinds: a table each, or one list of all of them.
///
/// # Errors
/// A value that cannot be written, which none is.
pub fn print_several(args: &GetArgs, parts: Vec<Part>) -> anyhow::Result<Printed> {
    let mut all = Printed::default();
    let mut values = Vec::new();
    for part in parts {
        let space = match all.out.is_empty() || part.printed.out.is_empty() || !prints_rows(args) {
            true => "",
            false => "\n",
        };
        all.out = all.out + space + &part.printed.out;
        all.errors.extend(part.printed.errors);
        all.failed |= part.printed.failed;
        values.extend(part.values);
    }
    if prints_rows(args) && all.out.is_empty() && !all.failed {
        all.errors.push(nothing(args, true));
    }
    if let Some(text) = form(args, false, values)? {
        all.out = text;
    }
    Ok(all)
}

const fn prints_rows(args: &GetArgs) -> bool {
    matches!(args.output, None | Some(GetOutput::Wide))
}

/// The objects that are meant, in order. What was asked for by name and is not there is told.
fn choose<'a, T: Rows + Serialize>(
    args: &GetArgs,
    names: &[String],
    selector: &Selector,
    all: &'a [T],
    printed: &mut Printed,
) -> anyhow::Result<Vec<&'a T>> {
    let namespace = Some(&args.object.namespace);
    let everywhere = args.all_namespaces || !T::NAMESPACED;
    let here = |item: &&T| everywhere || item.metadata().namespace.as_ref() == namespace;
    let mut chosen: Vec<&T> = all.iter().filter(here).collect();
    if !names.is_empty() {
        let all = std::mem::take(&mut chosen);
        for wanted in names {
            match all
                .iter()
                .find(|item| item.metadata().name.as_ref() == Some(wanted))
            {
                Some(item) => chosen.push(item),
                None if args.ignore_not_found => {}
                None => {
                    let message = format!(
                        "Error from server (NotFound): {} \"{wanted}\" not found",
                        T::PLURAL
                    );
                    printed.errors.push(message);
                    printed.failed = true;
                }
            }
        }
    }
    chosen.retain(|item| selector.matches(item.metadata().labels.as_ref()));
    for requirement in args.field_selector.iter().flat_map(|text| text.split(',')) {
        let (path, wanted, value) = field_requirement::<T>(requirement)?;
        let has = |item: &T| {
            serde_json::to_value(item).is_ok_and(|item| path.text(&item, "").unwrap_or_default() == value)
        };
        chosen.retain(|item| has(item) == wanted);
    }
    if let Some(path) = &args.sort_by {
        let path = Path::relaxed(path).context("--sort-by")?;
        let key = |item: &&T| {
            let item = serde_json::to_value(item).unwrap_or_default();
            path.find(&item).first().map(|found| (*found).clone())
        };
        let mut keyed: Vec<_> = chosen.into_iter().map(|item| (key(&item), item)).collect();
        keyed.sort_by(|(a, _), (b, _)| by_value(a.as_ref(), b.as_ref()));
        chosen = keyed.into_iter().map(|(_, item)| item).collect();
    }
    Ok(chosen)
}

/// `path=value`, `path==value` or `path!=value`; whether it is to be equal.
fn field_requirement<T: Rows>(text: &str) -> anyhow::Result<(Path, bool, &str)> {
    let parts = text.split_once("!=").map(|(field, value)| (field, false, value));
    let equal = || {
        let (field, value) = text.split_once('=')?;
        Some((field, true, value.trim_start_matches('=')))
    };
    let (field, equal, value) = parts
        .or_else(equal)
        .with_context(|| format!("\"{text}\" chooses nothing; write FIELD=VALUE or FIELD!=VALUE"))?;
    let known = ["metadata.name", "metadata.namespace"].iter().chain(T::FIELDS);
    let known: Vec<&str> = known.copied().collect();
    if !known.contains(&field.trim()) {
        bail!(
            "{} cannot be chosen by {field}; they can by {}",
            T::PLURAL,
            known.join(", ")
        );
    }
    Ok((Path::relaxed(field)?, equal, value.trim()))
}

/// Numbers as numbers, texts with the numbers in them as such, nothing first.
fn by_value(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a
            .as_f64()
            .unwrap_or_default()
            .total_cmp(&b.as_f64().unwrap_or_default()),
        (Some(a), Some(b)) => natural(&plain(a)).cmp(&natural(&plain(b))),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// Texts and the numbers between them.
fn natural(text: &str) -> Vec<(String, u128)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let words = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(words);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        parts.push((word.to_owned(), number.parse().unwrap_or_default()));
        rest = after;
    }
    parts
}

fn render<T: Rows + Serialize>(
    args: &GetArgs,
    one: bool,
    chosen: &[&T],
    table: &mut Table,
    now: Timestamp,
) -> anyhow::Result<String> {
    match args.output {
        None | Some(GetOutput::Wide) => Ok(table.rows(chosen, now)),
        Some(GetOutput::Name) => {
            let name = |item: &&T| item.metadata().name.clone().unwrap_or_default();
            Ok(chosen
                .iter()
                .map(|item| format!("{}/{}\n", T::KIND, name(item)))
                .collect())
        }
        _ => Ok(form(args, one, values(chosen)?)?.unwrap_or_default()),
    }
}

fn values<T: Serialize>(chosen: &[&T]) -> anyhow::Result<Vec<Value>> {
    let values = chosen.iter().map(serde_json::to_value);
    Ok(values.collect::<serde_json::Result<_>>()?)
}

/// Objects in a form that is not a table of their kind, if that is what was asked for.
fn form(args: &GetArgs, one: bool, values: Vec<Value>) -> anyhow::Result<Option<String>> {
    Ok(Some(match &args.output {
        Some(GetOutput::Json) => serde_json::to_string_pretty(&document(one, values))? + "\n",
        Some(GetOutput::Yaml) => serde_saphyr::to_string(&document(one, values))?,
        Some(GetOutput::JsonPath(template)) => template.fill(&document(one, values)),
        Some(GetOutput::Columns(columns)) => {
            let mut rows = Vec::new();
            if !args.no_headers {
                rows.push(columns.iter().map(|(name, _)| name.clone()).collect());
            }
            for item in values {
                let cell =
                    |(_, path): &(String, Path)| path.text(&item, ",").unwrap_or_else(|| "<none>".into());
                rows.push(columns.iter().map(cell).collect());
            }
            aligned(&rows, &mut Vec::new())
        }
        None | Some(GetOutput::Wide | GetOutput::Name) => return Ok(None),
    }))
}

/// One object as itself, anything else as a List.
fn document(one: bool, mut values: Vec<Value>) -> Value {
    match values.len() {
        1 if one => values.swap_remove(0),
        _ => serde_json::json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": values,
            "metadata": {"resourceVersion": ""},
        }),
    }
}
