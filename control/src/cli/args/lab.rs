//! What is typed after `sluice lab`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

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
    /// Set the number of pods of a ReplicaSet, Deployment or StatefulSet
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
    /// The folder of manifests, and of ports.conf if the gateway is to have further NIC ports; the lab works on a copy
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
