//! What was typed: every verb, argument and option of `sluice`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// A Kubernetes Service gateway in userspace.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 110)]
pub struct Args {
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn a folder of Kubernetes manifests into the dataplane's tables, for as long as it runs
    Control(ControlArgs),
    /// Say what is wrong with manifests, without applying them
    Check(CheckArgs),
    /// List the objects that the control process works with
    Get(GetArgs),
}

/// `sluice control`.
#[derive(Debug, clap::Args)]
pub struct ControlArgs {
    /// Its configuration; configs/gateway/control.yaml is one to copy
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// `sluice check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Manifests, or folders of them
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t)]
    pub output: CheckOutput,
}

/// Forms of `sluice check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// For a person, with the lines concerned
    #[default]
    Text,
    /// A list of {file, line, column, field, message, severity}
    Json,
}

/// `sluice get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// What to list
    #[arg(value_enum)]
    pub kind: GetKind,
    /// Only these
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// In this namespace
    #[arg(short, long, default_value = "default", conflicts_with = "all_namespaces")]
    pub namespace: String,
    /// In every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only with these labels, e.g. `app=echo,tier!=test`
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// How to print them; a table if absent
    #[arg(short, long, value_enum)]
    pub output: Option<GetOutput>,
    /// Leave out the table's heading
    #[arg(long)]
    pub no_headers: bool,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// Kinds that `sluice get` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GetKind {
    /// Services
    #[value(alias = "service", alias = "svc")]
    Services,
    /// Endpoints
    #[value(alias = "ep")]
    Endpoints,
    /// EndpointSlices
    #[value(alias = "endpointslice")]
    Endpointslices,
    /// Pods
    #[value(alias = "pod", alias = "po")]
    Pods,
}

/// Forms of `sluice get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GetOutput {
    /// The table with more columns
    Wide,
    /// As JSON
    Json,
    /// As YAML
    Yaml,
    /// As kind/name
    Name,
}
