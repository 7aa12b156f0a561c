//! The sockets of health checks: opened and closed as Services say, answered by one thread. A port that cannot be had is
//! reported and tried again; the others do not notice (HC-5).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::{Answer, Check, Checks, Proxy, node_answer, service_answer};
use crate::model::{Family, ServiceName};

/// Connections that one socket serves at a time; later ones wait in the kernel's queue. A Service has a handful of load
/// balancers, and each asks on one connection.
const CONNECTIONS: usize = 64;
/// How long a client may take to ask, and a connection may last.
const REQUEST: Duration = Duration::from_secs(5);
const CONNECTION: Duration = Duration::from_secs(60);
/// Pause after a failed accept: descriptors may have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// What is so, for all who answer.
#[derive(Debug, Default)]
struct State {
    checks: Checks,
    proxy: Proxy,
}

type Shared = Arc<RwLock<State>>;

fn read<T>(state: &Shared, what: impl FnOnce(&State) -> T) -> T {
    what(&state.read().unwrap_or_else(PoisonError::into_inner))
}

/// Why a Service's health checks find nobody.
pub type Failures = BTreeMap<ServiceName, String>;

/// All sockets.
#[derive(Debug)]
pub struct Server {
    runtime: Runtime,
    state: Shared,
    /// Where node addresses are asked; none: everywhere.
    networks: Vec<IpNet>,
    open: BTreeMap<(ServiceName, Family), Open>,
    failures: Failures,
}

/// A check's sockets, one an address.
#[derive(Debug)]
struct Open {
    port: u16,
    listening: Vec<JoinHandle<()>>,
}

impl Server {
    /// Answers nothing yet.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn new(networks: Vec<IpNet>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("health")
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            state: Shared::default(),
            networks,
            open: BTreeMap::new(),
            failures: Failures::new(),
        })
    }

    /// Answers for the node at `address` from now on.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn serve_node(&self, address: SocketAddr, families: Vec<Family>) -> io::Result<()> {
        let _in_runtime = self.runtime.enter();
        let listener = listen(address)?;
        let (state, families) = (self.state.clone(), Arc::new(families));
        self.runtime.spawn(serve(listener, move |path: &str| {
            read(&state, |state| node_answer(path, &families, &state.proxy))
        }));
        Ok(())
    }

    /// From now on the gateway is thus.
    pub fn set_proxy(&self, proxy: Proxy) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).proxy = proxy;
    }

    /// From now on these are the checks. What cannot be opened is in [`Self::failures`].
    pub fn set_checks(&mut self, checks: Checks) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).checks = checks;
        self.open_and_close();
    }

    /// Tries again what failed. Whether that changed anything.
    pub fn retry(&mut self) -> bool {
        let before = self.failures.clone();
        self.open_and_close();
        self.failures != before
    }

    /// Services whose checks find nobody, and why.
    pub const fn failures(&self) -> &Failures {
        &self.failures
    }

    fn open_and_close(&mut self) {
        let checks = read(&self.state, |state| state.checks.clone());
        let stays = |key: &(ServiceName, Family), open: &Open| {
            checks.get(key).is_some_and(|check| check.port == open.port)
        };
        let gone: Vec<_> = self.open.extract_if(.., |key, open| !stays(key, open)).collect();
        // A port is free for its next holder only when nobody listens any more.
        self.runtime.block_on(async {
            for handle in gone.into_iter().flat_map(|(_, open)| open.listening) {
                handle.abort();
                let _cancelled = handle.await;
            }
        });
        self.failures.clear();
        for (key, check) in checks {
            if self.open.contains_key(&key) {
                continue;
            }
            match self.open(&key, check) {
                Ok(open) => {
                    self.open.insert(key, open);
                }
                Err(reason) => {
                    self.failures.insert(key.0, reason);
                }
            }
        }
    }

    fn open(&self, key: &(ServiceName, Family), check: Check) -> Result<Open, String> {
        let _in_runtime = self.runtime.enter();
        let mut listening = Vec::new();
        for address in self.addresses(key.1)? {
            let address = SocketAddr::new(address, check.port);
            let listener =
                listen(address).map_err(|error| format!("{address} cannot be listened on: {error}"));
            let listener = match listener {
                Ok(listener) => listener,
                Err(reason) => {
                    listening.iter().for_each(JoinHandle::abort);
                    return Err(reason);
                }
            };
            let (state, key) = (self.state.clone(), key.clone());
            listening.push(self.runtime.spawn(serve(listener, move |_: &str| {
                read(&state, |state| {
                    let endpoints = state.checks.get(&key).map_or(0, |check| check.local_endpoints);
                    service_answer(&key.0, endpoints, &state.proxy)
                })
            })));
        }
        Ok(Open {
            port: check.port,
            listening,
        })
    }

    /// Where a family's checks listen: everywhere, or on the node's addresses in the networks of node ports (NP-2).
    fn addresses(&self, family: Family) -> Result<Vec<IpAddr>, String> {
        let networks = self
            .networks
            .iter()
            .filter(|network| Family::of(network.addr()) == family);
        let networks: Vec<_> = networks.collect();
        if networks.is_empty() || networks.iter().any(|network| network.prefix_len() == 0) {
            return Ok(vec![match family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            }]);
        }
        let interfaces = nix::ifaddrs::getifaddrs();
        let interfaces =
            interfaces.map_err(|error| format!("this node's addresses cannot be listed: {error}"))?;
        let address = |interface: nix::ifaddrs::InterfaceAddress| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
        };
        let mut found: Vec<IpAddr> = interfaces.filter_map(address).collect();
        found.retain(|address| networks.iter().any(|network| network.contains(address)));
        found.sort_unstable();
        found.dedup();
        match found.is_empty() {
            true => Err(format!(
                "no {family} address of this node is in nodePortAddresses"
            )),
            false => Ok(found),
        }
    }
}

/// A socket of the one family that `address` is of.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    // A restarted control finds its own closed connections on the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers every request on `listener` by its path. Ends, with all connections, when its task is aborted.
async fn serve(listener: TcpListener, answer: impl Fn(&str) -> Answer + Clone + Send + Sync + 'static) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::debug!("a health check was not accepted: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let answered = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let answer = answer(request.uri().path());
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .serve_connection(TokioIo::new(stream), answered);
            // Whoever hangs up, or asks for too long, needs no answer.
            let _gone = tokio::time::timeout(CONNECTION, connection).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests;
