//! Which endpoints clients had (AFF-1 to AFF-8), for those that are to have the same again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::tables::{BackendName, Tables};

/// Service, Local set or not, address (AFF-3).
type Client = (&'static str, bool, IpAddr);

/// What counts of what is remembered of a client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Known {
    Nothing,
    /// Something, or nothing that counts any more.
    Unseen,
    Endpoint(BackendName),
}

/// What is remembered of a client.
struct Remembered {
    /// None if it was not seen, because the flow was not opened.
    endpoint: Option<(BackendName, u64)>,
    /// The last new flow (AFF-1).
    at: u64,
}

#[derive(Default)]
pub struct Affinity(BTreeMap<Client, Remembered>);

impl Affinity {
    /// What counts now: it is fresh, and the very endpoint is in the set (AFF-4).
    pub fn known(
        &self,
        client: Client,
        timeout: u64,
        now: u64,
        tables: &Tables,
        set: &BTreeSet<BackendName>,
    ) -> Known {
        let fresh = |remembered: &&Remembered| now - remembered.at < timeout;
        match self.0.get(&client).filter(fresh).map(|known| known.endpoint) {
            None => Known::Nothing,
            Some(None) => Known::Unseen,
            Some(Some((name, life))) if set.contains(&name) && tables.backends[&name].life == life => {
                Known::Endpoint(name)
            }
            Some(Some(_)) => Known::Nothing,
        }
    }

    /// A new flow, which went to `chosen` if that was seen.
    pub fn note(
        &mut self,
        client: Client,
        known: Known,
        chosen: Option<BackendName>,
        now: u64,
        tables: &Tables,
    ) {
        let name = match known {
            Known::Endpoint(name) => Some(name),
            Known::Nothing | Known::Unseen => chosen,
        };
        let endpoint = name.and_then(|name| Some((name, tables.backends.get(&name)?.life)));
        self.0.insert(client, Remembered { endpoint, at: now });
    }
}
