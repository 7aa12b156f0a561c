//! Table records as text, one a line, and the changes of a transaction:
//!
//! ```text
//! service echo tcp|udp|sctp [random|maglev|round-robin|least-connections] [external-local] [internal-local] [affinity 60s]
//! cluster-ip echo 10.96.0.10:80        (external-ip, load-balancer-ip likewise)
//! node-port echo 30080                 (on the IPv4 addresses; [::]:30080 on the IPv6 ones)
//! backend echo 10.244.0.11:8080 [local] [terminating] [unready] [not-serving]
//! network pods|services|node-ports 10.244.0.0/16
//! settings [masquerade-all]
//! ```
//!
//! A service is the service port of that name; its index is its turn. It takes its endpoints' part of a control process:
//! a backend is in the Cluster set if it is ready, in the Local set if it is also local (CAT-1, CAT-2).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use sluice_dataplane::addr::Protocol;
use sluice_dataplane::channel::record::{
    Algorithm, BackendRecord, FrontendKind, FrontendRecord, Key, NetworkKind, NetworkRecord, Record,
    ServicePortRecord, SettingsRecord, SourceRangeRecord, UndefinedPorts,
};
use sluice_dataplane::index::ServicePortIndex;

/// What a transaction changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Rows that go.
    pub deletes: Vec<Key>,
    /// Rows that come.
    pub puts: Vec<Record>,
}

/// What can be said of an endpoint: where and how it is, and in which sets control has put it, if that does not follow.
pub const BACKEND_WORDS: [&str; 7] = [
    "local",
    "terminating",
    "unready",
    "not-serving",
    "in-cluster-set",
    "in-local-set",
    "in-no-set",
];

/// The records so far: names to service ports, and what belongs to each.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// The first service's index.
    first: u32,
    services: BTreeMap<String, ServicePortRecord>,
    rows: BTreeMap<Key, Record>,
}

impl Records {
    /// `put RECORD` or `delete RECORD`, several separated by commas: one transaction.
    pub fn transaction(&mut self, text: &str) -> Result<Changes, String> {
        let mut changes = Changes::default();
        for change in text.split(',') {
            match change.trim().split_once(' ') {
                Some(("put", record)) => changes.puts.push(self.put(record)?),
                Some(("delete", record)) => changes.deletes.extend(self.delete(record)?),
                _ => {
                    return Err(format!(
                        "\"{}\": write put RECORD or delete RECORD",
                        change.trim()
                    ));
                }
            }
        }
        Ok(changes)
    }

    /// Reads a record and takes it in.
    pub fn put(&mut self, text: &str) -> Result<Record, String> {
        let record = self.read(text)?;
        if let Record::ServicePort(service) = &record {
            self.services.insert(service.name.clone(), service.clone());
        }
        self.rows.insert(record.key(), record.clone());
        Ok(record)
    }

    /// Like `put`, for records that are beside those of a vector: services have indices from `first` on.
    pub fn put_at(&mut self, first: u32, text: &str) -> Result<Record, String> {
        self.first = first;
        self.put(text)
    }

