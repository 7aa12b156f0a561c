//! `sluice get`: asks the control process for a list, chooses, prints; with `-w` goes on with what changes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::args::{GetArgs, GetKind, GetOutput};
use super::jsonpath::{Path, plain};
use super::selector::Selector;
use crate::api::{self, List};
use crate::table::{Rows, Table, aligned};

/// Runs the verb.
pub(super) fn run(args: &GetArgs) -> anyhow::Result<ExitCode> {
    let (kind, names) = args.object.wanted()?;
    match kind {
        GetKind::Services => get::<Service>(args, &names, List::Services),
        GetKind::Endpoints => get::<Endpoints>(args, &names, List::Endpoints),
        GetKind::EndpointSlices => get::<EndpointSlice>(args, &names, List::EndpointSlices),
        GetKind::Pods => get::<Pod>(args, &names, List::Pods),
    }
}

/// Namespace and name, as metadata has them.
type Name = (Option<String>, Option<String>);

fn get<T: Rows + Clone + DeserializeOwned + PartialEq + Serialize>(
    args: &GetArgs,
    names: &[String],
    list: List,
) -> anyhow::Result<ExitCode> {
    let selector: Selector = args.selector.as_deref().unwrap_or_default().parse()?;
    if (args.selector.is_some() || args.field_selector.is_some()) && !names.is_empty() {
        bail!("a name cannot be given together with a selector");
    }
    if args.all_namespaces && !names.is_empty() {
        bail!("a name cannot be looked for in all namespaces: give one with -n");
    }
    let socket: PathBuf = args.api.clone().unwrap_or_else(api::default_api_socket);
    let (all, mut revision) = api::ask_for_news::<T>(&socket, list, None)?;
    let mut table = table(args);
    let printed = print_in(&mut table, args, names, &selector, &all, Timestamp::now())?;
    let mut reads_on = say(&printed);
    if !args.watch || printed.failed {
        return Ok(if printed.failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        });
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
        if !printed.failed {
            printed.errors.push(match args.all_namespaces {
                true => "No resources found".into(),
                false => format!("No resources found in {} namespace.", args.object.namespace),
            });
        }
        return Ok(printed);
    }
    printed.out = render(args, names.len() == 1, &chosen, table, now)?;
    Ok(printed)
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
    let here = |item: &&T| args.all_namespaces || item.metadata().namespace.as_ref() == namespace;
    let mut chosen: Vec<&T> = all.iter().filter(here).collect();
    if !names.is_empty() {
        let all = std::mem::take(&mut chosen);
        for wanted in names {
            match all
                .iter()
                .find(|item| item.metadata().name.as_ref() == Some(wanted))
            {
                Some(item) => chosen.push(item),
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
    Ok(match &args.output {
        Some(GetOutput::Json) => serde_json::to_string_pretty(&document(one, chosen)?)? + "\n",
        Some(GetOutput::Yaml) => serde_saphyr::to_string(&document(one, chosen)?)?,
        Some(GetOutput::Name) => {
            let line = |item: &&T| {
                format!(
                    "{}/{}\n",
                    T::KIND,
                    item.metadata().name.as_deref().unwrap_or_default()
                )
            };
            chosen.iter().map(line).collect()
        }
        Some(GetOutput::JsonPath(template)) => template.fill(&document(one, chosen)?),
        Some(GetOutput::Columns(columns)) => {
            let mut rows = Vec::new();
            if !args.no_headers {
                rows.push(columns.iter().map(|(name, _)| name.clone()).collect());
            }
            for item in chosen {
                let item = serde_json::to_value(item)?;
                let cell =
                    |(_, path): &(String, Path)| path.text(&item, ",").unwrap_or_else(|| "<none>".into());
                rows.push(columns.iter().map(cell).collect());
            }
            aligned(&rows, &mut Vec::new())
        }
        None | Some(GetOutput::Wide) => table.rows(chosen, now),
    })
}

/// One object as itself, anything else as a List.
fn document<T: Serialize>(one: bool, chosen: &[&T]) -> anyhow::Result<Value> {
    Ok(match chosen {
        [item] if one => serde_json::to_value(item)?,
        _ => serde_json::json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": serde_json::to_value(chosen)?,
            "metadata": {"resourceVersion": ""},
        }),
    })
}
