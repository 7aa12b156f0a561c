//! ICMP errors about translated flows (ICM-1, TTL-1): who seems to have sent them, and what they quote.

use serde_json::Value;

use crate::bench::{CLOSED, REMOTE, Talk, bench, client, family};
use crate::ledger::Row;
use crate::packet::{ACK, ICMP, ICMPV6, Packet, SYN};
use crate::topology::{Family, Station, ip, named};

/// An ICMP error in terms of its flow: `C` the client, `F` the frontend.
fn line(error: &Packet, sent: &Packet) -> String {
    let whole = sent.src.is_ipv4();
    let quote = error.transport.get(8..).unwrap_or_default();
    let Some(inner) = Packet::parse(quote) else {
        return format!("quotes no packet: {error:?}");
    };
    let name = |address: std::net::IpAddr| match address {
        _ if address == sent.src => "C".to_owned(),
        _ if address == sent.dst => "F".to_owned(),
        other => other.to_string(),
    };
    // IPv4 quotes 548 bytes of the original, IPv6 1,232, or all there is.
    let most = if whole { 548 } else { 1232 };
    format!(
        "{}/{} from {} to {}, {}, {} quotes {}:{} > {}:{}, {}",
        error.transport[0],
        error.transport[1],
        name(error.src),
        name(error.dst),
        error.number(6),
        if error.is_sound() {
            "soundly"
        } else {
            "with a wrong checksum"
        },
        name(inner.src),
        if inner.sport() == sent.sport() {
            "same".to_owned()
        } else {
            inner.sport().to_string()
        },
        name(inner.dst),
        if inner.dport() == sent.dport() {
            "same".to_owned()
        } else {
            inner.dport().to_string()
        },
        if quote.len() == sent.len().min(most) {
            "all"
        } else {
            "less"
        },
    )
}

/// The recorded error at the client, in the same terms: its first bytes are in the record, the quoted rest is not.
fn recorded(row: &Row) -> String {
    let error = &row.value["icmp_at_client"][0];
    let (outer, inner) = (&error["parsed"], &error["inner"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // The node's own stack was watched before it translated: what came of it is what it knows of the frontend's path.
    let translated = row.text("client") != "node1";
    let (_, address) = client(row);
    let name = |value: &Value| match text(value) {
        _ if !translated => String::new(),
        a if a == address.to_string() => "C".into(),
        _ => "F".into(),
    };
    let either = |name: String, plain: &str| if name.is_empty() { plain.to_owned() } else { name };
    let (len, quoted) = (
        inner["len"].as_u64().unwrap(),
        outer["quoted_hdr_and_data"].as_u64().unwrap(),
    );
    let most = if family(row) == Family::V4 { 548 } else { 1232 };
    let rest = u32::from_str_radix(&text(&outer["rest"]), 16).unwrap_or(0);
    format!(
        "{}/{} from {} to {}, {}, soundly quotes {}:same > {}:same, {}",
        outer["type"],
        outer["code"],
        either(name(&outer["src"]), "F"),
        either(name(&outer["dst"]), "C"),
        rest & 0xffff,
        either(name(&inner["src"]), "C"),
        either(name(&inner["dst"]), "F"),
        if quoted == len.min(most) { "all" } else { "less" },
    )
}

/// An error about `got`, as a router or the endpoint sends it.
fn error(from: std::net::IpAddr, got: &Packet, kind: (u8, u8), rest: u32) -> Packet {
    let (protocol, most) = if got.src.is_ipv4() {
        (ICMP, 548)
    } else {
        (ICMPV6, 1232)
    };
    let mut quote = got.bytes();
    quote.truncate(most);
    let header = [&[kind.0, kind.1, 0, 0][..], &rest.to_be_bytes()].concat();
    Packet::new(from, got.src, protocol, [header, quote].concat())
}

/// What the client gets when `station` sends this error about the packet of a flow.
fn answered(
    cluster: &mut crate::cluster::Cluster,
    station: &Station,
    error: &Packet,
    sent: &Packet,
) -> String {
    match &cluster.bed.send(station, error)[..] {
        [one] => line(&one.packet, sent),
        seen => format!("{} packets", seen.len()),
    }
}

/// Kind and code in this family: unreachable port, too big, expired.
fn kinds(family: Family) -> [(u8, u8); 3] {
    match family {
        Family::V4 => [(3, 3), (3, 4), (11, 0)],
        Family::V6 => [(1, 4), (2, 0), (3, 0)],
    }
}

/// A router behind the gateway has a link of 1,400 bytes.
pub(crate) fn from_a_router(row: &Row) -> (String, String) {
    let (family, (station, address)) = (family(row), client(row));
    let mut cluster = bench();
    let (from, to) = ((address, 28_000), (ip(REMOTE[family as usize]), 80));
    let open = Talk::open(&mut cluster, station, row.text("proto"), from, to);
    let big = match row.text("proto") {
        "TCP" => {
            if let Some(talk) = open {
                talk.answer(&mut cluster, SYN | ACK);
            }
            Packet::tcp(from, to, ACK, &[b'x'; 1400])
        }
        _ => Packet::udp(from, to, &[b'x'; 1420]),
    };
    let ours = Talk::begin(&mut cluster, station, big).map(|talk| {
        let router = named("rtr");
        let error = error(router.address(family), &talk.got, kinds(family)[1], 1400);
        answered(&mut cluster, router, &error, &talk.sent)
    });
    (recorded(row), ours.unwrap_or_else(|| "no flow".into()))
}

pub(crate) fn from_the_endpoint(row: &Row) -> (String, String) {
    let (family, (station, address)) = (family(row), client(row));
    let mut cluster = bench();
    let (from, to) = ((address, 28_200), (ip(CLOSED[family as usize]), 80));
    let ours = Talk::open(&mut cluster, station, "UDP", from, to).map(|talk| {
        let error = error(talk.got.dst, &talk.got, kinds(family)[0], 0);
        answered(&mut cluster, named("r1"), &error, &talk.sent)
    });
    (recorded(row), ours.unwrap_or_else(|| "no flow".into()))
}

/// A datagram that expires here, at the router, or at the node behind it.
pub(crate) fn hop_limit(row: &Row) -> (String, String) {
    let (family, (station, address)) = (family(row), client(row));
    let hops: u8 = row.text("test").rsplit(' ').next().unwrap().parse().unwrap();
    let mut cluster = bench();
    let (from, to) = ((address, 28_300), (ip(REMOTE[family as usize]), 80));
    let sent = Packet {
        hops,
        ..Packet::udp(from, to, b"ttl-test")
    };
    if hops == 1 {
        let ours = match &cluster.bed.send(station, &sent)[..] {
            [one] => line(&one.packet, &sent),
            seen => format!("{} packets", seen.len()),
        };
        return (recorded(row), ours);
    }
    let by = if hops == 2 {
        ["172.18.1.254", "fd00:18:1::fe"]
    } else {
        ["172.18.2.2", "fd00:18:2::2"]
    };
    let ours = Talk::begin(&mut cluster, station, sent).map(|talk| {
        let error = error(ip(by[family as usize]), &talk.got, kinds(family)[2], 0);
        answered(&mut cluster, named("rtr"), &error, &talk.sent)
    });
    (recorded(row), ours.unwrap_or_else(|| "no flow".into()))
}
