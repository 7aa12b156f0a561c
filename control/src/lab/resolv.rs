//! A pod's resolv.conf, as a kubelet writes it (DNS-24). Takes the pod's policy and the machine's own file, gives text;
//! [`mount`] puts it where the C library looks, in the pod's own mounts.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::PodSpec;
use nix::mount::{MsFlags, mount as mount_over};

use super::namespace::Namespaces;
use super::state::write_atomically;

/// Where programs look (resolv.conf(5)).
const FILE: &str = "/etc/resolv.conf";
/// What kubelets keep to: glibc reads no more servers, and its buffers hold no more names.
const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
const LONGEST_SEARCH: usize = 2048;

/// What a resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<String>,
    pub(super) searches: Vec<String>,
    pub(super) options: Vec<String>,
}

impl ResolvConf {
    /// That of the machine; empty if it has none.
    pub(super) fn of_machine() -> Self {
        Self::parse(&fs::read_to_string(FILE).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let words = words.map(str::to_owned);
            match keyword {
                Some("nameserver") => found.servers.extend(words.take(1)),
                // The last line counts (resolv.conf(5)).
                Some("search") => {
                    found.searches = words
                        .map(|name| match name.as_str() {
                            "." => name,
                            _ => name.trim_end_matches('.').to_owned(),
                        })
                        .collect();
                }
                Some("options") => found.options = words.collect(),
                _ => {}
            }
        }
        found
    }

    /// That of a pod in `namespace` of a cluster with these DNS servers.
    pub(super) fn of_pod(
        spec: &PodSpec,
        namespace: &str,
        domain: &str,
        cluster: &[IpAddr],
        machine: &Self,
    ) -> anyhow::Result<Self> {
        let of_cluster = || Self {
            servers: cluster.iter().map(ToString::to_string).collect(),
            searches: [
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.to_owned(),
            ]
            .into_iter()
            .chain(machine.searches.iter().cloned())
            .collect(),
            options: vec!["ndots:5".to_owned()],
        };
        let on_host = spec.host_network == Some(true);
        let mut conf = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
            "None" => Self::default(),
            "Default" => machine.clone(),
            "ClusterFirst" if on_host => machine.clone(),
            "ClusterFirst" | "ClusterFirstWithHostNet" => of_cluster(),
            other => bail!(
                "spec.dnsPolicy: {other:?} is none of ClusterFirst, ClusterFirstWithHostNet, Default, None"
            ),
        };
        if let Some(more) = &spec.dns_config {
            conf.servers.extend(more.nameservers.iter().flatten().cloned());
            conf.searches.extend(more.searches.iter().flatten().cloned());
            let split = |option: &String| match option.split_once(':') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (option.clone(), String::new()),
            };
            let mut options: BTreeMap<String, String> = conf.options.iter().map(split).collect();
            for option in more.options.iter().flatten() {
                let value = option.value.clone().unwrap_or_default();
                options.insert(option.name.clone().unwrap_or_default(), value);
            }
            conf.options = options
                .into_iter()
                .map(|(name, value)| {
                    if value.is_empty() {
                        name
                    } else {
                        format!("{name}:{value}")
                    }
                })
                .collect();
        }
        conf.fit();
        Ok(conf)
    }

    /// Leaves out what is there twice, and what is too much.
    fn fit(&mut self) {
        for list in [&mut self.servers, &mut self.searches] {
            let mut seen = std::collections::BTreeSet::new();
            list.retain(|item| seen.insert(item.clone()));
        }
        self.servers.truncate(MOST_SERVERS);
        self.searches.truncate(MOST_SEARCHES);
        while self.searches.join(" ").len() > LONGEST_SEARCH {
            self.searches.pop();
        }
    }

    fn text(&self) -> String {
        let mut text = String::from("# Written by `sluice lab`.\n");
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        for (keyword, words) in [("search", &self.searches), ("options", &self.options)] {
            if !words.is_empty() {
                text += &format!("{keyword} {}\n", words.join(" "));
            }
        }
        text
    }
}

/// Writes `conf` to `file` and puts it over the machine's own inside of `namespaces`, where nobody else sees it.
pub(super) fn mount(namespaces: &Namespaces, conf: &ResolvConf, file: &Path) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    write_atomically(file, conf.text().as_bytes())?;
    namespaces.enter(|| {
        mount_over(Some(file), FILE, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("cannot mount over {FILE}: cluster names do not resolve"))
    })
}

