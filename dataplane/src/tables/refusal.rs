//! Why a transaction is refused, in words that reach the person who runs control.

use std::fmt;

use thiserror::Error;

use crate::addr::Protocol;
use crate::channel::record::Key;
use crate::index::ServicePortIndex;

/// Why a transaction was refused. It changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Its number is not greater than that of the tables in force.
    #[error(
        "generation {offered} is not after {current}, which is in force; ask for the present state and send the difference to it"
    )]
    OldGeneration {
        /// In force.
        current: u64,
        /// In the transaction.
        offered: u64,
    },
    /// A delete of a row that is not there, or not there any more.
    #[error("{} cannot be deleted: there is no such row; ask for the present state and send the difference to it", Named(.0))]
    UnknownKey(Key),
    /// More rows than the tables hold.
    #[error(
        "{wanted} {what} are more than the {limit} this dataplane has room for; raise its limit or remove some"
    )]
    LimitExceeded {
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// How many there would be.
        wanted: usize,
    },
    /// A service port's index is not below the limit.
    #[error(
        "service port {index} is outside 0 to {limit} (exclusive); control numbers service ports densely from 0"
    )]
    IndexOutOfRange {
        /// The index.
        index: u32,
        /// The limit.
        limit: u32,
    },
    /// A row refers to a service port that does not exist after the transaction.
    #[error("{} refers to service port {}, which does not exist; put it in the same transaction", Named(.key), .service_port.0)]
    NoSuchServicePort {
        /// The row.
        key: Key,
        /// What it refers to.
        service_port: ServicePortIndex,
    },
    /// A service port is deleted, but not what refers to it.
    #[error("service port {} cannot be deleted: {} refers to it; delete that in the same transaction", .service_port.0, Named(.by))]
    StillReferred {
        /// The service port.
        service_port: ServicePortIndex,
        /// A row that refers to it.
        by: Key,
    },
    /// A frontend's protocol is not its service port's.
    #[error("{} is behind service port {}, which is {expected}", Named(.key), .service_port.0)]
    ProtocolMismatch {
        /// The frontend.
        key: Key,
        /// Its service port.
        service_port: ServicePortIndex,
        /// The service port's protocol.
        expected: Protocol,
    },
    /// A field's value is not one it may have.
    #[error("{}: {reason}", Named(.key))]
    BadField {
        /// The row.
        key: Key,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// A key as a person reads it.
struct Named<'a>(&'a Key);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Key::ServicePort(index) => write!(f, "service port {}", index.0),
            Key::Frontend(address, protocol, port) if address.is_unspecified() => {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                write!(f, "{family} node port {port} {protocol}")
            }
            Key::Frontend(address, protocol, port) => {
                write!(f, "frontend {address} port {port} {protocol}")
            }
            Key::Backend(index, address, port) => {
                write!(f, "backend {address} port {port} of service port {}", index.0)
            }
            Key::SourceRange(index, network) => {
                write!(f, "source range {network} of service port {}", index.0)
            }
            Key::Network(kind, network) => write!(f, "network {network} ({kind:?})"),
            Key::Settings => f.write_str("settings"),
        }
    }
}
