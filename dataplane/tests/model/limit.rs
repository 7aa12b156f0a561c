//! RJ-3: how many answers may be sent. One worker's buckets are known exactly; with several, each has its own, so all
//! of them together let through at least what one would.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Answers at once to one destination; one comes back a second.
const DESTINATION: i64 = 6;
/// Answers at once to all: Linux' burst of 50, and what its 1000 a second are in the eighth of a second that is an instant.
const ALL: i64 = 175;

pub struct Limiter {
    exact: bool,
    all: (i64, u64),
    destinations: BTreeMap<IpAddr, (i64, u64)>,
}

impl Limiter {
    pub const fn new(workers: usize) -> Self {
        Self {
            exact: workers == 1,
            all: (ALL, 0),
            destinations: BTreeMap::new(),
        }
    }

    /// Whether an answer goes out; `answered`: it was seen that it did.
    pub fn allows(&mut self, destination: IpAddr, now: u64, answered: bool) -> bool {
        let (all, filled) = &mut self.all;
        *all = (*all + 1000 * (now - *filled) as i64).min(ALL);
        *filled = now;
        let (tokens, filled) = self.destinations.entry(destination).or_insert((DESTINATION, now));
        *tokens = (*tokens + (now - *filled) as i64).min(DESTINATION);
        *filled = now;
        let due = *all > 0 && *tokens > 0;
        let allowed = due || !self.exact && answered;
        if allowed {
            *all -= 1;
            *tokens -= 1;
        }
        allowed
    }
}
