//! Everything a keeper begins with: files, network, sockets, and the threads that send it events.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::Context;
use nix::sys::signal::SigSet;
use notify::Watcher;

use super::super::ipc;
use super::super::net::{FIRST_POD, HostPort, Network, has_ipv6};
use super::super::pods::News;
use super::super::ports::{FILE, FurtherPorts};
use super::super::process::Reaper;
use super::super::resolv::ResolvConf;
use super::super::state::State;
use super::super::workloads::Folder;
use super::super::{Driver, services};
use super::known::Known;
use super::{Event, Keeper, progress};

/// Makes the lab's network and a keeper for it. Nothing runs yet.
pub(super) fn begin(
    state: State,
    driver: Driver,
    with_services: bool,
    events: Sender<Event>,
    end: SigSet,
) -> anyhow::Result<(Keeper, notify::RecommendedWatcher)> {
    let host_port = HostPort::possible();
    let dual = wants_ipv6(&state);
    let mut services = if with_services {
        let further = FurtherPorts::of(&state.manifests())?;
        let names: Vec<_> = further.names().collect();
        if !names.is_empty() {
            let folder = state.path().display();
            progress(&format!(
                "NIC ports of {FILE}: {}; relative paths are in {folder}",
                names.join(", ")
            ));
        }
        services::prepare(&state, driver, host_port, dual, &further)?
    } else {
        Vec::new()
    };
    let network = Network::create(dual)?;
    if with_services {
        services::hand_over_dns(&mut services, &network.node, dual)?;
    }
    if with_services && host_port == HostPort::Veth {
        network.create_host_pair()?;
    } else if with_services {
        let events = events.clone();
        network.configure_host_port(move |result| drop(events.send(Event::HostPort(result))))?;
    } else {
        network.forward_in_kernel()?;
    }
    let families = if dual { ", of IPv4 and IPv6" } else { "" };
    progress(&format!("network: client, node, fabric{families}"));
    let ended = events.clone();
    let reaper = Reaper::start(move |pid, exit| drop(ended.send(Event::Ended(pid, exit))))?;
    let asked = events.clone();
    ipc::serve(&state.socket("keeper"), move |request, answer| {
        drop(asked.send(Event::Ask(request, answer)))
    })?;
    listen_for_readiness(&state, events.clone())?;
    let signalled = events.clone();
    thread::spawn(move || {
        while end.wait().is_ok() {
            drop(signalled.send(Event::End));
        }
    });
    let watcher = watch_files(&state, events.clone())?;
    let mut folder = Folder::new(state.manifests());
    let (wanted, complaints) = folder.read();
    complaints.iter().for_each(|complaint| log::warn!("{complaint}"));
    let keeper = Keeper {
        state,
        network,
        reaper,
        events,
        folder,
        wanted,
        scaled: BTreeMap::new(),
        pods: BTreeMap::new(),
        last_number: FIRST_POD - 1,
        host_port: !with_services || host_port == HostPort::Veth,
        services,
        known: Known::default(),
        machine_dns: ResolvConf::of_machine(),
        files_changed: None,
    };
    Ok((keeper, watcher))
}

/// Whether hosts have IPv6 as well: where a Service of the lab's manifests asks for it.
fn wants_ipv6(state: &State) -> bool {
    let asks = services::asking_for_ipv6(&state.manifests());
    if let Some(service) = asks.as_ref().filter(|_| !has_ipv6()) {
        progress(&format!(
            "Service {service} asks for IPv6, but this kernel has none: the lab is one of IPv4"
        ));
    }
    asks.is_some() && has_ipv6()
}

/// Built-in servers send a datagram when they listen.
fn listen_for_readiness(state: &State, events: Sender<Event>) -> anyhow::Result<()> {
    let socket =
        UnixDatagram::bind(state.socket("notify")).context("cannot listen for pods to become ready")?;
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length) = socket.recv(&mut buffer) {
            let word = String::from_utf8_lossy(&buffer[..length]);
            let container = word
                .strip_prefix("READY=1\nSTATUS=")
                .and_then(|rest| rest.split_once(' '));
            let Some((uid, Ok(container))) = container.map(|(uid, index)| (uid.to_owned(), index.parse()))
            else {
                continue;
            };
            drop(events.send(Event::Container(
                News {
                    uid,
                    container,
                    ready: true,
                },
                true,
            )));
        }
    });
    Ok(())
}

/// Manifests are edited, and sockets appear beside them.
fn watch_files(state: &State, events: Sender<Event>) -> anyhow::Result<notify::RecommendedWatcher> {
    let sockets = state.path().to_owned();
    let manifests = state.manifests();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let relevant = event.is_ok_and(|event| {
            !event.kind.is_access()
                && event.paths.iter().any(|path| {
                    let socket =
                        path.parent() == Some(&sockets) && path.extension().is_some_and(|e| e == "sock");
                    socket || path.starts_with(&manifests)
                })
        });
        if relevant {
            drop(events.send(Event::Files));
        }
    })
    .context("cannot watch files")?;
    watcher
        .watch(state.path(), notify::RecursiveMode::NonRecursive)
        .and_then(|()| watcher.watch(&state.manifests(), notify::RecursiveMode::Recursive))
        .with_context(|| format!("cannot watch {}", state.path().display()))?;
    Ok(watcher)
}
