//! Which pods there are: made like what the manifests and `scale` ask for, one look at a time.
//!
//! Adds pods and marks those that are to go; starting and stopping their processes is the pods' own.

use anyhow::bail;
use serde_json::Value;

use super::super::namespace::Namespaces;
use super::super::net::{Addresses, FIRST_POD, LAST_POD};
use super::super::pods::{Owner, Pod};
use super::super::resolv::{self, ResolvConf};
use super::super::services::{DOMAIN, dns_ips};
use super::super::workloads::{Key, REVISION, Set, SetKind, Template, name_part};
use super::super::{random, uid};
use super::{Keeper, join};

fn owner(key: &Key, set: &Set) -> Owner {
    Owner {
        kind: set.kind,
        set: key.clone(),
        deployment: set.deployment.clone(),
    }
}

fn is_of(pod: &Pod, set: &Key) -> bool {
    pod.owner.as_ref().is_some_and(|owner| owner.set == *set)
}

/// Whether a pod was made from another template than the set has now.
fn is_older(pod: &Pod, set: &Set) -> bool {
    pod.label(REVISION) != set.template.labels.get(REVISION).map(String::as_str)
}

impl Keeper {
    /// Another number of replicas, until the file says a third.
    pub(super) fn scale(&mut self, deployment: bool, key: &Key, replicas: u32) -> anyhow::Result<Value> {
        let most = u32::from(LAST_POD - FIRST_POD);
        if replicas > most {
            bail!("{replicas} replicas are more than the lab's {most} pod addresses");
        }
        let set = self.wanted.sets.iter().find(|(set, spec)| match deployment {
            true => set.namespace == key.namespace && spec.deployment.as_deref() == Some(&key.name),
            false => *set == key && spec.deployment.is_none(),
        });
        let Some((_, set)) = set else {
            let kind = if deployment { "Deployment" } else { "set" };
            let known = self.wanted.sets.iter().map(|(key, set)| owner(key, set));
            bail!("no {kind} {key}; there are: {}", join(known));
        };
        if set.kind == SetKind::Daemon {
            bail!("DaemonSet {key} has one pod on each node, and the lab has one node");
        }
        self.scaled
            .insert((deployment, key.clone()), (set.replicas, replicas));
        Ok(Value::Null)
    }

    /// Forgets pods whose last process has ended, and takes their links away.
    pub(super) fn remove_ended_pods(&mut self) {
        let over: Vec<Key> = self
            .pods
            .iter_mut()
            .filter_map(|(key, pod)| pod.is_over().then(|| key.clone()))
            .collect();
        for key in over {
            let Some(pod) = self.pods.remove(&key) else {
                continue;
            };
            pod.kill_orphans();
            pod.remove_report(&self.state);
            pod.remove_scratch(&self.state);
            resolv::remove(&self.state.pod_resolv_conf(&key.namespace, &key.name));
            if let Some(number) = pod.number
                && let Err(error) = self.network.remove_pod(number)
            {
                log::error!("pod {key}: {error:#}");
            }
            log::info!("pod {key} is gone");
        }
    }

    /// How many pods a set should have, a command's word included.
    fn replicas(&mut self, key: &Key) -> u32 {
        let Some(set) = self.wanted.sets.get(key) else {
            return 0;
        };
        let target = match &set.deployment {
            Some(name) => (
                true,
                Key {
                    namespace: key.namespace.clone(),
                    name: name.clone(),
                },
            ),
            None => (false, key.clone()),
        };
        match self.scaled.get(&target) {
            // The last word counts: a file edited after the command overrules it.
            Some(&(file, replicas)) if file == set.replicas => replicas,
            Some(_) => {
                self.scaled.remove(&target);
                set.replicas
            }
            None => set.replicas,
        }
    }

