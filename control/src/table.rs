//! Objects as rows for a terminal, as kubectl prints them (GET-1 to GET-6).

use std::fmt::Write;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::model::ingress;

/// Cells a list shows before "+ N more...".
const SHOWN: usize = 3;

/// A kind that has a table.
pub trait Rows {
    /// Its columns; the last `WIDE` of them are shown only if asked for.
    const COLUMNS: &'static [&'static str];
    /// How many of the columns are for the wide form.
    const WIDE: usize;
    /// Its kind, as in `service/web`.
    const KIND: &'static str;
    /// Its plural, as in "services "web" not found".
    const PLURAL: &'static str;
    /// Fields that it can be chosen by, beside its name and namespace.
    const FIELDS: &'static [&'static str];

    /// Its metadata.
    fn metadata(&self) -> &ObjectMeta;
    /// One cell per column.
    fn row(&self, now: Timestamp) -> Vec<String>;
}

/// What a table shows of its items. It remembers how wide its columns were, so that rows that come later stand under those
/// before.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The columns of the wide form, too.
    pub wide: bool,
    /// The namespace first.
    pub namespaces: bool,
    /// Headings.
    pub headers: bool,
    /// Labels as further columns.
    pub labels: Vec<String>,
    /// Of the columns so far.
    pub widths: Vec<usize>,
}

impl Table {
    /// Rows of `items`.
    pub fn rows<T: Rows>(&mut self, items: &[&T], now: Timestamp) -> String {
        let columns = T::COLUMNS.len() - if self.wide { 0 } else { T::WIDE };
        let mut rows: Vec<Vec<String>> = Vec::new();
        if self.headers {
            let mut heads: Vec<String> = T::COLUMNS[..columns]
                .iter()
                .map(|&name| name.to_owned())
                .collect();
            heads.extend(self.labels.iter().map(|key| {
                let name = key.rsplit('/').next().unwrap_or(key);
                name.to_uppercase()
            }));
            rows.push(heads);
        }
        for item in items {
            let mut row = item.row(now);
            row.truncate(columns);
            let labels = item.metadata().labels.as_ref();
            let label = |key: &String| {
                labels
                    .and_then(|labels| labels.get(key))
                    .cloned()
                    .unwrap_or_default()
            };
            row.extend(self.labels.iter().map(label));
            rows.push(row);
        }
        if self.namespaces {
            let names = self.headers.then(|| "NAMESPACE".to_owned()).into_iter();
            let names = names.chain(
                items
                    .iter()
                    .map(|item| item.metadata().namespace.clone().unwrap_or_default()),
            );
            rows.iter_mut()
                .zip(names)
                .for_each(|(row, name)| row.insert(0, name));
        }
        aligned(&rows, &mut self.widths)
    }
}

/// Rows whose columns stand three apart, and are at least as wide as `widths`, which learns how wide they are.
pub fn aligned(rows: &[Vec<String>], widths: &mut Vec<usize>) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    widths.resize(columns, 0);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths.iter()).enumerate() {
            // The last column is not padded.
            let pad = if column + 1 == columns { 0 } else { width + 3 };
            let _ = write!(out, "{cell:pad$}");
        }
        out.push('\n');
    }
    out
}

/// GET-5.
pub fn age(created: Option<&Time>, now: Timestamp) -> String {
    let Some(Time(created)) = created else {
        return "<unknown>".into();
    };
    let seconds = now.as_second() - created.as_second();
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86_400);
    let pair = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => pair(minutes, 'm', s % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

fn or(text: String, absent: &str) -> String {
    if text.is_empty() { absent.into() } else { text }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// The first few, and how many more.
pub(crate) fn few(mut items: Vec<String>, absent: &str, count: usize) -> String {
    items.truncate(SHOWN);
    let text = or(items.join(","), absent);
    if count > SHOWN {
        format!("{text} + {} more...", count - SHOWN)
    } else {
        text
    }
}

impl Rows for Service {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "TYPE",
        "CLUSTER-IP",
        "EXTERNAL-IP",
        "PORT(S)",
        "AGE",
        "SELECTOR",
    ];
    const WIDE: usize = 1;
    const KIND: &'static str = "service";
    const PLURAL: &'static str = "services";
    const FIELDS: &'static [&'static str] = &["spec.clusterIP", "spec.type"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        let cluster_ip = spec
            .cluster_ips
            .iter()
            .flatten()
            .next()
            .or(spec.cluster_ip.as_ref())
            .cloned();
        let ports = spec.ports.iter().flatten().map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            match port.node_port {
                Some(node_port) if node_port > 0 => format!("{}:{node_port}/{protocol}", port.port),
                _ => format!("{}/{protocol}", port.port),
            }
        });
        let selector = spec
            .selector
            .iter()
            .flatten()
            .map(|(key, value)| format!("{key}={value}"));
        vec![
            name(&self.metadata),
            spec.type_.clone().unwrap_or_default(),
            or(cluster_ip.unwrap_or_default(), "<none>"),
            external_ip(self),
            or(ports.collect::<Vec<_>>().join(","), "<none>"),
            age(self.metadata.creation_timestamp.as_ref(), now),
            or(selector.collect::<Vec<_>>().join(","), "<none>"),
        ]
    }
}

