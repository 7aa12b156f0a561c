//! What others may ask the control process: one line of JSON in, one line of JSON out, over a Unix socket that only the
//! same user can open. It tells and never changes anything; a slow or silent client holds up only the next client.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Endpoints, Pod};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dns;
use crate::endpoints::{Slices, legacy};
use crate::model::Model;
use crate::problem::Problem;

/// Where the control process of a gateway listens.
pub const SYSTEM_SOCKET: &str = "/run/sluice/control.sock";
/// A request names one list.
const MAX_REQUEST: u64 = 4096;
/// The longest reply a client takes: all pods of a cluster of 10,000.
const MAX_REPLY: u64 = 256 << 20;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// What is wrong now.
    Problems,
    /// How the process is.
    Status,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    list: List,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply<T> {
    Items(Vec<T>),
    Error(String),
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
}

/// All that can be asked for, as of one moment.
#[derive(Debug, Default)]
pub struct View {
    services: Vec<Arc<crate::model::Service>>,
    users_endpoints: Vec<Arc<Endpoints>>,
    slices: Slices,
    pods: Vec<Arc<Pod>>,
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
            problems,
        }
    }

    fn answer(&self, status: &Status, line: &str) -> serde_json::Result<String> {
        let reply = match serde_json::from_str::<Request>(line) {
            Err(error) => serde_json::to_string(&Reply::<()>::Error(format!("not a request: {error}")))?,
            Ok(Request { list }) => match list {
                List::Services => items(self.services.iter().map(|service| &*service.object))?,
                List::Endpoints => {
                    items(legacy::endpoints(&self.services, &self.users_endpoints, &self.slices).iter())?
                }
                List::EndpointSlices => items(self.slices.values().flatten())?,
                List::Pods => items(self.pods.iter().map(|pod| &**pod))?,
                List::Problems => items(self.problems.iter())?,
                List::Status => items(std::iter::once(status))?,
            },
        };
        Ok(reply)
    }
}

fn items<T: Serialize>(items: impl Iterator<Item = T>) -> serde_json::Result<String> {
    serde_json::to_string(&Reply::Items(items.collect()))
}

/// The newest view and status, shared with the thread that answers.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<(Arc<View>, Status)>>);

impl Shared {
    /// From now on this is the answer.
    pub fn set(&self, view: View) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = Arc::new(view);
    }

    /// From now on the process is thus.
    pub fn set_status(&self, status: Status) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = status;
    }

    fn get(&self) -> (Arc<View>, Status) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts to answer at `socket`.
pub fn serve(socket: &Path) -> io::Result<Shared> {
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another control process answers there",
        ));
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    let shared = Shared::default();
    let answers = shared.clone();
    std::thread::Builder::new().name("api".into()).spawn(move || {
        for stream in listener.incoming() {
            // A client that is gone before its answer needs none.
            let done = stream.and_then(|stream| {
                let (view, status) = answers.get();
                answer(stream, &view, &status)
            });
            if let Err(error) = done {
                log::debug!("api: {error}");
            }
        }
    })?;
    Ok(shared)
}

fn answer(mut stream: UnixStream, view: &View, status: &Status) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(&stream).take(MAX_REQUEST).read_line(&mut line)?;
    let mut reply = view.answer(status, &line)?;
    reply.push('\n');
    stream.write_all(reply.as_bytes())
}

/// Asks the control process at `socket` for a list.
pub fn ask<T: DeserializeOwned>(socket: &Path, list: List) -> anyhow::Result<Vec<T>> {
    let stream = UnixStream::connect(socket).with_context(|| {
        let path = socket.display();
        format!("no control process answers at {path}; start one (`sluice control --config FILE` or `sluice lab up`), \
                 or say where it is with --api PATH or $SLUICE_API")
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = serde_json::to_string(&Request { list })?;
    request.push('\n');
    (&stream).write_all(request.as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream.take(MAX_REPLY)).read_line(&mut reply)?;
    match serde_json::from_str(&reply).context("the control process answered what is not an answer")? {
        Reply::Items(items) => Ok(items),
        Reply::Error(error) => anyhow::bail!("the control process: {error}"),
    }
}

/// Where to ask if nobody says: `$SLUICE_API`, else the gateway's own control process, else that of the newest lab.
pub fn default_api_socket() -> PathBuf {
    let gateway = PathBuf::from(SYSTEM_SOCKET);
    if let Some(said) = std::env::var_os("SLUICE_API") {
        return said.into();
    }
    if UnixStream::connect(&gateway).is_ok() {
        return gateway;
    }
    crate::lab::state::newest_control().unwrap_or(gateway)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;
    use crate::model::tests::{model, reset};

    #[test]
    fn services_are_told_with_what_they_were_given() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let shared = serve(&socket).unwrap();
        let mut model = model();
        model.apply(reset(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n",
        ));
        let slices = crate::endpoints::slices(&model);
        shared.set(View::new(&model, slices, Vec::new()));
        let services: Vec<Service> = ask(&socket, List::Services).unwrap();
        assert!(
            services[0]
                .spec
                .as_ref()
                .unwrap()
                .cluster_ip
                .as_ref()
                .unwrap()
                .starts_with("10.96.")
        );
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nonsense_is_answered_with_an_error_not_with_silence() {
        assert!(
            View::default()
                .answer(&Status::default(), "{\"list\":\"secrets\"}")
                .unwrap()
                .contains("not a request")
        );
    }

    #[test]
    fn a_second_control_process_does_not_take_the_first_ones_socket() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let _first = serve(&socket).unwrap();
        assert_eq!(serve(&socket).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