/// Removes the file of a pod that is gone.
pub(super) fn remove(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("{}: {error}", file.display())
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption};

    use super::*;

    fn conf(
        policy: Option<&str>,
        host_network: bool,
        config: Option<PodDNSConfig>,
    ) -> anyhow::Result<String> {
        let spec = PodSpec {
            dns_policy: policy.map(Into::into),
            host_network: Some(host_network),
            dns_config: config,
            ..PodSpec::default()
        };
        let machine = ResolvConf::parse(
            "# a comment\nnameserver 192.0.2.53\nsearch old.example\nsearch corp.example. svc.cluster.local .\noptions timeout:3 rotate\n",
        );
        let cluster = ["10.96.0.10".parse().unwrap()];
        let conf = ResolvConf::of_pod(&spec, "shop", "cluster.local", &cluster, &machine)?;
        let text = conf.text();
        Ok(text.lines().skip(1).collect::<Vec<_>>().join("; "))
    }

    const CLUSTER: &str = "nameserver 10.96.0.10; search shop.svc.cluster.local svc.cluster.local cluster.local corp.example .; \
                           options ndots:5";
    const MACHINE: &str =
        "nameserver 192.0.2.53; search corp.example svc.cluster.local .; options timeout:3 rotate";

    #[test]
    fn o1_policies_and_host_networks_decide_whose_servers_a_pod_asks() {
        for (policy, host_network, wanted) in [
            (None, false, CLUSTER),
            (None, true, MACHINE),
            (Some("ClusterFirst"), false, CLUSTER),
            (Some("ClusterFirst"), true, MACHINE),
            (Some("ClusterFirstWithHostNet"), true, CLUSTER),
            (Some("Default"), false, MACHINE),
            (Some("None"), false, ""),
        ] {
            assert_eq!(
                conf(policy, host_network, None).unwrap(),
                wanted,
                "{policy:?} {host_network}"
            );
        }
        let error = conf(Some("Cluster"), false, None).unwrap_err().to_string();
        assert!(
            error.starts_with("spec.dnsPolicy: \"Cluster\" is none of"),
            "{error}"
        );
    }

    fn config(servers: &[&str], searches: &[&str], options: &[(&str, Option<&str>)]) -> Option<PodDNSConfig> {
        let list = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect());
        let option = |(name, value): &(&str, Option<&str>)| PodDNSConfigOption {
            name: Some((*name).into()),
            value: value.map(Into::into),
        };
        Some(PodDNSConfig {
            nameservers: list(servers),
            searches: list(searches),
            options: Some(options.iter().map(option).collect()),
        })
    }

    #[test]
    fn o1_k6_a_pods_own_configuration_is_added_and_its_options_win() {
        let own = config(
            &["198.51.100.1"],
            &["my_zone.example", "."],
            &[("ndots", Some("2")), ("edns0", None)],
        );
        assert_eq!(
            conf(Some("None"), false, own.clone()).unwrap(),
            "nameserver 198.51.100.1; search my_zone.example .; options edns0 ndots:2"
        );
        assert_eq!(
            conf(None, false, own).unwrap(),
            "nameserver 10.96.0.10; nameserver 198.51.100.1; search shop.svc.cluster.local svc.cluster.local cluster.local \
             corp.example . my_zone.example; options edns0 ndots:2"
        );
    }

    #[test]
    fn o2_what_is_there_twice_or_too_much_is_left_out() {
        let servers = ["10.96.0.10", "192.0.2.1", "192.0.2.2", "192.0.2.3"];
        let searches: Vec<String> = (0..40).map(|i| format!("s{i}.example")).collect();
        let searches: Vec<&str> = searches.iter().map(String::as_str).collect();
        let fitted = conf(None, false, config(&servers, &searches, &[])).unwrap();
        assert_eq!(fitted.matches("nameserver").count(), MOST_SERVERS);
        assert_eq!(fitted.matches("10.96.0.10").count(), 1);
        assert_eq!(fitted.matches("s26.example").count(), 1, "the last of 32");
        assert_eq!(fitted.matches("s27.example").count(), 0);
        let long = "x".repeat(250);
        let searches = vec![&*long; 1];
        let fitted = conf(Some("None"), false, config(&[], &searches, &[])).unwrap();
        assert!(fitted.contains(&long));
        let many: Vec<String> = (0..9).map(|i| format!("{i}{long}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let fitted = conf(Some("None"), false, config(&[], &many, &[])).unwrap();
        assert_eq!(fitted.matches(&long).count(), LONGEST_SEARCH / 252);
    }
}
