//! What others may ask the control process: one line of JSON in, one line of JSON out, over a Unix socket that only the
//! same user can open. It tells and never changes anything. Who asks for news gets it when there is some; every client has
//! a thread of its own, so that none holds up another.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Pod};
use serde::{Deserialize, Serialize};

use crate::daemon::Latency;
use crate::dns;
use crate::endpoints::{Slices, legacy};
use crate::manifest::{Body, Kind};
use crate::model::{Model, ServiceName};
use crate::problem::Problem;
use crate::workloads;

/// Who asks.
mod client;

pub use client::{ask, ask_for_news, ask_of_service, default_api_socket};

/// Where the control process of a gateway listens.
pub const SYSTEM_SOCKET: &str = "/run/sluice/control.sock";
/// A request names one list.
const MAX_REQUEST: u64 = 4096;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long who asks for news waits for some, before being told that there is none.
const NEWS: Duration = Duration::from_secs(30);
/// Pause after a client that could not be taken, and between looks for whether a predecessor has ended.
const PAUSE: Duration = Duration::from_millis(100);
/// Clients at a time: a person's terminals, a lab, a few scripts.
const CLIENTS: usize = 64;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum List {
    /// Services in force, with what they were given.
    Services,
    /// Endpoints, users' and derived.
    Endpoints,
    /// EndpointSlices, users' and derived.
    EndpointSlices,
    /// Pods.
    Pods,
    /// Deployments, with the status that a controller would give them; so are all sets.
    Deployments,
    /// ReplicaSets.
    ReplicaSets,
    /// StatefulSets.
    StatefulSets,
    /// DaemonSets.
    DaemonSets,
    /// Nodes, as far as they are declared.
    Nodes,
    /// Namespaces, as far as they are declared.
    Namespaces,
    /// What is wrong now.
    Problems,
    /// How the process is.
    Status,
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    list: List,
    /// Only what belongs to this Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<(String, String)>,
    /// Wait until there is something later than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<u64>,
}

/// What is answered.
#[derive(Serialize, Deserialize)]
struct Reply<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
    revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How the process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of this gateway's node.
    pub node: String,
    /// Whether all folders have been read.
    pub complete: bool,
    /// Whether there is a dataplane.
    pub connected: bool,
    /// What it last acknowledged.
    pub generation: u64,
    /// What cluster DNS has done, if it is served here.
    #[serde(default)]
    pub dns: Option<dns::Counts>,
    /// The process's configuration file, which names its folders.
    #[serde(default)]
    pub config: PathBuf,
    /// How long changes of endpoints took from their cause to the dataplane, as far as EndpointSlices name it.
    #[serde(default)]
    pub programming: Latency,
}

/// All that can be asked for, as of one moment.
#[derive(Debug, Default)]
pub struct View {
    services: Vec<Arc<crate::model::Service>>,
    users_endpoints: Vec<Arc<Endpoints>>,
    slices: Slices,
    pods: Vec<Arc<Pod>>,
    /// Sets, nodes and namespaces.
    others: Vec<Body>,
    problems: Vec<Problem>,
}

impl View {
    /// What `model` is now. Services, slices and pods are in the order of their namespaces and names.
    pub fn new(model: &Model, slices: Slices, problems: Vec<Problem>) -> Self {
        Self {
            services: model.services().cloned().collect(),
            users_endpoints: model.endpoints().cloned().collect(),
            slices,
            pods: model.pods().cloned().collect(),
            others: OTHERS
                .iter()
                .flat_map(|kind| model.bodies(*kind).cloned())
                .collect(),
            problems,
        }
    }

    fn answer(&self, status: &Status, revision: u64, request: &Request) -> serde_json::Result<String> {
        let of = request.service.as_ref();
        let of = of.map(|(namespace, name)| ServiceName {
            namespace: namespace.clone(),
            name: name.clone(),
        });
        let is_of = |name: &ServiceName| of.as_ref().is_none_or(|of| of == name);
        let services = || self.services.iter().filter(|service| is_of(&service.name));
        let items = Items { revision };
        match request.list {
            List::Services => items.of(services().map(|service| &*service.object)),
            List::Endpoints => {
                let services: Vec<_> = services().cloned().collect();
                items.of(legacy::endpoints(&services, &self.users_endpoints, &self.slices).iter())
            }
            List::EndpointSlices => {
                let slices = self.slices.iter().filter(|(name, _)| is_of(name));
                items.of(slices.flat_map(|(_, slices)| slices).map(|slice| &**slice))
            }
            List::Pods => items.of(self.pods.iter().map(|pod| &**pod)),
            List::Deployments => self.others(Kind::Deployment, items),
            List::ReplicaSets => self.others(Kind::ReplicaSet, items),
            List::StatefulSets => self.others(Kind::StatefulSet, items),
            List::DaemonSets => self.others(Kind::DaemonSet, items),
            List::Nodes => self.others(Kind::Node, items),
            List::Namespaces => self.others(Kind::Namespace, items),
            List::Problems => {
                let label = of.map(|of| format!("Service {of}"));
                let about = |problem: &&Problem| label.as_ref().is_none_or(|label| problem.object == *label);
                items.of(self.problems.iter().filter(about))
            }
            List::Status => items.of(std::iter::once(status)),
        }
    }
}

