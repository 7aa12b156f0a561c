//! The lab's proof of itself: requests through every frontend, and who answered.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::core::v1::Pod;

use super::{Clock, show};
use crate::api::{self, List};
use crate::lab::ipc::{Request, Status, ask};
use crate::lab::net::NODE_ADDRESS;
use crate::lab::state::State;

/// Requests through each frontend: enough that a second pod is all but sure to answer one (2^-9 against).
const REQUESTS: u32 = 10;
/// What takes a moment is tried again: so many tries, so far apart, 5 s in all.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until control has heard of every pod that is ready, and the dataplane has taken what follows from it.
///
/// # Errors
/// They have not, for longer than it may take.
pub(super) fn wait_for_control(state: &State) -> anyhow::Result<()> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let ready = status
        .pods
        .iter()
        .filter(|pod| pod.ready)
        .map(|pod| (pod.namespace.as_str(), pod.name.as_str()));
    let ready: Vec<_> = ready.collect();
    let mut missing = String::new();
    for _ in 0..TRIES {
        match control_lacks(state, &ready) {
            Ok(None) => return Ok(()),
            Ok(Some(lack)) => missing = lack,
            Err(error) => missing = format!("{error:#}"),
        }
        // Control tells only when asked.
        thread::sleep(PAUSE);
    }
    bail!(
        "control has not caught up: {missing}; see {}",
        state.log("control").display()
    )
}

fn control_lacks(state: &State, ready: &[(&str, &str)]) -> anyhow::Result<Option<String>> {
    let socket = state.socket("control");
    let pods: Vec<Pod> = api::ask(&socket, List::Pods)?;
    let lacks = ready.iter().find(|(namespace, name)| {
        !pods.iter().any(|pod| {
            let same = pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.metadata.name.as_deref() == Some(name);
            let conditions = pod
                .status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten());
            same && conditions
                .into_iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
        })
    });
    if let Some((namespace, name)) = lacks {
        return Ok(Some(format!("pod {namespace}/{name} is not known to be ready")));
    }
    let status: Vec<api::Status> = api::ask(&socket, List::Status)?;
    let connected = status
        .first()
        .is_some_and(|status| status.connected && status.generation > 0);
    Ok((!connected).then(|| "the dataplane has acknowledged nothing".to_owned()))
}

/// Sends requests through every frontend that has an endpoint, and prints which pods answered how often.
///
/// # Errors
/// A frontend that does not answer.
pub(super) fn prove(state: &State, clock: &Clock) -> anyhow::Result<()> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let inside = status.pods.iter().find(|pod| pod.name == "debug");
    let inside = inside.map_or_else(
        || "client".to_owned(),
        |pod| format!("{}/{}", pod.namespace, pod.name),
    );
    println!();
    let mut failures = Vec::new();
    for service in show::services(state)? {
        if show::ready_endpoints(state, &service)? == 0 {
            clock.say(&format!("{}: no ready endpoint, not tried", service.name));
            continue;
        }
        for port in service.ports.iter().filter(|port| port.protocol != "SCTP") {
            let cluster_ip = service.cluster_ip.parse::<Ipv4Addr>().ok();
            let frontends = [
                cluster_ip.map(|ip| (inside.as_str(), SocketAddrV4::new(ip, port.port))),
                port.node_port
                    .map(|port| ("client", SocketAddrV4::new(NODE_ADDRESS, port))),
            ];
            for (from, to) in frontends.into_iter().flatten() {
                let what = format!(
                    "{}: {to}/{} from {}",
                    service.name,
                    port.protocol,
                    from.rsplit('/').next().unwrap_or(from)
                );
                match try_frontend(state, from, to, port.protocol == "UDP") {
                    Ok(answers) => clock.say(&format!("{what}: {}", counts(&answers))),
                    Err(error) => {
                        clock.say(&format!("{what}: FAILED: {error:#}"));
                        failures.push(to.to_string());
                    }
                }
            }
        }
    }
    if !failures.is_empty() {
        bail!(
            "no answer through {}; see {} and {}",
            failures.join(", "),
            state.log("dataplane").display(),
            state.log("control").display()
        );
    }
    Ok(())
}

fn counts(answers: &BTreeMap<Option<String>, u32>) -> String {
    let parts = answers.iter().map(|(pod, count)| match pod {
        Some(pod) => format!("{count} from {pod}"),
        None => format!("{count} answered"),
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn try_frontend(
    state: &State,
    from: &str,
    to: SocketAddrV4,
    udp: bool,
) -> anyhow::Result<BTreeMap<Option<String>, u32>> {
    let fetch = || -> anyhow::Result<Option<String>> {
        ask(
            &state.socket("keeper"),
            &Request::Fetch {
                from: from.to_owned(),
                to,
                udp,
            },
        )
    };
    let mut answers = BTreeMap::new();
    let mut first = fetch();
    for _ in 1..TRIES {
        match &first {
            // Refused at once: not published yet. A silence has been waited for already.
            Err(error) if format!("{error:#}").contains("refused") => {
                thread::sleep(PAUSE);
                first = fetch();
            }
            _ => break,
        }
    }
    *answers.entry(first?).or_insert(0) += 1;
    for _ in 1..REQUESTS {
        *answers.entry(fetch()?).or_insert(0) += 1;
    }
    Ok(answers)
}
