//! How long a change of endpoints took from its cause to the dataplane, as kube-proxy measures it: EndpointSlices name the
//! time of their cause in an annotation. Takes the batches of the source and the dataplane's acknowledgement, gives what is
//! told in the log and in the status. Slices that control makes itself name none: a pod's own times are in whole seconds.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::endpoints::SERVICE_NAME;
use crate::manifest::{Body, Key};
use crate::model::ServiceName;
use crate::source::Event;

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What is remembered of causes.
#[derive(Debug)]
pub(super) struct Triggers {
    /// Earlier causes are of changes that somebody else has programmed, or nobody.
    started: Timestamp,
    /// The cause that each slice named last.
    known: HashMap<Key, Timestamp>,
    /// Slices that a reset has said so far, while one is under way.
    said: Option<HashSet<Key>>,
    /// Causes that the dataplane has not acknowledged the effects of, by Service.
    waiting: BTreeMap<ServiceName, Vec<Timestamp>>,
    latency: Latency,
}

/// Network programming latency so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Changes that were measured.
    pub changes: u64,
    /// Of the last update that had such: its longest, in milliseconds.
    pub last_millis: u64,
    /// The longest of all, in milliseconds.
    pub longest_millis: u64,
}

impl Triggers {
    /// Nothing has been heard, and nothing from before `started` will be.
    pub(super) fn new(started: Timestamp) -> Self {
        Self {
            started,
            known: HashMap::new(),
            said: None,
            waiting: BTreeMap::new(),
            latency: Latency::default(),
        }
    }

    /// Takes note of the causes that a batch names. A slice that is deleted names none.
    pub(super) fn hear(&mut self, batch: &[Event]) {
        for event in batch {
            match event {
                Event::Apply(object) => {
                    let Body::EndpointSlice(slice) = &object.body else {
                        continue;
                    };
                    let annotations = slice.metadata.annotations.as_ref();
                    let named = annotations.and_then(|all| all.get(ANNOTATION)?.parse().ok());
                    let labels = slice.metadata.labels.as_ref();
                    let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
                    let (Some(cause), Some(service)) = (named, service) else {
                        continue;
                    };
                    if let Some(said) = &mut self.said {
                        said.insert(object.key.clone());
                    }
                    let before = self.known.insert(object.key.clone(), cause);
                    if cause < self.started || before == Some(cause) {
                        continue;
                    }
                    let service = ServiceName {
                        namespace: object.key.namespace.clone(),
                        name: service.clone(),
                    };
                    self.waiting.entry(service).or_default().push(cause);
                }
                Event::Delete(key) => {
                    self.known.remove(key);
                }
                Event::ResetBegin => self.said = Some(HashSet::new()),
                Event::ResetEnd => {
                    let said = self.said.take().unwrap_or_default();
                    self.known.retain(|key, _| said.contains(key));
                }
                Event::Problems(_) => {}
            }
        }
    }

    /// The dataplane has all there is: how long after their causes, if there were any, in milliseconds for the slowest.
    pub(super) fn acknowledged(&mut self, now: Timestamp) -> Option<u64> {
        let causes = std::mem::take(&mut self.waiting);
        let causes: Vec<Timestamp> = causes.into_values().flatten().collect();
        let first = causes.iter().min()?;
        // Another machine's clock may be ahead of ours.
        let millis = u64::try_from(now.duration_since(*first).as_millis()).unwrap_or(0);
        self.latency.changes += causes.len() as u64;
        self.latency.last_millis = millis;
        self.latency.longest_millis = self.latency.longest_millis.max(millis);
        Some(millis)
    }

    /// What was measured so far.
    pub(super) const fn latency(&self) -> Latency {
        self.latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Kind;
    use crate::model::tests::reset;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(2_000_000_000 + second).unwrap()
    }

    /// A slice of a Service that names its cause, in seconds.
    fn slice(name: &str, service: &str, cause: &str) -> String {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}, annotations: {{{ANNOTATION}: \"{cause}\"}}}}\n\
             addressType: IPv4\nendpoints: []\nports: []\n---\n"
        )
    }

    #[test]
    fn b15_causes_are_collected_by_service_but_for_old_ones_and_deletions() {
        let mut triggers = Triggers::new(at(0));
        let (early, first, second) = (at(-1).to_string(), at(1).to_string(), at(2).to_string());
        let text = [
            slice("a-1", "a", &first),
            slice("a-2", "a", &second),
            slice("b-1", "b", &second),
            slice("c-1", "c", &early),
            slice("d-1", "d", "yesterday"),
        ];
        triggers.hear(&reset(&text.concat()));
        let name = |name: &str| ServiceName {
            namespace: "default".into(),
            name: name.into(),
        };
        let waiting = BTreeMap::from([(name("a"), vec![at(1), at(2)]), (name("b"), vec![at(2)])]);
        assert_eq!(triggers.waiting, waiting);
        // The same again is no change, and who is deleted has no cause.
        let mut again = reset(&text.concat());
        again.push(Event::Delete(Key {
            kind: Kind::EndpointSlice,
            namespace: "default".into(),
            name: "a-1".into(),
        }));
        triggers.hear(&again);
        assert_eq!(triggers.waiting, waiting);
        assert_eq!(triggers.acknowledged(at(4)), Some(3000));
        assert_eq!(triggers.acknowledged(at(9)), None, "told once");
        triggers.hear(&reset(&slice("a-2", "a", &at(8).to_string())));
        assert_eq!(triggers.acknowledged(at(7)), Some(0), "a clock that is ahead");
        let latency = Latency {
            changes: 4,
            last_millis: 0,
            longest_millis: 3000,
        };
        assert_eq!(triggers.latency(), latency);
        let known: Vec<_> = triggers.known.keys().map(|key| key.name.as_str()).collect();
        assert_eq!(known, ["a-2"], "all there is");
    }
}