    pub(super) fn match_sets(&mut self) {
        let sets: Vec<(Key, Set)> = self
            .wanted
            .sets
            .iter()
            .map(|(key, set)| (key.clone(), set.clone()))
            .collect();
        let mut replaced = Vec::new();
        for (key, set) in sets {
            let wanted = self.replicas(&key) as usize;
            match set.kind {
                SetKind::Replica => self.match_replicas(&key, &set, wanted),
                SetKind::Daemon => {
                    self.end_older(&key, &set);
                    self.match_replicas(&key, &set, wanted);
                }
                SetKind::Stateful { parallel } => self.match_ordinals(&key, &set, wanted, parallel),
            }
            let ready = self
                .pods
                .values()
                .filter(|pod| is_of(pod, &key) && pod.is_ready())
                .count();
            if ready >= wanted {
                replaced.extend(set.deployment.map(|name| (key.namespace, name)));
            }
        }
        // A set that is no longer wanted ends; that of a changed Deployment only when the new one serves.
        let orphans = self.pods_where(|pod| {
            let Some(Owner { set, deployment, .. }) = &pod.owner else {
                return false;
            };
            let waits = deployment.as_ref().is_some_and(|deployment| {
                let same = |spec: &Set| spec.deployment.as_ref() == Some(deployment);
                self.wanted
                    .sets
                    .iter()
                    .any(|(key, spec)| key.namespace == set.namespace && same(spec))
                    && !replaced.contains(&(set.namespace.clone(), deployment.clone()))
            });
            !self.wanted.sets.contains_key(set) && !waits
        });
        orphans.iter().for_each(|pod| self.terminate(pod));
    }

    fn match_replicas(&mut self, key: &Key, set: &Set, wanted: usize) {
        let mut owned: Vec<Key> = self.pods_where(|pod| is_of(pod, key));
        // The ones that serve stay longest.
        owned.sort_by_key(|pod| self.pods.get(pod).is_none_or(|pod| !pod.is_ready()));
        for pod in owned.iter().skip(wanted) {
            self.terminate(pod);
        }
        for _ in owned.len()..wanted {
            let pod = Key {
                namespace: key.namespace.clone(),
                name: format!("{}-{}", key.name, name_part(random(), 5)),
            };
            if let Err(error) = self.add_pod(pod, Some(owner(key, set)), set.template.clone()) {
                log::error!("{key}: {error:#}");
                break;
            }
        }
    }

