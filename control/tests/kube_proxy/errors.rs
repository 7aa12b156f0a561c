//! ICMP errors about translated flows (ICM-1, TTL-1): who seems to have sent them, and what they quote.

use std::net::IpAddr;

use serde_json::Value;

use crate::bench::{CLOSED, REMOTE, Talk, bench, client, family};
use crate::cluster::Cluster;
use crate::ledger::Row;
use crate::packet::{ACK, ICMP, ICMPV6, Packet, SYN};
use crate::topology::{Family, Station, ip, named};

/// The flow that an error is about, as its client knows it, and how long the packet was.
struct Flow {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    len: usize,
}

impl Flow {
    fn of(sent: &Packet) -> Self {
        Self {
            from: (sent.src, sent.sport()),
            to: (sent.dst, sent.dport()),
            len: sent.len(),
        }
    }

    /// IPv4 quotes 548 bytes of the original, IPv6 1,232, or all there is.
    fn quoted(&self) -> usize {
        self.len.min(if self.from.0.is_ipv4() { 548 } else { 1232 })
    }
}

/// An ICMP error in terms of its flow: `C` the client, `F` the frontend.
fn line(error: &Packet, flow: &Flow) -> String {
    let quote = error.transport.get(8..).unwrap_or_default();
    let Some(inner) = Packet::parse(quote) else {
        return format!("quotes no packet: {error:?}");
    };
    let name = |address: IpAddr| match address {
        _ if address == flow.from.0 => "C".to_owned(),
        _ if address == flow.to.0 => "F".to_owned(),
        other => other.to_string(),
    };
    let port = |found: u16, own: u16| match found == own {
        true => "same".to_owned(),
        false => found.to_string(),
    };
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
        port(inner.sport(), flow.from.1),
        name(inner.dst),
        port(inner.dport(), flow.to.1),
        if quote.len() == flow.quoted() {
            "all"
        } else {
            "less"
        },
    )
}

/// The recorded error at the client, in the same terms. Its first 128 bytes are in the record; what was cut off is what the
/// recorder's long packets were filled with, which the checksum proves.
fn recorded(row: &Row, flow: &Flow) -> String {
    let error = &row.value["icmp_at_client"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let number = |value: &Value| value.as_u64().unwrap();
    let mut bytes: Vec<u8> = text(&error["hex"])
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    bytes.resize(number(&error["parsed"]["len"]) as usize, b'x');
    let packet = Packet::parse(&bytes).unwrap();
    let inner = &error["inner"];
    let len = number(&inner["len"]) as usize;
    if row.text("client") != "node1" {
        return line(&packet, &Flow { len, ..*flow });
    }
    // The node's own stack was watched before it translated: whoever sent the error is what the node calls the frontend.
    let end = |address: &str, port: &str| (ip(&text(&inner[address])), number(&inner[port]) as u16);
    let inside = Flow {
        from: end("src", "sport"),
        to: end("dst", "dport"),
        len,
    };
    line(&packet, &inside).replacen(&format!("from {}", packet.src), "from F", 1)
}

/// An error about `got`, as a router or the endpoint sends it.
fn error(from: IpAddr, got: &Packet, kind: (u8, u8), rest: u32) -> Packet {
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

/// What the client gets when `station` sends this packet, in terms of the flow that it sent.
fn answered(cluster: &mut Cluster, station: &Station, packet: &Packet, sent: &Packet) -> String {
    match &cluster.bed.send(station, packet)[..] {
        [one] => line(&one.packet, &Flow::of(sent)),
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
    let flow = Flow::of(&big);
    let ours = Talk::begin(&mut cluster, station, big).map(|talk| {
        let router = named("rtr");
        let error = error(router.address(family), &talk.got, kinds(family)[1], 1400);
        answered(&mut cluster, router, &error, &talk.sent)
    });
    (recorded(row, &flow), ours.unwrap_or_else(|| "no flow".into()))
}

pub(crate) fn from_the_endpoint(row: &Row) -> (String, String) {
    let (family, (station, address)) = (family(row), client(row));
    let mut cluster = bench();
    let (from, to) = ((address, 28_200), (ip(CLOSED[family as usize]), 80));
    let ours = Talk::open(&mut cluster, station, "UDP", from, to).map(|talk| {
        let error = error(talk.got.dst, &talk.got, kinds(family)[0], 0);
        answered(&mut cluster, named("r1"), &error, &talk.sent)
    });
    let flow = Flow { from, to, len: 0 };
    (recorded(row, &flow), ours.unwrap_or_else(|| "no flow".into()))
}

/// A datagram that expires here, at the router, or at the node behind it.
pub(crate) fn hop_limit(row: &Row) -> (String, String) {
    let (family, (station, address)) = (family(row), client(row));
    let hops: u8 = row.text("test").rsplit(' ').next().unwrap().parse().unwrap();
    let mut cluster = bench();
    let (from, to) = (
        (address, 28_300 + u16::from(hops)),
        (ip(REMOTE[family as usize]), 80),
    );
    let sent = Packet {
        hops,
        ..Packet::udp(from, to, b"ttl-test")
    };
    let recorded = recorded(row, &Flow::of(&sent));
    if hops == 1 {
        return (recorded, answered(&mut cluster, station, &sent, &sent));
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
    (recorded, ours.unwrap_or_else(|| "no flow".into()))
}
