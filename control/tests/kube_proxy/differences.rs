//! Where we differ from kube-proxy 1.36.2 on purpose (section 14 of the semantics).

use crate::ledger::Difference;

/// A pod behind another node reaches itself through the gateway.
const HAIRPIN: Difference = Difference {
    reason: "TP-5: a pod behind another node that reaches itself is masqueraded, and so gets its answer",
    applies: |_, recorded| recorded.contains("client-kept-no-reply-possible"),
    ours: |_, recorded| recorded.replace("client-kept-no-reply-possible", "node-primary"),
};

/// `matrix.jsonl`.
pub(crate) mod matrix {
    use super::{Difference, HAIRPIN};

    pub(crate) const ON_PURPOSE: &[Difference] = &[HAIRPIN];
}

/// `variants.jsonl`.
pub(crate) mod variants {
    use super::{Difference, HAIRPIN};

    pub(crate) const ON_PURPOSE: &[Difference] = &[HAIRPIN];
}

/// `rules.jsonl`.
pub(crate) mod rules {
    use super::{Difference, HAIRPIN, test};

    pub(crate) const ON_PURPOSE: &[Difference] = &[
        HAIRPIN,
        Difference {
            reason: "CT-14: nothing leaves untranslated: what opens no connection and belongs to none is dropped",
            applies: |row, recorded| {
                let invalid = [
                    "FIN+ACK",
                    "TCP RST",
                    "flags=0",
                    "SYN+FIN",
                    "ICMP error matching no flow, sent to clusterIP",
                    "wrong checksum to an undefined port",
                ];
                recorded.starts_with("passed on") && invalid.iter().any(|part| test(row, part))
            },
            ours: |_, _| "silence".into(),
        },
        Difference {
            reason: "CSM-1: checksums are carried, not judged: a wrong one is as wrong at the endpoint",
            applies: |row, _| test(row, "wrong checksum to a live port"),
            ours: |_, _| "translated, its checksum as wrong as before".into(),
        },
        Difference {
            reason: "RJ-1: protocols without ports are dropped at cluster IPs, whether or not Linux can check them",
            applies: |row, recorded| test(row, "other IP protocol") && recorded != "silence",
            ours: |_, _| "silence".into(),
        },
        Difference {
            reason: "CT-9: UDP flows end with their Service",
            applies: |row, _| test(row, "service-proxy-name label added at run time"),
            ours: |_, recorded| recorded.replace("goes on", "silence"),
        },
    ];
}

/// Whether the name of a row's test has this in it.
fn test(row: &crate::ledger::Row, part: &str) -> bool {
    row.text("test").contains(part)
}

/// `updates.jsonl`.
pub(crate) mod updates {
    use super::Difference;

    /// The UDP flow of the row takes part in what becomes of new ones.
    fn as_new(recorded: &str) -> String {
        let new = recorded.rsplit_once("new: ").map_or("", |(_, new)| new);
        recorded.replacen("UDP first, first", &format!("UDP first, {new}"), 1)
    }

    fn case(row: &crate::ledger::Row, part: &str) -> bool {
        row.text("case").contains(part)
    }

    pub(crate) const ON_PURPOSE: &[Difference] = &[
        Difference {
            reason: "CT-9: UDP flows end with their Service (1.36.2 keeps them)",
            applies: |row, _| case(row, "Service deleted") && !case(row, "recreated"),
            ours: |_, recorded| as_new(recorded),
        },
        Difference {
            reason: "CT-8: UDP flows end with the last serving endpoint (1.36.2 keeps them), and find one when it is back",
            applies: |row, _| case(row, "scaled to zero") || case(row, "single endpoint becomes not ready"),
            ours: |_, recorded| as_new(recorded).replacen("refused, first", "refused, served", 1),
        },
        Difference {
            reason: "CT-8, CT-9: while there is no serving endpoint, or no Service, a UDP flow has none (1.36.2 keeps the old one)",
            applies: |row, _| case(row, "a replacement appears") || case(row, "deleted and recreated"),
            ours: |row, recorded| {
                let meanwhile = if case(row, "deleted") {
                    "no answer"
                } else {
                    "refused"
                };
                recorded.replacen(
                    "UDP first, another",
                    &format!("UDP first, {meanwhile}, another"),
                    1,
                )
            },
        },
        Difference {
            reason: "GT-7: the Service and its endpoints were one update there, since they came within a second; here they are two",
            applies: |row, recorded| {
                row.text("frontend") == "lbIP" && recorded.starts_with("UDP no answer, first")
            },
            ours: |_, recorded| recorded.replacen("no answer, first", "no answer, refused, first", 1),
        },
        Difference {
            reason: "CT-8: UDP flows end when the last endpoint, which was terminating, is gone",
            applies: |row, _| case(row, "single endpoint becomes terminating and serving"),
            ours: |_, recorded| recorded.replacen("UDP first, first, first", "UDP first, first, refused", 1),
        },
    ];
}

/// `affinity.jsonl`.
pub(crate) mod affinity {
    use super::Difference;

    pub(crate) const ON_PURPOSE: &[Difference] = &[Difference {
        reason: "AFF-4: flows that must stay local and flows that need not are remembered apart",
        applies: |row, _| row.text("test").starts_with("external clients alternate"),
        ours: |_, recorded| recorded.replace("keep theirs: false", "keep theirs: true"),
    }];
}

/// `flows.jsonl`.
pub(crate) mod flows {
    use super::{Difference, test};

    pub(crate) const ON_PURPOSE: &[Difference] = &[
        Difference {
            reason: "TP-6: source ports are ours to choose, and none is below 1024",
            applies: |row, _| test(row, "SNAT source port for low client ports"),
            ours: |_, recorded| recorded.replace("a low port for a low port", "no low port"),
        },
        Difference {
            reason: "TP-6: what is only routed is not tracked, so a port that a pod also uses towards the endpoint itself is kept",
            applies: |row, _| test(row, "used directly to the endpoint"),
            ours: |_, _| "client-kept #0, client-kept #0, mixed up".into(),
        },
        Difference {
            reason: "FRG-1: nothing is put together here: a fragment that comes twice leaves twice",
            applies: |row, _| row.text("order").starts_with("duplicate"),
            ours: |_, recorded| recorded.replacen("3 pieces", "4 pieces", 1),
        },
        Difference {
            reason: "FRG-1: nothing is put together here: a datagram that is never whole leaves as far as it came",
            applies: |row, _| row.text("order") == "missing the last",
            ours: |_, _| "incomplete".into(),
        },
    ];
}
