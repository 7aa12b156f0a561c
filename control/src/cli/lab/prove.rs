//! The lab's proof of itself: requests through every frontend, and who answered.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::core::v1::Pod;

use super::print::{Style, paint, table};
use super::show;
use crate::api::{self, List};
use crate::lab::ipc::{PodStatus, Request, Status, ask};
use crate::lab::state::State;
use crate::model::Family;

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

/// What came of the requests through one frontend.
struct Outcome {
    service: String,
    frontend: String,
    from: String,
    asked: u32,
    answers: BTreeMap<Option<String>, u32>,
    error: Option<anyhow::Error>,
}

/// Sends requests through every frontend that has an endpoint, but for those of cluster DNS, and prints which pods answered how often. Gives the name
/// of one that answered.
///
/// # Errors
/// A frontend that does not answer, with what was seen and where to look.
pub(super) fn prove(state: &State) -> anyhow::Result<Option<String>> {
    let status: Status = ask(&state.socket("keeper"), &Request::Status)?;
    let inside = status.pods.iter().find(|pod| pod.name == "debug");
    let inside = inside.map_or_else(
        || "client".to_owned(),
        |pod| format!("{}/{}", pod.namespace, pod.name),
    );
    let (mut outcomes, mut idle) = (Vec::new(), Vec::new());
    for service in show::services(state)?
        .into_iter()
        .filter(|service| !service.is_dns())
    {
        let ready = show::ready_families(state, &service)?;
        if ready.is_empty() {
            idle.push(service.name);
            continue;
        }
        for port in service.ports.iter().filter(|port| port.protocol != "SCTP") {
            let cluster_ips = service.cluster_ips.iter();
            let cluster_ips = cluster_ips.filter_map(|ip| ip.parse::<IpAddr>().ok());
            let cluster_ips: Vec<_> = cluster_ips
                .filter(|ip| ready.contains(&Family::of(*ip)))
                .collect();
            let same_family =
                |node: &&IpAddr| cluster_ips.iter().any(|ip| Family::of(*ip) == Family::of(**node));
            let from_inside = |ip: &IpAddr| (inside.as_str(), SocketAddr::new(*ip, port.port));
            let nodes = status.node_addresses.iter().filter(same_family);
            let from_outside = |ip: &IpAddr| Some(("client", SocketAddr::new(*ip, port.node_port?)));
            let frontends = cluster_ips
                .iter()
                .map(from_inside)
                .chain(nodes.filter_map(from_outside));
            for (from, to) in frontends.collect::<Vec<_>>() {
                let (answers, error) = try_frontend(state, from, to, port.protocol == "UDP");
                outcomes.push(Outcome {
                    service: service.name.clone(),
                    frontend: format!("{to}/{}", port.protocol),
                    from: from.rsplit('/').next().unwrap_or(from).to_owned(),
                    asked: answers.values().sum::<u32>() + u32::from(error.is_some()),
                    answers: by_name(answers, &status.pods),
                    error,
                });
            }
        }
    }
    print(&outcomes);
    if !idle.is_empty() {
        say!("Not tried, for want of a ready endpoint: {}", idle.join(", "));
    }
    complain(state, &outcomes)?;
    Ok(outcomes
        .into_iter()
        .flat_map(|outcome| outcome.answers.into_keys())
        .flatten()
        .next())
}

/// A server that knows its pod's address only (nginx's `$server_addr`) has told enough.
fn by_name(answers: BTreeMap<Option<String>, u32>, pods: &[PodStatus]) -> BTreeMap<Option<String>, u32> {
    let is = |pod: &&PodStatus, said: &str| pod.ips.iter().any(|ip| ip.to_string() == said);
    let name = |said: String| match pods.iter().find(|pod| is(pod, &said)) {
        Some(pod) => pod.name.clone(),
        None => said,
    };
    answers
        .into_iter()
        .map(|(said, count)| (said.map(name), count))
        .collect()
}

fn print(outcomes: &[Outcome]) {
    if outcomes.is_empty() {
        return;
    }
    let rows = outcomes.iter().map(|outcome| {
        let answered: u32 = outcome.answers.values().sum();
        [
            outcome.service.clone(),
            outcome.frontend.clone(),
            outcome.from.clone(),
            format!("{answered}/{}", outcome.asked),
            counts(&outcome.answers),
        ]
    });
    table(
        ["SERVICE", "FRONTEND", "FROM", "ANSWERED", "BY"],
        &rows.collect::<Vec<_>>(),
    );
}

fn counts(answers: &BTreeMap<Option<String>, u32>) -> String {
    let parts = answers.iter().map(|(pod, count)| match pod {
        Some(pod) => format!("{pod} ({count})"),
        None => format!("no name given ({count})"),
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn complain(state: &State, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let failed = outcomes
        .iter()
        .filter_map(|outcome| Some((outcome, outcome.error.as_ref()?)));
    let failed: Vec<String> = failed
        .map(|(outcome, error)| {
            let Outcome {
                service,
                frontend,
                from,
                ..
            } = outcome;
            format!("{service}: {frontend} from {from}: {error:#}")
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    for line in &failed {
        say!("{}", paint(Style::Red, &format!("FAILED  {line}")));
    }
    bail!(
        "{} of {} frontends do not answer; look at {} and {}",
        failed.len(),
        outcomes.len(),
        state.log("dataplane").display(),
        state.log("control").display()
    )
}

/// Sends requests until one fails: a further failure would tell nothing new, and take its time. A server that gives no
/// name is asked once: what it speaks is its own, and that it was reached is all there is to learn.
fn try_frontend(
    state: &State,
    from: &str,
    to: SocketAddr,
    udp: bool,
) -> (BTreeMap<Option<String>, u32>, Option<anyhow::Error>) {
    let mut answers = BTreeMap::new();
    let request = Request::Fetch {
        from: from.to_owned(),
        to,
        udp,
    };
    let mut tries = TRIES;
    while answers.values().sum::<u32>() < REQUESTS {
        match ask::<Option<String>>(&state.socket("keeper"), &request) {
            Ok(None) => {
                *answers.entry(None).or_insert(0) += 1;
                break;
            }
            Ok(pod) => *answers.entry(pod).or_insert(0) += 1,
            // A program without a readiness probe counts as ready before it listens.
            Err(_) if answers.is_empty() && tries > 0 => {
                tries -= 1;
                thread::sleep(PAUSE);
            }
            Err(error) => return (answers, Some(error)),
        }
    }
    (answers, None)
}
