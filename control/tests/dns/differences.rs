//! Where our answers differ from CoreDNS's on purpose: why, and what ours are, in the records' form.

use serde_json::{Value, json};

const EXISTS: &str = "a name that exists is NODATA for types it lacks (RFC 2308 §2.2), and one above an existing name is no NXDOMAIN (RFC 8020)";
const MISSING: &str = "a name that does not exist is NXDOMAIN for every type (RFC 2308 §2.1)";
const REVERSE: &str =
    "we know single addresses, and leave the rest of in-addr.arpa and ip6.arpa to those who have it";
const CLASS: &str = "we have nothing of other classes than IN";
const DANGLING: &str = "an endpoint of no Service has no name, so its address has none";
const ROOM: &str = "the DNS library needs room for a whole name before it points to an earlier one";
const EXTRA: &str = "what does not fit of the additional section is left out without TC (RFC 2181 §9); no name points into an SRV record";

/// Reasons, our answers, and the questions that get them.
type Difference = (&'static str, fn() -> Value, &'static [&'static str]);

const DIFFERENCES: &[Difference] = &[
    (
        EXISTS,
        || ours("NOERROR"),
        &[
            "svc.cluster.local. TXT",
            "default.svc.cluster.local. TXT",
            "default.pod.cluster.local. TXT",
            "dns-version.cluster.local. A",
            "dns-version.cluster.local. AAAA",
            "dns-version.cluster.local. SRV",
            "dns-version.cluster.local. ANY",
            "ns.dns.cluster.local. TXT",
            "dns.cluster.local. A",
        ],
    ),
    (
        MISSING,
        || ours("NXDOMAIN"),
        &[
            "nosuch.svc.cluster.local. SOA",
            "foo.cluster.local. SOA",
            "nosuch.default.svc.cluster.local. SOA",
        ],
    ),
    (
        REVERSE,
        upstreams,
        &[
            "1.1.96.10.in-addr.arpa. SOA",
            "96.10.in-addr.arpa. SOA",
            "10.in-addr.arpa. SOA",
            "in-addr.arpa. SOA",
            "in-addr.arpa. NS",
            "in-addr.arpa. A",
            "ip6.arpa. SOA",
            "ip6.arpa. NS",
        ],
    ),
    (
        CLASS,
        || json!({"rcode": "REFUSED", "flags": ["RD"]}),
        &[
            "web.default.svc.cluster.local. A, class CH",
            "version.bind. TXT, class CH",
        ],
    ),
    (
        DANGLING,
        upstreams,
        &["1.5.244.10.in-addr.arpa. PTR", "2.5.244.10.in-addr.arpa. PTR"],
    ),
    (ROOM, || cut(28), &["big.default.svc.cluster.local. A"]),
    (ROOM, || cut(27), &["big.default.svc.cluster.local. A, EDNS 512"]),
    (ROOM, || cut(72), &["big.default.svc.cluster.local. A, EDNS 1232"]),
    (EXTRA, headless, &["hl-dual.default.svc.cluster.local. SRV"]),
];

/// No data, or no such name, of our own zone.
fn ours(code: &str) -> Value {
    let soa =
        "cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. <serial> 7200 1800 86400 30";
    json!({"rcode": code, "flags": ["AA", "RD"], "authority": [soa]})
}

/// What the upstream server says of names that it does not know.
fn upstreams() -> Value {
    let soa = "upstream.test. 300 SOA ns.upstream.test. h.upstream.test. 1 7200 1800 86400 30";
    json!({"rcode": "NXDOMAIN", "flags": ["RD", "RA"], "authority": [soa]})
}

/// An answer of addresses that is cut after so many.
fn cut(answers: u64) -> Value {
    json!({"rcode": "NOERROR", "flags": ["AA", "TC", "RD"], "answerCount": answers})
}

/// All records of the answer; of the four addresses beside it one has no room.
fn headless() -> Value {
    let of = "hl-dual.default.svc.cluster.local.";
    let names = ["d-0", "d-1", "fd00-244--72"];
    let service = |port: u16, name: &str| format!("{of} 30 SRV 0 12 {port} {name}.{of}");
    let services = [5353, 8080].map(|port| names.map(|name| service(port, name)));
    json!({
        "rcode": "NOERROR", "flags": ["AA", "RD"], "answer": services.concat(),
        "additional": [
            format!("d-0.{of} 30 A 10.244.3.71"),
            format!("d-0.{of} 30 AAAA fd00:244::71"),
            format!("fd00-244--72.{of} 30 AAAA fd00:244::72"),
        ],
    })
}

/// Why the answer to this question differs, and what it is.
pub(super) fn of(id: &str) -> Option<(&'static str, Value)> {
    let mut all = DIFFERENCES.iter();
    let (reason, ours, _) = all.find(|(_, _, ids)| ids.contains(&id))?;
    Some((reason, ours()))
}

/// The questions of all differences.
pub(super) fn ids() -> impl Iterator<Item = &'static str> {
    DIFFERENCES.iter().flat_map(|(_, _, ids)| ids.iter().copied())
}
