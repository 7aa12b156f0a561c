//! Address families: those a cluster has, and their names in Kubernetes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// That of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::V4, Self::V6]
            .into_iter()
            .find(|family| family.name() == name)
    }

    /// Its name in objects.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The address of this number.
    pub(crate) fn address(self, number: u128) -> Option<IpAddr> {
        match self {
            Self::V4 => Some(Ipv4Addr::from(u32::try_from(number).ok()?).into()),
            Self::V6 => Some(Ipv6Addr::from(number).into()),
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The families that a cluster has Services of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// That of a Service that names none (DS-3).
    pub primary: Family,
    /// Whether there is the other one, too.
    pub dual: bool,
}

impl Families {
    /// Whether it has Services of `family`.
    pub fn has(self, family: Family) -> bool {
        self.dual || family == self.primary
    }
}

/// As in "this cluster has IPv4 only".
impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dual {
            true => write!(f, "{} and {}", self.primary, self.primary.other()),
            false => write!(f, "{} only", self.primary),
        }
    }
}
