//! `sluice env`: the variables that a container started now would have of Services.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Pod, Service};

use super::args::EnvArgs;
use super::selector::Selector;
use crate::api::{self, List};
use crate::env;

/// Runs the verb.
pub(super) fn run(args: &EnvArgs) -> anyhow::Result<ExitCode> {
    let selector: Selector = args.selector.as_deref().unwrap_or_default().parse()?;
    let socket = args.api.clone().unwrap_or_else(api::default_api_socket);
    let links = match &args.pod {
        None => true,
        Some(name) => {
            let pods: Vec<Pod> = api::ask(&socket, List::Pods)?;
            wants_links(&pods, &args.namespace, name)?
        }
    };
    let mut services: Vec<Service> = api::ask(&socket, List::Services)?;
    services.retain(|service| selector.matches(service.metadata.labels.as_ref()));
    let lines = env::variables(&services, &args.namespace, links).into_iter();
    let text: String = lines.map(|(name, value)| format!("{name}={value}\n")).collect();
    // Whoever reads no further (`| head`) needs no more.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn wants_links(pods: &[Pod], namespace: &str, name: &str) -> anyhow::Result<bool> {
    let here = pods
        .iter()
        .filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace));
    let pod = here
        .clone()
        .find(|pod| pod.metadata.name.as_deref() == Some(name));
    let pod = pod.with_context(|| {
        let names: Vec<_> = here.filter_map(|pod| pod.metadata.name.as_deref()).collect();
        let there = if names.is_empty() {
            "none".into()
        } else {
            names.join(", ")
        };
        format!("no pod {name} in namespace {namespace}; there are: {there}")
    })?;
    Ok(pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_6_a_pod_says_whether_it_wants_links_and_one_that_is_not_there_is_told_with_those_that_are() {
        let pod = |name: &str, links: Option<bool>| {
            let mut pod = Pod::default();
            (pod.metadata.namespace, pod.metadata.name) = (Some("shop".into()), Some(name.into()));
            pod.spec.get_or_insert_default().enable_service_links = links;
            pod
        };
        let pods = [pod("a", None), pod("b", Some(true)), pod("c", Some(false))];
        let wants = |name: &str| wants_links(&pods, "shop", name).unwrap();
        assert_eq!((wants("a"), wants("b"), wants("c")), (true, true, false));
        let error = wants_links(&pods, "shop", "d").unwrap_err().to_string();
        assert_eq!(error, "no pod d in namespace shop; there are: a, b, c");
        assert!(wants_links(&pods, "default", "a").is_err());
    }
}
