//! `sluice get`: asks the control process for a list, chooses, prints.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::{GetArgs, GetKind, GetOutput};
use super::selector::Selector;
use crate::api::{self, List};
use crate::table::{Rows, table};

/// Runs the verb.
pub(super) fn run(args: &GetArgs) -> anyhow::Result<ExitCode> {
    let (kind, names) = args.wanted()?;
    match kind {
        GetKind::Services => get::<Service>(args, &names, List::Services),
        GetKind::Endpoints => get::<Endpoints>(args, &names, List::Endpoints),
        GetKind::EndpointSlices => get::<EndpointSlice>(args, &names, List::EndpointSlices),
        GetKind::Pods => get::<Pod>(args, &names, List::Pods),
    }
}

fn get<T: Rows + DeserializeOwned + Serialize>(
    args: &GetArgs,
    names: &[String],
    list: List,
) -> anyhow::Result<ExitCode> {
    let selector: Selector = args.selector.as_deref().unwrap_or_default().parse()?;
    if args.selector.is_some() && !names.is_empty() {
        bail!("a name cannot be given together with a selector");
    }
    if args.all_namespaces && !names.is_empty() {
        bail!("a name cannot be looked for in all namespaces: give one with -n");
    }
    let socket: PathBuf = args.api.clone().unwrap_or_else(api::default_api_socket);
    let mut all: Vec<T> = api::ask(&socket, list)?;
    let name = |item: &T| (item.metadata().namespace.clone(), item.metadata().name.clone());
    all.sort_by_key(name);
    let printed = print(args, names, &selector, &all, Timestamp::now())?;
    // Whoever reads no further (`| head`) needs no more.
    let _ = std::io::stdout().write_all(printed.out.as_bytes());
    printed.errors.iter().for_each(|error| eprintln!("{error}"));
    Ok(if printed.failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
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
pub fn print<T: Rows + Serialize>(
    args: &GetArgs,
    names: &[String],
    selector: &Selector,
    all: &[T],
    now: Timestamp,
) -> anyhow::Result<Printed> {
    let here =
        |item: &&T| args.all_namespaces || item.metadata().namespace.as_deref() == Some(&args.namespace);
    let mut printed = Printed::default();
    let chosen: Vec<&T> = if names.is_empty() {
        all.iter()
            .filter(here)
            .filter(|item| selector.matches(item.metadata().labels.as_ref()))
            .collect()
    } else {
        let mut chosen = Vec::new();
        for wanted in names {
            match all
                .iter()
                .filter(here)
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
        chosen
    };
    if printed.failed && chosen.is_empty() {
        return Ok(printed);
    }
    printed.out = match args.output {
        Some(GetOutput::Json) => serde_json::to_string_pretty(&document(names, &chosen)?)? + "\n",
        Some(GetOutput::Yaml) => serde_saphyr::to_string(&document(names, &chosen)?)?,
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
        output => {
            if chosen.is_empty() {
                printed.errors.push(match args.all_namespaces {
                    true => "No resources found".into(),
                    false => format!("No resources found in {} namespace.", args.namespace),
                });
                return Ok(printed);
            }
            let wide = output == Some(GetOutput::Wide);
            table(&chosen, wide, args.all_namespaces, !args.no_headers, now)
        }
    };
    Ok(printed)
}

/// One object as itself, anything else as a List.
fn document<T: Serialize>(names: &[String], chosen: &[&T]) -> anyhow::Result<serde_json::Value> {
    Ok(match chosen {
        [one] if names.len() == 1 => serde_json::to_value(one)?,
        _ => serde_json::json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": serde_json::to_value(chosen)?,
            "metadata": {"resourceVersion": ""},
        }),
    })
}
