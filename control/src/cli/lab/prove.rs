//! The lab's proof of itself: requests through every frontend, and who answered.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::bail;

use super::{Clock, show};
use crate::lab::ipc::{Request, Status, ask};
use crate::lab::net::NODE_ADDRESS;
use crate::lab::state::State;

/// Requests through each frontend: enough that a second pod is all but sure to answer one (2^-9 against).
const REQUESTS: u32 = 10;
/// The first request may come before control has published: this many tries, this far apart, 5 s in all.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Sends requests through every frontend that has an endpoint, and prints which pods answered how often.
///
/// # Errors
/// A frontend that does not answer.
pub(super) fn prove(state: &State, clock: &Clock) -> anyhow::Result<()> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let inside = status.pods.iter().find(|pod| pod.name == "debug");
    let inside = inside.map_or("client".to_owned(), |pod| format!("{}/{}", pod.namespace, pod.name));
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
                port.node_port.map(|port| ("client", SocketAddrV4::new(NODE_ADDRESS, port))),
            ];
            for (from, to) in frontends.into_iter().flatten() {
                let what = format!("{}: {to}/{} from {}", service.name, port.protocol, from.rsplit('/').next().unwrap_or(from));
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

fn try_frontend(state: &State, from: &str, to: SocketAddrV4, udp: bool) -> anyhow::Result<BTreeMap<Option<String>, u32>> {
    let fetch = || -> anyhow::Result<Option<String>> {
        ask(&state.socket("keeper"), &Request::Fetch { from: from.to_owned(), to, udp })
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
