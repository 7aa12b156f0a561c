//! Records that our judgement differs from on purpose, why, and what ours is.

use serde_json::Value;

const BEFORE: &str =
    "the server allocates before it validates, and what it then says hides the mistake; ours validates first";
const LEAKED: &str = "the record before left the first address reserved; ours leaks nothing";
const FINALIZERS: &str = "finalizers mean nothing in a folder";
const KUBERNETES: &str = "a folder has no Service `kubernetes` of its own";
/// What ours says where it differs by accepting.
pub(super) const ACCEPTED: &str = "accepted";

/// What differs on purpose, why, and what ours says.
pub(super) const DIFFERENT: &[(&str, &str, &str)] = &[
    ("names/name-empty", BEFORE, "metadata.name 400"),
    ("names/name-missing", BEFORE, "metadata.name 400"),
    ("names/name-percent", BEFORE, "metadata.name Invalid"),
    (
        "several/multi-5",
        BEFORE,
        "spec.clusterIPs[0] Invalid, spec.externalTrafficPolicy NotSupported, spec.internalTrafficPolicy NotSupported, \
         spec.ports[0].name Invalid, spec.ports[0].targetPort Invalid",
    ),
    (
        "node-port/nodeport-share-same-proto",
        BEFORE,
        "spec.ports[1].nodePort Duplicate",
    ),
    (
        "metadata/meta-finalizer-bad",
        "the server finds a finalizer's name wrong as one of a list, too",
        "metadata.finalizers[0] Invalid",
    ),
    ("metadata/meta-finalizer-unqualified", FINALIZERS, ACCEPTED),
    ("dual-stack/ds-ip-taken-kubernetes", KUBERNETES, ACCEPTED),
    ("single-stack/ds-ip-taken-kubernetes", KUBERNETES, ACCEPTED),
    ("dual-stack/ds-families-one-ips-two", LEAKED, ACCEPTED),
    (
        "decode/decode-no-kind",
        "the server knows the kind by the URL, a file has only the text",
        "kind 400",
    ),
];

pub(super) fn out_of_scope(record: &Value) -> Option<&'static str> {
    let text = record["manifest"].as_str().unwrap();
    let expect = &record["expect"];
    if record.get("given").is_some() && expect["code"] == 409 || expect["code"] == 404 {
        Some("a folder has no create that could fail because the object, or not the namespace, exists")
    } else if text.contains("generateName")
        || text.contains("resourceVersion")
        || text.contains("ownerReferences")
    {
        Some("metadata that only an API server makes or reads")
    } else if text.matches("---").count() > 0 {
        Some("the server takes one document, a file several")
    } else {
        None
    }
}

const AGAIN: &str =
    "a file is read anew after a restart, with no Service before it: what is wrong in itself stays wrong";
const VERSIONS: &str = "a folder has no uids and no resource versions";

/// Updates that differ on purpose, why, and what ours says.
pub(super) const UPDATES: &[(&str, &str, &str)] = &[
    (
        "ds-downgrade-families-still-two",
        AGAIN,
        "spec.ipFamilyPolicy Invalid",
    ),
    (
        "nodeport-to-clusterip-keep-nodeport",
        AGAIN,
        "spec.ports[0].nodePort Forbidden",
    ),
    (
        "lb-class-to-nodeport-kept",
        AGAIN,
        "spec.loadBalancerClass Forbidden",
    ),
    ("etp-extip-removed", AGAIN, "spec.externalTrafficPolicy Invalid"),
    ("to-externalname-ip-kept", AGAIN, "spec.clusterIPs Forbidden"),
    ("name-mismatch-uid", VERSIONS, ACCEPTED),
    ("stale-resourceversion", VERSIONS, ACCEPTED),
];
