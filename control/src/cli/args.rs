//! What was typed: every verb, argument and option of `sluice`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

mod lab;
mod objects;

pub use lab::{LabArgs, LabCommand, LabDeleteKind, LabOutput, LabUpArgs};
pub use objects::{DryRun, GetOutput, ObjectArgs, ObjectOutput, instead, kind, wanted};

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
    /// Print the environment variables that a pod's programs are told of Services by
    Env(EnvArgs),
    /// Show a Service in full: frontends, endpoints with their conditions, and what is wrong
    Describe(DescribeArgs),
    /// Put manifests into the folder that the control process watches
    Apply(ApplyArgs),
    /// Make a Service for pods, or for what makes them
    Expose(ExposeArgs),
    /// Take objects out of the folder that the control process watches
    Delete(DeleteArgs),
    /// Try Services on this machine: a cluster of network namespaces, without a cluster
    Lab(LabArgs),
    /// Print what a shell needs to complete commands, e.g. `source <(sluice completion bash)`
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
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
    /// A control process's configuration, for its ranges of cluster IPs and node ports; else 10.96.0.0/16 and
    /// fd00:10:96::/112, 30000-32767
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t)]
    pub output: CheckOutput,
}

/// Forms of `sluice check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// A line for each mistake, file:line:column: field: what is wrong; on a terminal with the lines concerned
    #[default]
    Text,
    /// A list of {severity, file, line, column, object, field, message}
    Json,
}

/// `sluice get`.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// What to list.
    #[command(flatten)]
    pub object: ObjectArgs,
    /// In every namespace
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Only with these labels, e.g. `app=echo,tier!=test`
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Only with these fields, e.g. `spec.type=LoadBalancer,metadata.name!=web`
    #[arg(long, value_name = "FIELDS")]
    pub field_selector: Option<String>,
    /// How to print them, a table if absent: wide, json, yaml, name, jsonpath=TEMPLATE, custom-columns=NAME:PATH,…
    #[arg(short, long, value_name = "FORM")]
    pub output: Option<GetOutput>,
    /// These labels as further columns
    #[arg(short = 'L', long, value_name = "KEYS", value_delimiter = ',')]
    pub label_columns: Vec<String>,
    /// In the order of what is at this path, e.g. `.spec.clusterIP`
    #[arg(long, value_name = "PATH")]
    pub sort_by: Option<String>,
    /// All labels as a further column
    #[arg(long)]
    pub show_labels: bool,
    /// What was asked for by name and is not there is no failure
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Leave out the table's heading
    #[arg(long)]
    pub no_headers: bool,
    /// Then go on, and print what changes
    #[arg(short, long)]
    pub watch: bool,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// `sluice env`.
#[derive(Debug, clap::Args)]
pub struct EnvArgs {
    /// A pod, whose enableServiceLinks counts; if absent, as for any pod of the namespace
    #[arg(value_name = "POD")]
    pub pod: Option<String>,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Only of Services with these labels, e.g. `app=echo,tier!=test`: very many do not fit an environment
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// `sluice describe`.
#[derive(Debug, clap::Args)]
pub struct DescribeArgs {
    /// What to describe.
    #[command(flatten)]
    pub object: ObjectArgs,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// `sluice apply`.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// Manifests, or folders of them; `-` is standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Folders below folders, too: as is done anyway
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// The namespace of objects that name none; one that names another is refused
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Print the objects, too
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub output: Option<ObjectOutput>,
    /// Say what would be done, and do nothing: none, client or server, which are alike here; client if nothing is said
    #[arg(long, value_enum, value_name = "WHERE", default_value_t, num_args = 0..=1, require_equals = true,
          default_missing_value = "client", hide_possible_values = true)]
    pub dry_run: DryRun,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// `sluice delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// What kinds of objects, with commas between, all, or objects as KIND/NAME
    #[arg(value_name = "KIND")]
    pub kind: Option<String>,
    /// Which
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// All objects of manifests, or of folders of them; `-` is standard input
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "kind")]
    pub files: Vec<PathBuf>,
    /// All of the kind
    #[arg(long, conflicts_with_all = ["names", "files"])]
    pub all: bool,
    /// Those with these labels, e.g. `app=echo,tier!=test`
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with_all = ["names", "files", "all"])]
    pub selector: Option<String>,
    /// What is not there is no failure
    #[arg(long)]
    pub ignore_not_found: bool,
    /// In this namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Say what would be done, and do nothing: none, client or server, which are alike here; client if nothing is said
    #[arg(long, value_enum, value_name = "WHERE", default_value_t, num_args = 0..=1, require_equals = true,
          default_missing_value = "client", hide_possible_values = true)]
    pub dry_run: DryRun,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// `sluice expose`.
#[derive(Debug, clap::Args)]
pub struct ExposeArgs {
    /// pod, service, deployment, replicaset, statefulset or daemonset; or one object as KIND/NAME
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// Its name
    #[arg(value_name = "NAME")]
    pub target: Option<String>,
    /// Its namespace, and the Service's
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// The Service's name; else that of what is exposed
    #[arg(long)]
    pub name: Option<String>,
    /// The Service's port; else every port of the containers
    #[arg(long)]
    pub port: Option<u16>,
    /// The pods' port, by number or name; else the same
    #[arg(long, value_name = "PORT")]
    pub target_port: Option<String>,
    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    pub protocol: String,
    /// ClusterIP, NodePort or LoadBalancer
    #[arg(long = "type", value_name = "TYPE")]
    pub kind_of_service: Option<String>,
    /// Labels of the pods, e.g. `app=echo`; else those that select the pods of what is exposed
    #[arg(long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Labels of the Service; else those of what is exposed
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub labels: Option<String>,
    /// A cluster IP, or None for a headless Service
    #[arg(long, value_name = "IP")]
    pub cluster_ip: Option<String>,
    /// Addresses that are routed here by others
    #[arg(long = "external-ip", value_name = "IP", value_delimiter = ',')]
    pub external_ips: Vec<String>,
    /// The address to ask for, of a Service of type LoadBalancer
    #[arg(long, value_name = "IP")]
    pub load_balancer_ip: Option<String>,
    /// None or ClientIP
    #[arg(long, value_name = "AFFINITY")]
    pub session_affinity: Option<String>,
    /// Print the Service, too
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub output: Option<ObjectOutput>,
    /// Say what would be done, and do nothing: none, client or server, which are alike here; client if nothing is said
    #[arg(long, value_enum, value_name = "WHERE", default_value_t, num_args = 0..=1, require_equals = true,
          default_missing_value = "client", hide_possible_values = true)]
    pub dry_run: DryRun,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}
