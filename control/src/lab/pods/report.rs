//! What a kubelet would say about a pod: its object with status, one file in the pods folder that control watches.

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::api::core::v1::{Pod as PodObject, PodCondition, PodIP, PodStatus as PodObjectStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use super::super::net::Addresses;
use super::super::process::Exit;
use super::super::state::{State, write_atomically};
use super::super::uid;
use super::process::{Process, Program};
use super::{Owner, Pod};

impl Pod {
    /// Writes the pod's report if it changed.
    pub(in crate::lab) fn report(&mut self, state: &State) {
        let object = self.object();
        if self.reported.as_ref() == Some(&object) {
            return;
        }
        let written = serde_saphyr::to_string(&object)
            .map_err(anyhow::Error::from)
            .and_then(|text| write_atomically(&self.report_file(state), text.as_bytes()));
        match written {
            Ok(()) => self.reported = Some(object),
            Err(error) => log::error!("cannot report pod {}: {error:#}", self.key),
        }
    }

    /// Takes the report away: the pod is no more.
    pub(in crate::lab) fn remove_report(&self, state: &State) {
        let file = self.report_file(state);
        if let Err(error) = fs::remove_file(&file) {
            log::error!("cannot remove {}: {error}", file.display());
        }
    }

    fn report_file(&self, state: &State) -> std::path::PathBuf {
        state
            .pods()
            .join(format!("{}.{}.yaml", self.key.namespace, self.key.name))
    }

    /// The STATUS that kubectl shows.
    pub(super) fn doing(&self) -> &'static str {
        let waits = |process: &Process| process.pid.is_none() && process.restart.is_some();
        if self.terminating.is_some() {
            return "Terminating";
        }
        if self.containers.iter().any(waits) {
            return "CrashLoopBackOff";
        }
        self.phase()
    }

    fn phase(&self) -> &'static str {
        let ended = |process: &Process| process.pid.is_none() && process.restart.is_none();
        let run_out = !self.containers.is_empty()
            && self.terminating.is_none()
            && self
                .containers
                .iter()
                .all(|p| ended(p) && !matches!(p.program, Program::Nothing));
        match run_out {
            false => "Running",
            true if self
                .containers
                .iter()
                .all(|process| process.ended == Some(Exit::Status(0))) =>
            {
                "Succeeded"
            }
            true => "Failed",
        }
    }

    fn object(&self) -> PodObject {
        let owner = self.owner.as_ref().map(|Owner { kind, set, .. }| OwnerReference {
            api_version: "apps/v1".to_owned(),
            block_owner_deletion: Some(true),
            controller: Some(true),
            kind: kind.name().to_owned(),
            name: set.name.clone(),
            uid: uid(set),
        });
        let map = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
        let ips = self.addresses.all().map(|ip| PodIP { ip: ip.to_string() });
        // A terminating pod stays ready for those it serves; that it takes nothing new is its deletionTimestamp's word.
        let ready = if self.containers_ready() { "True" } else { "False" };
        let condition = |kind: &str, status: &str| PodCondition {
            status: status.to_owned(),
            type_: kind.to_owned(),
            ..PodCondition::default()
        };
        let mut spec = self.template.spec.clone();
        spec.node_name = Some("lab".to_owned());
        PodObject {
            metadata: ObjectMeta {
                namespace: Some(self.key.namespace.clone()),
                name: Some(self.key.name.clone()),
                uid: Some(self.uid.clone()),
                labels: map(&self.template.labels),
                annotations: map(&self.template.annotations),
                owner_references: owner.map(|owner| vec![owner]),
                creation_timestamp: Some(Time(self.created)),
                deletion_timestamp: self.terminating.as_ref().map(|t| Time(t.since)),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: Some(PodObjectStatus {
                phase: Some(self.phase().to_owned()),
                host_ip: Some(Addresses::node(false).v4.to_string()),
                pod_ip: Some(self.addresses.v4.to_string()),
                pod_ips: Some(ips.collect()),
                start_time: Some(Time(self.created)),
                container_statuses: Some(self.containers.iter().map(Process::status).collect()),
                conditions: Some(vec![
                    condition("PodScheduled", "True"),
                    condition("Initialized", "True"),
                    condition("ContainersReady", ready),
                    condition("Ready", ready),
                ]),
                ..PodObjectStatus::default()
            }),
        }
    }
}