    /// Forgets a record; a service with all that belongs to it.
    fn delete(&mut self, text: &str) -> Result<Vec<Key>, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let keys = match words[..] {
            ["service", name] => {
                let index = self.service(name)?.index;
                let belongs = |record: &Record| match record {
                    Record::ServicePort(r) => r.index == index,
                    Record::Frontend(r) => r.service_port == index,
                    Record::Backend(r) => r.service_port == index,
                    Record::SourceRange(r) => r.service_port == index,
                    Record::Network(_) | Record::Settings(_) => false,
                };
                let rows = self.rows.iter().filter(|(_, record)| belongs(record));
                rows.map(|(key, _)| key.clone()).collect()
            }
            _ => vec![self.read(text)?.key()],
        };
        for key in &keys {
            if self.rows.remove(key).is_none() {
                return Err(format!("\"{text}\" is not in the tables"));
            }
        }
        Ok(keys)
    }

    fn read(&self, text: &str) -> Result<Record, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(match words[..] {
            ["service", name, protocol, ref rest @ ..] => self.read_service(name, protocol, rest)?,
            [
                kind @ ("cluster-ip" | "external-ip" | "load-balancer-ip"),
                name,
                address,
            ] => {
                let kind = match kind {
                    "cluster-ip" => FrontendKind::ClusterIp,
                    "external-ip" => FrontendKind::ExternalIp,
                    _ => FrontendKind::LoadBalancerIp,
                };
                let address = socket(address)?;
                self.frontend(name, kind, address.ip(), address.port())?
            }
            ["node-port", name, port] => {
                // "30080" on the IPv4 addresses, "[::]:30080" on the IPv6 ones.
                let every = match port.parse() {
                    Ok(port) => SocketAddr::from(([0; 4], port)),
                    Err(_) => socket(port)?,
                };
                self.frontend(name, FrontendKind::NodePort, every.ip(), every.port())?
            }
            ["backend", name, address, ref rest @ ..] => self.backend(name, socket(address)?, rest)?,
            ["network", kind, network] => Record::Network(NetworkRecord {
                kind: match kind {
                    "pods" => NetworkKind::PodRange,
                    "services" => NetworkKind::ServiceRange,
                    "node-ports" => NetworkKind::NodePortAddresses,
                    _ => {
                        return Err(format!(
                            "\"{kind}\" is no kind of network: pods, services, node-ports"
                        ));
                    }
                },
                network: network
                    .parse()
                    .map_err(|_| format!("\"{network}\" is no network"))?,
            }),
            ["source-range", name, network] => Record::SourceRange(SourceRangeRecord {
                service_port: self.service(name)?.index,
                network: network
                    .parse()
                    .map_err(|_| format!("\"{network}\" is no network"))?,
            }),
            ["settings", ref rest @ ..] => settings(rest)?,
            _ => return Err(format!("\"{text}\" is no table record")),
        })
    }

    fn read_service(&self, name: &str, protocol: &str, rest: &[&str]) -> Result<Record, String> {
        let known = self.services.get(name).map(|service| service.index);
        let mut record = ServicePortRecord {
            index: known.unwrap_or(ServicePortIndex(self.first + self.services.len() as u32)),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            port_name: String::new(),
            protocol: match protocol {
                "tcp" => Protocol::TCP,
                "udp" => Protocol::UDP,
                "sctp" => Protocol::SCTP,
                _ => return Err(format!("\"{protocol}\" is no protocol: tcp, udp, sctp")),
            },
            algorithm: Algorithm::Random,
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
        };
        let mut words = rest.iter();
        while let Some(word) = words.next() {
            match *word {
                "affinity" => {
                    let seconds = words.next().and_then(|time| time.strip_suffix('s')?.parse().ok());
                    record.affinity_seconds = seconds.ok_or("write affinity 60s")?;
                }
                "random" => record.algorithm = Algorithm::Random,
                "maglev" => record.algorithm = Algorithm::Maglev,
                "round-robin" => record.algorithm = Algorithm::RoundRobin,
                "least-connections" => record.algorithm = Algorithm::LeastConnections,
                "external-local" => record.external_local = true,
                "internal-local" => record.internal_local = true,
                _ => return Err(format!("\"{word}\" says nothing about a service")),
            }
        }
        Ok(Record::ServicePort(record))
    }

    fn frontend(&self, name: &str, kind: FrontendKind, address: IpAddr, port: u16) -> Result<Record, String> {
        let service = self.service(name)?;
        let (protocol, service_port) = (service.protocol, service.index);
        Ok(Record::Frontend(FrontendRecord {
            address,
            protocol,
            port,
            kind,
            service_port,
        }))
    }

    fn backend(&self, name: &str, address: SocketAddr, rest: &[&str]) -> Result<Record, String> {
        if let Some(word) = rest.iter().find(|word| !BACKEND_WORDS.contains(word)) {
            return Err(format!(
                "\"{word}\" says nothing about a backend: {}",
                BACKEND_WORDS.join(", ")
            ));
        }
        let [local, terminating, unready, not_serving, cluster, near, none] =
            BACKEND_WORDS.map(|word| rest.contains(&word));
        let ready = !(terminating || unready || not_serving);
        // As control finds them where it falls back, follows hints, or counts others as local.
        let told = cluster || near || none;
        Ok(Record::Backend(BackendRecord {
            service_port: self.service(name)?.index,
            address: address.ip(),
            port: address.port(),
            in_cluster_set: if told { cluster } else { ready },
            in_local_set: if told { near } else { ready && local },
            // CAT-7: ready, or serving and terminating.
            usable: ready || (terminating && !not_serving),
            serving: !not_serving,
            local,
        }))
    }

    fn service(&self, name: &str) -> Result<&ServicePortRecord, String> {
        self.services
            .get(name)
            .ok_or_else(|| format!("no service {name} in the tables"))
    }
}

fn settings(words: &[&str]) -> Result<Record, String> {
    let mut record = SettingsRecord::default();
    for word in words {
        match *word {
            "masquerade-all" => record.masquerade_all = true,
            "ping-replies" => record.ping_replies = true,
            "undefined-ports-drop" => record.undefined_ports = UndefinedPorts::Drop,
            "undefined-ports-reject" => record.undefined_ports = UndefinedPorts::Reject,
            _ => return Err(format!("\"{word}\" is no setting")),
        }
    }
    Ok(Record::Settings(record))
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("\"{text}\" is no address and port"))
}

#[test]
fn deleting_a_service_deletes_all_that_belongs_to_it_and_nothing_else() {
    let mut records = Records::default();
    for line in [
        "service a tcp",
        "service b udp",
        "cluster-ip a 10.96.0.1:80",
        "backend a 10.0.0.1:80",
        "node-port b 30053",
    ] {
        records.put(line).unwrap();
    }
    assert_eq!(
        records
            .transaction("delete service a, put settings")
            .unwrap()
            .deletes
            .len(),
        3
    );
    assert_eq!(records.rows.len(), 3);
    assert!(
        records
            .transaction("delete backend a 10.0.0.1:80")
            .unwrap_err()
            .contains("not in the tables")
    );
    assert!(
        records
            .put("backend c 10.0.0.1:80")
            .unwrap_err()
            .contains("no service c")
    );
}
