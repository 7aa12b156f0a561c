//! What commands ask the keeper: one line of JSON each way over a Unix socket in the lab's directory.
//!
//! The directory is its owner's alone, and so is the socket. Never a second request on a connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::namespace::NamespaceFds;

/// Largest request: a name and a few numbers.
const LARGEST: u64 = 16 * 1024;
/// How long the keeper may take to answer; a fetch is bounded well below.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command's question.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum Request {
    /// What is there? Answer: [`Status`].
    Status,
    /// Another number of replicas of a ReplicaSet or Deployment.
    Scale {
        /// Whether a Deployment is meant.
        deployment: bool,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// How many.
        replicas: u32,
    },
    /// Stop a pod; if a set owns it, another comes.
    Delete {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Send one request from inside a host of the lab. Answer: the pod that answered, if it said so.
    Fetch {
        /// `client`, `node`, or a pod as `namespace/name`.
        from: String,
        /// Where to.
        to: SocketAddr,
        /// By datagram instead of HTTP.
        udp: bool,
    },
    /// Stop all processes of pods, then end.
    Down,
}

/// All about a lab that its keeper knows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Status {
    /// The node's addresses towards clients, one a family.
    pub node_addresses: Vec<IpAddr>,
    /// The client's.
    pub client_addresses: Vec<IpAddr>,
    /// Every pod, in the order of their names.
    pub pods: Vec<PodStatus>,
    /// The client's namespaces.
    pub client: NamespaceFds,
    /// The node's namespaces.
    pub node: NamespaceFds,
    /// Process ids of `dataplane` and `control` inside the lab's PID namespace, of those that run.
    pub processes: BTreeMap<String, i32>,
}

/// A pod of the lab.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its addresses of every family.
    pub ips: Vec<IpAddr>,
    /// Whether Services may send to it.
    pub ready: bool,
    /// How many of its containers are ready, and how many it has.
    pub containers: (usize, usize),
    /// What it does, in kubectl's words.
    pub phase: String,
    /// How often a container of it was started again.
    pub restarts: u32,
    /// What `sluice lab scale` calls its owner, e.g. `rs/echo`.
    pub owner: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its namespaces.
    pub fds: NamespaceFds,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum Reply {
    Done(Value),
    Failed(String),
}

/// Where the answer to a request goes.
pub(super) type Answer = mpsc::Sender<anyhow::Result<Value>>;

/// Asks the keeper.
///
/// # Errors
/// The keeper's own words, or why it could not be asked.
pub fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> anyhow::Result<T> {
    let stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "the lab does not answer at {}: is it still coming up?",
            socket.display()
        )
    })?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("cannot set a time limit")?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream)
        .write_all(&line)
        .context("cannot ask the lab's keeper")?;
    let mut answer = String::new();
    BufReader::new(&stream)
        .read_line(&mut answer)
        .context("the lab's keeper does not answer")?;
    match serde_json::from_str(&answer).context("the lab's keeper ended without an answer")? {
        Reply::Done(value) => Ok(serde_json::from_value(value)?),
        Reply::Failed(reason) => bail!(reason),
    }
}

/// Listens, and hands each request to `handle` with the place for its answer.
pub(super) fn serve(
    socket: &Path,
    handle: impl Fn(Request, Answer) + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    thread::Builder::new()
        .name("ipc".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let handle = handle.clone();
                thread::spawn(move || {
                    if let Err(error) = answer(&stream, &handle) {
                        log::debug!("a command went away: {error:#}");
                    }
                });
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

fn answer(stream: &UnixStream, handle: &dyn Fn(Request, Answer)) -> anyhow::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.take(LARGEST)).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            let (sender, receiver) = mpsc::channel();
            handle(request, sender);
            receiver
                .recv()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the lab is going down")))
        }
        Err(error) => Err(anyhow::anyhow!("not a request: {error}")),
    };
    let reply = match reply {
        Ok(value) => Reply::Done(value),
        Err(error) => Reply::Failed(format!("{error:#}")),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    let mut stream = stream;
    Ok(stream.write_all(&line)?)
}
