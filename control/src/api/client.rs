//! The asking end: one connection, one question, one answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::de::DeserializeOwned;

use super::{List, NEWS, PATIENCE, Reply, Request, SYSTEM_SOCKET};

/// The longest reply a client takes: all pods of a cluster of 10,000.
const MAX_REPLY: u64 = 256 << 20;

/// Asks the control process at `socket` for a list.
pub fn ask<T: DeserializeOwned>(socket: &Path, list: List) -> anyhow::Result<Vec<T>> {
    let request = Request {
        list,
        service: None,
        after: None,
    };
    request.send(socket).map(|(items, _)| items)
}

/// The same, only what belongs to one Service.
pub fn ask_of_service<T: DeserializeOwned>(
    socket: &Path,
    list: List,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Vec<T>> {
    let request = Request {
        list,
        service: Some((namespace.into(), name.into())),
        after: None,
    };
    request.send(socket).map(|(items, _)| items)
}

/// The same once there is anything later than revision `after`, or nothing came for a while; with its revision.
pub fn ask_for_news<T: DeserializeOwned>(
    socket: &Path,
    list: List,
    after: Option<u64>,
) -> anyhow::Result<(Vec<T>, u64)> {
    let request = Request {
        list,
        service: None,
        after,
    };
    request.send(socket)
}

impl Request {
    fn send<T: DeserializeOwned>(&self, socket: &Path) -> anyhow::Result<(Vec<T>, u64)> {
        let stream = UnixStream::connect(socket).with_context(|| {
            let path = socket.display();
            format!("no control process answers at {path}; start one (`sluice control --config FILE` or `sluice lab up`), \
                     or say where it is with --api PATH or $SLUICE_API")
        })?;
        let news = if self.after.is_some() {
            NEWS
        } else {
            Duration::ZERO
        };
        stream.set_read_timeout(Some(PATIENCE + news))?;
        let mut request = serde_json::to_string(self)?;
        request.push('\n');
        (&stream).write_all(request.as_bytes())?;
        let mut reply = String::new();
        BufReader::new(stream.take(MAX_REPLY)).read_line(&mut reply)?;
        let reply: Reply<T> =
            serde_json::from_str(&reply).context("the control process answered what is not an answer")?;
        match reply.error {
            None => Ok((reply.items, reply.revision)),
            Some(error) => anyhow::bail!("the control process: {error}"),
        }
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
