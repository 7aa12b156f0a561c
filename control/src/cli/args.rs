//! What was typed: every verb, argument and option of `sluice`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use super::jsonpath::{Path, Template};
use crate::manifest::Kind;

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

/// Which objects are meant.
#[derive(Debug, clap::Args)]
pub struct ObjectArgs {
    /// services (svc), endpoints (ep), endpointslices, pods (po); or one object as KIND/NAME
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// Only these
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// In this namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
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
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock
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
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// `sluice delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// What kind of objects, or one as KIND/NAME
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
    /// In this namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
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
    /// Print the Service, as YAML
    #[arg(long = "show")]
    pub output: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The control process's socket; else $SLUICE_API, else /run/sluice/control.sock, else the newest lab's
    #[arg(long, value_name = "PATH")]
    pub api: Option<PathBuf>,
}

/// The kind of this name.
///
/// # Errors
/// There is none, or it has no meaning here.
pub fn kind(text: &str) -> anyhow::Result<Kind> {
    Kind::named(text).with_context(|| {
        format!(
            "there is no kind \"{text}\"; there are services (svc), endpoints (ep), endpointslices, pods (po), deployments, \
             replicasets (rs), statefulsets (sts), daemonsets (ds)"
        )
    })
}

/// Kinds that `sluice get` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetKind {
    /// Services
    Services,
    /// Endpoints
    Endpoints,
    /// EndpointSlices
    EndpointSlices,
    /// Pods
    Pods,
}

impl std::str::FromStr for GetKind {
    type Err = anyhow::Error;

    /// By every name that kubectl knows.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "services" | "service" | "svc" => Ok(Self::Services),
            "endpoints" | "ep" => Ok(Self::Endpoints),
            "endpointslices"
            | "endpointslice"
            | "endpointslices.discovery.k8s.io"
            | "endpointslice.discovery.k8s.io" => Ok(Self::EndpointSlices),
            "pods" | "pod" | "po" => Ok(Self::Pods),
            _ => anyhow::bail!(
                "there is no kind \"{text}\" to list; there are services (svc), endpoints (ep), endpointslices, pods (po)"
            ),
        }
    }
}

impl ObjectArgs {
    /// The kind and the names asked for, which may be written `KIND NAME…` or `KIND/NAME`.
    pub fn wanted(&self) -> anyhow::Result<(GetKind, Vec<String>)> {
        match self.kind.split_once('/') {
            None => Ok((self.kind.parse()?, self.names.clone())),
            Some((kind, name)) if !name.is_empty() && self.names.is_empty() => {
                Ok((kind.parse()?, vec![name.to_owned()]))
            }
            Some(_) => anyhow::bail!("write one KIND/NAME, or KIND NAME…"),
        }
    }
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

/// `sluice lab`.
#[derive(Debug, clap::Args)]
pub struct LabArgs {
    /// What to do with the lab
    #[command(subcommand)]
    pub command: LabCommand,
    /// Which lab; several may run side by side
    #[arg(long, global = true, default_value = "default", value_name = "LAB")]
    pub name: String,
}

/// The verbs of `sluice lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Make a lab from a folder of manifests, and prove that its Services answer
    Up(LabUpArgs),
    /// Show what is in the lab
    Status {
        /// How to print it; tables if absent
        #[arg(short, long, value_enum)]
        output: Option<LabOutput>,
    },
    /// Run a command inside a host of the lab
    Exec {
        /// client, node, or a pod's name
        #[arg(value_name = "HOST")]
        host: String,
        /// The pod's namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The command
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Print what a pod's processes wrote
    Logs {
        /// The pod's name
        #[arg(value_name = "POD")]
        pod: String,
        /// The pod's namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Go on as more is written
        #[arg(short, long)]
        follow: bool,
    },
    /// Set the number of pods of a ReplicaSet or Deployment
    Scale {
        /// rs/NAME, sts/NAME or deployment/NAME
        #[arg(value_name = "KIND/NAME")]
        target: String,
        /// How many pods
        replicas: u32,
        /// Its namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Delete a pod; if a set owns it, another comes
    Delete {
        /// What kind of object
        #[arg(value_enum)]
        kind: LabDeleteKind,
        /// Its name
        #[arg(value_name = "NAME")]
        pod: String,
        /// Its namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// End the lab and remove all of it
    Down,
    /// The lab's first process
    #[command(hide = true)]
    Keeper(crate::lab::launch::KeeperArgs),
    /// The server of a pod without a command
    #[command(hide = true)]
    Server(crate::lab::server::ServerArgs),
}

/// `sluice lab up`.
#[derive(Debug, clap::Args)]
pub struct LabUpArgs {
    /// The folder of manifests; the lab works on a copy
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The driver of the node's NIC ports; if absent, af_xdp for root and af_packet for others
    #[arg(long, value_enum)]
    pub driver: Option<crate::lab::Driver>,
    /// Stay until Ctrl-C, then end the lab
    #[arg(long)]
    pub foreground: bool,
    /// Leave dataplane and control out; the kernel forwards between client and pods
    #[arg(long, hide = true)]
    pub no_services: bool,
    /// Make a user namespace even as root, as for others
    #[arg(long)]
    pub user_namespace: bool,
}

/// Forms of `sluice lab status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabOutput {
    /// As JSON
    Json,
}

/// Kinds that `sluice lab delete` deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabDeleteKind {
    /// A pod
    #[value(alias = "pods", alias = "po")]
    Pod,
}