/// Kinds of objects that are told as they were written, but for a status.
const OTHERS: [Kind; 6] = [
    Kind::Deployment,
    Kind::ReplicaSet,
    Kind::StatefulSet,
    Kind::DaemonSet,
    Kind::Node,
    Kind::Namespace,
];

impl View {
    fn others(&self, kind: Kind, items: Items) -> serde_json::Result<String> {
        let of = |kind: Kind| self.others.iter().filter(move |body| body.kind() == kind);
        // A gateway whose nodes nobody declared is one.
        let nodes = of(Kind::Node).count().max(1);
        let values = of(kind).map(|body| workloads::with_status(body, &self.pods, nodes).value());
        items.of(values.collect::<serde_json::Result<Vec<_>>>()?.into_iter())
    }
}

struct Items {
    revision: u64,
}

impl Items {
    fn of<T: Serialize>(self, items: impl Iterator<Item = T>) -> serde_json::Result<String> {
        serde_json::to_string(&Reply {
            items: items.collect(),
            revision: self.revision,
            error: None,
        })
    }
}

fn error(message: String) -> serde_json::Result<String> {
    serde_json::to_string(&Reply::<()> {
        items: Vec::new(),
        revision: 0,
        error: Some(message),
    })
}

#[derive(Clone, Debug, Default)]
struct Told {
    view: Arc<View>,
    status: Status,
    /// Counts everything that was ever told.
    revision: u64,
}

/// The newest view and status, shared with the threads that answer.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<(Mutex<Told>, Condvar)>);

impl Shared {
    /// From now on this is the answer.
    pub fn set(&self, view: View) {
        self.tell(|told| told.view = Arc::new(view));
    }

    /// From now on the process is thus.
    pub fn set_status(&self, status: Status) {
        self.tell(|told| told.status = status);
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        let mut told = self.lock();
        change(&mut told);
        told.revision += 1;
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is later than `after`, or what there is if nothing comes for a while.
    fn get(&self, after: Option<u64>) -> Told {
        let told = self.lock();
        let Some(after) = after else { return told.clone() };
        let waited = self
            .0
            .1
            .wait_timeout_while(told, NEWS, |told| told.revision <= after);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

/// Starts to answer at `socket`, once nobody else does any more: one that ends is waited for.
///
/// # Errors
/// `AddrInUse`: another control process answers there for longer than `patience`. Else the socket cannot be made.
pub fn serve(socket: &Path, patience: Duration) -> io::Result<Shared> {
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    succeed(socket, patience)?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    let shared = Shared::default();
    let (answers, clients) = (shared.clone(), Arc::new(AtomicUsize::new(0)));
    std::thread::Builder::new().name("api".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Descriptors have run out; some come back as clients go.
                std::thread::sleep(PAUSE);
                continue;
            };
            let place = Place::take(&clients);
            let answers = answers.clone();
            let client = std::thread::Builder::new().name("api-client".into());
            // A client that is gone before its answer needs none, and one that gets no thread no word.
            let _done = client.spawn(move || answer(stream, place.as_ref().map(|_| &answers)));
        }
    })?;
    Ok(shared)
}

/// Waits until nobody answers at `socket`.
fn succeed(socket: &Path, patience: Duration) -> io::Result<()> {
    let looks = patience.as_millis() / PAUSE.as_millis();
    for look in 0..=looks {
        if UnixStream::connect(socket).is_err() {
            return Ok(());
        }
        if look == 0 && looks > 0 {
            let (path, seconds) = (socket.display(), patience.as_secs());
            log::info!("another control process answers at {path}: given {seconds} s to end");
        }
        if look < looks {
            std::thread::sleep(PAUSE);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "another control process answers there and does not end: end it first, or give this one another `api.socket`, \
         `state` and `dataplane.socket`",
    ))
}

/// A client's place among those there may be.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(clients.clone());
        (clients.fetch_add(1, Ordering::Relaxed) < CLIENTS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(mut stream: UnixStream, answers: Option<&Shared>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(&stream).take(MAX_REQUEST).read_line(&mut line)?;
    let mut reply = match (serde_json::from_str::<Request>(&line), answers) {
        (_, None) => error(format!("{CLIENTS} others ask already; try again"))?,
        (Err(wrong), _) => error(format!("not a request: {wrong}"))?,
        (Ok(request), Some(answers)) => {
            let told = answers.get(request.after);
            told.view.answer(&told.status, told.revision, &request)?
        }
    };
    reply.push('\n');
    stream.write_all(reply.as_bytes())
}

#[cfg(test)]
mod tests;
