//! What can happen, as a person writes it in a golden vector, and what it does to the model's tables.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::bytes::{TCP, UDP};
use super::tables::{Backend, BackendName, Kind, Prefix, Service, Tables};
use crate::support::packet::{Side, dissect};
use crate::support::records::BACKEND_WORDS;
use crate::support::station::Port;

#[derive(Clone, Debug)]
pub enum Step {
    /// Frames, received in one burst.
    Frames(Port, usize, Vec<Vec<u8>>),
    Change(Change),
    Wait(u32),
}

#[derive(Clone, Debug)]
pub enum Change {
    Service(&'static str, Service),
    DeleteService(&'static str),
    /// Kind's word, service, address (unspecified: a node port), port.
    Frontend(&'static str, &'static str, IpAddr, u16),
    DeleteFrontend(&'static str, &'static str, IpAddr, u16),
    SourceRange(&'static str, Prefix),
    DeleteSourceRange(&'static str, Prefix),
    /// By `BACKEND_WORDS`.
    Backend(BackendName, [bool; 7]),
    DeleteBackend(BackendName),
    Network(&'static str, Prefix),
    DeleteNetwork(&'static str, Prefix),
    /// Masquerade all, and what becomes of undefined ports, by `UNDEFINED`.
    Settings(bool, usize),
}

/// VD-6: passed on, dropped, refused.
pub const UNDEFINED: [&str; 3] = ["", " undefined-ports-drop", " undefined-ports-reject"];

fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "sctp",
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frontend = |kind: &str, service: &str, address: &IpAddr, port: u16| {
            format!("{kind} {service} {}", SocketAddr::new(*address, port))
        };
        match self {
            Self::Service(name, service) => {
                let Service {
                    protocol, algorithm, ..
                } = service;
                write!(f, "put service {name} {} {algorithm}", protocol_name(*protocol))?;
                f.write_str(if service.external_local {
                    " external-local"
                } else {
                    ""
                })?;
                f.write_str(if service.internal_local {
                    " internal-local"
                } else {
                    ""
                })?;
                match service.affinity {
                    0 => Ok(()),
                    seconds => write!(f, " affinity {seconds}s"),
                }
            }
            Self::DeleteService(name) => write!(f, "delete service {name}"),
            Self::Frontend(kind, service, address, port) => {
                write!(f, "put {}", frontend(kind, service, address, *port))
            }
            Self::DeleteFrontend(kind, service, address, port) => {
                write!(f, "delete {}", frontend(kind, service, address, *port))
            }
            Self::Backend((service, address, port), states) => {
                write!(f, "put backend {service} {}", SocketAddr::new(*address, *port))?;
                let words = BACKEND_WORDS.iter().zip(states).filter(|(_, is)| **is);
                words.into_iter().try_for_each(|(word, _)| write!(f, " {word}"))
            }
            Self::DeleteBackend((service, address, port)) => {
                write!(f, "delete backend {service} {}", SocketAddr::new(*address, *port))
            }
            Self::SourceRange(service, (address, len)) => {
                write!(f, "put source-range {service} {address}/{len}")
            }
            Self::DeleteSourceRange(service, (address, len)) => {
                write!(f, "delete source-range {service} {address}/{len}")
            }
            Self::Network(kind, (address, len)) => write!(f, "put network {kind} {address}/{len}"),
            Self::DeleteNetwork(kind, (address, len)) => write!(f, "delete network {kind} {address}/{len}"),
            Self::Settings(all, undefined) => {
                let all = if *all { " masquerade-all" } else { "" };
                write!(f, "put settings{all}{}", UNDEFINED[*undefined])
            }
        }
    }
}

impl Change {
    /// Whether it can happen to these tables: what refers to something needs it, what is deleted must be there.
    pub fn fits(&self, tables: &Tables) -> bool {
        match self {
            Self::Service(..) | Self::Settings(..) => true,
            Self::DeleteService(name) | Self::Frontend(_, name, ..) | Self::Backend((name, ..), _) => {
                tables.services.contains_key(name)
            }
            Self::SourceRange(name, range) => {
                tables.services.contains_key(name) && !tables.source_ranges.contains(&(*name, *range))
            }
            Self::DeleteSourceRange(name, range) => tables.source_ranges.contains(&(*name, *range)),
            Self::DeleteFrontend(_, name, address, port) => {
                tables.services.get(name).is_some_and(|service| {
                    tables
                        .frontends
                        .get(&(*address, service.protocol, *port))
                        .is_some_and(|(_, of)| of == name)
                })
            }
            Self::DeleteBackend(name) => tables.backends.contains_key(name),
            Self::Network(kind, prefix) => !networks(tables, kind).contains(prefix),
            Self::DeleteNetwork(kind, prefix) => networks(tables, kind).contains(prefix),
        }
    }

    pub fn apply(&self, tables: &mut Tables) {
        match self {
            Self::Service(name, service) => drop(tables.services.insert(name, service.clone())),
            Self::DeleteService(name) => {
                tables.services.remove(name);
                tables.frontends.retain(|_, (_, of)| of != name);
                tables.backends.retain(|(of, ..), _| of != name);
                tables.source_ranges.retain(|(of, _)| of != name);
            }
            Self::Frontend(kind, name, address, port) => {
                let protocol = tables.services[name].protocol;
                let kind = match *kind {
                    "cluster-ip" => Kind::Cluster,
                    "load-balancer-ip" => Kind::LoadBalancer,
                    _ => Kind::External,
                };
                tables.frontends.insert((*address, protocol, *port), (kind, name));
            }
            Self::DeleteFrontend(_, name, address, port) => {
                let protocol = tables.services[name].protocol;
                tables.frontends.remove(&(*address, protocol, *port));
            }
            Self::Backend(name, [local, terminating, unready, not_serving, cluster, near, none]) => {
                let ready = !(*terminating || *unready || *not_serving);
                let usable = ready || *terminating && !*not_serving;
                tables.put_backend(
                    *name,
                    Backend {
                        sets: if *cluster || *near || *none {
                            [*cluster, *near]
                        } else {
                            [ready, ready && *local]
                        },
                        usable,
                        serving: !not_serving,
                        life: 0,
                    },
                );
            }
            Self::DeleteBackend(name) => drop(tables.backends.remove(name)),
            Self::SourceRange(name, range) => tables.source_ranges.push((name, *range)),
            Self::DeleteSourceRange(name, range) => {
                tables.source_ranges.retain(|known| *known != (*name, *range));
            }
            Self::Network(kind, prefix) => networks_mut(tables, kind).push(*prefix),
            Self::DeleteNetwork(kind, prefix) => networks_mut(tables, kind).retain(|known| known != prefix),
            Self::Settings(all, undefined) => {
                (tables.masquerade_all, tables.undefined_ports) = (*all, *undefined)
            }
        }
    }
}

fn networks<'a>(tables: &'a Tables, kind: &str) -> &'a [Prefix] {
    match kind {
        "pods" => &tables.pods,
        "services" => &tables.service_ranges,
        _ => &tables.node_port_networks,
    }
}

fn networks_mut<'a>(tables: &'a mut Tables, kind: &str) -> &'a mut Vec<Prefix> {
    match kind {
        "pods" => &mut tables.pods,
        "services" => &mut tables.service_ranges,
        _ => &mut tables.node_port_networks,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(port, queue, frames) => {
                let line = |frame: &Vec<u8>| {
                    let bytes: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
                    format!("{port}/{queue} > {}   # {bytes}", dissect(frame, *port, Side::In))
                };
                f.write_str(&frames.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
            Self::Change(change) => write!(f, "tables {change}"),
            Self::Wait(seconds) => write!(f, "wait {seconds}s"),
        }
    }
}