    /// Pods `NAME-0`, `NAME-1` and so on: one after the other, each once those before it are ready, and the last first when
    /// they go. A name is used again only when nothing is left of who had it.
    fn match_ordinals(&mut self, key: &Key, set: &Set, wanted: usize, parallel: bool) {
        let named = |ordinal: usize| Key {
            namespace: key.namespace.clone(),
            name: format!("{}-{ordinal}", key.name),
        };
        let ordinal = |pod: &Key| {
            pod.name
                .rsplit_once('-')
                .and_then(|(_, ordinal)| ordinal.parse::<usize>().ok())
        };
        let is_going = self
            .pods
            .values()
            .any(|pod| is_of(pod, key) && pod.is_terminating());
        let surplus = self
            .pods_where(|pod| is_of(pod, key) && ordinal(&pod.key).is_none_or(|ordinal| ordinal >= wanted));
        let last = surplus.iter().max_by_key(|pod| ordinal(pod)).cloned();
        match last {
            Some(last) if !parallel && !is_going => self.terminate(&last),
            Some(_) if parallel => surplus.iter().for_each(|pod| self.terminate(pod)),
            _ => {}
        }
        for ordinal in 0..wanted {
            let name = named(ordinal);
            if let Some(pod) = self.pods.get(&name) {
                // One that will never be ready must not be in the way of its own correction.
                if !parallel && !pod.is_ready() {
                    return self.end_older(key, set);
                }
                continue;
            }
            let mut template = set.template.clone();
            template.spec.hostname = Some(name.name.clone());
            template
                .labels
                .insert("statefulset.kubernetes.io/pod-name".to_owned(), name.name.clone());
            template
                .labels
                .insert("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string());
            if let Err(error) = self.add_pod(name, Some(owner(key, set)), template) {
                log::error!("{key}: {error:#}");
                return;
            }
            if !parallel {
                return;
            }
        }
        // All are there, and ready: the last of an older template makes room for a newer one.
        self.end_older(key, set);
    }

    /// Ends one pod of an older template, the last by name, unless one is on its way already.
    fn end_older(&mut self, key: &Key, set: &Set) {
        let is_older = |pod: &Pod| is_older(pod, set);
        let waits = |pod: &Pod| pod.is_terminating() || !is_older(pod) && !pod.is_ready();
        let waits = self.pods.values().any(|pod| is_of(pod, key) && waits(pod));
        let older = self.pods_where(|pod| is_of(pod, key) && is_older(pod));
        let last = older.iter().max_by_key(|pod| (pod.name.len(), pod.name.clone()));
        if let Some(last) = last.filter(|_| !waits) {
            self.terminate(last);
        }
    }

    pub(super) fn match_single_pods(&mut self) {
        let unwanted = self.pods_where(|pod| pod.owner.is_none() && !self.wanted.pods.contains_key(&pod.key));
        unwanted.iter().for_each(|pod| self.terminate(pod));
        let missing: Vec<_> = self
            .wanted
            .pods
            .iter()
            .filter(|(key, _)| !self.pods.contains_key(key))
            .collect();
        for (key, template) in missing
            .into_iter()
            .map(|(k, t)| (k.clone(), t.clone()))
            .collect::<Vec<_>>()
        {
            if let Err(error) = self.add_pod(key.clone(), None, template) {
                log::error!("pod {key}: {error:#}");
            }
        }
    }

    /// Pods that are not being stopped and fit.
    fn pods_where(&self, fits: impl Fn(&Pod) -> bool) -> Vec<Key> {
        let fitting = self
            .pods
            .values()
            .filter(|pod| !pod.is_terminating() && fits(pod));
        fitting.map(|pod| pod.key.clone()).collect()
    }
    fn terminate(&mut self, key: &Key) {
        if let Some(pod) = self.pods.get_mut(key) {
            pod.terminate(&self.state);
        }
    }

    fn add_pod(&mut self, key: Key, owner: Option<Owner>, template: Template) -> anyhow::Result<()> {
        let dual = self.network.dual;
        let (number, namespaces, addresses) = match template.spec.host_network {
            Some(true) => (
                None,
                self.network.node.with_other_mounts()?,
                Addresses::node(dual),
            ),
            _ => {
                let number = self.next_number()?;
                let namespaces = self.network.create_pod(number)?;
                (Some(number), namespaces, Addresses::pod(number, dual))
            }
        };
        if !self.services.is_empty()
            && let Err(error) = self.give_names(&key, &template, &namespaces)
        {
            // It runs all the same, and reaches Services by their addresses.
            log::error!("pod {key}: {error:#}");
        }
        log::info!("pod {key} has {}", addresses.v4);
        let pod = Pod::new(
            key.clone(),
            owner,
            template,
            (number, addresses),
            namespaces,
            uid(random()),
        );
        self.pods.insert(key, pod);
        Ok(())
    }

    /// Has the pod's programs ask cluster DNS, as its policy says.
    fn give_names(&self, key: &Key, template: &Template, namespaces: &Namespaces) -> anyhow::Result<()> {
        let dual = self.network.dual;
        let servers: Vec<_> = match template.spec.host_network {
            // The node does not reach itself through the gateway: it asks the server where that listens.
            Some(true) => Addresses::node(dual).all().collect(),
            _ => dns_ips(dual),
        };
        let conf = ResolvConf::of_pod(
            &template.spec,
            &key.namespace,
            DOMAIN,
            &servers,
            &self.machine_dns,
        )?;
        resolv::mount(
            namespaces,
            &conf,
            &self.state.pod_resolv_conf(&key.namespace, &key.name),
        )
    }

    /// The next free number in a circle, so that an address just freed is used last.
    fn next_number(&mut self) -> anyhow::Result<u8> {
        for _ in FIRST_POD..=LAST_POD {
            self.last_number = if self.last_number >= LAST_POD {
                FIRST_POD
            } else {
                self.last_number + 1
            };
            if self.pods.values().all(|pod| pod.number != Some(self.last_number)) {
                return Ok(self.last_number);
            }
        }
        bail!("all {} pod addresses are taken", LAST_POD - FIRST_POD + 1)
    }
}
