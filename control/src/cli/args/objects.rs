//! How objects are named in commands, and in which forms they are printed, as with kubectl.

use anyhow::{Context, bail};
use clap::ValueEnum;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::jsonpath::{Path, Template};
use crate::manifest::Kind;

/// Which objects are meant.
#[derive(Debug, clap::Args)]
pub struct ObjectArgs {
    /// services (svc), endpoints (ep), endpointslices, pods (po), deployments, replicasets (rs), statefulsets (sts),
    /// daemonsets (ds), nodes, namespaces; several with commas between; all; or objects as KIND/NAME
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// Only these
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// In this namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// Whether something is done, or only said, and by whom with kubectl: here the rules are control's either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// It is done.
    #[default]
    None,
    /// It is said.
    Client,
    /// It is said.
    Server,
}

impl DryRun {
    /// Whether nothing is done.
    pub fn is_dry(self) -> bool {
        self != Self::None
    }

    /// What stands behind what is said, as with kubectl.
    pub const fn note(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }
}

/// Forms of objects that a command prints of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ObjectOutput {
    /// As JSON
    Json,
    /// As YAML
    Yaml,
    /// As kind/name
    Name,
}

/// The kind of this name.
///
/// # Errors
/// There is none, or it has no meaning here.
pub fn kind(text: &str) -> anyhow::Result<Kind> {
    Kind::named(text).with_context(|| {
        format!(
            "there is no kind \"{text}\"; there are services (svc), endpoints (ep), endpointslices, pods (po), deployments, \
             replicasets (rs), statefulsets (sts), daemonsets (ds), nodes (no), namespaces (ns)"
        )
    })
}

/// What `all` means, in the order that kubectl lists it in.
const ALL: [Kind; 6] = [
    Kind::Pod,
    Kind::Service,
    Kind::DaemonSet,
    Kind::Deployment,
    Kind::ReplicaSet,
    Kind::StatefulSet,
];

impl ObjectArgs {
    /// The kinds and the names asked for.
    ///
    /// # Errors
    /// As [`wanted`].
    pub fn wanted(&self) -> anyhow::Result<Vec<(Kind, Vec<String>)>> {
        wanted(&self.kind, &self.names)
    }
}

/// The kinds and the names asked for, which may be written `KIND[,KIND…] NAME…`, `KIND/NAME…` or `all`.
///
/// # Errors
/// A kind that is none, or words that are not written so.
pub fn wanted(first: &str, names: &[String]) -> anyhow::Result<Vec<(Kind, Vec<String>)>> {
    if !first.contains('/') {
        if names.iter().any(|name| name.contains('/')) {
            bail!("write KIND/NAME…, or KIND NAME…, not both");
        }
        if first.eq_ignore_ascii_case("all") {
            return match names.is_empty() {
                true => Ok(ALL.map(|kind| (kind, Vec::new())).into()),
                false => bail!("`all` is kinds of objects: to name one, say of which kind it is"),
            };
        }
        let kinds = first.split(',').filter(|word| !word.is_empty());
        return kinds.map(|word| Ok((kind(word)?, names.to_vec()))).collect();
    }
    let mut wanted: Vec<(Kind, Vec<String>)> = Vec::new();
    for word in std::iter::once(first).chain(names.iter().map(String::as_str)) {
        let Some((word, name)) = word.split_once('/').filter(|(_, name)| !name.is_empty()) else {
            bail!("write KIND/NAME…, or KIND NAME…, not both");
        };
        let kind = kind(word)?;
        match wanted.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, names)) => names.push(name.to_owned()),
            None => wanted.push((kind, vec![name.to_owned()])),
        }
    }
    Ok(wanted)
}

/// Forms of `sluice get`.
#[derive(Clone, Debug)]
pub enum GetOutput {
    /// The table with more columns
    Wide,
    /// As JSON
    Json,
    /// As YAML
    Yaml,
    /// As kind/name
    Name,
    /// By a template
    JsonPath(Template),
    /// A table of these columns
    Columns(Vec<(String, Path)>),
}

impl std::str::FromStr for GetOutput {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let said = |error: anyhow::Error| format!("{error:#}");
        match text.split_once('=') {
            Some(("jsonpath", template)) => Template::parse(template).map(Self::JsonPath).map_err(said),
            Some(("custom-columns", columns)) => columns
                .split(',')
                .map(column)
                .collect::<Result<_, _>>()
                .map(Self::Columns),
            _ => match text {
                "wide" => Ok(Self::Wide),
                "json" => Ok(Self::Json),
                "yaml" => Ok(Self::Yaml),
                "name" => Ok(Self::Name),
                _ => Err(
                    "there are wide, json, yaml, name, jsonpath=TEMPLATE and custom-columns=NAME:PATH,…"
                        .into(),
                ),
            },
        }
    }
}

fn column(text: &str) -> Result<(String, Path), String> {
    let (name, path) = text
        .split_once(':')
        .ok_or_else(|| format!("\"{text}\" is no column; write NAME:PATH"))?;
    let path = Path::relaxed(path).map_err(|error| format!("{error:#}"))?;
    Ok((name.to_owned(), path))
}

/// What to do instead of a verb of kubectl that there is not, if that is what is wrong.
pub fn instead(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let ContextValue::String(verb) = error.get(ContextKind::InvalidSubcommand)? else {
        return None;
    };
    Some(match verb.as_str() {
        "logs" | "exec" | "scale" => format!("pods are a lab's: sluice lab {verb} …"),
        "create" | "replace" => {
            "sluice apply -f FILE puts manifests in place, new ones and changed ones".into()
        }
        "edit" | "patch" | "label" | "annotate" | "set" => {
            "edit the manifest and save it, or pass it to sluice apply -f FILE".into()
        }
        "explain" | "diff" => {
            "sluice check FILE says what is wrong, sluice apply --dry-run -f FILE what would change".into()
        }
        _ => return None,
    })
}