/// GET-3.
fn external_ip(service: &Service) -> String {
    let Some(spec) = &service.spec else {
        return "<none>".into();
    };
    let external = spec.external_ips.clone().unwrap_or_default();
    match spec.type_.as_deref() {
        Some("ExternalName") => spec.external_name.clone().unwrap_or_default(),
        Some("LoadBalancer") => {
            let mut all: Vec<String> = ingress(service)
                .iter()
                .filter_map(|ingress| {
                    ingress
                        .ip
                        .clone()
                        .filter(|ip| !ip.is_empty())
                        .or_else(|| ingress.hostname.clone())
                })
                .filter(|text| !text.is_empty())
                .collect();
            all.sort();
            all.dedup();
            all.extend(external);
            or(all.join(","), "<pending>")
        }
        _ => or(external.join(","), "<none>"),
    }
}

impl Rows for Endpoints {
    const COLUMNS: &'static [&'static str] = &["NAME", "ENDPOINTS", "AGE"];
    const WIDE: usize = 0;
    const KIND: &'static str = "endpoints";
    const PLURAL: &'static str = "endpoints";
    const FIELDS: &'static [&'static str] = &[];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let mut all = Vec::new();
        for subset in self.subsets.iter().flatten() {
            let addresses = || {
                subset
                    .addresses
                    .iter()
                    .flatten()
                    .map(|address| address.ip.clone())
            };
            let host = |ip: String| if ip.contains(':') { format!("[{ip}]") } else { ip };
            match subset.ports.as_deref().unwrap_or_default() {
                [] => all.extend(addresses()),
                ports => {
                    for port in ports {
                        all.extend(addresses().map(|ip| format!("{}:{}", host(ip), port.port)));
                    }
                }
            }
        }
        let count = all.len();
        let endpoints = few(all, "<none>", count);
        vec![
            name(&self.metadata),
            endpoints,
            age(self.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

impl Rows for EndpointSlice {
    const COLUMNS: &'static [&'static str] = &["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"];
    const WIDE: usize = 0;
    const KIND: &'static str = "endpointslice.discovery.k8s.io";
    const PLURAL: &'static str = "endpointslices.discovery.k8s.io";
    const FIELDS: &'static [&'static str] = &[];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let number = |port: Option<i32>| port.map_or_else(|| "*".to_owned(), |port| port.to_string());
        let ports: Vec<String> = self
            .ports
            .iter()
            .flatten()
            .map(|port| number(port.port))
            .collect();
        let addresses: Vec<String> = self
            .endpoints
            .iter()
            .flatten()
            .flat_map(|endpoint| endpoint.addresses.iter().cloned())
            .collect();
        let (port_count, address_count) = (ports.len(), addresses.len());
        vec![
            name(&self.metadata),
            self.address_type.clone(),
            few(ports, "<unset>", port_count),
            few(addresses, "<unset>", address_count),
            age(self.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

impl Rows for Pod {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "AGE",
        "IP",
        "NODE",
        "NOMINATED NODE",
        "READINESS GATES",
    ];
    const WIDE: usize = 4;
    const KIND: &'static str = "pod";
    const PLURAL: &'static str = "pods";
    const FIELDS: &'static [&'static str] = &[
        "spec.nodeName",
        "spec.restartPolicy",
        "status.phase",
        "status.podIP",
    ];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let (spec, status) = (
            self.spec.clone().unwrap_or_default(),
            self.status.clone().unwrap_or_default(),
        );
        let states = status.container_statuses.as_deref().unwrap_or_default();
        let ready = states.iter().filter(|state| state.ready).count();
        let restarts: i32 = states.iter().map(|state| state.restart_count).sum();
        let none = |text: Option<String>| or(text.unwrap_or_default(), "<none>");
        vec![
            name(&self.metadata),
            format!("{ready}/{}", spec.containers.len()),
            pod_status(self),
            restarts.to_string(),
            age(self.metadata.creation_timestamp.as_ref(), now),
            none(
                status
                    .pod_ips
                    .iter()
                    .flatten()
                    .map(|ip| ip.ip.clone())
                    .next()
                    .or(status.pod_ip),
            ),
            none(spec.node_name),
            none(status.nominated_node_name),
            "<none>".into(),
        ]
    }
}

/// The one word kubectl has for how a pod is: what its containers wait for or died of, else its phase.
fn pod_status(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "Pending".into();
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".into();
    }
    let mut word = status
        .reason
        .clone()
        .or_else(|| status.phase.clone())
        .unwrap_or_else(|| "Pending".into());
    let mut running = false;
    for state in status.container_statuses.iter().flatten().rev() {
        let current = state.state.clone().unwrap_or_default();
        let waiting = current.waiting.and_then(|waiting| waiting.reason);
        let ended = current.terminated.map(|ended| match ended.reason {
            Some(reason) if !reason.is_empty() => reason,
            _ => format!("ExitCode:{}", ended.exit_code),
        });
        match waiting.filter(|reason| !reason.is_empty()).or(ended) {
            Some(reason) => word = reason,
            None => running |= state.ready && current.running.is_some(),
        }
    }
    if word == "Completed" && running {
        "Running".into()
    } else {
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_5_ages_are_said_as_kubectl_says_them() {
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        let of = |seconds: i64| {
            age(
                Some(&Time(Timestamp::from_second(2_000_000_000 - seconds).unwrap())),
                now,
            )
        };
        for (seconds, said) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_460, "3h11m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
            (-1, "0s"),
            (-2, "<invalid>"),
        ] {
            assert_eq!(of(seconds), said, "{seconds}");
        }
        assert_eq!(age(None, now), "<unknown>");
    }
}
